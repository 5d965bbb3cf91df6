//! What the server sends.

use super::{
    Cookie, Endpoints, MAGIC, MemberId, Pass, Refusal, ServerKey, member, open, read_endpoint,
    read_endpoints, read_sealed, write_endpoint, write_endpoints, write_sealed,
};
use std::net::SocketAddr;

/// What the server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The cookie for the asking endpoint.
    Cookie {
        /// The request's.
        tx: u64,
        /// For the requests to come.
        pass: Pass,
        /// The endpoint that asked, as the server sees it.
        endpoint: SocketAddr,
    },
    /// The client is in the room.
    Registered {
        /// The request's.
        tx: u64,
        /// The client, as the others will know it.
        member: MemberId,
        /// The client's endpoint, as the server sees it.
        endpoint: SocketAddr,
        /// Seconds after which to register again.
        refresh_s: u16,
        /// Seconds after which a silent member is gone.
        expiry_s: u16,
        /// The server carries datagrams between members.
        relay: bool,
        /// Members in the room, this one included.
        members: u8,
    },
    /// Another member: probe it, and expect its probes.
    Introduce(Introduced<'a>),
    /// A member is not in the room any more.
    Gone {
        /// Which.
        member: MemberId,
    },
    /// The client is not in the room any more.
    Left {
        /// The request's.
        tx: u64,
    },
    /// A datagram of another member, through the server.
    Relayed {
        /// Whose.
        member: MemberId,
        /// The datagram.
        payload: &'a [u8],
    },
    /// The registration was refused.
    Refused {
        /// The request's.
        tx: u64,
        /// Why.
        reason: Refusal,
    },
}

/// What a member is told of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Introduced<'a> {
    /// The introduction's number, for its acknowledgement.
    pub introduction: u64,
    /// Milliseconds until the first probe shall be sent.
    pub start_ms: u16,
    /// Who it is.
    pub member: MemberId,
    /// The server's relay, if it has one, reaches it: a member at another server is not reached.
    pub is_here: bool,
    /// Where it is seen.
    pub endpoints: Endpoints,
    /// Its announcement, at most [`super::SEALED_LEN_MAX`] bytes.
    pub sealed: &'a [u8],
}

const COOKIE: u8 = 0x81;
const REGISTERED: u8 = 0x82;
const INTRODUCE: u8 = 0x83;
const GONE: u8 = 0x84;
const LEFT: u8 = 0x85;
const RELAYED: u8 = 0x86;
const REFUSED: u8 = 0x8f;

/// Reads what the server sent. `None` if it is no well-formed answer: an unknown type, too short, or
/// bytes left over.
pub fn parse_answer(datagram: &[u8]) -> Option<Answer<'_>> {
    let (kind, mut body) = open(datagram)?;
    let answer = match kind {
        COOKIE => Answer::Cookie {
            tx: body.u64_be()?,
            pass: Pass {
                cookie: body.take_array().map(Cookie)?,
                server: body.take_array().map(ServerKey)?,
            },
            endpoint: read_endpoint(&mut body)?,
        },
        REGISTERED => Answer::Registered {
            tx: body.u64_be()?,
            member: member(&mut body)?,
            endpoint: read_endpoint(&mut body)?,
            refresh_s: body.u16_be()?,
            expiry_s: body.u16_be()?,
            relay: flag(body.u8()?)?,
            members: body.u8()?,
        },
        INTRODUCE => Answer::Introduce(Introduced {
            introduction: body.u64_be()?,
            start_ms: body.u16_be()?,
            member: member(&mut body)?,
            is_here: flag(body.u8()?)?,
            endpoints: read_endpoints(&mut body)?,
            sealed: read_sealed(&mut body)?,
        }),
        GONE => Answer::Gone { member: member(&mut body)? },
        LEFT => Answer::Left { tx: body.u64_be()? },
        RELAYED => {
            return Some(Answer::Relayed { member: member(&mut body)?, payload: body.rest() });
        }
        REFUSED => Answer::Refused {
            tx: body.u64_be()?,
            reason: match body.u8()? {
                1 => Refusal::RoomsFull,
                2 => Refusal::RoomFull,
                3 => Refusal::TooManyRequests,
                _ => return None,
            },
        },
        _ => return None,
    };
    body.rest().is_empty().then_some(answer)
}

/// Appends an answer's datagram. `sealed` beyond [`super::SEALED_LEN_MAX`] bytes is cut off, which no
/// caller wants: check before.
pub fn write_answer(out: &mut Vec<u8>, answer: &Answer<'_>) {
    out.extend_from_slice(&MAGIC);
    match *answer {
        Answer::Cookie { tx, pass, endpoint } => {
            out.push(COOKIE);
            out.extend_from_slice(&tx.to_be_bytes());
            out.extend_from_slice(&pass.cookie.0);
            out.extend_from_slice(&pass.server.0);
            write_endpoint(out, endpoint);
        }
        Answer::Registered { tx, member, endpoint, refresh_s, expiry_s, relay, members } => {
            out.push(REGISTERED);
            out.extend_from_slice(&tx.to_be_bytes());
            out.extend_from_slice(&member.0);
            write_endpoint(out, endpoint);
            out.extend_from_slice(&refresh_s.to_be_bytes());
            out.extend_from_slice(&expiry_s.to_be_bytes());
            out.extend_from_slice(&[u8::from(relay), members]);
        }
        Answer::Introduce(Introduced {
            introduction,
            start_ms,
            member,
            is_here,
            endpoints,
            sealed,
        }) => {
            out.push(INTRODUCE);
            out.extend_from_slice(&introduction.to_be_bytes());
            out.extend_from_slice(&start_ms.to_be_bytes());
            out.extend_from_slice(&member.0);
            out.push(u8::from(is_here));
            write_endpoints(out, endpoints);
            write_sealed(out, sealed);
        }
        Answer::Gone { member } => {
            out.push(GONE);
            out.extend_from_slice(&member.0);
        }
        Answer::Left { tx } => {
            out.push(LEFT);
            out.extend_from_slice(&tx.to_be_bytes());
        }
        Answer::Relayed { member, payload } => {
            out.push(RELAYED);
            out.extend_from_slice(&member.0);
            out.extend_from_slice(payload);
        }
        Answer::Refused { tx, reason } => {
            out.push(REFUSED);
            out.extend_from_slice(&tx.to_be_bytes());
            out.push(reason as u8);
        }
    }
}

fn flag(byte: u8) -> Option<bool> {
    match byte {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}
