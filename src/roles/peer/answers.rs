//! What the servers say, and which of them have a member.

use super::counters::DropReason;
use super::member::{Relay, Via};
use super::receive::Source;
use super::run::Run;
use crate::runtime::event_loop::EventLoop;
use crate::wire::rendezvous::Refusal;
use crate::wire::rendezvous::answer::{Answer, parse_answer};
use crate::wire::rendezvous::request::{Request, write_request};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

impl Run {
    /// A datagram of the rendezvous protocol.
    pub(super) fn take_answer(
        &mut self,
        socket: u16,
        from: SocketAddr,
        datagram: &[u8],
        events: &mut EventLoop,
        now: Instant,
    ) {
        let Some(place) = self.meeting.place_at(socket, from) else {
            return self.counters.drop(DropReason::UnknownSender, 1);
        };
        let Some(answer) = parse_answer(datagram) else {
            return self.counters.drop(DropReason::Malformed, 1);
        };
        self.is_stale = true;
        match answer {
            Answer::Cookie { tx, pass, endpoint } => {
                if place.registration.on_cookie(tx, pass, now) || place.renew(tx, pass, now) {
                    place.seen = Some(endpoint);
                }
            }
            Answer::Registered { tx, endpoint, refresh_s, relay, members, .. } => {
                let was_in = place.registration.is_in();
                let refresh = Duration::from_secs(u64::from(refresh_s));
                if place.registration.on_registered(tx, refresh, now) {
                    let has_come = relay && !place.relay;
                    place.relay = relay;
                    place.seen = Some(endpoint);
                    if !was_in {
                        log::info!("registered at {from}, seen as {endpoint}, {members} members");
                    }
                    if has_come {
                        self.relay_has_come(Relay { socket, server: from });
                    }
                }
            }
            Answer::Refused { tx, reason } => {
                if place.registration.on_refused(tx, now) {
                    let why = match reason {
                        Refusal::RoomsFull => "it has no place for another room",
                        Refusal::RoomFull => "the room is full",
                        Refusal::TooManyRequests => "too many requests from this address",
                    };
                    self.terminal.notice(&format!("{from} refuses: {why}; trying again"));
                }
            }
            Answer::Introduce(of) => {
                let introduction = of.introduction;
                place.calls.retain(|call| call.member != of.member);
                let relays = place.relay && of.is_here;
                let relay = relays.then_some(Relay { socket, server: from });
                self.outbox.add(socket, from, |bytes| {
                    write_request(bytes, &Request::Introduced { introduction });
                    true
                });
                self.introduced(&of, (from, relay), events, now);
            }
            Answer::Gone { member } if member == self.me => {
                // It has forgotten us.
                place.registration.hurry(now);
            }
            Answer::Gone { member } => {
                place.calls.retain(|call| call.member != member);
                if let Some(slot) = self.slot_of(member) {
                    self.gone(slot, from, events, now);
                }
            }
            Answer::Left { .. } => {}
            Answer::Relayed { member, payload } => {
                if self.slot_of(member).is_none() {
                    return self.counters.drop(DropReason::UnknownSender, 1);
                }
                let source = Source::Relay(Relay { socket, server: from });
                self.take_tunnelled(source, Some(member), payload, events, now);
            }
        }
    }

    /// A server relays that did not, or had not said so: for those whom it has introduced.
    fn relay_has_come(&mut self, relay: Relay) {
        for member in self.members.iter_mut().flatten() {
            let wants = self.config.relay && member.announcement.relay;
            if wants && member.relay.is_none() && member.servers.contains(&(relay.server, true)) {
                member.relay = Some(relay);
                member.punch.set_relay(true);
            }
        }
    }

    /// A server is asked no more: what it had is not had by it any more, and its relay is gone.
    pub(super) fn server_left(&mut self, server: SocketAddr, now: Instant) {
        for member in self.members.iter_mut().flatten() {
            member.servers.retain(|(known, _)| *known != server);
            if member.relay.is_some_and(|relay| relay.server == server) {
                member.relay = None;
                member.punch.set_relay(false);
                if member.via == Via::Relay {
                    member.reached(Via::Nowhere, now);
                }
            }
        }
    }

    /// The server has it no more. If a path is there, that says more than the server.
    fn gone(&mut self, slot: usize, server: SocketAddr, events: &mut EventLoop, now: Instant) {
        let Some(member) = self.member(slot) else { return };
        let was_registered = member.is_registered();
        member.servers.retain(|(known, _)| *known != server);
        if member.is_registered() {
            return;
        }
        match member.via {
            Via::Nowhere | Via::Relay => self.remove(slot, "is gone", events),
            Via::Direct(_) if was_registered => {
                member.punch.recheck(now);
                self.drive(slot, events, now);
            }
            Via::Direct(_) => {}
        }
    }
}
