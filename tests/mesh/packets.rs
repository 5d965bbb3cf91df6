//! What goes over the wire, seen from the other end of it.

use crate::daemon::{DATA, Daemon, add, del, remote, tunnel};
use crate::support::await_some;
use crate::support::kernel::{in_own_namespaces, run};
use serde_json::{Value, json};
use std::net::UdpSocket;
use udpferry::wire::mesh::{Kind, Sign, parse_sign};

/// The packet information of an IPv4 packet (linux/if_tun.h).
const PI: [u8; 4] = [0, 0, 8, 0];

fn with(mut tunnel: Value, field: &str, value: Value) -> Value {
    tunnel[field] = value;
    tunnel
}

/// The next datagram that is a UDP packet to port 7, without what the host sends by itself.
fn packet(remote: &UdpSocket) -> Vec<u8> {
    let mut bytes = vec![0; 65_536];
    loop {
        let len = remote.recv(&mut bytes).expect("nothing comes out of the tunnel");
        let ip = if bytes.starts_with(&PI) { &bytes[4..len] } else { &bytes[..len] };
        if ip[0] == 0x45 && ip[9] == 17 && ip[22..24] == [0, 7] {
            return bytes[..len].to_vec();
        }
    }
}

/// The packet on its way back: source and destination swapped, which no checksum minds.
fn answered(packet: &[u8]) -> Vec<u8> {
    let begin = packet.len() - ip_of(packet).len();
    let mut answer = packet.to_vec();
    let ip = &mut answer[begin..];
    let (source, destination) = (ip[12..16].to_vec(), ip[16..20].to_vec());
    ip[12..16].copy_from_slice(&destination);
    ip[16..20].copy_from_slice(&source);
    let (from, to) = (ip[20..22].to_vec(), ip[22..24].to_vec());
    ip[20..22].copy_from_slice(&to);
    ip[22..24].copy_from_slice(&from);
    answer
}

fn ip_of(datagram: &[u8]) -> &[u8] {
    datagram.strip_prefix(&PI).unwrap_or(datagram)
}

/// A program of this host that talks through the tunnel to 10.0.1.2:7.
fn program() -> UdpSocket {
    let socket = UdpSocket::bind("10.0.1.1:0").unwrap();
    socket.connect("10.0.1.2:7").unwrap();
    socket.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    socket
}

fn received(program: &UdpSocket) -> Vec<u8> {
    let mut bytes = vec![0; 65_536];
    let len = program.recv(&mut bytes).expect("nothing comes back");
    bytes.truncate(len);
    bytes
}

#[test]
fn packets_are_framed_as_wished_and_taken_either_way() {
    if !in_own_namespaces("packets::packets_are_framed_as_wished_and_taken_either_way") {
        return;
    }
    let daemon = Daemon::start(&["--data-addr=127.0.0.1"]);
    let remote = remote("127.0.1.1");
    daemon.ask(add(&[tunnel(1)]));
    let program = program();
    // Empty, small, full, and one that is fragmented inside.
    for (framing, size) in [("pi", 0), ("pi", 5), ("pi", 1372), ("raw", 0), ("raw", 1372)] {
        daemon.ask(json!({ "op": "update", "tunnel": [{ "name": "t1", "framing": framing }] }));
        let sent: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).unwrap()).collect();
        program.send(&sent).unwrap();
        let packet = packet(&remote);
        assert_eq!(packet.starts_with(&PI), framing == "pi");
        assert_eq!(ip_of(&packet).len(), 28 + size);
        let (with_pi, raw) =
            ([&PI[..], ip_of(&answered(&packet))].concat(), answered(ip_of(&packet)));
        for answer in [with_pi, raw] {
            remote.send_to(&answer, ("127.0.0.1", DATA)).unwrap();
            assert_eq!(received(&program), sent, "{framing}, {size}");
        }
    }
    // What is sent is counted after it.
    let answer = await_some(|| {
        let answer = daemon.ask(json!({ "op": "stats" }));
        (answer["tunnel"][0]["packetsOut"].as_u64() >= Some(5)).then_some(answer)
    });
    let stats = &answer.expect("not all is counted")["tunnel"][0];
    assert_eq!(stats["packetsIn"], 10);
    assert_eq!(stats["bytesIn"], 2 * (5 * 28 + 5 + 2 * 1372));
    assert_eq!(daemon.metric("udpferry_mesh_tunnel_packets_in_total{tunnel=\"t1\"}"), 10);
}

#[test]
fn only_the_remote_is_listened_to() {
    if !in_own_namespaces("packets::only_the_remote_is_listened_to") {
        return;
    }
    let daemon = Daemon::start(&["--data-addr=127.0.0.1"]);
    let known = remote("127.0.1.1");
    let stranger = UdpSocket::bind(("127.0.1.9", DATA)).unwrap();
    daemon.ask(add(&[tunnel(1), tunnel(2)]));
    let program = program();
    program.send(b"question").unwrap();
    let packet = packet(&known);
    stranger.send_to(&answered(&packet), ("127.0.0.1", DATA)).unwrap();
    daemon.await_metric("udpferry_tunnel_packets_dropped_total{reason=\"unknown-endpoint\"}", 1);
    // The same host from another port is somebody else too.
    let other_port = UdpSocket::bind(("127.0.1.1", 0)).unwrap();
    other_port.send_to(&answered(&packet), ("127.0.0.1", DATA)).unwrap();
    daemon.await_metric("udpferry_tunnel_packets_dropped_total{reason=\"unknown-endpoint\"}", 2);
    known.send_to(&answered(&packet), ("127.0.0.1", DATA)).unwrap();
    assert_eq!(received(&program), b"question");
    // A removed tunnel's remote is a stranger.
    daemon.ask(del("t1"));
    known.send_to(&answered(&packet), ("127.0.0.1", DATA)).unwrap();
    daemon.await_metric("udpferry_tunnel_packets_dropped_total{reason=\"unknown-endpoint\"}", 3);
}

fn sign(remote: &UdpSocket, kind: Kind) -> Sign {
    let mut bytes = [0; 2048];
    loop {
        let len = remote.recv(&mut bytes).expect("no sign of life");
        if let Some(sign) = parse_sign(&bytes[..len]).filter(|sign| sign.kind == kind) {
            return sign;
        }
    }
}

#[test]
fn a_keepalive_finds_out_who_is_there() {
    if !in_own_namespaces("packets::a_keepalive_finds_out_who_is_there") {
        return;
    }
    let daemon = Daemon::start(&["--data-addr=127.0.0.1"]);
    let remote = remote("127.0.1.1");
    let wish = with(with(tunnel(1), "keepalive", json!(0.1)), "carrier", true.into());
    daemon.ask(add(&[wish]));
    let inner = "10.0.1.2".parse().unwrap();
    // Not answered: it is missing, and its device has no carrier.
    assert_eq!(sign(&remote, Kind::Ping).inner.to_string(), "10.0.1.1");
    daemon.await_field("t1", "state", &"down".into());
    assert!(run("ip", &["link", "show", "t1"]).contains("NO-CARRIER"));
    // What answers no ping of ours proves nothing.
    let made_up = Sign { kind: Kind::Pong, number: 1, inner };
    remote.send_to(&made_up.to_bytes(), ("127.0.0.1", DATA)).unwrap();
    daemon.await_metric("udpferry_mesh_signs_dropped_total", 1);
    daemon.await_field("t1", "state", &"down".into());
    // The newest ping counts; how many wait in our socket depends on the machine.
    let answer = |_| {
        let pong = Sign { kind: Kind::Pong, number: sign(&remote, Kind::Ping).number, inner };
        remote.send_to(&pong.to_bytes(), ("127.0.0.1", DATA)).unwrap();
        (daemon.metric("udpferry_mesh_pongs_total") > 0).then_some(())
    };
    (0..1000).find_map(answer).expect("no pong counts");
    daemon.await_field("t1", "state", &"up".into());
    assert!(!run("ip", &["link", "show", "t1"]).contains("NO-CARRIER"));
    daemon.await_field("t1", "state", &"down".into());
    // A ping is answered, and is a sign of life.
    let ping = Sign { kind: Kind::Ping, number: 77, inner };
    remote.send_to(&ping.to_bytes(), ("127.0.0.1", DATA)).unwrap();
    assert_eq!(sign(&remote, Kind::Pong).number, 77);
    // Not a stranger's, whom an answer would only serve as a reflector.
    let stranger = UdpSocket::bind("127.0.1.9:0").unwrap();
    let before = daemon.metric("udpferry_mesh_signs_dropped_total");
    stranger.send_to(&ping.to_bytes(), ("127.0.0.1", DATA)).unwrap();
    await_some(|| (daemon.metric("udpferry_mesh_signs_dropped_total") > before).then_some(()))
        .expect("it is not dropped");
    stranger.set_nonblocking(true).unwrap();
    assert!(stranger.recv(&mut [0; 64]).is_err());
}

#[test]
fn a_remote_without_keepalive_gets_no_datagram_of_ours() {
    if !in_own_namespaces("packets::a_remote_without_keepalive_gets_no_datagram_of_ours") {
        return;
    }
    let daemon = Daemon::start(&["--data-addr=127.0.0.1"]);
    let original = remote("127.0.1.1");
    let asked = remote("127.0.1.2");
    daemon.ask(add(&[tunnel(1), with(tunnel(2), "keepalive", json!(0.1))]));
    for _ in 0..5 {
        sign(&asked, Kind::Ping);
    }
    original.set_nonblocking(true).unwrap();
    let mut bytes = [0; 2048];
    while let Ok(len) = original.recv(&mut bytes) {
        assert!(bytes[..len].starts_with(&[0, 0]), "no packet: {:02x?}", &bytes[..len]);
    }
}

#[test]
fn a_remote_that_may_move_is_followed() {
    if !in_own_namespaces("packets::a_remote_that_may_move_is_followed") {
        return;
    }
    let daemon = Daemon::start(&["--data-addr=127.0.0.1"]);
    let first = remote("127.0.1.1");
    daemon.ask(add(&[with(tunnel(1), "follow", true.into())]));
    let program = program();
    program.send(b"one").unwrap();
    let one = packet(&first);
    // From another port of the same host: at once, and answers go there.
    let moved = UdpSocket::bind(("127.0.1.1", 0)).unwrap();
    moved.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    moved.send_to(&answered(&one), ("127.0.0.1", DATA)).unwrap();
    let endpoint = moved.local_addr().unwrap().to_string();
    daemon.await_field("t1", "endpoint", &endpoint.as_str().into());
    moved.send_to(&answered(&one), ("127.0.0.1", DATA)).unwrap();
    assert_eq!(received(&program), b"one");
    program.send(b"two").unwrap();
    assert!(packet(&moved).ends_with(b"two"));
    // From another host while this one is heard: not for 15 seconds.
    let other = remote("127.0.1.7");
    other.send_to(&answered(&one), ("127.0.0.1", DATA)).unwrap();
    daemon.service.await_log("but it is heard elsewhere");
    daemon.await_field("t1", "endpoint", &endpoint.as_str().into());
    assert_eq!(daemon.metric("udpferry_mesh_remotes_moved_total"), 1);
}

#[test]
fn a_name_is_looked_up_and_a_clash_is_a_fault() {
    if !in_own_namespaces("packets::a_name_is_looked_up_and_a_clash_is_a_fault") {
        return;
    }
    let etc = crate::support::kernel::own_etc();
    std::fs::write(etc.path("hosts"), "127.0.1.1 one.mesh\n").unwrap();
    let daemon = Daemon::start(&["--data-addr=127.0.0.1"]);
    let _remote = remote("127.0.1.1");
    let named = |number, name: &str| with(tunnel(number), "remoteServer", name.into());
    daemon.ask(add(&[named(1, "one.mesh"), named(2, "two.mesh")]));
    daemon.await_field("t1", "endpoint", &"127.0.1.1:5000".into());
    await_some(|| {
        let fault = daemon.list()[1]["fault"].as_str().map(str::to_owned);
        fault.filter(|fault| fault.starts_with("cannot look up two.mesh: "))
    })
    .expect("no fault");
    daemon.await_metric("udpferry_mesh_tunnels_faulty", 1);
    // Asked again after five seconds; now it is somebody else's place.
    std::fs::write(etc.path("hosts"), "127.0.1.1 one.mesh two.mesh\n").unwrap();
    let clash = "two.mesh is 127.0.1.1:5000, the remote of t1";
    await_some(|| (daemon.list()[1]["fault"] == clash).then_some(())).expect("no clash");
}
