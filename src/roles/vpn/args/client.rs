//! The client's options, and what they come to.

use super::{
    FILES, HOOKS, MTU_HELP, PLAINTEXT, SOCKETS, TUN_NAME, address, check_mtu, interface_address,
    keepalive, one_of_each_family, shared_config,
};
use crate::cli::common::COMMON;
use crate::cli::flags::{Matches, UsageError};
use crate::cli::table::{Command, Opt, Positional, Takes};
use crate::cli::values::{cidr, duration, number};
use crate::net::netlink::Network;
use crate::roles::destination::Destination;
use crate::roles::vpn::{ClientConfig, DEFAULT_PORT, Dns, Fixed};
use crate::wire::vpn::DNS_MAX;
use std::net::IpAddr;
use std::time::Duration;

/// Networks of --route and of --exclude, at most: each is a route or a rule.
const NETWORKS_MAX: usize = 64;

/// sshd listens on one or two.
const SSH_PORTS_MAX: usize = 8;

/// The client's command line.
pub const CLIENT_COMMAND: Command = Command {
    name: "vpn client",
    summary: "routes this machine's traffic, or some of it, through a server over UDP",
    about: "Gets addresses from a `udpferry vpn server`, brings up a TUN device with them, and routes \
            what it is asked to route. There is no encryption in it. It finds the server again when \
            either has moved or was started anew, and undoes all changes to the host at its end, or \
            before its next start.",
    positionals: &[Positional {
        name: "SERVER[:PORT]",
        help: "The server's name or address, and its port if it is not 5555.",
        required: true,
    }],
    sections: &[
        ("Server", SERVER),
        ("Tunnel", TUNNEL),
        ("Routes", ROUTES),
        ("Sockets", SOCKETS),
        ("Hooks", HOOKS),
        ("Files", FILES),
        ("Common", COMMON),
    ],
    examples: &[
        (
            "udpferry vpn client vpn.example.net --plaintext --route 10.20.0.0/16",
            "Reach that network through the server.",
        ),
        (
            "udpferry vpn client vpn.example.net --plaintext --default-route --kill-switch --dns server",
            "Everything through the server, and nothing beside it.",
        ),
    ],
};

const SERVER: &[Opt] = &[
    PLAINTEXT,
    Opt::value(
        &["--keepalive"],
        "TIME",
        None,
        "How often to say that this client is there, 1 s to 18 h; without it, as the server says. A \
         NAT that forgets sooner keeps the server from reaching this client.",
    ),
];

const TUNNEL: &[Opt] = &[
    Opt::value(&["--tun-name"], "NAME", Some("vpnc"), TUN_NAME),
    Opt {
        names: &["--address"],
        takes: Takes::One("ADDR/LEN"),
        times_max: 2,
        default: None,
        help: "Ask for this address in the server's network instead of any; once for IPv4 and once \
               for IPv6.",
    },
    Opt::value(&["--mtu"], "BYTES", None, MTU_HELP),
];

const ROUTES: &[Opt] = &[
    Opt {
        names: &["--route"],
        takes: Takes::One("CIDR"),
        times_max: NETWORKS_MAX,
        default: None,
        help: "Send what is for this network through the tunnel; up to 64 times.",
    },
    Opt::switch(
        &["--default-route"],
        "Send everything through the tunnel but its own datagrams and ssh sessions with this host. \
         IPv6 is unreachable if the server has none.",
    ),
    Opt {
        names: &["--exclude"],
        takes: Takes::One("CIDR"),
        times_max: NETWORKS_MAX,
        default: None,
        help: "Leave this network out of the tunnel; up to 64 times.",
    },
    Opt::switch(
        &["--kill-switch"],
        "Let nothing leave beside the tunnel from the start on, also when this client is killed or \
         fails, until it is stopped or `udpferry vpn down`. Only the question for SERVER's address may, \
         while the tunnel is down.",
    ),
    Opt {
        names: &["--dns"],
        takes: Takes::One("ADDR|server"),
        times_max: DNS_MAX,
        default: None,
        help: "Resolve names by this DNS server, up to 3 times, or with the word server by those \
               that the server tells (--push-dns there).",
    },
    Opt::value(
        &["--confirm"],
        "TIME",
        None,
        "Stop, and undo everything, unless `udpferry vpn confirm` comes within this time, 1 s to 1 h, \
         after the first change to this host: for hosts that are reached over what is changed.",
    ),
    Opt {
        names: &["--ssh-port"],
        takes: Takes::One("PORT"),
        times_max: SSH_PORTS_MAX,
        default: None,
        help: "Whoever has an ssh session with this host stays outside the tunnel. sshd's port is 22, \
               what /etc/ssh/sshd_config says if this client may read it, and what this option says, \
               up to 8 times.",
    },
];

/// Checks the client's options and puts them together.
pub(in crate::roles::vpn) fn client_config(m: &Matches) -> Result<ClientConfig, UsageError> {
    let shared = shared_config(m)?;
    let fixed = m.many("--address", interface_address)?;
    one_of_each_family(m, "--address", &fixed)?;
    check_mtu(m, &shared, fixed.iter().any(|network| network.address.is_ipv6()))?;
    let default_route = m.flag("--default-route");
    let routes = m.many("--route", network)?;
    let kill_switch = m.flag("--kill-switch");
    if m.given("--exclude") && !default_route && routes.is_empty() && !kill_switch {
        return Err(m.wrong("--exclude", "only with --default-route, --route or --kill-switch"));
    }
    Ok(ClientConfig {
        server: destination(m)?,
        fixed: Fixed::new(&fixed),
        keepalive: m.one("--keepalive", keepalive)?,
        routes,
        default_route,
        excludes: m.many("--exclude", network)?,
        kill_switch,
        dns: m.many("--dns", dns)?,
        confirm: m.one("--confirm", confirm)?,
        ssh_ports: m.many("--ssh-port", number(1, 65_535))?.into_iter().filter_map(port).collect(),
        shared,
    })
}

/// Also of `check vpn`.
pub(in crate::roles::vpn) fn destination(m: &Matches) -> Result<Destination, UsageError> {
    let text = m.positional(0).unwrap_or_default();
    Destination::parse(text, DEFAULT_PORT).map_err(|allowed| UsageError::NotAllowed {
        option: "SERVER[:PORT]".to_owned(),
        value: text.to_owned(),
        allowed,
    })
}

fn network(text: &str) -> Result<Network, String> {
    cidr(text).map(|(address, length)| Network { address, length })
}

fn dns(text: &str) -> Result<Dns, String> {
    if text == "server" {
        return Ok(Dns::Pushed);
    }
    let parsed: Result<IpAddr, String> = address(text);
    parsed.map(Dns::Server).map_err(|allowed| format!("server, or {allowed}"))
}

fn port(number: u64) -> Option<u16> {
    u16::try_from(number).ok()
}

fn confirm(text: &str) -> Result<Duration, String> {
    let allowed = Duration::from_secs(1)..=Duration::from_secs(3600);
    duration(text)
        .ok()
        .filter(|time| allowed.contains(time))
        .ok_or_else(|| "a time from 1s to 1h".to_owned())
}
