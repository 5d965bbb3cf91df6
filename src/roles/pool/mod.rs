//! UDP over many TLS (or TCP) connections ([`crate::wire::pool`]), wire-compatible with
//! udp-over-tls-pool, and both sides of it.
//!
//! ```text
//!   client                                                       server
//!
//!   app --UDP--> "pool-client" main                        "pool:c<id>" per connection
//!                 demultiplexes by source endpoint            read frames --UDP--> target
//!                 batches --queue--> "pool:up<n>" ==TLS==>    (straight to the session's socket)
//!   app <--UDP-- "pool:up<n>"  <==TLS== "pool:c<id>" <--queue-- "pool:s<id>" per session
//!                 read frames                                 receives in batches <--UDP-- target
//!                                              "pool-server" main: accepts, groups by session id
//! ```
//!
//! Whoever receives UDP (`session`, `client`) puts datagrams into batches of up to one TLS
//! record and hands each batch to the connection that sends it soonest
//! ([`crate::state::link_choice`]). A lone datagram is a batch of its own: there is no timer.
//! Whoever owns a connection (`link`) writes batches and sends what it reads straight to UDP.

mod args;
mod backlog;
mod batch;
mod check;
mod client;
mod connection;
mod counters;
mod link;
mod probe;
mod route;
mod selftest;
mod server;
mod session;
mod uplink;

pub use args::{CLIENT_COMMAND, SERVER_COMMAND};
pub use check::{CHECK, check};
pub use selftest::selftest;

use super::destination::Destination;
use super::startup;
use crate::cli::common::Common;
use crate::cli::flags::Matches;
use crate::error::Error;
use crate::net::sys::mmsg::receive::ReceiveQueue;
use crate::net::udp;
use crate::runtime::clock;
use crate::runtime::metrics::{FamilyInfo, Registry};
use crate::runtime::stock::Stock;
use crate::state::token_bucket::LogGate;
use crate::wire::pool::SessionId;
use counters::Counters;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a connection begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// A session id: connections with the same one share a UDP endpoint.
    Pool,
    /// Nothing, as Mullvad's udp-over-tcp: each connection is an endpoint of its own.
    Mullvad,
}

/// Certificate and key of one side.
#[derive(Debug, Clone)]
struct KeyFiles {
    certificate: PathBuf,
    key: PathBuf,
}

/// Options of both sides.
#[derive(Debug)]
struct SharedConfig {
    destination: Destination,
    framing: Framing,
    queue_datagrams_max: usize,
    sessions_max: usize,
    udp_buffers: udp::Buffers,
    /// Options of TLS that --no-tls stands beside.
    ignored: Vec<&'static str>,
    common: Common,
}

impl SharedConfig {
    fn warn_of_ignored(&self) {
        if !self.ignored.is_empty() {
            let options = self.ignored.join(", ");
            log::warn!("--no-tls: plain TCP, without encryption; no effect: {options}");
        }
    }
}

/// The server's TLS, unless --no-tls.
#[derive(Debug)]
struct ServerTls {
    files: KeyFiles,
    client_ca: Option<PathBuf>,
    alpn: Option<String>,
}

/// The validated options of `pool server`.
#[derive(Debug)]
struct ServerConfig {
    shared: SharedConfig,
    listen: Vec<SocketAddr>,
    /// Neither address nor port was asked for.
    listen_is_default: bool,
    tls: Option<ServerTls>,
    connections_max: usize,
    /// Without it, a part of `connections_max`.
    set_ups_max: Option<usize>,
    connections_per_session_max: usize,
    handshake_timeout: Duration,
    session_timeout: Option<Duration>,
    session_grace: Duration,
}

/// The client's TLS, unless --no-tls.
#[derive(Debug)]
struct ClientTls {
    ca: Option<PathBuf>,
    files: Option<KeyFiles>,
    server_name: String,
    checks_name: bool,
    alpn: Option<String>,
}

/// The validated options of `pool client`.
#[derive(Debug)]
struct ClientConfig {
    shared: SharedConfig,
    bind: SocketAddr,
    tls: Option<ClientTls>,
    pool_size: usize,
    expire: Duration,
    backoff: Duration,
    connect_timeout: Duration,
    mark: Option<u32>,
    resolves_once: bool,
}

/// What all threads of one side share.
struct Shared {
    counters: Counters,
    workbenches: Stock<Box<link::Workbench>>,
    /// For sessions of the server, which hold none while they wait.
    receive_queues: Stock<Box<ReceiveQueue>>,
    buffers: batch::Buffers,
    /// For lines that anybody on the network can cause.
    trouble_log: Mutex<LogGate>,
    /// For the beginnings and ends of sessions, which anybody can cause too.
    session_log: Mutex<LogGate>,
}

/// Threads that are in the middle of work at once: as many as cores, and some preempted ones.
const WORKBENCHES_KEPT: usize = 16;

impl Shared {
    fn new(registry: &mut Registry) -> Shared {
        Shared {
            counters: Counters::new(registry),
            workbenches: Stock::new(WORKBENCHES_KEPT),
            receive_queues: Stock::new(WORKBENCHES_KEPT),
            buffers: batch::Buffers::new(batch::BATCHES_KEPT),
            trouble_log: Mutex::new(LogGate::new(1, 20)),
            session_log: Mutex::new(LogGate::new(5, 100)),
        }
    }

    /// A warning about one connection, unless there have been too many of them lately.
    fn warn(&self, warning: &dyn std::fmt::Display) {
        let mut gate = self.trouble_log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(more) = gate.pass(clock::now()) {
            log::warn!("{warning} ({more} more lines)");
        }
    }

    /// What has become of a session, unless there have been too many such lines lately.
    fn tell(&self, session: SessionId, news: &dyn std::fmt::Display) {
        let mut gate = self.session_log.lock().unwrap_or_else(PoisonError::into_inner);
        match gate.pass(clock::now()) {
            Some(0) => log::info!("session {session}: {news}"),
            Some(more) => log::info!("session {session}: {news} ({more} more lines)"),
            None => {}
        }
    }
}

/// Errors in a row that receiving has met on one UDP socket.
#[derive(Debug, Default)]
struct ErrorRun(u8);

impl ErrorRun {
    /// One more; whether to try again at once. ICMP errors are told one by one and are over; an
    /// error that stays would make the thread spin: it waits for the poll's next word.
    fn tries_again(&mut self) -> bool {
        self.0 = self.0.saturating_add(1);
        self.0 <= 8
    }

    fn is_over(&mut self) {
        self.0 = 0;
    }
}

/// When a session last carried a datagram, either way; told by many threads.
#[derive(Debug)]
struct Activity {
    epoch: Instant,
    /// Milliseconds since `epoch` and one more; 0 while it has carried nothing.
    last: AtomicU64,
}

impl Activity {
    fn new(now: Instant) -> Activity {
        Activity { epoch: now, last: AtomicU64::new(0) }
    }

    fn touch(&self, now: Instant) {
        let since = now.saturating_duration_since(self.epoch).as_millis();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        self.last.store(since.saturating_add(1), Ordering::Relaxed);
    }

    /// Since its beginning, if it has carried nothing.
    fn last(&self) -> Instant {
        let since = self.last.load(Ordering::Relaxed).saturating_sub(1);
        self.epoch + Duration::from_millis(since)
    }

    fn has_carried(&self) -> bool {
        self.last.load(Ordering::Relaxed) > 0
    }
}

/// Runs the server until it is stopped; returns the process's exit code.
pub fn run_server(matches: &Matches) -> Result<u8, Error> {
    let config = args::server_config(matches)?;
    let common = config.shared.common.clone();
    startup::run("pool-server", &common, |startup| {
        config.shared.warn_of_ignored();
        server::serve(config, startup)
    })
}

/// Runs the client until it is stopped; returns the process's exit code.
pub fn run_client(matches: &Matches) -> Result<u8, Error> {
    let config = args::client_config(matches)?;
    let common = config.shared.common.clone();
    startup::run("pool-client", &common, |startup| {
        config.shared.warn_of_ignored();
        client::serve(config, startup)
    })
}

/// Every metric of both sides, for their documentation.
pub fn metrics() -> Vec<FamilyInfo> {
    let mut registry = Registry::new();
    Counters::new(&mut registry);
    registry.families().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::flags::{self, Parsed};
    use crate::cli::table::Command;
    use crate::roles::listening::room_for;

    fn parsed(command: &'static Command, options: &[&str]) -> Matches {
        let words = options.iter().chain(&["--no-tls", "127.0.0.1", "1"]).map(Into::into).collect();
        let Ok(Parsed::Run(matches)) = flags::parse(command, words, &|_| None) else {
            panic!("the options are wrong");
        };
        matches
    }

    #[test]
    fn the_units_have_descriptors_for_the_defaults() {
        let room = |unit: &str| {
            let limit = unit.lines().find_map(|line| line.strip_prefix("LimitNOFILE=")).unwrap();
            room_for(limit.parse().unwrap(), server::DESCRIPTORS_EACH)
        };
        let client = args::client_config(&parsed(&CLIENT_COMMAND, &[])).unwrap();
        let unit = include_str!("../../../packaging/systemd/udpferry-pool-client.service");
        assert!(room(unit) >= client.shared.sessions_max * client.pool_size);
        let server = args::server_config(&parsed(&SERVER_COMMAND, &[])).unwrap();
        let unit = include_str!("../../../packaging/systemd/udpferry-pool-server.service");
        assert!(room(unit) >= server.connections_max + server.shared.sessions_max);
    }

    #[test]
    fn an_error_that_stays_is_not_met_for_ever() {
        let mut run = ErrorRun::default();
        for _ in 0..3 {
            assert_eq!((0..1000).filter(|_| run.tries_again()).count(), 8);
            run.is_over();
        }
    }
}
