//! Rendezvous datagrams, the wishes inside them, and what servers tell each other: no panic, the same
//! as a second, naive decoder finds, everything written back byte for byte (the padding of a hello
//! aside), and no strict prefix of one that is read as another.

#![no_main]

use libfuzzer_sys::fuzz_target;
use udpferry::wire::rendezvous::answer::{Answer, parse_answer, write_answer};
use udpferry::wire::rendezvous::is_rendezvous;
use udpferry::wire::rendezvous::request::{
    Request, parse_request, parse_wish, write_request, write_wish,
};
use udpferry::wire::rendezvous::shared::{
    parse_message, parse_place, parse_record, write_message, write_place, write_record,
};

fuzz_target!(|data: &[u8]| {
    datagrams(data);
    let mut written = Vec::new();
    let wish = parse_wish(data);
    assert_eq!(wish.is_some(), naive_wish(data));
    if let Some((room, wish)) = wish {
        write_wish(&mut written, room, &wish);
        assert_eq!(written, data);
        (0..data.len()).for_each(|len| assert_eq!(parse_wish(&data[..len]), None));
    }
    let message = parse_message(data);
    assert_eq!(message.is_some(), naive_message(data));
    if let Some(message) = message {
        written.clear();
        write_message(&mut written, &message);
        assert_eq!(written, data);
        (0..data.len()).for_each(|len| assert_eq!(parse_message(&data[..len]), None));
    }
    if let Some(record) = parse_record(data) {
        written.clear();
        write_record(&mut written, &record);
        assert_eq!(written, data);
    }
    if let Some(place) = parse_place(data) {
        written.clear();
        write_place(&mut written, place);
        assert_eq!(written, data);
    }
});

fn datagrams(data: &[u8]) {
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
            Request::Hello { .. } => assert_eq!((&written[..13], written.len()), (&data[..13], 96)),
            _ => assert_eq!(written, data),
        }
    }
    if let Some(answer) = answer {
        write_answer(&mut written, &answer);
        assert_eq!(written, data);
    }
    // What ends with its datagram is read shorter from a shorter one; everything else is refused.
    let has_fixed_end = matches!(request, Some(Request::Introduced { .. }))
        || answer.is_some_and(|answer| !matches!(answer, Answer::Relayed { .. }));
    if has_fixed_end {
        for len in 0..data.len() {
            assert_eq!(parse_request(&data[..len]), None, "a prefix of {len} bytes");
            assert_eq!(parse_answer(&data[..len]), None, "a prefix of {len} bytes");
        }
    }
}

/// The second decoder, which knows lengths alone: whether it is a request, and whether an answer.
fn naive(data: &[u8]) -> (bool, bool) {
    if data.len() < 5 || data[..4] != [0xf5, b'r', b'v', 1] {
        return (false, false);
    }
    let len = data.len();
    match data[4] {
        0x01 => (len >= 96, false),
        0x02 => (len >= 5 + 8 + 16 + 32 + 17 + 16, false),
        0x03 => (len == 5 + 8, false),
        0x04 => (len >= 5 + 8, false),
        0x81 => (false, len == 80 && endpoint(data, 61)),
        0x82 => (false, len == 46 && endpoint(data, 21) && data[44] <= 1),
        0x83 => (false, len > 24 && data[23] <= 1 && endpoints_and_sealed(data, 24)),
        0x84 | 0x85 => (false, len == 5 + 8),
        0x86 => (false, len >= 5 + 8),
        0x8f => (false, len == 5 + 8 + 1 && (1..=3).contains(&data[13])),
        _ => (false, false),
    }
}

fn naive_wish(data: &[u8]) -> bool {
    match data.first() {
        Some(1) => sealed(data, 1 + 16 + 2),
        Some(2) => data.len() == 1 + 16 + 8,
        Some(3) => data.len() == 1 + 16,
        _ => false,
    }
}

fn naive_message(data: &[u8]) -> bool {
    match data.first() {
        Some(1) => endpoints_and_sealed(data, 1 + 16 + 16 + 6),
        Some(2) => endpoints_and_sealed(data, 1 + 16 + 16 + 8 + 6),
        Some(3) => data.len() == 1 + 16 + 16,
        _ => false,
    }
}

/// Whether `sealed` begins there and ends with the data.
fn sealed(data: &[u8], at: usize) -> bool {
    data.len() >= at + 2 && {
        let len = usize::from(data[at]) * 256 + usize::from(data[at + 1]);
        len <= 512 && data.len() == at + 2 + len
    }
}

fn endpoint(data: &[u8], at: usize) -> bool {
    data.len() >= at + 19 && (data[at] == 6 || data[at] == 4 && data[at + 7..at + 19] == [0; 12])
}

fn endpoints_and_sealed(data: &[u8], at: usize) -> bool {
    let count = data.get(at).map_or(0, |count| usize::from(*count));
    (1..=2).contains(&count)
        && (0..count).all(|index| endpoint(data, at + 1 + 19 * index))
        && sealed(data, at + 1 + 19 * count)
}
