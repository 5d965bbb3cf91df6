//! udpgw streams: no panic, the same messages as a second, naive decoder finds, whatever the place
//! at which the stream is split, and every datagram written back byte for byte.
//!
//! An input is a split position (u16, little-endian) and a stream.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::net::SocketAddr;
use udpferry::wire::length_prefix::{Frames, Oversize};
use udpferry::wire::udpgw::{
    BODY_LEN_MAX, BYTE_ORDER, Datagram, Malformed, Message, body_len_max, parse, write_frame,
};

/// Flag bits that a writer knows: rebind, dns, ipv6. With others a body is read, not written back.
const KNOWN_FLAGS: u8 = 2 | 4 | 8;
/// The udp-mtu of the server: a usual one, so that short inputs reach the limit too.
const UDP_MTU: usize = 1500;

fuzz_target!(|data: &[u8]| {
    let Some((split, stream)) = data.split_first_chunk() else {
        return;
    };
    let split = usize::from(u16::from_le_bytes(*split)) % (stream.len() + 1);
    for len_max in [BODY_LEN_MAX, body_len_max(UDP_MTU)] {
        let whole = read(stream, stream.len(), len_max);
        assert_eq!(read(stream, split, len_max), whole, "split at {split}");
        assert_eq!(naive(stream, len_max), whole);
    }
    for body in Frames::new(stream, BYTE_ORDER, BODY_LEN_MAX).flatten() {
        written_back(body);
    }
});

/// What a stream says: its bodies with their meaning, and how it ends.
#[derive(Debug, PartialEq)]
struct Reading {
    messages: Vec<(Vec<u8>, Meaning)>,
    /// The length of the frame that ends it, else the bytes that wait for more.
    end: Result<Vec<u8>, usize>,
}

#[derive(Debug, PartialEq)]
enum Meaning {
    Keepalive,
    Datagram { conid: u16, rebind: bool, dns: bool, address: SocketAddr, payload: Vec<u8> },
    NoHeader,
    NoAddress,
}

/// Reads the stream as a server does: first up to `split`, then what was unfinished with the rest.
fn read(stream: &[u8], split: usize, len_max: usize) -> Reading {
    let mut messages = Vec::new();
    let mut unfinished = Vec::new();
    for part in [&stream[..split], &stream[split..]] {
        unfinished.extend_from_slice(part);
        let mut frames = Frames::new(&unfinished, BYTE_ORDER, len_max);
        for frame in frames.by_ref() {
            match frame {
                Ok(body) => messages.push((body.to_vec(), meaning(body))),
                Err(Oversize { len }) => return Reading { messages, end: Err(len) },
            }
        }
        unfinished = frames.unfinished().to_vec();
    }
    Reading { messages, end: Ok(unfinished) }
}

fn meaning(body: &[u8]) -> Meaning {
    match parse(body) {
        Ok(Message::Keepalive) => Meaning::Keepalive,
        Ok(Message::Datagram(Datagram { conid, rebind, dns, address, payload })) => {
            Meaning::Datagram { conid, rebind, dns, address, payload: payload.to_vec() }
        }
        Err(Malformed::NoHeader) => Meaning::NoHeader,
        Err(Malformed::NoAddress) => Meaning::NoAddress,
    }
}

/// The second decoder: plain indices, and nothing of the first.
fn naive(stream: &[u8], len_max: usize) -> Reading {
    let mut messages = Vec::new();
    let mut at = 0;
    while stream.len() - at >= 2 {
        let len = usize::from(stream[at]) | usize::from(stream[at + 1]) << 8;
        if len > len_max {
            return Reading { messages, end: Err(len) };
        }
        if stream.len() - at - 2 < len {
            break;
        }
        let body = stream[at + 2..at + 2 + len].to_vec();
        let meaning = naive_meaning(&body);
        messages.push((body, meaning));
        at += 2 + len;
    }
    Reading { messages, end: Ok(stream[at..].to_vec()) }
}

fn naive_meaning(body: &[u8]) -> Meaning {
    if body.len() < 3 {
        return Meaning::NoHeader;
    }
    if body[0] % 2 == 1 {
        return Meaning::Keepalive;
    }
    let address_len = if body[0] & 8 == 8 { 16 } else { 4 };
    if body.len() < 3 + address_len + 2 {
        return Meaning::NoAddress;
    }
    let port = u16::from(body[3 + address_len]) << 8 | u16::from(body[4 + address_len]);
    let address = if address_len == 16 {
        let octets: [u8; 16] = std::array::from_fn(|index| body[3 + index]);
        SocketAddr::from((octets, port))
    } else {
        SocketAddr::from(([body[3], body[4], body[5], body[6]], port))
    };
    Meaning::Datagram {
        conid: u16::from(body[1]) | u16::from(body[2]) << 8,
        rebind: body[0] & 2 == 2,
        dns: body[0] & 4 == 4,
        address,
        payload: body[5 + address_len..].to_vec(),
    }
}

fn written_back(body: &[u8]) {
    let Ok(Message::Datagram(datagram)) = parse(body) else {
        return;
    };
    let mut frame = Vec::new();
    assert!(write_frame(&mut frame, &datagram), "what was read fits a frame: {datagram:?}");
    let [low, high, written @ ..] = &frame[..] else { unreachable!("no prefix") };
    assert_eq!(usize::from(u16::from_le_bytes([*low, *high])), written.len());
    if body[0] & !KNOWN_FLAGS == 0 {
        assert_eq!(written, body);
    } else {
        assert_eq!(written[1..], body[1..], "only unknown flags may go");
        assert_eq!(written[0], body[0] & KNOWN_FLAGS);
    }
}
