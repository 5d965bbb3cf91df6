//! `udpferry check vpn`: an operator's first aid, from a client's side of the server, without a
//! device and without root.

use super::args;
use super::probe::{NoPlace, Place, Probe, is_timeout};
use crate::cli::common::INFORMATION;
use crate::cli::flags::Matches;
use crate::cli::table::{Command, Opt, Positional};
use crate::cli::values::duration;
use crate::error::Error;
use crate::roles::report::{Report, say};
use crate::wire::vpn::{Refusal, VERSION};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

/// The options of the check.
pub const CHECK: Command = Command {
    name: "check vpn",
    summary: "see from a client's side whether a vpn server works, step by step",
    about: "Asks a server for addresses as a client does, pings it through the tunnel with a small \
            packet and with the longest one, gives the addresses back, and says in plain words what \
            happened, how long it took, and where to look when it did not work. Changes nothing on \
            this host. Exit status 0 if all of it worked.",
    positionals: &[Positional {
        name: "SERVER[:PORT]",
        help: "The server's name or address, and its port if it is not 5555.",
        required: true,
    }],
    sections: &[("Check", CHECK_OPTIONS), ("Common", INFORMATION)],
    examples: &[
        ("udpferry check vpn vpn.example.net", "The server that a client would use."),
        ("udpferry check vpn [2001:db8::1]:5555", "Over IPv6."),
    ],
};

const CHECK_OPTIONS: &[Opt] =
    &[Opt::value(&["--timeout"], "TIME", Some("3"), "How long to wait for each answer.")];

/// A ping's usual size.
const SMALL: usize = 84;

/// Runs the check; returns the process's exit code.
pub fn check(m: &Matches) -> Result<u8, Error> {
    let destination = args::destination(m)?;
    let timeout = m.required("--timeout", duration)?.max(Duration::from_millis(1));
    let mut report = Report::begin(&format!("vpn server at {destination}"))?;
    let found = destination.resolve().map_err(|error| {
        let advice = ["Check the spelling, and this machine's own DNS."];
        report.failed(&format!("cannot resolve {}: {error}", destination.host), &advice)
    })?;
    let Some(address) = found.first().copied() else {
        return Err(report.failed(&format!("{} has no address", destination.host), &[]));
    };
    let mut probe = Probe::connect(address, timeout)
        .map_err(|error| report.failed(&format!("cannot send to udp {address}: {error}"), &[]))?;
    let (seen, cookie) = probe.hello().map_err(|why| no_place(&report, &why))?;
    report.ok(&format!("{address} sees this host at {seen}, and gives a cookie"))?;
    match probe.local_addr() {
        Ok(local) if local == seen => report.note("That is this host's own: no NAT.")?,
        Ok(local) => {
            let port = local.port();
            report.note(&format!("It sent from port {port}: there is a NAT on the way."))?;
        }
        Err(_) => {}
    }
    let place = probe.enter(seen, cookie).map_err(|why| no_place(&report, &why))?;
    tell_place(&mut report, &place)?;
    let pinged = ping_through(&mut report, &mut probe, &place);
    // Whatever came of it; a goodbye that is lost costs the server an idle client.
    let left = probe.leave();
    if !pinged? {
        return Err(Error::CheckFailed);
    }
    left.map_err(|error| report.failed(&format!("cannot say goodbye: {error}"), &[]))?;
    report.ok("gave them back")?;
    say("The server works.\n").map(|()| 0)
}

fn tell_place(report: &mut Report, place: &Place) -> Result<(), Error> {
    let shown = |(address, prefix, server): &(IpAddr, u8, IpAddr)| {
        format!("{address}/{prefix} (the server is {server})")
    };
    let addresses: Vec<String> = place.addresses.iter().map(shown).collect();
    report.ok(&format!("got {}", addresses.join(" and ")))?;
    report.note(&format!(
        "Packets inside have {} bytes at most; keepalive every {} s.",
        place.mtu, place.keepalive_s
    ))?;
    if !place.dns.is_empty() {
        let dns: Vec<String> = place.dns.iter().map(ToString::to_string).collect();
        report.note(&format!("DNS servers that it tells: {}.", dns.join(", ")))?;
    }
    Ok(())
}

/// Returns whether every size came back.
fn ping_through(report: &mut Report, probe: &mut Probe, place: &Place) -> Result<bool, Error> {
    let mut all_well = true;
    for (own, _, server) in &place.addresses {
        for len in [SMALL, usize::from(place.mtu)] {
            let what = format!("ping {server} through the tunnel, a packet of {len} bytes");
            match probe.ping((*own, *server), len, b"udpferry check vpn ") {
                Ok(Some(_)) => report.ok(&what)?,
                Ok(None) => {
                    all_well = false;
                    let advice = if len == SMALL { NO_PING } else { NO_LARGE_PING };
                    // Said now; the other sizes and families may tell more.
                    let _ = report.failed(&format!("{what}: no reply"), advice);
                }
                Err(error) => {
                    all_well = false;
                    let _ = report.failed(&format!("{what}: {error}"), &[]);
                }
            }
        }
    }
    Ok(all_well)
}

const SILENT: &[&str] = &[
    "Is the service up, and on that port? ss -ulnp there shows it. Is the UDP port open in its",
    "firewall, and in its provider's? Does its --allow-from let this host in?",
];
const NO_PING: &[&str] = &[
    "The server answers, but not from inside: does its firewall drop ICMP on the TUN device?",
    "udpferry vpn status there names what was dropped, and why.",
];
const NO_LARGE_PING: &[&str] = &[
    "Small packets pass and large ones do not: something on the way drops datagrams of more than",
    "its MTU, or their fragments. Give the server a smaller --mtu, such as 1380 or 1280.",
];

fn no_place(report: &Report, why: &NoPlace) -> Error {
    match why {
        NoPlace::Io(error) if is_timeout(error) => report.failed("no answer", SILENT),
        NoPlace::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            report.failed("nobody listens there", SILENT)
        }
        NoPlace::Io(error) => report.failed(&error.to_string(), &[]),
        NoPlace::OtherVersion(version) => report.failed(
            &format!("it speaks version {version} of the protocol, this program {VERSION}"),
            &["Upgrade the older one."],
        ),
        NoPlace::CookieRefused => report.failed(
            "it does not take its own cookie",
            &["Does a load balancer send this host's datagrams to several servers in turn?"],
        ),
        NoPlace::Refused(reason) => {
            let advice = match reason {
                Refusal::Full => "It has --max-clients clients.",
                Refusal::NoAddress => "Its --pool has no address left.",
                Refusal::AddressTaken | Refusal::AddressOutside => "None was asked for: a fault.",
            };
            report.failed(&format!("it refuses: {reason:?}"), &[advice])
        }
    }
}
