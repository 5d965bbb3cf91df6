//! A member of a room: finds the others through a rendezvous server, punches through the NATs
//! between them, and talks to them directly ([`crate::wire::peer`]).
//!
//! ```text
//!   terminal --> "peer:tty0" --queue--> main "peer" (member)          "peer:lookup0": names
//!   or pipe  <-- "peer:out0" <--queue---  |   |   |
//!                                         |   |   +-- local UDP: a forwarded port, or
//!                                         |   |       a socket for each served flow
//!                                         |   +-- rendezvous servers (meeting)
//!                                         +-- UDP sockets (network), one in each family:
//!                                             probes  -> punch   -> which path
//!                                             tunnels -> chat, forwarded datagrams
//! ```
//!
//! One loop owns everything. A forwarded datagram is received in a batch, encrypted into one
//! buffer, and leaves in a batch; nothing is allocated for it.

mod answers;
mod args;
pub mod chat;
mod counters;
mod deliveries;
mod detect;
mod drive;
mod forward;
pub mod identity;
pub mod key_commands;
mod legacy;
mod meeting;
mod member;
mod network;
mod outbox;
mod own_side;
pub mod probe;
mod receive;
pub mod room;
mod run;
pub mod seal;
mod selftest;
mod send;
mod start;
mod talk;
mod terminal;
pub mod text;
pub mod tunnel;

pub use args::COMMAND;
pub use selftest::selftest;

use super::destination::Destination;
use super::startup;
use crate::cli::common::Common;
use crate::cli::flags::Matches;
use crate::error::Error;
use crate::runtime::metrics::{FamilyInfo, Registry};
use counters::Counters;
use identity::PublicKey;
use room::Room;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Which room.
#[derive(Debug, Clone)]
enum RoomChoice {
    /// One that is made now.
    New,
    /// As the command line says.
    Given(Room),
    /// The code is in this file.
    File(PathBuf),
}

/// How much to find out about the NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Detection {
    /// All that is quick.
    Nat,
    /// How long a mapping lives, too.
    Lifetime,
}

/// To whom to forward.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    Name(String),
    Key(PublicKey),
}

impl Wanted {
    fn is(&self, name: &str, key: PublicKey) -> bool {
        match self {
            Wanted::Name(wanted) => wanted == name,
            Wanted::Key(wanted) => *wanted == key,
        }
    }
}

/// What is forwarded.
#[derive(Debug, Clone)]
struct Forwarding {
    listen: Option<SocketAddr>,
    to: Option<Wanted>,
    serve: Option<SocketAddr>,
    flows_max: usize,
    flow_timeout: Duration,
}

impl Forwarding {
    fn idle(&self) -> Option<Duration> {
        (!self.flow_timeout.is_zero()).then_some(self.flow_timeout)
    }

    fn is_any(&self) -> bool {
        self.listen.is_some() || self.serve.is_some()
    }
}

/// The validated options.
#[derive(Debug)]
struct Config {
    common: Common,
    servers: Vec<Destination>,
    room: Option<RoomChoice>,
    legacy: bool,
    detect: Option<Detection>,
    name: String,
    key_file: Option<PathBuf>,
    peer_keys: Vec<PublicKey>,
    forwarding: Forwarding,
    local_port: u16,
    keepalive: Duration,
    hard: bool,
    relay: bool,
    connect_timeout: Duration,
}

/// Runs the role.
pub fn run(m: &Matches) -> Result<u8, Error> {
    let config = args::config(m)?;
    let common = config.common.clone();
    let mut code = 0;
    startup::run("udpferry-peer", &common, |startup| {
        code = if let Some(detection) = config.detect {
            detect::serve(&config, detection, startup)?
        } else if config.legacy {
            legacy::serve(&config, startup)?
        } else {
            start::serve(config, startup)?
        };
        Ok(())
    })?;
    Ok(code)
}

/// Every metric of the role.
pub fn metrics() -> Vec<FamilyInfo> {
    let mut registry = Registry::new();
    Counters::new(&mut registry);
    registry.families().collect()
}
