//! A simulated RFC 5780 server behind each kind of simulated NAT.

use super::lifetime::{Lifetime, LifetimeBounds};
use super::report::Report;
use super::schedule::Schedule;
use super::{Answer, Config, Detection, OTHER_SOCKET, Request};
use crate::state::seeded::Seeded;
use crate::state::simulated_nat::{KINDS, NatKind, SimulatedNat};
use crate::wire::peer::Dependence;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const FIRST: &str = "203.0.113.1:3478";
const FIRST_OTHER_PORT: &str = "203.0.113.1:3479";
const SECOND: &str = "203.0.113.2:3478";
const SECOND_OTHER_PORT: &str = "203.0.113.2:3479";
const DEAD: &str = "203.0.113.9:3478";
const PUBLIC: &str = "203.0.113.11";

fn endpoint(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The world around one host.
#[allow(clippy::struct_excessive_bools)] // Each test sets one of them.
struct World {
    nat: Option<SimulatedNat>,
    hairpins: bool,
    /// The servers have OTHER-ADDRESS and CHANGE-REQUEST.
    has_second_address: bool,
    /// The server answers a CHANGE-REQUEST from where it was asked.
    ignores_changes: bool,
    has_response_port: bool,
    /// Nothing comes from there.
    dead: Vec<&'static str>,
    loss_percent: u32,
    random: Seeded,
    requests: usize,
    took: Duration,
}

impl World {
    fn behind(kind: NatKind) -> World {
        World {
            nat: Some(SimulatedNat::new(kind, PUBLIC, 5)),
            hairpins: false,
            has_second_address: true,
            ignores_changes: false,
            has_response_port: true,
            dead: Vec::new(),
            loss_percent: 0,
            random: Seeded::new(9),
            requests: 0,
            took: Duration::ZERO,
        }
    }

    fn local(&self) -> SocketAddr {
        endpoint(if self.nat.is_some() { "10.1.0.2:5000" } else { "203.0.113.11:5000" })
    }

    #[allow(clippy::disallowed_methods)] // Tests count from whatever instant they start at.
    fn detect(&mut self, servers: &[&str], lifetime: Option<LifetimeBounds>) -> Report {
        let begin = Instant::now();
        let mut now = begin;
        let config = Config {
            servers: servers.iter().map(|server| endpoint(server)).collect(),
            local: self.local(),
            schedule: Schedule::QUICK,
            lifetime,
            seed: self.random.next_u64(),
        };
        let mut detection = Detection::new(config, now);
        loop {
            while let Some(request) = detection.poll(now) {
                self.requests += 1;
                self.send(&mut detection, request, now);
            }
            if let Some(report) = detection.report() {
                assert_eq!(detection.next_deadline(), None);
                self.took = now - begin;
                return *report;
            }
            let next = detection.next_deadline().unwrap();
            assert!(next > now, "a deadline that has passed");
            now = next;
        }
    }

    fn send(&mut self, detection: &mut Detection, request: Request, now: Instant) {
        let mut local = self.local();
        local.set_port(local.port() + request.socket);
        let seen = self.nat.as_mut().map_or(local, |nat| nat.outbound(local, request.to, now));
        if request.to.ip().to_string() == PUBLIC {
            let inside = self
                .nat
                .as_mut()
                .filter(|_| self.hairpins)
                .and_then(|nat| nat.inbound(seen, request.to.port(), now));
            if inside == Some(self.local()) {
                assert!(!detection.request_heard([7; 12], now), "somebody else's");
                assert!(detection.request_heard(request.id, now));
            }
            return;
        }
        let to = request.to.to_string();
        if self.dead.contains(&to.as_str()) || self.is_lost() {
            return;
        }
        let has_changes = self.has_second_address && !self.ignores_changes;
        let mut origin = request.to;
        if request.change_ip && has_changes {
            let ip = if to.starts_with("203.0.113.1:") { SECOND } else { FIRST };
            origin.set_ip(endpoint(ip).ip());
        }
        if request.change_port && has_changes {
            origin.set_port(if origin.port() == 3478 { 3479 } else { 3478 });
        }
        let other = match to.as_str() {
            _ if !self.has_second_address => None,
            FIRST => Some(endpoint(SECOND_OTHER_PORT)),
            _ => None,
        };
        if self.dead.contains(&origin.to_string().as_str()) || self.is_lost() {
            return;
        }
        let mut target = seen;
        if let Some(port) = request.response_port.filter(|_| self.has_response_port) {
            target.set_port(port);
        }
        let inside = match &mut self.nat {
            Some(nat) => nat.inbound(origin, target.port(), now),
            None => Some(target),
        };
        let Some(inside) = inside else {
            return;
        };
        let socket = inside.port() - self.local().port();
        let answer = Answer { id: request.id, from: origin, socket, mapped: Some(seen), other };
        assert!(!detection.answered(&Answer { id: [7; 12], ..answer }, now), "somebody else's");
        detection.answered(&answer, now);
    }

    fn is_lost(&mut self) -> bool {
        self.random.below(100) < self.loss_percent
    }
}

#[test]
fn each_kind_of_nat_is_recognised() {
    for kind in KINDS {
        for hairpins in [false, true] {
            let mut world = World { hairpins, ..World::behind(kind) };
            // The second name of the server is its other address: it must not be asked too early.
            let report = world.detect(&[FIRST, SECOND, SECOND_OTHER_PORT], None);
            assert_eq!((report.mapping, report.filtering), kind.behaviour(), "{kind:?}");
            assert_eq!(report.is_translated(), Some(true));
            assert_eq!(report.public.unwrap().ip().to_string(), PUBLIC);
            // A symmetric NAT has another mapping for the own public endpoint.
            let is_symmetric = report.mapping != Dependence::None;
            assert_eq!(report.hairpin, Some(hairpins && !is_symmetric), "{kind:?}");
            assert!(world.took < Duration::from_secs(2), "{:?}", world.took);
            assert!(world.requests < 25);
        }
    }
}

#[test]
fn a_lossy_network_changes_nothing() {
    for kind in KINDS {
        for seed in 0..20 {
            let mut world =
                World { loss_percent: 5, random: Seeded::new(seed), ..World::behind(kind) };
            let report = world.detect(&[FIRST], None);
            assert_eq!((report.mapping, report.filtering), kind.behaviour(), "{kind:?} {seed}");
        }
    }
}

#[test]
fn without_a_second_address_ports_and_servers_tell_the_mapping() {
    use Dependence::{Address, AddressAndPort, None, Unknown};
    for (kind, servers, mapping) in [
        (NatKind::Port, &[FIRST][..], Unknown),
        (NatKind::Port, &[FIRST, FIRST_OTHER_PORT][..], None),
        (NatKind::Port, &[FIRST, SECOND][..], None),
        (NatKind::Symmetric, &[FIRST, FIRST_OTHER_PORT][..], AddressAndPort),
        (NatKind::Symmetric, &[FIRST, SECOND][..], AddressAndPort),
        (NatKind::Symmetric, &[FIRST, FIRST_OTHER_PORT, SECOND][..], AddressAndPort),
        (NatKind::SymmetricByAddress, &[FIRST, FIRST_OTHER_PORT, SECOND][..], Address),
        (NatKind::Symmetric, &[FIRST, FIRST][..], Unknown),
    ] {
        let mut world = World { has_second_address: false, ..World::behind(kind) };
        let report = world.detect(servers, Option::None);
        assert_eq!(report.mapping, mapping, "{kind:?} {servers:?}");
        assert_eq!(report.filtering, Unknown);
    }
}

#[test]
fn no_nat_is_recognised_and_a_firewall_is_not_taken_for_one() {
    let mut world = World { nat: None, ..World::behind(NatKind::Full) };
    let report = world.detect(&[FIRST], None);
    assert_eq!(report.is_translated(), Some(false));
    assert_eq!((report.mapping, report.filtering), (Dependence::None, Dependence::None));
    assert_eq!(report.hairpin, None);
    let text = report.to_string();
    assert!(text.contains("no NAT") && text.contains("filtering: endpoint-independent"), "{text}");

    let mut world = World { nat: None, has_second_address: false, ..World::behind(NatKind::Full) };
    assert_eq!(world.detect(&[FIRST], None).mapping, Dependence::None);
}

#[test]
fn what_the_server_cannot_do_is_not_blamed_on_the_nat() {
    // Its other address cannot be reached from here.
    let mut world =
        World { dead: vec![SECOND, SECOND_OTHER_PORT], ..World::behind(NatKind::Address) };
    let report = world.detect(&[FIRST], None);
    assert_eq!((report.mapping, report.filtering), (Dependence::Unknown, Dependence::Unknown));
    // It answers from where it was asked, whatever CHANGE-REQUEST says.
    let mut world = World { ignores_changes: true, ..World::behind(NatKind::Port) };
    let report = world.detect(&[FIRST], None);
    assert_eq!((report.mapping, report.filtering), (Dependence::None, Dependence::Unknown));
}

#[test]
fn a_dead_server_is_passed_over_and_all_dead_ones_end_it() {
    for dead in [DEAD, SECOND] {
        let mut world = World { dead: vec![dead], ..World::behind(NatKind::Port) };
        let report = world.detect(&[dead, FIRST], None);
        assert_eq!(report.mapping, Dependence::None);
        assert_eq!(report.filtering, Dependence::AddressAndPort);
    }
    let mut world = World { dead: vec![FIRST, SECOND], ..World::behind(NatKind::Port) };
    let report = world.detect(&[SECOND, FIRST], None);
    assert_eq!(report.public, None);
    assert_eq!(world.requests, 8);
    assert!(report.to_string().contains("no STUN server answered"));
    let mut world = World::behind(NatKind::Port);
    assert_eq!(world.detect(&[], None).public, None);
}

#[test]
fn the_lifetime_of_a_mapping_is_found() {
    for kind in KINDS {
        for seconds in [3, 30, 55, 120, 299] {
            let mut world = World::behind(kind);
            let lifetime = Duration::from_secs(seconds);
            world.nat.as_mut().unwrap().lifetime = lifetime;
            let bounds = LifetimeBounds::default();
            let report = world.detect(&[FIRST], Some(bounds));
            let Lifetime::Between(lived, gone) = report.lifetime else {
                panic!("{kind:?} {seconds}: {:?}", report.lifetime);
            };
            assert!(lived < lifetime && lifetime <= gone, "{kind:?} {lived:?} {gone:?}");
            assert!(gone <= lived + bounds.resolution.max(lived / 8));
            assert!(world.took < Duration::from_secs(1800), "{:?}", world.took);
        }
    }
    let mut world = World::behind(NatKind::Port);
    world.nat.as_mut().unwrap().lifetime = Duration::from_secs(400);
    let report = world.detect(&[FIRST], Some(LifetimeBounds::default()));
    assert_eq!(report.lifetime, Lifetime::AtLeast(Duration::from_secs(300)));
    assert!(report.to_string().contains("mapping lifetime: 300.0 s or more"));
}

#[test]
fn a_server_without_response_port_leaves_the_lifetime_unknown() {
    let mut world = World { has_response_port: false, ..World::behind(NatKind::Port) };
    let report = world.detect(&[FIRST], Some(LifetimeBounds::default()));
    assert_eq!(report.lifetime, Lifetime::NotKnown);
    assert_eq!(OTHER_SOCKET, 1);
}

#[test]
fn the_report_is_plain() {
    let report = World::behind(NatKind::Port).detect(&[FIRST], None);
    let expected = "local endpoint: 10.1.0.2:5000\n\
         public endpoint: 203.0.113.11:5000\n\
         mapping: endpoint-independent\n\
         filtering: address- and port-dependent\n\
         hairpin: no\n\
         with a peer behind a NAT of the usual kind: direct\n\
         with a peer behind a symmetric NAT: direct if both sides use --hard, else over the relay";
    assert_eq!(report.to_string(), expected);
}
