//! A peer's UDP sockets: one in each family for everything, and the extra ones of birthday probing.
//! A socket's number is what [`crate::state::punch`] calls it.

use super::counters::{Counters, DropReason};
use crate::net::sys::mmsg::receive::{RECEIVE_BATCH, ReceiveQueue};
use crate::net::sys::mmsg::send::SendQueue;
use crate::net::udp::{Buffers, UdpSocket};
use crate::runtime::event_loop::{EventLoop, Readiness};
use mio::{Interest, Token};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The IPv4 socket.
pub(super) const IPV4: u16 = 0;
/// The IPv6 socket.
pub(super) const IPV6: u16 = 1;
/// The first of the extra ones.
pub(super) const FIRST_EXTRA: u16 = 2;
/// Extra sockets, at most.
pub(super) const EXTRA_MAX: u16 = 256;

/// A busy tunnel's 10 ms at 1 Gbit/s.
const BUFFERS: Buffers = Buffers { receive: 1 << 20, send: 1 << 20 };
/// A probe or two.
const EXTRA_BUFFERS: Buffers = Buffers { receive: 0, send: 0 };

pub(super) struct Network {
    sockets: Vec<Option<UdpSocket>>,
    first_token: usize,
    queue: SendQueue,
    /// Extra sockets are to be closed once nobody probes with them.
    pub(super) closes_later: bool,
}

impl Network {
    /// Binds `port` in both families; one of them will do.
    pub(super) fn open(
        port: u16,
        events: &mut EventLoop,
        first_token: usize,
    ) -> io::Result<Network> {
        let mut network = Network {
            sockets: Vec::new(),
            first_token,
            queue: SendQueue::default(),
            closes_later: false,
        };
        let v4 = network.bind(IPV4, (Ipv4Addr::UNSPECIFIED, port).into(), BUFFERS, events);
        // The same port in both, so that a rule in a firewall serves both.
        let port = network.port(IPV4).unwrap_or(port);
        let v6 = network.bind(IPV6, (Ipv6Addr::UNSPECIFIED, port).into(), BUFFERS, events);
        match (v4, v6) {
            (Err(error), Err(_)) => Err(error),
            (Ok(()), Err(error)) => {
                log::debug!("no IPv6: {error}");
                Ok(network)
            }
            (Err(error), Ok(())) => {
                log::debug!("no IPv4: {error}");
                Ok(network)
            }
            (Ok(()), Ok(())) => Ok(network),
        }
    }

    fn bind(
        &mut self,
        number: u16,
        local: SocketAddr,
        buffers: Buffers,
        events: &mut EventLoop,
    ) -> io::Result<()> {
        let mut socket = UdpSocket::bind(local, false, buffers)?;
        events.register(socket.source(), self.token(number), Interest::READABLE)?;
        let place = usize::from(number);
        if self.sockets.len() <= place {
            self.sockets.resize_with(place + 1, || None);
        }
        self.sockets[place] = Some(socket);
        Ok(())
    }

    /// Opens the extra sockets, all IPv4. Fewer than asked for will do, and are logged.
    pub(super) fn open_extra(&mut self, count: u16, events: &mut EventLoop) {
        let range = FIRST_EXTRA..FIRST_EXTRA + count.min(EXTRA_MAX);
        for number in range {
            if self.socket(number).is_some() {
                continue;
            }
            let any = (Ipv4Addr::UNSPECIFIED, 0).into();
            if let Err(error) = self.bind(number, any, EXTRA_BUFFERS, events) {
                let opened = number - FIRST_EXTRA;
                log::warn!("only {opened} of {count} sockets for birthday probing: {error}");
                break;
            }
        }
    }

    /// Closes the extra sockets but those that `is_used`.
    pub(super) fn close_extra(&mut self, is_used: impl Fn(u16) -> bool, events: &mut EventLoop) {
        for number in FIRST_EXTRA..FIRST_EXTRA + EXTRA_MAX {
            let token = self.token(number);
            let Some(place) = self.sockets.get_mut(usize::from(number)) else {
                return;
            };
            if is_used(number) {
                continue;
            }
            if let Some(mut socket) = place.take() {
                // Its descriptor is closed next, which ends the watch in any case.
                let _ = events.deregister(socket.source(), token);
            }
        }
    }

    /// The token of a socket.
    pub(super) fn token(&self, number: u16) -> Token {
        Token(self.first_token + usize::from(number))
    }

    /// The socket of a token.
    pub(super) fn number(&self, token: Token) -> Option<u16> {
        let number = u16::try_from(token.0.checked_sub(self.first_token)?).ok()?;
        (number < FIRST_EXTRA + EXTRA_MAX).then_some(number)
    }

    /// The first token beyond ours.
    pub(super) fn tokens_end(&self) -> usize {
        self.first_token + usize::from(FIRST_EXTRA + EXTRA_MAX)
    }

    pub(super) fn socket(&self, number: u16) -> Option<&UdpSocket> {
        self.sockets.get(usize::from(number)).and_then(Option::as_ref)
    }

    pub(super) fn port(&self, number: u16) -> Option<u16> {
        Some(self.socket(number)?.local_addr().ok()?.port())
    }

    /// The socket for remote endpoints of that family.
    pub(super) fn number_for(&self, remote: SocketAddr) -> Option<u16> {
        let number = if remote.is_ipv4() { IPV4 } else { IPV6 };
        self.socket(number).map(|_| number)
    }

    /// Sends one datagram. What the kernel refuses is counted: UDP's users repeat.
    pub(super) fn send(&mut self, number: u16, to: SocketAddr, bytes: &[u8], counters: &Counters) {
        self.send_all(number, std::iter::once((to, bytes)), counters);
    }

    /// Sends datagrams in one batch.
    pub(super) fn send_all<'d>(
        &mut self,
        number: u16,
        datagrams: impl Iterator<Item = (SocketAddr, &'d [u8])>,
        counters: &Counters,
    ) {
        let Some(socket) = self.sockets.get(usize::from(number)).and_then(Option::as_ref) else {
            return;
        };
        let mut batch = socket.batch(&mut self.queue);
        for (to, bytes) in datagrams {
            batch.push(Some(to), bytes);
        }
        counters.refused(&batch.finish(), socket);
    }

    /// The endpoints of this host's own interfaces: none of loopback, none that is only good on its
    /// link, and none of a tunnel's. A tunnel that is forwarded by us would else carry itself. (A
    /// point-to-point interface to a provider, PPP, is one that the server sees.)
    pub(super) fn own_endpoints(&self) -> Vec<SocketAddr> {
        let Ok(interfaces) = getifaddrs() else {
            return Vec::new();
        };
        let mut endpoints = Vec::new();
        let unfit = InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_POINTOPOINT;
        let fits = interfaces.filter(|interface| !interface.flags.intersects(unfit));
        for address in fits.filter_map(|interface| interface.address) {
            let ip: IpAddr = if let Some(v4) = address.as_sockaddr_in() {
                v4.ip().into()
            } else if let Some(v6) = address.as_sockaddr_in6() {
                v6.ip().into()
            } else {
                continue;
            };
            let link_local = match ip {
                IpAddr::V4(v4) => v4.is_link_local(),
                IpAddr::V6(v6) => v6.is_unicast_link_local(),
            };
            let number = if ip.is_ipv4() { IPV4 } else { IPV6 };
            if let (false, false, Some(port)) = (ip.is_loopback(), link_local, self.port(number)) {
                endpoints.push(SocketAddr::new(ip, port));
            }
        }
        // In the order in which they are tried, should there be more than an announcement holds.
        endpoints.sort_by_key(SocketAddr::is_ipv4);
        endpoints
    }
}

/// One `recvmmsg`: whether there is something in `queue` then.
pub(super) fn receive_batch(
    socket: &UdpSocket,
    token: Token,
    queue: &mut ReceiveQueue,
    events: &mut EventLoop,
    counters: &Counters,
) -> bool {
    match socket.receive(queue) {
        Ok(received) => {
            if received == RECEIVE_BATCH {
                events.again(token, Readiness::READABLE);
            }
            let kernel_drops = socket.new_kernel_drops(queue);
            counters.drop(DropReason::ReceiveBufferFull, u64::from(kernel_drops));
            true
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
        Err(_) => {
            // An ICMP answer to an earlier datagram; the next call tells what waits behind it.
            counters.icmp_errors.increment();
            events.again(token, Readiness::READABLE);
            false
        }
    }
}
