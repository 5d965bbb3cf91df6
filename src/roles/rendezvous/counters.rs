//! What the role counts.

use crate::net::sys::mmsg::send::SendReport;
use crate::runtime::metrics::{Counter, Gauge, Registry};
use crate::state::registry::outcome::NotRelayed;
use crate::wire::rendezvous::Refusal;
use std::sync::Arc;

/// Why a datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DropReason {
    Malformed,
    NotAuthentic,
    NoRequest,
    SourceRate,
    NoLegacy,
    PlainRate,
    UnknownIntroduction,
    RelayOff,
    RelayNotAMember,
    RelayNotThere,
    RelayRoomRate,
    RelayTotalRate,
    ReceiveBufferFull,
    SendBufferFull,
    SendFailed,
}

impl DropReason {
    /// In order of declaration, with the metrics labels.
    const LABELS: [&'static str; 15] = [
        "malformed",
        "not-authentic",
        "no-request",
        "source-rate",
        "no-legacy",
        "plain-rate",
        "unknown-introduction",
        "relay-off",
        "relay-not-a-member",
        "relay-not-there",
        "relay-room-rate",
        "relay-total-rate",
        "receive-buffer-full",
        "send-buffer-full",
        "send-failed",
    ];

    /// For a log line.
    pub(super) fn label(self) -> &'static str {
        Self::LABELS[self as usize]
    }
}

impl From<NotRelayed> for DropReason {
    fn from(reason: NotRelayed) -> DropReason {
        match reason {
            NotRelayed::NotAMember => DropReason::RelayNotAMember,
            NotRelayed::NotThere => DropReason::RelayNotThere,
            NotRelayed::RoomRate => DropReason::RelayRoomRate,
            NotRelayed::TotalRate => DropReason::RelayTotalRate,
        }
    }
}

/// Why there is no connection to the store of shared rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoreFailure {
    Lookup,
    Connect,
    Refused,
    Silent,
    Lost,
}

impl StoreFailure {
    /// In order of declaration, with the metrics labels.
    const LABELS: [&'static str; 5] = ["lookup", "connect", "refused", "silent", "lost"];
}

/// Why something is not shared with other servers, or not heard of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoreDrop {
    Down,
    QueueFull,
    AnswersFull,
    Refused,
    Malformed,
    NoRoom,
}

impl StoreDrop {
    /// In order of declaration, with the metrics labels.
    const LABELS: [&'static str; 6] =
        ["down", "queue-full", "answers-full", "refused", "malformed", "no-room"];
}

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Stun,
    Hello,
    Register,
    Introduced,
    Call,
    Leave,
    Relay,
    Plain,
}

impl Asked {
    /// In order of declaration, with the metrics labels.
    const LABELS: [&'static str; 8] =
        ["stun", "hello", "register", "introduced", "call", "leave", "relay", "plain"];
}

/// The role's counters.
pub(super) struct Counters {
    pub(super) rooms: Arc<Gauge>,
    pub(super) members: Arc<Gauge>,
    pub(super) introductions_pending: Arc<Gauge>,
    pub(super) plain_waiting: Arc<Gauge>,
    pub(super) members_expired: Arc<Counter>,
    pub(super) cookies_refused: Arc<Counter>,
    pub(super) stun_refused: Arc<Counter>,
    pub(super) introductions: Arc<Counter>,
    pub(super) introductions_withheld: Arc<Counter>,
    pub(super) plain_pairs: Arc<Counter>,
    pub(super) store_up: Arc<Gauge>,
    pub(super) members_elsewhere: Arc<Gauge>,
    pub(super) store_written: Arc<Counter>,
    pub(super) store_messages: Arc<Counter>,
    store_failures: [Arc<Counter>; StoreFailure::LABELS.len()],
    store_dropped: [Arc<Counter>; StoreDrop::LABELS.len()],
    requests: [Arc<Counter>; Asked::LABELS.len()],
    refused: [Arc<Counter>; 2],
    answers: Arc<Counter>,
    bytes_received: Arc<Counter>,
    bytes_sent: Arc<Counter>,
    dropped: [Arc<Counter>; DropReason::LABELS.len()],
}

impl Counters {
    /// Registers every counter, so that all of them show from the start, at zero.
    pub(super) fn new(registry: &mut Registry) -> Counters {
        let mut labelled = |name, help, label| registry.labelled_counter(name, help, label);
        let requests = Asked::LABELS.map(|kind| {
            let help = "Requests that were not dropped for their form or their rate, by kind.";
            labelled("udpferry_rendezvous_requests_total", help, ("kind", kind))
        });
        let refused = ["rooms-full", "room-full"].map(|reason| {
            let help = "Registrations refused, by reason.";
            labelled("udpferry_rendezvous_registrations_refused_total", help, ("reason", reason))
        });
        let [bytes_received, bytes_sent] = ["received", "sent"].map(|direction| {
            let help = "Bytes of datagrams, by direction.";
            labelled("udpferry_rendezvous_bytes_total", help, ("direction", direction))
        });
        let dropped = DropReason::LABELS.map(|reason| {
            let help = "Datagrams dropped, by reason.";
            labelled("udpferry_rendezvous_datagrams_dropped_total", help, ("reason", reason))
        });
        let store_failures = StoreFailure::LABELS.map(|reason| {
            let help = "Connections to the registry that failed, by reason.";
            labelled("udpferry_rendezvous_registry_failures_total", help, ("reason", reason))
        });
        let store_dropped = StoreDrop::LABELS.map(|reason| {
            let help = "What was not shared with other servers or not heard of them, by reason.";
            labelled("udpferry_rendezvous_registry_dropped_total", help, ("reason", reason))
        });
        let mut gauge = |name, help| registry.gauge(name, help);
        let store_up =
            gauge("udpferry_rendezvous_registry_up", "1 while the registry is connected.");
        let members_elsewhere = gauge(
            "udpferry_rendezvous_members_elsewhere",
            "Members at other servers, of rooms that have some here.",
        );
        let rooms = gauge("udpferry_rendezvous_rooms", "Rooms now.");
        let members = gauge("udpferry_rendezvous_members", "Members of all rooms now.");
        let introductions_pending = gauge(
            "udpferry_rendezvous_introductions_pending",
            "Introductions that wait for their acknowledgement.",
        );
        let plain_waiting =
            gauge("udpferry_rendezvous_plain_waiting", "Plain clients that wait for another one.");
        let mut counter = |name, help| registry.counter(name, help);
        Counters {
            rooms,
            members,
            introductions_pending,
            plain_waiting,
            members_expired: counter(
                "udpferry_rendezvous_members_expired_total",
                "Members that did not refresh in time.",
            ),
            cookies_refused: counter(
                "udpferry_rendezvous_cookies_refused_total",
                "Requests with a cookie that is too old, of another endpoint, or forged; answered with a cookie.",
            ),
            stun_refused: counter(
                "udpferry_rendezvous_stun_refused_total",
                "STUN requests answered with an error: 400 or 420.",
            ),
            introductions: counter(
                "udpferry_rendezvous_introductions_total",
                "Introductions sent, repeats included.",
            ),
            introductions_withheld: counter(
                "udpferry_rendezvous_introductions_withheld_total",
                "Introductions not sent: their receiver had too many, or acknowledges none.",
            ),
            plain_pairs: counter(
                "udpferry_rendezvous_plain_answers_total",
                "Plain clients told of their partner.",
            ),
            store_written: counter(
                "udpferry_rendezvous_registry_written_total",
                "Members written into the registry.",
            ),
            store_messages: counter(
                "udpferry_rendezvous_registry_messages_total",
                "Messages of other servers by way of the registry.",
            ),
            answers: counter("udpferry_rendezvous_datagrams_sent_total", "Datagrams sent."),
            store_up,
            members_elsewhere,
            store_failures,
            store_dropped,
            requests,
            refused,
            bytes_received,
            bytes_sent,
            dropped,
        }
    }

    pub(super) fn dropped(&self, reason: DropReason, count: usize) {
        if count > 0 {
            self.dropped[reason as usize].add(count as u64);
        }
    }

    pub(super) fn store_failed(&self, reason: StoreFailure) {
        self.store_failures[reason as usize].increment();
    }

    pub(super) fn store_dropped(&self, reason: StoreDrop, count: usize) {
        if count > 0 {
            self.store_dropped[reason as usize].add(count as u64);
        }
    }

    pub(super) fn asked(&self, what: Asked) {
        self.requests[what as usize].increment();
    }

    pub(super) fn refused(&self, reason: Refusal) {
        match reason {
            Refusal::RoomsFull => self.refused[0].increment(),
            Refusal::RoomFull => self.refused[1].increment(),
            // Dropped rather than answered.
            Refusal::TooManyRequests => {}
        }
    }

    pub(super) fn received(&self, bytes: usize) {
        self.bytes_received.add(bytes as u64);
    }

    /// What became of a batch of answers.
    pub(super) fn sent(&self, report: &SendReport) {
        self.answers.add(report.sent as u64);
        self.bytes_sent.add(report.sent_bytes as u64);
    }

    /// One line for whoever asks how it goes.
    pub(super) fn status_line(&self) -> String {
        format!(
            "{} members in {} rooms, {} plain clients waiting, {} STUN requests, {} datagrams sent",
            self.members.get(),
            self.rooms.get(),
            self.plain_waiting.get(),
            self.requests[Asked::Stun as usize].get(),
            self.answers.get(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stand_in_the_order_of_declaration() {
        assert_eq!(DropReason::SendFailed.label(), "send-failed");
        assert_eq!(DropReason::RelayOff.label(), "relay-off");
        assert_eq!(Asked::LABELS[Asked::Plain as usize], "plain");
    }
}
