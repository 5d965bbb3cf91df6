//! The role's rows of `udpferry selftest`: both sides at once.

use crate::error::Error;
use crate::roles::proof::{
    Certificate, EchoServer, LARGE_SIZES, SIZES, Tally, connect, datagram, exchange, run_clients,
};
use crate::roles::selftest::{SelftestRow, Service, free_port, free_udp_address};
use std::io;
use std::net::SocketAddr;

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
