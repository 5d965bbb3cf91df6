//! What the role counts of its control messages; packets are counted by the data plane.

use crate::runtime::metrics::{Counter, Gauge, Registry};
use crate::wire::vpn::Refusal;
use std::sync::Arc;

/// Why a control message was dropped, or a client's packet bound nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DropReason {
    Malformed,
    SourceRate,
    UnknownClient,
    Unexpected,
    BareRefused,
    NotSent,
}

impl DropReason {
    /// In order of declaration, with the metrics labels.
    const LABELS: [&'static str; 6] =
        ["malformed", "source-rate", "unknown-client", "unexpected", "bare-refused", "not-sent"];

    /// For a log line.
    pub(super) fn label(self) -> &'static str {
        Self::LABELS[self as usize]
    }
}

/// How a client of the server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndReason {
    Goodbye,
    Idle,
    Displaced,
}

impl EndReason {
    const LABELS: [&'static str; 3] = ["goodbye", "idle", "displaced"];
}

/// How a client lost its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    Silence,
    Unknown,
    Goodbye,
}

impl Loss {
    const LABELS: [&'static str; 3] = ["silence", "unknown", "goodbye"];
}

/// What a client says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    Hello,
    Keepalive,
    Goodbye,
}

impl Said {
    const LABELS: [&'static str; 3] = ["hello", "keepalive", "goodbye"];
}

/// The role's counters.
pub(super) struct Counters {
    pub(super) clients: Arc<Gauge>,
    pub(super) clients_entered: Arc<Counter>,
    pub(super) clients_moved: Arc<Counter>,
    pub(super) cookies_offered: Arc<Counter>,
    pub(super) questions: Arc<Counter>,
    pub(super) connected: Arc<Gauge>,
    pub(super) connections: Arc<Counter>,
    messages_sent: Arc<Counter>,
    said: [Arc<Counter>; Said::LABELS.len()],
    ended: [Arc<Counter>; EndReason::LABELS.len()],
    refused: [Arc<Counter>; 5],
    lost: [Arc<Counter>; Loss::LABELS.len()],
    dropped: [Arc<Counter>; DropReason::LABELS.len()],
}

/// For `vpn status`.
pub(super) const MESSAGES_DROPPED: &str = "udpferry_vpn_messages_dropped_total";

impl Counters {
    /// Registers every counter, so that all of them show from the start, at zero.
    pub(super) fn new(registry: &mut Registry) -> Counters {
        let mut labelled = |name, help, label| registry.labelled_counter(name, help, label);
        let said = Said::LABELS.map(|kind| {
            let help = "Control messages of clients, by kind.";
            labelled("udpferry_vpn_messages_total", help, ("kind", kind))
        });
        let ended = EndReason::LABELS.map(|reason| {
            let help = "Clients that are gone, by reason.";
            labelled("udpferry_vpn_clients_ended_total", help, ("reason", reason))
        });
        let refused =
            ["full", "no-address", "address-taken", "address-outside", "version"].map(|reason| {
                let help = "Clients that got no addresses, by reason.";
                labelled("udpferry_vpn_clients_refused_total", help, ("reason", reason))
            });
        let lost = Loss::LABELS.map(|reason| {
            let help = "Times that a client lost its server, by reason.";
            labelled("udpferry_vpn_connections_lost_total", help, ("reason", reason))
        });
        let dropped = DropReason::LABELS.map(|reason| {
            let help = "Control messages dropped, by reason.";
            labelled(MESSAGES_DROPPED, help, ("reason", reason))
        });
        let clients = registry.gauge("udpferry_vpn_clients", "Clients now.");
        let connected =
            registry.gauge("udpferry_vpn_connected", "Whether this client has a server: 0 or 1.");
        let mut counter = |name, help| registry.counter(name, help);
        Counters {
            clients,
            clients_entered: counter("udpferry_vpn_clients_entered_total", "Clients that came."),
            clients_moved: counter(
                "udpferry_vpn_clients_moved_total",
                "Times that a client came from another endpoint than before.",
            ),
            cookies_offered: counter(
                "udpferry_vpn_cookies_offered_total",
                "Hellos without a cookie that counts, which were answered with one.",
            ),
            questions: counter(
                "udpferry_vpn_questions_total",
                "Endpoints that were asked who they are.",
            ),
            connected,
            connections: counter(
                "udpferry_vpn_connections_total",
                "Times that this client got a place at its server.",
            ),
            messages_sent: counter(
                "udpferry_vpn_messages_sent_total",
                "Control messages sent, by either side.",
            ),
            said,
            ended,
            refused,
            lost,
            dropped,
        }
    }

    pub(super) fn dropped(&self, reason: DropReason, count: usize) {
        if count > 0 {
            self.dropped[reason as usize].add(count as u64);
        }
    }

    pub(super) fn said(&self, what: Said) {
        self.said[what as usize].increment();
    }

    pub(super) fn ended(&self, reason: EndReason) {
        self.ended[reason as usize].increment();
    }

    pub(super) fn refused(&self, reason: Refusal) {
        self.refused[reason as usize - 1].increment();
    }

    pub(super) fn refused_for_version(&self) {
        self.refused[4].increment();
    }

    pub(super) fn lost(&self, how: Loss) {
        self.lost[how as usize].increment();
    }

    pub(super) fn sent(&self, count: usize) {
        self.messages_sent.add(count as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stand_in_the_order_of_declaration() {
        assert_eq!(DropReason::NotSent.label(), "not-sent");
        assert_eq!(EndReason::LABELS[EndReason::Displaced as usize], "displaced");
        assert_eq!(Loss::LABELS[Loss::Goodbye as usize], "goodbye");
        assert_eq!(Said::LABELS[Said::Goodbye as usize], "goodbye");
        let mut registry = Registry::new();
        let counters = Counters::new(&mut registry);
        counters.refused(Refusal::Full);
        counters.refused(Refusal::AddressOutside);
        let refused = registry.counted("udpferry_vpn_clients_refused_total");
        assert_eq!(refused, [("full", 1), ("address-outside", 1)]);
    }
}
