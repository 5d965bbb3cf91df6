//! What the data plane counts: for each peer, and of all together.

use crate::runtime::metrics::{Counter, Registry};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Why a packet was dropped. The same reasons count datagrams that were no packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DropReason {
    /// The kernel could not hand it over when the device was read.
    ReadFailed,
    /// Out of the device, and neither IPv4 nor IPv6, or its lengths contradict each other.
    DeviceMalformed,
    /// Out of the device, for an address that is no peer's.
    NoRoute,
    /// Out of a device of many peers, for all of them: nothing is multiplied.
    Multicast,
    /// Out of the device, and one of our own datagrams to that very peer.
    RoutingLoop,
    /// Out of the device, and too long for a datagram.
    TooLong,
    /// The socket of its peer has been taken away.
    NoSocket,
    /// The socket had no room, even after a short wait.
    SendBufferFull,
    /// The kernel refused the datagram.
    SendFailed,
    /// The kernel had no room in the socket's receive buffer.
    ReceiveBufferFull,
    /// From a source that is not listened to.
    NotAllowed,
    /// A datagram that is neither a packet nor control.
    Malformed,
    /// From an endpoint that is no peer's.
    UnknownEndpoint,
    /// From a peer, with an inner source address that is not its own.
    ForeignSource,
    /// From one peer for another, where that is not wanted.
    PeerToPeer,
    /// The device of its peer has been taken away.
    NoDevice,
    /// The device is down.
    DeviceDown,
    /// The device refused the packet.
    WriteFailed,
    /// A control datagram that is too long, or that the main thread had no time for.
    ControlUnheard,
}

impl DropReason {
    /// In order of declaration, with the metrics labels.
    const LABELS: [&'static str; 19] = [
        "read-failed",
        "device-malformed",
        "no-route",
        "multicast",
        "routing-loop",
        "too-long",
        "no-socket",
        "send-buffer-full",
        "send-failed",
        "receive-buffer-full",
        "not-allowed",
        "malformed",
        "unknown-endpoint",
        "foreign-source",
        "peer-to-peer",
        "no-device",
        "device-down",
        "write-failed",
        "control-unheard",
    ];
}

/// What is counted for one peer. Each number is a relaxed atomic that its readers see a little late.
#[derive(Debug)]
pub struct PeerCounters {
    since: Instant,
    packets_in: AtomicU64,
    bytes_in: AtomicU64,
    packets_out: AtomicU64,
    bytes_out: AtomicU64,
    dropped: AtomicU64,
    /// Milliseconds after `since`, plus one; 0 for never.
    last_heard: AtomicU64,
}

/// The numbers of [`PeerCounters`] at one time. Bytes are those of inner packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerTotals {
    /// Packets taken from the peer.
    pub packets_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Packets handed to the kernel for the peer.
    pub packets_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Packets of the peer, or for it, that were dropped.
    pub dropped: u64,
}

impl PeerCounters {
    /// All zero; a clock of its own starts at `now`.
    pub fn new(now: Instant) -> PeerCounters {
        PeerCounters {
            since: now,
            packets_in: AtomicU64::default(),
            bytes_in: AtomicU64::default(),
            packets_out: AtomicU64::default(),
            bytes_out: AtomicU64::default(),
            dropped: AtomicU64::default(),
            last_heard: AtomicU64::default(),
        }
    }

    /// What has been counted.
    pub fn totals(&self) -> PeerTotals {
        let get = |number: &AtomicU64| number.load(Ordering::Relaxed);
        PeerTotals {
            packets_in: get(&self.packets_in),
            bytes_in: get(&self.bytes_in),
            packets_out: get(&self.packets_out),
            bytes_out: get(&self.bytes_out),
            dropped: get(&self.dropped),
        }
    }

    /// When the peer was last heard of, to the millisecond. Data is noted here by the data plane,
    /// control by whoever understands it.
    pub fn last_heard(&self) -> Option<Instant> {
        let milliseconds = self.last_heard.load(Ordering::Relaxed).checked_sub(1)?;
        self.since.checked_add(Duration::from_millis(milliseconds))
    }

    /// The peer was heard of.
    pub fn heard(&self, now: Instant) {
        self.last_heard.store(self.milliseconds(now) + 1, Ordering::Relaxed);
    }

    /// The time on the counters' own clock.
    pub(super) fn milliseconds(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.since).as_millis();
        u64::try_from(since).unwrap_or(u64::MAX - 1)
    }

    pub(super) fn received(&self, packets: u64, bytes: u64) {
        self.packets_in.fetch_add(packets, Ordering::Relaxed);
        self.bytes_in.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What has been counted as received, and the device did not take.
    pub(super) fn refused(&self, packets: u64, bytes: u64) {
        self.packets_in.fetch_sub(packets, Ordering::Relaxed);
        self.bytes_in.fetch_sub(bytes, Ordering::Relaxed);
        self.dropped(packets);
    }

    pub(super) fn sent(&self, packets: u64, bytes: u64) {
        self.packets_out.fetch_add(packets, Ordering::Relaxed);
        self.bytes_out.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What has been counted as sent and was not.
    pub(super) fn lost(&self, packets: u64, bytes: u64) {
        self.packets_out.fetch_sub(packets, Ordering::Relaxed);
        self.bytes_out.fetch_sub(bytes, Ordering::Relaxed);
        self.dropped(packets);
    }

    pub(super) fn dropped(&self, packets: u64) {
        self.dropped.fetch_add(packets, Ordering::Relaxed);
    }
}

/// What is counted of all peers together.
pub struct Counters {
    packets_in: Arc<Counter>,
    packets_out: Arc<Counter>,
    bytes_in: Arc<Counter>,
    bytes_out: Arc<Counter>,
    packets_forwarded: Arc<Counter>,
    device_reads: Arc<Counter>,
    device_writes: Arc<Counter>,
    segmentation_refused: Arc<Counter>,
    merging_refused: Arc<Counter>,
    unreachables: Arc<Counter>,
    reports_dropped: Arc<Counter>,
    dropped: [Arc<Counter>; DropReason::LABELS.len()],
}

impl Counters {
    /// Registers every counter, so that all of them show from the start, at zero.
    pub fn new(registry: &mut Registry) -> Counters {
        let mut labelled = |name, help, label| registry.labelled_counter(name, help, label);
        let [packets_in, packets_out] = ["in", "out"].map(|direction| {
            let help = "Packets carried, by direction: in from peers, out to them.";
            labelled("udpferry_tunnel_packets_total", help, ("direction", direction))
        });
        let [bytes_in, bytes_out] = ["in", "out"].map(|direction| {
            let help = "Bytes of packets carried, by direction.";
            labelled("udpferry_tunnel_bytes_total", help, ("direction", direction))
        });
        let dropped = DropReason::LABELS.map(|reason| {
            let help = "Packets dropped, by reason.";
            labelled("udpferry_tunnel_packets_dropped_total", help, ("reason", reason))
        });
        let mut counter = |name, help| registry.counter(name, help);
        Counters {
            packets_in,
            packets_out,
            bytes_in,
            bytes_out,
            packets_forwarded: counter(
                "udpferry_tunnel_packets_forwarded_total",
                "Packets from one peer straight to another.",
            ),
            device_reads: counter(
                "udpferry_tunnel_device_reads_total",
                "Reads of TUN devices that yielded something: one for many packets with offload.",
            ),
            device_writes: counter(
                "udpferry_tunnel_device_writes_total",
                "Writes to TUN devices: one for many packets with offload.",
            ),
            segmentation_refused: counter(
                "udpferry_tunnel_segmentation_refused_total",
                "Times that the kernel or a path refused a train of datagrams.",
            ),
            merging_refused: counter(
                "udpferry_tunnel_merging_refused_total",
                "Times that a TUN device refused a merged packet.",
            ),
            unreachables: counter(
                "udpferry_tunnel_unreachables_total",
                "Senders told that nobody has the address of their packet.",
            ),
            reports_dropped: counter(
                "udpferry_tunnel_reports_dropped_total",
                "Reports that the main thread had no time for.",
            ),
            dropped,
        }
    }

    pub(super) fn received(&self, packets: u64, bytes: u64) {
        self.packets_in.add(packets);
        self.bytes_in.add(bytes);
    }

    pub(super) fn sent(&self, packets: u64, bytes: u64) {
        self.packets_out.add(packets);
        self.bytes_out.add(bytes);
    }

    pub(super) fn forwarded(&self, packets: u64) {
        self.packets_forwarded.add(packets);
    }

    pub(super) fn read_device(&self) {
        self.device_reads.increment();
    }

    pub(super) fn wrote_device(&self) {
        self.device_writes.increment();
    }

    pub(super) fn refused_segmentation(&self) {
        self.segmentation_refused.increment();
    }

    pub(super) fn refused_merging(&self) {
        self.merging_refused.increment();
    }

    pub(super) fn told_unreachable(&self) {
        self.unreachables.increment();
    }

    pub(super) fn report_dropped(&self) {
        self.reports_dropped.increment();
    }

    pub(super) fn dropped(&self, reason: DropReason, packets: usize) {
        if packets > 0 {
            self.dropped[reason as usize].add(packets as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock;

    #[test]
    fn labels_stand_in_the_order_of_declaration() {
        assert_eq!(DropReason::LABELS[DropReason::ControlUnheard as usize], "control-unheard");
        assert_eq!(DropReason::LABELS[DropReason::NoSocket as usize], "no-socket");
        assert_eq!(DropReason::LABELS[DropReason::ForeignSource as usize], "foreign-source");
    }

    #[test]
    fn a_peer_is_heard_of_to_the_millisecond() {
        let start = clock::now();
        let counters = PeerCounters::new(start);
        assert_eq!(counters.last_heard(), None);
        counters.heard(start);
        assert_eq!(counters.last_heard(), Some(start));
        counters.heard(start + Duration::from_micros(2700));
        assert_eq!(counters.last_heard(), Some(start + Duration::from_millis(2)));
    }

    #[test]
    fn what_was_lost_was_not_sent() {
        let counters = PeerCounters::new(clock::now());
        counters.sent(10, 1000);
        counters.lost(2, 150);
        counters.received(1, 60);
        let expected =
            PeerTotals { packets_in: 1, bytes_in: 60, packets_out: 8, bytes_out: 850, dropped: 2 };
        assert_eq!(counters.totals(), expected);
    }
}
