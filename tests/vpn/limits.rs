//! Every limit, and what happens when it is reached.

use crate::handmade::{Client, endpoint};
use crate::hosts::Hosts;
use crate::support::free_port;
use crate::support::kernel::in_own_namespaces;
use udpferry::wire::vpn::{Answer, HELLO_LEN, Refusal, Request, VERSION, Wish, parse_answer};

fn refused(answer: Answer) -> Refusal {
    match answer {
        Answer::Refused { tx: 7, reason } => reason,
        answer => panic!("{answer:?}"),
    }
}

fn only(address: &str) -> Wish<std::net::Ipv4Addr> {
    Wish::Only(address.parse().unwrap())
}

#[test]
fn one_client_more_than_there_may_be_is_refused() {
    if !in_own_namespaces("limits::one_client_more_than_there_may_be_is_refused") {
        return;
    }
    let hosts = Hosts::alone();
    let port = free_port();
    let _server = hosts.server(&["--max-clients=2", &format!("--listen-addr=127.0.0.1:{port}")]);
    let clients: Vec<Client> = (1..=3)
        .map(|number| Client::at(&format!("127.0.0.{}", 4 + number), endpoint(port), number))
        .collect();
    clients[0].welcome(Wish::Any);
    clients[1].welcome(Wish::Any);
    assert_eq!(refused(clients[2].enter(Wish::Any)), Refusal::Full);
    let full = "udpferry_vpn_clients_refused_total{reason=\"full\"}";
    assert_eq!(hosts.metric(full), 1);
    // One that is there is there, wherever it comes from.
    let moved = Client::at("127.0.0.9", endpoint(port), 1);
    moved.welcome(Wish::Any);
    assert_eq!(hosts.metric("udpferry_vpn_clients"), 2);
    assert_eq!(hosts.metric("udpferry_vpn_clients_moved_total"), 1);
    clients[1].send(&Request::Goodbye { client: clients[1].id });
    clients[2].welcome(Wish::Any);
    let goodbye = "udpferry_vpn_clients_ended_total{reason=\"goodbye\"}";
    assert_eq!(hosts.metric(goodbye), 1);
}

#[test]
fn addresses_are_given_once_and_from_the_pool() {
    if !in_own_namespaces("limits::addresses_are_given_once_and_from_the_pool") {
        return;
    }
    let hosts = Hosts::alone();
    let port = free_port();
    let listen = format!("--listen-addr=127.0.0.1:{port}");
    let _server = hosts.server(&["--pool=10.0.0.100-10.0.0.101", &listen, "--push-dns=192.0.2.53"]);
    let client =
        |number: u8| Client::at(&format!("127.0.0.{}", 10 + number), endpoint(port), number);
    let (one, two, three) = (client(1), client(2), client(3));
    match one.enter(Wish::Any) {
        Answer::Welcome { ipv4: Some(ipv4), ipv6: Some(ipv6), mtu, keepalive_s, dns, .. } => {
            assert_eq!((ipv4.address.to_string(), ipv4.prefix), ("10.0.0.100".into(), 24));
            assert_eq!(ipv4.server.to_string(), "10.0.0.2");
            assert_eq!((ipv6.prefix, ipv6.server.to_string()), (64, "fd00::2".into()));
            assert_eq!((mtu, keepalive_s), (1472, 15));
            let dns: Vec<String> = dns.iter().map(|it| it.to_string()).collect();
            assert_eq!(dns, ["192.0.2.53"]);
        }
        answer => panic!("{answer:?}"),
    }
    assert_eq!(two.welcome(Wish::Any).to_string(), "10.0.0.101");
    assert_eq!(refused(three.enter(Wish::Any)), Refusal::NoAddress);
    assert_eq!(refused(three.enter(only("10.0.0.100"))), Refusal::AddressTaken);
    for outside in ["10.0.0.2", "10.0.0.0", "10.0.1.1"] {
        assert_eq!(refused(three.enter(only(outside))), Refusal::AddressOutside, "{outside}");
    }
    assert_eq!(three.welcome(only("10.0.0.9")).to_string(), "10.0.0.9");
    // Who has been away for longest gives way to who is there.
    two.send(&Request::Goodbye { client: two.id });
    assert_eq!(client(4).welcome(Wish::Any).to_string(), "10.0.0.101");
    assert_eq!(refused(two.enter(Wish::Any)), Refusal::NoAddress);
}

#[test]
fn a_silent_client_is_gone_and_its_address_waits_for_it() {
    if !in_own_namespaces("limits::a_silent_client_is_gone_and_its_address_waits_for_it") {
        return;
    }
    let hosts = Hosts::alone();
    let port = free_port();
    let listen = format!("--listen-addr=127.0.0.1:{port}");
    let server = hosts.server(&["--keepalive=1", "--idle-timeout=2", &listen]);
    let (one, two) =
        (Client::at("127.0.0.5", endpoint(port), 1), Client::at("127.0.0.6", endpoint(port), 2));
    let address = one.welcome(Wish::Any);
    hosts.await_metric("udpferry_vpn_clients", 0);
    server.await_log("has been silent for too long");
    let idle = "udpferry_vpn_clients_ended_total{reason=\"idle\"}";
    assert_eq!(hosts.metric(idle), 1);
    assert_ne!(two.welcome(Wish::Any), address);
    one.send_echo(&address.to_string(), "10.0.0.2", 1);
    assert_eq!(one.receive(), Answer::WhoAreYou);
    assert_eq!(one.welcome(Wish::Any), address);
}

#[test]
fn only_those_who_may_come_are_heard() {
    if !in_own_namespaces("limits::only_those_who_may_come_are_heard") {
        return;
    }
    let hosts = Hosts::alone();
    let port = free_port();
    let listen = format!("--listen-addr=127.0.0.1:{port}");
    let _server = hosts.server(&["--allow-from=127.0.0.8/29", &listen]);
    let stranger = Client::at("127.0.0.7", endpoint(port), 1);
    stranger.send(&Request::Keepalive { tx: 1, client: stranger.id });
    stranger.send_echo("10.0.0.1", "10.0.0.2", 1);
    let dropped = "udpferry_tunnel_packets_dropped_total{reason=\"not-allowed\"}";
    hosts.await_metric(dropped, 2);
    assert!(stranger.hears_nothing());
    Client::at("127.0.0.9", endpoint(port), 2).welcome(Wish::Any);
}

#[test]
fn another_version_is_told_of_ours() {
    if !in_own_namespaces("limits::another_version_is_told_of_ours") {
        return;
    }
    let hosts = Hosts::alone();
    let port = free_port();
    let _server = hosts.server(&[&format!("--listen-addr=127.0.0.1:{port}")]);
    let client = Client::at("127.0.0.5", endpoint(port), 1);
    let mut hello = vec![0xf6, b'u', b'f', VERSION + 1, 1, 0, 0, 0, 0, 0, 0, 0, 9];
    hello.resize(HELLO_LEN + 10, 0);
    client.socket.send(&hello).unwrap();
    let mut bytes = [0; 100];
    let len = client.socket.recv(&mut bytes).unwrap();
    let expected = Answer::OtherVersion { tx: 9, version: VERSION };
    assert_eq!(parse_answer(&bytes[..len]), Some(expected));
    assert_eq!(hosts.metric("udpferry_vpn_clients_refused_total{reason=\"version\"}"), 1);
}

#[test]
fn an_address_that_asks_too_often_is_not_answered() {
    if !in_own_namespaces("limits::an_address_that_asks_too_often_is_not_answered") {
        return;
    }
    let hosts = Hosts::alone();
    let port = free_port();
    let _server = hosts.server(&[&format!("--listen-addr=127.0.0.1:{port}")]);
    let flood = Client::at("127.0.0.5", endpoint(port), 1);
    // A hundred in a second, and as many more in the next.
    for tx in 0..600 {
        flood.send(&Request::Keepalive { tx, client: flood.id });
    }
    let dropped = "udpferry_vpn_messages_dropped_total{reason=\"source-rate\"}";
    crate::support::await_some(|| (hosts.metric(dropped) >= 300).then_some(())).unwrap();
    // Others do not notice.
    Client::at("127.0.0.6", endpoint(port), 2).welcome(Wish::Any);
}
