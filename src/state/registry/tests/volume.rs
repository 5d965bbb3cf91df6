//! Many rooms, many members, and any order of events.

use super::*;

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
