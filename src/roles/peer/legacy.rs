//! `--legacy`: the plain text of the classroom demo, with its server and its clients. Two peers at a
//! time, and nothing is encrypted.
//!
//! The client sends `PING` to the server from the port that it will use. The server answers with
//! the other's endpoint, as text. The client sends `PING` there ten times, one each half second;
//! from then on every datagram but `PING` is a line of chat.

use super::Config;
use super::counters::{Counters, DropReason};
use super::network::{Network, receive_batch};
use super::terminal::{Terminal, Typed};
use super::text::{for_terminal, split_line};
use crate::error::Error;
use crate::net::sys::mmsg::receive::ReceiveQueue;
use crate::roles::destination::Destination;
use crate::roles::frame::{FIRST_OWN, Frame, Happening, WAKE};
use crate::roles::startup::Startup;
use crate::runtime::clock;
use crate::runtime::event_loop::EventLoop;
use crate::wire::peer::LINE_LEN_MAX;
use mio::Token;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const PING: &[u8] = b"PING";
/// As the demo's clients do.
const PUNCHES: u32 = 10;
const PUNCH_INTERVAL: Duration = Duration::from_millis(500);
/// Lines that are kept for whoever comes.
const HELD_MAX: usize = 64;
/// The demo's server pairs at once or never; ours forgets who waits after 60 s.
const ASK_INTERVAL: Duration = Duration::from_secs(2);

enum Stage {
    /// Nobody has been met.
    Asking,
    /// The other's endpoint is known; it has not been heard.
    Punching { left: u32 },
    /// It has been heard.
    Talking,
}

struct Legacy {
    server: SocketAddr,
    server_name: Destination,
    network: Network,
    socket: u16,
    stage: Stage,
    peer: Option<SocketAddr>,
    next: Instant,
    give_up: Option<Instant>,
    keepalive: Duration,
    terminal: Terminal,
    /// Lines that wait until somebody is there: many of a person's, one of a pipe's, which waits
    /// with it.
    held: VecDeque<String>,
    /// Nothing more will be typed.
    input_ended: bool,
    /// The user has left, or all is done: the exit code.
    ended: Option<u8>,
    counters: Counters,
}

/// Chats until stopped; returns the exit code.
pub(super) fn serve(config: &Config, startup: Startup) -> Result<u8, Error> {
    let mut frame = Frame::new(config.common.metrics, None)?;
    let counters = Counters::new(&mut frame.registry);
    let network = Network::open(config.local_port, &mut frame.events, FIRST_OWN)
        .map_err(Error::while_doing(|| format!("cannot bind udp port {}", config.local_port)))?;
    let Some(name) = config.servers.first() else {
        return Ok(1);
    };
    let cannot = || format!("cannot resolve {name}");
    let found = name.resolve().map_err(Error::while_doing(cannot))?;
    // The demo's addresses are IPv4; ours in brackets are understood by our own peers alone.
    let by_family = found.iter().copied().filter_map(|to| Some((network.number_for(to)?, to)));
    let Some((socket, server)) = by_family.min_by_key(|(socket, _)| *socket) else {
        let cause = io::Error::new(io::ErrorKind::AddrNotAvailable, "no socket of its family");
        return Err(Error::System { doing: format!("cannot send to {name}"), cause });
    };
    let mut terminal = Terminal::start(&frame.wake()?, false)?;
    frame.ready(startup)?;
    terminal.notice("legacy mode: NOTHING IS ENCRYPTED, anybody on the way can read and write");
    let now = clock::now();
    let waits = !terminal.is_interactive() && !config.connect_timeout.is_zero();
    let mut legacy = Legacy {
        server,
        server_name: name.clone(),
        network,
        socket,
        stage: Stage::Asking,
        peer: None,
        next: now,
        give_up: waits.then(|| now + config.connect_timeout),
        keepalive: config.keepalive,
        terminal,
        held: VecDeque::new(),
        input_ended: false,
        ended: None,
        counters,
    };
    let code = legacy.run(&mut frame)?;
    legacy.terminal.stop();
    Ok(code)
}

impl Legacy {
    fn run(&mut self, frame: &mut Frame) -> Result<u8, Error> {
        let mut queue = ReceiveQueue::default();
        loop {
            let numbers = || {
                let line = if self.peer.is_some() { "1 peer" } else { "no peer" };
                (line.to_owned(), line.to_owned())
            };
            if let Some(code) = self.ended {
                return Ok(code);
            }
            let deadline = self.give_up.map_or(self.next, |give_up| give_up.min(self.next));
            match frame.next_happening(Some(deadline), numbers)? {
                Happening::Stop => return Ok(0),
                Happening::Reload => {}
                Happening::Ready(WAKE, _) => self.obey(),
                Happening::Ready(token, _) => {
                    self.receive(token, &mut queue, &mut frame.events);
                }
                Happening::RoundOver(now) => {
                    if self.give_up.is_some_and(|give_up| give_up <= now) {
                        self.terminal.notice("nobody came");
                        return Ok(1);
                    }
                    self.tick(now);
                }
            }
        }
    }

    fn is_talking(&self) -> bool {
        matches!(self.stage, Stage::Talking)
    }

    fn tick(&mut self, now: Instant) {
        if now < self.next {
            return;
        }
        match (&mut self.stage, self.peer) {
            (Stage::Punching { left }, Some(peer)) if *left > 0 => {
                *left -= 1;
                self.next = now + PUNCH_INTERVAL;
                self.send(peer, PING);
            }
            (Stage::Talking, Some(peer)) => {
                self.next = now + self.keepalive;
                self.send(peer, PING);
            }
            _ => {
                if self.peer.take().is_some() {
                    self.terminal.notice("the other side does not answer; asking again");
                }
                self.stage = Stage::Asking;
                self.next = now + ASK_INTERVAL;
                self.send(self.server, PING);
            }
        }
    }

    fn send(&mut self, to: SocketAddr, bytes: &[u8]) {
        self.network.send(self.socket, to, bytes, &self.counters);
    }

    /// Does what was typed. Lines wait until somebody is there; who wants to leave may.
    fn obey(&mut self) {
        if let Some(code) = self.terminal.must_end() {
            self.ended = Some(code);
            return;
        }
        let held_max = if self.terminal.is_interactive() { HELD_MAX } else { 1 };
        loop {
            self.send_held();
            if !self.terminal.is_interactive() && self.held.len() >= held_max {
                return;
            }
            let Some(typed) = self.terminal.typed.drain().next() else { break };
            match typed {
                Typed::End => self.input_ended = true,
                Typed::Line(line) if line.trim() == "/quit" && self.terminal.is_interactive() => {
                    self.input_ended = true;
                }
                Typed::Line(_) if self.held.len() >= held_max => {
                    self.terminal.notice("not sent: nobody is here");
                }
                Typed::Line(line) => self.held.push_back(line),
                Typed::NotText => self.terminal.notice("not sent: the line is not UTF-8"),
            }
        }
        // A pipe that ends early has been read for whoever comes.
        if self.input_ended && (self.is_talking() || self.terminal.is_interactive()) {
            self.ended = Some(0);
        }
    }

    fn send_held(&mut self) {
        let Some(peer) = self.peer.filter(|_| self.is_talking()) else { return };
        while let Some(line) = self.held.pop_front() {
            for part in split_line(&line) {
                self.counters.lines_sent.increment();
                self.send(peer, part.as_bytes());
            }
        }
    }

    fn receive(&mut self, token: Token, queue: &mut ReceiveQueue, events: &mut EventLoop) {
        let Some(socket) = self.network.number(token).and_then(|it| self.network.socket(it)) else {
            return;
        };
        if !receive_batch(socket, token, queue, events, &self.counters) {
            return;
        }
        let now = clock::now();
        for message in queue.messages() {
            let Some(source) = message.source else { continue };
            for datagram in message.datagrams() {
                self.take(source, datagram, now);
            }
        }
    }

    fn take(&mut self, source: SocketAddr, datagram: &[u8], now: Instant) {
        if source == self.server {
            let endpoint = std::str::from_utf8(datagram).ok().and_then(|text| text.parse().ok());
            let Some(endpoint) = endpoint else {
                self.counters.drop(DropReason::Malformed, 1);
                return;
            };
            if self.peer.is_none() {
                let name = &self.server_name;
                self.terminal.notice(&format!("{name} says that the other side is {endpoint}"));
                self.peer = Some(endpoint);
                self.stage = Stage::Punching { left: PUNCHES };
                self.next = now;
            }
            return;
        }
        // From the announced address; a NAT may give it another port.
        if self.peer.is_none_or(|peer| peer.ip() != source.ip()) {
            self.counters.drop(DropReason::UnknownSender, 1);
            return;
        }
        if !self.is_talking() {
            self.terminal.notice(&format!("connected to {source}"));
            self.stage = Stage::Talking;
            self.give_up = None;
            self.peer = Some(source);
            self.next = now;
            // What was typed meanwhile.
            self.obey();
        } else if self.peer != Some(source) {
            self.peer = Some(source);
        }
        if datagram == PING {
            return;
        }
        if datagram.len() > LINE_LEN_MAX {
            self.counters.drop(DropReason::TooLong, 1);
            return;
        }
        if !self.terminal.has_room() {
            self.counters.drop(DropReason::OutputFull, 1);
            return;
        }
        self.counters.lines_received.increment();
        let text = for_terminal(&String::from_utf8_lossy(datagram));
        self.terminal.show_line("peer", &text);
    }
}
