//! Many point-to-point tunnels over one UDP port, changed while they run ([`crate::state::mesh`]).
//!
//! ```text
//!   meshctl, scripts                 main "mesh"
//!     UDP, loopback only  -------->  control: doors, proofs, rates
//!     UDP with a proof    -------->    |  requests                      ^ answers, once saved
//!     Unix socket         -------->    v                                |
//!                                    mesh: set -> changes -> plan -> devices (netlink, TUN)
//!                                      |                      \-> store (state file)
//!                                      |  a table of peers by endpoint, one alone with its device
//!                                      v                                ^ keepalives, strangers,
//!   "mesh:udp0", "mesh:tun0"         data plane                         | devices that are gone
//!
//!   "mesh:lookup0"  names of remotes        "mesh:errand0"  hooks, nft
//! ```
//!
//! Whatever the kernel must be told, the main thread tells it, one thing after the other; the data
//! plane goes on meanwhile. The last two threads are never joined: what they do may hang.

mod args;
mod check;
mod chores;
mod control;
mod counters;
pub mod ctl;
mod devices;
mod mend;
#[allow(clippy::module_inception)] // The tunnels are the mesh.
mod mesh;
pub mod message;
mod names;
mod reports;
mod requests;
mod running;
mod selftest;
mod series;
mod server;
mod show;
mod sockets;
mod store;
mod tend;

pub use args::COMMAND;
pub use check::{CHECK, check};
pub use selftest::selftest;

use super::startup;
use crate::cli::common::Common;
use crate::cli::flags::Matches;
use crate::error::Error;
use crate::net::udp::Buffers;
use crate::roles::data_plane;
use crate::runtime::metrics::{FamilyInfo, Registry};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// The seed's ports.
const DEFAULT_DATA_PORT: u16 = 5000;
const DEFAULT_CONTROL_PORT: u16 = 5001;

/// Where `meshctl` on the same host looks first.
const DEFAULT_SOCKET: &str = "/run/udpferry/mesh.sock";

/// The validated options.
#[derive(Debug)]
struct Config {
    data_port: u16,
    /// None: all.
    data_addresses: Vec<IpAddr>,
    tunnels_max: usize,
    udp_buffers: Buffers,
    offload: bool,
    /// On the loopback device.
    control_port: Option<u16>,
    control_socket: PathBuf,
    control_group: Option<u32>,
    control_addresses: Vec<SocketAddr>,
    control_key: Option<PathBuf>,
    insecure_control: bool,
    control_rate: u32,
    state_file: Option<PathBuf>,
    restores: bool,
    up: Option<String>,
    down: Option<String>,
    common: Common,
}

/// Runs the daemon until it is stopped; returns the process's exit code.
pub fn run(matches: &Matches) -> Result<u8, Error> {
    let config = args::config(matches)?;
    let common = config.common.clone();
    startup::run("mesh", &common, |startup| server::serve(&config, startup))
}

/// Every metric of the role, for its documentation.
pub fn metrics() -> Vec<FamilyInfo> {
    let mut registry = Registry::new();
    counters::Counters::new(&mut registry);
    series::Series::register(&mut registry);
    data_plane::counters::Counters::new(&mut registry);
    registry.families().collect()
}
