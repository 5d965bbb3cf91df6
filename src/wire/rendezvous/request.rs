//! What a client sends.
//!
//! Three kinds travel in the clear: a hello, an acknowledgement, and what is to be relayed. All else
//! that a member asks is a [`Wish`], encrypted to the server: who overhears it can neither repeat it
//! from elsewhere nor learn which room it is about.

use super::{
    Cookie, MAGIC, MemberId, MemberKey, RoomId, member, open, read_sealed, room, write_sealed,
};
use crate::wire::cursor::Cursor;

/// A hello is at least as long, so that its answer (80 bytes) is the shorter one.
pub const HELLO_LEN_MIN: usize = 96;
/// Bytes of [`Request::Relay`], and of a relayed datagram on its way on, before what is carried.
pub const RELAY_HEADER_LEN: usize = 13;
/// Bytes of a [`Request::Boxed`] before what is encrypted; they are authenticated with it.
pub const BOX_HEADER_LEN: usize = 61;
/// Bytes that authenticate what is encrypted, at its end.
pub const BOX_TAG_LEN: usize = 16;

/// A wish without anything of its own.
const WISH_LEN_MIN: usize = 17;

/// What a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// Asks for a cookie.
    Hello {
        /// Random; the answer has it too.
        tx: u64,
    },
    /// Something that only the server can read: a [`Wish`].
    Boxed(Boxed<'a>),
    /// An introduction has arrived.
    Introduced {
        /// Its number.
        introduction: u64,
    },
    /// A datagram for another member, through the server.
    Relay {
        /// For whom.
        member: MemberId,
        /// The datagram.
        payload: &'a [u8],
    },
}

/// A wish as it travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boxed<'a> {
    /// Random, and never the same twice under one key; the answer has it too.
    pub tx: u64,
    /// As given by the server.
    pub cookie: Cookie,
    /// Who asks.
    pub key: MemberKey,
    /// The encrypted wish and its tag.
    pub ciphertext: &'a [u8],
}

/// What a member asks of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish<'a> {
    /// To enter the room, or to stay in it.
    Register {
        /// The round trip to the server as measured, in milliseconds.
        rtt_ms: u16,
        /// The announcement, at most [`super::SEALED_LEN_MAX`] bytes.
        sealed: &'a [u8],
    },
    /// To be introduced to a member again.
    Call {
        /// To whom.
        member: MemberId,
    },
    /// To leave the room.
    Leave,
}

const HELLO: u8 = 0x01;
const BOXED: u8 = 0x02;
const INTRODUCED: u8 = 0x03;
const RELAY: u8 = 0x04;

const REGISTER: u8 = 1;
const CALL: u8 = 2;
const LEAVE: u8 = 3;

/// Reads what a client sent. `None` if it is no well-formed request: an unknown type, too short, a
/// hello under [`HELLO_LEN_MIN`], or bytes left over.
pub fn parse_request(datagram: &[u8]) -> Option<Request<'_>> {
    let (kind, mut body) = open(datagram)?;
    match kind {
        // What follows is padding, of any content and length.
        HELLO if datagram.len() >= HELLO_LEN_MIN => Some(Request::Hello { tx: body.u64_be()? }),
        BOXED => {
            let tx = body.u64_be()?;
            let cookie = body.take_array().map(Cookie)?;
            let key = body.take_array().map(MemberKey)?;
            let ciphertext = body.rest();
            (ciphertext.len() >= WISH_LEN_MIN.saturating_add(BOX_TAG_LEN))
                .then_some(Request::Boxed(Boxed { tx, cookie, key, ciphertext }))
        }
        INTRODUCED => {
            let introduction = body.u64_be()?;
            body.rest().is_empty().then_some(Request::Introduced { introduction })
        }
        RELAY => Some(Request::Relay { member: member(&mut body)?, payload: body.rest() }),
        _ => None,
    }
}

/// Appends a request's datagram.
pub fn write_request(out: &mut Vec<u8>, request: &Request<'_>) {
    match *request {
        Request::Hello { tx } => {
            out.extend_from_slice(&MAGIC);
            out.push(HELLO);
            out.extend_from_slice(&tx.to_be_bytes());
            let written = MAGIC.len().saturating_add(1 + 8);
            out.resize(out.len().saturating_add(HELLO_LEN_MIN.saturating_sub(written)), 0);
        }
        Request::Boxed(Boxed { tx, cookie, key, ciphertext }) => {
            write_box_header(out, tx, cookie, key);
            out.extend_from_slice(ciphertext);
        }
        Request::Introduced { introduction } => {
            out.extend_from_slice(&MAGIC);
            out.push(INTRODUCED);
            out.extend_from_slice(&introduction.to_be_bytes());
        }
        Request::Relay { member, payload } => {
            out.extend_from_slice(&MAGIC);
            out.push(RELAY);
            out.extend_from_slice(&member.0);
            out.extend_from_slice(payload);
        }
    }
}

/// Appends the [`BOX_HEADER_LEN`] bytes before what is encrypted.
pub fn write_box_header(out: &mut Vec<u8>, tx: u64, cookie: Cookie, key: MemberKey) {
    out.extend_from_slice(&MAGIC);
    out.push(BOXED);
    out.extend_from_slice(&tx.to_be_bytes());
    out.extend_from_slice(&cookie.0);
    out.extend_from_slice(&key.0);
}

/// Reads a decrypted wish, and which room it is about. `None` if it is of an unknown kind, too short,
/// or has bytes left over.
pub fn parse_wish(plain: &[u8]) -> Option<(RoomId, Wish<'_>)> {
    let mut body = Cursor::new(plain);
    let kind = body.u8()?;
    let room = room(&mut body)?;
    let wish = match kind {
        REGISTER => Wish::Register { rtt_ms: body.u16_be()?, sealed: read_sealed(&mut body)? },
        CALL => Wish::Call { member: member(&mut body)? },
        LEAVE => Wish::Leave,
        _ => return None,
    };
    body.rest().is_empty().then_some((room, wish))
}

/// Appends a wish as it is before encryption. `sealed` beyond [`super::SEALED_LEN_MAX`] bytes is cut
/// off, which no caller wants: check before.
pub fn write_wish(out: &mut Vec<u8>, room: RoomId, wish: &Wish<'_>) {
    let kind = match wish {
        Wish::Register { .. } => REGISTER,
        Wish::Call { .. } => CALL,
        Wish::Leave => LEAVE,
    };
    out.push(kind);
    out.extend_from_slice(&room.0);
    match *wish {
        Wish::Register { rtt_ms, sealed } => {
            out.extend_from_slice(&rtt_ms.to_be_bytes());
            write_sealed(out, sealed);
        }
        Wish::Call { member } => out.extend_from_slice(&member.0),
        Wish::Leave => {}
    }
}
