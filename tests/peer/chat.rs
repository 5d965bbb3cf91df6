//! Lines of chat from pipe to pipe.

use crate::member::Peer;
use crate::server::Server;

#[test]
fn two_members_exchange_lines_and_end_well() {
    let server = Server::start(&[]);
    let mut alice = Peer::start(server.address, "alice", &[]);
    // Typed before anybody is there: it waits.
    alice.say("first");
    let mut bob = Peer::start(server.address, "bob", &[]);
    bob.expect_line("first");
    bob.say("hello, alice");
    alice.expect_line("hello, alice");
    alice.await_members(&["bob"]);
    for number in 0..200 {
        alice.say(&format!("line {number}"));
        bob.say(&format!("answer {number}"));
    }
    for number in 0..200 {
        bob.expect_line(&format!("line {number}"));
        alice.expect_line(&format!("answer {number}"));
    }
    alice.service.await_log("path to bob: direct via ");
    bob.service.await_log("path to alice: direct via ");
    assert_eq!(alice.metric("lines_sent_total"), 201);
    assert_eq!(bob.metric("lines_received_total"), 201);
    assert_eq!(bob.metric("members"), 1);
    // Who has nothing more to say leaves when all of it has arrived.
    alice.say("last, a long one: ");
    alice.type_in("ä".repeat(2_000).as_bytes());
    alice.end_input();
    bob.expect_line("last, a long one: ");
    let mut long = String::new();
    while long.len() < 4_000 {
        long.push_str(&bob.line().unwrap());
    }
    assert_eq!(long, "ä".repeat(2_000));
    assert_eq!(alice.exit_code(), 0);
    assert_eq!(alice.line(), None);
    bob.await_notice("* alice has left");
    bob.end_input();
    assert_eq!(bob.exit_code(), 0);
    server.await_metric("members", 0);
}

#[test]
fn three_members_hear_each_other() {
    let server = Server::start(&[]);
    let names = ["alice", "bob", "carol"];
    let mut peers = names.map(|name| Peer::start(server.address, name, &[]));
    for (peer, name) in peers.iter().zip(names) {
        let others: Vec<&str> = names.into_iter().filter(|other| *other != name).collect();
        peer.await_members(&others);
    }
    for (peer, name) in peers.iter().zip(names) {
        peer.say(&format!("{name} speaks"));
    }
    for (peer, name) in peers.iter_mut().zip(names) {
        let mut heard = [peer.line().unwrap(), peer.line().unwrap()];
        heard.sort_unstable();
        let mut expected: Vec<String> =
            names.iter().filter(|other| **other != name).map(|it| format!("{it} speaks")).collect();
        expected.sort_unstable();
        assert_eq!(heard[..], expected[..]);
    }
}

#[test]
fn who_only_listens_stays_until_the_others_have_gone() {
    let server = Server::start(&[]);
    let mut listener = Peer::start(server.address, "listener", &[]);
    listener.end_input();
    let mut speaker = Peer::start(server.address, "speaker", &[]);
    speaker.await_members(&["listener"]);
    for number in 0..3 {
        speaker.say(&format!("news {number}"));
        listener.expect_line(&format!("news {number}"));
    }
    speaker.end_input();
    assert_eq!(speaker.exit_code(), 0);
    assert_eq!(listener.exit_code(), 0);
}

#[test]
fn a_line_that_is_no_text_is_refused() {
    let server = Server::start(&[]);
    let mut alice = Peer::start(server.address, "alice", &[]);
    let mut bob = Peer::start(server.address, "bob", &[]);
    alice.type_in(b"good\nbad \xff\xfe\nalso good\n");
    alice.end_input();
    bob.expect_line("good");
    bob.expect_line("also good");
    alice.await_notice("* not sent: the line is not UTF-8");
    assert_eq!(alice.exit_code(), 1);
    // One that says nothing else does not stay to listen.
    let mut carol = Peer::start(server.address, "carol", &[]);
    carol.type_in(b"\xff\n");
    carol.end_input();
    assert_eq!(carol.exit_code(), 1);
    bob.end_input();
    assert_eq!(bob.exit_code(), 0);
}

#[test]
fn controls_arrive_as_pictures() {
    let server = Server::start(&[]);
    let alice = Peer::start(server.address, "alice", &[]);
    let mut bob = Peer::start(server.address, "bob", &[]);
    alice.say("\u{1b}[2J\u{1b}]0;title\u{7} \u{202e}evil \u{9b}31m");
    bob.expect_line("␛[2J␛]0;title␇ <U+202E>evil <U+009B>31m");
}

#[test]
fn ends_well_when_nobody_reads_its_output() {
    let server = Server::start(&[]);
    let alice = Peer::start(server.address, "alice", &[]);
    let mut bob = Peer::start(server.address, "bob", &[]);
    alice.await_members(&["bob"]);
    bob.end_output();
    alice.say("is anybody there?");
    assert_eq!(bob.exit_code(), 0);
}
