//! Frames with a 16-bit length in front, in a byte stream: found in place, never copied.
//!
//! ```text
//! frame = length:u16 (of what follows, little- or big-endian) . body
//! ```
//!
//! Sources: badvpn protocol/packetproto.h (little-endian), udp-over-tls-pool and Mullvad's
//! udp-over-tcp (big-endian).
//!
//! ```
//! use udpferry::wire::length_prefix::{ByteOrder, Frames};
//! let mut frames = Frames::new(&[2, 0, b'h', b'i', 9], ByteOrder::Little, 65535);
//! assert_eq!(frames.next(), Some(Ok(&b"hi"[..])));
//! assert_eq!(frames.next(), None);
//! assert_eq!(frames.unfinished(), &[9]);
//! ```

use super::cursor::Cursor;

/// Bytes that the length takes.
pub const PREFIX_LEN: usize = 2;

/// How the two length bytes are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteOrder {
    /// Least significant byte first.
    Little,
    /// Most significant byte first.
    Big,
}

impl ByteOrder {
    /// The prefix of a body of `len` bytes.
    pub fn prefix(self, len: u16) -> [u8; PREFIX_LEN] {
        match self {
            ByteOrder::Little => len.to_le_bytes(),
            ByteOrder::Big => len.to_be_bytes(),
        }
    }
}

/// A length above the agreed maximum: the stream cannot be followed any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Oversize {
    /// The length that the prefix claims.
    pub len: usize,
}

/// The bodies of the whole frames at the front of a buffer.
///
/// Yields `Err(Oversize)` once and ends as soon as a prefix claims more than the maximum, without
/// waiting for the bytes.
#[derive(Debug, Clone)]
pub struct Frames<'a> {
    cursor: Cursor<'a>,
    order: ByteOrder,
    body_len_max: usize,
    failed: bool,
}

impl<'a> Frames<'a> {
    /// Looks for frames in `bytes`, with bodies of at most `body_len_max` bytes.
    pub fn new(bytes: &'a [u8], order: ByteOrder, body_len_max: usize) -> Frames<'a> {
        Frames { cursor: Cursor::new(bytes), order, body_len_max, failed: false }
    }

    /// The bytes behind the last whole frame: the start of a frame whose end has not arrived.
    /// At most `PREFIX_LEN + body_len_max - 1` bytes once the iterator has ended.
    pub fn unfinished(&self) -> &'a [u8] {
        self.cursor.rest()
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<&'a [u8], Oversize>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let mut ahead = self.cursor;
        let len = usize::from(match self.order {
            ByteOrder::Little => ahead.u16_le()?,
            ByteOrder::Big => ahead.u16_be()?,
        });
        if len > self.body_len_max {
            self.failed = true;
            return Some(Err(Oversize { len }));
        }
        let body = ahead.take(len)?;
        self.cursor = ahead;
        Some(Ok(body))
    }
}

/// The beginning of a frame whose end has not arrived, kept from one read of a stream to the next.
/// Takes no memory while there is none.
#[derive(Debug, Default)]
pub struct Unfinished {
    bytes: Vec<u8>,
}

impl Unfinished {
    /// Copies it to the front of `input`, behind which the next read goes, and returns its length: at
    /// most `PREFIX_LEN + body_len_max - 1` bytes, which `input` must be longer than.
    pub fn restore(&self, input: &mut [u8]) -> usize {
        if let Some(front) = input.get_mut(..self.bytes.len()) {
            front.copy_from_slice(&self.bytes);
        }
        self.bytes.len()
    }

    /// Keeps `bytes`, what [`Frames::unfinished`] left, instead of what it kept before.
    pub fn keep(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            self.bytes = Vec::new();
        } else {
            self.bytes.clear();
            self.bytes.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(bodies: &[Vec<u8>], order: ByteOrder) -> Vec<u8> {
        let mut bytes = Vec::new();
        for body in bodies {
            bytes.extend(order.prefix(u16::try_from(body.len()).unwrap()));
            bytes.extend(body);
        }
        bytes
    }

    /// A second decoder, byte by byte, that shares nothing with the first.
    fn naive(bytes: &[u8], order: ByteOrder) -> (Vec<Vec<u8>>, usize) {
        let mut found = Vec::new();
        let mut at = 0;
        while at + 2 <= bytes.len() {
            let (low, high) = match order {
                ByteOrder::Little => (bytes[at], bytes[at + 1]),
                ByteOrder::Big => (bytes[at + 1], bytes[at]),
            };
            let len = usize::from(low) + 256 * usize::from(high);
            if at + 2 + len > bytes.len() {
                break;
            }
            found.push(bytes[at + 2..at + 2 + len].to_vec());
            at += 2 + len;
        }
        (found, bytes.len() - at)
    }

    #[test]
    fn refuses_an_oversize_prefix_before_its_body_arrives() {
        let mut frames = Frames::new(&[11, 0], ByteOrder::Little, 10);
        assert_eq!(frames.next(), Some(Err(Oversize { len: 11 })));
        assert_eq!(frames.next(), None);
    }

    #[test]
    fn takes_the_largest_and_the_empty_body() {
        let bodies = vec![vec![7; 65535], Vec::new()];
        for order in [ByteOrder::Little, ByteOrder::Big] {
            let bytes = encode(&bodies, order);
            let found: Vec<_> = Frames::new(&bytes, order, 65535).map(Result::unwrap).collect();
            assert_eq!(found, bodies);
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_decoder(
            bytes in proptest::collection::vec(0u8..4, 0..200), big: bool,
        ) {
            let order = if big { ByteOrder::Big } else { ByteOrder::Little };
            let mut frames = Frames::new(&bytes, order, 65535);
            let found: Vec<Vec<u8>> = frames.by_ref().map(|frame| frame.unwrap().to_vec()).collect();
            let (expected, unfinished) = naive(&bytes, order);
            prop_assert_eq!(found, expected);
            prop_assert_eq!(frames.unfinished().len(), unfinished);
        }

        #[test]
        fn a_stream_split_at_every_byte_yields_the_same_frames(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..6),
        ) {
            let bytes = encode(&bodies, ByteOrder::Little);
            for split in 0..=bytes.len() {
                let mut found = Vec::new();
                let mut first = Frames::new(&bytes[..split], ByteOrder::Little, 65535);
                found.extend(first.by_ref().map(|frame| frame.unwrap().to_vec()));
                let mut unfinished = Unfinished::default();
                unfinished.keep(first.unfinished());
                let mut input = vec![0xff; bytes.len()];
                let kept = unfinished.restore(&mut input);
                let len = kept + bytes.len() - split;
                input[kept..len].copy_from_slice(&bytes[split..]);
                let mut second = Frames::new(&input[..len], ByteOrder::Little, 65535);
                found.extend(second.by_ref().map(|frame| frame.unwrap().to_vec()));
                prop_assert_eq!(&found, &bodies);
                prop_assert!(second.unfinished().is_empty());
                unfinished.keep(second.unfinished());
                prop_assert_eq!((unfinished.restore(&mut input), unfinished.bytes.capacity()), (0, 0));
            }
        }
    }
}
