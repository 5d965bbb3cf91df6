//! STUN, byte by byte.

use crate::server::{Server, free_udp_port, is_silent_for, receive, socket_to};
use crate::support::{PATIENCE, recv_from};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;
use udpferry::wire::stun::attribute::{AddressKind, ChangeRequest, kind};
use udpferry::wire::stun::fingerprint::Fingerprint;
use udpferry::wire::stun::writer::Writer;
use udpferry::wire::stun::{Class, Message, Method, TransactionId};

const ID: TransactionId = TransactionId::new(*b"abcdefghijkl");

fn request(write: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let mut bytes = [0; 4096];
    let mut writer = Writer::new(&mut bytes, Class::Request, Method::BINDING, ID).unwrap();
    write(&mut writer);
    let len = writer.finish();
    bytes[..len].to_vec()
}

fn with(attribute: u16, value: &[u8]) -> Vec<u8> {
    request(|writer| writer.attribute(attribute, value).unwrap())
}

#[test]
fn a_binding_request_is_answered_with_where_it_came_from() {
    let server = Server::start(&[]);
    let socket = socket_to(server.address);
    socket.send(&request(|_| {})).unwrap();
    let answer = receive(&socket);
    // Header and XOR-MAPPED-ADDRESS, nothing else.
    assert_eq!(answer.len(), 32);
    assert_eq!(answer[..4], [1, 1, 0, 12]);
    assert_eq!(answer[4..20], *b"\x21\x12\xa4\x42abcdefghijkl");
    let port = socket.local_addr().unwrap().port() ^ 0x2112;
    assert_eq!(answer[20..26], [0, 0x20, 0, 8, 0, 1]);
    assert_eq!(answer[26..28], port.to_be_bytes());
    assert_eq!(answer[28..], [127 ^ 0x21, 0x12, 0xa4, 1 ^ 0x42]);
}

#[test]
fn ipv6_and_the_second_port_are_served_and_wildcards_answer_from_where_they_were_asked() {
    let (port, stun) = (free_udp_port(), free_udp_port());
    let any = format!("--listen-addr=[::]:{port}");
    let stun_port = format!("--stun-port={stun}");
    let _server = Server::start_on(([0, 0, 0, 0], port).into(), &[&any, &stun_port]);
    for to in [
        SocketAddr::from(([127, 0, 0, 1], port)),
        SocketAddr::from(([127, 0, 0, 77], port)),
        SocketAddr::from(([127, 0, 0, 78], stun)),
        format!("[::1]:{stun}").parse().unwrap(),
    ] {
        // Connected: an answer from elsewhere would not be heard.
        let socket = socket_to(to);
        socket.send(&request(|_| {})).unwrap();
        let answer = receive(&socket);
        let answer = Message::parse(&answer).unwrap();
        assert_eq!(answer.mapped_address(), Ok(Some(socket.local_addr().unwrap())), "{to}");
    }
}

#[test]
fn two_ports_of_an_address_have_one_second_port() {
    let (port, other, stun) = (free_udp_port(), free_udp_port(), free_udp_port());
    let also = format!("--listen-addr=127.0.0.1:{other}");
    let stun_port = format!("--stun-port={stun}");
    for more in [vec![], vec!["--alternate-addr=127.0.0.2"]] {
        let args = [vec![also.as_str(), stun_port.as_str()], more].concat();
        let _server = Server::start_on(([127, 0, 0, 1], port).into(), &args);
        for port in [port, other, stun] {
            let socket = socket_to(([127, 0, 0, 1], port).into());
            socket.send(&request(|_| {})).unwrap();
            assert_eq!(Message::parse(&receive(&socket)).unwrap().class, Class::Success);
        }
    }
}

#[test]
fn fingerprint_and_software_only_when_asked_for() {
    let server = Server::start(&["--software"]);
    let socket = socket_to(server.address);
    let mut bytes = [0; 100];
    let writer = Writer::new(&mut bytes, Class::Request, Method::BINDING, ID).unwrap();
    let len = writer.finish_with_fingerprint().unwrap();
    socket.send(&bytes[..len]).unwrap();
    let answer = receive(&socket);
    let answer = Message::parse(&answer).unwrap();
    assert_eq!(answer.fingerprint(), Fingerprint::Right);
    let software = concat!("udpferry ", env!("CARGO_PKG_VERSION"));
    assert_eq!(answer.software(), Ok(Some(software)));
    socket.send(&request(|_| {})).unwrap();
    let answer = receive(&socket);
    assert_eq!(Message::parse(&answer).unwrap().fingerprint(), Fingerprint::Absent);
    bytes[len - 1] ^= 1;
    socket.send(&bytes[..len]).unwrap();
    server.await_dropped("malformed", 1);
}

#[test]
fn what_must_be_understood_and_is_not_is_named() {
    let server = Server::start(&[]);
    let socket = socket_to(server.address);
    // Without a second address the server is no reflector.
    for unknown in [kind::CHANGE_REQUEST, kind::RESPONSE_PORT, kind::PADDING, 0x7ffe] {
        socket.send(&with(unknown, &[0; 4])).unwrap();
        let answer = receive(&socket);
        let answer = Message::parse(&answer).unwrap();
        assert_eq!((answer.class, answer.id), (Class::Error, ID));
        assert_eq!(answer.error_code().unwrap().unwrap().code(), 420);
        let named: Vec<u16> = answer.unknown_attributes().unwrap().unwrap().collect();
        assert_eq!(named, [unknown]);
    }
    socket.send(&with(0xfffe, &[0; 4])).unwrap();
    assert_eq!(Message::parse(&receive(&socket)).unwrap().class, Class::Success);
    assert_eq!(server.metric("stun_refused_total"), 4);
}

#[test]
fn what_is_no_binding_request_is_dropped() {
    let server = Server::start(&[]);
    let socket = socket_to(server.address);
    let mut dropped = 0;
    for class in [Class::Indication, Class::Success, Class::Error] {
        let mut bytes = [0; 20];
        Writer::new(&mut bytes, class, Method::BINDING, ID).unwrap().finish();
        socket.send(&bytes).unwrap();
        dropped += 1;
    }
    server.await_dropped("no-request", dropped);
    // Cut short, and with a length that does not fit.
    let whole = with(0xfffe, &[0; 8]);
    socket.send(&whole[..24]).unwrap();
    let mut longer = whole;
    longer.push(0);
    socket.send(&longer).unwrap();
    server.await_dropped("malformed", 2);
    assert!(is_silent_for(&socket, Duration::from_millis(50)));
}

#[test]
fn a_classic_client_gets_a_mapped_address() {
    let server = Server::start(&[]);
    let socket = socket_to(server.address);
    // RFC 3489: no cookie, an id of 16 bytes.
    socket.send(b"\x00\x01\x00\x00ABCDEFGHIJKLMNOP").unwrap();
    let answer = receive(&socket);
    assert_eq!(answer[..20], *b"\x01\x01\x00\x0cABCDEFGHIJKLMNOP");
    assert_eq!(answer[20..26], [0, 1, 0, 8, 0, 1]);
    assert_eq!(answer[26..28], socket.local_addr().unwrap().port().to_be_bytes());
    assert_eq!(answer[28..], [127, 0, 0, 1]);
}

#[test]
fn two_addresses_and_two_ports_answer_from_each_other() {
    let (port, stun) = (free_udp_port(), free_udp_port());
    let stun_port = format!("--stun-port={stun}");
    let args = [&stun_port, "--alternate-addr=127.0.0.2"];
    let server = Server::start_on(([127, 0, 0, 1], port).into(), &args);
    let corner = |ip: u8, port| SocketAddr::from(([127, 0, 0, ip], port));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let own = socket.local_addr().unwrap();
    for (ip, at) in [(1, port), (1, stun), (2, port), (2, stun)] {
        let asked = corner(ip, at);
        let opposite = corner(3 - ip, if at == port { stun } else { port });
        for (change_ip, change_port) in [(false, false), (true, false), (false, true), (true, true)]
        {
            let change = ChangeRequest { ip: change_ip, port: change_port };
            let bytes = request(|writer| writer.change_request(change).unwrap());
            socket.send_to(&bytes, asked).unwrap();
            let mut bytes = [0; 512];
            let (len, origin) = recv_from(&socket, &mut bytes).unwrap();
            let expected = SocketAddr::new(
                if change_ip { opposite.ip() } else { asked.ip() },
                if change_port { opposite.port() } else { asked.port() },
            );
            assert_eq!(origin, expected, "{asked} {change:?}");
            let answer = Message::parse(&bytes[..len]).unwrap();
            assert_eq!(answer.mapped_address(), Ok(Some(own)));
            assert_eq!(answer.address(AddressKind::ResponseOrigin), Ok(Some(origin)));
            assert_eq!(answer.address(AddressKind::Other), Ok(Some(opposite)));
        }
    }
    // To another port.
    let elsewhere = socket_to(server.address);
    let port = elsewhere.local_addr().unwrap().port();
    let bytes = request(|writer| writer.response_port(port).unwrap());
    socket.send_to(&bytes, server.address).unwrap();
    let answer = receive(&elsewhere);
    assert_eq!(Message::parse(&answer).unwrap().mapped_address(), Ok(Some(own)));
    // As long as it was asked for; never together with another port.
    let asker = socket_to(server.address);
    asker.send(&request(|writer| writer.padding(1500).unwrap())).unwrap();
    assert_eq!(Message::parse(&receive(&asker)).unwrap().padding(), Some(1500));
    asker
        .send(&request(|writer| {
            writer.padding(1500).unwrap();
            writer.response_port(port).unwrap();
        }))
        .unwrap();
    let answer = receive(&asker);
    assert_eq!(Message::parse(&answer).unwrap().error_code().unwrap().unwrap().code(), 400);
    asker.send(&with(kind::CHANGE_REQUEST, &[0; 3])).unwrap();
    let answer = receive(&asker);
    assert_eq!(Message::parse(&answer).unwrap().error_code().unwrap().unwrap().code(), 400);
}
