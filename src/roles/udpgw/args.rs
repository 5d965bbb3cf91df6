//! The role's options, and what they come to.

use super::{Config, LocalAddresses, Mapping, TlsFiles};
use crate::cli::common::{COMMON, common};
use crate::cli::flags::{Matches, UsageError};
use crate::cli::table::{Command, Opt, Takes};
use crate::cli::values::{buffer_size, choice, cidr, count, duration, endpoint, number};
use crate::net::tcp::{Keepalive, StreamOptions};
use crate::net::udp::Buffers;
use crate::runtime::daemon::absolute;
use crate::state::access::{AccessList, Prefix};
use std::net::SocketAddr;
use std::time::Duration;

/// As many as badvpn takes (udpgw.c, MAX_LISTEN_ADDRS).
const LISTENERS_MAX: usize = 16;
/// Threads that Linux lets a process have by default are more; so many clients want several hosts.
const CLIENTS_MAX: u64 = 65_535;
/// A conid has 16 bits.
const FLOWS_MAX: u64 = 65_536;
/// The largest body less the shorter header is more than any UDP datagram over IPv4 carries.
const DATAGRAM_LEN_MAX: u64 = 65_526;

/// Dead connections are noticed after a minute of silence and a minute of probes, as the sysctl
/// settings in `packaging/sysctl.d` have it for the whole machine.
const KEEPALIVE: Keepalive =
    Keepalive { idle: Duration::from_secs(60), interval: Duration::from_secs(10), probes: 6 };

/// About a millisecond at 1 Gbit/s.
const UNSENT_MAX: u32 = 131_072;

/// The role's command line.
pub const COMMAND: Command = Command {
    name: "udpgw",
    summary: "UDP gateway over TCP, a drop-in for badvpn-udpgw",
    about: "Clients (tun2socks, phone tunnel apps) send UDP datagrams in frames over a TCP \
            connection, usually through an SSH tunnel; udpgw sends them on as real UDP and brings \
            the answers back. It speaks badvpn's udpgw protocol and takes badvpn-udpgw's options, \
            so that a script runs it unchanged through a symlink of that name.",
    positionals: &[],
    sections: &[
        ("Listening", LISTENING),
        ("Limits", LIMITS),
        ("Flows", FLOWS),
        ("Destinations", DESTINATIONS),
        ("Sockets", SOCKETS),
        ("Common", COMMON),
    ],
    examples: &[
        (
            "udpferry udpgw --listen-addr 127.0.0.1:7300 --max-clients 1000",
            "Serve the clients of an SSH server on this host, as badvpn-udpgw does.",
        ),
        (
            "udpferry udpgw --listen-addr 0.0.0.0:7300 --tls-cert cert.pem --tls-key key.pem",
            "Serve clients from outside over TLS.",
        ),
        (
            "udpferry check udpgw 127.0.0.1:7300",
            "See from the client's side whether a gateway works.",
        ),
    ],
};

const LISTENING: &[Opt] = &[
    Opt {
        names: &["--listen-addr"],
        takes: Takes::One("ADDR:PORT"),
        times_max: LISTENERS_MAX,
        default: Some("127.0.0.1:53"),
        help: "Listen for clients on this TCP address, IPv4 or [IPv6]; up to 16 times. Sockets \
               passed by systemd stand in for the default.",
    },
    Opt::value(
        &["--tls-cert"],
        "FILE",
        None,
        "Serve TLS with this certificate and its chain (PEM). SIGHUP reloads it; an unusable one \
         never replaces one in use.",
    ),
    Opt::value(
        &["--tls-key"],
        "FILE",
        None,
        "The certificate's private key (PEM: PKCS#8, PKCS#1 or SEC1, no passphrase).",
    ),
    Opt::value(
        &["--tls-client-ca"],
        "FILE",
        None,
        "Demand a client certificate signed by one of these (PEM).",
    ),
    Opt::switch(
        &["--proxy-protocol"],
        "Expect a PROXY header, version 1 or 2, from a load balancer such as HAProxy: the \
         client's real address counts in logs and limits. A connection without a valid header is \
         closed, so open the port to the balancer alone.",
    ),
];

const LIMITS: &[Opt] = &[
    Opt::value(
        &["--max-clients"],
        "N",
        Some("1000"),
        "Clients connected at once, 1 to 65535, each a thread; further ones are closed at once.",
    ),
    Opt::value(
        &["--max-clients-per-address"],
        "N",
        Some("0"),
        "Clients connected at once from one address, of IPv6 from one /64; 0 is no limit.",
    ),
    Opt::value(
        &["--max-connections-for-client"],
        "N",
        Some("256"),
        "Flows of one client, 1 to 65536; at the limit the least recently used flow is closed \
         and the new one opened.",
    ),
    Opt::value(
        &["--client-timeout"],
        "TIME",
        Some("300"),
        "Close a client that has sent no frame, not even a keepalive, for so long; 0 is never.",
    ),
    Opt::value(
        &["--udp-timeout"],
        "TIME",
        Some("30"),
        "Close a flow on which no datagram has passed either way for so long; 0 is never.",
    ),
    Opt::value(
        &["--udp-mtu"],
        "BYTES",
        Some("65520"),
        "The largest datagram carried, 1 to 65526; longer ones are dropped.",
    ),
];

const FLOWS: &[Opt] = &[
    Opt::value(
        &["--mapping"],
        "KIND",
        Some("endpoint-independent"),
        "endpoint-independent: a client's flows share a source port, so that peers that learnt \
         it from one remote reach it from another (RFC 4787; games and calls need it). per-flow: \
         a source port for each flow, as badvpn. DNS flows always have one each.",
    ),
    Opt {
        names: &["--local-udp-addrs"],
        takes: Takes::Two("ADDR:PORT", "N"),
        times_max: 1,
        default: None,
        help: "Take source ports of IPv4 flows from the N ports from PORT upwards on ADDR. Flows \
               of different remotes share them; a flow that finds none free gets a random port.",
    },
    Opt {
        names: &["--local-udp-ip6-addrs"],
        takes: Takes::Two("[ADDR]:PORT", "N"),
        times_max: 1,
        default: None,
        help: "The same for IPv6 flows.",
    },
    Opt::switch(
        &["--unique-local-ports"],
        "In those ranges, never let two flows to one remote address share a port, whatever their \
         remote ports.",
    ),
];

const DESTINATIONS: &[Opt] = &[
    Opt::value(
        &["--dns"],
        "ADDR:PORT",
        None,
        "Where flows go that ask for the server's resolver; without it, the first nameserver of \
         /etc/resolv.conf, which is read again when it changes.",
    ),
    Opt {
        names: &["--allow"],
        takes: Takes::One("CIDR"),
        times_max: 1024,
        default: None,
        help: "Let clients reach these addresses, whatever --deny, --deny-private and the default \
               say. The default refuses unspecified, loopback, multicast, broadcast and \
               link-local addresses, also hidden in IPv6 ones.",
    },
    Opt {
        names: &["--deny"],
        takes: Takes::One("CIDR"),
        times_max: 1024,
        default: None,
        help: "Refuse these addresses.",
    },
    Opt::switch(
        &["--deny-private"],
        "Refuse private addresses: 10/8, 172.16/12, 192.168/16, 100.64/10, fc00::/7, fec0::/10.",
    ),
];

const SOCKETS: &[Opt] = &[
    Opt::value(
        &["--tcp-buffer"],
        "BYTES",
        Some("262144"),
        "Send and receive buffer of a client's connection; 0 is the system's.",
    ),
    Opt::value(
        &["--client-socket-sndbuf"],
        "BYTES",
        None,
        "Send buffer of a client's connection, where it shall differ from --tcp-buffer.",
    ),
    Opt::value(
        &["--udp-buffer"],
        "BYTES",
        Some("131072"),
        "Send and receive buffer of a UDP socket; 0 is the system's.",
    ),
    Opt::switch(&["--no-tcp-nodelay"], "Let the kernel delay small writes (Nagle): adds latency."),
    Opt::switch(
        &["--no-keepalive"],
        "Do not probe silent connections (60 s, then 6 probes at 10 s) nor give up unacknowledged \
         data after 120 s.",
    ),
    Opt::value(
        &["--stats-interval"],
        "TIME",
        Some("0"),
        "Log a line of numbers so often: clients, flows, datagrams, bytes, drops by reason; 0 is \
         never.",
    ),
];

/// Checks the options and puts them together.
pub(super) fn config(m: &Matches) -> Result<Config, UsageError> {
    let tcp_buffer = m.required("--tcp-buffer", buffer_size)?;
    let udp_buffer = m.required("--udp-buffer", buffer_size)?;
    let stream = StreamOptions {
        nodelay: !m.flag("--no-tcp-nodelay"),
        keepalive: (!m.flag("--no-keepalive")).then_some(KEEPALIVE),
        receive_buffer: tcp_buffer,
        send_buffer: m.one("--client-socket-sndbuf", buffer_size)?.unwrap_or(tcp_buffer),
        unsent_max: UNSENT_MAX,
    };
    let access = AccessList::new(
        m.many("--allow", prefix)?,
        m.many("--deny", prefix)?,
        m.flag("--deny-private"),
    );
    Ok(Config {
        listen: m.many("--listen-addr", endpoint)?,
        listen_given: m.given("--listen-addr"),
        tls: tls_files(m)?,
        proxy_protocol: m.flag("--proxy-protocol"),
        clients_max: m.required("--max-clients", count(1, CLIENTS_MAX))?,
        clients_per_address_max: m.required("--max-clients-per-address", count(0, CLIENTS_MAX))?,
        flows_per_client_max: m.required("--max-connections-for-client", count(1, FLOWS_MAX))?,
        client_timeout: m.required("--client-timeout", duration)?.into_option(),
        flow_timeout: m.required("--udp-timeout", duration)?.into_option(),
        datagram_len_max: m.required("--udp-mtu", count(1, DATAGRAM_LEN_MAX))?,
        stats_interval: m.required("--stats-interval", duration)?.into_option(),
        mapping: match m.required("--mapping", choice(&["endpoint-independent", "per-flow"]))? {
            "per-flow" => Mapping::PerFlow,
            _ => Mapping::EndpointIndependent,
        },
        local_v4: local_addresses(m, "--local-udp-addrs", "IPv4", SocketAddr::is_ipv4)?,
        local_v6: local_addresses(m, "--local-udp-ip6-addrs", "[IPv6]", SocketAddr::is_ipv6)?,
        unique_local_ports: m.flag("--unique-local-ports"),
        dns: m.one("--dns", real_endpoint)?,
        access,
        stream,
        udp_buffers: Buffers { receive: udp_buffer, send: udp_buffer },
        common: common(m)?,
    })
}

fn tls_files(m: &Matches) -> Result<Option<TlsFiles>, UsageError> {
    // A daemon changes its directory, and SIGHUP reads the files again.
    let path = |name| m.path(name).map(|path| absolute(&path));
    let client_ca = path("--tls-client-ca");
    match (path("--tls-cert"), path("--tls-key")) {
        (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate, key, client_ca })),
        (Some(_), None) => Err(m.wrong("--tls-cert", "only together with --tls-key")),
        (None, Some(_)) => Err(m.wrong("--tls-key", "only together with --tls-cert")),
        (None, None) if client_ca.is_some() => {
            Err(m.wrong("--tls-client-ca", "only together with --tls-cert and --tls-key"))
        }
        (None, None) => Ok(None),
    }
}

fn local_addresses(
    m: &Matches,
    name: &str,
    family: &str,
    is_of_family: fn(&SocketAddr) -> bool,
) -> Result<Option<LocalAddresses>, UsageError> {
    let parse = |first: &str, count: &str| {
        let first = real_endpoint(first)
            .ok()
            .filter(is_of_family)
            .ok_or_else(|| format!("{family} ADDR:PORT with a port from 1 to 65535, and N"))?;
        let room = u64::from(u16::MAX - first.port()) + 1;
        let count = number(1, room)(count)?;
        // At most 65,535 by the line above.
        Ok(LocalAddresses { first, count: u16::try_from(count).unwrap_or(u16::MAX) })
    };
    Ok(m.pairs(name, parse)?.pop())
}

fn real_endpoint(text: &str) -> Result<SocketAddr, String> {
    endpoint(text).and_then(|address| match address.port() {
        0 => Err("ADDR:PORT with a port from 1 to 65535".to_owned()),
        _ => Ok(address),
    })
}

fn prefix(text: &str) -> Result<Prefix, String> {
    let (address, length) = cidr(text)?;
    Prefix::new(address, length).ok_or_else(|| "ADDR or ADDR/LENGTH".to_owned())
}

/// Zero stands for none.
trait IntoOption: Sized {
    fn into_option(self) -> Option<Self>;
}

impl IntoOption for Duration {
    fn into_option(self) -> Option<Duration> {
        (!self.is_zero()).then_some(self)
    }
}
