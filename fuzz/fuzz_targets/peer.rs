//! What peers say to each other: no panic, what is read is written back byte for byte, and nothing
//! that is shorter or longer is read at all.
//!
//! An input is a datagram, an opened announcement or a message; each is tried.

#![no_main]

use libfuzzer_sys::fuzz_target;
use udpferry::wire::peer::{
    ANNOUNCEMENT_LEN_MAX, ENDPOINTS_MAX, MESSAGE_HEADER_LEN, NAME_LEN_MAX, PROBE_LEN,
    message_header, parse_announcement, parse_message, parse_probe, write_announcement,
    write_message, write_probe,
};

/// The announcement's flags that a writer knows: tries hard, serves, relay.
const KNOWN_FLAGS: u8 = 1 | 2 | 4;
/// Where they are: after version, key, mapping and filtering.
const FLAGS_AT: usize = 35;

fuzz_target!(|data: &[u8]| {
    probe(data);
    announcement(data);
    message(data);
});

fn probe(data: &[u8]) {
    let Some((probe, covered, mac)) = parse_probe(data) else {
        return;
    };
    assert_eq!((data.len(), covered.len()), (PROBE_LEN, PROBE_LEN - 16));
    assert_eq!([covered, &mac].concat(), data);
    let mut written = Vec::new();
    write_probe(&mut written, &probe, |bytes| {
        assert_eq!(bytes, covered);
        mac
    });
    assert_eq!(written, data);
    assert!(parse_message(data).is_none() && parse_announcement(data).is_none());
}

fn announcement(data: &[u8]) {
    let Some(announcement) = parse_announcement(data) else {
        return;
    };
    assert!(data.len() <= ANNOUNCEMENT_LEN_MAX);
    assert!(announcement.name.len() <= NAME_LEN_MAX);
    assert!(announcement.endpoints.len() <= ENDPOINTS_MAX);
    let mut written = Vec::new();
    assert!(write_announcement(&mut written, &announcement));
    let mut expected = data.to_vec();
    expected[FLAGS_AT] &= KNOWN_FLAGS;
    assert_eq!(written, expected);
    shorter_and_longer(data, |bytes| parse_announcement(bytes).is_none());
}

fn message(data: &[u8]) {
    let Some(message) = parse_message(data) else {
        return;
    };
    let mut written = Vec::new();
    assert!(write_message(&mut written, &message));
    assert_eq!(written, data);
    let header = message_header(message.kind, message.number, message.body.len());
    assert_eq!(header.as_ref().map(|bytes| &bytes[..]), data.get(..MESSAGE_HEADER_LEN));
    shorter_and_longer(data, |bytes| parse_message(bytes).is_none());
}

/// The form says its own length.
fn shorter_and_longer(data: &[u8], is_refused: impl Fn(&[u8]) -> bool) {
    // Every length would be quadratic, and the first ones tell enough.
    for len in (0..data.len().min(512)).chain([data.len() - 1]) {
        assert!(is_refused(&data[..len]), "cut at {len}");
    }
    assert!(is_refused(&[data, &[0]].concat()), "longer");
}
