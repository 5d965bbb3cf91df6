//! The relay between members of a room.

use super::super::outcome::NotRelayed;
use super::*;

#[test]
fn only_members_relay_and_only_to_their_room() {
    let mut world =
        World::new(Limits { relay: RelayRates { room: 1000, total: 100_000 }, ..LIMITS });
    world.two_meet();
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
