//! Members: the search for paths to them, and their tunnels.

use super::counters::PathKind;
use super::member::{Due, Member, Relay, Via};
use super::own_side::wall_clock_ms;
use super::receive::Source;
use super::run::{MEMBERS_MAX, Run, random_number};
use super::seal::{News, open};
use super::send::{answer, encrypt};
use super::text::name_for_terminal;
use super::tunnel::{BUFFER_LEN_MIN, Tick, Tunnel};
use crate::runtime::event_loop::EventLoop;
use crate::state::punch::Punch;
use crate::state::punch::candidates::{Candidate, CandidateKind};
use crate::state::punch::interface::{Action, Config, Introduction};
use crate::state::punch::prospects::NatFacts;
use crate::wire::peer::{Announcement, Greeting, Kind, Message, Probe, ProbeKind, write_greeting};
use crate::wire::rendezvous::MemberId;
use crate::wire::rendezvous::answer::Introduced;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// Members that claim a key that none of them has shown by a handshake: the one whose key it is, and
/// as many as may be left of it at several servers.
const CLAIMANTS_MAX: usize = 3;
/// So long a claimant has its place against others: it is pinged and shaken hands with meanwhile.
const CLAIM_TIME: Duration = Duration::from_secs(5);

impl Run {
    /// A server introduces a member.
    pub(super) fn introduced(
        &mut self,
        of: &Introduced<'_>,
        (server, relay): (SocketAddr, Option<Relay>),
        events: &mut EventLoop,
        now: Instant,
    ) {
        let Introduced { introduction, member: id, endpoints, sealed, .. } = *of;
        let start = now + Duration::from_millis(u64::from(of.start_ms));
        let announcement = match open(&self.keys, id, sealed) {
            Ok(announcement) => announcement,
            Err(error) => return self.refuse_announcement(id, error.as_str(), now),
        };
        if !self.pins.allow(&super::identity::PublicKey(announcement.public_key)) {
            return self.refuse_announcement(id, "its key is none of --peer-key", now);
        }
        let slot = match self.slot_of(id) {
            Some(slot) => slot,
            None => match self.admit(id, &announcement, relay.is_some(), events, now) {
                Ok(slot) => slot,
                Err(why) => return self.refuse_announcement(id, &why, now),
            },
        };
        let (mine, takes_relay) = (self.nat, self.config.relay);
        let Some(member) = self.member(slot) else { return };
        if !member.is_news(introduction) {
            return;
        }
        match member.newest.admit(&announcement, wall_clock_ms()) {
            Ok(News::Newer | News::Same) => {}
            Err(error) => return self.refuse_announcement(id, error.as_str(), now),
        }
        let own = announcement.endpoints.iter().map(|endpoint| (*endpoint, CandidateKind::Host));
        let seen = endpoints.iter().map(|endpoint| (endpoint, CandidateKind::Seen));
        let candidates: Vec<Candidate> =
            own.chain(seen).map(|(endpoint, kind)| Candidate { endpoint, kind }).collect();
        let theirs = NatFacts {
            mapping: announcement.mapping,
            filtering: announcement.filtering,
            tries_hard: announcement.tries_hard,
        };
        let of_others = member.relay.filter(|relay| relay.server != server);
        member.relay = relay.filter(|_| announcement.relay).or(of_others);
        member.announcement = announcement;
        member.servers.retain(|(known, _)| *known != server);
        member.servers.push((server, of.is_here));
        let has_relay = member.relay.is_some() && takes_relay;
        member.punch.set_relay(has_relay);
        member.introduced = now;
        member.punch.introduce(&Introduction { candidates, mine, theirs, start }, now);
        self.drive(slot, events, now);
    }

    fn refuse_announcement(&mut self, id: MemberId, why: &str, now: Instant) {
        self.counters.announcements_refused.increment();
        if let Some(more) = self.trouble_log.pass(now) {
            let id = u64::from_be_bytes(id.0);
            log::warn!("member {id:016x} is not talked to: {why} ({more} more lines)");
        }
    }

    /// A place for a new member.
    fn admit(
        &mut self,
        id: MemberId,
        announcement: &Announcement,
        has_relay: bool,
        events: &mut EventLoop,
        now: Instant,
    ) -> Result<usize, String> {
        let taken_epoch = self.make_way(announcement, events, now)?;
        let slot = self.members.iter().position(Option::is_none).unwrap_or(self.members.len());
        if slot >= MEMBERS_MAX {
            return Err(format!("{MEMBERS_MAX} members are known"));
        }
        let theirs = super::identity::PublicKey(announcement.public_key);
        let index = u32::try_from(slot).map_err(|_| "too many members".to_owned())?;
        let tunnel = Tunnel::new(&self.handshakes, theirs, self.keys.preshared, index)
            .map_err(|error| error.to_string())?;
        let leads = self.handshakes.public().0 < announcement.public_key;
        let epoch = random_number().ok_or("no random numbers")?;
        let punch = Punch::new(Config {
            families: self.families(),
            leads,
            relay: has_relay && self.config.relay && announcement.relay,
            keepalive: self.config.keepalive,
            seed: random_number().ok_or("no random numbers")?,
        });
        let shown = name_for_terminal(&announcement.name);
        let name = if shown.is_empty() { "somebody".to_owned() } else { shown };
        let sides = (leads, epoch);
        let mut member = Member::new(id, announcement.clone(), name, punch, tunnel, sides, now);
        member.taken_epoch = taken_epoch;
        match self.members.get_mut(slot) {
            Some(place) => *place = Some(member),
            None => self.members.push(Some(member)),
        }
        Ok(slot)
    }

    /// Whether another member may claim an announcement's key. The one that has shown the key stays
    /// as it is: anybody who knows the room's secret can announce it. Returns that one's chat.
    fn make_way(
        &mut self,
        announcement: &Announcement,
        events: &mut EventLoop,
        now: Instant,
    ) -> Result<Option<u64>, String> {
        let (mut claimants, mut oldest, mut taken_epoch) = (0, None, None);
        for slot in self.slots_with_key(announcement.public_key) {
            let Some(known) = self.members.get(slot).and_then(Option::as_ref) else { continue };
            if known.is_proven {
                // A server that has not noticed yet, or repeats what it once had.
                if known.newest.outdates(announcement.made_ms, wall_clock_ms()) {
                    return Err("it has been started anew since".to_owned());
                }
                taken_epoch = taken_epoch.or(known.chat.epoch().filter(|_| known.is_here));
                continue;
            }
            claimants += 1;
            let is_older = |(_, admitted): (usize, Instant)| known.admitted < admitted;
            if oldest.is_none_or(is_older) {
                oldest = Some((slot, known.admitted));
            }
        }
        if claimants >= CLAIMANTS_MAX {
            match oldest.filter(|(_, admitted)| now >= *admitted + CLAIM_TIME) {
                Some((slot, _)) => self.remove(slot, "has not shown its key", events),
                None => return Err("too many members claim its key".to_owned()),
            }
        }
        Ok(taken_epoch)
    }

    /// The members that announce this key.
    pub(super) fn slots_with_key(&self, key: [u8; 32]) -> Vec<usize> {
        let has_key = |it: &Option<Member>| {
            it.as_ref().is_some_and(|member| member.announcement.public_key == key)
        };
        (0..self.members.len())
            .filter(|slot| self.members.get(*slot).is_some_and(has_key))
            .collect()
    }

    /// A member has greeted for the first time, which shows that its key is its own. It takes the
    /// place of the one that had shown the key before: that was started anew. Returns false if it
    /// is no other one, but somebody who passes its handshake on; that one is not talked to.
    pub(super) fn takes_place(
        &mut self,
        slot: usize,
        epoch: u64,
        events: &mut EventLoop,
        now: Instant,
    ) -> bool {
        let Some(member) = self.members.get(slot).and_then(Option::as_ref) else { return false };
        let (id, key, taken) = (member.id, member.announcement.public_key, member.taken_epoch);
        let mut others = self.slots_with_key(key);
        others.retain(|other| *other != slot);
        let is_here = |other: &usize| {
            self.members.get(*other).and_then(Option::as_ref).is_some_and(|it| it.is_here)
        };
        let before = others.iter().copied().find(is_here);
        if taken == Some(epoch) && before.is_some() {
            self.refuse_announcement(id, "it passes on what another member says", now);
            self.remove(slot, "", events);
            // The other member may take the newer session's key, which is gone.
            if let Some(before) = before {
                self.shake_hands(before);
            }
            return false;
        }
        for other in others {
            let Some(rival) = self.member(other) else { continue };
            if rival.is_proven {
                self.remove(other, "comes anew", events);
            } else {
                rival.taken_epoch = Some(epoch);
            }
        }
        true
    }

    /// Forgets a member.
    pub(super) fn remove(&mut self, slot: usize, why: &str, events: &mut EventLoop) {
        let Some(mut member) = self.members.get_mut(slot).and_then(Option::take) else {
            return;
        };
        if let Some(serving) = &mut self.serving {
            serving.forget(member.id, events, &self.counters);
        }
        self.forget_lines(&mut member);
        if member.is_here {
            self.counters.members.add(-1);
            self.terminal.notice(&format!("{} {why}", member.name));
        }
        self.close_extra(None, events);
    }

    /// Closes the extra sockets that nobody needs; later, while somebody probes with them.
    pub(super) fn close_extra(&mut self, kept: Option<u16>, events: &mut EventLoop) {
        self.network.closes_later =
            self.members.iter().flatten().any(|member| member.punch.is_trying_hard());
        if self.network.closes_later {
            return;
        }
        let used: Vec<u16> = self
            .members
            .iter()
            .flatten()
            .filter_map(|member| match member.via {
                Via::Direct(path) => Some(path.socket),
                _ => None,
            })
            .chain(kept)
            .collect();
        self.network.close_extra(|number| used.contains(&number), events);
    }

    /// Does what is due towards a member.
    pub(super) fn drive(&mut self, slot: usize, events: &mut EventLoop, now: Instant) {
        self.is_stale = true;
        loop {
            let busy = self.members.iter().enumerate().any(|(other, it)| {
                other != slot && it.as_ref().is_some_and(|member| member.punch.is_trying_hard())
            });
            let Some(member) = self.member(slot) else { return };
            let id = member.id;
            let Some(action) = member.punch.poll(now, !busy) else { break };
            match action {
                Action::Ping { socket, to, tx } => {
                    let seen = (Ipv4Addr::UNSPECIFIED, 0).into();
                    let (from, kind) = (self.me, ProbeKind::Ping);
                    self.send_probe(socket, to, &Probe { kind, tx, from, to: id, seen });
                }
                Action::Path(path) => {
                    let was = std::mem::replace(&mut member.via, Via::Nowhere);
                    member.reached(Via::Direct(path), now);
                    if !matches!(was, Via::Direct(old) if old.endpoint == path.endpoint) {
                        self.counters.path(PathKind::Direct);
                        self.show_path(slot, now);
                    }
                }
                Action::Relay if !member.is_registered() => {
                    return self.remove(slot, "is gone", events);
                }
                Action::Relay => {
                    let was = member.via;
                    member.reached(Via::Relay, now);
                    if was != Via::Relay {
                        self.counters.path(PathKind::Relay);
                        self.show_path(slot, now);
                    }
                }
                Action::Lost => {
                    member.reached(Via::Nowhere, now);
                    let is_registered = member.is_registered();
                    self.show_path(slot, now);
                    if !is_registered {
                        return self.remove(slot, "is gone", events);
                    }
                }
                Action::Failed => {
                    self.counters.path(PathKind::Failed);
                    self.show_failure(slot);
                }
                Action::Call => self.meeting.call(id, now),
                Action::Open(count) => self.network.open_extra(count, events),
                Action::Close(kept) => self.close_extra(kept, events),
            }
        }
        let Some(member) = self.member(slot) else { return };
        match member.poll(now) {
            Some(Due::Handshake) => self.shake_hands(slot),
            Some(Due::Greeting) => self.greet(slot, 0),
            None => {}
        }
    }

    /// Says how a member is reached now.
    pub(super) fn show_path(&mut self, slot: usize, now: Instant) {
        let Some(member) = self.members.get(slot).and_then(Option::as_ref) else { return };
        let name = &member.name;
        match member.via {
            Via::Direct(path) => {
                let after = now.saturating_duration_since(member.introduced).as_millis();
                log::info!(
                    "path to {name}: direct via {}, {after} ms after the introduction",
                    path.endpoint
                );
            }
            Via::Relay => log::info!("path to {name}: relay"),
            Via::Nowhere => log::info!("path to {name}: none"),
        }
    }

    fn show_failure(&mut self, slot: usize) {
        let Some(member) = self.members.get(slot).and_then(Option::as_ref) else { return };
        let name = &member.name;
        let text = format!(
            "no path to {name}: these two NATs cannot be punched; start the server with --relay, or \
             both sides with --hard"
        );
        self.terminal.notice(&text);
    }

    pub(super) fn send_probe(&mut self, socket: u16, to: SocketAddr, probe: &Probe) {
        self.probes.write(&mut self.probe_buffer, probe);
        self.counters.probes_sent.increment();
        let bytes = &self.probe_buffer;
        self.outbox.add(socket, to, |out| {
            out.extend_from_slice(bytes);
            true
        });
    }

    pub(super) fn send_bytes(&mut self, socket: u16, to: SocketAddr, bytes: &[u8]) {
        self.outbox.add(socket, to, |out| {
            out.extend_from_slice(bytes);
            true
        });
    }

    fn shake_hands(&mut self, slot: usize) {
        let mut bytes = [0; BUFFER_LEN_MIN];
        let Some(member) = self.members.get_mut(slot).and_then(Option::as_mut) else { return };
        let to = way(member);
        if let (Some(to), Some(datagram)) = (to, member.tunnel.start_handshake(true, &mut bytes)) {
            answer(&mut self.outbox, to, member.id, datagram);
        }
    }

    /// Tells a member our name; `number` 0 asks for its own.
    pub(super) fn greet(&mut self, slot: usize, number: u32) {
        let Some(member) = self.members.get(slot).and_then(Option::as_ref) else { return };
        let mut body = Vec::new();
        let greeting = Greeting { epoch: member.epoch, name: &self.config.name };
        write_greeting(&mut body, &greeting);
        self.send_message(slot, &Message { kind: Kind::Here, number, body: &body });
    }

    pub(super) fn say_bye(&mut self, slot: usize) {
        if self.members.get(slot).and_then(Option::as_ref).is_some_and(|member| member.is_here) {
            self.send_message(slot, &Message { kind: Kind::Bye, number: 0, body: &[] });
        }
    }

    pub(super) fn send_message(&mut self, slot: usize, message: &Message<'_>) -> bool {
        encrypt(&mut self.members, &mut self.outbox, &self.counters, slot, message)
    }

    /// WireGuard's timers.
    pub(super) fn tick_tunnel(&mut self, slot: usize, now: Instant) {
        let mut bytes = [0; BUFFER_LEN_MIN];
        let Some(member) = self.members.get_mut(slot).and_then(Option::as_mut) else { return };
        let to = way(member);
        match member.tunnel.tick(&mut bytes) {
            Tick::Send(datagram) => {
                if let Some(to) = to {
                    answer(&mut self.outbox, to, member.id, datagram);
                }
            }
            Tick::Expired => member.expired(now),
            Tick::Nothing => {}
        }
    }
}

/// How a member is reached, as where an answer would go.
fn way(member: &Member) -> Option<Source> {
    match (member.via, member.relay) {
        (Via::Direct(path), _) => Some(Source::Direct { socket: path.socket, from: path.endpoint }),
        (Via::Relay, Some(relay)) => Some(Source::Relay(relay)),
        _ => None,
    }
}
