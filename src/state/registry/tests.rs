mod cluster;
mod listening;
mod relaying;
mod sharing;
mod volume;

use super::introductions::REPEATS;
use super::limits::RelayRates;
use super::*;
use std::net::Ipv4Addr;

const LIMITS: Limits = Limits {
    rooms_max: 1000,
    members_max: 16,
    introductions_max: 65_536,
    listeners_max: 65_536,
    expiry: Duration::from_secs(60),
    relay: RelayRates { room: 1000, total: 1_000_000 },
};

// An Instant cannot be made from a number; any base will do.
#[allow(clippy::disallowed_methods)]
fn base() -> Instant {
    Instant::now()
}

fn room(number: u32) -> RoomId {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&number.to_be_bytes());
    RoomId(id)
}

fn member(number: u32) -> MemberId {
    MemberId(u64::from(number).to_be_bytes())
}

fn v4(number: u32) -> Contact {
    let address = Ipv4Addr::from(0x0a00_0000 | number >> 8);
    let port = 1000 + u16::try_from(number & 0xff).unwrap();
    Contact { endpoint: (address, port).into(), socket: 0, local: None }
}

fn v6(number: u16) -> Contact {
    Contact {
        endpoint: ([0x2001, 0xdb8, 0, 0, 0, 0, 0, number], 5000).into(),
        socket: 1,
        local: None,
    }
}

/// Of a member of room 1.
fn entry(number: u32, contact: Contact) -> Entry<'static> {
    Entry { room: room(1), member: member(number), contact, rtt_ms: 20, sealed: b"sealed" }
}

/// A registry with its clock, its chance and what it wanted to be sent last.
struct World {
    registry: Registry,
    now: Instant,
    chance: u32,
    notices: Vec<Notice>,
}

impl World {
    fn new(limits: Limits) -> World {
        World { registry: Registry::new(limits), now: base(), chance: 0, notices: Vec::new() }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn register_as(&mut self, entry: &Entry<'_>) -> Result<usize, Refusal> {
        self.notices.clear();
        let World { registry, now, chance, notices } = self;
        let mut draw = || {
            *chance = chance.wrapping_add(0x9e37_79b9);
            *chance
        };
        registry.register(*now, entry, &mut draw, notices)
    }

    fn register(&mut self, in_room: u32, number: u32, contact: Contact) -> Result<usize, Refusal> {
        self.register_as(&Entry { room: room(in_room), ..entry(number, contact) })
    }

    /// Members 1 and 2 enter room 1.
    fn two_meet(&mut self) {
        for number in 1..=2 {
            self.register(1, number, v4(number)).unwrap();
        }
    }

    fn call(&mut self, caller: u32, called: u32) -> Called {
        self.notices.clear();
        let World { registry, now, notices, .. } = self;
        registry.call(*now, room(1), (member(caller), member(called)), &mut || 7, notices)
    }

    fn tend(&mut self) -> usize {
        self.notices.clear();
        self.registry.tend(self.now, &mut || 8, &mut self.notices)
    }

    /// Who is told of whom, when to start, and the introduction's number.
    fn introductions(&self) -> Vec<(Contact, MemberId, u16, u64)> {
        let mut found = Vec::new();
        for notice in &self.notices {
            if let Notice::Introduce { introduction, start_ms, to, about } = *notice {
                let about = self.registry.announcement(about).unwrap();
                assert!(about.sealed.starts_with(b"sealed"));
                for contact in to.into_iter().flatten() {
                    found.push((contact, about.member, start_ms, introduction));
                }
            }
        }
        found
    }

    fn told(&self) -> Vec<(Contact, MemberId)> {
        self.introductions().into_iter().map(|(to, about, ..)| (to, about)).collect()
    }

    /// Everybody acknowledges what is in the notices.
    fn acknowledge_all(&mut self) {
        for (to, _, _, number) in self.introductions() {
            self.registry.acknowledge(to.endpoint, number);
        }
    }

    fn gone(&self) -> Vec<(Contact, MemberId)> {
        let mut found = Vec::new();
        for notice in &self.notices {
            if let Notice::Gone { to, member } = *notice {
                found.extend(to.into_iter().flatten().map(|contact| (contact, member)));
            }
        }
        found
    }

    /// Everything points where it should.
    fn check(&self) {
        let registry = &self.registry;
        let mut sites = 0;
        let (mut members, mut here) = (0, 0);
        for (id, slot) in &registry.by_id {
            let room = registry.rooms.get(*slot).unwrap();
            assert_eq!(room.id, *id);
            let is_here = |slot: &Slot| registry.is_here(*slot);
            assert!(room.members.iter().any(is_here), "a room without members of ours stays");
            for slot in &room.members {
                members += 1;
                let found = registry.members.get(*slot).unwrap();
                assert_eq!(registry.by_id[&room.id], found.room);
                here += usize::from(found.is_here());
                assert!(
                    found.is_here() || !found.elsewhere.is_empty(),
                    "one that is nowhere stays"
                );
                for site in found.sites() {
                    sites += 1;
                    assert_eq!(registry.by_endpoint[&site.contact.endpoint], *slot);
                }
            }
        }
        assert_eq!((here, registry.by_id.len()), (registry.members(), registry.rooms()));
        assert_eq!(members - here, registry.members_elsewhere());
        assert_eq!(sites, registry.by_endpoint.len());
    }
}

#[test]
fn a_newcomer_and_everybody_present_are_introduced_at_once() {
    let mut world = World::new(LIMITS);
    assert_eq!(world.register(1, 1, v4(1)), Ok(1));
    assert_eq!(world.notices, []);
    assert_eq!(world.register(1, 2, v4(2)), Ok(2));
    assert_eq!(world.told(), [(v4(2), member(1)), (v4(1), member(2))]);
    assert_eq!(world.register(1, 3, v4(3)), Ok(3));
    assert_eq!(world.told().len(), 4);
    // Another room is another world.
    assert_eq!(world.register(2, 4, v4(4)), Ok(1));
    assert_eq!(world.notices, []);
    world.check();
}

#[test]
fn a_refresh_is_no_news_and_takes_no_memory() {
    let mut world = World::new(LIMITS);
    for number in 1..=10 {
        world.register(1, number, v4(number)).unwrap();
        world.acknowledge_all();
    }
    let before = world.registry.members.get(0).unwrap().sealed.as_ptr();
    for _ in 0..100 {
        world.pass(Duration::from_secs(15));
        for number in 1..=10 {
            assert_eq!(world.register(1, number, v4(number)), Ok(10));
            assert_eq!(world.notices, []);
        }
        assert_eq!(world.tend(), 0);
    }
    assert_eq!(world.registry.members.get(0).unwrap().sealed.as_ptr(), before);
    world.check();
}

#[test]
fn the_nearer_one_waits_for_half_the_difference() {
    let mut world = World::new(LIMITS);
    for (far_rtt, near_rtt, wait) in [(100, 20, 40), (20, 20, 0), (5000, 0, 500)] {
        let mut world = World { registry: Registry::new(LIMITS), ..World::new(LIMITS) };
        for (number, rtt_ms) in [(1, far_rtt), (2, near_rtt)] {
            world.register_as(&Entry { rtt_ms, ..entry(number, v4(number)) }).unwrap();
        }
        let starts: Vec<_> =
            world.introductions().iter().map(|(to, _, ms, _)| (*to, *ms)).collect();
        assert_eq!(starts, [(v4(2), wait), (v4(1), 0)]);
    }
    world.check();
    assert_eq!(world.tend(), 0);
}

#[test]
fn introductions_are_repeated_until_acknowledged_with_the_start_brought_forward() {
    let mut world = World::new(LIMITS);
    for (number, rtt_ms) in [(1, 700), (2, 0)] {
        world.register_as(&Entry { rtt_ms, ..entry(number, v4(number)) }).unwrap();
    }
    let made = world.introductions();
    let (to, _, start, number) = made[0];
    assert_eq!((to, start), (v4(2), 350));
    assert!(world.registry.acknowledge(v4(1).endpoint, made[1].3));
    assert!(!world.registry.acknowledge(v4(1).endpoint, made[1].3), "twice");
    // Neither a stranger nor the other member acknowledges it, nor a guessed number.
    assert!(!world.registry.acknowledge(v4(1).endpoint, number));
    assert!(!world.registry.acknowledge(v4(9).endpoint, number));
    assert!(!world.registry.acknowledge(v4(2).endpoint, number ^ 1 << 40));
    let begin = world.now;
    for (after, start) in [(200, 150), (400, 0), (800, 0)] {
        let due = begin + Duration::from_millis(after);
        assert_eq!(world.registry.next_deadline(), Some(due));
        world.now = due.checked_sub(Duration::from_millis(1)).unwrap();
        world.tend();
        assert_eq!(world.notices, []);
        world.now = due;
        world.tend();
        assert_eq!(world.introductions(), [(v4(2), member(1), start, number)]);
    }
    assert_eq!(world.registry.introductions(), 0);
    assert_eq!(world.registry.next_deadline(), Some(begin + LIMITS.expiry));
}

#[test]
fn a_member_has_an_endpoint_of_each_family() {
    let mut world = World::new(LIMITS);
    world.two_meet();
    // The second endpoint is news to the other one, and to both of its own.
    world.register(1, 1, v6(1)).unwrap();
    assert_eq!(world.told(), [(v4(1), member(2)), (v6(1), member(2)), (v4(2), member(1))]);
    let slot = world.registry.by_endpoint[&v6(1).endpoint];
    let endpoints = world.registry.announcement(slot).unwrap().endpoints;
    assert_eq!((endpoints.first, endpoints.second), (v4(1).endpoint, Some(v6(1).endpoint)));
    world.check();
    // Over IPv6 alone: the IPv4 endpoint is forgotten, the member is not.
    for _ in 0..5 {
        world.pass(Duration::from_secs(15));
        world.register(1, 1, v6(1)).unwrap();
        world.register(1, 2, v4(2)).unwrap();
        assert_eq!(world.tend(), 0);
    }
    assert_eq!(world.registry.members.get(slot).unwrap().contacts(), [None, Some(v6(1))]);
    world.check();
}

#[test]
fn another_endpoint_and_another_announcement_are_news() {
    let mut world = World::new(LIMITS);
    world.two_meet();
    world.pass(NEWS_EVERY);
    world.register(1, 2, v4(22)).unwrap();
    assert_eq!(world.told(), [(v4(22), member(1)), (v4(1), member(2))]);
    // The introductions of before are void.
    assert_eq!(world.registry.introductions(), 2);
    world.register_as(&Entry { sealed: b"sealed anew", ..entry(2, v4(22)) }).unwrap();
    assert_eq!(world.told().len(), 2);
    world.check();
}

#[test]
fn an_endpoint_is_one_members() {
    let mut world = World::new(LIMITS);
    world.two_meet();
    // The program behind it was started again: another key from the same port.
    world.register(1, 3, v4(2)).unwrap();
    assert_eq!(world.gone(), [(v4(1), member(2))]);
    assert_eq!(world.told(), [(v4(2), member(1)), (v4(1), member(3))]);
    world.check();
    // Into another room.
    world.register(2, 4, v4(1)).unwrap();
    assert_eq!(world.gone(), [(v4(2), member(1))]);
    world.check();
    // A member that moves to where another one was, over one family of two.
    world.register(2, 4, v6(4)).unwrap();
    world.register(1, 3, v4(1)).unwrap();
    assert_eq!(world.gone(), []);
    assert_eq!(world.registry.members(), 2);
    world.check();
}

#[test]
fn who_leaves_is_gone_and_an_empty_room_is_none() {
    let mut world = World::new(LIMITS);
    world.two_meet();
    world.notices.clear();
    assert!(world.registry.leave(room(1), member(1), &mut world.notices));
    assert_eq!(world.gone(), [(v4(2), member(1))]);
    assert_eq!(world.registry.introductions(), 0);
    world.check();
    world.notices.clear();
    assert!(!world.registry.leave(room(1), member(1), &mut world.notices));
    assert!(world.registry.leave(room(1), member(2), &mut world.notices));
    assert_eq!((world.registry.rooms(), world.registry.members()), (0, 0));
    assert_eq!(world.notices, []);
    world.check();
}

#[test]
fn who_is_silent_for_the_expiry_is_gone() {
    let mut world = World::new(LIMITS);
    world.register(1, 1, v4(1)).unwrap();
    world.pass(Duration::from_secs(30));
    world.register(1, 2, v4(2)).unwrap();
    for (_, _, _, number) in world.introductions() {
        world.registry.acknowledge(v4(1).endpoint, number);
        world.registry.acknowledge(v4(2).endpoint, number);
    }
    world.pass(Duration::from_secs(29));
    assert_eq!(world.tend(), 0);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.registry.next_deadline(), Some(world.now));
    assert_eq!(world.tend(), 1);
    assert_eq!(world.gone(), [(v4(2), member(1))]);
    world.pass(Duration::from_secs(30));
    assert_eq!(world.tend(), 1);
    assert_eq!((world.registry.rooms(), world.registry.next_deadline()), (0, None));
    world.check();
}

#[test]
fn a_call_introduces_again_but_not_twice_at_once() {
    let mut world = World::new(LIMITS);
    world.two_meet();
    assert_eq!(world.call(1, 2), Called::Pending);
    assert_eq!(world.notices, []);
    world.pass(Duration::from_secs(1));
    for _ in 0..3 {
        world.tend();
    }
    assert_eq!(world.call(1, 2), Called::Introduced);
    assert_eq!(world.told(), [(v4(1), member(2)), (v4(2), member(1))]);
    // Once in two seconds, whichever of them calls and whether or not it was acknowledged.
    world.acknowledge_all();
    assert_eq!(world.call(2, 1), Called::Pending);
    assert_eq!(world.notices, []);
    world.pass(calls::CALL_EVERY);
    assert_eq!(world.call(2, 1), Called::Introduced);
    assert_eq!(world.told().len(), 2);
    assert_eq!(world.call(1, 3), Called::NotThere);
    assert_eq!(world.call(1, 1), Called::NotThere);
    assert_eq!(world.call(3, 1), Called::NotAMember);
}

#[test]
fn rooms_and_members_have_limits() {
    let mut world = World::new(Limits { rooms_max: 2, members_max: 3, ..LIMITS });
    for number in 1..=3 {
        world.register(1, number, v4(number)).unwrap();
    }
    assert_eq!(world.register(1, 4, v4(4)), Err(Refusal::RoomFull));
    // Whoever is in stays in.
    assert_eq!(world.register(1, 3, v4(33)), Ok(3));
    // A new key at a member's endpoint takes its place.
    assert_eq!(world.register(1, 5, v4(33)), Ok(3));
    world.register(2, 6, v4(6)).unwrap();
    assert_eq!(world.register(3, 7, v4(7)), Err(Refusal::RoomsFull));
    // Its room is empty then, and makes way.
    assert_eq!(world.register(3, 8, v4(6)), Ok(1));
    world.check();
}

#[test]
fn introductions_past_their_limit_are_sent_once() {
    let mut world = World::new(Limits { introductions_max: 1, ..LIMITS });
    world.two_meet();
    let made = world.introductions();
    assert_eq!(made.len(), 2);
    assert_eq!(world.registry.introductions(), 1);
    assert!(!world.registry.acknowledge(v4(1).endpoint, made[1].3));
    world.pass(REPEATS[0]);
    world.tend();
    assert_eq!(world.told(), [(v4(2), member(1))]);
}

#[test]
fn each_family_acknowledges_for_itself() {
    let mut world = World::new(LIMITS);
    world.register(1, 1, v4(1)).unwrap();
    world.register(1, 1, v6(1)).unwrap();
    world.register(1, 2, v4(2)).unwrap();
    let made = world.introductions();
    let number = made.iter().find(|made| made.0 == v4(1)).unwrap().3;
    world.registry.acknowledge(v4(2).endpoint, made.iter().find(|it| it.0 == v4(2)).unwrap().3);
    assert!(world.registry.acknowledge(v4(1).endpoint, number));
    assert!(!world.registry.acknowledge(v4(1).endpoint, number));
    world.pass(REPEATS[0]);
    world.tend();
    assert_eq!(world.told(), [(v6(1), member(2))]);
    assert!(world.registry.acknowledge(v6(1).endpoint, number));
    assert_eq!(world.registry.introductions(), 0);
}

#[test]
fn one_household_cannot_hold_every_room() {
    let mut world = World::new(Limits { rooms_max: 100, ..LIMITS });
    let of_flood = |number: u32| v4(number % 200);
    for number in 0..100 {
        world.register(number, number, of_flood(number)).unwrap();
    }
    assert_eq!(world.register(100, 100, of_flood(100)), Err(Refusal::RoomsFull));
    // Two members who share a room elsewhere, and know each other's address only.
    let other = |number: u32| v4(0x100 * number);
    assert_eq!(world.register(1000, 1001, other(1)), Ok(1));
    assert_eq!(world.gone(), [(of_flood(99), member(99))], "the newest room, and it is told so");
    world.check();
    assert_eq!(world.register(1000, 1002, other(2)), Ok(2));
    assert_eq!(world.register(99, 99, of_flood(99)), Err(Refusal::RoomsFull), "back again");
    // Shares become even, and then nobody takes anything from anybody.
    let mut made = 1;
    while world.register(2000 + made, 2000 + made, v4(0x100 + made)).is_ok() {
        made += 1;
    }
    assert_eq!((made, world.registry.rooms()), (50, 100));
    assert_eq!(world.register(0, 0, of_flood(0)), Ok(1), "the oldest stay");
    world.check();
}
