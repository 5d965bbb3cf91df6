//! Whom a registry tells of whom, and how often.

use super::introductions::Introduction;
use super::listeners::Hearing;
use super::outcome::Notice;
use super::{Member, NEWS_EVERY, Registry};
use crate::state::contact::Contact;
use crate::state::slots::Slot;
use std::time::{Duration, Instant};

/// The nearer of two members waits no longer for the other one.
const START_MAX: Duration = Duration::from_millis(500);

impl Registry {
    /// Introduces a member to everybody in its room: now, or when it has had no news for long
    /// enough. What it says then is the latest. Who is elsewhere hears of it through the store, and
    /// it hears of them when that answers: at the same moment.
    pub(super) fn tell_news(
        &mut self,
        now: Instant,
        slot: Slot,
        chance: &mut dyn FnMut() -> u32,
        notices: &mut Vec<Notice>,
    ) {
        let Some(member) = self.members.get_mut(slot) else { return };
        if let Some(due) = member.held_back.take() {
            self.held_back.remove(&(due, slot));
        }
        if let Some(due) = member.news_from.checked_sub(NEWS_EVERY).filter(|due| *due > now) {
            member.held_back = Some(due);
            self.held_back.insert((due, slot));
            return;
        }
        member.news_from = member.news_from.max(now) + NEWS_EVERY;
        // The first number is any one: who comes again, and whose removal got lost, is news.
        let next = if member.news == 0 { chance() } else { member.news.wrapping_add(1) };
        member.news = next.max(1);
        let room = member.room;
        self.introduce_to_all(now, (room, slot), Member::is_here, chance, notices);
    }

    /// Introduces a member to all others of its room that are `wanted`.
    pub(super) fn introduce_to_all(
        &mut self,
        now: Instant,
        (room, slot): (Slot, Slot),
        wanted: impl Fn(&Member) -> bool,
        chance: &mut dyn FnMut() -> u32,
        notices: &mut Vec<Notice>,
    ) {
        let mut index = 0;
        while let Some(other) = self.rooms.get(room).and_then(|room| room.members.get(index)) {
            let other = *other;
            if other != slot && self.members.get(other).is_some_and(&wanted) {
                self.introduce(now, slot, other, chance, notices);
            }
            index += 1;
        }
    }

    /// Introduces two members to each other; who is elsewhere is told there.
    pub(super) fn introduce(
        &mut self,
        now: Instant,
        one: Slot,
        other: Slot,
        chance: &mut dyn FnMut() -> u32,
        notices: &mut Vec<Notice>,
    ) {
        // Of who is elsewhere the way to the store is known: then that of the other one counts, too.
        let by_store = !(self.is_here(one) && self.is_here(other));
        let store = self.sharing.filter(|_| by_store).map_or(Duration::ZERO, |it| it.rtt);
        let rtt = |slot| {
            let Some(member) = self.members.get(slot) else { return Duration::ZERO };
            let rtt = Duration::from_millis(member.rtt_ms.into());
            if member.is_here() { rtt + store } else { rtt }
        };
        let (one_rtt, other_rtt) = (rtt(one), rtt(other));
        for (to, about, own, others) in
            [(one, other, one_rtt, other_rtt), (other, one, other_rtt, one_rtt)]
        {
            // A datagram takes half a round trip to either.
            let start = (others.saturating_sub(own) / 2).min(START_MAX);
            let (contacts, waits) = self.listening(now, to, [true; 2]);
            if waits == [false; 2] {
                self.introductions.forget(to, about);
                continue;
            }
            let made = self.introductions.make(now, (to, about), waits, start, chance());
            notices.extend(notice(now, &made, contacts));
        }
    }

    /// Sends an introduction again to where it was not acknowledged.
    pub(super) fn repeat(&mut self, now: Instant, due: &Introduction, notices: &mut Vec<Notice>) {
        let (contacts, _) = self.listening(now, due.to, due.waits);
        notices.extend(notice(now, due, contacts));
    }

    /// Where, over the families that are `wanted`, a member may be told of another now, and over
    /// which it may be told now or later.
    fn listening(
        &mut self,
        now: Instant,
        to: Slot,
        wanted: [bool; 2],
    ) -> ([Option<Contact>; 2], [bool; 2]) {
        let (mut contacts, mut waits) = ([None; 2], [false; 2]);
        let Some(member) = self.members.get(to) else { return (contacts, waits) };
        for (family, contact) in member.contacts().into_iter().enumerate() {
            let Some(contact) = contact.filter(|_| wanted[family]) else { continue };
            let hearing = self.listeners.tell(now, contact.endpoint);
            waits[family] = hearing != Hearing::Deaf;
            if hearing == Hearing::Now {
                contacts[family] = Some(contact);
            } else {
                self.withheld += 1;
            }
        }
        (contacts, waits)
    }
}

fn notice(now: Instant, made: &Introduction, to: [Option<Contact>; 2]) -> Option<Notice> {
    to.iter().any(Option::is_some).then(|| Notice::Introduce {
        introduction: made.number,
        start_ms: made.start_ms(now),
        to,
        about: made.about,
    })
}
