//! A client's UDP sockets: few shared ones for most flows, and one each for flows that ask for it.

use crate::net::udp::{Buffers, UdpSocket, any_port};
use crate::runtime::event_loop::EventLoop;
use crate::state::port_pool::PortPool;
use mio::{Interest, Token};
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

pub(super) use crate::state::flow_table::SocketId;

/// Poll tokens below this are the client's stream and its waker.
pub(super) const FIRST_TOKEN: usize = 2;

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

    /// A shared socket for a flow to `remote`: the first on which `is_free`, else a new one with a
    /// random port. RFC 4787 REQ-1: one source port for all remotes of a client.
    pub(super) fn shared(
        &mut self,
        events: &mut EventLoop,
        remote: SocketAddr,
        is_free: impl Fn(SocketId) -> bool,
    ) -> io::Result<SocketId> {
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
        let socket = UdpSocket::bind(any_port(remote), false, self.buffers)?;
        self.add(events, socket, true, remote, None)
    }

    /// A socket of its own for a flow to `remote`, connected, with a random port.
    pub(super) fn own(
        &mut self,
        events: &mut EventLoop,
        remote: SocketAddr,
    ) -> io::Result<SocketId> {
        let socket = UdpSocket::bind(any_port(remote), false, self.buffers)?;
        socket.connect(remote)?;
        self.add(events, socket, false, remote, None)
    }

    /// A socket of its own for a flow to `remote`, with a port of the pool. `None` when no port of
    /// the pool is free towards this remote.
    pub(super) fn pooled(
        &mut self,
        events: &mut EventLoop,
        remote: SocketAddr,
        ports: &LocalPorts,
    ) -> io::Result<Option<SocketId>> {
        let Some((place, local)) = ports.take(self.preferred_port, remote) else {
            return Ok(None);
        };
        let made = UdpSocket::bind(local, true, self.buffers).and_then(|socket| {
            socket.connect(remote)?;
            self.add(events, socket, false, remote, Some((place, remote)))
        });
        if made.is_err() {
            ports.release(place, remote);
        }
        made.map(Some)
    }

    /// One flow less on a socket; the last one closes it.
    pub(super) fn release(&mut self, events: &mut EventLoop, id: SocketId, pools: &PortPools) {
        let Some(slot) = self.entries.get_mut(id) else {
            return;
        };
        let Some(entry) = slot else {
            return;
        };
        entry.flows -= 1;
        if entry.flows > 0 {
            return;
        }
        // The socket is closed next, which ends the watching in any case.
        let _ = events.deregister(entry.socket.source(), Token(FIRST_TOKEN + id));
        let pooled = entry.pooled;
        *slot = None;
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
