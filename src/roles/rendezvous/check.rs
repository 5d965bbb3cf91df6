//! `udpferry check rendezvous`: an operator's first aid, from a client's side of the server.

use super::DEFAULT_PORT;
use super::probe::{Probe, is_timeout};
use crate::cli::common::INFORMATION;
use crate::cli::flags::{Matches, UsageError};
use crate::cli::table::{Command, Opt, Positional};
use crate::cli::values::duration;
use crate::error::Error;
use crate::net::random;
use crate::roles::destination::Destination;
use crate::roles::report::{Report, say};
use crate::wire::rendezvous::RoomId;
use crate::wire::stun::attribute::AddressKind;
use crate::wire::stun::writer::Writer;
use crate::wire::stun::{Class, HEADER_LEN, Message, Method, TransactionId};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// The options of the check.
pub const CHECK: Command = Command {
    name: "check rendezvous",
    summary: "see from a client's side whether a rendezvous server works, step by step",
    about: "Asks a server by STUN where it sees this host, gets a cookie, enters a room that nobody \
            else knows and leaves it, and says in plain words what happened, how long it took, and \
            where to look when it did not work. Exit status 0 if all of it did.",
    positionals: &[Positional {
        name: "HOST[:PORT]",
        help: "The server's name or address, and its port if it is not 12345.",
        required: true,
    }],
    sections: &[("Check", CHECK_OPTIONS), ("Common", INFORMATION)],
    examples: &[
        ("udpferry check rendezvous rv.example.net", "The server that peers are told to use."),
        ("udpferry check rendezvous 192.0.2.7:3478", "Its second port."),
    ],
};

const CHECK_OPTIONS: &[Opt] =
    &[Opt::value(&["--timeout"], "TIME", Some("5"), "How long to wait for each answer.")];

/// Where a server sees us, and its other address if it has one.
struct Binding {
    mapped: SocketAddr,
    other: Option<SocketAddr>,
}

/// Runs the check; returns the process's exit code.
pub fn check(m: &Matches) -> Result<u8, Error> {
    let destination = destination(m)?;
    let Destination { host, port } = &destination;
    let timeout = m.required("--timeout", duration)?.max(Duration::from_millis(1));
    let mut report = Report::begin(&format!("rendezvous server at {host}, port {port}"))?;
    let server = match destination.resolve().map(|found| found.first().copied()) {
        Ok(Some(server)) => server,
        Ok(None) => return Err(unresolved(&report, host, "it has no address")),
        Err(error) => return Err(unresolved(&report, host, &error.to_string())),
    };
    let room = RoomId(random::bytes().map_err(Error::while_doing(|| "cannot make a room"))?);
    let mut probe = Probe::connect(server, room, timeout)
        .map_err(|error| report.failed(&format!("cannot send to udp {server}: {error}"), &[]))?;
    let binding = bind(&probe).map_err(|error| {
        report.failed(&format!("no answer to STUN from udp {server}: {}", words(&error)), SILENT)
    })?;
    report.ok(&format!("STUN: {server} sees this host at {}", binding.mapped))?;
    match probe.local_addr() {
        Ok(local) if local == binding.mapped => report.note("That is this host's own: no NAT.")?,
        Ok(local) => {
            report
                .note(&format!("It sent from port {}: there is a NAT on the way.", local.port()))?;
        }
        Err(_) => {}
    }
    match binding.other {
        Some(other) => report.note(&format!(
            "It has a second address, {other}: clients can find out how their NATs behave (RFC 5780)."
        ))?,
        None => report.note("It has one address: no discovery of a NAT's behaviour (RFC 5780).")?,
    }
    let seen = probe.hello().map_err(|error| {
        let what = format!("no cookie: {}", words(&error));
        report.failed(&what, &["It answers STUN, but is it `udpferry rendezvous`?"])
    })?;
    report.ok("the server gives a cookie")?;
    if seen != binding.mapped {
        report.note(&format!("It sees {seen} here, and saw {} by STUN.", binding.mapped))?;
    }
    let registered = probe.register().map_err(|error| {
        let what = format!("cannot enter a room: {}", words(&error));
        report.failed(&what, &["RoomsFull is its --max-rooms. Its log at level debug says more."])
    })?;
    report.ok(&format!(
        "entered a room; refresh after {} s, expiry after {} s",
        registered.refresh_s, registered.expiry_s
    ))?;
    if registered.endpoint != seen {
        report.note(&format!("It sees {} now: the NAT changes ports.", registered.endpoint))?;
    }
    report.note(if registered.relay {
        "It relays for members whose NATs let no path through."
    } else {
        "It does not relay (--relay): two members behind symmetric NATs cannot meet here."
    })?;
    probe.leave().map_err(|error| {
        report.failed(&format!("cannot leave the room: {}", words(&error)), &[])
    })?;
    report.ok("left it")?;
    say("The server works.\n").map(|()| 0)
}

const SILENT: &[&str] = &[
    "Is the service up, and on that port? ss -ulnp there shows it. Is the UDP port open in its",
    "firewall, and in its provider's? An open TCP port does not help.",
];

fn unresolved(report: &Report, host: &str, cause: &str) -> Error {
    let advice = ["Check the spelling, and this machine's own DNS."];
    report.failed(&format!("cannot resolve {host}: {cause}"), &advice)
}

fn words(error: &io::Error) -> String {
    match error.kind() {
        _ if is_timeout(error) => "nothing came in time".to_owned(),
        io::ErrorKind::ConnectionRefused => "nobody listens there".to_owned(),
        _ => error.to_string(),
    }
}

fn bind(probe: &Probe) -> io::Result<Binding> {
    let id = TransactionId::new(random::bytes()?);
    let mut request = [0; HEADER_LEN];
    let writer = Writer::new(&mut request, Class::Request, Method::BINDING, id);
    let len = writer.map_err(|_| io::ErrorKind::InvalidInput)?.finish();
    probe.ask(&request[..len], |datagram| {
        let answer = Message::parse(datagram).ok().filter(|answer| answer.id == id)?;
        if answer.class != Class::Success {
            return Some(Err(io::Error::other("it refused the request")));
        }
        let Ok(Some(mapped)) = answer.mapped_address() else {
            return Some(Err(io::Error::other("its answer has no address")));
        };
        let other = answer.address(AddressKind::Other).ok().flatten();
        Some(Ok(Binding { mapped, other }))
    })
}

fn destination(m: &Matches) -> Result<Destination, UsageError> {
    let text = m.positional(0).unwrap_or_default();
    Destination::parse(text, DEFAULT_PORT).map_err(|allowed| UsageError::NotAllowed {
        option: "HOST[:PORT]".to_owned(),
        value: text.to_owned(),
        allowed,
    })
}
