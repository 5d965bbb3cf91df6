use super::coalesce::{Coalescer, Merging, Output, PIECES_MAX};
use super::split::Split;
use super::{Kind, VIRTIO_HEADER_LEN, VirtioHeader};
use crate::wire::ip::Header;
use proptest::prelude::*;
use proptest::sample::select;
use std::collections::BTreeMap;
use std::ops::Range;

const BOTH: Merging = Merging { tcp: true, udp: true };

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const URG: u8 = 0x20;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// What a packet is made of.
#[derive(Debug, Clone)]
struct Recipe {
    is_ipv6: bool,
    is_tcp: bool,
    source_port: u16,
    traffic_class: u8,
    hop_limit: u8,
    /// IPv4's DF, MF and offset.
    fragment_field: u16,
    id: u16,
    ip_options: Vec<u8>,
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    window: u16,
    /// A multiple of four.
    tcp_options: Vec<u8>,
    payload: Vec<u8>,
}

impl Default for Recipe {
    fn default() -> Recipe {
        Recipe {
            is_ipv6: false,
            is_tcp: true,
            source_port: 1000,
            traffic_class: 0,
            hop_limit: 64,
            fragment_field: 0x4000,
            id: 7,
            ip_options: Vec::new(),
            sequence: 1,
            acknowledgement: 99,
            flags: ACK,
            window: 500,
            tcp_options: Vec::new(),
            payload: Vec::new(),
        }
    }
}

impl Recipe {
    /// The packet with good checksums.
    fn packet(&self) -> Vec<u8> {
        let mut packet = self.headers();
        let transport = self.transport();
        packet.extend_from_slice(&self.payload);
        seal(&mut packet, transport);
        packet
    }

    fn transport(&self) -> usize {
        if self.is_ipv6 { 40 } else { 20 + self.ip_options.len() }
    }

    fn headers(&self) -> Vec<u8> {
        let mut packet = Vec::new();
        let protocol = if self.is_tcp { 6 } else { 17 };
        if self.is_ipv6 {
            packet.extend([0x60 | self.traffic_class >> 4, self.traffic_class << 4, 0, 9]);
            packet.extend([0, 0, protocol, self.hop_limit]);
            packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        } else {
            let words = u8::try_from(5 + self.ip_options.len() / 4).unwrap();
            packet.extend([0x40 | words, self.traffic_class, 0, 0]);
            packet.extend(self.id.to_be_bytes());
            packet.extend(self.fragment_field.to_be_bytes());
            packet.extend([self.hop_limit, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            packet.extend_from_slice(&self.ip_options);
        }
        packet.extend(self.source_port.to_be_bytes());
        packet.extend([0, 80]);
        if self.is_tcp {
            packet.extend(self.sequence.to_be_bytes());
            packet.extend(self.acknowledgement.to_be_bytes());
            let words = u8::try_from(5 + self.tcp_options.len() / 4).unwrap();
            packet.extend([words << 4, self.flags]);
            packet.extend(self.window.to_be_bytes());
            packet.extend([0; 4]);
            packet.extend_from_slice(&self.tcp_options);
        } else {
            packet.extend([0; 4]);
        }
        packet
    }

    /// As the kernel would hand it over: with a checksum over the pseudo header alone.
    fn merged(&self, segment_len: u16) -> (VirtioHeader, Vec<u8>) {
        let mut packet = self.packet();
        let transport = self.transport();
        let checksum_at = if self.is_tcp { 16 } else { 6 };
        let pseudo = pseudo_header(&packet, transport);
        let sum = !naive_checksum(&pseudo);
        packet[transport + checksum_at..][..2].copy_from_slice(&sum.to_be_bytes());
        let kind = match (self.is_tcp, self.is_ipv6) {
            (true, false) => Kind::Tcp4,
            (true, true) => Kind::Tcp6,
            (false, _) => Kind::Udp,
        };
        let headers_len = packet.len() - self.payload.len();
        let header = VirtioHeader {
            kind,
            headers_len: u16::try_from(headers_len).unwrap(),
            segment_len,
            checksum: Some((
                u16::try_from(transport).unwrap(),
                u16::try_from(checksum_at).unwrap(),
            )),
        };
        (header, packet)
    }
}

fn naive_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) * 256 + u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = sum % 65_536 + sum / 65_536;
    }
    !u16::try_from(sum).unwrap()
}

fn pseudo_header(packet: &[u8], transport: usize) -> Vec<u8> {
    let len = packet.len() - transport;
    let mut pseudo = Vec::new();
    if packet[0] >> 4 == 4 {
        pseudo.extend_from_slice(&packet[12..20]);
        pseudo.extend([0, packet[9]]);
        pseudo.extend(u16::try_from(len).unwrap().to_be_bytes());
    } else {
        pseudo.extend_from_slice(&packet[8..40]);
        pseudo.extend(u32::try_from(len).unwrap().to_be_bytes());
        pseudo.extend([0, 0, 0, packet[6]]);
    }
    pseudo
}

/// Lengths and checksums, by the RFCs.
fn seal(packet: &mut [u8], transport: usize) {
    let len = packet.len();
    let protocol = if packet[0] >> 4 == 4 {
        packet[2..4].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
        packet[10..12].fill(0);
        let sum = naive_checksum(&packet[..transport]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet[9]
    } else {
        packet[4..6].copy_from_slice(&u16::try_from(len - 40).unwrap().to_be_bytes());
        packet[6]
    };
    let checksum_at = if protocol == 6 { 16 } else { 6 };
    if protocol == 17 {
        let udp_len = u16::try_from(len - transport).unwrap();
        packet[transport + 4..][..2].copy_from_slice(&udp_len.to_be_bytes());
    }
    packet[transport + checksum_at..][..2].fill(0);
    let mut bytes = pseudo_header(packet, transport);
    bytes.extend_from_slice(&packet[transport..]);
    let mut sum = naive_checksum(&bytes);
    if protocol == 17 && sum == 0 {
        sum = 0xffff;
    }
    packet[transport + checksum_at..][..2].copy_from_slice(&sum.to_be_bytes());
}

/// The second splitter: packet by packet, with plain indices.
fn naive_split(packet: &[u8], segment_len: usize) -> Vec<Vec<u8>> {
    let is_ipv4 = packet[0] >> 4 == 4;
    let transport = if is_ipv4 { usize::from(packet[0] & 15) * 4 } else { 40 };
    let is_tcp = packet[if is_ipv4 { 9 } else { 6 }] == 6;
    let headers_len =
        transport + if is_tcp { usize::from(packet[transport + 12] >> 4) * 4 } else { 8 };
    let mut packets = Vec::new();
    let mut at = headers_len;
    while at < packet.len() {
        let end = (at + segment_len).min(packet.len());
        let mut one = packet[..headers_len].to_vec();
        one.extend_from_slice(&packet[at..end]);
        if is_ipv4 {
            let id = u16::from_be_bytes([packet[4], packet[5]]);
            let id = id.wrapping_add(u16::try_from(packets.len()).unwrap());
            one[4..6].copy_from_slice(&id.to_be_bytes());
        }
        if is_tcp {
            let sequence = &packet[transport + 4..][..4];
            let sequence = u32::from_be_bytes(sequence.try_into().unwrap());
            let sequence = sequence.wrapping_add(u32::try_from(at - headers_len).unwrap());
            one[transport + 4..][..4].copy_from_slice(&sequence.to_be_bytes());
            if end < packet.len() {
                one[transport + 13] &= !(FIN | PSH);
            }
            if at > headers_len {
                one[transport + 13] &= !CWR;
            }
        }
        seal(&mut one, transport);
        packets.push(one);
        at = end;
    }
    packets
}

fn split(virtio: &VirtioHeader, packet: &[u8], prefix: &[u8]) -> Option<Vec<Vec<u8>>> {
    let split = Split::new(virtio, Header::parse(packet)?, packet)?;
    let len = split.total_len(prefix.len());
    // Longer than needed: what lies behind must stay.
    let mut out = vec![0xee; len + 3];
    assert_eq!(split.write(prefix, &mut out[..len - 1]), None);
    split.write(prefix, &mut out).unwrap();
    assert_eq!(out[len..], [0xee; 3]);
    let each = prefix.len() + split.packet_len();
    let packets: Vec<Vec<u8>> = out[..len]
        .chunks(each)
        .map(|packet| {
            assert_eq!(&packet[..prefix.len()], prefix);
            packet[prefix.len()..].to_vec()
        })
        .collect();
    assert_eq!(packets.len(), split.packets());
    assert_eq!(split.is_even(), len % each == 0);
    Some(packets)
}

/// What is written for packets that arrive in this order: each as the device would get it.
fn coalesce(packets: &[Vec<u8>], merging: Merging) -> Vec<(VirtioHeader, Vec<u8>)> {
    let mut buffer = Vec::new();
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for packet in packets {
        buffer.extend([0xdd; 5]);
        ranges.push(buffer.len()..buffer.len() + packet.len());
        buffer.extend_from_slice(packet);
    }
    let mut written = Vec::new();
    let mut originals: Vec<Range<usize>> = Vec::new();
    let mut write = |output: Output<'_>| {
        assert_eq!(output.device, 3);
        let mut bytes = output.head.to_vec();
        for piece in output.pieces {
            bytes.extend_from_slice(&buffer[piece.clone()]);
        }
        originals.extend(output.packets());
        let packet = bytes.split_off(VIRTIO_HEADER_LEN);
        let header = VirtioHeader::parse(&bytes).unwrap();
        assert_eq!(header.kind, output.kind);
        written.push((header, packet));
    };
    let mut coalescer = Coalescer::default();
    for range in &ranges {
        let ip = Header::parse(&buffer[range.clone()]).unwrap();
        coalescer.push((3, merging), &buffer, range.clone(), &ip, &mut write);
    }
    coalescer.finish(&mut write);
    // For a device that refuses merged packets, every packet is there once.
    originals.sort_by_key(|range| range.start);
    assert_eq!(originals, ranges);
    written
}

/// What is written, as packets again.
fn taken_apart(written: &[(VirtioHeader, Vec<u8>)]) -> Vec<Vec<u8>> {
    let packets = written.iter().flat_map(|(header, packet)| match header.kind {
        Kind::Single => {
            assert_eq!(*header, VirtioHeader::default());
            vec![packet.clone()]
        }
        _ => naive_split(packet, header.segment_len.into()),
    });
    packets.collect()
}

/// A row of packets that a merged one is taken apart into.
fn row(recipe: &Recipe, segment_len: usize) -> Vec<Vec<u8>> {
    naive_split(&recipe.packet(), segment_len)
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect()
}

fn hex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

// The golden packets were put together byte by byte in Python (struct), with a checksum of its own.

#[test]
fn tcp_over_ipv4_is_split_as_by_hand() {
    let recipe = Recipe {
        flags: CWR | ACK | PSH | FIN,
        payload: b"abcdef".to_vec(),
        id: 0xffff,
        sequence: 0xffff_fffe,
        ..Recipe::default()
    };
    let (virtio, packet) = recipe.merged(4);
    let first = "45 00 00 2c ff ff 40 00 40 06 26 ca 0a 00 00 01 0a 00 00 02 \
                 03 e8 00 50 ff ff ff fe 00 00 00 63 50 90 01 f4 cf f9 00 00 61 62 63 64";
    let second = "45 00 00 2a 00 00 40 00 40 06 26 cc 0a 00 00 01 0a 00 00 02 \
                  03 e8 00 50 00 00 00 02 00 00 00 63 50 19 01 f4 2f d0 00 00 65 66";
    assert_eq!(split(&virtio, &packet, &[]).unwrap(), [hex(first), hex(second)]);
}

#[test]
fn udp_over_ipv6_is_split_as_by_hand() {
    let recipe =
        Recipe { is_ipv6: true, is_tcp: false, payload: b"abcde".to_vec(), ..Recipe::default() };
    let (virtio, packet) = recipe.merged(3);
    let first = "60 00 00 09 00 0b 11 40 fd 00 00 00 00 00 00 00 00 00 00 00 00 00 00 01 \
                 fd 00 00 00 00 00 00 00 00 00 00 00 00 00 00 02 03 e8 00 50 00 0b 3d 39 61 62 63";
    let second = "60 00 00 09 00 0a 11 40 fd 00 00 00 00 00 00 00 00 00 00 00 00 00 00 01 \
                  fd 00 00 00 00 00 00 00 00 00 00 00 00 00 00 02 03 e8 00 50 00 0a 9d 38 64 65";
    let packets = split(&virtio, &packet, &[0, 0, 0x86, 0xdd]).unwrap();
    assert_eq!(packets, [hex(first), hex(second)]);
}

#[test]
fn extension_headers_are_in_every_packet() {
    let recipe = Recipe { is_ipv6: true, payload: payload(10), ..Recipe::default() };
    let (virtio, packet) = recipe.merged(4);
    // Destination options, eight bytes of padding, in front of TCP.
    let mut extended = packet[..40].to_vec();
    extended[6] = 60;
    extended.extend([6, 0, 1, 4, 0, 0, 0, 0]);
    extended.extend_from_slice(&packet[40..]);
    let len = u16::try_from(extended.len() - 40).unwrap();
    extended[4..6].copy_from_slice(&len.to_be_bytes());
    let virtio = VirtioHeader { checksum: Some((48, 16)), ..virtio };
    let packets = split(&virtio, &extended, &[]).unwrap();
    let expected = row(&recipe, 4);
    assert_eq!(packets.len(), expected.len());
    for (packet, expected) in packets.iter().zip(&expected) {
        assert_eq!(usize::from(packet[5]), packet.len() - 40);
        assert_eq!(packet[40..48], extended[40..48]);
        assert_eq!(packet[48..], expected[40..]);
    }
}

#[test]
fn what_is_not_as_it_says_is_not_split() {
    let recipe = Recipe { payload: payload(100), ..Recipe::default() };
    let (virtio, packet) = recipe.merged(30);
    let new = |virtio: VirtioHeader, packet: &[u8]| split(&virtio, packet, &[]).is_some();
    assert!(new(virtio, &packet));
    for wrong in [
        VirtioHeader { kind: Kind::Single, ..virtio },
        VirtioHeader { kind: Kind::Tcp6, ..virtio },
        VirtioHeader { kind: Kind::Udp, ..virtio },
        VirtioHeader { segment_len: 0, ..virtio },
        VirtioHeader { checksum: None, ..virtio },
        VirtioHeader { checksum: Some((24, 16)), ..virtio },
        VirtioHeader { checksum: Some((u16::MAX, 16)), ..virtio },
    ] {
        assert!(!new(wrong, &packet), "{wrong:?}");
    }
    let without_payload = Recipe { payload: Vec::new(), ..recipe.clone() }.packet();
    assert!(!new(virtio, &without_payload));
    let mut header_too_long = packet.clone();
    header_too_long[32] = 0xf0;
    assert!(new(virtio, &header_too_long));
    header_too_long.truncate(70);
    header_too_long[3] = 70;
    assert!(!new(virtio, &header_too_long));
    let mut header_too_short = packet.clone();
    header_too_short[32] = 0x40;
    assert!(!new(virtio, &header_too_short));
    let fragment = Recipe { fragment_field: 0x2000, ..recipe }.packet();
    assert!(!new(virtio, &fragment));
}

#[test]
fn the_virtio_header_of_the_kernel() {
    // In front of 47 segments of an iperf3 stream, out of a TUN device of Linux 6.18 (x86-64).
    let bytes = [0x01, 0x01, 0x34, 0x00, 0x58, 0x05, 0x14, 0x00, 0x10, 0x00];
    let header = VirtioHeader::parse(&bytes).unwrap();
    assert_eq!((header.kind, header.headers_len, header.segment_len), (Kind::Tcp4, 52, 1368));
    assert_eq!(header.checksum, Some((20, 16)));
    assert_eq!(header.bytes(), bytes);
    assert_eq!(
        VirtioHeader::parse(&[0x01, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap().kind,
        Kind::Tcp4
    );
    // UFO, which nobody asked for, and one that is short.
    assert_eq!(VirtioHeader::parse(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    assert_eq!(VirtioHeader::parse(&bytes[..9]), None);
}

#[test]
fn a_checksum_is_completed_where_it_stands() {
    for is_tcp in [true, false] {
        for is_ipv6 in [true, false] {
            let recipe = Recipe { is_tcp, is_ipv6, payload: payload(33), ..Recipe::default() };
            let (virtio, mut packet) = recipe.merged(0);
            assert_ne!(packet, recipe.packet());
            let virtio = VirtioHeader { kind: Kind::Single, ..virtio };
            virtio.complete_checksum(&mut packet).unwrap();
            assert_eq!(packet, recipe.packet());
        }
    }
    let mut packet = [7; 30];
    for outside in [(0, 29), (29, 0), (30, 0), (31, 0), (u16::MAX, u16::MAX)] {
        let virtio = VirtioHeader { checksum: Some(outside), ..VirtioHeader::default() };
        assert_eq!(virtio.complete_checksum(&mut packet), None, "{outside:?}");
    }
    assert_eq!(VirtioHeader::default().complete_checksum(&mut packet), Some(()));
    assert_eq!(packet, [7; 30]);
}

#[test]
fn a_row_becomes_what_it_was_split_from() {
    for (is_ipv6, is_tcp) in [(false, true), (true, true), (false, false), (true, false)] {
        let recipe = Recipe {
            is_ipv6,
            is_tcp,
            flags: ACK | PSH,
            tcp_options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            payload: payload(20 * 1000 - 300),
            ..Recipe::default()
        };
        let merged = recipe.merged(1000);
        let packets = split(&merged.0, &merged.1, &[]).unwrap();
        assert_eq!(packets, row(&recipe, 1000));
        assert_eq!(coalesce(&packets, BOTH), [merged]);
    }
}

#[test]
fn rows_end_where_they_must() {
    // A short packet, PSH, as many as fit, and as many bytes as fit.
    let recipe = Recipe { payload: payload(5000), ..Recipe::default() };
    let row_of = |payload_len: usize, segment_len: usize| {
        let recipe = Recipe { payload: payload(payload_len), ..recipe.clone() };
        row(&recipe, segment_len)
    };
    let lens = |packets: &[Vec<u8>]| -> Vec<usize> {
        coalesce(packets, BOTH).iter().map(|(_, packet)| packet.len() - 40).collect()
    };
    let mut short_in_between = row_of(2500, 1000);
    let after = Recipe { sequence: 2501, id: 10, payload: payload(1000), ..recipe.clone() };
    short_in_between.push(after.packet());
    assert_eq!(lens(&short_in_between), [2500, 1000]);

    let mut pushed = row_of(3000, 1000);
    pushed[1][33] |= PSH;
    seal(&mut pushed[1], 20);
    assert_eq!(lens(&pushed), [2000, 1000]);

    assert_eq!(lens(&row_of(10 * (PIECES_MAX + 2), 10)), [10 * PIECES_MAX, 20]);
    let long: Vec<Vec<u8>> = (0..3)
        .map(|index| {
            let sequence = 1 + u32::from(index) * 30_000;
            let payload = payload(30_000);
            Recipe { sequence, id: 7 + index, payload, ..recipe.clone() }.packet()
        })
        .collect();
    assert_eq!(lens(&long), [60_000, 30_000]);

    let growing = [row_of(1000, 1000), row_of(1001, 1001)].concat();
    assert_eq!(lens(&growing), [1000, 1001]);
}

#[test]
fn what_does_not_belong_together_stays_apart() {
    let first = Recipe { payload: payload(100), ..Recipe::default() };
    let next = Recipe { sequence: 101, id: 8, ..first.clone() };
    assert_eq!(coalesce(&[first.packet(), next.packet()], BOTH).len(), 1);
    let gone = |change: fn(&mut Recipe)| {
        let mut changed = next.clone();
        change(&mut changed);
        changed
    };
    for (index, other) in [
        gone(|it| it.sequence = 102),
        gone(|it| it.sequence = 100),
        gone(|it| it.acknowledgement += 1),
        gone(|it| it.window += 1),
        gone(|it| it.flags |= CWR),
        gone(|it| it.flags |= ECE),
        gone(|it| it.flags |= URG),
        gone(|it| it.flags |= SYN),
        gone(|it| it.flags |= RST),
        gone(|it| it.flags = PSH),
        gone(|it| it.traffic_class = 3),
        gone(|it| it.hop_limit = 63),
        gone(|it| it.id = 9),
        gone(|it| it.fragment_field = 0),
        gone(|it| it.fragment_field = 0x2000),
        gone(|it| it.fragment_field = 0x0001),
        gone(|it| it.ip_options = vec![1, 1, 1, 0]),
        gone(|it| it.tcp_options = vec![1, 1, 1, 0]),
        gone(|it| it.payload.push(1)),
        gone(|it| it.payload.clear()),
        gone(|it| it.source_port = 1001),
        gone(|it| it.is_tcp = false),
        gone(|it| it.is_ipv6 = true),
    ]
    .iter()
    .enumerate()
    {
        let packets = [first.packet(), other.packet()];
        let written = coalesce(&packets, BOTH);
        assert_eq!(written.len(), 2, "{index}");
        assert_eq!(taken_apart(&written), packets, "{index}");
    }
    // The other way round: the first packet is the odd one.
    let odd = [CWR, ECE, URG, SYN, RST, PSH, FIN];
    for flag in odd {
        let first = Recipe { flags: ACK | flag, ..first.clone() };
        let next = Recipe { flags: if flag == PSH { ACK } else { ACK | flag }, ..next.clone() };
        assert_eq!(coalesce(&[first.packet(), next.packet()], BOTH).len(), 2, "{flag:x}");
    }
    // An IPv6 packet of another flow label.
    let v6 = Recipe { is_ipv6: true, ..first };
    let mut labelled = Recipe { is_ipv6: true, ..next }.packet();
    labelled[3] = 8;
    assert_eq!(coalesce(&[v6.packet(), labelled], BOTH).len(), 2);
}

#[test]
fn bad_checksums_are_left_for_the_kernel_to_find() {
    for (is_ipv6, is_tcp) in [(false, true), (true, true), (false, false), (true, false)] {
        let recipe = Recipe { is_ipv6, is_tcp, payload: payload(300), ..Recipe::default() };
        let good = row(&recipe, 100);
        for bad in 0..3 {
            let mut packets = good.clone();
            *packets[bad].last_mut().unwrap() ^= 0x10;
            let written = coalesce(&packets, BOTH);
            assert_eq!(taken_apart(&written), packets);
            let single = written.iter().filter(|(header, _)| header.kind == Kind::Single);
            assert!(single.map(|(_, packet)| packet).any(|packet| *packet == packets[bad]));
        }
    }
    // IPv4's own.
    let mut packets = row(&Recipe { payload: payload(200), ..Recipe::default() }, 100);
    packets[1][10] ^= 1;
    assert_eq!(coalesce(&packets, BOTH).len(), 2);
    // UDP without one.
    let recipe = Recipe { is_tcp: false, payload: payload(200), ..Recipe::default() };
    let mut packets = row(&recipe, 100);
    for packet in &mut packets {
        packet[26..28].fill(0);
    }
    assert_eq!(coalesce(&packets, BOTH).len(), 2);
}

#[test]
fn ids_may_stay_where_nothing_is_fragmented() {
    let of_ids = |fragment_field: u16, ids: [u16; 3]| {
        let packets: Vec<Vec<u8>> = ids
            .iter()
            .enumerate()
            .map(|(index, id)| {
                let sequence = 1 + 100 * u32::try_from(index).unwrap();
                let payload = payload(100);
                Recipe { id: *id, sequence, fragment_field, payload, ..Recipe::default() }.packet()
            })
            .collect();
        coalesce(&packets, BOTH).len()
    };
    assert_eq!(of_ids(0x4000, [0, 0, 0]), 1);
    assert_eq!(of_ids(0x4000, [0xffff, 0, 1]), 1);
    assert_eq!(of_ids(0, [5, 6, 7]), 1);
    assert_eq!(of_ids(0, [5, 5, 5]), 3);
    assert_eq!(of_ids(0x4000, [5, 5, 6]), 2);
    assert_eq!(of_ids(0x4000, [5, 6, 6]), 2);
}

#[test]
fn only_what_the_device_takes_is_merged() {
    let tcp = row(&Recipe { payload: payload(300), ..Recipe::default() }, 100);
    let udp = row(&Recipe { is_tcp: false, payload: payload(300), ..Recipe::default() }, 100);
    let mixed = [tcp[0].clone(), udp[0].clone(), tcp[1].clone(), udp[1].clone()];
    let counted = |merging| coalesce(&mixed, merging).len();
    assert_eq!(counted(BOTH), 2);
    assert_eq!(counted(Merging { tcp: true, udp: false }), 3);
    assert_eq!(counted(Merging { tcp: false, udp: true }), 3);
    assert_eq!(counted(Merging::default()), 4);
}

#[test]
fn more_flows_than_there_is_room_for_lose_nothing() {
    let flows: Vec<Vec<Vec<u8>>> = (0..40)
        .map(|port| {
            row(&Recipe { source_port: port, payload: payload(200), ..Recipe::default() }, 100)
        })
        .collect();
    let one_by_one: Vec<Vec<u8>> =
        (0..2).flat_map(|index| flows.iter().map(move |flow| flow[index].clone())).collect();
    assert_eq!(coalesce(&one_by_one, BOTH).len(), 80);
    assert_eq!(coalesce(&flows.concat(), BOTH).len(), 40);
}

/// The packets of each flow, in order, without what a merged packet cannot say: ids that stay.
fn by_flow(packets: &[Vec<u8>]) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    for packet in packets {
        let mut packet = packet.clone();
        let transport = if packet[0] >> 4 == 4 { 20 } else { 40 };
        if transport == 20 && packet[6] & 0x40 != 0 {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
        flows.entry(packet[transport..transport + 4].to_vec()).or_default().push(packet);
    }
    flows
}

fn recipes() -> impl Strategy<Value = Recipe> {
    let shape = (any::<bool>(), any::<bool>(), any::<u16>(), any::<u32>(), any::<u8>());
    let options = select(vec![0_usize, 4, 12, 40]);
    (shape, options, 1_usize..4000, any::<u8>()).prop_map(
        |((is_ipv6, is_tcp, id, sequence, traffic_class), options, len, flags)| Recipe {
            is_ipv6,
            is_tcp,
            id,
            sequence,
            traffic_class,
            flags,
            tcp_options: vec![1; options],
            payload: payload(len),
            ..Recipe::default()
        },
    )
}

proptest! {
    #[test]
    fn a_naive_splitter_agrees(recipe in recipes(), segment_len in 1_u16..5000, prefix in 0_usize..5) {
        let (virtio, packet) = recipe.merged(segment_len);
        let prefix = vec![9; prefix];
        prop_assert_eq!(
            split(&virtio, &packet, &prefix).unwrap(),
            naive_split(&recipe.packet(), segment_len.into())
        );
    }

    #[test]
    fn split_then_coalesce_gives_the_same(recipe in recipes(), segments in 2_usize..PIECES_MAX) {
        let recipe = Recipe { flags: ACK | (recipe.flags & (PSH | FIN)), ..recipe };
        let segment_len = recipe.payload.len().div_ceil(segments);
        let (virtio, packet) = recipe.merged(u16::try_from(segment_len).unwrap());
        let packets = split(&virtio, &packet, &[]).unwrap();
        let written = coalesce(&packets, BOTH);
        if packets.len() > 1 {
            prop_assert_eq!(written, [(virtio, packet)]);
        } else {
            prop_assert_eq!(written, [(VirtioHeader::default(), recipe.packet())]);
        }
    }

    /// Whatever arrives, each flow comes out in its order, and as it was.
    #[test]
    fn no_flow_is_changed_or_reordered(
        steps in proptest::collection::vec((0_usize..6, 0_u8..24, 1_usize..4), 1..150),
    ) {
        let mut flows: Vec<Recipe> = (0..6)
            .map(|index| Recipe {
                is_ipv6: index % 2 == 1,
                is_tcp: index < 4,
                source_port: index,
                ..Recipe::default()
            })
            .collect();
        let mut packets = Vec::new();
        for (flow, change, len) in steps {
            let recipe = &mut flows[flow];
            recipe.payload = payload(len.min(2) * 40);
            let mut sent = recipe.clone();
            match change {
                0 => sent.flags |= PSH,
                1 => sent.flags |= FIN,
                2 => sent.flags |= SYN,
                3 => sent.flags |= CWR,
                4 => sent.payload.clear(),
                5 => sent.acknowledgement += 1,
                6 => sent.sequence = sent.sequence.wrapping_add(1),
                7 => sent.id = sent.id.wrapping_add(1),
                8 => sent.tcp_options = vec![1; 4],
                9 => sent.hop_limit = 1,
                _ => {}
            }
            let mut packet = sent.packet();
            if change == 10 {
                *packet.last_mut().unwrap() ^= 1;
            }
            packets.push(packet);
            let len = u32::try_from(recipe.payload.len()).unwrap();
            recipe.sequence = recipe.sequence.wrapping_add(len);
            recipe.id = recipe.id.wrapping_add(1);
        }
        for merging in [BOTH, Merging { tcp: true, udp: false }, Merging::default()] {
            let written = coalesce(&packets, merging);
            prop_assert_eq!(by_flow(&taken_apart(&written)), by_flow(&packets));
        }
    }

    #[test]
    fn random_bytes_are_no_reason_to_panic(
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 1..20),
        virtio in proptest::collection::vec(any::<u8>(), 10),
        version in select(vec![0x45_u8, 0x46, 0x60]),
        lens_fit in any::<bool>(),
        protocol in select(vec![6_u8, 17, 1]),
    ) {
        let mut packets = packets;
        for packet in packets.iter_mut().filter(|packet| packet.len() >= 40 && lens_fit) {
            let len = packet.len();
            packet[0] = version;
            if version == 0x60 {
                packet[4..6].copy_from_slice(&u16::try_from(len - 40).unwrap().to_be_bytes());
                packet[6] = protocol;
            } else {
                packet[2..4].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
                packet[6..8].fill(0);
                packet[9] = protocol;
            }
        }
        let mut readable = packets.clone();
        readable.retain(|packet| Header::parse(packet).is_some());
        // Nothing here is sound enough to be merged.
        prop_assert_eq!(coalesce(&readable, BOTH).len(), readable.len());
        if let Some(header) = VirtioHeader::parse(&virtio) {
            for packet in &mut packets {
                split(&header, packet, &[]);
                let _ = header.complete_checksum(packet);
            }
        }
    }
}
