//! Who is in which room, by which endpoints: entering, staying, and leaving.

use super::outcome::Notice;
use super::relay::bucket;
use super::{Entry, Member, Registry, Room, Site, family};
use crate::state::slots::Slot;
use crate::wire::rendezvous::{MemberId, Refusal, RoomId};
use std::net::SocketAddr;
use std::time::Instant;

impl Registry {
    pub(super) fn find(&self, room: RoomId, member: MemberId) -> Option<Slot> {
        let room = self.rooms.get(*self.by_id.get(&room)?)?;
        let is_it = |slot: &&Slot| self.members.get(**slot).is_some_and(|found| found.id == member);
        room.members.iter().find(is_it).copied()
    }

    /// Whether a member is registered here.
    pub(super) fn is_here(&self, slot: Slot) -> bool {
        self.members.get(slot).is_some_and(Member::is_here)
    }

    /// A member registers: whether the others should hear of it.
    pub(super) fn refresh(&mut self, now: Instant, slot: Slot, entry: &Entry<'_>) -> bool {
        let Entry { contact, rtt_ms, sealed, .. } = *entry;
        let family = family(contact.endpoint);
        let Some(member) = self.members.get(slot) else { return false };
        let moves =
            member.sites[family].is_none_or(|site| site.contact.endpoint != contact.endpoint);
        if moves {
            if let Some(left) = member.sites[family] {
                self.by_endpoint.remove(&left.contact.endpoint);
            }
            self.by_endpoint.insert(contact.endpoint, slot);
        }
        let Some(member) = self.members.get_mut(slot) else { return false };
        self.elsewhere -= usize::from(!member.is_here());
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

    pub(super) fn enter(
        &mut self,
        now: Instant,
        entry: &Entry<'_>,
        notices: &mut Vec<Notice>,
    ) -> Result<Slot, Refusal> {
        let Entry { contact, rtt_ms, sealed, .. } = *entry;
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
                elsewhere: Vec::new(),
                rtt_ms,
                refreshed: now,
                sealed: sealed.to_vec(),
                news: 0,
                news_shared: None,
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
        let relay = bucket(self.limits.relay.room);
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
            if let Some(member) = self.members.get(slot).filter(|member| member.is_here()) {
                notices.push(Notice::Gone { to: member.contacts(), member: member.id });
            }
            // The others need not hear that it is gone: so are they.
            self.take_out(slot, notices);
        }
        self.end_if_nobody_is_here(room);
    }

    /// An endpoint is one member's: whoever else had it has it no more.
    pub(super) fn free_endpoint(&mut self, entry: &Entry<'_>, notices: &mut Vec<Notice>) {
        let owner = self.by_endpoint.get(&entry.contact.endpoint).copied();
        if owner.is_some() && owner != self.find(entry.room, entry.member) {
            self.give_up_endpoint(entry.contact.endpoint, notices);
        }
    }

    /// Whoever has the endpoint has it no more.
    pub(super) fn give_up_endpoint(&mut self, endpoint: SocketAddr, notices: &mut Vec<Notice>) {
        let Some(slot) = self.by_endpoint.remove(&endpoint) else { return };
        let Some(member) = self.members.get_mut(slot) else { return };
        let others = member.sites[1 - family(endpoint)];
        if others.is_none() {
            self.leave_here(slot, notices);
        } else {
            member.sites[family(endpoint)] = None;
        }
    }

    /// A member is not registered here any more; it may be elsewhere.
    pub(super) fn leave_here(&mut self, slot: Slot, notices: &mut Vec<Notice>) {
        let Some(member) = self.members.get(slot) else { return };
        if member.elsewhere.is_empty() {
            return self.remove(slot, notices);
        }
        let room = member.room;
        self.forget_here(slot, notices);
        self.elsewhere += 1;
        self.end_if_nobody_is_here(room);
    }

    /// A member is gone; the others are told.
    pub(super) fn remove(&mut self, slot: Slot, notices: &mut Vec<Notice>) {
        let Some(member) = self.take_out(slot, notices) else { return };
        let others = self.rooms.get(member.room).map_or(&[][..], |room| &room.members);
        for other in others.iter().filter_map(|other| self.members.get(*other)) {
            if other.is_here() {
                notices.push(Notice::Gone { to: other.contacts(), member: member.id });
            }
        }
        self.end_if_nobody_is_here(member.room);
    }

    /// Takes a member out of its room, which may be left without any.
    fn take_out(&mut self, slot: Slot, notices: &mut Vec<Notice>) -> Option<Member> {
        if self.is_here(slot) {
            self.forget_here(slot, notices);
        } else {
            self.elsewhere -= usize::from(self.members.get(slot).is_some());
        }
        let member = self.members.remove(slot)?;
        if let Some(room) = self.rooms.get_mut(member.room) {
            room.members.retain(|other| *other != slot);
            for other in &room.members {
                self.introductions.forget(slot, *other);
                self.introductions.forget(*other, slot);
            }
        }
        Some(member)
    }

    /// Of a member that is here, what makes it so.
    fn forget_here(&mut self, slot: Slot, notices: &mut Vec<Notice>) {
        let Some(member) = self.members.get_mut(slot) else { return };
        for site in &mut member.sites {
            if let Some(site) = site.take() {
                self.by_endpoint.remove(&site.contact.endpoint);
            }
        }
        if let Some(due) = member.held_back.take() {
            self.held_back.remove(&(due, slot));
        }
        let (id, room) = (member.id, member.room);
        let Some(room) = self.rooms.get(room) else { return };
        for other in &room.members {
            self.introductions.forget(slot, *other);
        }
        if self.sharing.is_some() {
            notices.push(Notice::Unshare { room: room.id, member: id });
        }
    }

    /// A room whose members are all elsewhere is no matter of this server's.
    fn end_if_nobody_is_here(&mut self, slot: Slot) {
        let Some(room) = self.rooms.get(slot) else { return };
        let mut members = room.members.iter().filter_map(|slot| self.members.get(*slot));
        if members.any(Member::is_here) {
            return;
        }
        let Some(room) = self.rooms.remove(slot) else { return };
        for member in &room.members {
            for other in &room.members {
                self.introductions.forget(*member, *other);
            }
            self.members.remove(*member);
        }
        self.elsewhere -= room.members.len();
        self.by_id.remove(&room.id);
        self.households.end(room.owner, slot);
    }
}
