//! As a service: starting, stopping, reports.

use crate::server::{Member, Server, free_udp_port, receive, socket_to};
use crate::support::{run, takes_less_than};
use nix::sys::signal::Signal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use udpferry::wire::rendezvous::request::{Request, write_request};

#[test]
fn stops_within_a_quarter_of_a_second_under_load() {
    takes_less_than(Duration::from_millis(250), stop_under_load);
}

fn stop_under_load() -> Duration {
    let server = Server::start(&["--source-rate=0", "--relay"]);
    let members: Vec<Member> = (0..16).map(|_| Member::entered(server.address, 1)).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let loads: Vec<_> = (0..2)
        .map(|_| {
            let (stop, socket) = (Arc::clone(&stop), socket_to(server.address));
            std::thread::spawn(move || {
                let mut hello = Vec::new();
                write_request(&mut hello, &Request::Hello { tx: 1 });
                while !stop.load(Ordering::Relaxed) {
                    // Refused once the server is gone.
                    let _ = socket.send(&hello);
                }
            })
        })
        .collect();
    let busy = crate::support::await_some(|| {
        (server.metric("requests_total{kind=\"hello\"}") > 20_000).then_some(())
    });
    assert!(busy.is_some());
    let (status, took) = server.service.stop();
    stop.store(true, Ordering::Relaxed);
    for load in loads {
        load.join().unwrap();
    }
    assert!(status.success());
    drop(members);
    took
}

#[test]
fn says_what_it_listens_on_and_how_it_goes() {
    let server = Server::start(&[]);
    server.service.await_log(&format!("listening on udp {}", server.address));
    let _member = Member::entered(server.address, 1);
    server.service.signal(Signal::SIGUSR1);
    server.service.await_log("rendezvous_members");
    // There is nothing to read again, and no reason to stop.
    server.service.signal(Signal::SIGHUP);
    let socket = socket_to(server.address);
    socket.send(b"\x00\x01\x00\x00\x21\x12\xa4\x42abcdefghijkl").unwrap();
    assert_eq!(receive(&socket).len(), 32);
}

#[test]
fn a_port_that_is_taken_is_said_at_the_start() {
    let port = free_udp_port();
    let _taken = std::net::UdpSocket::bind(("127.0.0.1", port)).unwrap();
    let output = run(&["rendezvous", &format!("--listen-addr=127.0.0.1:{port}")]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("cannot bind udp 127.0.0.1:{port}: ")), "{said}");
    assert_eq!(run(&["rendezvous", "--max-members=1"]).status.code(), Some(2));
}

#[test]
fn metrics_are_there_from_the_start() {
    let server = Server::start(&[]);
    for name in ["rooms", "members", "plain_waiting", "introductions_pending"] {
        assert_eq!(server.metric(name), 0);
    }
    assert_eq!(server.dropped("malformed"), 0);
}
