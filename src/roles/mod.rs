//! The programs, and the table that names them.

pub mod connect;
pub mod control;
pub mod cookie;
pub mod data_plane;
pub mod destination;
pub mod dial;
pub mod frame;
pub mod framed;
pub mod host;
pub mod listening;
pub mod lookup;
pub mod member_key;
pub mod mesh;
pub mod peer;
pub mod pool;
pub mod proof;
pub mod rendezvous;
pub mod report;
pub mod selftest;
pub mod startup;
pub mod udpgw;
pub mod vpn;

pub use selftest::{SELFTEST, SelftestRow, selftest};

use crate::cli::flags::Matches;
use crate::cli::table::Command;
use crate::error::Error;
use crate::runtime::metrics::FamilyInfo;

/// A command's body: runs it to its end and returns the process's exit code.
pub type Program = fn(&Matches) -> Result<u8, Error>;

/// A role's proof: a row of the table for each way of running it.
pub type Selftest = fn() -> Result<Vec<SelftestRow>, Error>;

/// One program of the suite.
pub struct Role {
    /// Its options; its name is the first word or two on the command line.
    pub command: &'static Command,
    /// Names of symlinks to the binary that start it.
    pub aliases: &'static [&'static str],
    /// Runs it to its end and returns the process's exit code.
    pub run: Program,
    /// First aid for its operator: the options and the program of `check ROLE`.
    pub check: Option<(&'static Command, Program)>,
    /// Proves on loopback that it works here.
    pub selftest: Option<Selftest>,
    /// Every metric it has.
    pub metrics: fn() -> Vec<FamilyInfo>,
}

/// Every role, in the order in which help lists them.
pub const ROLES: &[Role] = &[
    Role {
        command: &udpgw::COMMAND,
        aliases: &["udpgw", "badvpn-udpgw"],
        run: udpgw::run,
        check: Some((&udpgw::CHECK, udpgw::check)),
        selftest: Some(udpgw::selftest),
        metrics: udpgw::metrics,
    },
    Role {
        command: &pool::SERVER_COMMAND,
        aliases: &["uotp-server"],
        run: pool::run_server,
        check: Some((&pool::CHECK, pool::check)),
        selftest: Some(pool::selftest),
        metrics: pool::metrics,
    },
    Role {
        command: &pool::CLIENT_COMMAND,
        aliases: &["uotp-client"],
        run: pool::run_client,
        // The server's row checks and proves both sides.
        check: None,
        selftest: None,
        metrics: pool::metrics,
    },
    Role {
        command: &rendezvous::COMMAND,
        aliases: &[],
        run: rendezvous::run,
        check: Some((&rendezvous::CHECK, rendezvous::check)),
        selftest: Some(rendezvous::selftest),
        metrics: rendezvous::metrics,
    },
    Role {
        command: &peer::COMMAND,
        aliases: &[],
        run: peer::run,
        check: None,
        selftest: Some(peer::selftest),
        metrics: peer::metrics,
    },
    Role {
        command: &mesh::COMMAND,
        aliases: &["udpProxyServer"],
        run: mesh::run,
        check: Some((&mesh::CHECK, mesh::check)),
        selftest: Some(mesh::selftest),
        metrics: mesh::metrics,
    },
    Role {
        command: &vpn::SERVER_COMMAND,
        aliases: &[],
        run: vpn::run_server,
        check: Some((&vpn::CHECK, vpn::check)),
        selftest: Some(vpn::selftest),
        metrics: vpn::metrics,
    },
    Role {
        command: &vpn::CLIENT_COMMAND,
        aliases: &[],
        run: vpn::run_client,
        // The server's row checks and proves both sides.
        check: None,
        selftest: None,
        metrics: vpn::metrics,
    },
];
