//! Pool streams: no panic, the same session id and datagrams as a second, naive decoder finds,
//! whatever the place at which the stream is split, and every datagram written back byte for byte.
//!
//! An input is a split position (u16, little-endian) and a stream.

#![no_main]

use libfuzzer_sys::fuzz_target;
use udpferry::wire::length_prefix::Frames;
use udpferry::wire::pool::{BYTE_ORDER, DATAGRAM_LEN_MAX, SESSION_ID_LEN, SessionId, write_frame};

fuzz_target!(|data: &[u8]| {
    let Some((split, stream)) = data.split_first_chunk() else {
        return;
    };
    let split = usize::from(u16::from_le_bytes(*split)) % (stream.len() + 1);
    let whole = read(stream, stream.len());
    assert_eq!(read(stream, split), whole, "split at {split}");
    assert_eq!(naive(stream), whole);
    written_back(stream, &whole);
});

/// What a stream says.
#[derive(Debug, PartialEq)]
struct Reading {
    /// `None` until all of it is there.
    session: Option<[u8; SESSION_ID_LEN]>,
    datagrams: Vec<Vec<u8>>,
    /// The bytes that wait for more.
    unfinished: Vec<u8>,
}

/// Reads the stream as a server does: first up to `split`, then what was unfinished with the rest.
fn read(stream: &[u8], split: usize) -> Reading {
    let mut reading = Reading { session: None, datagrams: Vec::new(), unfinished: Vec::new() };
    for part in [&stream[..split], &stream[split..]] {
        let mut bytes = std::mem::take(&mut reading.unfinished);
        bytes.extend_from_slice(part);
        if reading.session.is_none() {
            let Some(session) = SessionId::parse(&bytes) else {
                reading.unfinished = bytes;
                continue;
            };
            reading.session = Some(session.bytes());
            bytes.drain(..SESSION_ID_LEN);
        }
        let mut frames = Frames::new(&bytes, BYTE_ORDER, DATAGRAM_LEN_MAX);
        for frame in frames.by_ref() {
            reading.datagrams.push(frame.expect("no length is over the maximum").to_vec());
        }
        reading.unfinished = frames.unfinished().to_vec();
    }
    reading
}

/// The second decoder: plain indices, and nothing of the first.
fn naive(stream: &[u8]) -> Reading {
    let mut datagrams = Vec::new();
    if stream.len() < 16 {
        return Reading { session: None, datagrams, unfinished: stream.to_vec() };
    }
    let mut at = 16;
    while stream.len() - at >= 2 {
        let len = usize::from(stream[at]) * 256 + usize::from(stream[at + 1]);
        if stream.len() - at - 2 < len {
            break;
        }
        datagrams.push(stream[at + 2..at + 2 + len].to_vec());
        at += 2 + len;
    }
    let session = std::array::from_fn(|index| stream[index]);
    Reading { session: Some(session), datagrams, unfinished: stream[at..].to_vec() }
}

fn written_back(stream: &[u8], reading: &Reading) {
    let Some(session) = reading.session else {
        return;
    };
    let mut written = session.to_vec();
    for datagram in &reading.datagrams {
        assert!(write_frame(&mut written, datagram), "what was read fits a frame");
    }
    written.extend_from_slice(&reading.unfinished);
    assert_eq!(written, stream);

    let made = SessionId::from_random(session);
    assert_eq!((made.bytes()[6] >> 4, made.bytes()[8] >> 6), (4, 0b10), "a version 4 UUID");
    assert_eq!(made.to_string(), format!("{:08x}", head(&session)), "no more of it in a log");
    assert_eq!(SessionId::parse(&made.bytes()), Some(made));
}

fn head(session: &[u8; SESSION_ID_LEN]) -> u32 {
    session.iter().take(4).fold(0, |head, byte| head << 8 | u32::from(*byte))
}
