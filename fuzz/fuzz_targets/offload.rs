//! Offloads: no panic; what is split agrees with a second, naive splitter; whatever is put together,
//! the naive splitter takes apart into the same packets, each flow in its order.
//!
//! An input is a virtio header, a mode, and then either one packet that is to be split, or packets
//! behind a length (u8) each, of which a mode makes the lengths and checksums good.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use udpferry::wire::ip::Header;
use udpferry::wire::offload::coalesce::{Coalescer, Merging};
use udpferry::wire::offload::split::Split;
use udpferry::wire::offload::{Kind, VIRTIO_HEADER_LEN, VirtioHeader};

fuzz_target!(|data: &[u8]| {
    let Some((head, rest)) = data.split_at_checked(VIRTIO_HEADER_LEN) else {
        return;
    };
    let Some((mode, rest)) = rest.split_first() else {
        return;
    };
    let virtio = VirtioHeader::parse(head);
    if let Some(virtio) = virtio {
        let again = VirtioHeader::parse(&virtio.bytes());
        assert_eq!(again, Some(virtio), "what is read is written back");
        take_apart(&virtio, rest);
        let mut changed = rest.to_vec();
        if virtio.complete_checksum(&mut changed).is_none() {
            assert_eq!(changed, rest);
        }
    }
    put_together(*mode, rest);
});

fn take_apart(virtio: &VirtioHeader, packet: &[u8]) {
    let Some(ip) = Header::parse(packet) else {
        return;
    };
    let mut packet = packet.to_vec();
    pre_sum(&mut packet, ip.transport, ip.packet_len);
    let Some(split) = Split::new(virtio, ip, &packet) else {
        return;
    };
    let mut out = vec![0; split.total_len(4)];
    split.write(&[1, 2, 3, 4], &mut out).expect("there is room for all");
    let each = split.packet_len() + 4;
    let packets: Vec<&[u8]> = out.chunks(each).map(|packet| &packet[4..]).collect();
    assert_eq!((packets.len(), out.len() % each == 0), (split.packets(), split.is_even()));
    let transport = usize::from(virtio.checksum.expect("without it nothing is split").0);
    // Behind extension headers only the second splitter does not find its way.
    if transport == ip.transport {
        let expected =
            naive_split(&packet[..ip.packet_len], split.packet_len() - split_headers(&packet));
        assert_eq!(packets, expected);
    }
}

fn put_together(mode: u8, mut rest: &[u8]) {
    let mut packets: Vec<Vec<u8>> = Vec::new();
    while let Some((len, behind)) = rest.split_first() {
        let (bytes, behind) = behind.split_at(behind.len().min(usize::from(*len)));
        let mut packet = bytes.to_vec();
        if mode & 1 != 0 {
            mend(&mut packet);
        }
        packets.push(packet);
        rest = behind;
    }
    packets.retain(|packet| Header::parse(packet).is_some());
    let merging = Merging { tcp: mode & 2 != 0, udp: mode & 4 != 0 };

    let buffer = packets.concat();
    let mut written: Vec<Vec<u8>> = Vec::new();
    let mut write = |output: udpferry::wire::offload::coalesce::Output<'_>| {
        let (head, headers) = output.head.split_at(VIRTIO_HEADER_LEN);
        let virtio = VirtioHeader::parse(head).expect("a sound header");
        assert_eq!(virtio.kind, output.kind);
        let mut packet = headers.to_vec();
        output.pieces.iter().for_each(|piece| packet.extend_from_slice(&buffer[piece.clone()]));
        let apart = match output.kind {
            Kind::Single => vec![packet],
            _ => naive_split(&packet, virtio.segment_len.into()),
        };
        assert_eq!(apart.len(), output.packets().count());
        written.extend(apart);
    };
    let mut coalescer = Coalescer::default();
    let mut start = 0;
    for packet in &packets {
        let range = start..start + packet.len();
        start = range.end;
        let ip = Header::parse(packet).expect("the others have been left out");
        coalescer.push((0, merging), &buffer, range, &ip, &mut write);
    }
    coalescer.finish(&mut write);
    assert_eq!(by_flow(&written), by_flow(&packets));
}

/// The packets of each flow in order: by addresses, and by protocol and ports where they have any.
/// Ids that stay where nothing is fragmented count up when they have been merged.
fn by_flow(packets: &[Vec<u8>]) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    for packet in packets {
        let mut packet = packet.clone();
        let is_ipv4 = packet[0] >> 4 == 4;
        let (protocol, addresses) =
            if is_ipv4 { (packet[9], &packet[12..20]) } else { (packet[6], &packet[8..40]) };
        let transport = if is_ipv4 { usize::from(packet[0] & 15) * 4 } else { 40 };
        let ports = packet.get(transport..transport + 4).unwrap_or_default();
        let key = [&[protocol][..], addresses, ports].concat();
        if is_ipv4 && packet[6] & 0x40 != 0 {
            packet[4..6].fill(0);
            packet[10..12].fill(0);
        }
        flows.entry(key).or_default().push(packet);
    }
    flows
}

fn split_headers(packet: &[u8]) -> usize {
    let transport = if packet[0] >> 4 == 4 { usize::from(packet[0] & 15) * 4 } else { 40 };
    let is_tcp = packet[if packet[0] >> 4 == 4 { 9 } else { 6 }] == 6;
    transport + if is_tcp { usize::from(packet[transport + 12] >> 4) * 4 } else { 8 }
}

/// The second splitter: packet by packet, with plain indices.
fn naive_split(packet: &[u8], segment_len: usize) -> Vec<Vec<u8>> {
    let is_ipv4 = packet[0] >> 4 == 4;
    let transport = if is_ipv4 { usize::from(packet[0] & 15) * 4 } else { 40 };
    let is_tcp = packet[if is_ipv4 { 9 } else { 6 }] == 6;
    let headers_len = split_headers(packet);
    let payload = &packet[headers_len..];
    let count = payload.len().div_ceil(segment_len);
    let pieces = payload.chunks(segment_len).enumerate();
    let packets = pieces.map(|(index, piece)| {
        let mut one = [&packet[..headers_len], piece].concat();
        if is_ipv4 {
            let id = u16::from_be_bytes([one[4], one[5]]).wrapping_add(index as u16);
            one[4..6].copy_from_slice(&id.to_be_bytes());
        }
        if is_tcp {
            let at = transport + 4;
            let sequence = u32::from_be_bytes(one[at..at + 4].try_into().expect("four bytes"));
            let sequence = sequence.wrapping_add((index * segment_len) as u32);
            one[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
            one[transport + 13] &= if index + 1 < count { !0x09 } else { 0xff };
            one[transport + 13] &= if index > 0 { !0x80 } else { 0xff };
        }
        seal(&mut one, transport);
        one
    });
    packets.collect()
}

/// Makes lengths and checksums good, if that is a packet at all.
fn mend(packet: &mut [u8]) {
    if packet.len() >= 40 && packet[0] >> 4 == 6 {
        seal(packet, 40);
    } else if packet.len() >= 20 && packet[0] >> 4 == 4 {
        packet[0] = 0x45;
        seal(packet, 20);
    }
}

fn seal(packet: &mut [u8], transport: usize) {
    let len = packet.len();
    let (protocol, mut pseudo) = if packet[0] >> 4 == 4 {
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        packet[10..12].fill(0);
        let sum = checksum(&packet[..transport]).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
        (packet[9], packet[12..20].to_vec())
    } else {
        packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        (packet[6], packet[8..40].to_vec())
    };
    let (at, header_len) = match protocol {
        6 => (16, 20),
        17 => (6, 8),
        _ => return,
    };
    if len < transport + header_len {
        return;
    }
    let segment_len = ((len - transport) as u16).to_be_bytes();
    if protocol == 17 {
        packet[transport + 4..transport + 6].copy_from_slice(&segment_len);
    }
    packet[transport + at..transport + at + 2].fill(0);
    pseudo.extend([segment_len[0], segment_len[1], 0, protocol]);
    pseudo.extend_from_slice(&packet[transport..]);
    let sum = match checksum(&pseudo) {
        0 if protocol == 17 => 0xffff,
        sum => sum,
    };
    packet[transport + at..transport + at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Puts the sum of the pseudo header in the checksum's place, where the kernel has it
/// (CHECKSUM_PARTIAL in linux/skbuff.h): a splitter makes the checksums out of it.
fn pre_sum(packet: &mut [u8], transport: usize, end: usize) {
    let (protocol, addresses) =
        if packet[0] >> 4 == 4 { (packet[9], 12..20) } else { (packet[6], 8..40) };
    let at = match protocol {
        6 => transport + 16,
        17 => transport + 6,
        _ => return,
    };
    if at + 2 > end {
        return;
    }
    let mut pseudo = packet[addresses].to_vec();
    pseudo.extend(((end - transport) as u16).to_be_bytes());
    pseudo.extend([0, protocol]);
    packet[at..at + 2].copy_from_slice(&(!checksum(&pseudo)).to_be_bytes());
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) * 256 + u32::from(*pair.get(1).unwrap_or(&0));
        sum = sum % 65_536 + sum / 65_536;
    }
    !(sum as u16)
}
