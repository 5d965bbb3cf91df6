//! `--legacy`: the classroom's plain text, with its clients.

use crate::member::Peer;
use crate::server::Server;
use crate::support::{receive_from, remote};
use std::net::{SocketAddr, UdpSocket};

fn legacy(server: SocketAddr) -> Peer {
    Peer::start_anywhere(server, "x", &["--legacy"])
}

/// The classroom's client: asks the server, learns its partner's endpoint, and punches.
fn client(server: SocketAddr) -> (UdpSocket, SocketAddr) {
    let (socket, _) = remote();
    socket.send_to(b"PING", server).unwrap();
    loop {
        let (bytes, from) = receive_from(&socket);
        if from == server {
            let partner = String::from_utf8(bytes).unwrap().parse().unwrap();
            socket.send_to(b"PING", partner).unwrap();
            return (socket, partner);
        }
    }
}

/// The next datagram from the partner that is a line.
fn line_of(socket: &UdpSocket) -> String {
    loop {
        let (bytes, _) = receive_from(socket);
        if bytes != b"PING" {
            return String::from_utf8(bytes).unwrap();
        }
    }
}

#[test]
fn chats_with_the_classrooms_client() {
    let server = Server::start(&[]);
    let mut peer = legacy(server.address);
    peer.await_notice("* legacy mode: NOTHING IS ENCRYPTED");
    server.await_metric("plain_waiting", 1);
    let (socket, partner) = client(server.address);
    peer.await_notice(&format!("* connected to {}", socket.local_addr().unwrap()));
    peer.say("hello, classroom");
    assert_eq!(line_of(&socket), "hello, classroom");
    socket.send_to("grüße".as_bytes(), partner).unwrap();
    peer.expect_line("grüße");
    // A terminal is steered by nobody, and what is no UTF-8 harms nobody.
    socket.send_to(b"\x1b[2J\x07 \xff\r\n", partner).unwrap();
    peer.expect_line("␛[2J␇ \u{fffd}␍␊");
    // Longer than a line.
    socket.send_to(&[b'x'; 2_000], partner).unwrap();
    peer.await_metric("datagrams_dropped_total{reason=\"too-long\"}", 1);
    peer.say("that is all");
    peer.end_input();
    assert_eq!(line_of(&socket), "that is all");
    assert_eq!(peer.exit_code(), 0);
}

#[test]
fn two_of_ours_chat_as_well() {
    let server = Server::start(&[]);
    let mut one = legacy(server.address);
    let mut other = legacy(server.address);
    for (number, text) in ["one", "two", "three"].iter().enumerate() {
        one.say(text);
        other.expect_line(text);
        other.say(&number.to_string());
        one.expect_line(&number.to_string());
    }
    assert_eq!(one.metric("lines_received_total"), 3);
}

#[test]
fn gives_up_when_nobody_comes() {
    let server = Server::start(&[]);
    let args = ["--legacy", "--connect-timeout=1s"];
    let mut peer = Peer::start_anywhere(server.address, "x", &args);
    peer.await_notice("* nobody came");
    assert_eq!(peer.exit_code(), 1);
    // A server without the old language says nothing.
    let server = Server::start(&["--no-legacy"]);
    let mut peer = Peer::start_anywhere(server.address, "x", &args);
    assert_eq!(peer.exit_code(), 1);
}
