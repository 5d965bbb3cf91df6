//! `udpferry selftest`: every role's proof on loopback, as one table.

use super::ROLES;
use crate::cli::common::INFORMATION;
use crate::cli::flags::Matches;
use crate::cli::table::Command;
use crate::error::Error;
use crate::runtime::{clock, signals};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

/// How long a role may take to say that it is ready, or to stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a role that is not ready yet is looked after: it may have ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The options of `selftest`.
pub const SELFTEST: Command = Command {
    name: "selftest",
    summary: "push verified datagrams through every role on loopback; needs no root",
    about: "Starts each role on free ports of 127.0.0.1 with an echo server behind it, pushes \
            datagrams through it and verifies every one that comes back. Exit status 0 only if \
            all of them did.",
    positionals: &[],
    sections: &[("Common", INFORMATION)],
    examples: &[("udpferry selftest", "See that this build works on this machine.")],
};

/// What one way of running a role achieved.
#[derive(Debug, Clone)]
pub struct SelftestRow {
    /// The role, and how it was run.
    pub role: String,
    /// Clients connected at once.
    pub clients: usize,
    /// Flows of all of them.
    pub flows: usize,
    /// Datagrams that came back as they were sent.
    pub verified: u64,
    /// Datagrams that did not come back, or came back changed.
    pub lost: u64,
    /// Round trips of all verified datagrams, unsorted.
    pub round_trips: Vec<Duration>,
    /// From the first datagram to the last.
    pub elapsed: Duration,
    /// Bytes of verified datagrams, one way.
    pub bytes: u64,
    /// Why nothing was run, if it was not.
    pub skipped: Option<String>,
}

impl SelftestRow {
    /// A role that this machine does not let us prove.
    pub fn skipped(role: &str, why: &str) -> SelftestRow {
        SelftestRow {
            role: role.to_owned(),
            clients: 0,
            flows: 0,
            verified: 0,
            lost: 0,
            round_trips: Vec::new(),
            elapsed: Duration::ZERO,
            bytes: 0,
            skipped: Some(why.to_owned()),
        }
    }
}

/// Runs every role's proof and prints the table.
pub fn selftest(_: &Matches) -> Result<u8, Error> {
    let mut table = format!(
        "{:<28}{:>8}{:>7}{:>10}{:>6}{:>10}{:>10}{:>14}\n",
        "role", "clients", "flows", "verified", "lost", "p50", "p99", "throughput"
    );
    let mut failed = false;
    for selftest in ROLES.iter().filter_map(|role| role.selftest) {
        for mut row in selftest()? {
            if let Some(why) = &row.skipped {
                // Writing to a String cannot fail.
                let _ = writeln!(table, "{:<28}skipped: {why}", row.role);
                continue;
            }
            failed |= row.lost > 0 || row.verified == 0;
            row.round_trips.sort_unstable();
            let micros = |quantile: usize| {
                let index = row.round_trips.len().saturating_sub(1) * quantile / 100;
                let round_trip = row.round_trips.get(index).copied().unwrap_or_default();
                format!("{} µs", round_trip.as_micros())
            };
            #[allow(clippy::cast_precision_loss)] // Three digits are shown.
            let megabits = row.bytes as f64 * 8.0 / 1e6 / row.elapsed.as_secs_f64().max(1e-9);
            // Writing to a String cannot fail.
            let _ = writeln!(
                table,
                "{:<28}{:>8}{:>7}{:>10}{:>6}{:>10}{:>10}{:>14}",
                row.role,
                row.clients,
                row.flows,
                row.verified,
                row.lost,
                micros(50),
                micros(99),
                format!("{megabits:.0} Mbit/s")
            );
        }
    }
    table.push_str(if failed { "FAILED\n" } else { "all datagrams verified\n" });
    io::stdout()
        .write_all(table.as_bytes())
        .map_err(Error::while_doing(|| "cannot write to standard output"))?;
    Ok(u8::from(failed))
}

/// This program as a service, run as a child process until dropped.
pub struct Service {
    child: Child,
}

impl Service {
    /// Starts `udpferry` with `args` and waits until it says that it is ready.
    pub fn start(args: &[String]) -> Result<Service, Error> {
        let mut process = Process::new("/proc/self/exe");
        process.arg0("udpferry").args(args).stdin(Stdio::null());
        Service::start_by(process)
    }

    /// Starts it by a command that becomes `udpferry` in the end, perhaps in other namespaces.
    pub fn start_by(mut process: Process) -> Result<Service, Error> {
        let failed = |what: &'static str| Error::while_doing(move || format!("selftest: {what}"));
        // A file: an abstract name is not seen from other network namespaces.
        let name = format!("udpferry-selftest-{}-{}", std::process::id(), nanoseconds());
        let path = std::env::temp_dir().join(name);
        let ready = UnixDatagram::bind(&path).map_err(failed("cannot make a socket"))?;
        let service = Service::await_ready(&mut process, &path, &ready);
        // What cannot be removed is an empty file in the temporary directory.
        let _ = std::fs::remove_file(path);
        service
    }

    fn await_ready(
        process: &mut Process,
        path: &Path,
        ready: &UnixDatagram,
    ) -> Result<Service, Error> {
        let failed = |what: &'static str| Error::while_doing(move || format!("selftest: {what}"));
        ready.set_read_timeout(Some(LOOK_INTERVAL)).map_err(failed("cannot set up a socket"))?;
        // The operator's settings are not under test.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"UDPFERRY_") {
                process.env_remove(name);
            }
        }
        process.env("NOTIFY_SOCKET", path);
        let child = signals::start(process).map_err(failed("cannot start the role"))?;
        let mut service = Service { child };
        let mut message = [0; 256];
        let deadline = clock::now() + PATIENCE;
        loop {
            match signals::uninterrupted(|| ready.recv(&mut message)) {
                Ok(len) if message[..len].starts_with(b"READY=1") => return Ok(service),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // It has said why on standard error.
                    if let Ok(Some(status)) = service.child.try_wait() {
                        let ended = io::Error::other(status.to_string());
                        return Err(ended).map_err(failed("the role did not start"));
                    }
                    if clock::now() >= deadline {
                        let late = io::ErrorKind::TimedOut.into();
                        return Err(late).map_err(failed("the role did not get ready"));
                    }
                }
                Err(error) => return Err(error).map_err(failed("the role did not get ready")),
            }
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(0));
        if pid.as_raw() > 0 {
            // It may have ended by itself.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

/// A free TCP port of 127.0.0.1. Another process may take it first; then the role says so.
pub fn free_port() -> Result<u16, Error> {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(Error::while_doing(|| "selftest: no free port on 127.0.0.1"))
}

/// A free UDP port of 127.0.0.1. Another process may take it first; then the role says so.
pub fn free_udp_address() -> Result<std::net::SocketAddr, Error> {
    UdpSocket::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .map_err(Error::while_doing(|| "selftest: no free UDP port on 127.0.0.1"))
}

/// Sends back what it gets until it gets `stop`.
pub fn echo(socket: &UdpSocket, stop: &[u8]) -> io::Result<()> {
    let mut bytes = vec![0; 65_536];
    loop {
        match socket.recv_from(&mut bytes) {
            Ok((len, _)) if &bytes[..len] == stop => return Ok(()),
            Ok((len, from)) => {
                // A full buffer at the other end is seen there, as a loss.
                let _ = socket.send_to(&bytes[..len], from);
            }
            // An ICMP error for an earlier answer.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        }
    }
}

fn nanoseconds() -> u128 {
    // Distinguishes the services of one process; the process's id does the rest.
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(clock::now).elapsed().as_nanos()
}
