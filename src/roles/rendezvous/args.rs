//! The role's options, and what they come to.

use super::Config;
use super::store_url::StoreUrl;
use crate::cli::common::{COMMON, common};
use crate::cli::flags::{Matches, UsageError};
use crate::cli::table::{Command, Opt, Takes};
use crate::cli::values::{buffer_size, count, duration, endpoint, number, size};
use crate::net::udp::Buffers;
use crate::state::pairing::PairingLimits;
use crate::state::registry::limits::{Limits, RelayRates};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The role's command line.
pub const COMMAND: Command = Command {
    name: "rendezvous",
    summary: "where hosts behind NATs find each other; a STUN server too",
    about: "Introduces the members of a room to each other, so that both can open their NATs at the \
            same moment: `udpferry peer` is the client. Room names and secrets never reach it, and \
            it can neither read nor join what peers say. On the same port it answers STUN (RFC \
            8489, and RFC 5780 with --alternate-addr) and pairs plain clients that send any text, \
            first come, first paired.",
    positionals: &[],
    sections: &[
        ("Listening", LISTENING),
        ("STUN", STUN),
        ("Limits", LIMITS),
        ("Relay", RELAY),
        ("Plain clients", PLAIN),
        ("Common", COMMON),
    ],
    examples: &[
        ("udpferry rendezvous", "Serve on UDP port 12345 of every address."),
        (
            "udpferry rendezvous --stun-port 3478 --relay --user nobody",
            "Also where STUN clients look, and carry traffic of peers whose NATs let no path through.",
        ),
        (
            "udpferry rendezvous --listen-addr 192.0.2.1:12345 --stun-port 3478 --alternate-addr 192.0.2.2",
            "With two addresses: let clients find out how their NATs behave.",
        ),
    ],
};

/// Many NATs forget a mapping that has been idle for 30 s: the refresh is what keeps it.
const REFRESH_MAX: Duration = Duration::from_secs(15);

/// As many as `udpgw` takes.
const LISTENERS_MAX: usize = 16;

const LISTENING: &[Opt] = &[
    Opt {
        names: &["--listen-addr"],
        takes: Takes::One("ADDR:PORT"),
        times_max: LISTENERS_MAX,
        default: Some("0.0.0.0:12345 [::]:12345"),
        help: "Serve on this UDP address, IPv4 or [IPv6]; up to 16 times. Answers leave from the \
               address that was asked.",
    },
    Opt::value(
        &["--udp-buffer"],
        "BYTES",
        Some("4M"),
        "Send and receive buffer of a UDP socket; more than net.core.rmem_max and wmem_max only for \
         root. 0 is the system's.",
    ),
];

const STUN: &[Opt] = &[
    Opt::value(
        &["--stun-port"],
        "PORT",
        None,
        "Serve on this port too, on the same addresses; 3478 is STUN's.",
    ),
    Opt {
        names: &["--alternate-addr"],
        takes: Takes::One("ADDR"),
        times_max: 2,
        default: None,
        help: "Another address of this host, for clients that find out how their NAT behaves (RFC \
               5780); once for IPv4 and once for IPv6. Needs --stun-port, and a --listen-addr of \
               its family with an address of its own. Answers may then be asked to leave from, or \
               go to, another port or address.",
    },
    Opt::switch(&["--software"], "Name this program and its version in STUN answers."),
];

const LIMITS: &[Opt] = &[
    Opt::value(
        &["--max-rooms"],
        "N",
        Some("10000"),
        "Rooms at once, 1 to 1000000. When another one is to be made, the newest of the address \
         (IPv4, or IPv6 /64) with the most rooms ends; whoever has or would have the most is \
         refused.",
    ),
    Opt::value(
        &["--max-members"],
        "N",
        Some("16"),
        "Members of a room, 2 to 255; further ones are refused. Each is introduced to each.",
    ),
    Opt::value(
        &["--expiry"],
        "TIME",
        Some("60"),
        "A member that has not refreshed its registration for so long is gone, 4 s to 18 h. Members \
         are asked to refresh at a quarter of it, or every 15 seconds if that is sooner.",
    ),
    Opt::value(
        &["--registry"],
        "URL",
        None,
        "Share the rooms with other servers through this Redis, 6.0 or later: \
         redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE], rediss:// over TLS. All servers should have \
         the same --expiry. While it is not there, rooms are this server's alone. Others on this host \
         see options: UDPFERRY_REGISTRY in the environment hides a password.",
    ),
    Opt::value(
        &["--source-rate"],
        "N",
        Some("1000"),
        "Requests per second of an IPv4 address or an IPv6 /64; further ones are dropped and \
         counted. What is relayed has limits of its own. 0 is no limit.",
    ),
    Opt::value(
        &["--max-sources"],
        "N",
        Some("65536"),
        "Addresses remembered for --source-rate, 1 to 16777216, and as many endpoints for how much \
         they were told in the last minute; the least recently seen is forgotten.",
    ),
    Opt::value(
        &["--max-introductions"],
        "N",
        Some("65536"),
        "Introductions that wait for their acknowledgement, to be repeated, 1 to 16777216; further \
         ones are sent once.",
    ),
];

const RELAY: &[Opt] = &[
    Opt::switch(&["--relay"], "Carry datagrams between members whose NATs let no path through."),
    Opt::value(
        &["--relay-rate"],
        "BYTES",
        Some("1M"),
        "Bytes per second that are relayed in a room, 1k to 4G; further ones are dropped and counted.",
    ),
    Opt::value(&["--relay-total-rate"], "BYTES", Some("10M"), "The same in all rooms together."),
];

const PLAIN: &[Opt] = &[
    Opt::switch(
        &["--no-legacy"],
        "Drop text: no plain clients, and no answer that is longer than what an unproven address sent, \
         STUN's apart.",
    ),
    Opt::value(
        &["--waiting-expiry"],
        "TIME",
        Some("60"),
        "A plain client that has waited so long for another one is forgotten; it may ask again.",
    ),
    Opt::value(
        &["--max-waiting"],
        "N",
        Some("1024"),
        "Plain clients remembered, waiting or paired in the last 10 seconds, 2 to 1000000; the \
         oldest is forgotten.",
    ),
    Opt::value(
        &["--plain-rate"],
        "N",
        Some("200"),
        "Answers to plain clients in a second, 2 to 1000000, two for a pair; clients wait for theirs. \
         Nothing proves such a client's address: this keeps a forger from making the server send \
         more than he does.",
    ),
];

/// Checks the options and puts them together.
pub(super) fn config(m: &Matches) -> Result<Config, UsageError> {
    let listen = m.many("--listen-addr", endpoint)?;
    let stun_port = m.one("--stun-port", port)?;
    if stun_port.is_some_and(|port| listen.iter().any(|address| address.port() == port)) {
        return Err(m.wrong("--stun-port", "another port than --listen-addr's"));
    }
    let mut alternates = Vec::new();
    for alternate in m.many("--alternate-addr", address)? {
        alternates.push((beside(m, alternate, &listen, stun_port)?, alternate));
    }
    if alternates.iter().filter(|(_, alternate)| alternate.is_ipv4()).count() > 1
        || alternates.iter().filter(|(_, alternate)| alternate.is_ipv6()).count() > 1
    {
        return Err(m.wrong("--alternate-addr", "one address of each family"));
    }
    if !m.flag("--relay") {
        for option in ["--relay-rate", "--relay-total-rate"] {
            if m.given(option) {
                return Err(m.wrong(option, "only with --relay"));
            }
        }
    }
    let plain = PairingLimits {
        clients_max: m.required("--max-waiting", count(2, 1_000_000))?,
        waiting_expiry: m.required("--waiting-expiry", positive)?,
        answers_per_second: m.required("--plain-rate", |text| whole(text, 2, 1_000_000))?,
    };
    let expiry = m.required("--expiry", expiry)?;
    let bytes = m.required("--udp-buffer", buffer_size)?;
    let sources_max = m.required("--max-sources", count(1, 1 << 24))?;
    Ok(Config {
        listen,
        listen_given: m.given("--listen-addr"),
        stun_port,
        alternates,
        shows_software: m.flag("--software"),
        limits: Limits {
            rooms_max: m.required("--max-rooms", count(1, 1_000_000))?,
            members_max: m.required("--max-members", count(2, 255))?,
            introductions_max: m.required("--max-introductions", count(1, 1 << 24))?,
            listeners_max: sources_max,
            expiry,
            relay: RelayRates {
                room: m.required("--relay-rate", rate)?,
                total: m.required("--relay-total-rate", rate)?,
            },
        },
        refresh: (expiry / 4).min(REFRESH_MAX),
        relays: m.flag("--relay"),
        store: store(m)?,
        plain: (!m.flag("--no-legacy")).then_some(plain),
        source_rate: m.required("--source-rate", |text| whole(text, 0, 1_000_000_000))?,
        sources_max,
        udp_buffers: Buffers { receive: bytes, send: bytes },
        common: common(m)?,
    })
}

/// Its value, which may hold a password, is not shown.
fn store(m: &Matches) -> Result<Option<StoreUrl>, UsageError> {
    let Some(text) = m.hidden("--registry", "the URL")? else { return Ok(None) };
    StoreUrl::parse(&text).map(Some).map_err(|allowed| UsageError::NotAllowed {
        option: "--registry".to_owned(),
        value: "the URL".to_owned(),
        allowed,
    })
}

/// The address of --listen-addr that an alternate address belongs to.
fn beside(
    m: &Matches,
    alternate: IpAddr,
    listen: &[SocketAddr],
    stun_port: Option<u16>,
) -> Result<SocketAddr, UsageError> {
    if stun_port.is_none() {
        return Err(m.wrong("--alternate-addr", "only with --stun-port"));
    }
    listen
        .iter()
        .find(|address| {
            address.is_ipv4() == alternate.is_ipv4()
                && !address.ip().is_unspecified()
                && address.ip() != alternate
                && address.port() != 0
        })
        .copied()
        .ok_or_else(|| {
            m.wrong(
                "--alternate-addr",
                "another address than that of a --listen-addr of its family, which must be given \
                 with address and port",
            )
        })
}

fn port(text: &str) -> Result<u16, String> {
    u16::try_from(number(1, 65_535)(text)?).map_err(|_| "a port from 1 to 65535".to_owned())
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse()
        .ok()
        .filter(|address: &IpAddr| !address.is_unspecified())
        .ok_or_else(|| "an IPv4 or IPv6 address of this host".to_owned())
}

fn whole(text: &str, min: u64, max: u64) -> Result<u32, String> {
    number(min, max)(text).map(|value| u32::try_from(value).unwrap_or(u32::MAX))
}

fn rate(text: &str) -> Result<u32, String> {
    let bytes = size(text)?;
    u32::try_from(bytes)
        .ok()
        .or((bytes == 1 << 32).then_some(u32::MAX))
        .filter(|bytes| *bytes >= 1024)
        .ok_or_else(|| "bytes per second from 1k to 4G".to_owned())
}

fn positive(text: &str) -> Result<Duration, String> {
    duration(text)
        .and_then(|time| if time.is_zero() { Err("a time above 0".into()) } else { Ok(time) })
}

/// What fits the whole seconds of an answer to a registration: a refresh of a second at least, and
/// four of them in the expiry.
fn expiry(text: &str) -> Result<Duration, String> {
    let allowed = Duration::from_secs(4)..=Duration::from_secs(18 * 3600);
    duration(text)
        .ok()
        .filter(|time| allowed.contains(time))
        .ok_or_else(|| "a time from 4s to 18h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::flags::{Parsed, parse};
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    fn read(args: &[&str]) -> Result<Config, UsageError> {
        let args = args.iter().map(OsString::from).collect();
        match parse(&COMMAND, args, &|_| None)? {
            Parsed::Run(matches) => config(&matches),
            other => panic!("{other:?}"),
        }
    }

    fn said(args: &[&str]) -> String {
        read(args).unwrap_err().to_string()
    }

    #[test]
    fn a_store_that_is_none_is_said_without_its_password() {
        assert_eq!(
            said(&["--registry", "redis://:s3cr/et@h"]),
            "--registry: \"the URL\" is not allowed: the number of a database after /"
        );
        let not_text = OsString::from_vec(b"redis://:s3cret\xff@h".to_vec());
        let Parsed::Run(matches) =
            parse(&COMMAND, vec!["--registry".into(), not_text.clone()], &|_| None).unwrap()
        else {
            panic!("no command");
        };
        assert_eq!(
            config(&matches).unwrap_err().to_string(),
            "--registry: \"the URL\" is not allowed: text in UTF-8"
        );
        let env = |name: &str| (name == "UDPFERRY_REGISTRY").then(|| not_text.clone());
        let Parsed::Run(matches) = parse(&COMMAND, Vec::new(), &env).unwrap() else {
            panic!("no command");
        };
        let said = config(&matches).unwrap_err().to_string();
        assert!(said.starts_with("UDPFERRY_REGISTRY: ") && !said.contains("s3cret"), "{said}");
    }

    #[test]
    fn defaults_are_those_of_the_document() {
        let config = read(&[]).unwrap();
        let any = ["0.0.0.0:12345".parse().unwrap(), "[::]:12345".parse().unwrap()];
        assert_eq!(config.listen, any);
        assert!(!config.listen_given && !config.relays && !config.shows_software);
        assert_eq!((config.limits.rooms_max, config.limits.members_max), (10_000, 16));
        assert_eq!(config.limits.expiry, Duration::from_secs(60));
        assert_eq!(config.refresh, Duration::from_secs(15));
        assert_eq!(config.limits.relay.room, 1 << 20);
        assert_eq!(config.limits.relay.total, 10 << 20);
        assert_eq!((config.source_rate, config.sources_max), (1000, 65_536));
        let plain = config.plain.unwrap();
        assert_eq!((plain.clients_max, plain.answers_per_second), (1024, 200));
        assert_eq!(plain.waiting_expiry, Duration::from_secs(60));
        assert!(read(&["--no-legacy"]).unwrap().plain.is_none());
        assert_eq!(read(&["--relay", "--relay-rate=4G"]).unwrap().limits.relay.room, u32::MAX);
    }

    #[test]
    fn an_alternate_address_stands_beside_a_primary_one() {
        let two = ["--listen-addr=127.0.0.1:12345", "--stun-port=3478"];
        let with = |more: &[&'static str]| read(&[&two[..], more].concat());
        let config = with(&["--alternate-addr=127.0.0.2"]).unwrap();
        let expected = ("127.0.0.1:12345".parse().unwrap(), "127.0.0.2".parse().unwrap());
        assert_eq!(config.alternates, [expected]);
        for wrong in ["127.0.0.1", "::1", "0.0.0.0", "host"] {
            assert!(read(&[two[0], two[1], "--alternate-addr", wrong]).is_err(), "{wrong}");
        }
        assert!(with(&["--alternate-addr=127.0.0.2", "--alternate-addr=127.0.0.3"]).is_err());
        assert!(said(&["--alternate-addr=127.0.0.2"]).ends_with("only with --stun-port"));
        assert!(
            said(&["--stun-port=3478", "--alternate-addr=127.0.0.2"]).contains("must be given")
        );
    }

    #[test]
    fn a_member_refreshes_four_times_in_its_expiry_and_before_its_nat_forgets() {
        for (expiry, refresh_ms) in
            [("4", 1000), ("7", 1750), ("60", 15_000), ("2m", 15_000), ("18h", 15_000)]
        {
            let config = read(&["--expiry", expiry]).unwrap();
            assert_eq!(config.refresh, Duration::from_millis(refresh_ms), "{expiry}");
        }
    }

    #[test]
    fn wrong_values_are_refused() {
        for wrong in [
            "--registry=host",
            "--stun-port=12345",
            "--stun-port=0",
            "--max-members=256",
            "--max-rooms=0",
            "--expiry=3.9",
            "--expiry=19h",
            "--relay-rate=1M",
            "--waiting-expiry=0",
            "--plain-rate=1",
            "--max-waiting=1",
        ] {
            assert!(read(&[wrong]).is_err(), "{wrong}");
        }
        assert!(read(&["--relay", "--relay-rate=100"]).is_err());
    }
}
