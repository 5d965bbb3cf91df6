//! The rendezvous protocol: members of a room find each other through a server.
//!
//! ```text
//! datagram = f5 72 76 01 . type:u8 . body                        (numbers are big-endian)
//! endpoint = family:u8 (4, 6) . port:u16 . address:16            (of IPv4 four bytes, then zeros)
//! sealed   = length:u16 (at most 512) . bytes that only the members can read
//! ```
//!
//! The types and their bodies are in `docs/protocols/rendezvous.md`, and in [`request`] (from a
//! client) and [`answer`] (from the server), in the order of their fields. What the servers of one
//! registry tell each other is in [`shared`].
//!
//! A server tells a member where it sees it, 192.0.2.1:5000, and what its cookie is:
//!
//! ```
//! use udpferry::wire::rendezvous::answer::{Answer, parse_answer, write_answer};
//! use udpferry::wire::rendezvous::{Cookie, Pass, ServerKey};
//! let answer = Answer::Cookie {
//!     tx: 7,
//!     pass: Pass { cookie: Cookie([9; 16]), server: ServerKey([8; 32]) },
//!     endpoint: "192.0.2.1:5000".parse().unwrap(),
//! };
//! let mut datagram = Vec::new();
//! write_answer(&mut datagram, &answer);
//! assert_eq!(datagram[..13], [0xf5, b'r', b'v', 1, 0x81, 0, 0, 0, 0, 0, 0, 0, 7]);
//! assert_eq!(datagram[61..69], [4, 0x13, 0x88, 192, 0, 2, 1, 0]);
//! assert_eq!(parse_answer(&datagram), Some(answer));
//! ```

pub mod answer;
pub mod request;
pub mod shared;

use super::cursor::Cursor;
use std::net::{IpAddr, SocketAddr};

/// The first bytes of every datagram: f5 is in no UTF-8 text and in no STUN message; 1 is the
/// protocol's version.
pub const MAGIC: [u8; 4] = [0xf5, b'r', b'v', 1];
/// Bytes of an announcement, at most: a datagram that introduces it crosses any path unfragmented.
pub const SEALED_LEN_MAX: usize = 512;
/// The longest datagram of all but the relay's.
pub const DATAGRAM_LEN_MAX: usize = 640;

const ENDPOINT_PADDING_IPV4: [u8; 12] = [0; 12];

/// What a server keys to an address, to see that its holder receives there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cookie(pub [u8; 16]);

/// A server's X25519 key, as old as its process: requests are encrypted to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerKey(pub [u8; 32]);

/// What a server gives to whoever receives at an address: what requests from there take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    /// To be shown, for half a minute to a minute.
    pub cookie: Cookie,
    /// The key to encrypt to.
    pub server: ServerKey,
}

/// A room, as the server knows it: derived from a name and a secret that it does not see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomId(pub [u8; 16]);

/// A member's X25519 key towards servers, made per run: from it follows its [`MemberId`], and only
/// who has its other half can ask anything in the member's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MemberKey(pub [u8; 32]);

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

/// Whether a datagram is of this protocol at all.
pub fn is_rendezvous(datagram: &[u8]) -> bool {
    datagram.starts_with(&MAGIC)
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

fn write_endpoints(out: &mut Vec<u8>, endpoints: Endpoints) {
    out.push(if endpoints.second.is_some() { 2 } else { 1 });
    for endpoint in endpoints.iter() {
        write_endpoint(out, endpoint);
    }
}

fn read_sealed<'a>(cursor: &mut Cursor<'a>) -> Option<&'a [u8]> {
    let len = usize::from(cursor.u16_be()?);
    if len > SEALED_LEN_MAX {
        return None;
    }
    cursor.take(len)
}

fn write_sealed(out: &mut Vec<u8>, sealed: &[u8]) {
    let sealed = sealed.get(..SEALED_LEN_MAX).unwrap_or(sealed);
    // SEALED_LEN_MAX fits.
    let len = u16::try_from(sealed.len()).unwrap_or(0);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(sealed);
}

fn open(datagram: &[u8]) -> Option<(u8, Cursor<'_>)> {
    let mut cursor = Cursor::new(datagram);
    if cursor.take_array()? != MAGIC {
        return None;
    }
    Some((cursor.u8()?, cursor))
}

fn room(cursor: &mut Cursor<'_>) -> Option<RoomId> {
    cursor.take_array().map(RoomId)
}

fn member(cursor: &mut Cursor<'_>) -> Option<MemberId> {
    cursor.take_array().map(MemberId)
}

#[cfg(test)]
mod tests;
