//! Lines of chat: what was typed, what became of it, and the commands of a terminal.

use super::chat::Due;
use super::member::{Member, Via};
use super::run::Run;
use super::terminal::{self, Typed};
use super::text::split_line;
use crate::wire::peer::{Kind, LINE_LEN_MAX, Message};
use std::fmt::Write as _;
use std::time::Instant;

/// As many lines of chat are made of the longest line of a pipe.
const PARTS_MAX: u32 = 9;
// A part ends before a character that does not fit any more, of at most four bytes.
const _: () = assert!(PARTS_MAX as usize >= terminal::LINE_LEN_MAX.div_ceil(LINE_LEN_MAX - 3));
/// Characters of a line that a notice about it repeats.
const QUOTED_CHARS: usize = 40;

impl Run {
    /// Does what was typed. In a pipe, a line waits until somebody is there and has room for it, and
    /// the pipe with it.
    pub(super) fn read_terminal(&mut self, now: Instant) {
        if let Some(code) = self.terminal.must_end() {
            self.exit = Some(code);
            return;
        }
        loop {
            let typed = self.held_line.take().map(Typed::Line);
            let typed = typed.or_else(|| self.terminal.typed.drain().next());
            match typed {
                None => return,
                Some(Typed::End) if self.terminal.is_interactive() => {
                    self.exit = Some(0);
                    return;
                }
                Some(Typed::End) => {
                    self.input_ended = true;
                    return;
                }
                Some(Typed::NotText) => {
                    self.terminal.notice("not sent: the line is not UTF-8");
                    self.lines_typed += 1;
                    self.lost_lines = true;
                }
                Some(Typed::Line(line)) if self.terminal.is_interactive() => {
                    if line.starts_with('/') {
                        self.obey(line.trim());
                    } else {
                        self.say(&line, now);
                    }
                }
                Some(Typed::Line(line)) if self.may_say_more() => self.say(&line, now),
                Some(Typed::Line(line)) => {
                    self.held_line = Some(line);
                    return;
                }
            }
        }
    }

    /// Whether a pipe's next line, of whatever length, finds somebody and room.
    fn may_say_more(&self) -> bool {
        let mut here = self.members.iter().flatten().filter(|member| member.is_here).peekable();
        here.peek().is_some() && here.all(|member| member.chat.room() >= PARTS_MAX)
    }

    fn say(&mut self, line: &str, now: Instant) {
        if line.is_empty() {
            return;
        }
        self.lines_typed += 1;
        let here: Vec<usize> = (0..self.members.len())
            .filter(|slot| {
                self.members.get(*slot).and_then(Option::as_ref).is_some_and(|it| it.is_here)
            })
            .collect();
        if here.is_empty() {
            self.terminal.notice("not sent: nobody is here");
            return;
        }
        for part in split_line(line) {
            self.counters.lines_sent.increment();
            for slot in &here {
                let Some(member) = self.members.get_mut(*slot).and_then(Option::as_mut) else {
                    continue;
                };
                if let Ok(number) = member.chat.say(part, now) {
                    let body = part.as_bytes();
                    self.send_message(*slot, &Message { kind: Kind::Line, number, body });
                } else {
                    let name = member.name.clone();
                    self.not_delivered(&name, part);
                }
            }
        }
    }

    /// Sends again what was not acknowledged, and gives up what never was.
    pub(super) fn repeat_lines(&mut self, slot: usize, now: Instant) {
        loop {
            let Some(member) = self.members.get_mut(slot).and_then(Option::as_mut) else { return };
            match member.chat.due(now) {
                Some(Due::Again { number, text }) => {
                    let body = text.to_owned();
                    let message = Message { kind: Kind::Line, number, body: body.as_bytes() };
                    self.send_message(slot, &message);
                }
                Some(Due::NotDelivered { text, .. }) => {
                    let name = member.name.clone();
                    self.not_delivered(&name, &text);
                }
                None => return,
            }
        }
    }

    /// A member has the line.
    pub(super) fn line_delivered(&mut self, slot: usize) {
        let Some(member) = self.members.get(slot).and_then(Option::as_ref) else { return };
        // One mark for all lines on their way: the last one's.
        if self.terminal.is_interactive() && member.chat.next_due().is_none() {
            let text = format!("delivered to {}", member.name);
            self.terminal.notice(&text);
        }
    }

    fn not_delivered(&mut self, name: &str, text: &str) {
        self.counters.lines_not_delivered.increment();
        self.lost_lines = true;
        let quoted: String = text.chars().take(QUOTED_CHARS).collect();
        self.terminal.notice(&format!("not delivered to {name}: {quoted}"));
    }

    /// The member is gone, and with it the lines that were on their way to it.
    pub(super) fn forget_lines(&mut self, member: &mut Member) {
        while let Some(text) = member.chat.abandon() {
            let name = member.name.clone();
            self.not_delivered(&name, &text);
        }
    }

    fn obey(&mut self, command: &str) {
        match command {
            "/quit" => self.exit = Some(0),
            "/peers" => self.show_each(|member, text| {
                let state = if member.is_here { "here" } else { "not reached" };
                let key = super::identity::PublicKey(member.announcement.public_key);
                let _ = write!(text, "{} ({state}), key {key}", member.name);
            }),
            "/path" => self.show_each(|member, text| {
                let _ = write!(text, "{}: ", member.name);
                let _ = match member.via {
                    Via::Direct(path) => {
                        let rtt = path.rtt.map_or(String::new(), |rtt| {
                            format!(", {:.1} ms", rtt.as_secs_f64() * 1e3)
                        });
                        write!(text, "direct via {}{rtt}", path.endpoint)
                    }
                    Via::Relay => write!(text, "over the server's relay"),
                    Via::Nowhere => write!(text, "none; {}", member.punch.prospects()),
                };
                if let Some(age) = member.tunnel.since_handshake() {
                    let _ = write!(text, ", keys {} s old", age.as_secs());
                }
            }),
            "/stats" => {
                let counters = &self.counters;
                let text = format!(
                    "{} lines sent, {} received, {} not delivered; {} flows",
                    counters.lines_sent.get(),
                    counters.lines_received.get(),
                    counters.lines_not_delivered.get(),
                    counters.flows.get()
                );
                self.terminal.notice(&text);
                for place in self.meeting.places() {
                    let state = if place.registration.is_in() { "registered" } else { "silent" };
                    let rtt = place.registration.rtt().as_secs_f64() * 1e3;
                    let text = format!("server {}: {state}, {rtt:.1} ms", place.endpoint);
                    self.terminal.notice(&text);
                }
            }
            "/help" => {
                self.terminal.notice("/peers who is here   /path how they are reached   /stats");
                self.terminal.notice("/quit leave; anything else is a line for everybody");
            }
            _ => self.terminal.notice("no such command; /help lists them"),
        }
    }

    fn show_each(&mut self, describe: impl Fn(&Member, &mut String)) {
        let lines: Vec<String> = self
            .members
            .iter()
            .flatten()
            .map(|member| {
                let mut text = String::new();
                describe(member, &mut text);
                text
            })
            .collect();
        if lines.is_empty() {
            self.terminal.notice("nobody else is in the room");
        }
        for line in lines {
            self.terminal.notice(&line);
        }
    }
}
