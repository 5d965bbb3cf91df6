//! The loop of a member: what it holds, when it wakes, and how it ends.

use super::Config;
use super::counters::Counters;
use super::deliveries::Deliveries;
use super::detect::Detector;
use super::forward::{Listening, Serving};
use super::identity::Pins;
use super::meeting::{Meeting, ToServer};
use super::member::Member;
use super::network::{IPV4, IPV6, Network};
use super::outbox::Outbox;
use super::probe::ProbeAuth;
use super::room::RoomKeys;
use super::terminal::Terminal;
use super::tunnel::{Handshakes, TICK};
use crate::error::Error;
use crate::net::random;
use crate::net::sys::mmsg::receive::ReceiveQueue;
use crate::net::sys::mmsg::send::SendQueue;
use crate::roles::frame::{Frame, Happening, WAKE};
use crate::roles::member_key::Secret;
use crate::runtime::clock;
use crate::runtime::event_loop::EventLoop;
use crate::state::punch::interface::Families;
use crate::state::punch::prospects::NatFacts;
use crate::state::registration::Step;
use crate::state::token_bucket::LogGate;
use crate::wire::rendezvous::request::{Request, Wish, write_request};
use crate::wire::rendezvous::{MemberId, Pass};
use mio::Token;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A room has 16 members, a server may be one of four, and those who restart come anew.
pub(super) const MEMBERS_MAX: usize = 64;
/// How often the own addresses are looked at.
pub(super) const ADDRESS_CHECK: Duration = Duration::from_secs(5);

/// Everything that the loop holds.
#[allow(clippy::struct_excessive_bools)] // Each is a question of its own, asked in its own place.
pub(super) struct Run {
    pub(super) config: Config,
    pub(super) counters: Counters,
    pub(super) keys: RoomKeys,
    pub(super) probes: ProbeAuth,
    pub(super) handshakes: Handshakes,
    pub(super) pins: Pins,
    pub(super) me: MemberId,
    /// Towards servers.
    pub(super) secret: Secret,
    pub(super) network: Network,
    pub(super) outbox: Outbox,
    pub(super) meeting: Meeting,
    /// By the number of the member's tunnel.
    pub(super) members: Vec<Option<Member>>,
    pub(super) terminal: Terminal,
    pub(super) listening: Option<Listening>,
    pub(super) serving: Option<Serving>,
    pub(super) deliveries: Deliveries,
    pub(super) local_queue: SendQueue,
    pub(super) nat: NatFacts,
    pub(super) trouble_log: LogGate,
    pub(super) detector: Option<Detector>,
    /// Until then nobody is registered with: the NAT is being looked at.
    pub(super) registers_from: Instant,
    pub(super) sealed: Vec<u8>,
    pub(super) last_made_ms: Option<u64>,
    pub(super) endpoints: Vec<SocketAddr>,
    pub(super) scratch: Vec<u8>,
    pub(super) probe_buffer: Vec<u8>,
    pub(super) next_tick: Instant,
    /// When there is something to do; not true any more if `is_stale`.
    pub(super) deadline: Instant,
    /// Something has happened besides forwarded datagrams, which change no deadline.
    pub(super) is_stale: bool,
    pub(super) next_address_check: Instant,
    pub(super) give_up: Option<Instant>,
    /// Standard input has ended; with how many lines.
    pub(super) input_ended: bool,
    pub(super) lines_typed: u64,
    /// A pipe's line for which there is nobody or no room yet.
    pub(super) held_line: Option<String>,
    pub(super) has_met: bool,
    pub(super) lost_lines: bool,
    pub(super) exit: Option<u8>,
    pub(super) listen_token: Token,
    pub(super) detect_token: usize,
}

impl Run {
    pub(super) fn until_stopped(&mut self, frame: &mut Frame) -> Result<u8, Error> {
        let mut queue = ReceiveQueue::default();
        loop {
            if let Some(code) = self.exit {
                return Ok(code);
            }
            if std::mem::take(&mut self.is_stale) {
                self.deadline = self.next_deadline();
            }
            let numbers = || (self.status_line(), self.status_line());
            match frame.next_happening(Some(self.deadline), numbers)? {
                Happening::Stop => self.exit = Some(0),
                Happening::Reload => {}
                Happening::Ready(WAKE, _) => {
                    let now = clock::now();
                    self.is_stale = true;
                    if self.meeting.listen_to_lookups(&self.network, now) {
                        self.start_detection(&mut frame.events, now);
                    }
                    self.read_terminal(now);
                }
                Happening::Ready(token, _) => {
                    self.ready(token, &mut queue, &mut frame.events, clock::now());
                }
                Happening::RoundOver(now) => {
                    if self.is_stale || now >= self.deadline {
                        self.is_stale = true;
                        self.tick(&mut frame.events, now);
                    }
                }
            }
            self.outbox.flush(&mut self.network, &self.counters);
        }
    }

    fn ready(
        &mut self,
        token: Token,
        queue: &mut ReceiveQueue,
        events: &mut EventLoop,
        now: Instant,
    ) {
        if let Some(number) = self.network.number(token) {
            self.receive(number, queue, events, now);
        } else if token == self.listen_token {
            self.receive_forwarded(queue, events, now);
        } else if let Some(detector) = self.detector.as_mut().filter(|it| it.owns(token)) {
            self.is_stale = true;
            detector.receive(token, queue, events, &self.counters, now);
        } else {
            self.receive_served(token, queue, events, now);
        }
    }

    fn status_line(&self) -> String {
        let here = self.members.iter().flatten().filter(|member| member.is_here).count();
        format!("{here} members here, {} flows", self.counters.flows.get())
    }

    fn next_deadline(&self) -> Instant {
        let meeting = self.meeting.next_deadline().map(|due| due.max(self.registers_from));
        let members = self.members.iter().flatten().filter_map(Member::next_deadline);
        let detector = self.detector.as_ref().and_then(Detector::next_deadline);
        let listening = self.listening.as_ref().and_then(Listening::next_expiry);
        let serving = self.serving.as_ref().and_then(Serving::next_expiry);
        let has_tunnels = self.members.iter().any(Option::is_some);
        let tick = has_tunnels.then_some(self.next_tick);
        [meeting, detector, listening, serving, tick, self.give_up]
            .into_iter()
            .flatten()
            .chain(members)
            .min()
            .unwrap_or(self.next_address_check)
            .min(self.next_address_check)
    }

    /// What the time has brought.
    fn tick(&mut self, events: &mut EventLoop, now: Instant) {
        self.drive_detection(events, now);
        if now >= self.registers_from {
            while let Some(tx) = random_number() {
                let Some((socket, server, request)) = self.meeting.poll(now, tx) else { break };
                self.send_request(socket, server, &request);
            }
            self.meeting.retry_lookups(now);
            for server in self.meeting.take_left() {
                self.server_left(server, now);
            }
        }
        if now >= self.next_address_check {
            self.next_address_check = now + ADDRESS_CHECK;
            self.check_addresses(events, now);
        }
        let renews_keys = now >= self.next_tick;
        if renews_keys {
            self.next_tick = now + TICK;
            self.handshakes.tick();
        }
        for slot in 0..self.members.len() {
            if renews_keys {
                self.tick_tunnel(slot, now);
            }
            self.drive(slot, events, now);
            self.repeat_lines(slot, now);
        }
        if let Some(listening) = &mut self.listening {
            listening.expire(&self.counters, now);
        }
        if let Some(serving) = &mut self.serving {
            serving.expire(events, &self.counters, now);
        }
        if self.network.closes_later {
            self.close_extra(None, events);
        }
        // A line that was given up has left room for another.
        self.read_terminal(now);
        self.end_if_done(now);
    }

    fn end_if_done(&mut self, now: Instant) {
        if self.exit.is_some() || self.terminal.is_interactive() || self.config.forwarding.is_any()
        {
            return;
        }
        let is_alone = !self.members.iter().flatten().any(|member| member.is_here);
        if is_alone && self.held_line.is_some() && self.give_up.is_none() {
            self.give_up = self.waits_until(now);
        }
        if is_alone && self.give_up.is_some_and(|give_up| give_up <= now) {
            self.terminal.notice("nobody could be reached");
            self.exit = Some(1);
        }
        if self.input_ended && self.has_met && self.held_line.is_none() {
            let is_idle = self.members.iter().flatten().all(|it| it.chat.next_due().is_none());
            // Who only listens stays until the others have gone.
            let is_done = if self.lines_typed > 0 { is_idle } else { is_alone };
            if is_done {
                self.exit = Some(u8::from(self.lost_lines));
            }
        }
    }

    /// How long a pipe waits for somebody to come.
    pub(super) fn waits_until(&self, now: Instant) -> Option<Instant> {
        let timeout = self.config.connect_timeout;
        (!timeout.is_zero()).then(|| now + timeout)
    }

    /// Nobody is waited for any more: somebody is here.
    pub(super) fn met_somebody(&mut self) {
        self.has_met = true;
        self.give_up = None;
    }

    fn send_request(&mut self, socket: u16, server: SocketAddr, request: &ToServer) {
        match *request {
            ToServer::Step(Step::Hello { tx }) => {
                self.outbox.add(socket, server, |bytes| {
                    write_request(bytes, &Request::Hello { tx });
                    true
                });
            }
            ToServer::Step(Step::Register { tx, pass, rtt_ms }) => {
                let sealed = std::mem::take(&mut self.sealed);
                let wish = Wish::Register { rtt_ms, sealed: &sealed };
                self.ask((socket, server), (tx, pass), &wish);
                self.sealed = sealed;
            }
            ToServer::Call { tx, pass, member } => {
                self.ask((socket, server), (tx, pass), &Wish::Call { member });
            }
        }
    }

    /// Asks a server what nobody else can read.
    fn ask(
        &mut self,
        (socket, server): (u16, SocketAddr),
        (tx, pass): (u64, Pass),
        wish: &Wish<'_>,
    ) {
        let Some(cipher) = self.secret.towards(pass.server) else {
            return log::debug!("the key of {server} is none");
        };
        let room = self.keys.id;
        self.outbox.add(socket, server, |bytes| {
            cipher.write(bytes, tx, pass, room, wish);
            true
        });
    }

    /// Which sockets there are.
    pub(super) fn families(&self) -> Families {
        match (self.network.socket(IPV4).is_some(), self.network.socket(IPV6).is_some()) {
            (true, true) => Families::Both,
            (false, _) => Families::V6,
            (true, false) => Families::V4,
        }
    }

    /// Says good-bye to everybody.
    pub(super) fn leave(&mut self) {
        for slot in 0..self.members.len() {
            self.say_bye(slot);
        }
        let places: Vec<_> = self
            .meeting
            .entered()
            .filter_map(|place| Some((place.socket, place.endpoint, place.registration.pass()?)))
            .collect();
        for (socket, server, pass) in places {
            if let Some(tx) = random_number() {
                self.ask((socket, server), (tx, pass), &Wish::Leave);
            }
        }
        self.outbox.flush(&mut self.network, &self.counters);
    }

    /// The member's slot, if it is known.
    pub(super) fn slot_of(&self, id: MemberId) -> Option<usize> {
        self.members.iter().position(|it| it.as_ref().is_some_and(|member| member.id == id))
    }

    pub(super) fn member(&mut self, slot: usize) -> Option<&mut Member> {
        self.members.get_mut(slot).and_then(Option::as_mut)
    }
}

/// A number that nobody can guess; `None` should the generator fail.
pub(super) fn random_number() -> Option<u64> {
    random::bytes().ok().map(u64::from_be_bytes)
}
