//! The role's rows of `udpferry selftest`.

use super::probe::{NoReply, Probe};
use crate::error::Error;
use crate::net::tls::{ClientTrust, self_signed};
use crate::roles::dial::Dial;
use crate::roles::selftest::{SelftestRow, Service, echo, free_port};
use crate::runtime::clock;
use crate::runtime::thread;
use crate::wire::udpgw::Datagram;
use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const CLIENTS: usize = 8;
const FLOWS_PER_CLIENT: u16 = 8;
/// Rounds of one datagram per flow. All of a round are under way at once: 64 datagrams of up to
/// 1400 bytes, which the smallest default socket buffers (212,992 bytes) hold.
const ROUNDS: u32 = 300;
/// Sizes that ask something of framing: empty, one byte, around the path MTU, the largest over IPv4.
const SIZES: [usize; 8] = [0, 1, 64, 200, 512, 1200, 1372, 1400];
const LARGE_SIZES: [usize; 4] = [1_473, 9_000, 65_000, 65_507];
const STACK: usize = 256 * 1024;
const TIMEOUT: Duration = Duration::from_secs(5);
const STOP: &[u8] = b"udpferry selftest: stop the echo";

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

/// A self-signed certificate in files, until dropped.
struct Certificate {
    directory: PathBuf,
}

impl Certificate {
    fn make() -> Result<Certificate, Error> {
        let directory =
            std::env::temp_dir().join(format!("udpferry-selftest-{}", std::process::id()));
        let cannot = || format!("selftest: cannot write to {}", directory.display());
        fs::create_dir(&directory).map_err(Error::while_doing(cannot))?;
        let files = Certificate { directory: directory.clone() };
        let (certificate, key) = self_signed("localhost")?;
        fs::write(files.certificate(), certificate).map_err(Error::while_doing(cannot))?;
        fs::write(files.key(), key).map_err(Error::while_doing(cannot))?;
        Ok(files)
    }

    fn certificate(&self) -> String {
        self.directory.join("cert.pem").display().to_string()
    }

    fn key(&self) -> String {
        self.directory.join("key.pem").display().to_string()
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        // What cannot be removed is two small files in the temporary directory.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn row(name: &str, more_args: &[String], authority: Option<&Path>) -> Result<SelftestRow, Error> {
    let failed = |what: &'static str| Error::while_doing(move || format!("selftest: {what}"));
    let gateway = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let mut args: Vec<String> =
        ["udpgw", "--allow=127.0.0.0/8", "--log-level=error"].map(str::to_owned).to_vec();
    args.push(format!("--listen-addr={gateway}"));
    args.extend_from_slice(more_args);
    let service = Service::start(&args)?;

    let socket = UdpSocket::bind("127.0.0.1:0").map_err(failed("cannot start an echo server"))?;
    let target = socket.local_addr().map_err(failed("cannot start an echo server"))?;
    let echo = thread::spawn("selftest:echo", 0, STACK, move || echo(&socket, STOP))
        .map_err(failed("cannot start a thread"))?;
    let begin = clock::now();
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let authority = authority.map(Path::to_owned);
        let client = move || client(gateway, target, number, authority.as_deref());
        clients.push(
            thread::spawn("selftest:c", number as u64, STACK, client)
                .map_err(failed("cannot start a thread"))?,
        );
    }
    let mut total = SelftestRow {
        role: name.to_owned(),
        clients: CLIENTS,
        flows: CLIENTS * usize::from(FLOWS_PER_CLIENT),
        verified: 0,
        lost: 0,
        round_trips: Vec::new(),
        elapsed: Duration::ZERO,
        bytes: 0,
    };
    let mut fault = None;
    for client in clients {
        match client.join() {
            Ok(Ok(one)) => {
                total.verified += one.verified;
                total.lost += one.lost;
                total.bytes += one.bytes;
                total.round_trips.extend(one.round_trips);
            }
            Ok(Err(error)) => fault = Some(error),
            Err(panicked) => fault = Some(io::Error::other(panicked.message)),
        }
    }
    total.elapsed = clock::now().saturating_duration_since(begin);
    UdpSocket::bind("127.0.0.1:0")
        .and_then(|socket| socket.send_to(STOP, target))
        .map_err(failed("cannot stop the echo server"))?;
    echo.join()
        .unwrap_or_else(|panicked| Err(io::Error::other(panicked.message)))
        .map_err(failed("the echo server failed"))?;
    drop(service);
    match fault {
        Some(error) => Err(error).map_err(failed("a client failed")),
        None => Ok(total),
    }
}

#[derive(Default)]
struct ClientResult {
    verified: u64,
    lost: u64,
    bytes: u64,
    round_trips: Vec<Duration>,
}

fn client(
    gateway: SocketAddr,
    target: SocketAddr,
    number: usize,
    authority: Option<&Path>,
) -> io::Result<ClientResult> {
    let mut dial = Dial::connect(gateway, TIMEOUT)?;
    if authority.is_some() {
        let trust = ClientTrust { ca: authority, ..ClientTrust::default() };
        dial.start_tls("localhost", &trust).map_err(io::Error::other)?;
    }
    let mut probe = Probe::new(dial);
    probe.keepalive()?;
    let mut result = ClientResult::default();
    for round in 0..ROUNDS {
        let size = SIZES[(round as usize + number) % SIZES.len()];
        exchange(&mut probe, target, FLOWS_PER_CLIENT, size, round, &mut result)?;
    }
    // One client alone: several of these at once would overflow the echo server's socket.
    if number == 0 {
        for (round, size) in (ROUNDS..).zip(LARGE_SIZES) {
            exchange(&mut probe, target, 1, size, round, &mut result)?;
        }
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
    result: &mut ClientResult,
) -> io::Result<()> {
    let payload = |conid: u16| -> Vec<u8> {
        let seed = (u32::from(conid) << 16) ^ round;
        (0..size)
            .zip(seed..)
            .map(|(at, seed)| seed.wrapping_mul(31).to_le_bytes()[at % 4])
            .collect()
    };
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
                        result.verified += 1;
                        result.bytes += size as u64;
                        result.round_trips.push(clock::now().saturating_duration_since(begin));
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
