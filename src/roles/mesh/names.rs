//! Names of remotes to addresses, on a thread of its own: the C library's resolver cannot be
//! interrupted.

use crate::runtime::errands::Errands;
use crate::runtime::queue::{self, Receiver, Sender, Wake};
use crate::state::mesh::tunnel::{Remote, TunnelName};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Lookups that may wait for the one under way; whoever finds no room asks again in a second.
const WAITING_MAX: usize = 1024;
/// getaddrinfo(3) with its plug-ins uses more stack than our own code.
const STACK: usize = 256 * 1024;

/// A name that was found is looked up again after so long: as long as many records say.
pub(super) const AGAIN: Duration = Duration::from_secs(60);
/// One that was not, or whose remote does not answer, sooner.
pub(super) const AGAIN_SOON: Duration = Duration::from_secs(5);
/// When there is no room for the lookup.
pub(super) const NO_ROOM: Duration = Duration::from_secs(1);

/// When a tunnel's name is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// At that time.
    Due(Instant),
    /// It is being looked up.
    UnderWay,
}

/// What came of a lookup.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) tunnel: TunnelName,
    /// The remote that was looked up; the tunnel may have another by now.
    pub(super) remote: Remote,
    /// Addresses in the resolver's order, or why there are none.
    pub(super) endpoints: Result<Vec<SocketAddr>, String>,
}

/// The thread, seen from the main thread.
pub(super) struct Names {
    errands: Errands,
    told: Sender<Found>,
}

impl Names {
    /// Starts it; what it finds comes through the queue.
    pub(super) fn start(wake: &Wake) -> io::Result<(Names, Receiver<Found>)> {
        let errands = Errands::start("mesh:lookup", WAITING_MAX, STACK)?;
        let (told, found) = queue::bounded(WAITING_MAX, wake);
        Ok((Names { errands, told }, found))
    }

    /// Has a remote's name looked up, false when too many wait.
    pub(super) fn ask(&self, tunnel: &TunnelName, remote: &Remote, name: &str, port: u16) -> bool {
        let (tunnel, remote, name) = (tunnel.clone(), remote.clone(), name.to_owned());
        let told = self.told.clone();
        self.errands.send(move || {
            let endpoints = match (name.as_str(), port).to_socket_addrs() {
                Ok(found) => Ok(found.collect()),
                Err(error) => Err(error.to_string()),
            };
            // The main thread never waits for this one. It may have ended.
            let _ = told.send_waiting(Found { tunnel, remote, endpoints });
        })
    }
}
