mod sharing;

use super::introductions::REPEATS;
use super::limits::RelayRates;
use super::outcome::NotRelayed;
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
        let entry = Entry {
            room: room(in_room),
            member: member(number),
            contact,
            rtt_ms: 20,
            sealed: b"sealed",
        };
        self.register_as(&entry)
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
            let entry = Entry {
                room: room(1),
                member: member(number),
                contact: v4(number),
                rtt_ms,
                sealed: b"sealed",
            };
            world.register_as(&entry).unwrap();
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
        let entry = Entry {
            room: room(1),
            member: member(number),
            contact: v4(number),
            rtt_ms,
            sealed: b"sealed",
        };
        world.register_as(&entry).unwrap();
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
    world.register(1, 1, v4(1)).unwrap();
    world.register(1, 2, v4(2)).unwrap();
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
    world.register(1, 1, v4(1)).unwrap();
    world.register(1, 2, v4(2)).unwrap();
    world.pass(NEWS_EVERY);
    world.register(1, 2, v4(22)).unwrap();
    assert_eq!(world.told(), [(v4(22), member(1)), (v4(1), member(2))]);
    // The introductions of before are void.
    assert_eq!(world.registry.introductions(), 2);
    let entry = Entry {
        room: room(1),
        member: member(2),
        contact: v4(22),
        rtt_ms: 20,
        sealed: b"sealed anew",
    };
    world.register_as(&entry).unwrap();
    assert_eq!(world.told().len(), 2);
    world.check();
}

#[test]
fn an_endpoint_is_one_members() {
    let mut world = World::new(LIMITS);
    world.register(1, 1, v4(1)).unwrap();
    world.register(1, 2, v4(2)).unwrap();
    // The program behind it was started again: another token from the same port.
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
    world.register(1, 1, v4(1)).unwrap();
    world.register(1, 2, v4(2)).unwrap();
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
    world.register(1, 1, v4(1)).unwrap();
    world.register(1, 2, v4(2)).unwrap();
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
    // A new token at a member's endpoint takes its place.
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
    world.register(1, 1, v4(1)).unwrap();
    world.register(1, 2, v4(2)).unwrap();
    let made = world.introductions();
    assert_eq!(made.len(), 2);
    assert_eq!(world.registry.introductions(), 1);
    assert!(!world.registry.acknowledge(v4(1).endpoint, made[1].3));
    world.pass(REPEATS[0]);
    world.tend();
    assert_eq!(world.told(), [(v4(2), member(1))]);
}

#[test]
fn only_members_relay_and_only_to_their_room() {
    let mut world =
        World::new(Limits { relay: RelayRates { room: 1000, total: 100_000 }, ..LIMITS });
    world.register(1, 1, v4(1)).unwrap();
    world.register(1, 2, v4(2)).unwrap();
    world.register(2, 3, v4(3)).unwrap();
    let now = world.now;
    let mut relay =
        |from: Contact, to, now, len| world.registry.relay(now, from.endpoint, member(to), len);
    assert_eq!(relay(v4(1), 2, now, 100), Ok((v4(2), member(1))));
    assert_eq!(relay(v4(1), 3, now, 100), Err(NotRelayed::NotThere));
    assert_eq!(relay(v4(9), 2, now, 100), Err(NotRelayed::NotAMember));
    // The burst is the largest datagram, whatever the rate.
    assert_eq!(relay(v4(1), 2, now, 65_436), Ok((v4(2), member(1))));
    assert_eq!(relay(v4(2), 1, now, 1), Err(NotRelayed::RoomRate));
    let later = now + Duration::from_secs(1);
    assert_eq!(relay(v4(2), 1, later, 1000), Ok((v4(1), member(2))));
    assert_eq!(relay(v4(2), 1, later, 1), Err(NotRelayed::RoomRate));
}

#[test]
fn all_rooms_together_have_a_relay_rate() {
    let mut world = World::new(Limits { relay: RelayRates { room: 1000, total: 1000 }, ..LIMITS });
    for in_room in 1..=2 {
        world.register(in_room, 2 * in_room, v4(2 * in_room)).unwrap();
        world.register(in_room, 2 * in_room + 1, v4(2 * in_room + 1)).unwrap();
    }
    let World { registry, now, .. } = &mut world;
    assert!(registry.relay(*now, v4(2).endpoint, member(3), 65_536).is_ok());
    let refused = registry.relay(*now, v4(4).endpoint, member(5), 1);
    assert_eq!(refused, Err(NotRelayed::TotalRate));
    // What the total refuses costs a room nothing: it has its whole burst later.
    for _ in 0..100 {
        let refused = registry.relay(*now, v4(4).endpoint, member(5), 60_000);
        assert_eq!(refused, Err(NotRelayed::TotalRate));
    }
    registry.relay = relay::Total::new(LIMITS.relay);
    assert!(registry.relay(*now, v4(4).endpoint, member(5), 65_536).is_ok());
}

/// What of `world.notices` goes to `at`.
fn heard_at(world: &World, at: Contact) -> usize {
    world.told().iter().filter(|(to, _)| *to == at).count()
}

/// Whoever had an address for a moment has a cookie of it for a minute, and forges its source.
#[test]
fn an_endpoint_that_does_not_answer_is_left_alone_however_news_are_made() {
    let victim = v4(100);
    let step = Duration::from_millis(10);
    for way in 0..4 {
        let mut world = World::new(LIMITS);
        for number in 1..=15 {
            world.register(1, number, v4(number)).unwrap();
            world.acknowledge_all();
        }
        let mut heard = 0;
        for round in 0..6000_u32 {
            let number = if way == 1 { 100 + round } else { 100 };
            let sealed: &[u8] = if round % 2 == 0 { b"sealed" } else { b"sealed anew" };
            // The server takes no cookie of before the silence.
            if world.registry.silence(victim.endpoint) == 0 {
                let entry = Entry {
                    room: room(1),
                    member: member(number),
                    contact: victim,
                    rtt_ms: 20,
                    sealed,
                };
                world.register_as(&entry).unwrap();
                heard += heard_at(&world, victim);
                if way == 2 {
                    world.registry.leave(room(1), member(number), &mut Vec::new());
                }
            }
            if way == 3 {
                // Those who do answer make the news.
                world.register(1, 1 + round % 15, v4(1000 + round)).unwrap();
                heard += heard_at(&world, victim);
                world.call(1 + round % 15, 100);
                heard += heard_at(&world, victim);
            }
            world.pass(step);
            world.tend();
            heard += heard_at(&world, victim);
        }
        // The burst, and what two rounds earn.
        assert!((15..=44).contains(&heard), "{heard} in way {way}");
        assert_ne!(world.registry.silence(victim.endpoint), 0);
        assert!(world.registry.take_withheld() > 0);
        // The next registration is there only with a new cookie: it hears of all again.
        world.pass(Duration::from_secs(10));
        world.tend();
        world.register(1, 100, victim).unwrap();
        let mut heard = heard_at(&world, victim);
        world.pass(NEWS_EVERY);
        world.tend();
        heard += heard_at(&world, victim);
        assert!(heard >= world.registry.members() - 1, "{heard} in way {way}");
        world.check();
    }
}

#[test]
fn who_acknowledges_is_told_of_a_room_in_four_seconds_and_no_more() {
    let mut world = World::new(LIMITS);
    for number in 1..=16 {
        world.register(1, number, v4(number)).unwrap();
        world.acknowledge_all();
    }
    world.pass(Duration::from_secs(20));
    let mut heard = 0;
    for round in 0..1000_u32 {
        // Everybody else moves, all the time.
        world.register(1, 2 + round % 15, v4(1000 + round)).unwrap();
        heard += heard_at(&world, v4(1));
        world.acknowledge_all();
        world.pass(Duration::from_millis(20));
        world.tend();
        heard += heard_at(&world, v4(1));
        world.acknowledge_all();
    }
    assert!((60..=2 * 16 + 20 * 4).contains(&heard), "{heard}");
}

#[test]
fn news_are_told_once_a_second_and_then_the_latest() {
    let mut world = World::new(LIMITS);
    world.register(1, 1, v4(1)).unwrap();
    world.register(1, 2, v4(2)).unwrap();
    world.acknowledge_all();
    let begin = world.now;
    let mut told = 0;
    for round in 0..10 {
        world.register(1, 2, v4(20 + round)).unwrap();
        told += heard_at(&world, v4(1));
        world.acknowledge_all();
    }
    // A second one at once: of the other family, most often.
    assert_eq!(told, 1);
    assert_eq!(world.registry.next_deadline(), Some(begin + NEWS_EVERY));
    world.pass(NEWS_EVERY);
    world.tend();
    assert_eq!(world.told(), [(v4(29), member(1)), (v4(1), member(2))]);
    let slot = world.registry.by_endpoint[&v4(29).endpoint];
    assert_eq!(world.registry.announcement(slot).unwrap().endpoints.first, v4(29).endpoint);
    world.acknowledge_all();
    assert_eq!(world.registry.next_deadline(), Some(begin + LIMITS.expiry));
    // Who leaves has no news any more.
    for round in 0..3 {
        world.register(1, 2, v4(40 + round)).unwrap();
    }
    assert_eq!(world.registry.held_back.len(), 1);
    world.registry.leave(room(1), member(2), &mut Vec::new());
    assert!(world.registry.held_back.is_empty());
    world.check();
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

#[test]
fn ten_thousand_registrations_in_a_thousand_rooms() {
    let mut world = World::new(LIMITS);
    let mut introduced = 0;
    for number in 0..10_000 {
        world.register(number % 1000, number, v4(number)).unwrap();
        introduced += world.told().len();
    }
    // Each of ten with each, both ways.
    assert_eq!(introduced, 1000 * 10 * 9);
    assert_eq!((world.registry.rooms(), world.registry.members()), (1000, 10_000));
    assert_eq!(world.registry.introductions(), 65_536);
    world.check();
    let mut repeated = 0;
    world.pass(REPEATS[0]);
    while world.registry.next_deadline().unwrap() <= world.now {
        world.tend();
        assert!(world.notices.len() <= NOTICES_PER_TEND + 16);
        repeated += world.notices.len();
    }
    assert_eq!(repeated, 65_536);
    world.pass(LIMITS.expiry);
    let mut expired = 0;
    while world.registry.next_deadline().is_some() {
        expired += world.tend();
        assert!(world.notices.len() <= NOTICES_PER_TEND + 16);
    }
    assert_eq!((expired, world.registry.rooms()), (10_000, 0));
    assert_eq!(world.registry.introductions(), 0);
    world.check();
}

#[test]
fn memory_follows_what_is_there_and_not_what_was() {
    let mut world = World::new(Limits { rooms_max: 100, introductions_max: 100, ..LIMITS });
    for number in 0..200_000 {
        // Every one from an endpoint and for a room of its own.
        world.register(number, number, v4(number)).unwrap();
        if number % 100 == 99 {
            // It takes the place of another one, or is refused.
            let _ = world.register(u32::MAX, 1, v4(1 << 20));
            assert_eq!(world.registry.rooms(), 100);
            world.pass(LIMITS.expiry);
            while world.registry.next_deadline().is_some() {
                world.tend();
            }
        }
    }
    let registry = &world.registry;
    // std's tables grow by powers of two, at 7/8 of their room.
    assert!(registry.by_endpoint.capacity() < 512, "{}", registry.by_endpoint.capacity());
    assert!(registry.by_id.capacity() < 512);
    world.check();
}

/// A seeded walk: whatever members do, the tables agree and limits hold.
#[test]
fn any_walk_keeps_the_tables_in_order() {
    let mut world =
        World::new(Limits { rooms_max: 3, members_max: 4, introductions_max: 9, ..LIMITS });
    let mut seed = 1_u64;
    let mut below = |bound: u32| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(seed >> 33).unwrap() % bound
    };
    for _ in 0..30_000 {
        let (in_room, number) = (below(5), below(12));
        match below(10) {
            0..=4 => {
                let contact = if below(3) == 0 {
                    v6(u16::try_from(below(12)).unwrap())
                } else {
                    v4(below(12))
                };
                let _ = world.register(in_room, number, contact);
            }
            5 => {
                world.notices.clear();
                world.registry.leave(room(in_room), member(number), &mut world.notices);
            }
            6 => {
                world.call(number, below(12));
            }
            7 => {
                let from = v4(below(12));
                let _ = world.registry.relay(world.now, from.endpoint, member(number), 100);
            }
            8 => {
                if let Some((contact, _, _, number)) = world.introductions().first().copied() {
                    world.registry.acknowledge(contact.endpoint, number);
                }
            }
            _ => {
                world.pass(Duration::from_millis(u64::from(below(20_000))));
                world.tend();
                world.notices.clear();
            }
        }
        world.check();
        assert!(world.registry.rooms() <= 3 && world.registry.introductions() <= 9);
    }
}
