//! `udpferry check mesh`: an operator's first aid, on a host whose daemon runs.

use super::ctl::talk::{Talk, Way};
use super::{DEFAULT_SOCKET, message};
use crate::cli::common::INFORMATION;
use crate::cli::flags::Matches;
use crate::cli::table::{Command, Opt, Positional};
use crate::cli::values::duration;
use crate::error::Error;
use crate::roles::report::{Report, say};
use crate::runtime::clock;
use crate::state::mesh::tunnel::{Address, Tunnel};
use nix::poll::{PollTimeout, poll};
use serde_json::{Map, Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

/// The options of the check.
pub const CHECK: Command = Command {
    name: "check mesh",
    summary: "see on a host whether its mesh works, tunnel by tunnel",
    about: "Asks this host's daemon for its tunnels, looks whether each has its device and its \
            remote, sends something through it and sees whether anything comes back, and says in \
            plain words what happened and where to look when it did not work. Changes nothing. Exit \
            status 0 if all of it worked.",
    positionals: &[Positional {
        name: "NAME",
        help: "The tunnel to look at; without it, all.",
        required: false,
    }],
    sections: &[("Check", CHECK_OPTIONS), ("Common", INFORMATION)],
    examples: &[
        ("udpferry check mesh", "Every tunnel of this host."),
        ("udpferry check mesh udp2", "One of them."),
    ],
};

const CHECK_OPTIONS: &[Opt] = &[
    Opt::value(
        &["--control-socket", "--socket"],
        "FILE",
        Some("/run/udpferry/mesh.sock"),
        "The daemon's Unix socket.",
    ),
    Opt::value(&["--timeout"], "TIME", Some("2"), "How long to wait for each remote."),
];

/// RFC 863: nobody listens there, and the remote's kernel says so, through the tunnel.
const DISCARD: u16 = 9;

/// How often the daemon is asked whether it has heard something, in milliseconds.
const LOOK: u8 = 20;

/// Runs the check; returns the process's exit code.
pub fn check(m: &Matches) -> Result<u8, Error> {
    let path = m.path("--control-socket").unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
    let timeout = m.required("--timeout", duration)?.max(Duration::from_millis(1));
    let mut report = Report::begin(&format!("mesh daemon at {}", path.display()))?;
    let way = Way::Socket { path, timeout };
    let mut talk = Talk::begin(&way).map_err(|error| {
        let advice = ["Is the service up? systemctl status udpferry-mesh. Only root may ask it."];
        report.failed(&error.to_string(), &advice)
    })?;
    let tunnels = match m.positional(0) {
        Some(name) => {
            let request = json!({ "op": "get", "tunnel": [{ "name": name }] });
            let answer = talk.ask(request, true);
            answer.map_err(|error| report.failed(&error.to_string(), &[]))?
        }
        None => super::ctl::all(&mut talk, "list")?,
    };
    let tunnels = super::ctl::tunnels_of(&tunnels);
    report.ok(&format!("it answers, and has {} tunnels to look at", tunnels.len()))?;
    let mut failed = false;
    for shown in &tunnels {
        let name = shown.get("name").and_then(Value::as_str).unwrap_or("?");
        failed |= look_at(&mut report, &mut talk, name, shown, timeout).is_err();
    }
    if failed {
        return Err(Error::CheckFailed);
    }
    say("The mesh works.\n").map(|()| 0)
}

fn look_at(
    report: &mut Report,
    talk: &mut Talk,
    name: &str,
    shown: &Value,
    timeout: Duration,
) -> Result<(), Error> {
    let word = |field: &str| shown.get(field).and_then(Value::as_str);
    if let Some(fault) = word("fault") {
        return Err(report.failed(&format!("{name}: {fault}"), FAULTY));
    }
    let endpoint = word("endpoint").unwrap_or("nowhere yet");
    let Some(tunnel) = shown.as_object().and_then(wishes) else {
        return Err(report.failed(&format!("{name}: the daemon's answer is not understood"), &[]));
    };
    knock(&tunnel);
    let begin = clock::now();
    while clock::now().saturating_duration_since(begin) < timeout {
        let request = json!({ "op": "get", "tunnel": [{ "name": name }] });
        let answer = talk.ask(request, true)?;
        let heard = super::ctl::tunnels_of(&answer);
        let heard = heard.first().and_then(|tunnel| tunnel.get("lastHeard")?.as_f64());
        let since = clock::now().saturating_duration_since(begin).as_secs_f64();
        // Told to a tenth of a second.
        if heard.is_some_and(|heard| heard <= since + 0.05) {
            report.ok(&format!("{name}: something came back from {endpoint}"))?;
            if let Some(note) = word("note") {
                report.note(&format!("{note}: TCP is faster with mssClamp or another mtu."))?;
            }
            return Ok(());
        }
        // poll(2) on nothing.
        let _ = poll(&mut [], PollTimeout::from(LOOK));
    }
    Err(report.failed(&format!("{name}: nothing came back from {endpoint}"), SILENT))
}

const FAULTY: &[&str] = &["`udpferry meshctl list` says more; the daemon tries again by itself."];
const SILENT: &[&str] = &[
    "Is the daemon there running, and has it a tunnel to this host's address, with the other",
    "address of the same network? Is UDP port 5000 open in both firewalls? A remote that",
    "drops everything unasked may be silent and well: ping its address inside the tunnel.",
];

/// The tunnel without its state.
fn wishes(shown: &Map<String, Value>) -> Option<Tunnel> {
    let known = |(field, _): &(&String, &Value)| message::fields::FIELDS.contains(&field.as_str());
    let wishes = shown.iter().filter(known).map(|(field, value)| (field.clone(), value.clone()));
    message::fields::read_tunnel(0, &wishes.collect()).ok()
}

/// Sends something to whoever may be at the other end. That somebody answers is seen by the daemon.
fn knock(tunnel: &Tunnel) {
    for own in &tunnel.addresses {
        for other in others(*own) {
            let any = if other.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            // One that cannot be sent is one that nobody answers.
            let _ = UdpSocket::bind(any)
                .and_then(|socket| socket.send_to(b"udpferry check mesh", (other, DISCARD)));
        }
    }
}

/// The other addresses that are ours but for the last two bits, as with the seed's netmask.
fn others(own: Address) -> Vec<IpAddr> {
    let within = |ip: &IpAddr| own.network().contains(*ip) && *ip != own.ip();
    let near: Vec<IpAddr> = match own.ip() {
        IpAddr::V4(ip) => {
            let first = ip.to_bits() & !3;
            (first..=first | 3).map(|bits| Ipv4Addr::from_bits(bits).into()).collect()
        }
        IpAddr::V6(ip) => {
            let first = ip.to_bits() & !3;
            (first..=first | 3).map(|bits| Ipv6Addr::from_bits(bits).into()).collect()
        }
    };
    near.into_iter().filter(within).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remote_is_looked_for_beside_us() {
        let others = |ip: &str, len| -> Vec<String> {
            let own = Address::new(ip.parse().unwrap(), len).unwrap();
            others(own).iter().map(ToString::to_string).collect()
        };
        assert_eq!(others("10.0.1.1", 30), ["10.0.1.0", "10.0.1.2", "10.0.1.3"]);
        assert_eq!(others("10.0.1.2", 31), ["10.0.1.3"]);
        assert_eq!(others("fd00::1", 126), ["fd00::", "fd00::2", "fd00::3"]);
        assert!(others("10.0.1.1", 32).is_empty());
    }
}
