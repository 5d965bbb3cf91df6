//! The control program's options, and what they come to.

use super::super::{DEFAULT_CONTROL_PORT, DEFAULT_SOCKET};
use super::talk::Way;
use crate::cli::common::INFORMATION;
use crate::cli::flags::{Matches, UsageError};
use crate::cli::table::{Command, Opt, Positional, Takes};
use crate::cli::values::{choice, duration, number, text};
use serde_json::{Map, Value};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The command line of `meshctl`.
pub const COMMAND: Command = Command {
    name: "meshctl",
    summary: "adds, changes, removes and lists the tunnels of a running mesh",
    about: "Commands `udpferry mesh`: list, get NAME, stats, add NAME, update NAME, del NAME, apply \
            FILE, export and watch. Without -s it uses the Unix socket of this host's daemon, with -s \
            UDP. With -o it is udpProxyServerControl, and sends what that sends. Exit status 1 if the \
            daemon refuses, with the field that is at fault.",
    positionals: &[
        Positional {
            name: "COMMAND",
            help: "list, get, stats, add, update, del, apply, export or watch; list if none is \
                   given. With -o it may be the daemon's address.",
            required: false,
        },
        Positional {
            name: "NAME",
            help: "The tunnel of get, add, update and del, as -n; the file of apply, - for standard \
                   input.",
            required: false,
        },
    ],
    sections: &[
        ("Daemon", DAEMON),
        ("Tunnel", TUNNEL),
        ("Output", OUTPUT),
        ("Common", INFORMATION),
    ],
    examples: &[
        ("udpferry meshctl list", "Every tunnel of this host, and who is missing."),
        (
            "udpferry meshctl -s 172.100.1.1 -o add -n udp2 -t 10.0.1.1 -r 172.100.1.2 -p 5001",
            "As udpProxyServerControl: add the tunnel udp2 to 172.100.1.2.",
        ),
        (
            "udpferry meshctl add udp2 -t 10.0.1.1/30 -r 172.100.1.2 --route 192.168.2.0/24 --keepalive 15",
            "The same at this host's daemon, with a network behind it, and a watch on it.",
        ),
        ("udpferry meshctl update udp2 --set follow=true", "Change one field of a tunnel."),
        (
            "udpferry meshctl export > mesh.json; udpferry meshctl apply mesh.json",
            "Keep the tunnels in a file, and bring a daemon to it, all or nothing.",
        ),
    ],
};

const DAEMON: &[Opt] = &[
    Opt::value(
        &["-s", "--server"],
        "HOST",
        None,
        "The daemon's address or name: over UDP. An address of this host works without a key.",
    ),
    Opt::value(&["-p", "--port"], "PORT", Some("5001"), "The daemon's UDP control port."),
    Opt::value(
        &["--control-socket", "--socket"],
        "FILE",
        Some("/run/udpferry/mesh.sock"),
        "The daemon's Unix socket, used without -s.",
    ),
    Opt::value(
        &["--key"],
        "FILE",
        None,
        "The key of a daemon elsewhere (its --control-key): commands are proven with it, and so are \
         the answers.",
    ),
    Opt::value(
        &["--timeout"],
        "TIME",
        Some("3"),
        "How long to wait for an answer; to apply, 50 ms more for each tunnel that changes.",
    ),
];

const TUNNEL: &[Opt] = &[
    Opt::value(
        &["-o", "--op"],
        "add|del",
        None,
        "Send the message of udpProxyServerControl: mask 255.255.255.252 and MTU 1500 if not given.",
    ),
    Opt::value(&["-n", "--name"], "NAME", None, "The tunnel's name, that of its device."),
    Opt::value(
        &["-t", "--tunnel-ip", "--tunnelIP"],
        "ADDR[/LEN]",
        None,
        "The address of this end inside the tunnel.",
    ),
    Opt::value(&["-tm", "--netmask"], "MASK", None, "Its netmask; 255.255.255.252 if not given."),
    Opt::value(
        &["-m", "--mtu"],
        "BYTES",
        None,
        "The device's MTU, or auto for what the path carries, which is the default without -o.",
    ),
    Opt::value(
        &["-r", "--remote", "--remoteServer"],
        "HOST[:PORT]",
        None,
        "The other end: its address or name, and its data port if it is not the daemon's own.",
    ),
    Opt {
        names: &["--route"],
        takes: Takes::One("NETWORK"),
        times_max: 64,
        default: None,
        help: "A network behind the other end, such as 192.168.2.0/24.",
    },
    Opt::value(
        &["--keepalive"],
        "SECONDS",
        None,
        "Ask the other end for a sign of life so often; it must be udpferry too.",
    ),
    Opt {
        names: &["--set"],
        takes: Takes::One("FIELD=VALUE"),
        times_max: 16,
        default: None,
        help: "Any other field of the JSON, such as framing=raw, follow=true, carrier=true, \
               mssClamp=true, routes=[]. A value is JSON, or else text.",
    },
    Opt::switch(&["--no-wait"], "With -o: send without an id and do not wait, as the original."),
];

const OUTPUT: &[Opt] = &[
    Opt::switch(&["--json"], "Print JSON for programs, not tables for people."),
    Opt::switch(&["--dry-run"], "With apply: only say what would change."),
    Opt::value(&["--interval"], "TIME", Some("2"), "How often watch looks."),
];

/// The netmask and MTU that udpProxyServerControl sends where none are given.
const SEED_NETMASK: &str = "255.255.255.252";
const SEED_MTU: u16 = 1500;

/// What a command line comes to.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) wanted: Wanted,
    pub(super) way: Way,
    pub(super) as_json: bool,
}

/// What is wanted of the daemon.
#[derive(Debug, PartialEq)]
pub(super) enum Wanted {
    List,
    Stats,
    Export,
    Get(String),
    Change { op: &'static str, tunnel: Map<String, Value> },
    Seed { op: &'static str, tunnel: Map<String, Value>, waits: bool },
    Apply { file: String, dry_run: bool },
    Watch { interval: Duration },
}

/// Checks the options and puts them together.
pub(super) fn plan(m: &Matches) -> Result<Plan, UsageError> {
    let op = m.one("--op", choice(&["add", "del"]))?;
    let mut server = m.one("--server", text)?;
    let command = m.positional(0);
    let wanted = if let Some(op) = op {
        // The first example of the seed's README has the address there.
        if let Some(word) = command {
            if server.is_some() || word.parse::<IpAddr>().is_err() || m.positional(1).is_some() {
                return Err(UsageError::Unexpected { value: word.to_owned() });
            }
            server = Some(word.to_owned());
        }
        Wanted::Seed { op, tunnel: seed_tunnel(m, op)?, waits: !m.flag("--no-wait") }
    } else {
        if m.flag("--no-wait") {
            return Err(m.wrong("--no-wait", "only with -o"));
        }
        wanted(m, command.unwrap_or("list"))?
    };
    if m.flag("--dry-run") && !matches!(wanted, Wanted::Apply { .. }) {
        return Err(m.wrong("--dry-run", "only with apply"));
    }
    let port = m.required("--port", number(1, 65_535))?;
    let timeout = m.required("--timeout", duration)?.max(Duration::from_millis(1));
    let key = m.path("--key");
    let socket = m.path("--control-socket").unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
    let port = u16::try_from(port).unwrap_or(DEFAULT_CONTROL_PORT);
    let way = match server {
        Some(host) => Way::Datagrams { host, port, key, timeout },
        None if key.is_some() => return Err(m.wrong("--key", "only with -s")),
        // Where there is no socket, the seed's way reaches what there is.
        None if op.is_some() && !socket.exists() => {
            Way::Datagrams { host: "127.0.0.1".to_owned(), port, key, timeout }
        }
        None => Way::Socket { path: socket, timeout },
    };
    Ok(Plan { wanted, way, as_json: m.flag("--json") })
}

fn wanted(m: &Matches, command: &str) -> Result<Wanted, UsageError> {
    let no_argument = |wanted| match m.positional(1) {
        None => Ok(wanted),
        Some(word) => Err(UsageError::Unexpected { value: word.to_owned() }),
    };
    match command {
        "list" => no_argument(Wanted::List),
        "stats" => no_argument(Wanted::Stats),
        "export" => no_argument(Wanted::Export),
        "watch" => no_argument(Wanted::Watch {
            interval: m.required("--interval", duration)?.max(Duration::from_millis(100)),
        }),
        "get" => Ok(Wanted::Get(name(m)?)),
        "add" => Ok(Wanted::Change { op: "add", tunnel: tunnel(m)? }),
        "update" => Ok(Wanted::Change { op: "update", tunnel: tunnel(m)? }),
        "del" => Ok(Wanted::Change { op: "del", tunnel: tunnel(m)? }),
        "apply" => match m.positional(1) {
            Some(file) => Ok(Wanted::Apply { file: file.to_owned(), dry_run: m.flag("--dry-run") }),
            None => Err(missing("NAME", "the file to apply, - for standard input")),
        },
        other => Err(UsageError::NotAllowed {
            option: "COMMAND".to_owned(),
            value: other.to_owned(),
            allowed: "list, get, stats, add, update, del, apply, export or watch".to_owned(),
        }),
    }
}

fn missing(option: &str, placeholder: &str) -> UsageError {
    UsageError::Missing { option: option.to_owned(), placeholder: placeholder.to_owned() }
}

/// The tunnel's name, as an argument or by -n.
fn name(m: &Matches) -> Result<String, UsageError> {
    let option = m.one("--name", text)?;
    match (m.positional(1), option) {
        (Some(word), None) => Ok(word.to_owned()),
        (None, Some(name)) => Ok(name),
        (None, None) => Err(missing("NAME", "the tunnel's name")),
        (Some(_), Some(_)) => Err(m.wrong("--name", "only when no NAME is given")),
    }
}

/// The fields that are given.
fn tunnel(m: &Matches) -> Result<Map<String, Value>, UsageError> {
    let mut tunnel = Map::new();
    tunnel.insert("name".to_owned(), name(m)?.into());
    for (field, option) in
        [("tunnelIP", "--tunnel-ip"), ("netmask", "--netmask"), ("remoteServer", "--remote")]
    {
        if let Some(value) = m.one(option, text)? {
            tunnel.insert(field.to_owned(), value.into());
        }
    }
    if let Some(mtu) = m.one("--mtu", text)? {
        tunnel.insert("mtu".to_owned(), value_of(&mtu));
    }
    let routes = m.many("--route", text)?;
    if !routes.is_empty() {
        tunnel.insert("routes".to_owned(), routes.into());
    }
    if let Some(keepalive) = m.one("--keepalive", text)? {
        tunnel.insert("keepalive".to_owned(), value_of(&keepalive));
    }
    for (field, value) in m.many("--set", assignment)? {
        tunnel.insert(field, value);
    }
    Ok(tunnel)
}

/// The seed's five fields, with its defaults; ours behind them, if any are given.
fn seed_tunnel(m: &Matches, op: &str) -> Result<Map<String, Value>, UsageError> {
    let given = tunnel_of_options(m)?;
    if op == "add" {
        for (field, option) in [("tunnelIP", "--tunnel-ip"), ("remoteServer", "--remote")] {
            if !given.contains_key(field) {
                return Err(missing(option, "op add needs it"));
            }
        }
    }
    let mut tunnel = Map::new();
    for field in ["name", "tunnelIP", "netmask", "mtu", "remoteServer"] {
        let value = given.get(field).cloned().or_else(|| match field {
            "netmask" => Some(SEED_NETMASK.into()),
            "mtu" => Some(SEED_MTU.into()),
            _ => None,
        });
        tunnel.extend(value.map(|value| (field.to_owned(), value)));
    }
    for (field, value) in given {
        tunnel.entry(field).or_insert(value);
    }
    if tunnel.get("tunnelIP").and_then(Value::as_str).is_some_and(|text| text.contains('/')) {
        // The order of the others stays.
        tunnel.shift_remove("netmask");
    }
    Ok(tunnel)
}

/// As [`tunnel`], but the name is an option: the argument, if any, is the daemon's address.
fn tunnel_of_options(m: &Matches) -> Result<Map<String, Value>, UsageError> {
    match m.one("--name", text)? {
        Some(_) => tunnel(m),
        None => Err(missing("--name", "NAME")),
    }
}

fn assignment(text: &str) -> Result<(String, Value), String> {
    match text.split_once('=') {
        Some((field, value)) if !field.is_empty() => Ok((field.to_owned(), value_of(value))),
        _ => Err("FIELD=VALUE".to_owned()),
    }
}

fn value_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::flags::{Parsed, parse};
    use std::ffi::OsString;

    fn read(line: &str) -> Result<Plan, UsageError> {
        let args = line.split_whitespace().map(OsString::from).collect();
        match parse(&COMMAND, args, &|_| None)? {
            Parsed::Run(matches) => plan(&matches),
            other => panic!("{other:?}"),
        }
    }

    fn seed(line: &str) -> (String, Way) {
        let Plan { wanted, way, .. } = read(line).unwrap();
        let Wanted::Seed { tunnel, .. } = wanted else { panic!("{wanted:?}") };
        (Value::Object(tunnel).to_string(), way)
    }

    #[test]
    fn the_seeds_command_lines_send_the_seeds_message() {
        let line = "-s 172.100.1.1 -o add -n udp2 -t 10.0.1.1 -r 172.100.1.2 -p 5001";
        let (tunnel, way) = seed(line);
        assert_eq!(
            tunnel,
            r#"{"name":"udp2","tunnelIP":"10.0.1.1","netmask":"255.255.255.252","mtu":1500,"remoteServer":"172.100.1.2"}"#
        );
        let Way::Datagrams { host, port, key: None, .. } = way else { panic!("{way:?}") };
        assert_eq!((host.as_str(), port), ("172.100.1.1", 5001));
        // The README's first example, as printed.
        let (_, way) = seed("172.100.1.1 -o add -n udp0 -t 10.0.0.1 -r 172.100.1.2 -p 5001");
        assert!(matches!(way, Way::Datagrams { host, .. } if host == "172.100.1.1"));
        let (tunnel, _) = seed("-s h -o add -n a -t 10.0.0.1 -tm 255.255.255.0 -m 1400 -r b");
        assert!(tunnel.contains(r#""netmask":"255.255.255.0","mtu":1400"#), "{tunnel}");
        let (tunnel, _) = seed("-s h -o del -n a");
        assert_eq!(tunnel, r#"{"name":"a","netmask":"255.255.255.252","mtu":1500}"#);
        let line = "-s h --op add --name a --tunnelIP 10.0.0.1/24 --remoteServer b --mtu auto";
        let (tunnel, _) = seed(line);
        assert!(tunnel.contains(r#""tunnelIP":"10.0.0.1/24","mtu":"auto""#), "{tunnel}");
        for wrong in
            ["-o add -n a -t 10.0.0.1", "-o add -t 10.0.0.1 -r b", "-o list -n a", "x -o del -n a"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn our_commands_take_names_and_any_field() {
        let wanted = |line: &str| read(line).unwrap().wanted;
        assert_eq!(wanted(""), Wanted::List);
        assert_eq!(wanted("get udp2"), Wanted::Get("udp2".to_owned()));
        assert_eq!(wanted("get -n udp2"), Wanted::Get("udp2".to_owned()));
        let Wanted::Change { op: "add", tunnel } = wanted(
            "add udp2 -t 10.0.1.1/30 -r 172.100.1.2 --route 192.168.2.0/24 --keepalive 15 --set follow=true --set framing=raw",
        ) else {
            panic!()
        };
        assert_eq!(
            Value::Object(tunnel).to_string(),
            r#"{"name":"udp2","tunnelIP":"10.0.1.1/30","remoteServer":"172.100.1.2","routes":["192.168.2.0/24"],"keepalive":15,"follow":true,"framing":"raw"}"#
        );
        assert!(matches!(read("list").unwrap().way, Way::Socket { .. }));
        for wrong in [
            "lst",
            "list x",
            "get",
            "get a -n b",
            "apply",
            "list --dry-run",
            "list --no-wait",
            "list --key f",
            "update a --set x",
            "list -p 0",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
