//! Rooms that several servers share.

use super::super::elsewhere::{Found, Seen};
use super::super::outcome::NotRelayed;
use super::cluster::{Cluster, id};
use super::*;
use crate::wire::rendezvous::shared::{Place, Record};

#[test]
fn members_of_two_servers_are_introduced_to_each_other() {
    let mut cluster = Cluster::new(2, LIMITS);
    cluster.register(0, 1, 1, v4(1));
    assert_eq!(cluster.told(), []);
    cluster.register(1, 1, 2, v4(2));
    assert_eq!(cluster.told(), [(0, v4(1), member(2)), (1, v4(2), member(1))]);
    // A third hears of both, from its own server, and each of them from its own.
    cluster.register(1, 1, 3, v4(3));
    let expected = [
        (0, v4(1), member(3)),
        (1, v4(2), member(3)),
        (1, v4(3), member(1)),
        (1, v4(3), member(2)),
    ];
    assert_eq!(cluster.told(), expected);
    for world in &cluster.servers {
        let registry = &world.registry;
        assert_eq!(registry.members() + registry.members_elsewhere(), 3);
    }
    // A refresh is no news, anywhere, however often.
    for _ in 0..20 {
        cluster.pass(Duration::from_secs(15));
        cluster.register(0, 1, 1, v4(1));
        cluster.register(1, 1, 2, v4(2));
        cluster.register(1, 1, 3, v4(3));
        assert_eq!((cluster.told(), cluster.gone()), (vec![], vec![]));
    }
    // Another room is another world, and where nobody is nobody is told.
    cluster.register(0, 2, 4, v4(4));
    assert_eq!(cluster.told(), []);
    assert_eq!(cluster.servers[1].registry.rooms(), 1);
}

#[test]
fn only_who_is_here_is_reached_by_the_relay() {
    let mut cluster = Cluster::new(2, LIMITS);
    cluster.register(0, 1, 1, v4(1));
    cluster.register(1, 1, 2, v4(2));
    cluster.register(1, 1, 3, v4(3));
    for (_, to, about, _, is_here) in &cluster.told {
        let is_at_one = |number| number != 1;
        let to_number = to.endpoint.port() - 1000;
        assert_eq!(*is_here, is_at_one(to_number) == is_at_one(u16::from(about.0[7])));
    }
    let World { registry, now, .. } = &mut cluster.servers[1];
    let refused = registry.relay(*now, v4(2).endpoint, member(1), 10);
    assert_eq!(refused, Err(NotRelayed::NotThere));
    assert!(registry.relay(*now, v4(2).endpoint, member(3), 10).is_ok());
}

#[test]
fn the_way_to_the_store_counts_for_the_start() {
    let mut cluster = Cluster::new(2, LIMITS);
    cluster.servers[1].registry.set_store_rtt(Duration::from_millis(80));
    cluster.register(0, 1, 1, v4(1));
    cluster.register(1, 1, 2, v4(2));
    let starts: Vec<_> = cluster.told.iter().map(|told| (told.0, told.3)).collect();
    // Both are 20 ms from their servers: whose server is nearer to the store waits.
    assert!(starts.contains(&(0, 40)) && starts.contains(&(1, 0)), "{starts:?}");
}

#[test]
fn news_of_a_member_are_told_at_every_server() {
    let mut cluster = Cluster::new(3, LIMITS);
    for server in 0..3 {
        let number = u32::try_from(server).unwrap();
        cluster.register(server, 1, number, v4(number));
    }
    cluster.told();
    // Its NAT has rebound.
    cluster.pass(NEWS_EVERY);
    cluster.register(0, 1, 0, v4(50));
    let told = cluster.told();
    for (server, to, about) in [(1, v4(1), 0), (2, v4(2), 0), (0, v4(50), 1), (0, v4(50), 2)] {
        assert!(told.contains(&(server, to, member(about))), "{told:?}");
    }
    assert_eq!(told.len(), 4);
    let registry = &cluster.servers[1].registry;
    let slot = registry.find(room(1), member(0)).unwrap();
    assert_eq!(registry.announcement(slot).unwrap().endpoints.first, v4(50).endpoint);
}

#[test]
fn who_leaves_is_gone_everywhere_and_who_moves_is_not() {
    let mut cluster = Cluster::new(2, LIMITS);
    cluster.register(0, 1, 1, v4(1));
    cluster.register(1, 1, 2, v4(2));
    cluster.register(1, 1, 3, v4(3));
    cluster.told();
    cluster.leave(1, 1, 3);
    let gone = cluster.gone();
    assert!(gone.contains(&(0, v4(1), member(3))) && gone.contains(&(1, v4(2), member(3))));
    // Member 2 goes on at the other server, without a word to the first.
    cluster.register(0, 1, 2, v4(22));
    assert!(cluster.told().contains(&(0, v4(1), member(2))));
    for _ in 0..8 {
        cluster.pass(Duration::from_secs(15));
        cluster.register(0, 1, 1, v4(1));
        cluster.register(0, 1, 2, v4(22));
    }
    // Where it has gone from, nobody refreshes what is known of the others.
    assert!(cluster.gone().iter().all(|(server, ..)| *server == 1));
    assert_eq!(cluster.servers[1].registry.rooms(), 0, "nobody is there any more");
    // One that says nothing any more is.
    for _ in 0..5 {
        cluster.pass(Duration::from_secs(15));
        cluster.register(0, 1, 1, v4(1));
    }
    assert_eq!(cluster.gone(), [(0, v4(1), member(2))]);
    assert_eq!(cluster.rooms[&room(1)].len(), 1);
}

#[test]
fn a_member_at_two_servers_is_gone_when_it_is_at_none() {
    let mut cluster = Cluster::new(2, LIMITS);
    cluster.register(0, 1, 1, v4(1));
    cluster.register(0, 1, 2, v4(2));
    // The same socket, as the other server sees it.
    cluster.register(1, 1, 2, v4(20));
    cluster.register(1, 1, 3, v4(3));
    cluster.told();
    for _ in 0..10 {
        cluster.pass(Duration::from_secs(15));
        for (server, number, contact) in
            [(0, 1, v4(1)), (0, 2, v4(2)), (1, 2, v4(20)), (1, 3, v4(3))]
        {
            cluster.register(server, 1, number, contact);
        }
        assert_eq!((cluster.told(), cluster.gone()), (vec![], vec![]), "no news");
    }
    cluster.leave(0, 1, 2);
    assert_eq!(cluster.gone(), []);
    let slot = cluster.servers[0].registry.find(room(1), member(2)).unwrap();
    let about = cluster.servers[0].registry.announcement(slot).unwrap();
    assert_eq!((about.is_here, about.endpoints.first), (false, v4(20).endpoint));
    cluster.leave(1, 1, 2);
    let gone = cluster.gone();
    assert!(gone.contains(&(0, v4(1), member(2))) && gone.contains(&(1, v4(3), member(2))));
}

#[test]
fn a_call_reaches_a_member_elsewhere() {
    let mut cluster = Cluster::new(2, LIMITS);
    cluster.register(0, 1, 1, v4(1));
    cluster.register(1, 1, 2, v4(2));
    cluster.told();
    assert_eq!(cluster.servers[0].call(1, 2), Called::Introduced);
    cluster.settle(0);
    assert_eq!(cluster.told(), [(0, v4(1), member(2)), (1, v4(2), member(1))]);
    // Both at once: each is told once.
    cluster.pass(calls::CALL_EVERY);
    assert_eq!(cluster.servers[0].call(1, 2), Called::Introduced);
    assert_eq!(cluster.servers[1].call(2, 1), Called::Introduced);
    let waiting = std::mem::take(&mut cluster.servers[1].notices);
    cluster.settle(0);
    cluster.servers[1].notices = waiting;
    cluster.settle(1);
    assert_eq!(cluster.told(), [(0, v4(1), member(2)), (1, v4(2), member(1))]);
    assert_eq!(cluster.servers[0].call(1, 3), Called::NotThere);
    assert_eq!(cluster.servers[0].call(2, 1), Called::NotAMember, "it is one elsewhere");
}

#[test]
fn what_the_store_has_missed_is_made_up_for_with_the_next_refresh() {
    let mut cluster = Cluster::new(2, LIMITS);
    cluster.register(0, 1, 1, v4(1));
    cluster.cut_off = vec![0, 1];
    cluster.register(1, 1, 2, v4(2));
    cluster.register(1, 1, 3, v4(3));
    // Those of one server meet all the same.
    assert_eq!(cluster.told(), [(1, v4(2), member(3)), (1, v4(3), member(2))]);
    // And then the store is empty.
    cluster.rooms.clear();
    cluster.cut_off.clear();
    cluster.pass(Duration::from_secs(15));
    cluster.register(0, 1, 1, v4(1));
    assert_eq!(cluster.told(), []);
    cluster.register(1, 1, 2, v4(2));
    cluster.register(1, 1, 3, v4(3));
    let expected = [
        (0, v4(1), member(2)),
        (0, v4(1), member(3)),
        (1, v4(2), member(1)),
        (1, v4(3), member(1)),
    ];
    assert_eq!(cluster.told(), expected);
    // Without the store for long, who is elsewhere is gone, and comes back with it.
    cluster.cut_off = vec![0, 1];
    for _ in 0..5 {
        cluster.pass(Duration::from_secs(15));
        cluster.register(0, 1, 1, v4(1));
        cluster.register(1, 1, 2, v4(2));
        cluster.register(1, 1, 3, v4(3));
    }
    let gone = cluster.gone();
    assert!(gone.contains(&(0, v4(1), member(2))) && gone.contains(&(1, v4(2), member(1))));
    assert_eq!(cluster.told(), []);
    cluster.cut_off.clear();
    cluster.pass(Duration::from_secs(15));
    cluster.register(0, 1, 1, v4(1));
    cluster.register(1, 1, 2, v4(2));
    cluster.register(1, 1, 3, v4(3));
    assert_eq!(cluster.told(), expected);
}

#[test]
fn members_elsewhere_count_for_a_rooms_limit_and_have_one_themselves() {
    let limits = Limits { members_max: 2, ..LIMITS };
    let mut cluster = Cluster::new(4, limits);
    cluster.register(0, 1, 1, v4(1));
    cluster.register(0, 1, 2, v4(2));
    // The first at a server is taken: it cannot know.
    cluster.register(1, 1, 3, v4(3));
    assert_eq!(cluster.try_register(1, 1, 4, v4(4)), Err(Refusal::RoomFull));
    cluster.register(2, 1, 5, v4(5));
    let registry = &mut cluster.servers[3].registry;
    let (now, mut notices) = (base(), Vec::new());
    registry.register(now, &entry(6, v4(6)), &mut || 1, &mut notices).unwrap();
    let endpoints = Endpoints { first: v4(9).endpoint, second: None };
    let seen: Vec<Seen<'_>> = (0..100)
        .map(|number| Seen {
            place: Place { member: member(100 + number), server: id(9) },
            record: Record { news: 1, rtt_ms: 0, endpoints, sealed: b"" },
            age: Duration::ZERO,
        })
        .collect();
    let found = Found { room: room(1), member: member(6), news: 1, all: &seen };
    assert_eq!(registry.found(now, &found, &mut || 1, &mut notices), 97, "twice --max-members");
    assert_eq!(registry.members_elsewhere(), 3);
    // At eight servers at most.
    let seen: Vec<Seen<'_>> = (10..30)
        .map(|server| Seen { place: Place { member: member(100), server: id(server) }, ..seen[0] })
        .collect();
    let found = Found { all: &seen, ..found };
    // The others are not written down any more, and it is too long ago that they were.
    let now = now + LIMITS.expiry / 3;
    assert_eq!(registry.found(now, &found, &mut || 1, &mut notices), 0);
    let slot = registry.find(room(1), member(100)).unwrap();
    assert_eq!((registry.servers_of(slot).count(), registry.members_elsewhere()), (8, 1));
}

/// A member that is at another server, as the store has it.
fn seen_elsewhere() -> Seen<'static> {
    let endpoints = Endpoints { first: v4(9).endpoint, second: None };
    Seen {
        place: Place { member: member(2), server: id(9) },
        record: Record { news: 1, rtt_ms: 0, endpoints, sealed: b"" },
        age: Duration::from_secs(1),
    }
}

#[test]
fn a_store_that_comes_back_empty_takes_nobody_away_who_is_there() {
    let mut cluster = Cluster::new(1, LIMITS);
    let registry = &mut cluster.servers[0].registry;
    let (now, mut notices) = (base(), Vec::new());
    registry.register(now, &entry(1, v4(1)), &mut || 1, &mut notices).unwrap();
    let seen = [seen_elsewhere()];
    let mut found = |after: Duration, all: &[Seen<'_>]| {
        let found = Found { room: room(1), member: member(1), news: 1, all };
        assert_eq!(registry.found(now + after, &found, &mut || 1, &mut notices), 0);
        registry.members_elsewhere()
    };
    assert_eq!(found(Duration::ZERO, &seen), 1);
    assert_eq!(found(Duration::from_secs(1), &[]), 1, "its next refresh writes it down again");
    assert_eq!(found(LIMITS.expiry / 3, &[]), 0, "it has not refreshed");
}

#[test]
fn after_an_outage_others_have_time_to_write_their_members_down_again() {
    let mut cluster = Cluster::new(1, LIMITS);
    let registry = &mut cluster.servers[0].registry;
    let (now, mut notices) = (base(), Vec::new());
    registry.register(now, &entry(1, v4(1)), &mut || 1, &mut notices).unwrap();
    let seen = [seen_elsewhere()];
    let found = Found { room: room(1), member: member(1), news: 1, all: &seen };
    registry.found(now, &found, &mut || 1, &mut notices);
    let found = Found { all: &[], ..found };
    // Away for longer than from one refresh to the next, and back without anything.
    let back = now + LIMITS.expiry / 2;
    registry.store_came_up(back);
    registry.found(back, &found, &mut || 1, &mut notices);
    let later = back + Duration::from_secs(12 + 15);
    registry.found(later, &found, &mut || 1, &mut notices);
    assert_eq!(registry.members_elsewhere(), 1);
    assert!(!notices.iter().any(|notice| matches!(notice, Notice::Gone { .. })));
    let later = back + Duration::from_secs(12) + LIMITS.expiry / 3;
    registry.found(later, &found, &mut || 1, &mut notices);
    assert_eq!(registry.members_elsewhere(), 0, "nobody has written it down");
}

/// A seeded walk over three servers: whatever happens, the tables agree; and once all is quiet each
/// server knows of everybody.
#[test]
fn any_walk_keeps_the_tables_in_order_and_agrees_in_the_end() {
    let mut seed = 1_u64;
    let mut below = |bound: u32| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(seed >> 33).unwrap() % bound
    };
    let mut cluster = Cluster::new(3, Limits { rooms_max: 3, members_max: 6, ..LIMITS });
    for step in 0..6_000 {
        let server = below(3) as usize;
        let (in_room, number) = (below(4), below(8));
        match below(12) {
            0..=5 => {
                let contact = if below(4) == 0 {
                    v6(u16::try_from(below(30)).unwrap())
                } else {
                    v4(below(30))
                };
                let _ = cluster.try_register(server, in_room, number, contact);
            }
            6 => cluster.leave(server, in_room, number),
            7 => {
                cluster.servers[server].call(number, below(8));
                cluster.settle(server);
            }
            8 if step % 7 == 0 => {
                cluster.cut_off = if below(2) == 0 { vec![server] } else { Vec::new() };
                if below(4) == 0 {
                    cluster.rooms.clear();
                }
            }
            _ => cluster.pass(Duration::from_millis(u64::from(below(9_000)))),
        }
    }
    cluster.cut_off.clear();
    // Everybody is gone, and three come back.
    cluster.pass(2 * LIMITS.expiry);
    cluster.pass(2 * LIMITS.expiry);
    for _ in 0..2 {
        cluster.pass(Duration::from_secs(15));
        for server in 0..3 {
            let number = 40 + u32::try_from(server).unwrap();
            cluster.register(server, 1, number, v4(number));
        }
    }
    for world in &cluster.servers {
        let registry = &world.registry;
        assert_eq!((registry.rooms(), registry.members()), (1, 1));
        assert_eq!(registry.members_elsewhere(), 2);
    }
}
