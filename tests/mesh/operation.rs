//! As a service: starting under its names, stopping, reports, hooks, first aid.

use crate::daemon::{DATA, Daemon, add, del, devices, has_device, many, remote, tunnel};
use crate::support::kernel::{in_own_namespaces, run, sysctl};
use crate::support::programs::Process;
use crate::support::{Scratch, UDPFERRY, await_some, run as udpferry, takes_less_than};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

#[test]
fn the_seeds_names_start_what_they_started() {
    if !in_own_namespaces("operation::the_seeds_names_start_what_they_started") {
        return;
    }
    let scratch = Scratch::new();
    let [daemon, control] = ["udpProxyServer", "udpProxyServerControl"].map(|name| {
        symlink(UDPFERRY, scratch.path(name)).unwrap();
        scratch.path(name)
    });
    let socket = scratch.path("control.sock");
    let mut command = Command::new(daemon);
    command.args(["-dp", "6000", "-cp", "6001", "--log-level=info"]);
    command.env("UDPFERRY_CONTROL_SOCKET", &socket);
    let process = Process::start(command);
    process.await_stderr("packets are sent unencrypted");
    await_some(|| std::os::unix::net::UnixStream::connect(&socket).ok()).expect("no daemon");
    let control = |args: &str| {
        let output = Command::new(&control).args(args.split(' ')).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let add = "-s 127.0.0.1 -p 6001 -o add -n udp2 -t 10.0.1.1 -r 172.100.1.2";
    assert_eq!(control(add), (Some(0), "+ udp2\n".to_owned()));
    assert_eq!(control(add).0, Some(1), "it is there already");
    let address = run("ip", &["-o", "address", "show", "dev", "udp2"]);
    assert!(address.contains("10.0.1.1/30"), "{address}");
    assert!(run("ip", &["link", "show", "udp2"]).contains("mtu 1500"));
    assert_eq!(control("-s 127.0.0.1 -p 6001 -o del -n udp2").1, "- udp2\n");
    // As the original sends it, and goes.
    assert_eq!(control(&format!("{add} --no-wait")), (Some(0), String::new()));
    await_some(|| has_device("udp2").then_some(())).expect("no device");
}

#[test]
fn stops_at_once_and_leaves_nothing() {
    if !in_own_namespaces("operation::stops_at_once_and_leaves_nothing") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let socket = daemon.socket.clone();
    daemon.ask(add(&(0..20).map(tunnel).collect::<Vec<_>>()));
    let _idle = daemon.controller();
    let (status, took) = daemon.service.stop();
    assert!(status.success());
    assert!(took < Duration::from_millis(250), "{took:?}");
    assert_eq!(devices(), ["lo"]);
    assert!(!socket.exists());
}

#[test]
fn five_hundred_tunnels_start_soon_and_take_little() {
    if !in_own_namespaces("operation::five_hundred_tunnels_start_soon_and_take_little") {
        return;
    }
    let empty = Daemon::start(&[]);
    let before = empty.service.status("VmRSS");
    drop(empty);
    let scratch = Scratch::new();
    let state = scratch.path("state.json");
    let text = json!({ "version": 1, "commandTime": 0, "tunnel": many(500) }).to_string();
    fs::write(&state, text).unwrap();
    let begin = std::time::Instant::now();
    let daemon = Daemon::start_in(scratch, &["--state-file", state.to_str().unwrap()]);
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(daemon.metric("udpferry_mesh_tunnels"), 500);
    let each = (daemon.service.status("VmRSS") - before) / 500;
    assert!(each < 97, "{each} KiB for a tunnel");
}

#[test]
fn five_hundred_tunnels_are_applied_at_once() {
    if !in_own_namespaces("operation::five_hundred_tunnels_are_applied_at_once") {
        return;
    }
    let daemon = Daemon::start(&[]);
    let file = daemon.scratch.path("mesh.json");
    let apply = |tunnels: &[Value]| {
        fs::write(&file, json!({ "tunnel": tunnels }).to_string()).unwrap();
        // Enough to plan it; for doing it there is more for each tunnel.
        let output = daemon.meshctl(&["--timeout=1", "apply", file.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(devices().len(), tunnels.len() + 1);
    };
    apply(&many(500));
    apply(&[]);
}

#[test]
fn five_hundred_tunnels_stop_at_once() {
    if !in_own_namespaces("operation::five_hundred_tunnels_stop_at_once") {
        return;
    }
    let scratch = Scratch::new();
    let state = scratch.path("state.json");
    let text = json!({ "version": 1, "commandTime": 0, "tunnel": many(500) }).to_string();
    fs::write(&state, text).unwrap();
    let option = format!("--state-file={}", state.display());
    takes_less_than(Duration::from_millis(250), || {
        let daemon = Daemon::start(&[&option]);
        assert_eq!(devices().len(), 501);
        let (status, took) = daemon.service.stop();
        assert!(status.success());
        assert_eq!(devices(), ["lo"]);
        took
    });
}

#[test]
fn hooks_run_and_their_failures_are_counted() {
    if !in_own_namespaces("operation::hooks_run_and_their_failures_are_counted") {
        return;
    }
    let scratch = Scratch::new();
    let said = scratch.path("said");
    let hook = |word: &str| {
        format!(
            "--{word}=echo $UDPFERRY_EVENT $UDPFERRY_TUN $UDPFERRY_ADDRESS4 >>{}",
            said.display()
        )
    };
    let daemon = Daemon::start_in(scratch, &[&hook("up"), &hook("down")]);
    let has = |line: &str| {
        await_some(|| fs::read_to_string(&said).ok()?.lines().any(|it| it == line).then_some(()))
            .unwrap_or_else(|| panic!("no {line:?}"));
    };
    daemon.ask(add(&[tunnel(1), tunnel(2)]));
    has("up t1 10.0.1.1/30");
    has("up t2 10.0.2.1/30");
    daemon.ask(del("t1"));
    has("down t1 10.0.1.1/30");
    let daemon = daemon.restart(&["--up=exit 3"]);
    assert!(fs::read_to_string(&said).unwrap().contains("down t2"), "a stop takes it down too");
    daemon.ask(add(&[tunnel(3)]));
    daemon.await_metric("udpferry_mesh_hook_failures_total", 1);
    daemon.service.await_log("t3: hook \"exit 3\": it failed");
}

#[test]
fn a_hook_may_use_the_control_program() {
    if !in_own_namespaces("operation::a_hook_may_use_the_control_program") {
        return;
    }
    let scratch = Scratch::new();
    let (said, socket) = (scratch.path("said"), scratch.path("control.sock"));
    let meshctl = format!("{UDPFERRY} meshctl --socket {}", socket.display());
    // The hook's own tunnel has an MTU of 1400, and a remote.
    let hook = format!(
        "--up=[ $UDPFERRY_TUN = t1 ] || exit 0; {{ {meshctl} list && {meshctl} add t9 -t \
         10.9.9.1/30 -r 127.0.9.9 && {meshctl} update t1 --set follow=true && echo $UDPFERRY_MTU; \
         }} >{} 2>&1",
        said.display()
    );
    let daemon = Daemon::start_in(scratch, &[&hook]);
    daemon.ask(add(&[tunnel(1)]));
    daemon.await_field("t1", "follow", &true.into());
    let [one, nine] = [daemon.list()[0].clone(), daemon.list()[1].clone()];
    assert_eq!(one["mtu"], 1400, "{one}");
    assert_eq!((&nine["mtu"], &nine["remoteServer"]), (&"auto".into(), &"127.0.9.9".into()));
    let ends = || fs::read_to_string(&said).ok().filter(|text| text.ends_with("\n1400\n"));
    let text = await_some(ends).unwrap_or_else(|| fs::read_to_string(&said).unwrap_or_default());
    assert!(text.contains("+ t9\n") && text.ends_with("\n1400\n"), "{text}");
}

#[test]
fn reports_and_a_new_key_on_request() {
    if !in_own_namespaces("operation::reports_and_a_new_key_on_request") {
        return;
    }
    let scratch = Scratch::new();
    let key = scratch.path("key");
    fs::write(&key, "0123456789abcdef").unwrap();
    let shown = key.to_str().unwrap().to_owned();
    let options = ["--control-addr=127.0.0.1:5002", "--control-key", &shown];
    let daemon = Daemon::start_in(scratch, &options);
    let list = || {
        let args = ["meshctl", "-s", "127.0.0.1", "-p", "5002", "--key", &shown, "--timeout=0.3"];
        udpferry(&args).status.success()
    };
    assert!(list());
    fs::write(&key, "short").unwrap();
    daemon.service.signal(Signal::SIGHUP);
    daemon.service.await_log("the control key stays as it is");
    fs::write(&key, "fedcba9876543210").unwrap();
    assert!(!list(), "the daemon has the old one yet");
    daemon.service.signal(Signal::SIGHUP);
    await_some(|| list().then_some(())).expect("the new key is not read");
    daemon.service.signal(Signal::SIGUSR1);
    daemon.service.await_log("udpferry_mesh_requests_total=");
}

#[test]
fn first_aid_tells_what_works_and_what_does_not() {
    if !in_own_namespaces("operation::first_aid_tells_what_works_and_what_does_not") {
        return;
    }
    let daemon = Daemon::start(&["--data-addr=127.0.0.1"]);
    let check = |args: &[&str]| {
        let mut all = vec!["check", "mesh", "--timeout=0.5", "--socket"];
        all.push(daemon.socket.to_str().unwrap());
        all.extend_from_slice(args);
        let output = udpferry(&all);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(check(&[]).0, Some(0), "nothing to complain of");
    let _silent = remote("127.0.1.1");
    let answering = remote("127.0.1.2");
    daemon.ask(add(&[tunnel(1), tunnel(2)]));
    #[allow(clippy::disallowed_methods)] // Ends with the test's process.
    std::thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok(len) = answering.recv(&mut bytes) {
            // Anything of it is a sign of life.
            let _ = answering.send_to(&bytes[..len], ("127.0.0.1", DATA));
        }
    });
    let (code, said) = check(&[]);
    assert_eq!(code, Some(1));
    assert!(said.contains("FAIL  t1: nothing came back from 127.0.1.1:5000"), "{said}");
    assert!(said.contains("ok    t2: something came back from 127.0.1.2:5000"), "{said}");
    assert_eq!(check(&["t2"]).0, Some(0));
    assert_eq!(check(&["t9"]).0, Some(1));
    let nobody = udpferry(&["check", "mesh", "--socket=/nowhere"]);
    assert_eq!(nobody.status.code(), Some(1));
}

#[test]
fn the_devices_take_what_the_kernel_lets_them() {
    if !in_own_namespaces("operation::the_devices_take_what_the_kernel_lets_them") {
        return;
    }
    // A mesh of hosts forwards for networks: that stays the operator's own setting.
    let before = sysctl("net.ipv4.ip_forward");
    let daemon = Daemon::start(&["--no-offload"]);
    daemon.ask(add(&[tunnel(1)]));
    assert_eq!(sysctl("net.ipv4.ip_forward"), before);
    assert_eq!(daemon.list()[0]["deviceMtu"], 1400);
}
