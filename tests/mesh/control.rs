//! Who may command, and what becomes of what is no command.

use crate::daemon::{CONTROL, Controller, DATA, Daemon, add, del, refused, tunnel};
use crate::support::kernel::{in_own_namespaces, run};
use crate::support::{PATIENCE, Scratch, UDPFERRY};
use serde_json::{Value, json};
use std::fs;
use std::net::UdpSocket;
use std::process::{Command, Output};

/// A socket that talks to the control port, from the address that it talks to.
fn control(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    socket.connect((address, CONTROL)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn ask(socket: &UdpSocket, request: &Value) -> Value {
    socket.send(request.to_string().as_bytes()).unwrap();
    let mut bytes = vec![0; 65_536];
    let len = socket.recv(&mut bytes).expect("no answer");
    serde_json::from_slice(&bytes[..len]).unwrap()
}

fn with_id(mut request: Value, id: Value) -> Value {
    request["id"] = id;
    request
}

/// Two hosts more than ours: namespaces of children of this test, one behind a veth pair.
fn outside(address: &str, ours: &str) -> Outside {
    run("ip", &["link", "add", "v0", "type", "veth", "peer", "name", "v1"]);
    run("ip", &["address", "add", &format!("{ours}/24"), "dev", "v0"]);
    run("ip", &["link", "set", "v0", "up"]);
    let mut holder = Command::new("unshare");
    // Lives until it is killed: its namespace does too.
    let child = holder.args(["--net", "sleep", "1000"]).spawn().unwrap();
    let outside = Outside(child);
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    crate::support::await_some(|| {
        let there = fs::read_link(format!("/proc/{}/ns/net", outside.0.id())).unwrap();
        (there != own).then_some(())
    })
    .unwrap();
    run("ip", &["link", "set", "v1", "netns", &outside.0.id().to_string()]);
    outside.run("ip", &["address", "add", &format!("{address}/24"), "dev", "v1"]);
    outside.run("ip", &["link", "set", "v1", "up"]);
    outside
}

struct Outside(std::process::Child);

impl Outside {
    fn command(&self, program: &str, args: &[&str]) -> Output {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.0.id())).arg(program).args(args);
        command.output().unwrap()
    }

    fn run(&self, program: &str, args: &[&str]) {
        let output = self.command(program, args);
        assert!(output.status.success(), "{program} {args:?}: {output:?}");
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_seeds_datagrams_are_obeyed_without_an_answer() {
    if !in_own_namespaces("control::the_seeds_datagrams_are_obeyed_without_an_answer") {
        return;
    }
    let daemon = Daemon::start(&[]);
    // Golden: the layout of the seed's README, as its control program sends it.
    let seed = r#"{"op": "add", "tunnel": [{"name": "udp2", "tunnelIP": "10.0.1.1", "netmask": "255.255.255.252", "mtu": "1500", "remoteServer": "172.100.1.2"}]}"#;
    let socket = control("127.0.0.1");
    socket.send(seed.as_bytes()).unwrap();
    daemon.await_metric("udpferry_mesh_tunnels", 1);
    assert!(run("ip", &["link", "show", "udp2"]).contains("mtu 1500"));
    // A second time it is refused, silently.
    socket.send(seed.as_bytes()).unwrap();
    daemon.await_metric("udpferry_mesh_requests_refused_total", 1);
    socket.send(seed.replace("add", "del").as_bytes()).unwrap();
    daemon.await_metric("udpferry_mesh_tunnels", 0);
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv(&mut [0; 9]).is_err(), "an answer that nobody wanted");
}

#[test]
fn whoever_gives_an_id_is_answered() {
    if !in_own_namespaces("control::whoever_gives_an_id_is_answered") {
        return;
    }
    run("ip", &["address", "add", "172.100.1.1/24", "dev", "lo"]);
    run("ip", &["address", "add", "fd00:100::1/64", "dev", "lo", "nodad"]);
    let daemon = Daemon::start(&[]);
    // From the address that was asked, or a connected socket would not hear it.
    for address in ["127.0.0.1", "172.100.1.1", "::1", "fd00:100::1"] {
        let socket = control(address);
        let answer = ask(&socket, &with_id(add(&[tunnel(1)]), "x".into()));
        assert_eq!((&answer["id"], &answer["ok"]), (&"x".into(), &true.into()), "{answer}");
        let answer = ask(&socket, &with_id(add(&[tunnel(1)]), 7.into()));
        assert_eq!(refused(&answer), "tunnel[0].name: there is a tunnel of that name");
        assert_eq!(ask(&socket, &with_id(del("t1"), 8.into()))["id"], 8);
    }
    assert!(daemon.list().is_empty());
}

#[test]
fn lists_come_in_pages() {
    if !in_own_namespaces("control::lists_come_in_pages") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let many: Vec<Value> = (0..=200)
        .map(|number| {
            let mut tunnel = tunnel(number);
            tunnel["routes"] =
                (0..10).map(|route| format!("172.{}.{number}.0/24", route + 16)).collect();
            tunnel
        })
        .collect();
    assert_eq!(daemon.ask(add(&many))["changed"], 201);
    let socket = control("127.0.0.1");
    let (mut names, mut pages) = (Vec::new(), 0);
    loop {
        let mut request = json!({ "op": "list", "id": pages });
        if let Some(last) = names.last() {
            request["after"] = Value::clone(last);
        }
        let answer = ask(&socket, &request);
        names.extend(answer["tunnel"].as_array().unwrap().iter().map(|it| it["name"].clone()));
        pages += 1;
        if answer["more"] != true {
            break;
        }
    }
    assert!(pages > 1 && names.len() == 201, "{pages} pages, {} names", names.len());
    assert!(names.windows(2).all(|two| two[0].as_str() < two[1].as_str()));
    let shown = daemon.meshctl(&["list"]);
    assert_eq!(String::from_utf8(shown.stdout).unwrap().lines().count(), 202);
    let stats = daemon.meshctl(&["stats", "--json"]);
    let stats: Value = serde_json::from_slice(&stats.stdout).unwrap();
    assert_eq!(stats["tunnel"].as_array().unwrap().len(), 201);
}

#[test]
fn nothing_gets_in_from_outside_without_a_proof() {
    if !in_own_namespaces("control::nothing_gets_in_from_outside_without_a_proof") {
        return;
    }
    let outside = outside("172.100.1.2", "172.100.1.1");
    let scratch = Scratch::new();
    let (key, other) = (scratch.path("key"), scratch.path("other"));
    fs::write(&key, "0123456789abcdef0123456789abcdef\n").unwrap();
    fs::write(&other, "0123456789abcdef0123456789abcdeg\n").unwrap();
    let key_option = format!("--control-key={}", key.display());
    let daemon = Daemon::start_in(scratch, &["--control-addr=172.100.1.1:5002", &key_option]);
    let meshctl = |args: &[&str]| {
        let mut all = vec!["meshctl", "-s", "172.100.1.1", "--timeout=0.5"];
        all.extend_from_slice(args);
        outside.command(UDPFERRY, &all)
    };
    let wish = ["add", "x", "-t", "10.7.0.1/30", "-r", "172.100.1.2"];
    let with = |options: &[&str]| {
        let mut all = options.to_vec();
        all.extend_from_slice(&wish);
        meshctl(&all)
    };
    // The seed's port is closed to the outside: the kernel drops what comes, and says nothing.
    assert!(!with(&["-p", "5001"]).status.success());
    assert!(!with(&["-p", "5002"]).status.success());
    assert!(!with(&["-p", "5002", "--key", other.to_str().unwrap()]).status.success());
    assert!(daemon.list().is_empty());
    let dropped = |reason: &str| {
        daemon.metric(&format!("udpferry_mesh_commands_dropped_total{{reason=\"{reason}\"}}"))
    };
    assert_eq!((dropped("no-proof"), dropped("wrong-proof")), (1, 1));
    let done = with(&["-p", "5002", "--key", key.to_str().unwrap()]);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(daemon.names(), ["x"]);
    let list = meshctl(&["-p", "5002", "--key", key.to_str().unwrap(), "--json"]);
    assert!(String::from_utf8(list.stdout).unwrap().contains("\"10.7.0.1\""));
    // From this host it is as before.
    let local = Command::new(UDPFERRY).args(["meshctl", "-s", "172.100.1.1", "list"]).output();
    assert!(local.unwrap().status.success());
}

#[test]
fn an_open_door_answers_at_no_greater_length() {
    if !in_own_namespaces("control::an_open_door_answers_at_no_greater_length") {
        return;
    }
    let daemon = Daemon::start(&["--control-addr=127.0.0.1:5002", "--insecure-control"]);
    daemon.service.await_log("anybody who reaches --control-addr");
    daemon.ask(add(&(0..20).map(tunnel).collect::<Vec<_>>()));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect("127.0.0.1:5002").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let short = r#"{"op":"list","id":1}"#;
    socket.send(short.as_bytes()).unwrap();
    daemon.await_metric("udpferry_mesh_commands_dropped_total{reason=\"answer-too-long\"}", 1);
    for len in [600, 900, 1200] {
        let question = format!("{short:len$}");
        socket.send(question.as_bytes()).unwrap();
        let mut bytes = [0; 2048];
        let answered = socket.recv(&mut bytes).unwrap();
        assert!(answered <= len, "{answered} bytes for {len}");
        let answer: Value = serde_json::from_slice(&bytes[..answered]).unwrap();
        assert_eq!(answer["more"], true);
    }
}

#[test]
fn too_many_commands_are_dropped_and_counted() {
    if !in_own_namespaces("control::too_many_commands_are_dropped_and_counted") {
        return;
    }
    let daemon = Daemon::start(&["--control-rate=5"]);
    let socket = control("127.0.0.1");
    for _ in 0..100 {
        socket.send(b"{}").unwrap();
    }
    let rate = "udpferry_mesh_commands_dropped_total{reason=\"rate\"}";
    let seen = crate::support::await_some(|| {
        (daemon.metric(rate) + daemon.metric("udpferry_mesh_requests_total") >= 100).then_some(())
    });
    assert!(seen.is_some());
    assert!(daemon.metric(rate) >= 90, "{}", daemon.metric(rate));
    // The Unix socket is root's own.
    let mut controller = daemon.controller();
    assert!((0..100).all(|_| controller.ask(json!({ "op": "list" }))["ok"] == true));
}

#[test]
fn garbage_at_one_door_closes_no_other() {
    if !in_own_namespaces("control::garbage_at_one_door_closes_no_other") {
        return;
    }
    let daemon =
        Daemon::start(&["--control-rate=5", "--control-addr=127.0.0.1:5002", "--insecure-control"]);
    let outside = UdpSocket::bind("127.0.0.1:0").unwrap();
    outside.connect("127.0.0.1:5002").unwrap();
    for _ in 0..100 {
        outside.send(b"x").unwrap();
    }
    let rate = "udpferry_mesh_commands_dropped_total{reason=\"rate\"}";
    crate::support::await_some(|| (daemon.metric(rate) >= 90).then_some(())).expect("no flood");
    let answer = ask(&control("127.0.0.1"), &json!({ "op": "list", "id": 1 }));
    assert_eq!(answer["ok"], true, "{answer}");
}

#[test]
fn lines_are_taken_as_they_come() {
    if !in_own_namespaces("control::lines_are_taken_as_they_come") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let mut controller = daemon.controller();
    // Many, with empty lines between; and one in many writes.
    for id in 1..=50 {
        controller.send(&format!("{{\"op\":\"list\",\"id\":{id}}}\r\n\n"));
    }
    for id in 1..=50 {
        assert_eq!(controller.answer()["id"], id);
    }
    for piece in ["{\"op\":", "\"list\",", "\"id\":51", "}", "\n"] {
        controller.send(piece);
    }
    assert_eq!(controller.answer()["id"], 51);
    // Here errors are told without an id too.
    controller.send("what\n");
    assert_eq!(refused(&controller.answer()), "request: is not allowed: one JSON object");
    controller.send("{\"op\":\"del\",\"tunnel\":[{\"name\":\"no\"}]}\n");
    assert!(refused(&controller.answer()).starts_with("tunnel[0].name: "));
    // The last line of somebody who ends need not.
    let mut last = daemon.controller();
    last.send("{\"op\":\"list\",\"id\":1}");
    last.end();
    assert_eq!(last.answer()["id"], 1);
    assert!(last.is_closed());
}

#[test]
fn controllers_are_limited_and_slow_ones_hurt_nobody() {
    if !in_own_namespaces("control::controllers_are_limited_and_slow_ones_hurt_nobody") {
        return;
    }
    let daemon = Daemon::start(&[]);
    daemon.ask(add(&(0..100).map(tunnel).collect::<Vec<_>>()));
    // Asks for 300 long lists and reads none of them.
    let mut slow = daemon.controller();
    slow.send(&"{\"op\":\"list\",\"id\":1}\n".repeat(300));
    let before = daemon.service.status("VmRSS");
    assert_eq!(daemon.ask(json!({ "op": "list" }))["ok"], true);
    // 300 lists of 30 KB would be 9 MB.
    assert!(daemon.service.status("VmRSS") < before + 6_000);
    for _ in 0..300 {
        assert_eq!(slow.answer()["id"], 1);
    }
    drop(slow);
    daemon.await_metric("udpferry_mesh_control_connections", 0);
    let mut all: Vec<Controller> = (0..32).map(|_| daemon.controller()).collect();
    assert!(all.iter_mut().all(|one| one.ask(json!({ "op": "list" }))["ok"] == true));
    assert!(daemon.controller().is_closed());
    assert_eq!(daemon.metric("udpferry_mesh_control_connections_refused_total"), 1);
    drop(all);
    daemon.await_metric("udpferry_mesh_control_connections", 0);
    assert_eq!(daemon.ask(json!({ "op": "list" }))["ok"], true);
}

#[test]
fn a_port_or_a_socket_that_is_taken_is_said_at_the_start() {
    if !in_own_namespaces("control::a_port_or_a_socket_that_is_taken_is_said_at_the_start") {
        return;
    }
    let scratch = Scratch::new();
    let socket = scratch.path("s");
    let start = |args: &[&str]| {
        let mut all = vec!["mesh", "--plaintext", "--control-socket", socket.to_str().unwrap()];
        all.extend_from_slice(args);
        let output = crate::support::run(&all);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let taken = UdpSocket::bind(("0.0.0.0", DATA)).unwrap();
    let (code, said) = start(&[]);
    assert_eq!(code, Some(1));
    assert!(said.contains("cannot bind udp 0.0.0.0:5000: "), "{said}");
    drop(taken);
    let _taken = UdpSocket::bind(("0.0.0.0", CONTROL)).unwrap();
    assert!(start(&[]).1.contains("cannot bind udp 0.0.0.0:5001 for control: "));
    fs::write(&socket, "").unwrap();
    assert!(start(&["-cp", "0"]).1.contains("cannot listen at "));
    assert_eq!(start(&["--control-key=/nowhere"]).0, Some(1));
    let (code, said) = {
        let output = crate::support::run(&["mesh"]);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert!(code == Some(2) && said.contains("--plaintext: is required"), "{said}");
}
