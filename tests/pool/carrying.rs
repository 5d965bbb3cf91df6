//! Datagrams in, datagrams out.

use crate::pair::{Endpoint, Pki, Protection, Raw, SIZES, Side, new_session, payload, words};
use crate::support::{Echo, PATIENCE, free_port, receive_from, remote, remote_on};
use std::collections::HashSet;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::time::Duration;

const PLAIN: &str = "--no-tls";

#[test]
fn datagrams_of_every_size_come_back_however_they_are_protected() {
    let pki = Pki::new();
    let echo = Echo::start();
    for protection in Protection::ALL {
        let server = Side::server(echo.address, &words(&protection.server(&pki)));
        let client = Side::client(server.address, &words(&protection.client(&pki)));
        let endpoint = Endpoint::to(client.address);
        for (seed, len) in SIZES.into_iter().enumerate() {
            endpoint.echo(&payload(len, seed));
        }
        for side in [&server, &client] {
            side.await_metric("datagrams_total{direction=\"to-udp\"}", 6);
            side.await_metric("datagrams_total{direction=\"to-stream\"}", 6);
        }
    }
}

#[test]
fn a_client_on_a_wildcard_address_answers_from_the_address_that_was_asked() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN]);
    let server_host = server.address.ip().to_string();
    let client = Side::client_on("0.0.0.0", &server_host, server.address.port(), &[PLAIN]);
    let (socket, _) = remote_on("0.0.0.0:0");
    // One endpoint that asks two of the host's addresses, and neither is the kernel's choice.
    for host in ["127.0.0.2", "127.0.0.3", "127.0.0.2"] {
        let to = (host, client.address.port()).to_socket_addrs().unwrap().next().unwrap();
        socket.send_to(host.as_bytes(), to).unwrap();
        let (answer, from) = receive_from(&socket);
        assert_eq!((answer.as_slice(), from), (host.as_bytes(), to));
    }
    assert_eq!(client.metric("sessions"), 2);
    let client = Side::client_on("::", &server_host, server.address.port(), &[PLAIN]);
    let to = SocketAddr::from((Ipv6Addr::LOCALHOST, client.address.port()));
    Endpoint::to(to).echo(b"IPv6 too");
}

/// Sends 40 datagrams from each of 8 endpoints, 4 of each under way, and checks every answer.
fn eight_endpoints(protection: Protection) {
    let pki = Pki::new();
    let echo = Echo::start();
    let server = Side::server(echo.address, &words(&protection.server(&pki)));
    let client = Side::client(server.address, &words(&protection.client(&pki)));
    std::thread::scope(|scope| {
        for number in 0..8 {
            let address = client.address;
            scope.spawn(move || {
                let endpoint = Endpoint::to(address);
                for round in 0..10 {
                    let sent: HashSet<Vec<u8>> = (0..4)
                        .map(|place| payload(300 * (place + 1), 1000 * number + 10 * round + place))
                        .collect();
                    for datagram in &sent {
                        endpoint.send(datagram);
                    }
                    let came: HashSet<Vec<u8>> = (0..4).map(|_| endpoint.receive()).collect();
                    assert!(came == sent, "endpoint {number}, round {round}");
                }
            });
        }
    });
    let sources: HashSet<_> = (0..320).map(|_| echo.source()).collect();
    assert_eq!(sources.len(), 8, "each endpoint has a source port of its own");
    assert_eq!(server.metric("sessions"), 8);
    assert_eq!(client.metric("sessions"), 8);
    client.await_metric("connections", 64);
}

#[test]
fn eight_endpoints_at_once_over_tls() {
    eight_endpoints(Protection::Tls);
}

#[test]
fn eight_endpoints_at_once_over_tcp() {
    eight_endpoints(Protection::Plain);
}

#[test]
fn two_hundred_endpoints_at_once() {
    crate::support::kernel::raise_own_descriptor_limit();
    let pki = Pki::new();
    let echo = Echo::start();
    let server = Side::server(echo.address, &words(&Protection::Tls.server(&pki)));
    let mut args = Protection::Tls.client(&pki);
    args.push("--pool-size=2".to_owned());
    let client = Side::client(server.address, &words(&args));
    let endpoints: Vec<Endpoint> = (0..200).map(|_| Endpoint::to(client.address)).collect();
    for round in 0..3 {
        // In groups: what arrives at the target together must fit its receive buffer.
        for group in endpoints.chunks(50) {
            for (number, endpoint) in group.iter().enumerate() {
                endpoint.send(&payload(200, 50 * round + number));
            }
            for (number, endpoint) in group.iter().enumerate() {
                assert!(endpoint.receive() == payload(200, 50 * round + number), "{number}");
            }
        }
    }
    assert_eq!(server.metric("sessions"), 200);
    server.await_metric("connections", 400);
    client.await_metric("connections", 400);
}

#[test]
fn ipv6_on_all_four_sockets() {
    let echo = Echo::on("[::1]:0");
    let server = Side::server_on("::1", free_port(), "::1", echo.address.port(), &[PLAIN]);
    assert!(server.address.is_ipv6());
    let client = Side::client_on("::1", "::1", server.address.port(), &[PLAIN]);
    let endpoint = Endpoint::to(client.address);
    for (seed, len) in SIZES.into_iter().enumerate() {
        endpoint.echo(&payload(len, seed));
    }
    assert!(echo.source().is_ipv6());
}

#[test]
fn every_address_may_be_a_name() {
    let first = ("localhost", 0).to_socket_addrs().unwrap().next().unwrap();
    let echo = Echo::on(&first.to_string());
    for args in [&[PLAIN][..], &[PLAIN, "--resolve-once"], &[PLAIN, "-R"]] {
        // The client's IPv4 first and the server's ::1, or the other way round, find each other.
        let host = if args.len() == 1 { "127.0.0.1" } else { "localhost" };
        let server = Side::server_on(host, free_port(), "localhost", echo.address.port(), &[PLAIN]);
        let client = Side::client_on("localhost", "localhost", server.address.port(), args);
        let endpoint = Endpoint::to(client.address);
        endpoint.echo(b"to a name");
        endpoint.echo(b"and again");
    }
}

#[test]
fn what_is_sent_before_the_first_connection_is_up_arrives_in_order() {
    let (target, target_address) = remote();
    let port = free_port();
    let client =
        Side::client_on("127.0.0.1", "127.0.0.1", port, &[PLAIN, "--backoff=0.1", "--pool-size=3"]);
    let endpoint = Endpoint::to(client.address);
    for number in 0..50 {
        endpoint.send(&payload(1200, number));
    }
    client.await_at_least("connection_failures_total{reason=\"connect\"}", 1);
    let _server = Side::server_on("127.0.0.1", port, "127.0.0.1", target_address.port(), &[PLAIN]);
    for number in 0..50 {
        assert!(receive_from(&target).0 == payload(1200, number), "datagram {number}");
    }
}

#[test]
fn what_waits_for_the_first_connection_is_bounded() {
    let client = Side::client_on("127.0.0.1", "127.0.0.1", free_port(), &[PLAIN, "--queue=10"]);
    let endpoint = Endpoint::to(client.address);
    for number in 0..50 {
        endpoint.send(&payload(100, number));
    }
    client.await_metric("datagrams_dropped_total{reason=\"not-connected\"}", 40);
}

#[test]
fn datagrams_of_one_endpoint_share_its_connections_and_its_source() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN]);
    let session = new_session();
    let mut first = Raw::join(server.address, session);
    first.echo(b"first");
    let mut second = Raw::join(server.address, session);
    second.send(b"second");
    let source = echo.source();
    assert_eq!(echo.source(), source);
    let mut other = Raw::join(server.address, new_session());
    other.echo(b"other");
    assert_ne!(echo.source(), source);
}

#[test]
fn frames_may_be_split_anywhere() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN]);
    let mut stream = new_session().bytes().to_vec();
    let datagrams = [payload(0, 1), payload(1, 2), payload(300, 3)];
    for datagram in &datagrams {
        assert!(udpferry::wire::pool::write_frame(&mut stream, datagram));
    }
    let mut raw = Raw::connect(server.address);
    for byte in stream {
        std::io::Write::write_all(&mut raw.stream, &[byte]).unwrap();
        crate::support::kernel::await_read(&raw.stream);
    }
    for datagram in datagrams {
        assert!(raw.receive() == datagram);
    }
}

#[test]
fn a_raw_client_without_session_ids_reaches_the_target_from_a_port_per_connection() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN, "--framing=mullvad"]);
    let mut first = Raw::connect(server.address);
    let mut second = Raw::connect(server.address);
    for (seed, len) in SIZES.into_iter().enumerate() {
        first.echo(&payload(len, seed));
    }
    let source = echo.source();
    for _ in 1..SIZES.len() {
        assert_eq!(echo.source(), source);
    }
    second.echo(b"second");
    assert_ne!(echo.source(), source);
}

#[test]
fn a_raw_server_without_session_ids_gets_one_connection_per_endpoint() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let client = Side::client(address, &[PLAIN, "--framing=mullvad"]);
    let mut connections = Vec::new();
    let endpoints = [Endpoint::to(client.address), Endpoint::to(client.address)];
    for endpoint in &endpoints {
        endpoint.send(b"the first bytes are a frame");
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut raw = Raw::over(stream);
        assert_eq!(raw.receive(), b"the first bytes are a frame");
        for (seed, len) in SIZES.into_iter().enumerate() {
            raw.send(&payload(len, seed));
            assert!(endpoint.receive() == payload(len, seed), "{len} bytes");
            endpoint.send(&payload(len, seed + 1));
            assert!(raw.receive() == payload(len, seed + 1), "{len} bytes");
        }
        connections.push(raw);
    }
    client.await_metric("connections", 2);
    assert_eq!(client.metric("connections_up_total"), 2);
}

#[test]
fn without_session_ids_a_lost_connection_comes_back_when_there_is_something_to_carry() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let client = Side::client(address, &[PLAIN, "--framing=mullvad", "--backoff=0.1"]);
    let endpoint = Endpoint::to(client.address);
    for count in 1..=3 {
        endpoint.send(b"something");
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut raw = Raw::over(stream);
        assert_eq!(raw.receive(), b"something");
        drop(raw);
        client.await_metric("connections", 0);
        // Many times the backoff.
        assert!(endpoint.is_silent_for(Duration::from_secs(1)));
        assert_eq!(client.metric("connections_up_total"), count);
    }
    assert_eq!(client.metric("sessions_opened_total"), 1);
}

#[test]
fn eight_endpoints_at_once_without_session_ids() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN, "--framing=mullvad"]);
    let client = Side::client(server.address, &[PLAIN, "--framing=mullvad"]);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let address = client.address;
            scope.spawn(move || {
                let endpoint = Endpoint::to(address);
                for (seed, len) in SIZES.into_iter().enumerate() {
                    endpoint.echo(&payload(len, 100 * number + seed));
                }
            });
        }
    });
    let sources: HashSet<_> = (0..8 * SIZES.len()).map(|_| echo.source()).collect();
    assert_eq!(sources.len(), 8, "each endpoint has a source port of its own");
    for side in [&server, &client] {
        assert_eq!(side.metric("sessions"), 8);
        assert_eq!(side.metric("connections_up_total"), 8, "one for each endpoint");
    }
}

#[test]
fn all_connections_of_an_endpoint_begin_with_its_session_id() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Side::client(listener.local_addr().unwrap(), &[PLAIN, "--pool-size=3"]);
    let mut ids = HashSet::new();
    let mut kept = Vec::new();
    for _ in 0..2 {
        let endpoint = Endpoint::to(client.address);
        endpoint.send(b"hello");
        let mut connections: Vec<_> = (0..3)
            .map(|_| {
                let (stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                Raw::over(stream)
            })
            .collect();
        let sessions: HashSet<_> = connections.iter_mut().map(Raw::read_session).collect();
        assert_eq!(sessions.len(), 1);
        let id = sessions.into_iter().next().unwrap();
        // RFC 9562 §5.4: version 4.
        assert_eq!(id.bytes()[6] >> 4, 4);
        ids.insert(id);
        for (number, connection) in connections.iter_mut().enumerate() {
            connection.send(&payload(50, number));
            assert!(endpoint.receive() == payload(50, number));
        }
        client.await_metric("connections", 3 * i64::try_from(ids.len()).unwrap());
        kept.push(connections);
    }
    assert_eq!(ids.len(), 2, "each endpoint has an id of its own");
}
