//! Echo requests and replies (ping) as whole IP packets: RFC 792 and RFC 4443, section 4.
//!
//! ```text
//! packet = IP header . type:u8 (8 and 0; IPv6 128 and 129) . code:u8 = 0 . checksum:u16
//!          . identifier:u16 . sequence:u16 . data
//! ```
//!
//! ```
//! use udpferry::wire::icmp_echo::{Echo, parse_reply, write_request};
//! let echo = Echo {
//!     source: "10.0.0.1".parse().unwrap(),
//!     destination: "10.0.0.2".parse().unwrap(),
//!     identifier: 7,
//!     sequence: 1,
//!     data: b"hi",
//! };
//! let mut packet = Vec::new();
//! assert!(write_request(&mut packet, &echo));
//! assert_eq!(packet[20..], [8, 0, 0x8f, 0x8e, 0, 7, 0, 1, b'h', b'i']);
//! assert_eq!(parse_reply(&packet), None, "a request is no reply");
//! ```

use super::cursor::Cursor;
use super::ip::{Header, IPV4_HEADER_LEN, IPV6_HEADER_LEN, Sum};
use std::net::IpAddr;

/// Bytes before the data, without the IP header.
pub const ECHO_HEADER_LEN: usize = 8;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const REQUEST: u8 = 8;
const REPLY: u8 = 0;
const REQUEST_V6: u8 = 128;
const REPLY_V6: u8 = 129;
/// As the kernel's own packets.
const HOPS: u8 = 64;

/// An echo's addresses and contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo<'a> {
    /// Who sends it.
    pub source: IpAddr,
    /// Whom it is for, of the same family.
    pub destination: IpAddr,
    /// Whose it is.
    pub identifier: u16,
    /// Which one it is.
    pub sequence: u16,
    /// What comes back.
    pub data: &'a [u8],
}

/// Bytes of data in a packet of `packet_len`; `None` if it is too short for one.
pub fn data_len(packet_len: usize, is_ipv4: bool) -> Option<usize> {
    let header = if is_ipv4 { IPV4_HEADER_LEN } else { IPV6_HEADER_LEN };
    packet_len.checked_sub(header)?.checked_sub(ECHO_HEADER_LEN)
}

/// Appends a request. Returns false, and appends nothing, if the addresses are of two families or
/// the data is too long.
pub fn write_request(out: &mut Vec<u8>, echo: &Echo<'_>) -> bool {
    write(out, echo, REQUEST, REQUEST_V6)
}

/// Reads a reply. `None` for everything else, and for a wrong checksum.
pub fn parse_reply(packet: &[u8]) -> Option<Echo<'_>> {
    let header = Header::parse(packet)?;
    let (protocol, reply) =
        if header.source.is_ipv4() { (ICMP, REPLY) } else { (ICMPV6, REPLY_V6) };
    if header.protocol != protocol {
        return None;
    }
    let message = packet.get(header.transport..header.packet_len)?;
    let mut cursor = Cursor::new(message);
    if cursor.take_array()? != [reply, 0] || !sum_before(&header).with(message).is_sound() {
        return None;
    }
    cursor.u16_be()?;
    Some(Echo {
        source: header.source,
        destination: header.destination,
        identifier: cursor.u16_be()?,
        sequence: cursor.u16_be()?,
        data: cursor.rest(),
    })
}

fn write(out: &mut Vec<u8>, echo: &Echo<'_>, kind: u8, kind_v6: u8) -> bool {
    let begin = out.len();
    let is_written = write_parts(out, echo, kind, kind_v6).is_some()
        && out.get_mut(begin..).and_then(complete).is_some();
    if !is_written {
        out.truncate(begin);
    }
    is_written
}

/// All but the checksums.
fn write_parts(out: &mut Vec<u8>, echo: &Echo<'_>, kind: u8, kind_v6: u8) -> Option<()> {
    let len = echo.data.len().checked_add(ECHO_HEADER_LEN)?;
    let kind = match (echo.source, echo.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let [high, low] = u16::try_from(len.checked_add(IPV4_HEADER_LEN)?).ok()?.to_be_bytes();
            out.extend_from_slice(&[0x45, 0, high, low, 0, 0, 0, 0, HOPS, ICMP, 0, 0]);
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&destination.octets());
            kind
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let [high, low] = u16::try_from(len).ok()?.to_be_bytes();
            out.extend_from_slice(&[0x60, 0, 0, 0, high, low, ICMPV6, HOPS]);
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&destination.octets());
            kind_v6
        }
        _ => return None,
    };
    out.extend_from_slice(&[kind, 0, 0, 0]);
    out.extend_from_slice(&echo.identifier.to_be_bytes());
    out.extend_from_slice(&echo.sequence.to_be_bytes());
    out.extend_from_slice(echo.data);
    Some(())
}

/// Fills the checksums in.
fn complete(packet: &mut [u8]) -> Option<()> {
    let header = Header::parse(packet)?;
    let message_sum = sum_before(&header).with(packet.get(header.transport..)?);
    let checksum_at = header.transport.checked_add(2)?;
    packet.get_mut(checksum_at..)?.get_mut(..2)?.copy_from_slice(&message_sum.checksum());
    if header.source.is_ipv4() {
        let header_sum = Sum::default().with(packet.get(..header.transport)?);
        packet.get_mut(10..12)?.copy_from_slice(&header_sum.checksum());
    }
    Some(())
}

/// ICMPv6 protects the addresses too.
fn sum_before(header: &Header) -> Sum {
    if header.source.is_ipv4() {
        return Sum::default();
    }
    header.pseudo_sum(ICMPV6, header.packet_len.saturating_sub(header.transport))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn echo<'a>(source: &str, destination: &str, data: &'a [u8]) -> Echo<'a> {
        Echo {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            identifier: 0x1234,
            sequence: 0x5678,
            data,
        }
    }

    fn reply(echo: &Echo<'_>) -> Vec<u8> {
        let mut packet = Vec::new();
        assert!(write(&mut packet, echo, REPLY, REPLY_V6));
        packet
    }

    /// The sums of RFC 1071, by hand.
    #[test]
    fn a_request_stands_as_the_rfcs_draw_it() {
        let mut packet = Vec::new();
        assert!(write_request(&mut packet, &echo("127.0.0.1", "127.0.0.1", b"abcd")));
        let header = [0x45, 0, 0, 32, 0, 0, 0, 0, 64, 1, 0x7c, 0xdb, 127, 0, 0, 1, 127, 0, 0, 1];
        assert_eq!(packet[..20], header);
        let sum: u32 = 0x0800 + 0x1234 + 0x5678 + 0x6162 + 0x6364;
        let folded = (sum & 0xffff) + (sum >> 16);
        let checksum = (!u16::try_from(folded).unwrap()).to_be_bytes();
        let expected = [8, 0, checksum[0], checksum[1], 0x12, 0x34, 0x56, 0x78];
        assert_eq!(packet[20..28], expected);
    }

    #[test]
    fn what_is_no_reply_is_not_read() {
        for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let good = reply(&echo(source, destination, b"data"));
            assert!(parse_reply(&good).is_some());
            for at in 0..good.len() {
                assert_eq!(parse_reply(&good[..at]), None);
                let mut bad = good.clone();
                bad[at] ^= 0x40;
                let is_checked = at >= data_start(&good);
                assert!(!is_checked || parse_reply(&bad).is_none(), "{at}");
            }
            let mut request = Vec::new();
            assert!(write_request(&mut request, &echo(source, destination, b"data")));
            assert_eq!(parse_reply(&request), None);
        }
        let mut packet = Vec::new();
        assert!(!write_request(&mut packet, &echo("10.0.0.1", "fd00::2", b"")));
        assert!(!write_request(&mut packet, &echo("fd00::1", "fd00::2", &[0; 65_528])));
        assert!(!write_request(&mut packet, &echo("10.0.0.1", "10.0.0.2", &[0; 65_508])));
        assert!(packet.is_empty());
    }

    fn data_start(packet: &[u8]) -> usize {
        if packet[0] >> 4 == 4 { IPV4_HEADER_LEN } else { IPV6_HEADER_LEN }
    }

    proptest! {
        #[test]
        fn replies_are_read_as_written(
            addresses in any::<[u128; 2]>(),
            is_ipv4 in any::<bool>(),
            identifier in any::<u16>(),
            sequence in any::<u16>(),
            data in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let [source, destination] = addresses.map(|bits| {
                if is_ipv4 { IpAddr::from(((bits >> 96) as u32).to_be_bytes()) } else { IpAddr::from(bits.to_be_bytes()) }
            });
            let echo = Echo { source, destination, identifier, sequence, data: &data };
            let packet = reply(&echo);
            prop_assert_eq!(parse_reply(&packet), Some(echo));
            prop_assert_eq!(data_len(packet.len(), is_ipv4), Some(data.len()));
        }
    }
}
