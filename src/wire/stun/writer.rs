//! Writing a message into a caller's buffer.

use super::super::cursor::Filler;
use super::attribute::{
    AddressKind, ChangeRequest, ErrorCode, address_parts, fill_len, kind, xor_address,
};
use super::{Class, HEADER_LEN, Method, TransactionId, fingerprint, message_type};
use std::net::SocketAddr;

/// The buffer is too small, or the message would be longer than its length field can say (65532
/// bytes of attributes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom;

/// Where the length is in a header.
const LENGTH_AT: usize = 2;

/// A message in the making, whole after every step: an attribute is written with all its bytes, or
/// not at all.
#[derive(Debug)]
pub struct Writer<'a> {
    filler: Filler<'a>,
    id: TransactionId,
}

impl<'a> Writer<'a> {
    /// Starts a message at the front of `buffer` with its header. An answer takes method and id from
    /// its request.
    pub fn new(
        buffer: &'a mut [u8],
        class: Class,
        method: Method,
        id: TransactionId,
    ) -> Result<Writer<'a>, NoRoom> {
        let mut filler = Filler::new(buffer);
        for part in [
            &message_type(class, method).to_be_bytes()[..],
            &0_u16.to_be_bytes(),
            &id.cookie,
            &id.id,
        ] {
            filler.put(part).ok_or(NoRoom)?;
        }
        Ok(Writer { filler, id })
    }

    /// Adds an attribute of any type.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> Result<(), NoRoom> {
        self.add(kind, [value, &[]], 0, 0)
    }

    /// Adds an attribute whose value is two parts and `more` times the same byte.
    fn add(&mut self, kind: u16, parts: [&[u8]; 2], byte: u8, more: usize) -> Result<(), NoRoom> {
        let [first, second] = parts;
        let value_len = first.len().saturating_add(second.len()).saturating_add(more);
        let fill = fill_len(value_len);
        let attribute_len = value_len.saturating_add(fill).saturating_add(4);
        let message_len = self.filler.len().saturating_add(attribute_len);
        let (Ok(value_len), Ok(length)) =
            (u16::try_from(value_len), u16::try_from(message_len.saturating_sub(HEADER_LEN)))
        else {
            return Err(NoRoom);
        };
        if attribute_len > self.filler.room() {
            return Err(NoRoom);
        }
        // Cannot fail any more: there is room for all of it.
        let filler = &mut self.filler;
        filler.put(&kind.to_be_bytes()).ok_or(NoRoom)?;
        filler.put(&value_len.to_be_bytes()).ok_or(NoRoom)?;
        filler.put(first).ok_or(NoRoom)?;
        filler.put(second).ok_or(NoRoom)?;
        filler.put_repeated(byte, more).ok_or(NoRoom)?;
        filler.put_repeated(0, fill).ok_or(NoRoom)?;
        filler.overwrite(LENGTH_AT, &length.to_be_bytes()).ok_or(NoRoom)
    }

    fn add_address(&mut self, kind: u16, address: SocketAddr) -> Result<(), NoRoom> {
        let (head, ip) = address_parts(address);
        self.add(kind, [&head, ip.as_ref()], 0, 0)
    }

    /// Adds an address in plain.
    ///
    /// An IPv4-mapped IPv6 address, as a dual-stack socket tells of its IPv4 clients, is written as
    /// IPv6: [`std::net::IpAddr::to_canonical`] is the caller's.
    pub fn address(&mut self, address: AddressKind, at: SocketAddr) -> Result<(), NoRoom> {
        self.add_address(address.kind(), at)
    }

    /// Adds where the request came from, in the way that the client understands: MAPPED-ADDRESS for
    /// a classic client, else XOR-MAPPED-ADDRESS. On IPv4-mapped addresses see
    /// [`address`](Self::address).
    pub fn mapped_address(&mut self, from: SocketAddr) -> Result<(), NoRoom> {
        if self.id.is_classic() {
            self.add_address(kind::MAPPED_ADDRESS, from)
        } else {
            self.add_address(kind::XOR_MAPPED_ADDRESS, xor_address(from, self.id))
        }
    }

    /// Adds CHANGE-REQUEST.
    pub fn change_request(&mut self, change: ChangeRequest) -> Result<(), NoRoom> {
        self.attribute(kind::CHANGE_REQUEST, &change.value())
    }

    /// Adds RESPONSE-PORT, four bytes long as coturn's.
    pub fn response_port(&mut self, port: u16) -> Result<(), NoRoom> {
        self.add(kind::RESPONSE_PORT, [&port.to_be_bytes(), &[0; 2]], 0, 0)
    }

    /// Adds PADDING of `len` zeros; RFC 5780 section 7.6 wants a multiple of four.
    pub fn padding(&mut self, len: usize) -> Result<(), NoRoom> {
        self.add(kind::PADDING, [&[], &[]], 0, len)
    }

    /// Adds SOFTWARE, which should stay below 128 characters.
    pub fn software(&mut self, words: &str) -> Result<(), NoRoom> {
        self.attribute(kind::SOFTWARE, words.as_bytes())
    }

    /// Adds USERNAME, which must stay below 509 bytes.
    pub fn username(&mut self, name: &[u8]) -> Result<(), NoRoom> {
        self.attribute(kind::USERNAME, name)
    }

    /// Adds ERROR-CODE. For a classic client spaces fill the words up to a multiple of four (RFC
    /// 3489 section 11.2.9).
    pub fn error_code(&mut self, error: ErrorCode<'_>) -> Result<(), NoRoom> {
        let reason = error.reason().as_bytes();
        let spaces = if self.id.is_classic() { fill_len(reason.len()) } else { 0 };
        self.add(kind::ERROR_CODE, [&error.value(), reason], b' ', spaces)
    }

    /// Adds UNKNOWN-ATTRIBUTES. For a classic client an odd number of types becomes even by
    /// repeating the last (RFC 3489 section 11.2.10).
    ///
    /// [`NoRoom`] also for more than [`UNKNOWN_TYPES_MAX`](super::attribute::UNKNOWN_TYPES_MAX).
    pub fn unknown_attributes(&mut self, types: &[u16]) -> Result<(), NoRoom> {
        let mut value = [0; UNKNOWN_LEN_MAX];
        let mut filler = Filler::new(&mut value);
        for kind in types {
            filler.put(&kind.to_be_bytes()).ok_or(NoRoom)?;
        }
        if let (true, 1, Some(last)) = (self.id.is_classic(), types.len() & 1, types.last()) {
            filler.put(&last.to_be_bytes()).ok_or(NoRoom)?;
        }
        self.attribute(kind::UNKNOWN_ATTRIBUTES, filler.filled())
    }

    /// The message's length in bytes: what to send of the buffer.
    pub fn finish(self) -> usize {
        self.filler.len()
    }

    /// Adds the FINGERPRINT, which is the last attribute, and returns the message's length in bytes.
    pub fn finish_with_fingerprint(mut self) -> Result<usize, NoRoom> {
        let covered = self.filler.len();
        // First without a value: the checksum covers the message's length with it.
        self.attribute(kind::FINGERPRINT, &[0; 4])?;
        let value = fingerprint::of(self.filler.filled().get(..covered).unwrap_or_default());
        self.filler.overwrite(covered.saturating_add(4), &value).ok_or(NoRoom)?;
        Ok(self.filler.len())
    }
}

/// Two bytes for each type. An even number: a repeated last one fits.
const UNKNOWN_LEN_MAX: usize = 2 * super::attribute::UNKNOWN_TYPES_MAX;
