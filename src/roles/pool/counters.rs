//! What the pool counts. Both sides have the same counters: "stream" is the side of the
//! connections, "udp" the side of the datagrams.

use crate::net::sys::mmsg::send::SendReport;
use crate::runtime::metrics::{Counter, Gauge, Registry};
use std::fmt;
use std::io;
use std::sync::Arc;

/// Why a datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DropReason {
    QueuesFull,
    NotConnected,
    Stale,
    ConnectionLost,
    SendBufferFull,
    SendFailed,
    ReceiveBufferFull,
    SessionLimit,
}

impl DropReason {
    /// In order of declaration, with the metrics labels.
    const LABELS: [&'static str; 8] = [
        "queues-full",
        "not-connected",
        "stale",
        "connection-lost",
        "send-buffer-full",
        "send-failed",
        "receive-buffer-full",
        "session-limit",
    ];
}

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum LinkEnd {
    /// The other side closed it.
    Closed,
    /// It failed.
    Failed(io::Error),
    /// Its session is over, or the process stops.
    Stopped,
}

impl fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkEnd::Closed => f.write_str("closed by the other side"),
            LinkEnd::Failed(error) => error.fmt(f),
            LinkEnd::Stopped => f.write_str("no longer needed"),
        }
    }
}

/// Why a connection did not come up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SetUpFailure {
    Lookup,
    Connect,
    Timeout,
    Tls,
    ClientCertificate,
    Alpn,
    TlsToPlain,
    ProtocolError,
    Limit,
    System,
}

impl SetUpFailure {
    /// In order of declaration, with the metrics labels.
    const LABELS: [&'static str; 10] = [
        "lookup",
        "connect",
        "timeout",
        "tls",
        "client-certificate",
        "alpn",
        "tls-to-plain",
        "protocol",
        "limit",
        "system",
    ];
}

impl SetUpFailure {
    /// How far a client's attempt came: the higher, the more the failure says of what is wrong.
    pub(super) fn nearness(self) -> u8 {
        match self {
            SetUpFailure::ClientCertificate => 3,
            SetUpFailure::Tls => 2,
            SetUpFailure::Connect => 1,
            _ => 0,
        }
    }
}

/// Counters of one side of the pool.
pub(super) struct Counters {
    pub(super) sessions: Arc<Gauge>,
    pub(super) connections: Arc<Gauge>,
    pub(super) queued_bytes: Arc<Gauge>,
    pub(super) sessions_opened: Arc<Counter>,
    pub(super) connections_up: Arc<Counter>,
    pub(super) reconnects: Arc<Counter>,
    pub(super) accept_errors: Arc<Counter>,
    pub(super) certificate_reload_errors: Arc<Counter>,
    connections_down: [Arc<Counter>; 3],
    set_up_failures: [Arc<Counter>; SetUpFailure::LABELS.len()],
    datagrams_to_stream: Arc<Counter>,
    datagrams_to_udp: Arc<Counter>,
    bytes_to_stream: Arc<Counter>,
    bytes_to_udp: Arc<Counter>,
    icmp_errors: Arc<Counter>,
    dropped: [Arc<Counter>; DropReason::LABELS.len()],
}

impl Counters {
    /// Registers every counter, so that all of them show from the start, at zero.
    pub(super) fn new(registry: &mut Registry) -> Counters {
        let mut directed =
            |name, help, direction| registry.labelled_counter(name, help, ("direction", direction));
        let datagrams = "Datagrams carried, by direction.";
        let bytes = "Bytes carried, by direction: frames to the stream, datagrams to UDP.";
        let datagrams_to_stream = directed("udpferry_pool_datagrams_total", datagrams, "to-stream");
        let datagrams_to_udp = directed("udpferry_pool_datagrams_total", datagrams, "to-udp");
        let bytes_to_stream = directed("udpferry_pool_bytes_total", bytes, "to-stream");
        let bytes_to_udp = directed("udpferry_pool_bytes_total", bytes, "to-udp");
        let mut reasoned =
            |name, help, reason| registry.labelled_counter(name, help, ("reason", reason));
        let connections_down = ["closed", "failed", "stopped"].map(|reason| {
            reasoned(
                "udpferry_pool_connections_down_total",
                "Connections that were up and ended, by reason.",
                reason,
            )
        });
        let set_up_failures = SetUpFailure::LABELS.map(|reason| {
            reasoned(
                "udpferry_pool_connection_failures_total",
                "Connections that did not come up, by reason.",
                reason,
            )
        });
        let dropped = DropReason::LABELS.map(|reason| {
            reasoned(
                "udpferry_pool_datagrams_dropped_total",
                "Datagrams dropped, by reason.",
                reason,
            )
        });
        Counters {
            sessions: registry.gauge("udpferry_pool_sessions", "Sessions open now."),
            connections: registry.gauge("udpferry_pool_connections", "Connections up now."),
            queued_bytes: registry.gauge(
                "udpferry_pool_unsent_bytes",
                "Bytes of frames that wait in the queues of connections; the kernel has not taken them.",
            ),
            sessions_opened: registry
                .counter("udpferry_pool_sessions_opened_total", "Sessions opened."),
            connections_up: registry.counter(
                "udpferry_pool_connections_up_total",
                "Connections that came up.",
            ),
            reconnects: registry.counter(
                "udpferry_pool_reconnects_total",
                "Connections that came up in the place of one that had been up before.",
            ),
            accept_errors: registry.counter(
                "udpferry_pool_accept_errors_total",
                "Times that accepting had to pause: out of descriptors, memory or threads.",
            ),
            certificate_reload_errors: registry.counter(
                "udpferry_pool_certificate_reload_errors_total",
                "Reloads that kept the old certificate because the new one is unusable.",
            ),
            connections_down,
            set_up_failures,
            datagrams_to_stream,
            datagrams_to_udp,
            bytes_to_stream,
            bytes_to_udp,
            icmp_errors: registry.counter(
                "udpferry_pool_icmp_errors_total",
                "ICMP errors reported on the UDP side; no session is closed.",
            ),
            dropped,
        }
    }

    /// One line for `systemctl status`.
    pub(super) fn status_line(&self) -> String {
        format!("{} sessions, {} connections", self.sessions.get(), self.connections.get())
    }

    pub(super) fn drop(&self, reason: DropReason, count: usize) {
        if count > 0 {
            self.dropped[reason as usize].add(count as u64);
        }
    }

    /// For those who count it themselves.
    pub(super) fn drop_counter(&self, reason: DropReason) -> Arc<Counter> {
        Arc::clone(&self.dropped[reason as usize])
    }

    pub(super) fn set_up_failed(&self, failure: SetUpFailure) {
        self.set_up_failures[failure as usize].increment();
    }

    pub(super) fn link_down(&self, end: &LinkEnd) {
        let reason = match end {
            LinkEnd::Closed => 0,
            LinkEnd::Failed(_) => 1,
            LinkEnd::Stopped => 2,
        };
        self.connections_down[reason].increment();
    }

    pub(super) fn icmp_error(&self) {
        self.icmp_errors.increment();
    }

    /// Frames have gone into a stream.
    pub(super) fn to_stream(&self, datagrams: usize, bytes: usize) {
        self.datagrams_to_stream.add(datagrams as u64);
        self.bytes_to_stream.add(bytes as u64);
    }

    /// Datagrams have gone out over UDP.
    pub(super) fn to_udp(&self, report: &SendReport) {
        self.datagrams_to_udp.add(report.sent as u64);
        self.bytes_to_udp.add(report.sent_bytes as u64);
        if report.icmp_errors > 0 {
            self.icmp_errors.add(report.icmp_errors as u64);
        }
    }
}
