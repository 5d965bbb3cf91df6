//! The doors through which commands come: UDP, for this host's own programs or with a proof, and a
//! Unix socket, for root and perhaps a group.
//!
//! A door hands out requests one by one ([`Control::next_request`]), and takes the answers when all
//! of a round have been carried out and saved ([`Control::answer`], [`Control::flush`]).

pub(super) mod key;

mod connections;
mod datagrams;

use super::Config;
use super::counters::{CommandDrop, Counters};
use crate::error::Error;
use crate::runtime::event_loop::{EventLoop, Readiness};
use crate::state::contact::Contact;
use crate::state::mesh::replay::Nonce;
use connections::Connections;
use datagrams::Datagrams;
use mio::Token;
use std::sync::Arc;
use std::time::Instant;

/// Who has sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asker {
    door: Door,
    /// Bytes that an answer should not pass.
    pub(super) answer_len_max: usize,
    /// Nobody has proven to be there: a longer answer is not sent.
    is_limited: bool,
    /// It is told what is wrong even without an id.
    pub(super) is_told_errors: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Datagram { from: Contact, proven: Option<Nonce> },
    Connection(usize),
}

/// All doors.
pub(super) struct Control {
    datagrams: Datagrams,
    connections: Connections,
    counters: Arc<Counters>,
}

impl Control {
    /// Opens them; their tokens begin at `first_token`. What has been counted as a command of before
    /// `floor_ms` does not count again.
    pub(super) fn open(
        config: &Config,
        events: &mut EventLoop,
        first_token: usize,
        floor_ms: Option<u64>,
        counters: &Arc<Counters>,
    ) -> Result<Control, Error> {
        let datagrams = Datagrams::open(config, events, first_token, floor_ms, counters)?;
        let next_token = first_token + datagrams.tokens();
        let connections = Connections::open(config, events, next_token, counters)?;
        Ok(Control { datagrams, connections, counters: Arc::clone(counters) })
    }

    /// Reads the key again; one that cannot be read does not replace the one in use.
    pub(super) fn reload(&mut self, config: &Config) {
        if let Err(error) = self.datagrams.load_key(config) {
            log::error!("the control key stays as it is: {error}");
        }
    }

    /// Reads what has come, if the token is a door's.
    pub(super) fn receive(
        &mut self,
        token: Token,
        readiness: Readiness,
        now: Instant,
        events: &mut EventLoop,
    ) {
        if self.datagrams.owns(token) {
            self.datagrams.receive(token, readiness, now, events);
        } else {
            self.connections.handle(token, readiness, events);
        }
    }

    /// A request that has come and not been handed out yet.
    pub(super) fn next_request(&mut self) -> Option<(Asker, Vec<u8>)> {
        self.datagrams.next_request().or_else(|| self.connections.next_request())
    }

    /// Takes an answer, to be sent by the next [`Control::flush`].
    pub(super) fn answer(&mut self, to: Asker, text: &str) {
        match to.door {
            Door::Datagram { .. } if to.is_limited && text.len() > to.answer_len_max => {
                self.counters.commands_dropped(CommandDrop::AnswerTooLong, 1);
            }
            Door::Datagram { from, proven } => self.datagrams.answer(from, proven, text),
            Door::Connection(number) => self.connections.answer(number, text),
        }
    }

    /// When [`Control::flush`] has something to do though nothing happens.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.connections.next_deadline()
    }

    /// Sends the answers.
    pub(super) fn flush(&mut self, events: &mut EventLoop) {
        self.datagrams.flush();
        self.connections.flush(events);
    }

    /// The time of the newest command with a proof that has counted, in milliseconds since 1970.
    pub(super) fn command_time_ms(&self) -> u64 {
        self.datagrams.command_time_ms()
    }
}
