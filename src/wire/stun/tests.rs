//! The vectors of RFC 5769, the rules of RFC 8489, and properties.

mod second_decoder;

use super::attribute::{UNKNOWN_TYPES_MAX, fill_len};
use super::writer::{NoRoom, Writer};
use super::*;
use proptest::prelude::*;

/// RFC 5769 section 2.1: a request. Like all three it fills up with spaces, which RFC 5389 allowed.
const REQUEST: &str = "000100582112a442b7e7a701bc34d686fa87dfae\
    802200105354554e207465737420636c69656e74\
    002400046e0001ff\
    80290008932ff9b151263b36\
    000600096576746a3a68367659202020\
    000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2\
    80280004e57a3bcf";
/// RFC 5769 section 2.2: a response to an IPv4 client.
const RESPONSE_IPV4: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae\
    8022000b7465737420766563746f7220\
    002000080001a147e112a643\
    000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7\
    80280004c07d4c96";
/// RFC 5769 section 2.3: a response to an IPv6 client.
const RESPONSE_IPV6: &str = "010100482112a442b7e7a701bc34d686fa87dfae\
    8022000b7465737420766563746f7220\
    002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9\
    00080014a382954e4be67bf11784c97c8292c275bfe3ed41\
    80280004c8fb0b4c";

const ID: TransactionId = TransactionId::new(*b"\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae");
const CLASSIC_ID: TransactionId = TransactionId { cookie: *b"clas", id: *b"sic-stun-id." };

fn hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

/// What `fill` writes after the header of a Binding message.
fn message(
    class: Class,
    id: TransactionId,
    fill: impl FnOnce(&mut Writer<'_>) -> Result<(), NoRoom>,
) -> Vec<u8> {
    let mut buffer = vec![0xee; 1000];
    let mut writer = Writer::new(&mut buffer, class, Method::BINDING, id).unwrap();
    fill(&mut writer).unwrap();
    let len = writer.finish();
    buffer.truncate(len);
    buffer
}

fn request(fill: impl FnOnce(&mut Writer<'_>) -> Result<(), NoRoom>) -> Vec<u8> {
    message(Class::Request, ID, fill)
}

/// A message of attributes and nothing about them.
fn with_attributes(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0, 1][..], &length, &MAGIC_COOKIE, &[7; 12], bytes].concat()
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

/// Asks everything that can be asked; none of it may panic.
fn read_all(datagram: &[u8]) {
    let _ = (is_stun(datagram), is_classic_request(datagram));
    let Ok(message) = Message::parse(datagram) else { return };
    for address in [
        AddressKind::Mapped,
        AddressKind::ResponseOrigin,
        AddressKind::Other,
        AddressKind::AlternateServer,
        AddressKind::Source,
        AddressKind::Changed,
    ] {
        let _ = message.address(address);
    }
    let _ = (message.mapped_address(), message.change_request(), message.response_port());
    let _ = (message.padding(), message.software(), message.username(), message.is_signed());
    let _ = (message.fingerprint(), message.error_code().map(|error| error.map(ErrorCode::code)));
    let _ = message.unknown_attributes().map(|types| types.map(Iterator::count));
    assert!(message.unknown_types(&[]).as_slice().len() <= UNKNOWN_TYPES_MAX);
}

#[test]
fn rfc_5769_request() {
    let datagram = hex(REQUEST);
    assert!(is_stun(&datagram) && !is_classic_request(&datagram));
    let message = Message::parse(&datagram).unwrap();
    assert_eq!((message.class, message.method, message.id), (Class::Request, Method::BINDING, ID));
    assert_eq!(message.software(), Ok(Some("STUN test client")));
    assert_eq!(message.username(), Some(&b"evtj:h6vY"[..]));
    assert_eq!(message.fingerprint(), Fingerprint::Right);
    assert!(message.is_signed());
    assert_eq!(message.mapped_address(), Ok(None));
    // PRIORITY is ICE's; ICE-CONTROLLED (8029) need not be understood.
    assert_eq!(message.unknown_types(&[]).as_slice(), [0x0024]);
    assert!(message.unknown_types(&[0x0024]).is_empty());
    let kinds: Vec<u16> = message.attributes().map(|attribute| attribute.kind).collect();
    assert_eq!(kinds, [0x8022, 0x0024, 0x8029, 0x0006, 0x0008, 0x8028]);
}

#[test]
fn rfc_5769_responses_are_read_and_written_byte_for_byte() {
    for (golden, address, signature_at) in [
        (RESPONSE_IPV4, "192.0.2.1:32853", 52),
        (RESPONSE_IPV6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853", 64),
    ] {
        let golden = hex(golden);
        let message = Message::parse(&golden).unwrap();
        assert_eq!((message.class, message.method), (Class::Success, Method::BINDING));
        assert_eq!(message.xor_mapped_address(), Ok(Some(at(address))));
        assert_eq!(message.mapped_address(), Ok(Some(at(address))));
        assert_eq!(message.software(), Ok(Some("test vector")));
        assert_eq!(message.fingerprint(), Fingerprint::Right);

        let mut buffer = [0xee; 100];
        let mut writer =
            Writer::new(&mut buffer, Class::Success, Method::BINDING, message.id).unwrap();
        writer.software("test vector").unwrap();
        writer.mapped_address(at(address)).unwrap();
        let signature = &golden[signature_at..signature_at + 20];
        writer.attribute(kind::MESSAGE_INTEGRITY, signature).unwrap();
        let len = writer.finish_with_fingerprint().unwrap();
        let written = &mut buffer[..len];
        assert_eq!(Message::parse(written).unwrap().fingerprint(), Fingerprint::Right);
        // The vector fills up with a space, and so has another checksum. RFC 8489 wants zeros.
        assert_eq!(written[35], 0);
        written[35] = b' ';
        let checksum = fingerprint::of(&written[..len - 8]);
        written[len - 4..].copy_from_slice(&checksum);
        assert_eq!(written, golden);
    }
}

#[test]
fn a_classic_client_gets_its_id_back_and_its_address_in_plain() {
    let asked = message(Class::Request, CLASSIC_ID, |_| Ok(()));
    assert_eq!(asked, [&hex("00010000")[..], b"classic-stun-id."].concat());
    assert!(is_classic_request(&asked) && !is_stun(&asked));
    let id = Message::parse(&asked).unwrap().id;
    assert!(id.is_classic() && !ID.is_classic());

    let answer = message(Class::Success, id, |writer| {
        writer.mapped_address(at("192.0.2.1:32853"))?;
        writer.address(AddressKind::Source, at("192.0.2.2:3478"))?;
        writer.address(AddressKind::Changed, at("192.0.2.3:3479"))
    });
    let header = [&hex("01010024")[..], b"classic-stun-id."].concat();
    let attributes = hex("0001000800018055c00002010004000800010d96c0000202\
                          0005000800010d97c0000203");
    assert_eq!(answer, [header, attributes].concat());
    // Only requests are taken for classic ones.
    assert_eq!(Message::parse(&answer), Err(Malformed::NoCookie));

    let refused = message(Class::Error, id, |writer| {
        writer.error_code(ErrorCode::UNKNOWN_ATTRIBUTE)?;
        writer.unknown_attributes(&[0x0003, 0x0002, 0x0007])
    });
    let attributes = hex("000900180000041455 6e6b6e6f776e20417474726962757465 202020\
                          000a00080003000200070007"
        .replace(' ', "")
        .as_str());
    assert_eq!(refused[HEADER_LEN..], attributes);
}

#[test]
fn what_is_no_message_is_named() {
    let good = hex(REQUEST);
    let with = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        Message::parse(&bad).map(|message| message.method.number())
    };
    assert_eq!(Message::parse(b"PING"), Err(Malformed::NoHeader));
    assert_eq!(with(0, 0x80), Err(Malformed::FirstBits));
    assert_eq!(with(0, 0x40), Err(Malformed::FirstBits));
    assert_eq!(with(3, 0x57), Err(Malformed::Length));
    assert_eq!(with(3, 0x54), Err(Malformed::Length));
    assert_eq!(with(3, 0x5c), Err(Malformed::Length));
    assert_eq!(with(1, 0x03), Ok(3));
    // SOFTWARE with a length that goes beyond the end.
    assert_eq!(with(22, 0x01), Err(Malformed::Attribute));
    let mut classic = good.clone();
    classic[4] = 0;
    assert!(Message::parse(&classic).is_ok_and(|message| message.id.is_classic()));
    classic[1] = 3;
    assert_eq!(Message::parse(&classic), Err(Malformed::NoCookie));
    // An attribute's header needs four bytes, its value all that it says.
    assert!(Message::parse(&with_attributes(&hex("80220000"))).is_ok());
    assert_eq!(Message::parse(&with_attributes(&hex("80220001"))), Err(Malformed::Attribute));
}

#[test]
fn every_prefix_is_refused_and_none_panics() {
    let odd = request(|writer| {
        writer.software("five!")?;
        writer.unknown_attributes(&[1, 2, 3])?;
        writer.error_code(ErrorCode::BAD_REQUEST)
    });
    for datagram in [hex(REQUEST), hex(RESPONSE_IPV4), hex(RESPONSE_IPV6), odd] {
        for end in 0..datagram.len() {
            let mut prefix = datagram[..end].to_vec();
            let expected = if end < HEADER_LEN { Malformed::NoHeader } else { Malformed::Length };
            assert_eq!(Message::parse(&prefix), Err(expected), "{end}");
            assert!(!is_stun(&prefix));
            // With the length put right, only an attribute can tell.
            if end >= HEADER_LEN {
                let length = u16::try_from(end - HEADER_LEN).unwrap().to_be_bytes();
                prefix[2..4].copy_from_slice(&length);
                assert_eq!(is_stun(&prefix), end % 4 == 0);
                read_all(&prefix);
            }
        }
    }
}

#[test]
fn a_fingerprint_knows_every_flipped_bit() {
    let good = hex(RESPONSE_IPV6);
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        if let Ok(message) = Message::parse(&bad) {
            assert_ne!(message.fingerprint(), Fingerprint::Right, "bit {bit}");
        }
    }
    let absent = request(|_| Ok(()));
    assert_eq!(Message::parse(&absent).unwrap().fingerprint(), Fingerprint::Absent);
    // Nothing may follow, not even a fingerprint that is right.
    let mut buffer = [0; 100];
    let mut writer = Writer::new(&mut buffer, Class::Request, Method::BINDING, ID).unwrap();
    writer.attribute(kind::FINGERPRINT, &[0; 4]).unwrap();
    let len = writer.finish_with_fingerprint().unwrap();
    assert_eq!(Message::parse(&buffer[..len]).unwrap().fingerprint(), Fingerprint::Wrong);
    let mut buffer = [0; 100];
    let mut writer = Writer::new(&mut buffer, Class::Request, Method::BINDING, ID).unwrap();
    writer.attribute(kind::FINGERPRINT, &[0; 3]).unwrap();
    let len = writer.finish();
    assert_eq!(Message::parse(&buffer[..len]).unwrap().fingerprint(), Fingerprint::Wrong);
}

#[test]
fn nothing_counts_behind_a_signature_but_a_stronger_one() {
    let datagram = request(|writer| {
        writer.software("before")?;
        writer.attribute(kind::MESSAGE_INTEGRITY, &[0; 20])?;
        writer.software("between")?;
        writer.response_port(7)?;
        writer.attribute(kind::MESSAGE_INTEGRITY_SHA256, &[0; 32])?;
        writer.attribute(kind::MESSAGE_INTEGRITY, &[1; 20])?;
        writer.attribute(0x7fff, &[])?;
        writer.attribute(kind::FINGERPRINT, &[0; 4])?;
        writer.attribute(0x7ffe, &[])
    });
    let message = Message::parse(&datagram).unwrap();
    assert_eq!(message.software(), Ok(Some("before")));
    assert_eq!(message.response_port(), Ok(None));
    assert!(message.attribute(kind::MESSAGE_INTEGRITY_SHA256).is_some());
    assert!(message.attribute(kind::FINGERPRINT).is_some());
    assert_eq!(message.attribute(kind::MESSAGE_INTEGRITY).unwrap().value, [0; 20]);
    assert!(message.unknown_types(&[]).is_empty());
    assert_eq!(message.attributes().count(), 9);

    let datagram = request(|writer| {
        writer.attribute(kind::MESSAGE_INTEGRITY_SHA256, &[0; 32])?;
        writer.attribute(kind::MESSAGE_INTEGRITY, &[1; 20])
    });
    let message = Message::parse(&datagram).unwrap();
    assert_eq!(message.attribute(kind::MESSAGE_INTEGRITY), None);
    assert!(message.is_signed());
}

#[test]
fn unknown_types_are_named_once_and_sixteen_at_most() {
    let datagram = request(|writer| {
        writer.attribute(0x8000, &[])?;
        writer.change_request(ChangeRequest { ip: true, port: false })?;
        writer.response_port(5000)?;
        writer.padding(4)?;
        (0..20).chain(0..20).try_for_each(|index| writer.attribute(0x7f00 + index, &[]))
    });
    let unknown = Message::parse(&datagram).unwrap().unknown_types(&[]);
    let expected: Vec<u16> = [0x0003, 0x0027, 0x0026].into_iter().chain(0x7f00..0x7f0d).collect();
    assert_eq!(unknown.as_slice(), expected);
    let understood = [kind::CHANGE_REQUEST, kind::RESPONSE_PORT, kind::PADDING];
    let unknown = Message::parse(&datagram).unwrap().unknown_types(&understood);
    assert_eq!(unknown.as_slice(), (0x7f00..0x7f10).collect::<Vec<u16>>());

    let refusal = message(Class::Error, ID, |writer| {
        writer.error_code(ErrorCode::UNKNOWN_ATTRIBUTE)?;
        writer.unknown_attributes(unknown.as_slice())
    });
    let refusal = Message::parse(&refusal).unwrap();
    assert_eq!(refusal.error_code(), Ok(Some(ErrorCode::UNKNOWN_ATTRIBUTE)));
    assert!(refusal.unknown_attributes().unwrap().unwrap().eq(0x7f00..0x7f10));
}

#[test]
fn a_value_out_of_its_format_is_told_from_none() {
    let bad = |kind: u16, value: &[u8]| request(|writer| writer.attribute(kind, value));
    let address = |value: &str| {
        let datagram = bad(kind::OTHER_ADDRESS, &hex(value));
        Message::parse(&datagram).unwrap().address(AddressKind::Other)
    };
    let wrong = Err(BadValue { kind: kind::OTHER_ADDRESS });
    assert_eq!(address("ff010035c0000201"), Ok(Some(at("192.0.2.1:53"))));
    for value in ["", "0001003", "00010035c00002", "00010035c000020100", "00020035c0000201"] {
        assert_eq!(address(&value[..value.len() & !1]), wrong, "{value}");
    }
    assert_eq!(address("00030035c0000201"), wrong);

    for (value, expected) in [
        ("00000000", Some((false, false))),
        ("00000002", Some((false, true))),
        ("00000004", Some((true, false))),
        ("fffffffe", Some((true, true))),
        ("000006", None),
        ("0000000600", None),
    ] {
        let datagram = bad(kind::CHANGE_REQUEST, &hex(value));
        let found = Message::parse(&datagram).unwrap().change_request();
        let expected = expected.map(|(ip, port)| ChangeRequest { ip, port });
        assert_eq!(found, expected.map(Some).ok_or(BadValue { kind: kind::CHANGE_REQUEST }));
    }
    for (value, expected) in
        [("1f90", Some(8080)), ("1f900000", Some(8080)), ("1f", None), ("1f9000", None)]
    {
        let datagram = bad(kind::RESPONSE_PORT, &hex(value));
        let found = Message::parse(&datagram).unwrap().response_port();
        assert_eq!(found, expected.map(Some).ok_or(BadValue { kind: kind::RESPONSE_PORT }));
    }
    let datagram = bad(kind::SOFTWARE, b"\xff");
    assert!(Message::parse(&datagram).unwrap().software().is_err());
    let datagram = bad(kind::UNKNOWN_ATTRIBUTES, &[0, 1, 2]);
    assert!(Message::parse(&datagram).unwrap().unknown_attributes().is_err());
}

#[test]
fn error_codes() {
    for code in [0, 299, 700, 65_535] {
        assert_eq!(ErrorCode::new(code, ""), None);
    }
    for code in 300..700 {
        let error = ErrorCode::new(code, "because").unwrap();
        assert_eq!(error.code(), code);
        let datagram = message(Class::Error, ID, |writer| writer.error_code(error));
        assert_eq!(Message::parse(&datagram).unwrap().error_code(), Ok(Some(error)));
    }
    assert_eq!(ErrorCode::new(420, "Unknown Attribute"), Some(ErrorCode::UNKNOWN_ATTRIBUTE));
    let loud = ErrorCode::new(500, "\x1b[2J").unwrap();
    assert_eq!(loud.to_string(), "500 \\u{1b}[2J");
    for (value, expected) in [
        ("fffffc14ff", Some((420, ""))),
        ("00000714", None),
        ("00000214", None),
        ("00000464", None),
        ("000004", None),
    ] {
        let datagram = request(|writer| writer.attribute(kind::ERROR_CODE, &hex(value)));
        let found = Message::parse(&datagram).unwrap().error_code().ok().flatten();
        assert_eq!(found.map(|error| (error.code(), error.reason())), expected, "{value}");
    }
}

#[test]
fn a_message_that_does_not_fit_is_cut_between_attributes() {
    for size in 0..64 {
        let mut buffer = vec![0xee; size];
        let Ok(mut writer) = Writer::new(&mut buffer, Class::Error, Method::BINDING, ID) else {
            assert!(size < HEADER_LEN);
            continue;
        };
        let software = writer.software("12345");
        assert_eq!(software.is_ok(), size >= 32, "{size}");
        let error = writer.error_code(ErrorCode::BAD_REQUEST);
        let room = size >= 40 + if size >= 32 { 12 } else { 0 };
        assert_eq!(error.is_ok(), room, "{size}");
        let len = writer.finish();
        let expected = usize::from(software.is_ok()) + usize::from(error.is_ok());
        assert_eq!(Message::parse(&buffer[..len]).unwrap().attributes().count(), expected);
        assert!(buffer[len..].iter().all(|byte| *byte == 0xee));
    }
    let mut buffer = vec![0; 27];
    let writer = Writer::new(&mut buffer, Class::Error, Method::BINDING, ID).unwrap();
    assert_eq!(writer.finish_with_fingerprint(), Err(NoRoom));
}

#[test]
fn the_longest_message() {
    let mut buffer = vec![0; 70_000];
    let mut writer = Writer::new(&mut buffer, Class::Request, Method::BINDING, ID).unwrap();
    for len in [65_529, 65_533, 65_536, usize::MAX] {
        assert_eq!(writer.padding(len), Err(NoRoom), "{len}");
    }
    assert_eq!(writer.unknown_attributes(&[1; UNKNOWN_TYPES_MAX + 1]), Err(NoRoom));
    writer.padding(65_528 - 8).unwrap();
    let len = writer.finish_with_fingerprint().unwrap();
    assert_eq!(len, HEADER_LEN + 65_532);
    let message = Message::parse(&buffer[..len]).unwrap();
    assert_eq!((message.padding(), message.fingerprint()), (Some(65_520), Fingerprint::Right));
}

#[test]
fn every_class_and_method_is_read_as_written() {
    for number in 0..=0xfff {
        let method = Method::new(number).unwrap();
        for class in [Class::Request, Class::Indication, Class::Success, Class::Error] {
            let mut buffer = [0; HEADER_LEN];
            Writer::new(&mut buffer, class, method, ID).unwrap();
            let message = Message::parse(&buffer).unwrap();
            assert_eq!((message.class, message.method), (class, method));
        }
    }
    assert_eq!(Method::new(0x1000), None);
    // RFC 8489 figure 3 and the TURN methods: Allocate error, Data indication.
    assert_eq!(message_type(Class::Error, Method::new(3).unwrap()), 0x0113);
    assert_eq!(message_type(Class::Indication, Method::new(7).unwrap()), 0x0017);
    assert_eq!(message_type(Class::Request, Method::new(0xfff).unwrap()), 0x3eef);
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        id: [u8; 12], v4: u32, v6: u128, is_v6: bool, port: u16, change_ip: bool,
        change_port: bool, response_port: u16, padding in 0_usize..50, software in ".{0,20}",
        username in proptest::collection::vec(any::<u8>(), 0..20), code in 300_u16..700,
        unknown in proptest::collection::vec(any::<u16>(), 0..=UNKNOWN_TYPES_MAX),
    ) {
        let ip: std::net::IpAddr = if is_v6 {
            std::net::Ipv6Addr::from(v6).into()
        } else {
            std::net::Ipv4Addr::from(v4).into()
        };
        let address = SocketAddr::new(ip, port);
        let change = ChangeRequest { ip: change_ip, port: change_port };
        let error = ErrorCode::new(code, &software).unwrap();
        let datagram = message(Class::Success, TransactionId::new(id), |writer| {
            writer.mapped_address(address)?;
            writer.address(AddressKind::Mapped, address)?;
            writer.address(AddressKind::Other, address)?;
            writer.address(AddressKind::ResponseOrigin, address)?;
            writer.address(AddressKind::AlternateServer, address)?;
            writer.change_request(change)?;
            writer.response_port(response_port)?;
            writer.padding(padding)?;
            writer.software(&software)?;
            writer.username(&username)?;
            writer.error_code(error)?;
            writer.unknown_attributes(&unknown)
        });
        let message = Message::parse(&datagram).unwrap();
        prop_assert_eq!(message.id.id(), id);
        prop_assert_eq!(message.xor_mapped_address(), Ok(Some(address)));
        for kind in [
            AddressKind::Mapped, AddressKind::Other, AddressKind::ResponseOrigin,
            AddressKind::AlternateServer,
        ] {
            prop_assert_eq!(message.address(kind), Ok(Some(address)));
        }
        prop_assert_eq!(message.address(AddressKind::Source), Ok(None));
        prop_assert_eq!(message.change_request(), Ok(Some(change)));
        prop_assert_eq!(message.response_port(), Ok(Some(response_port)));
        prop_assert_eq!(message.padding(), Some(padding));
        prop_assert_eq!(message.software(), Ok(Some(&software[..])));
        prop_assert_eq!(message.username(), Some(&username[..]));
        prop_assert_eq!(message.error_code(), Ok(Some(error)));
        let found: Vec<u16> = message.unknown_attributes().unwrap().unwrap().collect();
        prop_assert_eq!(found, unknown);
    }

    #[test]
    fn what_is_read_is_written_back_byte_for_byte(
        attributes in proptest::collection::vec(
            (any::<u16>(), proptest::collection::vec(any::<u8>(), 0..9)), 0..6,
        ),
    ) {
        let bytes: Vec<u8> = attributes.iter().flat_map(|(kind, value)| {
            let len = u16::try_from(value.len()).unwrap();
            let fill = vec![0; fill_len(value.len())];
            [&kind.to_be_bytes()[..], &len.to_be_bytes(), value, &fill].concat()
        }).collect();
        let datagram = with_attributes(&bytes);
        let message = Message::parse(&datagram).unwrap();
        let mut buffer = [0xee; 200];
        let mut writer =
            Writer::new(&mut buffer, message.class, message.method, message.id).unwrap();
        for attribute in message.attributes() {
            writer.attribute(attribute.kind, attribute.value).unwrap();
        }
        let len = writer.finish();
        prop_assert_eq!(&buffer[..len], &datagram[..]);
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        read_all(&bytes);
        read_all(&with_attributes(&bytes));
        let aligned = &bytes[..bytes.len() & !3];
        read_all(&with_attributes(aligned));
    }
}
