//! IP packets: who sent what to whom, and the Internet checksum.
//!
//! ```text
//! IPv4   45 tos len:u16 . id:u16 fragment:u16 . ttl protocol sum:u16 . source:4 . destination:4 . options
//!        (4: version; 5: header length in words; fragment: 0 DF MF . offset:13)
//! IPv6   6 class:8 label:20 . len:u16 (behind these 40 bytes) next limit . source:16 . destination:16
//! TCP    source:u16 destination:u16 . seq:u32 . ack:u32 . words:4 flags:12 window:u16 . sum:u16 urgent:u16 . options
//! UDP    source:u16 destination:u16 . len:u16 sum:u16
//! ```
//!
//! Integers are big-endian. Sources: RFC 791 section 3.1, RFC 8200 section 3, RFC 9293 section 3.1, RFC 768;
//! for the checksum RFC 1071, and RFC 8200 section 8.1 for IPv6.
//!
//! The ping of RFC 791's header with "hi" behind it:
//!
//! ```
//! use udpferry::wire::ip::{Header, Sum};
//! let packet = [
//!     0x45, 0, 0, 22, 0, 1, 0x40, 0, 64, 1, 0x26, 0xe4, 10, 0, 0, 1, 10, 0, 0, 2, b'h', b'i',
//! ];
//! let header = Header::parse(&packet).unwrap();
//! assert_eq!((header.source, header.protocol), ([10, 0, 0, 1].into(), 1));
//! assert_eq!((header.transport, header.packet_len), (20, 22));
//! assert!(Sum::default().with(&packet[..20]).is_sound());
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER_LEN: usize = 20;
/// Bytes of an IPv6 header without extension headers.
pub const IPV6_HEADER_LEN: usize = 40;
/// Bytes of a TCP header without options.
pub const TCP_HEADER_LEN: usize = 20;
/// Bytes of a UDP header.
pub const UDP_HEADER_LEN: usize = 8;
/// Where a TCP header has its checksum.
pub const TCP_CHECKSUM_AT: usize = 16;
/// Where a UDP header has its checksum.
pub const UDP_CHECKSUM_AT: usize = 6;
/// Protocol numbers (RFC 9293, RFC 768).
pub const TCP: u8 = 6;
/// As [`TCP`].
pub const UDP: u8 = 17;

/// What the front of a packet says. Its lengths are those of the packet that it was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Who sent it.
    pub source: IpAddr,
    /// Whom it is for.
    pub destination: IpAddr,
    /// IPv4's protocol or IPv6's next header, which may be an extension's.
    pub protocol: u8,
    /// Where that begins.
    pub transport: usize,
    /// How long the packet is by its own word; the buffer may hold more.
    pub packet_len: usize,
    /// A part of an IPv4 packet. IPv6 says that in an extension header.
    pub is_fragment: bool,
}

impl Header {
    /// Reads the header. `None` for what is neither IPv4 nor IPv6, is cut short, or has a length
    /// that contradicts another one. The IPv4 header's checksum is not looked at.
    #[inline]
    pub fn parse(packet: &[u8]) -> Option<Header> {
        Header::parse_front(packet).filter(|header| header.packet_len <= packet.len())
    }

    /// The same of a packet whose end may be missing.
    #[inline]
    pub fn parse_front(packet: &[u8]) -> Option<Header> {
        match packet.first()? >> 4 {
            4 => Header::parse_ipv4(packet),
            6 => Header::parse_ipv6(packet),
            _ => None,
        }
    }

    #[inline]
    fn parse_ipv4(packet: &[u8]) -> Option<Header> {
        let header: &[u8; IPV4_HEADER_LEN] = packet.first_chunk()?;
        let transport = usize::from(header[0] & 0xf).wrapping_mul(4);
        let packet_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        // Offset and "more fragments".
        let is_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
        let is_sound = transport >= IPV4_HEADER_LEN && packet_len >= transport;
        is_sound.then_some(Header {
            source: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
            destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            protocol: header[9],
            transport,
            packet_len,
            is_fragment,
        })
    }

    #[inline]
    fn parse_ipv6(packet: &[u8]) -> Option<Header> {
        let header: &[u8; IPV6_HEADER_LEN] = packet.first_chunk()?;
        let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let packet_len = IPV6_HEADER_LEN.wrapping_add(payload_len);
        let address = |at: usize| {
            let bytes: Option<&[u8; 16]> = header.get(at..).and_then(<[u8]>::first_chunk);
            bytes.map(|bytes| IpAddr::V6(Ipv6Addr::from(*bytes)))
        };
        Some(Header {
            source: address(8)?,
            destination: address(24)?,
            protocol: header[6],
            transport: IPV6_HEADER_LEN,
            packet_len,
            is_fragment: false,
        })
    }

    /// The sum over the pseudo header in front of a transport header of this packet's addresses,
    /// for the checksum of a segment of `len` bytes.
    #[inline]
    pub fn pseudo_sum(&self, protocol: u8, len: usize) -> Sum {
        let addresses = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Sum::default().with(&source.octets()).with(&destination.octets())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Sum::default().with(&source.octets()).with(&destination.octets())
            }
            // Both are of the packet's version.
            _ => Sum::default(),
        };
        // No segment is longer than 65,535 bytes; IPv6's upper 16 bits are zero as well.
        addresses.with_u16(u16::try_from(len).unwrap_or(0)).with_u16(protocol.into())
    }

    /// Whether packets for this address are for many.
    pub fn is_for_many(&self) -> bool {
        match self.destination {
            IpAddr::V4(address) => address.is_multicast() || address.is_broadcast(),
            IpAddr::V6(address) => address.is_multicast(),
        }
    }
}

/// A sum on its way to an Internet checksum: of 16-bit words, with carries that come back in. It does
/// not matter in which byte order the words are read as long as the result is stored in the same
/// one (RFC 1071 section 2 (B)): here it is the machine's.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes that begin at an even place. The last of an odd number counts as if a zero
    /// followed.
    #[inline]
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Sum {
        // Words of 64 bits are added as they are, their upper halves once more on their own: what
        // that says about the lower halves makes up for the carries that were lost. The compiler
        // turns the eight lanes into vectors: 30 GB/s on a Xeon, 2026-11-27.
        let (mut wholes, mut uppers) = ([0_u64; 8], [0_u64; 8]);
        let blocks = bytes.chunks_exact(64);
        let rest = blocks.remainder();
        for block in blocks {
            let lanes = wholes.iter_mut().zip(&mut uppers).zip(block.chunks_exact(8));
            for ((whole, upper), word) in lanes {
                let word = word.first_chunk().map_or(0, |word| u64::from_ne_bytes(*word));
                *whole = whole.wrapping_add(word);
                *upper = upper.wrapping_add(word >> 32);
            }
        }
        let whole = wholes.iter().fold(0_u64, |sum, lane| sum.wrapping_add(*lane));
        let upper = uppers.iter().fold(0_u64, |sum, lane| sum.wrapping_add(*lane));
        // Neither half can be more than 2^32 times the number of words.
        let lower = whole.wrapping_sub(upper << 32);
        let sum = self.0.wrapping_add(upper).wrapping_add(lower);
        let words = rest.chunks_exact(4);
        let last = words.remainder();
        let sum = words.fold(sum, |sum, word| {
            let word = word.first_chunk().map_or(0, |word| u32::from_ne_bytes(*word));
            sum.wrapping_add(word.into())
        });
        Sum(sum.wrapping_add(match last {
            [a] => u32::from_ne_bytes([*a, 0, 0, 0]).into(),
            [a, b] => u32::from_ne_bytes([*a, *b, 0, 0]).into(),
            [a, b, c] => u32::from_ne_bytes([*a, *b, *c, 0]).into(),
            _ => 0,
        }))
    }

    /// Adds one word.
    #[inline]
    #[must_use]
    pub fn with_u16(self, word: u16) -> Sum {
        Sum(self.0.wrapping_add(u16::from_ne_bytes(word.to_be_bytes()).into()))
    }

    /// Adds two words.
    #[inline]
    #[must_use]
    pub fn with_u32(self, words: u32) -> Sum {
        Sum(self.0.wrapping_add(u32::from_ne_bytes(words.to_be_bytes()).into()))
    }

    /// The sum itself, as it is stored: what a checksum field holds that shall be completed by
    /// adding the bytes it protects.
    #[inline]
    pub fn partial(self) -> [u8; 2] {
        self.folded().to_ne_bytes()
    }

    /// The checksum, as it is stored: the sum's complement.
    #[inline]
    pub fn checksum(self) -> [u8; 2] {
        (!self.folded()).to_ne_bytes()
    }

    /// The checksum for UDP, which has another word for zero (RFC 768): there zero says that there
    /// is none.
    #[inline]
    pub fn udp_checksum(self) -> [u8; 2] {
        match self.checksum() {
            [0, 0] => [0xff, 0xff],
            other => other,
        }
    }

    /// Whether bytes that include their own checksum have been added, and none has changed on the
    /// way.
    #[inline]
    pub fn is_sound(self) -> bool {
        self.folded() == 0xffff
    }

    #[inline]
    fn folded(self) -> u16 {
        let mut sum = self.0;
        while let Some(carry) = sum.checked_shr(16).filter(|carry| *carry > 0) {
            sum = (sum & 0xffff).wrapping_add(carry);
        }
        // The loop has left 16 bits.
        u16::try_from(sum).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 section 4.1, in other words.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            let word = u32::from(pair[0]) * 256 + u32::from(*pair.get(1).unwrap_or(&0));
            sum += word;
            sum = sum % 65_536 + sum / 65_536;
        }
        !u16::try_from(sum).unwrap()
    }

    #[test]
    fn the_example_of_rfc_1071() {
        // Section 3: the sum of these is ddf2.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().with(&bytes).partial(), [0xdd, 0xf2]);
        assert_eq!(Sum::default().with(&bytes).checksum(), [0x22, 0x0d]);
    }

    #[test]
    fn udp_says_zero_in_its_own_way() {
        let sum = Sum::default().with(&[0xff, 0xff]);
        assert_eq!((sum.checksum(), sum.udp_checksum()), ([0, 0], [0xff, 0xff]));
        let sum = Sum::default().with_u16(0x1234);
        assert_eq!((sum.checksum(), sum.udp_checksum()), ([0xed, 0xcb], [0xed, 0xcb]));
    }

    #[test]
    fn an_ipv6_datagram_worked_out_by_hand() {
        let header = Header {
            source: "::1".parse().unwrap(),
            destination: "::1".parse().unwrap(),
            protocol: UDP,
            transport: 40,
            packet_len: 49,
            is_fragment: false,
        };
        let sum = header.pseudo_sum(UDP, 9);
        // 1 + 1 + 17 + 9.
        assert_eq!(sum.partial(), [0x00, 0x1c]);
        let segment = [0x9c, 0x40, 0x00, 0x35, 0x00, 0x09, 0x00, 0x00, 0x41];
        // 001c + 9c40 + 0035 + 0009 + 4100 = dd9a.
        assert_eq!(sum.with(&segment).checksum(), [0x22, 0x65]);
    }

    #[test]
    fn lengths_that_contradict_each_other_are_refused() {
        let ipv4 = [0x45, 0, 0, 24, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 3, 4];
        let header = Header::parse(&ipv4).unwrap();
        assert_eq!((header.transport, header.packet_len, header.is_fragment), (20, 24, false));
        for cut in 0..24 {
            assert_eq!(Header::parse(&ipv4[..cut]), None, "{cut}");
        }
        let changed = |at: usize, value: u8| {
            let mut packet = ipv4;
            packet[at] = value;
            Header::parse(&packet)
        };
        assert_eq!(changed(0, 0x55), None);
        assert_eq!(changed(0, 0x44), None);
        assert_eq!(changed(0, 0x47), None); // 28 bytes of header in 24
        assert_eq!(changed(3, 19), None);
        assert_eq!(changed(3, 25), None);
        assert_eq!(changed(0, 0x46).unwrap().transport, 24);
        assert_eq!(changed(3, 20).unwrap().packet_len, 20);
        assert!(changed(6, 0x20).unwrap().is_fragment);
        assert!(changed(7, 1).unwrap().is_fragment);
        assert!(!changed(6, 0x40).unwrap().is_fragment);

        let mut ipv6 = [0; 44];
        ipv6[0] = 0x60;
        ipv6[5] = 4;
        ipv6[6] = 17;
        ipv6[23] = 1;
        ipv6[24] = 0xff;
        let header = Header::parse(&ipv6).unwrap();
        assert_eq!((header.source, header.protocol), ("::1".parse().unwrap(), 17));
        assert_eq!((header.transport, header.packet_len), (40, 44));
        assert!(header.is_for_many());
        for cut in 0..44 {
            assert_eq!(Header::parse(&ipv6[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn broadcasts_and_multicasts_are_for_many() {
        let mut packet = [0; 20];
        packet[0] = 0x45;
        packet[3] = 20;
        for (address, many) in
            [([224, 0, 0, 251], true), ([255, 255, 255, 255], true), ([10, 0, 0, 255], false)]
        {
            packet[16..].copy_from_slice(&address);
            assert_eq!(Header::parse(&packet).unwrap().is_for_many(), many, "{address:?}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_checksum(bytes in proptest::collection::vec(any::<u8>(), 0..2000), cut in 0usize..1000) {
            let expected = naive(&bytes).to_be_bytes();
            prop_assert_eq!(Sum::default().with(&bytes).checksum(), expected);
            // In two parts, at an even place.
            let (a, b) = bytes.split_at((cut * 2).min(bytes.len() / 2 * 2));
            prop_assert_eq!(Sum::default().with(b).with(a).checksum(), expected);
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Some(header) = Header::parse(&bytes) {
                prop_assert!(header.transport <= header.packet_len);
                prop_assert!(header.packet_len <= bytes.len());
                header.pseudo_sum(6, bytes.len());
            }
        }
    }
}
