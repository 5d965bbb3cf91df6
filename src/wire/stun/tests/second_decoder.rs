//! The crate `stun_codec` reads what is written here, and reads the same from what is damaged.
//!
//! Not asked, because it has them wrong (version 0.4.0): CHANGE-REQUEST, whose bits its decoder
//! shifts by one, and RESPONSE-PORT, which it writes as 0. Both are unknown to it here: it reads
//! their bytes. It checks a fingerprint on a message that it writes again, so it has those of methods
//! above 15 wrong, whose type it writes wrong, and takes damage to bits that are ignored for none.

use super::*;
use bytecodec::DecodeExt;
use stun_codec::rfc5389::attributes::{
    AlternateServer, ErrorCode as TheirErrorCode, Fingerprint as TheirFingerprint, MappedAddress,
    Software, UnknownAttributes, Username, XorMappedAddress,
};
use stun_codec::rfc5780::attributes::{OtherAddress, ResponseOrigin};
use stun_codec::{Attribute as _, MessageClass, MessageDecoder, define_attribute_enums};

define_attribute_enums!(
    Theirs,
    TheirsDecoder,
    TheirsEncoder,
    [
        AlternateServer,
        TheirErrorCode,
        TheirFingerprint,
        MappedAddress,
        Software,
        UnknownAttributes,
        Username,
        XorMappedAddress,
        OtherAddress,
        ResponseOrigin
    ]
);

/// The other decoder's reading, if it accepts the datagram.
fn their_reading(datagram: &[u8]) -> Option<stun_codec::Message<Theirs>> {
    MessageDecoder::<Theirs>::new().decode_from_bytes(datagram).ok()?.ok()
}

/// Every value that they read is ours too.
fn agree(datagram: &[u8], theirs: &stun_codec::Message<Theirs>) -> Result<(), TestCaseError> {
    let ours = Message::parse(datagram);
    prop_assert!(ours.is_ok(), "{ours:?} for {theirs:?}");
    let ours = ours.unwrap();
    let class = match theirs.class() {
        MessageClass::Request => Class::Request,
        MessageClass::Indication => Class::Indication,
        MessageClass::SuccessResponse => Class::Success,
        MessageClass::ErrorResponse => Class::Error,
    };
    prop_assert_eq!((class, theirs.method().as_u16()), (ours.class, ours.method.number()));
    prop_assert_eq!(*theirs.transaction_id().as_bytes(), ours.id.id());

    let is_known = |attribute: &Attribute<'_>| {
        theirs.attributes().any(|theirs| theirs.get_type().as_u16() == attribute.kind)
    };
    let (known, unknown): (Vec<_>, Vec<_>) = ours.attributes().partition(is_known);
    let their_unknown: Vec<_> = theirs
        .unknown_attributes()
        .map(|theirs| Attribute { kind: theirs.get_type().as_u16(), value: theirs.value() })
        .collect();
    prop_assert_eq!(unknown, their_unknown);
    prop_assert_eq!(known.len(), theirs.attributes().count());
    for (ours_one, theirs) in known.into_iter().zip(theirs.attributes()) {
        let value = ours_one.value;
        prop_assert_eq!(ours_one.kind, theirs.get_type().as_u16());
        match theirs {
            Theirs::MappedAddress(theirs) => {
                prop_assert_eq!(read_address(value), Some(theirs.address()));
            }
            Theirs::AlternateServer(theirs) => {
                prop_assert_eq!(read_address(value), Some(theirs.address()));
            }
            Theirs::OtherAddress(theirs) => {
                prop_assert_eq!(read_address(value), Some(theirs.address()));
            }
            Theirs::ResponseOrigin(theirs) => {
                prop_assert_eq!(read_address(value), Some(theirs.address()));
            }
            Theirs::XorMappedAddress(theirs) => {
                let address = read_address(value).map(|address| xor_address(address, ours.id));
                prop_assert_eq!(address, Some(theirs.address()));
            }
            Theirs::TheirErrorCode(theirs) => {
                let error = ErrorCode::new(theirs.code(), theirs.reason_phrase());
                prop_assert_eq!(ErrorCode::read(value), error);
            }
            Theirs::UnknownAttributes(theirs) => {
                let types = TypeList::read(value).map(Iterator::collect::<Vec<u16>>);
                let theirs = theirs.unknowns().iter().map(|kind| kind.as_u16()).collect();
                prop_assert_eq!(types, Some(theirs));
            }
            Theirs::Software(theirs) => {
                prop_assert_eq!(value, theirs.description().as_bytes());
            }
            Theirs::Username(theirs) => prop_assert_eq!(value, theirs.name().as_bytes()),
            // Asked where it can be trusted, of what is not damaged.
            Theirs::TheirFingerprint(_) => {}
        }
    }
    Ok(())
}

/// One attribute of the message to write.
#[derive(Debug, Clone)]
enum Step {
    Xor(SocketAddr),
    Plain(AddressKind, SocketAddr),
    Error(u16, String),
    Unknown(Vec<u16>),
    Software(String),
    Username(String),
    Change(ChangeRequest),
    Port(u16),
    Other(u16, Vec<u8>),
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<std::net::IpAddr>(), any::<u16>()).prop_map(SocketAddr::from)
}

fn step() -> impl Strategy<Value = Step> {
    let plain = prop::sample::select(vec![
        AddressKind::Mapped,
        AddressKind::Other,
        AddressKind::ResponseOrigin,
        AddressKind::AlternateServer,
    ]);
    prop_oneof![
        address().prop_map(Step::Xor),
        (plain, address()).prop_map(|(kind, address)| Step::Plain(kind, address)),
        // It knows no class 6, which RFC 8489 allows.
        (300_u16..600, "[a-zé ]{0,9}").prop_map(|(code, reason)| Step::Error(code, reason)),
        prop::collection::vec(any::<u16>(), 0..UNKNOWN_TYPES_MAX).prop_map(Step::Unknown),
        "[a-zé ]{0,9}".prop_map(Step::Software),
        "[a-zé ]{0,9}".prop_map(Step::Username),
        any::<(bool, bool)>().prop_map(|(ip, port)| Step::Change(ChangeRequest { ip, port })),
        any::<u16>().prop_map(Step::Port),
        (0xc000_u16..0xd000, prop::collection::vec(any::<u8>(), 0..9))
            .prop_map(|(kind, value)| Step::Other(kind, value)),
    ]
}

fn written(class: Class, method: Method, id: [u8; 12], steps: &[Step], sealed: bool) -> Vec<u8> {
    let mut buffer = vec![0xee; 1000];
    let mut writer = Writer::new(&mut buffer, class, method, TransactionId::new(id)).unwrap();
    for step in steps {
        match step {
            Step::Xor(address) => writer.mapped_address(*address),
            Step::Plain(kind, address) => writer.address(*kind, *address),
            Step::Error(code, reason) => writer.error_code(ErrorCode::new(*code, reason).unwrap()),
            Step::Unknown(types) => writer.unknown_attributes(types),
            Step::Software(words) => writer.software(words),
            Step::Username(name) => writer.username(name.as_bytes()),
            Step::Change(change) => writer.change_request(*change),
            Step::Port(port) => writer.response_port(*port),
            Step::Other(kind, value) => writer.attribute(*kind, value),
        }
        .unwrap();
    }
    let len = if sealed { writer.finish_with_fingerprint().unwrap() } else { writer.finish() };
    buffer.truncate(len);
    buffer
}

proptest! {
    #[test]
    fn it_reads_what_is_written_and_agrees_on_what_is_damaged(
        class in prop::sample::select(vec![
            Class::Request, Class::Indication, Class::Success, Class::Error,
        ]),
        number in prop_oneof![0_u16..16, 0_u16..0x1000], id: [u8; 12],
        steps in prop::collection::vec(step(), 0..6),
        sealed: bool,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let sealed = sealed && number < 16;
        let mut datagram = written(class, Method::new(number).unwrap(), id, &steps, sealed);
        let theirs = their_reading(&datagram);
        prop_assert!(theirs.is_some(), "refused: {datagram:02x?}");
        agree(&datagram, &theirs.unwrap())?;
        let fingerprint = if sealed { Fingerprint::Right } else { Fingerprint::Absent };
        prop_assert_eq!(Message::parse(&datagram).unwrap().fingerprint(), fingerprint);
        for (index, byte) in damage {
            // The cookie stays: without it nobody reads on.
            let index = match index.index(datagram.len()) {
                index @ 4..8 => index + 8,
                index => index,
            };
            datagram[index] = byte;
            if let Some(theirs) = their_reading(&datagram) {
                agree(&datagram, &theirs)?;
            }
        }
    }
}
