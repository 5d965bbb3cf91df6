//! Rendezvous datagrams: no panic, the same requests and answers as a second, naive decoder finds,
//! every one written back byte for byte (the padding of a hello aside), and no strict prefix of one
//! that is read as another.

#![no_main]

use libfuzzer_sys::fuzz_target;
use udpferry::wire::rendezvous::{
    Answer, Request, is_rendezvous, parse_answer, parse_request, write_answer, write_request,
};

fuzz_target!(|data: &[u8]| {
    let request = parse_request(data);
    let answer = parse_answer(data);
    assert!(request.is_none() || answer.is_none(), "both a request and an answer");
    assert!(is_rendezvous(data) || (request.is_none() && answer.is_none()));
    assert_eq!(naive(data), (request.is_some(), answer.is_some()));

    let mut written = Vec::new();
    if let Some(request) = request {
        write_request(&mut written, &request);
        assert_eq!(parse_request(&written), Some(request));
        match request {
            // Padding, of any content and length.
            Request::Hello { .. } => assert_eq!((&written[..29], written.len()), (&data[..29], 64)),
            _ => assert_eq!(written, data),
        }
    }
    if let Some(answer) = answer {
        write_answer(&mut written, &answer);
        assert_eq!(written, data);
    }
    // What ends with its datagram is read shorter from a shorter one; everything else is refused.
    let ends_with_datagram = matches!(request, Some(Request::Relay { .. } | Request::Hello { .. }))
        || matches!(answer, Some(Answer::Relayed { .. }));
    if !ends_with_datagram && (request.is_some() || answer.is_some()) {
        for len in 0..data.len() {
            assert_eq!(parse_request(&data[..len]), None, "a prefix of {len} bytes");
            assert_eq!(parse_answer(&data[..len]), None, "a prefix of {len} bytes");
        }
    }
});

/// The second decoder, which knows lengths alone: whether it is a request, and whether an answer.
fn naive(data: &[u8]) -> (bool, bool) {
    if data.len() < 5 || data[..4] != [0xf5, b'r', b'v', 1] {
        return (false, false);
    }
    let len = data.len();
    // Whether `sealed` begins there and ends with the datagram.
    let sealed = |at: usize| {
        len >= at + 2 && {
            let sealed_len = usize::from(data[at]) * 256 + usize::from(data[at + 1]);
            sealed_len <= 512 && len == at + 2 + sealed_len
        }
    };
    let endpoint = |at: usize| {
        len >= at + 19 && (data[at] == 6 || data[at] == 4 && data[at + 7..at + 19] == [0; 12])
    };
    match data[4] {
        0x01 => (len >= 64, false),
        0x02 => (sealed(5 + 8 + 16 + 16 + 16 + 2), false),
        0x03 => (len == 5 + 8, false),
        0x04 => (len == 5 + 8 + 16 + 16 + 16 + 8, false),
        0x05 => (len == 5 + 8 + 16 + 16 + 16, false),
        0x06 => (len >= 5 + 8, false),
        0x81 => (false, len == 48 && endpoint(29)),
        0x82 => (false, len == 46 && endpoint(21) && data[44] <= 1),
        0x83 => {
            let head = 5 + 8 + 2 + 8;
            let count = data.get(head).map_or(0, |count| usize::from(*count));
            let endpoints = (1..=2).contains(&count)
                && (0..count).all(|index| endpoint(head + 1 + 19 * index))
                && sealed(head + 1 + 19 * count);
            (false, endpoints)
        }
        0x84 | 0x85 => (false, len == 5 + 8),
        0x86 => (false, len >= 5 + 8),
        0x8f => (false, len == 5 + 8 + 1 && (1..=3).contains(&data[13])),
        _ => (false, false),
    }
}
