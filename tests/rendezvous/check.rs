//! `udpferry check rendezvous`, from the operator's side.

use crate::server::{Server, free_udp_port, receive};
use crate::support::{recv_from, remote, run};
use std::net::UdpSocket;

fn check(args: &[&str]) -> (Option<i32>, String) {
    let output = run(&[&["check", "rendezvous"], args].concat());
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_server_that_works_is_shown_step_by_step() {
    let server = Server::start(&[]);
    let (code, said) = check(&[&server.address.to_string()]);
    assert_eq!(code, Some(0), "{said}");
    for line in [
        "  ok    STUN: 127.0.0.1:",
        "That is this host's own: no NAT.",
        "It has one address",
        "  ok    the server gives a cookie",
        "  ok    entered a room; refresh after 15 s, expiry after 60 s",
        "It does not relay",
        "  ok    left it",
        "The server works.",
    ] {
        assert!(said.contains(line), "no {line:?} in\n{said}");
    }
    server.await_metric("rooms", 0);
}

#[test]
fn a_relay_and_a_second_address_are_told() {
    let (port, stun) = (free_udp_port(), free_udp_port());
    let stun_port = format!("--stun-port={stun}");
    let args = ["--relay", &stun_port, "--alternate-addr=127.0.0.2"];
    let _server = Server::start_on(([127, 0, 0, 1], port).into(), &args);
    let (code, said) = check(&[&format!("localhost:{port}")]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&format!("It has a second address, 127.0.0.2:{stun}")), "{said}");
    assert!(said.contains("It relays for members"), "{said}");
}

#[test]
fn nobody_there_is_told_with_where_to_look() {
    let port = free_udp_port();
    let (code, said) = check(&[&format!("127.0.0.1:{port}")]);
    assert_eq!(code, Some(1));
    assert!(said.contains("no answer to STUN"), "{said}");
    assert!(said.contains("nobody listens there"), "{said}");
    let (silent, address) = remote();
    let (code, said) = check(&["--timeout=300ms", &address.to_string()]);
    assert_eq!(code, Some(1));
    assert!(said.contains("nothing came in time"), "{said}");
    drop(silent);
    for wrong in ["127.0.0.1:0", "127.0.0.1:x", ""] {
        assert_eq!(check(&[wrong]).0, Some(2), "{wrong:?}");
    }
}

#[test]
fn another_stun_server_is_told_apart() {
    let (other, address) = remote();
    let checked = std::thread::spawn(move || check(&["--timeout=300ms", &address.to_string()]));
    answer_binding(&other);
    let (code, said) = checked.join().unwrap();
    assert_eq!(code, Some(1));
    assert!(said.contains("no cookie: nothing came in time"), "{said}");
    assert!(said.contains("is it `udpferry rendezvous`?"), "{said}");
}

/// MAPPED-ADDRESS of 192.0.2.1:4660, as an old server's.
fn answer_binding(socket: &UdpSocket) {
    let mut bytes = [0; 100];
    let (len, from) = recv_from(socket, &mut bytes).unwrap();
    assert_eq!(len, 20);
    let mut answer = bytes[..20].to_vec();
    answer[..4].copy_from_slice(&[1, 1, 0, 12]);
    answer.extend_from_slice(&[0, 1, 0, 8, 0, 1, 0x12, 0x34, 192, 0, 2, 1]);
    socket.send_to(&answer, from).unwrap();
    assert_eq!(receive(socket).len(), 96);
}
