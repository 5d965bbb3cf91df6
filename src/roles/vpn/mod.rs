//! IP packets between a TUN device and UDP: many clients and a server.
//!
//! ```text
//!    the kernel's IP stack                                        the other side
//!          |  TUN device                               UDP sockets     |
//!          |            +----------------------------+                 |
//!          +--read----->| "vpn:tun0" outbound        |--UDP_SEGMENT--->+
//!          |            |   packet -> peer -> train  |                 |
//!          |            +----------------------------+                 |
//!          |            +----------------------------+                 |
//!          +<--write----| "vpn:udp0" inbound         |<---recvmmsg-----+
//!                       |   endpoint -> peer -> merge|
//!                       +-------------|--------------+
//!          orders: the table of peers |  reports: control messages, strangers
//!                       +-------------v--------------+
//!                       | main "vpn-server", -client |--control messages--> the same sockets
//!                       +----------------------------+
//! ```
//!
//! A packet never meets the main thread: both other threads are [`super::data_plane`], which says
//! how a packet travels. The main thread decides who the peers are, and publishes a table for every
//! change. Server: `server` (the loop), `server::desk` (what clients say), `state::vpn::clients`. Client:
//! `client` (the loop), `client::conversation`, `client::settle` (what a welcome comes to),
//! `state::vpn::connection`. Both: [`super::host`] for what changes on the host, and
//! [`super::control`] for `udpferry vpn status`.
//!
//! Control messages ([`crate::wire::vpn`]) are few: a hello with a cookie, and a keepalive every
//! quarter of a minute. The queues between the threads are the data plane's.

mod args;
mod check;
mod client;
mod commands;
mod counters;
mod device;
mod identity;
mod lease_file;
mod outbox;
mod probe;
mod selftest;
mod server;
mod sockets;
mod status;

pub use args::{CLIENT_COMMAND, SERVER_COMMAND};
pub use check::{CHECK, check};
pub use commands::{CONFIRM, DOWN, STATUS, confirm, down, status};
pub use selftest::selftest;

use super::destination::Destination;
use super::{data_plane, startup};
use crate::cli::common::Common;
use crate::cli::flags::Matches;
use crate::error::Error;
use crate::net::netlink::Network;
use crate::net::netlink::changes::Changes;
use crate::net::udp::Buffers;
use crate::roles::frame::Frame;
use crate::roles::host::Host;
use crate::roles::host::server::Nat;
use crate::runtime::metrics::{FamilyInfo, Registry};
use crate::state::access::Prefix;
use crate::state::vpn::clients::Limits;
use crate::state::vpn::subnet::Subnet;
use crate::wire::vpn::DnsServers;
use counters::Counters;
use data_plane::table::DeviceId;
use mio::{Interest, Token};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The port of the plan that this grew from.
const DEFAULT_PORT: u16 = 5555;
/// Each side has one device.
const DEVICE: DeviceId = DeviceId(0);
/// A datagram's headers around a packet: IPv4 or IPv6, and UDP.
const OVERHEAD_IPV4: u16 = 28;
const OVERHEAD_IPV6: u16 = 48;
/// Ethernet's largest packet, which nearly every path carries.
const ETHERNET_MTU: u16 = 1500;

/// The operator's commands.
#[derive(Debug, Clone)]
struct Hooks {
    up: Option<String>,
    down: Option<String>,
}

/// Options of both sides.
#[derive(Debug)]
struct SharedConfig {
    tun: String,
    /// Without it, what the path takes.
    mtu: Option<u16>,
    offload: bool,
    udp_buffers: Buffers,
    runtime_dir: PathBuf,
    state_dir: Option<PathBuf>,
    hooks: Hooks,
    common: Common,
}

/// The validated options of `vpn server`.
#[derive(Debug)]
struct ServerConfig {
    shared: SharedConfig,
    listen: Vec<SocketAddr>,
    /// Then an address that this host does not have is an error.
    listen_given: bool,
    /// Empty: everybody.
    allow_from: Vec<Prefix>,
    /// One of each family at most, one at least.
    subnets: Vec<Subnet>,
    allows_bare: bool,
    client_to_client: bool,
    dns: DnsServers,
    nat: Option<Nat>,
    limits: Limits,
    keepalive: Duration,
}

/// A DNS server that a client uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dns {
    Server(IpAddr),
    /// Those that the server tells.
    Pushed,
}

/// The addresses that a client insists on, with the lengths of their prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Fixed {
    ipv4: Option<(Ipv4Addr, u8)>,
    ipv6: Option<(Ipv6Addr, u8)>,
}

impl Fixed {
    fn new(all: &[Network]) -> Fixed {
        let mut fixed = Fixed::default();
        for network in all {
            match network.address {
                IpAddr::V4(address) => fixed.ipv4 = Some((address, network.length)),
                IpAddr::V6(address) => fixed.ipv6 = Some((address, network.length)),
            }
        }
        fixed
    }
}

/// The validated options of `vpn client`.
#[derive(Debug)]
struct ClientConfig {
    shared: SharedConfig,
    server: Destination,
    fixed: Fixed,
    /// Without it, as the server says.
    keepalive: Option<Duration>,
    routes: Vec<Network>,
    default_route: bool,
    excludes: Vec<Network>,
    kill_switch: bool,
    dns: Vec<Dns>,
    confirm: Option<Duration>,
    ssh_ports: Vec<u16>,
}

/// What a datagram of that family has room for, of a packet's bytes, where the path takes packets
/// of `path_mtu`.
fn mtu_inside(path_mtu: u16, is_ipv4: bool) -> u16 {
    path_mtu.saturating_sub(if is_ipv4 { OVERHEAD_IPV4 } else { OVERHEAD_IPV6 })
}

/// From a change of the host's to the look at what it has left of ours: many come together.
const MEND_DELAY: Duration = Duration::from_secs(1);
/// To the next try when that has failed.
const REPEAT_DELAY: Duration = Duration::from_secs(5);
/// Of the thread that runs a hook.
const HOOK_STACK: usize = 128 * 1024;

/// Word of changes, once it is asked for, to the main thread.
fn listen(changes: io::Result<Changes>, frame: &mut Frame, token: Token) -> io::Result<Changes> {
    let mut changes = changes?;
    frame.events.register(&mut changes, token, Interest::READABLE)?;
    Ok(changes)
}

/// Word of what others do to our tables of nftables.
fn listen_to_tables(is_needed: bool, frame: &mut Frame, token: Token) -> Option<Changes> {
    let listening = is_needed.then(|| listen(Changes::of_nftables(), frame, token))?;
    if let Err(error) = &listening {
        log::warn!(
            "cannot listen to changes of nftables: {error}; what others remove is not put back"
        );
    }
    listening.ok()
}

/// Looks after our tables of nftables when that is due.
fn mend_tables(at: &mut Option<Instant>, now: Instant, host: &mut Host) {
    if at.is_some_and(|at| at <= now) {
        *at = None;
        if let Err(error) = host.mend_tables() {
            log::error!("cannot look after tables of nftables: {error}; trying again");
            *at = Some(now + REPEAT_DELAY);
        }
    }
}

/// The control socket of a tunnel.
fn socket_path(runtime_dir: &Path, tun: &str) -> PathBuf {
    runtime_dir.join(format!("vpn-{tun}.sock"))
}

/// The one line that nobody shall miss, whatever the log's level.
fn tell_plaintext(tun: &str, who: &str) {
    log::warn!(
        target: startup::ASKED_FOR,
        "{tun}: --plaintext: packets are neither encrypted nor authenticated, and {who}"
    );
}

/// Runs the server until it is stopped; returns the process's exit code.
pub fn run_server(matches: &Matches) -> Result<u8, Error> {
    let config = args::server_config(matches)?;
    let common = config.shared.common.clone();
    startup::run("vpn-server", &common, |startup| server::serve(config, startup))
}

/// Runs the client until it is stopped; returns the process's exit code.
pub fn run_client(matches: &Matches) -> Result<u8, Error> {
    let config = args::client_config(matches)?;
    let common = config.shared.common.clone();
    startup::run("vpn-client", &common, |startup| client::serve(config, startup))
}

/// Every metric of both sides, for their documentation.
pub fn metrics() -> Vec<FamilyInfo> {
    let mut registry = Registry::new();
    Counters::new(&mut registry);
    data_plane::counters::Counters::new(&mut registry);
    registry.families().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_and_its_datagrams_headers_fill_the_path() {
        assert_eq!(mtu_inside(ETHERNET_MTU, true), 1472);
        assert_eq!(mtu_inside(ETHERNET_MTU, false), 1452);
    }
}
