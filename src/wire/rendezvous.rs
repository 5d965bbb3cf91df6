//! The rendezvous protocol: members of a room find each other through a server.
//!
//! ```text
//! datagram = f5 72 76 01 . type:u8 . body                        (numbers are big-endian)
//! endpoint = family:u8 (4, 6) . port:u16 . address:16            (of IPv4 four bytes, then zeros)
//! sealed   = length:u16 (at most 512) . bytes that only the members can read
//! ```
//!
//! The types and their bodies are in `docs/protocols/rendezvous.md`, and here in [`Request`] (from
//! a client) and [`Answer`] (from the server), in the order of their fields.
//!
//! A server tells a member where it sees it, 192.0.2.1:5000, and what its cookie is:
//!
//! ```
//! use udpferry::wire::rendezvous::{Answer, Cookie, parse_answer, write_answer};
//! let answer = Answer::Cookie {
//!     tx: 7,
//!     cookie: Cookie([9; 16]),
//!     endpoint: "192.0.2.1:5000".parse().unwrap(),
//! };
//! let mut datagram = Vec::new();
//! write_answer(&mut datagram, &answer);
//! assert_eq!(datagram[..13], [0xf5, b'r', b'v', 1, 0x81, 0, 0, 0, 0, 0, 0, 0, 7]);
//! assert_eq!(datagram[29..37], [4, 0x13, 0x88, 192, 0, 2, 1, 0]);
//! assert_eq!(parse_answer(&datagram), Some(answer));
//! ```

use super::cursor::Cursor;
use std::net::{IpAddr, SocketAddr};

/// The first bytes of every datagram: f5 is in no UTF-8 text and in no STUN message; 1 is the
/// protocol's version.
pub const MAGIC: [u8; 4] = [0xf5, b'r', b'v', 1];
/// A hello is at least as long, so that its answer (48 bytes) is the shorter one.
pub const HELLO_LEN_MIN: usize = 64;
/// Bytes of an announcement, at most: a datagram that introduces it crosses any path unfragmented.
pub const SEALED_LEN_MAX: usize = 512;
/// Bytes of [`Request::Relay`] and [`Answer::Relayed`] before the carried datagram.
pub const RELAY_HEADER_LEN: usize = 13;
/// The longest datagram of all but the relay's.
pub const DATAGRAM_LEN_MAX: usize = 640;

const ENDPOINT_PADDING_IPV4: [u8; 12] = [0; 12];

/// What a server keys to an address, to see that its holder receives there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cookie(pub [u8; 16]);

/// A room, as the server knows it: derived from a name and a secret that it does not see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomId(pub [u8; 16]);

/// A member's secret, from which its [`MemberId`] follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token(pub [u8; 16]);

/// A member of a room, as everybody knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId(pub [u8; 8]);

/// A member's endpoints, as the server sees them: one or two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoints {
    /// Over the first family in which the member registered.
    pub first: SocketAddr,
    /// Over the other one.
    pub second: Option<SocketAddr>,
}

impl Endpoints {
    /// Both, if there are two.
    pub fn iter(self) -> impl Iterator<Item = SocketAddr> {
        std::iter::once(self.first).chain(self.second)
    }
}

/// What a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// Asks for a cookie.
    Hello {
        /// Random; the answer has it too.
        tx: u64,
        /// The room that will be entered.
        room: RoomId,
    },
    /// Enters a room, or stays in it.
    Register {
        /// Random; the answer has it too.
        tx: u64,
        /// As given by the server.
        cookie: Cookie,
        /// The room.
        room: RoomId,
        /// Whose registration it is.
        token: Token,
        /// The round trip to the server as measured, in milliseconds.
        rtt_ms: u16,
        /// The announcement, at most [`SEALED_LEN_MAX`] bytes.
        sealed: &'a [u8],
    },
    /// An introduction has arrived.
    Introduced {
        /// Its number.
        introduction: u64,
    },
    /// Asks to be introduced to a member again.
    Call {
        /// Random.
        tx: u64,
        /// As given by the server.
        cookie: Cookie,
        /// The room.
        room: RoomId,
        /// Who asks.
        token: Token,
        /// To whom.
        member: MemberId,
    },
    /// Leaves the room.
    Leave {
        /// Random; the answer has it too.
        tx: u64,
        /// As given by the server.
        cookie: Cookie,
        /// The room.
        room: RoomId,
        /// Who leaves.
        token: Token,
    },
    /// A datagram for another member, through the server.
    Relay {
        /// For whom.
        member: MemberId,
        /// The datagram.
        payload: &'a [u8],
    },
}

/// Why a registration was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// The server has as many rooms as it takes.
    RoomsFull = 1,
    /// The room has as many members as it takes.
    RoomFull = 2,
    /// The address has made too many requests.
    TooManyRequests = 3,
}

/// What the server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The cookie for the asking endpoint.
    Cookie {
        /// The request's.
        tx: u64,
        /// For the requests to come, for half a minute to a minute.
        cookie: Cookie,
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
    Introduce {
        /// The introduction's number, for its acknowledgement.
        introduction: u64,
        /// Milliseconds until the first probe shall be sent.
        start_ms: u16,
        /// Who it is.
        member: MemberId,
        /// Where the server sees it.
        endpoints: Endpoints,
        /// Its announcement, at most [`SEALED_LEN_MAX`] bytes.
        sealed: &'a [u8],
    },
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

const HELLO: u8 = 0x01;
const REGISTER: u8 = 0x02;
const INTRODUCED: u8 = 0x03;
const CALL: u8 = 0x04;
const LEAVE: u8 = 0x05;
const RELAY: u8 = 0x06;
const COOKIE: u8 = 0x81;
const REGISTERED: u8 = 0x82;
const INTRODUCE: u8 = 0x83;
const GONE: u8 = 0x84;
const LEFT: u8 = 0x85;
const RELAYED: u8 = 0x86;
const REFUSED: u8 = 0x8f;

/// Whether a datagram is of this protocol at all.
pub fn is_rendezvous(datagram: &[u8]) -> bool {
    datagram.starts_with(&MAGIC)
}

/// Reads what a client sent. `None` if it is no well-formed request: an unknown type, too short, a
/// hello under [`HELLO_LEN_MIN`], or bytes left over.
pub fn parse_request(datagram: &[u8]) -> Option<Request<'_>> {
    let (kind, mut body) = open(datagram)?;
    let request = match kind {
        HELLO => {
            if datagram.len() < HELLO_LEN_MIN {
                return None;
            }
            // What follows is padding, of any content and length.
            return Some(Request::Hello { tx: body.u64_be()?, room: room(&mut body)? });
        }
        REGISTER => Request::Register {
            tx: body.u64_be()?,
            cookie: cookie(&mut body)?,
            room: room(&mut body)?,
            token: token(&mut body)?,
            rtt_ms: body.u16_be()?,
            sealed: sealed(&mut body)?,
        },
        INTRODUCED => Request::Introduced { introduction: body.u64_be()? },
        CALL => Request::Call {
            tx: body.u64_be()?,
            cookie: cookie(&mut body)?,
            room: room(&mut body)?,
            token: token(&mut body)?,
            member: member(&mut body)?,
        },
        LEAVE => Request::Leave {
            tx: body.u64_be()?,
            cookie: cookie(&mut body)?,
            room: room(&mut body)?,
            token: token(&mut body)?,
        },
        RELAY => {
            return Some(Request::Relay { member: member(&mut body)?, payload: body.rest() });
        }
        _ => return None,
    };
    body.rest().is_empty().then_some(request)
}

/// Reads what the server sent. `None` if it is no well-formed answer: an unknown type, too short, or
/// bytes left over.
pub fn parse_answer(datagram: &[u8]) -> Option<Answer<'_>> {
    let (kind, mut body) = open(datagram)?;
    let answer = match kind {
        COOKIE => Answer::Cookie {
            tx: body.u64_be()?,
            cookie: cookie(&mut body)?,
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
        INTRODUCE => Answer::Introduce {
            introduction: body.u64_be()?,
            start_ms: body.u16_be()?,
            member: member(&mut body)?,
            endpoints: read_endpoints(&mut body)?,
            sealed: sealed(&mut body)?,
        },
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

/// Appends a request's datagram. `sealed` beyond [`SEALED_LEN_MAX`] bytes is cut off, which no
/// caller wants: check before.
pub fn write_request(out: &mut Vec<u8>, request: &Request<'_>) {
    out.extend_from_slice(&MAGIC);
    match *request {
        Request::Hello { tx, room } => {
            out.push(HELLO);
            out.extend_from_slice(&tx.to_be_bytes());
            out.extend_from_slice(&room.0);
            let written = MAGIC.len().saturating_add(1 + 8 + 16);
            out.resize(out.len().saturating_add(HELLO_LEN_MIN.saturating_sub(written)), 0);
        }
        Request::Register { tx, cookie, room, token, rtt_ms, sealed } => {
            out.push(REGISTER);
            write_proof(out, tx, cookie, room, token);
            out.extend_from_slice(&rtt_ms.to_be_bytes());
            write_sealed(out, sealed);
        }
        Request::Introduced { introduction } => {
            out.push(INTRODUCED);
            out.extend_from_slice(&introduction.to_be_bytes());
        }
        Request::Call { tx, cookie, room, token, member } => {
            out.push(CALL);
            write_proof(out, tx, cookie, room, token);
            out.extend_from_slice(&member.0);
        }
        Request::Leave { tx, cookie, room, token } => {
            out.push(LEAVE);
            write_proof(out, tx, cookie, room, token);
        }
        Request::Relay { member, payload } => {
            out.push(RELAY);
            out.extend_from_slice(&member.0);
            out.extend_from_slice(payload);
        }
    }
}

/// Appends an answer's datagram. `sealed` as in [`write_request`].
pub fn write_answer(out: &mut Vec<u8>, answer: &Answer<'_>) {
    out.extend_from_slice(&MAGIC);
    match *answer {
        Answer::Cookie { tx, cookie, endpoint } => {
            out.push(COOKIE);
            out.extend_from_slice(&tx.to_be_bytes());
            out.extend_from_slice(&cookie.0);
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
        Answer::Introduce { introduction, start_ms, member, endpoints, sealed } => {
            out.push(INTRODUCE);
            out.extend_from_slice(&introduction.to_be_bytes());
            out.extend_from_slice(&start_ms.to_be_bytes());
            out.extend_from_slice(&member.0);
            out.push(if endpoints.second.is_some() { 2 } else { 1 });
            for endpoint in endpoints.iter() {
                write_endpoint(out, endpoint);
            }
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

/// Reads an endpoint: 19 bytes.
pub fn read_endpoint(cursor: &mut Cursor<'_>) -> Option<SocketAddr> {
    let family = cursor.u8()?;
    let port = cursor.u16_be()?;
    let address: IpAddr = match family {
        4 => {
            let address = cursor.ipv4()?;
            if cursor.take_array()? != ENDPOINT_PADDING_IPV4 {
                return None;
            }
            address.into()
        }
        6 => cursor.ipv6()?.into(),
        _ => return None,
    };
    Some((address, port).into())
}

/// Appends an endpoint: 19 bytes. An IPv6 endpoint's scope and flow label do not travel.
pub fn write_endpoint(out: &mut Vec<u8>, endpoint: SocketAddr) {
    out.push(if endpoint.is_ipv4() { 4 } else { 6 });
    out.extend_from_slice(&endpoint.port().to_be_bytes());
    match endpoint.ip() {
        IpAddr::V4(address) => {
            out.extend_from_slice(&address.octets());
            out.extend_from_slice(&ENDPOINT_PADDING_IPV4);
        }
        IpAddr::V6(address) => out.extend_from_slice(&address.octets()),
    }
}

fn open(datagram: &[u8]) -> Option<(u8, Cursor<'_>)> {
    let mut cursor = Cursor::new(datagram);
    if cursor.take_array()? != MAGIC {
        return None;
    }
    Some((cursor.u8()?, cursor))
}

fn write_proof(out: &mut Vec<u8>, tx: u64, cookie: Cookie, room: RoomId, token: Token) {
    out.extend_from_slice(&tx.to_be_bytes());
    out.extend_from_slice(&cookie.0);
    out.extend_from_slice(&room.0);
    out.extend_from_slice(&token.0);
}

fn write_sealed(out: &mut Vec<u8>, sealed: &[u8]) {
    let sealed = sealed.get(..SEALED_LEN_MAX).unwrap_or(sealed);
    // SEALED_LEN_MAX fits.
    let len = u16::try_from(sealed.len()).unwrap_or(0);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(sealed);
}

fn read_endpoints(cursor: &mut Cursor<'_>) -> Option<Endpoints> {
    let count = cursor.u8()?;
    let first = read_endpoint(cursor)?;
    let second = match count {
        1 => None,
        2 => Some(read_endpoint(cursor)?),
        _ => return None,
    };
    Some(Endpoints { first, second })
}

fn sealed<'a>(cursor: &mut Cursor<'a>) -> Option<&'a [u8]> {
    let len = usize::from(cursor.u16_be()?);
    if len > SEALED_LEN_MAX {
        return None;
    }
    cursor.take(len)
}

fn cookie(cursor: &mut Cursor<'_>) -> Option<Cookie> {
    cursor.take_array().map(Cookie)
}

fn room(cursor: &mut Cursor<'_>) -> Option<RoomId> {
    cursor.take_array().map(RoomId)
}

fn token(cursor: &mut Cursor<'_>) -> Option<Token> {
    cursor.take_array().map(Token)
}

fn member(cursor: &mut Cursor<'_>) -> Option<MemberId> {
    cursor.take_array().map(MemberId)
}

fn flag(byte: u8) -> Option<bool> {
    match byte {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn any_endpoint() -> impl Strategy<Value = SocketAddr> {
        let address = prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits))),
            any::<u128>().prop_map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits))),
        ];
        (address, any::<u16>()).prop_map(SocketAddr::from)
    }

    fn any_bytes(len_max: usize) -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..=len_max)
    }

    /// The numbers and byte strings of any message.
    type Parts = (u64, u16, [[u8; 16]; 3], [u8; 8], [u8; 4], Vec<u8>);

    fn any_parts() -> impl Strategy<Value = Parts> {
        (
            any::<u64>(),
            any::<u16>(),
            any::<[[u8; 16]; 3]>(),
            any::<[u8; 8]>(),
            any::<[u8; 4]>(),
            any_bytes(SEALED_LEN_MAX),
        )
    }

    fn every_request(parts: &Parts) -> Vec<Request<'_>> {
        let (tx, rtt_ms, [cookie, room, token], member, _, ref bytes) = *parts;
        let (cookie, room, token) = (Cookie(cookie), RoomId(room), Token(token));
        let member = MemberId(member);
        vec![
            Request::Hello { tx, room },
            Request::Register { tx, cookie, room, token, rtt_ms, sealed: bytes },
            Request::Introduced { introduction: tx },
            Request::Call { tx, cookie, room, token, member },
            Request::Leave { tx, cookie, room, token },
            Request::Relay { member, payload: bytes },
        ]
    }

    fn every_answer(
        parts: &Parts,
        first: SocketAddr,
        second: Option<SocketAddr>,
    ) -> Vec<Answer<'_>> {
        let (tx, number, [cookie, ..], member, [a, b, c, members], ref bytes) = *parts;
        let member = MemberId(member);
        let reason = match a % 3 {
            0 => Refusal::RoomsFull,
            1 => Refusal::RoomFull,
            _ => Refusal::TooManyRequests,
        };
        vec![
            Answer::Cookie { tx, cookie: Cookie(cookie), endpoint: first },
            Answer::Registered {
                tx,
                member,
                endpoint: first,
                refresh_s: number,
                expiry_s: u16::from(b),
                relay: c % 2 == 0,
                members,
            },
            Answer::Introduce {
                introduction: tx,
                start_ms: number,
                member,
                endpoints: Endpoints { first, second },
                sealed: bytes,
            },
            Answer::Gone { member },
            Answer::Left { tx },
            Answer::Relayed { member, payload: bytes },
            Answer::Refused { tx, reason },
        ]
    }

    proptest! {
        #[test]
        fn requests_are_read_as_written(parts in any_parts()) {
            for request in every_request(&parts) {
                let mut datagram = Vec::new();
                write_request(&mut datagram, &request);
                prop_assert!(is_rendezvous(&datagram));
                prop_assert_eq!(parse_request(&datagram), Some(request));
                prop_assert_eq!(parse_answer(&datagram), None, "a request is no answer");
                if !matches!(request, Request::Relay { .. }) {
                    prop_assert!(datagram.len() <= DATAGRAM_LEN_MAX);
                    for len in 0..datagram.len() {
                        prop_assert_eq!(parse_request(&datagram[..len]), None);
                    }
                }
                if !matches!(request, Request::Relay { .. } | Request::Hello { .. }) {
                    datagram.push(0);
                    prop_assert_eq!(parse_request(&datagram), None, "bytes left over");
                }
            }
        }

        #[test]
        fn answers_are_read_as_written(
            parts in any_parts(),
            first in any_endpoint(),
            second in proptest::option::of(any_endpoint()),
        ) {
            for answer in every_answer(&parts, first, second) {
                let mut datagram = Vec::new();
                write_answer(&mut datagram, &answer);
                prop_assert_eq!(parse_answer(&datagram), Some(answer));
                prop_assert_eq!(parse_request(&datagram), None, "an answer is no request");
                if !matches!(answer, Answer::Relayed { .. }) {
                    prop_assert!(datagram.len() <= DATAGRAM_LEN_MAX);
                    for len in 0..datagram.len() {
                        prop_assert_eq!(parse_answer(&datagram[..len]), None);
                    }
                    datagram.push(0);
                    prop_assert_eq!(parse_answer(&datagram), None, "bytes left over");
                }
            }
        }

        #[test]
        fn whatever_is_read_is_written_alike(kind in any::<u8>(), body in any_bytes(700)) {
            let mut datagram = [&MAGIC[..], &[kind]].concat();
            datagram.extend(body);
            let mut again = Vec::new();
            if let Some(answer) = parse_answer(&datagram) {
                write_answer(&mut again, &answer);
                prop_assert_eq!(&again, &datagram);
            }
            again.clear();
            if let Some(request) = parse_request(&datagram) {
                write_request(&mut again, &request);
                if !matches!(request, Request::Hello { .. }) {
                    prop_assert_eq!(&again, &datagram);
                }
            }
        }
    }

    #[test]
    fn the_answer_to_an_unproven_address_is_shorter_than_its_hello() {
        let mut hello = Vec::new();
        write_request(&mut hello, &Request::Hello { tx: 1, room: RoomId([2; 16]) });
        assert_eq!(hello.len(), HELLO_LEN_MIN);
        assert_eq!(parse_request(&hello[..HELLO_LEN_MIN - 1]), None);
        for endpoint in ["192.0.2.1:1", "[2001:db8::1]:1"] {
            let endpoint = endpoint.parse().unwrap();
            let mut answer = Vec::new();
            write_answer(&mut answer, &Answer::Cookie { tx: 1, cookie: Cookie([3; 16]), endpoint });
            assert_eq!(answer.len(), 48);
        }
    }
}
