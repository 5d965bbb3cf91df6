//! Members of these rooms that are registered at other servers, which share their rooms with this
//! one through a store.
//!
//! Each server writes down where its own members are, and reads of a room what all have written
//! whenever one of its own registers there. What was news is passed on at once besides. So a member
//! that is told of one elsewhere is told at the moment at which that server tells the other one: when
//! the store has taken the news. A member's [number](Record::news) says whether it was told before,
//! whichever way comes first.
//!
//! A member may be at several servers at once. It is gone when it is at none.

use super::outcome::Notice;
use super::{Member, Registry, Sharing};
use crate::state::slots::Slot;
use crate::wire::rendezvous::shared::{Message, Place, Record, ServerId};
use crate::wire::rendezvous::{Endpoints, MemberId, RoomId};
use std::time::{Duration, Instant};

/// Servers at which one member is known to be; peers take four.
const PLACES_MAX: usize = 8;
/// So much later than one server another one finds a store that is there again: both look for it
/// every 10 s, a fifth more or less.
const COMES_BACK_MAX: Duration = Duration::from_secs(12);

/// A member at another server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Away {
    server: ServerId,
    news: u32,
    pub(super) endpoints: Endpoints,
    /// When it refreshed its registration there.
    pub(super) refreshed: Instant,
}

/// A member as another server has written it down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen<'a> {
    /// Who, and where.
    pub place: Place,
    /// What that server says.
    pub record: Record<'a>,
    /// How long ago.
    pub age: Duration,
}

/// What the store has said after a member of ours was written down.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// The room.
    pub room: RoomId,
    /// The member of ours.
    pub member: MemberId,
    /// The number of its news, of which the other servers were told.
    pub news: u32,
    /// Everybody who is written down in the room.
    pub all: &'a [Seen<'a>],
}

impl Registry {
    /// From now on the rooms are shared with others; this server is `own` to them.
    pub fn share(&mut self, own: ServerId) {
        self.sharing = Some(Sharing { own, rtt: Duration::ZERO, up: None });
    }

    /// The round trip to the store, as it was measured last.
    pub fn set_store_rtt(&mut self, rtt: Duration) {
        if let Some(sharing) = &mut self.sharing {
            sharing.rtt = rtt;
        }
    }

    /// The store is there, first or again.
    pub fn store_came_up(&mut self, now: Instant) {
        if let Some(sharing) = &mut self.sharing {
            sharing.up = Some(now);
        }
    }

    /// What other servers are told of a member that is registered here, and in which room.
    pub fn record(&self, slot: Slot) -> Option<(RoomId, Place, Record<'_>)> {
        let sharing = self.sharing?;
        let member = self.members.get(slot)?;
        let room = self.rooms.get(member.room)?;
        let mut endpoints = member.sites().map(|site| site.contact.endpoint);
        let endpoints = Endpoints { first: endpoints.next()?, second: endpoints.next() };
        let store_ms = u16::try_from(sharing.rtt.as_millis()).unwrap_or(u16::MAX);
        let rtt_ms = member.rtt_ms.saturating_add(store_ms);
        let record = Record { news: member.news, rtt_ms, endpoints, sealed: &member.sealed };
        Some((room.id, Place { member: member.id, server: sharing.own }, record))
    }

    /// The servers at which a member is, besides this one.
    pub fn servers_of(&self, slot: Slot) -> impl Iterator<Item = ServerId> {
        let away = self.members.get(slot).map_or(&[][..], |member| &member.elsewhere);
        away.iter().map(|away| away.server)
    }

    /// Who a member is.
    pub fn id_of(&self, slot: Slot) -> Option<MemberId> {
        self.members.get(slot).map(|member| member.id)
    }

    /// A member of ours is written down. Returns how many of those found there was no room for.
    pub fn found(
        &mut self,
        now: Instant,
        found: &Found<'_>,
        chance: &mut dyn FnMut() -> u32,
        notices: &mut Vec<Notice>,
    ) -> usize {
        let Some(room) = self.by_id.get(&found.room).copied() else { return 0 };
        let mut ignored = 0;
        for seen in found.all {
            match self.place(now, room, seen, notices) {
                Ok(Some((slot, true))) => {
                    self.introduce_to_ours(now, (room, slot), chance, notices);
                }
                Ok(_) => {}
                Err(NoRoom) => ignored += 1,
            }
        }
        self.forget_missing(now, room, found.all, notices);
        let Some(ours) = self.find(found.room, found.member) else { return ignored };
        let Some(member) = self.members.get_mut(ours).filter(|it| it.is_here()) else {
            return ignored;
        };
        // Also if it was to be shared before, and that was in vain.
        if member.news_shared.replace(found.news) != Some(found.news) {
            let is_elsewhere = |other: &Member| !other.is_here();
            self.introduce_to_all(now, (room, ours), is_elsewhere, chance, notices);
        }
        ignored
    }

    /// Another server has passed something on. Returns whether there was room for it.
    pub fn told(
        &mut self,
        now: Instant,
        message: &Message<'_>,
        chance: &mut dyn FnMut() -> u32,
        notices: &mut Vec<Notice>,
    ) -> bool {
        let (room_id, place, record) = match *message {
            Message::News { room, place, record } | Message::Call { room, place, record, .. } => {
                (room, place, record)
            }
            Message::Gone { room, place } => {
                self.gone_elsewhere(room, place, notices);
                return true;
            }
        };
        // Nobody here wants to know.
        let Some(room) = self.by_id.get(&room_id).copied() else { return true };
        let seen = Seen { place, record, age: Duration::ZERO };
        let (slot, is_news) = match self.place(now, room, &seen, notices) {
            Ok(Some(placed)) => placed,
            Ok(None) => return true,
            Err(NoRoom) => return false,
        };
        if is_news {
            self.introduce_to_ours(now, (room, slot), chance, notices);
        } else if let Message::Call { to, .. } = *message {
            let called = self.find(room_id, to).filter(|called| self.is_here(*called));
            // If it has called, too, it is told when the store has passed that on.
            let called = called.filter(|_| self.calls.admit(now, room_id, place.member, to));
            if let Some(called) = called {
                self.introduce(now, called, slot, chance, notices);
            }
        }
        true
    }

    /// The store has passed a call of ours on: the caller is told now, as the called one is.
    pub fn call_passed_on(
        &mut self,
        now: Instant,
        room: RoomId,
        (caller, called): (MemberId, MemberId),
        chance: &mut dyn FnMut() -> u32,
        notices: &mut Vec<Notice>,
    ) {
        if let (Some(caller), Some(called)) = (self.find(room, caller), self.find(room, called)) {
            self.introduce(now, caller, called, chance, notices);
        }
    }

    /// To the store, if there is one.
    pub(super) fn share_member(&self, member: Slot, notices: &mut Vec<Notice>) {
        if self.sharing.is_some() {
            notices.push(Notice::Share { member });
        }
    }

    /// Introduces a member that is elsewhere to those of ours that it has been told of: the others
    /// have their turn when they have been written down.
    fn introduce_to_ours(
        &mut self,
        now: Instant,
        of: (Slot, Slot),
        chance: &mut dyn FnMut() -> u32,
        notices: &mut Vec<Notice>,
    ) {
        let is_told = |other: &Member| other.is_here() && other.news_shared == Some(other.news);
        self.introduce_to_all(now, of, is_told, chance, notices);
    }

    /// Writes down where a member is; says its slot, and whether it is news. `None` for what this
    /// server has written itself.
    fn place(
        &mut self,
        now: Instant,
        room: Slot,
        seen: &Seen<'_>,
        notices: &mut Vec<Notice>,
    ) -> Result<Option<(Slot, bool)>, NoRoom> {
        let Place { member: id, server } = seen.place;
        if self.sharing.is_none_or(|sharing| sharing.own == server) {
            return Ok(None);
        }
        let members = self.rooms.get(room).map_or(&[][..], |room| &room.members);
        let is_it = |slot: &&Slot| self.members.get(**slot).is_some_and(|found| found.id == id);
        let slot = match members.iter().find(is_it) {
            Some(slot) => *slot,
            None => self.make_elsewhere(now, room, id)?,
        };
        let Some(member) = self.members.get_mut(slot) else { return Err(NoRoom) };
        let refreshed = now.checked_sub(seen.age).unwrap_or(now);
        let Record { news, rtt_ms, endpoints, sealed } = seen.record;
        let away = Away { server, news, endpoints, refreshed };
        let known = member.elsewhere.iter_mut().find(|known| known.server == server);
        let is_news = known.as_ref().is_none_or(|known| known.news != news);
        if let Some(known) = known {
            *known = away;
        } else {
            if member.elsewhere.len() >= PLACES_MAX {
                member.elsewhere.remove(0);
            }
            member.elsewhere.push(away);
        }
        member.refreshed = now;
        self.members.move_to_back(slot, 0);
        self.lose_lapsed(now, slot, notices);
        // With its own place the room may have gone.
        let Some(member) = self.members.get_mut(slot) else { return Ok(None) };
        if !member.is_here() {
            member.rtt_ms = rtt_ms;
            if member.sealed != sealed {
                member.sealed.clear();
                member.sealed.extend_from_slice(sealed);
            }
        }
        Ok(Some((slot, is_news)))
    }

    /// A place for a member that is elsewhere. There may be more of them than one server takes, as
    /// each takes its first before it knows of the others'.
    fn make_elsewhere(&mut self, now: Instant, room: Slot, id: MemberId) -> Result<Slot, NoRoom> {
        let members_max = (2 * self.limits.members_max).min(255);
        let found = self.rooms.get_mut(room).filter(|room| room.members.len() < members_max);
        let members = &mut found.ok_or(NoRoom)?.members;
        let slot = self.members.push(
            0,
            Member {
                id,
                room,
                sites: [None; 2],
                elsewhere: Vec::new(),
                rtt_ms: 0,
                refreshed: now,
                sealed: Vec::new(),
                news: 0,
                news_shared: None,
                news_from: now,
                held_back: None,
            },
        );
        members.push(slot);
        self.elsewhere += 1;
        Ok(slot)
    }

    /// A member that has moved to another server does not refresh here.
    fn lose_lapsed(&mut self, now: Instant, slot: Slot, notices: &mut Vec<Notice>) {
        let Some(member) = self.members.get(slot) else { return };
        let lapsed: Vec<_> = member
            .sites()
            .filter(|site| now.saturating_duration_since(site.refreshed) >= self.limits.expiry)
            .map(|site| site.contact.endpoint)
            .collect();
        for endpoint in lapsed {
            self.give_up_endpoint(endpoint, notices);
        }
    }

    /// Whoever the store does not have is not there; but for who has just refreshed, and until the
    /// others have come back to a store that was away, as it may be empty.
    fn forget_missing(
        &mut self,
        now: Instant,
        room: Slot,
        all: &[Seen<'_>],
        notices: &mut Vec<Notice>,
    ) {
        // Longer than from one refresh to the next.
        let fresh = self.limits.expiry / 3;
        let up = self.sharing.and_then(|sharing| sharing.up);
        if up.is_some_and(|up| now.saturating_duration_since(up) < fresh + COMES_BACK_MAX) {
            return;
        }
        let members = self.rooms.get(room).map(|room| room.members.clone()).unwrap_or_default();
        for slot in members {
            let Some(member) = self.members.get_mut(slot) else { continue };
            let id = member.id;
            let is_there = |away: &Away| {
                let place = Place { member: id, server: away.server };
                all.iter().any(|seen| seen.place == place)
                    || now.saturating_duration_since(away.refreshed) < fresh
            };
            member.elsewhere.retain(is_there);
            self.remove_if_nowhere(slot, notices);
        }
    }

    fn gone_elsewhere(&mut self, room: RoomId, place: Place, notices: &mut Vec<Notice>) {
        let Some(slot) = self.find(room, place.member) else { return };
        let Some(member) = self.members.get_mut(slot) else { return };
        member.elsewhere.retain(|away| away.server != place.server);
        self.remove_if_nowhere(slot, notices);
    }

    fn remove_if_nowhere(&mut self, slot: Slot, notices: &mut Vec<Notice>) {
        let nowhere = |member: &Member| !member.is_here() && member.elsewhere.is_empty();
        if self.members.get(slot).is_some_and(nowhere) {
            self.remove(slot, notices);
        }
    }
}

/// The room has twice as many members as this server takes.
#[derive(Debug)]
struct NoRoom;
