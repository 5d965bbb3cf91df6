//! A blocking connection of a pool session, for `check`.

use crate::roles::dial::{Dial, NoBytes};
use crate::wire::length_prefix::Frames;
use crate::wire::pool::{BYTE_ORDER, DATAGRAM_LEN_MAX, SessionId, write_frame};
use std::io;
use std::time::Instant;

/// What reading from a server yields instead of a datagram.
#[derive(Debug)]
pub(super) enum NoReply {
    /// Nothing came in time.
    TimedOut,
    /// The server closed the connection.
    Closed,
    /// What came is no frame; its first bytes.
    OtherProtocol(Vec<u8>),
    /// The connection failed.
    Failed(io::Error),
}

/// One connection to a server.
pub(super) struct Probe {
    dial: Dial,
    received: Vec<u8>,
}

impl Probe {
    /// Speaks the pool's protocol on this connection.
    pub(super) fn new(dial: Dial) -> Probe {
        Probe { dial, received: Vec::new() }
    }

    /// Sends the session's id and a datagram, together.
    pub(super) fn open(&mut self, session: SessionId, datagram: &[u8]) -> io::Result<()> {
        let mut bytes = session.bytes().to_vec();
        if !write_frame(&mut bytes, datagram) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.dial.send(&bytes)
    }

    /// The next datagram, for which it waits until `deadline`.
    pub(super) fn receive(&mut self, deadline: Instant) -> Result<Vec<u8>, NoReply> {
        loop {
            let mut frames = Frames::new(&self.received, BYTE_ORDER, DATAGRAM_LEN_MAX);
            if let Some(Ok(datagram)) = frames.next() {
                return Ok(datagram.to_vec());
            }
            let has_none = self.received.is_empty();
            let mut bytes = [0; 8192];
            match self.dial.read(&mut bytes, deadline) {
                Ok(len) => self.received.extend_from_slice(&bytes[..len]),
                Err(NoBytes::Failed(error)) => return Err(NoReply::Failed(error)),
                Err(NoBytes::TimedOut) if has_none => return Err(NoReply::TimedOut),
                Err(NoBytes::Closed) if has_none => return Err(NoReply::Closed),
                Err(NoBytes::TimedOut | NoBytes::Closed) => {
                    return Err(NoReply::OtherProtocol(std::mem::take(&mut self.received)));
                }
            }
        }
    }
}
