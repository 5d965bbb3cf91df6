//! Peers that go away, stand still, do not read, or come back.

use crate::pair::{Endpoint, Pki, Protection, Raw, Side, new_session, payload, words};
use crate::support::kernel::{go_on, pause};
use crate::support::{Echo, PATIENCE, await_some, free_port, receive_from, remote};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PLAIN: &str = "--no-tls";

/// A side must not have grown by more than this, in KiB, by what others do to it.
const GROWTH_MAX: u64 = 24 * 1024;

#[test]
fn sessions_live_through_a_restart_of_the_server() {
    let (echo, pki) = (Echo::start(), Pki::new());
    let port = free_port();
    let args = Protection::Tls.server(&pki);
    let start =
        || Side::server_on("127.0.0.1", port, "127.0.0.1", echo.address.port(), &words(&args));
    let mut server = start();
    let args = [Protection::Tls.client(&pki), vec!["--backoff=0.1".to_owned()]].concat();
    let client = Side::client(server.address, &words(&args));
    let endpoints: Vec<Endpoint> = (0..3).map(|_| Endpoint::to(client.address)).collect();
    for endpoint in &endpoints {
        endpoint.echo(b"before");
    }
    for round in 0..2 {
        if round == 0 {
            server.service.signal(Signal::SIGKILL);
            drop(server);
        } else {
            assert!(server.stop().0.success());
        }
        client.await_metric("connections", 0);
        server = start();
        for endpoint in &endpoints {
            endpoint.echo_at_last(b"after");
        }
        client.await_metric("connections", 24);
    }
    assert_eq!(client.metric("sessions_opened_total"), 3);
    assert_eq!(server.metric("sessions"), 3);
}

#[test]
fn a_server_that_hangs_up_at_once_is_not_asked_in_a_loop() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let client =
        Side::client(listener.local_addr().unwrap(), &[PLAIN, "--backoff=1", "--pool-size=2"]);
    let endpoint = Endpoint::to(client.address);
    endpoint.send(b"hello");
    let end = Instant::now() + Duration::from_secs(2);
    let mut connections = 0;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(left).unwrap();
        if left.is_zero() || poll(&mut fds, timeout).unwrap() == 0 {
            break;
        }
        if let Ok((stream, _)) = listener.accept() {
            drop(stream);
            connections += 1;
        }
    }
    // Each of the two at once and after 0.8 to 1.2 s, and at the most once more.
    assert!((4..=6).contains(&connections), "{connections} connections in 2 s");
}

#[test]
fn datagrams_that_wait_cut_a_long_backoff_short() {
    // Nobody listens.
    let server = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let client = Side::client(server, &[PLAIN, "--backoff=0.5", "--pool-size=1"]);
    let endpoint = Endpoint::to(client.address);
    endpoint.socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let begin = Instant::now();
    let failed = await_some(|| {
        endpoint.send(b"hello");
        let _ = endpoint.try_receive();
        (client.metric("connection_failures_total{reason=\"connect\"}") >= 5).then_some(())
    });
    assert!(failed.is_some());
    let took = begin.elapsed();
    // Without a need: 0.5, 1, 2 and 3 s, a fifth less at the least.
    assert!((Duration::from_millis(1600)..Duration::from_millis(4500)).contains(&took), "{took:?}");
}

#[test]
fn the_first_attempt_after_a_loss_comes_soon_and_the_second_within_the_grace() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let args = [PLAIN, "--backoff=2", "--pool-size=1"];
    let client = Side::client(listener.local_addr().unwrap(), &args);
    let endpoint = Endpoint::to(client.address);
    endpoint.send(b"hello");
    let mut raw = Raw::over(listener.accept().unwrap().0);
    raw.read_session();
    raw.send(b"answer");
    assert_eq!(endpoint.receive(), b"answer");
    let lost = Instant::now();
    drop(raw);
    // The free attempt, which ends at once; and the next one.
    drop(listener.accept().unwrap());
    let free = lost.elapsed();
    let _second = listener.accept().unwrap();
    let second = lost.elapsed();
    assert!(free < Duration::from_millis(1200), "{free:?}");
    client.await_metric("reconnects_total", 2);
    let expected = Duration::from_millis(1700)..Duration::from_millis(3700);
    assert!(expected.contains(&second), "{free:?}, {second:?}");
}

#[test]
fn a_client_that_is_killed_leaves_nothing_on_the_server() {
    let (echo, pki) = (Echo::start(), Pki::new());
    let args = [Protection::Tls.server(&pki), vec!["--session-grace=0.2".to_owned()]].concat();
    let server = Side::server(echo.address, &words(&args));
    let client = Side::client(server.address, &words(&Protection::Tls.client(&pki)));
    let endpoint = Endpoint::to(client.address);
    endpoint.echo(b"before");
    server.await_metric("connections", 8);
    let (threads, descriptors) = {
        let idle = Side::server(echo.address, &words(&args));
        (idle.service.status("Threads"), idle.service.descriptors())
    };
    client.service.signal(Signal::SIGKILL);
    server.await_metric("connections", 0);
    server.await_metric("sessions", 0);
    let gone = await_some(|| {
        // Fewer are fine: the other one may just have been telling its status.
        (server.service.status("Threads") <= threads && server.service.descriptors() <= descriptors)
            .then_some(())
    });
    assert!(
        gone.is_some(),
        "{} threads for {threads}, {} descriptors for {descriptors} are left",
        server.service.status("Threads"),
        server.service.descriptors(),
    );
}

/// Sends without end, at the pace of whoever answers or 1 ms, until told to stop.
fn pump(address: SocketAddr, stop: &AtomicBool) {
    let endpoint = Endpoint::to(address);
    endpoint.socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let datagram = payload(1200, 1);
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..8 {
            // Nobody may be there any more.
            let _ = endpoint.socket.send(&datagram);
        }
        let _ = endpoint.try_receive();
    }
}

/// Stops one of two processes for 5 s under load, and looks at the memory of both.
fn stand_still(stands: impl Fn(&Side, &Side) -> i32) {
    let (echo, pki) = (Echo::start(), Pki::new());
    let server = Side::server(echo.address, &words(&Protection::Tls.server(&pki)));
    let client = Side::client(server.address, &words(&Protection::Tls.client(&pki)));
    let endpoint = Endpoint::to(client.address);
    endpoint.echo(b"before");
    let stop = AtomicBool::new(false);
    let pid = stands(&server, &client);
    std::thread::scope(|scope| {
        let pumps: Vec<_> = (0..2).map(|_| scope.spawn(|| pump(client.address, &stop))).collect();
        client.await_at_least("datagrams_total{direction=\"to-udp\"}", 1000);
        // What is still being set up is not lost: it is tried again.
        for side in [&server, &client] {
            side.await_metric("connections", 8 * 3);
        }
        let before = [&server, &client].map(|side| side.service.status("VmRSS"));
        pause(pid);
        // The load goes on; nothing tells when 5 s of it are over but the clock.
        poll(&mut [], PollTimeout::from(5000u16)).unwrap();
        let during = [&server, &client].map(|side| side.service.status("VmRSS"));
        go_on(pid);
        for (before, during) in before.into_iter().zip(during) {
            assert!(during <= before + GROWTH_MAX, "{before} KiB became {during} KiB");
        }
        stop.store(true, Ordering::Relaxed);
        for pump in pumps {
            pump.join().unwrap();
        }
    });
    endpoint.echo_at_last(b"after");
    for side in [&server, &client] {
        assert_eq!(side.metric("connections_up_total"), 8 * 3, "no connection was lost");
    }
}

#[test]
fn a_server_that_stands_still_is_waited_for_without_growing() {
    stand_still(|server, _| server.service.pid());
}

#[test]
fn a_client_that_stands_still_is_waited_for_without_growing() {
    stand_still(|_, client| client.service.pid());
}

#[test]
fn a_connection_that_nobody_reads_costs_bounded_memory_and_hurts_nobody() {
    let (target, target_address) = remote();
    let server = Side::server(target_address, &[PLAIN]);
    let mut slow = Raw::join(server.address, new_session());
    slow.send(b"hello");
    let (_, slow_source) = receive_from(&target);
    let mut quick = Raw::join(server.address, new_session());
    quick.send(b"hello");
    let (_, quick_source) = receive_from(&target);
    let before = server.service.status("VmRSS");
    let dropped = "datagrams_dropped_total{reason=\"queues-full\"}";
    let datagram = payload(1200, 3);
    // 20 MB and more, until a queue has overflowed.
    let overflowed = await_some(|| {
        for _ in 0..20 {
            for _ in 0..50 {
                target.send_to(&datagram, slow_source).unwrap();
            }
            target.send_to(b"in between", quick_source).unwrap();
            assert_eq!(quick.receive(), b"in between");
        }
        (server.metric(dropped) > 0).then_some(())
    });
    assert!(overflowed.is_some(), "something holds all of it");
    let after = server.service.status("VmRSS");
    assert!(after <= before + GROWTH_MAX, "{before} KiB became {after} KiB");
    // It reads again: whole datagrams come, and new ones too.
    for _ in 0..100 {
        assert!(slow.receive() == datagram);
    }
    slow.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    slow.send(b"still here");
    assert_eq!(receive_from(&target).0, b"still here");
}

#[test]
fn large_datagrams_that_nobody_reads_cost_bounded_memory_too() {
    let (target, target_address) = remote();
    let server = Side::server(target_address, &[PLAIN, "--queue=65535"]);
    let mut slow = Raw::join(server.address, new_session());
    slow.send(b"hello");
    let (_, source) = receive_from(&target);
    let datagram = payload(60_000, 3);
    let mut most = 0;
    let full = await_some(|| {
        for _ in 0..50 {
            target.send_to(&datagram, source).unwrap();
        }
        most = most.max(server.metric("unsent_bytes"));
        (server.metric("datagrams_dropped_total{reason=\"queues-full\"}") > 100).then_some(())
    });
    assert!(full.is_some(), "something holds all of it");
    assert!((900_000..1_300_000).contains(&most), "{most} bytes wait");
}

const STALE: &str = "datagrams_dropped_total{reason=\"stale\"}";

#[test]
fn what_has_waited_too_long_for_a_connection_is_dropped() {
    let (target, target_address) = remote();
    let port = free_port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let client = Side::client(address, &[PLAIN, "--backoff=0.3", "--pool-size=1"]);
    let endpoint = Endpoint::to(client.address);
    endpoint.send(b"stale");
    // At once, and after 0.3, 0.6 and 1.2 s or a fifth less.
    client.await_at_least("connection_failures_total{reason=\"connect\"}", 4);
    let _server = Side::server_on("127.0.0.1", port, "127.0.0.1", target_address.port(), &[PLAIN]);
    endpoint.send(b"fresh");
    assert_eq!(receive_from(&target).0, b"fresh");
    assert_eq!(client.metric(STALE), 1);
}

#[test]
fn what_has_waited_too_long_in_a_queue_is_dropped() {
    let (target, target_address) = remote();
    let server = Side::server(target_address, &[PLAIN]);
    let mut slow = Raw::join(server.address, new_session());
    slow.send(b"hello");
    let (_, source) = receive_from(&target);
    let datagram = payload(1200, 3);
    let mut written = 0;
    let full = await_some(|| {
        let before = written;
        for _ in 0..1000 {
            target.send_to(&datagram, source).unwrap();
        }
        written = server.metric("datagrams_total{direction=\"to-stream\"}");
        // A burst fills the queue too, but then the stream goes on.
        (written == before && server.metric("unsent_bytes") > 0).then_some(())
    });
    assert!(full.is_some(), "something holds all of it");
    assert_eq!(server.metric(STALE), 0);
    poll(&mut [], PollTimeout::from(1100u16)).unwrap();
    let dropped = await_some(|| {
        for _ in 0..100 {
            // Only a full queue refuses it: there is always something to come.
            target.send_to(b"fresh", source).unwrap();
            let came = slow.receive();
            assert!(came == datagram || came == b"fresh");
        }
        (server.metric(STALE) > 0).then_some(())
    });
    assert!(dropped.is_some(), "the queue is as it was");
    server.await_metric("unsent_bytes", 0);
    target.send_to(b"last", source).unwrap();
    while slow.receive() != b"last" {}
}

#[test]
fn a_connection_that_is_reset_loses_its_datagrams_and_no_others() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN]);
    let session = new_session();
    let mut stays = Raw::join(server.address, session);
    stays.echo(b"before");
    let goes = Raw::join(server.address, session);
    server.await_metric("connections", 2);
    socket2::SockRef::from(&goes.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(goes);
    server.await_metric("connections", 1);
    for number in 0..20 {
        stays.echo(&payload(100, number));
    }
    assert_eq!(server.metric("connections_down_total{reason=\"failed\"}"), 1);
}

#[test]
fn half_a_frame_at_the_end_is_dropped() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN]);
    let mut raw = Raw::join(server.address, new_session());
    raw.echo(b"whole");
    std::io::Write::write_all(&mut raw.stream, &[0, 9, 1, 2, 3]).unwrap();
    raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    raw.stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    server.await_metric("connections", 0);
    assert_eq!(server.metric("datagrams_total{direction=\"to-udp\"}"), 1);
}

/// The server reads the session id, hears of the end with it, and must still see that end.
#[test]
fn a_connection_that_says_everything_at_once_and_ends_leaves_nothing_behind() {
    let echo = Echo::start();
    for framing in ["pool", "mullvad"] {
        let args = [PLAIN, "--session-grace=0", "--framing", framing];
        let server = Side::server(echo.address, &args);
        let mut raws: Vec<_> = (0..20)
            .map(|_| {
                let mut raw = Raw::connect(server.address);
                let mut all = new_session().bytes().to_vec();
                if framing == "mullvad" {
                    all.clear();
                }
                all.extend([0, 2, b'h', b'i']);
                std::io::Write::write_all(&mut raw.stream, &all).unwrap();
                raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
                raw
            })
            .collect();
        for raw in &mut raws {
            assert!(raw.is_closed(), "{framing}: the server never sees the end");
        }
        server.await_metric("datagrams_total{direction=\"to-udp\"}", 20);
        server.await_metric("connections", 0);
        server.await_metric("sessions", 0);
    }
}

#[test]
fn a_target_that_is_not_there_closes_no_session() {
    // A port that was free a moment ago.
    let (gone, target) = remote();
    drop(gone);
    let server = Side::server(target, &[PLAIN]);
    let mut raw = Raw::join(server.address, new_session());
    let refused = await_some(|| {
        raw.send(b"anybody?");
        (server.metric("icmp_errors_total") > 0).then_some(())
    });
    assert!(refused.is_some(), "no ICMP error is seen");
    let echo = Echo::on(&target.to_string());
    raw.stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    raw.send(b"now?");
    raw.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(!raw.receive().is_empty());
    drop(echo);
    assert_eq!(server.metric("sessions_opened_total"), 1);
}

#[test]
fn both_sides_stop_at_once_under_load() {
    for stops_first in ["client", "server"] {
        let (echo, pki) = (Echo::start(), Pki::new());
        let server = Side::server(echo.address, &words(&Protection::Tls.server(&pki)));
        let client = Side::client(server.address, &words(&Protection::Tls.client(&pki)));
        let stop = AtomicBool::new(false);
        let address = client.address;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| pump(address, &stop));
            }
            client.await_at_least("datagrams_total{direction=\"to-udp\"}", 2000);
            let mut sides = vec![server, client];
            if stops_first == "client" {
                sides.reverse();
            }
            for side in sides {
                let (status, took) = side.stop();
                assert!(status.success(), "{status}");
                assert!(took < Duration::from_millis(250), "{stops_first} first: {took:?}");
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
