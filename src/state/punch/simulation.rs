//! Two peers, two NATs, a network that loses and delays, and a server that introduces.

use super::Punch;
use super::candidates::{Candidate, CandidateKind};
use super::interface::{Action, Config, EXTRA_SOCKET_FIRST, Families, Introduction, Path};
use super::prospects::NatFacts;
use crate::state::seeded::Seeded;
use crate::state::simulated_nat::{NatKind, SimulatedNat};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const SERVER: &str = "203.0.113.1:12345";
const DATA_EACH: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy)]
enum Payload {
    Ping(u64),
    Pong(u64, SocketAddr),
    Data,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Arrives { from: SocketAddr, to: SocketAddr, payload: Payload },
    Introduced { peer: usize, seen: SocketAddr, start: Instant },
    Called,
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) punch: Punch,
    pub(super) nat: SimulatedNat,
    facts: NatFacts,
    inside: SocketAddr,
    extra: Vec<u16>,
    next_port: u16,
    data: Instant,
    pub(super) data_heard: Option<Instant>,
    /// When the first path was found.
    pub(super) connected: Option<Instant>,
    pub(super) actions: Vec<(Instant, Action)>,
    pub(super) pings: usize,
}

impl Peer {
    pub(super) fn path(&self) -> Option<Path> {
        self.punch.path()
    }

    pub(super) fn open_sockets(&self) -> usize {
        self.extra.iter().filter(|port| **port != 0).count()
    }
}

/// What a simulation varies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    pub(super) kinds: [NatKind; 2],
    pub(super) tries_hard: bool,
    pub(super) relay: bool,
    pub(super) loss_percent: u32,
    pub(super) delay: Duration,
    /// The second peer starts so much later, the first time.
    pub(super) skew: Duration,
    pub(super) same_lan: bool,
    pub(super) seed: u64,
}

impl Setting {
    pub(super) fn new(kinds: [NatKind; 2], seed: u64) -> Setting {
        Setting {
            kinds,
            tries_hard: false,
            relay: true,
            loss_percent: 0,
            delay: Duration::ZERO,
            skew: Duration::ZERO,
            same_lan: false,
            seed,
        }
    }
}

pub(super) struct World {
    pub(super) now: Instant,
    pub(super) begin: Instant,
    setting: Setting,
    pub(super) peers: [Peer; 2],
    events: BTreeMap<(Instant, u64), Event>,
    sequence: u64,
    random: Seeded,
}

pub(super) fn facts(kind: NatKind, tries_hard: bool) -> NatFacts {
    let (mapping, filtering) = kind.behaviour();
    NatFacts { mapping, filtering, tries_hard }
}

impl World {
    /// Introduced at `begin`, but nothing has happened yet.
    #[allow(clippy::disallowed_methods)] // Tests count from whatever instant they start at.
    pub(super) fn new(setting: Setting) -> World {
        let begin = Instant::now();
        let mut random = Seeded::new(setting.seed);
        let leader = usize::from(random.below(2) == 1);
        let peers = [0, 1].map(|index: usize| {
            let config = Config {
                families: Families::V4,
                leads: index == leader,
                relay: setting.relay,
                keepalive: Duration::from_secs(15),
                seed: random.next_u64(),
            };
            let inside = if setting.same_lan {
                format!("10.1.0.{}", index + 2)
            } else {
                format!("10.{}.0.2", index + 1)
            };
            Peer {
                punch: Punch::new(config),
                nat: SimulatedNat::new(
                    setting.kinds[index],
                    &format!("203.0.113.{}", 11 + index),
                    random.next_u64(),
                ),
                facts: facts(setting.kinds[index], setting.tries_hard),
                inside: format!("{inside}:{}", 5000 + index).parse().unwrap(),
                extra: Vec::new(),
                next_port: 20_000,
                data: begin,
                data_heard: None,
                connected: None,
                actions: Vec::new(),
                pings: 0,
            }
        });
        let events = BTreeMap::new();
        let mut world = World { now: begin, begin, setting, peers, events, sequence: 0, random };
        world.introduce(setting.skew);
        world
    }

    /// The server introduces both; the second one starts later by `skew`.
    pub(super) fn introduce(&mut self, skew: Duration) {
        let server: SocketAddr = SERVER.parse().unwrap();
        let now = self.now;
        let seen = [0, 1].map(|peer| {
            let Peer { nat, inside, .. } = &mut self.peers[peer];
            nat.outbound(*inside, server, now)
        });
        for peer in [0, 1] {
            let at =
                if peer == 1 { now + self.setting.delay + skew } else { now + self.setting.delay };
            self.schedule(at, Event::Introduced { peer, seen: seen[1 - peer], start: at });
        }
    }

    fn schedule(&mut self, at: Instant, event: Event) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), event);
    }

    /// Runs for so long.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            for peer in [0, 1] {
                self.poll(peer);
            }
            // At one instant both send before anything arrives.
            let event = self.events.first_key_value().map(|((at, _), _)| *at);
            if event.is_some_and(|at| at <= self.now) {
                let (_, event) = self.events.pop_first().unwrap();
                self.happen(event);
                continue;
            }
            let deadlines = self.peers.iter().map(|peer| {
                let data = peer.path().map(|_| peer.data);
                peer.punch.next_deadline().into_iter().chain(data).min()
            });
            let next = deadlines.chain([event]).flatten().min().unwrap_or(end).min(end);
            if next >= end {
                self.now = end;
                return;
            }
            assert!(next > self.now, "a deadline that has passed");
            self.now = next;
        }
    }

    fn poll(&mut self, peer: usize) {
        let now = self.now;
        while let Some(action) = self.peers[peer].punch.poll(now, true) {
            if let Action::Ping { socket, to, tx } = action {
                self.peers[peer].pings += 1;
                self.send(peer, socket, to, Payload::Ping(tx));
                continue;
            }
            let this = &mut self.peers[peer];
            this.actions.push((now, action));
            match action {
                Action::Path(_) => {
                    this.connected = this.connected.or(Some(now));
                    this.data = now;
                }
                Action::Open(count) => {
                    this.extra = (0..count).map(|index| this.next_port + index).collect();
                    // NATs see other ports each time.
                    this.next_port += count;
                }
                Action::Close(kept) => {
                    for (index, port) in this.extra.iter_mut().enumerate() {
                        if kept != Some(EXTRA_SOCKET_FIRST + u16::try_from(index).unwrap()) {
                            *port = 0;
                        }
                    }
                }
                Action::Call => self.schedule(now + self.setting.delay, Event::Called),
                _ => {}
            }
        }
        if let Some(path) = self.peers[peer].path().filter(|_| self.peers[peer].data <= now) {
            self.peers[peer].data = now + DATA_EACH;
            self.send(peer, path.socket, path.endpoint, Payload::Data);
        }
    }

    fn send(&mut self, peer: usize, socket: u16, to: SocketAddr, payload: Payload) {
        let Peer { inside, nat, extra, .. } = &mut self.peers[peer];
        let mut from = *inside;
        if socket >= EXTRA_SOCKET_FIRST {
            from.set_port(extra[usize::from(socket - EXTRA_SOCKET_FIRST)]);
            assert_ne!(from.port(), 0, "sent through a closed socket");
        }
        // Nobody else has the other's network.
        let is_private = to.ip().to_string().starts_with("10.");
        if is_private && !self.setting.same_lan {
            return;
        }
        if !is_private {
            from = nat.outbound(from, to, self.now);
        }
        if self.random.below(100) >= self.setting.loss_percent {
            self.schedule(self.now + self.setting.delay, Event::Arrives { from, to, payload });
        }
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Called => self.introduce(Duration::ZERO),
            Event::Introduced { peer, seen, start } => {
                let other = &self.peers[1 - peer];
                let kind = CandidateKind::Host;
                // Two more interfaces that lead nowhere from here.
                let others = ["10.77.0.1:5000", "10.78.0.1:5000"].map(|one| one.parse().unwrap());
                let hosts = [other.inside].into_iter().chain(others);
                let mut candidates: Vec<Candidate> =
                    hosts.map(|endpoint| Candidate { endpoint, kind }).collect();
                candidates.push(Candidate { endpoint: seen, kind: CandidateKind::Seen });
                let (mine, theirs) = (self.peers[peer].facts, other.facts);
                let introduction = Introduction { candidates, mine, theirs, start };
                self.peers[peer].punch.introduce(&introduction, now);
            }
            Event::Arrives { from, to, payload } => self.arrives(from, to, payload),
        }
    }

    fn arrives(&mut self, from: SocketAddr, to: SocketAddr, payload: Payload) {
        let now = self.now;
        let Some((peer, socket)) = [0, 1].into_iter().find_map(|index: usize| {
            let peer = &mut self.peers[index];
            let inside = if peer.nat.public == to.ip() {
                peer.nat.inbound(from, to.port(), now)?
            } else {
                to
            };
            if inside.ip() != peer.inside.ip() {
                return None;
            }
            if inside.port() == peer.inside.port() {
                return Some((index, 0));
            }
            let place = peer.extra.iter().position(|port| *port == inside.port())?;
            Some((index, EXTRA_SOCKET_FIRST + u16::try_from(place).unwrap()))
        }) else {
            return;
        };
        match payload {
            Payload::Ping(tx) => {
                if self.peers[peer].punch.ping_heard(tx, from, socket, now) {
                    self.send(peer, socket, from, Payload::Pong(tx, from));
                }
            }
            Payload::Pong(tx, seen) => {
                self.peers[peer].punch.pong_heard(tx, from, socket, seen, now);
            }
            Payload::Data => {
                self.peers[peer].data_heard = Some(now);
                self.peers[peer].punch.data_heard(from, socket, now);
            }
        }
    }

    /// Both have a path, and what they send on it arrives.
    pub(super) fn is_direct(&self) -> bool {
        self.peers.iter().all(|peer| {
            let heard =
                peer.data_heard.is_some_and(|heard| heard + Duration::from_secs(1) > self.now);
            peer.path().is_some() && heard
        })
    }

    /// Neither has a path.
    pub(super) fn is_relayed(&self) -> bool {
        self.peers.iter().all(|peer| {
            let last = peer.actions.iter().rev().map(|(_, action)| *action).find(|action| {
                matches!(action, Action::Path(_) | Action::Relay | Action::Lost | Action::Failed)
            });
            peer.path().is_none() && matches!(last, Some(Action::Relay | Action::Failed))
        })
    }

    /// When the later one had a path, from the introduction on.
    pub(super) fn connect_time(&self) -> Option<Duration> {
        let times: Option<Vec<Instant>> = self.peers.iter().map(|peer| peer.connected).collect();
        times?.into_iter().max().map(|last| last - self.begin)
    }
}
