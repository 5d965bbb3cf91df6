//! What the gateway counts: shared counters for the outside, and a client's tally that is added to
//! them once per wake instead of once per datagram.

use crate::runtime::metrics::{Counter, Gauge, Registry};
use crate::state::access::DenyReason;
use std::fmt;
use std::sync::Arc;

/// Declares reasons once: their names, metrics labels and words for log lines.
macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $label:literal, $words:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum $name {
            $($variant,)*
        }

        impl $name {
            /// The metrics labels, in order of declaration.
            const LABELS: &[&str] = &[$($label,)*];
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str([$($words,)*][*self as usize])
            }
        }
    };
}

reasons! {
    /// Why a datagram was dropped.
    DropReason {
        ShortHeader = "short-header", "frame too short for flags and conid";
        ShortAddress = "short-address", "frame too short for its address";
        TooLong = "too-long", "datagram over --udp-mtu";
        DestinationUnspecified = "destination-unspecified", "unspecified destination";
        DestinationLoopback = "destination-loopback", "loopback destination";
        DestinationMulticast = "destination-multicast", "multicast destination";
        DestinationBroadcast = "destination-broadcast", "broadcast destination";
        DestinationLinkLocal = "destination-link-local", "link-local destination";
        DestinationPrivate = "destination-private", "private destination";
        DestinationRule = "destination-rule", "destination denied by --deny";
        DestinationPortZero = "destination-port-zero", "destination port 0";
        NoResolver = "no-resolver", "no nameserver to ask";
        NoSocket = "no-socket", "no socket for the flow";
        SendBufferFull = "send-buffer-full", "UDP send buffer full";
        SendFailed = "send-failed", "cannot send";
        Stranger = "stranger", "not from the flow's remote endpoint";
        ReplyTooLong = "reply-too-long", "reply over --udp-mtu";
        ClientStalled = "client-stalled", "client does not read";
        ReceiveBufferFull = "receive-buffer-full", "UDP receive buffer full";
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

reasons! {
    /// Why a client was closed.
    EndReason {
        Closed = "closed", "closed by the client";
        Silent = "silent", "silent for too long";
        OversizeFrame = "oversize-frame", "a frame longer than any";
        StreamError = "stream-error", "the connection failed";
        HandshakeTimeout = "handshake-timeout", "no handshake in time";
        TlsHandshake = "tls-handshake", "TLS handshake failed";
        ProxyHeader = "proxy-header", "no valid PROXY header";
        AddressLimit = "address-limit", "too many clients of its address";
        Stopped = "stopped", "the gateway stops";
        Fault = "fault", "a fault of the gateway";
    }
}

reasons! {
    /// Why a flow was closed.
    FlowEnd {
        Idle = "idle", "idle for too long";
        Evicted = "evicted", "pushed out by a newer flow";
        Rebound = "rebound", "its conid was given to another flow";
        Answered = "answered", "the DNS query was answered";
        ClientGone = "client-gone", "the client is gone";
    }
}

/// Counters of the whole gateway.
pub(super) struct Counters {
    pub clients: Arc<Gauge>,
    pub flows: Arc<Gauge>,
    pub clients_accepted: Arc<Counter>,
    pub clients_over_limit: Arc<Counter>,
    pub accept_errors: Arc<Counter>,
    pub certificate_reload_errors: Arc<Counter>,
    clients_closed: Vec<Arc<Counter>>,
    flows_opened: Arc<Counter>,
    flows_closed: Vec<Arc<Counter>>,
    datagrams_to_remote: Arc<Counter>,
    datagrams_to_client: Arc<Counter>,
    bytes_to_remote: Arc<Counter>,
    bytes_to_client: Arc<Counter>,
    keepalives: Arc<Counter>,
    icmp_errors: Arc<Counter>,
    segmentation_refused: Arc<Counter>,
    port_pool_exhausted: Arc<Counter>,
    own_sockets_short: Arc<Counter>,
    dropped: Vec<Arc<Counter>>,
}

impl Counters {
    /// Registers every counter, so that all of them show from the start, at zero.
    pub(super) fn new(registry: &mut Registry) -> Counters {
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
            clients_closed: by_reason(
                registry,
                "udpferry_udpgw_clients_closed_total",
                "Clients closed, by reason.",
                EndReason::LABELS,
            ),
            flows_opened: registry.counter("udpferry_udpgw_flows_opened_total", "Flows opened."),
            flows_closed: by_reason(
                registry,
                "udpferry_udpgw_flows_closed_total",
                "Flows closed, by reason.",
                FlowEnd::LABELS,
            ),
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
            dropped: by_reason(
                registry,
                "udpferry_udpgw_datagrams_dropped_total",
                "Datagrams dropped, by reason.",
                DropReason::LABELS,
            ),
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
        for (label, counter) in DropReason::LABELS.iter().zip(&self.dropped) {
            if counter.get() > 0 {
                let _ = write!(line, " dropped_{label}={}", counter.get());
            }
        }
        line
    }
}

fn by_reason(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
    labels: &[&'static str],
) -> Vec<Arc<Counter>> {
    let counter = |label: &&'static str| registry.labelled_counter(name, help, ("reason", label));
    labels.iter().map(counter).collect()
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
    dropped: [u64; DropReason::LABELS.len()],
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
