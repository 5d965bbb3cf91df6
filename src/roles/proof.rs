//! What the roles' proofs for `selftest` share: certificates, an echo server, clients in parallel,
//! and what they add up to.

use super::selftest::{SelftestRow, echo};
use crate::error::Error;
use crate::net::tls::self_signed;
use crate::runtime::clock;
use crate::runtime::thread::{self, Thread};
use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

/// Sizes that ask something of framing: empty, one byte, around the path MTU. 64 datagrams of up to
/// 1400 bytes under way at once fit into the smallest default socket buffers (212,992 bytes).
pub const SIZES: [usize; 8] = [0, 1, 64, 200, 512, 1200, 1372, 1400];
/// More than a packet, a TLS record, and the largest over IPv4. One at a time, with nothing else under
/// way: together they would overflow the echo server's socket.
pub const LARGE_SIZES: [usize; 5] = [1_473, 9_000, 16_384, 65_000, 65_507];
/// How long an answer may take.
pub const TIMEOUT: Duration = Duration::from_secs(5);

const STACK: usize = 256 * 1024;
const STOP: &[u8] = b"udpferry selftest: stop the echo";

/// A self-signed certificate for `localhost` in files, until dropped.
pub struct Certificate {
    directory: PathBuf,
}

impl Certificate {
    /// Makes it, below the temporary directory.
    pub fn make() -> Result<Certificate, Error> {
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

    /// The certificate's file, which is its own authority.
    pub fn certificate(&self) -> String {
        self.directory.join("cert.pem").display().to_string()
    }

    /// The key's file.
    pub fn key(&self) -> String {
        self.directory.join("key.pem").display().to_string()
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        // What cannot be removed is two small files in the temporary directory.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A UDP echo server on loopback.
pub struct EchoServer {
    /// Where it listens.
    pub address: SocketAddr,
    thread: Thread<io::Result<()>>,
}

impl EchoServer {
    /// Starts it on a free port.
    pub fn start() -> Result<EchoServer, Error> {
        let doing = || "selftest: cannot start an echo server";
        let socket = UdpSocket::bind("127.0.0.1:0").map_err(Error::while_doing(doing))?;
        let address = socket.local_addr().map_err(Error::while_doing(doing))?;
        let thread = thread::spawn("selftest:echo", 0, STACK, move || echo(&socket, STOP))
            .map_err(Error::while_doing(doing))?;
        Ok(EchoServer { address, thread })
    }

    /// Stops it, and says whether it failed meanwhile.
    pub fn stop(self) -> Result<(), Error> {
        UdpSocket::bind("127.0.0.1:0")
            .and_then(|socket| socket.send_to(STOP, self.address))
            .map_err(Error::while_doing(|| "selftest: cannot stop the echo server"))?;
        self.thread
            .join()
            .unwrap_or_else(|panicked| Err(io::Error::other(panicked.message)))
            .map_err(Error::while_doing(|| "selftest: the echo server failed"))
    }
}

/// What one client has seen.
#[derive(Debug, Default)]
pub struct Tally {
    /// Datagrams that came back as they were sent.
    pub verified: u64,
    /// Those that did not, or came back changed.
    pub lost: u64,
    /// Bytes of verified datagrams, one way.
    pub bytes: u64,
    /// Of verified datagrams.
    pub round_trips: Vec<Duration>,
}

impl Tally {
    /// A datagram of `size` bytes came back after `round_trip`.
    pub fn verified(&mut self, size: usize, round_trip: Duration) {
        self.verified += 1;
        self.bytes += size as u64;
        self.round_trips.push(round_trip);
    }
}

/// A datagram of `size` bytes that only this `seed` has.
pub fn datagram(seed: u32, size: usize) -> Vec<u8> {
    (0..size).zip(seed..).map(|(at, seed)| seed.wrapping_mul(31).to_le_bytes()[at % 4]).collect()
}

/// Runs `clients` at once, each on a thread, then `alone`, and adds up what they saw. `flows` are
/// those of all.
pub fn run_clients<C: FnOnce() -> io::Result<Tally> + Send + 'static>(
    role: &str,
    shown_clients: usize,
    flows: usize,
    clients: Vec<C>,
    alone: impl FnOnce() -> io::Result<Tally>,
) -> Result<SelftestRow, Error> {
    let begin = clock::now();
    let mut threads = Vec::new();
    for (number, client) in (0..).zip(clients) {
        threads.push(
            thread::spawn("selftest:c", number, STACK, client)
                .map_err(Error::while_doing(|| "selftest: cannot start a thread"))?,
        );
    }
    let mut row = SelftestRow {
        role: role.to_owned(),
        clients: shown_clients,
        flows,
        verified: 0,
        lost: 0,
        round_trips: Vec::new(),
        elapsed: Duration::ZERO,
        bytes: 0,
        skipped: None,
    };
    let mut fault = None;
    let mut results: Vec<_> = threads.into_iter().map(Thread::join).collect();
    results.push(Ok(alone()));
    for result in results {
        match result {
            Ok(Ok(one)) => {
                row.verified += one.verified;
                row.lost += one.lost;
                row.bytes += one.bytes;
                row.round_trips.extend(one.round_trips);
            }
            Ok(Err(error)) => fault = Some(error),
            Err(panicked) => fault = Some(io::Error::other(panicked.message)),
        }
    }
    row.elapsed = clock::now().saturating_duration_since(begin);
    match fault {
        Some(error) => Err(error).map_err(Error::while_doing(|| "selftest: a client failed")),
        None => Ok(row),
    }
}

/// A socket that talks to a local port alone.
pub fn connect(port: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(port)?;
    Ok(socket)
}

/// Sends `waiting` and takes the answers, each of which should be one of them, in any order:
/// connections overtake each other.
pub fn exchange(
    socket: &UdpSocket,
    mut waiting: Vec<Vec<u8>>,
    tally: &mut Tally,
) -> io::Result<()> {
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
