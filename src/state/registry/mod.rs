//! The rooms of a rendezvous server: who is where, who has to be told of whom and when.
//!
//! Nothing here sends: what is to be sent is added to a list of [`Notice`]s. Members stand in the
//! order of their last refresh and introductions in a queue for each repeat, so that the next
//! deadline is at hand, and a refresh takes no memory.
//!
//! Several servers may share their rooms through a store ([`elsewhere`]): then a room has members
//! that are registered at other servers, too.

pub mod calls;
pub mod elsewhere;
pub mod households;
pub mod introductions;
pub mod limits;
pub mod listeners;
mod membership;
pub mod outcome;
mod relay;
mod telling;

use super::contact::Contact;
use super::slots::{Slot, Slots};
use super::token_bucket::TokenBucket;
use crate::wire::rendezvous::shared::ServerId;
use crate::wire::rendezvous::{Endpoints, MemberId, Refusal, RoomId};
use calls::Calls;
use elsewhere::Away;
use households::{Households, Owner};
use introductions::Introductions;
use limits::Limits;
use listeners::Listeners;
use outcome::{Called, Notice};
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

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
    relay: relay::Total,
    sharing: Option<Sharing>,
    /// Members that are not registered here.
    elsewhere: usize,
}

/// How a registry shares its rooms.
#[derive(Debug, Clone, Copy)]
struct Sharing {
    own: ServerId,
    /// The round trip to the store.
    rtt: Duration,
    /// Since when the store is there.
    up: Option<Instant>,
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
    /// Where it is registered here, over IPv4 and over IPv6.
    sites: [Option<Site>; 2],
    /// Where else it is registered; a member is in one place at least.
    elsewhere: Vec<Away>,
    /// To here if it is registered here, else to the store by way of another server.
    rtt_ms: u16,
    refreshed: Instant,
    sealed: Vec<u8>,
    /// Raised whenever others hear of it.
    news: u32,
    /// The last one that the other servers have.
    news_shared: Option<u32>,
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

    fn is_here(&self) -> bool {
        self.sites().next().is_some()
    }

    /// Over each family where it was seen last, here or elsewhere.
    fn endpoints(&self) -> Option<Endpoints> {
        let here = self.sites().map(|site| (site.refreshed, site.contact.endpoint));
        let away = self
            .elsewhere
            .iter()
            .flat_map(|away| away.endpoints.iter().map(|endpoint| (away.refreshed, endpoint)));
        let mut latest: [Option<(Instant, SocketAddr)>; 2] = [None; 2];
        for seen in here.chain(away) {
            let latest = &mut latest[family(seen.1)];
            if latest.is_none_or(|(refreshed, _)| refreshed < seen.0) {
                *latest = Some(seen);
            }
        }
        let mut endpoints = latest.into_iter().flatten().map(|(_, endpoint)| endpoint);
        Some(Endpoints { first: endpoints.next()?, second: endpoints.next() })
    }
}

fn family(endpoint: SocketAddr) -> usize {
    usize::from(endpoint.is_ipv6())
}

/// What others are told of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement<'a> {
    /// Who it is.
    pub member: MemberId,
    /// It is registered here.
    pub is_here: bool,
    /// Where it was seen last.
    pub endpoints: Endpoints,
    /// What it says of itself.
    pub sealed: &'a [u8],
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
            relay: relay::Total::new(limits.relay),
            sharing: None,
            elsewhere: 0,
        }
    }

    /// How many rooms there are.
    pub fn rooms(&self) -> usize {
        self.rooms.len()
    }

    /// How many members are registered here, in all rooms.
    pub fn members(&self) -> usize {
        self.members.len() - self.elsewhere
    }

    /// How many more there are in these rooms, registered at other servers.
    pub fn members_elsewhere(&self) -> usize {
        self.elsewhere
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
    pub fn announcement(&self, member: Slot) -> Option<Announcement<'_>> {
        let found = self.members.get(member)?;
        Some(Announcement {
            member: found.id,
            is_here: found.is_here(),
            endpoints: found.endpoints()?,
            sealed: &found.sealed,
        })
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
        self.free_endpoint(entry, notices);
        let (member, is_news) = match self.find(entry.room, entry.member) {
            Some(member) => (member, self.refresh(now, member, entry)),
            None => (self.enter(now, entry, notices)?, true),
        };
        // What it was not told while it was silent, it is told now.
        let is_back = self.listeners.is_back(entry.contact.endpoint);
        if is_news || is_back {
            self.tell_news(now, member, chance, notices);
        }
        self.share_member(member, notices);
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
        let caller = self.find(room, ids.0).filter(|caller| self.is_here(*caller));
        let Some(caller) = caller else { return Called::NotAMember };
        match self.find(room, ids.1) {
            Some(called) if called != caller => {
                let is_pending = self.introductions.is_pending(caller, called)
                    && self.introductions.is_pending(called, caller);
                if is_pending || !self.calls.admit(now, room, ids.0, ids.1) {
                    return Called::Pending;
                }
                if self.is_here(called) {
                    self.introduce(now, caller, called, chance, notices);
                } else {
                    notices.push(Notice::Call { caller, called });
                }
                Called::Introduced
            }
            _ => Called::NotThere,
        }
    }

    /// A member leaves; the others are told. Returns false if it was not there.
    pub fn leave(&mut self, room: RoomId, member: MemberId, notices: &mut Vec<Notice>) -> bool {
        let found = self.find(room, member).filter(|member| self.is_here(*member));
        if let Some(member) = found {
            self.leave_here(member, notices);
        }
        found.is_some()
    }

    /// Removes who has expired, tells of news that had to wait, and repeats introductions; to be
    /// called at [`Registry::next_deadline`]. Returns how many members have expired.
    pub fn tend(
        &mut self,
        now: Instant,
        chance: &mut dyn FnMut() -> u32,
        notices: &mut Vec<Notice>,
    ) -> usize {
        let before = self.members();
        while let Some((slot, member)) = self.members.front(0) {
            let is_expired = now.saturating_duration_since(member.refreshed) >= self.limits.expiry;
            if !is_expired || notices.len() >= NOTICES_PER_TEND {
                break;
            }
            self.remove(slot, notices);
        }
        let expired = before - self.members();
        while let Some((due, slot)) = self.held_back.first().copied() {
            if due > now || notices.len() >= NOTICES_PER_TEND {
                break;
            }
            self.held_back.remove(&(due, slot));
            self.tell_news(now, slot, chance, notices);
            self.share_member(slot, notices);
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
}

#[cfg(test)]
mod tests;
