//! PROXY protocol headers: no panic, no header beyond the input, no answer taken back when more
//! bytes come, and every written header reads back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use udpferry::wire::proxy_protocol::{HEADER_MAX, Header, Source, parse, write_v2};

fuzz_target!(|data: &[u8]| {
    prefixes_agree(data);
    if let Some((endpoints, tail)) = data.split_first_chunk::<36>() {
        reads_back(endpoints, tail);
    }
});

/// Every strict prefix of a header asks for more; every extension of an error is an error; what
/// follows a header does not change it.
fn prefixes_agree(data: &[u8]) {
    // Prefixes beyond the longest header would be quadratic and tell nothing new.
    let data = data.get(..HEADER_MAX + 8).unwrap_or(data);
    let whole = parse(data);
    let mut refused = false;
    for end in 0..data.len() {
        match parse(&data[..end]) {
            Ok(None) => assert!(!refused, "more bytes repaired an error at {end}"),
            Ok(Some(header)) => {
                assert!(!refused && header.len <= end, "{header:?} at {end}");
                assert_eq!(whole, Ok(Some(header)), "another answer at {end}");
            }
            Err(_) => refused = true,
        }
    }
    match whole {
        Ok(Some(header)) => {
            assert!(!refused && header.len <= data.len() && header.len <= HEADER_MAX);
            assert_eq!(parse(&data[..header.len]), Ok(Some(header)));
            assert_eq!(parse(&data[..header.len - 1]), Ok(None));
        }
        Ok(None) => assert!(!refused && data.len() < HEADER_MAX),
        Err(_) => {}
    }
}

fn reads_back(endpoints: &[u8; 36], tail: &[u8]) {
    let bytes = |at: usize| -> [u8; 16] { std::array::from_fn(|index| endpoints[at + index]) };
    let port = |at: usize| u16::from_be_bytes([endpoints[at], endpoints[at + 1]]);
    let v6 = |at: usize, port| SocketAddr::from((Ipv6Addr::from(bytes(at)), port));
    let v4 = |at: usize, port| {
        let [a, b, c, d, ..] = bytes(at);
        SocketAddr::from((Ipv4Addr::new(a, b, c, d), port))
    };
    let (source_port, destination_port) = (port(32), port(34));
    for (source, destination) in [
        (v4(0, source_port), v4(16, destination_port)),
        (v6(0, source_port), v6(16, destination_port)),
    ] {
        let mut written = Vec::new();
        write_v2(&mut written, source, destination);
        let expected =
            Header { len: written.len(), source: Source::Proxied { source, destination } };
        written.extend_from_slice(tail);
        assert_eq!(parse(&written), Ok(Some(expected)));

        let version = if source.is_ipv4() { 4 } else { 6 };
        let (from, to) = (source.ip(), destination.ip());
        let line = format!("PROXY TCP{version} {from} {to} {source_port} {destination_port}\r\n");
        let expected = Header { len: line.len(), ..expected };
        assert_eq!(parse(&[line.as_bytes(), tail].concat()), Ok(Some(expected)));
    }
}
