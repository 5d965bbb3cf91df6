//! Punching, simulated: `docs/protocols/peer.md` has the table that the grid here proves.

use super::Punch;
use super::candidates::{Candidate, CandidateKind};
use super::interface::{Action, Config, Families, Introduction};
use super::prospects::{NatFacts, Prospects, prospects};
use super::simulation::{Peer, Setting, World, facts};
use crate::state::seeded::Seeded;
use crate::state::simulated_nat::{KINDS, NatKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const SEEDS: u64 = 20;

fn pairs() -> impl Iterator<Item = [NatKind; 2]> {
    KINDS.into_iter().flat_map(|first| KINDS.into_iter().map(move |second| [first, second]))
}

fn promised(kinds: [NatKind; 2]) -> Prospects {
    prospects(facts(kinds[0], false), facts(kinds[1], false))
}

/// Without a delay nothing can arrive before both have sent, so nothing can take a tuple either.
#[test]
fn connects_within_300_ms_where_nothing_is_lost() {
    for kinds in pairs().filter(|kinds| promised(*kinds) == Prospects::Direct) {
        for seed in 0..SEEDS {
            let mut world = World::new(Setting::new(kinds, seed));
            world.run(Duration::from_secs(3));
            let time = world.connect_time().unwrap_or_else(|| panic!("{kinds:?} {seed}"));
            assert!(time < Duration::from_millis(300), "{kinds:?} {seed}: {time:?}");
            assert!(world.is_direct(), "{kinds:?} {seed}");
        }
    }
}

#[test]
fn the_grid_without_hard_probing() {
    for kinds in pairs() {
        for seed in 0..SEEDS {
            let skew = Duration::from_millis(seed * 30);
            // With an open input the skew has its own test.
            let is_late = kinds.contains(&NatKind::OpenInput);
            let mut world = World::new(Setting {
                loss_percent: 10,
                delay: Duration::from_millis(20),
                skew: if is_late { Duration::ZERO } else { skew },
                ..Setting::new(kinds, seed)
            });
            world.run(Duration::from_secs(15));
            match promised(kinds) {
                Prospects::Direct => assert!(world.is_direct(), "{kinds:?} {seed}"),
                _ => assert!(world.is_relayed(), "{kinds:?} {seed}"),
            }
        }
    }
}

fn has_opened(world: &World) -> bool {
    let opens = |action: &Action| matches!(action, Action::Open(_));
    world.peers.iter().any(|peer| peer.actions.iter().any(|(_, action)| opens(action)))
}

#[test]
fn the_grid_with_hard_probing() {
    for kinds in pairs().filter(|kinds| promised(*kinds) != Prospects::Direct) {
        let mut failed = Vec::new();
        for seed in 0..SEEDS {
            let mut world = World::new(Setting {
                tries_hard: true,
                loss_percent: 10,
                delay: Duration::from_millis(20),
                ..Setting::new(kinds, seed)
            });
            world.run(Duration::from_secs(25));
            if promised(kinds) == Prospects::RelayOnly {
                assert!(world.is_relayed(), "{kinds:?} {seed}");
                assert!(!has_opened(&world), "symmetric to symmetric is not worth a socket");
                continue;
            }
            assert!(has_opened(&world));
            if !world.is_direct() {
                failed.push(seed);
                assert!(world.is_relayed(), "{kinds:?} {seed}");
            }
        }
        // An open input spoils half of the meetings: one attempt in 58 fails, else one in 9,300.
        // Two of them leave those whose pings meet on the way.
        let is_open =
            |kind: &&NatKind| matches!(kind, NatKind::OpenInput | NatKind::SymmetricOpenInput);
        let allowed = match kinds.iter().filter(is_open).count() {
            0 => 0,
            1 => 2,
            _ => continue,
        };
        assert!(failed.len() <= allowed, "{kinds:?}: {failed:?}");
    }
}

/// Without an open input one attempt in 9,300 fails, with one, on either side, one in 58.
#[test]
fn an_open_input_costs_one_hard_attempt_in_fifty() {
    const ATTEMPTS: u64 = 300;
    for (kinds, allowed) in [
        ([NatKind::Port, NatKind::Symmetric], 0),
        ([NatKind::OpenInput, NatKind::Symmetric], ATTEMPTS / 25),
        ([NatKind::Port, NatKind::SymmetricOpenInput], ATTEMPTS / 25),
    ] {
        let mut direct = 0;
        for seed in 0..ATTEMPTS {
            let mut world = World::new(Setting {
                tries_hard: true,
                delay: Duration::from_millis(20),
                ..Setting::new(kinds, seed)
            });
            world.run(Duration::from_secs(25));
            direct += u64::from(world.is_direct());
        }
        assert!(ATTEMPTS - direct <= allowed, "{kinds:?}: {direct} of {ATTEMPTS}");
    }
}

/// What came early has taken the tuple. All the pings of the first try are in vain; when both sides
/// have been silent for long enough, the server tells both at the same moment.
#[test]
fn an_open_input_and_a_late_start_are_cured_by_the_next_introduction() {
    for kinds in [[NatKind::Port, NatKind::OpenInput], [NatKind::OpenInput, NatKind::OpenInput]] {
        for seed in 0..SEEDS {
            let mut world = World::new(Setting {
                delay: Duration::from_millis(20),
                skew: Duration::from_millis(600),
                ..Setting::new(kinds, seed)
            });
            world.run(Duration::from_secs(15));
            assert!(world.is_relayed(), "{kinds:?} {seed}");
            world.run(Duration::from_secs(75));
            assert!(world.is_direct(), "{kinds:?} {seed}");
        }
    }
}

/// With a round trip of 600 ms several sockets are met before either side knows of one, and the
/// sides may choose different ones.
#[test]
fn two_meetings_at_once_end_on_one_path() {
    for seed in 0..3 * SEEDS {
        let mut world = World::new(Setting {
            tries_hard: true,
            delay: Duration::from_millis(300),
            ..Setting::new([NatKind::Port, NatKind::Symmetric], seed)
        });
        for _ in 0..300 {
            if world.connect_time().is_none() {
                world.run(ms(100));
            }
        }
        // From the first moment on both are heard, whichever path each of them sends on.
        world.run(ms(800));
        assert!(world.is_direct(), "{seed}");
        let time = world.connect_time();
        world.run(Duration::from_secs(30));
        assert!(world.is_direct(), "{seed} {time:?}");
    }
}

#[test]
fn a_hard_path_that_breaks_is_found_again_and_leaks_no_socket() {
    for seed in 0..SEEDS {
        let mut world = World::new(Setting {
            tries_hard: true,
            delay: Duration::from_millis(20),
            ..Setting::new([NatKind::Port, NatKind::Symmetric], seed)
        });
        world.run(Duration::from_secs(30));
        assert!(world.is_direct(), "{seed}");
        assert_eq!(world.peers[1].open_sockets(), 1, "{seed}");
        world.peers[1].nat.flush();
        world.run(Duration::from_secs(80));
        assert!(world.is_direct(), "{seed}");
        assert_eq!(world.peers[1].open_sockets(), 1, "{seed}");
        assert_eq!(world.peers[0].open_sockets(), 0);
    }
}

/// The late start has given the main socket behind the open input another port. Where that side leads,
/// and so scans, the attempt is in vain; the next introduction cures it.
#[test]
fn one_open_input_and_a_late_start_are_cured_by_hard_probing_where_the_other_side_scans() {
    for kinds in [[NatKind::Port, NatKind::OpenInput], [NatKind::OpenInput, NatKind::Port]] {
        let (mut tried, mut direct) = (0, 0);
        for seed in 0..2 * SEEDS {
            let mut world = World::new(Setting {
                tries_hard: true,
                delay: Duration::from_millis(20),
                skew: Duration::from_millis(600),
                ..Setting::new(kinds, seed)
            });
            let leads = |peer: &&Peer| peer.punch.config.leads;
            let scanning = world.peers.iter().find(leads).unwrap().nat.kind;
            world.run(Duration::from_secs(26));
            assert!(world.is_direct() || world.is_relayed(), "{kinds:?} {seed}");
            if scanning == NatKind::Port {
                tried += 1;
                direct += u64::from(world.is_direct());
            }
            world.run(Duration::from_secs(75));
            assert!(world.is_direct(), "{kinds:?} {seed}");
        }
        assert!(tried >= SEEDS / 2 && direct >= tried - 2, "{kinds:?}: {direct} of {tried}");
    }
}

#[test]
fn two_hosts_of_one_network_take_the_short_way() {
    for seed in 0..SEEDS {
        let mut world = World::new(Setting {
            same_lan: true,
            loss_percent: 10,
            ..Setting::new([NatKind::Symmetric, NatKind::Symmetric], seed)
        });
        world.run(Duration::from_secs(3));
        assert!(world.is_direct(), "{seed}");
        for peer in &world.peers {
            assert!(peer.path().unwrap().endpoint.to_string().starts_with("10.1.0."));
        }
    }
}

#[test]
fn a_path_is_kept_for_an_hour_of_loss() {
    for kinds in [[NatKind::Port, NatKind::Port], [NatKind::Full, NatKind::Symmetric]] {
        let mut world = World::new(Setting { loss_percent: 10, ..Setting::new(kinds, 1) });
        world.run(Duration::from_secs(5));
        let before: Vec<_> = world.peers.iter().map(|peer| peer.actions.len()).collect();
        world.run(Duration::from_secs(3600));
        assert!(world.is_direct());
        let after: Vec<_> = world.peers.iter().map(|peer| peer.actions.len()).collect();
        assert_eq!(before, after, "{kinds:?}: {:?}", world.peers);
        for peer in &world.peers {
            assert!(peer.pings < 400, "{} pings", peer.pings);
        }
    }
}

#[test]
fn a_nat_that_forgets_everything_costs_a_minute_at_most() {
    for kinds in pairs().filter(|kinds| promised(*kinds) == Prospects::Direct) {
        for seed in 0..SEEDS {
            for flushed in [0, 1] {
                let mut world = World::new(Setting {
                    delay: Duration::from_millis(20),
                    ..Setting::new(kinds, seed)
                });
                world.run(Duration::from_secs(5));
                assert!(world.is_direct(), "{kinds:?} {seed}");
                world.peers[flushed].nat.flush();
                world.run(Duration::from_secs(60));
                assert!(world.is_direct(), "{kinds:?} {seed} {flushed}");
            }
        }
    }
}

const FOLLOWER: Config = Config {
    families: Families::Both,
    leads: false,
    relay: false,
    keepalive: Duration::from_secs(15),
    seed: 1,
};
const LEADER: Config = Config { leads: true, ..FOLLOWER };

#[allow(clippy::disallowed_methods)] // Tests count from whatever instant they start at.
fn start() -> Instant {
    Instant::now()
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn endpoint(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn introduction(hosts: &[&str], seen: &[&str], start: Instant) -> Introduction {
    let candidates = |list: &[&str], kind| {
        let all = list.iter().map(|one| Candidate { endpoint: endpoint(one), kind });
        all.collect::<Vec<_>>()
    };
    let mut all = candidates(hosts, CandidateKind::Host);
    all.extend(candidates(seen, CandidateKind::Seen));
    let unknown = NatFacts::default();
    Introduction { candidates: all, mine: unknown, theirs: unknown, start }
}

/// Everything that is to be done from `from` until `end` when nothing is heard.
fn all_until(punch: &mut Punch, from: Instant, end: Instant) -> Vec<(Instant, Action)> {
    let mut actions = Vec::new();
    let mut now = from;
    while now <= end {
        while let Some(action) = punch.poll(now, true) {
            actions.push((now, action));
        }
        let Some(next) = punch.next_deadline() else {
            break;
        };
        assert!(next > now);
        now = next;
    }
    actions
}

fn pings(actions: &[(Instant, Action)]) -> Vec<(Instant, u16, SocketAddr, u64)> {
    let ping = |(at, action): &(Instant, Action)| match action {
        Action::Ping { socket, to, tx } => Some((*at, *socket, *to, *tx)),
        _ => None,
    };
    actions.iter().filter_map(ping).collect()
}

/// A punch with a path to 203.0.113.12:7, found at the start.
fn connected(config: Config, begin: Instant) -> Punch {
    let mut punch = Punch::new(config);
    let peer = "203.0.113.12:7";
    punch.introduce(&introduction(&["10.0.0.9:7"], &[peer], begin), begin);
    let found = begin + ms(20);
    let sent = pings(&all_until(&mut punch, begin, found));
    let (_, socket, to, tx) = sent[1];
    assert_eq!(to, endpoint(peer));
    assert!(punch.pong_heard(tx, to, socket, endpoint("203.0.113.11:5"), found));
    assert!(matches!(punch.poll(found, true), Some(Action::Path(_))));
    let path = punch.path().unwrap();
    assert_eq!((path.endpoint, path.rtt), (to, Some(Duration::ZERO)));
    assert_eq!(path.seen, Some(endpoint("203.0.113.11:5")));
    punch
}

#[test]
fn pings_in_order_and_in_pace_and_gives_up() {
    let begin = start();
    let mut punch = Punch::new(FOLLOWER);
    let hosts = ["10.0.0.9:7", "[2001:db8::9]:7"];
    punch.introduce(&introduction(&hosts, &["203.0.113.12:7"], begin + ms(300)), begin);
    let actions = all_until(&mut punch, begin, begin + ms(30_000));
    let sent = pings(&actions);
    let times: Vec<_> = sent.iter().map(|(at, ..)| (*at - begin).as_millis()).collect();
    assert_eq!(times[..6], [300, 320, 340, 400, 420, 440]);
    assert_eq!(times[6], 600, "the third round, 200 ms after the second");
    let order: Vec<_> = sent.iter().map(|(_, socket, to, _)| (*socket, to.to_string())).collect();
    assert_eq!(
        order[..3],
        [(1, hosts[1].into()), (0, hosts[0].into()), (0, "203.0.113.12:7".into())]
    );
    // Ten rounds and no more: what does not answer may be no peer at all.
    assert_eq!(sent.len(), 30);
    let (at, last) = actions.last().unwrap();
    assert_eq!((*at, *last), (begin + ms(10_300), Action::Failed));
    assert_eq!(punch.next_deadline(), Some(begin + ms(85_300)), "then it calls again");
}

#[test]
fn a_family_without_a_socket_is_left_out() {
    let begin = start();
    let mut punch = Punch::new(Config { families: Families::V6, ..FOLLOWER });
    let hosts = ["10.0.0.9:7", "[2001:db8::9]:7"];
    punch.introduce(&introduction(&hosts, &["203.0.113.12:7"], begin), begin);
    let sent = pings(&all_until(&mut punch, begin, begin + ms(20_000)));
    assert_eq!(sent.len(), 10);
    assert!(sent.iter().all(|(_, socket, to, _)| *socket == 1 && to.is_ipv6()));
}

#[test]
fn a_relay_is_used_meanwhile_and_a_path_may_follow() {
    let begin = start();
    let mut punch = Punch::new(Config { relay: true, ..FOLLOWER });
    punch.introduce(&introduction(&[], &["203.0.113.12:7"], begin), begin);
    let actions = all_until(&mut punch, begin, begin + ms(5_000));
    assert!(actions.contains(&(begin + ms(2_000), Action::Relay)));
    let (_, socket, to, tx) = *pings(&actions).last().unwrap();
    punch.pong_heard(tx, to, socket, to, begin + ms(5_010));
    assert!(matches!(punch.poll(begin + ms(5_010), true), Some(Action::Path(_))));
}

#[test]
fn a_ping_from_a_new_source_is_pinged_back_at_once() {
    let begin = start();
    let mut punch = Punch::new(FOLLOWER);
    punch.introduce(&introduction(&[], &["203.0.113.12:7"], begin), begin);
    all_until(&mut punch, begin, begin);
    let now = begin + ms(3);
    let source = endpoint("203.0.113.12:4711");
    assert!(punch.ping_heard(1, source, 0, now));
    let Some(Action::Ping { socket: 0, to, tx }) = punch.poll(now, true) else {
        panic!("no ping");
    };
    assert_eq!(to, source);
    assert!(punch.pong_heard(tx, source, 0, source, now + ms(1)));
    assert_eq!(punch.path().unwrap().kind, CandidateKind::PeerReflexive);
}

#[test]
fn a_ping_that_is_repeated_from_elsewhere_is_not_answered() {
    let begin = start();
    let mut punch = connected(FOLLOWER, begin);
    let source = endpoint("203.0.113.12:7");
    assert!(punch.ping_heard(77, source, 0, begin + ms(30)));
    assert!(punch.ping_heard(77, source, 0, begin + ms(31)), "the network may double it");
    assert!(!punch.ping_heard(77, endpoint("198.51.100.1:53"), 0, begin + ms(32)));
    assert!(!punch.ping_heard(77, source, 1, begin + ms(32)));
}

#[test]
fn another_way_is_not_looked_at_while_the_path_is_alive() {
    let begin = start();
    for (quiet, is_looked_at) in [(900, false), (1_000, true)] {
        let mut punch = connected(FOLLOWER, begin);
        let (alive, source) = (begin + ms(3_000), endpoint("203.0.113.12:9"));
        all_until(&mut punch, begin + ms(20), alive);
        punch.data_heard(endpoint("203.0.113.12:7"), 0, alive);
        let now = alive + ms(quiet);
        assert!(punch.ping_heard(5, source, 0, now), "it is answered all the same");
        let action = punch.poll(now, true);
        let is_ping = matches!(action, Some(Action::Ping { to, .. }) if to == source);
        assert_eq!(is_ping, is_looked_at, "{quiet}");
    }
}

#[test]
fn only_the_answer_to_a_ping_makes_a_path() {
    let begin = start();
    let mut punch = Punch::new(FOLLOWER);
    let peer = endpoint("203.0.113.12:7");
    punch.introduce(&introduction(&[], &["203.0.113.12:7"], begin), begin);
    let Some(Action::Ping { tx, .. }) = punch.poll(begin, true) else {
        panic!("no ping");
    };
    assert!(!punch.pong_heard(tx ^ 1, peer, 0, peer, begin));
    // From elsewhere: that is pinged, and becomes the path if it answers.
    let elsewhere = endpoint("203.0.113.12:8");
    assert!(punch.pong_heard(tx, elsewhere, 0, peer, begin));
    assert_eq!(punch.path(), None);
    assert!(!punch.pong_heard(tx, peer, 0, peer, begin), "answered already");
    let Some(Action::Ping { tx, to, .. }) = punch.poll(begin, true) else {
        panic!("no ping");
    };
    assert_eq!(to, elsewhere);
    assert!(punch.pong_heard(tx, elsewhere, 0, peer, begin));
    assert_eq!(punch.path().unwrap().endpoint, elsewhere);
}

#[test]
fn a_better_candidate_takes_the_path_within_a_second_only() {
    for (after, moves) in [(900, true), (1_100, false)] {
        let begin = start();
        let mut punch = connected(FOLLOWER, begin);
        let sent = pings(&all_until(&mut punch, begin + ms(20), begin + ms(20 + after)));
        let host = endpoint("10.0.0.9:7");
        assert!(sent.iter().all(|(_, _, to, _)| *to == host), "worse ones are not pinged");
        let (_, socket, to, tx) = *sent.last().unwrap();
        punch.pong_heard(tx, to, socket, to, begin + ms(20 + after));
        assert_eq!(punch.path().unwrap().endpoint == host, moves, "{after}");
    }
}

#[test]
fn a_silent_path_is_pinged_and_then_probed_anew() {
    let begin = start();
    let mut punch = connected(FOLLOWER, begin);
    let actions = all_until(&mut punch, begin + ms(20), begin + ms(60_000));
    let at = |time: u64| begin + ms(time);
    let keepalives: Vec<_> = pings(&actions)
        .into_iter()
        .filter(|(when, ..)| *when > at(2_000) && *when < at(45_000))
        .map(|(when, _, to, _)| ((when - begin).as_millis(), to))
        .collect();
    let peer = endpoint("203.0.113.12:7");
    assert_eq!(keepalives, [(15_020, peer), (30_020, peer)]);
    let others: Vec<_> =
        actions.iter().filter(|(_, action)| !matches!(action, Action::Ping { .. })).collect();
    assert_eq!(
        others,
        [&(at(45_020), Action::Call), &(at(47_020), Action::Lost), &(at(55_020), Action::Failed)]
    );
    assert_eq!(punch.path(), None);

    // Data is a sign of life as good as a pong.
    let mut punch = connected(FOLLOWER, begin);
    all_until(&mut punch, begin + ms(20), at(40_000));
    punch.data_heard(peer, 0, at(40_000));
    let actions = all_until(&mut punch, at(40_000), at(80_000));
    assert!(!actions.iter().any(|(_, action)| *action == Action::Call));
}

#[test]
fn data_from_elsewhere_moves_the_follower_and_makes_the_leader_look() {
    let begin = start();
    let (now, source) = (begin + ms(5_000), endpoint("203.0.113.12:9"));
    let mut follower = connected(FOLLOWER, begin);
    all_until(&mut follower, begin + ms(20), now);
    follower.data_heard(source, 0, now);
    assert_eq!(follower.path().unwrap().endpoint, source);

    let mut leader = connected(LEADER, begin);
    all_until(&mut leader, begin + ms(20), now);
    // Its path is silent, so it is in doubt when the other way answers: both are asked.
    leader.data_heard(source, 0, now);
    assert_eq!(leader.path().unwrap().endpoint, endpoint("203.0.113.12:7"));
    let Some(Action::Ping { to, tx, .. }) = leader.poll(now, true) else {
        panic!("no ping");
    };
    assert_eq!(to, source);
    leader.pong_heard(tx, source, 0, source, now + ms(1));
    let asked = pings(&all_until(&mut leader, now + ms(1), now + ms(400)));
    let other = asked.iter().find(|(_, _, to, _)| *to == source).unwrap();
    assert_eq!(asked[0].2, endpoint("203.0.113.12:7"));
    leader.pong_heard(other.3, source, 0, source, now + ms(400));
    assert_eq!(leader.path().unwrap().endpoint, source);

    // While the path is alive, nothing happens.
    let mut leader = connected(LEADER, begin);
    all_until(&mut leader, begin + ms(20), now);
    leader.data_heard(endpoint("203.0.113.12:7"), 0, now);
    leader.data_heard(source, 0, now);
    let Some(Action::Ping { tx, .. }) = leader.poll(now, true) else {
        panic!("no ping");
    };
    leader.pong_heard(tx, source, 0, source, now + ms(1));
    assert!(pings(&all_until(&mut leader, now + ms(1), now + ms(400))).is_empty());
    assert_eq!(leader.path().unwrap().endpoint, endpoint("203.0.113.12:7"));
}

#[test]
fn one_birthday_attempt_at_a_time() {
    let begin = start();
    let mut punch = Punch::new(FOLLOWER);
    let by_port = facts(NatKind::Port, true);
    let symmetric = facts(NatKind::Symmetric, true);
    let mut hard = introduction(&[], &["203.0.113.12:7"], begin);
    (hard.mine, hard.theirs) = (symmetric, by_port);
    punch.introduce(&hard, begin);
    let mut now = begin;
    let mut called = None;
    while now < begin + ms(40_000) {
        // Another member's attempt ends after 30 s.
        let may_try_hard = now >= begin + ms(30_000);
        while let Some(action) = punch.poll(now, may_try_hard) {
            assert!(!matches!(action, Action::Open(_)));
            if action == Action::Call {
                called = called.or(Some(now));
            }
        }
        now = punch.next_deadline().unwrap();
    }
    let called = called.unwrap();
    assert!(called >= begin + ms(30_000) && called < begin + ms(31_000));
    // Both begin together at the next introduction.
    punch.introduce(&Introduction { start: now, ..hard.clone() }, now);
    let actions = all_until(&mut punch, now, now + ms(20_000));
    assert!(actions.contains(&(now + ms(1_000), Action::Open(256))));
    assert!(actions.iter().any(|(_, action)| *action == Action::Failed));
    let closed = actions.iter().filter(|(_, action)| *action == Action::Close(None)).count();
    assert_eq!(closed, 1);
    // An introduction in the middle of an attempt does not end it.
    let mut other = Punch::new(FOLLOWER);
    other.introduce(&Introduction { start: now, ..hard.clone() }, now);
    all_until(&mut other, now, now + ms(5_000));
    other.introduce(&Introduction { start: now + ms(5_000), ..hard.clone() }, now + ms(5_000));
    let sent = pings(&all_until(&mut other, now + ms(5_000), now + ms(30_000)));
    assert!(sent.iter().any(|(_, socket, ..)| *socket == 257));
    assert!(!other.is_trying_hard());
    // Another introduction soon after brings no other flood.
    now += ms(20_000);
    punch.introduce(&Introduction { start: now, ..hard }, now);
    let actions = all_until(&mut punch, now, now + ms(20_000));
    assert!(!actions.iter().any(|(_, action)| matches!(action, Action::Open(_))));
}

/// Whatever comes in whatever order: nothing goes round, and at one instant no more pings go out than
/// there are candidates, and what a late birthday attempt may catch up with.
#[test]
fn no_order_of_events_goes_round() {
    for seed in 0..200 {
        let mut random = Seeded::new(seed);
        let begin = start();
        let mut now = begin;
        let config = Config { leads: seed % 2 == 0, relay: seed % 3 == 0, ..FOLLOWER };
        let mut punch = Punch::new(config);
        let mut sent: Vec<(u16, SocketAddr, u64)> = Vec::new();
        for _ in 0..2_000 {
            let port = random.below(40);
            let source = endpoint(&format!("203.0.113.12:{}", 7 + port));
            let socket = if random.below(4) == 0 { 2 + u16::try_from(port).unwrap() } else { 0 };
            let number = random.next_u64();
            match random.below(40) {
                0 => {
                    let mut introduction =
                        introduction(&["10.0.0.9:7"], &["203.0.113.12:7"], now + ms(number % 900));
                    introduction.mine = facts(KINDS[usize::from(port % 6 == 0)], true);
                    introduction.theirs = facts(NatKind::Symmetric, true);
                    punch.introduce(&introduction, now);
                }
                1 => {
                    punch.recheck(now);
                }
                2..=10 => {
                    punch.ping_heard(number, source, socket, now);
                }
                11..=15 => {
                    if let Some((socket, to, tx)) = sent.last().copied() {
                        punch.pong_heard(tx, to, socket, source, now);
                    }
                }
                16..=18 => {
                    if let Some((_, _, tx)) = sent.last().copied() {
                        punch.pong_heard(tx, source, socket, source, now);
                    }
                }
                19..=21 => {
                    punch.data_heard(source, socket, now);
                }
                _ => now += ms(number % 300),
            }
            for turn in 0.. {
                assert!(turn < 32 + 21 + 8, "goes round");
                match punch.poll(now, number % 2 == 0) {
                    Some(Action::Ping { socket, to, tx }) => sent.push((socket, to, tx)),
                    Some(_) => {}
                    None => break,
                }
            }
            assert!(punch.next_deadline().is_none_or(|next| next > now), "{seed}");
        }
    }
}

/// Pings whose source is forged and new each time: less goes out than came in.
#[test]
fn a_flood_of_pings_is_not_passed_on() {
    let begin = start();
    for sources in [1, 4_000] {
        let mut punch = Punch::new(FOLLOWER);
        punch.introduce(&introduction(&[], &["203.0.113.12:7"], begin + ms(900)), begin);
        let mut sent = 0;
        for number in 0..4_000 {
            let now = begin + Duration::from_micros(number * 200);
            let octet = u8::try_from(number % sources / 250).unwrap();
            let port = u16::try_from(1_000 + number % sources % 250).unwrap();
            let source = SocketAddr::from(([198, 51, 100, octet], port));
            assert!(punch.ping_heard(number, source, 0, now));
            // One that comes late finds many due.
            if number % 100 == 99 {
                sent += std::iter::from_fn(|| punch.poll(now, true)).count();
            }
        }
        let expected = if sources == 1 { 20..=64 } else { 500..=640 };
        assert!(expected.contains(&sent), "{sources}: {sent}");
    }
}
