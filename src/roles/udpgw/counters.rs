//! What the gateway counts: shared counters for the outside, and a client's tally that is added to
//! them once per wake instead of once per datagram.

use crate::runtime::metrics::{Counter, Gauge, Registry};
use crate::state::access::DenyReason;
use std::fmt;
use std::sync::Arc;

/// Why a datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DropReason {
    ShortHeader,
    ShortAddress,
    TooLong,
    DestinationUnspecified,
    DestinationLoopback,
    DestinationMulticast,
    DestinationBroadcast,
    DestinationLinkLocal,
    DestinationPrivate,
    DestinationRule,
    DestinationPortZero,
    NoResolver,
    NoSocket,
    SendBufferFull,
    SendFailed,
    Stranger,
    ReplyTooLong,
    ClientStalled,
    ReceiveBufferFull,
}

impl DropReason {
    /// In order of declaration.
    const ALL: [DropReason; 19] = [
        DropReason::ShortHeader,
        DropReason::ShortAddress,
        DropReason::TooLong,
        DropReason::DestinationUnspecified,
        DropReason::DestinationLoopback,
        DropReason::DestinationMulticast,
        DropReason::DestinationBroadcast,
        DropReason::DestinationLinkLocal,
        DropReason::DestinationPrivate,
        DropReason::DestinationRule,
        DropReason::DestinationPortZero,
        DropReason::NoResolver,
        DropReason::NoSocket,
        DropReason::SendBufferFull,
        DropReason::SendFailed,
        DropReason::Stranger,
        DropReason::ReplyTooLong,
        DropReason::ClientStalled,
        DropReason::ReceiveBufferFull,
    ];

    /// The metrics label.
    fn label(self) -> &'static str {
        match self {
            DropReason::ShortHeader => "short-header",
            DropReason::ShortAddress => "short-address",
            DropReason::TooLong => "too-long",
            DropReason::DestinationUnspecified => "destination-unspecified",
            DropReason::DestinationLoopback => "destination-loopback",
            DropReason::DestinationMulticast => "destination-multicast",
            DropReason::DestinationBroadcast => "destination-broadcast",
            DropReason::DestinationLinkLocal => "destination-link-local",
            DropReason::DestinationPrivate => "destination-private",
            DropReason::DestinationRule => "destination-rule",
            DropReason::DestinationPortZero => "destination-port-zero",
            DropReason::NoResolver => "no-resolver",
            DropReason::NoSocket => "no-socket",
            DropReason::SendBufferFull => "send-buffer-full",
            DropReason::SendFailed => "send-failed",
            DropReason::Stranger => "stranger",
            DropReason::ReplyTooLong => "reply-too-long",
            DropReason::ClientStalled => "client-stalled",
            DropReason::ReceiveBufferFull => "receive-buffer-full",
        }
    }
}

impl From<DenyReason> for DropReason {
    fn from(reason: DenyReason) -> DropReason {
        match reason {
            DenyReason::Unspecified => DropReason::DestinationUnspecified,
            DenyReason::Loopback => DropReason::DestinationLoopback,
            DenyReason::Multicast => DropReason::DestinationMulticast,
            DenyReason::Broadcast => DropReason::DestinationBroadcast,
            DenyReason::LinkLocal => DropReason::DestinationLinkLocal,
            DenyReason::Private => DropReason::DestinationPrivate,
            DenyReason::Rule => DropReason::DestinationRule,
            DenyReason::PortZero => DropReason::DestinationPortZero,
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DropReason::ShortHeader => "frame too short for flags and conid",
            DropReason::ShortAddress => "frame too short for its address",
            DropReason::TooLong => "datagram over --udp-mtu",
            DropReason::DestinationUnspecified => "unspecified destination",
            DropReason::DestinationLoopback => "loopback destination",
            DropReason::DestinationMulticast => "multicast destination",
            DropReason::DestinationBroadcast => "broadcast destination",
            DropReason::DestinationLinkLocal => "link-local destination",
            DropReason::DestinationPrivate => "private destination",
            DropReason::DestinationRule => "destination denied by --deny",
            DropReason::DestinationPortZero => "destination port 0",
            DropReason::NoResolver => "no nameserver to ask",
            DropReason::NoSocket => "no socket for the flow",
            DropReason::SendBufferFull => "UDP send buffer full",
            DropReason::SendFailed => "cannot send",
            DropReason::Stranger => "not from the flow's remote endpoint",
            DropReason::ReplyTooLong => "reply over --udp-mtu",
            DropReason::ClientStalled => "client does not read",
            DropReason::ReceiveBufferFull => "UDP receive buffer full",
        })
    }
}

/// Why a client was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndReason {
    Closed,
    Silent,
    OversizeFrame,
    StreamError,
    HandshakeTimeout,
    TlsHandshake,
    ProxyHeader,
    AddressLimit,
    Stopped,
    Fault,
}

impl EndReason {
    /// In order of declaration.
    const ALL: [EndReason; 10] = [
        EndReason::Closed,
        EndReason::Silent,
        EndReason::OversizeFrame,
        EndReason::StreamError,
        EndReason::HandshakeTimeout,
        EndReason::TlsHandshake,
        EndReason::ProxyHeader,
        EndReason::AddressLimit,
        EndReason::Stopped,
        EndReason::Fault,
    ];

    /// The metrics label, also in log lines.
    pub(super) fn label(self) -> &'static str {
        match self {
            EndReason::Closed => "closed",
            EndReason::Silent => "silent",
            EndReason::OversizeFrame => "oversize-frame",
            EndReason::StreamError => "stream-error",
            EndReason::HandshakeTimeout => "handshake-timeout",
            EndReason::TlsHandshake => "tls-handshake",
            EndReason::ProxyHeader => "proxy-header",
            EndReason::AddressLimit => "address-limit",
            EndReason::Stopped => "stopped",
            EndReason::Fault => "fault",
        }
    }
}

/// Why a flow was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FlowEnd {
    Idle,
    Evicted,
    Rebound,
    Answered,
    ClientGone,
}

impl FlowEnd {
    /// In order of declaration, with the metrics labels.
    const LABELS: [&'static str; 5] = ["idle", "evicted", "rebound", "answered", "client-gone"];
}

/// Counters of the whole gateway.
pub(super) struct Counters {
    pub clients: Arc<Gauge>,
    pub flows: Arc<Gauge>,
    pub clients_accepted: Arc<Counter>,
    pub clients_over_limit: Arc<Counter>,
    pub accept_errors: Arc<Counter>,
    pub certificate_reload_errors: Arc<Counter>,
    clients_closed: [Arc<Counter>; EndReason::ALL.len()],
    flows_opened: Arc<Counter>,
    flows_closed: [Arc<Counter>; FlowEnd::LABELS.len()],
    datagrams_to_remote: Arc<Counter>,
    datagrams_to_client: Arc<Counter>,
    bytes_to_remote: Arc<Counter>,
    bytes_to_client: Arc<Counter>,
    keepalives: Arc<Counter>,
    icmp_errors: Arc<Counter>,
    segmentation_refused: Arc<Counter>,
    port_pool_exhausted: Arc<Counter>,
    own_sockets_short: Arc<Counter>,
    dropped: [Arc<Counter>; DropReason::ALL.len()],
}

impl Counters {
    /// Registers every counter, so that all of them show from the start, at zero.
    pub(super) fn new(registry: &mut Registry) -> Counters {
        let closed = "Clients closed, by reason.";
        let datagrams = "Datagrams carried, by direction.";
        let bytes = "Bytes of datagrams carried, by direction; headers are not counted.";
        Counters {
            clients: registry.gauge("udpferry_udpgw_clients", "Clients connected now."),
            flows: registry.gauge("udpferry_udpgw_flows", "Flows open now."),
            clients_accepted: registry.counter(
                "udpferry_udpgw_clients_accepted_total",
                "TCP connections accepted, whatever became of them.",
            ),
            clients_over_limit: registry.counter(
                "udpferry_udpgw_clients_over_limit_total",
                "TCP connections closed at once because --max-clients were connected.",
            ),
            accept_errors: registry.counter(
                "udpferry_udpgw_accept_errors_total",
                "Times that accepting had to pause: out of descriptors, memory or threads.",
            ),
            certificate_reload_errors: registry.counter(
                "udpferry_udpgw_certificate_reload_errors_total",
                "Reloads that kept the old certificate because the new one is unusable.",
            ),
            clients_closed: EndReason::ALL.map(|reason| {
                registry.labelled_counter(
                    "udpferry_udpgw_clients_closed_total",
                    closed,
                    ("reason", reason.label()),
                )
            }),
            flows_opened: registry.counter("udpferry_udpgw_flows_opened_total", "Flows opened."),
            flows_closed: FlowEnd::LABELS.map(|label| {
                registry.labelled_counter(
                    "udpferry_udpgw_flows_closed_total",
                    "Flows closed, by reason.",
                    ("reason", label),
                )
            }),
            datagrams_to_remote: registry.labelled_counter(
                "udpferry_udpgw_datagrams_total",
                datagrams,
                ("direction", "to-remote"),
            ),
            datagrams_to_client: registry.labelled_counter(
                "udpferry_udpgw_datagrams_total",
                datagrams,
                ("direction", "to-client"),
            ),
            bytes_to_remote: registry.labelled_counter(
                "udpferry_udpgw_bytes_total",
                bytes,
                ("direction", "to-remote"),
            ),
            bytes_to_client: registry.labelled_counter(
                "udpferry_udpgw_bytes_total",
                bytes,
                ("direction", "to-client"),
            ),
            keepalives: registry.counter(
                "udpferry_udpgw_keepalives_total",
                "Keepalive frames received; nothing answers them.",
            ),
            icmp_errors: registry.counter(
                "udpferry_udpgw_icmp_errors_total",
                "ICMP errors reported for flows with a socket of their own; no flow is closed.",
            ),
            segmentation_refused: registry.counter(
                "udpferry_udpgw_segmentation_refused_total",
                "Sockets whose route or kernel refused UDP_SEGMENT and send singly since.",
            ),
            port_pool_exhausted: registry.counter(
                "udpferry_udpgw_port_pool_exhausted_total",
                "Flows that found no free port in --local-udp-addrs and got a random one.",
            ),
            own_sockets_short: registry.counter(
                "udpferry_udpgw_own_sockets_short_total",
                "Flows that share a socket because there were no descriptors to spare.",
            ),
            dropped: DropReason::ALL.map(|reason| {
                registry.labelled_counter(
                    "udpferry_udpgw_datagrams_dropped_total",
                    "Datagrams dropped, by reason.",
                    ("reason", reason.label()),
                )
            }),
        }
    }

    /// Counts a client's end.
    pub(super) fn client_closed(&self, reason: EndReason) {
        self.clients_closed[reason as usize].increment();
    }

    /// For `systemctl status`.
    pub(super) fn status_line(&self) -> String {
        format!("{} clients, {} flows", self.clients.get(), self.flows.get())
    }

    /// One line for `--stats-interval`: what is, what has been, and every drop by its reason.
    pub(super) fn stats_line(&self) -> String {
        use fmt::Write;
        let mut line = format!(
            "stats: clients={} clients_total={} flows={} flows_total={} datagrams_to_remote={} \
             datagrams_to_client={} bytes_to_remote={} bytes_to_client={}",
            self.clients.get(),
            self.clients_accepted.get(),
            self.flows.get(),
            self.flows_opened.get(),
            self.datagrams_to_remote.get(),
            self.datagrams_to_client.get(),
            self.bytes_to_remote.get(),
            self.bytes_to_client.get(),
        );
        let total: u64 = self.dropped.iter().map(|counter| counter.get()).sum();
        // Writing to a String cannot fail.
        let _ = write!(line, " dropped={total}");
        for (reason, counter) in DropReason::ALL.iter().zip(&self.dropped) {
            if counter.get() > 0 {
                let _ = write!(line, " dropped_{}={}", reason.label(), counter.get());
            }
        }
        line
    }
}

/// What one client's thread has counted since it last reported.
#[derive(Debug, Default, Clone)]
pub(super) struct Tally {
    pub datagrams_to_remote: u64,
    pub datagrams_to_client: u64,
    pub bytes_to_remote: u64,
    pub bytes_to_client: u64,
    pub keepalives: u64,
    pub icmp_errors: u64,
    pub segmentation_refused: u64,
    pub port_pool_exhausted: u64,
    pub own_sockets_short: u64,
    flows_opened: u64,
    flows_closed: [u64; FlowEnd::LABELS.len()],
    dropped: [u64; DropReason::ALL.len()],
}

impl Tally {
    /// Counts dropped datagrams.
    pub(super) fn drop(&mut self, reason: DropReason, count: usize) {
        self.dropped[reason as usize] += count as u64;
    }

    /// Counts a new flow.
    pub(super) fn flow_opened(&mut self) {
        self.flows_opened += 1;
    }

    /// Counts a flow's end.
    pub(super) fn flow_closed(&mut self, end: FlowEnd) {
        self.flows_closed[end as usize] += 1;
    }

    /// Adds everything to the shared counters and starts at zero again; `totals` keeps the sums
    /// that a client's last log line tells.
    pub(super) fn report(&mut self, counters: &Counters, totals: &mut Totals) {
        totals.datagrams_to_remote += self.datagrams_to_remote;
        totals.datagrams_to_client += self.datagrams_to_client;
        totals.dropped += self.dropped.iter().sum::<u64>();
        let flows_closed: u64 = self.flows_closed.iter().sum();
        let signed = |count| i64::try_from(count).unwrap_or(i64::MAX);
        if self.flows_opened != flows_closed {
            counters.flows.add(signed(self.flows_opened) - signed(flows_closed));
        }
        for (count, counter) in [
            (&mut self.flows_opened, &counters.flows_opened),
            (&mut self.datagrams_to_remote, &counters.datagrams_to_remote),
            (&mut self.datagrams_to_client, &counters.datagrams_to_client),
            (&mut self.bytes_to_remote, &counters.bytes_to_remote),
            (&mut self.bytes_to_client, &counters.bytes_to_client),
            (&mut self.keepalives, &counters.keepalives),
            (&mut self.icmp_errors, &counters.icmp_errors),
            (&mut self.segmentation_refused, &counters.segmentation_refused),
            (&mut self.port_pool_exhausted, &counters.port_pool_exhausted),
            (&mut self.own_sockets_short, &counters.own_sockets_short),
        ]
        .into_iter()
        .chain(self.flows_closed.iter_mut().zip(&counters.flows_closed))
        .chain(self.dropped.iter_mut().zip(&counters.dropped))
        {
            // Most are zero most of the time, and an atomic addition is not free.
            if *count > 0 {
                counter.add(std::mem::take(count));
            }
        }
    }
}

/// What a client's life came to.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Totals {
    pub datagrams_to_remote: u64,
    pub datagrams_to_client: u64,
    pub dropped: u64,
}
