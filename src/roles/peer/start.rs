//! How a member starts: its key, its room, its sockets, and what it tells its user.

use super::counters::Counters;
use super::deliveries::Deliveries;
use super::detect::Detector;
use super::forward::{Listening, Serving};
use super::identity::{Pins, PrivateKey, read_key_file};
use super::meeting::Meeting;
use super::network::Network;
use super::outbox::Outbox;
use super::probe::ProbeAuth;
use super::room::{RANDOM_LEN, Room};
use super::run::{ADDRESS_CHECK, Run};
use super::terminal::Terminal;
use super::tunnel::Handshakes;
use super::{Config, RoomChoice};
use crate::error::Error;
use crate::net::random;
use crate::net::sys::mmsg::send::SendQueue;
use crate::roles::frame::{FIRST_OWN, Frame};
use crate::roles::member_key::{Secret, member_of};
use crate::roles::startup::Startup;
use crate::runtime::clock;
use crate::state::punch::prospects::NatFacts;
use crate::state::token_bucket::LogGate;
use mio::Token;
use std::fs::File;
use std::io::{self, Read};
use std::time::Duration;

/// No datagram is longer.
const SCRATCH_LEN: usize = 65_536;
/// Birthday probing wants to know the NAT first; so long it waits for that.
const DETECTION_WAITS: Duration = Duration::from_secs(3);
/// The codes that rooms have are shorter.
const ROOM_FILE_LEN_MAX: u64 = 4_096;

/// Serves until stopped; returns the exit code.
pub(super) fn serve(config: Config, startup: Startup) -> Result<u8, Error> {
    let private = private_key(&config)?;
    let (room, is_new) = room(&config)?;
    let cannot_derive = || format!("cannot make the keys of room {}", room.name());
    let keys = room.keys().map_err(io::Error::other).map_err(Error::while_doing(cannot_derive))?;
    let secret = Secret::from_random(random()?);
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
    let meeting = Meeting::start(&config.servers, keys.id, &wake)
        .map_err(Error::while_doing(|| "cannot start a thread"))?;
    let mut terminal = Terminal::start(&wake, config.forwarding.is_any())?;
    frame.ready(startup)?;
    let handshakes = Handshakes::new(private);
    greet_user(&mut terminal, &room, is_new, &handshakes, listening.as_ref());
    let now = clock::now();
    let mut run = Run {
        probes: ProbeAuth::new(&keys),
        pins: Pins::new(config.peer_keys.clone()),
        me: member_of(secret.member_key()),
        endpoints: network.own_endpoints(),
        registers_from: if config.hard { now + DETECTION_WAITS } else { now },
        config,
        counters,
        keys,
        handshakes,
        secret,
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
        deadline: now,
        is_stale: true,
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

pub(super) fn random<const N: usize>() -> Result<[u8; N], Error> {
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
                let file = File::open(path)?;
                file.take(ROOM_FILE_LEN_MAX).read_to_string(&mut text)?;
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
