//! The role's rows of `udpferry selftest`.

use super::probe::Probe;
use crate::error::Error;
use crate::net::tls::ClientTrust;
use crate::roles::dial::Dial;
use crate::roles::framed::NoReply;
use crate::roles::proof::{
    Certificate, EchoServer, LARGE_SIZES, SIZES, TIMEOUT, Tally, datagram, run_clients,
};
use crate::roles::selftest::{SelftestRow, Service, free_port};
use crate::runtime::clock;
use crate::wire::udpgw::Datagram;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

const CLIENTS: usize = 8;
const FLOWS_PER_CLIENT: u16 = 8;
/// Rounds of one datagram per flow. All of a round are under way at once.
const ROUNDS: u32 = 300;

/// Runs the gateway in its ways of serving and verifies what it carries.
pub fn selftest() -> Result<Vec<SelftestRow>, Error> {
    let files = Certificate::make()?;
    let tls_args =
        ["--tls-cert", &files.certificate(), "--tls-key", &files.key()].map(str::to_owned).to_vec();
    let per_flow = vec!["--mapping=per-flow".to_owned()];
    let authority = PathBuf::from(files.certificate());
    Ok(vec![
        row("udpgw", &[], None)?,
        row("udpgw, a port per flow", &per_flow, None)?,
        row("udpgw over TLS", &tls_args, Some(&authority))?,
    ])
}

fn row(name: &str, more_args: &[String], authority: Option<&Path>) -> Result<SelftestRow, Error> {
    let gateway = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let mut args: Vec<String> =
        ["udpgw", "--allow=127.0.0.0/8", "--log-level=error"].map(str::to_owned).to_vec();
    args.push(format!("--listen-addr={gateway}"));
    args.extend_from_slice(more_args);
    let service = Service::start(&args)?;
    let echo = EchoServer::start()?;
    let target = echo.address;
    let clients = (0..CLIENTS).map(|number| {
        let authority = authority.map(Path::to_owned);
        move || client(gateway, target, number, authority.as_deref())
    });
    let flows = CLIENTS * usize::from(FLOWS_PER_CLIENT);
    let alone = || large_datagrams(gateway, target, authority);
    let row = run_clients(name, CLIENTS, flows, clients.collect(), alone);
    echo.stop()?;
    drop(service);
    row
}

fn connect(gateway: SocketAddr, authority: Option<&Path>) -> io::Result<Probe> {
    let mut dial = Dial::connect(gateway, TIMEOUT)?;
    if authority.is_some() {
        let trust = ClientTrust { ca: authority, ..ClientTrust::default() };
        dial.start_tls("localhost", &trust).map_err(io::Error::other)?;
    }
    let mut probe = Probe::new(dial);
    probe.keepalive()?;
    Ok(probe)
}

fn client(
    gateway: SocketAddr,
    target: SocketAddr,
    number: usize,
    authority: Option<&Path>,
) -> io::Result<Tally> {
    let mut probe = connect(gateway, authority)?;
    let mut result = Tally::default();
    for round in 0..ROUNDS {
        let size = SIZES[(round as usize + number) % SIZES.len()];
        exchange(&mut probe, target, FLOWS_PER_CLIENT, size, round, &mut result)?;
    }
    Ok(result)
}

fn large_datagrams(
    gateway: SocketAddr,
    target: SocketAddr,
    authority: Option<&Path>,
) -> io::Result<Tally> {
    let mut probe = connect(gateway, authority)?;
    let mut result = Tally::default();
    for (round, size) in (0..).zip(LARGE_SIZES) {
        exchange(&mut probe, target, 1, size, round, &mut result)?;
    }
    Ok(result)
}

/// One datagram on each of `flows` flows, and their answers.
fn exchange(
    probe: &mut Probe,
    target: SocketAddr,
    flows: u16,
    size: usize,
    round: u32,
    result: &mut Tally,
) -> io::Result<()> {
    let payload = |conid: u16| datagram((u32::from(conid) << 16) ^ round, size);
    let begin = clock::now();
    for conid in 0..flows {
        let payload = payload(conid);
        probe.send(&Datagram {
            conid,
            rebind: false,
            dns: false,
            address: target,
            payload: &payload,
        })?;
    }
    let deadline: Instant = begin + TIMEOUT;
    let mut waiting: Vec<u16> = (0..flows).collect();
    while !waiting.is_empty() {
        match probe.receive(deadline) {
            Ok(reply) => {
                let expected = waiting.iter().position(|conid| *conid == reply.conid);
                match expected {
                    Some(at) if reply.payload == payload(reply.conid) => {
                        waiting.swap_remove(at);
                        let round_trip = clock::now().saturating_duration_since(begin);
                        result.verified(size, round_trip);
                    }
                    _ => result.lost += 1,
                }
            }
            Err(NoReply::TimedOut) => {
                result.lost += waiting.len() as u64;
                waiting.clear();
            }
            Err(NoReply::Failed(error)) => return Err(error),
            Err(NoReply::Closed | NoReply::OtherProtocol(_)) => {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
    }
    Ok(())
}
