//! A blocking udpgw client, for `check` and `selftest`.

use crate::roles::dial::{Dial, NoBytes, is_known};
use crate::wire::length_prefix::Frames;
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

/// What reading from a gateway yields instead of a datagram.
#[derive(Debug)]
pub(super) enum NoReply {
    /// Nothing came in time.
    TimedOut,
    /// The gateway closed the connection.
    Closed,
    /// What came is not udpgw; its first bytes.
    OtherProtocol(Vec<u8>),
    /// The connection failed.
    Failed(io::Error),
}

/// One connection to a gateway.
pub(super) struct Probe {
    dial: Dial,
    received: Vec<u8>,
}

impl Probe {
    /// Speaks udpgw on this connection.
    pub(super) fn new(dial: Dial) -> Probe {
        Probe { dial, received: Vec::new() }
    }

    /// Sends one datagram.
    pub(super) fn send(&mut self, datagram: &Datagram<'_>) -> io::Result<()> {
        let mut frame = Vec::new();
        if !write_frame(&mut frame, datagram) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.dial.send(&frame)
    }

    /// Sends a keepalive.
    pub(super) fn keepalive(&mut self) -> io::Result<()> {
        let mut frame = Vec::new();
        write_keepalive(&mut frame);
        self.dial.send(&frame)
    }

    /// The next datagram, for which it waits until `deadline`.
    pub(super) fn receive(&mut self, deadline: Instant) -> Result<Reply, NoReply> {
        loop {
            let mut frames = Frames::new(&self.received, BYTE_ORDER, BODY_LEN_MAX);
            if let Some(Ok(body)) = frames.next() {
                let reply = match parse(body) {
                    Ok(Message::Datagram(datagram)) => Ok(Reply {
                        conid: datagram.conid,
                        address: datagram.address,
                        payload: datagram.payload.to_vec(),
                    }),
                    // A gateway sends no keepalive.
                    Ok(Message::Keepalive) | Err(_) => {
                        Err(NoReply::OtherProtocol(self.received.clone()))
                    }
                };
                let rest = frames.unfinished().len();
                self.received.drain(..self.received.len() - rest);
                return reply;
            }
            let mut bytes = [0; 8192];
            let has_none = self.received.is_empty();
            match self.dial.read(&mut bytes, deadline) {
                Ok(len) => {
                    self.received.extend_from_slice(&bytes[..len]);
                    // Their first bytes announce frames that never end.
                    if is_known(&self.received) {
                        return Err(NoReply::OtherProtocol(self.received.clone()));
                    }
                }
                Err(NoBytes::Failed(error)) => return Err(NoReply::Failed(error)),
                Err(NoBytes::TimedOut) if has_none => return Err(NoReply::TimedOut),
                Err(NoBytes::Closed) if has_none => return Err(NoReply::Closed),
                Err(NoBytes::TimedOut | NoBytes::Closed) => {
                    return Err(NoReply::OtherProtocol(self.received.clone()));
                }
            }
        }
    }
}
