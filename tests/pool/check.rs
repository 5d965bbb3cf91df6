//! `udpferry check pool` against servers that work and servers that do not.

use crate::pair::{Raw, new_session};
use crate::support::pki::{Issued, authority};
use crate::support::{Echo, PATIENCE, Scratch, Service, free_port, remote, run};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

/// What a check said on standard output, and its exit code.
struct Verdict {
    said: String,
    code: Option<i32>,
}

fn check(port: u16, args: &[&str]) -> Verdict {
    let port = port.to_string();
    let output = run(&[&["check", "pool"][..], args, &["127.0.0.1", &port]].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    match output.status.code() {
        Some(0) => assert_eq!(complaint, ""),
        _ => assert_eq!(complaint, "udpferry: the check failed\n", "{said}"),
    }
    assert!(said.starts_with(&format!("pool server at 127.0.0.1:{port}\n")), "{said}");
    Verdict { said, code: output.status.code() }
}

impl Verdict {
    /// Every step worked, and this was said of them.
    #[track_caller]
    fn works(&self, parts: &[&str]) {
        assert_eq!(self.code, Some(0), "{}", self.said);
        for part in parts {
            assert!(self.said.contains(part), "no {part:?} in:\n{}", self.said);
        }
        assert!(!self.said.contains("FAIL"), "{}", self.said);
    }

    /// One step failed with `what`; the advice below it has every part of `advice`.
    #[track_caller]
    fn fails(&self, what: &str, advice: &[&str]) {
        assert_eq!(self.code, Some(1), "{}", self.said);
        let (_, after) = self.said.split_once("  FAIL  ").unwrap();
        let (step, below) = after.split_once('\n').unwrap();
        assert!(step.contains(what) && step.ends_with(" ms)"), "no {what:?} in: {step}");
        for part in advice {
            assert!(below.contains(part), "no {part:?} in the advice:\n{}", self.said);
        }
    }
}

/// A pool server in front of `target`.
fn server(target: SocketAddr, args: &[&str]) -> (Service, u16) {
    let port = free_port();
    let (bind, target_port) = (port.to_string(), target.port().to_string());
    let before = ["pool", "server", "--bind-address=127.0.0.1", "--bind-port", &bind];
    let service = Service::start(&[&before[..], args, &["127.0.0.1", &target_port]].concat());
    (service, port)
}

struct Files(Scratch);

impl Files {
    fn new(issued: &Issued, authority: &Issued) -> Files {
        let files = Files(Scratch::new());
        for (name, bytes) in
            [("cert.pem", issued.pem()), ("key.pem", issued.key_pem()), ("ca.pem", authority.pem())]
        {
            std::fs::write(files.0.path(name), bytes).unwrap();
        }
        files
    }

    fn path(&self, name: &str) -> String {
        self.0.path(name).display().to_string()
    }
}

#[test]
fn an_echo_an_answer_and_silence_are_told_apart() {
    let echo = Echo::start();
    let (_service, port) = server(echo.address, &["--no-tls"]);
    // Many times: the answer may come before the connection has joined its session.
    for _ in 0..50 {
        check(port, &["--no-tls", "--timeout=3"]).works(&[
            "TCP connection to ",
            "session accepted; the target echoed",
            "The pool works",
        ]);
    }

    let (socket, other) = remote();
    let (_service, port) = server(other, &["--no-tls"]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (_, source) = socket.recv_from(&mut [0; 64]).unwrap();
            socket.send_to(b"hi!", source).unwrap();
        });
        check(port, &["--no-tls"]).works(&["answered with 3 bytes that are no echo"]);
    });
    // As WireGuard: it takes the datagram and says nothing.
    check(port, &["--no-tls", "--timeout=300ms"]).works(&[
        "the connection stays open",
        "no answer in 300ms",
        "WireGuard",
    ]);
    assert!(socket.recv_from(&mut [0; 64]).is_ok(), "the datagram came");
}

#[test]
fn certificates_are_shown_and_each_failure_is_told_apart() {
    let echo = Echo::start();
    let own = authority("pool test authority");
    let files = Files::new(&own.issue(), &own);
    let clients = authority("pool test clients");
    let visitor = Files::new(&clients.issue(), &clients);
    let (certificate, key) = (files.path("cert.pem"), files.path("key.pem"));
    let serve = ["-c", certificate.as_str(), "-k", key.as_str()];
    let (_service, port) = server(echo.address, &serve);
    let (ca, other_ca) = (files.path("ca.pem"), visitor.path("ca.pem"));

    let shown = "certificate for gateway.test, 127.0.0.1, signed by pool test authority, until ";
    let echoed = "the target echoed a datagram";
    check(port, &["-C", &ca]).works(&["valid for 127.0.0.1", shown, "expires soon", echoed]);
    check(port, &["-C", &ca, "--tls-servername=gateway.test"]).works(&["gateway.test", echoed]);
    check(port, &["-C", &ca, "--no-hostname-check"]).works(&["a trusted authority", echoed]);
    check(port, &["-C", &ca, "--tls-servername=other.test"]).fails(
        "TLS handshake as other.test: the server's certificate is for another name (",
        &[shown, "not for other.test", "--tls-servername"],
    );
    check(port, &["-C", &other_ca]).fails(
        "as 127.0.0.1: the server's certificate is from an authority that is",
        &[shown, "not trusted here", "--cafile"],
    );
    check(port, &["--no-tls"]).fails("", &["without --no-tls"]);

    let (_plain, plain_port) = server(echo.address, &["--no-tls"]);
    check(plain_port, &["-C", &ca])
        .fails("TLS handshake as 127.0.0.1", &["does not speak TLS", "--no-tls"]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    check(silent.local_addr().unwrap().port(), &["-C", &ca, "--timeout=300ms"])
        .fails("no answer in time", &["does not speak TLS", "--no-tls"]);

    let (_strict, port) = server(echo.address, &[&serve[..], &["-C", &other_ca]].concat());
    // The refusal, or the reset that overtakes it.
    check(port, &["-C", &ca]).fails("", &["client certificate", "--cert and --key"]);
    let (certificate, key) = (visitor.path("cert.pem"), visitor.path("key.pem"));
    check(port, &["-C", &ca, "-c", &certificate, "-k", &key]).works(&[echoed]);
}

#[test]
fn a_server_that_is_something_else_is_told() {
    check(free_port(), &["--no-tls"]).fails("TCP connection", &["Nothing listens", "TCP port"]);
    let banners: [(&'static [u8], &str); 2] =
        [(b"SSH-2.0-OpenSSH_9.2p1\r\n", "it is an SSH server"), (b"", "closed the connection")];
    for (text, meaning) in banners {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            // All that the check says, so that closing does not reset the connection.
            stream.read_exact(&mut [0; 32]).unwrap();
            stream.write_all(text).unwrap();
        });
        check(port, &["--no-tls", "--timeout=1"])
            .fails(meaning, &["?"][..usize::from(!text.is_empty())]);
        thread.join().unwrap();
    }
}

#[test]
fn a_full_server_is_told() {
    let echo = Echo::start();
    let (service, port) = server(echo.address, &["--no-tls", "--max-sessions=1"]);
    // A session in use, which nobody has to leave for a second one.
    let mut raw = Raw::join(([127, 0, 0, 1], port).into(), new_session());
    raw.echo(b"hello");
    check(port, &["--no-tls"]).fails("closed the connection", &["--max-sessions"]);
    service.await_log("--max-sessions 1 are open");
}

#[test]
fn usage_errors_exit_2() {
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["HOST", "is required"]),
        (&["127.0.0.1"], &["PORT", "is required"]),
        (&["127.0.0.1", "0"], &["PORT", "\"0\"", "1 to 65535"]),
        (&["127.0.0.1", "1", "2"], &["\"2\"", "no further argument"]),
        (&["127.0.0.1", "1", "--no-hostname-check"], &["--no-hostname-check", "--cafile"]),
        (&["127.0.0.1", "1", "--no-tls", "-C", "ca.pem"], &["--cafile", "--no-tls"]),
        (&["127.0.0.1", "1", "-k", "key.pem"], &["--key", "--cert"]),
        (&["127.0.0.1", "1", "--timeout=soon"], &["--timeout", "\"soon\""]),
    ];
    for (args, parts) in cases {
        let output = run(&[&["check", "pool"][..], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        let line = crate::support::programs::only_line(&output);
        for part in *parts {
            assert!(line.contains(part), "{args:?}: no {part} in: {line}");
        }
    }
}
