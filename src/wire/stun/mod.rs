//! STUN: a client asks from which address and port its datagrams arrive.
//!
//! ```text
//!  0               2               4                    8                  20
//! +---------------+---------------+--------------------+------------------+----------------
//! | 0 0 . type 14b | length        | cookie 2112a442    | transaction id   | attributes ...
//! +---------------+---------------+--------------------+------------------+----------------
//! length    = bytes of all attributes, a multiple of 4
//! attribute = type:u16 . length:u16 (of the value) . value . 0 to 3 bytes up to a multiple of 4
//! type bits = M11..M7 C1 M6..M4 C0 M3..M0: a method of 12 bits around a class of 2
//! ```
//!
//! Integers are big-endian. Source: RFC 8489 (sections 5, 6.3 and 14), and RFC 5780 section 7 for
//! the attributes that discover a NAT's behaviour. An attribute type below 8000 must be understood,
//! or the request is refused with 420 (section 6.3.1).
//!
//! Classic STUN (RFC 3489) has no cookie: the transaction id is 16 bytes long there, and answers
//! name the client in MAPPED-ADDRESS. RFC 8489 section 11 keeps what RFC 5389 section 12.2 says:
//! such a request is known by the missing cookie, and the answer repeats all 16 bytes. Only Binding
//! requests are read so, because nothing else tells a classic message from another protocol's.
//!
//! A Binding request and its answer, the mapped address and transaction id of RFC 5769:
//!
//! ```
//! use udpferry::wire::stun::writer::Writer;
//! use udpferry::wire::stun::{Class, Message, Method, TransactionId};
//! let id = TransactionId::new(*b"\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae");
//! let mut buffer = [0; 100];
//!
//! let len = Writer::new(&mut buffer, Class::Request, Method::BINDING, id).unwrap().finish();
//! let request = [
//!     0x00, 0x01, 0x00, 0x00, 0x21, 0x12, 0xa4, 0x42, 0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6,
//!     0x86, 0xfa, 0x87, 0xdf, 0xae,
//! ];
//! assert_eq!(buffer[..len], request);
//!
//! let asked = Message::parse(&request).unwrap();
//! assert_eq!((asked.class, asked.method, asked.id), (Class::Request, Method::BINDING, id));
//!
//! let mut answer = Writer::new(&mut buffer, Class::Success, asked.method, asked.id).unwrap();
//! answer.mapped_address("192.0.2.1:32853".parse().unwrap()).unwrap();
//! let len = answer.finish();
//! assert_eq!(buffer[..4], [0x01, 0x01, 0x00, 0x0c]);
//! assert_eq!(
//!     buffer[20..len],
//!     [0x00, 0x20, 0x00, 0x08, 0x00, 0x01, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43]
//! );
//! let answered = Message::parse(&buffer[..len]).unwrap();
//! assert_eq!(answered.mapped_address(), Ok(Some("192.0.2.1:32853".parse().unwrap())));
//! ```

pub mod attribute;
pub mod fingerprint;
pub mod writer;

use super::cursor::Cursor;
use attribute::{
    AddressKind, Attribute, Attributes, ChangeRequest, ErrorCode, TypeList, UnknownTypes, kind,
    read_address, xor_address,
};
use fingerprint::Fingerprint;
use std::net::SocketAddr;

/// Type, length, cookie and transaction id, in bytes.
pub const HEADER_LEN: usize = 20;
/// Section 5: in every message, in front of the transaction id.
pub const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// Whether a datagram looks like STUN: two zero bits, the cookie, and a length that is a multiple of
/// four and reaches exactly to the end.
///
/// Random bytes pass once in 2^32 or less. What passes may still fail to [parse](Message::parse).
pub fn is_stun(datagram: &[u8]) -> bool {
    Header::read(datagram).is_ok_and(|header| !header.id.is_classic())
}

/// Whether a datagram looks like a classic (RFC 3489) Binding request: type 0001, no cookie, and a
/// length that is a multiple of four and reaches exactly to the end.
///
/// A weak test. RFC 5389 section 12.2 advises against it where other protocols share the port, so
/// ask it last, and only where none of them starts with 00 01.
pub fn is_classic_request(datagram: &[u8]) -> bool {
    Header::read(datagram).is_ok_and(|header| header.id.is_classic())
}

/// What a message is for (section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Wants an answer with the same transaction id.
    Request,
    /// Wants none.
    Indication,
    /// The request was granted.
    Success,
    /// The request was refused: see [`Message::error_code`].
    Error,
}

/// What a message is about: 12 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Method(u16);

impl Method {
    /// The one method of RFC 8489: where do my datagrams come from?
    pub const BINDING: Method = Method(1);

    /// The method of a number up to 4095; `None` above.
    pub const fn new(number: u16) -> Option<Method> {
        if number <= 0xfff { Some(Method(number)) } else { None }
    }

    /// The number, up to 4095.
    pub const fn number(self) -> u16 {
        self.0
    }
}

/// The type field of a message.
fn message_type(class: Class, method: Method) -> u16 {
    let class = match class {
        Class::Request => 0x000,
        Class::Indication => 0x010,
        Class::Success => 0x100,
        Class::Error => 0x110,
    };
    let Method(method) = method;
    class | (method & 0x00f) | (method & 0x070) << 1 | (method & 0xf80) << 2
}

/// What tells a transaction from others: an answer repeats its request's, cookie included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TransactionId {
    /// Anything but the magic cookie in classic STUN, where it belongs to the id.
    cookie: [u8; 4],
    id: [u8; 12],
}

impl TransactionId {
    /// An id from 12 random bytes; section 5 wants them from a cryptographic source.
    pub const fn new(id: [u8; 12]) -> TransactionId {
        TransactionId { cookie: MAGIC_COOKIE, id }
    }

    /// The 12 bytes after the cookie.
    pub const fn id(self) -> [u8; 12] {
        self.id
    }

    /// Whether the sender speaks classic STUN (RFC 3489), without the cookie.
    pub fn is_classic(self) -> bool {
        self.cookie != MAGIC_COOKIE
    }
}

/// Why a datagram is no STUN message. Section 6.3: it is dropped without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Shorter than a header (20 bytes).
    NoHeader,
    /// The first two bits are not zero.
    FirstBits,
    /// The length is no multiple of four, or does not reach exactly to the datagram's end.
    Length,
    /// No magic cookie, and no classic Binding request either.
    NoCookie,
    /// An attribute that goes beyond the message's end.
    Attribute,
}

/// An attribute that is there, but whose value is not in its format. A server answers 400 (section
/// 14.8: "the request was malformed").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadValue {
    /// The attribute's type.
    pub kind: u16,
}

struct Header {
    class: Class,
    method: Method,
    id: TransactionId,
}

impl Header {
    fn read(datagram: &[u8]) -> Result<Header, Malformed> {
        let mut cursor = Cursor::new(datagram);
        let (Some(message_type), Some(length), Some(cookie), Some(id)) =
            (cursor.u16_be(), cursor.u16_be(), cursor.take_array(), cursor.take_array())
        else {
            return Err(Malformed::NoHeader);
        };
        if message_type & 0xc000 != 0 {
            return Err(Malformed::FirstBits);
        }
        if length & 3 != 0 || usize::from(length) != cursor.rest().len() {
            return Err(Malformed::Length);
        }
        let class = match message_type & 0x110 {
            0x000 => Class::Request,
            0x010 => Class::Indication,
            0x100 => Class::Success,
            _ => Class::Error,
        };
        let method =
            message_type & 0x000f | (message_type & 0x00e0) >> 1 | (message_type & 0x3e00) >> 2;
        let header = Header { class, method: Method(method), id: TransactionId { cookie, id } };
        if header.id.is_classic() && (class, header.method) != (Class::Request, Method::BINDING) {
            return Err(Malformed::NoCookie);
        }
        Ok(header)
    }
}

/// A message as it came: a view of its datagram.
///
/// Every attribute lies within it. The typed getters look at the first attribute of their type, as
/// section 14 allows, and at none that a message integrity or a fingerprint comes before, as
/// sections 14.5 to 14.7 demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// What it is for.
    pub class: Class,
    /// What it is about.
    pub method: Method,
    /// To be repeated in the answer.
    pub id: TransactionId,
    datagram: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads a datagram that holds one message and nothing else.
    pub fn parse(datagram: &'a [u8]) -> Result<Message<'a>, Malformed> {
        let Header { class, method, id } = Header::read(datagram)?;
        let message = Message { class, method, id, datagram };
        let mut attributes = message.attributes();
        attributes.by_ref().for_each(drop);
        if attributes.rest().is_empty() { Ok(message) } else { Err(Malformed::Attribute) }
    }

    /// All attributes in their order, those that do not count among them.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes::new(self.datagram.get(HEADER_LEN..).unwrap_or_default())
    }

    /// The attributes that count.
    fn counted(&self) -> impl Iterator<Item = Attribute<'a>> + use<'a> {
        // Sections 14.5 to 14.7: after each of these only the later ones count.
        let rank = |kind| match kind {
            kind::MESSAGE_INTEGRITY => 1,
            kind::MESSAGE_INTEGRITY_SHA256 => 2,
            kind::FINGERPRINT => 3,
            _ => 0,
        };
        let mut highest = 0;
        self.attributes().filter(move |attribute| {
            let rank = rank(attribute.kind);
            let counts = rank > highest || highest == 0;
            highest = highest.max(rank);
            counts
        })
    }

    /// The first attribute of a type, if it counts.
    pub fn attribute(&self, kind: u16) -> Option<Attribute<'a>> {
        self.counted().find(|attribute| attribute.kind == kind)
    }

    fn value<T>(
        &self,
        kind: u16,
        read: impl FnOnce(&'a [u8]) -> Option<T>,
    ) -> Result<Option<T>, BadValue> {
        match self.attribute(kind) {
            Some(attribute) => read(attribute.value).map(Some).ok_or(BadValue { kind }),
            None => Ok(None),
        }
    }

    /// The address that an attribute holds in plain.
    pub fn address(&self, address: AddressKind) -> Result<Option<SocketAddr>, BadValue> {
        self.value(address.kind(), read_address)
    }

    /// XOR-MAPPED-ADDRESS: where the request came from.
    pub fn xor_mapped_address(&self) -> Result<Option<SocketAddr>, BadValue> {
        self.value(kind::XOR_MAPPED_ADDRESS, |value| {
            read_address(value).map(|address| xor_address(address, self.id))
        })
    }

    /// Where the request came from: XOR-MAPPED-ADDRESS, else MAPPED-ADDRESS, which an old server
    /// sends (RFC 5389 section 12.1).
    pub fn mapped_address(&self) -> Result<Option<SocketAddr>, BadValue> {
        match self.xor_mapped_address()? {
            None => self.address(AddressKind::Mapped),
            address => Ok(address),
        }
    }

    /// CHANGE-REQUEST: from where the answer shall come.
    pub fn change_request(&self) -> Result<Option<ChangeRequest>, BadValue> {
        self.value(kind::CHANGE_REQUEST, ChangeRequest::read)
    }

    /// RESPONSE-PORT: the client's port that the answer shall go to.
    pub fn response_port(&self) -> Result<Option<u16>, BadValue> {
        self.value(kind::RESPONSE_PORT, |value| {
            let mut cursor = Cursor::new(value);
            let port = cursor.u16_be()?;
            // "followed by 2 bytes of padding": RFC 5780 does not say whether the length counts
            // them. coturn's client does.
            matches!(cursor.rest().len(), 0 | 2).then_some(port)
        })
    }

    /// PADDING: how many bytes of nothing the request carries, so that it comes in fragments.
    pub fn padding(&self) -> Option<usize> {
        self.attribute(kind::PADDING).map(|attribute| attribute.value.len())
    }

    /// SOFTWARE: the sender's own words. May hold control characters.
    pub fn software(&self) -> Result<Option<&'a str>, BadValue> {
        self.value(kind::SOFTWARE, |value| std::str::from_utf8(value).ok())
    }

    /// USERNAME, unchecked: UTF-8 by the book (section 14.3).
    pub fn username(&self) -> Option<&'a [u8]> {
        self.attribute(kind::USERNAME).map(|attribute| attribute.value)
    }

    /// ERROR-CODE: why a request was refused.
    pub fn error_code(&self) -> Result<Option<ErrorCode<'a>>, BadValue> {
        self.value(kind::ERROR_CODE, ErrorCode::read)
    }

    /// UNKNOWN-ATTRIBUTES: the types that a 420 is about.
    pub fn unknown_attributes(
        &self,
    ) -> Result<Option<impl Iterator<Item = u16> + use<'a>>, BadValue> {
        self.value(kind::UNKNOWN_ATTRIBUTES, TypeList::read)
    }

    /// Whether the message is signed, by MESSAGE-INTEGRITY or MESSAGE-INTEGRITY-SHA256. A server
    /// without credentials ignores both: known, but unexpected (section 6.3).
    pub fn is_signed(&self) -> bool {
        self.attribute(kind::MESSAGE_INTEGRITY).is_some()
            || self.attribute(kind::MESSAGE_INTEGRITY_SHA256).is_some()
    }

    /// FINGERPRINT, checked. A message with a [wrong](Fingerprint::Wrong) one is dropped (section
    /// 6.3); a request with a right one wants one in the answer.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut found = self.attributes().skip_while(|found| found.kind != kind::FINGERPRINT);
        match (found.next(), found.next()) {
            (None, _) => Fingerprint::Absent,
            (Some(last), None) => fingerprint::check(self.datagram, last.value),
            _ => Fingerprint::Wrong,
        }
    }

    /// The attribute types that must be understood and are not: if there are any in a request, the
    /// answer is 420 with this list (section 6.3.1).
    ///
    /// Understood are the attributes of RFC 8489, expected or not (section 6.3 has the unexpected
    /// ignored), and those `also_understood`: of RFC 5780, say, where the server serves them.
    pub fn unknown_types(&self, also_understood: &[u16]) -> UnknownTypes {
        let mut unknown = UnknownTypes::default();
        for Attribute { kind, .. } in self.counted() {
            if kind < kind::OPTIONAL_FROM
                && !kind::UNDERSTOOD.contains(&kind)
                && !also_understood.contains(&kind)
            {
                unknown.add(kind);
            }
        }
        unknown
    }
}

#[cfg(test)]
mod tests;
