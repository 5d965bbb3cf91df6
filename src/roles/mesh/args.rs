//! The daemon's options, and what they come to.

use super::{Config, DEFAULT_CONTROL_PORT, DEFAULT_DATA_PORT, DEFAULT_SOCKET};
use crate::cli::common::{COMMON, common};
use crate::cli::flags::{Matches, UsageError};
use crate::cli::table::{Command, Opt, Takes};
use crate::cli::values::{buffer_size, count, endpoint, number, text};
use crate::net::udp::Buffers;
use std::net::IpAddr;
use std::path::PathBuf;

/// The daemon's command line.
pub const COMMAND: Command = Command {
    name: "mesh",
    summary: "point-to-point tunnels to many hosts over one UDP port, changed while it runs",
    about: "Makes a TUN device for each remote host and carries its packets over UDP, as \
            udpProxyServer does, whose wire format, control messages and options it has. Tunnels are \
            added, changed and removed by `udpferry meshctl`, and survive a restart with \
            --state-file. Packets are not encrypted: --plaintext says that this is known. Needs \
            CAP_NET_ADMIN.",
    positionals: &[],
    sections: &[
        ("Tunnels", TUNNELS),
        ("Control", CONTROL),
        ("State and hooks", STATE),
        ("Common", COMMON),
    ],
    examples: &[
        (
            "udpferry mesh -dp 5000 -cp 5001 --plaintext --state-file /var/lib/udpferry/mesh.json",
            "Carry data on UDP port 5000, take commands of this host on port 5001, and remember.",
        ),
        (
            "udpferry mesh --plaintext --control-addr 192.0.2.1:5002 --control-key /etc/udpferry/mesh.key",
            "Also take commands from elsewhere, with a proof.",
        ),
    ],
};

const TUNNELS: &[Opt] = &[
    Opt::value(
        &["-dp", "--data-port", "--dataPort"],
        "PORT",
        Some("5000"),
        "The UDP port of all tunnels, ours and that of remotes without one.",
    ),
    Opt {
        names: &["--data-addr"],
        takes: Takes::One("ADDR"),
        times_max: 2,
        default: None,
        help: "Send from and receive at this address of the host; once for IPv4, once for IPv6. \
               Without it, all addresses.",
    },
    Opt::switch(&["--plaintext"], "Yes: packets cross the network unencrypted, unauthenticated."),
    Opt::value(
        &["--max-tunnels"],
        "N",
        Some("1024"),
        "Tunnels at once, 1 to 16384; further ones are refused. Each takes a descriptor.",
    ),
    Opt::value(
        &["--udp-buffer"],
        "BYTES",
        Some("4M"),
        "Send and receive buffer of a UDP socket. 0 is the system's.",
    ),
    Opt::switch(&["--no-offload"], "Read and write packets one by one, as old kernels do."),
];

const CONTROL: &[Opt] = &[
    Opt::value(
        &["-cp", "--control-port", "--controlPort"],
        "PORT",
        Some("5001"),
        "Take commands of this host's own programs on this UDP port, at every address of the host; \
         nothing from outside gets in. Any local user may send them. 0 is no such port.",
    ),
    Opt::value(
        &["--control-socket"],
        "FILE",
        Some("/run/udpferry/mesh.sock"),
        "Take commands at this Unix socket, of root.",
    ),
    Opt::value(&["--control-group"], "NAME", None, "Let this group use the Unix socket too."),
    Opt {
        names: &["--control-addr"],
        takes: Takes::One("ADDR:PORT"),
        times_max: 8,
        default: None,
        help: "Take commands from elsewhere at this UDP address, whose port is another than \
               --control-port; up to 8 times. Needs --control-key.",
    },
    Opt::value(
        &["--control-key"],
        "FILE",
        None,
        "The key that commands from elsewhere are proven with (HMAC-SHA256), at least 16 bytes. \
         Replays and forgeries are dropped and counted.",
    ),
    Opt::switch(
        &["--insecure-control"],
        "Take commands at --control-addr from anybody, without a proof.",
    ),
    Opt::value(
        &["--control-rate"],
        "N",
        Some("1000"),
        "Commands per second over UDP, 1 to 1000000; further ones are dropped and counted.",
    ),
];

const STATE: &[Opt] = &[
    Opt::value(
        &["--state-file"],
        "FILE",
        None,
        "Keep the tunnels in this file, and make them again at the start.",
    ),
    Opt::switch(&["--no-restore"], "Start without tunnels; the file is kept aside."),
    Opt::value(
        &["--up"],
        "COMMAND",
        None,
        "Run this by /bin/sh when a tunnel has been made; UDPFERRY_TUN and other variables say which. \
         It has 30 seconds.",
    ),
    Opt::value(
        &["--down"],
        "COMMAND",
        None,
        "The same when a tunnel has gone, and its device with it.",
    ),
];

/// Checks the options and puts them together.
pub(super) fn config(m: &Matches) -> Result<Config, UsageError> {
    let common = common(m)?;
    for option in ["--user", "--group"] {
        if m.given(option) {
            return Err(m.wrong(
                option,
                "not for mesh, which makes devices while it runs: give it CAP_NET_ADMIN alone, as \
                 its unit does",
            ));
        }
    }
    if !m.flag("--plaintext") {
        return Err(UsageError::Missing {
            option: "--plaintext".to_owned(),
            placeholder:
                "packets cross the network unencrypted, which only you can know to be right"
                    .to_owned(),
        });
    }
    let data_port = m.required("--data-port", |text| port(text, 1))?;
    let control_port = m.required("--control-port", |text| port(text, 0))?;
    if control_port == data_port {
        return Err(m.wrong("--control-port", "another port than --data-port"));
    }
    let data_addresses = m.many("--data-addr", address)?;
    if let [one, other] = data_addresses[..] {
        if one.is_ipv4() == other.is_ipv4() {
            return Err(m.wrong("--data-addr", "one address of each family"));
        }
    }
    let control_addresses = m.many("--control-addr", endpoint)?;
    for address in &control_addresses {
        if address.port() == 0 || [control_port, data_port].contains(&address.port()) {
            return Err(m.wrong(
                "--control-addr",
                "another port than 0, --control-port and --data-port; --control-port 0 frees that",
            ));
        }
    }
    let control_key = m.path("--control-key");
    let insecure_control = m.flag("--insecure-control");
    match (control_addresses.is_empty(), &control_key, insecure_control) {
        (true, _, true) => {
            return Err(m.wrong("--insecure-control", "only with --control-addr"));
        }
        (false, None, false) => {
            return Err(m.wrong(
                "--control-addr",
                "only with --control-key, or with --insecure-control where everybody may command",
            ));
        }
        (false, Some(_), true) => {
            return Err(m.wrong("--insecure-control", "not with --control-key"));
        }
        _ => {}
    }
    let state_file = m.path("--state-file");
    if m.flag("--no-restore") && state_file.is_none() {
        return Err(m.wrong("--no-restore", "only with --state-file"));
    }
    let bytes = m.required("--udp-buffer", buffer_size)?;
    let control_rate = m.required("--control-rate", number(1, 1_000_000))?;
    Ok(Config {
        data_port,
        data_addresses,
        tunnels_max: m.required("--max-tunnels", count(1, 16_384))?,
        udp_buffers: Buffers { receive: bytes, send: bytes },
        offload: !m.flag("--no-offload"),
        control_port: Some(control_port).filter(|port| *port > 0),
        control_socket: m.path("--control-socket").unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET)),
        control_group: m.one("--control-group", group)?,
        control_addresses,
        control_key,
        insecure_control,
        control_rate: u32::try_from(control_rate).unwrap_or(u32::MAX),
        state_file,
        restores: !m.flag("--no-restore"),
        up: m.one("--up", text)?,
        down: m.one("--down", text)?,
        common,
    })
}

const _: () = assert!(DEFAULT_DATA_PORT == 5000 && DEFAULT_CONTROL_PORT == 5001);

fn port(text: &str, min: u64) -> Result<u16, String> {
    let port = number(min, 65_535)(text)?;
    u16::try_from(port).map_err(|_| "a port from 1 to 65535".to_owned())
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse()
        .ok()
        .filter(|address: &IpAddr| !address.is_unspecified() && !address.is_multicast())
        .ok_or_else(|| "an IPv4 or IPv6 address of this host".to_owned())
}

/// The number of a group, by its name or as it is.
fn group(text: &str) -> Result<u32, String> {
    let number = text.parse().ok();
    let found = || nix::unistd::Group::from_name(text).ok().flatten();
    number
        .or_else(|| found().map(|group| group.gid.as_raw()))
        .ok_or_else(|| "the name or number of a group".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::flags::{Parsed, parse};
    use std::ffi::OsString;

    fn read(args: &[&str]) -> Result<Config, UsageError> {
        let args = args.iter().map(OsString::from).collect();
        match parse(&COMMAND, args, &|_| None)? {
            Parsed::Run(matches) => config(&matches),
            other => panic!("{other:?}"),
        }
    }

    fn said(args: &[&str]) -> String {
        let mut all = vec!["--plaintext"];
        all.extend_from_slice(args);
        read(&all).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_the_seeds_and_plain_text_is_asked_for() {
        let config = read(&["--plaintext"]).unwrap();
        assert_eq!((config.data_port, config.control_port), (5000, Some(5001)));
        assert_eq!(config.control_socket, PathBuf::from("/run/udpferry/mesh.sock"));
        assert_eq!((config.tunnels_max, config.control_rate), (1024, 1000));
        assert!(config.offload && config.restores && config.state_file.is_none());
        let error = read(&[]).unwrap_err().to_string();
        assert!(error.starts_with("--plaintext: is required"), "{error}");
    }

    #[test]
    fn the_seeds_spellings_are_taken() {
        for args in [
            ["-dp", "6000", "-cp", "6001"],
            ["--dataPort", "6000", "--controlPort", "6001"],
            ["--data-port", "6000", "--control-port", "6001"],
        ] {
            let mut all = vec!["--plaintext"];
            all.extend(args);
            let config = read(&all).unwrap();
            assert_eq!((config.data_port, config.control_port), (6000, Some(6001)), "{args:?}");
        }
        assert_eq!(read(&["--plaintext", "-cp", "0"]).unwrap().control_port, None);
    }

    #[test]
    fn commands_from_elsewhere_need_a_key_or_a_loud_word() {
        let address = "--control-addr=192.0.2.1:5002";
        assert!(said(&[address]).contains("only with --control-key"));
        assert!(said(&["--insecure-control"]).contains("only with --control-addr"));
        assert!(said(&[address, "--insecure-control", "--control-key=k"]).contains("not with"));
        let config = read(&["--plaintext", address, "--control-key=k"]).unwrap();
        assert_eq!(config.control_addresses.len(), 1);
        assert!(read(&["--plaintext", address, "--insecure-control"]).unwrap().insecure_control);
        for port in ["0", "5000", "5001"] {
            let address = format!("--control-addr=192.0.2.1:{port}");
            assert!(said(&[&address, "--control-key=k"]).contains("another port"), "{port}");
        }
    }

    #[test]
    fn the_rest_is_checked() {
        assert!(said(&["-dp", "0"]).starts_with("--data-port: "));
        assert!(said(&["-cp", "5000"]).contains("another port than --data-port"));
        assert!(said(&["--data-addr=::"]).starts_with("--data-addr: "));
        assert!(said(&["--data-addr=192.0.2.1", "--data-addr=192.0.2.2"]).contains("each family"));
        assert!(said(&["--user=nobody"]).contains("CAP_NET_ADMIN"));
        assert!(said(&["--no-restore"]).contains("only with --state-file"));
        assert!(said(&["--control-group=no such group"]).starts_with("--control-group: "));
        assert_eq!(read(&["--plaintext", "--control-group=0"]).unwrap().control_group, Some(0));
    }
}
