//! What two peers say to each other: probes, announcements and the messages inside their tunnel.
//!
//! ```text
//! probe   = f5 70 65 01 . type:u8 (1 ping, 2 pong) . tx:8 . from:8 . to:8 . endpoint:19 . mac:16
//! message = 45 . kind:u8 . total length:u16 . number:u32 . ff fd 00 00 . 0:u64 . body
//! ```
//!
//! A message has the form of an IPv4 header (protocol 253, RFC 3692) because the tunnel carries IP
//! packets only. The mac of a probe and the sealing of an announcement are made by whoever holds
//! the room's keys; `docs/protocols/peer.md` has the rest.
//!
//! A line of chat, the third of its sender:
//!
//! ```
//! use udpferry::wire::peer::{Kind, Message, parse_message, write_message};
//! let message = Message { kind: Kind::Line, number: 3, body: b"hi" };
//! let mut packet = Vec::new();
//! assert!(write_message(&mut packet, &message));
//! assert_eq!(packet[..12], [0x45, 2, 0, 22, 0, 0, 0, 3, 0xff, 0xfd, 0, 0]);
//! assert_eq!(parse_message(&packet), Some(message));
//! ```

use super::cursor::Cursor;
use super::rendezvous::{MemberId, read_endpoint, write_endpoint};
use std::net::SocketAddr;

/// The first bytes of a probe; 1 is the format's version.
pub const PROBE_MAGIC: [u8; 4] = [0xf5, b'p', b'e', 1];
/// A probe's length, whatever it is.
pub const PROBE_LEN: usize = 64;
/// The authentication code at a probe's end.
pub const MAC_LEN: usize = 16;
/// A message's bytes before its body.
pub const MESSAGE_HEADER_LEN: usize = 20;
/// The longest body of a message: what an IPv4 total length can say.
pub const BODY_LEN_MAX: usize = 65_515;
/// Bytes of a nickname, at most.
pub const NAME_LEN_MAX: usize = 32;
/// Bytes of a line of chat, at most: it crosses any path unfragmented.
pub const LINE_LEN_MAX: usize = 1_024;
/// Endpoints that an announcement names, at most.
pub const ENDPOINTS_MAX: usize = 12;
/// The longest announcement, unsealed.
pub const ANNOUNCEMENT_LEN_MAX: usize = 46 + NAME_LEN_MAX + 19 * ENDPOINTS_MAX;

const VERSION: u8 = 1;
const IPV4_HEADER_OF_20_BYTES: u8 = 0x45;
/// Time to live 255, protocol 253 (RFC 3692, for experiments), no checksum.
const IPV4_CONSTANTS: [u8; 4] = [0xff, 0xfd, 0, 0];
/// No source and no destination.
const IPV4_ADDRESSES: [u8; 8] = [0; 8];

const FLAG_TRIES_HARD: u8 = 1;
const FLAG_SERVES: u8 = 2;
const FLAG_RELAY: u8 = 4;

/// Ping or pong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ProbeKind {
    /// Do you hear me?
    Ping = 1,
    /// I do, from there.
    Pong = 2,
}

/// A question whether a path works, or the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Which of the two.
    pub kind: ProbeKind,
    /// The ping's random number; its pong has it too.
    pub tx: u64,
    /// Who sends it.
    pub from: MemberId,
    /// To whom.
    pub to: MemberId,
    /// Of a pong: where the ping was seen to come from. Of a ping: `0.0.0.0:0`.
    pub seen: SocketAddr,
}

/// Reads a probe: what it says, the bytes that its mac covers, and the mac, which the caller must
/// verify. `None` if it is none.
pub fn parse_probe(datagram: &[u8]) -> Option<(Probe, &[u8], [u8; MAC_LEN])> {
    if datagram.len() != PROBE_LEN {
        return None;
    }
    let (covered, mac) = datagram.split_last_chunk::<MAC_LEN>()?;
    let mut cursor = Cursor::new(covered);
    if cursor.take_array()? != PROBE_MAGIC {
        return None;
    }
    let kind = match cursor.u8()? {
        1 => ProbeKind::Ping,
        2 => ProbeKind::Pong,
        _ => return None,
    };
    let probe = Probe {
        kind,
        tx: cursor.u64_be()?,
        from: MemberId(cursor.take_array()?),
        to: MemberId(cursor.take_array()?),
        seen: read_endpoint(&mut cursor)?,
    };
    Some((probe, covered, *mac))
}

/// Writes a probe into `out`, which it empties first, with the mac that `mac_of` makes of the
/// covered bytes.
pub fn write_probe(out: &mut Vec<u8>, probe: &Probe, mac_of: impl Fn(&[u8]) -> [u8; MAC_LEN]) {
    out.clear();
    out.extend_from_slice(&PROBE_MAGIC);
    out.push(probe.kind as u8);
    out.extend_from_slice(&probe.tx.to_be_bytes());
    out.extend_from_slice(&probe.from.0);
    out.extend_from_slice(&probe.to.0);
    write_endpoint(out, probe.seen);
    let mac = mac_of(out);
    out.extend_from_slice(&mac);
}

/// How a NAT treats what goes out (mapping) or comes in (filtering): RFC 4787, sections 4.1 and 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
#[repr(u8)]
pub enum Dependence {
    /// Not found out.
    #[default]
    Unknown = 0,
    /// The same for all remote endpoints.
    None = 1,
    /// By the remote address.
    Address = 2,
    /// By the remote address and port.
    AddressAndPort = 3,
}

impl Dependence {
    fn from_byte(byte: u8) -> Option<Dependence> {
        match byte {
            0 => Some(Dependence::Unknown),
            1 => Some(Dependence::None),
            2 => Some(Dependence::Address),
            3 => Some(Dependence::AddressAndPort),
            _ => None,
        }
    }
}

/// What a member tells the others through the server, sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// The member's static X25519 key.
    pub public_key: [u8; 32],
    /// Its NAT's mapping.
    pub mapping: Dependence,
    /// Its NAT's filtering.
    pub filtering: Dependence,
    /// It takes part in birthday probing.
    pub tries_hard: bool,
    /// It forwards datagrams to a service of its own.
    pub serves: bool,
    /// It takes datagrams over the server's relay.
    pub relay: bool,
    /// When it was made, in milliseconds since 1970: the later one counts.
    pub made_ms: u64,
    /// Its nickname, at most [`NAME_LEN_MAX`] bytes.
    pub name: String,
    /// Its own interfaces' endpoints, at most [`ENDPOINTS_MAX`].
    pub endpoints: Vec<SocketAddr>,
}

/// Reads an opened announcement. `None` if it is malformed or of another version.
pub fn parse_announcement(plain: &[u8]) -> Option<Announcement> {
    let mut cursor = Cursor::new(plain);
    if cursor.u8()? != VERSION {
        return None;
    }
    let public_key = cursor.take_array()?;
    let mapping = Dependence::from_byte(cursor.u8()?)?;
    let filtering = Dependence::from_byte(cursor.u8()?)?;
    // Flags to come are ignored.
    let flags = cursor.u8()?;
    let made_ms = cursor.u64_be()?;
    let name_len = usize::from(cursor.u8()?);
    if name_len > NAME_LEN_MAX {
        return None;
    }
    let name = std::str::from_utf8(cursor.take(name_len)?).ok()?.to_owned();
    let count = usize::from(cursor.u8()?);
    if count > ENDPOINTS_MAX {
        return None;
    }
    let mut endpoints = Vec::with_capacity(count);
    for _ in 0..count {
        endpoints.push(read_endpoint(&mut cursor)?);
    }
    cursor.rest().is_empty().then_some(Announcement {
        public_key,
        mapping,
        filtering,
        tries_hard: flags & FLAG_TRIES_HARD != 0,
        serves: flags & FLAG_SERVES != 0,
        relay: flags & FLAG_RELAY != 0,
        made_ms,
        name,
        endpoints,
    })
}

/// Appends an announcement, to be sealed. Returns false, and appends nothing, when its name or its
/// endpoints are too many.
pub fn write_announcement(out: &mut Vec<u8>, announcement: &Announcement) -> bool {
    if announcement.name.len() > NAME_LEN_MAX || announcement.endpoints.len() > ENDPOINTS_MAX {
        return false;
    }
    let (Ok(name_len), Ok(count)) =
        (u8::try_from(announcement.name.len()), u8::try_from(announcement.endpoints.len()))
    else {
        return false;
    };
    let mut flags = 0;
    for (set, flag) in [
        (announcement.tries_hard, FLAG_TRIES_HARD),
        (announcement.serves, FLAG_SERVES),
        (announcement.relay, FLAG_RELAY),
    ] {
        flags |= if set { flag } else { 0 };
    }
    out.push(VERSION);
    out.extend_from_slice(&announcement.public_key);
    out.extend_from_slice(&[announcement.mapping as u8, announcement.filtering as u8, flags]);
    out.extend_from_slice(&announcement.made_ms.to_be_bytes());
    out.push(name_len);
    out.extend_from_slice(announcement.name.as_bytes());
    out.push(count);
    for endpoint in &announcement.endpoints {
        write_endpoint(out, *endpoint);
    }
    true
}

/// What a message in the tunnel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The sender is there; the body is [`Greeting`]. Number 0 asks for one back, 1 is that.
    Here = 1,
    /// A line of chat.
    Line = 2,
    /// The line of that number has arrived.
    Got = 3,
    /// The sender leaves.
    Bye = 4,
    /// A forwarded datagram, of the flow of that number, to the service.
    Data = 5,
    /// A forwarded datagram, of the flow of that number, from the service.
    Back = 6,
}

/// The body of [`Kind::Here`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting<'a> {
    /// Another for each time that the sender begins to number its lines.
    pub epoch: u64,
    /// Its nickname, at most [`NAME_LEN_MAX`] bytes.
    pub name: &'a str,
}

/// Reads a greeting. `None` if it is too short, or its name too long or no UTF-8.
pub fn parse_greeting(body: &[u8]) -> Option<Greeting<'_>> {
    let mut cursor = Cursor::new(body);
    let epoch = cursor.u64_be()?;
    let name = std::str::from_utf8(cursor.rest()).ok()?;
    (name.len() <= NAME_LEN_MAX).then_some(Greeting { epoch, name })
}

/// Appends a greeting.
pub fn write_greeting(out: &mut Vec<u8>, greeting: &Greeting<'_>) {
    out.extend_from_slice(&greeting.epoch.to_be_bytes());
    out.extend_from_slice(greeting.name.as_bytes());
}

/// A message in the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// What it is.
    pub kind: Kind,
    /// Of the line or of the flow; of a greeting see [`Kind::Here`].
    pub number: u32,
    /// What it carries.
    pub body: &'a [u8],
}

/// Reads a packet that came out of the tunnel. `None` if it is none of ours.
pub fn parse_message(packet: &[u8]) -> Option<Message<'_>> {
    let total = packet.len();
    let mut cursor = Cursor::new(packet);
    if cursor.u8()? != IPV4_HEADER_OF_20_BYTES {
        return None;
    }
    let kind = match cursor.u8()? {
        1 => Kind::Here,
        2 => Kind::Line,
        3 => Kind::Got,
        4 => Kind::Bye,
        5 => Kind::Data,
        6 => Kind::Back,
        _ => return None,
    };
    if usize::from(cursor.u16_be()?) != total {
        return None;
    }
    let number = cursor.u32_be()?;
    if cursor.take_array()? != IPV4_CONSTANTS || cursor.take_array()? != IPV4_ADDRESSES {
        return None;
    }
    Some(Message { kind, number, body: cursor.rest() })
}

/// A message's header for a body of `body_len` bytes; `None` beyond [`BODY_LEN_MAX`].
pub fn message_header(
    kind: Kind,
    number: u32,
    body_len: usize,
) -> Option<[u8; MESSAGE_HEADER_LEN]> {
    let total = u16::try_from(body_len.checked_add(MESSAGE_HEADER_LEN)?).ok()?;
    let [total_high, total_low] = total.to_be_bytes();
    let [n0, n1, n2, n3] = number.to_be_bytes();
    let [c0, c1, c2, c3] = IPV4_CONSTANTS;
    let header = IPV4_HEADER_OF_20_BYTES;
    let kind = kind as u8;
    Some([
        header, kind, total_high, total_low, n0, n1, n2, n3, c0, c1, c2, c3, 0, 0, 0, 0, 0, 0, 0, 0,
    ])
}

/// Appends a message. Returns false, and appends nothing, when its body is too long.
pub fn write_message(out: &mut Vec<u8>, message: &Message<'_>) -> bool {
    let Some(header) = message_header(message.kind, message.number, message.body.len()) else {
        return false;
    };
    out.extend_from_slice(&header);
    out.extend_from_slice(message.body);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_endpoint() -> impl Strategy<Value = SocketAddr> {
        (any::<std::net::IpAddr>(), any::<u16>()).prop_map(SocketAddr::from)
    }

    fn any_dependence() -> impl Strategy<Value = Dependence> {
        (0..4_u8).prop_map(|byte| Dependence::from_byte(byte).unwrap())
    }

    prop_compose! {
        fn any_announcement()(
            public_key in any::<[u8; 32]>(),
            mapping in any_dependence(),
            filtering in any_dependence(),
            (tries_hard, serves, relay) in any::<(bool, bool, bool)>(),
            made_ms in any::<u64>(),
            name in "\\PC{0,8}",
            endpoints in proptest::collection::vec(any_endpoint(), 0..=ENDPOINTS_MAX),
        ) -> Announcement {
            Announcement {
                public_key, mapping, filtering, tries_hard, serves, relay, made_ms, name, endpoints,
            }
        }
    }

    proptest! {
        #[test]
        fn announcements_are_read_as_written(announcement in any_announcement()) {
            let mut plain = Vec::new();
            prop_assert!(write_announcement(&mut plain, &announcement));
            prop_assert!(plain.len() <= ANNOUNCEMENT_LEN_MAX);
            prop_assert_eq!(parse_announcement(&plain), Some(announcement));
            for len in 0..plain.len() {
                prop_assert_eq!(parse_announcement(&plain[..len]), None);
            }
            plain.push(0);
            prop_assert_eq!(parse_announcement(&plain), None);
        }

        #[test]
        fn probes_are_read_as_written(
            pong: bool, tx: u64, from: [u8; 8], to: [u8; 8], seen in any_endpoint(), mac: [u8; 16],
        ) {
            let kind = if pong { ProbeKind::Pong } else { ProbeKind::Ping };
            let probe = Probe { kind, tx, from: MemberId(from), to: MemberId(to), seen };
            let mut datagram = vec![1, 2, 3];
            write_probe(&mut datagram, &probe, |_| mac);
            prop_assert_eq!(datagram.len(), PROBE_LEN);
            prop_assert_eq!(parse_probe(&datagram), Some((probe, &datagram[..48], mac)));
            for len in 0..datagram.len() {
                prop_assert_eq!(parse_probe(&datagram[..len]), None);
            }
        }

        #[test]
        fn messages_are_read_as_written(
            kind in 1..=6_u8,
            number: u32,
            body in proptest::collection::vec(any::<u8>(), 0..2000),
        ) {
            let kind = [Kind::Here, Kind::Line, Kind::Got, Kind::Bye, Kind::Data, Kind::Back]
                [usize::from(kind) - 1];
            let message = Message { kind, number, body: &body };
            let mut packet = Vec::new();
            prop_assert!(write_message(&mut packet, &message));
            prop_assert_eq!(parse_message(&packet), Some(message));
            packet.push(0);
            prop_assert_eq!(parse_message(&packet), None, "longer than it says");
        }

        #[test]
        fn garbage_is_refused_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..128),
        ) {
            let _ = parse_announcement(&bytes);
            let _ = parse_probe(&bytes);
            if let Some(message) = parse_message(&bytes) {
                let mut again = Vec::new();
                prop_assert!(write_message(&mut again, &message));
                prop_assert_eq!(again, bytes);
            }
        }
    }

    #[test]
    fn a_greeting_is_read_as_written() {
        let greeting = Greeting { epoch: 0x0102_0304_0506_0708, name: "ana" };
        let mut body = Vec::new();
        write_greeting(&mut body, &greeting);
        assert_eq!(body, b"\x01\x02\x03\x04\x05\x06\x07\x08ana");
        assert_eq!(parse_greeting(&body), Some(greeting));
        assert_eq!(parse_greeting(&body[..7]), None);
        body.resize(8 + NAME_LEN_MAX + 1, b'a');
        assert_eq!(parse_greeting(&body), None);
        assert_eq!(parse_greeting(b"\0\0\0\0\0\0\0\0\xff"), None);
    }

    #[test]
    fn what_is_too_long_is_not_written() {
        let body = vec![0; BODY_LEN_MAX + 1];
        let mut out = Vec::new();
        assert!(!write_message(&mut out, &Message { kind: Kind::Data, number: 0, body: &body }));
        assert!(out.is_empty());
        let message = Message { kind: Kind::Data, number: 0, body: &body[1..] };
        assert!(write_message(&mut out, &message));
        assert_eq!(parse_message(&out), Some(message));
    }
}
