//! Datagrams in, datagrams out.

use crate::support::kernel::await_read;
use crate::support::{Echo, Gateway, Reply, flagged_frame, frame, receive_from, remote, remote_on};
use std::io::{Read, Write};
use std::net::SocketAddr;

fn hex(text: &str) -> Vec<u8> {
    text.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

/// A payload that tells its length and its place in a series.
fn payload(len: usize, number: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + number).to_le_bytes()[0]).collect()
}

#[test]
fn datagrams_of_every_size_come_back() {
    let gateway = Gateway::start(&[]);
    let echo = Echo::start();
    let mut client = gateway.connect();
    for len in [0, 1, 2, 500, 1400, 1472, 1473, 9000, 65_507] {
        client.echo(7, echo.address, &payload(len, len));
    }
    gateway.await_metric("udpferry_udpgw_datagrams_total{direction=\"to-client\"}", 9);
}

#[test]
fn ipv6_datagrams_come_back() {
    let gateway = Gateway::start(&[]);
    let echo = Echo::on("[::1]:0");
    let mut client = gateway.connect();
    // 65,514 is what the longest frame holds behind an IPv6 header.
    for len in [0, 1, 1400, 1452, 1453, 9000, 65_507, 65_514] {
        client.echo(7, echo.address, &payload(len, len));
    }
}

/// As the protocol's documentation has it, apart from the address, which must be ours.
#[test]
fn the_bytes_on_the_wire_are_those_of_the_protocol() {
    let gateway = Gateway::start(&[]);
    let (v4, v4_address) = remote();
    let (v6, v6_address) = remote_on("[::1]:0");
    let mut client = gateway.connect();
    let with_port = |start: &str, address: SocketAddr, end: &str| {
        let mut bytes = hex(start);
        bytes.extend(address.port().to_be_bytes());
        bytes.extend(hex(end));
        bytes
    };
    let mut expect = |remote: &std::net::UdpSocket, request: &[u8], answer: &[u8]| {
        client.write(request);
        let (datagram, source) = receive_from(remote);
        assert_eq!(datagram, b"hi");
        remote.send_to(b"ok!", source).unwrap();
        let mut bytes = vec![0; answer.len()];
        client.stream.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, answer);
    };
    expect(
        &v4,
        &with_port("0b 00 00 07 00 7f 00 00 01", v4_address, "68 69"),
        &with_port("0c 00 00 07 00 7f 00 00 01", v4_address, "6f 6b 21"),
    );
    // Rebind, then flags that mean nothing: the answer has none of them.
    for flags in ["02", "f0"] {
        expect(
            &v4,
            &with_port(&format!("0b 00 {flags} 07 00 7f 00 00 01"), v4_address, "68 69"),
            &with_port("0c 00 00 07 00 7f 00 00 01", v4_address, "6f 6b 21"),
        );
    }
    let address = "00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 01";
    expect(
        &v6,
        &with_port(&format!("17 00 08 02 01 {address}"), v6_address, "68 69"),
        &with_port(&format!("18 00 08 02 01 {address}"), v6_address, "6f 6b 21"),
    );
    client.write(&hex("03 00 01 00 00"));
    gateway.await_metric("udpferry_udpgw_keepalives_total", 1);
}

#[test]
fn an_empty_datagram_goes_both_ways() {
    let gateway = Gateway::start(&[]);
    let (remote, address) = remote();
    let mut client = gateway.connect();
    client.send(5, address, b"");
    let (datagram, source) = receive_from(&remote);
    assert!(datagram.is_empty());
    remote.send_to(b"", source).unwrap();
    remote.send_to(b"after", source).unwrap();
    assert_eq!(client.receive(), Reply { conid: 5, address, payload: Vec::new() });
    assert_eq!(client.receive(), Reply { conid: 5, address, payload: b"after".to_vec() });
}

#[test]
fn frames_are_put_together_from_single_bytes() {
    let gateway = Gateway::start(&[]);
    let echo = Echo::start();
    let v6_echo = Echo::on("[::1]:0");
    let mut client = gateway.connect();
    for (address, len) in [(echo.address, 0), (v6_echo.address, 1), (echo.address, 30)] {
        let payload = payload(len, 3);
        for byte in frame(9, address, &payload) {
            client.write(&[byte]);
            await_read(&client.stream);
        }
        assert_eq!(client.receive(), Reply { conid: 9, address, payload });
    }
    // The same again as fast as it goes.
    let large = payload(1400, 1);
    for byte in frame(9, echo.address, &large) {
        client.write(&[byte]);
    }
    assert_eq!(client.receive().payload, large);
}

#[test]
fn two_frames_are_told_apart_wherever_they_are_split() {
    let gateway = Gateway::start(&[]);
    let echo = Echo::start();
    let mut client = gateway.connect();
    let mut both = frame(1, echo.address, b"first");
    both.extend(frame(1, echo.address, b"second one"));
    for at in 1..both.len() {
        client.write(&both[..at]);
        await_read(&client.stream);
        client.write(&both[at..]);
        assert_eq!(client.receive().payload, b"first", "split at {at}");
        assert_eq!(client.receive().payload, b"second one", "split at {at}");
    }
}

#[test]
fn thousands_of_frames_in_one_write_all_come_back() {
    // So many at a time fit the receive buffers of every socket on the way.
    const PER_FLOW: usize = 200;
    const FLOWS: u16 = 20;
    let gateway = Gateway::start(&["--mapping=per-flow"]);
    let echoes: Vec<Echo> = (0..FLOWS).map(|_| Echo::start()).collect();
    let mut client = gateway.connect();
    let mut bytes = Vec::new();
    for number in 0..PER_FLOW {
        for (conid, echo) in (0..FLOWS).zip(&echoes) {
            bytes.extend(frame(conid, echo.address, &payload(20 + number, number)));
        }
    }
    client.write(&bytes);
    let mut received = vec![0; usize::from(FLOWS)];
    for _ in 0..PER_FLOW * usize::from(FLOWS) {
        let reply = client.receive();
        let flow = usize::from(reply.conid);
        assert_eq!(reply.address, echoes[flow].address);
        assert_eq!(reply.payload, payload(20 + received[flow], received[flow]), "order of a flow");
        received[flow] += 1;
    }
}

#[test]
fn ten_thousand_keepalives_in_a_row_are_counted_and_not_answered() {
    let gateway = Gateway::start(&[]);
    let echo = Echo::start();
    let mut client = gateway.connect();
    client.write(&[3, 0, 1, 0, 0].repeat(10_000));
    // Anything sent in answer would come before the echo.
    client.echo(1, echo.address, b"still here");
    gateway.await_metric("udpferry_udpgw_keepalives_total", 10_000);
}

#[test]
fn every_short_body_with_every_flag_is_what_the_protocol_says() {
    let (dns, dns_address) = remote();
    let gateway = Gateway::start(&[&format!("--dns={dns_address}")]);
    let echo = Echo::start();
    let mut client = gateway.connect();
    let (mut no_header, mut keepalives, mut no_address, mut queries, mut port_zero) =
        (0, 0, 0, 0, 0);
    for flags in 0..=255_u8 {
        for len in 0..=23_u8 {
            let mut bytes = vec![0; 2 + usize::from(len)];
            bytes[0] = len;
            if len > 0 {
                bytes[2] = flags;
            }
            client.write(&bytes);
            let header = if flags & 8 == 0 { 9 } else { 21 };
            *match () {
                () if len < 3 => &mut no_header,
                () if flags & 1 != 0 => &mut keepalives,
                () if len < header => &mut no_address,
                () if flags & 4 != 0 => &mut queries,
                () => &mut port_zero,
            } += 1;
            if len >= header && flags & 5 == 4 {
                assert_eq!(receive_from(&dns).0.len(), usize::from(len - header));
            }
        }
    }
    client.echo(1, echo.address, b"still here");
    gateway.await_metric("udpferry_udpgw_keepalives_total", keepalives);
    assert_eq!(gateway.dropped("short-header"), no_header);
    assert_eq!(gateway.dropped("short-address"), no_address);
    assert_eq!(gateway.dropped("destination-port-zero"), port_zero);
    let to_remote = gateway.metric("udpferry_udpgw_datagrams_total{direction=\"to-remote\"}");
    assert_eq!(to_remote, queries + 1);
}

#[test]
fn the_longest_bodies_are_read_to_their_end() {
    let gateway = Gateway::start(&[]);
    let echo = Echo::start();
    let mut client = gateway.connect();
    let mut body = vec![0xff; 2 + 65_535];
    body[2] = 1;
    client.write(&body);
    gateway.await_metric("udpferry_udpgw_keepalives_total", 1);
    body[2] = 0;
    body[5..11].copy_from_slice(&[127, 0, 0, 1, 0, 9]);
    client.write(&body);
    gateway.await_dropped("too-long", 1);
    client.echo(1, echo.address, b"still here");
}

#[test]
fn all_flags_at_once_keep_the_datagram_whole() {
    let (dns, dns_address) = remote_on("[::1]:0");
    let gateway = Gateway::start(&[&format!("--dns={dns_address}")]);
    let mut client = gateway.connect();
    let asked: SocketAddr = "[2001:db8::7]:5353".parse().unwrap();
    client.stream.write_all(&flagged_frame(0xfffe, asked, b"question", true, true)).unwrap();
    let (question, source) = receive_from(&dns);
    assert_eq!(question, b"question");
    dns.send_to(b"answer", source).unwrap();
    assert_eq!(
        client.receive(),
        Reply { conid: 0xfffe, address: asked, payload: b"answer".to_vec() }
    );
}
