//! Clients made by hand, and those that are none: what anybody on the network can do.

use crate::handmade::{Client, NO_COOKIE, endpoint};
use crate::hosts::Hosts;
use crate::support::kernel::in_own_namespaces;
use crate::support::{PATIENCE, free_port};
use std::net::UdpSocket;
use udpferry::wire::vpn::{Answer, ClientId, Cookie, Request, Wish};

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum = words.sum::<u32>();
    (!u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()).to_be_bytes()
}

/// A client of the plan that this grew from: it knows nothing but that one packet is one datagram.
fn bare_echo(source: [u8; 4], destination: [u8; 4], sequence: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 1, 0, 0];
    packet.extend(source.into_iter().chain(destination));
    packet.extend([8, 0, 0, 0, 0, 1, 0, sequence, b'b', b'a', b'r', b'e']);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum);
    let sum = checksum(&packet[20..]);
    packet[22..24].copy_from_slice(&sum);
    packet
}

#[test]
fn a_bare_client_is_served_where_it_may() {
    if !in_own_namespaces("strangers::a_bare_client_is_served_where_it_may") {
        return;
    }
    let hosts = Hosts::alone();
    let port = free_port();
    let server = hosts.server(&["--allow-bare", &format!("--listen-addr=127.0.0.1:{port}")]);
    let socket = UdpSocket::bind("127.0.0.5:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reply = [0; 100];
    // The first packet binds the address, and is answered as well.
    for sequence in 0..5 {
        socket.send_to(&bare_echo([10, 0, 0, 1], [10, 0, 0, 2], sequence), endpoint(port)).unwrap();
        let (len, from) = socket.recv_from(&mut reply).unwrap();
        assert_eq!((len, from), (32, endpoint(port)));
        assert_eq!((reply[20], reply[27], &reply[28..32]), (0, sequence, &b"bare"[..]));
        assert_eq!((&reply[12..16], &reply[16..20]), (&[10, 0, 0, 2][..], &[10, 0, 0, 1][..]));
    }
    server.await_log("client 10.0.0.1 (bare) came from 127.0.0.5:");
    // Another port of the same host takes over at once, another host does not.
    let moved = UdpSocket::bind("127.0.0.5:0").unwrap();
    moved.set_read_timeout(Some(PATIENCE)).unwrap();
    moved.send_to(&bare_echo([10, 0, 0, 1], [10, 0, 0, 2], 9), endpoint(port)).unwrap();
    assert_eq!(moved.recv(&mut reply).unwrap(), 32);
    let thief = UdpSocket::bind("127.0.0.6:0").unwrap();
    thief.set_read_timeout(Some(PATIENCE)).unwrap();
    thief.send_to(&bare_echo([10, 0, 0, 1], [10, 0, 0, 2], 9), endpoint(port)).unwrap();
    assert_eq!(thief.recv(&mut reply).unwrap(), 5, "who are you?");
    // Nobody is bound to an address outside the network, or the server's own.
    let refused = "udpferry_vpn_messages_dropped_total{reason=\"bare-refused\"}";
    for (source, count) in [[192, 0, 2, 9], [10, 0, 0, 2], [10, 0, 0, 255]].into_iter().zip(1..) {
        thief.send_to(&bare_echo(source, [10, 0, 0, 2], 9), endpoint(port)).unwrap();
        hosts.await_metric(refused, count);
    }
    assert_eq!(hosts.metric("udpferry_vpn_clients"), 1);
    // And who has a number is no bare client's victim.
    let client = Client::at("127.0.0.7", endpoint(port), 1);
    let address = client.welcome(Wish::Any);
    thief.send_to(&bare_echo(address.octets(), [10, 0, 0, 2], 9), endpoint(port)).unwrap();
    assert_eq!(thief.recv(&mut reply).unwrap(), 5, "who are you?");
}

#[test]
fn without_allow_bare_packets_are_answered_by_a_question() {
    if !in_own_namespaces("strangers::without_allow_bare_packets_are_answered_by_a_question") {
        return;
    }
    let hosts = Hosts::alone();
    let port = free_port();
    let _server = hosts.server(&[&format!("--listen-addr=127.0.0.1:{port}")]);
    let client = Client::at("127.0.0.5", endpoint(port), 1);
    client.send_echo("10.0.0.1", "10.0.0.2", 1);
    assert_eq!(client.receive(), Answer::WhoAreYou);
    client.send(&Request::Keepalive { tx: 1, client: client.id });
    assert_eq!(client.receive(), Answer::WhoAreYou);
    assert_eq!(hosts.metric("udpferry_vpn_clients"), 0);
    // Then it says who it is, and is heard.
    assert_eq!(client.welcome(Wish::Any).to_string(), "10.0.0.1");
    client.send_echo("10.0.0.1", "10.0.0.2", 2);
    assert_eq!(client.receive_reply(), ("10.0.0.1".parse().unwrap(), 2));
    client.send(&Request::Keepalive { tx: 2, client: client.id });
    assert_eq!(client.receive(), Answer::Alive { tx: 2 });
}

#[test]
fn nobody_sends_in_anothers_name() {
    if !in_own_namespaces("strangers::nobody_sends_in_anothers_name") {
        return;
    }
    let hosts = Hosts::alone();
    let port = free_port();
    let _server = hosts.server(&[&format!("--listen-addr=127.0.0.1:{port}")]);
    let (one, two) =
        (Client::at("127.0.0.5", endpoint(port), 1), Client::at("127.0.0.6", endpoint(port), 2));
    assert_eq!(one.welcome(Wish::Any).to_string(), "10.0.0.1");
    assert_eq!(two.welcome(Wish::Any).to_string(), "10.0.0.3");
    let foreign = "udpferry_tunnel_packets_dropped_total{reason=\"foreign-source\"}";
    let mut count = 0;
    for source in ["10.0.0.1", "10.0.0.2", "10.0.0.77", "192.0.2.1"] {
        two.send_echo(source, "10.0.0.2", 1);
        count += 1;
        hosts.await_metric(foreign, count);
    }
    // All of it came to nothing: the first one still has its address, and the second its own.
    for (client, own) in [(&one, "10.0.0.1"), (&two, "10.0.0.3")] {
        client.send_echo(own, "10.0.0.2", 5);
        assert_eq!(client.receive_reply(), (own.parse().unwrap(), 5));
    }
    // A number that is not its own moves nobody, without a cookie of this endpoint.
    let thief = Client::at("127.0.0.9", endpoint(port), 1);
    let stolen = one.cookie();
    assert!(matches!(thief.hello(stolen, Wish::Any), Answer::Cookie { .. }));
    thief.send(&Request::Goodbye { client: one.id });
    thief.send(&Request::Keepalive { tx: 3, client: one.id });
    assert_eq!(thief.receive(), Answer::WhoAreYou);
    one.send(&Request::Keepalive { tx: 4, client: one.id });
    assert_eq!(one.receive(), Answer::Alive { tx: 4 });
}

#[test]
fn clients_reach_each_other_unless_they_may_not() {
    if !in_own_namespaces("strangers::clients_reach_each_other_unless_they_may_not") {
        return;
    }
    for refuses in [false, true] {
        let hosts = Hosts::alone();
        let port = free_port();
        let listen = format!("--listen-addr=127.0.0.1:{port}");
        let mut args = vec![listen.as_str()];
        args.extend(refuses.then_some("--no-client-to-client"));
        let server = hosts.server(&args);
        let one = Client::at("127.0.0.5", endpoint(port), 1);
        let two = Client::at("127.0.0.6", endpoint(port), 2);
        let (own, other) = (one.welcome(Wish::Any), two.welcome(Wish::Any));
        one.send_echo(&own.to_string(), &other.to_string(), 3);
        if refuses {
            let dropped = "udpferry_tunnel_packets_dropped_total{reason=\"peer-to-peer\"}";
            hosts.await_metric(dropped, 1);
            assert!(two.hears_nothing());
        } else {
            let mut bytes = [0; 100];
            let len = two.socket.recv(&mut bytes).unwrap();
            assert_eq!((len, bytes[20], &bytes[16..20]), (39, 8, &other.octets()[..]));
        }
        assert!(server.stop().0.success());
    }
}

/// Whoever has proved nothing gets no more bytes than he sends: a forged source is no amplifier.
#[test]
fn nothing_larger_than_what_came_goes_to_an_unproven_address() {
    if !in_own_namespaces("strangers::nothing_larger_than_what_came_goes_to_an_unproven_address") {
        return;
    }
    let hosts = Hosts::alone();
    let port = free_port();
    let _server = hosts.server(&[&format!("--listen-addr=127.0.0.1:{port}")]);
    let id = ClientId([1; 16]);
    let (ipv4, ipv6) = (Wish::Any, Wish::Any);
    let hello = |tx, cookie| written(&Request::Hello { tx, cookie, client: id, ipv4, ipv6 });
    let mut other_version = hello(1, NO_COOKIE);
    other_version[3] = 9;
    let answered = [
        hello(1, NO_COOKIE),
        hello(1, Cookie([9; 16])),
        other_version,
        written(&Request::Keepalive { tx: 1, client: id }),
        bare_echo([10, 0, 0, 1], [10, 0, 0, 2], 1),
    ];
    let client = Client::at("127.0.0.5", endpoint(port), 1);
    let mut bytes = [0; 2048];
    for sent in &answered {
        client.socket.send(sent).unwrap();
        let len = client.socket.recv(&mut bytes).unwrap();
        assert!(len < sent.len(), "{len} bytes for {sent:?}");
    }
    // Everything cut short, a message at a time from an address of its own; a hello ends each.
    for (place, whole) in (10..).zip(&answered) {
        let client = Client::at(&format!("127.0.0.{place}"), endpoint(port), 1);
        for len in 0..whole.len() {
            client.socket.send(&whole[..len]).unwrap();
        }
        let end = hello(99, NO_COOKIE);
        client.socket.send(&end).unwrap();
        let mut received = 0;
        loop {
            let len = client.socket.recv(&mut bytes).unwrap();
            received += len;
            let answer = udpferry::wire::vpn::parse_answer(&bytes[..len]);
            if matches!(answer, Some(Answer::Cookie { tx: 99, .. })) {
                break;
            }
        }
        let sent = (0..whole.len()).sum::<usize>() + end.len();
        assert!(received <= sent, "{received} bytes for {sent}");
    }
}

fn written(request: &Request) -> Vec<u8> {
    let mut datagram = Vec::new();
    udpferry::wire::vpn::write_request(&mut datagram, request);
    datagram
}
