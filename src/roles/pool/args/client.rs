//! `pool client`'s options.

use super::{
    ALPN, FRAMING, KEY, LOGGING, MAX_SESSIONS, NO_TLS, QUEUE, UDP_BUFFER, count, key_files,
    local_address, port_number, refuse_without_tls, shared_config,
};
use crate::cli::common::COMMON;
use crate::cli::flags::{Matches, UsageError};
use crate::cli::table::{Command, Opt, Positional};
use crate::cli::values::{duration, text};
use crate::roles::pool::{ClientConfig, ClientTls, Framing};
use crate::runtime::daemon::absolute;
use std::time::Duration;

/// The client's command line.
pub const CLIENT_COMMAND: Command = Command {
    name: "pool client",
    summary: "UDP over many TLS connections, the client's side, as uotp-client",
    about: "Listens on a UDP port and carries the datagrams of each endpoint that sends there over \
            several connections to a pool server. Speaks udp-over-tls-pool's protocol and takes \
            uotp-client's options.",
    positionals: &[
        Positional {
            name: "DST_ADDRESS",
            help: "The pool server's name or address.",
            required: true,
        },
        Positional { name: "DST_PORT", help: "The pool server's TCP port.", required: true },
    ],
    sections: &[
        ("Listening", LISTENING),
        ("Pool", POOL),
        ("TLS", CLIENT_TLS),
        ("Logging as udp-over-tls-pool", LOGGING),
        ("Common", COMMON),
    ],
    examples: &[
        ("udpferry pool client example.com 8443", "WireGuard's Endpoint is then 127.0.0.1:8911."),
        (
            "udpferry pool client --resolve-once --mark 0xca6c example.com 8443",
            "Beside wg-quick with AllowedIPs = 0.0.0.0/0: marked packets stay out of the tunnel.",
        ),
    ],
};

const LISTENING: &[Opt] = &[
    Opt::value(
        &["--bind-address", "-a"],
        "ADDRESS",
        Some("127.0.0.1"),
        "Receive datagrams on this address; on 0.0.0.0 or ::, answers leave from the address that \
         was asked.",
    ),
    Opt::value(&["--bind-port", "-p"], "PORT", Some("8911"), "Receive datagrams on this UDP port."),
    Opt::value(
        &["--expire", "-e"],
        "TIME",
        Some("120"),
        "Close the session of an endpoint on which no datagram has passed either way for so long.",
    ),
    MAX_SESSIONS,
    UDP_BUFFER,
];

const POOL: &[Opt] = &[
    Opt::value(&["--pool-size", "-n"], "N", Some("8"), "Connections of each session, 1 to 64."),
    Opt::value(
        &["--backoff", "-B"],
        "TIME",
        Some("5"),
        "Wait so long after a failed attempt, up to six times as long after several while no \
         datagrams come; a tenth of it after the loss of a connection that worked.",
    ),
    Opt::value(
        &["--timeout", "-w"],
        "TIME",
        Some("4"),
        "Give up an attempt after so long: lookup, all addresses and handshake together.",
    ),
    QUEUE,
    FRAMING,
    Opt::value(
        &["--mark", "-m"],
        "MARK",
        None,
        "Mark the connections' packets (SO_MARK), decimal or 0x…; needs CAP_NET_ADMIN.",
    ),
    Opt::switch(
        &["--resolve-once", "-R"],
        "Resolve DST_ADDRESS at the start only, IPv4 preferred; else at each connection.",
    ),
];

/// The client's options, which `check` takes too.
pub(in crate::roles::pool) const CLIENT_TLS: &[Opt] = &[
    NO_TLS,
    Opt::value(&["--cert", "-c"], "FILE", None, "A client certificate and its chain (PEM)."),
    KEY,
    Opt::value(
        &["--cafile", "-C"],
        "FILE",
        None,
        "Trust these certificates (PEM) instead of the system's.",
    ),
    Opt::switch(
        &["--no-hostname-check"],
        "Take any server with a certificate of --cafile, whatever its name; only with --cafile.",
    ),
    Opt::value(
        &["--tls-servername"],
        "NAME",
        None,
        "The name that the server's certificate must have; without it, DST_ADDRESS.",
    ),
    ALPN,
];

/// Checks the options and puts them together.
pub(in crate::roles::pool) fn client_config(m: &Matches) -> Result<ClientConfig, UsageError> {
    let shared = shared_config(m, &THEIR_TLS)?;
    let tls = client_tls(m, &shared.destination.host)?;
    if m.given("--mark") && m.given("--user") {
        return Err(m.wrong("--mark", "not together with --user, which gives up CAP_NET_ADMIN"));
    }
    let pool_size = m.required("--pool-size", count(1, 64))?;
    if shared.framing == Framing::Mullvad && m.given("--pool-size") && pool_size != 1 {
        return Err(m.wrong("--pool-size", "1 with --framing mullvad"));
    }
    let port = m.required("--bind-port", port_number)?;
    Ok(ClientConfig {
        bind: m.required("--bind-address", |text| local_address(text, port))?,
        tls,
        pool_size: if shared.framing == Framing::Mullvad { 1 } else { pool_size },
        expire: m.required("--expire", positive)?,
        backoff: m.required("--backoff", duration)?.max(SHORTEST_BACKOFF),
        connect_timeout: m.required("--timeout", positive)?,
        mark: m.one("--mark", mark)?,
        resolves_once: m.flag("--resolve-once"),
        shared,
    })
}

/// Options of TLS that the peer has as well.
const THEIR_TLS: [&str; 5] =
    ["--cert", "--key", "--cafile", "--no-hostname-check", "--tls-servername"];

/// How the options want TLS with `host`; `None` for none.
fn client_tls(m: &Matches, host: &str) -> Result<Option<ClientTls>, UsageError> {
    if m.flag("--no-tls") {
        refuse_without_tls(m, "--alpn")?;
        return Ok(None);
    }
    if m.flag("--no-hostname-check") && !m.given("--cafile") {
        return Err(m.wrong("--no-hostname-check", "only together with --cafile"));
    }
    if m.flag("--no-hostname-check") && m.given("--tls-servername") {
        return Err(m.wrong("--no-hostname-check", "not together with --tls-servername"));
    }
    Ok(Some(ClientTls {
        ca: m.path("--cafile").map(|path| absolute(&path)),
        files: key_files(m)?,
        server_name: match m.one("--tls-servername", text)? {
            Some(name) => name,
            None => host.to_owned(),
        },
        checks_name: !m.flag("--no-hostname-check"),
        alpn: m.one("--alpn", super::alpn)?,
    }))
}

/// The same, without mercy for options that have no effect: nobody comes to a check with a line of
/// the peer's.
pub(in crate::roles::pool) fn strict_client_tls(
    m: &Matches,
    host: &str,
) -> Result<Option<ClientTls>, UsageError> {
    if m.flag("--no-tls") {
        THEIR_TLS.iter().try_for_each(|name| refuse_without_tls(m, name))?;
    }
    client_tls(m, host)
}

/// A server that is down is not asked in a loop, whatever the option says.
const SHORTEST_BACKOFF: Duration = Duration::from_millis(50);

fn positive(text: &str) -> Result<Duration, String> {
    duration(text)
        .and_then(|time| if time.is_zero() { Err("a time above 0".to_owned()) } else { Ok(time) })
}

fn mark(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    match digits {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    }
    .map_err(|_| "a number from 0 to 4294967295, or 0x0 to 0xffffffff".to_owned())
}
