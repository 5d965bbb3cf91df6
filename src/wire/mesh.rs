//! The mesh's own datagrams: signs of life between daemons, and commands with a proof.
//!
//! ```text
//! sign of life, on the data port:                                    (numbers are big-endian)
//!   f6 75 66 6d . version:u8 = 1 . kind:u8 (1 ping, 2 pong) . 0:u16 . number:u64 . inner:16
//! command or answer with a proof, on the control port:
//!   f6 75 66 6b . version:u8 = 1 . kind:u8 (1 command, 2 answer) . 0:u16 . time:u64 . nonce:16
//!     . proof:32 . JSON
//! ```
//!
//! `inner` is the sender's first address inside the tunnel, IPv4 as ::ffff:a.b.c.d. A pong has the
//! number of its ping. `time` is in milliseconds since 1970; an answer has the nonce of its command.
//! The proof is HMAC-SHA256 with the key over all bytes of the datagram but its own.
//!
//! Neither begins like an IP packet (4 or 6 in the first four bits) or packet information (two zero
//! bytes), nor like JSON.
//!
//! ```
//! use udpferry::wire::mesh::{Kind, Sign, parse_sign};
//! let ping = Sign { kind: Kind::Ping, number: 7, inner: "10.0.1.1".parse().unwrap() };
//! let bytes = ping.to_bytes();
//! assert_eq!(bytes[..8], [0xf6, b'u', b'f', b'm', 1, 1, 0, 0]);
//! assert_eq!(bytes[8..16], [0, 0, 0, 0, 0, 0, 0, 7]);
//! assert_eq!(bytes[26..], [0xff, 0xff, 10, 0, 1, 1]);
//! assert_eq!(parse_sign(&bytes), Some(ping));
//! ```

use super::cursor::Cursor;
use std::net::IpAddr;

const SIGN_MAGIC: [u8; 4] = [0xf6, b'u', b'f', b'm'];
const SEALED_MAGIC: [u8; 4] = [0xf6, b'u', b'f', b'k'];
const VERSION: u8 = 1;

/// Bytes of a sign of life.
pub const SIGN_LEN: usize = 32;
/// Bytes of a proof.
pub const PROOF_LEN: usize = 32;
/// Bytes before the JSON of a command or answer with a proof.
pub const SEALED_HEADER_LEN: usize = 64;

const PROOF_AT: usize = SEALED_HEADER_LEN - PROOF_LEN;

/// Which sign of life it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Asks for a pong.
    Ping,
    /// Answers a ping.
    Pong,
}

/// A sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sign {
    /// Which.
    pub kind: Kind,
    /// The ping's.
    pub number: u64,
    /// The sender's first address inside the tunnel.
    pub inner: IpAddr,
}

impl Sign {
    /// As it is sent.
    pub fn to_bytes(&self) -> [u8; SIGN_LEN] {
        let kind = match self.kind {
            Kind::Ping => 1,
            Kind::Pong => 2,
        };
        let inner = match self.inner {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let [m0, m1, m2, m3] = SIGN_MAGIC;
        let [n0, n1, n2, n3, n4, n5, n6, n7] = self.number.to_be_bytes();
        let head = [m0, m1, m2, m3, VERSION, kind, 0, 0, n0, n1, n2, n3, n4, n5, n6, n7];
        let mut bytes = [0; SIGN_LEN];
        let (first, second) = bytes.split_at_mut(16);
        first.copy_from_slice(&head);
        second.copy_from_slice(&inner.octets());
        bytes
    }
}

/// Reads a sign of life; None if it is none, or of another version.
pub fn parse_sign(datagram: &[u8]) -> Option<Sign> {
    let mut cursor = Cursor::new(datagram);
    if cursor.take_array()? != SIGN_MAGIC || cursor.u8()? != VERSION {
        return None;
    }
    let kind = match cursor.u8()? {
        1 => Kind::Ping,
        2 => Kind::Pong,
        _ => return None,
    };
    if cursor.u16_be()? != 0 {
        return None;
    }
    let number = cursor.u64_be()?;
    let inner = IpAddr::V6(cursor.ipv6()?).to_canonical();
    cursor.rest().is_empty().then_some(Sign { kind, number, inner })
}

/// Which way a datagram with a proof goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the daemon.
    Command,
    /// From it.
    Answer,
}

/// A command or an answer with its proof, not checked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed<'a> {
    /// Which of them.
    pub way: Way,
    /// When it was made, in milliseconds since 1970.
    pub time_ms: u64,
    /// Random; an answer has its command's.
    pub nonce: [u8; 16],
    /// What must come out of the key and [`Sealed::proven`].
    pub proof: [u8; PROOF_LEN],
    head: &'a [u8],
    /// The JSON.
    pub body: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// What the proof is over: two pieces, one behind the other.
    pub fn proven(&self) -> [&'a [u8]; 2] {
        [self.head, self.body]
    }
}

/// Whether it is a datagram with a proof at all, of whatever version.
pub fn is_sealed(datagram: &[u8]) -> bool {
    datagram.starts_with(&SEALED_MAGIC)
}

/// Reads a command or answer with a proof; None if it is none, or of another version.
pub fn parse_sealed(datagram: &[u8]) -> Option<Sealed<'_>> {
    let mut cursor = Cursor::new(datagram);
    let head = cursor.take(PROOF_AT)?;
    let proof = cursor.take_array()?;
    let body = cursor.rest();
    let mut cursor = Cursor::new(head);
    if cursor.take_array()? != SEALED_MAGIC || cursor.u8()? != VERSION {
        return None;
    }
    let way = match cursor.u8()? {
        1 => Way::Command,
        2 => Way::Answer,
        _ => return None,
    };
    if cursor.u16_be()? != 0 {
        return None;
    }
    let time_ms = cursor.u64_be()?;
    let nonce = cursor.take_array()?;
    Some(Sealed { way, time_ms, nonce, proof, head, body })
}

/// A command or answer; `prove` makes the proof out of the two pieces that it is over.
pub fn write_sealed(
    way: Way,
    time_ms: u64,
    nonce: [u8; 16],
    body: &[u8],
    prove: impl FnOnce([&[u8]; 2]) -> [u8; PROOF_LEN],
) -> Vec<u8> {
    let kind = match way {
        Way::Command => 1,
        Way::Answer => 2,
    };
    let mut bytes = Vec::with_capacity(SEALED_HEADER_LEN.saturating_add(body.len()));
    bytes.extend_from_slice(&SEALED_MAGIC);
    bytes.extend_from_slice(&[VERSION, kind, 0, 0]);
    bytes.extend_from_slice(&time_ms.to_be_bytes());
    bytes.extend_from_slice(&nonce);
    let proof = prove([&bytes, body]);
    bytes.extend_from_slice(&proof);
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Stands for HMAC-SHA256, and shows every byte that it was given.
    fn toy_proof(pieces: [&[u8]; 2]) -> [u8; PROOF_LEN] {
        let mut proof = [0; PROOF_LEN];
        proof[0] = u8::try_from(pieces[0].len()).unwrap();
        for (at, byte) in pieces.concat().into_iter().enumerate() {
            proof[at % PROOF_LEN] = proof[at % PROOF_LEN].rotate_left(3) ^ byte;
        }
        proof
    }

    #[test]
    fn the_layout_is_that_of_the_drawing() {
        let bytes = write_sealed(Way::Command, 0x0102, [9; 16], b"{}", |pieces| {
            assert_eq!(pieces[0].len(), 32);
            [7; 32]
        });
        let mut expected = vec![0xf6, b'u', b'f', b'k', 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2];
        expected.extend_from_slice(&[9; 16]);
        expected.extend_from_slice(&[7; 32]);
        expected.extend_from_slice(b"{}");
        assert_eq!(bytes, expected);
        assert_eq!(bytes.len(), SEALED_HEADER_LEN + 2);
        assert!(is_sealed(&bytes) && !is_sealed(b"{\"op\":\"list\"}"));
    }

    #[test]
    fn no_other_kind_of_datagram_is_read_as_one() {
        let ipv4 = b"\x45\x00\x00\x14";
        let pi = b"\x00\x00\x08\x00\x45\x00";
        for other in [&ipv4[..], pi, b"", b"{\"op\":\"add\"}", b"\xf6uf\x01"] {
            assert_eq!(parse_sign(other), None);
            assert_eq!(parse_sealed(other), None);
        }
    }

    fn any_inner() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<[u8; 4]>().prop_map(IpAddr::from),
            any::<[u8; 16]>().prop_map(|bytes| IpAddr::from(bytes).to_canonical()),
        ]
    }

    proptest! {
        #[test]
        fn signs_read_as_they_are_written(ping: bool, number: u64, inner in any_inner()) {
            let kind = if ping { Kind::Ping } else { Kind::Pong };
            let sign = Sign { kind, number, inner };
            let bytes = sign.to_bytes();
            prop_assert_eq!(parse_sign(&bytes), Some(sign));
            for len in 0..SIGN_LEN {
                prop_assert_eq!(parse_sign(&bytes[..len]), None);
            }
            prop_assert_eq!(parse_sign(&[&bytes[..], b"x"].concat()), None);
        }

        #[test]
        fn what_is_read_as_a_sign_is_written_the_same(bytes in any::<[u8; 24]>(), kind in 0..4_u8) {
            let datagram = [&[0xf6, b'u', b'f', b'm', 1, kind, 0, 0][..], &bytes].concat();
            if let Some(sign) = parse_sign(&datagram) {
                prop_assert_eq!(&sign.to_bytes()[..], &datagram[..]);
            }
        }

        /// The proof is over everything else: whatever bit changes, the pieces or the proof differ.
        #[test]
        fn every_bit_is_proven(
            time_ms: u64, nonce: [u8; 16], body in proptest::collection::vec(any::<u8>(), 0..40),
            bit: usize,
        ) {
            let bytes = write_sealed(Way::Answer, time_ms, nonce, &body, toy_proof);
            let sealed = parse_sealed(&bytes).unwrap();
            prop_assert_eq!((sealed.time_ms, sealed.nonce, sealed.body), (time_ms, nonce, &body[..]));
            prop_assert_eq!((sealed.way, toy_proof(sealed.proven())), (Way::Answer, sealed.proof));
            let mut changed = bytes.clone();
            let bit = bit % (8 * bytes.len());
            changed[bit / 8] ^= 1 << (bit % 8);
            if let Some(other) = parse_sealed(&changed) {
                let same = other.proven() == sealed.proven() && other.proof == sealed.proof;
                prop_assert!(!same);
            }
        }
    }
}
