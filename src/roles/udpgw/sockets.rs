//! A client's UDP sockets: few shared ones for most flows, and one each for flows that ask for it.

use crate::net::udp::{Buffers, UdpSocket, any_port};
use crate::runtime::event_loop::EventLoop;
use crate::state::port_pool::PortPool;
use mio::{Interest, Token};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

pub(super) use crate::state::flow_table::SocketId;

/// Poll tokens below this are the client's stream and its waker.
pub(super) const FIRST_TOKEN: usize = 2;

/// Ports of a pool that are tried for one flow before it gets a random one.
const POOL_TRIES: usize = 16;

/// A local address and the ports from its own upwards, shared by the flows of all clients.
#[derive(Debug)]
pub(super) struct LocalPorts {
    first: SocketAddr,
    pool: Mutex<PortPool>,
}

impl LocalPorts {
    /// The `count` ports from `first`'s upwards; see [`PortPool::new`] for `unique`.
    pub(super) fn new(first: SocketAddr, count: u16, unique: bool) -> LocalPorts {
        LocalPorts { first, pool: Mutex::new(PortPool::new(count, unique)) }
    }

    fn take(&self, preferred: u64, remote: SocketAddr) -> Option<(u16, SocketAddr)> {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let place = pool.take(preferred, remote)?;
        let mut local = self.first;
        local.set_port(local.port().saturating_add(place));
        Some((place, local))
    }

    fn release(&self, place: u16, remote: SocketAddr) {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).release(place, remote);
    }
}

/// Sockets that all clients may have together beyond the first of each, so that one client with
/// many flows cannot take the descriptors of the others.
#[derive(Debug)]
pub(super) struct Budget {
    left: AtomicUsize,
}

impl Budget {
    /// Room for `count` sockets.
    pub(super) fn new(count: usize) -> Budget {
        Budget { left: AtomicUsize::new(count) }
    }

    fn take(&self) -> bool {
        let take = |left: usize| left.checked_sub(1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    fn give_back(&self) {
        self.left.fetch_add(1, Ordering::Relaxed);
    }
}

/// Why there is no socket for a flow.
#[derive(Debug)]
pub(super) enum NoSocket {
    /// The budget of all clients is spent.
    Budget,
    /// The system refuses.
    System(io::Error),
}

impl From<io::Error> for NoSocket {
    fn from(error: io::Error) -> NoSocket {
        NoSocket::System(error)
    }
}

impl fmt::Display for NoSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoSocket::Budget => f.write_str("no descriptors to spare"),
            NoSocket::System(error) => error.fmt(f),
        }
    }
}

/// The pools of the two address families.
#[derive(Debug, Default)]
pub(super) struct PortPools {
    pub v4: Option<LocalPorts>,
    pub v6: Option<LocalPorts>,
}

impl PortPools {
    /// The pool that flows to `remote` use, if there is one.
    pub(super) fn serving(&self, remote: SocketAddr) -> Option<&LocalPorts> {
        if remote.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }
    }
}

/// One socket and how many flows use it.
#[derive(Debug)]
pub(super) struct Entry {
    pub socket: UdpSocket,
    flows: usize,
    is_shared: bool,
    is_ipv4: bool,
    /// It is the client's first one and stays open as long as the client: its port is the client's.
    stays: bool,
    /// Errors in a row that receiving has met.
    pub(super) errors: u8,
    /// The place that the socket's port takes in the pool, and towards whom.
    pooled: Option<(u16, SocketAddr)>,
    /// Ends of its chain of outgoing datagrams on the workbench.
    pub first_outgoing: Option<usize>,
    pub last_outgoing: Option<usize>,
}

impl Entry {
    /// Whether it is unconnected and serves many flows.
    pub(super) fn is_shared(&self) -> bool {
        self.is_shared
    }
}

/// The sockets of one client, watched by its event loop.
#[derive(Debug)]
pub(super) struct Sockets {
    entries: Vec<Option<Entry>>,
    buffers: Buffers,
    /// Where this client begins to look for a port in a pool.
    preferred_port: u64,
}

impl Sockets {
    /// No sockets yet.
    pub(super) fn new(buffers: Buffers, preferred_port: u64) -> Sockets {
        Sockets { entries: Vec::new(), buffers, preferred_port }
    }

    /// The socket of that number, while it is open.
    pub(super) fn get_mut(&mut self, id: SocketId) -> Option<&mut Entry> {
        self.entries.get_mut(id)?.as_mut()
    }

    /// The socket that a poll token stands for.
    pub(super) fn by_token(token: Token) -> Option<SocketId> {
        token.0.checked_sub(FIRST_TOKEN)
    }

    /// Whether a flow has this socket to itself.
    pub(super) fn is_own(&self, id: SocketId) -> bool {
        self.entries.get(id).and_then(Option::as_ref).is_some_and(|entry| !entry.is_shared)
    }

    /// A shared socket for a flow to `remote`: the first on which `is_free`, else a new one with a
    /// random port. RFC 4787 REQ-1: one source port for all remotes of a client.
    pub(super) fn shared(
        &mut self,
        events: &mut EventLoop,
        remote: SocketAddr,
        budget: &Budget,
        is_free: impl Fn(SocketId) -> bool,
    ) -> Result<SocketId, NoSocket> {
        let found = self.entries.iter_mut().enumerate().find_map(|(id, entry)| {
            let entry = entry.as_mut()?;
            let serves = entry.is_shared && entry.is_ipv4 == remote.is_ipv4() && is_free(id);
            serves.then(|| {
                entry.flows += 1;
                id
            })
        });
        if let Some(id) = found {
            return Ok(id);
        }
        // The first socket of a client is not on the budget: each client is sure of one.
        let is_first = !self.entries.iter().flatten().any(|entry| entry.stays);
        if !is_first && !budget.take() {
            return Err(NoSocket::Budget);
        }
        let made = UdpSocket::bind(any_port(remote), false, self.buffers)
            .and_then(|socket| self.add(events, socket, true, is_first, remote, None));
        if made.is_err() && !is_first {
            budget.give_back();
        }
        Ok(made?)
    }

    /// A socket of its own for a flow to `remote`, connected, with a random port.
    pub(super) fn own(
        &mut self,
        events: &mut EventLoop,
        remote: SocketAddr,
        budget: &Budget,
    ) -> Result<SocketId, NoSocket> {
        if !budget.take() {
            return Err(NoSocket::Budget);
        }
        let made = UdpSocket::bind(any_port(remote), false, self.buffers).and_then(|socket| {
            socket.connect(remote)?;
            self.add(events, socket, false, false, remote, None)
        });
        if made.is_err() {
            budget.give_back();
        }
        Ok(made?)
    }

    /// A socket of its own for a flow to `remote`, with a port of the pool. `None` when no port of
    /// the pool is free towards this remote, or those that were tried are somebody else's.
    pub(super) fn pooled(
        &mut self,
        events: &mut EventLoop,
        remote: SocketAddr,
        ports: &LocalPorts,
        budget: &Budget,
    ) -> Result<Option<SocketId>, NoSocket> {
        if !budget.take() {
            return Err(NoSocket::Budget);
        }
        // Kept until the search is over, so that it goes on to other ports.
        let mut occupied = Vec::new();
        let mut found = Ok(None);
        while occupied.len() < POOL_TRIES {
            let Some((place, local)) = ports.take(self.preferred_port, remote) else {
                break;
            };
            let made = UdpSocket::bind(local, true, self.buffers).and_then(|socket| {
                socket.connect(remote)?;
                self.add(events, socket, false, false, remote, Some((place, remote)))
            });
            match made {
                Ok(id) => {
                    found = Ok(Some(id));
                    break;
                }
                Err(error) => {
                    occupied.push(place);
                    let is_ports = matches!(
                        error.kind(),
                        io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied
                    );
                    if !is_ports {
                        found = Err(error);
                        break;
                    }
                }
            }
        }
        for place in occupied {
            ports.release(place, remote);
        }
        if !matches!(found, Ok(Some(_))) {
            budget.give_back();
        }
        Ok(found?)
    }

    /// One flow less on a socket; the last one closes it, unless it is the client's first.
    pub(super) fn release(
        &mut self,
        events: &mut EventLoop,
        id: SocketId,
        pools: &PortPools,
        budget: &Budget,
    ) {
        let Some(slot) = self.entries.get_mut(id) else {
            return;
        };
        let Some(entry) = slot else {
            return;
        };
        entry.flows -= 1;
        if entry.flows > 0 || entry.stays {
            return;
        }
        // The socket is closed next, which ends the watching in any case.
        let _ = events.deregister(entry.socket.source(), Token(FIRST_TOKEN + id));
        let pooled = entry.pooled;
        *slot = None;
        budget.give_back();
        if let Some((place, remote)) = pooled {
            if let Some(ports) = pools.serving(remote) {
                ports.release(place, remote);
            }
        }
    }

    fn add(
        &mut self,
        events: &mut EventLoop,
        mut socket: UdpSocket,
        is_shared: bool,
        stays: bool,
        remote: SocketAddr,
        pooled: Option<(u16, SocketAddr)>,
    ) -> io::Result<SocketId> {
        let id = self.entries.iter().position(Option::is_none).unwrap_or(self.entries.len());
        events.register(socket.source(), Token(FIRST_TOKEN + id), Interest::READABLE)?;
        let entry = Entry {
            socket,
            flows: 1,
            is_shared,
            is_ipv4: remote.is_ipv4(),
            stays,
            errors: 0,
            pooled,
            first_outgoing: None,
            last_outgoing: None,
        };
        if id == self.entries.len() {
            self.entries.push(Some(entry));
        } else {
            self.entries[id] = Some(entry);
        }
        Ok(id)
    }
}
