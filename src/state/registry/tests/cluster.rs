//! Registries of several servers, and a store between them that works as the scripts in Redis do.

use super::super::elsewhere::{Found, Seen};
use super::*;
use crate::wire::rendezvous::shared::{Message, Place, Record, ServerId};
use std::collections::{BTreeMap, VecDeque};

/// As it is written down.
#[derive(Debug, Clone)]
pub(super) struct Written {
    at: Instant,
    news: u32,
    rtt_ms: u16,
    endpoints: Endpoints,
    sealed: Vec<u8>,
}

impl Written {
    fn new(at: Instant, record: &Record<'_>) -> Written {
        let Record { news, rtt_ms, endpoints, sealed } = *record;
        Written { at, news, rtt_ms, endpoints, sealed: sealed.to_vec() }
    }

    fn record(&self) -> Record<'_> {
        let Written { news, rtt_ms, endpoints, ref sealed, .. } = *self;
        Record { news, rtt_ms, endpoints, sealed }
    }
}

/// What is on its way to a server.
enum Told {
    News(RoomId, Place, Written, Option<MemberId>),
    Gone(RoomId, Place),
}

type Rooms = BTreeMap<RoomId, BTreeMap<(MemberId, ServerId), Written>>;

pub(super) struct Cluster {
    pub(super) servers: Vec<World>,
    pub(super) rooms: Rooms,
    /// Servers that the store does not reach.
    pub(super) cut_off: Vec<usize>,
    passed: VecDeque<(usize, Told)>,
    /// Who was told of whom since this was last asked: server, to, about, start, and whether it is
    /// registered at that server.
    pub(super) told: Vec<(usize, Contact, MemberId, u16, bool)>,
    gone: Vec<(usize, Contact, MemberId)>,
}

pub(super) fn id(server: usize) -> ServerId {
    ServerId([u8::try_from(server).unwrap(); 8])
}

impl Cluster {
    pub(super) fn new(servers: usize, limits: Limits) -> Cluster {
        let start = |server| {
            let mut world = World::new(limits);
            world.registry.share(id(server));
            world
        };
        Cluster {
            servers: (0..servers).map(start).collect(),
            rooms: Rooms::new(),
            cut_off: Vec::new(),
            passed: VecDeque::new(),
            told: Vec::new(),
            gone: Vec::new(),
        }
    }

    fn now(&self) -> Instant {
        self.servers[0].now
    }

    pub(super) fn pass(&mut self, time: Duration) {
        for server in 0..self.servers.len() {
            self.servers[server].now += time;
        }
        let now = self.now();
        for written in self.rooms.values_mut() {
            written.retain(|_, it| now.saturating_duration_since(it.at) < LIMITS.expiry);
        }
        for server in 0..self.servers.len() {
            self.servers[server].tend();
            self.settle(server);
        }
    }

    pub(super) fn register(&mut self, server: usize, in_room: u32, number: u32, contact: Contact) {
        self.try_register(server, in_room, number, contact).unwrap();
    }

    pub(super) fn try_register(
        &mut self,
        server: usize,
        in_room: u32,
        number: u32,
        contact: Contact,
    ) -> Result<usize, Refusal> {
        let registered = self.servers[server].register(in_room, number, contact);
        self.settle(server);
        registered
    }

    pub(super) fn leave(&mut self, server: usize, in_room: u32, number: u32) {
        let World { registry, notices, .. } = &mut self.servers[server];
        notices.clear();
        registry.leave(room(in_room), member(number), notices);
        self.settle(server);
    }

    /// Sends what a registry wants to be sent, and whatever comes of it.
    pub(super) fn settle(&mut self, server: usize) {
        self.send(server);
        while let Some((to, told)) = self.passed.pop_front() {
            let World { registry, now, notices, .. } = &mut self.servers[to];
            notices.clear();
            let message = match &told {
                Told::News(room, place, written, to) => {
                    let (room, place, record) = (*room, *place, written.record());
                    match *to {
                        Some(to) => Message::Call { room, place, to, record },
                        None => Message::News { room, place, record },
                    }
                }
                Told::Gone(room, place) => Message::Gone { room: *room, place: *place },
            };
            registry.told(*now, &message, &mut || 9, notices);
            self.send(to);
        }
        for world in &self.servers {
            world.check();
        }
    }

    fn send(&mut self, server: usize) {
        let world = &self.servers[server];
        for (to, about, start, _) in world.introductions() {
            let is_here = world.registry.find_anywhere(about, true);
            self.told.push((server, to, about, start, is_here));
        }
        for (to, member) in world.gone() {
            self.gone.push((server, to, member));
        }
        let numbers: Vec<_> = world.introductions();
        for notice in std::mem::take(&mut self.servers[server].notices) {
            if self.cut_off.contains(&server) {
                continue;
            }
            match notice {
                Notice::Share { member } => self.write_down(server, member),
                Notice::Unshare { room, member } => {
                    let place = Place { member, server: id(server) };
                    let written = self.rooms.entry(room).or_default();
                    if written.remove(&(member, id(server))).is_some() {
                        self.pass_on(room, id(server), &|| Told::Gone(room, place));
                    }
                }
                Notice::Call { caller, called } => self.call(server, caller, called),
                Notice::Introduce { .. } | Notice::Gone { .. } => {}
            }
        }
        for (to, _, _, number) in numbers {
            self.servers[server].registry.acknowledge(to.endpoint, number);
        }
    }

    fn write_down(&mut self, server: usize, slot: Slot) {
        let now = self.now();
        let Some((room, place, record)) = self.servers[server].registry.record(slot) else {
            return;
        };
        let written = Written::new(now, &record);
        let all = self.rooms.entry(room).or_default();
        let before = all.insert((place.member, place.server), written.clone());
        let others: Vec<(Place, Written)> = all
            .iter()
            .map(|((member, server), it)| (Place { member: *member, server: *server }, it.clone()))
            .filter(|(other, _)| *other != place)
            .collect();
        if before.is_none_or(|before| before.news != written.news) {
            self.pass_on(room, id(server), &|| Told::News(room, place, written.clone(), None));
        }
        let all: Vec<Seen<'_>> = others
            .iter()
            .map(|(place, it)| Seen { place: *place, record: it.record(), age: now - it.at })
            .collect();
        let found = Found { room, member: place.member, news: written.news, all: &all };
        let World { registry, notices, .. } = &mut self.servers[server];
        notices.clear();
        assert_eq!(registry.found(now, &found, &mut || 8, notices), 0);
        self.send(server);
    }

    fn pass_on(&mut self, room: RoomId, from: ServerId, told: &dyn Fn() -> Told) {
        let mut servers: Vec<ServerId> =
            self.rooms[&room].keys().map(|(_, server)| *server).collect();
        servers.dedup();
        for server in 0..self.servers.len() {
            let is_in = servers.contains(&id(server)) && id(server) != from;
            if is_in && !self.cut_off.contains(&server) {
                self.passed.push_back((server, told()));
            }
        }
    }

    fn call(&mut self, server: usize, caller: Slot, called: Slot) {
        let now = self.now();
        let registry = &self.servers[server].registry;
        let (room, place, record) = registry.record(caller).unwrap();
        let written = Written::new(now, &record);
        let called_id = registry.id_of(called).unwrap();
        let servers: Vec<ServerId> = registry.servers_of(called).collect();
        for other in 0..self.servers.len() {
            if servers.contains(&id(other)) && !self.cut_off.contains(&other) {
                let told = Told::News(room, place, written.clone(), Some(called_id));
                self.passed.push_back((other, told));
            }
        }
        let World { registry, notices, .. } = &mut self.servers[server];
        notices.clear();
        let pair = (place.member, called_id);
        registry.call_passed_on(now, room, pair, &mut || 5, notices);
        self.send(server);
    }

    /// Who was told of whom, at which server, since the last time.
    pub(super) fn told(&mut self) -> Vec<(usize, Contact, MemberId)> {
        let mut told: Vec<_> =
            std::mem::take(&mut self.told).into_iter().map(|(a, b, c, ..)| (a, b, c)).collect();
        told.sort_by_key(|(server, to, about)| (*server, to.endpoint, *about));
        told
    }

    pub(super) fn gone(&mut self) -> Vec<(usize, Contact, MemberId)> {
        std::mem::take(&mut self.gone)
    }
}

impl Registry {
    /// Whether a member of that id is in any room, here or elsewhere.
    fn find_anywhere(&self, member: MemberId, is_here: bool) -> bool {
        let mut rooms = self.by_id.keys();
        rooms.any(|room| self.find(*room, member).is_some_and(|it| self.is_here(it) == is_here))
    }
}
