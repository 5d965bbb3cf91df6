use super::answer::{Answer, Introduced, parse_answer, write_answer};
use super::request::{
    Boxed, HELLO_LEN_MIN, Request, Wish, parse_request, parse_wish, write_request, write_wish,
};
use super::shared::{
    Message, Place, RECORD_LEN_MAX, Record, ServerId, parse_message, parse_place, parse_record,
    write_message, write_place, write_record,
};
use super::*;
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

fn any_endpoint() -> impl Strategy<Value = SocketAddr> {
    let address = prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits))),
        any::<u128>().prop_map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits))),
    ];
    (address, any::<u16>()).prop_map(SocketAddr::from)
}

fn any_bytes(len_max: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..=len_max)
}

/// The numbers and byte strings of any message.
type Parts = (u64, u16, [[u8; 16]; 2], [u8; 32], [u8; 8], [u8; 4], Vec<u8>);

fn any_parts() -> impl Strategy<Value = Parts> {
    (
        any::<u64>(),
        any::<u16>(),
        any::<[[u8; 16]; 2]>(),
        any::<[u8; 32]>(),
        any::<[u8; 8]>(),
        any::<[u8; 4]>(),
        any_bytes(SEALED_LEN_MAX),
    )
}

fn every_request<'a>(parts: &'a Parts, ciphertext: &'a [u8]) -> Vec<Request<'a>> {
    let (tx, _, [cookie, _], key, member, _, ref bytes) = *parts;
    let (cookie, key) = (Cookie(cookie), MemberKey(key));
    vec![
        Request::Hello { tx },
        Request::Boxed(Boxed { tx, cookie, key, ciphertext }),
        Request::Introduced { introduction: tx },
        Request::Relay { member: MemberId(member), payload: bytes },
    ]
}

fn every_wish(parts: &Parts) -> Vec<Wish<'_>> {
    let (_, rtt_ms, _, _, member, _, ref bytes) = *parts;
    let member = MemberId(member);
    vec![Wish::Register { rtt_ms, sealed: bytes }, Wish::Call { member }, Wish::Leave]
}

fn every_message(parts: &Parts, endpoints: Endpoints) -> Vec<Message<'_>> {
    let (_, rtt_ms, [room, _], _, member, news, ref bytes) = *parts;
    let (room, member) = (RoomId(room), MemberId(member));
    let place = Place { member, server: ServerId(member.0) };
    let news = u32::from_be_bytes(news);
    let record = Record { news, rtt_ms, endpoints, sealed: bytes };
    vec![
        Message::News { room, place, record },
        Message::Call { room, place, to: member, record },
        Message::Gone { room, place },
    ]
}

fn every_answer(parts: &Parts, first: SocketAddr, second: Option<SocketAddr>) -> Vec<Answer<'_>> {
    let (tx, number, [cookie, _], key, member, [a, b, c, members], ref bytes) = *parts;
    let member = MemberId(member);
    let reason = match a % 3 {
        0 => Refusal::RoomsFull,
        1 => Refusal::RoomFull,
        _ => Refusal::TooManyRequests,
    };
    vec![
        Answer::Cookie {
            tx,
            pass: Pass { cookie: Cookie(cookie), server: ServerKey(key) },
            endpoint: first,
        },
        Answer::Registered {
            tx,
            member,
            endpoint: first,
            refresh_s: number,
            expiry_s: u16::from(b),
            relay: c % 2 == 0,
            members,
        },
        Answer::Introduce(Introduced {
            introduction: tx,
            start_ms: number,
            member,
            is_here: c % 3 == 0,
            endpoints: Endpoints { first, second },
            sealed: bytes,
        }),
        Answer::Gone { member },
        Answer::Left { tx },
        Answer::Relayed { member, payload: bytes },
        Answer::Refused { tx, reason },
    ]
}

proptest! {
    #[test]
    fn requests_are_read_as_written(
        parts in any_parts(),
        ciphertext in proptest::collection::vec(any::<u8>(), 33..=550),
    ) {
        for request in every_request(&parts, &ciphertext) {
            let mut datagram = Vec::new();
            write_request(&mut datagram, &request);
            prop_assert!(is_rendezvous(&datagram));
            prop_assert_eq!(parse_request(&datagram), Some(request));
            prop_assert_eq!(parse_answer(&datagram), None, "a request is no answer");
            if matches!(request, Request::Hello { .. } | Request::Introduced { .. }) {
                for len in 0..datagram.len() {
                    prop_assert_eq!(parse_request(&datagram[..len]), None);
                }
            }
            if matches!(request, Request::Introduced { .. }) {
                datagram.push(0);
                prop_assert_eq!(parse_request(&datagram), None, "bytes left over");
            }
        }
    }

    #[test]
    fn wishes_are_read_as_written(parts in any_parts()) {
        let room = RoomId(parts.2[1]);
        for wish in every_wish(&parts) {
            let mut plain = Vec::new();
            write_wish(&mut plain, room, &wish);
            prop_assert_eq!(parse_wish(&plain), Some((room, wish)));
            for len in 0..plain.len() {
                prop_assert_eq!(parse_wish(&plain[..len]), None);
            }
            let mut datagram = Vec::new();
            let ciphertext = [&plain[..], &[0; 16]].concat();
            let (key, cookie) = (MemberKey(parts.3), Cookie(parts.2[0]));
            let boxed = Boxed { tx: parts.0, cookie, key, ciphertext: &ciphertext };
            write_request(&mut datagram, &Request::Boxed(boxed));
            prop_assert!(datagram.len() <= DATAGRAM_LEN_MAX);
            prop_assert_eq!(parse_request(&datagram), Some(Request::Boxed(boxed)));
            plain.push(0);
            prop_assert_eq!(parse_wish(&plain), None, "bytes left over");
        }
    }

    #[test]
    fn what_servers_tell_each_other_is_read_as_written(
        parts in any_parts(),
        first in any_endpoint(),
        second in proptest::option::of(any_endpoint()),
    ) {
        for message in every_message(&parts, Endpoints { first, second }) {
            let mut bytes = Vec::new();
            write_message(&mut bytes, &message);
            prop_assert_eq!(parse_message(&bytes), Some(message));
            for len in 0..bytes.len() {
                prop_assert_eq!(parse_message(&bytes[..len]), None);
            }
            if let Message::News { place, record, .. } = message {
                let mut written = Vec::new();
                write_record(&mut written, &record);
                prop_assert_eq!(parse_record(&written), Some(record));
                prop_assert!(written.len() <= RECORD_LEN_MAX);
                written.push(0);
                prop_assert_eq!(parse_record(&written), None, "bytes left over");
                written.clear();
                write_place(&mut written, place);
                prop_assert_eq!(parse_place(&written), Some(place));
            }
            bytes.push(0);
            prop_assert_eq!(parse_message(&bytes), None, "bytes left over");
        }
    }

    #[test]
    fn answers_are_read_as_written(
        parts in any_parts(),
        first in any_endpoint(),
        second in proptest::option::of(any_endpoint()),
    ) {
        for answer in every_answer(&parts, first, second) {
            let mut datagram = Vec::new();
            write_answer(&mut datagram, &answer);
            prop_assert_eq!(parse_answer(&datagram), Some(answer));
            prop_assert_eq!(parse_request(&datagram), None, "an answer is no request");
            if !matches!(answer, Answer::Relayed { .. }) {
                prop_assert!(datagram.len() <= DATAGRAM_LEN_MAX);
                for len in 0..datagram.len() {
                    prop_assert_eq!(parse_answer(&datagram[..len]), None);
                }
                datagram.push(0);
                prop_assert_eq!(parse_answer(&datagram), None, "bytes left over");
            }
        }
    }

    #[test]
    fn whatever_is_read_is_written_alike(kind in any::<u8>(), body in any_bytes(700)) {
        let mut datagram = [&MAGIC[..], &[kind]].concat();
        datagram.extend(body);
        let mut again = Vec::new();
        if let Some(answer) = parse_answer(&datagram) {
            write_answer(&mut again, &answer);
            prop_assert_eq!(&again, &datagram);
        }
        again.clear();
        if let Some(message) = parse_message(&datagram[4..]) {
            write_message(&mut again, &message);
            prop_assert_eq!(&again[..], &datagram[4..]);
            again.clear();
        }
        if let Some((room, wish)) = parse_wish(&datagram[4..]) {
            write_wish(&mut again, room, &wish);
            prop_assert_eq!(&again[..], &datagram[4..]);
            again.clear();
        }
        if let Some(request) = parse_request(&datagram) {
            write_request(&mut again, &request);
            if !matches!(request, Request::Hello { .. }) {
                prop_assert_eq!(&again, &datagram);
            }
        }
    }
}

#[test]
fn the_answer_to_an_unproven_address_is_shorter_than_its_request() {
    let mut hello = Vec::new();
    write_request(&mut hello, &Request::Hello { tx: 1 });
    assert_eq!(hello.len(), HELLO_LEN_MIN);
    assert_eq!(parse_request(&hello[..HELLO_LEN_MIN - 1]), None);
    let (cookie, key) = (Cookie([3; 16]), MemberKey([4; 32]));
    let boxed = |ciphertext| Request::Boxed(Boxed { tx: 1, cookie, key, ciphertext });
    let mut shortest = Vec::new();
    write_request(&mut shortest, &boxed(&[0; 33]));
    assert!(parse_request(&shortest).is_some());
    assert_eq!(parse_request(&shortest[..shortest.len() - 1]), None);
    for endpoint in ["192.0.2.1:1", "[2001:db8::1]:1"] {
        let endpoint = endpoint.parse().unwrap();
        let pass = Pass { cookie, server: ServerKey([5; 32]) };
        let mut answer = Vec::new();
        write_answer(&mut answer, &Answer::Cookie { tx: 1, pass, endpoint });
        assert_eq!(answer.len(), 80);
        assert!(answer.len() < hello.len() && answer.len() < shortest.len());
    }
}
