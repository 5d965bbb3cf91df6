//! As a service and as a tool: metrics, reports, the NAT's behaviour.

use crate::member::Peer;
use crate::server::{Server, free_udp_port};
use crate::support::programs::only_line;
use crate::support::run;
use nix::sys::signal::Signal;

#[test]
fn says_what_the_nat_does() {
    // Two addresses and two ports, so that filtering can be seen.
    let stun = format!("--stun-port={}", free_udp_port());
    let server = Server::start(&[&stun, "--alternate-addr=127.0.0.2"]);
    let output = run(&["peer", &format!("--server={}", server.address), "--detect"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let value = |name: &str| {
        let found = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        found.unwrap_or_else(|| panic!("no {name} in\n{said}"))
    };
    assert!(value("local endpoint").starts_with("127.0.0.1:"));
    assert_eq!(value("public endpoint"), value("local endpoint"));
    assert_eq!(value("mapping"), "no NAT, the public endpoint is the local one");
    assert_eq!(value("filtering"), "endpoint-independent");
    assert_eq!(value("with a peer behind a NAT of the usual kind"), "direct");
    assert_eq!(value("with a peer behind a symmetric NAT"), "direct");
}

#[test]
fn says_that_no_server_answers() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = format!("--server={}", silent.local_addr().unwrap());
    let output = run(&["peer", &server, "--detect=nat"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, "no STUN server answered: UDP may be blocked on the way\n");
}

#[test]
fn metrics_and_reports_are_there_from_the_start() {
    let server = Server::start(&[]);
    let peer = Peer::start(server.address, "alice", &[]);
    for name in ["members", "flows", "lines_sent_total", "probes_sent_total"] {
        assert_eq!(peer.metric(name), 0);
    }
    assert_eq!(peer.dropped("not-authentic"), 0);
    peer.service.await_log("seen as 127.0.0.1:");
    peer.service.signal(Signal::SIGUSR1);
    peer.service.await_log("all counters are zero");
    // There is nothing to read again, and no reason to stop.
    peer.service.signal(Signal::SIGHUP);
    let (status, _) = peer.service.stop();
    assert_eq!(status.code(), Some(0));
    server.await_metric("members", 0);
}

#[test]
fn a_port_that_is_taken_is_said_at_the_start() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let forward = format!("--forward={}", taken.local_addr().unwrap());
    let output = run(&["peer", "--server=127.0.0.1", "--room=attic:the secret", &forward]);
    assert_eq!(output.status.code(), Some(1));
    let line = only_line(&output);
    assert!(line.contains(&format!("cannot bind udp {}: ", taken.local_addr().unwrap())), "{line}");
}

#[test]
fn everything_comes_from_the_local_port() {
    let server = Server::start(&[]);
    let port = free_udp_port();
    let alice = Peer::start(server.address, "alice", &[&format!("--local-port={port}")]);
    assert_eq!(alice.endpoint().port(), port);
    let bob = Peer::start(server.address, "bob", &[]);
    let path = bob.service.await_log("path to alice: direct via ");
    assert!(path.contains(&format!(":{port},")), "{path}");
}
