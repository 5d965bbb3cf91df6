//! `pool server`'s options.

use super::{
    ALPN, FRAMING, KEY, LOGGING, MAX_SESSIONS, NO_TLS, QUEUE, UDP_BUFFER, count, key_files,
    local_address, port_number, positive, refuse_without_tls, shared_config,
};
use crate::cli::common::COMMON;
use crate::cli::flags::{Matches, UsageError};
use crate::cli::table::{Command, Opt, Positional, Takes};
use crate::cli::values::duration;
use crate::roles::pool::{ServerConfig, ServerTls};
use crate::runtime::daemon::absolute;
use std::time::Duration;

/// The server's command line.
pub const SERVER_COMMAND: Command = Command {
    name: "pool server",
    summary: "UDP over many TLS connections, the server's side, as uotp-server",
    about: "Accepts the connections of pool clients, groups them into sessions, and forwards the \
            datagrams of each session to the destination from a UDP socket of its own. Speaks \
            udp-over-tls-pool's protocol and takes uotp-server's options.",
    positionals: &[
        Positional {
            name: "DST_ADDRESS",
            help: "The UDP service's name or address.",
            required: true,
        },
        Positional { name: "DST_PORT", help: "The UDP service's port.", required: true },
    ],
    sections: &[
        ("Listening", LISTENING),
        ("TLS", TLS),
        ("Limits", LIMITS),
        ("Logging as udp-over-tls-pool", LOGGING),
        ("Common", COMMON),
    ],
    examples: &[
        (
            "udpferry pool server -c fullchain.pem -k privkey.pem 127.0.0.1 51820",
            "Let WireGuard's clients reach this host's WireGuard over TLS on port 8443.",
        ),
        (
            "udpferry pool server -c cert.pem -k key.pem -C ca.pem -a 0.0.0.0 -a :: -p 443 \
             127.0.0.1 51820",
            "The same on port 443, also over IPv6, only for clients with a certificate.",
        ),
    ],
};

/// As many as `udpgw` takes.
const LISTENERS_MAX: usize = 16;

const LISTENING: &[Opt] = &[
    Opt {
        names: &["--bind-address", "-a"],
        takes: Takes::One("ADDRESS"),
        times_max: LISTENERS_MAX,
        default: Some("0.0.0.0"),
        help: "Accept connections on this address; :: for IPv6; up to 16 times. Sockets passed by \
               systemd stand in for the default.",
    },
    Opt::value(
        &["--bind-port", "-p"],
        "PORT",
        Some("8443"),
        "Accept connections on this TCP port.",
    ),
    FRAMING,
    UDP_BUFFER,
];

const TLS: &[Opt] = &[
    NO_TLS,
    Opt::value(
        &["--cert", "-c"],
        "FILE",
        None,
        "The server's certificate and its chain (PEM). SIGHUP reloads it; an unusable one never \
         replaces one in use.",
    ),
    KEY,
    Opt::value(
        &["--cafile", "-C"],
        "FILE",
        None,
        "Demand a client certificate signed by one of these (PEM).",
    ),
    ALPN,
];

const LIMITS: &[Opt] = &[
    Opt::value(
        &["--max-connections"],
        "N",
        Some("4096"),
        "Connections open at once, 1 to 65535, each a thread; at the limit those of a session that \
         has never carried a datagram are closed, else the new one.",
    ),
    Opt::value(
        &["--max-handshakes"],
        "N",
        None,
        "Connections whose handshake or session id is not complete, 1 to 65535; at the limit the \
         oldest one of the address that has the most is closed. Without it a quarter of \
         --max-connections, at least 64.",
    ),
    MAX_SESSIONS,
    Opt::value(
        &["--max-connections-per-session"],
        "N",
        Some("64"),
        "Connections of one session, 1 to 65535; further ones are closed.",
    ),
    Opt::value(
        &["--handshake-timeout"],
        "TIME",
        Some("10"),
        "From a connection's accept to the last byte of its session id (with --framing mullvad, \
         the first byte of a frame); then it is closed.",
    ),
    Opt::value(
        &["--session-timeout"],
        "TIME",
        Some("300"),
        "Close a session on which no datagram has passed either way for so long; 0 is never.",
    ),
    Opt::value(
        &["--session-grace"],
        "TIME",
        Some("10"),
        "Keep a session's UDP socket so long after its last connection, so that a client that \
         reconnects is the same endpoint for the destination.",
    ),
    QUEUE,
];

/// Checks the options and puts them together.
pub(in crate::roles::pool) fn server_config(m: &Matches) -> Result<ServerConfig, UsageError> {
    let tls = if m.flag("--no-tls") {
        refuse_without_tls(m, "--alpn")?;
        None
    } else {
        let Some(files) = key_files(m)? else {
            return Err(UsageError::Missing {
                option: "--cert".to_owned(),
                placeholder: "FILE, and --key FILE; or --no-tls for plain TCP".to_owned(),
            });
        };
        Some(ServerTls {
            files,
            client_ca: m.path("--cafile").map(|path| absolute(&path)),
            alpn: m.one("--alpn", super::alpn)?,
        })
    };
    let port = m.required("--bind-port", port_number)?;
    let session_timeout: Duration = m.required("--session-timeout", duration)?;
    Ok(ServerConfig {
        listen: m.many("--bind-address", |text| local_address(text, port))?,
        listen_is_default: !m.given("--bind-address") && !m.given("--bind-port"),
        tls,
        connections_max: m.required("--max-connections", count(1, 65_535))?,
        set_ups_max: m.one("--max-handshakes", count(1, 65_535))?,
        connections_per_session_max: m
            .required("--max-connections-per-session", count(1, 65_535))?,
        handshake_timeout: m.required("--handshake-timeout", positive)?,
        session_timeout: (!session_timeout.is_zero()).then_some(session_timeout),
        session_grace: m.required("--session-grace", duration)?,
        shared: shared_config(m, &["--cert", "--key", "--cafile"])?,
    })
}
