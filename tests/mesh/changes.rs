//! Tunnels come, change and go, on the host as in the list.

use crate::daemon::{Daemon, add, del, has_device, refused, tunnel};
use crate::support::kernel::{in_own_namespaces, run};
use crate::support::{Scratch, await_some};
use serde_json::{Value, json};
use std::fs;

fn with(mut tunnel: Value, field: &str, value: Value) -> Value {
    tunnel[field] = value;
    tunnel
}

#[test]
fn a_tunnel_has_what_was_wished_for_until_it_goes() {
    if !in_own_namespaces("changes::a_tunnel_has_what_was_wished_for_until_it_goes") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let mut wished = with(tunnel(1), "routes", json!(["192.168.2.0/24", "fd00:2::/64"]));
    wished["addresses"] = json!(["fd00::1/64"]);
    let answer = daemon.ask(add(&[wished]));
    assert_eq!(answer["changes"], json!([{ "change": "add", "name": "t1" }]), "{answer}");
    let shown = &answer["tunnel"][0];
    assert_eq!((&shown["state"], &shown["deviceMtu"]), (&"unknown".into(), &1400.into()));
    let address = run("ip", &["-o", "address", "show", "dev", "t1"]);
    assert!(
        address.contains("inet 10.0.1.1/30") && address.contains("inet6 fd00::1/64"),
        "{address}"
    );
    assert!(run("ip", &["link", "show", "t1"]).contains("mtu 1400"));
    assert!(run("ip", &["route"]).contains("192.168.2.0/24 dev t1"));
    assert!(run("ip", &["-6", "route"]).contains("fd00:2::/64 dev t1"));
    // The last address of the network is a host's, as in the seed's README.
    assert!(!run("ip", &["route", "show", "table", "local"]).contains("broadcast 10.0.1.3"));
    let answer = daemon.ask(json!({ "op": "update", "tunnel": [
        { "name": "t1", "tunnelIP": "10.0.9.1/24", "mtu": 1300, "routes": ["192.168.3.0/24"] }
    ]}));
    assert_eq!(answer["changed"], 1, "{answer}");
    assert_eq!(answer["tunnel"][0]["deviceMtu"], 1300, "{answer}");
    let address = run("ip", &["-o", "address", "show", "dev", "t1"]);
    assert!(address.contains("inet 10.0.9.1/24") && !address.contains("10.0.1.1"), "{address}");
    assert!(address.contains("inet6 fd00::1/64"), "{address}");
    let routes = run("ip", &["route"]);
    assert!(
        routes.contains("192.168.3.0/24 dev t1") && !routes.contains("192.168.2.0"),
        "{routes}"
    );
    assert_eq!(daemon.ask(del("t1"))["changed"], 1);
    assert!(!has_device("t1") && daemon.list().is_empty());
    daemon.await_metric("udpferry_mesh_changes_total", 3);
}

#[test]
fn what_is_wrong_changes_nothing() {
    if !in_own_namespaces("changes::what_is_wrong_changes_nothing") {
        return;
    }
    let daemon = Daemon::start(&["--max-tunnels=3"]);
    daemon.ask(add(&[tunnel(1)]));
    let before = daemon.list();
    let ask = |request: Value| refused(&daemon.ask(request));
    // One of several is enough.
    let two = [tunnel(2), with(tunnel(3), "tunnelIP", "10.0.1.2".into())];
    assert_eq!(ask(add(&two)), "tunnel[1].tunnelIP: overlaps with 10.0.1.0/30 of tunnel t1");
    assert!(ask(add(&[tunnel(1)])).starts_with("tunnel[0].name: "));
    assert!(ask(add(&[with(tunnel(2), "remoteServer", "127.0.1.1".into())])).contains("tunnel t1"));
    assert!(ask(del("no")).starts_with("tunnel[0].name: "));
    let four: Vec<Value> = (2..5).map(tunnel).collect();
    assert_eq!(ask(add(&four)), "tunnel[2]: there may be 3 at most");
    assert!(
        ask(json!({ "op": "update", "tunnel": [{ "name": "t1", "mtu": 1 }] })).contains(".mtu: ")
    );
    // On the host: the second one's route is somebody else's.
    run("ip", &["route", "add", "unreachable", "192.168.7.0/24"]);
    let two = [tunnel(2), with(tunnel(3), "routes", json!(["192.168.7.0/24"]))];
    assert!(ask(add(&two)).starts_with("tunnel[1].routes: cannot route 192.168.7.0/24 to t3: "));
    assert!(!has_device("t2") && !has_device("t3"));
    let now = daemon.list();
    assert_eq!(now.len(), 1);
    assert_eq!(now[0]["tunnelIP"], before[0]["tunnelIP"]);
    assert_eq!(daemon.metric("udpferry_mesh_rollbacks_total"), 1);
    assert_eq!(daemon.metric("udpferry_mesh_changes_total"), 1);
}

#[test]
fn apply_is_idempotent_and_says_the_difference() {
    if !in_own_namespaces("changes::apply_is_idempotent_and_says_the_difference") {
        return;
    }
    let daemon = Daemon::start(&[]);
    daemon.ask(add(&[tunnel(1), tunnel(2), tunnel(3)]));
    // The first goes, and its address goes to another; the second changes; the third stays.
    let wanted = json!([
        with(tunnel(4), "tunnelIP", "10.0.1.1".into()),
        with(tunnel(2), "mtu", 1300.into()),
        tunnel(3)
    ]);
    let apply =
        |dry_run: bool| daemon.ask(json!({ "op": "apply", "tunnel": wanted, "dryRun": dry_run }));
    let planned = apply(true);
    assert_eq!(
        planned["changes"],
        json!([
            { "change": "del", "name": "t1" },
            { "change": "add", "name": "t4" },
            { "change": "update", "name": "t2", "fields": { "mtu": [1400, 1300] } }
        ])
    );
    assert_eq!(daemon.names(), ["t1", "t2", "t3"]);
    assert_eq!(apply(false)["changes"], planned["changes"]);
    assert_eq!(daemon.names(), ["t2", "t3", "t4"]);
    assert!(!has_device("t1") && has_device("t4"));
    assert_eq!(apply(false)["changed"], 0);
    // As people do it.
    let file = daemon.scratch.path("mesh.json");
    let exported = daemon.meshctl(&["export"]);
    fs::write(&file, exported.stdout).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(daemon.meshctl(&["apply", file]).stdout, b"nothing to change\n");
    daemon.ask(del("t4"));
    assert_eq!(daemon.meshctl(&["apply", "--dry-run", file]).stdout, b"+ t4\n");
    assert!(!has_device("t4"));
    assert_eq!(daemon.meshctl(&["apply", file]).stdout, b"+ t4\n");
    assert!(has_device("t4"));
}

#[test]
fn tunnels_survive_a_restart_unless_told_otherwise() {
    if !in_own_namespaces("changes::tunnels_survive_a_restart_unless_told_otherwise") {
        return;
    }
    let scratch = Scratch::new();
    let file = scratch.path("state.json");
    let state = format!("--state-file={}", file.display());
    let daemon = Daemon::start_in(scratch, &[&state]);
    daemon.ask(add(&[tunnel(1), tunnel(2)]));
    daemon.ask(del("t1"));
    // What the answer promised is in the file by now.
    assert!(fs::read_to_string(&file).unwrap().contains("\"t2\""));
    let daemon = daemon.restart(&[&state]);
    assert_eq!(daemon.names(), ["t2"]);
    assert!(has_device("t2"));
    let daemon = daemon.restart(&[&state, "--no-restore"]);
    assert!(daemon.names().is_empty());
    let aside = file.with_extension("json.not-restored");
    assert!(fs::read_to_string(&aside).unwrap().contains("\"t2\""), "it is kept");
    daemon.ask(add(&[tunnel(3)]));
    drop(daemon.service);
    let torn = &fs::read(&file).unwrap()[..40];
    fs::write(&file, torn).unwrap();
    let daemon = Daemon::start_in(daemon.scratch, &[&state]);
    daemon.service.await_log("is corrupt");
    assert!(daemon.names().is_empty());
    assert_eq!(fs::read(file.with_extension("json.corrupt-1")).unwrap(), torn);
}

#[test]
fn options_that_some_tunnels_do_not_fit_cost_the_others_nothing() {
    if !in_own_namespaces("changes::options_that_some_tunnels_do_not_fit_cost_the_others_nothing") {
        return;
    }
    let scratch = Scratch::new();
    let file = scratch.path("state.json");
    let state = format!("--state-file={}", file.display());
    let daemon = Daemon::start_in(scratch, &[&state]);
    daemon.ask(add(&[tunnel(1), tunnel(2), tunnel(3)]));
    let daemon = daemon.restart(&[&state, "--max-tunnels=2"]);
    assert_eq!(daemon.names(), ["t1", "t2"]);
    daemon.service.await_log("t3 is not restored");
    let aside = file.with_extension("json.corrupt-1");
    assert!(fs::read_to_string(&aside).unwrap().contains("\"t3\""), "it is kept");
}

#[test]
fn routes_made_by_hand_survive_what_does_not_concern_them() {
    if !in_own_namespaces("changes::routes_made_by_hand_survive_what_does_not_concern_them") {
        return;
    }
    let daemon = Daemon::start(&[]);
    daemon.ask(add(&[tunnel(1)]));
    run("ip", &["route", "add", "192.168.77.0/24", "dev", "t1"]);
    let is_there = || run("ip", &["route"]).contains("192.168.77.0/24 dev t1");
    let wish =
        json!({ "name": "t1", "addresses": ["fd00:1::1/64"], "routes": ["192.168.78.0/24"] });
    daemon.ask(json!({ "op": "update", "tunnel": [wish] }));
    assert!(run("ip", &["-6", "addr"]).contains("fd00:1::1/64"));
    assert!(is_there(), "an address more");
    // Another interface has the name of what is to be added: nothing of it is done.
    run("ip", &["link", "add", "t9", "type", "veth", "peer", "name", "t8"]);
    let answer = daemon.ask(json!({ "op": "apply", "tunnel": [tunnel(9)] }));
    assert_eq!(answer["ok"], false, "{answer}");
    assert_eq!(daemon.names(), ["t1"]);
    assert!(is_there(), "a request that was refused");
}

#[test]
fn a_state_that_cannot_be_saved_is_said_and_saved_later() {
    if !in_own_namespaces("changes::a_state_that_cannot_be_saved_is_said_and_saved_later") {
        return;
    }
    let scratch = Scratch::new();
    let directory = scratch.path("state");
    let file = directory.join("state.json");
    let state = format!("--state-file={}", file.display());
    let daemon = Daemon::start_in(scratch, &[&state]);
    let answer = daemon.ask(add(&[tunnel(1)]));
    assert_eq!(answer["ok"], true);
    assert!(
        answer["warning"].as_str().unwrap().starts_with("the state is not saved: "),
        "{answer}"
    );
    assert!(has_device("t1"));
    fs::create_dir(&directory).unwrap();
    await_some(|| file.exists().then_some(())).expect("it is never saved");
    assert!(daemon.metric("udpferry_mesh_state_write_failures_total") > 0);
}

#[test]
fn a_deleted_device_is_made_again() {
    if !in_own_namespaces("changes::a_deleted_device_is_made_again") {
        return;
    }
    let daemon = Daemon::start(&[]);
    daemon.ask(add(&[with(tunnel(1), "routes", json!(["192.168.2.0/24"])), tunnel(2)]));
    for times in 1..4 {
        run("ip", &["link", "delete", "t1"]);
        daemon.await_metric("udpferry_mesh_devices_remade_total", times);
        await_some(|| run("ip", &["route"]).contains("192.168.2.0/24 dev t1").then_some(()))
            .expect("the route does not come back");
    }
    daemon.service.await_log("t1: somebody deleted the device");
    assert!(run("ip", &["-o", "address"]).contains("10.0.1.1/30"));
    assert_eq!(daemon.list()[0]["fault"], Value::Null);
}

#[test]
fn what_others_remove_is_put_back() {
    if !in_own_namespaces("changes::what_others_remove_is_put_back") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let mut one = with(tunnel(1), "routes", json!(["192.168.2.0/24", "fd00:2::/64"]));
    one["addresses"] = json!(["fd00::1/64"]);
    daemon.ask(add(&[one, with(tunnel(2), "routes", json!(["192.168.3.0/24"]))]));
    let is_whole = || {
        let addresses = run("ip", &["-o", "address", "show", "dev", "t1"]);
        let routes = run("ip", &["route"]) + &run("ip", &["-6", "route"]);
        let wanted = ["192.168.2.0/24 dev t1", "fd00:2::/64 dev t1", "192.168.3.0/24 dev t2"];
        let broadcast = run("ip", &["route", "show", "table", "local", "type", "broadcast"]);
        addresses.contains("inet 10.0.1.1/30")
            && addresses.contains("inet6 fd00::1/64")
            && wanted.iter().all(|route| routes.contains(route))
            && !broadcast.contains("10.0.1.3")
    };
    let await_whole = |why: &str| {
        await_some(|| is_whole().then_some(())).unwrap_or_else(|| panic!("{why}: not put back"));
    };
    await_whole("at first");
    for by_hand in [
        "route del 192.168.2.0/24",
        "address del 10.0.1.1/30 dev t1",
        "address flush dev t1",
        "-6 route flush dev t1",
    ] {
        run("ip", &by_hand.split(' ').collect::<Vec<_>>());
        assert!(!is_whole(), "{by_hand}");
        await_whole(by_hand);
    }
    daemon.service.await_log("removed by others, and put back: ");
    // What somebody has switched off stays so, and `list` says it.
    run("ip", &["link", "set", "t1", "down"]);
    daemon.await_field("t1", "note", &"somebody switched the device off".into());
    run("ip", &["link", "set", "t1", "up"]);
    await_whole("down and up");
    daemon.await_field("t1", "note", &Value::Null);
    // Both at once, before anybody looks.
    run("ip", &["link", "set", "t1", "down"]);
    run("ip", &["link", "set", "t1", "up"]);
    await_whole("down and up at once");
    run("ip", &["link", "set", "t1", "down"]);
    run("ip", &["link", "set", "t1", "name", "other"]);
    await_some(|| (has_device("t1") && !has_device("other")).then_some(()))
        .expect("a renamed device is not replaced");
    await_whole("renamed");
    // A route of somebody's own to the same device does as well.
    run("ip", &["route", "replace", "192.168.2.0/24", "dev", "t1", "mtu", "1300"]);
    // What happens to another tunnel is heard later, and looked at in the same turn or a later one.
    let others_turn = || {
        let route = "192.168.3.0/24 dev t2";
        run("ip", &["route", "del", "192.168.3.0/24", "dev", "t2"]);
        await_some(|| run("ip", &["route"]).contains(route).then_some(())).expect(route);
    };
    others_turn();
    let replaced = run("ip", &["route", "show", "192.168.2.0/24"]);
    assert_eq!(replaced.lines().count(), 1, "{replaced}");
    assert!(replaced.contains("mtu 1300"), "{replaced}");
    // It has come to rest: nothing is said any more but of the other one.
    let said_of_it = || {
        let log = daemon.service.log();
        log.lines().filter(|line| line.contains("t1")).count()
    };
    let before = said_of_it();
    others_turn();
    others_turn();
    assert_eq!(said_of_it(), before, "{}", daemon.service.log());
}

#[test]
fn a_device_that_cannot_be_read_any_more_is_made_again() {
    if !in_own_namespaces("changes::a_device_that_cannot_be_read_any_more_is_made_again") {
        return;
    }
    let daemon = Daemon::start(&[]);
    daemon.ask(add(&[with(tunnel(1), "routes", json!(["192.168.2.0/24"]))]));
    // TUNSETVNETHDRSZ of more than any reader has room for: each read fails, and the interface stays.
    let spoil = "import ctypes, fcntl, os, struct, sys
pid = int(sys.argv[1])
for fd in os.listdir(f'/proc/{pid}/fd'):
    if os.readlink(f'/proc/{pid}/fd/{fd}') == '/dev/net/tun':
        ours = ctypes.CDLL(None).syscall(438, os.pidfd_open(pid), int(fd), 0)
        fcntl.ioctl(ours, 0x400454d8, struct.pack('i', 1 << 20))
";
    let index = || run("ip", &["-o", "link", "show", "t1"]).split(':').next().unwrap().to_owned();
    let before = index();
    run("python3", &["-c", spoil, &daemon.service.pid().to_string()]);
    let wire = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    for _ in 0..40 {
        wire.send_to(b"lost", "10.0.1.2:9").unwrap();
    }
    daemon.service.await_log("t1: the device cannot be read any more");
    daemon.await_metric("udpferry_mesh_devices_remade_total", 1);
    daemon.await_field("t1", "fault", &Value::Null);
    assert_ne!(index(), before);
    assert!(run("ip", &["route"]).contains("192.168.2.0/24 dev t1"));
    // It is read.
    let sent = || {
        wire.send_to(b"sent", "10.0.1.2:9").unwrap();
        let stats = daemon.ask(json!({ "op": "stats" }));
        (stats["tunnel"][0]["packetsOut"] != 0).then_some(())
    };
    await_some(sent).expect("nothing goes out");
}
