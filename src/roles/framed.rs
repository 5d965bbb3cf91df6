//! A blocking connection that carries frames, for the probes of `check` and `selftest`.

use super::dial::{Dial, NoBytes};
use crate::wire::length_prefix::{ByteOrder, Frames};
use std::io;
use std::time::Instant;

/// What reading from a server yields instead of a message.
#[derive(Debug)]
pub enum NoReply {
    /// Nothing came in time.
    TimedOut,
    /// The server closed the connection.
    Closed,
    /// What came is not the protocol; its first bytes.
    OtherProtocol(Vec<u8>),
    /// The connection failed.
    Failed(io::Error),
}

/// A protocol's frames, as a probe reads them.
#[derive(Debug, Clone, Copy)]
pub struct Framing {
    /// Of the length in front of a body.
    pub order: ByteOrder,
    /// Bytes of the longest body.
    pub body_len_max: usize,
    /// Whether what has come so far is certainly another protocol: no more is waited for then.
    pub is_foreign: fn(&[u8]) -> bool,
}

/// One connection to a server.
pub struct Framed {
    dial: Dial,
    framing: Framing,
    received: Vec<u8>,
}

impl Framed {
    /// Reads frames from this connection.
    pub fn new(dial: Dial, framing: Framing) -> Framed {
        Framed { dial, framing, received: Vec::new() }
    }

    /// Sends all of `bytes`.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.dial.send(bytes)
    }

    /// What `read` makes of the next frame's body, for which it waits until `deadline`. A body of
    /// which it makes `None` is not the protocol.
    pub fn receive<T>(
        &mut self,
        deadline: Instant,
        read: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<T, NoReply> {
        let Framing { order, body_len_max, is_foreign } = self.framing;
        loop {
            let mut frames = Frames::new(&self.received, order, body_len_max);
            if let Some(Ok(body)) = frames.next() {
                let message = read(body).ok_or_else(|| self.other_protocol());
                let rest = frames.unfinished().len();
                self.received.drain(..self.received.len() - rest);
                return message;
            }
            let has_none = self.received.is_empty();
            let mut bytes = [0; 8192];
            match self.dial.read(&mut bytes, deadline) {
                Ok(len) => {
                    self.received.extend_from_slice(&bytes[..len]);
                    if is_foreign(&self.received) {
                        return Err(self.other_protocol());
                    }
                }
                Err(NoBytes::Failed(error)) => return Err(NoReply::Failed(error)),
                Err(NoBytes::TimedOut) if has_none => return Err(NoReply::TimedOut),
                Err(NoBytes::Closed) if has_none => return Err(NoReply::Closed),
                Err(NoBytes::TimedOut | NoBytes::Closed) => return Err(self.other_protocol()),
            }
        }
    }

    fn other_protocol(&self) -> NoReply {
        NoReply::OtherProtocol(self.received.clone())
    }
}
