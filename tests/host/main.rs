//! What a tunnel changes on its host, in namespaces of the tests' own: done, undone, left behind by a run that was
//! killed, and undone by the next.
#![allow(clippy::disallowed_methods)] // Tests measure time and start threads of their own.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // A failed unwrap is a failed test.

#[path = "../support/mod.rs"]
mod support;

use std::net::IpAddr;
use std::path::Path;
use support::kernel::{in_own_namespaces, run};
use support::{Scratch, await_some};
use udpferry::net::netlink::route::{Hop, MAIN, Route};
use udpferry::net::netlink::rule::Rule;
use udpferry::net::netlink::{Netlink, Network};
use udpferry::roles::host::client::ClientPlan;
use udpferry::roles::host::server::{Nat, ServerPlan};
use udpferry::roles::host::{Host, Places};

fn network(text: &str) -> Network {
    let (address, length) = text.split_once('/').unwrap();
    Network { address: address.parse().unwrap(), length: length.parse().unwrap() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An interface to the world with default routes, and a tunnel's device.
fn make_links() {
    for line in [
        "link add eth0 type veth peer name far",
        "addr add 192.0.2.2/24 dev eth0",
        "addr add 2001:db8:1::2/64 dev eth0 nodad",
        "link set eth0 up",
        "link set far up",
        "route add default via 192.0.2.1",
        "route add default via 2001:db8:1::1",
        "tuntap add dev vpnt mode tun",
        "addr add 10.0.0.1/24 dev vpnt",
        "link set vpnt up",
    ] {
        run("ip", &line.split(' ').collect::<Vec<_>>());
    }
    // The kernel tells itself of a carrier a moment later, and its routes say so.
    let has_carrier = || {
        let routes = run("sh", &["-c", "ip route show table all; ip -6 route show table all"]);
        let down =
            routes.lines().any(|line| line.contains("dev eth0") && line.contains("linkdown"));
        (!down && routes.contains("local 2001:db8:1::2")).then_some(())
    };
    await_some(has_carrier).expect("eth0 gets no carrier");
}

/// Everything that a host set-up changes.
fn state() -> String {
    let all = "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; nft list ruleset; \
               sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding; cat /etc/resolv.conf 2>/dev/null; true";
    let text = run("sh", &["-c", all]);
    // What the kernel does by itself meanwhile.
    let steady = |line: &&str| !line.contains("fe80") && !line.contains("ff00::");
    let lines: Vec<&str> = text.lines().filter(steady).collect();
    lines.join("\n")
}

/// The device that a packet to this address leaves by.
fn device_to(address: &str) -> String {
    let said = run("sh", &["-c", &format!("ip route get {address} 2>&1 || true")]);
    let mut words = said.split_whitespace().skip_while(|word| *word != "dev").skip(1);
    words.next().unwrap_or("none").to_owned()
}

fn places(scratch: &Scratch) -> Places {
    Places { runtime_dir: scratch.path("run"), resolv_conf: scratch.path("resolv.conf") }
}

#[test]
fn netlink_does_what_ip_says() {
    if !in_own_namespaces("netlink_does_what_ip_says") {
        return;
    }
    make_links();
    let mut netlink = Netlink::open().unwrap();
    let link = netlink.link("vpnt").unwrap();
    assert!(link.is_up && link.name == "vpnt");
    assert_eq!(netlink.link("nobody").unwrap_err().kind(), std::io::ErrorKind::NotFound);
    netlink.set_mtu(link.index, 1400).unwrap();
    netlink.set_queue_len(link.index, 1000).unwrap();
    netlink.set_up(link.index, false).unwrap();
    let link = netlink.link_by_index(link.index).unwrap();
    assert!(!link.is_up && link.mtu == 1400);
    assert!(run("ip", &["link", "show", "vpnt"]).contains("mtu 1400"));
    assert!(run("ip", &["link", "show", "vpnt"]).contains("qlen 1000"));
    netlink.set_up(link.index, true).unwrap();
    assert!(netlink.links().unwrap().iter().any(|other| other.name == "eth0"));

    for text in ["10.9.0.1/24", "fd09::1/64"] {
        let address = network(text);
        netlink.add_address(link.index, address).unwrap();
        let again = netlink.add_address(link.index, address).unwrap_err();
        assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists);
        let shown = run("ip", &["addr", "show", "dev", "vpnt"]);
        assert!(shown.contains(text) && !shown.contains("tentative"), "{shown}");
        let listed = netlink.addresses().unwrap();
        assert!(listed.iter().any(|it| it.index == link.index && it.network == address));
        netlink.delete_address(link.index, address).unwrap();
        let gone = netlink.delete_address(link.index, address).unwrap_err();
        assert!(Netlink::is_absent(&gone), "{gone}");
    }

    let path = netlink.path_to(ip("198.51.100.1")).unwrap();
    assert_eq!((path.gateway, path.source), (Some(ip("192.0.2.1")), Some(ip("192.0.2.2"))));
    assert_eq!(netlink.link_by_index(path.device).unwrap().name, "eth0");
    let path = netlink.path_to(ip("2001:db8:9::1")).unwrap();
    assert_eq!(path.gateway, Some(ip("2001:db8:1::1")));

    for (to, hop) in [
        ("203.0.113.0/24", Hop::Device(link.index)),
        ("203.0.113.0/24", Hop::Gateway(ip("192.0.2.7"), netlink.link("eth0").unwrap().index)),
        ("2001:db8:5::/48", Hop::Unreachable),
    ] {
        for table in [MAIN, 5555] {
            let route = Route { to: network(to), hop, table, metric: 77 };
            netlink.add_route(route).unwrap();
            let again = netlink.add_route(route).unwrap_err();
            assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists);
            netlink.replace_route(route).unwrap();
            assert!(netlink.routes(table).unwrap().contains(&route), "{route:?}");
            assert!(netlink.static_routes(table).unwrap().contains(&route), "{route:?}");
            netlink.delete_route(route).unwrap();
            assert!(Netlink::is_absent(&netlink.delete_route(route).unwrap_err()));
        }
    }
    run("ip", &["route", "add", "203.0.113.0/24", "dev", "vpnt"]);
    let is_that = |route: &Route| route.to == network("203.0.113.0/24");
    assert!(netlink.routes(MAIN).unwrap().iter().any(is_that));
    assert!(!netlink.static_routes(MAIN).unwrap().iter().any(is_that), "added by hand");

    let port = |to: &str| (to.len() < 10).then_some(53);
    for to in ["198.51.100.1/32", "0.0.0.0/0", "2001:db8::/32", "::/0"] {
        let rule = Rule { priority: 5200, to: network(to), port: port(to), table: 5555 };
        netlink.add_rule(rule).unwrap();
        assert!(netlink.rules().unwrap().contains(&rule));
        netlink.delete_rule(rule).unwrap();
        assert!(Netlink::is_absent(&netlink.delete_rule(rule).unwrap_err()));
    }
}

#[test]
fn a_server_undoes_what_it_did() {
    if !in_own_namespaces("a_server_undoes_what_it_did") {
        return;
    }
    make_links();
    let scratch = Scratch::new();
    let before = state();
    let plan = |out: Option<&str>| ServerPlan {
        networks: vec![network("10.0.0.0/24"), network("fd00::/64")],
        nat: Some(Nat { out_interface: out.map(str::to_owned) }),
    };
    let mut host = Host::open(places(&scratch), "vpnt", false).unwrap();
    host.serve(&plan(None)).unwrap();
    let during = state();
    for piece in [
        "net.ipv4.ip_forward = 1",
        "net.ipv6.conf.all.forwarding = 1",
        "table inet udpferry_vpnt",
        "ip saddr 10.0.0.0/24 oifname \"eth0\" masquerade",
        "ip6 saddr fd00::/64 oifname \"eth0\" masquerade",
        "tcp option maxseg size set rt mtu",
    ] {
        assert!(during.contains(piece), "{piece} is not in\n{during}");
    }
    // Another tunnel needs forwarding longer than this one.
    let mut other = Host::open(places(&scratch), "vpnu", false).unwrap();
    other.serve(&plan(Some("eth0"))).unwrap();
    host.undo();
    assert!(state().contains("net.ipv4.ip_forward = 1"));
    other.undo();
    assert_eq!(state(), before);
    let error = host.serve(&plan(Some("nobody"))).unwrap_err().to_string();
    assert!(error.starts_with("cannot use the interface nobody: "), "{error}");
    let error = host.serve(&plan(Some("a\" accept"))).unwrap_err().to_string();
    assert!(error.contains("no interface has such a name"), "{error}");

    // Killed: the next start finds what is left, and does it anew.
    host.serve(&plan(None)).unwrap();
    drop(host);
    let mut host = Host::open(places(&scratch), "vpnt", false).unwrap();
    assert_eq!(state(), before);
    host.serve(&plan(None)).unwrap();
    host.undo();
    assert_eq!(state(), before);
}

#[test]
fn iptables_rules_of_others_do_not_stop_a_server() {
    if !in_own_namespaces("iptables_rules_of_others_do_not_stop_a_server") {
        return;
    }
    if !Path::new("/usr/sbin/iptables").exists() {
        eprintln!("skipped: no iptables");
        return;
    }
    make_links();
    run("iptables", &["-P", "FORWARD", "DROP"]);
    let before = run("iptables", &["-S"]);
    let scratch = Scratch::new();
    let mut host = Host::open(places(&scratch), "vpnt", false).unwrap();
    let nat = Some(Nat::default());
    host.serve(&ServerPlan { networks: vec![network("10.0.0.0/24")], nat }).unwrap();
    let during = run("iptables", &["-S", "FORWARD"]);
    assert!(during.contains("-i vpnt -j ACCEPT"), "{during}");
    host.undo();
    assert_eq!(run("iptables", &["-S"]), before);
}

#[test]
fn a_client_sends_everything_into_the_tunnel_but_what_must_stay_outside() {
    if !in_own_namespaces("a_client_sends_everything_into_the_tunnel_but_what_must_stay_outside") {
        return;
    }
    make_links();
    let scratch = Scratch::new();
    std::fs::write(scratch.path("resolv.conf"), "nameserver 192.0.2.53\n").unwrap();
    let before = state();
    let mut host = Host::open(places(&scratch), "vpnt", false).unwrap();
    let plan = ClientPlan {
        servers: vec!["198.51.100.1:5555".parse().unwrap()],
        default_route: true,
        excludes: vec![network("172.16.0.0/12")],
        dns: vec![ip("10.0.0.2")],
        ..ClientPlan::default()
    };
    host.route(&plan).unwrap();
    assert_eq!(device_to("203.0.113.9"), "vpnt");
    assert_eq!(device_to("9.9.9.9"), "vpnt");
    assert_eq!(device_to("198.51.100.1"), "eth0");
    assert_eq!(device_to("172.16.3.4"), "eth0");
    // DHCP's option 121 puts routes there.
    run("ip", &["route", "add", "203.0.113.0/24", "via", "192.0.2.1"]);
    assert_eq!(device_to("203.0.113.9"), "vpnt");
    run("ip", &["route", "del", "203.0.113.0/24"]);
    // Without an IPv6 address in the tunnel nothing leaves beside it.
    let said = run("sh", &["-c", "ip -6 route get 2001:db8:9::9 2>&1 || true"]);
    assert!(said.contains("No route to host"), "{said}");
    let resolver = std::fs::read_to_string(scratch.path("resolv.conf")).unwrap();
    assert!(resolver.contains("nameserver 10.0.0.2") && !resolver.contains("192.0.2.53"));

    host.move_servers(&["198.51.100.7:5555".parse().unwrap()]).unwrap();
    assert_eq!(device_to("198.51.100.7"), "eth0");
    assert_eq!(device_to("198.51.100.1"), "vpnt");
    host.undo();
    assert_eq!(state(), before);
    let resolver = std::fs::read_to_string(scratch.path("resolv.conf")).unwrap();
    assert_eq!(resolver, "nameserver 192.0.2.53\n");

    // Killed, and only some networks this time.
    host.route(&plan).unwrap();
    drop(host);
    let mut host = Host::open(places(&scratch), "vpnt", false).unwrap();
    assert_eq!(state(), before);
    let some = ClientPlan {
        routes: vec![network("203.0.113.0/24")],
        default_route: false,
        dns: Vec::new(),
        ..plan
    };
    host.route(&some).unwrap();
    assert_eq!(device_to("203.0.113.9"), "vpnt");
    assert_eq!(device_to("9.9.9.9"), "eth0");
    host.undo();
    assert_eq!(state(), before);
}

#[test]
fn two_clients_do_not_disturb_each_other() {
    if !in_own_namespaces("two_clients_do_not_disturb_each_other") {
        return;
    }
    make_links();
    run("ip", &["tuntap", "add", "dev", "vpnu", "mode", "tun"]);
    run("ip", &["link", "set", "vpnu", "up"]);
    let scratch = Scratch::new();
    let plan = |server: &str, route: &str| ClientPlan {
        servers: vec![server.parse().unwrap()],
        routes: vec![network(route)],
        ..ClientPlan::default()
    };
    let mut first = Host::open(places(&scratch), "vpnt", false).unwrap();
    first.route(&plan("198.51.100.1:5555", "203.0.113.0/25")).unwrap();
    let mut second = Host::open(places(&scratch), "vpnu", false).unwrap();
    second.route(&plan("198.51.100.2:5555", "203.0.113.128/25")).unwrap();
    assert_eq!(device_to("203.0.113.1"), "vpnt");
    assert_eq!(device_to("203.0.113.129"), "vpnu");
    first.undo();
    assert_eq!(device_to("203.0.113.129"), "vpnu");
    second.undo();
    assert_eq!(device_to("203.0.113.129"), "eth0");

    // The one that takes everything leaves others what they ask for, though it was first.
    let all = ClientPlan { default_route: true, ..plan("198.51.100.1:5555", "203.0.113.0/25") };
    first.route(&all).unwrap();
    second.route(&plan("198.51.100.2:5555", "203.0.113.128/25")).unwrap();
    assert_eq!(device_to("203.0.113.129"), "vpnu");
    assert_eq!(device_to("203.0.113.1"), "vpnt");
    assert_eq!(device_to("9.9.9.9"), "vpnt");
    assert_eq!(device_to("198.51.100.2"), "eth0", "the second one's server is outside");
    first.undo();
    second.undo();
}

#[test]
fn a_kill_switch_outlives_its_client() {
    if !in_own_namespaces("a_kill_switch_outlives_its_client") {
        return;
    }
    make_links();
    run("ip", &["link", "set", "lo", "up"]);
    let scratch = Scratch::new();
    let before = state();
    let plan = ClientPlan {
        servers: vec!["192.0.2.1:5555".parse().unwrap()],
        kill_switch: true,
        ..ClientPlan::default()
    };
    let outside = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let is_dropped = || {
        let error = outside.send_to(b"x", "192.0.2.9:9").err();
        error.is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    };
    assert!(!is_dropped());
    let mut host = Host::open(places(&scratch), "vpnt", true).unwrap();
    host.route(&plan).unwrap();
    assert!(is_dropped());
    outside.send_to(b"x", "192.0.2.1:5555").unwrap();
    outside.send_to(b"x", "10.0.0.2:9").unwrap();
    outside.send_to(b"x", "127.0.0.1:9").unwrap();
    // Killed.
    drop(host);
    assert!(is_dropped());
    let mut host = Host::open(places(&scratch), "vpnt", true).unwrap();
    assert!(is_dropped(), "the next start keeps it until it has its own");
    host.route(&plan).unwrap();
    host.move_servers(&["192.0.2.9:5555".parse().unwrap()]).unwrap();
    assert!(is_dropped());
    outside.send_to(b"x", "192.0.2.9:5555").unwrap();
    drop(host);
    // `vpn down`.
    let mut host = Host::open(places(&scratch), "vpnt", false).unwrap();
    assert!(!is_dropped());
    host.undo();
    assert_eq!(state(), before);
}

/// Whether this user's question for a name is dropped.
fn is_name_dropped() -> bool {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let error = socket.send_to(b"x", "192.0.2.53:53").err();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

#[test]
fn a_server_that_has_moved_can_be_looked_for() {
    if !in_own_namespaces("a_server_that_has_moved_can_be_looked_for") {
        return;
    }
    make_links();
    let scratch = Scratch::new();
    std::fs::write(scratch.path("resolv.conf"), "nameserver 192.0.2.53\n").unwrap();
    let before = state();
    let mut host = Host::open(places(&scratch), "vpnt", true).unwrap();
    let guard = ClientPlan { kill_switch: true, ..ClientPlan::default() };
    host.route(&guard).unwrap();
    assert!(host.is_guarded() && is_name_dropped(), "before any address is known");
    host.open_lookups().unwrap();
    assert!(!is_name_dropped());
    host.close_lookups().unwrap();
    assert!(is_name_dropped());

    let plan = ClientPlan {
        servers: vec!["198.51.100.1:5555".parse().unwrap()],
        default_route: true,
        dns: vec![ip("10.0.0.2")],
        ..guard
    };
    host.route(&plan).unwrap();
    let resolver = || std::fs::read_to_string(scratch.path("resolv.conf")).unwrap();
    assert_eq!(device_to("192.0.2.53"), "vpnt");
    assert!(resolver().contains("10.0.0.2"));
    host.open_lookups().unwrap();
    assert_eq!(device_to("192.0.2.53"), "eth0");
    assert_eq!(device_to("198.51.100.1"), "eth0");
    assert!(!is_name_dropped());
    assert_eq!(resolver(), "nameserver 192.0.2.53\n");
    host.close_lookups().unwrap();
    assert_eq!(device_to("192.0.2.53"), "vpnt");
    assert!(resolver().contains("10.0.0.2"));
    // Killed while it looked.
    host.open_lookups().unwrap();
    drop(host);
    let mut host = Host::open(places(&scratch), "vpnt", false).unwrap();
    host.undo();
    assert_eq!(state(), before);
    assert_eq!(resolver(), "nameserver 192.0.2.53\n");
}

#[test]
fn a_resolver_of_this_host_may_ask_whom_it_wants_while_a_server_is_looked_for() {
    if !in_own_namespaces(
        "a_resolver_of_this_host_may_ask_whom_it_wants_while_a_server_is_looked_for",
    ) {
        return;
    }
    make_links();
    let scratch = Scratch::new();
    std::fs::write(scratch.path("resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
    // As it is where systemd-resolved is not.
    run("sh", &["-c", "[ ! -d /run/systemd ] || mount -t tmpfs none /run/systemd"]);
    let before = state();
    let mut host = Host::open(places(&scratch), "vpnt", false).unwrap();
    host.route(&ClientPlan {
        servers: vec!["198.51.100.1:5555".parse().unwrap()],
        default_route: true,
        kill_switch: true,
        ..ClientPlan::default()
    })
    .unwrap();
    let question = "udp dport { 53, 853 } accept";
    let way = || run("ip", &["route", "get", "9.9.9.9", "ipproto", "udp", "dport", "53"]);
    assert!(!state().contains(question) && way().contains("dev vpnt"));
    host.open_lookups().unwrap();
    assert!(state().contains(question));
    assert!(way().contains("dev eth0"), "{}", way());
    assert_eq!(device_to("9.9.9.9"), "vpnt", "nothing but the questions");
    host.close_lookups().unwrap();
    assert!(!state().contains(question) && way().contains("dev vpnt"));
    host.open_lookups().unwrap();
    host.undo();
    assert_eq!(state(), before);
}

#[test]
fn what_others_remove_is_put_back() {
    if !in_own_namespaces("what_others_remove_is_put_back") {
        return;
    }
    make_links();
    let scratch = Scratch::new();
    let before = state();
    let mut host = Host::open(places(&scratch), "vpnt", false).unwrap();
    host.route(&ClientPlan {
        servers: vec!["198.51.100.1:5555".parse().unwrap()],
        default_route: true,
        kill_switch: true,
        ..ClientPlan::default()
    })
    .unwrap();
    let during = state();
    assert!(
        during.contains("proto kernel"),
        "no rule that systemd-networkd takes for foreign: {during}"
    );
    run("sh", &["-c", "ip rule flush; ip rule add priority 32766 table main; ip -6 rule flush"]);
    run("sh", &["-c", "ip -6 rule add priority 32766 table main; ip link set vpnt down"]);
    run("sh", &["-c", "ip link set vpnt up; nft flush ruleset"]);
    assert_ne!(device_to("9.9.9.9"), "vpnt");
    host.mend_routes();
    host.mend_tables().unwrap();
    // ip rule flush has taken the kernel's own, too.
    let lines = |text: &str, piece: &str| -> Vec<String> {
        let found = text.lines().filter(|line| line.contains(piece));
        let mut lines: Vec<String> = found.map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let after = state();
    for piece in ["15555", "15556", "udpferry", "accept"] {
        assert!(!lines(&during, piece).is_empty(), "{piece}");
        assert_eq!(lines(&after, piece), lines(&during, piece), "{piece}");
    }
    assert_eq!(device_to("9.9.9.9"), "vpnt");
    host.mend_routes();
    host.mend_tables().unwrap();
    assert_eq!(state(), after);
    host.undo();
    for piece in ["15555", "15556", "udpferry"] {
        assert_eq!(lines(&state(), piece), lines(&before, piece), "{piece}");
    }

    let networks = vec![network("10.0.0.0/24")];
    host.serve(&ServerPlan { networks, nat: Some(Nat::default()) }).unwrap();
    run("nft", &["flush", "ruleset"]);
    host.mend_tables().unwrap();
    assert!(state().contains("masquerade"));
    host.undo();
}

#[test]
fn what_cannot_be_undone_now_is_undone_later() {
    if !in_own_namespaces("what_cannot_be_undone_now_is_undone_later") {
        return;
    }
    make_links();
    let scratch = Scratch::new();
    let before = state();
    let networks = vec![network("10.0.0.0/24")];
    let mut host = Host::open(places(&scratch), "vpnt", false).unwrap();
    host.serve(&ServerPlan { networks, nat: Some(Nat::default()) }).unwrap();
    let broken = scratch.path("nft");
    std::fs::copy("/bin/false", &broken).unwrap();
    run("mount", &["--bind", broken.to_str().unwrap(), "/usr/sbin/nft"]);
    host.undo();
    drop(host);
    run("umount", &["/usr/sbin/nft"]);
    assert!(state().contains("udpferry_vpnt"));
    Host::open(places(&scratch), "vpnt", false).unwrap().undo();
    assert_eq!(state(), before);
}

#[test]
fn ipv6_router_advertisements_are_still_heard() {
    if !in_own_namespaces("ipv6_router_advertisements_are_still_heard") {
        return;
    }
    make_links();
    let scratch = Scratch::new();
    let accept = || std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/accept_ra").unwrap();
    run("sh", &["-c", "echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_ra"]);
    let plan = || ServerPlan { networks: vec![network("fd00::/64")], nat: Some(Nat::default()) };
    let mut host = Host::open(places(&scratch), "vpnt", false).unwrap();
    host.serve(&plan()).unwrap();
    let mut other = Host::open(places(&scratch), "vpnu", false).unwrap();
    other.serve(&plan()).unwrap();
    assert_eq!(accept().trim(), "2");
    host.undo();
    assert_eq!(accept().trim(), "2", "another one needs it");
    other.undo();
    assert_eq!(accept().trim(), "1");
}

#[test]
fn ssh_sessions_keep_their_way_also_from_single_routes() {
    if !in_own_namespaces("ssh_sessions_keep_their_way_also_from_single_routes") {
        return;
    }
    make_links();
    run("ip", &["link", "set", "lo", "up"]);
    run("ip", &["addr", "add", "203.0.113.7/32", "dev", "lo"]);
    // A session of an operator whose network goes into the tunnel, as the kernel's table shows it.
    let listener = std::net::TcpListener::bind("192.0.2.2:2222").unwrap();
    let session = {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let address = |text: &str| text.parse::<std::net::SocketAddr>().unwrap().into();
        socket.bind(&address("203.0.113.7:40000")).unwrap();
        socket.connect(&address("192.0.2.2:2222")).unwrap();
        socket
    };
    let _accepted = listener.accept().unwrap();
    run("ip", &["addr", "del", "203.0.113.7/32", "dev", "lo"]);
    let scratch = Scratch::new();
    let mut host = Host::open(places(&scratch), "vpnt", false).unwrap();
    let plan = ClientPlan {
        servers: vec!["198.51.100.1:5555".parse().unwrap()],
        routes: vec![network("203.0.113.0/24")],
        ssh_ports: vec![2222],
        ..ClientPlan::default()
    };
    host.route(&plan).unwrap();
    assert_eq!(device_to("203.0.113.9"), "vpnt");
    assert_eq!(device_to("203.0.113.7"), "eth0");
    host.undo();
    drop(session);
}
