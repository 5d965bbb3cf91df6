//! Punching, simulated: `docs/protocols/peer.md` has the table that the grid here proves.

use super::interface::Action;
use super::prospects::{Prospects, prospects};
use super::simulation::{Setting, World, facts};
use crate::state::simulated_nat::{KINDS, NatKind};
use std::time::Duration;

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
        // An open input spoils half of the meetings: one in 60 attempts fails, else one in 3,400.
        let allowed = if kinds.contains(&NatKind::OpenInput) { 2 } else { 0 };
        assert!(failed.len() <= allowed, "{kinds:?}: {failed:?}");
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

/// With two open inputs whichever ping is first spoils each meeting.
#[test]
fn one_open_input_and_a_late_start_are_cured_by_hard_probing_too() {
    for kinds in [[NatKind::Port, NatKind::OpenInput], [NatKind::OpenInput, NatKind::Port]] {
        let mut direct = 0;
        for seed in 0..SEEDS {
            let mut world = World::new(Setting {
                tries_hard: true,
                delay: Duration::from_millis(20),
                skew: Duration::from_millis(600),
                ..Setting::new(kinds, seed)
            });
            world.run(Duration::from_secs(26));
            direct += u64::from(world.is_direct());
            assert!(world.is_direct() || world.is_relayed(), "{kinds:?} {seed}");
        }
        assert!(direct >= SEEDS - 2, "{kinds:?}: {direct}");
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
