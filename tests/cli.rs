//! The command line as its users meet it: the real binary, its names, texts, errors and exit codes.
#![allow(clippy::disallowed_methods)] // Tests measure time.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod support;

use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use support::programs::{Process, await_listener, only_line, program};
use support::{Client, Echo, Scratch, UDPFERRY, free_port, run};

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a program says of standard input; empty when it has nothing to object to.
fn objections(name: &str, args: &[&str], input: &str) -> String {
    let file = Scratch::new();
    std::fs::write(file.path("input"), input).unwrap();
    let output = Command::new(program(name))
        .args(args)
        .stdin(std::fs::File::open(file.path("input")).unwrap())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{name} {args:?}: {}: {said}", output.status);
    said
}

#[test]
fn alone_it_lists_the_roles() {
    let listed = text(&run(&[]));
    for role in udpferry::roles::ROLES {
        let line = format!("  {:<18} {}\n", role.command.name, role.command.summary);
        assert!(listed.contains(&line), "{line}{listed}");
    }
    for command in
        ["check udpgw", "keygen", "pubkey", "selftest", "help ROLE", "man ROLE", "completions bash"]
    {
        assert!(listed.lines().any(|line| line.trim_start().starts_with(command)), "{listed}");
    }
    for same in [["help"], ["--help"], ["-h"]] {
        assert_eq!(text(&run(&same)), listed, "{same:?}");
    }
}

#[test]
fn the_version_is_the_packages() {
    let version = concat!("udpferry ", env!("CARGO_PKG_VERSION"), "\n");
    for args in
        [&["version"][..], &["--version"], &["-V"], &["udpgw", "--version"], &["udpgw", "-V"]]
    {
        assert_eq!(text(&run(args)), version, "{args:?}");
    }
}

#[test]
fn help_names_every_option_with_its_default() {
    let help = text(&run(&["help", "udpgw"]));
    assert_eq!(text(&run(&["udpgw", "--help"])), help);
    assert_eq!(text(&run(&["udpgw", "-h"])), help);
    for option in udpferry::roles::udpgw::COMMAND.options() {
        for name in option.names {
            assert!(help.contains(name), "{name} is missing:\n{help}");
        }
        if let Some(default) = option.default {
            assert!(help.contains(default), "the default of {} is missing", option.canonical());
        }
    }
    assert!(help.lines().all(|line| line.chars().count() <= 80), "{help}");
    assert!(text(&run(&["help", "check", "udpgw"])).contains("--tls-servername"));
    assert!(text(&run(&["help", "selftest"])).contains("Usage:"));
}

#[test]
fn manual_pages_pass_mandoc() {
    for words in [&["udpgw"][..], &["check", "udpgw"], &["selftest"], &["keygen"], &["pubkey"]] {
        let page = text(&run(&[&["man"][..], words].concat()));
        let said = objections("mandoc", &["-T", "lint", "-W", "warning"], &page);
        assert_eq!(said, "", "{words:?}");
    }
}

#[test]
fn completions_are_bash_and_complete() {
    let script = text(&run(&["completions", "bash"]));
    assert_eq!(objections("bash", &["-n"], &script), "");
    let scratch = Scratch::new();
    let file = scratch.path("completions");
    std::fs::write(&file, &script).unwrap();
    let complete = |words: &[&str]| {
        let asks = format!(
            "source {}; COMP_WORDS=({}); COMP_CWORD={}; \
             spec=$(complete -p \"${{COMP_WORDS[0]}}\"); function=${{spec##*-F }}; \
             \"${{function%% *}}\" \"${{COMP_WORDS[0]}}\" \"${{COMP_WORDS[COMP_CWORD]}}\" x; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            file.display(),
            words.join(" "),
            words.len() - 1
        );
        objections("bash", &["--norc", "-c", &asks], "")
    };
    let has = |words: &[&str], wanted: &str| {
        let said = complete(words);
        assert!(said.lines().any(|line| line.trim() == wanted), "{words:?}: {said}");
    };
    has(&["udpferry", "udp"], "udpgw");
    has(&["udpferry", "udpgw", "--max-cli"], "--max-clients");
    has(&["badvpn-udpgw", "--listen"], "--listen-addr");
    has(&["udpgw", "--tls-cl"], "--tls-client-ca");
    has(&["udpferry", "pub"], "pubkey");
    has(&["udpferry", "peer", "--detect", "life"], "lifetime");
    has(&["udpferry", "peer", "--detect", "=", "n"], "nat");
    has(&["udpferry", "peer", "--detect", "--ser"], "--server");
}

/// Starts the program at `path` with `args`, lets a client through it, and returns what it said.
fn serves_a_client(path: &Path, args: &[&str], address: SocketAddr) -> Process {
    let mut command = Command::new(path);
    command.args(args);
    // The tests' remotes live on loopback; the command line stays as its users have it.
    command.env("UDPFERRY_ALLOW", "127.0.0.0/8");
    let process = Process::start(command);
    let mut client = Client::over(await_listener(address));
    let echo = Echo::start();
    client.echo(1, echo.address, b"through the symlink");
    process
}

fn symlinked(scratch: &Scratch, name: &str) -> std::path::PathBuf {
    let path = scratch.path(name);
    symlink(UDPFERRY, &path).unwrap();
    path
}

#[test]
fn a_line_for_badvpn_serves_through_either_symlink() {
    let scratch = Scratch::new();
    for name in ["badvpn-udpgw", "udpgw"] {
        let path = symlinked(&scratch, name);
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let listen = address.to_string();
        let args = [
            "--loglevel",
            "error",
            "--listen-addr",
            &listen,
            "--max-clients",
            "1000",
            "--max-connections-for-client",
            "10",
        ];
        let process = serves_a_client(&path, &args, address);
        assert_eq!(process.stdout() + &process.stderr(), "", "{name}");
        let output = Command::new(&path).arg("--bogus").stdin(Stdio::null()).output().unwrap();
        assert!(only_line(&output).starts_with(&format!("{name}: --bogus: ")), "{output:?}");
    }
}

#[test]
fn badvpns_other_options_are_taken() {
    let scratch = Scratch::new();
    let path = symlinked(&scratch, "badvpn-udpgw");
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let (listen, pool) = (address.to_string(), format!("127.0.0.1:{}", free_port()));
    let args = [
        &["--logger", "stdout", "--syslog-facility", "daemon", "--syslog-ident", "gw"][..],
        &["--loglevel", "3", "--channel-loglevel", "udpgw", "debug"],
        &["--channel-loglevel", "BReactor", "0", "--listen-addr", &listen],
        &["--udp-mtu", "1500", "--client-socket-sndbuf", "65536", "--unique-local-ports"],
        &["--local-udp-addrs", &pool, "4", "--local-udp-ip6-addrs", "[::1]:40000", "4"],
    ]
    .concat();
    let process = serves_a_client(&path, &args, address);
    assert_eq!(process.stderr(), "");
    let said = process.stdout();
    assert!(said.contains(&format!("info listening on tcp {address}\n")), "{said}");
    assert!(said.contains(": connected\n"), "{said}");
    for level in ["notice", "info", "debug", "warning", "none", "0", "1", "2", "4", "5"] {
        let output = run(&["udpgw", "--loglevel", level, "--listen-addr", &listen]);
        // The port is taken: beyond the options, and no further.
        assert_eq!(output.status.code(), Some(1), "{level}: {output:?}");
    }
}

/// Words after `udpferry udpgw`, and what the one line must contain: option, value, what is allowed.
const WRONG: &[(&[&str], &[&str])] = &[
    (&["--bogus"], &["--bogus", "unknown option"]),
    (&["--listen-add", "127.0.0.1:1"], &["--listen-add", "did you mean --listen-addr?"]),
    (&["-x"], &["-x", "unknown option"]),
    (&["word"], &["word", "no further argument"]),
    (&["--", "--help"], &["--help", "no further argument"]),
    (&["--listen-addr"], &["--listen-addr", "needs a value", "ADDR:PORT"]),
    (&["--listen-addr", "--daemon"], &["--listen-addr", "\"--daemon\"", "ADDR:PORT"]),
    (&["--listen-addr", ""], &["--listen-addr", "\"\"", "ADDR:PORT"]),
    (&["--listen-addr="], &["--listen-addr", "ADDR:PORT"]),
    (&["--listen-addr=127.0.0.1"], &["--listen-addr", "\"127.0.0.1\"", "ADDR:PORT"]),
    (&["--listen-addr=localhost:53"], &["--listen-addr", "\"localhost:53\"", "numeric"]),
    (&["--listen-addr=127.0.0.1:65536"], &["--listen-addr", "\"127.0.0.1:65536\"", "65535"]),
    (&["--listen-addr=::1:53"], &["--listen-addr", "\"::1:53\"", "[IPV6]"]),
    (&["--max-clients=0"], &["--max-clients", "\"0\"", "from 1 to 65535"]),
    (&["--max-clients=65536"], &["--max-clients", "\"65536\"", "from 1 to 65535"]),
    (&["--max-clients=+1"], &["--max-clients", "\"+1\"", "from 1 to 65535"]),
    (&["--max-clients", "-1"], &["--max-clients", "\"-1\"", "from 1 to 65535"]),
    (&["--max-clients=1", "--max-clients=2"], &["--max-clients", "only once"]),
    (&["--max-clients=many"], &["--max-clients", "\"many\"", "from 1 to 65535"]),
    (&["--max-clients-per-address=x"], &["--max-clients-per-address", "\"x\"", "from 0 to 65535"]),
    (
        &["--max-connections-for-client=65537"],
        &["--max-connections-for-client", "\"65537\"", "from 1 to 65536"],
    ),
    (&["--client-timeout=forever"], &["--client-timeout", "\"forever\"", "30s"]),
    (&["--udp-timeout=-1"], &["--udp-timeout", "\"-1\"", "30s"]),
    (&["--udp-timeout=11000000h"], &["--udp-timeout", "\"11000000h\"", "at most 10 years"]),
    (&["--stats-interval=5d"], &["--stats-interval", "\"5d\"", "5m"]),
    (&["--udp-mtu=0"], &["--udp-mtu", "\"0\"", "from 1 to 65526"]),
    (&["--udp-mtu=65527"], &["--udp-mtu", "\"65527\"", "from 1 to 65526"]),
    (&["--mapping=symmetric"], &["--mapping", "\"symmetric\"", "endpoint-independent, per-flow"]),
    (&["--tcp-buffer=2G"], &["--tcp-buffer", "\"2G\"", "from 0 to 1G"]),
    (&["--udp-buffer=64kb"], &["--udp-buffer", "\"64kb\"", "64k"]),
    (&["--client-socket-sndbuf=-1"], &["--client-socket-sndbuf", "\"-1\"", "bytes"]),
    (&["--dns=127.0.0.1:0"], &["--dns", "\"127.0.0.1:0\"", "from 1 to 65535"]),
    (&["--dns=8.8.8.8"], &["--dns", "\"8.8.8.8\"", "ADDR:PORT"]),
    (&["--allow=10.1.2.3/8"], &["--allow", "\"10.1.2.3/8\"", "10.0.0.0/8"]),
    (&["--deny=::/129"], &["--deny", "\"::/129\"", "from 0 to 128"]),
    (&["--deny=everything"], &["--deny", "\"everything\"", "ADDR/LEN"]),
    (&["--deny-private=yes"], &["--deny-private", "\"yes\"", "takes no value"]),
    (&["--daemon", "--daemon"], &["--daemon", "only once"]),
    (&["--local-udp-addrs", "127.0.0.1:5000"], &["--local-udp-addrs", "ADDR:PORT N"]),
    (
        &["--local-udp-addrs", "127.0.0.1:65535", "2"],
        &["--local-udp-addrs", "\"127.0.0.1:65535 2\"", "from 1 to 1"],
    ),
    (&["--local-udp-addrs", "[::1]:5000", "2"], &["--local-udp-addrs", "\"[::1]:5000 2\"", "IPv4"]),
    (
        &["--local-udp-ip6-addrs", "127.0.0.1:5000", "2"],
        &["--local-udp-ip6-addrs", "127.0.0.1:5000", "IPv6"],
    ),
    (&["--tls-cert=c.pem"], &["--tls-cert", "\"c.pem\"", "--tls-key"]),
    (&["--tls-key=k.pem"], &["--tls-key", "\"k.pem\"", "--tls-cert"]),
    (&["--tls-client-ca=a.pem"], &["--tls-client-ca", "\"a.pem\"", "--tls-cert and --tls-key"]),
    (&["--log-level=loud"], &["--log-level", "\"loud\"", "error, warning"]),
    (&["--loglevel=6"], &["--log-level", "\"6\"", "0 to 5"]),
    (&["--loglevel=1", "--log-level=error"], &["--log-level", "only once"]),
    (&["--logger=journal"], &["--logger", "\"journal\"", "stdout, syslog"]),
    (&["--log-file=f", "--log-syslog"], &["--log-file", "\"f\"", "--log-syslog"]),
    (&["--syslog-facility=kern"], &["--syslog-facility", "\"kern\"", "local0 to local7"]),
    (&["--channel-loglevel", "udpgw", "x"], &["--channel-loglevel", "\"udpgw x\"", "CHANNEL"]),
    (&["--metrics=9100"], &["--metrics", "\"9100\"", "ADDR:PORT"]),
    (&["--listen-addr=\u{1b}[31m\n127.0.0.1:1"], &["--listen-addr", "\\u{1b}", "ADDR:PORT"]),
];

#[test]
fn every_wrong_argument_is_one_line_and_exit_2() {
    for (args, parts) in WRONG {
        let output = run(&[&["udpgw"][..], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        let line = only_line(&output);
        assert!(line.starts_with("udpferry: "), "{args:?}: {line}");
        for part in *parts {
            assert!(line.contains(part), "{args:?}: no {part} in: {line}");
        }
    }
    let seventeen: Vec<String> = (1..=17).map(|n| format!("--listen-addr=127.0.0.1:{n}")).collect();
    let mut args = vec!["udpgw"];
    args.extend(seventeen.iter().map(String::as_str));
    let output = run(&args);
    assert_eq!(output.status.code(), Some(2));
    assert!(only_line(&output).ends_with("--listen-addr: may be given at most 16 times"));
}

/// A program with `input` as its standard input, a file.
fn fed(path: &Path, args: &[&str], input: &[u8]) -> Output {
    let file = Scratch::new();
    std::fs::write(file.path("input"), input).unwrap();
    let input = std::fs::File::open(file.path("input")).unwrap();
    Command::new(path).args(args).stdin(input).output().unwrap()
}

#[test]
fn keys_are_those_of_wireguards_own_tool() {
    let wg = program("wg");
    let ours = |args: &[&str], input: &str| text(&fed(UDPFERRY.as_ref(), args, input.as_bytes()));
    let theirs = |args: &[&str], input: &str| text(&fed(&wg, args, input.as_bytes()));
    let mut made = std::collections::HashSet::new();
    for _ in 0..8 {
        let key = ours(&["keygen"], "");
        // A line of 44 characters, as wg writes and reads it.
        assert_eq!(ours(&["pubkey"], &key), theirs(&["pubkey"], &key), "{key}");
        assert!(key.len() == 45 && made.insert(key));
        let key = theirs(&["genkey"], "");
        assert_eq!(ours(&["pubkey"], &key), theirs(&["pubkey"], &key), "{key}");
    }
    for wrong in ["", "key\n", &format!("{}B=\n", "A".repeat(42)), &"A".repeat(44)] {
        assert!(!fed(&wg, &["pubkey"], wrong.as_bytes()).status.success(), "{wrong}");
        let output = fed(UDPFERRY.as_ref(), &["pubkey"], wrong.as_bytes());
        assert_eq!(output.status.code(), Some(1), "{wrong}: {output:?}");
        let line = only_line(&output);
        assert!(line.contains("private key") && line.contains("44 characters"), "{line}");
    }
}

#[test]
fn a_key_that_everybody_may_read_is_warned_of() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    for (mode, warned) in [(0o600, false), (0o640, false), (0o644, true)] {
        let file = std::fs::File::create(scratch.path("key")).unwrap();
        file.set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
        let output = Command::new(UDPFERRY).arg("keygen").stdout(file).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.contains("umask 077"), warned, "{mode:o}: {said}");
        assert_eq!(std::fs::read(scratch.path("key")).unwrap().len(), 45);
    }
}

#[test]
fn wrong_commands_are_one_line_and_exit_2() {
    for (args, parts) in [
        (&["udpwg"][..], &["\"udpwg\"", "udpgw"][..]),
        (&["help", "nothing"], &["\"nothing\"", "udpgw"]),
        (&["man"], &["udpgw"]),
        (&["man", "nothing"], &["\"nothing\"", "udpgw"]),
        (&["completions"], &["completions bash"]),
        (&["completions", "fish"], &["\"fish\"", "completions bash"]),
        (&["check"], &["check", "role"]),
        (&["check", "nothing"], &["\"nothing\"", "role"]),
        (&["selftest", "word"], &["\"word\""]),
        (&["keygen", "word"], &["\"word\""]),
        (&["pubkey", "--secret"], &["--secret"]),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        let line = only_line(&output);
        for part in parts {
            assert!(line.contains(part), "{args:?}: no {part} in: {line}");
        }
    }
}

#[test]
fn a_failed_start_is_one_line_and_exit_1() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap().to_string();
    let free = format!("--listen-addr=127.0.0.1:{}", free_port());
    let listen_taken = format!("--listen-addr={taken}");
    let metrics_taken = format!("--metrics={taken}");
    let cases: &[(&[&str], &[&str])] = &[
        (&[&listen_taken], &["cannot listen on tcp", &taken, "in use"]),
        (&["--listen-addr=192.0.2.1:7300"], &["cannot listen on tcp", "192.0.2.1:7300"]),
        (&[&free, &metrics_taken], &["metrics", &taken, "in use"]),
        (&[&free, "--user=no-such-user"], &["no-such-user"]),
        (&[&free, "--group=no-such-group"], &["no-such-group"]),
        (&[&free, "--log-file=/nonexistent/log"], &["/nonexistent/log"]),
        (&[&free, "--pid-file=/nonexistent/pid"], &["/nonexistent/pid"]),
        (&[&free, "--tls-cert=/nonexistent/c", "--tls-key=/nonexistent/k"], &["/nonexistent/c"]),
    ];
    for (args, parts) in cases {
        let output = run(&[&["udpgw"][..], args].concat());
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        let line = only_line(&output);
        assert!(line.starts_with("udpferry: "), "{line}");
        for part in *parts {
            assert!(line.contains(part), "{args:?}: no {part} in: {line}");
        }
    }
}

fn with_variables(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(UDPFERRY);
    command.arg("udpgw").args(args).envs(variables.iter().copied()).stdin(Stdio::null());
    command.output().unwrap()
}

#[test]
fn the_environment_stands_in_and_the_command_line_wins() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = Command::new(UDPFERRY);
    command.args(["udpgw", "--max-clients=1"]);
    command.env("UDPFERRY_LISTEN_ADDR", address.to_string()).env("UDPFERRY_ALLOW", "127.0.0.0/8");
    command.env("UDPFERRY_MAX_CLIENTS", "many").env("UDPFERRY_LOG_LEVEL", "info");
    command.env("UDPFERRY_DAEMON", "no").env("UDPFERRY_USER", "");
    let process = Process::start(command);
    let mut client = Client::over(await_listener(address));
    client.echo(1, Echo::start().address, b"by the environment");
    process.await_stderr(&format!("listening on tcp {address}"));
    let output = with_variables(&[], &[("UDPFERRY_MAX_CLIENTS", "many")]);
    assert_eq!(output.status.code(), Some(2));
    let line = only_line(&output);
    assert!(line.contains("UDPFERRY_MAX_CLIENTS: \"many\" is not allowed"), "{line}");
}

#[test]
fn a_misspelt_variable_is_refused() {
    for name in ["UDPFERRY_X", "UDPFERRY_MAXCLIENTS", "UDPFERRY_"] {
        let output = with_variables(&[], &[(name, "1")]);
        assert_eq!(output.status.code(), Some(2), "{name}: {output:?}");
        assert!(only_line(&output).contains(&format!("{name}: unknown option")), "{output:?}");
    }
    let output = with_variables(&[], &[("UDPFERRY_DENY_PRIVATE", "perhaps")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(only_line(&output).contains("UDPFERRY_DENY_PRIVATE: \"perhaps\""), "{output:?}");
}
