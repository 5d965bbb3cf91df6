//! Which destinations clients may reach.

use crate::support::kernel::{in_own_namespaces, run};
use crate::support::{Echo, Gateway, Reply, receive_from, remote};
use std::net::SocketAddr;

const LINK_LOCAL: &str = "destination-link-local";
const LOOPBACK: &str = "destination-loopback";
const MULTICAST: &str = "destination-multicast";
const UNSPECIFIED: &str = "destination-unspecified";

/// A gateway without the tests' usual `--allow`.
fn strict(args: &[&str]) -> Gateway {
    Gateway::start_strict(args, |_| {})
}

/// Sends one datagram and expects it to be dropped for that reason.
fn assert_refused(gateway: &Gateway, destination: &str, reason: &str) {
    let destination: SocketAddr = destination.parse().unwrap();
    let before = gateway.dropped(reason);
    let mut client = gateway.connect();
    client.send(1, destination, b"let me in");
    gateway.await_dropped(reason, before + 1);
}

#[test]
fn hosts_own_and_local_destinations_are_refused_by_default() {
    let gateway = strict(&[]);
    for (destination, reason) in [
        ("127.0.0.1:9", LOOPBACK),
        ("127.255.255.254:9", LOOPBACK),
        ("[::1]:9", LOOPBACK),
        ("0.0.0.0:9", UNSPECIFIED),
        ("[::]:9", UNSPECIFIED),
        ("224.0.0.251:5353", MULTICAST),
        ("[ff02::fb]:5353", MULTICAST),
        ("255.255.255.255:67", "destination-broadcast"),
        ("169.254.169.254:80", LINK_LOCAL),
        ("[fe80::1]:9", LINK_LOCAL),
        ("[::ffff:127.0.0.1]:9", LOOPBACK),
        ("[::127.0.0.1]:9", LOOPBACK),
        ("[::ffff:169.254.169.254]:80", LINK_LOCAL),
        ("[64:ff9b::7f00:1]:9", LOOPBACK),
        ("[64:ff9b::a9fe:a9fe]:80", LINK_LOCAL),
        ("[2002:7f00:1::]:9", LOOPBACK),
    ] {
        let destination: SocketAddr = destination.parse().unwrap();
        let before = gateway.dropped(reason);
        let mut client = gateway.connect();
        client.send(7, destination, b"let me in");
        gateway.await_dropped(reason, before + 1);
        let client = format!("client {}: dropped", client.address());
        let line = gateway.service.await_log(&client);
        assert!(line.contains(" warning "), "{line}");
        assert!(line.contains(&format!(" to {destination} (flow 7)")), "{line}");
    }
    gateway.await_flows(0);
    assert_eq!(gateway.metric("udpferry_udpgw_flows_opened_total"), 0);
    assert_eq!(gateway.metric("udpferry_udpgw_datagrams_total{direction=\"to-remote\"}"), 0);
}

#[test]
fn refusals_are_all_counted_but_few_are_logged() {
    const COUNT: i64 = 5000;
    let gateway = strict(&[]);
    let mut client = gateway.connect();
    for _ in 0..COUNT {
        client.send(1, "127.0.0.1:9".parse().unwrap(), b"let me in");
    }
    gateway.await_dropped(LOOPBACK, COUNT);
    let lines = gateway.service.log().lines().filter(|line| line.contains("dropped")).count();
    // Three at once, and one a second.
    assert!((1..=3 + 20).contains(&lines), "{lines} lines");
}

#[test]
fn a_loopback_server_is_out_of_reach_unless_allowed() {
    let echo = Echo::start();
    let gateway = strict(&[]);
    assert_refused(&gateway, &echo.address.to_string(), LOOPBACK);
    let gateway = strict(&["--allow=127.0.0.1"]);
    gateway.connect().echo(1, echo.address, b"welcome");
    assert_refused(&gateway, "127.0.0.2:9", LOOPBACK);
    assert_refused(&gateway, "[::1]:9", LOOPBACK);
}

#[test]
fn allow_goes_before_deny_and_deny_before_the_default() {
    let echo = Echo::start();
    let other = Echo::on("127.0.0.2:0");
    let gateway = strict(&["--allow=127.0.0.1", "--deny=127.0.0.0/8", "--deny=192.0.2.0/24"]);
    gateway.connect().echo(1, echo.address, b"allowed");
    assert_refused(&gateway, &other.address.to_string(), "destination-rule");
    assert_refused(&gateway, "192.0.2.77:9", "destination-rule");
    assert_refused(&gateway, "[::ffff:192.0.2.77]:9", "destination-rule");
    assert_refused(&gateway, "[::1]:9", LOOPBACK);

    // A shorter allowed prefix wins too.
    let gateway = strict(&["--allow=127.0.0.0/8", "--deny=127.0.0.1"]);
    gateway.connect().echo(1, echo.address, b"allowed");
}

#[test]
fn private_destinations_are_refused_when_asked() {
    if !in_own_namespaces("destinations::private_destinations_are_refused_when_asked") {
        return;
    }
    let private = ["10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd00::1", "fec0::1"];
    for address in private {
        // Without duplicate address detection an IPv6 address can be used at once.
        let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
        run("ip", &[&["address", "add", address, "dev", "lo"], nodad].concat());
    }
    let echoes: Vec<Echo> = private
        .iter()
        .map(|address| Echo::on(&SocketAddr::new(address.parse().unwrap(), 0).to_string()))
        .collect();
    let open = strict(&[]);
    let closed = strict(&["--deny-private"]);
    let excepted = strict(&["--deny-private", "--allow=10.1.0.0/16", "--allow=fd00::/8"]);
    for echo in &echoes {
        open.connect().echo(1, echo.address, b"by default they are open");
        assert_refused(&closed, &echo.address.to_string(), "destination-private");
    }
    for (echo, address) in echoes.iter().zip(private) {
        if address.starts_with("10.1.") || address.starts_with("fd00:") {
            excepted.connect().echo(1, echo.address, b"allowed");
        } else {
            assert_refused(&excepted, &echo.address.to_string(), "destination-private");
        }
    }
}

#[test]
fn a_mapped_destination_is_reached_and_answers_as_the_client_wrote_it() {
    let gateway = strict(&["--allow=127.0.0.0/8"]);
    let echo = Echo::start();
    let mapped: SocketAddr = format!("[::ffff:127.0.0.1]:{}", echo.address.port()).parse().unwrap();
    let mut client = gateway.connect();
    client.echo(1, mapped, b"mapped");
    client.echo(2, echo.address, b"plain");
    client.echo(1, mapped, b"mapped again");
    gateway.await_flows(2);
}

#[test]
fn flows_to_the_resolver_are_not_judged() {
    let (dns, dns_address) = remote();
    let gateway = strict(&[&format!("--dns={dns_address}"), "--deny=0.0.0.0/0"]);
    let mut client = gateway.connect();
    for (conid, asked) in [(1, "127.0.0.1:53"), (2, "169.254.169.254:53"), (3, "0.0.0.0:0")] {
        let address: SocketAddr = asked.parse().unwrap();
        client.send_dns(conid, address, b"question");
        let (_, source) = receive_from(&dns);
        dns.send_to(b"answer", source).unwrap();
        assert_eq!(client.receive(), Reply { conid, address, payload: b"answer".to_vec() });
    }
    assert_refused(&gateway, &dns_address.to_string(), "destination-rule");
}

#[test]
fn nothing_is_sent_to_port_zero() {
    let gateway = Gateway::start(&[]);
    assert_refused(&gateway, "127.0.0.1:0", "destination-port-zero");
    assert_refused(&gateway, "192.0.2.1:0", "destination-port-zero");
    assert_refused(&gateway, "[2001:db8::1]:0", "destination-port-zero");
    gateway.await_flows(0);
}
