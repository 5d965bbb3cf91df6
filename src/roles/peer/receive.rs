//! What arrives: from servers, from members directly or through a relay, and from local sockets.

use super::chat::Heard;
use super::counters::{DropReason, PathKind};
use super::identity::PublicKey;
use super::member::{Member, Relay, Via};
use super::network::receive_batch;
use super::probe::ProbeError;
use super::run::Run;
use super::send::{answer, forward};
use super::text::{for_terminal, name_for_terminal};
use super::tunnel::{Addressee, Knock, Outcome, Refusal, addressee};
use crate::net::sys::mmsg::receive::ReceiveQueue;
use crate::runtime::event_loop::EventLoop;
use crate::wire::peer::{Kind, Message, PROBE_MAGIC, Probe, ProbeKind, parse_greeting};
use crate::wire::rendezvous::{MemberId, is_rendezvous};
use mio::Token;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

/// Where a member's datagram came from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    /// From there, to that socket.
    Direct { socket: u16, from: SocketAddr },
    /// Through a relay.
    Relay(Relay),
}

impl Source {
    fn ip(self) -> IpAddr {
        match self {
            Source::Direct { from, .. } => from.ip(),
            Source::Relay(relay) => relay.server.ip(),
        }
    }
}

impl Run {
    /// A batch of a socket to the outside.
    pub(super) fn receive(
        &mut self,
        number: u16,
        queue: &mut ReceiveQueue,
        events: &mut EventLoop,
        now: Instant,
    ) {
        let token = self.network.token(number);
        let Some(socket) = self.network.socket(number) else {
            return;
        };
        if !receive_batch(socket, token, queue, events, &self.counters) {
            return;
        }
        for message in queue.messages() {
            let Some(from) = message.source else { continue };
            for datagram in message.datagrams() {
                self.take(Source::Direct { socket: number, from }, datagram, events, now);
            }
        }
        self.deliver();
    }

    /// Sends what came out of the tunnels to the local sockets.
    fn deliver(&mut self) {
        self.deliveries.flush(
            self.listening.as_ref(),
            self.serving.as_ref(),
            &mut self.local_queue,
            &self.counters,
        );
    }

    fn take(&mut self, source: Source, datagram: &[u8], events: &mut EventLoop, now: Instant) {
        match source {
            Source::Direct { socket, from } if is_rendezvous(datagram) => {
                self.take_answer(socket, from, datagram, events, now);
            }
            Source::Direct { socket, from } if datagram.starts_with(&PROBE_MAGIC) => {
                self.take_probe(socket, from, datagram, events, now);
            }
            _ => self.take_tunnelled(source, None, datagram, events, now),
        }
    }

    fn take_probe(
        &mut self,
        socket: u16,
        from: SocketAddr,
        datagram: &[u8],
        events: &mut EventLoop,
        now: Instant,
    ) {
        let probe = match self.probes.read(datagram) {
            Ok(probe) => probe,
            Err(ProbeError::Malformed) => return self.counters.drop(DropReason::Malformed, 1),
            Err(ProbeError::Forged) => return self.counters.drop(DropReason::NotAuthentic, 1),
        };
        // Our own pings may come back by a NAT that turns packets around.
        let slot = self.slot_of(probe.from).filter(|_| probe.to == self.me);
        let Some(slot) = slot else {
            return self.counters.drop(DropReason::UnknownSender, 1);
        };
        self.counters.probes_received.increment();
        let Some(member) = self.member(slot) else { return };
        match probe.kind {
            ProbeKind::Ping => {
                if member.punch.ping_heard(probe.tx, from, socket, now) {
                    let (to, me) = (probe.from, self.me);
                    let pong =
                        Probe { kind: ProbeKind::Pong, tx: probe.tx, from: me, to, seen: from };
                    self.send_probe(socket, from, &pong);
                }
            }
            ProbeKind::Pong => {
                if !member.punch.pong_heard(probe.tx, from, socket, probe.seen, now) {
                    self.counters.drop(DropReason::UnknownSender, 1);
                }
            }
        }
        self.drive(slot, events, now);
    }

    /// A datagram of WireGuard; `relayed` is whose a relay says that it is.
    pub(super) fn take_tunnelled(
        &mut self,
        source: Source,
        relayed: Option<MemberId>,
        datagram: &[u8],
        events: &mut EventLoop,
        now: Instant,
    ) {
        // Out of the way of the borrows, and back again.
        let mut scratch = std::mem::take(&mut self.scratch);
        let slot = match addressee(datagram) {
            Some(Addressee::Tunnel(index)) => usize::try_from(index).ok(),
            Some(Addressee::Initiation) => {
                self.slot_of_knock(source, relayed, datagram, &mut scratch)
            }
            None => {
                self.counters.drop(DropReason::Malformed, 1);
                None
            }
        };
        if let Some(slot) = slot {
            self.decrypt(slot, source, datagram, &mut scratch, events, now);
        }
        self.scratch = scratch;
    }

    fn slot_of_knock(
        &mut self,
        source: Source,
        relayed: Option<MemberId>,
        datagram: &[u8],
        scratch: &mut [u8],
    ) -> Option<usize> {
        match self.handshakes.sender_of(source.ip(), datagram, scratch) {
            Knock::Member(key) => {
                let slot = self.slot_of_key(key, source, relayed);
                if slot.is_none() {
                    self.counters.drop(DropReason::UnknownSender, 1);
                }
                slot
            }
            Knock::Send(cookie) => {
                if let Source::Direct { socket, from } = source {
                    self.send_bytes(socket, from, cookie);
                }
                None
            }
            Knock::Refused(refusal) => {
                self.refuse(refusal);
                None
            }
        }
    }

    /// Which of the members that announce a key has sent an initiation: an initiation does not say
    /// which id it is of.
    fn slot_of_key(
        &self,
        key: PublicKey,
        source: Source,
        relayed: Option<MemberId>,
    ) -> Option<usize> {
        self.slots_with_key(key.0).into_iter().max_by_key(|slot| {
            let member = self.members.get(*slot).and_then(Option::as_ref);
            member.map(|member| {
                let is_its_path = match source {
                    Source::Direct { from, .. } => member.punch.has_heard(from),
                    Source::Relay(_) => relayed == Some(member.id),
                };
                // One that was started anew at the port that it had before has the newer id.
                (is_its_path, is_its_path != member.is_proven)
            })
        })
    }

    fn refuse(&mut self, refusal: Refusal) {
        let reason = match refusal {
            Refusal::Malformed | Refusal::NoMessage | Refusal::Buffer => DropReason::Malformed,
            Refusal::Forged | Refusal::Replayed => DropReason::NotAuthentic,
            Refusal::NoSession | Refusal::UnderLoad => DropReason::UnknownSender,
        };
        self.counters.drop(reason, 1);
        log::debug!("a datagram was dropped: {}", refusal.as_str());
    }

    fn decrypt(
        &mut self,
        slot: usize,
        source: Source,
        datagram: &[u8],
        scratch: &mut [u8],
        events: &mut EventLoop,
        now: Instant,
    ) {
        let Some(member) = self.members.get_mut(slot).and_then(Option::as_mut) else {
            return self.counters.drop(DropReason::UnknownSender, 1);
        };
        let was_established = member.tunnel.is_established();
        let mut is_reached = false;
        let outcome = member.tunnel.receive(source.ip(), datagram, scratch);
        let is_authentic = matches!(outcome, Outcome::Message(_) | Outcome::Keepalive);
        member.is_proven |= member.tunnel.is_established();
        if is_authentic {
            match source {
                Source::Direct { socket, from } => member.punch.data_heard(from, socket, now),
                Source::Relay(relay) => {
                    // The other side has no path: neither have we.
                    member.relay.get_or_insert(relay);
                    if member.via == Via::Nowhere {
                        member.reached(Via::Relay, now);
                        is_reached = true;
                    }
                }
            }
        }
        match outcome {
            Outcome::Send(bytes) => {
                let id = member.id;
                answer(&mut self.outbox, source, id, bytes);
                while let Some(bytes) = member.tunnel.flush(scratch) {
                    answer(&mut self.outbox, source, id, bytes);
                }
                if member.tunnel.is_established() && !was_established {
                    member.established(now);
                }
            }
            Outcome::Message(message) => {
                if !was_established {
                    member.established(now);
                }
                self.take_message(slot, &message, events, now);
            }
            Outcome::Keepalive | Outcome::Nothing => {}
            Outcome::Refused(refusal) => self.refuse(refusal),
        }
        if is_reached {
            self.counters.path(PathKind::Relay);
            self.show_path(slot, now);
        }
        // Forwarded datagrams come by the thousand, and change nothing here.
        let is_first_data = is_authentic && !was_established;
        let on_path = match (source, self.members.get(slot).and_then(Option::as_ref)) {
            (Source::Direct { socket, from }, Some(member)) => {
                matches!(member.via, Via::Direct(path) if path.socket == socket && path.endpoint == from)
            }
            (_, Some(member)) => member.via == Via::Relay,
            (_, None) => true,
        };
        if is_first_data || !is_authentic || !on_path {
            self.drive(slot, events, now);
        }
    }

    fn take_message(
        &mut self,
        slot: usize,
        message: &Message<'_>,
        events: &mut EventLoop,
        now: Instant,
    ) {
        self.is_stale |= !matches!(message.kind, Kind::Data | Kind::Back);
        match message.kind {
            Kind::Data => self.take_data(slot, message, events, now),
            Kind::Back => {
                // Only of the member that serves us: the others know the numbers too.
                let serves = self.serving_member() == Some(slot);
                let listening = self.listening.as_mut().filter(|_| serves);
                let source = listening.and_then(|it| it.source_of(message.number, now));
                match source {
                    Some(source) => self.deliveries.add_answer(source, message.body),
                    None => self.counters.drop(DropReason::NoFlow, 1),
                }
            }
            Kind::Here => self.take_greeting(slot, message, events, now),
            Kind::Line => self.take_line(slot, message),
            Kind::Got => {
                let took = self.member(slot).and_then(|it| it.chat.got(message.number, now));
                if took.is_some() {
                    self.line_delivered(slot);
                    // There is room for another.
                    self.read_terminal(now);
                }
            }
            Kind::Bye => self.remove(slot, "has left", events),
        }
    }

    fn take_data(
        &mut self,
        slot: usize,
        message: &Message<'_>,
        events: &mut EventLoop,
        now: Instant,
    ) {
        let id = self.members.get(slot).and_then(Option::as_ref).map(|member| member.id);
        let (Some(serving), Some(id)) = (&mut self.serving, id) else {
            return self.counters.drop(DropReason::NoService, 1);
        };
        if let Some(flow) = serving.slot_of(id, message.number, events, &self.counters, now) {
            self.deliveries.add_for_service(flow, message.body);
        }
    }

    fn take_greeting(
        &mut self,
        slot: usize,
        message: &Message<'_>,
        events: &mut EventLoop,
        now: Instant,
    ) {
        let Some(greeting) = parse_greeting(message.body) else {
            return self.counters.drop(DropReason::Malformed, 1);
        };
        let is_here = self.member(slot).is_some_and(|member| member.is_here);
        if !is_here && !self.takes_place(slot, greeting.epoch, events, now) {
            return;
        }
        let Some(member) = self.member(slot) else { return };
        member.chat.begins(greeting.epoch);
        let is_new = member.greeted();
        if is_new {
            // Later ones do not change it: whose line it is shall not depend on what the line's
            // sender says of itself meanwhile.
            let name = name_for_terminal(greeting.name);
            self.name_member(slot, name);
        }
        let Some(member) = self.member(slot) else { return };
        let name = member.name.clone();
        if message.number == 0 {
            self.greet(slot, 1);
        }
        if is_new {
            self.met_somebody();
            self.counters.members.add(1);
            self.terminal.notice(&format!("{name} is here"));
            // Lines that waited for somebody.
            self.read_terminal(now);
        }
    }

    /// The member's name on the screen, with the beginning of its key if another one has that name.
    fn name_member(&mut self, slot: usize, name: String) {
        let others = self.members.iter().enumerate().filter(|(other, _)| *other != slot);
        let is_taken = others.filter_map(|(_, it)| it.as_ref()).any(|it| it.name == name);
        let is_ours = name == self.config.name;
        let Some(member) = self.member(slot) else { return };
        if name.is_empty() {
            return;
        }
        member.name = if is_taken || is_ours {
            let key = PublicKey(member.announcement.public_key).to_string();
            format!("{name}~{}", key.get(..6).unwrap_or_default())
        } else {
            name
        };
    }

    fn take_line(&mut self, slot: usize, message: &Message<'_>) {
        // Without an acknowledgement its sender sends it again, or says that it was not delivered.
        if !self.terminal.has_room() {
            return self.counters.drop(DropReason::OutputFull, 1);
        }
        let Some(member) = self.members.get_mut(slot).and_then(Option::as_mut) else { return };
        match member.chat.hear(message.number, message.body) {
            Heard::New(text) => {
                let shown = for_terminal(text);
                self.counters.lines_received.increment();
                self.terminal.show_line(&member.name, &shown);
            }
            Heard::Duplicate => {}
            Heard::TooEarly => return,
            Heard::TooOld | Heard::Malformed => {
                return self.counters.drop(DropReason::Malformed, 1);
            }
        }
        self.send_message(slot, &Message { kind: Kind::Got, number: message.number, body: &[] });
    }

    /// Datagrams of the forwarded port.
    pub(super) fn receive_forwarded(
        &mut self,
        queue: &mut ReceiveQueue,
        events: &mut EventLoop,
        now: Instant,
    ) {
        let server = self.serving_member();
        let Some(mut listening) = self.listening.take() else { return };
        listening.receive(queue, events, &self.counters, now, |datagram| match server {
            Some(slot) => {
                let number = datagram.number;
                let message = Message { kind: Kind::Data, number, body: datagram.payload };
                forward(&mut self.members, &mut self.outbox, &self.counters, slot, &message);
            }
            None => self.counters.drop(DropReason::NoPath, 1),
        });
        self.listening = Some(listening);
    }

    /// Datagrams of a served flow's socket.
    pub(super) fn receive_served(
        &mut self,
        token: Token,
        queue: &mut ReceiveQueue,
        events: &mut EventLoop,
        now: Instant,
    ) {
        let Some(mut serving) = self.serving.take() else { return };
        if let Some(id) = serving.owner(token) {
            let slot = self.slot_of(id);
            serving.receive(token, queue, events, &self.counters, now, |datagram| match slot {
                Some(slot) => {
                    let number = datagram.number;
                    let message = Message { kind: Kind::Back, number, body: datagram.payload };
                    forward(&mut self.members, &mut self.outbox, &self.counters, slot, &message);
                }
                None => self.counters.drop(DropReason::NoPath, 1),
            });
        }
        self.serving = Some(serving);
    }

    /// The member that serves: the one of the given name, or the first.
    fn serving_member(&self) -> Option<usize> {
        let wanted = self.config.forwarding.to.as_ref();
        let serves = |it: &Option<Member>, needs_server: bool| {
            it.as_ref().is_some_and(|member| {
                let key = PublicKey(member.announcement.public_key);
                member.is_here
                    && member.announcement.serves
                    && (member.is_registered() || !needs_server)
                    && wanted.is_none_or(|wanted| wanted.is(&member.name, key))
            })
        };
        // One that no server has any more may be one that was restarted since.
        let first = |needs_server| self.members.iter().position(|it| serves(it, needs_server));
        first(true).or_else(|| first(false))
    }
}
