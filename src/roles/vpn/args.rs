//! The options of both sides: what they have in common.

mod client;
mod server;

pub use client::CLIENT_COMMAND;
pub(super) use client::{client_config, destination};
pub use server::SERVER_COMMAND;
pub(super) use server::server_config;

use super::{Hooks, SharedConfig};
use crate::cli::common::common;
use crate::cli::flags::{Matches, UsageError};
use crate::cli::table::Opt;
use crate::cli::values::{buffer_size, duration, number, text};
use crate::net::netlink::Network;
use crate::net::udp::Buffers;
use crate::roles::host::is_interface_name;
use crate::runtime::daemon::absolute;
use std::net::IpAddr;
use std::time::Duration;

/// What RFC 791 asks every host to take; and what an IPv4 datagram has room for.
const MTU_MIN: u64 = 576;
const MTU_MAX: u64 = 65_507;
/// A smaller MTU has no IPv6 (RFC 8200, section 5).
const MTU_MIN_IPV6: u16 = 1280;
/// A welcome has sixteen bits for the seconds.
const KEEPALIVE_MAX: Duration = Duration::from_secs(18 * 3600);

/// Nothing is done by accident.
const PLAINTEXT: Opt = Opt::switch(
    &["--plaintext"],
    "Required: packets travel unencrypted, and nobody has to show who he is. Whoever is on the way \
     reads and changes them; whoever may send to the server can join.",
);

const FILES: &[Opt] = &[
    RUNTIME_DIR,
    Opt::value(
        &["--state-dir"],
        "DIR",
        None,
        "Keep here what shall outlive a restart of the machine: the leases of a server, the number \
         by which a client is known again. Without it they outlive only the other side's restart \
         (leases), or the process (the number, in --runtime-dir).",
    ),
];

/// Also of the commands that talk to a tunnel.
const RUNTIME_DIR: Opt = Opt::value(
    &["--runtime-dir"],
    "DIR",
    Some("/run/udpferry-vpn"),
    "Where the control socket is, and the journal of what was changed on this host.",
);

const HOOKS: &[Opt] = &[
    Opt::value(
        &["--up"],
        "COMMAND",
        None,
        "Run this by /bin/sh when the tunnel is up; UDPFERRY_TUN, UDPFERRY_ADDRESS4 and others tell \
         it about the tunnel.",
    ),
    Opt::value(&["--down"], "COMMAND", None, "Run this before the tunnel goes."),
];

const SOCKETS: &[Opt] = &[
    Opt::value(
        &["--udp-buffer"],
        "BYTES",
        Some("4M"),
        "Send and receive buffer of a UDP socket. 0 is the system's.",
    ),
    Opt::switch(
        &["--no-offload"],
        "Move packets one by one: no TSO, USO and checksum offload on the device, no UDP_SEGMENT \
         and UDP_GRO on the sockets. What the kernel lacks is done without in any case.",
    ),
];

const TUN_NAME: &str = "The TUN device's name, up to 15 letters, digits, -, _ and dots.";
const MTU_HELP: &str = "Bytes of the longest packet inside, 576 to 65507, at least 1280 with IPv6.";

fn shared_config(m: &Matches) -> Result<SharedConfig, UsageError> {
    let side = m.command_name().trim_start_matches("vpn ");
    if !m.flag("--plaintext") {
        return Err(UsageError::Missing {
            option: "--plaintext".to_owned(),
            placeholder: format!(
                "this {side} neither encrypts nor authenticates; give the option if that is what you \
                 want, on networks that you trust or inside something that encrypts"
            ),
        });
    }
    for option in ["--user", "--group"] {
        if m.given(option) {
            return Err(m.wrong(
                option,
                "nobody, as undoing routes and rules at the end takes the same privilege as making \
                 them; the systemd unit leaves the program that one alone",
            ));
        }
    }
    let bytes = m.required("--udp-buffer", buffer_size)?;
    let directory = |name| m.path(name).map(|path| absolute(&path));
    Ok(SharedConfig {
        tun: m.required("--tun-name", tun_name)?,
        mtu: m.one("--mtu", mtu)?,
        offload: !m.flag("--no-offload"),
        udp_buffers: Buffers { receive: bytes, send: bytes },
        // Its row has a default.
        runtime_dir: directory("--runtime-dir").unwrap_or_default(),
        state_dir: directory("--state-dir"),
        hooks: Hooks { up: m.one("--up", text)?, down: m.one("--down", text)? },
        common: common(m)?,
    })
}

/// IPv6 is switched off by the kernel on a device with a smaller MTU.
fn check_mtu(m: &Matches, shared: &SharedConfig, has_ipv6: bool) -> Result<(), UsageError> {
    if has_ipv6 && shared.mtu.is_some_and(|mtu| mtu < MTU_MIN_IPV6) {
        return Err(m.wrong("--mtu", "1280 at least with an IPv6 address"));
    }
    Ok(())
}

pub(super) fn tun_name(text: &str) -> Result<String, String> {
    // Its table of nftables would have the name of another tunnel's kill switch.
    if is_interface_name(text) && !text.ends_with("_kill") {
        Ok(text.to_owned())
    } else {
        Err("an interface's name, 1 to 15 letters, digits, -, _ and dots, not with _kill at its end"
            .to_owned())
    }
}

fn mtu(text: &str) -> Result<u16, String> {
    number(MTU_MIN, MTU_MAX)(text).map(|mtu| u16::try_from(mtu).unwrap_or(u16::MAX))
}

fn keepalive(text: &str) -> Result<Duration, String> {
    let allowed = Duration::from_secs(1)..=KEEPALIVE_MAX;
    duration(text)
        .ok()
        .filter(|time| allowed.contains(time))
        .ok_or_else(|| "a time from 1s to 18h".to_owned())
}

/// An interface's address with the length of its network's prefix.
fn interface_address(text: &str) -> Result<Network, String> {
    let allowed = || "an address with a prefix length such as 10.0.0.2/24 or fd00::2/64".to_owned();
    let (address, length) = text.split_once('/').ok_or_else(allowed)?;
    let address: IpAddr = address.parse().map_err(|_| allowed())?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let length = number(1, bits)(length).map_err(|_| allowed())?;
    Ok(Network { address, length: u8::try_from(length).map_err(|_| allowed())? })
}

fn address(text: &str) -> Result<IpAddr, String> {
    let parsed = text.parse().ok().filter(|address: &IpAddr| !address.is_unspecified());
    parsed.ok_or_else(|| "an IPv4 or IPv6 address".to_owned())
}

/// At most one of each family.
fn one_of_each_family(m: &Matches, option: &str, all: &[Network]) -> Result<(), UsageError> {
    let ipv4 = all.iter().filter(|network| network.address.is_ipv4()).count();
    if ipv4 > 1 || all.len() - ipv4 > 1 {
        return Err(m.wrong(option, "one of IPv4 and one of IPv6"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
