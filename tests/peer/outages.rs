//! Servers and members that go without a word.

use crate::member::Peer;
use crate::server::Server;
use std::time::{Duration, Instant};

#[test]
fn a_server_that_comes_back_has_its_rooms_again() {
    let server = Server::start(&["--expiry=4"]);
    let address = server.address;
    let mut alice = Peer::start(address, "alice", &[]);
    let mut bob = Peer::start(address, "bob", &[]);
    alice.say("before");
    bob.expect_line("before");
    // Killed.
    drop(server);
    alice.say("without a server");
    bob.expect_line("without a server");
    let server = Server::start_on(address, &["--expiry=4"]);
    let begin = Instant::now();
    server.await_metric("members", 2);
    // A refresh of a second here, and at most 4 s until an unanswered one is repeated.
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    let mut carol = Peer::start(address, "carol", &[]);
    carol.await_members(&["alice", "bob"]);
    carol.say("hello, you two");
    alice.expect_line("hello, you two");
    bob.expect_line("hello, you two");
    bob.await_members(&["carol"]);
    bob.say("hello, carol");
    carol.expect_line("hello, carol");
}

#[test]
fn a_member_that_was_killed_is_missed_and_replaced() {
    let server = Server::start(&["--expiry=4"]);
    let args = ["--keepalive=1s"];
    let alice = Peer::start(server.address, "alice", &args);
    let bob = Peer::start(server.address, "bob", &args);
    alice.await_members(&["bob"]);
    bob.await_members(&["alice"]);
    // Killed.
    drop(bob);
    let mut carol = Peer::start(server.address, "carol", &args);
    alice.await_members(&["carol"]);
    alice.say("who is left?");
    carol.expect_line("who is left?");
    alice.await_notice("* bob is gone");
    alice.await_notice("* not delivered to bob: who is left?");
    assert_eq!(alice.metric("members"), 1);
    assert_eq!(alice.metric("lines_not_delivered_total"), 1);
    alice.say("you are");
    carol.expect_line("you are");
}

#[test]
fn one_server_of_two_is_enough() {
    let dead = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let dead = format!("--server={}", dead.local_addr().unwrap());
    let server = Server::start(&[]);
    let alice = Peer::start(server.address, "alice", &[&dead]);
    let mut bob = Peer::start(server.address, "bob", &[&dead]);
    alice.say("found you");
    bob.expect_line("found you");
}
