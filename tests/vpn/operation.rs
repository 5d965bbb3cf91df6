//! What operators do: start, ask, check, stop.

use crate::hosts::{Hosts, SERVER, await_ping, on_c, pings, run_on_c};
use crate::support::kernel::{in_own_namespaces, run};
use crate::support::programs::{Process, is_root, only_line};
use crate::support::{UDPFERRY, await_some, free_port, run as run_udpferry};
use nix::sys::signal::Signal;
use std::process::{Command, Output};
use std::time::Duration;

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn neither_side_starts_without_plaintext() {
    for args in [&["vpn", "server"][..], &["vpn", "client", "192.0.2.1"]] {
        let output = run_udpferry(args);
        assert_eq!(output.status.code(), Some(2));
        let line = only_line(&output);
        assert!(line.contains("--plaintext: is required"), "{line}");
        assert!(line.contains("neither encrypts nor authenticates; give the option if"), "{line}");
    }
}

#[test]
fn the_one_line_about_plaintext_is_said_at_every_level() {
    if !in_own_namespaces("operation::the_one_line_about_plaintext_is_said_at_every_level") {
        return;
    }
    let hosts = Hosts::new();
    let mut command = Command::new(UDPFERRY);
    command.args(["vpn", "server", "--plaintext", "--runtime-dir", &hosts.directory("server")]);
    let server = Process::start(command);
    let line = server.await_stderr("--plaintext");
    assert!(line.contains("neither encrypted nor authenticated"), "{line}");
    server.signal(Signal::SIGTERM);
}

#[test]
fn one_tunnel_has_one_process() {
    if !in_own_namespaces("operation::one_tunnel_has_one_process") {
        return;
    }
    let hosts = Hosts::new();
    let _server = hosts.server(&[]);
    let run_dir = hosts.directory("server");
    let args = ["vpn", "server", "--plaintext", "--runtime-dir", &run_dir];
    let output = run_udpferry(&args);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("another process has it"), "{}", said(&output));
    // In another place it is the device that is taken.
    let elsewhere = hosts.directory("state");
    let output = run_udpferry(&[
        "vpn",
        "server",
        "--plaintext",
        "--runtime-dir",
        &elsewhere,
        "--listen-addr=127.0.0.1:0",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("cannot open the TUN device vpns"), "{}", said(&output));
}

#[test]
fn a_stop_under_load_takes_a_quarter_of_a_second() {
    if !in_own_namespaces("operation::a_stop_under_load_takes_a_quarter_of_a_second") {
        return;
    }
    let hosts = Hosts::new();
    let server = hosts.server(&["--nat", "--out-interface=s0"]);
    let client = hosts.connected(&[SERVER, "--route=203.0.113.0/24"]);
    let mut flood = Command::new("ip");
    flood.args(["netns", "exec", "c", "ping", "-f", "-q", "-s", "1400", "10.0.0.2"]);
    let mut flood = Process::start(flood);
    let packets = "udpferry_tunnel_packets_total{direction=\"in\"}";
    await_some(|| (hosts.metric(packets) > 1000).then_some(())).unwrap();
    for (side, service) in [("client", client), ("server", server)] {
        let (status, took) = service.stop();
        assert!(status.success(), "{side}");
        assert!(took < Duration::from_millis(250), "the {side} took {took:?}");
    }
    flood.signal(Signal::SIGINT);
    flood.wait();
    assert!(!run("nft", &["list", "ruleset"]).contains("udpferry"));
}

#[test]
fn a_status_names_what_an_operator_wants_to_know() {
    if !in_own_namespaces("operation::a_status_names_what_an_operator_wants_to_know") {
        return;
    }
    let hosts = Hosts::new();
    let _server = hosts.server(&["--nat", "--out-interface=s0", "--allow-from=192.0.2.0/24"]);
    let _client = hosts.connected(&[SERVER]);
    assert!(pings(true, 3, "10.0.0.2"));
    let server = said(&hosts.ask(&["status"], "server"));
    for part in [
        "vpns: server",
        "listening: 0.0.0.0:5555",
        "addresses: 10.0.0.2/24 fd00::2/64",
        "mtu:       1472",
        "offloads:  ",
        "nat:       s0",
        "from:      192.0.2.0/24",
        "clients:   1 of 1000",
        "192.0.2.2:",
        "10.0.0.1 fd00::1",
        " s ago",
    ] {
        assert!(server.contains(part), "no {part:?} in:\n{server}");
    }
    let client = said(&hosts.ask(&["status"], "client"));
    for part in
        ["vpnc: client", "state:     connected", "server:    192.0.2.1:5555", "10.0.0.2 fd00::2"]
    {
        assert!(client.contains(part), "no {part:?} in:\n{client}");
    }
    let json = said(&hosts.ask(&["status", "--json", "--tun-name=vpnc"], "client"));
    assert!(json.starts_with("{\"device\":\"vpnc\",\"side\":\"client\"") && json.ends_with("}\n"));
    let nothing = hosts.ask(&["status"], "state");
    assert_eq!(nothing.status.code(), Some(1));
    assert!(said(&nothing).contains("no vpn runs here"), "{}", said(&nothing));
}

#[test]
fn down_stops_and_undoes_also_what_a_killed_run_left() {
    if !in_own_namespaces("operation::down_stops_and_undoes_also_what_a_killed_run_left") {
        return;
    }
    let hosts = Hosts::new();
    let mut server = hosts.server(&["--nat", "--out-interface=s0"]);
    assert!(run("nft", &["list", "ruleset"]).contains("udpferry_vpns"));
    let down = hosts.ask(&["down"], "server");
    assert_eq!(said(&down), "vpns: stopped, everything is undone\n");
    assert!(server.wait().success());
    assert!(!run("nft", &["list", "ruleset"]).contains("udpferry_vpns"));
    let mut server = hosts.server(&["--nat", "--out-interface=s0"]);
    server.signal(Signal::SIGKILL);
    server.wait();
    assert!(run("nft", &["list", "ruleset"]).contains("udpferry_vpns"));
    let down = hosts.ask(&["down"], "server");
    assert_eq!(said(&down), "vpns: undone what a run that was killed had left\n");
    assert!(!run("nft", &["list", "ruleset"]).contains("udpferry_vpns"));
    assert_eq!(hosts.ask(&["down"], "server").status.code(), Some(1));
}

#[test]
fn what_is_not_confirmed_is_undone() {
    if !in_own_namespaces("operation::what_is_not_confirmed_is_undone") {
        return;
    }
    let hosts = Hosts::new();
    let _server = hosts.server(&[]);
    let routed = ["--route=203.0.113.0/24", "--confirm=1"];
    let mut client = hosts.connected(&[&[SERVER], &routed[..]].concat());
    let rules = || run_on_c("ip rule");
    assert!(rules().contains("192.0.2.1"));
    assert!(client.wait().success());
    assert!(client.log().contains("not confirmed, stopping"), "{}", client.log());
    assert!(!rules().contains("192.0.2.1"), "{}", rules());
    let client = hosts.connected(&[SERVER, "--route=203.0.113.0/24", "--confirm=2"]);
    let confirmed = hosts.ask(&["confirm"], "client");
    assert_eq!(said(&confirmed), "vpnc: confirmed, everything stays\n");
    let again = hosts.ask(&["confirm"], "client");
    assert_eq!(again.status.code(), Some(1));
    assert!(said(&again).contains("nothing waits for it"), "{}", said(&again));
    client.await_log("confirmed");
    await_ping("10.0.0.2");
}

#[test]
fn hooks_are_told_about_the_tunnel() {
    if !in_own_namespaces("operation::hooks_are_told_about_the_tunnel") {
        return;
    }
    let hosts = Hosts::new();
    let _server = hosts.server(&["--push-dns=192.0.2.53"]);
    let (up, down) = (hosts.directory("up"), hosts.directory("down"));
    let write = "echo $UDPFERRY_TUN $UDPFERRY_ADDRESS4 $UDPFERRY_ADDRESS6 $UDPFERRY_SERVER4 \
                 $UDPFERRY_ENDPOINT $UDPFERRY_MTU $UDPFERRY_DNS";
    let client = hosts.connected(&[
        SERVER,
        "--up",
        &format!("{write} >{up}.new && mv {up}.new {up}"),
        "--down",
        &format!("echo $UDPFERRY_TUN >{down}"),
    ]);
    let told = await_some(|| std::fs::read_to_string(&up).ok()).unwrap();
    assert_eq!(told, "vpnc 10.0.0.1/24 fd00::1/64 10.0.0.2 192.0.2.1:5555 1472 192.0.2.53\n");
    assert!(client.stop().0.success());
    assert_eq!(std::fs::read_to_string(&down).unwrap(), "vpnc\n");
}

#[test]
fn a_client_that_is_refused_says_why_and_asks_again() {
    if !in_own_namespaces("operation::a_client_that_is_refused_says_why_and_asks_again") {
        return;
    }
    let hosts = Hosts::new();
    let server = hosts.server(&["--max-clients=1"]);
    let first = hosts.connected(&[SERVER]);
    let run_dir = hosts.directory("state");
    let args =
        ["vpn", "client", "--plaintext", "--tun-name=vpn2", "--runtime-dir", &run_dir, SERVER];
    let second = crate::support::Service::start_with(&args, on_c);
    second.await_log("it is full");
    assert!(first.stop().0.success());
    second.await_log("connected to");
    assert!(server.log().contains("there are --max-clients clients"), "{}", server.log());
}

#[test]
fn the_check_says_what_works() {
    if !in_own_namespaces("operation::the_check_says_what_works") {
        return;
    }
    let hosts = Hosts::alone();
    let port = free_port();
    let server =
        hosts.server(&["--push-dns=192.0.2.53", &format!("--listen-addr=127.0.0.1:{port}")]);
    let output = run_udpferry(&["check", "vpn", &format!("127.0.0.1:{port}")]);
    let text = said(&output);
    for part in [
        "sees this host at 127.0.0.1:",
        "no NAT",
        "got 10.0.0.1/24 (the server is 10.0.0.2) and fd00::1/64 (the server is fd00::2)",
        "DNS servers that it tells: 192.0.2.53.",
        "ping 10.0.0.2 through the tunnel, a packet of 84 bytes",
        "ping fd00::2 through the tunnel, a packet of 1472 bytes",
        "The server works.",
    ] {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
    assert!(output.status.success());
    hosts.await_metric("udpferry_vpn_clients", 0);
    // Nothing inside answers: large or small.
    run("sysctl", &["-qw", "net.ipv4.icmp_echo_ignore_all=1"]);
    let output = run_udpferry(&["check", "vpn", "--timeout=0.3", &format!("127.0.0.1:{port}")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("not from inside"), "{}", said(&output));
    assert!(server.stop().0.success());
    let output = run_udpferry(&["check", "vpn", "--timeout=1", &format!("127.0.0.1:{port}")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("nobody listens there"), "{}", said(&output));
}

#[test]
fn sockets_of_the_service_manager_are_taken() {
    if !in_own_namespaces("operation::sockets_of_the_service_manager_are_taken") {
        return;
    }
    let hosts = Hosts::alone();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let run_dir = hosts.directory("server");
    let mut command = Command::new("sh");
    let pass = "exec 3<&0 </dev/null && LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";
    command.args(["-c", pass, "sh", UDPFERRY, "vpn", "server", "--plaintext"]);
    command.args(["--log-level=info", "--runtime-dir", &run_dir]);
    let server = Process::start_with_stdin(command, std::os::fd::OwnedFd::from(socket).into());
    server.await_stderr(&format!("listening on udp 127.0.0.1:{port}"));
    let output = run_udpferry(&["check", "vpn", &format!("127.0.0.1:{port}")]);
    assert!(output.status.success(), "{}", said(&output));
    server.signal(Signal::SIGTERM);
}

#[test]
fn the_selftest_has_a_row() {
    let output = run_udpferry(&["selftest"]);
    let text = said(&output);
    let row = text.lines().find(|line| line.starts_with("vpn server"));
    let row = row.unwrap_or_else(|| panic!("no row: {text}"));
    let words: Vec<&str> = row.split_whitespace().collect();
    if is_root() && std::path::Path::new("/dev/net/tun").exists() {
        assert_eq!(words[2..6], ["4", "8", "2000", "0"], "{row}");
    } else {
        assert!(row.contains("skipped: ") || words[4] == "2000", "{row}");
    }
}
