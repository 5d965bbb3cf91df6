//! Where every datagram is looked at: which of the three languages it speaks, and whether its
//! source has asked too often.

use super::Config;
use super::boxes::Boxes;
use super::counters::{Asked, Counters, DropReason};
use super::outbox::Outbox;
use super::own::chance;
use super::sockets::Sockets;
use super::store::Store;
use crate::error::Error;
use crate::roles::cookie::Cookies;
use crate::state::contact::Contact;
use crate::state::pairing::{Pairing, Partner};
use crate::state::registry::Registry;
use crate::state::registry::outcome::Notice;
use crate::state::source_rate::SourceRate;
use crate::state::token_bucket::LogGate;
use crate::wire::{rendezvous, stun};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Everything that answering takes.
pub(super) struct Desk {
    pub(super) counters: Arc<Counters>,
    pub(super) outbox: Outbox,
    pub(super) sockets: Sockets,
    pub(super) cookies: Cookies,
    pub(super) boxes: Boxes,
    /// Decrypted requests; kept, for its memory.
    pub(super) plain: Vec<u8>,
    pub(super) registry: Registry,
    /// What the registry wants to be sent; kept, for its memory.
    pub(super) notices: Vec<Notice>,
    /// Where the rooms are shared, if they are.
    pub(super) store: Option<Store>,
    pub(super) pairing: Option<Pairing>,
    /// Whom the pairing wants to be told; kept, for its memory.
    pub(super) told: Vec<Partner>,
    pub(super) relays: bool,
    pub(super) refresh: Duration,
    pub(super) expiry: Duration,
    pub(super) shows_software: bool,
    sources: SourceRate,
    /// For lines that anybody on the network can cause.
    trouble_log: LogGate,
}

impl Desk {
    pub(super) fn new(
        config: &Config,
        sockets: Sockets,
        counters: Arc<Counters>,
        store: Option<Store>,
        now: Instant,
    ) -> Result<Desk, Error> {
        let mut registry = Registry::new(config.limits);
        if let Some(store) = &store {
            registry.share(store.id());
        }
        Ok(Desk {
            counters,
            outbox: Outbox::default(),
            sockets,
            cookies: Cookies::new(now)?,
            boxes: Boxes::new()?,
            plain: Vec::new(),
            registry,
            notices: Vec::new(),
            store,
            pairing: config.plain.map(Pairing::new),
            told: Vec::new(),
            relays: config.relays,
            refresh: config.refresh,
            expiry: config.limits.expiry,
            shows_software: config.shows_software,
            sources: SourceRate::new(config.source_rate, config.sources_max),
            trouble_log: LogGate::new(1, 20),
        })
    }

    /// A datagram has come.
    pub(super) fn answer(&mut self, now: Instant, from: Contact, datagram: &[u8]) {
        self.counters.received(datagram.len());
        // Port 0 is nobody's: there is nowhere to answer to.
        if from.endpoint.port() == 0 {
            self.refuse(now, from, DropReason::Malformed);
        } else if rendezvous::is_rendezvous(datagram) {
            self.answer_own(now, from, datagram);
        } else if looks_like_stun(datagram) {
            self.answer_stun(now, from, datagram);
        } else {
            self.answer_plain(now, from, datagram);
        }
    }

    /// Counts a request of so much weight, unless its source has made too many.
    pub(super) fn admit(&mut self, now: Instant, from: Contact, weight: u32) -> bool {
        let admitted = self.sources.admit(now, from.endpoint.ip(), weight);
        if !admitted {
            self.refuse(now, from, DropReason::SourceRate);
        }
        admitted
    }

    pub(super) fn asked(&self, what: Asked) {
        self.counters.asked(what);
    }

    /// Drops a datagram.
    pub(super) fn refuse(&mut self, now: Instant, from: Contact, reason: DropReason) {
        self.counters.dropped(reason, 1);
        self.tell(now, || format!("dropped a datagram of {}: {}", from.endpoint, reason.label()));
    }

    /// A line in the log, unless there have been too many of them lately. At debug level, as it is
    /// no fault of ours.
    pub(super) fn tell(&mut self, now: Instant, what: impl FnOnce() -> String) {
        if !log::log_enabled!(log::Level::Debug) {
            return;
        }
        if let Some(more) = self.trouble_log.pass(now) {
            log::debug!("{} ({more} more lines)", what());
        }
    }

    /// Sends what has been answered.
    pub(super) fn send(&mut self, now: Instant) {
        if let Some(error) = self.outbox.send(&self.sockets, &self.counters) {
            self.tell(now, || format!("{}: {error}", DropReason::SendFailed.label()));
        }
    }

    /// Does what is due.
    pub(super) fn tend(&mut self, now: Instant) {
        let expired = self.registry.tend(now, &mut chance, &mut self.notices);
        self.counters.members_expired.add(expired as u64);
        self.deliver(now);
        if let Some(pairing) = &mut self.pairing {
            pairing.tend(now, &mut self.told);
            self.tell_partners();
        }
        self.send(now);
        self.counters.rooms.set(whole(self.registry.rooms()));
        self.counters.members.set(whole(self.registry.members()));
        self.counters.members_elsewhere.set(whole(self.registry.members_elsewhere()));
        self.counters.introductions_pending.set(whole(self.registry.introductions()));
        self.counters.plain_waiting.set(whole(self.pairing.as_ref().map_or(0, Pairing::waiting)));
    }

    /// When something is due.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let pairing = self.pairing.as_ref().and_then(|pairing| pairing.next_deadline(now));
        self.registry.next_deadline().into_iter().chain(pairing).min()
    }
}

/// Also what is broken: it is no text of a plain client.
fn looks_like_stun(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| *first < 0x40)
        && datagram.get(4..8) == Some(&stun::MAGIC_COOKIE)
        || stun::is_classic_request(datagram)
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
