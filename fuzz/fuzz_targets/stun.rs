//! STUN: no panic, the same message as a second, naive decoder finds, a fingerprint that a bitwise
//! CRC-32 agrees with, every message written back byte for byte but for what fills attributes up,
//! and every value that is read reads the same once written.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use udpferry::wire::stun::attribute::{AddressKind, UNKNOWN_TYPES_MAX, kind};
use udpferry::wire::stun::fingerprint::Fingerprint;
use udpferry::wire::stun::writer::{NoRoom, Writer};
use udpferry::wire::stun::{Class, Message, is_classic_request, is_stun};

const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const ADDRESSES: [AddressKind; 6] = [
    AddressKind::Mapped,
    AddressKind::ResponseOrigin,
    AddressKind::Other,
    AddressKind::AlternateServer,
    AddressKind::Source,
    AddressKind::Changed,
];

fuzz_target!(|datagram: &[u8]| {
    let naive = naive(datagram);
    let Ok(message) = Message::parse(datagram) else {
        assert_eq!(naive, None);
        return;
    };
    let naive = naive.expect("a message");
    let classic = datagram[4..8] != COOKIE;
    assert_eq!((is_stun(datagram), is_classic_request(datagram)), (!classic, classic));
    assert_eq!((message.id.is_classic(), &message.id.id()[..]), (classic, &datagram[8..20]));
    assert_eq!((message.class, message.method.number()), (naive.class, naive.method));
    let attributes: Vec<_> = message.attributes().map(|found| (found.kind, found.value)).collect();
    assert_eq!(attributes, naive.attributes);
    assert_eq!(message.fingerprint(), naive_fingerprint(datagram, &naive.attributes));
    for end in [datagram.len() - 1, datagram.len() - datagram.len() / 2] {
        assert!(Message::parse(&datagram[..end]).is_err(), "{end}");
    }
    assert_eq!(message.unknown_types(&[]).as_slice(), naive_unknown(&naive.attributes));
    addresses(datagram, &message, &naive.attributes);
    written_back(datagram, &message);
    values_written_back(&message);
});

#[derive(Debug, PartialEq)]
struct Naive<'a> {
    class: Class,
    method: u16,
    attributes: Vec<(u16, &'a [u8])>,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from(bytes[at]) << 8 | u16::from(bytes[at + 1])
}

/// The second decoder: plain indices, the type bit by bit, and nothing of the first.
fn naive(datagram: &[u8]) -> Option<Naive<'_>> {
    if datagram.len() < 20 || datagram[0] >= 0x40 {
        return None;
    }
    if datagram.len() % 4 != 0 || usize::from(u16_at(datagram, 2)) != datagram.len() - 20 {
        return None;
    }
    let bits = u16_at(datagram, 0);
    let class = match (bits >> 8 & 1, bits >> 4 & 1) {
        (0, 0) => Class::Request,
        (0, _) => Class::Indication,
        (_, 0) => Class::Success,
        _ => Class::Error,
    };
    let mut method = 0;
    for (to, from) in [0, 1, 2, 3, 5, 6, 7, 9, 10, 11, 12, 13].into_iter().enumerate() {
        method |= (bits >> from & 1) << to;
    }
    if datagram[4..8] != COOKIE && bits != 1 {
        return None;
    }
    let mut attributes = Vec::new();
    let mut at = 20;
    while at < datagram.len() {
        let len = usize::from(u16_at(datagram, at + 2));
        if at + 4 + len > datagram.len() {
            return None;
        }
        attributes.push((u16_at(datagram, at), &datagram[at + 4..at + 4 + len]));
        at += 4 + len.div_ceil(4) * 4;
    }
    Some(Naive { class, method, attributes })
}

fn naive_fingerprint(datagram: &[u8], attributes: &[(u16, &[u8])]) -> Fingerprint {
    let Some(first) = attributes.iter().position(|found| found.0 == 0x8028) else {
        return Fingerprint::Absent;
    };
    let value = attributes[first].1;
    if first + 1 != attributes.len() || value.len() != 4 {
        return Fingerprint::Wrong;
    }
    let mut crc = u32::MAX;
    for byte in &datagram[..datagram.len() - 8] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc % 2 == 1 { crc / 2 ^ 0xedb8_8320 } else { crc / 2 };
        }
    }
    if (!crc ^ 0x5354_554e).to_be_bytes() == value {
        Fingerprint::Right
    } else {
        Fingerprint::Wrong
    }
}

/// What counts: nothing follows a signature but a stronger one, and nothing at all a fingerprint.
fn naive_counted<'a>(attributes: &[(u16, &'a [u8])]) -> Vec<(u16, &'a [u8])> {
    let mut counted: Vec<(u16, &[u8])> = Vec::new();
    let mut seen = [false; 3];
    for attribute in attributes {
        let counts = match (seen, attribute.0) {
            ([_, _, true], _) => false,
            (_, 0x8028) => true,
            ([_, true, _], _) => false,
            (_, 0x001c) => true,
            ([signed, ..], _) => !signed,
        };
        if counts {
            counted.push(*attribute);
            seen[0] |= attribute.0 == 0x0008;
            seen[1] |= attribute.0 == 0x001c;
            seen[2] |= attribute.0 == 0x8028;
        }
    }
    counted
}

fn naive_unknown(attributes: &[(u16, &[u8])]) -> Vec<u16> {
    let mut unknown = Vec::new();
    for (kind, _) in naive_counted(attributes) {
        let known = matches!(kind, 1 | 6 | 8 | 9 | 10 | 0x14 | 0x15 | 0x1c | 0x1d | 0x1e | 0x20);
        if kind < 0x8000 && !known && !unknown.contains(&kind) {
            unknown.push(kind);
        }
    }
    unknown.truncate(UNKNOWN_TYPES_MAX);
    unknown
}

fn naive_address(value: &[u8]) -> Option<SocketAddr> {
    match (value.get(1), value.len()) {
        (Some(1), 8) => {
            let ip = Ipv4Addr::new(value[4], value[5], value[6], value[7]);
            Some(SocketAddr::from((ip, u16_at(value, 2))))
        }
        (Some(2), 20) => {
            let octets: [u8; 16] = std::array::from_fn(|index| value[4 + index]);
            Some(SocketAddr::from((Ipv6Addr::from(octets), u16_at(value, 2))))
        }
        _ => None,
    }
}

/// Addresses in plain, and the hidden one: its value is what follows the cookie, byte by byte.
fn addresses(datagram: &[u8], message: &Message<'_>, attributes: &[(u16, &[u8])]) {
    let counted = naive_counted(attributes);
    let first = |kind| counted.iter().find(|found| found.0 == kind).map(|found| found.1);
    for address in ADDRESSES {
        let expected = first(address.kind()).map(naive_address);
        assert_eq!(message.address(address).ok(), expected.map_or(Some(None), |one| one.map(Some)));
    }
    let shown = first(kind::XOR_MAPPED_ADDRESS).map(|value| {
        let mut value = value.to_vec();
        let key = [&COOKIE[..2], &COOKIE, &datagram[8..20]].concat();
        value.iter_mut().skip(2).zip(key).for_each(|(byte, key)| *byte ^= key);
        naive_address(&value)
    });
    assert_eq!(message.xor_mapped_address().ok(), shown.map_or(Some(None), |one| one.map(Some)));
}

fn writer<'a>(buffer: &'a mut [u8], message: &Message<'_>) -> Writer<'a> {
    Writer::new(buffer, message.class, message.method, message.id).expect("room")
}

fn written_back(datagram: &[u8], message: &Message<'_>) {
    let mut buffer = vec![0xee; datagram.len()];
    let mut writer = writer(&mut buffer, message);
    let mut zeroed = datagram.to_vec();
    let mut at = 20;
    for found in message.attributes() {
        writer.attribute(found.kind, found.value).expect("what was read fits");
        at += 4 + found.value.len();
        while at % 4 != 0 {
            zeroed[at] = 0;
            at += 1;
        }
    }
    assert_eq!(writer.attribute(0, &[]), Err(NoRoom));
    assert_eq!(writer.finish(), datagram.len());
    assert_eq!(buffer[4..8], datagram[4..8]);
    assert_eq!(buffer, zeroed);
}

/// Writes every value that there is, with a fingerprint, and reads it again.
fn values_written_back(message: &Message<'_>) {
    let mut buffer = vec![0xee; 70_000];
    let mut writer = writer(&mut buffer, message);
    let shown = message.xor_mapped_address().ok().flatten();
    if let (Some(address), false) = (shown, message.id.is_classic()) {
        writer.mapped_address(address).expect("room");
    }
    for kind in ADDRESSES {
        if let Ok(Some(address)) = message.address(kind) {
            writer.address(kind, address).expect("room");
        }
    }
    if let Ok(Some(change)) = message.change_request() {
        writer.change_request(change).expect("room");
    }
    if let Ok(Some(port)) = message.response_port() {
        writer.response_port(port).expect("room");
    }
    if let Ok(Some(words)) = message.software() {
        writer.software(words).expect("room");
    }
    let error = message.error_code().ok().flatten();
    if let Some(error) = error {
        writer.error_code(error).expect("room");
    }
    let types = message.unknown_attributes().ok().flatten().map(Iterator::collect::<Vec<u16>>);
    let types = types.filter(|types| types.len() <= UNKNOWN_TYPES_MAX);
    if let Some(types) = &types {
        writer.unknown_attributes(types).expect("room");
    }
    let len = writer.finish_with_fingerprint().expect("room");
    let again = Message::parse(&buffer[..len]).expect("what is written is a message");
    assert_eq!(again.fingerprint(), Fingerprint::Right);
    for kind in ADDRESSES {
        assert_eq!(again.address(kind).ok().flatten(), message.address(kind).ok().flatten());
    }
    assert_eq!(again.change_request().ok().flatten(), message.change_request().ok().flatten());
    assert_eq!(again.response_port().ok().flatten(), message.response_port().ok().flatten());
    assert_eq!(again.software().ok().flatten(), message.software().ok().flatten());
    let error_again = again.error_code().expect("as written");
    assert_eq!(error_again.map(|one| one.code()), error.map(|one| one.code()));
    if !message.id.is_classic() {
        assert_eq!(again.xor_mapped_address().ok().flatten(), shown);
        assert_eq!(error_again, error);
        let types_again = again.unknown_attributes().expect("as written");
        assert_eq!(types_again.map(Iterator::collect::<Vec<u16>>), types);
    }
}
