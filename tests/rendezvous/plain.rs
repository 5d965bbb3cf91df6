//! Plain clients, as the classroom's: ten lines each.

use crate::server::{Server, is_silent_for, receive, socket_to};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

/// The classroom's client: asks, learns its partner's endpoint, and talks to it.
fn client(server: std::net::SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    socket.send_to(b"PING", server).unwrap();
    socket
}

fn partner(of: &UdpSocket) -> String {
    String::from_utf8(receive(of)).unwrap()
}

#[test]
fn many_pairs_first_come_first_paired() {
    let server = Server::start(&["--plain-rate=1000"]);
    // Kept: for ten seconds a port that comes back is a client that asks again.
    let mut pairs = Vec::new();
    for _ in 0..50 {
        let one = client(server.address);
        server.await_metric("plain_waiting", 1);
        let other = client(server.address);
        assert_eq!(partner(&one), other.local_addr().unwrap().to_string());
        assert_eq!(partner(&other), one.local_addr().unwrap().to_string());
        // And from then on without the server.
        one.send_to(b"hello", other.local_addr().unwrap()).unwrap();
        assert_eq!(receive(&other), b"hello");
        pairs.push((one, other));
    }
    assert_eq!(server.metric("plain_answers_total"), 100);
}

#[test]
fn who_asks_again_gets_the_same_answer() {
    let server = Server::start(&[]);
    let (one, other) = (client(server.address), client(server.address));
    let answer = partner(&one);
    partner(&other);
    for _ in 0..3 {
        one.send_to(b"PING", server.address).unwrap();
        assert_eq!(partner(&one), answer);
    }
    assert!(is_silent_for(&other, Duration::from_millis(50)));
}

#[test]
fn who_has_waited_too_long_is_forgotten() {
    let server = Server::start(&["--waiting-expiry=200ms"]);
    let begin = Instant::now();
    let gone = client(server.address);
    server.await_metric("plain_waiting", 1);
    server.await_metric("plain_waiting", 0);
    assert!(begin.elapsed() >= Duration::from_millis(200));
    let (one, other) = (client(server.address), client(server.address));
    assert_eq!(partner(&one), other.local_addr().unwrap().to_string());
    assert!(is_silent_for(&gone, Duration::from_millis(50)));
}

#[test]
fn any_text_will_do_but_no_answer_of_a_server() {
    let server = Server::start(&[]);
    let one = socket_to(server.address);
    for text in ["192.0.2.1:5000", "[2001:db8::1]:5000"] {
        one.send(text.as_bytes()).unwrap();
    }
    server.await_dropped("no-request", 2);
    one.send("holá, ¿quién?".as_bytes()).unwrap();
    let other = socket_to(server.address);
    other.send(b"").unwrap();
    assert_eq!(receive(&other), one.local_addr().unwrap().to_string().as_bytes());
}

#[test]
fn text_can_be_switched_off() {
    let server = Server::start(&["--no-legacy"]);
    let (one, _other) = (client(server.address), client(server.address));
    server.await_dropped("no-legacy", 2);
    assert!(is_silent_for(&one, Duration::from_millis(50)));
}
