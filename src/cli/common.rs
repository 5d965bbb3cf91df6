//! The options that every role has: logging, metrics, privileges and daemons.

use std::net::SocketAddr;
use std::path::PathBuf;

use log::LevelFilter;
use nix::syslog::Facility;

use super::flags::{Matches, UsageError};
use super::logging::{LogConfig, Sink};
use super::table::{Opt, Takes};
use super::values::{choice, endpoint, text};

const HELP: Opt = Opt::switch(&["-h", "--help"], "Print this help and exit.");

const VERSION: Opt = Opt::switch(&["-V", "--version"], "Print the version and exit.");

/// `--help` and `--version`, for commands that need no other common option.
pub const INFORMATION: &[Opt] = &[HELP, VERSION];

/// The rows of the common options, for the last section of a role's table.
pub const COMMON: &[Opt] = &[
    Opt::value(
        &["--log-level", "--loglevel"],
        "LEVEL",
        Some("error"),
        "What is logged: none, error, warning, info or debug; also warn, badvpn's notice (which \
         is info here) and its numbers 0 (none) to 5 (debug).",
    ),
    Opt::value(
        &["--log-file"],
        "FILE",
        None,
        "Log to the end of this file, which SIGHUP reopens. Without it the log goes to standard \
         error.",
    ),
    Opt::switch(&["--log-syslog"], "Log to syslog."),
    Opt::value(&["--logger"], "SINK", None, "As badvpn: stdout or syslog (which is --log-syslog)."),
    Opt::value(
        &["--syslog-facility"],
        "NAME",
        Some("daemon"),
        "The syslog facility: auth, daemon, lpr, mail, news, syslog, user, uucp, local0 to \
         local7; authpriv is taken as auth, cron and ftp as daemon.",
    ),
    Opt::value(
        &["--syslog-ident"],
        "NAME",
        None,
        "The name in front of each line in syslog; without it, the name of the command.",
    ),
    Opt {
        names: &["--channel-loglevel"],
        takes: Takes::Two("CHANNEL", "LEVEL"),
        times_max: 64,
        default: None,
        help: "Another log level for one part of the program, for example udpgw. badvpn's \
               channel names are accepted and have no effect.",
    },
    Opt::value(
        &["--metrics"],
        "ADDR:PORT",
        None,
        "Serve Prometheus metrics at /metrics and a health check at /healthz over HTTP.",
    ),
    Opt::value(&["--user"], "NAME", None, "Run as this user once sockets and devices are open."),
    Opt::value(&["--group"], "NAME", None, "Run as this group once sockets and devices are open."),
    Opt::value(&["--pid-file"], "FILE", None, "Write the process id to this file."),
    Opt::switch(&["--daemon"], "Go to the background once everything is open."),
    HELP,
    VERSION,
];

/// The values of [`COMMON`].
#[derive(Debug, Clone)]
pub struct Common {
    /// For [`super::logging::start`].
    pub log: LogConfig,
    /// Where to serve metrics.
    pub metrics: Option<SocketAddr>,
    /// The user to become, by name.
    pub user: Option<String>,
    /// The group to become, by name.
    pub group: Option<String>,
    /// Where to write the process id.
    pub pid_file: Option<PathBuf>,
    /// Whether to go to the background.
    pub daemon: bool,
}

/// Reads the common options of a command whose table holds [`COMMON`]. Fails on a value that is
/// not allowed, and on options that send the log to two places.
pub fn common(m: &Matches) -> Result<Common, UsageError> {
    let channel = |name: &str, level: &str| {
        let level = log_level(level).map_err(|allowed| format!("CHANNEL and {allowed}"))?;
        Ok((name.to_owned(), level))
    };
    Ok(Common {
        log: LogConfig {
            level: m.required("--log-level", log_level)?,
            channels: m.pairs("--channel-loglevel", channel)?,
            sink: sink(m)?,
        },
        metrics: m.one("--metrics", endpoint)?,
        user: m.one("--user", text)?,
        group: m.one("--group", text)?,
        pid_file: m.path("--pid-file"),
        daemon: m.flag("--daemon"),
    })
}

fn sink(m: &Matches) -> Result<Sink, UsageError> {
    let facility = m.required("--syslog-facility", facility)?;
    let ident = match m.one("--syslog-ident", text)? {
        Some(ident) => ident,
        None => m.command_name().to_owned(),
    };
    let logger = m.one("--logger", choice(&["stdout", "syslog"]))?;
    let file = m.path("--log-file");
    match (file, m.flag("--log-syslog"), logger) {
        (Some(_), true, _) => Err(m.wrong("--log-file", "it excludes --log-syslog")),
        (Some(_), _, Some(_)) => Err(m.wrong("--log-file", "it excludes --logger")),
        (None, true, Some("stdout")) => Err(m.wrong("--logger", "syslog beside --log-syslog")),
        (Some(path), false, None) => Ok(Sink::File(path)),
        (None, true, _) | (None, false, Some("syslog")) => Ok(Sink::Syslog { facility, ident }),
        (None, false, Some(_)) => Ok(Sink::Stdout),
        (None, false, None) => Ok(Sink::Stderr),
    }
}

/// The levels of `--log-level`. badvpn's numbers and its notice are those of its
/// `base/BLog.h`: a start and a stop are notices there and information here.
fn log_level(text: &str) -> Result<LevelFilter, String> {
    match text {
        "0" | "none" => Ok(LevelFilter::Off),
        "1" | "error" => Ok(LevelFilter::Error),
        "2" | "warning" | "warn" => Ok(LevelFilter::Warn),
        "3" | "notice" | "4" | "info" => Ok(LevelFilter::Info),
        "5" | "debug" => Ok(LevelFilter::Debug),
        _ => Err("one of none, error, warning, notice, info, debug, or 0 to 5".to_owned()),
    }
}

/// The facilities that badvpn takes, and the rest of syslog(3)'s for daemons. The safe binding
/// knows no `LOG_AUTHPRIV`, `LOG_CRON` and `LOG_FTP`; scripts that name them still run.
fn facility(text: &str) -> Result<Facility, String> {
    Ok(match text {
        "auth" | "authpriv" => Facility::LOG_AUTH,
        "daemon" | "cron" | "ftp" => Facility::LOG_DAEMON,
        "lpr" => Facility::LOG_LPR,
        "mail" => Facility::LOG_MAIL,
        "news" => Facility::LOG_NEWS,
        "syslog" => Facility::LOG_SYSLOG,
        "user" => Facility::LOG_USER,
        "uucp" => Facility::LOG_UUCP,
        "local0" => Facility::LOG_LOCAL0,
        "local1" => Facility::LOG_LOCAL1,
        "local2" => Facility::LOG_LOCAL2,
        "local3" => Facility::LOG_LOCAL3,
        "local4" => Facility::LOG_LOCAL4,
        "local5" => Facility::LOG_LOCAL5,
        "local6" => Facility::LOG_LOCAL6,
        "local7" => Facility::LOG_LOCAL7,
        _ => {
            return Err("a facility such as daemon, user, auth, or local0 to local7".to_owned());
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::flags::{Parsed, parse};
    use super::super::table::Command;
    use super::*;

    static SAMPLE: Command = Command {
        name: "sample",
        summary: "a sample",
        about: "",
        positionals: &[],
        sections: &[("Common options", COMMON)],
        examples: &[],
    };

    fn read(args: &[&str]) -> Result<Common, UsageError> {
        let args = args.iter().map(std::ffi::OsString::from).collect();
        match parse(&SAMPLE, args, &|_| None)? {
            Parsed::Run(matches) => common(&matches),
            other => panic!("{other:?}"),
        }
    }

    fn said(args: &[&str]) -> String {
        read(args).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_errors_on_stderr() {
        let common = read(&[]).unwrap();
        let log = LogConfig { level: LevelFilter::Error, channels: Vec::new(), sink: Sink::Stderr };
        assert_eq!(common.log, log);
        assert_eq!((common.metrics, common.user, common.group), (None, None, None));
        assert_eq!((common.pid_file, common.daemon), (None, false));
    }

    #[test]
    fn every_option_arrives() {
        let common = read(&[
            "--metrics=[::1]:9100",
            "--user=nobody",
            "--group",
            "nogroup",
            "--pid-file=/run/x.pid",
            "--daemon",
            "--log-file=/var/log/x",
        ])
        .unwrap();
        assert_eq!(common.metrics, "[::1]:9100".parse().ok());
        assert_eq!(common.user.as_deref(), Some("nobody"));
        assert_eq!(common.group.as_deref(), Some("nogroup"));
        assert_eq!(common.pid_file, Some(PathBuf::from("/run/x.pid")));
        assert!(common.daemon);
        assert_eq!(common.log.sink, Sink::File("/var/log/x".into()));
    }

    #[test]
    fn levels_are_ours_and_badvpns() {
        let cases = [
            ("none", LevelFilter::Off),
            ("0", LevelFilter::Off),
            ("error", LevelFilter::Error),
            ("1", LevelFilter::Error),
            ("warning", LevelFilter::Warn),
            ("warn", LevelFilter::Warn),
            ("2", LevelFilter::Warn),
            ("notice", LevelFilter::Info),
            ("3", LevelFilter::Info),
            ("info", LevelFilter::Info),
            ("4", LevelFilter::Info),
            ("debug", LevelFilter::Debug),
            ("5", LevelFilter::Debug),
        ];
        for (text, level) in cases {
            assert_eq!(read(&["--loglevel", text]).unwrap().log.level, level, "{text}");
        }
        for wrong in ["6", "-1", "ERROR", "trace"] {
            assert!(said(&["--loglevel", wrong]).starts_with("--log-level: "), "{wrong}");
        }
    }

    #[test]
    fn channels_are_pairs_of_name_and_level() {
        let args = ["--channel-loglevel", "udpgw", "5", "--channel-loglevel", "BReactor", "none"];
        let expected =
            [("udpgw".to_owned(), LevelFilter::Debug), ("BReactor".to_owned(), LevelFilter::Off)];
        assert_eq!(read(&args).unwrap().log.channels, expected);
        assert_eq!(
            said(&["--channel-loglevel", "udpgw", "loud"]),
            "--channel-loglevel: \"udpgw loud\" is not allowed: CHANNEL and one of none, error, \
             warning, notice, info, debug, or 0 to 5"
        );
    }

    #[test]
    fn syslog_has_two_names_and_its_settings() {
        let syslog = |facility, ident: &str| Sink::Syslog { facility, ident: ident.to_owned() };
        let sink = |args: &[&str]| read(args).unwrap().log.sink;
        assert_eq!(sink(&["--log-syslog"]), syslog(Facility::LOG_DAEMON, "sample"));
        assert_eq!(sink(&["--logger", "syslog"]), syslog(Facility::LOG_DAEMON, "sample"));
        let args = ["--logger=syslog", "--syslog-facility=local3", "--syslog-ident=gw"];
        assert_eq!(sink(&args), syslog(Facility::LOG_LOCAL3, "gw"));
        assert_eq!(sink(&["--log-syslog", "--logger=syslog"]), sink(&["--log-syslog"]));
        assert_eq!(sink(&["--logger=stdout"]), Sink::Stdout);
        assert!(said(&["--syslog-facility=x"]).starts_with("--syslog-facility: \"x\""));
        assert!(said(&["--logger=journal"]).ends_with("one of stdout, syslog"));
    }

    #[test]
    fn the_log_has_one_place() {
        assert_eq!(
            said(&["--log-file=x", "--log-syslog"]),
            "--log-file: \"x\" is not allowed: it excludes --log-syslog"
        );
        assert!(said(&["--log-file=x", "--logger=syslog"]).ends_with("it excludes --logger"));
        assert!(said(&["--log-file=x", "--logger=stdout"]).ends_with("it excludes --logger"));
        assert!(said(&["--log-syslog", "--logger=stdout"]).starts_with("--logger: \"stdout\""));
    }
}
