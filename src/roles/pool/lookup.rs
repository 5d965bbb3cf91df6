//! Names to addresses, on a thread of its own: the C library's resolver cannot be interrupted, and
//! nobody who must stop at once may wait for it.

use super::Destination;
use crate::runtime::thread;
use crossbeam_channel::{Receiver, Sender};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

/// Lookups that may wait; more are refused, and asked for again after a backoff.
const QUEUE_MAX: usize = 1024;
/// getaddrinfo(3) with its plug-ins uses more stack than our own code.
const STACK: usize = 256 * 1024;

type Answer = Box<dyn FnOnce(io::Result<Vec<SocketAddr>>) + Send>;

/// Asks the system's resolver for one destination, again and again.
#[derive(Clone)]
pub(super) struct Lookup {
    queue: Sender<Answer>,
}

impl Lookup {
    /// Starts the thread. It is the one thread that is never joined: it ends when the last `Lookup`
    /// is gone, or with the process when it hangs in the C library then.
    pub(super) fn start(destination: Destination) -> io::Result<Lookup> {
        let (queue, questions): (_, Receiver<Answer>) = crossbeam_channel::bounded(QUEUE_MAX);
        let thread = thread::spawn("pool:lookup", 0, STACK, move || {
            for answer in questions {
                answer(addresses(&destination));
            }
        })?;
        drop(thread);
        Ok(Lookup { queue })
    }

    /// Calls `answer` with the addresses, in the order in which they should be tried; from another
    /// thread. Returns false when too many wait.
    pub(super) fn ask(
        &self,
        answer: impl FnOnce(io::Result<Vec<SocketAddr>>) + Send + 'static,
    ) -> bool {
        self.queue.try_send(Box::new(answer)).is_ok()
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
