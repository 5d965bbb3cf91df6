//! Rooms: cookies, registrations, introductions, leaving.

use crate::server::{Member, NO_PASS, Server, is_silent_for, receive, socket_to};
use crate::support::{await_some, recv};
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};
use udpferry::wire::rendezvous::answer::{Answer, Introduced, parse_answer};
use udpferry::wire::rendezvous::request::Wish;
use udpferry::wire::rendezvous::{MemberId, Refusal, RoomId};

#[test]
fn two_members_are_introduced_to_each_other_at_the_same_moment() {
    let server = Server::start(&[]);
    let far = Member::new(server.address, 1);
    let near = Member::new(server.address, 1);
    let (far_id, members) = far.register_with(300, b"far away");
    assert_eq!(members, 1);
    let (near_id, members) = near.register_with(100, b"near by");
    assert_eq!(members, 2);
    let (number, start, who, at, sealed) = near.introduced();
    assert_eq!((start, who, at, sealed), (100, far_id, far.endpoint(), b"far away".to_vec()));
    near.acknowledge(number);
    let (number, start, who, at, sealed) = far.introduced();
    assert_eq!((start, who, at, sealed), (0, near_id, near.endpoint(), b"near by".to_vec()));
    far.acknowledge(number);
    server.await_metric("introductions_pending", 0);
    assert_eq!((server.metric("rooms"), server.metric("members")), (1, 2));
    // A refresh is answered and is no news.
    assert_eq!(near.register_with(100, b"near by"), (near_id, 2));
    assert!(is_silent_for(&far.socket, Duration::from_millis(300)));
    assert_eq!(server.metric("introductions_total"), 2);
}

#[test]
fn an_introduction_is_repeated_until_it_is_acknowledged() {
    let server = Server::start(&[]);
    let one = Member::entered(server.address, 1);
    let begin = Instant::now();
    let other = Member::entered(server.address, 1);
    other.acknowledge(other.introduced().0);
    let first = one.introduced();
    for after in [200, 400, 800] {
        assert_eq!(one.introduced().0, first.0);
        assert!(begin.elapsed() >= Duration::from_millis(after));
    }
    server.await_metric("introductions_pending", 0);
    assert_eq!(server.metric("introductions_total"), 5);
    one.acknowledge(first.0);
    server.await_dropped("unknown-introduction", 1);
}

#[test]
fn a_call_introduces_again_or_says_who_is_gone() {
    let server = Server::start(&[]);
    let one = Member::new(server.address, 1);
    let (one_id, _) = one.register();
    let other = Member::new(server.address, 1);
    let (other_id, _) = other.register();
    one.acknowledge(one.introduced().0);
    other.acknowledge(other.introduced().0);
    server.await_metric("introductions_pending", 0);
    let call = |of: &Member, member| of.ask(&Wish::Call { member });
    call(&one, other_id);
    assert_eq!(one.introduced().2, other_id);
    assert_eq!(other.introduced().2, one_id);
    call(&one, MemberId([9; 8]));
    assert_eq!(one.gone(), MemberId([9; 8]));
    // Who calls from outside learns that it is outside.
    let stranger = Member::new(server.address, 1);
    call(&stranger, one_id);
    assert!(![one_id, other_id].contains(&stranger.gone()));
}

#[test]
fn who_leaves_is_gone_at_once() {
    let server = Server::start(&[]);
    let one = Member::entered(server.address, 1);
    let other = Member::new(server.address, 1);
    let (other_id, _) = other.register();
    for _ in 0..2 {
        // The answer to a first one may have been lost.
        other.ask(&Wish::Leave);
        other.until(|answer| matches!(answer, Answer::Left { tx: 2 }).then_some(()));
    }
    assert_eq!(one.gone(), other_id);
    server.await_metric("members", 1);
}

#[test]
fn a_silent_member_expires() {
    let server = Server::start(&["--expiry=4s"]);
    let one = Member::entered(server.address, 1);
    let silent = Member::new(server.address, 1);
    let (silent_id, _) = silent.register();
    let begin = Instant::now();
    one.socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let gone = await_some(|| {
        // As clients do: a quarter of the expiry.
        one.ask(&Wish::Register { rtt_ms: 0, sealed: b"sealed" });
        let mut bytes = [0; 1024];
        let len = recv(&one.socket, &mut bytes).ok()?;
        match parse_answer(&bytes[..len]) {
            Some(Answer::Gone { member }) => Some(member),
            _ => None,
        }
    });
    assert_eq!(gone, Some(silent_id));
    let elapsed = begin.elapsed();
    assert!(elapsed >= Duration::from_millis(3900), "{elapsed:?}");
    server.await_metric("members_expired_total", 1);
}

#[test]
fn another_endpoint_of_a_member_is_news() {
    let server = Server::start(&[]);
    let one = Member::entered(server.address, 1);
    let mut other = Member::new(server.address, 1);
    let (other_id, _) = other.register();
    assert_eq!(one.introduced().3, other.endpoint());
    // Its NAT has rebound.
    other.socket = socket_to(server.address);
    other.hello();
    other.register();
    let moved = await_some(|| {
        let (_, _, who, at, _) = one.introduced();
        assert_eq!(who, other_id);
        (at == other.endpoint()).then_some(())
    });
    assert!(moved.is_some());
    assert_eq!(server.metric("members"), 2);
}

#[test]
fn a_restarted_server_is_entered_again_with_the_next_refresh() {
    let server = Server::start(&[]);
    let address = server.address;
    let mut one = Member::entered(address, 1);
    let mut other = Member::entered(address, 1);
    server.service.stop();
    let server = Server::start_on(address, &[]);
    for member in [&mut one, &mut other] {
        member.ask(&Wish::Register { rtt_ms: 0, sealed: b"sealed" });
        let pass = member.until(|answer| match answer {
            Answer::Cookie { tx: 2, pass, .. } => Some(pass),
            _ => None,
        });
        assert_ne!((pass.cookie, pass.server), (member.pass.cookie, member.pass.server));
        member.pass = pass;
        member.register();
    }
    assert_eq!(one.introduced().3, other.endpoint());
    assert_eq!(server.metric("cookies_refused_total"), 2);
}

#[test]
fn a_cookie_is_worth_nothing_at_another_port_and_costs_no_state() {
    let server = Server::start(&[]);
    let owner = Member::new(server.address, 1);
    let thief = socket_to(server.address);
    let member = MemberId([1; 8]);
    for wish in [
        Wish::Register { rtt_ms: 0, sealed: &[1; 512] },
        Wish::Register { rtt_ms: 0, sealed: &[] },
        Wish::Call { member },
        Wish::Leave,
    ] {
        let bytes = owner.boxed(&wish);
        thief.send(&bytes).unwrap();
        let answer = receive(&thief);
        assert!(answer.len() < bytes.len(), "{wish:?}");
        let Some(Answer::Cookie { tx: 2, pass, .. }) = parse_answer(&answer) else {
            panic!("{answer:?}");
        };
        assert_ne!(pass.cookie, owner.pass.cookie);
    }
    assert_eq!((server.metric("rooms"), server.metric("cookies_refused_total")), (0, 4));
}

/// Whoever overhears a member, and can take its address from it, can still ask nothing in its name:
/// neither leave nor move it, nor enter the room.
#[test]
fn who_overhears_a_registration_can_do_nothing_with_it() {
    let server = Server::start(&[]);
    let one = Member::entered(server.address, 1);
    let other = Member::new(server.address, 1);
    let overheard = other.boxed(&Wish::Register { rtt_ms: 0, sealed: b"sealed" });
    other.register();
    let (id, ..) = one.introduced();
    one.acknowledge(id);
    // With a cookie of his own and all else as overheard: the key, the number, the ciphertext.
    let thief = Member::new(server.address, 1);
    let mut stolen = overheard.clone();
    stolen[13..29].copy_from_slice(&thief.pass.cookie.0);
    thief.socket.send(&stolen).unwrap();
    server.await_dropped("not-authentic", 1);
    // What he makes in the member's name has another key.
    let mut forged = thief.boxed(&Wish::Leave);
    forged[29..61].copy_from_slice(&overheard[29..61]);
    thief.socket.send(&forged).unwrap();
    server.await_dropped("not-authentic", 2);
    // The room stands in no datagram of the member's.
    assert!(!overheard.windows(16).any(|bytes| bytes == other.room.0));
    assert!(!overheard.windows(6).any(|bytes| bytes == b"sealed"));
    assert_eq!(server.metric("members"), 2);
    assert!(is_silent_for(&one.socket, Duration::from_millis(300)));
}

#[test]
fn rooms_and_their_members_are_limited() {
    let server = Server::start(&["--max-rooms=2", "--max-members=2"]);
    let refusal = |number| {
        let member = Member::new(server.address, number);
        member.ask(&Wish::Register { rtt_ms: 0, sealed: &[] });
        member.until(|answer| match answer {
            Answer::Refused { tx: 2, reason } => Some(reason),
            _ => None,
        })
    };
    let _members: Vec<Member> =
        [1, 1, 2].map(|number| Member::entered(server.address, number)).into();
    assert_eq!(refusal(1), Refusal::RoomFull);
    assert_eq!(refusal(3), Refusal::RoomsFull);
    assert_eq!(server.metric("registrations_refused_total{reason=\"room-full\"}"), 1);
    assert_eq!(server.metric("registrations_refused_total{reason=\"rooms-full\"}"), 1);
}

#[test]
fn ipv4_and_ipv6_make_one_member() {
    let address = crate::server::free_udp_port();
    let v6 = format!("--listen-addr=[::1]:{address}");
    let server = Server::start_on(([127, 0, 0, 1], address).into(), &[&v6]);
    let one = Member::new(server.address, 1);
    let (one_id, _) = one.register();
    let mut also = Member::new(format!("[::1]:{address}").parse().unwrap(), 1);
    also.secret = one.secret;
    assert_eq!(also.register(), (one_id, 1));
    let other = Member::entered(server.address, 1);
    let endpoints = other.until(|answer| match answer {
        Answer::Introduce(Introduced { endpoints, .. }) => Some(endpoints),
        _ => None,
    });
    assert_eq!((endpoints.first, endpoints.second), (one.endpoint(), Some(also.endpoint())));
    assert_eq!(one.introduced().0, also.introduced().0);
}

#[test]
fn ten_thousand_registrations_in_a_thousand_rooms() {
    const MEMBERS: u32 = 10_000;
    let server = Server::start(&["--source-rate=0", "--udp-buffer=16M"]);
    let rss_before = server.service.status("VmRSS");
    // Each from a port of its own, on ten addresses; a window of them at once.
    let mut registered = 0;
    for first in (0..MEMBERS).step_by(100) {
        let members: Vec<Member> = (first..first + 100)
            .map(|number| {
                let host = u8::try_from(2 + number % 10).unwrap();
                let host = Ipv4Addr::new(127, 0, 3, host);
                let port = u16::try_from(20_000 + number / 10).unwrap();
                let socket = UdpSocket::bind((host, port)).unwrap();
                socket.connect(server.address).unwrap();
                socket.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
                let mut room = [0; 16];
                room[..4].copy_from_slice(&(number % 1000).to_be_bytes());
                let mut secret = [7; 32];
                secret[..4].copy_from_slice(&number.to_be_bytes());
                Member { socket, room: RoomId(room), secret, pass: NO_PASS }
            })
            .collect();
        for mut member in members {
            member.hello();
            let (_, count) = member.register();
            assert!(count >= 1);
            registered += 1;
        }
    }
    assert_eq!(registered, MEMBERS);
    server.await_metric("members", 10_000);
    assert_eq!(server.metric("rooms"), 1000);
    let grown = server.service.status("VmRSS") - rss_before;
    assert!(grown < 30 * 1024, "{grown} KiB for 10,000 members");
}
