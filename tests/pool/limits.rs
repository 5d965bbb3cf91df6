//! Timeouts and limits, each with what happens when it is reached.

use crate::pair::{Endpoint, Pki, Protection, Raw, Side, new_session, payload, words};
use crate::support::kernel::{limit_descriptors, raise_own_descriptor_limit};
use crate::support::{Echo, await_some, free_port};
use std::io::Write;
use std::net::UdpSocket;

const PLAIN: &str = "--no-tls";
const REFUSED: &str = "connection_failures_total{reason=\"limit\"}";
const TO_UDP: &str = "datagrams_total{direction=\"to-udp\"}";
const TIMED_OUT: &str = "connection_failures_total{reason=\"timeout\"}";

#[test]
fn an_endpoint_that_falls_silent_loses_its_session_and_gets_another() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN, "--session-grace=0.1"]);
    let client = Side::client(server.address, &[PLAIN, "-e", "0.3"]);
    let endpoint = Endpoint::to(client.address);
    for opened in 1..3 {
        endpoint.echo(b"speaks");
        assert_eq!(client.metric("sessions_opened_total"), opened);
        for side in [&client, &server] {
            side.await_metric("sessions", 0);
            side.await_metric("connections", 0);
        }
    }
    client.service.await_log("was silent");
}

#[test]
fn traffic_keeps_a_session() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN]);
    let client = Side::client(server.address, &[PLAIN, "--expire=0.4"]);
    let (idle, busy) = (Endpoint::to(client.address), Endpoint::to(client.address));
    idle.echo(b"once");
    busy.echo(b"often");
    // Longer than the expiry: until the idle one has gone.
    while client.metric("sessions") == 2 {
        busy.echo(b"often");
    }
    assert_eq!(client.metric("sessions_opened_total"), 2);
    busy.echo(b"often");
    assert_eq!(client.metric("sessions_opened_total"), 2);
}

#[test]
fn an_endpoint_whose_server_only_hangs_up_expires_as_well() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let hangs_up = std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut first = [0; 1];
            // The test itself says "x", a client the first byte of its session id.
            if std::io::Read::read(&mut stream, &mut first).is_ok() && &first == b"x" {
                let mut second = [0; 1];
                if matches!(std::io::Read::read(&mut stream, &mut second), Ok(0)) {
                    return;
                }
            }
        }
    });
    let client = Side::client(address, &[PLAIN, "--expire=0.5", "--backoff=0.05", "--pool-size=4"]);
    Endpoint::to(client.address).send(b"hello");
    client.await_metric("sessions", 1);
    client.await_metric("sessions", 0);
    assert!(client.metric("connections_up_total") > 4, "it has come again in between");
    drop(client);
    let mut stop = std::net::TcpStream::connect(address).unwrap();
    stop.write_all(b"x").unwrap();
    drop(stop);
    hangs_up.join().unwrap();
}

#[test]
fn the_server_closes_a_session_that_is_silent_both_ways() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN, "--session-timeout=2"]);
    let session = new_session();
    let mut first = Raw::join(server.address, session);
    // Before the second one: an answer may come over any of a session's connections.
    first.echo(b"hello");
    for raw in &mut [first, Raw::join(server.address, session)] {
        assert!(raw.is_closed());
    }
    server.await_metric("sessions", 0);
    server.await_metric("connections", 0);
    server.service.await_log("closed (Silent)");
}

#[test]
fn neither_joins_nor_pieces_of_a_frame_keep_a_silent_session() {
    let echo = Echo::start();
    let args = [PLAIN, "--session-timeout=1", "--max-connections-per-session=1000"];
    let server = Side::server(echo.address, &args);
    let session = new_session();
    let mut raws = vec![Raw::join(server.address, session)];
    // A datagram of 65,280 bytes, which never becomes whole.
    raws[0].stream.write_all(&[255, 0]).unwrap();
    let closed = await_some(|| {
        if raws.len() < 500 {
            raws.push(Raw::join(server.address, session));
        }
        // In the end nobody takes it any more.
        let _ = raws[0].stream.write_all(&[7]);
        server.service.log().contains("closed (Silent)").then_some(())
    });
    assert!(closed.is_some(), "{} connections keep it", raws.len());
}

#[test]
fn within_the_grace_a_session_keeps_its_source_port() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN, "--session-grace=60"]);
    let session = new_session();
    let mut raw = Raw::join(server.address, session);
    raw.echo(b"before");
    let source = echo.source();
    drop(raw);
    server.await_metric("connections", 0);
    let mut raw = Raw::join(server.address, session);
    raw.echo(b"after");
    assert_eq!(echo.source(), source);
    assert_eq!(server.metric("sessions_opened_total"), 1);
    assert_eq!(server.metric("reconnects_total"), 1);
}

#[test]
fn after_the_grace_a_session_is_gone() {
    let echo = Echo::start();
    for grace in ["0.2", "0"] {
        let server = Side::server(echo.address, &[PLAIN, "--session-grace", grace]);
        let session = new_session();
        let mut raw = Raw::join(server.address, session);
        raw.echo(b"before");
        let source = echo.source();
        drop(raw);
        server.await_metric("sessions", 0);
        server.service.await_log("closed (Deserted)");
        // Taken: the next socket must have another port.
        let _taken = UdpSocket::bind(("0.0.0.0", source.port())).unwrap();
        let mut raw = Raw::join(server.address, session);
        raw.echo(b"after");
        assert_ne!(echo.source(), source);
    }
}

#[test]
fn a_session_that_falls_silent_in_its_grace_ends_as_silent() {
    let echo = Echo::start();
    let args = [PLAIN, "--session-timeout=0.5", "--session-grace=600"];
    let server = Side::server(echo.address, &args);
    Raw::join(server.address, new_session()).echo(b"hello");
    server.await_metric("sessions", 0);
    server.service.await_log("closed (Silent)");
}

#[test]
fn connections_without_session_ids_leave_no_session_behind() {
    let echo = Echo::start();
    let server = Side::server(
        echo.address,
        &[PLAIN, "--framing=mullvad", "--max-sessions=2", "--session-grace=600"],
    );
    for _ in 0..5 {
        let mut raw = Raw::connect(server.address);
        raw.echo(b"hello");
        drop(raw);
        server.await_metric("sessions", 0);
    }
}

#[test]
fn connections_over_the_limit_are_closed_at_once() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN, "--max-connections=2"]);
    let mut first = Raw::join(server.address, new_session());
    first.echo(b"first");
    let mut second = Raw::join(server.address, new_session());
    second.echo(b"second");
    assert!(Raw::connect(server.address).is_closed());
    server.await_metric(REFUSED, 1);
    server.service.await_log("--max-connections 2 are open");
    first.echo(b"unhurt");
    drop(second);
    server.await_metric("connections", 1);
    let mut third = Raw::join(server.address, new_session());
    third.echo(b"third");
}

#[test]
fn sessions_over_the_limit_are_refused() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN, "--max-sessions=1", "--session-grace=0.1"]);
    let session = new_session();
    let mut first = Raw::join(server.address, session);
    first.echo(b"first");
    assert!(Raw::join(server.address, new_session()).is_closed());
    server.await_metric(REFUSED, 1);
    server.service.await_log("--max-sessions 1 are open");
    let same = Raw::join(server.address, session);
    server.await_metric("connections", 2);
    drop((first, same));
    server.await_metric("sessions", 0);
    Raw::join(server.address, new_session()).echo(b"another");
}

#[test]
fn at_the_limit_sessions_without_connections_go_first() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN, "--max-sessions=2", "--session-grace=600"]);
    let mut used = Raw::join(server.address, new_session());
    used.echo(b"used");
    for _ in 0..5 {
        let mut raw = Raw::join(server.address, new_session());
        raw.echo(b"in the place of one in its grace");
        drop(raw);
        server.await_metric("connections", 1);
    }
    server.await_metric("sessions", 2);
    used.echo(b"unhurt");
    assert_eq!(server.metric(REFUSED), 0);
}

#[test]
fn at_the_limit_the_oldest_session_that_never_carried_anything_goes() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN, "--max-sessions=3"]);
    let mut used = Raw::join(server.address, new_session());
    used.echo(b"used");
    let mut silent: Vec<_> = (2..4)
        .map(|count| {
            let raw = Raw::join(server.address, new_session());
            server.await_metric("sessions", count);
            raw
        })
        .collect();
    let mut newcomer = Raw::join(server.address, new_session());
    newcomer.echo(b"there is room");
    assert!(silent.remove(0).is_closed());
    for raw in [&mut used, &mut newcomer, &mut silent[0]] {
        raw.echo(b"unhurt");
    }
    assert!(Raw::join(server.address, new_session()).is_closed(), "all are in use");
    server.await_metric("sessions", 3);
}

#[test]
fn at_the_limit_connections_of_a_session_that_never_carried_anything_go() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN, "--max-connections=4"]);
    let mut used = Raw::join(server.address, new_session());
    used.echo(b"used");
    let session = new_session();
    let mut silent = [0; 3].map(|_| Raw::join(server.address, session));
    server.await_metric("connections", 4);
    Raw::join(server.address, new_session()).echo(b"there is room");
    for raw in &mut silent {
        assert!(raw.is_closed());
    }
    used.echo(b"unhurt");
}

#[test]
fn where_descriptors_run_out_sooner_sessions_that_never_carried_anything_go_too() {
    let echo = Echo::start();
    let port = echo.address.port().to_string();
    let args = ["pool", "server", "-p0", PLAIN, "127.0.0.1", &port];
    // Of these 64 are its own: for 16 connections and sessions, two of which stay free.
    let server = Side::start(&args, "listening on tcp ", |command| limit_descriptors(command, 128));
    let mut used = Raw::join(server.address, new_session());
    used.echo(b"used");
    let mut silent = Vec::new();
    // One after the other, so that the first one is the oldest.
    for count in 1..4 {
        let session = new_session();
        silent.extend([0; 3].map(|_| Raw::join(server.address, session)));
        server.await_metric("connections", 1 + 3 * count);
        server.await_metric("sessions", 1 + count);
    }
    let mut newcomer = Raw::join(server.address, new_session());
    newcomer.echo(b"there is room");
    for raw in &mut silent[..3] {
        assert!(raw.is_closed());
    }
    for raw in &mut silent[3..] {
        raw.send(b"in use");
    }
    server.await_metric(TO_UDP, 2 + 6);
    let mut last = Raw::join(server.address, new_session());
    last.echo(b"the last place");
    // All are in use now: whoever comes is told at once.
    server.await_metric("connections", 9);
    assert!(Raw::connect(server.address).is_closed());
    server.service.await_log("descriptors allow no more");
    server.await_metric(REFUSED, 1);
    for raw in [&mut used, &mut newcomer, &mut last] {
        raw.echo(b"unhurt");
    }
    drop(last);
    server.await_metric("connections", 8);
    Raw::join(server.address, new_session()).echo(b"in its place");
}

#[test]
fn half_open_connections_are_limited_and_the_oldest_go() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN, "--max-handshakes=5"]);
    let mut raws: Vec<_> = (0..20).map(|_| Raw::connect(server.address)).collect();
    server.await_metric(REFUSED, 15);
    Raw::join(server.address, new_session()).echo(b"there is room");
    for raw in &mut raws[..16] {
        assert!(raw.is_closed());
    }
    raws[19].stream.write_all(&new_session().bytes()).unwrap();
    raws[19].echo(b"in time");
    server.service.await_log("--max-handshakes");
}

#[test]
fn without_session_ids_too_a_connection_must_say_something_in_time() {
    let echo = Echo::start();
    let args = [PLAIN, "--framing=mullvad", "--handshake-timeout=0.3"];
    let server = Side::server(echo.address, &args);
    assert!(Raw::connect(server.address).is_closed());
    server.await_metric("connection_failures_total{reason=\"timeout\"}", 1);
    assert_eq!(server.metric("sessions_opened_total"), 0);
    Raw::connect(server.address).echo(b"hello");
}

#[test]
fn connections_of_one_session_are_limited() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN, "--max-connections-per-session=2"]);
    let session = new_session();
    let mut raws = [Raw::join(server.address, session), Raw::join(server.address, session)];
    server.await_metric("connections", 2);
    assert!(Raw::join(server.address, session).is_closed());
    server.service.await_log("--max-connections-per-session 2");
    server.await_metric(REFUSED, 1);
    Raw::join(server.address, new_session()).echo(b"another session");
    raws[0].send(b"unhurt");
    drop(raws);
}

#[test]
fn endpoints_over_the_limit_get_nothing() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN]);
    let client = Side::client(server.address, &[PLAIN, "--max-sessions=1"]);
    let (first, second) = (Endpoint::to(client.address), Endpoint::to(client.address));
    first.echo(b"first");
    second.send(b"second");
    client.await_metric("datagrams_dropped_total{reason=\"session-limit\"}", 1);
    client.service.await_log("--max-sessions 1 are open");
    first.echo(b"unhurt");
}

#[test]
fn a_client_shares_its_descriptors_among_sessions_and_refuses_the_rest() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN]);
    let port = server.address.port().to_string();
    // Of these 64 are its own, and a connection has four.
    let args = ["pool", "client", "-p0", PLAIN, "-n2", "-e2", "-B0.1", "127.0.0.1", &port];
    let client = Side::start(&args, "listening on udp ", |command| limit_descriptors(command, 76));
    let endpoints = [(); 3].map(|()| Endpoint::to(client.address));
    endpoints[0].echo(b"two connections");
    endpoints[1].echo(b"one connection");
    endpoints[2].send(b"none");
    client.await_metric("datagrams_dropped_total{reason=\"session-limit\"}", 1);
    client.await_metric("connections", 3);
    client.service.await_log("only 1 connections: no descriptors for more connections");
    client.service.await_log("no session for ");
    // The others fall silent, and leave theirs.
    client.await_metric("sessions", 0);
    client.await_metric("connections", 0);
    endpoints[2].echo_at_last(b"at last");
}

/// Half-open connections of a flood, a thread each on the server.
const FLOOD: u16 = 1000;

/// 1000 connections that say 3 bytes and no more, beside a session that must not notice. There is
/// room for so many of them below `--max-connections`, and each may cost the server `kib_each`.
fn flood(protection: Protection, room: u16, kib_each: u64) {
    raise_own_descriptor_limit();
    let everybody_fits = room == FLOOD;
    let (echo, pki) = (Echo::start(), Pki::new());
    // Of 8 connections each: a session from before and, if everybody fits, one that comes meanwhile.
    let connections_max = room + if everybody_fits { 16 } else { 8 };
    let mut args = protection.server(&pki);
    args.push("--handshake-timeout=5".to_owned());
    args.push(format!("--max-connections={connections_max}"));
    // More than come: this is about the limit of connections.
    args.push("--max-handshakes=2000".to_owned());
    let server = Side::server(echo.address, &words(&args));
    let client = Side::client(server.address, &words(&protection.client(&pki)));
    let legitimate = Endpoint::to(client.address);
    legitimate.echo(b"before");
    for side in [&server, &client] {
        side.await_metric("connections", 8);
    }
    let (threads, memory) = (server.service.status("Threads"), server.service.status("VmRSS"));
    let mut half_open: Vec<_> = (0..FLOOD)
        .map(|number| {
            let mut raw = Raw::connect(server.address);
            // One over the limit may have been closed by now.
            let _ = raw.stream.write_all(&[1, 2, 3]);
            if number % 10 == 0 {
                legitimate.echo(&payload(1200, number.into()));
            }
            raw
        })
        .collect();
    server.await_metric(REFUSED, (FLOOD - room).into());
    let held = await_some(|| {
        (server.service.status("Threads") == threads + u64::from(room)).then_some(())
    });
    assert!(held.is_some(), "{threads} became {} threads", server.service.status("Threads"));
    let grown = server.service.status("VmRSS").saturating_sub(memory);
    assert!(grown <= u64::from(room) * kib_each, "{room} connections cost {grown} KiB");
    legitimate.echo(b"meanwhile");
    if everybody_fits {
        Endpoint::to(client.address).echo(b"a new one, meanwhile");
    }
    assert_eq!(server.metric(TIMED_OUT), 0, "all of them are still open");
    // A byte now and then does not buy time.
    let _ = half_open[0].stream.write_all(&[4]);
    for raw in &mut half_open {
        assert!(raw.is_closed());
    }
    server.await_metric(TIMED_OUT, room.into());
    assert_eq!(server.metric(REFUSED), i64::from(FLOOD - room));
    legitimate.echo(b"after");
    Endpoint::to(client.address).echo(b"a new one, after");
    let connections = if everybody_fits { 24 } else { 16 };
    for side in [&server, &client] {
        side.await_metric("connections", connections);
        assert_eq!(side.metric("connections_up_total"), connections, "none was lost");
    }
}

#[test]
fn a_flood_of_half_open_connections_ends_in_time_and_hurts_nobody() {
    // Measured: 12, the first pages of a stack.
    flood(Protection::Plain, FLOOD, 24);
}

#[test]
fn a_flood_of_half_open_tls_handshakes_ends_in_time_and_hurts_nobody() {
    // Measured: 57, OpenSSL's buffers.
    flood(Protection::Tls, FLOOD, 96);
}

#[test]
fn a_flood_over_the_limit_takes_no_more_than_the_limit() {
    flood(Protection::Tls, 300, 96);
}

#[test]
fn an_attempt_to_connect_ends_in_time() {
    // Takes connections, and answers no handshake.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Side::client(
        listener.local_addr().unwrap(),
        &["--timeout=0.2", "--backoff=0.1", "--pool-size=1"],
    );
    Endpoint::to(client.address).send(b"hello");
    client.await_at_least("connection_failures_total{reason=\"timeout\"}", 2);
    client.service.await_log("no answer in time");
}

#[test]
fn what_still_waits_when_its_session_expires_is_counted() {
    // Nobody listens.
    let server = ([127, 0, 0, 1], free_port()).into();
    let client = Side::client(server, &[PLAIN, "--expire=0.2", "--backoff=9", "--pool-size=1"]);
    Endpoint::to(client.address).send(b"hello");
    client.await_metric("sessions_opened_total", 1);
    client.await_metric("sessions", 0);
    assert_eq!(client.metric("datagrams_dropped_total{reason=\"not-connected\"}"), 1);
}

#[test]
fn every_address_of_a_name_is_tried_and_told_of() {
    let port = free_port();
    let args = [PLAIN, "--backoff=0.1", "--pool-size=1"];
    let client = Side::client_on("127.0.0.1", "localhost", port, &args);
    Endpoint::to(client.address).send(b"hello");
    let line = client.service.await_log("uplink to localhost");
    for address in std::net::ToSocketAddrs::to_socket_addrs(&("localhost", port)).unwrap() {
        assert!(line.contains(&format!("{address}: Connection refused")), "{line}");
    }
    assert_eq!(line.matches("Connection refused").count(), line.matches("; ").count());
}

#[test]
fn a_name_that_nobody_knows_is_asked_for_again() {
    let client = Side::client_on(
        "127.0.0.1",
        "no-such-host.invalid",
        free_port(),
        &[PLAIN, "--backoff=0.1", "--pool-size=1"],
    );
    Endpoint::to(client.address).send(b"hello");
    client.await_at_least("connection_failures_total{reason=\"lookup\"}", 2);
    client.service.await_log("cannot resolve no-such-host.invalid");
}
