//! The rooms of a rendezvous server: who is where, who has to be told of whom and when.
//!
//! Nothing here sends: what is to be sent is added to a list of [`Notice`]s. Members stand in the
//! order of their last refresh and introductions in a queue for each repeat, so that the next
//! deadline is at hand, and a refresh takes no memory.

pub mod calls;
pub mod households;
pub mod introductions;
pub mod limits;
pub mod listeners;
pub mod outcome;
mod telling;

use super::contact::Contact;
use super::slots::{Slot, Slots};
use super::token_bucket::TokenBucket;
use crate::wire::rendezvous::{Endpoints, MemberId, Refusal, RoomId};
use calls::Calls;
use households::{Households, Owner};
use introductions::Introductions;
use limits::Limits;
use listeners::Listeners;
use outcome::{Called, NotRelayed, Notice};
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A relay's bucket holds at least the largest datagram.
const RELAY_BURST_MIN: u32 = 65_536;

/// Notices of one [`Registry::tend`], about: more wait for the next.
const NOTICES_PER_TEND: usize = 256;

/// Others hear of a member's changes as often; of the first one at once, as a member of two
/// families enters twice.
const NEWS_EVERY: Duration = Duration::from_secs(1);

/// What a client registers.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// The room.
    pub room: RoomId,
    /// Who enters it, or stays.
    pub member: MemberId,
    /// How it is reached.
    pub contact: Contact,
    /// Its round trip to us, in milliseconds.
    pub rtt_ms: u16,
    /// Its announcement.
    pub sealed: &'a [u8],
}

/// Rooms and their members.
#[derive(Debug)]
pub struct Registry {
    limits: Limits,
    rooms: Slots<Room, 1>,
    by_id: HashMap<RoomId, Slot>,
    /// The least recently refreshed first.
    members: Slots<Member, 1>,
    by_endpoint: HashMap<SocketAddr, Slot>,
    introductions: Introductions,
    listeners: Listeners,
    calls: Calls,
    households: Households,
    /// Members whose news wait, by when they are told.
    held_back: BTreeSet<(Instant, Slot)>,
    withheld: u64,
    relay: TokenBucket,
}

#[derive(Debug)]
struct Room {
    id: RoomId,
    owner: Owner,
    members: Vec<Slot>,
    relay: TokenBucket,
}

#[derive(Debug)]
struct Member {
    id: MemberId,
    room: Slot,
    /// Over IPv4 and over IPv6.
    sites: [Option<Site>; 2],
    rtt_ms: u16,
    refreshed: Instant,
    sealed: Vec<u8>,
    /// From then on there may be two news at once.
    news_from: Instant,
    /// When the news that wait are told.
    held_back: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Site {
    contact: Contact,
    refreshed: Instant,
}

impl Member {
    fn sites(&self) -> impl Iterator<Item = Site> {
        self.sites.into_iter().flatten()
    }

    fn contacts(&self) -> [Option<Contact>; 2] {
        self.sites.map(|site| site.map(|site| site.contact))
    }
}

fn family(endpoint: SocketAddr) -> usize {
    usize::from(endpoint.is_ipv6())
}

fn relay_bucket(rate: u32) -> TokenBucket {
    TokenBucket::new(rate, rate.max(RELAY_BURST_MIN))
}

impl Registry {
    /// No rooms yet, and no memory for any.
    pub fn new(limits: Limits) -> Registry {
        Registry {
            limits,
            rooms: Slots::default(),
            by_id: HashMap::new(),
            members: Slots::default(),
            by_endpoint: HashMap::new(),
            introductions: Introductions::new(limits.introductions_max),
            listeners: Listeners::new(limits.members_max, limits.listeners_max),
            calls: Calls::new(limits.introductions_max),
            households: Households::default(),
            held_back: BTreeSet::new(),
            withheld: 0,
            relay: relay_bucket(limits.relay.total),
        }
    }

    /// How many rooms there are.
    pub fn rooms(&self) -> usize {
        self.rooms.len()
    }

    /// How many members there are in all rooms.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// How many introductions wait for their acknowledgement.
    pub fn introductions(&self) -> usize {
        self.introductions.len()
    }

    /// How many introductions were not sent since the last time that this was asked, as their
    /// receivers had too many or do not acknowledge any.
    pub fn take_withheld(&mut self) -> u64 {
        std::mem::take(&mut self.withheld)
    }

    /// The number of the last silence of an endpoint: when it stopped acknowledging introductions.
    /// 0 if it never did, as far as is remembered. It hears of nobody any more until it registers,
    /// which should take a cookie that is made over this number.
    pub fn silence(&self, endpoint: SocketAddr) -> u64 {
        self.listeners.silence(endpoint)
    }

    /// What others are told of a member.
    pub fn announcement(&self, member: Slot) -> Option<(MemberId, Endpoints, &[u8])> {
        let member = self.members.get(member)?;
        let mut endpoints = member.sites().map(|site| site.contact.endpoint);
        let endpoints = Endpoints { first: endpoints.next()?, second: endpoints.next() };
        Some((member.id, endpoints, &member.sealed))
    }

    /// Enters a member or refreshes it, and returns how many members the room has.
    ///
    /// A new member, one with another endpoint and one with another announcement is introduced to
    /// everybody in the room, about once a second. An endpoint is one member's: whoever had it
    /// before loses it, and is gone if it was the only one. When there is no room for another room,
    /// the newest of the household with the most goes, unless that is the entering one's own.
    /// `chance` gives random numbers.
    pub fn register(
        &mut self,
        now: Instant,
        entry: &Entry<'_>,
        chance: &mut dyn FnMut() -> u32,
        notices: &mut Vec<Notice>,
    ) -> Result<usize, Refusal> {
        let (member, is_news) = match self.find(entry.room, entry.member) {
            Some(member) => (member, self.refresh(now, member, entry, notices)),
            None => (self.enter(now, entry, notices)?, true),
        };
        // What it was not told while it was silent, it is told now.
        let is_back = self.listeners.is_back(entry.contact.endpoint);
        if is_news || is_back {
            self.tell_news(now, member, chance, notices);
        }
        let room = self.members.get(member).and_then(|member| self.rooms.get(member.room));
        Ok(room.map_or(0, |room| room.members.len()))
    }

    /// An introduction has arrived at `endpoint`. Returns false if none of that number was pending
    /// for whoever is there.
    pub fn acknowledge(&mut self, endpoint: SocketAddr, introduction: u64) -> bool {
        let Some(pending) = self.introductions.get(introduction) else { return false };
        if self.by_endpoint.get(&endpoint) != Some(&pending.to) {
            return false;
        }
        self.listeners.heard(endpoint);
        self.introductions.acknowledge(introduction, family(endpoint))
    }

    /// Introduces `caller` and `called` to each other again, once in [`calls::CALL_EVERY`].
    pub fn call(
        &mut self,
        now: Instant,
        room: RoomId,
        ids: (MemberId, MemberId),
        chance: &mut dyn FnMut() -> u32,
        notices: &mut Vec<Notice>,
    ) -> Called {
        let Some(caller) = self.find(room, ids.0) else { return Called::NotAMember };
        match self.find(room, ids.1) {
            Some(called) if called != caller => {
                let is_pending = self.introductions.is_pending(caller, called)
                    && self.introductions.is_pending(called, caller);
                if is_pending || !self.calls.admit(now, room, ids.0, ids.1) {
                    return Called::Pending;
                }
                self.introduce(now, caller, called, chance, notices);
                Called::Introduced
            }
            _ => Called::NotThere,
        }
    }

    /// A member leaves; the others are told. Returns false if it was not there.
    pub fn leave(&mut self, room: RoomId, member: MemberId, notices: &mut Vec<Notice>) -> bool {
        let found = self.find(room, member);
        if let Some(member) = found {
            self.remove(member, notices);
        }
        found.is_some()
    }

    /// For whom a datagram of `len` bytes for member `to` is, and from whom, if it may be relayed.
    pub fn relay(
        &mut self,
        now: Instant,
        source: SocketAddr,
        to: MemberId,
        len: usize,
    ) -> Result<(Contact, MemberId), NotRelayed> {
        let sender = self.by_endpoint.get(&source).and_then(|slot| self.members.get(*slot));
        let sender = sender.ok_or(NotRelayed::NotAMember)?;
        let room = self.rooms.get_mut(sender.room).ok_or(NotRelayed::NotAMember)?;
        let addressee = room
            .members
            .iter()
            .filter_map(|slot| self.members.get(*slot))
            .find(|member| member.id == to)
            .and_then(|member| member.sites().max_by_key(|site| site.refreshed))
            .ok_or(NotRelayed::NotThere)?;
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        // What the total refuses takes nothing from the room.
        let mut of_room = room.relay.clone();
        if !of_room.take_many(len, now) {
            return Err(NotRelayed::RoomRate);
        }
        if !self.relay.take_many(len, now) {
            return Err(NotRelayed::TotalRate);
        }
        room.relay = of_room;
        Ok((addressee.contact, sender.id))
    }

    /// Removes who has expired, tells of news that had to wait, and repeats introductions; to be
    /// called at [`Registry::next_deadline`]. Returns how many members have expired.
    pub fn tend(
        &mut self,
        now: Instant,
        chance: &mut dyn FnMut() -> u32,
        notices: &mut Vec<Notice>,
    ) -> usize {
        let before = self.members.len();
        while let Some((slot, member)) = self.members.front(0) {
            let is_expired = now.saturating_duration_since(member.refreshed) >= self.limits.expiry;
            if !is_expired || notices.len() >= NOTICES_PER_TEND {
                break;
            }
            self.remove(slot, notices);
        }
        let expired = before - self.members.len();
        while let Some((due, slot)) = self.held_back.first().copied() {
            if due > now || notices.len() >= NOTICES_PER_TEND {
                break;
            }
            self.held_back.remove(&(due, slot));
            self.tell_news(now, slot, chance, notices);
        }
        // Also those that come to nothing take their time.
        for _ in notices.len()..NOTICES_PER_TEND {
            let Some(due) = self.introductions.next_due(now) else { break };
            self.repeat(now, &due, notices);
        }
        expired
    }

    /// When [`Registry::tend`] has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        let oldest = self.members.front(0).map(|(_, member)| member.refreshed);
        let expiry = oldest.and_then(|refreshed| refreshed.checked_add(self.limits.expiry));
        let news = self.held_back.first().map(|(due, _)| *due);
        expiry.into_iter().chain(news).chain(self.introductions.next_deadline()).min()
    }

    fn find(&self, room: RoomId, member: MemberId) -> Option<Slot> {
        let room = self.rooms.get(*self.by_id.get(&room)?)?;
        let is_it = |slot: &&Slot| self.members.get(**slot).is_some_and(|found| found.id == member);
        room.members.iter().find(is_it).copied()
    }

    /// Returns whether the others should hear of it.
    fn refresh(
        &mut self,
        now: Instant,
        slot: Slot,
        entry: &Entry<'_>,
        notices: &mut Vec<Notice>,
    ) -> bool {
        let Entry { contact, rtt_ms, sealed, .. } = *entry;
        let family = family(contact.endpoint);
        let Some(member) = self.members.get(slot) else { return false };
        let moves =
            member.sites[family].is_none_or(|site| site.contact.endpoint != contact.endpoint);
        if moves {
            if let Some(left) = member.sites[family] {
                self.by_endpoint.remove(&left.contact.endpoint);
            }
            self.take_endpoint(contact.endpoint, slot, notices);
        }
        let Some(member) = self.members.get_mut(slot) else { return false };
        member.sites[family] = Some(Site { contact, refreshed: now });
        member.rtt_ms = rtt_ms;
        member.refreshed = now;
        let other = &mut member.sites[1 - family];
        let silent =
            |site: &mut Site| now.saturating_duration_since(site.refreshed) >= self.limits.expiry;
        if let Some(site) = other.take_if(silent) {
            self.by_endpoint.remove(&site.contact.endpoint);
        }
        let says_else = member.sealed != sealed;
        if says_else {
            member.sealed.clear();
            member.sealed.extend_from_slice(sealed);
        }
        self.members.move_to_back(slot, 0);
        moves || says_else
    }

    fn enter(
        &mut self,
        now: Instant,
        entry: &Entry<'_>,
        notices: &mut Vec<Notice>,
    ) -> Result<Slot, Refusal> {
        let Entry { contact, rtt_ms, sealed, .. } = *entry;
        // First, as it may make room.
        self.give_up_endpoint(contact.endpoint, notices);
        let room = match self.by_id.get(&entry.room) {
            Some(room) => *room,
            None => self.make_room(entry.room, contact.endpoint, notices)?,
        };
        let members_max = self.limits.members_max.clamp(1, 255);
        let members = self.rooms.get_mut(room).map(|room| &mut room.members);
        let members = members.filter(|members| members.len() < members_max);
        let members = members.ok_or(Refusal::RoomFull)?;
        let mut sites = [None; 2];
        sites[family(contact.endpoint)] = Some(Site { contact, refreshed: now });
        let member = self.members.push(
            0,
            Member {
                id: entry.member,
                room,
                sites,
                rtt_ms,
                refreshed: now,
                sealed: sealed.to_vec(),
                news_from: now,
                held_back: None,
            },
        );
        members.push(member);
        self.by_endpoint.insert(contact.endpoint, member);
        Ok(member)
    }

    fn make_room(
        &mut self,
        id: RoomId,
        maker: SocketAddr,
        notices: &mut Vec<Notice>,
    ) -> Result<Slot, Refusal> {
        if self.rooms.len() >= self.limits.rooms_max {
            let victim = self.households.victim(maker.ip()).ok_or(Refusal::RoomsFull)?;
            self.close(victim, notices);
        }
        let relay = relay_bucket(self.limits.relay.room);
        let owner = self.households.next(maker.ip());
        let room = self.rooms.push(0, Room { id, owner, members: Vec::new(), relay });
        self.households.begin(owner, room);
        self.by_id.insert(id, room);
        Ok(room)
    }

    /// Ends a room; its members are told that they are gone themselves.
    fn close(&mut self, room: Slot, notices: &mut Vec<Notice>) {
        let Some(members) = self.rooms.get_mut(room).map(|room| room.members.clone()) else {
            return;
        };
        for slot in members {
            if let Some(member) = self.members.get(slot) {
                notices.push(Notice::Gone { to: member.contacts(), member: member.id });
            }
            // The others need not hear that it is gone: so are they.
            self.remove(slot, &mut Vec::new());
        }
    }

    fn take_endpoint(&mut self, endpoint: SocketAddr, by: Slot, notices: &mut Vec<Notice>) {
        self.give_up_endpoint(endpoint, notices);
        self.by_endpoint.insert(endpoint, by);
    }

    /// Whoever has the endpoint has it no more.
    fn give_up_endpoint(&mut self, endpoint: SocketAddr, notices: &mut Vec<Notice>) {
        let Some(slot) = self.by_endpoint.remove(&endpoint) else { return };
        let Some(member) = self.members.get_mut(slot) else { return };
        member.sites[family(endpoint)] = None;
        if member.sites().next().is_none() {
            self.remove(slot, notices);
        }
    }

    fn remove(&mut self, slot: Slot, notices: &mut Vec<Notice>) {
        let Some(member) = self.members.remove(slot) else { return };
        for site in member.sites() {
            self.by_endpoint.remove(&site.contact.endpoint);
        }
        if let Some(due) = member.held_back {
            self.held_back.remove(&(due, slot));
        }
        let Some(room) = self.rooms.get_mut(member.room) else { return };
        room.members.retain(|other| *other != slot);
        for other in &room.members {
            self.introductions.forget(slot, *other);
            self.introductions.forget(*other, slot);
            if let Some(other) = self.members.get(*other) {
                notices.push(Notice::Gone { to: other.contacts(), member: member.id });
            }
        }
        if room.members.is_empty() {
            self.by_id.remove(&room.id);
            self.households.end(room.owner, member.room);
            self.rooms.remove(member.room);
        }
    }
}

#[cfg(test)]
mod tests;
