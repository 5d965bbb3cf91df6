//! A blocking connection of a pool session, for `check`.

use crate::roles::dial::Dial;
use crate::roles::framed::{Framed, Framing, NoReply};
use crate::wire::pool::{BYTE_ORDER, DATAGRAM_LEN_MAX, SessionId, write_frame};
use std::io;
use std::time::Instant;

const FRAMING: Framing = Framing {
    order: BYTE_ORDER,
    body_len_max: DATAGRAM_LEN_MAX,
    // A target may answer anything: a datagram of 5,379 bytes begins as a TLS alert does.
    is_foreign: |_| false,
};

/// One connection to a server.
pub(super) struct Probe {
    framed: Framed,
}

impl Probe {
    /// Speaks the pool's protocol on this connection.
    pub(super) fn new(dial: Dial) -> Probe {
        Probe { framed: Framed::new(dial, FRAMING) }
    }

    /// Sends the session's id and a datagram, together.
    pub(super) fn open(&mut self, session: SessionId, datagram: &[u8]) -> io::Result<()> {
        let mut bytes = session.bytes().to_vec();
        if !write_frame(&mut bytes, datagram) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.framed.send(&bytes)
    }

    /// The next datagram, for which it waits until `deadline`.
    pub(super) fn receive(&mut self, deadline: Instant) -> Result<Vec<u8>, NoReply> {
        self.framed.receive(deadline, |datagram| Some(datagram.to_vec()))
    }
}
