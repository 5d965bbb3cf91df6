//! One connection to Redis: what has been asked on it, and what has been answered.

use super::talk::{Commands, Listener, SetUp};
use crate::net::stream::Stream;
use crate::roles::rendezvous::counters::StoreFailure;
use crate::runtime::clock;
use crate::wire::rendezvous::{MemberId, RoomId};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// An answer takes no longer; if nothing is asked for so long, a ping is.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Commands without an answer: the rest waits in the queue.
const UNANSWERED_MAX: usize = 256;
/// Of these and their bytes the queue is not read: a record has half a kilobyte.
const UNSENT_MAX: usize = 256 * 1024;
/// Why a connection, or the attempt at one, is over.
pub(super) enum End {
    /// The main thread wants it.
    Closed,
    /// Something went wrong.
    Failed(StoreFailure, String),
}

/// What the next answer is to.
pub(super) enum Asked {
    SetUp(SetUp),
    Put {
        room: RoomId,
        member: MemberId,
        news: u32,
    },
    Call {
        room: RoomId,
        pair: (MemberId, MemberId),
    },
    /// Whatever it says.
    Nothing,
}

/// One connection.
pub(super) struct Session {
    pub(super) stream: Stream,
    pub(super) listener: Listener,
    pub(super) commands: Commands,
    /// What has been asked and not answered, and when.
    pub(super) asked: VecDeque<(Instant, Asked)>,
    /// When something came last.
    pub(super) heard: Instant,
    /// It hears what others publish, and takes what is written.
    pub(super) is_up: bool,
}

impl Session {
    pub(super) fn new(stream: Stream, now: Instant) -> Session {
        Session {
            stream,
            listener: Listener::new(),
            commands: Commands::new(),
            asked: VecDeque::new(),
            heard: now,
            is_up: false,
        }
    }

    pub(super) fn expect(&mut self, asked: impl IntoIterator<Item = Asked>) {
        let now = clock::now();
        self.asked.extend(asked.into_iter().map(|asked| (now, asked)));
    }

    pub(super) fn has_room(&self) -> bool {
        self.asked.len() < UNANSWERED_MAX && self.commands.bytes.len() < UNSENT_MAX
    }

    /// Writes what the stream takes.
    pub(super) fn write(&mut self) -> Result<(), End> {
        let mut written = 0;
        while written < self.commands.bytes.len() {
            match self.stream.write(&self.commands.bytes[written..]) {
                Ok(len) => written += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(lost(&self.stream.last_word().unwrap_or(error))),
            }
        }
        self.commands.bytes.drain(..written);
        Ok(())
    }

    /// Until then something must have come: an answer, or else one is asked for.
    pub(super) fn deadline(&self) -> Instant {
        let asked = self.asked.front().map(|(since, _)| *since);
        asked.map_or(self.heard, |since| since.max(self.heard)) + ANSWER_TIMEOUT
    }
}

pub(super) fn lost(error: &io::Error) -> End {
    let cause = match error.kind() {
        io::ErrorKind::UnexpectedEof => "it has closed the connection".to_owned(),
        _ => error.to_string(),
    };
    End::Failed(StoreFailure::Lost, cause)
}
