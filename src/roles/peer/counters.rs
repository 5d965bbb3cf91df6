//! What a peer counts.

use crate::runtime::metrics::{Counter, Gauge, Registry};
use std::sync::Arc;

/// Why a datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DropReason {
    Malformed,
    UnknownSender,
    NotAuthentic,
    NoPath,
    NoService,
    NoFlow,
    NoSocket,
    TooLong,
    SendBufferFull,
    SendFailed,
    ReceiveBufferFull,
    /// Nobody reads standard output, or too slowly.
    OutputFull,
}

impl DropReason {
    /// In order of declaration, with the metrics labels.
    const LABELS: [&'static str; 12] = [
        "malformed",
        "unknown-sender",
        "not-authentic",
        "no-path",
        "no-service",
        "no-flow",
        "no-socket",
        "too-long",
        "send-buffer-full",
        "send-failed",
        "receive-buffer-full",
        "output-full",
    ];
}

/// How a path came about, or did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathKind {
    Direct,
    Relay,
    Failed,
}

impl PathKind {
    const LABELS: [&'static str; 3] = ["direct", "relay", "failed"];
}

/// Counters of a peer; all of them belong to its one loop.
pub(super) struct Counters {
    pub(super) members: Arc<Gauge>,
    pub(super) flows: Arc<Gauge>,
    pub(super) flows_evicted: Arc<Counter>,
    pub(super) probes_sent: Arc<Counter>,
    pub(super) probes_received: Arc<Counter>,
    pub(super) lines_sent: Arc<Counter>,
    pub(super) lines_received: Arc<Counter>,
    pub(super) lines_not_delivered: Arc<Counter>,
    pub(super) announcements_refused: Arc<Counter>,
    pub(super) icmp_errors: Arc<Counter>,
    paths: [Arc<Counter>; 3],
    datagrams_to_tunnel: Arc<Counter>,
    datagrams_from_tunnel: Arc<Counter>,
    bytes_to_tunnel: Arc<Counter>,
    bytes_from_tunnel: Arc<Counter>,
    dropped: [Arc<Counter>; DropReason::LABELS.len()],
}

impl Counters {
    /// Registers every counter, so that all of them show from the start, at zero.
    pub(super) fn new(registry: &mut Registry) -> Counters {
        let mut directed =
            |name, help, direction| registry.labelled_counter(name, help, ("direction", direction));
        let datagrams = "Forwarded datagrams, by direction.";
        let bytes = "Bytes of forwarded datagrams, by direction.";
        let datagrams_to_tunnel = directed("udpferry_peer_datagrams_total", datagrams, "to-tunnel");
        let datagrams_from_tunnel =
            directed("udpferry_peer_datagrams_total", datagrams, "from-tunnel");
        let bytes_to_tunnel = directed("udpferry_peer_bytes_total", bytes, "to-tunnel");
        let bytes_from_tunnel = directed("udpferry_peer_bytes_total", bytes, "from-tunnel");
        let paths = PathKind::LABELS.map(|kind| {
            registry.labelled_counter(
                "udpferry_peer_paths_total",
                "Attempts to find a path to a member, by outcome.",
                ("kind", kind),
            )
        });
        let dropped = DropReason::LABELS.map(|reason| {
            registry.labelled_counter(
                "udpferry_peer_datagrams_dropped_total",
                "Datagrams dropped, by reason.",
                ("reason", reason),
            )
        });
        Counters {
            members: registry.gauge("udpferry_peer_members", "Members with a tunnel now."),
            flows: registry.gauge("udpferry_peer_flows", "Forwarded flows open now."),
            flows_evicted: registry.counter(
                "udpferry_peer_flows_evicted_total",
                "Flows closed because --max-flows newer ones were open.",
            ),
            probes_sent: registry
                .counter("udpferry_peer_probes_sent_total", "Pings and pongs sent."),
            probes_received: registry
                .counter("udpferry_peer_probes_received_total", "Valid pings and pongs received."),
            lines_sent: registry
                .counter("udpferry_peer_lines_sent_total", "Lines of chat sent, repeats apart."),
            lines_received: registry.counter(
                "udpferry_peer_lines_received_total",
                "Lines of chat received, repeats apart.",
            ),
            lines_not_delivered: registry.counter(
                "udpferry_peer_lines_not_delivered_total",
                "Lines of chat that were given up.",
            ),
            announcements_refused: registry.counter(
                "udpferry_peer_announcements_refused_total",
                "Announcements that do not open, are outdated, or carry an unwanted key.",
            ),
            icmp_errors: registry.counter(
                "udpferry_peer_icmp_errors_total",
                "ICMP errors reported on a socket; nothing is closed.",
            ),
            paths,
            datagrams_to_tunnel,
            datagrams_from_tunnel,
            bytes_to_tunnel,
            bytes_from_tunnel,
            dropped,
        }
    }

    pub(super) fn drop(&self, reason: DropReason, count: u64) {
        if count > 0 {
            self.dropped[reason as usize].add(count);
        }
    }

    pub(super) fn path(&self, kind: PathKind) {
        self.paths[kind as usize].increment();
    }

    pub(super) fn to_tunnel(&self, len: usize) {
        self.datagrams_to_tunnel.increment();
        self.bytes_to_tunnel.add(len as u64);
    }

    pub(super) fn taken_from_tunnel(&self, datagrams: usize, bytes: usize) {
        self.datagrams_from_tunnel.add(datagrams as u64);
        self.bytes_from_tunnel.add(bytes as u64);
    }
}
