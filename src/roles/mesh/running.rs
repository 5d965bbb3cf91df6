//! A tunnel at work: what is known of its remote and its device, beside what was wished for.

use super::names::Asked;
use crate::roles::data_plane::counters::PeerCounters;
use crate::roles::data_plane::table::{DeviceId, Framing, Peer, SocketId};
use crate::state::backoff::Backoff;
use crate::state::mesh::liveness::{self, Life};
use crate::state::mesh::tunnel::{self, MTU_MAX, MTU_MIN, MTU_MIN_IPV6, Tunnel};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest time between two attempts to make a device, and the first.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What a path is taken to carry as long as nobody knows: Ethernet's 1500 bytes, less IPv6 and UDP.
const PAYLOAD_ASSUMED: u32 = 1452;

/// Bytes of packet information.
const PACKET_INFORMATION_LEN: u32 = 4;

/// Who moves faster than this loses: a remote that was heard so recently is where it was.
pub(super) const SILENT_BEFORE_MOVE: Duration = Duration::from_secs(15);

/// A remote that moves within its host, as a NAT's mapping does, does so no oftener.
pub(super) const BETWEEN_MOVES: Duration = Duration::from_secs(1);

/// A tunnel at work.
pub(super) struct Running {
    /// They stay when the remote moves.
    pub(super) counters: Arc<PeerCounters>,
    /// Where the remote is, as far as is known.
    pub(super) endpoint: Option<SocketAddr>,
    /// When it was last followed to another place.
    pub(super) followed: Option<Instant>,
    /// When another remote than this one was last heard of.
    pub(super) heard_before: Option<Instant>,
    /// What its name stood for last.
    pub(super) resolved: Option<SocketAddr>,
    /// The MTU of the device.
    pub(super) mtu: u16,
    /// What the path carries, if that is known.
    pub(super) payload_max: Option<u32>,
    pub(super) life: Life,
    /// Since when the remote has been asked for signs of life where it is.
    pub(super) asked_since: Instant,
    pub(super) next_ping: Instant,
    /// The ping that waits for its pong, and when it was sent.
    pub(super) ping: Option<(u64, Instant)>,
    pub(super) round_trip: Option<Duration>,
    /// Why there is no device.
    pub(super) device_fault: Option<String>,
    pub(super) retry_at: Option<Instant>,
    /// Somebody has switched the device off.
    pub(super) is_off: bool,
    pub(super) backoff: Backoff,
    /// Why there is no endpoint.
    pub(super) remote_fault: Option<String>,
    pub(super) asked: Asked,
    /// As the data plane has it.
    pub(super) peer: Option<Arc<Peer>>,
}

impl Running {
    /// A tunnel that begins.
    pub(super) fn new(
        now: Instant,
        endpoint: Option<SocketAddr>,
        payload_max: Option<u32>,
        mtu: u16,
    ) -> Running {
        Running {
            counters: Arc::new(PeerCounters::new(now)),
            endpoint,
            followed: None,
            heard_before: None,
            resolved: None,
            mtu,
            payload_max,
            life: Life::Unknown,
            asked_since: now,
            next_ping: now,
            ping: None,
            round_trip: None,
            device_fault: None,
            retry_at: None,
            is_off: false,
            backoff: Backoff::new(RETRY.0, RETRY.1),
            remote_fault: None,
            asked: Asked::Due(now),
            peer: None,
        }
    }

    /// Why it carries nothing.
    pub(super) fn fault(&self) -> Option<&str> {
        self.device_fault.as_deref().or(self.remote_fault.as_deref())
    }

    /// When this remote was last heard of.
    pub(super) fn last_heard(&self) -> Option<Instant> {
        self.counters.last_heard().filter(|at| self.heard_before.is_none_or(|before| *at > before))
    }

    /// What is known of the remote now.
    pub(super) fn life(&self, now: Instant, tunnel: &Tunnel) -> Life {
        liveness::judge(now, self.last_heard(), self.asked_since, tunnel.keepalive)
    }

    /// The remote is there from now on: it has not been asked there yet.
    pub(super) fn move_to(&mut self, now: Instant, endpoint: Option<SocketAddr>) {
        self.endpoint = endpoint;
        self.asked_since = now;
        self.next_ping = now;
        self.ping = None;
    }

    /// The peer for the data plane: that of before if nothing has changed for it.
    pub(super) fn as_peer(&mut self, tunnel: &Tunnel, device: DeviceId) -> Option<Arc<Peer>> {
        let Some(endpoint) = self.endpoint else {
            self.peer = None;
            return None;
        };
        let framing = match tunnel.framing {
            tunnel::Framing::PacketInformation => Framing::PacketInformation,
            tunnel::Framing::Raw => Framing::Raw,
        };
        let is_same = |peer: &&Arc<Peer>| {
            peer.endpoint == endpoint && peer.device == device && peer.framing == framing
        };
        if let Some(peer) = self.peer.as_ref().filter(is_same) {
            return Some(Arc::clone(peer));
        }
        let counters = Arc::clone(&self.counters);
        let mut peer = Peer::new(endpoint, socket_for(endpoint), device, counters);
        peer.framing = framing;
        let peer = Arc::new(peer);
        self.peer = Some(Arc::clone(&peer));
        Some(peer)
    }

    /// A device that could not be made is tried again later.
    pub(super) fn failed(&mut self, now: Instant, fault: String) {
        self.device_fault = Some(fault);
        self.retry_at = now.checked_add(self.backoff.failed());
    }

    /// The device is there.
    pub(super) fn made(&mut self) {
        self.device_fault = None;
        self.is_off = false;
        self.retry_at = None;
        self.backoff.succeeded();
    }
}

/// The data plane's socket of the family.
pub(super) fn socket_for(endpoint: SocketAddr) -> SocketId {
    SocketId(u32::from(endpoint.is_ipv6()))
}

/// The MTU of a tunnel's device, where the path to its remote carries so many bytes in a datagram.
pub(super) fn mtu_of(tunnel: &Tunnel, payload_max: Option<u32>) -> u16 {
    tunnel.mtu.unwrap_or_else(|| {
        let has_ipv6 = tunnel.addresses.iter().any(|address| address.ip().is_ipv6());
        let min = if has_ipv6 { MTU_MIN_IPV6 } else { MTU_MIN };
        packet_max(tunnel, payload_max).clamp(min, MTU_MAX)
    })
}

/// Bytes of the largest packet that the path carries in one piece.
pub(super) fn packet_max(tunnel: &Tunnel, payload_max: Option<u32>) -> u16 {
    let payload_max = payload_max.unwrap_or(PAYLOAD_ASSUMED);
    let len = match tunnel.framing {
        tunnel::Framing::PacketInformation => payload_max.saturating_sub(PACKET_INFORMATION_LEN),
        tunnel::Framing::Raw => payload_max,
    };
    u16::try_from(len).unwrap_or(u16::MAX)
}
