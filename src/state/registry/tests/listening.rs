//! How much an endpoint is told.

use super::*;

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
                world.register_as(&Entry { sealed, ..entry(number, victim) }).unwrap();
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
    world.two_meet();
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
