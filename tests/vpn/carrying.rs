//! Packets through the tunnel, and the tunnel's own comings and goings.

use crate::hosts::{Hosts, SERVER, await_ping, number, pings, run_on_c};
use crate::support::kernel::{in_own_namespaces, run};
use nix::sys::signal::Signal;

/// The client's address inside.
fn inner_ipv4() -> String {
    let shown = run_on_c("ip -4 -o addr show dev vpnc");
    shown.split_whitespace().nth(3).unwrap().to_owned()
}

#[test]
fn both_families_both_ways_and_counted_to_the_byte() {
    if !in_own_namespaces("carrying::both_families_both_ways_and_counted_to_the_byte") {
        return;
    }
    let hosts = Hosts::new();
    let server = hosts.server(&[]);
    let client = hosts.connected(&[SERVER]);
    assert_eq!(inner_ipv4(), "10.0.0.1/24");
    // 20 of IP, 8 of ICMP, 1,000 of data; 40 + 8 + 500.
    assert!(pings(true, 10, "-s 1000 10.0.0.2"));
    assert!(pings(true, 4, "-s 500 fd00::2"));
    assert!(pings(false, 3, "-s 1000 10.0.0.1"));
    assert!(pings(false, 2, "-s 500 fd00::1"));
    let status = hosts.ask(&["status", "--json"], "server");
    let status = String::from_utf8(status.stdout).unwrap();
    let expected = 13 * 1028 + 6 * 548;
    for (packets, bytes) in [("packets_in", "bytes_in"), ("packets_out", "bytes_out")] {
        assert_eq!(number(&status, packets), 19, "{status}");
        assert_eq!(number(&status, bytes), expected, "{status}");
    }
    assert!(pings(true, 2, "-s 1444 -M do 10.0.0.2"), "an MTU of 1472");
    assert!(!pings(true, 1, "-s 1445 -M do 10.0.0.2"));
    assert!(pings(true, 2, "-s 9000 10.0.0.2"), "in fragments");
    assert!(client.stop().0.success());
    server.await_log("said goodbye");
    assert_eq!(hosts.metric("udpferry_vpn_clients"), 0);
    assert!(server.stop().0.success());
    assert!(!run("ip", &["link"]).contains("vpns"), "the device goes with the server");
    assert!(!run_on_c("ip link").contains("vpnc"));
}

#[test]
fn over_ipv6_with_fixed_addresses() {
    if !in_own_namespaces("carrying::over_ipv6_with_fixed_addresses") {
        return;
    }
    let hosts = Hosts::new();
    let _server = hosts.server(&[]);
    let fixed = ["--address=10.0.0.9/24", "--address=fd00::9/64"];
    let _client = hosts.connected(&[&["[2001:db8::1]:5555"], &fixed[..]].concat());
    assert_eq!(inner_ipv4(), "10.0.0.9/24");
    assert!(run_on_c("ip link show vpnc").contains("mtu 1452"));
    assert!(pings(true, 3, "10.0.0.2") && pings(true, 3, "fd00::2"));
    assert!(pings(false, 3, "10.0.0.9") && pings(false, 3, "fd00::9"));
}

#[test]
fn a_client_that_moves_keeps_its_addresses() {
    if !in_own_namespaces("carrying::a_client_that_moves_keeps_its_addresses") {
        return;
    }
    let hosts = Hosts::new();
    let server = hosts.server(&[]);
    let _client = hosts.connected(&[SERVER]);
    // Another address of the same network, and the old one goes, alone.
    run_on_c("sysctl -qw net.ipv4.conf.all.promote_secondaries=1");
    run_on_c("ip addr add 192.0.2.77/24 dev eth0");
    run_on_c("ip addr del 192.0.2.2/24 dev eth0");
    server.await_log("moved from 192.0.2.2:");
    await_ping("10.0.0.2");
    assert!(pings(false, 3, "10.0.0.1"), "the server finds it there");
    assert_eq!(inner_ipv4(), "10.0.0.1/24");
    assert_eq!(hosts.metric("udpferry_vpn_clients"), 1);
    assert_eq!(hosts.metric("udpferry_vpn_clients_entered_total"), 1);
}

#[test]
fn a_restarted_server_is_found_again_and_knows_its_clients() {
    if !in_own_namespaces("carrying::a_restarted_server_is_found_again_and_knows_its_clients") {
        return;
    }
    let hosts = Hosts::new();
    let server = hosts.server(&[]);
    let client = hosts.connected(&[SERVER]);
    let before = inner_ipv4();
    assert!(server.stop().0.success());
    client.await_log("it said goodbye");
    let mut server = hosts.server(&[]);
    await_ping("10.0.0.2");
    assert_eq!(inner_ipv4(), before);
    // Killed: nothing was said, and what it had changed is undone by the next.
    server.signal(Signal::SIGKILL);
    server.wait();
    let server = hosts.server(&[]);
    await_ping("10.0.0.2");
    assert_eq!(inner_ipv4(), before);
    client.await_log("it does not know us");
    drop(server);
}

#[test]
fn a_restarted_client_is_the_same_client() {
    if !in_own_namespaces("carrying::a_restarted_client_is_the_same_client") {
        return;
    }
    let hosts = Hosts::new();
    let server = hosts.server(&[]);
    let mut client = hosts.connected(&[SERVER]);
    client.signal(Signal::SIGKILL);
    client.wait();
    let _client = hosts.connected(&[SERVER]);
    server.await_log("moved from");
    assert_eq!(inner_ipv4(), "10.0.0.1/24");
    await_ping("10.0.0.2");
    assert_eq!(hosts.metric("udpferry_vpn_clients"), 1);
}

#[test]
fn without_offload_on_either_side() {
    if !in_own_namespaces("carrying::without_offload_on_either_side") {
        return;
    }
    let hosts = Hosts::new();
    let _server = hosts.server(&["--no-offload"]);
    let _client = hosts.connected(&[SERVER, "--no-offload"]);
    assert!(pings(true, 3, "-s 1444 10.0.0.2") && pings(false, 3, "fd00::1"));
    let status = hosts.ask(&["status"], "server");
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains("none on the device, none on the sockets"), "{status}");
}
