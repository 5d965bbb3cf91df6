//! UDP gateway over TCP: badvpn's udpgw protocol ([`crate::wire::udpgw`]).
//!
//! ```text
//!               main "udpgw" (gateway)             signals, listeners, metrics, limits
//!                 |  ^
//!          Stop   |  |  Gone { id }                bounded queues with wakers
//!                 v  |
//!   client ----> "udpgw:c<id>" (client)  ----> remotes
//!     TCP/TLS      inbound:  stream -> frames -> flow -> chain per socket -> sendmmsg
//!     stream       outbound: recvmmsg -> flow -> frames -> one write      UDP sockets
//! ```
//!
//! A client's thread owns its stream, its flows ([`crate::state::flow_table`]) and its UDP sockets.
//! One wake costs at most one read of the stream, one `sendmmsg` per socket with datagrams, one
//! `recvmmsg` per ready socket and one write. While the stream takes no more, no UDP socket is
//! read: the kernel's receive buffer is the only queue, and it drops what does not fit.
//!
//! Most flows share one unconnected socket per address family. A flow goes on the first shared
//! socket on which no other flow has its remote endpoint, so that an answer's source tells whose it
//! is. DNS flows get a connected socket each, and so do all flows with `--mapping per-flow` and
//! with a pool of local ports.

mod args;
mod check;
mod client;
mod counters;
mod gateway;
mod inbound;
mod outbound;
mod probe;
mod selftest;
mod sockets;
mod workbench;

pub use args::COMMAND;
pub use check::{CHECK, check};
pub use selftest::selftest;

use super::startup;
use crate::cli::common::Common;
use crate::cli::flags::Matches;
use crate::error::Error;
use crate::net::tcp::StreamOptions;
use crate::net::udp::Buffers;
use crate::runtime::metrics::{FamilyInfo, Registry};
use crate::state::access::AccessList;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Which source port a flow's datagrams have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mapping {
    EndpointIndependent,
    PerFlow,
}

/// A range of local ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LocalAddresses {
    first: SocketAddr,
    count: u16,
}

#[derive(Debug)]
struct TlsFiles {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

/// The validated options; see the table in `args` for what they mean.
#[derive(Debug)]
struct Config {
    listen: Vec<SocketAddr>,
    /// Whether `listen` was asked for, or is the default.
    listen_given: bool,
    tls: Option<TlsFiles>,
    proxy_protocol: bool,
    clients_max: usize,
    clients_per_address_max: usize,
    flows_per_client_max: usize,
    client_timeout: Option<Duration>,
    flow_timeout: Option<Duration>,
    datagram_len_max: usize,
    stats_interval: Option<Duration>,
    mapping: Mapping,
    local_v4: Option<LocalAddresses>,
    local_v6: Option<LocalAddresses>,
    unique_local_ports: bool,
    dns: Option<SocketAddr>,
    access: AccessList,
    stream: StreamOptions,
    udp_buffers: Buffers,
    common: Common,
}

/// Runs the gateway until it is stopped; returns the process's exit code.
pub fn run(matches: &Matches) -> Result<u8, Error> {
    let config = args::config(matches)?;
    let common = config.common.clone();
    startup::run(COMMAND.name, &common, |startup| gateway::serve(config, startup))
}

/// Every metric of the role, for its documentation.
pub fn metrics() -> Vec<FamilyInfo> {
    let mut registry = Registry::new();
    counters::Counters::new(&mut registry);
    registry.families().collect()
}
