//! `--forward` and `--serve`: datagrams of a local port through the tunnel and back.

use crate::member::Peer;
use crate::server::Server;
use crate::support::kernel::signal_twice;
use crate::support::{Echo, receive_from, remote, takes_less_than};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A member with a service, one with a port for it, and that port.
pub(crate) struct Tunnel {
    _server: Server,
    pub(crate) serving: Peer,
    pub(crate) forwarding: Peer,
    pub(crate) port: SocketAddr,
}

impl Tunnel {
    pub(crate) fn start(service: SocketAddr, args: &[&str]) -> Tunnel {
        let server = Server::start(&[]);
        let serve = format!("--serve={service}");
        let with = |option| [&[option], args].concat();
        let serving = Peer::start(server.address, "inside", &with(serve.as_str()));
        let forwarding = Peer::start(server.address, "outside", &with("--forward=127.0.0.1:0"));
        let said = forwarding.service.await_log("listening on udp ");
        let port = said.rsplit(' ').next().unwrap().parse().unwrap();
        serving.await_members_logged(&["outside"]);
        forwarding.await_members_logged(&["inside"]);
        Tunnel { _server: server, serving, forwarding, port }
    }
}

/// A datagram that no other call makes.
fn payload(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at * 31 + seed * 7 + at / 251) % 251).unwrap()).collect()
}

#[test]
fn datagrams_of_all_sizes_arrive_both_ways() {
    let (service, address) = remote();
    let tunnel = Tunnel::start(address, &[]);
    let (user, _) = remote();
    for (seed, len) in [0, 1, 1200, 1387, 16_384, 60_000, 65_400].into_iter().enumerate() {
        let question = payload(len, seed);
        user.send_to(&question, tunnel.port).unwrap();
        let (got, from) = receive_from(&service);
        assert!(got == question, "{len} bytes became {}", got.len());
        let answer = payload(len, seed + 100);
        service.send_to(&answer, from).unwrap();
        let (got, from) = receive_from(&user);
        assert_eq!(from, tunnel.port);
        assert!(got == answer, "{len} bytes became {}", got.len());
    }
    let count = |peer: &Peer, direction: &str| {
        let metric =
            |what: &str| peer.metric(&format!("{what}_total{{direction=\"{direction}\"}}"));
        (metric("datagrams"), metric("bytes"))
    };
    for peer in [&tunnel.serving, &tunnel.forwarding] {
        for direction in ["to-tunnel", "from-tunnel"] {
            assert_eq!(count(peer, direction), (7, 144_372), "{direction}");
        }
        assert_eq!(peer.metric("flows"), 1);
    }
}

#[test]
fn answers_reach_the_source_that_asked() {
    let echo = Echo::start();
    let tunnel = Tunnel::start(echo.address, &[]);
    let users: Vec<UdpSocket> = (0..64).map(|_| remote().0).collect();
    for round in 0..5 {
        for (number, user) in users.iter().enumerate() {
            user.send_to(&payload(100 + round, number), tunnel.port).unwrap();
        }
        for (number, user) in users.iter().enumerate().rev() {
            assert_eq!(receive_from(user).0, payload(100 + round, number));
        }
    }
    let sources: std::collections::HashSet<_> = (0..64 * 5).map(|_| echo.source()).collect();
    assert_eq!(sources.len(), 64, "each flow has a socket of its own");
    assert_eq!(tunnel.forwarding.metric("flows"), 64);
    assert_eq!(tunnel.serving.metric("flows"), 64);
    assert_eq!(tunnel.serving.metric("flows_evicted_total"), 0);
}

#[test]
fn the_least_recently_used_flow_makes_room() {
    let (service, address) = remote();
    let tunnel = Tunnel::start(address, &["--max-flows=2"]);
    let ask = |user: &UdpSocket, text: &str| {
        user.send_to(text.as_bytes(), tunnel.port).unwrap();
        let (got, from) = receive_from(&service);
        assert_eq!(got, text.as_bytes());
        from
    };
    let users = [remote().0, remote().0, remote().0];
    let first = ask(&users[0], "first");
    let second = ask(&users[1], "second");
    assert_eq!(ask(&users[0], "first again"), first);
    let third = ask(&users[2], "third");
    assert!(first != second && second != third && first != third);
    for peer in [&tunnel.serving, &tunnel.forwarding] {
        assert_eq!(peer.metric("flows"), 2);
        assert_eq!(peer.metric("flows_evicted_total"), 1);
    }
    // Those who are left still get their answers; and the one that went comes back as another.
    service.send_to(b"to the first", first).unwrap();
    assert_eq!(receive_from(&users[0]).0, b"to the first");
    service.send_to(b"to the third", third).unwrap();
    assert_eq!(receive_from(&users[2]).0, b"to the third");
    assert_ne!(ask(&users[1], "second again"), second);
}

#[test]
fn a_flow_that_is_silent_ends() {
    let (service, address) = remote();
    let tunnel = Tunnel::start(address, &["--flow-timeout=300ms"]);
    let (user, _) = remote();
    user.send_to(b"once", tunnel.port).unwrap();
    receive_from(&service);
    for peer in [&tunnel.serving, &tunnel.forwarding] {
        let ended = crate::support::await_some(|| (peer.metric("flows") == 0).then_some(()));
        assert!(ended.is_some());
    }
    user.send_to(b"again", tunnel.port).unwrap();
    assert_eq!(receive_from(&service).0, b"again");
}

#[test]
fn what_nobody_serves_is_counted() {
    let server = Server::start(&[]);
    let alice = Peer::start(server.address, "alice", &["--forward=127.0.0.1:0", "--to=bob"]);
    let said = alice.service.await_log("listening on udp ");
    let port: SocketAddr = said.rsplit(' ').next().unwrap().parse().unwrap();
    // A service, but not the one that is wanted.
    let (service, address) = remote();
    let _carol = Peer::start(server.address, "carol", &[&format!("--serve={address}")]);
    alice.await_members_logged(&["carol"]);
    let (user, _) = remote();
    user.send_to(b"to nobody", port).unwrap();
    alice.await_metric("datagrams_dropped_total{reason=\"no-path\"}", 1);
    let _bob = Peer::start(server.address, "bob", &[&format!("--serve={address}")]);
    alice.await_members_logged(&["bob"]);
    user.send_to(b"to bob", port).unwrap();
    assert_eq!(receive_from(&service).0, b"to bob");
}

#[test]
fn a_service_that_is_not_there_ends_nothing() {
    let (service, address) = remote();
    let tunnel = Tunnel::start(address, &[]);
    drop(service);
    let (user, _) = remote();
    for _ in 0..3 {
        user.send_to(b"is anybody there?", tunnel.port).unwrap();
    }
    tunnel.serving.await_metric("icmp_errors_total", 1);
    let service = UdpSocket::bind(address).unwrap();
    service.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    user.send_to(b"now there is", tunnel.port).unwrap();
    // Of the three one may still have been on its way.
    while receive_from(&service).0 != b"now there is" {}
}

#[test]
fn stops_within_a_quarter_of_a_second_under_load() {
    takes_less_than(Duration::from_millis(250), longest_stop_under_load);
}

fn longest_stop_under_load() -> Duration {
    let echo = Echo::start();
    let tunnel = Tunnel::start(echo.address, &[]);
    let (stop, port) = (Arc::new(AtomicBool::new(false)), tunnel.port);
    let stopped = Arc::clone(&stop);
    let load = std::thread::spawn(move || {
        let (user, _) = remote();
        let datagram = payload(1200, 1);
        while !stopped.load(Ordering::Relaxed) {
            // Refused once the port is gone.
            let _ = user.send_to(&datagram, port);
        }
    });
    tunnel.serving.await_metric("datagrams_total{direction=\"from-tunnel\"}", 5_000);
    let stops = [tunnel.forwarding.service.stop(), tunnel.serving.service.stop()];
    stop.store(true, Ordering::Relaxed);
    load.join().unwrap();
    assert!(stops.iter().all(|(status, _)| status.success()), "{stops:?}");
    stops[0].1.max(stops[1].1)
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let (_service, address) = remote();
    let mut tunnel = Tunnel::start(address, &[]);
    let service = &mut tunnel.forwarding.service;
    signal_twice(service.pid());
    assert_eq!(service.wait().code(), Some(1));
}
