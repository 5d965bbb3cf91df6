//! Floods, forgeries and garbage.

use crate::server::{Member, NO_PASS, Server, receive, socket_to};
use crate::support::{await_some, recv};
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Instant;
use udpferry::net::sys::mmsg::send::SendQueue;
use udpferry::wire::rendezvous::answer::{Answer, parse_answer};
use udpferry::wire::rendezvous::request::{Boxed, Request, Wish, write_request};
use udpferry::wire::rendezvous::{Cookie, MemberId, MemberKey, RoomId};

/// Where a forger's datagrams come from: from the server's side there is no difference between a
/// forged source and one that never listens.
fn victims(count: u16) -> Vec<UdpSocket> {
    (0..count).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect()
}

/// Bytes of datagrams that the server has received and sent, once it has seen `received`.
fn bytes(server: &Server, received: usize) -> (f64, f64) {
    let received = i64::try_from(received).unwrap();
    server.await_metric("bytes_total{direction=\"received\"}", received);
    let sent = server.metric("bytes_total{direction=\"sent\"}");
    #[allow(clippy::cast_precision_loss)] // A few megabytes.
    (received as f64, sent as f64)
}

/// Sends each of `datagrams` from each of `sources`, no faster than the server reads.
fn flood(server: &Server, sources: &[UdpSocket], datagrams: &[Vec<u8>]) -> usize {
    let mut sent = 0;
    for (index, source) in sources.iter().enumerate() {
        for datagram in datagrams {
            source.send_to(datagram, server.address).unwrap();
            sent += datagram.len();
        }
        if index % 100 == 99 {
            bytes(server, sent);
        }
    }
    sent
}

#[test]
fn a_forger_of_our_own_protocol_gets_less_than_he_sends() {
    let server = Server::start(&["--source-rate=0", "--udp-buffer=16M", "--relay"]);
    let (cookie, key) = (Cookie([3; 16]), MemberKey([4; 32]));
    let boxed = |ciphertext| Request::Boxed(Boxed { tx: 1, cookie, key, ciphertext });
    let member = MemberId([6; 8]);
    let datagrams = [
        Request::Hello { tx: 1 },
        // To leave, and to register with the longest announcement.
        boxed(&[0; 33]),
        boxed(&[0; 33 + 4 + 512]),
        Request::Introduced { introduction: 7 },
        Request::Relay { member, payload: b"payload" },
    ]
    .map(|request| {
        let mut bytes = Vec::new();
        write_request(&mut bytes, &request);
        bytes
    });
    let sent = flood(&server, &victims(1000), &datagrams);
    let (received, answered) = bytes(&server, sent);
    println!("own protocol: {:.2} bytes out for a byte in", answered / received);
    assert!(answered <= received);
    // Each alone, too.
    for datagram in &datagrams {
        let server = Server::start(&["--source-rate=0"]);
        let sent = flood(&server, &victims(50), std::slice::from_ref(datagram));
        let (received, answered) = bytes(&server, sent);
        assert!(answered <= received, "{datagram:?}");
    }
    assert_eq!(server.metric("rooms"), 0);
}

/// Whoever had an address has a cookie of it for up to a minute, and can forge it as a source: its
/// new holder, who acknowledges nothing, is soon left alone.
#[test]
fn who_had_an_address_cannot_have_it_flooded() {
    let server = Server::start(&["--source-rate=0"]);
    let members: Vec<Member> = (0..15).map(|_| Member::new(server.address, 1)).collect();
    for member in &members {
        member.register_with(0, &[7; 512]);
    }
    let mut victim = Member::new(server.address, 1);
    let (mut introductions, mut requests) = (0, 0);
    let begin = Instant::now();
    let left_alone = await_some(|| {
        requests += 1;
        let sealed = [u8::try_from(requests % 2).unwrap()];
        victim.ask(&Wish::Register { rtt_ms: 0, sealed: &sealed });
        // Also as somebody else, and after having left.
        if requests % 3 == 0 {
            victim.secret[15] = victim.secret[15].wrapping_add(1);
        }
        loop {
            match parse_answer(&victim.next()).unwrap() {
                Answer::Introduce { .. } => introductions += 1,
                Answer::Registered { .. } => return None,
                Answer::Cookie { .. } => return Some(()),
                _ => {}
            }
        }
    });
    assert!(left_alone.is_some(), "{introductions} introductions for {requests} requests");
    // A burst of 32, and four for each second.
    let most = 33 + 4 * begin.elapsed().as_secs();
    assert!((15..=most).contains(&introductions), "{introductions} for {requests} requests");
    // The old cookie is worth nothing, for a call or for leaving either.
    for wish in [Wish::Call { member: MemberId([1; 8]) }, Wish::Leave] {
        victim.ask(&wish);
        victim.until(|answer| matches!(answer, Answer::Cookie { tx: 2, .. }).then_some(()));
    }
    assert!(server.metric("introductions_withheld_total") > 0);
    // Its holder is told of everybody once it shows that it is there.
    victim.hello();
    victim.register();
    let mut told = std::collections::HashSet::new();
    while told.len() < 15 {
        let (number, _, who, ..) = victim.introduced();
        victim.acknowledge(number);
        told.insert(who);
    }
}

#[test]
fn one_address_cannot_hold_every_room() {
    let server = Server::start(&["--max-rooms=5"]);
    let flood: Vec<Member> = (1..=5).map(|room| Member::entered(server.address, room)).collect();
    let other = UdpSocket::bind("127.0.0.9:0").unwrap();
    other.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    other.connect(server.address).unwrap();
    let room = RoomId([9; 16]);
    let mut member = Member { socket: other, room, secret: [9; 32], pass: NO_PASS };
    member.hello();
    assert_eq!(member.register().1, 1);
    // Whose room went knows it, and is refused.
    let last = &flood[4];
    last.gone();
    last.ask(&Wish::Register { rtt_ms: 0, sealed: &[] });
    last.until(|answer| matches!(answer, Answer::Refused { .. }).then_some(()));
    assert_eq!(member.register().1, 1);
}

#[test]
fn a_forger_of_plain_clients_gets_less_than_he_sends() {
    let server = Server::start(&["--source-rate=0", "--udp-buffer=16M"]);
    let sources = victims(1000);
    let datagrams: Vec<Vec<u8>> = vec![b"PING".to_vec(); 10];
    let sent = flood(&server, &sources, &datagrams);
    let (received, answered) = bytes(&server, sent);
    println!("plain: {:.2} bytes out for a byte in", answered / received);
    assert!(answered <= received);
    assert!(server.metric("plain_waiting") <= 1024);
}

#[test]
fn an_address_has_its_rate() {
    let server = Server::start(&["--source-rate=100"]);
    let sources = victims(4);
    let hello = {
        let mut bytes = Vec::new();
        write_request(&mut bytes, &Request::Hello { tx: 1 });
        bytes
    };
    let sent = flood(&server, &sources, &vec![hello.clone(); 250]);
    bytes(&server, sent);
    let (passed, dropped) =
        (server.metric("requests_total{kind=\"hello\"}"), server.dropped("source-rate"));
    assert_eq!(passed + dropped, 1000);
    // A burst of a second, and what the flood's own time earned.
    assert!((100..400).contains(&passed), "{passed}");
    // Another address is not affected.
    let other = UdpSocket::bind("127.0.0.9:0").unwrap();
    other.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    other.connect(server.address).unwrap();
    other.send(&hello).unwrap();
    assert_eq!(receive(&other).len(), 80);
}

#[test]
fn garbage_is_dropped_and_counted() {
    let server = Server::start(&["--source-rate=0"]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut seed = 1_u64;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u8::try_from(seed >> 56).unwrap()
    };
    let mut sent = 0;
    for round in 0..20_000_u32 {
        let len = usize::from(random()) * 3 % 700;
        let mut datagram: Vec<u8> = (0..len).map(|_| random()).collect();
        let head: &[u8] = match round % 4 {
            0 => b"\xf5rv\x01",
            1 => &[0, 1, 0, 8, 0x21, 0x12, 0xa4, 0x42],
            2 => &[0xf5, b'r', b'v', 1, 2],
            _ => &[0xff],
        };
        datagram.splice(0..head.len().min(datagram.len()), head.iter().copied());
        socket.send_to(&datagram, server.address).unwrap();
        sent += datagram.len();
        if round % 200 == 199 {
            bytes(&server, sent);
        }
    }
    assert!(server.dropped("malformed") > 15_000, "{}", server.dropped("malformed"));
    let member = Member::entered(server.address, 1);
    assert_eq!(member.register().1, 1);
}

#[test]
fn a_million_bindings_from_changing_ports_take_no_memory() {
    const PER_SOCKET: usize = 50;
    const SOCKETS: usize = 20_000;
    let server = Server::start(&["--source-rate=1000000000"]);
    let request = *b"\x00\x01\x00\x00\x21\x12\xa4\x42abcdefghijkl";
    let mut queue = SendQueue::default();
    let mut buffer = [0; 100];
    let mut before = None;
    for number in 0..SOCKETS {
        let host = u8::try_from(1 + number % 250).unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 4, host), 0)).unwrap();
        socket.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
        let mut batch = queue.batch(&socket, true);
        for _ in 0..PER_SOCKET {
            batch.push(Some(server.address), &request);
        }
        assert_eq!(batch.finish().sent, PER_SOCKET);
        // All of them come back before the next port's turn.
        for _ in 0..PER_SOCKET {
            assert_eq!(recv(&socket, &mut buffer).expect("an answer is missing"), 32);
        }
        if number == SOCKETS / 20 {
            before = Some(server.service.status("VmRSS"));
        }
    }
    let count = i64::try_from(SOCKETS * PER_SOCKET).unwrap();
    let counted =
        await_some(|| (server.metric("requests_total{kind=\"stun\"}") == count).then_some(()));
    assert!(counted.is_some());
    let grown = server.service.status("VmRSS").saturating_sub(before.unwrap());
    assert!(grown < 1024, "{grown} KiB");
    let socket = socket_to(server.address);
    socket.send(&request).unwrap();
    assert_eq!(receive(&socket).len(), 32);
}
