//! What the threads decide by: who the peers are, which packets go to whom, and whose packets are
//! taken from whom. The main thread builds a new table for every change and publishes it; nobody
//! changes one that is published.

use super::counters::PeerCounters;
use crate::state::access::Prefix;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A TUN device, by the number that the main thread gave it. Small numbers: they are tokens of a
/// poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub u32);

/// An outer UDP socket, by the number that the main thread gave it. Small numbers: they are tokens
/// of a poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(pub u32);

/// What stands in front of a packet in its datagram to this peer. What comes in is understood
/// either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Framing {
    /// Nothing.
    #[default]
    Raw,
    /// Four bytes, as linux/if_tun.h's `tun_pi`: flags 0, and the ethertype.
    PacketInformation,
}

/// Which inner source addresses are a peer's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inner {
    /// All of them. The peer gets every packet of its device, and is the only one that does.
    Any,
    /// These alone. The peer gets the packets that are for one of them.
    Of(Box<[IpAddr]>),
}

impl Inner {
    /// Whether a packet with this source may come from the peer.
    #[inline]
    pub fn has(&self, source: IpAddr) -> bool {
        match self {
            Inner::Any => true,
            Inner::Of(addresses) => addresses.contains(&source),
        }
    }
}

/// After a refusal, trains to a peer are tried again when so many milliseconds have passed: a path's
/// MTU or device may have changed. One refused call in so much time costs nothing.
const SEGMENTATION_PAUSE: u64 = 60_000;

/// The other end of a tunnel.
#[derive(Debug)]
pub struct Peer {
    /// Where its datagrams come from and go to.
    pub endpoint: SocketAddr,
    /// The socket that talks to it.
    pub socket: SocketId,
    /// Our address that it talks to; `None` leaves the choice to the kernel.
    pub source: Option<IpAddr>,
    /// The device that its packets come out of.
    pub device: DeviceId,
    /// How its packets are put into datagrams.
    pub framing: Framing,
    /// Which inner addresses are its.
    pub inner: Inner,
    /// Outlives the peer's place in one table: whoever moves a peer to another endpoint keeps it.
    pub counters: Arc<PeerCounters>,
    /// Milliseconds on the counters' clock until which datagrams go to it one by one.
    pub(super) singly_until: AtomicU64,
}

impl Peer {
    /// A peer with raw framing, any inner address, and no source address to stick to.
    pub fn new(
        endpoint: SocketAddr,
        socket: SocketId,
        device: DeviceId,
        counters: Arc<PeerCounters>,
    ) -> Peer {
        Peer {
            endpoint,
            socket,
            source: None,
            device,
            framing: Framing::Raw,
            inner: Inner::Any,
            counters,
            singly_until: AtomicU64::new(0),
        }
    }

    /// The kernel or the path to this peer has refused a train.
    pub(super) fn refuse_segmentation(&self, now: Instant) {
        let until = self.counters.milliseconds(now) + SEGMENTATION_PAUSE;
        self.singly_until.store(until, Ordering::Relaxed);
    }

    /// Whether a train may be tried.
    pub(super) fn takes_trains(&self, now: Instant) -> bool {
        let until = self.singly_until.load(Ordering::Relaxed);
        until == 0 || self.counters.milliseconds(now) >= until
    }
}

/// What a table says beside its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableOptions {
    /// Packets of one peer for another one of the same device go straight to it; otherwise they are
    /// dropped.
    pub peer_to_peer: bool,
    /// Tell the main thread of data from endpoints that are no peer's; otherwise it is only dropped
    /// and counted.
    pub reports_strangers: bool,
    /// The outer sources that are listened to at all; empty for everybody.
    pub allow_from: Vec<Prefix>,
    /// Our own inner addresses, which are no peer's source.
    pub own: Vec<IpAddr>,
}

impl Default for TableOptions {
    fn default() -> TableOptions {
        TableOptions {
            peer_to_peer: true,
            reports_strangers: true,
            allow_from: Vec::new(),
            own: Vec::new(),
        }
    }
}

/// Who gets what comes out of a device.
#[derive(Debug, Default)]
enum Routing {
    /// Nobody.
    #[default]
    Nobody,
    /// One peer gets it all.
    Sole(Arc<Peer>),
    /// Each inner destination has its peer.
    ByAddress(HashMap<IpAddr, Arc<Peer>>),
}

/// All peers, found by their endpoints and by the packets that are for them.
#[derive(Debug, Default)]
pub struct Table {
    by_endpoint: HashMap<SocketAddr, Arc<Peer>>,
    /// By number of the device.
    routings: Vec<Routing>,
    options: TableOptions,
}

impl Table {
    /// A table of these peers. Where two claim the same endpoint, device or inner address, the later
    /// one has it.
    pub fn new(peers: impl IntoIterator<Item = Arc<Peer>>, options: TableOptions) -> Table {
        let mut table = Table { options, ..Table::default() };
        for peer in peers {
            let device = peer.device.0 as usize;
            if table.routings.len() <= device {
                table.routings.resize_with(device + 1, Routing::default);
            }
            let routing = &mut table.routings[device];
            match (&peer.inner, &mut *routing) {
                (Inner::Any, _) => *routing = Routing::Sole(Arc::clone(&peer)),
                (Inner::Of(addresses), Routing::ByAddress(peers)) => {
                    peers.extend(addresses.iter().map(|address| (*address, Arc::clone(&peer))));
                }
                (Inner::Of(addresses), _) => {
                    let peers = addresses.iter().map(|address| (*address, Arc::clone(&peer)));
                    *routing = Routing::ByAddress(peers.collect());
                }
            }
            table.by_endpoint.insert(peer.endpoint, peer);
        }
        table
    }

    /// What it says beside its peers.
    pub fn options(&self) -> &TableOptions {
        &self.options
    }

    /// The peer whose datagrams come from there.
    pub fn by_endpoint(&self, endpoint: SocketAddr) -> Option<&Arc<Peer>> {
        self.by_endpoint.get(&endpoint)
    }

    /// Who gets a packet for `destination` that came out of `device`.
    pub fn route(&self, device: DeviceId, destination: IpAddr) -> Option<&Arc<Peer>> {
        match self.routings.get(device.0 as usize)? {
            Routing::Nobody => None,
            Routing::Sole(peer) => Some(peer),
            Routing::ByAddress(peers) => peers.get(&destination),
        }
    }

    /// The other peer of that device that a packet of a peer is for; `None` where a peer is alone
    /// with its device.
    pub(super) fn neighbour(&self, device: DeviceId, destination: IpAddr) -> Option<&Arc<Peer>> {
        match self.routings.get(device.0 as usize)? {
            Routing::ByAddress(peers) => peers.get(&destination),
            Routing::Nobody | Routing::Sole(_) => None,
        }
    }

    /// Whether anything that comes from there is looked at.
    pub(super) fn admits(&self, source: IpAddr) -> bool {
        let allowed = &self.options.allow_from;
        // A socket of both families, as systemd passes it, has IPv4 sources as ::ffff:a.b.c.d.
        let source = source.to_canonical();
        allowed.is_empty() || allowed.iter().any(|prefix| prefix.contains(source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock;
    use std::time::Duration;

    fn peer(endpoint: &str, device: u32, inner: Inner) -> Arc<Peer> {
        let counters = Arc::new(PeerCounters::new(clock::now()));
        let mut peer =
            Peer::new(endpoint.parse().unwrap(), SocketId(0), DeviceId(device), counters);
        peer.inner = inner;
        Arc::new(peer)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn of(addresses: &[&str]) -> Inner {
        Inner::Of(addresses.iter().map(|address| ip(address)).collect())
    }

    #[test]
    fn packets_go_to_the_peer_with_their_destination() {
        let one = peer("192.0.2.1:1", 1, of(&["10.0.0.1", "fd00::1"]));
        let two = peer("[2001:db8::2]:2", 1, of(&["10.0.0.2"]));
        let sole = peer("192.0.2.3:3", 4, Inner::Any);
        let table = Table::new([&one, &two, &sole].map(Arc::clone), TableOptions::default());
        for (device, destination, expected) in [
            (1, "10.0.0.1", Some(&one)),
            (1, "fd00::1", Some(&one)),
            (1, "10.0.0.2", Some(&two)),
            (1, "10.0.0.3", None),
            (0, "10.0.0.1", None),
            (3, "10.0.0.1", None),
            (4, "10.0.0.1", Some(&sole)),
            (5, "10.0.0.1", None),
        ] {
            let found = table.route(DeviceId(device), ip(destination));
            assert_eq!(found.map(Arc::as_ptr), expected.map(Arc::as_ptr), "{device} {destination}");
        }
        assert!(table.neighbour(DeviceId(1), ip("10.0.0.2")).is_some());
        assert!(table.neighbour(DeviceId(4), ip("10.0.0.2")).is_none());
        let by_endpoint = table.by_endpoint("[2001:db8::2]:2".parse().unwrap());
        assert_eq!(by_endpoint.map(Arc::as_ptr), Some(Arc::as_ptr(&two)));
        assert!(table.by_endpoint("192.0.2.1:2".parse().unwrap()).is_none());
        assert!(one.inner.has(ip("fd00::1")) && !one.inner.has(ip("fd00::2")));
        assert!(sole.inner.has(ip("fd00::2")));
    }

    #[test]
    fn outer_sources_are_admitted_by_network() {
        assert!(Table::default().admits(ip("192.0.2.1")));
        let allow_from = vec![Prefix::new(ip("192.0.2.0"), 24).unwrap()];
        let table = Table::new([], TableOptions { allow_from, ..TableOptions::default() });
        assert!(table.admits(ip("192.0.2.1")));
        assert!(!table.admits(ip("198.51.100.1")) && !table.admits(ip("::1")));
    }

    #[test]
    fn trains_are_tried_again_after_a_while() {
        let peer = peer("192.0.2.1:1", 1, Inner::Any);
        let now = clock::now();
        assert!(peer.takes_trains(now));
        peer.refuse_segmentation(now);
        assert!(!peer.takes_trains(now + Duration::from_millis(SEGMENTATION_PAUSE / 2)));
        assert!(peer.takes_trains(now + Duration::from_millis(SEGMENTATION_PAUSE + 1)));
    }
}
