//! The role's row of `udpferry selftest`: two members that meet at a server, and what the tunnel
//! between them carries.

use super::room::{RANDOM_LEN, Room};
use crate::error::Error;
use crate::net::random;
use crate::roles::proof::{
    EchoServer, LARGE_SIZES, SIZES, TIMEOUT, Tally, connect, datagram, exchange, run_clients,
};
use crate::roles::selftest::{SelftestRow, Service, free_udp_address};
use crate::runtime::clock;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

const FLOWS: usize = 8;
/// Datagrams that a flow has under way at once.
const WINDOW: u32 = 8;
/// Rounds of so many datagrams in each flow.
const ROUNDS: u32 = 300;
/// What one datagram of the tunnel holds over IPv4.
const CARRIED_MAX: usize = 65_455;
/// How often to ask whether the tunnel is up.
const ASK_INTERVAL: Duration = Duration::from_millis(20);

/// Runs a server and two members, one with an echo server, and verifies what they carry.
pub fn selftest() -> Result<Vec<SelftestRow>, Error> {
    let random = random::bytes::<RANDOM_LEN>();
    let random = random.map_err(Error::while_doing(|| "selftest: cannot make a room"))?;
    let room = Room::made(&random).code();
    let (server, port) = (free_udp_address()?, free_udp_address()?);
    let echo = EchoServer::start()?;
    let listen = format!("--listen-addr={server}");
    let service = Service::start(&["rendezvous", "--log-level=error", &listen].map(str::to_owned))?;
    let member = |name: &str, forwarding: String| {
        let mut args = ["peer", "--log-level=error"].map(str::to_owned).to_vec();
        args.extend([format!("--server={server}"), format!("--room={room}")]);
        args.extend([format!("--name={name}"), forwarding]);
        Service::start(&args)
    };
    let inside = member("inside", format!("--serve={}", echo.address))?;
    let outside = member("outside", format!("--forward={port}"))?;
    until_up(port).map_err(Error::while_doing(|| "selftest: the members do not meet"))?;
    let flows = (0..FLOWS).map(|number| move || flow(port, number));
    let row = run_clients("peer", 2, FLOWS, flows.collect(), || large_datagrams(port));
    drop((outside, inside, service));
    echo.stop()?;
    row.map(|row| vec![row])
}

/// Asks until an answer comes: before there is a tunnel, datagrams are dropped.
fn until_up(port: SocketAddr) -> io::Result<()> {
    let socket = connect(port)?;
    socket.set_read_timeout(Some(ASK_INTERVAL))?;
    let deadline = clock::now() + TIMEOUT;
    loop {
        socket.send(b"up?")?;
        match socket.recv(&mut [0; 8]) {
            Ok(_) => return Ok(()),
            Err(error) if clock::now() >= deadline => return Err(error),
            Err(_) => {}
        }
    }
}

fn flow(port: SocketAddr, number: usize) -> io::Result<Tally> {
    let socket = connect(port)?;
    let mut tally = Tally::default();
    for round in 0..ROUNDS {
        let datagrams = (0..WINDOW).map(|place| {
            let size = SIZES[(number + (round + place) as usize) % SIZES.len()];
            datagram((place << 16) ^ round, size)
        });
        exchange(&socket, datagrams.collect(), &mut tally)?;
    }
    Ok(tally)
}

fn large_datagrams(port: SocketAddr) -> io::Result<Tally> {
    let socket = connect(port)?;
    let mut tally = Tally::default();
    for (round, size) in (0..).zip(LARGE_SIZES) {
        exchange(&socket, vec![datagram(round, size.min(CARRIED_MAX))], &mut tally)?;
    }
    Ok(tally)
}
