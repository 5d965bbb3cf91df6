use super::super::common::INFORMATION;
use super::super::table::Positional;
use super::*;

static SAMPLE: Command = Command {
    name: "check sample",
    summary: "look at a sample - twice",
    about: ".leading dot and back\\slash. A text that is long enough to be wrapped at the eightieth \
            column of the terminal.",
    positionals: &[
        Positional { name: "ADDR:PORT", help: "Where the sample is.", required: true },
        Positional { name: "MORE", help: "What else.", required: false },
    ],
    sections: &[
        (
            "Sample options",
            &[
                Opt {
                    names: &["--listen-addr"],
                    takes: Takes::One("ADDR:PORT"),
                    times_max: 16,
                    default: Some("127.0.0.1:53 [::1]:53"),
                    help: "Where to listen: IPv4 or [IPv6].",
                },
                Opt::value(&["-p", "--port"], "PORT", None, "'Quoted at the start."),
                Opt::switch(&["--daemon"], "Go away."),
                Opt {
                    names: &["--local-udp-addrs"],
                    takes: Takes::Two("ADDR:PORT", "N"),
                    times_max: 2,
                    default: None,
                    help: "A pool of source ports.",
                },
                Opt {
                    names: &["--detect"],
                    takes: Takes::Word(&["nat", "lifetime"]),
                    times_max: 1,
                    default: None,
                    help: "What to find out.",
                },
                Opt::value(&["--log-file"], "FILE", None, "A file."),
                Opt::value(&["--state-dir"], "DIR", None, "A directory."),
            ],
        ),
        ("Other options", INFORMATION),
    ],
    examples: &[(
        "udpferry check sample --listen-addr 192.0.2.1:53 --port 5000 --log-file /var/log/sample.log",
        "Looks.",
    )],
};

static PLAIN: Command = Command {
    name: "plain",
    summary: "nothing",
    about: "",
    positionals: &[],
    sections: &[],
    examples: &[],
};

const GOLDEN: &str = r"Usage: udpferry check sample [OPTIONS] ADDR:PORT [MORE]

.leading dot and back\slash. A text that is long enough to be wrapped at the
eightieth column of the terminal.

Arguments:
  ADDR:PORT  Where the sample is.
  MORE       What else.

Sample options:
      --listen-addr ADDR:PORT
                       Where to listen: IPv4 or [IPv6]. [up to 16 times]
                       [default: 127.0.0.1:53 [::1]:53]
  -p, --port PORT      'Quoted at the start.
      --daemon         Go away.
      --local-udp-addrs ADDR:PORT N
                       A pool of source ports. [up to 2 times]
      --detect[=nat|lifetime]
                       What to find out.
      --log-file FILE  A file.
      --state-dir DIR  A directory.

Other options:
  -h, --help     Print this help and exit.
  -V, --version  Print the version and exit.

Every option may also come from the environment: UDPFERRY_LISTEN_ADDR is
--listen-addr. The command line wins.

Examples:
  udpferry check sample --listen-addr 192.0.2.1:53 --port 5000 \
      --log-file /var/log/sample.log
      Looks.
";

#[test]
fn usage_is_aligned_and_wrapped() {
    assert_eq!(usage(&SAMPLE), GOLDEN);
    assert!(usage(&SAMPLE).lines().all(|line| line.chars().count() <= COLUMNS));
    assert_eq!(usage(&PLAIN), "Usage: udpferry plain\n");
}

#[test]
fn roff_escapes_what_troff_would_read() {
    let cases = [
        (".dot", "\\&.dot"),
        ("'quote", "\\&'quote"),
        ("a .b 'c", "a .b 'c"),
        ("a\n.b", "a .b"),
        ("--x-y", "\\-\\-x\\-y"),
        ("\\fBx", "\\efBx"),
        ("", ""),
    ];
    for (text, escaped) in cases {
        assert_eq!(roff(text), escaped);
    }
}

#[test]
fn man_has_every_section_and_escapes() {
    let page = man(&SAMPLE, "1.2-rc");
    let title = ".TH UDPFERRY\\-CHECK\\-SAMPLE 8 \"2026-11-21\" \"udpferry 1.2\\-rc\"";
    assert!(page.starts_with(title), "{page}");
    let sections: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix(".SH ")).collect();
    let expected = [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        "ENVIRONMENT",
        "SIGNALS",
        "EXIT STATUS",
        "EXAMPLES",
        "SEE ALSO",
    ];
    assert_eq!(sections, expected);
    for line in [
        "udpferry\\-check\\-sample \\- look at a sample \\- twice",
        ".SS \"Sample options\"",
        "\\fB\\-p\\fR, \\fB\\-\\-port\\fR \\fIPORT\\fR",
        "\\&'Quoted at the start.",
        "\\fB\\-\\-local\\-udp\\-addrs\\fR \\fIADDR:PORT N\\fR",
        "\\fB\\-\\-detect\\fR[=\\fInat|lifetime\\fR]",
        "May be given up to 16 times.",
        "Default: 127.0.0.1:53 [::1]:53.",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
    assert!(page.contains("\n\\&.leading dot and back\\eslash."), "{page}");
    // Requests are known macros; nothing else begins with a dot.
    let known = [".TH", ".SH", ".SS", ".TP", ".B", ".BI", ".BR"];
    let mut requests = page.lines().filter(|line| line.starts_with(['.', '\'']));
    assert!(requests.all(|line| line.split(' ').next().is_some_and(|word| known.contains(&word))));
    let plain = man(&PLAIN, "1");
    assert!(!plain.contains("SIGNALS") && !plain.contains("ENVIRONMENT"));
    assert!(!plain.contains(".SH OPTIONS") && plain.contains(".SH EXIT STATUS"));
}

#[test]
fn completions_know_words_options_and_files() {
    let script = bash_completions(&[&PLAIN, &SAMPLE], &[("old-sample", "check sample")]);
    for line in [
        "        'old-sample') command='check sample' ;;",
        "            1:*) subcommands='plain check' ;;",
        "            *:'plain') command='plain' ;;",
        "            2:'check') subcommands='sample' ;;",
        "            *:'check') command=\"check ${words[2]}\" ;;",
        "            files=' --log-file '",
        "            dirs=' --state-dir '",
        "            pairs=' --local-udp-addrs '",
        "            case ${words[count - 1]} in --detect) options+='nat lifetime ' ;; esac ;;",
        "            values=' --listen-addr -p --port --local-udp-addrs --log-file --state-dir '",
        "complete -F _udpferry udpferry 'old-sample'",
    ] {
        assert!(script.lines().any(|found| found == line), "{line}\n{script}");
    }
}
