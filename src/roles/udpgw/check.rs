//! `udpferry check udpgw`: an operator's first aid, from the client's side of the gateway.

use super::probe::{Probe, Reply};
use crate::cli::common::INFORMATION;
use crate::cli::flags::{Matches, UsageError};
use crate::cli::table::{Command, Opt, Positional};
use crate::cli::values::{duration, endpoint, text};
use crate::error::Error;
use crate::net::tls::{ClientTrust, Identity};
use crate::net::tls_failure::in_plain_words;
use crate::roles::dial::{ConnectHints, TlsWords, connect_step, recognise, tls_step};
use crate::roles::framed::NoReply;
use crate::roles::report::{Report, say};
use crate::runtime::clock;
use crate::state::access::AccessList;
use crate::wire::dns::{parse_answer, write_query};
use crate::wire::udpgw::Datagram;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

/// The options of the check.
pub const CHECK: Command = Command {
    name: "check udpgw",
    summary: "see from a client's side whether a gateway works, step by step",
    about: "Connects to a udpgw server as a phone app or tun2socks would, sends a DNS query to \
            the server's resolver (or any datagram to an echo server of yours), and says in plain \
            words what happened, how long it took, and where to look when it did not work. Works \
            with every udpgw server, not only ours. Exit status 0 if the answer came.",
    positionals: &[Positional {
        name: "ADDR:PORT",
        help: "The gateway's TCP address; ADDR may be a name.",
        required: true,
    }],
    sections: &[("Check", CHECK_OPTIONS), ("Common", INFORMATION)],
    examples: &[
        ("udpferry check udpgw 127.0.0.1:7300", "Ask the server's resolver through the gateway."),
        (
            "udpferry check udpgw vpn.example.net:7300 --dest 192.0.2.7:7",
            "Send a datagram to a UDP echo server through the gateway.",
        ),
        (
            "udpferry check udpgw vpn.example.net:7300 --tls --tls-ca ca.pem",
            "The same over TLS, trusting one authority.",
        ),
    ],
};

const CHECK_OPTIONS: &[Opt] = &[
    Opt::value(
        &["--dest"],
        "ADDR:PORT",
        None,
        "Send a datagram to this UDP echo server instead of a DNS query.",
    ),
    Opt::value(&["--name"], "NAME", Some("example.com"), "The name to ask the resolver for."),
    Opt::value(&["--timeout"], "TIME", Some("5"), "How long to wait for each step."),
    Opt::switch(&["--tls"], "Speak TLS to the gateway."),
    Opt::value(
        &["--tls-ca"],
        "FILE",
        None,
        "Trust these certificates (PEM) instead of the system's.",
    ),
    Opt::value(
        &["--tls-servername"],
        "NAME",
        None,
        "The name that the server's certificate must have; without it, ADDR.",
    ),
    Opt::switch(
        &["--tls-any"],
        "Take any certificate. For finding out what answers, not for anything secret.",
    ),
    Opt::value(&["--tls-cert"], "FILE", None, "A client certificate (PEM), with --tls-key."),
    Opt::value(&["--tls-key"], "FILE", None, "The client certificate's key (PEM)."),
];

const HINTS: ConnectHints = ConnectHints {
    refused: "udpgw itself is a TCP service: an open UDP port does not help.",
    silent: "udpgw usually listens on 127.0.0.1 and is reached through an SSH tunnel.",
};

const TLS_WORDS: TlsWords = TlsWords {
    plain: "without --tls",
    ca: "--tls-ca",
    server_name: "--tls-servername",
    identity: "--tls-cert and --tls-key",
};

/// The conid of the check's flow, and the id of its DNS query.
const CONID: u16 = 7;

struct Plan<'a> {
    target: &'a str,
    destination: Option<SocketAddr>,
    query_name: String,
    timeout: Duration,
    tls: bool,
    tls_name: String,
}

/// Runs the check; returns the process's exit code.
pub fn check(m: &Matches) -> Result<u8, Error> {
    let target = m.positional(0).unwrap_or_default();
    let plan = Plan {
        target,
        destination: m.one("--dest", endpoint)?,
        query_name: m.required("--name", query_name)?,
        timeout: m.required("--timeout", duration)?.max(Duration::from_millis(1)),
        tls: m.flag("--tls"),
        tls_name: match m.one("--tls-servername", text)? {
            Some(name) => name,
            None => host_of(target).to_owned(),
        },
    };
    for name in ["--tls-ca", "--tls-servername", "--tls-any", "--tls-cert", "--tls-key"] {
        if m.given(name) && !plan.tls {
            return Err(m.wrong(name, "only together with --tls").into());
        }
    }
    let identity = match (m.path("--tls-cert"), m.path("--tls-key")) {
        (Some(certificate), Some(key)) => Some(Identity::load(&certificate, &key)?),
        (None, None) => None,
        (Some(_), None) => return Err(m.wrong("--tls-cert", "only with --tls-key").into()),
        (None, Some(_)) => return Err(m.wrong("--tls-key", "only with --tls-cert").into()),
    };
    let ca = m.path("--tls-ca");
    let trust = ClientTrust {
        ca: ca.as_deref(),
        any_server: m.flag("--tls-any"),
        identity: identity.as_ref(),
        ..ClientTrust::default()
    };
    let addresses: Vec<SocketAddr> = match target.to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            return Err(Error::Usage(UsageError::NotAllowed {
                option: "ADDR:PORT".to_owned(),
                value: target.to_owned(),
                allowed: "an address or name and a port, such as 127.0.0.1:7300".to_owned(),
            }));
        }
        Err(error) => {
            return Err(Report::begin(&format!("udpgw at {target}"))?.failed(
                &format!("cannot resolve {}: {error}", host_of(target)),
                &["Check the spelling, and this machine's own DNS."],
            ));
        }
    };
    examine(&plan, &addresses, &trust).map(|()| 0)
}

fn examine(
    plan: &Plan<'_>,
    addresses: &[SocketAddr],
    trust: &ClientTrust<'_>,
) -> Result<(), Error> {
    let mut report = Report::begin(&format!("udpgw at {}", plan.target))?;
    let mut dial =
        connect_step(&mut report, host_of(plan.target), addresses, plan.timeout, &HINTS)?;
    if plan.tls {
        tls_step(&mut report, &mut dial, &plan.tls_name, trust, &TLS_WORDS)?;
    }
    let mut probe = Probe::new(dial);
    let reply = match send(plan, &mut probe) {
        // A server that has closed already may have said why before.
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
        {
            Err(NoReply::Failed(error))
        }
        Ok(()) | Err(_) => probe.receive(clock::now() + plan.timeout),
    };
    match reply {
        Ok(reply) => verify(plan, &reply, &mut report),
        Err(NoReply::Closed) => Err(report.failed(
            "the server closed the connection",
            &[
                "It may be full (--max-clients, --max-clients-per-address), expect TLS (try --tls),",
                "expect a PROXY header (--proxy-protocol), want another client certificate",
                "(--tls-client-ca), or speak something else than udpgw.",
                "Its log at --log-level warning says which.",
            ],
        )),
        Err(NoReply::Failed(error)) => {
            // In TLS 1.3 a server judges the certificate after the client's handshake is over.
            let advice: &[&str] = if plan.tls {
                &[
                    "The server may want another client certificate: --tls-cert and --tls-key.",
                    "Its log at --log-level warning says what it refused.",
                ]
            } else {
                &[]
            };
            let text = in_plain_words(&error.to_string());
            Err(report.failed(&format!("the connection failed: {text}"), advice))
        }
        Err(NoReply::OtherProtocol(bytes)) => {
            let (what, advice) = recognise(&bytes, "The server expects TLS: try --tls.");
            Err(report.failed(&format!("what answers does not speak udpgw: {what}"), &[advice]))
        }
        Err(NoReply::TimedOut) => Err(no_reply(plan, &mut probe, &report)),
    }
}

fn send(plan: &Plan<'_>, probe: &mut Probe) -> io::Result<()> {
    probe.keepalive()?;
    let mut query = Vec::new();
    // Checked with the options.
    write_query(&mut query, CONID, &plan.query_name);
    probe.send(&match plan.destination {
        Some(address) => {
            Datagram { conid: CONID, rebind: true, dns: false, address, payload: ECHO }
        }
        None => Datagram {
            conid: CONID,
            rebind: true,
            dns: true,
            // As the usual clients: the address that they hand to apps as the resolver's.
            address: DNS_ADDRESS,
            payload: &query,
        },
    })
}

const ECHO: &[u8] = b"udpferry check";
const DNS_ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 53)), 53);

fn verify(plan: &Plan<'_>, reply: &Reply, report: &mut Report) -> Result<(), Error> {
    let expected = plan.destination.unwrap_or(DNS_ADDRESS);
    if reply.conid != CONID || reply.address != expected {
        return Err(report.failed(
            &format!("the answer is for flow {} and {}", reply.conid, reply.address),
            &["The server confuses flows: it does not speak udpgw as badvpn does."],
        ));
    }
    let mut verdict =
        "The gateway works: it took a datagram, sent it on, and brought the answer back.";
    match plan.destination {
        Some(destination) if reply.payload == ECHO => {
            report.ok(&format!("datagram to {destination} and its echo"))
        }
        Some(destination) => report.ok(&format!(
            "datagram to {destination}, and an answer of {} bytes that is no echo",
            reply.payload.len()
        )),
        None => {
            let Some(answer) = parse_answer(&reply.payload).filter(|answer| answer.id == CONID)
            else {
                return Err(report.failed(
                    "the answer to the DNS query is no DNS answer",
                    &["Something else than a resolver answers: check the server's --dns."],
                ));
            };
            let meaning = match answer.code {
                0 => format!("{} records", answer.records),
                2 => "the resolver works but failed to find out".to_owned(),
                3 => "no such name".to_owned(),
                5 => "the resolver refused".to_owned(),
                code => format!("code {code}"),
            };
            if !matches!(answer.code, 0 | 3) {
                verdict = "The gateway works: it took a datagram, sent it on, and brought the \
                           answer back.
The resolver behind it failed: see the server's \
                           /etc/resolv.conf or --dns.";
            }
            report.ok(&format!(
                "DNS query for {} through the server's resolver: {meaning}",
                plan.query_name
            ))
        }
    }?;
    say(&format!("{verdict}\n"))
}

fn no_reply(plan: &Plan<'_>, probe: &mut Probe, report: &Report) -> Error {
    // A server that was waiting for TLS or a PROXY header closes by now; one that reads frames
    // takes another keepalive.
    let alive = probe.keepalive().is_ok()
        && matches!(
            probe.receive(clock::now() + Duration::from_millis(200)),
            Err(NoReply::TimedOut)
        );
    let state = if alive { "the connection is still open" } else { "the connection is gone now" };
    let what = format!("no answer in {:?}; {state}", plan.timeout);
    match plan.destination {
        Some(destination) => {
            let refused = AccessList::new(Vec::new(), Vec::new(), false).judge(destination).err();
            let refusal = refused.map(|reason| {
                format!(
                    "udpferry refuses {} destinations by default: start it with --allow {}.",
                    reason.as_str(),
                    destination.ip()
                )
            });
            let mut advice = vec![
                "Does that address echo UDP? From the server itself: socat - UDP:ADDR:PORT",
                "Does a firewall on the server or beyond drop UDP?",
                "Is the destination refused (--deny, --deny-private)? The server's log at --log-level warning tells.",
            ];
            if let Some(refusal) = &refusal {
                advice.insert(0, refusal);
            }
            report.failed(&what, &advice)
        }
        None => report.failed(
            &what,
            &[
                "Does the server's own resolver work? On the server: dig @NAMESERVER example.com",
                "It is the first nameserver of its /etc/resolv.conf, or its --dns.",
                "Does a firewall on the server drop outgoing UDP to port 53?",
                "A server that expects TLS or a PROXY header is silent too: try --tls, or ask through the proxy.",
            ],
        ),
    }
}

fn query_name(text: &str) -> Result<String, String> {
    if write_query(&mut Vec::new(), 0, text) {
        Ok(text.to_owned())
    } else {
        Err("a domain name such as example.com".to_owned())
    }
}

fn host_of(target: &str) -> &str {
    let host = target.rsplit_once(':').map_or(target, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}
