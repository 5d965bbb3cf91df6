//! A range of local ports that many flows share: two flows may have the same port as long as their
//! remotes tell their answers apart.

use std::collections::HashSet;
use std::net::SocketAddr;

/// Which remotes each port of the range is taken for.
#[derive(Debug)]
pub struct PortPool {
    count: u16,
    /// A port serves one flow per remote address instead of one per remote endpoint.
    unique: bool,
    taken: HashSet<(u16, SocketAddr)>,
}

impl PortPool {
    /// A range of `count` ports. With `unique`, two flows to one remote address never share a port,
    /// whatever their remote ports (badvpn's `--unique-local-ports`).
    pub fn new(count: u16, unique: bool) -> PortPool {
        PortPool { count, unique, taken: HashSet::new() }
    }

    /// Takes a port for a flow to `remote` and returns its place in the range, 0 to `count - 1`.
    ///
    /// The search begins at `preferred` (taken modulo `count`), so that a client that always
    /// prefers the same place keeps the same port towards all its remotes where it can.
    pub fn take(&mut self, preferred: u64, remote: SocketAddr) -> Option<u16> {
        let key = self.key(remote);
        let count = u64::from(self.count);
        (0..count)
            .map(|step| (preferred % count + step) % count)
            .filter_map(|place| u16::try_from(place).ok())
            .find(|place| self.taken.insert((*place, key)))
    }

    /// Gives back what [`PortPool::take`] gave for `remote`.
    pub fn release(&mut self, place: u16, remote: SocketAddr) {
        self.taken.remove(&(place, self.key(remote)));
    }

    fn key(&self, remote: SocketAddr) -> SocketAddr {
        if self.unique { SocketAddr::new(remote.ip(), 0) } else { remote }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, host], port))
    }

    #[test]
    fn a_port_is_shared_by_different_remotes_only() {
        let mut pool = PortPool::new(3, false);
        assert_eq!(pool.take(4, remote(1, 5)), Some(1));
        assert_eq!(pool.take(4, remote(1, 6)), Some(1), "another endpoint of the same host");
        assert_eq!(pool.take(4, remote(1, 5)), Some(2));
        assert_eq!(pool.take(4, remote(1, 5)), Some(0));
        assert_eq!(pool.take(4, remote(1, 5)), None);
        pool.release(2, remote(1, 5));
        assert_eq!(pool.take(0, remote(1, 5)), Some(2));
    }

    #[test]
    fn unique_ports_tell_addresses_apart_not_endpoints() {
        let mut pool = PortPool::new(2, true);
        assert_eq!(pool.take(0, remote(1, 5)), Some(0));
        assert_eq!(pool.take(0, remote(1, 6)), Some(1));
        assert_eq!(pool.take(0, remote(1, 7)), None);
        assert_eq!(pool.take(0, remote(2, 5)), Some(0));
        assert_eq!(PortPool::new(0, true).take(9, remote(1, 1)), None);
    }
}
