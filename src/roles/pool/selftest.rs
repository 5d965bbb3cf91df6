//! The role's rows of `udpferry selftest`: both sides at once.

use crate::error::Error;
use crate::roles::proof::{
    Certificate, EchoServer, LARGE_SIZES, SIZES, TIMEOUT, Tally, datagram, run_clients,
};
use crate::roles::selftest::{SelftestRow, Service, free_port, free_udp_address};
use crate::runtime::clock;
use std::io;
use std::net::{SocketAddr, UdpSocket};

const ENDPOINTS: usize = 8;
/// Datagrams that an endpoint has under way at once.
const WINDOW: u32 = 8;
/// Rounds of so many datagrams per endpoint.
const ROUNDS: u32 = 300;

/// Runs client and server in their ways of connecting and verifies what they carry.
pub fn selftest() -> Result<Vec<SelftestRow>, Error> {
    let files = Certificate::make()?;
    let server = ["-c", &files.certificate(), "-k", &files.key()].map(str::to_owned);
    let client = ["-C", &files.certificate(), "--tls-servername", "localhost"].map(str::to_owned);
    let plain = ["--no-tls".to_owned()];
    Ok(vec![row("pool over TLS", &server, &client)?, row("pool over plain TCP", &plain, &plain)?])
}

fn row(name: &str, server: &[String], client: &[String]) -> Result<SelftestRow, Error> {
    let echo = EchoServer::start()?;
    let tcp = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let udp = free_udp_address()?;
    let server = Service::start(&args("server", tcp, server, echo.address))?;
    let client = Service::start(&args("client", udp, client, tcp))?;
    let endpoints = (0..ENDPOINTS).map(|number| move || endpoint(udp, number));
    let row = run_clients(name, 1, ENDPOINTS, endpoints.collect(), || large_datagrams(udp));
    // The client first: the server would be found gone else, which is not worth a line.
    drop(client);
    drop(server);
    echo.stop()?;
    row
}

fn args(side: &str, bind: SocketAddr, more: &[String], destination: SocketAddr) -> Vec<String> {
    let mut args = ["pool", side, "--log-level=error"].map(str::to_owned).to_vec();
    args.push(format!("--bind-address={}", bind.ip()));
    args.push(format!("--bind-port={}", bind.port()));
    args.extend_from_slice(more);
    args.extend([destination.ip().to_string(), destination.port().to_string()]);
    args
}

fn connect(client: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(client)?;
    Ok(socket)
}

fn endpoint(client: SocketAddr, number: usize) -> io::Result<Tally> {
    let socket = connect(client)?;
    let mut tally = Tally::default();
    // The first one finds no connection yet and waits for it.
    exchange(&socket, vec![datagram(0, SIZES[number % SIZES.len()])], &mut tally)?;
    for round in 0..ROUNDS {
        let datagrams = (0..WINDOW).map(|place| {
            let size = SIZES[(round + place) as usize % SIZES.len()];
            datagram((place << 16) ^ round, size)
        });
        exchange(&socket, datagrams.collect(), &mut tally)?;
    }
    Ok(tally)
}

fn large_datagrams(client: SocketAddr) -> io::Result<Tally> {
    let socket = connect(client)?;
    let mut tally = Tally::default();
    for (round, size) in (0..).zip(LARGE_SIZES) {
        exchange(&socket, vec![datagram(round, size)], &mut tally)?;
    }
    Ok(tally)
}

/// Sends `waiting` and takes the answers in any order: connections overtake each other.
fn exchange(socket: &UdpSocket, mut waiting: Vec<Vec<u8>>, tally: &mut Tally) -> io::Result<()> {
    let begin = clock::now();
    let deadline = begin + TIMEOUT;
    for datagram in &waiting {
        socket.send(datagram)?;
    }
    let mut bytes = vec![0; 65_536];
    while !waiting.is_empty() {
        let left = clock::until(deadline, clock::now());
        let received = if left.is_zero() {
            Err(io::ErrorKind::TimedOut.into())
        } else {
            socket.set_read_timeout(Some(left))?;
            socket.recv(&mut bytes)
        };
        match received {
            Ok(len) => match waiting.iter().position(|sent| *sent == bytes[..len]) {
                Some(at) => {
                    waiting.swap_remove(at);
                    tally.verified(len, clock::now().saturating_duration_since(begin));
                }
                None => tally.lost += 1,
            },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                tally.lost += waiting.len() as u64;
                waiting.clear();
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
