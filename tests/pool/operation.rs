//! How both sides are run: names, options, users, marks, logs and counters.

use crate::pair::{Endpoint, Raw, Side, new_session};
use crate::support::kernel::{in_own_namespaces, run as kernel_run};
use crate::support::programs::{
    Process, await_listener, is_root, only_line, program, socket_activated,
};
use crate::support::{Echo, Scratch, UDPFERRY, await_some, free_port, run};
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

const PLAIN: &str = "--no-tls";

#[test]
fn wrong_arguments_are_told_in_one_line() {
    let cases: &[(&[&str], &str)] = &[
        (&["pool", "server", "127.0.0.1", "1"], "--cert"),
        (&["pool", "server", "--no-tls", "127.0.0.1"], "DST_PORT"),
        (&["pool", "server", "--no-tls"], "DST_ADDRESS"),
        (&["pool", "server", "--no-tls", "127.0.0.1", "0"], "1 to 65535"),
        (&["pool", "server", "--no-tls", "127.0.0.1", "65536"], "1 to 65535"),
        (&["pool", "server", "-k", "x", "127.0.0.1", "1"], "--cert"),
        (&["pool", "server", "--no-tls", "-p", "65536", "127.0.0.1", "1"], "--bind-port"),
        (&["pool", "server", "--no-tls", "--max-sessions=0", "127.0.0.1", "1"], "--max-sessions"),
        (&["pool", "server", "--no-tls", "--handshake-timeout=0", "h", "1"], "--handshake-timeout"),
        (&["pool", "server", "--no-tls", "--framing=x", "127.0.0.1", "1"], "mullvad"),
        (&["pool", "server", "--no-tls", "-v", "loud", "127.0.0.1", "1"], "fatal"),
        (&["pool", "server", "--no-tls", "127.0.0.1", "1", "2"], "2"),
        (&["pool", "client", "--no-hostname-check", "127.0.0.1", "1"], "--cafile"),
        (&["pool", "client", "--no-tls", "--mark=0xg", "127.0.0.1", "1"], "--mark"),
        (&["pool", "client", "--no-tls", "-n", "0", "127.0.0.1", "1"], "--pool-size"),
        (&["pool", "client", "--no-tls", "-n0", "127.0.0.1", "1"], "--pool-size: \"0\""),
        (&["pool", "client", "-vloud", "127.0.0.1", "1"], "--verbosity: \"loud\" is not"),
        (&["pool", "client", "-R5", "127.0.0.1", "1"], "--resolve-once: \"5\" is not"),
        (&["pool", "client", "--no-tls", "-e", "0", "127.0.0.1", "1"], "--expire"),
        (&["pool", "client", "--no-tls", "-w", "0", "127.0.0.1", "1"], "--timeout"),
        (&["pool", "client", "--no-tls", "--alpn=x", "127.0.0.1", "1"], "--no-tls"),
        (&["pool", "client", "--no-tls", "--queue=0", "127.0.0.1", "1"], "--queue"),
        (&["pool", "client", "--no-tls", "-n", "2", "--framing=mullvad", "h", "1"], "--pool-size"),
        (&["pool", "client", "-v", "info", "--log-level=info", "127.0.0.1", "1"], "--verbosity"),
        (&["pool", "client", "-l", "x", "--log-syslog", "127.0.0.1", "1"], "--logfile"),
        (&["pool", "client", PLAIN, "--mark=1", "--user=nobody", "127.0.0.1", "1"], "--user"),
        (&["pool"], "pool server"),
    ];
    for (args, says) in cases {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        let line = only_line(&output);
        assert!(line.contains(says), "{args:?}: {line}");
    }
}

#[test]
fn options_of_tls_have_no_effect_beside_no_tls_which_is_told() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN, "-c", "/nowhere", "-k", "x", "-C", "x"]);
    let line = server.service.await_log("no effect");
    assert!(line.contains(" warning ") && line.contains("--cert, --key, --cafile"), "{line}");
    let args = [PLAIN, "-C", "/nowhere", "--no-hostname-check"];
    let client = Side::client(server.address, &args);
    client.service.await_log("no effect: --cafile, --no-hostname-check");
    Endpoint::to(client.address).echo(b"plain");
}

fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// Where it says that it listens.
fn listening(server: &Process) -> Vec<String> {
    let said = server.stderr();
    said.lines().filter_map(|line| line.split("listening on tcp ").nth(1)).map(Into::into).collect()
}

#[test]
fn a_passed_socket_stands_in_for_the_default_address_and_joins_others() {
    let (echo, address, other) = (Echo::start(), free_address(), free_address());
    let target = echo.address.port().to_string();
    let other_port = format!("-p{}", other.port());
    let configured = ["-a127.0.0.1", &other_port];
    for (own, expected) in [(&configured[..0], vec![address]), (&configured, vec![address, other])]
    {
        let args = [&["pool", "server", PLAIN], own, &["127.0.0.1", &target]].concat();
        let server = socket_activated(address, &args);
        let mut raw = Raw::over(await_listener(address));
        raw.stream.write_all(&new_session().bytes()).unwrap();
        raw.echo(b"activated");
        assert_eq!(
            listening(&server),
            expected.iter().map(ToString::to_string).collect::<Vec<_>>()
        );
    }
}

#[test]
fn one_server_listens_on_ipv4_and_ipv6() {
    let echo = Echo::start();
    let (port, target) = (free_port().to_string(), echo.address.port().to_string());
    let args = ["pool", "server", PLAIN, "-a127.0.0.1", "-a", "::1", "-p", &port];
    let args = [&args[..], &["127.0.0.1", &target]].concat();
    let server = Side::start(&args, "listening on tcp [::1]:", |_| {});
    for host in ["127.0.0.1", "::1"] {
        let address = SocketAddr::new(host.parse().unwrap(), server.address.port());
        Raw::join(address, new_session()).echo(host.as_bytes());
    }
}

#[test]
fn what_cannot_be_opened_is_told_in_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let cases: &[(&[&str], &str)] = &[
        (&["server", PLAIN, "-a", "127.0.0.1", "-p", &port, "127.0.0.1", "1"], "cannot listen"),
        (&["server", "-c", "/nonexistent", "-k", "/nonexistent", "h", "1"], "cannot read"),
        (&["server", PLAIN, "-p", "0", "no-such-host.invalid", "1"], "cannot resolve"),
        (&["client", "-p", "0", "-R", PLAIN, "no-such-host.invalid", "1"], "cannot resolve"),
        (&["client", "-p", "0", "-C", "/nonexistent", "127.0.0.1", "1"], "cannot read"),
        (&["client", "-p", "0", "-c", "/nonexistent", "127.0.0.1", "1"], "cannot read"),
    ];
    for (args, says) in cases {
        let args = [&["pool"], *args, &["-v", "error"]].concat();
        let output = run(&args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        let line = only_line(&output);
        assert!(line.contains(says), "{args:?}: {line}");
    }
}

#[test]
fn the_original_names_start_both_sides() {
    let echo = Echo::start();
    let scratch = Scratch::new();
    let (server_port, client_port) = (free_port().to_string(), free_port().to_string());
    let start = |name: &str, args: &[&str]| {
        let link = scratch.path(name);
        std::os::unix::fs::symlink(UDPFERRY, &link).unwrap();
        let log = scratch.path(&format!("{name}.log"));
        let mut command = Command::new(link);
        command.args(["-vdebug", "-l", log.to_str().unwrap(), PLAIN, "-a", "127.0.0.1"]);
        command.args(args);
        let process = Process::start(command);
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        let ready = await_some(|| said().contains("listening on").then_some(()));
        assert!(ready.is_some(), "{}", process.stderr());
        process
    };
    let target_port = echo.address.port().to_string();
    let attached_port = format!("-p{server_port}");
    let server = start("uotp-server", &[&attached_port, "127.0.0.1", &target_port]);
    let more = ["-p", &client_port, "-e60", "-Rn2", "-B", "0.5", "-w3"];
    let client = start("uotp-client", &[&more[..], &["127.0.0.1", &server_port]].concat());
    let endpoint = Endpoint::to(format!("127.0.0.1:{client_port}").parse().unwrap());
    endpoint.echo_at_last(b"hello");
    for (process, name) in [(&server, "uotp-server"), (&client, "uotp-client")] {
        let log = std::fs::read_to_string(scratch.path(&format!("{name}.log"))).unwrap();
        assert!(log.contains(" debug ") && log.contains(" info "), "{log}");
        assert_eq!(process.stderr(), "", "the log goes to the file alone");
    }
}

#[test]
fn verbosity_says_how_much() {
    for (level, shown) in [
        (&["-v", "debug"][..], &["debug", "info", "warning"][..]),
        (&["-v", "info"], &["info", "warning"]),
        (&[], &["info", "warning"]),
        (&["-v", "warn"], &["warning"]),
        (&["-v", "error"], &[]),
        (&["-v", "fatal"], &[]),
        (&["--log-level=warning"], &["warning"]),
    ] {
        let echo = Echo::start();
        let scratch = Scratch::new();
        let log = scratch.path("log");
        let port = free_port();
        let metrics = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = Command::new(UDPFERRY);
        command.args(["pool", "server", PLAIN, "-a", "127.0.0.1"]);
        command.args(["-p", &port.to_string(), "-l", log.to_str().unwrap()]).args(level);
        command.arg(format!("--metrics={metrics}"));
        command.args(["127.0.0.1", &echo.address.port().to_string()]);
        let _process = Process::start(command);
        let address = ([127, 0, 0, 1], port).into();
        drop(crate::support::programs::await_listener(address));
        Raw::join(address, new_session()).echo(b"debug and info");
        // One that hangs up before it has said who it is: a warning.
        let mut raw = Raw::connect(address);
        raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(raw.is_closed());
        let said = || std::fs::read_to_string(&log).unwrap();
        let all = await_some(|| {
            let said = said();
            shown.iter().all(|level| said.contains(&format!(" {level} "))).then_some(())
        });
        assert!(all.is_some(), "{level:?}: {}", said());
        for line in said().lines() {
            let ok = shown.iter().any(|level| line.contains(&format!(" {level} ")));
            assert!(ok, "{level:?}: {line}");
        }
    }
}

#[test]
fn no_log_holds_a_session_id_or_a_flood_of_sessions() {
    let echo = Echo::start();
    let args = [PLAIN, "--session-grace=0", "--max-sessions=65535"];
    let server = Side::server(echo.address, &args);
    let session = new_session();
    let mut raw = Raw::join(server.address, session);
    raw.echo(b"hello");
    let whole = format!("{:032x}", u128::from_be_bytes(session.bytes()));
    server.service.await_log(&format!("session {}: opened", &whole[..8]));
    // A debug log has a line for each connection. It must not be the session's.
    let log = || server.service.log().replace('-', "");
    assert!(!log().contains(&whole[8..16]), "{}", log());
    for _ in 0..150 {
        Raw::join(server.address, new_session()).echo(b"hello");
    }
    server.await_metric("sessions", 1);
    let lines = server.service.log().matches(": opened").count();
    // A session has two lines, and 100 are free.
    assert!((50..150).contains(&lines), "{lines} lines for 151 sessions");
}

#[test]
fn a_mark_needs_a_capability_and_says_so() {
    let args = ["pool", "client", PLAIN, "-p", "0", "--mark=0xca6c", "127.0.0.1", "1"];
    let mut command = Command::new(UDPFERRY);
    let scratch = Scratch::new();
    if is_root() {
        // Nobody can read a home directory: a copy where everybody can.
        let copy = scratch.path("udpferry");
        std::fs::copy(UDPFERRY, &copy).unwrap();
        command = Command::new(program("setpriv"));
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(copy);
    }
    let output = command.args(args).args(["-v", "error"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let line = only_line(&output);
    assert!(line.contains("0xca6c") && line.contains("CAP_NET_ADMIN"), "{line}");
}

#[test]
fn marked_connections_carry_the_mark() {
    if !in_own_namespaces("operation::marked_connections_carry_the_mark") {
        return;
    }
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN]);
    for (mark, shown) in [("0xca6c", "fwmark:0xca6c"), ("51820", "fwmark:0xca6c")] {
        let client = Side::client(server.address, &[PLAIN, "-m", mark, "-n", "2"]);
        Endpoint::to(client.address).echo(b"hello");
        client.await_metric("connections", 2);
        let port = format!(":{}", server.address.port());
        let said = kernel_run("ss", &["-Htnmoie", "state", "established", "dport", "=", &port]);
        assert_eq!(said.matches(shown).count(), 2, "{said}");
    }
}

#[test]
fn every_counter_is_there_from_the_start_and_moves() {
    let echo = Echo::start();
    let server = Side::server(echo.address, &[PLAIN]);
    let client = Side::client(server.address, &[PLAIN, "-n", "3"]);
    let names = udpferry::roles::ROLES
        .iter()
        .filter(|role| role.command.name.starts_with("pool"))
        .flat_map(|role| (role.metrics)());
    let names: Vec<_> = names.map(|family| family.name).collect();
    assert!(names.len() >= 20, "{names:?}");
    for side in [&server, &client] {
        let page = side.metrics_page();
        for name in &names {
            assert!(page.lines().any(|line| line.starts_with(*name)), "{name} is not in\n{page}");
        }
    }
    let endpoint = Endpoint::to(client.address);
    for _ in 0..5 {
        endpoint.echo(&[7; 100]);
    }
    for side in [&server, &client] {
        side.await_metric("connections", 3);
        side.await_metric("connections_up_total", 3);
        assert_eq!(side.metric("sessions"), 1);
        assert_eq!(side.metric("sessions_opened_total"), 1);
        for direction in ["to-stream", "to-udp"] {
            let name = |name| format!("{name}_total{{direction=\"{direction}\"}}");
            side.await_metric(&name("datagrams"), 5);
            let bytes = if direction == "to-udp" { 500 } else { 510 };
            side.await_metric(&name("bytes"), bytes);
        }
    }
    drop(server);
    client.await_metric("connections", 0);
    client.await_metric("connections_down_total{reason=\"closed\"}", 3);
    client.await_at_least("connection_failures_total{reason=\"connect\"}", 1);
}
