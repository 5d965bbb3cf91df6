//! The loop of a member: what it holds, when it wakes, and how it ends.

use super::counters::Counters;
use super::deliveries::Deliveries;
use super::detect::Detector;
use super::forward::{Listening, Serving};
use super::identity::{Pins, PrivateKey, member_id, read_key_file};
use super::meeting::Meeting;
use super::member::Member;
use super::network::Network;
use super::outbox::Outbox;
use super::probe::ProbeAuth;
use super::room::{RANDOM_LEN, Room, RoomKeys};
use super::seal::{NONCE_LEN, made_ms, seal};
use super::terminal::Terminal;
use super::tunnel::{Handshakes, TICK};
use super::{Config, RoomChoice};
use crate::error::Error;
use crate::net::random;
use crate::net::sys::mmsg::receive::ReceiveQueue;
use crate::net::sys::mmsg::send::SendQueue;
use crate::roles::frame::{FIRST_OWN, Frame, Happening, WAKE};
use crate::roles::startup::Startup;
use crate::runtime::clock;
use crate::runtime::event_loop::EventLoop;
use crate::state::punch::interface::Families;
use crate::state::punch::prospects::NatFacts;
use crate::state::registration::Step;
use crate::state::token_bucket::LogGate;
use crate::wire::peer::{Announcement, ENDPOINTS_MAX};
use crate::wire::rendezvous::{MemberId, Request, Token as MemberToken, write_request};
use mio::Token;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// No datagram is longer.
pub(super) const SCRATCH_LEN: usize = 65_536;
/// A room has 16 members, a server may be one of four, and those who restart come anew.
pub(super) const MEMBERS_MAX: usize = 64;
/// How often the own addresses are looked at.
const ADDRESS_CHECK: Duration = Duration::from_secs(5);
/// Birthday probing wants to know the NAT first; so long it waits for that.
const DETECTION_WAITS: Duration = Duration::from_secs(3);
/// The codes that rooms have are shorter.
const ROOM_FILE_LEN_MAX: u64 = 4_096;

/// Everything that the loop holds.
pub(super) struct Run {
    pub(super) config: Config,
    pub(super) counters: Counters,
    pub(super) keys: RoomKeys,
    pub(super) probes: ProbeAuth,
    pub(super) handshakes: Handshakes,
    pub(super) pins: Pins,
    pub(super) me: MemberId,
    pub(super) token: MemberToken,
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
    detector: Option<Detector>,
    /// Until then nobody is registered with: the NAT is being looked at.
    registers_from: Instant,
    sealed: Vec<u8>,
    last_made_ms: Option<u64>,
    endpoints: Vec<SocketAddr>,
    pub(super) scratch: Vec<u8>,
    pub(super) probe_buffer: Vec<u8>,
    next_tick: Instant,
    next_address_check: Instant,
    give_up: Option<Instant>,
    /// Standard input has ended; with how many lines.
    pub(super) input_ended: bool,
    pub(super) lines_typed: u64,
    /// A pipe's line for which there is nobody or no room yet.
    pub(super) held_line: Option<String>,
    pub(super) has_met: bool,
    pub(super) lost_lines: bool,
    pub(super) exit: Option<u8>,
    listen_token: Token,
    detect_token: usize,
}

/// Serves until stopped; returns the exit code.
pub(super) fn serve(config: Config, startup: Startup) -> Result<u8, Error> {
    let private = private_key(&config)?;
    let (room, is_new) = room(&config)?;
    let cannot_derive = || format!("cannot make the keys of room {}", room.name());
    let keys = room.keys().map_err(io::Error::other).map_err(Error::while_doing(cannot_derive))?;
    let token = MemberToken(random()?);
    let mut frame = Frame::new(config.common.metrics, None)?;
    let counters = Counters::new(&mut frame.registry);
    let events = &mut frame.events;
    let network = Network::open(config.local_port, events, FIRST_OWN)
        .map_err(Error::while_doing(|| format!("cannot bind udp port {}", config.local_port)))?;
    let listen_token = Token(network.tokens_end());
    let detect_token = network.tokens_end() + 1;
    let first_served = detect_token + Detector::TOKENS;
    let listening = config
        .forwarding
        .listen
        .map(|address| {
            Listening::open(address, &config.forwarding, events, listen_token)
                .map_err(Error::while_doing(|| format!("cannot bind udp {address}")))
        })
        .transpose()?;
    let serving = config
        .forwarding
        .serve
        .map(|service| Serving::new(service, &config.forwarding, first_served));
    let wake = frame.wake()?;
    let meeting = Meeting::start(&config.servers, &wake)
        .map_err(Error::while_doing(|| "cannot start a thread"))?;
    let mut terminal = Terminal::start(&wake, config.forwarding.is_any())?;
    frame.ready(startup)?;
    let handshakes = Handshakes::new(private);
    greet_user(&mut terminal, &room, is_new, &handshakes, listening.as_ref());
    let now = clock::now();
    let mut run = Run {
        probes: ProbeAuth::new(&keys),
        pins: Pins::new(config.peer_keys.clone()),
        me: member_id(&token),
        endpoints: network.own_endpoints(),
        registers_from: if config.hard { now + DETECTION_WAITS } else { now },
        config,
        counters,
        keys,
        handshakes,
        token,
        network,
        outbox: Outbox::default(),
        meeting,
        members: Vec::new(),
        terminal,
        listening,
        serving,
        deliveries: Deliveries::default(),
        local_queue: SendQueue::default(),
        nat: NatFacts::default(),
        trouble_log: LogGate::new(1, 8),
        detector: None,
        sealed: Vec::new(),
        last_made_ms: None,
        scratch: vec![0; SCRATCH_LEN],
        probe_buffer: Vec::new(),
        next_tick: now,
        next_address_check: now + ADDRESS_CHECK,
        give_up: None,
        input_ended: false,
        lines_typed: 0,
        held_line: None,
        has_met: false,
        lost_lines: false,
        exit: None,
        listen_token,
        detect_token,
    };
    run.nat.tries_hard = run.config.hard;
    if !run.terminal.is_interactive() && !run.config.forwarding.is_any() {
        run.give_up = run.waits_until(now);
    }
    run.announce()?;
    let code = run.until_stopped(&mut frame)?;
    run.leave();
    run.terminal.stop();
    Ok(code)
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    random::bytes().map_err(Error::while_doing(|| "cannot get random bytes"))
}

fn private_key(config: &Config) -> Result<PrivateKey, Error> {
    let Some(path) = &config.key_file else {
        return Ok(PrivateKey::from_random(random()?));
    };
    let cannot = || format!("cannot read the key file {}", path.display());
    let file = read_key_file(path).map_err(Error::while_doing(cannot))?;
    if file.exposed {
        log::warn!("{}: others than its owner can read this private key", path.display());
    }
    Ok(file.key)
}

/// The room, and whether it was made now.
fn room(config: &Config) -> Result<(Room, bool), Error> {
    match &config.room {
        None | Some(RoomChoice::New) => Ok((Room::made(&random::<RANDOM_LEN>()?), true)),
        Some(RoomChoice::Given(room)) => Ok((room.clone(), false)),
        Some(RoomChoice::File(path)) => {
            let cannot = || format!("cannot read a room's code from {}", path.display());
            let read = || {
                let mut text = String::new();
                let file = std::fs::File::open(path)?;
                io::Read::read_to_string(&mut io::Read::take(file, ROOM_FILE_LEN_MAX), &mut text)?;
                Room::parse_code(text.trim()).map_err(io::Error::other)
            };
            Ok((read().map_err(Error::while_doing(cannot))?, false))
        }
    }
}

fn greet_user(
    terminal: &mut Terminal,
    room: &Room,
    is_new: bool,
    handshakes: &Handshakes,
    listening: Option<&Listening>,
) {
    if is_new {
        terminal.confide(&format!("the room's code, for the others: {}", room.code()));
    }
    if terminal.is_interactive() {
        terminal.notice(&format!("this member's public key: {}", handshakes.public()));
        terminal.notice("looking for the others; /help lists the commands");
    }
    if let Some(Ok(address)) = listening.map(Listening::local_addr) {
        log::info!("listening on udp {address}");
    }
}

impl Run {
    fn until_stopped(&mut self, frame: &mut Frame) -> Result<u8, Error> {
        let mut queue = ReceiveQueue::default();
        loop {
            if let Some(code) = self.exit {
                return Ok(code);
            }
            let line = self.status_line();
            let numbers = || (line.clone(), line.clone());
            match frame.next_happening(Some(self.next_deadline()), numbers)? {
                Happening::Stop => self.exit = Some(0),
                Happening::Reload => {}
                Happening::Ready(WAKE, _) => {
                    let now = clock::now();
                    if self.meeting.listen_to_lookups(&self.network, now) {
                        self.start_detection(&mut frame.events, now);
                    }
                    self.read_terminal(now);
                }
                Happening::Ready(token, _) => {
                    self.ready(token, &mut queue, &mut frame.events, clock::now());
                }
                Happening::RoundOver(now) => self.tick(&mut frame.events, now),
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
                let Some((socket, server, step)) = self.meeting.poll(now, tx) else { break };
                self.send_step(socket, server, step);
            }
            self.meeting.retry_lookups(now);
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
    fn waits_until(&self, now: Instant) -> Option<Instant> {
        let timeout = self.config.connect_timeout;
        (!timeout.is_zero()).then(|| now + timeout)
    }

    /// Nobody is waited for any more: somebody is here.
    pub(super) fn met_somebody(&mut self) {
        self.has_met = true;
        self.give_up = None;
    }

    fn send_step(&mut self, socket: u16, server: SocketAddr, step: Step) {
        let (room, token) = (self.keys.id, self.token);
        let request = match step {
            Step::Hello { tx } => Request::Hello { tx, room },
            Step::Register { tx, cookie, rtt_ms } => {
                Request::Register { tx, cookie, room, token, rtt_ms, sealed: &self.sealed }
            }
        };
        self.outbox.add(socket, server, |bytes| {
            write_request(bytes, &request);
            true
        });
    }

    /// Makes a new announcement of what is so now.
    fn announce(&mut self) -> Result<(), Error> {
        let wall_clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall_clock_ms = u64::try_from(wall_clock.as_millis()).unwrap_or(u64::MAX);
        let made_ms = made_ms(wall_clock_ms, self.last_made_ms);
        self.last_made_ms = Some(made_ms);
        let announcement = Announcement {
            public_key: self.handshakes.public().0,
            mapping: self.nat.mapping,
            filtering: self.nat.filtering,
            tries_hard: self.config.hard,
            serves: self.serving.is_some(),
            relay: self.config.relay,
            made_ms,
            name: self.config.name.clone(),
            endpoints: self.endpoints.iter().copied().take(ENDPOINTS_MAX).collect(),
        };
        let nonce = random::<NONCE_LEN>()?;
        self.sealed = seal(&self.keys, self.me, nonce, &announcement).unwrap_or_default();
        Ok(())
    }

    /// The announcement has changed: the servers get it now.
    fn announce_again(&mut self, now: Instant) {
        match self.announce() {
            Ok(()) => self.meeting.hurry(now),
            Err(error) => log::error!("{error}"),
        }
    }

    fn check_addresses(&mut self, events: &mut EventLoop, now: Instant) {
        let endpoints = self.network.own_endpoints();
        if endpoints == self.endpoints {
            return;
        }
        log::info!("this host's addresses have changed");
        self.endpoints = endpoints;
        self.announce_again(now);
        for slot in 0..self.members.len() {
            if let Some(member) = self.members.get_mut(slot).and_then(Option::as_mut) {
                member.punch.recheck(now);
            }
            self.drive(slot, events, now);
        }
    }

    fn start_detection(&mut self, events: &mut EventLoop, now: Instant) {
        if self.detector.is_some() {
            return;
        }
        let servers = self.meeting.places().iter().map(|place| place.endpoint);
        match Detector::start(servers, None, self.detect_token, events, now) {
            Ok(detector) => self.detector = detector,
            Err(error) => log::warn!("cannot look at the NAT: {error}"),
        }
        self.drive_detection(events, now);
    }

    fn drive_detection(&mut self, events: &mut EventLoop, now: Instant) {
        let Some(detector) = &mut self.detector else {
            return;
        };
        detector.drive(&self.counters, now);
        let Some(report) = detector.report() else {
            return;
        };
        for line in report.to_string().lines() {
            log::info!("{line}");
        }
        let facts = NatFacts {
            mapping: report.mapping,
            filtering: report.filtering,
            tries_hard: self.config.hard,
        };
        if let Some(mut detector) = self.detector.take() {
            detector.close(events);
        }
        self.registers_from = now;
        if facts != self.nat {
            self.nat = facts;
            self.announce_again(now);
        }
    }

    /// Which sockets there are.
    pub(super) fn families(&self) -> Families {
        use super::network::{IPV4, IPV6};
        match (self.network.socket(IPV4).is_some(), self.network.socket(IPV6).is_some()) {
            (true, true) => Families::Both,
            (false, _) => Families::V6,
            (true, false) => Families::V4,
        }
    }

    /// Says good-bye to everybody.
    fn leave(&mut self) {
        for slot in 0..self.members.len() {
            self.say_bye(slot);
        }
        let (room, token) = (self.keys.id, self.token);
        let places: Vec<_> = self
            .meeting
            .entered()
            .filter_map(|place| Some((place.socket, place.endpoint, place.registration.cookie()?)))
            .collect();
        for (socket, server, cookie) in places {
            let Some(tx) = random_number() else { continue };
            self.outbox.add(socket, server, |bytes| {
                write_request(bytes, &Request::Leave { tx, cookie, room, token });
                true
            });
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
