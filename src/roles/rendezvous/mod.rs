//! Where hosts behind NATs find each other ([`crate::wire::rendezvous`]), and a STUN server.
//!
//! ```text
//!                      "rendezvous" main, the only thread without --registry
//!
//!   UDP sockets --recvmmsg--> desk: which language?
//!     --listen-addr             STUN   stun   nothing to remember, unless two addresses
//!     --stun-port               ours   own    cookie, key -> state::registry (rooms, introductions)
//!     --alternate-addr          text   plain  state::pairing (first come, first paired)
//!                                |
//!               <--sendmmsg-- outbox: all answers of a batch in one arena, each with the socket
//!                                     and the address that the client knows us by
//!
//!   deadlines: members that expire, introductions to repeat, clients that waited too long
//!   --registry: "rendezvous:reg0" and its queues, where several servers share their rooms (store)
//! ```
//!
//! Towards clients there is no queue: what the kernel's socket buffers do not hold is dropped, and counted. The
//! arena and the lists are kept from batch to batch, so that a datagram takes no memory.

mod args;
mod boxes;
mod check;
// Without redis there is no store that could be counted, or told anything.
#[cfg_attr(not(feature = "redis"), allow(dead_code))]
mod counters;
mod desk;
mod outbox;
mod own;
mod plain;
mod probe;
mod selftest;
mod server;
mod sharing;
mod sockets;
#[cfg_attr(not(feature = "redis"), allow(dead_code))]
mod store;
mod store_url;
mod stun;

pub use args::COMMAND;
pub use check::{CHECK, check};
pub use selftest::selftest;

use super::startup;
use crate::cli::common::Common;
use crate::cli::flags::Matches;
use crate::error::Error;
use crate::net::udp::Buffers;
use crate::runtime::metrics::{FamilyInfo, Registry};
use crate::state::pairing::PairingLimits;
use crate::state::registry::limits::Limits;
use counters::Counters;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use store_url::StoreUrl;

/// The port of the classroom demo that this grew from.
const DEFAULT_PORT: u16 = 12_345;

/// The validated options.
#[derive(Debug)]
struct Config {
    listen: Vec<SocketAddr>,
    /// Then an address that this host does not have is an error.
    listen_given: bool,
    stun_port: Option<u16>,
    /// Each with the `--listen-addr` beside it.
    alternates: Vec<(SocketAddr, IpAddr)>,
    shows_software: bool,
    limits: Limits,
    refresh: Duration,
    relays: bool,
    /// Where the rooms are shared, if they are.
    store: Option<StoreUrl>,
    /// None: text is refused.
    plain: Option<PairingLimits>,
    source_rate: u32,
    sources_max: usize,
    udp_buffers: Buffers,
    common: Common,
}

/// Runs the role until it is stopped; returns the process's exit code.
pub fn run(matches: &Matches) -> Result<u8, Error> {
    let config = args::config(matches)?;
    let common = config.common.clone();
    startup::run("rendezvous", &common, |startup| server::serve(&config, startup))
}

/// Every metric of the role, for its documentation.
pub fn metrics() -> Vec<FamilyInfo> {
    let mut registry = Registry::new();
    Counters::new(&mut registry);
    registry.families().collect()
}
