//! Which file imports what, and what it may not.

use crate::tokens::{group, tokens};
use crate::{assert_none, read, rust_files};
use std::collections::BTreeSet;

/// What the files of a layer may import.
struct Rule {
    layer: &'static str,
    layers: &'static [&'static str],
    crates: &'static [&'static str],
    /// Modules of std that a layer without clocks, files, threads and locks has no use for.
    std_refused: &'static [&'static str],
}

/// The table of docs/ARCHITECTURE.md. `main` is the binary: main.rs and commands.rs.
const RULES: &[Rule] = &[
    Rule {
        layer: "wire",
        layers: &["wire"],
        crates: &[],
        std_refused: &["env", "fs", "process", "sync", "thread", "time"],
    },
    Rule {
        layer: "state",
        layers: &["wire", "state"],
        crates: &[],
        std_refused: &["env", "fs", "process", "sync", "thread"],
    },
    Rule {
        layer: "net",
        layers: &["wire", "net"],
        crates: &[
            "libc",
            "mio",
            "native_tls",
            "netlink_packet_core",
            "netlink_packet_route",
            "netlink_sys",
            "openssl",
            "socket2",
            "tun",
        ],
        std_refused: &[],
    },
    Rule {
        layer: "runtime",
        layers: &["runtime"],
        crates: &["crossbeam_channel", "log", "mio", "nix", "sd_notify", "signal_hook", "socket2"],
        std_refused: &[],
    },
    Rule {
        layer: "cli",
        layers: &["cli"],
        crates: &["log", "nix", "pico_args", "simplelog"],
        std_refused: &[],
    },
    Rule { layer: "error", layers: &["cli", "error", "net"], crates: &[], std_refused: &[] },
    Rule {
        layer: "roles",
        layers: &["wire", "state", "net", "runtime", "cli", "error", "roles"],
        crates: &[
            "argon2",
            "base64",
            "blake2",
            "boringtun",
            "chacha20poly1305",
            "crossbeam_channel",
            // Proofs of the mesh's commands, and their JSON: the seed's format, which no std has.
            "hmac",
            "log",
            "mio",
            "native_tls",
            "nix",
            "redis",
            "serde_json",
            "sha2",
            "unicode_width",
        ],
        std_refused: &[],
    },
    Rule {
        layer: "main",
        layers: &["runtime", "cli", "error", "roles"],
        crates: &[],
        std_refused: &[],
    },
    Rule { layer: "lib", layers: &[], crates: &[], std_refused: &[] },
];

/// Modules of `roles` that are no role: what all roles share.
const ROLE_FRAME: &[&str] = &[
    "connect",
    "control",
    "cookie",
    "data_plane",
    "destination",
    "dial",
    "frame",
    "framed",
    "host",
    "listening",
    "lookup",
    "member_key",
    "proof",
    "report",
    "selftest",
    "startup",
];

/// The module that a file is: `src/net/sys/mod.rs` is net, sys. Empty for lib.rs.
fn module_of(file: &str) -> Vec<String> {
    let path = file.trim_start_matches("src/").trim_end_matches(".rs");
    let mut parts: Vec<String> = path.split('/').map(str::to_owned).collect();
    if matches!(parts.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        parts.pop();
    }
    parts
}

fn layer_of(file: &str) -> &'static str {
    if file == "src/lib.rs" {
        return "lib";
    }
    let module = module_of(file);
    let first = module.first().map_or("main", String::as_str);
    RULES.iter().map(|rule| rule.layer).find(|layer| *layer == first).unwrap_or("main")
}

/// Every path that the source names, absolute: `crate::…` first, or a crate's name. Paths that
/// begin with something else are relative to the module they stand in.
fn paths(file: &str, source: &str, crates: &BTreeSet<String>) -> Vec<Vec<String>> {
    let all = tokens(source);
    // Inline modules around the current token, with the token at which each one ends.
    let mut inline: Vec<(String, usize)> = Vec::new();
    let mut found = Vec::new();
    let mut at = 0;
    while at < all.len() {
        while inline.last().is_some_and(|(_, end)| *end <= at) {
            inline.pop();
        }
        let mut module = module_of(file);
        module.extend(inline.iter().map(|(name, _)| name.clone()));
        let absolute = |path: &[String]| absolute(path, &module, crates);
        // Not `impl Trait + use<'a>`.
        if all[at] == "use" && all[at + 1] != "<" {
            let end = at + all[at..].iter().position(|token| token == ";").unwrap();
            let mut trees = Vec::new();
            expand(&all[at + 1..end], &[], &mut trees);
            found.extend(trees.iter().map(|path| absolute(path)));
            at = end + 1;
        } else if all[at] == "mod" && all.get(at + 2).is_some_and(|token| token == "{") {
            inline.push((all[at + 1].clone(), at + 2 + group(&all[at + 2..])));
            at += 3;
        } else if all.get(at + 1).is_some_and(|token| token == "::") {
            let mut path = vec![all[at].clone()];
            at += 1;
            while all.get(at).is_some_and(|token| token == "::")
                && all.get(at + 1).is_some_and(|token| is_name(token))
            {
                path.push(all[at + 1].clone());
                at += 2;
            }
            if is_name(&path[0]) {
                found.push(absolute(&path));
            }
            // A turbofish, or the `::` after a type in angle brackets.
            at += usize::from(all.get(at).is_some_and(|token| token == "::"));
        } else {
            at += 1;
        }
    }
    found
}

fn is_name(token: &str) -> bool {
    token.starts_with(|sign: char| sign.is_alphabetic() || sign == '_')
}

/// The paths of a use tree: `a::{b, c::*}` is a::b and a::c::*.
fn expand(tree: &[String], before: &[String], found: &mut Vec<Vec<String>>) {
    let mut path = before.to_vec();
    let mut at = 0;
    while at < tree.len() {
        match tree[at].as_str() {
            "{" => {
                let inside = &tree[at + 1..at + group(&tree[at..]) - 1];
                let mut start = 0;
                let mut index = 0;
                while index <= inside.len() {
                    if index == inside.len() || inside[index] == "," {
                        if start < index {
                            expand(&inside[start..index], &path, found);
                        }
                        start = index + 1;
                        index += 1;
                    } else if inside[index] == "{" {
                        index += group(&inside[index..]);
                    } else {
                        index += 1;
                    }
                }
                return;
            }
            "as" => break,
            "::" => {}
            // `use a::{self}` is a.
            "self" if !path.is_empty() => {}
            word => path.push(word.to_owned()),
        }
        at += 1;
    }
    found.push(path);
}

fn absolute(path: &[String], module: &[String], crates: &BTreeSet<String>) -> Vec<String> {
    let mut base = module.to_vec();
    let mut rest = path;
    match rest[0].as_str() {
        // The binary names the library by its name.
        "crate" | "udpferry" => base.clear(),
        "self" => {}
        "super" => {
            while rest.first().is_some_and(|word| word == "super") {
                base.pop();
                rest = &rest[1..];
            }
            return whole(&base, rest);
        }
        first if crates.contains(first) => return path.to_vec(),
        _ => return whole(&base, rest),
    }
    whole(&base, &rest[1..])
}

fn whole(base: &[String], rest: &[String]) -> Vec<String> {
    let first = std::iter::once("crate".to_owned());
    first.chain(base.iter().cloned()).chain(rest.iter().cloned()).collect()
}

/// Names of the crates in the manifest, as paths write them, and std's.
fn crates_of(manifest: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut normal, mut dev) = (BTreeSet::new(), BTreeSet::new());
    let mut section = "";
    for line in manifest.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some((name, _)) = line.split_once(" = ") {
            let name = name.replace('-', "_");
            match section {
                "dependencies" => normal.insert(name),
                "dev-dependencies" => dev.insert(name),
                _ => false,
            };
        }
    }
    normal.extend(["std", "core", "alloc"].map(str::to_owned));
    // In a module of tests only, or the program would not build.
    (&normal | &dev, &dev - &normal)
}

/// The forbidden imports of one file.
fn judge(file: &str, source: &str, manifest: &str) -> Vec<String> {
    let (crates, only_tests) = crates_of(manifest);
    let layer = layer_of(file);
    let rule = RULES.iter().find(|rule| rule.layer == layer).unwrap();
    let mut findings = BTreeSet::new();
    for path in paths(file, source, &crates) {
        let shown = path.join("::");
        let second = path.get(1).map_or("", String::as_str);
        let allowed = match path[0].as_str() {
            // An item of the file's own root, or of the prelude: `Vec::new`, `commands::run`.
            "crate" if layer == "main" || layer == "lib" => {
                !is_layer(second) || rule.layers.contains(&second) || layer == "lib"
            }
            "crate" if layer == "roles" && second == "roles" => role_may(file, &path),
            "crate" => rule.layers.contains(&second),
            "std" | "core" | "alloc" => !rule.std_refused.contains(&second),
            other => rule.crates.contains(&other) || only_tests.contains(other),
        };
        if !allowed {
            findings.insert(format!("{file}: {layer} may not import {shown}"));
        }
    }
    findings.into_iter().collect()
}

fn is_layer(name: &str) -> bool {
    RULES.iter().any(|rule| rule.layer == name)
}

/// Whether a file below src/roles may name this path below `crate::roles`.
fn role_may(file: &str, path: &[String]) -> bool {
    let module = module_of(file);
    let Some(own) = module.get(1) else {
        // The table of roles names them all.
        return true;
    };
    match path.get(2).map(String::as_str) {
        // Items of roles/mod.rs itself.
        Some(name) if name.starts_with(char::is_uppercase) => true,
        Some(name) => name == own || ROLE_FRAME.contains(&name),
        // The whole of `roles`, through which any role could be reached.
        None => false,
    }
}

/// Unsafe code, and permission for it, outside src/net/sys.
fn unsafe_in(file: &str, source: &str) -> Vec<String> {
    let place = file.starts_with("src/net/sys/");
    let words = tokens(source);
    let count = words.iter().filter(|word| *word == "unsafe" || *word == "unsafe_code").count();
    if count == 0 || place { vec![] } else { vec![format!("{file}: unsafe code")] }
}

#[test]
fn no_file_imports_what_its_layer_may_not() {
    let manifest = read("Cargo.toml");
    let findings: Vec<String> =
        rust_files("src").iter().flat_map(|file| judge(file, &read(file), &manifest)).collect();
    assert_none(&findings);
}

#[test]
fn unsafe_code_stays_below_net_sys() {
    let findings: Vec<String> =
        rust_files("src").iter().flat_map(|file| unsafe_in(file, &read(file))).collect();
    assert_none(&findings);
    assert_eq!(unsafe_in("src/wire/x.rs", "fn f() { unsafe { g() } }").len(), 1);
    assert_eq!(unsafe_in("src/net/tcp.rs", "#![allow(unsafe_code)]").len(), 1);
    assert_eq!(unsafe_in("src/wire/x.rs", "// unsafe\nlet x = \"unsafe\";").len(), 0);
}

#[test]
fn forbidden_imports_are_found_however_they_are_written() {
    let manifest = "[dependencies]\nmio = \"1\"\nlog = \"0.4\"\nsd-notify = \"1\"\n\
                    [dev-dependencies]\nproptest = \"1\"\n";
    for (file, source) in [
        ("src/wire/x.rs", "use crate::state::flow_table::Flow;"),
        ("src/wire/x.rs", "use super::super::net::udp;"),
        ("src/wire/x.rs", "use std::{fmt, time::{self}, net::{IpAddr, SocketAddr}};"),
        ("src/wire/x.rs", "fn f() { log::warn!(\"x\"); }"),
        ("src/wire/x/y.rs", "use super::super::super::cli::{self};"),
        ("src/wire/x.rs", "mod a { mod b { use super::super::super::super::net::udp; } }"),
        ("src/state/x.rs", "fn f() -> crate::net::udp::Buffers { todo() }"),
        ("src/state/x.rs", "use std::sync::Mutex;"),
        ("src/state/x.rs", "use mio::Token;"),
        ("src/net/x.rs", "use crate::runtime::{clock, event_loop::EventLoop};"),
        ("src/net/x.rs", "use log::warn;"),
        ("src/runtime/x.rs", "use crate::error::Error;"),
        ("src/runtime/x.rs", "use crate::wire::cursor;"),
        ("src/cli/x.rs", "use crate::runtime::clock;"),
        ("src/cli/x.rs", "use sd_notify::notify;"),
        ("src/error.rs", "use crate::roles::ROLES;"),
        ("src/roles/udpgw/x.rs", "use crate::roles::pool::frame;"),
        ("src/roles/udpgw/x.rs", "use super::super::pool;"),
        ("src/roles/udpgw/x.rs", "use crate::{roles, net};"),
        ("src/roles/udpgw/x.rs", "use sd_notify::notify;"),
        ("src/roles/startup.rs", "use super::udpgw;"),
        ("src/main.rs", "use udpferry::wire::udpgw;"),
    ] {
        assert!(!judge(file, source, manifest).is_empty(), "{file}: {source}");
    }
    for (file, source) in [
        ("src/wire/x.rs", "use super::cursor::Cursor; use std::net::SocketAddr;"),
        ("src/wire/x.rs", "mod tests { use super::*; use proptest::prelude::*; }"),
        ("src/wire/x.rs", "/// crate::net is the place.\nfn f() { Vec::<u8>::new(); }"),
        ("src/state/x.rs", "use crate::wire::ip; use std::time::Instant;"),
        ("src/net/x.rs", "use mio::net::{TcpStream, UdpSocket as Udp};"),
        ("src/roles/udpgw/x.rs", "use super::y; use crate::roles::startup::Startup;"),
        ("src/roles/mod.rs", "pub mod udpgw; pub use selftest::SELFTEST; udpgw::run;"),
        ("src/main.rs", "mod commands; use udpferry::roles::ROLES; commands::run();"),
    ] {
        assert_none(&judge(file, source, manifest));
    }
}
