//! Plain clients: any text from two of them, and each gets the other's endpoint as text.

use super::counters::{Asked, DropReason};
use super::desk::Desk;
use crate::state::contact::Contact;
use crate::state::pairing::Arrival;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Instant;

impl Desk {
    pub(super) fn answer_plain(&mut self, now: Instant, from: Contact, datagram: &[u8]) {
        if self.pairing.is_none() {
            return self.refuse(now, from, DropReason::NoLegacy);
        }
        let Ok(text) = std::str::from_utf8(datagram) else {
            return self.refuse(now, from, DropReason::Malformed);
        };
        // An answer, from another server such as this one that somebody set on us.
        if text.parse::<SocketAddr>().is_ok() {
            return self.refuse(now, from, DropReason::NoRequest);
        }
        if !self.admit(now, from, 1) {
            return;
        }
        self.asked(Asked::Plain);
        let Some(pairing) = &mut self.pairing else { return };
        if pairing.arrive(now, from, &mut self.told) == Arrival::TooManyAnswers {
            self.refuse(now, from, DropReason::PlainRate);
        }
        self.tell_partners();
    }

    /// Writes what the pairing wants to be sent.
    pub(super) fn tell_partners(&mut self) {
        for partner in self.told.drain(..) {
            let (address, port) = (partner.endpoint.ip(), partner.endpoint.port());
            self.outbox.add(partner.to, |bytes| {
                // Without the scope that an IPv6 endpoint may have, which is ours alone.
                write!(bytes, "{}", SocketAddr::new(address, port)).ok()
            });
            self.counters.plain_pairs.increment();
        }
    }
}
