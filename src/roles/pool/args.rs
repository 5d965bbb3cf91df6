//! The options of both sides: udp-over-tls-pool's, with its spellings and defaults, and ours.

mod client;
mod server;

pub use client::CLIENT_COMMAND;
pub(super) use client::{CLIENT_TLS, client_config, strict_client_tls};
pub use server::SERVER_COMMAND;
pub(super) use server::server_config;

use super::{Framing, KeyFiles, SharedConfig};
use crate::cli::common::common;
use crate::cli::flags::{Matches, UsageError};
use crate::cli::logging::Sink;
use crate::cli::table::Opt;
use crate::cli::values::{buffer_size, choice, count, duration, number};
use crate::net::udp::Buffers;
use crate::roles::destination::Destination;
use crate::runtime::daemon::absolute;
use log::LevelFilter;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

/// Options that both tables have after their own.
const LOGGING: &[Opt] = &[
    Opt::value(
        &["--verbosity", "-v"],
        "LEVEL",
        None,
        "debug, info, warn, error or fatal, as udp-over-tls-pool; --log-level is the same with \
         our names. Without either, info.",
    ),
    Opt::value(&["--logfile", "-l"], "FILE", None, "As udp-over-tls-pool; --log-file is the same."),
];

const QUEUE: Opt = Opt::value(
    &["--queue"],
    "DATAGRAMS",
    Some("128"),
    "Datagrams that may wait for a connection, 1 to 65535, and 1 MiB at the most; when all \
     connections have so many, further ones are dropped: stale datagrams help nobody.",
);

const FRAMING: Opt = Opt::value(
    &["--framing"],
    "KIND",
    Some("pool"),
    "pool: udp-over-tls-pool's. mullvad: that of Mullvad's udp-over-tcp, one connection per \
     endpoint.",
);

const UDP_BUFFER: Opt = Opt::value(
    &["--udp-buffer"],
    "BYTES",
    Some("4M"),
    "Send and receive buffer of a UDP socket; more than net.core.rmem_max and wmem_max only for \
     root. 0 is the system's.",
);

const MAX_SESSIONS: Opt = Opt::value(
    &["--max-sessions"],
    "N",
    Some("512"),
    "Sessions, one for each UDP endpoint of the clients, 1 to 65535; further ones are refused. A \
     server first gives up one without connections, or one that has never carried a datagram.",
);

const NO_TLS: Opt = Opt::switch(&["--no-tls"], "Plain TCP: anybody on the path reads along.");

const KEY: Opt = Opt::value(
    &["--key", "-k"],
    "FILE",
    None,
    "The certificate's private key (PEM, no passphrase); without it, the certificate's file \
     holds it.",
);

const ALPN: Opt = Opt::value(
    &["--alpn"],
    "PROTOCOL",
    None,
    "The application protocol in the TLS handshake (ALPN), such as http/1.1; a server refuses \
     clients that offer none, or only others.",
);

fn shared_config(m: &Matches, tls_options: &[&'static str]) -> Result<SharedConfig, UsageError> {
    let mut common = common(m)?;
    if let Some(level) = m.one("--verbosity", verbosity)? {
        if m.given("--log-level") {
            return Err(m.wrong("--verbosity", "only without --log-level"));
        }
        common.log.level = level;
    } else if !m.given("--log-level") {
        common.log.level = LevelFilter::Info;
    }
    if let Some(path) = m.path("--logfile") {
        if common.log.sink != Sink::Stderr {
            return Err(m.wrong("--logfile", "only without another place for the log"));
        }
        common.log.sink = Sink::File(path);
    }
    let bytes = m.required("--udp-buffer", buffer_size)?;
    Ok(SharedConfig {
        destination: Destination {
            host: m.positional(0).unwrap_or_default().trim_matches(['[', ']']).to_owned(),
            port: port_argument(m, "DST_PORT")?,
        },
        framing: match m.required("--framing", choice(&["pool", "mullvad"]))? {
            "mullvad" => Framing::Mullvad,
            _ => Framing::Pool,
        },
        queue_datagrams_max: m.required("--queue", count(1, 65_535))?,
        sessions_max: m.required("--max-sessions", count(1, 65_535))?,
        udp_buffers: Buffers { receive: bytes, send: bytes },
        ignored: ignored_without_tls(m, tls_options),
        common,
    })
}

/// A value of --bind-address, with the port of --bind-port.
fn local_address(text: &str, port: u16) -> Result<SocketAddr, String> {
    let host = text.trim_matches(['[', ']']);
    (host, port)
        .to_socket_addrs()
        .ok()
        .and_then(|mut found| found.next())
        .ok_or_else(|| "an IPv4 or IPv6 address, or a name of one of this machine".to_owned())
}

/// The second positional argument, called `name`.
pub(super) fn port_argument(m: &Matches, name: &str) -> Result<u16, UsageError> {
    let text = m.positional(1).unwrap_or_default();
    match port_number(text) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(UsageError::NotAllowed {
            option: name.to_owned(),
            value: text.to_owned(),
            allowed: "a port from 1 to 65535".to_owned(),
        }),
    }
}

fn port_number(text: &str) -> Result<u16, String> {
    let port = number(0, 65_535)(text)?;
    u16::try_from(port).map_err(|_| "a port from 0 to 65535".to_owned())
}

fn key_files(m: &Matches) -> Result<Option<KeyFiles>, UsageError> {
    let path = |name| m.path(name).map(|path| absolute(&path));
    match (path("--cert"), path("--key")) {
        (Some(certificate), Some(key)) => Ok(Some(KeyFiles { certificate, key })),
        // As the peer: a certificate's file may hold its key too.
        (Some(certificate), None) => Ok(Some(KeyFiles { key: certificate.clone(), certificate })),
        (None, Some(_)) => Err(m.wrong("--key", "only together with --cert")),
        (None, None) => Ok(None),
    }
}

/// Those of these options that are given and have no effect beside --no-tls. The peer takes them
/// all the same.
fn ignored_without_tls(m: &Matches, names: &[&'static str]) -> Vec<&'static str> {
    names.iter().copied().filter(|name| m.flag("--no-tls") && m.given(name)).collect()
}

fn refuse_without_tls(m: &Matches, name: &str) -> Result<(), UsageError> {
    if m.given(name) { Err(m.wrong(name, "not together with --no-tls")) } else { Ok(()) }
}

/// RFC 7301 §3.1.
fn alpn(text: &str) -> Result<String, String> {
    match text.len() {
        1..=255 => Ok(text.to_owned()),
        _ => Err("a protocol's name of 1 to 255 bytes".to_owned()),
    }
}

/// `fatal` is below every level that we have: errors alone come nearest.
fn verbosity(text: &str) -> Result<LevelFilter, String> {
    match text {
        "debug" => Ok(LevelFilter::Debug),
        "info" => Ok(LevelFilter::Info),
        "warn" => Ok(LevelFilter::Warn),
        "error" | "fatal" => Ok(LevelFilter::Error),
        _ => Err("one of debug, info, warn, error, fatal".to_owned()),
    }
}

fn positive(text: &str) -> Result<Duration, String> {
    duration(text)
        .and_then(|time| if time.is_zero() { Err("a time above 0".to_owned()) } else { Ok(time) })
}
