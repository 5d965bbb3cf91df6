//! Answers on their way out: all of a batch in one arena, which is used again.

use super::counters::{Counters, DropReason};
use super::sockets::Sockets;
use crate::net::sys::mmsg::send::SendQueue;
use crate::state::contact::Contact;
use std::io;

/// Bytes and datagrams after which it is time to send; one request adds less than 700 KB (an
/// introduction to each of 254 members over both families, and back).
const BYTES_MAX: usize = 256 * 1024;
const DATAGRAMS_MAX: usize = 512;

/// Datagrams that wait to be sent.
#[derive(Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    ready: Vec<Ready>,
    queue: SendQueue,
}

struct Ready {
    to: Contact,
    /// Where its bytes end; they begin where the ones before end.
    end: usize,
}

impl Outbox {
    /// Adds the datagram that `write` appends. Nothing is added if it returns None.
    pub(super) fn add(&mut self, to: Contact, write: impl FnOnce(&mut Vec<u8>) -> Option<()>) {
        let begin = self.bytes.len();
        match write(&mut self.bytes) {
            Some(()) => self.ready.push(Ready { to, end: self.bytes.len() }),
            None => self.bytes.truncate(begin),
        }
    }

    /// Whether it should be sent before more is added.
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= BYTES_MAX || self.ready.len() >= DATAGRAMS_MAX
    }

    /// Sends everything, each datagram out of its socket. What a socket has no room for is dropped:
    /// clients ask again. Returns the last refusal.
    pub(super) fn send(&mut self, sockets: &Sockets, counters: &Counters) -> Option<io::Error> {
        let mut refusal = None;
        for (index, socket) in sockets.iter() {
            if !self.ready.iter().any(|ready| ready.to.socket == index) {
                continue;
            }
            let mut batch = socket.batch(&mut self.queue);
            let mut begin = 0;
            for Ready { to, end } in &self.ready {
                if to.socket == index {
                    batch.push_from(to.local, Some(to.endpoint), &self.bytes[begin..*end]);
                }
                begin = *end;
            }
            let report = batch.finish();
            if report.segmentation_refused {
                socket.stop_segmentation();
            }
            counters.sent(&report);
            counters.dropped(DropReason::SendBufferFull, report.blocked);
            counters.dropped(DropReason::SendFailed, report.failed);
            refusal = report.last_error.or(refusal);
        }
        self.bytes.clear();
        self.ready.clear();
        refusal
    }
}
