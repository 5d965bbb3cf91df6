//! "There is no such host": the answer to a packet that nobody takes, as a whole IP packet.
//!
//! ```text
//! answer = IP header . type:u8 (3; IPv6 1) . code:u8 (1, host unreachable; IPv6 3, address unreachable)
//!          . checksum:u16 . 0:u32 . the packet, as much as fits 576 bytes in all (IPv6 1,280)
//! ```
//!
//! Sources: RFC 792, RFC 4443 section 3.1; when there is no answer, and how long it is: RFC 1812
//! sections 4.3.2.3 and 4.3.2.7, RFC 4443 section 2.4.
//!
//! ```
//! use udpferry::wire::icmp_error::write_unreachable;
//! let packet = [0x45, 0, 0, 20, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 9];
//! let mut answer = Vec::new();
//! assert!(write_unreachable(&mut answer, &packet));
//! assert_eq!(answer[12..22], [10, 0, 0, 9, 10, 0, 0, 2, 3, 1]);
//! assert_eq!(answer[28..], packet);
//! ```

use super::ip::{Header, IPV4_HEADER_LEN, IPV6_HEADER_LEN, Sum};
use std::net::IpAddr;

/// The longest answer.
pub const ERROR_LEN_MAX: usize = LEN_MAX_V6;

const LEN_MAX_V4: usize = 576;
const LEN_MAX_V6: usize = 1280;
/// In front of the packet, without the IP header.
const ERROR_HEADER_LEN: usize = 8;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// As the kernel's own packets.
const HOPS: u8 = 64;

/// ICMP messages that are no errors: echo, router discovery, time stamps (RFC 792, RFC 1256).
const QUERIES: [u8; 6] = [0, 8, 9, 10, 13, 14];

/// Appends the answer to `packet`, which begins with its IP header. It comes from the address that
/// nobody has: a host takes nothing that claims to come from one of its own (`fib_validate_source`
/// in linux/net/ipv4/fib_frontend.c).
///
/// Returns false, and appends nothing, where there shall be none: to an error, to a packet for many
/// or from nobody in particular, and to a fragment that is not the first.
pub fn write_unreachable(out: &mut Vec<u8>, packet: &[u8]) -> bool {
    let begin = out.len();
    let is_written = write(out, packet).is_some();
    if !is_written {
        out.truncate(begin);
    }
    is_written
}

fn write(out: &mut Vec<u8>, packet: &[u8]) -> Option<()> {
    let ip = Header::parse(packet)?;
    if ip.is_for_many() || !is_somebody(ip.source) || !is_answered(&ip, packet) {
        return None;
    }
    let packet = packet.get(..ip.packet_len)?;
    let begin = out.len();
    match (ip.destination, ip.source) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let room = LEN_MAX_V4.checked_sub(IPV4_HEADER_LEN)?.checked_sub(ERROR_HEADER_LEN)?;
            let quoted = packet.get(..room.min(packet.len()))?;
            let len = IPV4_HEADER_LEN.checked_add(ERROR_HEADER_LEN)?.checked_add(quoted.len())?;
            let [high, low] = u16::try_from(len).ok()?.to_be_bytes();
            // Precedence: internetwork control (RFC 1812 section 4.3.2.5).
            out.extend_from_slice(&[0x45, 0xc0, high, low, 0, 0, 0, 0, HOPS, ICMP, 0, 0]);
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&destination.octets());
            let sum = Sum::default().with(out.get(begin..)?).checksum();
            out.get_mut(begin..)?.get_mut(10..12)?.copy_from_slice(&sum);
            out.extend_from_slice(&[3, 1, 0, 0, 0, 0, 0, 0]);
            out.extend_from_slice(quoted);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let room = LEN_MAX_V6.checked_sub(IPV6_HEADER_LEN)?.checked_sub(ERROR_HEADER_LEN)?;
            let quoted = packet.get(..room.min(packet.len()))?;
            let len = ERROR_HEADER_LEN.checked_add(quoted.len())?;
            let [high, low] = u16::try_from(len).ok()?.to_be_bytes();
            out.extend_from_slice(&[0x60, 0, 0, 0, high, low, ICMPV6, HOPS]);
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&destination.octets());
            out.extend_from_slice(&[1, 3, 0, 0, 0, 0, 0, 0]);
            out.extend_from_slice(quoted);
        }
        _ => return None,
    }
    let header = Header::parse(out.get(begin..)?)?;
    let message = out.get_mut(begin..)?.get_mut(header.transport..)?;
    // ICMPv6 protects the addresses too.
    let before = match ip.source {
        IpAddr::V4(_) => Sum::default(),
        IpAddr::V6(_) => header.pseudo_sum(ICMPV6, message.len()),
    };
    let sum = before.with(message).checksum();
    message.get_mut(2..4)?.copy_from_slice(&sum);
    Some(())
}

fn is_somebody(source: IpAddr) -> bool {
    !(source.is_unspecified()
        || source.is_loopback()
        || source.is_multicast()
        || matches!(source, IpAddr::V4(source) if source.is_broadcast()))
}

fn is_answered(ip: &Header, packet: &[u8]) -> bool {
    let kind = packet.get(ip.transport).copied();
    match ip.source {
        IpAddr::V4(_) => {
            let field = packet.get(6..).and_then(<[u8]>::first_chunk);
            let offset = field.map_or(0, |field| u16::from_be_bytes(*field) & 0x1fff);
            let is_first = offset == 0;
            let is_error = ip.protocol == ICMP && kind.is_none_or(|kind| !QUERIES.contains(&kind));
            is_first && !is_error
        }
        // Errors have no upper bit (RFC 4443 section 2.1). What stands behind an extension header
        // is not looked for: without an answer its sender waits as it would have.
        IpAddr::V6(_) => match ip.protocol {
            ICMPV6 => kind.is_some_and(|kind| kind >= 128),
            protocol => matches!(protocol, super::ip::TCP | super::ip::UDP),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ipv4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let [high, low] = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
        let [f, g] = fragment.to_be_bytes();
        let header = [0x45, 0, high, low, 0, 7, f, g, 64, protocol, 0, 0, 10, 0, 0, 2, 10, 0, 0, 9];
        [&header[..], payload].concat()
    }

    fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
        let [high, low] = u16::try_from(payload.len()).unwrap().to_be_bytes();
        let mut packet = vec![0x60, 0, 0, 0, high, low, next, 64, 0xfd];
        packet.extend_from_slice(&[0; 14]);
        packet.extend_from_slice(&[2, 0xfd]);
        packet.extend_from_slice(&[0; 14]);
        packet.push(9);
        packet.extend_from_slice(payload);
        packet
    }

    fn answer(packet: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![1, 2, 3];
        let is_written = write_unreachable(&mut out, packet);
        assert_eq!(out[..3], [1, 2, 3]);
        assert_eq!(is_written, out.len() > 3);
        is_written.then(|| out.split_off(3))
    }

    #[test]
    fn an_answer_quotes_what_fits_and_its_checksums_hold() {
        for (packet, quoted) in [
            (ipv4(17, 0, b"12345678"), 28),
            (ipv4(6, 0, &[7; 1400]), 548),
            (ipv6(17, b"12345678"), 48),
            (ipv6(6, &[7; 1400]), 1232),
        ] {
            let answer = answer(&packet).unwrap();
            let header = Header::parse(&answer).unwrap();
            let asked = Header::parse(&packet).unwrap();
            assert_eq!((header.destination, header.packet_len), (asked.source, answer.len()));
            let message = &answer[header.transport..];
            let (kind, before) = match header.source {
                IpAddr::V4(_) => ([3, 1], Sum::default()),
                IpAddr::V6(_) => ([1, 3], header.pseudo_sum(58, message.len())),
            };
            assert_eq!(message[..2], kind);
            assert!(before.with(message).is_sound());
            assert!(header.source.is_ipv6() || Sum::default().with(&answer[..20]).is_sound());
            assert_eq!(message[8..], packet[..quoted]);
        }
    }

    #[test]
    fn what_must_not_be_answered_is_not() {
        assert!(answer(&ipv4(1, 0, &[8, 0, 0, 0])).is_some(), "a ping");
        assert!(answer(&ipv4(17, 0x2000, b"first")).is_some(), "the first fragment");
        assert!(answer(&ipv6(58, &[128, 0, 0, 0])).is_some(), "a ping");
        for (packet, why) in [
            (ipv4(1, 0, &[3, 1, 0, 0]), "an error"),
            (ipv4(1, 0, &[]), "half a message"),
            (ipv4(17, 0x0001, b"second"), "a later fragment"),
            (ipv6(58, &[1, 3, 0, 0]), "an error"),
            (ipv6(44, &[58, 0, 0, 0, 0, 0, 0, 0, 1, 3]), "what is behind an extension header"),
        ] {
            assert_eq!(answer(&packet), None, "{why}");
        }
        for source in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4]] {
            let mut packet = ipv4(17, 0, b"");
            packet[12..16].copy_from_slice(&source);
            assert_eq!(answer(&packet), None, "{source:?}");
            packet = ipv4(17, 0, b"");
            packet[16..20].copy_from_slice(&source);
            assert_eq!(answer(&packet).is_none(), source[0] >= 224, "{source:?}");
        }
    }

    proptest! {
        #[test]
        fn no_packet_does_harm(packet in proptest::collection::vec(any::<u8>(), 0..2000), first in any::<bool>()) {
            let mut packet = packet;
            if let Some(byte) = packet.first_mut() {
                *byte = if first { 0x45 } else { 0x60 };
                if let Some(answer) = answer(&packet) {
                    prop_assert!(answer.len() <= ERROR_LEN_MAX);
                }
            }
        }
    }
}
