//! The attributes of a message: their types and their values.

use super::super::cursor::Cursor;
use super::{MAGIC_COOKIE, TransactionId};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Attribute types. Source: the IANA registry "STUN Attributes"; the sections are RFC 8489's where
/// none other is named.
pub mod kind {
    /// Where a request came from, in plain (14.1).
    pub const MAPPED_ADDRESS: u16 = 0x0001;
    /// The answer shall come from elsewhere (RFC 5780 7.2).
    pub const CHANGE_REQUEST: u16 = 0x0003;
    /// Where an answer comes from: the classic RESPONSE-ORIGIN (RFC 3489 11.2.5).
    pub const SOURCE_ADDRESS: u16 = 0x0004;
    /// The classic OTHER-ADDRESS (RFC 3489 11.2.3).
    pub const CHANGED_ADDRESS: u16 = 0x0005;
    /// Whose credentials sign the message (14.3).
    pub const USERNAME: u16 = 0x0006;
    /// HMAC-SHA1 of what is before it (14.5).
    pub const MESSAGE_INTEGRITY: u16 = 0x0008;
    /// Why a request was refused (14.8).
    pub const ERROR_CODE: u16 = 0x0009;
    /// The types that a 420 is about (14.13).
    pub const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
    /// Of long-term credentials (14.9).
    pub const REALM: u16 = 0x0014;
    /// Of long-term credentials (14.10).
    pub const NONCE: u16 = 0x0015;
    /// HMAC-SHA256 of what is before it (14.6).
    pub const MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;
    /// How a password becomes a key (14.12).
    pub const PASSWORD_ALGORITHM: u16 = 0x001d;
    /// USERNAME, hashed (14.4).
    pub const USERHASH: u16 = 0x001e;
    /// Where a request came from, hidden from NATs that rewrite addresses in payloads (14.2).
    pub const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    /// Bytes that make a request come in fragments (RFC 5780 7.6).
    pub const PADDING: u16 = 0x0026;
    /// The answer shall go to another port (RFC 5780 7.5).
    pub const RESPONSE_PORT: u16 = 0x0027;
    /// The sender's own words (14.14).
    pub const SOFTWARE: u16 = 0x8022;
    /// Ask there instead (14.15).
    pub const ALTERNATE_SERVER: u16 = 0x8023;
    /// Checksum of the message (14.7).
    pub const FINGERPRINT: u16 = 0x8028;
    /// Where an answer comes from (RFC 5780 7.3).
    pub const RESPONSE_ORIGIN: u16 = 0x802b;
    /// Where an answer with both changes would come from (RFC 5780 7.4).
    pub const OTHER_ADDRESS: u16 = 0x802c;

    /// From here on a type may be ignored by those who do not know it (14).
    pub const OPTIONAL_FROM: u16 = 0x8000;

    /// What everyone who speaks RFC 8489 must know of the types below [`OPTIONAL_FROM`].
    pub(in super::super) const UNDERSTOOD: [u16; 11] = [
        MAPPED_ADDRESS,
        USERNAME,
        MESSAGE_INTEGRITY,
        ERROR_CODE,
        UNKNOWN_ATTRIBUTES,
        REALM,
        NONCE,
        MESSAGE_INTEGRITY_SHA256,
        PASSWORD_ALGORITHM,
        USERHASH,
        XOR_MAPPED_ADDRESS,
    ];
}

/// One attribute, as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// The type, one of [`kind`] or any other.
    pub kind: u16,
    /// The value, without the bytes that fill it up to a multiple of four.
    pub value: &'a [u8],
}

/// The attributes of a message in their order. Ends early where one goes beyond the message's end.
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    cursor: Cursor<'a>,
}

impl<'a> Attributes<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Attributes<'a> {
        Attributes { cursor: Cursor::new(bytes) }
    }

    /// What could not be read.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.cursor.rest()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let mut cursor = self.cursor;
        let kind = cursor.u16_be()?;
        let len = usize::from(cursor.u16_be()?);
        let value = cursor.take(len)?;
        cursor.take(fill_len(len))?;
        self.cursor = cursor;
        Some(Attribute { kind, value })
    }
}

/// How many bytes bring a value of `len` bytes up to a multiple of four.
pub(super) fn fill_len(len: usize) -> usize {
    len.wrapping_neg() & 3
}

/// The attributes that hold an address in plain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressKind {
    /// MAPPED-ADDRESS: where the request came from; the answer to a classic client.
    Mapped,
    /// RESPONSE-ORIGIN: where the answer comes from.
    ResponseOrigin,
    /// OTHER-ADDRESS: where an answer with both changes would come from.
    Other,
    /// ALTERNATE-SERVER: ask there instead.
    AlternateServer,
    /// SOURCE-ADDRESS: RESPONSE-ORIGIN for a classic client.
    Source,
    /// CHANGED-ADDRESS: OTHER-ADDRESS for a classic client.
    Changed,
}

impl AddressKind {
    /// The attribute's type.
    pub const fn kind(self) -> u16 {
        match self {
            AddressKind::Mapped => kind::MAPPED_ADDRESS,
            AddressKind::ResponseOrigin => kind::RESPONSE_ORIGIN,
            AddressKind::Other => kind::OTHER_ADDRESS,
            AddressKind::AlternateServer => kind::ALTERNATE_SERVER,
            AddressKind::Source => kind::SOURCE_ADDRESS,
            AddressKind::Changed => kind::CHANGED_ADDRESS,
        }
    }
}

const FAMILY_IPV4: u8 = 1;
const FAMILY_IPV6: u8 = 2;

/// Section 14.1: `0 . family:u8 . port:u16 . 4 or 16 bytes`. The first byte is ignored.
pub(super) fn read_address(value: &[u8]) -> Option<SocketAddr> {
    let mut cursor = Cursor::new(value);
    let [_, family] = cursor.take_array()?;
    let port = cursor.u16_be()?;
    let ip: IpAddr = match family {
        FAMILY_IPV4 => cursor.ipv4()?.into(),
        FAMILY_IPV6 => cursor.ipv6()?.into(),
        _ => return None,
    };
    cursor.rest().is_empty().then_some(SocketAddr::new(ip, port))
}

/// An address as [`read_address`] reads it: four bytes that the second part, the IP, follows.
pub(super) fn address_parts(address: SocketAddr) -> ([u8; 4], IpBytes) {
    let [high, low] = address.port().to_be_bytes();
    match address.ip() {
        IpAddr::V4(ip) => ([0, FAMILY_IPV4, high, low], IpBytes::V4(ip.octets())),
        IpAddr::V6(ip) => ([0, FAMILY_IPV6, high, low], IpBytes::V6(ip.octets())),
    }
}

/// An IP address in network order.
pub(super) enum IpBytes {
    V4([u8; 4]),
    V6([u8; 16]),
}

impl AsRef<[u8]> for IpBytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            IpBytes::V4(bytes) => bytes,
            IpBytes::V6(bytes) => bytes,
        }
    }
}

/// Hides an address, or shows it again (section 14.2): XOR with the cookie, for IPv6 with the
/// transaction id behind it.
pub(super) fn xor_address(address: SocketAddr, id: TransactionId) -> SocketAddr {
    let [high, low, ..] = MAGIC_COOKIE;
    let cookie = u32::from_be_bytes(MAGIC_COOKIE);
    let port = address.port() ^ u16::from_be_bytes([high, low]);
    let ip = match address.ip() {
        IpAddr::V4(ip) => Ipv4Addr::from(ip.to_bits() ^ cookie).into(),
        IpAddr::V6(ip) => {
            let id = id.id().iter().fold(0, |bits, byte| bits << 8 | u128::from(*byte));
            Ipv6Addr::from(ip.to_bits() ^ (u128::from(cookie) << 96 | id)).into()
        }
    };
    SocketAddr::new(ip, port)
}

/// From where an answer shall come (RFC 5780 section 7.2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChangeRequest {
    /// From the server's other IP address.
    pub ip: bool,
    /// From the server's other port.
    pub port: bool,
}

const CHANGE_IP: u32 = 4;
const CHANGE_PORT: u32 = 2;

impl ChangeRequest {
    pub(super) fn read(value: &[u8]) -> Option<ChangeRequest> {
        let flags = u32::from_be_bytes(value.try_into().ok()?);
        Some(ChangeRequest { ip: flags & CHANGE_IP != 0, port: flags & CHANGE_PORT != 0 })
    }

    pub(super) fn value(self) -> [u8; 4] {
        let ip = if self.ip { CHANGE_IP } else { 0 };
        let port = if self.port { CHANGE_PORT } else { 0 };
        (ip | port).to_be_bytes()
    }
}

/// Why a request was refused (section 14.8): a code from 300 to 699 and words for a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorCode<'a> {
    /// 3 to 6.
    class: u8,
    /// 0 to 99.
    number: u8,
    reason: &'a str,
}

impl ErrorCode<'static> {
    /// 300: ask the ALTERNATE-SERVER.
    pub const TRY_ALTERNATE: Self = Self { class: 3, number: 0, reason: "Try Alternate" };
    /// 400: the request makes no sense.
    pub const BAD_REQUEST: Self = Self { class: 4, number: 0, reason: "Bad Request" };
    /// 401: sign the request.
    pub const UNAUTHENTICATED: Self = Self { class: 4, number: 1, reason: "Unauthenticated" };
    /// 420: see the UNKNOWN-ATTRIBUTES.
    pub const UNKNOWN_ATTRIBUTE: Self = Self { class: 4, number: 20, reason: "Unknown Attribute" };
    /// 438: sign the request with the new NONCE.
    pub const STALE_NONCE: Self = Self { class: 4, number: 38, reason: "Stale Nonce" };
    /// 500: try again later.
    pub const SERVER_ERROR: Self = Self { class: 5, number: 0, reason: "Server Error" };
}

impl<'a> ErrorCode<'a> {
    /// Another code, from 300 to 699; `None` for any other. The reason should stay below 128
    /// characters.
    pub fn new(code: u16, reason: &'a str) -> Option<ErrorCode<'a>> {
        let class = u8::try_from(code / 100).ok().filter(|class| (3..=6).contains(class))?;
        Some(ErrorCode { class, number: u8::try_from(code % 100).ok()?, reason })
    }

    /// The code, from 300 to 699.
    pub fn code(self) -> u16 {
        u16::from(self.class).saturating_mul(100).saturating_add(self.number.into())
    }

    /// The words; none where they came in another encoding than UTF-8. May hold control characters.
    pub fn reason(self) -> &'a str {
        self.reason
    }

    /// Section 14.8: `0:21 bits . class:3 bits . number:u8 . reason`. The zeros are ignored.
    pub(super) fn read(value: &'a [u8]) -> Option<ErrorCode<'a>> {
        let mut cursor = Cursor::new(value);
        let [_, _, class, number] = cursor.take_array()?;
        let class = class & 7;
        if !(3..=6).contains(&class) || number > 99 {
            return None;
        }
        let reason = std::str::from_utf8(cursor.rest()).unwrap_or_default();
        Some(ErrorCode { class, number, reason })
    }

    /// What is in front of the reason.
    pub(super) fn value(self) -> [u8; 4] {
        [0, 0, self.class, self.number]
    }
}

impl fmt::Display for ErrorCode<'_> {
    /// The code and, escaped, the words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code(), self.reason.escape_debug())
    }
}

/// The most types that a 420 names: far more than any client needs to learn from it, and a bound on
/// what an answer can grow to.
pub const UNKNOWN_TYPES_MAX: usize = 16;

/// Attribute types that are not understood: the first [`UNKNOWN_TYPES_MAX`], each once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnknownTypes {
    types: [u16; UNKNOWN_TYPES_MAX],
    len: usize,
}

impl UnknownTypes {
    /// The types, in the order in which they came.
    pub fn as_slice(&self) -> &[u16] {
        self.types.get(..self.len).unwrap_or_default()
    }

    /// Whether everything is understood.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn add(&mut self, kind: u16) {
        if self.as_slice().contains(&kind) {
            return;
        }
        if let Some(next) = self.types.get_mut(self.len) {
            *next = kind;
            self.len = self.len.saturating_add(1);
        }
    }
}

/// The value of an UNKNOWN-ATTRIBUTES (section 14.13): two bytes each.
pub(super) struct TypeList<'a> {
    cursor: Cursor<'a>,
}

impl<'a> TypeList<'a> {
    pub(super) fn read(value: &'a [u8]) -> Option<TypeList<'a>> {
        (value.len() & 1 == 0).then_some(TypeList { cursor: Cursor::new(value) })
    }
}

impl Iterator for TypeList<'_> {
    type Item = u16;

    fn next(&mut self) -> Option<u16> {
        self.cursor.u16_be()
    }
}
