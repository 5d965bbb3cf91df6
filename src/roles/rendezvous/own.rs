//! Our own protocol: cookies, rooms, introductions, the relay.

use super::boxes::STRANGER_WEIGHT;
use super::counters::{Asked, DropReason};
use super::desk::Desk;
use crate::net::random;
use crate::roles::member_key::member_of;
use crate::state::contact::Contact;
use crate::state::registry::Entry;
use crate::state::registry::outcome::{Called, Notice};
use crate::wire::rendezvous::answer::{Answer, Introduced, write_answer};
use crate::wire::rendezvous::request::{Boxed, RELAY_HEADER_LEN, Request, Wish, parse_request};
use crate::wire::rendezvous::{Cookie, MemberId, Pass, RoomId};
use std::time::{Duration, Instant};

impl Desk {
    pub(super) fn answer_own(&mut self, now: Instant, from: Contact, datagram: &[u8]) {
        let Some(request) = parse_request(datagram) else {
            return self.refuse(now, from, DropReason::Malformed);
        };
        // What is relayed has limits of its own.
        if let Request::Relay { member, payload } = request {
            self.asked(Asked::Relay);
            return self.relay(now, from, member, payload);
        }
        if !self.admit(now, from, 1) {
            return;
        }
        match request {
            Request::Hello { tx } => {
                self.asked(Asked::Hello);
                self.offer_cookie(now, from, tx);
            }
            Request::Boxed(boxed) => self.open(now, from, &boxed),
            Request::Introduced { introduction } => {
                self.asked(Asked::Introduced);
                if !self.registry.acknowledge(from.endpoint, introduction) {
                    self.refuse(now, from, DropReason::UnknownIntroduction);
                }
            }
            Request::Relay { .. } => {}
        }
    }

    fn open(&mut self, now: Instant, from: Contact, boxed: &Boxed<'_>) {
        if !self.is_proven(now, from, boxed.tx, boxed.cookie) {
            return;
        }
        if !self.boxes.knows(boxed.key) && !self.admit(now, from, STRANGER_WEIGHT - 1) {
            return;
        }
        // Out of the way of the borrows, and back again.
        let mut plain = std::mem::take(&mut self.plain);
        match self.boxes.open(boxed, &mut plain) {
            Some((room, wish)) => {
                self.grant(now, from, boxed.tx, (room, member_of(boxed.key)), &wish);
            }
            None => self.refuse(now, from, DropReason::NotAuthentic),
        }
        self.plain = plain;
    }

    fn grant(
        &mut self,
        now: Instant,
        from: Contact,
        tx: u64,
        (room, member): (RoomId, MemberId),
        wish: &Wish<'_>,
    ) {
        match *wish {
            Wish::Register { rtt_ms, sealed } => {
                self.asked(Asked::Register);
                let entry = Entry { room, member, contact: from, rtt_ms, sealed };
                self.register(now, tx, &entry);
            }
            Wish::Call { member: called } => {
                self.asked(Asked::Call);
                self.call(now, from, room, (member, called));
            }
            Wish::Leave => {
                self.asked(Asked::Leave);
                self.registry.leave(room, member, &mut self.notices);
                // Also who is not there any more, and asks again.
                self.say(from, &Answer::Left { tx });
                self.deliver(now);
            }
        }
    }

    fn say(&mut self, to: Contact, answer: &Answer<'_>) {
        self.outbox.add(to, |bytes| {
            write_answer(bytes, answer);
            Some(())
        });
    }

    fn offer_cookie(&mut self, now: Instant, to: Contact, tx: u64) {
        let silence = self.registry.silence(to.endpoint);
        let cookie = Cookie(self.cookies.make(now, to.endpoint, silence));
        let pass = Pass { cookie, server: self.boxes.key() };
        self.say(to, &Answer::Cookie { tx, pass, endpoint: to.endpoint });
    }

    /// Whether the cookie counts, which one of before the endpoint fell silent does not; if not,
    /// another one is offered, in fewer bytes than any request with a cookie has.
    fn is_proven(&mut self, now: Instant, from: Contact, tx: u64, cookie: Cookie) -> bool {
        let silence = self.registry.silence(from.endpoint);
        let counts = self.cookies.counts(now, from.endpoint, silence, cookie.0);
        if !counts {
            self.counters.cookies_refused.increment();
            self.offer_cookie(now, from, tx);
        }
        counts
    }

    fn register(&mut self, now: Instant, tx: u64, entry: &Entry<'_>) {
        let entered = self.registry.register(now, entry, &mut chance, &mut self.notices);
        let answer = match entered {
            Ok(members) => Answer::Registered {
                tx,
                member: entry.member,
                endpoint: entry.contact.endpoint,
                refresh_s: seconds(self.refresh).max(1),
                expiry_s: seconds(self.expiry),
                relay: self.relays,
                members: u8::try_from(members).unwrap_or(u8::MAX),
            },
            Err(reason) => {
                self.counters.refused(reason);
                self.tell(now, || format!("{} refused: {reason:?}", entry.contact.endpoint));
                Answer::Refused { tx, reason }
            }
        };
        self.say(entry.contact, &answer);
        self.deliver(now);
    }

    fn call(&mut self, now: Instant, from: Contact, room: RoomId, pair: (MemberId, MemberId)) {
        let (caller, called) = pair;
        match self.registry.call(now, room, pair, &mut chance, &mut self.notices) {
            Called::Introduced | Called::Pending => {}
            Called::NotThere => self.say(from, &Answer::Gone { member: called }),
            // It shall register again.
            Called::NotAMember => self.say(from, &Answer::Gone { member: caller }),
        }
        self.deliver(now);
    }

    fn relay(&mut self, now: Instant, from: Contact, to: MemberId, payload: &[u8]) {
        if !self.relays {
            return self.refuse(now, from, DropReason::RelayOff);
        }
        let len = payload.len() + RELAY_HEADER_LEN;
        match self.registry.relay(now, from.endpoint, to, len) {
            Ok((contact, member)) => self.say(contact, &Answer::Relayed { member, payload }),
            Err(reason) => self.refuse(now, from, reason.into()),
        }
    }

    /// Writes what the registry wants to be sent.
    pub(super) fn deliver(&mut self, now: Instant) {
        let mut notices = std::mem::take(&mut self.notices);
        for notice in notices.drain(..) {
            match notice {
                Notice::Introduce { introduction, start_ms, to, about } => {
                    let Some(about) = self.registry.announcement(about) else { continue };
                    let answer = Answer::Introduce(Introduced {
                        introduction,
                        start_ms,
                        member: about.member,
                        is_here: about.is_here,
                        endpoints: about.endpoints,
                        sealed: about.sealed,
                    });
                    for contact in to.into_iter().flatten() {
                        self.outbox.add(contact, |bytes| {
                            write_answer(bytes, &answer);
                            Some(())
                        });
                        self.counters.introductions.increment();
                    }
                }
                Notice::Gone { to, member } => {
                    for contact in to.into_iter().flatten() {
                        self.say(contact, &Answer::Gone { member });
                    }
                }
                Notice::Share { .. } | Notice::Unshare { .. } | Notice::Call { .. } => {
                    self.share(&notice);
                }
            }
            if self.outbox.is_full() {
                self.send(now);
            }
        }
        self.notices = notices;
        self.counters.introductions_withheld.add(self.registry.take_withheld());
    }
}

/// Whole seconds, rounded down: asking early does no harm.
fn seconds(time: Duration) -> u16 {
    u16::try_from(time.as_secs()).unwrap_or(u16::MAX)
}

/// Half of an introduction's number. Without chance it is still known only to whoever gets it, and
/// counts only from there.
pub(super) fn chance() -> u32 {
    random::bytes().map_or(0, u32::from_ne_bytes)
}
