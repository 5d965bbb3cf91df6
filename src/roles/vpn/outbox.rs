//! Control messages on their way out: those of a round together, after the table that they speak of
//! is in force.

use super::counters::{Counters, DropReason};
use super::sockets::Sockets;
use crate::net::sys::mmsg::send::SendQueue;
use crate::state::contact::Contact;

/// Messages after which it is time to send.
const MESSAGES_MAX: usize = 512;

/// Messages that wait to be sent.
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
    /// Adds the message that `write` appends.
    pub(super) fn add(&mut self, to: Contact, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.ready.push(Ready { to, end: self.bytes.len() });
    }

    /// Whether it should be sent before more is added.
    pub(super) fn is_full(&self) -> bool {
        self.ready.len() >= MESSAGES_MAX
    }

    /// Sends everything, each message out of its socket. What the kernel does not take is dropped:
    /// whoever waits for it asks again.
    pub(super) fn send(&mut self, sockets: &Sockets, counters: &Counters) {
        let mut begin = 0;
        for Ready { to, end } in self.ready.drain(..) {
            let bytes = &self.bytes[begin..end];
            begin = end;
            let Some(socket) = sockets.get(to.socket) else { continue };
            // One by one: they are few, and seldom for the same socket twice.
            let mut batch = socket.batch(&mut self.queue);
            batch.push_from(to.local, Some(to.endpoint), bytes);
            let report = batch.finish();
            counters.sent(report.sent);
            counters.dropped(DropReason::NotSent, report.blocked + report.failed);
            if let Some(error) = report.last_error {
                log::debug!("cannot send to {}: {error}", to.endpoint);
            }
        }
        self.bytes.clear();
    }
}
