//! The mesh: requests in JSON, signs of life and commands with a proof. No panic; what is read as a
//! request is written and read as the same; a sign of life is written back byte for byte; a proof is
//! over every byte but its own.

#![no_main]

use libfuzzer_sys::fuzz_target;
use udpferry::roles::mesh::message::request::{read, write};
use udpferry::wire::mesh::{SEALED_HEADER_LEN, parse_sealed, parse_sign, write_sealed};

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = read(data) {
        let written = write(&request);
        assert_eq!(read(written.as_bytes()).ok().as_ref(), Some(&request), "{written}");
    }
    if let Some(sign) = parse_sign(data) {
        assert_eq!(sign.to_bytes()[..], *data);
    }
    if let Some(sealed) = parse_sealed(data) {
        assert_eq!(sealed.proven().concat().len() + 32, data.len());
        assert_eq!(sealed.body, &data[SEALED_HEADER_LEN..]);
        let written =
            write_sealed(sealed.way, sealed.time_ms, sealed.nonce, sealed.body, |_| sealed.proof);
        assert_eq!(written, data);
        assert!(parse_sign(data).is_none() && read(data).is_err());
    }
});
