//! A blocking udpgw client, for `check` and `selftest`.

use crate::roles::dial::{Dial, is_known};
use crate::roles::framed::{Framed, Framing, NoReply};
use crate::wire::udpgw::{
    BODY_LEN_MAX, BYTE_ORDER, Datagram, Message, parse, write_frame, write_keepalive,
};
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

/// A datagram that came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub conid: u16,
    pub address: SocketAddr,
    pub payload: Vec<u8>,
}

const FRAMING: Framing = Framing {
    order: BYTE_ORDER,
    body_len_max: BODY_LEN_MAX,
    // Their first bytes announce frames that never end.
    is_foreign: is_known,
};

/// One connection to a gateway.
pub(super) struct Probe {
    framed: Framed,
}

impl Probe {
    /// Speaks udpgw on this connection.
    pub(super) fn new(dial: Dial) -> Probe {
        Probe { framed: Framed::new(dial, FRAMING) }
    }

    /// Sends one datagram.
    pub(super) fn send(&mut self, datagram: &Datagram<'_>) -> io::Result<()> {
        let mut frame = Vec::new();
        if !write_frame(&mut frame, datagram) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.framed.send(&frame)
    }

    /// Sends a keepalive.
    pub(super) fn keepalive(&mut self) -> io::Result<()> {
        let mut frame = Vec::new();
        write_keepalive(&mut frame);
        self.framed.send(&frame)
    }

    /// The next datagram, for which it waits until `deadline`.
    pub(super) fn receive(&mut self, deadline: Instant) -> Result<Reply, NoReply> {
        self.framed.receive(deadline, |body| match parse(body) {
            Ok(Message::Datagram(datagram)) => Some(Reply {
                conid: datagram.conid,
                address: datagram.address,
                payload: datagram.payload.to_vec(),
            }),
            // A gateway sends no keepalive.
            Ok(Message::Keepalive) | Err(_) => None,
        })
    }
}
