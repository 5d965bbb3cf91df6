//! Which socket a flow has, whose answers it gets, and how it ends.

use crate::support::kernel::in_own_namespaces;
use crate::support::{
    Client, Echo, Gateway, PATIENCE, Reply, await_some, free_port, receive_from, remote, remote_on,
};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

fn reply(conid: u16, address: SocketAddr, payload: &[u8]) -> Reply {
    Reply { conid, address, payload: payload.to_vec() }
}

/// Sends a datagram on a flow to a remote of the test's own, and tells where it came from.
fn source_of(
    client: &mut Client<TcpStream>,
    conid: u16,
    remote: &(UdpSocket, SocketAddr),
) -> SocketAddr {
    client.send(conid, remote.1, b"who am I?");
    receive_from(&remote.0).1
}

/// The first of `count` UDP ports that nobody uses on 127.0.0.1 and ::1.
fn free_udp_range(count: u16) -> u16 {
    await_some(|| {
        let first = free_port();
        let is_free = |port| {
            UdpSocket::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("::1", port)).is_ok()
        };
        (first..first + count).all(is_free).then_some(first)
    })
    .unwrap()
}

#[test]
fn a_client_has_one_source_port_for_all_remotes() {
    let gateway = Gateway::start(&[]);
    let (a, b) = (remote(), remote());
    let mut client = gateway.connect();
    let source = source_of(&mut client, 1, &a);
    assert_eq!(source_of(&mut client, 2, &b), source);
    // Another client's is another.
    assert_ne!(source_of(&mut gateway.connect(), 1, &a), source);
    // Both answers find their flow.
    b.0.send_to(b"from b", source).unwrap();
    assert_eq!(client.receive(), reply(2, b.1, b"from b"));
    a.0.send_to(b"from a", source).unwrap();
    assert_eq!(client.receive(), reply(1, a.1, b"from a"));
}

#[test]
fn flows_to_one_remote_have_a_port_each_and_their_answers_do_not_mix() {
    let gateway = Gateway::start(&[]);
    let one = remote();
    let mut client = gateway.connect();
    let sources: Vec<SocketAddr> =
        (1..=3).map(|conid| source_of(&mut client, conid, &one)).collect();
    assert!(sources[0] != sources[1] && sources[1] != sources[2] && sources[2] != sources[0]);
    for conid in [3_u16, 1, 2] {
        one.0.send_to(&conid.to_le_bytes(), sources[usize::from(conid) - 1]).unwrap();
        assert_eq!(client.receive(), reply(conid, one.1, &conid.to_le_bytes()));
    }
    // The next remote goes on the first port again.
    assert_eq!(source_of(&mut client, 4, &remote()), sources[0]);
}

#[test]
fn per_flow_mapping_gives_every_flow_a_port() {
    let gateway = Gateway::start(&["--mapping=per-flow"]);
    let (a, b) = (remote(), remote());
    let mut client = gateway.connect();
    let source = source_of(&mut client, 1, &a);
    assert_ne!(source_of(&mut client, 2, &b), source);
    a.0.send_to(b"from a", source).unwrap();
    assert_eq!(client.receive(), reply(1, a.1, b"from a"));
}

#[test]
fn a_strangers_datagram_is_dropped_and_counted() {
    let gateway = Gateway::start(&[]);
    let (asked, stranger) = (remote(), remote());
    let mut client = gateway.connect();
    let source = source_of(&mut client, 1, &asked);
    stranger.0.send_to(b"surprise", source).unwrap();
    gateway.await_dropped("stranger", 1);
    asked.0.send_to(b"expected", source).unwrap();
    assert_eq!(client.receive(), reply(1, asked.1, b"expected"));
    let line = gateway.service.await_log("stranger");
    assert!(line.contains(&client.address().to_string()) && line.contains(&stranger.1.to_string()));
}

#[test]
fn a_strangers_datagram_does_not_reach_a_connected_flow() {
    let gateway = Gateway::start(&["--mapping=per-flow"]);
    let (asked, stranger) = (remote(), remote());
    let mut client = gateway.connect();
    let source = source_of(&mut client, 1, &asked);
    stranger.0.send_to(b"surprise", source).unwrap();
    asked.0.send_to(b"expected", source).unwrap();
    assert_eq!(client.receive(), reply(1, asked.1, b"expected"));
}

#[test]
fn a_known_conid_with_another_address_is_a_new_flow() {
    let gateway = Gateway::start(&[]);
    let (old, new, other) = (remote(), remote(), remote());
    let mut client = gateway.connect();
    // The other flow keeps the shared socket, so that late answers still arrive at it.
    let source = source_of(&mut client, 9, &other);
    assert_eq!(source_of(&mut client, 1, &old), source);
    assert_eq!(source_of(&mut client, 1, &new), source);
    gateway.await_flows_closed("rebound", 1);
    gateway.await_flows(2);
    old.0.send_to(b"late", source).unwrap();
    gateway.await_dropped("stranger", 1);
    new.0.send_to(b"right", source).unwrap();
    assert_eq!(client.receive(), reply(1, new.1, b"right"));
}

#[test]
fn the_rebind_flag_starts_a_new_flow() {
    let gateway = Gateway::start(&["--mapping=per-flow"]);
    let (old, new) = (remote(), remote());
    let mut client = gateway.connect();
    let source = source_of(&mut client, 1, &old);
    assert_eq!(source_of(&mut client, 1, &old), source);
    client.send_rebind(1, old.1, b"again");
    assert_ne!(receive_from(&old.0).1, source, "the same address");
    gateway.await_flows_closed("rebound", 1);
    client.send_rebind(1, new.1, b"again");
    let source = receive_from(&new.0).1;
    new.0.send_to(b"right", source).unwrap();
    assert_eq!(client.receive(), reply(1, new.1, b"right"));
    gateway.await_flows_closed("rebound", 2);
    assert_eq!(gateway.metric("udpferry_udpgw_flows_opened_total"), 3);
    gateway.await_flows(1);
}

#[test]
fn dns_flows_go_to_the_resolver_each_from_its_own_port() {
    let (dns, elsewhere) = (remote(), remote());
    let gateway = Gateway::start(&[&format!("--dns={}", dns.1)]);
    let mut client = gateway.connect();
    let shared = source_of(&mut client, 1, &elsewhere);
    let asked: [SocketAddr; 2] =
        ["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()];
    let mut sources = vec![shared];
    for (conid, asked) in (2..).zip(asked) {
        client.send_dns(conid, asked, b"question");
        let (question, source) = receive_from(&dns.0);
        assert_eq!(question, b"question");
        assert!(!sources.contains(&source), "{source} of {sources:?}");
        sources.push(source);
    }
    // The answers carry what was asked, not who answered.
    dns.0.send_to(b"second", sources[2]).unwrap();
    assert_eq!(client.receive(), reply(3, asked[1], b"second"));
    dns.0.send_to(b"first", sources[1]).unwrap();
    assert_eq!(client.receive(), reply(2, asked[0], b"first"));
}

#[test]
fn flows_to_port_53_have_a_port_of_their_own() {
    if !in_own_namespaces("flows::flows_to_port_53_have_a_port_of_their_own") {
        return;
    }
    let gateway = Gateway::start(&[]);
    let (first, second) = (remote_on("127.1.2.3:53"), remote_on("127.1.2.4:53"));
    let mut client = gateway.connect();
    let mut sources = vec![source_of(&mut client, 1, &remote())];
    for (conid, server) in [(2, &first), (3, &second)] {
        let source = source_of(&mut client, conid, server);
        assert!(!sources.contains(&source), "{source} of {sources:?}");
        server.0.send_to(b"answer", source).unwrap();
        assert_eq!(client.receive(), reply(conid, server.1, b"answer"));
        sources.push(source);
    }
}

#[test]
fn an_idle_flow_is_closed_with_its_socket_and_may_come_back() {
    let gateway = Gateway::start(&["--udp-timeout=0.3", "--mapping=per-flow"]);
    let echo = Echo::start();
    let mut client = gateway.connect();
    client.keepalive();
    gateway.await_metric("udpferry_udpgw_keepalives_total", 1);
    // A scrape has its own descriptor for a moment.
    let descriptors = gateway.service.descriptors();
    for round in 1..=2 {
        client.echo(1, echo.address, b"hello");
        gateway.await_flows_closed("idle", round);
        gateway.await_flows(0);
        assert_eq!(gateway.metric("udpferry_udpgw_flows_opened_total"), round);
        await_some(|| (gateway.service.descriptors() <= descriptors).then_some(()))
            .expect("the flow's socket stays open");
    }
}

#[test]
fn a_client_keeps_its_port_from_flow_to_flow() {
    let gateway = Gateway::start(&["--udp-timeout=0.3"]);
    let mut client = gateway.connect();
    let source = source_of(&mut client, 1, &remote());
    // The same conid for another remote, with no other flow beside it; then after all are closed.
    assert_eq!(source_of(&mut client, 1, &remote()), source);
    gateway.await_flows(0);
    assert_eq!(source_of(&mut client, 2, &remote()), source);
}

#[test]
fn a_dns_flow_ends_with_the_answer_to_its_last_query() {
    let (resolver, address) = remote();
    let gateway = Gateway::start(&[&format!("--dns={address}")]);
    let mut client = gateway.connect();
    let mut query = Vec::new();
    assert!(udpferry::wire::dns::write_query(&mut query, 5, "a.example"));
    let mut answer = query.clone();
    answer[2] |= 0x80;
    let asked = "192.0.2.53:53".parse().unwrap();
    for _ in 0..2 {
        client.send_dns(1, asked, &query);
    }
    let (_, source) = receive_from(&resolver);
    receive_from(&resolver);
    // What is no answer counts for nothing.
    for payload in [&query, &answer] {
        resolver.send_to(payload, source).unwrap();
        assert_eq!(client.receive(), reply(1, asked, payload));
    }
    gateway.await_metric("udpferry_udpgw_flows", 1);
    resolver.send_to(&answer, source).unwrap();
    assert_eq!(client.receive(), reply(1, asked, &answer));
    gateway.await_flows_closed("answered", 1);
    gateway.await_flows(0);
    // The next query has another port.
    client.send_dns(1, asked, &query);
    assert_ne!(receive_from(&resolver).1, source);
}

#[test]
fn ports_of_the_range_that_others_hold_are_passed_over() {
    let port = crate::support::free_port();
    let taken = std::net::UdpSocket::bind(("127.0.0.1", port)).unwrap();
    let addresses = taken.local_addr().unwrap().to_string();
    let gateway = Gateway::start(&["--local-udp-addrs", &addresses, "4"]);
    for _ in 0..5 {
        let mut client = gateway.connect();
        let source = source_of(&mut client, 1, &remote());
        assert!((port + 1..port + 4).contains(&source.port()), "{source}");
    }
    assert_eq!(gateway.metric("udpferry_udpgw_port_pool_exhausted_total"), 0);
}

#[test]
fn a_flow_in_use_stays_open() {
    const TIMEOUT: Duration = Duration::from_millis(600);
    let gateway = Gateway::start(&["--udp-timeout=0.6"]);
    let (socket, address) = remote();
    let mut client = gateway.connect();
    client.send(1, address, b"hello");
    let (_, source) = receive_from(&socket);
    let begin = Instant::now();
    let (mut since, mut last) = (begin, begin);
    // Datagrams from the remote alone keep it, for longer than the timeout. Where this machine
    // stops for half of it, the time counts anew.
    while since.elapsed() < TIMEOUT * 2 {
        assert!(begin.elapsed() < PATIENCE, "the machine is too slow for this test");
        socket.send_to(b"news", source).unwrap();
        assert_eq!(client.receive(), reply(1, address, b"news"));
        if last.elapsed() > TIMEOUT / 2 {
            since = Instant::now();
        }
        last = Instant::now();
        assert!(client.is_silent_for(Duration::from_millis(50)));
    }
    assert_eq!(gateway.flows_closed("idle"), 0);
    gateway.await_flows_closed("idle", 1);
}

#[test]
fn at_the_limit_the_least_recently_used_flow_goes() {
    let gateway = Gateway::start(&["--max-connections-for-client=10"]);
    let remotes: Vec<_> = (0..11).map(|_| remote()).collect();
    let mut client = gateway.connect();
    let mut source = None;
    for (conid, remote) in (0..10).zip(&remotes) {
        source = Some(source_of(&mut client, conid, remote));
    }
    let source = source.unwrap();
    // Flow 0 is used by the client, flow 1 by its remote: flow 2 is the oldest.
    source_of(&mut client, 0, &remotes[0]);
    remotes[1].0.send_to(b"used", source).unwrap();
    assert_eq!(client.receive(), reply(1, remotes[1].1, b"used"));
    assert_eq!(gateway.flows_closed("evicted"), 0);

    assert_eq!(source_of(&mut client, 10, &remotes[10]), source);
    gateway.await_flows_closed("evicted", 1);
    gateway.await_flows(10);
    remotes[2].0.send_to(b"too late", source).unwrap();
    gateway.await_dropped("stranger", 1);
    for (conid, remote) in (0..).zip(&remotes).filter(|(conid, _)| *conid != 2) {
        remote.0.send_to(b"news", source).unwrap();
        assert_eq!(client.receive(), reply(conid, remote.1, b"news"));
    }
    assert_eq!(gateway.metric("udpferry_udpgw_flows_opened_total"), 11);
}

#[test]
fn clients_that_come_and_go_leave_nothing_behind() {
    const CLIENTS: u16 = 100;
    const FLOWS: u16 = 8;
    const ROUNDS: u16 = 4;
    let gateway = Gateway::start(&["--mapping=per-flow"]);
    let echo = Echo::start();
    gateway.await_clients(0);
    let descriptors = gateway.service.descriptors();
    let threads = gateway.service.status("Threads");
    for round in 1..=ROUNDS {
        let mut clients: Vec<_> = (0..CLIENTS).map(|_| gateway.connect()).collect();
        for (number, client) in (0_u16..).zip(&mut clients) {
            for conid in 0..FLOWS {
                client.send(conid, echo.address, &(number * FLOWS + conid).to_le_bytes());
            }
            let mut conids: Vec<u16> = (0..FLOWS)
                .map(|_| {
                    let got = client.receive();
                    assert_eq!(got.payload, (number * FLOWS + got.conid).to_le_bytes());
                    got.conid
                })
                .collect();
            conids.sort_unstable();
            assert_eq!(conids, (0..FLOWS).collect::<Vec<_>>());
        }
        gateway.await_clients(i64::from(CLIENTS));
        gateway.await_flows(i64::from(CLIENTS * FLOWS));
        drop(clients);
        gateway.await_clients(0);
        gateway.await_flows(0);
        assert_eq!(gateway.flows_closed("client-gone"), i64::from(round * CLIENTS * FLOWS));
    }
    gateway.await_clients_closed("closed", i64::from(ROUNDS * CLIENTS));
    // Scrapes that are over may still be closing, and the kernel counts a thread a moment longer than
    // others wait for it.
    let left = || (gateway.service.descriptors(), gateway.service.status("Threads"));
    await_some(|| (left() == (descriptors, threads)).then_some(()))
        .unwrap_or_else(|| panic!("descriptors and threads: {:?}", left()));
}

#[test]
fn icmp_errors_are_counted_and_close_no_flow() {
    let gateway = Gateway::start(&["--mapping=per-flow"]);
    let port = free_udp_range(1);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut client = gateway.connect();
    let errors = "udpferry_udpgw_icmp_errors_total";
    // The error of each datagram shows at the next one at the latest.
    for number in 1..=5 {
        client.send(1, address, b"anyone there?");
        gateway.await_at_least(errors, number);
    }
    gateway.await_flows(1);
    for reason in ["idle", "evicted", "rebound", "client-gone"] {
        assert_eq!(gateway.flows_closed(reason), 0, "{reason}");
    }
    let _echo = Echo::on(&address.to_string());
    client.echo(1, address, b"now there is");
    assert_eq!(gateway.metric("udpferry_udpgw_flows_opened_total"), 1);
}

#[test]
fn icmp_errors_on_a_shared_socket_disturb_nobody() {
    let gateway = Gateway::start(&[]);
    let echo = Echo::start();
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_udp_range(1)));
    let mut client = gateway.connect();
    for _ in 0..20 {
        client.send(1, nobody, b"anyone there?");
        client.echo(2, echo.address, b"hello");
    }
    gateway.await_flows(2);
}

#[test]
fn local_ports_come_from_the_range_and_go_back_to_it() {
    let first = free_udp_range(2);
    let range = first..first + 2;
    let first = format!("127.0.0.1:{first}");
    let gateway = Gateway::start(&["--local-udp-addrs", &first, "2"]);
    let (a, b) = (remote(), remote());
    let exhausted = "udpferry_udpgw_port_pool_exhausted_total";
    for round in 1..=3 {
        let mut client = gateway.connect();
        let one = source_of(&mut client, 1, &a);
        let two = source_of(&mut client, 2, &a);
        assert!(range.contains(&one.port()) && range.contains(&two.port()), "{one} {two}");
        assert_ne!(one, two);
        // Another remote shares a port; the answers find their flows.
        let shared = source_of(&mut client, 3, &b);
        assert!(shared == one || shared == two);
        for (remote, source, conid) in [(&b, shared, 3), (&a, two, 2), (&a, one, 1)] {
            remote.0.send_to(b"answer", source).unwrap();
            assert_eq!(client.receive(), reply(conid, remote.1, b"answer"));
        }
        assert_eq!(gateway.metric(exhausted), round - 1);
        let beyond = source_of(&mut client, 4, &a);
        assert!(!range.contains(&beyond.port()));
        a.0.send_to(b"answer", beyond).unwrap();
        assert_eq!(client.receive(), reply(4, a.1, b"answer"));
        gateway.await_metric(exhausted, round);
        drop(client);
        gateway.await_clients(0);
    }
}

#[test]
fn a_local_port_is_free_again_when_its_flow_ends() {
    let first = free_udp_range(1);
    let address = format!("127.0.0.1:{first}");
    let gateway = Gateway::start(&["--local-udp-addrs", &address, "1"]);
    let a = remote();
    let mut client = gateway.connect();
    for conid in [1, 1, 1] {
        client.send_rebind(conid, a.1, b"hello");
        assert_eq!(receive_from(&a.0).1.port(), first);
    }
    assert_eq!(gateway.metric("udpferry_udpgw_port_pool_exhausted_total"), 0);
}

#[test]
fn unique_local_ports_are_not_shared_by_flows_to_one_host() {
    for (option, shared) in [(None, true), (Some("--unique-local-ports"), false)] {
        let first = free_udp_range(3);
        let address = format!("127.0.0.1:{first}");
        let mut args = vec!["--local-udp-addrs", &address, "3"];
        args.extend(option);
        let gateway = Gateway::start(&args);
        let mut client = gateway.connect();
        let same_host = [remote(), remote()];
        let other_host = remote_on("127.0.0.2:0");
        let one = source_of(&mut client, 1, &same_host[0]).port();
        let two = source_of(&mut client, 2, &same_host[1]).port();
        assert_eq!(one == two, shared, "{option:?}");
        let three = source_of(&mut client, 3, &other_host).port();
        assert_eq!(three, one, "another host's flow begins at the same place");
        assert!((first..first + 3).contains(&two));
    }
}

#[test]
fn ipv6_flows_have_a_range_of_their_own() {
    let first = free_udp_range(2);
    let address = format!("[::1]:{first}");
    let gateway = Gateway::start(&["--local-udp-ip6-addrs", &address, "2"]);
    let a = remote_on("[::1]:0");
    let mut client = gateway.connect();
    let mut ports = [1, 2].map(|conid| source_of(&mut client, conid, &a).port());
    ports.sort_unstable();
    assert_eq!(ports, [first, first + 1]);
    assert_ne!(source_of(&mut client, 3, &remote()).port(), first, "IPv4 is not bound by it");
    assert_eq!(gateway.metric("udpferry_udpgw_port_pool_exhausted_total"), 0);
    assert!(!ports.contains(&source_of(&mut client, 4, &a).port()));
    gateway.await_metric("udpferry_udpgw_port_pool_exhausted_total", 1);
}
