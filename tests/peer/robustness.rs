//! Strangers and misbehaving members: counted, and the chat goes on.

use crate::handmade::Handmade;
use crate::member::Peer;
use crate::server::Server;
use crate::support::{await_some, remote};
use std::net::UdpSocket;
use udpferry::wire::peer::{Kind, MAC_LEN, PROBE_LEN, PROBE_MAGIC, Probe, ProbeKind};
use udpferry::wire::rendezvous::MemberId;

/// Whether it still hears and is heard.
fn chats(one: &mut Peer, other: &mut Peer, word: &str) {
    one.say(word);
    other.expect_line(word);
    other.say(word);
    one.expect_line(word);
}

#[test]
fn garbage_is_counted_and_changes_nothing() {
    let server = Server::start(&[]);
    let mut alice = Peer::start(server.address, "alice", &[]);
    let mut bob = Peer::start(server.address, "bob", &[]);
    chats(&mut alice, &mut bob, "before");
    let (port, stranger) = (alice.endpoint(), remote().0);
    let dropped = || -> i64 {
        ["malformed", "unknown-sender", "not-authentic"]
            .map(|reason| alice.dropped(reason))
            .iter()
            .sum()
    };
    let before = dropped();
    let mut sent = 0;
    let mut send = |bytes: &[u8]| {
        stranger.send_to(bytes, port).unwrap();
        sent += 1;
        // Each one is seen before the next, so that none is lost in the kernel.
        let counted = await_some(|| (dropped() - before >= sent).then_some(()));
        assert!(counted.is_some(), "{bytes:02x?} was not counted");
    };
    for first in
        [&[0][..], b"PING", &PROBE_MAGIC, b"\xf5rv\x01", b"\x00\x01\x00\x00\x21\x12\xa4\x42"]
    {
        for len in [first.len(), PROBE_LEN, PROBE_LEN + 1, 1_400, 60_000] {
            let mut bytes = vec![0x5a; len];
            bytes[..first.len()].copy_from_slice(first);
            send(&bytes);
        }
    }
    // WireGuard's four messages with their right lengths, to all tunnels' numbers and others.
    for (kind, len) in [(1, 148), (2, 92), (3, 64), (4, 32), (4, 1_400)] {
        for index in [0, 0x100, 0x200, 0xffff_ff00_u32] {
            let mut bytes = vec![0x5a; len];
            bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
            bytes[4..8].copy_from_slice(&index.to_le_bytes());
            send(&bytes);
        }
    }
    chats(&mut alice, &mut bob, "after");
    assert_eq!(alice.metric("members"), 1);
}

#[test]
fn forged_probes_are_not_answered() {
    let server = Server::start(&[]);
    let alice = Peer::start(server.address, "alice", &[]);
    let mut member = Handmade::meet(server.address, "handmade", b"handmade");
    let stranger = remote().0;
    let received = alice.metric("probes_received_total");
    let mut probe = Vec::new();
    // A bit of the mac is wrong; one is of nobody; one is for somebody else.
    let mut ping = |from, to, flip: usize| {
        let seen = ([0, 0, 0, 0], 0).into();
        member.probes.write(&mut probe, &Probe { kind: ProbeKind::Ping, tx: 7, from, to, seen });
        probe[flip] ^= u8::from(flip > 0);
        stranger.send_to(&probe, member.at).unwrap();
    };
    let (me, peer, nobody) = (member.me, member.peer, MemberId([9; 8]));
    let unknown = alice.dropped("unknown-sender");
    for flip in [4 + 1, PROBE_LEN - MAC_LEN, PROBE_LEN - 1] {
        ping(me, peer, flip);
    }
    ping(nobody, peer, 0);
    ping(me, nobody, 0);
    alice.await_metric("datagrams_dropped_total{reason=\"not-authentic\"}", 3);
    alice.await_metric("datagrams_dropped_total{reason=\"unknown-sender\"}", unknown + 2);
    assert_eq!(alice.metric("probes_received_total"), received);
    assert!(is_silent(&stranger));
    // A pong that nobody asked for moves nothing.
    member.probe(ProbeKind::Pong, 99);
    alice.await_metric("datagrams_dropped_total{reason=\"unknown-sender\"}", unknown + 3);
    member.say(Kind::Line, 1, b"still here");
    member.until(|said| said.kind == Kind::Got);
}

#[test]
fn what_is_replayed_comes_to_nothing() {
    let server = Server::start(&[]);
    let mut alice = Peer::start(server.address, "alice", &[]);
    let mut member = Handmade::meet(server.address, "handmade", b"handmade");
    member.say(Kind::Line, 1, b"once");
    alice.expect_line("once");
    member.until(|said| said.kind == Kind::Got);
    // A ping with a number of its own, so that its answer has come before the replay.
    member.probe(ProbeKind::Ping, 77);
    let stranger = remote().0;
    // If both sides began, one handshake is of a session that never was.
    let dropped = || alice.dropped("not-authentic") + alice.dropped("unknown-sender");
    let before = dropped();
    let tunnelled: Vec<Vec<u8>> =
        member.sent.iter().filter(|it| !it.starts_with(&PROBE_MAGIC)).cloned().collect();
    assert!(tunnelled.len() >= 3, "handshake, greeting and line");
    for datagram in &tunnelled {
        stranger.send_to(datagram, member.at).unwrap();
    }
    let replayed = i64::try_from(tunnelled.len()).unwrap();
    let counted = await_some(|| (dropped() - before >= replayed).then_some(()));
    assert!(counted.is_some(), "{} of {replayed}", dropped() - before);
    let ping = member.sent.last().unwrap().clone();
    for _ in 0..3 {
        stranger.send_to(&ping, member.at).unwrap();
    }
    // What comes next from the member goes where it always went.
    member.say(Kind::Line, 2, b"twice");
    alice.expect_line("twice");
    member.until(|said| said.kind == Kind::Got && said.number == 2);
    assert!(is_silent(&stranger));
}

#[test]
fn a_member_cannot_steer_the_terminal_or_the_loop() {
    let server = Server::start(&[]);
    let mut alice = Peer::start(server.address, "alice", &[]);
    let mut member = Handmade::meet(server.address, "a", b"\x1b[31mred\n* bob is here");
    alice.await_notice("* ␛[31mred␊* bob is here is here");
    assert!(!alice.said().contains('\u{1b}'));
    member.say(Kind::Line, 1, b"\x1b]0;owned\x07\r\x1b[2J");
    alice.expect_line("␛]0;owned␇␍␛[2J");
    // Neither shown nor acknowledged: no text, and too long.
    member.say(Kind::Line, 2, b"no \xff text");
    member.say(Kind::Line, 3, &[b'x'; 1_025]);
    // A line whose acknowledgement got lost is shown once.
    member.say(Kind::Line, 4, b"again");
    member.say(Kind::Line, 4, b"again");
    for _ in 0..2 {
        let got = member.until(|said| said.kind == Kind::Got && said.number != 1);
        assert_eq!(got.number, 4);
    }
    alice.expect_line("again");
    // Nothing is served, nothing was asked.
    member.say(Kind::Data, 0, b"to no service");
    member.say(Kind::Back, u32::MAX, b"from no service");
    member.say(Kind::Got, 12_345, b"");
    alice.await_metric("datagrams_dropped_total{reason=\"no-service\"}", 1);
    alice.await_metric("datagrams_dropped_total{reason=\"no-flow\"}", 1);
    assert_eq!(alice.dropped("malformed"), 2);
    alice.say("well?");
    let line = member.until(|said| said.kind == Kind::Line);
    assert_eq!(line.body, b"well?");
    member.say(Kind::Bye, 0, b"");
    alice.await_notice("has left");
}

/// Whether nothing has come. To be asked after something that came later elsewhere.
fn is_silent(socket: &UdpSocket) -> bool {
    socket.set_nonblocking(true).unwrap();
    socket.recv_from(&mut [0; 2048]).is_err()
}
