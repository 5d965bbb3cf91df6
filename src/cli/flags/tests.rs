use super::super::table::Positional;
use super::super::values::{number, text};
use super::spelling::edit_distance;
use super::*;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

const OPTIONS: &[Opt] = &[
    Opt::value(&["-p", "--port"], "PORT", Some("53"), "Port."),
    Opt::value(&["-dp", "--dest-port"], "PORT", None, "Port."),
    Opt::value(&["--log-level", "--loglevel"], "LEVEL", None, "Level."),
    Opt::value(&["--log-file", "-f"], "FILE", None, "File."),
    Opt {
        names: &["--listen-addr"],
        takes: Takes::One("ADDR:PORT"),
        times_max: 3,
        default: Some("a:1 b:2"),
        help: "Listeners.",
    },
    Opt {
        names: &["--local-udp-addrs"],
        takes: Takes::Two("ADDR:PORT", "N"),
        times_max: 2,
        default: None,
        help: "Pool.",
    },
    Opt::switch(&["-d", "--daemon", "--background"], "Daemon."),
    Opt {
        names: &["--detect"],
        takes: Takes::Word(&["nat", "lifetime"]),
        times_max: 1,
        default: None,
        help: "What.",
    },
    Opt::switch(&["-b", "--quick"], "Quick."),
    Opt::switch(&["-V", "--version"], "Version."),
];

const COMMAND: Command = Command {
    name: "sample",
    summary: "a sample",
    about: "",
    positionals: &[
        Positional { name: "ADDR", help: "Where to.", required: true },
        Positional { name: "MORE", help: "More.", required: false },
    ],
    sections: &[("Options", OPTIONS)],
    examples: &[],
};

static SAMPLE: Command = COMMAND;
static PLAIN: Command = Command { name: "plain", positionals: &[], ..COMMAND };

#[test]
fn a_word_may_be_left_out() {
    let word = |args: &[&str], env: Env<'_>| {
        let matches = run_env(args, env);
        (matches.one("--detect", text).unwrap(), matches.flag("--daemon"))
    };
    let (nat, lifetime) = (Some("nat".to_owned()), Some("lifetime".to_owned()));
    assert_eq!(word(&[], &[]), (None, false));
    assert_eq!(word(&["--detect"], &[]), (nat.clone(), false));
    assert_eq!(word(&["--detect", "-d"], &[]), (nat.clone(), true));
    assert_eq!(word(&["--detect", "--daemon"], &[]), (nat.clone(), true));
    assert_eq!(word(&["--detect", "nat", "-d"], &[]), (nat, true));
    assert_eq!(word(&["-d", "--detect", "lifetime"], &[]), (lifetime.clone(), true));
    assert_eq!(word(&["--detect=lifetime"], &[]), (lifetime.clone(), false));
    assert_eq!(word(&[], &[("UDPFERRY_DETECT", "lifetime")]), (lifetime, false));
    // Whoever reads it says what is allowed.
    assert_eq!(word(&["--detect=what"], &[]).0.as_deref(), Some("what"));
    for (args, error) in [
        (&["--detect="][..], "--detect: needs a value: nat|lifetime"),
        (&["--detect", "--detect"], "--detect: may be given only once"),
        (&["--detect", "what"], "\"what\" is not allowed: no further argument is expected"),
    ] {
        assert_eq!(read(&PLAIN, args, &[]).unwrap_err().to_string(), error);
    }
}

type Env<'a> = &'a [(&'a str, &'a str)];

fn read(command: &'static Command, args: &[&str], env: Env<'_>) -> Result<Parsed, UsageError> {
    let args = args.iter().map(OsString::from).collect();
    parse(command, args, &|name| {
        env.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
    })
}

fn run_env(args: &[&str], env: Env<'_>) -> Matches {
    match read(&PLAIN, args, env) {
        Ok(Parsed::Run(matches)) => matches,
        other => panic!("{args:?}: {other:?}"),
    }
}

fn run(args: &[&str]) -> Matches {
    run_env(args, &[])
}

fn error(args: &[&str]) -> UsageError {
    read(&PLAIN, args, &[]).unwrap_err()
}

fn said(args: &[&str]) -> String {
    error(args).to_string()
}

fn one(matches: &Matches, name: &str) -> Option<String> {
    matches.one(name, text).unwrap()
}

fn many(matches: &Matches, name: &str) -> Vec<String> {
    matches.many(name, text).unwrap()
}

fn pairs(matches: &Matches) -> Vec<String> {
    matches.pairs("--local-udp-addrs", |a, b| Ok(format!("{a}+{b}"))).unwrap()
}

#[test]
fn both_forms_and_every_spelling_work() {
    for args in [&["--port", "7"][..], &["--port=7"], &["-p", "7"], &["-p=7"]] {
        assert_eq!(one(&run(args), "--port").as_deref(), Some("7"), "{args:?}");
    }
    for args in [&["-dp", "5000"][..], &["-dp=5000"], &["--dest-port", "5000"]] {
        let matches = run(args);
        assert_eq!(one(&matches, "--dest-port").as_deref(), Some("5000"));
        assert!(!matches.given("--daemon") && !matches.given("--port"));
    }
    assert_eq!(one(&run(&["--loglevel", "info"]), "--log-level").as_deref(), Some("info"));
    assert!(run(&["--background"]).flag("--daemon"));
    assert!(!run(&[]).flag("--daemon"));
}

#[test]
fn values_may_be_attached_to_short_options() {
    for (args, port) in [(&["-p5000"][..], "5000"), (&["-p-1"], "-1"), (&["-pa=b"], "a=b")] {
        assert_eq!(one(&run(args), "--port").as_deref(), Some(port), "{args:?}");
    }
    // The longer option has the word, as when it stands alone.
    let matches = run(&["-dp5000"]);
    assert_eq!(one(&matches, "--dest-port").as_deref(), Some("5000"));
    assert!(!matches.given("--daemon") && !matches.given("--port"));
    for args in [&["-bp7"][..], &["-bp", "7"], &["-bp=7"], &["-bdp7", "-p7"], &["-bd", "-p7"]] {
        let matches = run(args);
        assert!(matches.flag("--quick"), "{args:?}");
        assert_eq!(one(&matches, "--port").as_deref(), Some("7"), "{args:?}");
    }
    assert!(run(&["-bd"]).flag("--daemon"));

    let wrong = run(&["-pmany"]).one("--port", number(1, 65535)).unwrap_err();
    assert_eq!(wrong.to_string(), "--port: \"many\" is not allowed: a number from 1 to 65535");
    assert_eq!(said(&["-p1", "-p2"]), "--port: may be given only once");
    assert_eq!(said(&["-bdb"]), "--quick: may be given only once");
    assert_eq!(said(&["-bp"]), "--port: needs a value: PORT");
    assert_eq!(said(&["-p--port"]), "--port: needs a value, not \"--port\": PORT");
    assert_eq!(said(&["-d5000"]), "--daemon: \"5000\" is not allowed: it takes no value");
    assert_eq!(said(&["-bx"]), "--quick: \"x\" is not allowed: it takes no value");
    assert_eq!(said(&["-bdxy"]), "--daemon: \"xy\" is not allowed: it takes no value");
    // Hidden in a word they would be passed over.
    assert_eq!(said(&["-bV"]), "--quick: \"V\" is not allowed: it takes no value");
    assert_eq!(said(&["-Vb"]), "--version: \"b\" is not allowed: it takes no value");
    let long = format!("-{}", "b".repeat(20_000));
    assert_eq!(said(&[&long]), "--quick: may be given only once");
}

#[test]
fn values_keep_their_equals_signs_and_quotes() {
    assert_eq!(one(&run(&["--log-file=a=b"]), "--log-file").as_deref(), Some("a=b"));
    assert_eq!(one(&run(&["--log-file=\"a\""]), "--log-file").as_deref(), Some("\"a\""));
    assert_eq!(one(&run(&["--log-file='a"]), "--log-file").as_deref(), Some("'a"));
}

#[test]
fn values_with_one_dash_reach_the_parser() {
    let matches = run(&["--port", "-1"]);
    let wrong = matches.one("--port", number(1, 65535)).unwrap_err();
    assert_eq!(wrong.to_string(), "--port: \"-1\" is not allowed: a number from 1 to 65535");
    // A value that spells a switch stays a value.
    let matches = run(&["--log-file", "-d", "-dp", "-p"]);
    assert_eq!(one(&matches, "--log-file").as_deref(), Some("-d"));
    assert_eq!(one(&matches, "--dest-port").as_deref(), Some("-p"));
    assert!(!matches.flag("--daemon"));
    assert_eq!(one(&run(&["--log-file", "-"]), "--log-file").as_deref(), Some("-"));
}

#[test]
fn missing_values_are_refused() {
    assert_eq!(said(&["--port="]), "--port: needs a value, not \"\": PORT");
    assert_eq!(said(&["--port", ""]), "--port: needs a value, not \"\": PORT");
    assert_eq!(said(&["--daemon", "--port"]), "--port: needs a value: PORT");
    assert_eq!(
        said(&["--log-file", "--daemon"]),
        "--log-file: needs a value, not \"--daemon\": FILE"
    );
    assert_eq!(said(&["--port=--daemon"]), "--port: needs a value, not \"--daemon\": PORT");
    assert_eq!(said(&["--port", "--", "7"]), "--port: needs a value: PORT");
    assert_eq!(
        said(&["--local-udp-addrs", "a:1"]),
        "--local-udp-addrs: needs a value: ADDR:PORT N"
    );
    assert_eq!(
        said(&["--local-udp-addrs", "a:1", "--daemon"]),
        "--local-udp-addrs: needs a value, not \"--daemon\": ADDR:PORT N"
    );
}

#[test]
fn repeats_are_refused_through_any_spelling() {
    let repeats = [
        (&["--port", "1", "-p=2"][..], "--port"),
        (&["--port", "1", "--port", "1"], "--port"),
        (&["--loglevel=info", "--log-level=info"], "--log-level"),
        (&["-d", "--daemon"], "--daemon"),
        (&["--daemon", "--background"], "--daemon"),
    ];
    for (args, option) in repeats {
        assert_eq!(error(args), UsageError::Repeated { option: option.to_owned() }, "{args:?}");
    }
    assert_eq!(said(&["-d", "-d"]), "--daemon: may be given only once");
}

#[test]
fn repeatable_options_have_a_maximum() {
    let matches = run(&["--listen-addr", "x", "-d", "--listen-addr=y", "--listen-addr", "x"]);
    assert_eq!(many(&matches, "--listen-addr"), ["x", "y", "x"]);
    let four = ["--listen-addr=1", "--listen-addr=2", "--listen-addr=3", "--listen-addr=4"];
    assert_eq!(said(&four), "--listen-addr: may be given at most 3 times");
}

#[test]
fn two_values_follow_or_one_is_attached() {
    let args = ["--local-udp-addrs", "a:1", "2", "-d", "--local-udp-addrs=b:3", "-4"];
    assert_eq!(pairs(&run(&args)), ["a:1+2", "b:3+-4"]);
    let third = [&args[..], &["--local-udp-addrs", "c", "1"]].concat();
    assert_eq!(said(&third), "--local-udp-addrs: may be given at most 2 times");
    let refused = run(&args).pairs("--local-udp-addrs", |_, _| Err::<(), _>("b".to_owned()));
    assert_eq!(refused.unwrap_err().to_string(), "--local-udp-addrs: \"a:1 2\" is not allowed: b");
}

#[test]
fn switches_take_no_value() {
    assert_eq!(said(&["--daemon=yes"]), "--daemon: \"yes\" is not allowed: it takes no value");
    assert_eq!(said(&["-d="]), "--daemon: \"\" is not allowed: it takes no value");
    assert_eq!(said(&["--help=x"]), "--help: \"x\" is not allowed: it takes no value");
}

#[test]
fn unknown_options_get_the_nearest_spelling() {
    assert_eq!(said(&["--prot", "7"]), "--prot: unknown option, did you mean --port?");
    assert_eq!(
        said(&["--listen-adr=x"]),
        "--listen-adr: unknown option, did you mean --listen-addr?"
    );
    assert_eq!(said(&["--hlp"]), "--hlp: unknown option, did you mean --help?");
    assert_eq!(said(&["--frobnicate"]), "--frobnicate: unknown option");
    assert_eq!(said(&["-x"]), "-x: unknown option");
    assert_eq!(said(&["-1"]), "-1: unknown option");
    assert_eq!(said(&["-x5000"]), "-x5000: unknown option");
    assert_eq!(said(&["-daemon"]), "-daemon: unknown option, did you mean --daemon?");
    assert_eq!(said(&["--a\u{1b}[31m\n"]), "--a\\u{1b}[31m\\n: unknown option");
}

#[test]
fn the_edit_distance_is_levenshteins() {
    let cases = [("", "", 0), ("abc", "abc", 0), ("kitten", "sitting", 3), ("abc", "", 3)];
    for (a, b, distance) in cases {
        assert_eq!((edit_distance(a, b), edit_distance(b, a)), (distance, distance), "{a} {b}");
    }
    assert_eq!(edit_distance(&"x".repeat(1000), "--port"), usize::MAX);
}

#[test]
fn help_and_version_win_before_the_dashes() {
    assert!(matches!(read(&SAMPLE, &["--bogus", "-h"], &[]), Ok(Parsed::Help)));
    assert!(matches!(read(&SAMPLE, &["--port", "--help"], &[]), Ok(Parsed::Help)));
    assert!(matches!(read(&SAMPLE, &["-V", "--help"], &[]), Ok(Parsed::Help)));
    assert!(matches!(read(&SAMPLE, &["--port=", "--version"], &[]), Ok(Parsed::Version)));
    assert!(matches!(read(&SAMPLE, &["-V"], &[]), Ok(Parsed::Version)));
    let Ok(Parsed::Run(matches)) = read(&SAMPLE, &["--", "-h", "--version"], &[]) else {
        panic!("help won after --");
    };
    assert_eq!((matches.positional(0), matches.positional(1)), (Some("-h"), Some("--version")));
}

#[test]
fn positionals_are_counted_and_split_at_the_first_dashes() {
    let Ok(Parsed::Run(matches)) = read(&SAMPLE, &["a", "-d", "--", "--"], &[]) else {
        panic!("refused");
    };
    assert_eq!((matches.positional(0), matches.positional(1)), (Some("a"), Some("--")));
    assert_eq!(matches.positional(2), None);
    assert!(matches.flag("--daemon"));
    let missing = read(&SAMPLE, &["-d"], &[]).unwrap_err();
    assert_eq!(missing.to_string(), "ADDR: is required: Where to");
    let extra = read(&SAMPLE, &["a", "b", "c"], &[]).unwrap_err();
    assert_eq!(extra, UsageError::Unexpected { value: "c".to_owned() });
    assert_eq!(said(&["x"]), "\"x\" is not allowed: no further argument is expected");
    assert_eq!(
        said(&["--", "--daemon"]),
        "\"--daemon\" is not allowed: no further argument is expected"
    );
}

#[test]
fn defaults_are_parsed_like_given_values() {
    let matches = run(&[]);
    assert_eq!(matches.required("--port", number(1, 65535)), Ok(53));
    assert_eq!(matches.one("--port", number(1, 65535)), Ok(Some(53)));
    assert_eq!(many(&matches, "--listen-addr"), ["a:1", "b:2"]);
    assert_eq!(one(&matches, "--dest-port"), None);
    assert_eq!(pairs(&matches), [""; 0]);
    assert!(!matches.given("--port"));
    assert!(run(&["--port=53"]).given("--port"));
    let wrong = matches.required("--port", number(1, 9)).unwrap_err();
    assert_eq!(wrong.to_string(), "--port: \"53\" is not allowed: a number from 1 to 9");
    let missing = matches.required("--dest-port", text).unwrap_err();
    assert_eq!(missing.to_string(), "--dest-port: is required: PORT");
}

#[test]
fn the_environment_stands_in_for_absent_options() {
    let env: Env<'_> = &[
        ("UDPFERRY_DEST_PORT", "9"),
        ("UDPFERRY_LOG_LEVEL", "info"),
        ("UDPFERRY_LISTEN_ADDR", " x:1\t y:2\n"),
        ("UDPFERRY_LOCAL_UDP_ADDRS", "a:1 2 b:3 4"),
        ("UDPFERRY_LOG_FILE", "/var/log/with blank"),
        ("UDPFERRY_PORT", ""),
        ("UDPFERRY_LOGLEVEL", "ignored"),
        ("UDPFERRY_VERSION", "1"),
    ];
    let matches = run_env(&["--log-level=debug"], env);
    assert_eq!(one(&matches, "--dest-port").as_deref(), Some("9"));
    assert!(matches.given("--dest-port"));
    assert_eq!(one(&matches, "--log-level").as_deref(), Some("debug"));
    assert_eq!(many(&matches, "--listen-addr"), ["x:1", "y:2"]);
    assert_eq!(pairs(&matches), ["a:1+2", "b:3+4"]);
    assert_eq!(matches.path("--log-file"), Some("/var/log/with blank".into()));
    assert_eq!(one(&matches, "--port").as_deref(), Some("53"));
    assert!(!matches.given("--port") && !matches.flag("--version"));
    let matches = run_env(&["--listen-addr=z:9"], env);
    assert_eq!(many(&matches, "--listen-addr"), ["z:9"]);
}

#[test]
fn what_a_hook_is_told_is_no_option() {
    let env: Env<'_> = &[
        ("UDPFERRY_HOOK", "TUN DEST_PORT DAEMON"),
        ("UDPFERRY_DEST_PORT", "9"),
        ("UDPFERRY_DAEMON", "maybe"),
        ("UDPFERRY_LOG_LEVEL", "info"),
    ];
    let matches = run_env(&[], env);
    assert_eq!(one(&matches, "--dest-port"), None);
    assert!(!matches.flag("--daemon"));
    assert_eq!(one(&matches, "--log-level").as_deref(), Some("info"), "the operator's own");
    assert_eq!(one(&run_env(&["--dest-port=8"], env), "--dest-port").as_deref(), Some("8"));
}

#[test]
fn switches_have_words_in_the_environment() {
    for on in ["1", "yes", "true", "on", "ON"] {
        let matches = run_env(&[], &[("UDPFERRY_DAEMON", on)]);
        assert!(matches.flag("--daemon") && matches.given("--daemon"), "{on}");
    }
    for off in ["0", "no", "false", "off", ""] {
        assert!(!run_env(&[], &[("UDPFERRY_DAEMON", off)]).flag("--daemon"), "{off}");
    }
    assert!(run_env(&["-d"], &[("UDPFERRY_DAEMON", "no")]).flag("--daemon"));
    let wrong = read(&PLAIN, &[], &[("UDPFERRY_DAEMON", "maybe")]).unwrap_err().to_string();
    assert!(wrong.starts_with("UDPFERRY_DAEMON: \"maybe\" is not allowed: 1, yes"), "{wrong}");
}

#[test]
fn errors_name_the_variable() {
    let matches = run_env(&[], &[("UDPFERRY_PORT", "abc")]);
    let wrong = matches.required("--port", number(1, 65535)).unwrap_err().to_string();
    assert_eq!(wrong, "UDPFERRY_PORT: \"abc\" is not allowed: a number from 1 to 65535");
    let wrong = matches.wrong("--port", "not today").to_string();
    assert_eq!(wrong, "UDPFERRY_PORT: \"abc\" is not allowed: not today");
    let wrong = |name, value| read(&PLAIN, &[], &[(name, value)]).unwrap_err().to_string();
    assert_eq!(
        wrong("UDPFERRY_LISTEN_ADDR", "1 2 3 4"),
        "UDPFERRY_LISTEN_ADDR: may be given at most 3 times"
    );
    assert_eq!(
        wrong("UDPFERRY_LOCAL_UDP_ADDRS", "a:1 2 b:3"),
        "UDPFERRY_LOCAL_UDP_ADDRS: \"a:1 2 b:3\" is not allowed: ADDR:PORT N, separated by blanks"
    );
    assert_eq!(
        wrong("UDPFERRY_LOCAL_UDP_ADDRS", "a 1 b 2 c 3"),
        "UDPFERRY_LOCAL_UDP_ADDRS: may be given at most 2 times"
    );
}

#[test]
fn only_paths_may_be_other_than_utf8() {
    let parse_bytes = |args: &[&[u8]]| {
        let args = args.iter().map(|arg| OsString::from_vec(arg.to_vec())).collect();
        match parse(&PLAIN, args, &|_| None) {
            Ok(Parsed::Run(matches)) => Ok(matches),
            Ok(_) => panic!("no run"),
            Err(error) => Err(error),
        }
    };
    for args in [&[&b"--log-file"[..], b"/\xff"][..], &[b"--log-file=/\xff"]] {
        let matches = parse_bytes(args).unwrap();
        let path = matches.path("--log-file").unwrap();
        assert_eq!(path.as_os_str().as_bytes(), b"/\xff");
        let wrong = matches.one("--log-file", text).unwrap_err().to_string();
        assert_eq!(wrong, "--log-file: \"/\u{fffd}\" is not allowed: text in UTF-8");
    }
    let matches = parse_bytes(&[b"-f/\xff"]).unwrap();
    assert_eq!(matches.path("--log-file").unwrap().as_os_str().as_bytes(), b"/\xff");
    assert!(matches!(parse_bytes(&[b"--p\xff"]), Err(UsageError::Unknown { .. })));
    assert!(matches!(parse_bytes(&[b"\xff"]), Err(UsageError::Unexpected { .. })));
}

#[test]
fn errors_are_one_short_line() {
    let matches = run(&["--log-file", &format!("\n\"\u{1b}{}", "é".repeat(5000))]);
    let wrong = matches.wrong("--log-file", "x").to_string();
    assert!(wrong.starts_with("--log-file: \"\\n\\\"\\u{1b}éé"), "{wrong}");
    assert!(wrong.ends_with("é...\" is not allowed: x"), "{wrong}");
    assert_eq!(wrong.matches('é').count(), 97);
    assert_eq!(run(&[]).wrong("--port", "y").to_string(), "--port: \"53\" is not allowed: y");
    assert_eq!(
        run(&["--listen-addr=a", "--listen-addr=b"]).wrong("--listen-addr", "y").to_string(),
        "--listen-addr: \"a b\" is not allowed: y"
    );
}

#[test]
#[should_panic(expected = "--nonsense is not in the table of plain")]
fn asking_for_what_is_not_in_the_table_is_a_mistake() {
    run(&[]).flag("--nonsense");
}

proptest::proptest! {
    /// Words from the table's own vocabulary, where the traps are, and values behind them.
    #[test]
    fn what_is_accepted_gives_back_what_was_given(
        words in proptest::collection::vec(
            "(--port|-dp|-p|-b|--daemon|--listen-addr|--local-udp-addrs|--|-h|-d|--log-file)?=?[a-z\"'-]{0,3}",
            0..8,
        ),
    ) {
        let args: Vec<&str> = words.iter().map(String::as_str).collect();
        match read(&PLAIN, &args, &[]) {
            Ok(Parsed::Run(matches)) => {
                let kept = [
                    ("f", matches.path("--log-file").map(|path| path.display().to_string())),
                    ("dp", one(&matches, "--dest-port")),
                ];
                for (short, value) in kept {
                    let Some(value) = value else { continue };
                    // A word of its own, behind `=`, or attached to the short spelling, which
                    // may share its word with a switch: `-dfa` is `-d -f a`.
                    let gives = |word: &String| {
                        word.strip_suffix(&value).is_some_and(|before| {
                            let attached = before.starts_with('-') && before.ends_with(short);
                            before.is_empty() || before.ends_with('=') || attached
                        })
                    };
                    let found = words.iter().any(gives);
                    proptest::prop_assert!(found && !value.starts_with("--"), "{value}");
                }
            }
            Ok(_) => proptest::prop_assert!(args.contains(&"-h")),
            Err(error) => proptest::prop_assert!(!error.to_string().contains('\n')),
        }
    }
}
