//! The peer's options, and what they come to.

use super::identity::PublicKey;
use super::room::{Room, RoomError};
use super::{Config, Detection, Forwarding, RoomChoice, Wanted};
use crate::cli::common::{COMMON, common};
use crate::cli::flags::{Matches, UsageError};
use crate::cli::table::{Command, Opt, Takes};
use crate::cli::values::{count, duration, endpoint, number};
use crate::roles::destination::Destination;
use crate::runtime::daemon::absolute;
use crate::wire::peer::NAME_LEN_MAX;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// The seed's port.
const SERVER_PORT: u16 = 12_345;
/// Servers, at most: each costs a lookup and a registration.
const SERVERS_MAX: usize = 4;
/// As many as a room can hold.
const PEER_KEYS_MAX: usize = 16;
/// A NAT's mapping may be given up after 30 s (RFC 4787, REQ-5, asks for 2 minutes; Linux takes
/// 30 s for one without an answer); longer intervals are for networks that are known.
const KEEPALIVE: &str = "15";

/// What errors show of a value that has a secret in it.
const A_SECRET: &str = "(a secret)";
/// What [`Detection`] there is; the first is that of `--detect` alone.
const DETECTIONS: &[&str] = &["nat", "lifetime"];

/// The role's command line.
pub const COMMAND: Command = Command {
    name: "peer",
    summary: "direct, encrypted chat or a forwarded UDP port between hosts behind NATs",
    about: "Enters a room at a rendezvous server, finds the other members, punches through the \
            NATs between them and talks to them directly: lines of chat from the terminal or a \
            pipe, or the datagrams of a UDP port. Everything between members is encrypted with \
            WireGuard's handshake and transport; the server sees neither the room's name nor its \
            secret nor what is said.",
    positionals: &[],
    sections: &[
        ("Meeting", MEETING),
        ("Identity", IDENTITY),
        ("Forwarding", FORWARDING),
        ("Paths", PATHS),
        ("Common", COMMON),
    ],
    examples: &[
        (
            "udpferry peer --server ferry.example.com --room new",
            "Make a room, print its code, and wait in it for the others.",
        ),
        (
            "udpferry peer --server ferry.example.com --room tibor:000G-40R4-0M30-E209-185G-R38E-1XF3",
            "Enter that room, and chat.",
        ),
        (
            "udpferry peer --server ferry.example.com --room-file /etc/udpferry/room --serve 127.0.0.1:51820",
            "Give the other members this host's WireGuard.",
        ),
        (
            "udpferry peer --server ferry.example.com --room-file /etc/udpferry/room --forward 127.0.0.1:51821",
            "Reach it there: WireGuard's Endpoint is then 127.0.0.1:51821.",
        ),
        (
            "udpferry peer --server ferry.example.com --detect",
            "Say what the NAT in front of this host does, and what will work.",
        ),
    ],
};

const MEETING: &[Opt] = &[
    Opt {
        names: &["--server"],
        takes: Takes::One("HOST[:PORT]"),
        times_max: SERVERS_MAX,
        default: None,
        help: "The rendezvous server, port 12345 without another. Up to 4 times: this member \
               registers at all of them, and meets others at any. Required.",
    },
    Opt::value(
        &["--room"],
        "CODE",
        None,
        "The room: new makes one and prints its code, NAME:SECRET is such a code, NAME alone \
         takes the secret from --secret. A command line can be read by every user of the host: \
         prefer --room-file or the variables UDPFERRY_ROOM and UDPFERRY_SECRET.",
    ),
    Opt::value(&["--room-file"], "FILE", None, "Read the room's code from this file."),
    Opt::value(
        &["--secret"],
        "SECRET",
        None,
        "The secret of the room that --room names, 8 characters at the least.",
    ),
    Opt::value(
        &["--name"],
        "NAME",
        None,
        "What the others shall call this member, at most 32 bytes; without it, the host's name.",
    ),
    Opt::switch(
        &["--legacy"],
        "Speak the plain text of the classroom demo that this grew from, with its server and its \
         clients: two at a time, and nothing is encrypted.",
    ),
];

const IDENTITY: &[Opt] = &[
    Opt::value(
        &["--key-file"],
        "FILE",
        None,
        "This member's private key, as udpferry keygen or wg genkey makes it; without it, a key \
         of this run alone.",
    ),
    Opt {
        names: &["--peer-key"],
        takes: Takes::One("KEY"),
        times_max: PEER_KEYS_MAX,
        default: None,
        help: "Talk only to members with this public key; up to 16 times.",
    },
];

const FORWARDING: &[Opt] = &[
    Opt::value(
        &["--forward"],
        "[ADDR:]PORT",
        None,
        "Receive datagrams on this UDP port (of 127.0.0.1 without another address) and take them \
         to the member that serves.",
    ),
    Opt::value(
        &["--to"],
        "NAME|KEY",
        None,
        "Take them to the member of that name or, which nobody else can claim, public key; without \
         it, to the first that serves.",
    ),
    Opt::value(
        &["--serve"],
        "ADDR:PORT",
        None,
        "Take the datagrams of the others' --forward to this UDP service and its answers back.",
    ),
    Opt::value(
        &["--max-flows"],
        "N",
        Some("64"),
        "Flows (local endpoints) of each member, 1 to 4096; at the limit the least recently used \
         one ends.",
    ),
    Opt::value(
        &["--flow-timeout"],
        "TIME",
        Some("180"),
        "End a flow in which no datagram has passed either way for so long.",
    ),
];

const PATHS: &[Opt] = &[
    Opt::value(
        &["--local-port"],
        "PORT",
        Some("0"),
        "Talk to servers and members from this UDP port; 0 takes any free one.",
    ),
    Opt::value(
        &["--keepalive"],
        "TIME",
        Some(KEEPALIVE),
        "Show each path that it lives after so long, 1 to 120 s; after three such times of \
         silence it is probed anew.",
    ),
    Opt::switch(
        &["--hard"],
        "Where one NAT maps by address and port, try birthday probing: 256 sockets on its side, \
         up to 2048 probes to random ports from the other one, which needs it too.",
    ),
    Opt::switch(&["--no-relay"], "Never go over the server's relay."),
    Opt::value(
        &["--connect-timeout"],
        "TIME",
        Some("60"),
        "In a pipe: give up, with exit code 1, when nobody has been met after so long; 0 waits \
         for ever.",
    ),
    Opt {
        names: &["--detect"],
        takes: Takes::Word(DETECTIONS),
        times_max: 1,
        default: None,
        help: "Find out how the NAT behaves, print it, and exit: nat, which alone it means, is all \
               but the slow part, lifetime measures how long a mapping lives too.",
    },
];

/// Checks the options and puts them together.
pub(super) fn config(m: &Matches) -> Result<Config, UsageError> {
    let servers = m.many("--server", server)?;
    if servers.is_empty() {
        return Err(UsageError::Missing {
            option: "--server".to_owned(),
            placeholder: "HOST[:PORT] of a rendezvous server".to_owned(),
        });
    }
    let detect = m.one("--detect", detection)?;
    let legacy = m.flag("--legacy");
    let room = if legacy || detect.is_some() { None } else { Some(room(m)?) };
    if legacy {
        for name in ["--room", "--room-file", "--secret", "--forward", "--serve", "--hard"] {
            if m.given(name) {
                return Err(clash(m, name, "not together with --legacy"));
            }
        }
    }
    for name in ["--to", "--serve"] {
        let needs_forward = name == "--to" && !m.given("--forward");
        let both = name == "--serve" && m.given("--serve") && m.given("--forward");
        if m.given(name) && needs_forward {
            return Err(m.wrong(name, "only together with --forward"));
        }
        if both {
            return Err(m.wrong(name, "not together with --forward: start a second member"));
        }
    }
    Ok(Config {
        common: common(m)?,
        servers,
        room,
        legacy,
        detect,
        name: match m.one("--name", name)? {
            Some(name) => name,
            None => host_name(),
        },
        key_file: m.path("--key-file").map(|path| absolute(&path)),
        peer_keys: m.many("--peer-key", peer_key)?,
        forwarding: Forwarding {
            listen: m.one("--forward", local_endpoint)?,
            to: m.one("--to", wanted)?,
            serve: m.one("--serve", endpoint)?,
            flows_max: m.required("--max-flows", count(1, 4_096))?,
            flow_timeout: m.required("--flow-timeout", duration)?,
        },
        local_port: m.required("--local-port", port)?,
        keepalive: m.required("--keepalive", keepalive)?,
        hard: m.flag("--hard"),
        relay: !m.flag("--no-relay"),
        connect_timeout: m.required("--connect-timeout", duration)?,
    })
}

fn room(m: &Matches) -> Result<RoomChoice, UsageError> {
    let missing = || UsageError::Missing {
        option: "--room".to_owned(),
        placeholder: "new, or a room's code; or --room-file".to_owned(),
    };
    if let Some(path) = m.path("--room-file") {
        for name in ["--room", "--secret"] {
            if m.given(name) {
                return Err(clash(m, name, "not together with --room-file"));
            }
        }
        return Ok(RoomChoice::File(absolute(&path)));
    }
    let Some(given) = m.hidden("--room", A_SECRET)? else { return Err(missing()) };
    let secret = m.hidden("--secret", A_SECRET)?;
    if let Some(secret) = secret {
        let room = Room::new(&given, &secret);
        return room.map(RoomChoice::Given).map_err(|error| unfit("--secret", error));
    }
    if given == "new" {
        return Ok(RoomChoice::New);
    }
    Room::parse_code(&given).map(RoomChoice::Given).map_err(|error| unfit("--room", error))
}

/// Options that exclude each other. Secrets are not repeated: the line may be kept in a log.
fn clash(m: &Matches, name: &str, why: &str) -> UsageError {
    match m.wrong(name, why) {
        UsageError::NotAllowed { option, allowed, .. } if matches!(name, "--room" | "--secret") => {
            UsageError::NotAllowed { option, value: A_SECRET.to_owned(), allowed }
        }
        other => other,
    }
}

/// Does not repeat the value, which has a secret in it.
fn unfit(option: &str, error: RoomError) -> UsageError {
    UsageError::NotAllowed {
        option: option.to_owned(),
        value: A_SECRET.to_owned(),
        allowed: error.to_string(),
    }
}

fn server(text: &str) -> Result<Destination, String> {
    Destination::parse(text, SERVER_PORT)
}

fn local_endpoint(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<u16>() {
        Ok(port) => Ok((Ipv4Addr::LOCALHOST, port).into()),
        Err(_) => endpoint(text),
    }
}

fn name(text: &str) -> Result<String, String> {
    let good = |c: char| !c.is_control() && c != ' ';
    if (1..=NAME_LEN_MAX).contains(&text.len()) && text.chars().all(good) {
        Ok(text.to_owned())
    } else {
        Err(format!("a name of 1 to {NAME_LEN_MAX} bytes, without spaces"))
    }
}

/// The host's name as far as it goes for a nickname.
fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let name = name.as_deref().and_then(|name| name.split('.').next()).unwrap_or("");
    match self::name(name) {
        Ok(name) => name,
        Err(_) => "somebody".to_owned(),
    }
}

fn peer_key(text: &str) -> Result<PublicKey, String> {
    PublicKey::parse(text).map_err(|error| error.to_string())
}

fn wanted(text: &str) -> Result<Wanted, String> {
    match PublicKey::parse(text) {
        Ok(key) => Ok(Wanted::Key(key)),
        Err(_) => name(text).map(Wanted::Name),
    }
}

fn port(text: &str) -> Result<u16, String> {
    let port = number(0, 65_535)(text)?;
    u16::try_from(port).map_err(|_| "a port from 0 to 65535".to_owned())
}

fn keepalive(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if (Duration::from_secs(1)..=Duration::from_secs(120)).contains(&interval) {
        Ok(interval)
    } else {
        Err("a time from 1 to 120 s".to_owned())
    }
}

fn detection(text: &str) -> Result<Detection, String> {
    match text {
        "nat" => Ok(Detection::Nat),
        "lifetime" => Ok(Detection::Lifetime),
        _ => Err("nat or lifetime".to_owned()),
    }
}
