//! IP headers and checksums: no panic, the same as a second, naive decoder reads, and a checksum that
//! does not depend on how the bytes are cut.
//!
//! An input is a place to cut at (one byte) and a packet.

#![no_main]

use libfuzzer_sys::fuzz_target;
use udpferry::wire::ip::{Header, Sum};

fuzz_target!(|data: &[u8]| {
    let Some((cut, packet)) = data.split_first() else {
        return;
    };
    let header = Header::parse(packet);
    assert_eq!(header.map(|it| (it.protocol, it.transport, it.packet_len)), naive(packet));
    if let Some(header) = header {
        assert!(header.transport <= header.packet_len && header.packet_len <= packet.len());
        let (source, destination) = match packet[0] >> 4 {
            4 => (packet[12..16].to_vec(), packet[16..20].to_vec()),
            _ => (packet[8..24].to_vec(), packet[24..40].to_vec()),
        };
        let octets = |address: std::net::IpAddr| match address {
            std::net::IpAddr::V4(address) => address.octets().to_vec(),
            std::net::IpAddr::V6(address) => address.octets().to_vec(),
        };
        assert_eq!((octets(header.source), octets(header.destination)), (source, destination));
        let len = packet.len() - header.transport;
        if let Ok(short) = u16::try_from(len) {
            let pseudo = [octets(header.source), octets(header.destination)].concat();
            let tail = [&short.to_be_bytes()[..], &[0, header.protocol]].concat();
            let expected = naive_checksum(&[pseudo, tail].concat());
            assert_eq!(header.pseudo_sum(header.protocol, len).checksum(), expected);
        }
    }

    let sum = Sum::default().with(packet);
    assert_eq!(sum.checksum(), naive_checksum(packet));
    assert_eq!(sum.partial().map(|byte| !byte), sum.checksum());
    let cut = usize::from(*cut) * 2;
    if let Some((front, back)) = packet.split_at_checked(cut) {
        assert_eq!(Sum::default().with(back).with(front).checksum(), sum.checksum());
    }
    // With its own checksum, any bytes are sound.
    let mut own = packet.to_vec();
    own.truncate(packet.len() & !1);
    own.extend(Sum::default().with(&own).checksum());
    assert!(Sum::default().with(&own).is_sound());
});

/// The second decoder: plain indices, and nothing of the first.
fn naive(packet: &[u8]) -> Option<(u8, usize, usize)> {
    let number = |at: usize| usize::from(packet[at]) * 256 + usize::from(packet[at + 1]);
    if packet.len() >= 20 && packet[0] / 16 == 4 {
        let (words, len) = (usize::from(packet[0] % 16), number(2));
        (words >= 5 && len >= words * 4 && len <= packet.len()).then(|| (packet[9], words * 4, len))
    } else if packet.len() >= 40 && packet[0] / 16 == 6 {
        let len = 40 + number(4);
        (len <= packet.len()).then(|| (packet[6], 40, len))
    } else {
        None
    }
}

fn naive_checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) * 256 + u32::from(*pair.get(1).unwrap_or(&0));
        sum = sum % 65_536 + sum / 65_536;
    }
    let [_, _, high, low] = sum.to_be_bytes();
    [!high, !low]
}
