//! The server's options, and what they come to.

use super::{
    FILES, HOOKS, MTU_HELP, PLAINTEXT, SOCKETS, TUN_NAME, address, check_mtu, interface_address,
    keepalive, one_of_each_family, shared_config,
};
use crate::cli::common::COMMON;
use crate::cli::flags::{Matches, UsageError};
use crate::cli::table::{Command, Opt, Takes};
use crate::cli::values::{cidr, count, duration, endpoint, text};
use crate::roles::host::server::Nat;
use crate::roles::vpn::ServerConfig;
use crate::state::access::Prefix;
use crate::state::vpn::clients::Limits;
use crate::state::vpn::leases::LEASES_MAX;
use crate::state::vpn::subnet::{Subnet, prefix_min};
use crate::wire::vpn::{DNS_MAX, DnsServers};
use std::net::IpAddr;
use std::time::Duration;

/// As many as the other roles take.
const LISTENERS_MAX: usize = 16;
/// Networks that may come, at most: each datagram is compared with all of them.
const ALLOWED_MAX: usize = 64;

/// The server's command line.
pub const SERVER_COMMAND: Command = Command {
    name: "vpn server",
    summary: "takes many clients' IP traffic out of UDP, with NAT if asked for",
    about: "Gives clients addresses of a network of their own, carries IP packets between them, this \
            host and, with --nat, the Internet: one packet in each UDP datagram, with the kernel's \
            offloads on both sides. There is no encryption in it. Everything that it changes on the \
            host is undone at its end, or before its next start.",
    positionals: &[],
    sections: &[
        ("Listening", LISTENING),
        ("Tunnel", TUNNEL),
        ("Internet", INTERNET),
        ("Limits", LIMITS),
        ("Sockets", SOCKETS),
        ("Hooks", HOOKS),
        ("Files", FILES),
        ("Common", COMMON),
    ],
    examples: &[
        (
            "udpferry vpn server --plaintext --nat",
            "Clients reach the Internet with this host's address.",
        ),
        (
            "udpferry vpn server --plaintext --address 10.0.0.2/24 --address fd00::2/64 --allow-from 198.51.100.0/24",
            "Both families inside; only clients of that network may come.",
        ),
    ],
};

const LISTENING: &[Opt] = &[
    PLAINTEXT,
    Opt {
        names: &["--listen-addr"],
        takes: Takes::One("ADDR:PORT"),
        times_max: LISTENERS_MAX,
        default: Some("0.0.0.0:5555 [::]:5555"),
        help: "Serve on this UDP address, IPv4 or [IPv6]; up to 16 times. Answers leave from the \
               address that was asked. Sockets of the service manager (LISTEN_FDS) take its place.",
    },
    Opt {
        names: &["--allow-from"],
        takes: Takes::One("CIDR"),
        times_max: ALLOWED_MAX,
        default: None,
        help: "Drop and count all datagrams that do not come from this network; up to 64 times. \
               Sources can be forged where networks let them.",
    },
];

const TUNNEL: &[Opt] = &[
    Opt::value(&["--tun-name"], "NAME", Some("vpns"), TUN_NAME),
    Opt {
        names: &["--address"],
        takes: Takes::One("ADDR/LEN"),
        times_max: 2,
        default: Some("10.0.0.2/24"),
        help: "The server's own address inside, and with it the network; once for IPv4 and once for \
               IPv6.",
    },
    Opt {
        names: &["--pool"],
        takes: Takes::One("FIRST-LAST"),
        times_max: 2,
        default: None,
        help: "Give clients addresses from FIRST to LAST, or of a network ADDR/LEN; once for each \
               family. Without it from the whole network. A client may ask for any free address of \
               the network.",
    },
    Opt::value(&["--mtu"], "BYTES", None, MTU_HELP),
    Opt {
        names: &["--push-dns"],
        takes: Takes::One("ADDR"),
        times_max: DNS_MAX,
        default: None,
        help: "Tell clients of this DNS server; up to 3 times. They use it with --dns server.",
    },
    Opt::switch(&["--no-client-to-client"], "Drop and count what clients send to each other."),
    Opt::switch(
        &["--allow-bare"],
        "Also serve clients that only send IP packets, from an inner address that is free. Nothing \
         proves who they are: on networks where sources can be forged, packets may be sent to who \
         never asked for them.",
    ),
];

const INTERNET: &[Opt] = &[
    Opt::switch(
        &["--nat"],
        "Forward what clients send to other networks, with this host's address; clamp TCP's \
         segments to the tunnel's MTU.",
    ),
    Opt::value(
        &["--out-interface"],
        "NAME",
        None,
        "The interface that it leaves by; without it, that of the default route. Needs --nat.",
    ),
];

const LIMITS: &[Opt] = &[
    Opt::value(
        &["--max-clients"],
        "N",
        Some("1000"),
        "Clients at once, 1 to 65536; further ones are refused, and told so.",
    ),
    Opt::value(
        &["--idle-timeout"],
        "TIME",
        Some("180"),
        "A client that nothing has come from for so long is gone, 2 s to 18 h; its address waits for \
         it as long as nobody else needs it. Clients send a keepalive every --keepalive.",
    ),
    Opt::value(
        &["--keepalive"],
        "TIME",
        Some("15"),
        "How often clients shall say that they are there, 1 s to 18 h, whole seconds: many NATs \
         forget a mapping that has been idle for 30 s.",
    ),
];

/// Checks the server's options and puts them together.
pub(in crate::roles::vpn) fn server_config(m: &Matches) -> Result<ServerConfig, UsageError> {
    let shared = shared_config(m)?;
    let addresses = m.many("--address", interface_address)?;
    one_of_each_family(m, "--address", &addresses)?;
    check_mtu(m, &shared, addresses.iter().any(|network| network.address.is_ipv6()))?;
    let mut subnets = Vec::new();
    for network in addresses {
        if network.length < prefix_min(network.address) {
            return Err(
                m.wrong("--address", "a network of /8 or longer, for IPv6 of /16 or longer")
            );
        }
        let subnet = Subnet::new(network.address, network.length).ok_or_else(|| {
            m.wrong("--address", "a host's address in a network with room for clients")
        })?;
        subnets.push(subnet);
    }
    for (first, last) in m.many("--pool", pool)? {
        let outside = || m.wrong("--pool", "a part of the network of an --address of its family");
        let of_family = |subnet: &&mut Subnet| subnet.own().is_ipv4() == first.is_ipv4();
        let subnet = subnets.iter_mut().find(of_family).ok_or_else(outside)?;
        *subnet = subnet.with_pool(first, last).ok_or_else(outside)?;
    }
    if !m.flag("--nat") && m.given("--out-interface") {
        return Err(m.wrong("--out-interface", "only with --nat"));
    }
    let idle_timeout = m.required("--idle-timeout", idle_timeout)?;
    let keepalive = m.required("--keepalive", keepalive)?;
    if idle_timeout <= keepalive {
        return Err(m.wrong("--idle-timeout", "a longer time than --keepalive's"));
    }
    let prefix = |text: &str| {
        let (address, length) = cidr(text)?;
        Prefix::new(address, length).ok_or_else(|| "a network".to_owned())
    };
    Ok(ServerConfig {
        listen: m.many("--listen-addr", endpoint)?,
        listen_given: m.given("--listen-addr"),
        allow_from: m.many("--allow-from", prefix)?,
        subnets,
        allows_bare: m.flag("--allow-bare"),
        client_to_client: !m.flag("--no-client-to-client"),
        dns: DnsServers::new(m.many("--push-dns", address)?),
        nat: m.flag("--nat").then_some(Nat { out_interface: m.one("--out-interface", text)? }),
        limits: Limits {
            clients_max: m.required("--max-clients", count(1, LEASES_MAX as u64))?,
            idle_timeout,
        },
        keepalive,
        shared,
    })
}

/// Two addresses, or a network.
fn pool(text: &str) -> Result<(IpAddr, IpAddr), String> {
    let allowed = || {
        "FIRST-LAST such as 10.0.0.100-10.0.0.199, or a network such as 10.0.0.128/25".to_owned()
    };
    if let Some((first, last)) = text.split_once('-') {
        let (first, last) =
            (first.parse().map_err(|_| allowed())?, last.parse().map_err(|_| allowed())?);
        return Ok((first, last));
    }
    let (address, length) = cidr(text).map_err(|_| allowed())?;
    // The first address that may be a host's, so that it may be a network's begin.
    let part = Subnet::hosts_of(address, length).ok_or_else(allowed)?;
    Ok(part)
}

fn idle_timeout(text: &str) -> Result<Duration, String> {
    let allowed = Duration::from_secs(2)..=Duration::from_secs(18 * 3600);
    duration(text)
        .ok()
        .filter(|time| allowed.contains(time))
        .ok_or_else(|| "a time from 2s to 18h".to_owned())
}
