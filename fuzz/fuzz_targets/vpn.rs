//! VPN control messages: no panic, the same requests and answers as a second, naive decoder finds,
//! every one written back byte for byte, and no strict prefix of one that is read as another.

#![no_main]

use libfuzzer_sys::fuzz_target;
use udpferry::wire::vpn::{
    HELLO_LEN, parse_answer, parse_hello_of_other_version, parse_request, write_answer,
    write_request,
};

fuzz_target!(|data: &[u8]| {
    let request = parse_request(data);
    let answer = parse_answer(data);
    assert!(request.is_none() || answer.is_none(), "both a request and an answer");
    assert_eq!(naive(data), (request.is_some(), answer.is_some()));
    if parse_hello_of_other_version(data).is_some() {
        assert!(request.is_none() && data.len() >= HELLO_LEN);
    }

    let mut written = Vec::new();
    if let Some(request) = &request {
        write_request(&mut written, request);
        assert_eq!(written, data);
    }
    if let Some(answer) = &answer {
        write_answer(&mut written, answer);
        assert_eq!(written, data);
    }
    if request.is_some() || answer.is_some() {
        for len in 0..data.len() {
            assert_eq!(parse_request(&data[..len]), None, "a prefix of {len} bytes");
            assert_eq!(parse_answer(&data[..len]), None, "a prefix of {len} bytes");
        }
    }
});

/// The second decoder, which knows positions alone: whether it is a request, and whether an answer.
fn naive(data: &[u8]) -> (bool, bool) {
    if data.len() < 5 || data[..3] != [0xf6, b'u', b'f'] {
        return (false, false);
    }
    let (version, kind, len) = (data[3], data[4], data.len());
    let zeros = |from: usize, to: usize| data[from..to].iter().all(|byte| *byte == 0);
    let family = |at: usize, bytes: usize| {
        let (prefix_at, server_at, end) = (at + bytes, at + bytes + 1, at + bytes + 1 + bytes);
        if zeros(at, prefix_at) {
            return zeros(at, end);
        }
        let prefix = usize::from(data[prefix_at]);
        let differ = data[at..prefix_at] != data[server_at..end];
        !zeros(server_at, end) && differ && prefix >= 1 && prefix <= 8 * bytes
    };
    let request = match kind {
        1 if len == 66 => {
            let only = data[45];
            only < 4 && (only & 1 == 0 || !zeros(46, 50)) && (only & 2 == 0 || !zeros(50, 66))
        }
        2 => len == 29,
        3 => len == 21,
        _ => false,
    };
    let answer = match kind {
        0x81 => len == 48 && (data[29] == 6 || data[29] == 4 && zeros(36, 48)),
        0x82 if len >= 60 => {
            let count = usize::from(data[59]);
            let addresses = family(13, 4) && family(22, 16) && !zeros(13, 55);
            addresses && count <= 3 && len == 60 + 16 * count
        }
        0x83 => len == 13,
        0x84 => len == 5,
        0x85 => len == 21,
        0x8f => len == 14 && (1..=5).contains(&data[13]),
        _ => false,
    };
    let refused_for_version = kind == 0x8f && len == 14 && data[13] == 5;
    if version == 1 { (request, answer) } else { (false, refused_for_version) }
}
