//! Names to addresses, on a thread of its own: the C library's resolver cannot be interrupted, and
//! nobody who must stop at once may wait for it.

use super::Destination;
use crate::runtime::errands::Errands;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

/// Lookups that may wait; more are refused, and asked for again after a backoff.
const QUEUE_MAX: usize = 1024;
/// getaddrinfo(3) with its plug-ins uses more stack than our own code.
const STACK: usize = 256 * 1024;

/// Asks the system's resolver for one destination, again and again.
#[derive(Clone)]
pub(super) struct Lookup {
    errands: Errands,
    destination: Arc<Destination>,
}

impl Lookup {
    /// Starts the thread.
    pub(super) fn start(destination: Destination) -> io::Result<Lookup> {
        let errands = Errands::start("pool:lookup", QUEUE_MAX, STACK)?;
        Ok(Lookup { errands, destination: Arc::new(destination) })
    }

    /// Calls `answer` with the addresses, in the order in which they should be tried; from another
    /// thread. Returns false when too many wait.
    pub(super) fn ask(
        &self,
        answer: impl FnOnce(io::Result<Vec<SocketAddr>>) + Send + 'static,
    ) -> bool {
        let destination = Arc::clone(&self.destination);
        self.errands.send(move || answer(addresses(&destination)))
    }
}

/// Asks now, and waits.
pub(super) fn addresses(destination: &Destination) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<SocketAddr> =
        (destination.host.as_str(), destination.port).to_socket_addrs()?.collect();
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(found)
}
