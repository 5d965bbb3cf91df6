//! The udpgw protocol: UDP datagrams of many flows in one TCP stream.
//!
//! ```text
//! frame   = length:u16 little-endian (of what follows) . body
//! body    = flags:u8 . conid:u16 little-endian . address . datagram
//! address = IPv4: 4 bytes . port:u16 big-endian        (flags & 8 == 0)
//!           IPv6: 16 bytes . port:u16 big-endian       (flags & 8 != 0)
//! flags   = 1 keepalive, 2 rebind, 4 dns, 8 ipv6
//! ```
//!
//! Source: badvpn protocol/packetproto.h, protocol/udpgw_proto.h and udpgw/udpgw.c. The *conid* is
//! the client's number for a flow. A keepalive has three bytes, the rest of its body is ignored,
//! and nothing answers it. Unknown flag bits are ignored, as badvpn does.
//!
//! "hi" on conid 7 to 1.2.3.4:53, and the keepalive of conid 0:
//!
//! ```
//! use udpferry::wire::udpgw::{Datagram, Message, parse, write_frame, write_keepalive};
//! let mut stream = Vec::new();
//! let to = "1.2.3.4:53".parse().unwrap();
//! let datagram = Datagram { conid: 7, rebind: false, dns: false, address: to, payload: b"hi" };
//! assert!(write_frame(&mut stream, &datagram));
//! assert_eq!(stream, [0x0b, 0, 0, 7, 0, 1, 2, 3, 4, 0, 0x35, 0x68, 0x69]);
//! assert_eq!(parse(&stream[2..]), Ok(Message::Datagram(datagram)));
//! stream.clear();
//! write_keepalive(&mut stream);
//! assert_eq!(stream, [3, 0, 1, 0, 0]);
//! ```

use super::cursor::Cursor;
use super::length_prefix::ByteOrder;
use std::net::SocketAddr;

/// The length prefix counts in this order.
pub const BYTE_ORDER: ByteOrder = ByteOrder::Little;
/// The largest body that the prefix can announce.
pub const BODY_LEN_MAX: usize = 65_535;
/// Flags, conid and an IPv4 address with its port.
pub const HEADER_LEN_IPV4: usize = 9;
/// Flags, conid and an IPv6 address with its port.
pub const HEADER_LEN_IPV6: usize = 21;

const FLAG_KEEPALIVE: u8 = 1;
const FLAG_REBIND: u8 = 2;
const FLAG_DNS: u8 = 4;
const FLAG_IPV6: u8 = 8;

/// What a frame's body says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// The client is alive; nothing answers.
    Keepalive,
    /// A datagram to carry.
    Datagram(Datagram<'a>),
}

/// One datagram of one flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// The client's number for the flow.
    pub conid: u16,
    /// The conid starts a new flow, whatever it was before. Client to server only.
    pub rebind: bool,
    /// A new flow goes to the server's own resolver; replies carry `address` all the same.
    /// Client to server only.
    pub dns: bool,
    /// Where to (from the client), or the flow's address as the client gave it (to the client).
    pub address: SocketAddr,
    /// The datagram, possibly empty.
    pub payload: &'a [u8],
}

/// Why a body is no message. The stream can still be followed: only this frame is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Shorter than flags and conid (3 bytes).
    NoHeader,
    /// Shorter than the address that its flags announce.
    NoAddress,
}

/// The largest body that a server with this `udp_mtu` (bytes) takes: the datagram and the longer
/// header, within what the prefix can say. As badvpn's `udpgw_compute_mtu`.
pub fn body_len_max(udp_mtu: usize) -> usize {
    udp_mtu.saturating_add(HEADER_LEN_IPV6).min(BODY_LEN_MAX)
}

/// The longest datagram that fits into a frame with `address`.
pub fn payload_len_max(address: SocketAddr) -> usize {
    BODY_LEN_MAX.saturating_sub(header_len(address))
}

/// Reads the body of one frame.
pub fn parse(body: &[u8]) -> Result<Message<'_>, Malformed> {
    let mut cursor = Cursor::new(body);
    let (Some(flags), Some(conid)) = (cursor.u8(), cursor.u16_le()) else {
        return Err(Malformed::NoHeader);
    };
    if flags & FLAG_KEEPALIVE != 0 {
        return Ok(Message::Keepalive);
    }
    let address = if flags & FLAG_IPV6 == 0 {
        cursor.ipv4().zip(cursor.u16_be()).map(SocketAddr::from)
    } else {
        cursor.ipv6().zip(cursor.u16_be()).map(SocketAddr::from)
    };
    Ok(Message::Datagram(Datagram {
        conid,
        rebind: flags & FLAG_REBIND != 0,
        dns: flags & FLAG_DNS != 0,
        address: address.ok_or(Malformed::NoAddress)?,
        payload: cursor.rest(),
    }))
}

/// Appends a datagram's whole frame, prefix included.
///
/// Returns false, and appends nothing, when the payload does not fit into a frame
/// ([`payload_len_max`]).
pub fn write_frame(out: &mut Vec<u8>, datagram: &Datagram<'_>) -> bool {
    let body_len = header_len(datagram.address).saturating_add(datagram.payload.len());
    let Ok(body_len) = u16::try_from(body_len) else {
        return false;
    };
    let mut flags = 0;
    for (set, flag) in [
        (datagram.rebind, FLAG_REBIND),
        (datagram.dns, FLAG_DNS),
        (datagram.address.is_ipv6(), FLAG_IPV6),
    ] {
        flags |= if set { flag } else { 0 };
    }
    let [len_low, len_high] = BYTE_ORDER.prefix(body_len);
    let [conid_low, conid_high] = datagram.conid.to_le_bytes();
    let [port_high, port_low] = datagram.address.port().to_be_bytes();
    match datagram.address {
        SocketAddr::V4(address) => {
            let [a, b, c, d] = address.ip().octets();
            out.extend_from_slice(&[
                len_low, len_high, flags, conid_low, conid_high, a, b, c, d, port_high, port_low,
            ]);
        }
        SocketAddr::V6(address) => {
            out.extend_from_slice(&[len_low, len_high, flags, conid_low, conid_high]);
            out.extend_from_slice(&address.ip().octets());
            out.extend_from_slice(&[port_high, port_low]);
        }
    }
    out.extend_from_slice(datagram.payload);
    true
}

/// Appends a keepalive frame, with conid 0 as badvpn's client sends it.
pub fn write_keepalive(out: &mut Vec<u8>) {
    let [len_low, len_high] = BYTE_ORDER.prefix(3);
    out.extend_from_slice(&[len_low, len_high, FLAG_KEEPALIVE, 0, 0]);
}

fn header_len(address: SocketAddr) -> usize {
    if address.is_ipv4() { HEADER_LEN_IPV4 } else { HEADER_LEN_IPV6 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    fn datagram<'a>(conid: u16, address: &str, payload: &'a [u8]) -> Datagram<'a> {
        Datagram { conid, rebind: false, dns: false, address: address.parse().unwrap(), payload }
    }

    fn written(datagram: &Datagram<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        assert!(write_frame(&mut out, datagram));
        out
    }

    fn hex(text: &str) -> Vec<u8> {
        text.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
    }

    // Golden bytes, worked out from badvpn's protocol/udpgw_proto.h and packetproto.h.
    #[test]
    fn golden_frames() {
        let plain = datagram(7, "1.2.3.4:53", b"hi");
        assert_eq!(written(&plain), hex("0b 00 00 07 00 01 02 03 04 00 35 68 69"));
        let rebind_dns = Datagram { rebind: true, dns: true, ..plain };
        assert_eq!(written(&rebind_dns), hex("0b 00 06 07 00 01 02 03 04 00 35 68 69"));
        let ipv6 = datagram(258, "[2001:db8::1]:443", b"hi");
        assert_eq!(
            written(&ipv6),
            hex("17 00 08 02 01 20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 01 01 bb 68 69")
        );
        for golden in [plain, rebind_dns, ipv6] {
            assert_eq!(parse(&written(&golden)[2..]), Ok(Message::Datagram(golden)));
        }
        assert_eq!(parse(&hex("01 00 00")), Ok(Message::Keepalive));
        assert_eq!(parse(&hex("0f ff ff 01 02 03")), Ok(Message::Keepalive));
    }

    #[test]
    fn every_short_length_is_named_for_what_it_lacks() {
        for flags in [0, FLAG_REBIND, FLAG_DNS, FLAG_IPV6, FLAG_IPV6 | FLAG_DNS] {
            let header = if flags & FLAG_IPV6 == 0 { HEADER_LEN_IPV4 } else { HEADER_LEN_IPV6 };
            for len in 0..=23 {
                let mut body = vec![0; len];
                if let Some(first) = body.first_mut() {
                    *first = flags;
                }
                let expected_len = match parse(&body) {
                    Ok(Message::Datagram(found)) => header + found.payload.len(),
                    Ok(Message::Keepalive) => unreachable!("no keepalive flag"),
                    Err(Malformed::NoHeader) => {
                        assert!(len < 3);
                        continue;
                    }
                    Err(Malformed::NoAddress) => {
                        assert!((3..header).contains(&len));
                        continue;
                    }
                };
                assert_eq!(expected_len, len);
            }
        }
    }

    #[test]
    fn the_largest_datagrams_fit_and_one_byte_more_does_not() {
        for address in ["1.2.3.4:5", "[::1]:5"] {
            let address: SocketAddr = address.parse().unwrap();
            let payload = vec![1; payload_len_max(address) + 1];
            let mut out = Vec::new();
            let too_long =
                Datagram { conid: 1, rebind: false, dns: false, address, payload: &payload };
            assert!(!write_frame(&mut out, &too_long));
            assert!(out.is_empty());
            assert!(write_frame(&mut out, &Datagram { payload: &payload[1..], ..too_long }));
            assert_eq!(out.len(), 2 + BODY_LEN_MAX);
        }
        assert_eq!(body_len_max(65_520), 65_535);
        assert_eq!(body_len_max(1500), 1521);
    }

    proptest! {
        #[test]
        fn parse_undoes_write(
            conid: u16, rebind: bool, dns: bool, v4: u32, v6: u128, is_v6: bool, port: u16,
            payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let ip: IpAddr = if is_v6 { Ipv6Addr::from(v6).into() } else { Ipv4Addr::from(v4).into() };
            let datagram = Datagram {
                conid, rebind, dns, address: SocketAddr::new(ip, port), payload: &payload,
            };
            let frame = written(&datagram);
            prop_assert_eq!(usize::from(u16::from_le_bytes([frame[0], frame[1]])), frame.len() - 2);
            prop_assert_eq!(parse(&frame[2..]), Ok(Message::Datagram(datagram)));
        }

        #[test]
        fn a_parsed_body_is_written_back_byte_for_byte(
            mut body in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            if let Some(flags) = body.first_mut() {
                *flags &= FLAG_REBIND | FLAG_DNS | FLAG_IPV6;
            }
            if let Ok(Message::Datagram(datagram)) = parse(&body) {
                prop_assert_eq!(&written(&datagram)[2..], &body[..]);
            }
        }
    }
}
