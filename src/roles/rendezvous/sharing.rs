//! Between the registry and [the store](super::store) of the rooms that are shared.

use super::counters::StoreDrop;
use super::desk::Desk;
use super::own::chance;
use super::store::{Task, Told};
use crate::state::registry::elsewhere::{Found, Seen};
use crate::state::registry::outcome::Notice;
use crate::wire::rendezvous::shared::{
    Message, Place, parse_message, parse_record, write_message, write_record,
};
use std::time::Instant;

/// Things told in a turn, so that clients have theirs: some milliseconds at most.
const TOLD_PER_TURN: usize = 256;

impl Desk {
    /// Takes what the store has said; false if there may be more.
    pub(super) fn hear_store(&mut self, now: Instant) -> bool {
        for _ in 0..TOLD_PER_TURN {
            let Some(told) = self.store.as_ref().and_then(|store| store.told.drain().next()) else {
                return true;
            };
            self.hear(now, told);
            self.deliver(now);
            if self.outbox.is_full() {
                self.send(now);
            }
        }
        self.send(now);
        false
    }

    fn hear(&mut self, now: Instant, told: Told) {
        let no_room = match told {
            Told::Up => {
                self.registry.store_came_up(now);
                0
            }
            Told::Found { room, member, news, all, rtt } => {
                self.registry.set_store_rtt(rtt);
                let seen = all.iter().filter_map(|it| {
                    Some(Seen { place: it.place, record: parse_record(&it.record)?, age: it.age })
                });
                let all: Vec<Seen<'_>> = seen.collect();
                let found = Found { room, member, news, all: &all };
                self.registry.found(now, &found, &mut chance, &mut self.notices)
            }
            Told::Message(bytes) => {
                let Some(message) = parse_message(&bytes) else { return };
                let has_room = self.registry.told(now, &message, &mut chance, &mut self.notices);
                usize::from(!has_room)
            }
            Told::PassedOn { room, pair } => {
                self.registry.call_passed_on(now, room, pair, &mut chance, &mut self.notices);
                0
            }
        };
        self.counters.store_dropped(StoreDrop::NoRoom, no_room);
    }

    /// Has the store do what the registry wants.
    pub(super) fn share(&self, notice: &Notice) {
        let Some(store) = &self.store else { return };
        let task = match *notice {
            Notice::Share { member } => self.put(member),
            Notice::Unshare { room, member } => {
                Some(Task::Remove { room, place: Place { member, server: store.id() } })
            }
            Notice::Call { caller, called } => self.pass_on(caller, called),
            Notice::Introduce { .. } | Notice::Gone { .. } => None,
        };
        if let Some(task) = task {
            store.send(task);
        }
    }

    fn put(&self, member: u32) -> Option<Task> {
        let (room, place, record) = self.registry.record(member)?;
        let mut bytes = Vec::new();
        write_record(&mut bytes, &record);
        Some(Task::Put { room, place, news: record.news, record: bytes })
    }

    fn pass_on(&self, caller: u32, called: u32) -> Option<Task> {
        let (room, place, record) = self.registry.record(caller)?;
        let to = self.registry.id_of(called)?;
        let mut message = Vec::new();
        write_message(&mut message, &Message::Call { room, place, to, record });
        let servers = self.registry.servers_of(called).collect();
        Some(Task::Call { room, pair: (place.member, to), servers, message })
    }
}
