//! `udpferry check udpgw` against servers that work and servers that do not.

use crate::support::kernel::{await_state, go_on, pause};
use crate::support::pki::{Issued, authority};
use crate::support::programs::{Process, program};
use crate::support::{
    Echo, Gateway, PATIENCE, Scratch, Service, UDPFERRY, await_some, free_port, remote, run,
};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;

/// What a check said on standard output, and its exit code.
struct Verdict {
    said: String,
    code: Option<i32>,
}

fn check(target: &str, args: &[&str]) -> Verdict {
    verdict(target, run(&[&["check", "udpgw", target][..], args].concat()))
}

fn verdict(target: &str, output: Output) -> Verdict {
    let said = String::from_utf8(output.stdout).unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    match output.status.code() {
        Some(0) => assert_eq!(complaint, ""),
        _ => assert_eq!(complaint, "udpferry: the check failed\n", "{said}"),
    }
    assert!(said.starts_with(&format!("udpgw at {target}\n")), "{said}");
    Verdict { said, code: output.status.code() }
}

impl Verdict {
    /// All steps worked; each part is in an `ok` line of its own, with its time.
    fn works(&self, parts: &[&str]) {
        assert_eq!(self.code, Some(0), "{}", self.said);
        let mut steps = self.said.lines().filter(|line| line.starts_with("  ok    "));
        for part in parts {
            let step = steps.next().unwrap_or_else(|| panic!("no step {part:?}: {}", self.said));
            assert!(step.contains(part) && step.ends_with(" ms)"), "{part:?}: {step}");
        }
        assert_eq!(steps.next(), None);
        assert!(!self.said.contains("FAIL"), "{}", self.said);
        assert!(self.said.contains("The gateway works: "), "{}", self.said);
    }

    /// One step failed with `what`; the advice below it has every part of `advice`.
    fn fails(&self, what: &str, advice: &[&str]) {
        assert_eq!(self.code, Some(1), "{}", self.said);
        let (before, after) = self.said.split_once("  FAIL  ").unwrap();
        let (step, below) = after.split_once('\n').unwrap();
        assert!(step.contains(what) && step.ends_with(" ms)"), "no {what:?} in: {step}");
        for part in advice {
            assert!(below.contains(part), "no {part:?} in the advice:\n{below}");
        }
        assert!(below.lines().all(|line| line.starts_with("        ")), "{below}");
        assert!(!before.contains("The gateway works"), "{}", self.said);
    }
}

/// A dnsmasq that knows `test.example` alone; waits until it answers dig.
fn dnsmasq() -> (Process, SocketAddr) {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = Command::new(program("dnsmasq"));
    command.args(["--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null"]);
    command.args(["--pid-file=", "--bind-interfaces", "--listen-address=127.0.0.1"]);
    command.arg(format!("--port={}", address.port()));
    command.arg("--address=/test.example/192.0.2.1");
    if crate::support::programs::is_root() {
        command.args(["--user=root", "--group=root"]);
    }
    let process = Process::start(command);
    let dig = program("dig");
    let port = address.port().to_string();
    let answer = await_some(|| {
        let output = Command::new(&dig)
            .args(["@127.0.0.1", "-p", &port, "+short", "+time=1", "+tries=1", "test.example"])
            .output()
            .unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    });
    assert_eq!(answer.as_deref(), Some("192.0.2.1\n"), "dnsmasq: {}", process.stderr());
    (process, address)
}

#[test]
fn a_gateway_with_a_resolver_works() {
    let (_dnsmasq, resolver) = dnsmasq();
    // No --allow: flows to the resolver are not judged, though it is on loopback.
    let address = format!("127.0.0.1:{}", free_port());
    let listen = format!("--listen-addr={address}");
    let _service = Service::start(&["udpgw", &listen, &format!("--dns={resolver}")]);
    let connection = format!("TCP connection to {address}");
    check(&address, &["--name=test.example"]).works(&[
        &connection,
        "DNS query for test.example through the server's resolver: 1 records",
    ]);
    // An answer is an answer, whatever it says: the gateway works.
    check(&address, &["--name", "unknown.invalid"])
        .works(&[&connection, "DNS query for unknown.invalid through the server's resolver: "]);
    let by_name = format!("localhost:{}", address.rsplit(':').next().unwrap());
    check(&by_name, &["--name=test.example"]).works(&["TCP connection to ", "1 records"]);
}

#[test]
fn an_echo_server_of_ones_own_will_do() {
    let gateway = Gateway::start(&[]);
    let echo = Echo::start();
    let address = gateway.address.to_string();
    let dest = format!("--dest={}", echo.address);
    check(&address, &[&dest])
        .works(&["TCP connection to ", &format!("datagram to {} and its echo", echo.address)]);
    // Another UDP server proves as much.
    let (socket, other) = remote();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (_, source) = socket.recv_from(&mut [0; 64]).unwrap();
            socket.send_to(b"hi!", source).unwrap();
        });
        let verdict = check(&address, &[&format!("--dest={other}")]);
        verdict.works(&["TCP connection to ", "an answer of 3 bytes that is no echo"]);
    });
}

#[test]
fn a_closed_port_is_told_from_a_silent_one() {
    let address = format!("127.0.0.1:{}", free_port());
    check(&address, &[]).fails(
        &format!("TCP connection to {address}: "),
        &["Nothing listens there", "ss -tlnp", "TCP service"],
    );
}

/// A TCP server for one connection: says `banner`, then reads until the other side closes.
fn banner(text: &'static [u8]) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(text);
        while stream.read(&mut [0; 4096]).is_ok_and(|len| len > 0) {}
    });
    (address, thread)
}

#[test]
fn other_protocols_are_recognised() {
    let port = "Is this the right port?";
    let banners: [(&[u8], &str, &str); 4] = [
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n", "it is an SSH server", port),
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "it is an HTTP server", port),
        (b"220 mail.example.net ESMTP\r\n", "it says \"220 mail.example", port),
        (&[0x15, 3, 3, 0, 2, 2, 70], "it speaks TLS", "try --tls"),
    ];
    for (text, meaning, advice) in banners {
        let (address, thread) = banner(text);
        let verdict = check(&address.to_string(), &["--timeout=500ms"]);
        let what = format!("what answers does not speak udpgw: {meaning}");
        verdict.fails(&what, &[advice]);
        thread.join().unwrap();
    }
}

#[test]
fn a_server_that_closes_is_no_riddle() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || drop(listener.accept().unwrap()));
    check(&address, &[])
        .fails("the server closed the connection", &["--max-clients", "--tls", "--proxy-protocol"]);
    thread.join().unwrap();
    // The gateway itself, when it expects something else first.
    let gateway = Gateway::start(&["--proxy-protocol"]);
    check(&gateway.address.to_string(), &[])
        .fails("the server closed the connection", &["--proxy-protocol"]);
}

#[test]
fn a_silent_server_is_silent() {
    let (address, thread) = banner(b"");
    check(&address.to_string(), &["--timeout=200ms"])
        .fails("no answer in 200ms; the connection is still open", &["resolver", "--tls"]);
    thread.join().unwrap();
    // A backlog that accepts for a program which does not.
    let stopped = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = stopped.local_addr().unwrap().to_string();
    check(&address, &["--timeout=200ms", "--tls"]).fails("no answer in time", &[]);
}

#[test]
fn a_check_that_was_stopped_goes_on() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let mut command = Command::new(UDPFERRY);
    command.args(["check", "udpgw", &address, "--timeout=1", "--tls"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    // It has begun the handshake, and waits.
    let (mut stream, _) = silent.accept().unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    await_state(pid, 'S');
    pause(pid);
    go_on(pid);
    verdict(&address, child.wait_with_output().unwrap()).fails("no answer in time", &[]);
}

#[test]
fn a_refused_destination_is_told() {
    let address = format!("127.0.0.1:{}", free_port());
    // By default, loopback is refused.
    let service = Service::start(&["udpgw", &format!("--listen-addr={address}")]);
    let echo = Echo::start();
    let dest = format!("--dest={}", echo.address);
    check(&address, &["--timeout=300ms", &dest]).fails(
        "no answer in 300ms; the connection is still open",
        &["udpferry refuses loopback destinations by default: start it with --allow 127.0.0.1."],
    );
    service.await_log("loopback destination");
}

#[test]
fn a_gateway_without_an_answering_resolver_is_told() {
    let (_silent, resolver) = remote();
    let gateway = Gateway::start(&[&format!("--dns={resolver}")]);
    check(&gateway.address.to_string(), &["--timeout=300ms"]).fails(
        "no answer in 300ms; the connection is still open",
        &["dig @NAMESERVER", "/etc/resolv.conf", "firewall"],
    );
    // Something answers that is no resolver.
    let echo = Echo::start();
    let gateway = Gateway::start(&[&format!("--dns={}", echo.address)]);
    check(&gateway.address.to_string(), &[])
        .fails("is no DNS answer", &["Something else than a resolver answers"]);
}

struct TlsFiles {
    scratch: Scratch,
    issued: Issued,
}

impl TlsFiles {
    fn new(authority: &Issued) -> TlsFiles {
        let files = TlsFiles { scratch: Scratch::new(), issued: authority.issue() };
        files.file("cert.pem", &files.issued.pem());
        files.file("key.pem", &files.issued.key_pem());
        files.file("ca.pem", &authority.pem());
        files
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.scratch.path(name), bytes).unwrap();
        self.path(name)
    }

    fn path(&self, name: &str) -> String {
        self.scratch.path(name).display().to_string()
    }
}

#[test]
fn tls_gateways_are_checked_with_and_without_tls() {
    let own = authority("udpferry test authority");
    let files = TlsFiles::new(&own);
    let clients = authority("udpferry test clients");
    let visitor = TlsFiles::new(&clients);
    let echo = Echo::start();
    let (certificate, key) = (files.path("cert.pem"), files.path("key.pem"));
    let serve = [format!("--tls-cert={certificate}"), format!("--tls-key={key}")];
    let gateway = Gateway::start(&[&serve[0], &serve[1]]);
    let address = gateway.address.to_string();
    let dest = format!("--dest={}", echo.address);
    let ca = format!("--tls-ca={}", files.path("ca.pem"));
    let wrong_ca = format!("--tls-ca={}", visitor.path("ca.pem"));
    let echoed = format!("datagram to {} and its echo", echo.address);
    let works = |address: &str, args: &[&str]| {
        let all = [&["--tls", &dest][..], args].concat();
        check(address, &all).works(&["TCP connection to ", "TLS handshake", &echoed]);
    };
    works(&address, &[&ca]);
    works(&address, &[&ca, "--tls-servername=gateway.test"]);
    works(&address, &["--tls-any"]);
    let advice = ["--tls-ca", "--tls-servername"];
    check(&address, &["--tls", &dest, &wrong_ca]).fails("TLS handshake as 127.0.0.1: ", &advice);
    check(&address, &["--tls", &dest, &ca, "--tls-servername=other.test"])
        .fails("TLS handshake as other.test: ", &advice);
    check(&address, &["--timeout=2", &dest]).fails("", &["tls"]);
    // And TLS to a server that has none.
    let plain = Gateway::start(&[]);
    check(&plain.address.to_string(), &["--tls", "--timeout=300ms", &ca, &dest])
        .fails("TLS handshake as 127.0.0.1: ", &["does not speak TLS"]);

    let client_ca = format!("--tls-client-ca={}", visitor.path("ca.pem"));
    let strict = Gateway::start(&[&serve[0], &serve[1], &client_ca]);
    let address = strict.address.to_string();
    let visit = [
        format!("--tls-cert={}", visitor.path("cert.pem")),
        format!("--tls-key={}", visitor.path("key.pem")),
    ];
    works(&address, &[&ca, &visit[0], &visit[1]]);
    let without = check(&address, &["--tls", &ca, &dest]);
    without.fails("", &["certificate"]);
}

#[test]
fn usage_errors_exit_2() {
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["ADDR:PORT", "is required"]),
        (&["127.0.0.1"], &["ADDR:PORT", "\"127.0.0.1\"", "127.0.0.1:7300"]),
        (&["127.0.0.1:70000"], &["ADDR:PORT", "\"127.0.0.1:70000\""]),
        (&["127.0.0.1:1", "127.0.0.1:2"], &["\"127.0.0.1:2\"", "no further argument"]),
        (&["127.0.0.1:1", "--dest=example.com:7"], &["--dest", "\"example.com:7\"", "numeric"]),
        (&["127.0.0.1:1", "--timeout=soon"], &["--timeout", "\"soon\"", "500ms"]),
        (&["127.0.0.1:1", "--name=a..b"], &["--name", "\"a..b\"", "example.com"]),
        (&["127.0.0.1:1", "--tls-ca=ca.pem"], &["--tls-ca", "only together with --tls"]),
        (&["127.0.0.1:1", "--tls-any"], &["--tls-any", "only together with --tls"]),
        (&["127.0.0.1:1", "--tls", "--tls-cert=c"], &["--tls-cert", "--tls-key"]),
        (&["127.0.0.1:1", "--tls", "--tls-key=k"], &["--tls-key", "--tls-cert"]),
        (&["127.0.0.1:1", "--bogus"], &["--bogus", "unknown option"]),
    ];
    for (args, parts) in cases {
        let output = run(&[&["check", "udpgw"][..], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        let line = crate::support::programs::only_line(&output);
        for part in *parts {
            assert!(line.contains(part), "{args:?}: no {part} in: {line}");
        }
    }
    // A file that cannot be read is no usage error, and says which.
    let output = run(&[
        "check",
        "udpgw",
        "127.0.0.1:1",
        "--tls",
        "--tls-cert=/nonexistent/c",
        "--tls-key=/nonexistent/k",
    ]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(crate::support::programs::only_line(&output).contains("/nonexistent/c"));
}
