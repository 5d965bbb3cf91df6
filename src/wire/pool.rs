//! The pool protocol: the datagrams of one UDP endpoint spread over many TLS or TCP connections.
//!
//! ```text
//! client to server, once per connection: session id (16 bytes, a version 4 UUID)
//! then both ways: frame = length:u16 big-endian (of what follows) . datagram
//! ```
//!
//! Source: PyPI udp-over-tls-pool 0.1.1, udp_over_tls_pool/*.py. A length of 0 is an empty
//! datagram. Mullvad's udp-over-tcp has the same frames and no session id.
//!
//! ```
//! use udpferry::wire::pool::{SessionId, write_frame};
//! let mut stream = Vec::new();
//! assert!(write_frame(&mut stream, b"hi"));
//! assert_eq!(stream, [0, 2, b'h', b'i']);
//! let id = SessionId::from_random([0xff; 16]);
//! assert_eq!(id.bytes()[4..], *b"\xff\xff\x4f\xff\xbf\xff\xff\xff\xff\xff\xff\xff");
//! ```

use super::cursor::Cursor;
use super::length_prefix::ByteOrder;
use std::fmt;

/// The length prefix counts in this order.
pub const BYTE_ORDER: ByteOrder = ByteOrder::Big;
/// Bytes of a session id.
pub const SESSION_ID_LEN: usize = 16;
/// The largest datagram that a frame holds; UDP over IPv4 carries 65,507.
pub const DATAGRAM_LEN_MAX: usize = 65_535;

/// What the connections of one session have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId([u8; SESSION_ID_LEN]);

impl SessionId {
    /// A version 4 UUID (RFC 9562 §5.4) of these random bytes.
    pub fn from_random(bytes: [u8; SESSION_ID_LEN]) -> SessionId {
        let id = u128::from_be_bytes(bytes);
        let id = id & !(0xf << 76) | 4 << 76;
        let id = id & !(0b11 << 62) | 0b10 << 62;
        SessionId(id.to_be_bytes())
    }

    /// The id at the front of a stream; `None` until all of it is there. Any 16 bytes are one: the
    /// peer's server does not look at the version either.
    pub fn parse(bytes: &[u8]) -> Option<SessionId> {
        Cursor::new(bytes).take_array().map(SessionId)
    }

    /// As on the wire.
    pub fn bytes(self) -> [u8; SESSION_ID_LEN] {
        self.0
    }
}

/// The first four bytes in hexadecimal: enough to tell sessions apart in a log. The whole id would
/// let whoever reads the log join the session.
impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Whether the bytes where a session id should be begin a TLS connection: a record that holds a
/// whole ClientHello (RFC 8446 §4.1.2, §5.1; RFC 5246 §7.4.1.2).
///
/// ```text
/// 16 03 0v len:u16 . 01 00 len:u16 03 0v ...      the record . the handshake message
/// ```
///
/// A version 4 UUID never looks so, as the high half of its byte 6 is 4. Of other ids, one in 2^52
/// would: 15 of 2^56 in the seven bytes that are looked at.
pub fn is_client_hello(id: &[u8; SESSION_ID_LEN]) -> bool {
    matches!(id, [0x16, 3, 0..=4, _, _, 1, 0, _, _, 3, 1..=3, ..])
}

/// Appends a datagram's frame. Returns false, and appends nothing, when it is longer than
/// [`DATAGRAM_LEN_MAX`].
pub fn write_frame(out: &mut Vec<u8>, datagram: &[u8]) -> bool {
    let Ok(len) = u16::try_from(datagram.len()) else {
        return false;
    };
    out.extend_from_slice(&BYTE_ORDER.prefix(len));
    out.extend_from_slice(datagram);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::length_prefix::Frames;
    use proptest::prelude::*;

    #[test]
    fn an_id_is_there_when_all_of_it_is() {
        let id = SessionId::from_random([7; 16]);
        let bytes = id.bytes();
        assert_eq!(SessionId::parse(&bytes), Some(id));
        assert_eq!(SessionId::parse(&bytes[..15]), None);
        assert_eq!(id.bytes(), [7, 7, 7, 7, 7, 7, 0x47, 7, 0x87, 7, 7, 7, 7, 7, 7, 7]);
        assert_eq!(id.to_string(), "07070707", "a log must not hold the whole id");
    }

    #[test]
    fn a_datagram_that_no_length_can_tell_is_refused() {
        let mut out = Vec::new();
        assert!(!write_frame(&mut out, &vec![0; 65_536]));
        assert!(out.is_empty());
        assert!(write_frame(&mut out, &vec![0; 65_535]));
    }

    #[test]
    fn the_beginning_of_tls_is_recognised() {
        // As OpenSSL 3.0 sends it: the record says TLS 1.0, the message TLS 1.2.
        let hello = *b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\xde\xad\xbe\xef\0";
        assert!(is_client_hello(&hello));
        for version in 0..=4 {
            let mut other = hello;
            other[2] = version;
            assert!(is_client_hello(&other));
        }
        // An alert, a ServerHello, and each byte that is looked at.
        for (place, byte) in
            [(0, 0x15), (5, 2), (0, 0), (1, 2), (2, 5), (5, 0), (6, 1), (9, 2), (10, 0), (10, 4)]
        {
            let mut other = hello;
            other[place] = byte;
            assert!(!is_client_hello(&other), "{place}");
        }
    }

    proptest! {
        #[test]
        fn no_session_of_a_client_is_taken_for_tls(bytes: [u8; 16]) {
            let mut bytes = bytes;
            bytes[..3].copy_from_slice(&[0x16, 3, 1]);
            bytes[5..7].copy_from_slice(&[1, 0]);
            bytes[9..11].copy_from_slice(&[3, 3]);
            prop_assert!(is_client_hello(&bytes));
            prop_assert!(!is_client_hello(&SessionId::from_random(bytes).bytes()));
        }

        #[test]
        fn every_id_is_a_version_4_uuid(bytes: [u8; 16]) {
            let id = SessionId::from_random(bytes).bytes();
            prop_assert_eq!(id[6] >> 4, 4);
            prop_assert_eq!(id[8] >> 6, 0b10);
        }

        #[test]
        fn frames_read_back(datagrams in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..50), 0..10,
        )) {
            let mut stream = Vec::new();
            for datagram in &datagrams {
                prop_assert!(write_frame(&mut stream, datagram));
            }
            let frames = Frames::new(&stream, BYTE_ORDER, DATAGRAM_LEN_MAX);
            let found: Vec<_> = frames.map(|frame| frame.unwrap().to_vec()).collect();
            prop_assert_eq!(found, datagrams);
        }
    }
}
