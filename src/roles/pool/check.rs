//! `udpferry check pool`: an operator's first aid, from the client's side of the server.

use super::ClientTls;
use super::args::{CLIENT_TLS, port_argument, strict_client_tls};
use super::probe::Probe;
use crate::cli::common::INFORMATION;
use crate::cli::flags::Matches;
use crate::cli::table::{Command, Opt, Positional};
use crate::cli::values::duration;
use crate::error::Error;
use crate::net::random;
use crate::net::tls::{ClientTrust, Identity};
use crate::net::tls_failure::{in_plain_words, is_certificate_refused};
use crate::roles::destination::Destination;
use crate::roles::dial::{ConnectHints, TlsWords, connect_step, recognise, tls_step};
use crate::roles::framed::NoReply;
use crate::roles::report::{Report, say};
use crate::runtime::clock;
use crate::wire::pool::SessionId;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

/// The options of the check.
pub const CHECK: Command = Command {
    name: "check pool",
    summary: "see from a client's side whether a pool server works, step by step",
    about: "Connects to a pool server as `pool client` would, shows its certificate, opens a \
            session, sends a datagram to the server's target, and says in plain words what \
            happened, how long it took, and where to look when it did not work. A target that \
            does not answer strangers, such as WireGuard, is no failure. Works with uotp-server \
            too. Exit status 0 if the session was accepted.",
    positionals: &[
        Positional { name: "HOST", help: "The pool server's name or address.", required: true },
        Positional { name: "PORT", help: "The pool server's TCP port.", required: true },
    ],
    sections: &[("Check", CHECK_OPTIONS), ("TLS", CLIENT_TLS), ("Common", INFORMATION)],
    examples: &[
        ("udpferry check pool vpn.example.net 8443", "As `pool client vpn.example.net 8443`."),
        (
            "udpferry check pool -C ca.pem --tls-servername vpn.example.net 192.0.2.7 8443",
            "Trust one authority, and expect that name.",
        ),
        ("udpferry check pool --no-tls 127.0.0.1 8443", "A server with --no-tls."),
    ],
};

const CHECK_OPTIONS: &[Opt] =
    &[Opt::value(&["--timeout"], "TIME", Some("5"), "How long to wait for each step.")];

const HINTS: ConnectHints = ConnectHints {
    refused: "The pool's port is a TCP port: an open UDP port does not help.",
    silent: "The server listens on port 8443 unless its --bind-port says otherwise.",
};

const TLS_WORDS: TlsWords = TlsWords {
    plain: "--no-tls",
    ca: "--cafile",
    server_name: "--tls-servername",
    identity: "--cert and --key",
};

/// Short enough for every path, and not what any VPN begins with.
const DATAGRAM: &[u8] = b"udpferry check";

/// Runs the check; returns the process's exit code.
pub fn check(m: &Matches) -> Result<u8, Error> {
    let host = m.positional(0).unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let destination = Destination { port: port_argument(m, "PORT")?, host };
    let timeout = m.required("--timeout", duration)?.max(Duration::from_millis(1));
    let tls = strict_client_tls(m, &destination.host)?;
    let identity = match tls.as_ref().and_then(|tls| tls.files.as_ref()) {
        Some(files) => Some(Identity::load(&files.certificate, &files.key)?),
        None => None,
    };
    let mut report = Report::begin(&format!("pool server at {destination}"))?;
    let found = (destination.host.as_str(), destination.port).to_socket_addrs();
    let addresses: Vec<SocketAddr> = found.map(Iterator::collect).map_err(|error| {
        report.failed(
            &format!("cannot resolve {}: {error}", destination.host),
            &["Check the spelling, and this machine's own DNS."],
        )
    })?;
    let mut dial = connect_step(&mut report, &destination.host, &addresses, timeout, &HINTS)?;
    if let Some(tls) = &tls {
        let trust = ClientTrust {
            ca: tls.ca.as_deref(),
            any_name: !tls.checks_name,
            alpn: tls.alpn.as_deref(),
            identity: identity.as_ref(),
            ..ClientTrust::default()
        };
        tls_step(&mut report, &mut dial, &tls.server_name, &trust, &TLS_WORDS)?;
    }
    let bytes = random::bytes().map_err(Error::while_doing(|| "cannot make a session id"))?;
    let mut probe = Probe::new(dial);
    let reply = match probe.open(SessionId::from_random(bytes), DATAGRAM) {
        // What the server said before it closed is still there to be read.
        Ok(()) | Err(_) => probe.receive(clock::now() + timeout),
    };
    judge(&mut report, reply, tls.as_ref(), timeout).map(|()| 0)
}

fn judge(
    report: &mut Report,
    reply: Result<Vec<u8>, NoReply>,
    tls: Option<&ClientTls>,
    timeout: Duration,
) -> Result<(), Error> {
    match reply {
        Ok(datagram) => {
            if datagram == DATAGRAM {
                report.ok("session accepted; the target echoed a datagram")?;
            } else {
                let what = format!(
                    "session accepted; the target answered with {} bytes that are no echo",
                    datagram.len()
                );
                report.ok(&what)?;
            }
            say("The pool works: a datagram went to the target, and its answer came back.\n")
        }
        Err(NoReply::TimedOut) => {
            report.ok("session accepted: the connection stays open")?;
            report.note(&format!("The target sent no answer in {timeout:?}, which is no failure:"))?;
            report.note("WireGuard, for one, is silent to strangers. If nothing works behind it, see")?;
            report.note("whether the server's DST_ADDRESS and DST_PORT are right, and who listens there:")?;
            report.note("ss -ulnp on the target's machine.")?;
            say("The server works; its target cannot be seen from here.\n")
        }
        Err(NoReply::Closed) if tls.is_some() => Err(report.failed(
            "the server closed the connection",
            &[
                "It may want a client certificate, or another one (--cert and --key), be full",
                "(--max-connections, --max-sessions), or speak something else than the pool's",
                "protocol. Its log says which.",
            ],
        )),
        Err(NoReply::Closed) => Err(report.failed(
            "the server closed the connection",
            &[
                "It may expect TLS (try without --no-tls), be full (--max-connections,",
                "--max-sessions), or speak something else than the pool's protocol. Its log says which.",
            ],
        )),
        Err(NoReply::Failed(error)) => {
            // In TLS 1.3 a server judges the certificate after the client's handshake is over.
            let text = error.to_string();
            let advice: &[&str] = if is_certificate_refused(&text) {
                &[
                    "The server wants a client certificate, or another one: give --cert and --key.",
                    "Its log says what it refused.",
                ]
            } else {
                &["The server's log may say why."]
            };
            Err(report.failed(&format!("the connection failed: {}", in_plain_words(&text)), advice))
        }
        Err(NoReply::OtherProtocol(bytes)) => {
            let (what, advice) = recognise(&bytes, "The server expects TLS: try without --no-tls.");
            Err(report.failed(
                &format!("what answers does not speak the pool's protocol: {what}"),
                &[advice],
            ))
        }
    }
}
