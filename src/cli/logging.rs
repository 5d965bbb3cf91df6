//! Where log lines go. simplelog does the locking and the dispatch; this module writes the line
//! (`2026-11-21T03:04:05.678Z error message`), escapes what could forge one, and adds the sinks
//! that simplelog lacks: journald's stderr and syslog(3).
//!
//! A sink that fails (closed pipe, full disk) loses lines and nothing else.

use std::ffi::CString;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::syslog::{Facility, LogFlags, Priority, Severity};
use simplelog::{CombinedLogger, Config, ConfigBuilder, SharedLogger, WriteLogger};

/// What is logged, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// The level of every target that no channel names.
    pub level: LevelFilter,
    /// Levels of targets and of those below them: `udpgw` means `udpgw`, `udpgw::client` and
    /// `udpferry::roles::udpgw`. The one with the most path elements counts, then the last.
    pub channels: Vec<(String, LevelFilter)>,
    /// Where the lines go.
    pub sink: Sink,
}

/// Where log lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sink {
    /// Standard error; for journald when `JOURNAL_STREAM` is set.
    Stderr,
    /// Standard output.
    Stdout,
    /// The end of this file, which is created with mode 0640 when it is missing.
    File(PathBuf),
    /// syslog(3), which connects to /dev/log and reconnects by itself.
    Syslog {
        /// The facility of every line.
        facility: Facility,
        /// The name in front of every line.
        ident: String,
    },
}

/// Reopens the log file; cheap to clone.
#[derive(Debug, Clone)]
pub struct LogHandle {
    file: Option<(PathBuf, Arc<Mutex<File>>)>,
}

/// Installs the logger of this process. Fails when the log file cannot be opened (the error names
/// it), when the syslog name holds a NUL, or when a logger is installed already.
pub fn start(config: &LogConfig) -> io::Result<LogHandle> {
    let journal = std::env::var_os("JOURNAL_STREAM").is_some_and(|value| !value.is_empty());
    let (logger, handle) = build(config, journal)?;
    CombinedLogger::init(vec![logger]).map_err(|_| {
        io::Error::new(io::ErrorKind::AlreadyExists, "a logger is installed already")
    })?;
    Ok(handle)
}

impl LogHandle {
    /// The absolute path of the log file; `None` when the log goes elsewhere.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|(path, _)| path.as_path())
    }

    /// Opens the log file anew, as after logrotate has moved it. When that fails the old file
    /// stays in use. Without a log file there is nothing to do.
    pub fn reopen(&self) -> io::Result<()> {
        if let Some((path, file)) = &self.file {
            let opened = open(path)?;
            *file.lock().unwrap_or_else(PoisonError::into_inner) = opened;
        }
        Ok(())
    }
}

fn build(config: &LogConfig, journal: bool) -> io::Result<(Box<dyn SharedLogger>, LogHandle)> {
    let levels = Levels { default: config.level, channels: config.channels.clone() };
    let mut handle = LogHandle { file: None };
    let (stamp, output) = match &config.sink {
        Sink::Stderr if journal => (Stamp::Priority, Output::Stream(Box::new(io::stderr()))),
        Sink::Stderr => (Stamp::Time, Output::Stream(Box::new(io::stderr()))),
        Sink::Stdout => (Stamp::Time, Output::Stream(Box::new(io::stdout()))),
        Sink::File(path) => {
            // A daemon changes its directory; SIGHUP must find the same file.
            let path = std::path::absolute(path)?;
            let file = Arc::new(Mutex::new(open(&path)?));
            handle.file = Some((path, Arc::clone(&file)));
            (Stamp::Time, Output::File(file))
        }
        Sink::Syslog { facility, ident } => {
            let ident = CString::new(ident.as_str())?;
            // syslog(3) keeps the pointer for the life of the process.
            nix::syslog::openlog(
                Some(Box::leak(ident.into_boxed_c_str())),
                LogFlags::LOG_PID,
                *facility,
            )?;
            return Ok((Box::new(Syslog { levels, facility: *facility }), handle));
        }
    };
    Ok((Lines::boxed(levels, stamp, output), handle))
}

fn open(path: &Path) -> io::Result<File> {
    // 0640: the lines hold the addresses of clients.
    let opened = OpenOptions::new().create(true).append(true).mode(0o640).open(path);
    opened.map_err(|error| {
        io::Error::new(error.kind(), format!("cannot open log file {}: {error}", path.display()))
    })
}

/// Which targets log at which level.
struct Levels {
    default: LevelFilter,
    channels: Vec<(String, LevelFilter)>,
}

impl Levels {
    fn of(&self, target: &str) -> LevelFilter {
        let target: Vec<&str> = target.split("::").collect();
        let mut best = (0, self.default);
        for (channel, level) in &self.channels {
            let channel: Vec<&str> = channel.split("::").collect();
            let named = target.windows(channel.len()).any(|window| window == channel);
            if named && channel.len() >= best.0 {
                best = (channel.len(), *level);
            }
        }
        best.1
    }

    /// The most that any target logs, for `log::set_max_level`.
    fn max(&self) -> LevelFilter {
        self.channels.iter().map(|(_, level)| *level).fold(self.default, Ord::max)
    }
}

/// What stands before the message.
#[derive(Clone, Copy)]
enum Stamp {
    /// The time and the level.
    Time,
    /// `<3>`, as sd-daemon(3) has it; journald knows the time.
    Priority,
}

/// Lines into a stream or a file.
struct Lines {
    levels: Levels,
    stamp: Stamp,
    inner: Box<WriteLogger<Whole>>,
}

impl Lines {
    fn boxed(levels: Levels, stamp: Stamp, output: Output) -> Box<Lines> {
        let whole = Whole { line: Vec::new(), output };
        let inner = WriteLogger::new(LevelFilter::Trace, bare(), whole);
        Box::new(Lines { levels, stamp, inner })
    }
}

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.levels.of(metadata.target())
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = match self.stamp {
            Stamp::Time => {
                format!("{} {} ", timestamp(SystemTime::now()), level_name(record.level()))
            }
            Stamp::Priority => format!("<{}>", severity(record.level()) as i32),
        };
        escape_into(&mut line, &record.args().to_string());
        let level = record.level();
        self.inner.log(&Record::builder().level(level).args(format_args!("{line}")).build());
    }

    fn flush(&self) {
        self.inner.flush();
    }
}

impl SharedLogger for Lines {
    fn level(&self) -> LevelFilter {
        self.levels.max()
    }

    fn config(&self) -> Option<&Config> {
        None
    }

    fn as_log(self: Box<Self>) -> Box<dyn Log> {
        self
    }
}

/// simplelog adds nothing to the line: its timestamps cannot have milliseconds without the `time`
/// crate, and its level is in brackets.
fn bare() -> Config {
    ConfigBuilder::new()
        .set_time_level(LevelFilter::Off)
        .set_max_level(LevelFilter::Off)
        .set_thread_level(LevelFilter::Off)
        .set_target_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        .build()
}

/// Gathers the pieces that simplelog writes, so that a line is one write(2) and lines of several
/// processes do not mix. Never fails.
struct Whole {
    line: Vec<u8>,
    output: Output,
}

enum Output {
    Stream(Box<dyn Write + Send>),
    File(Arc<Mutex<File>>),
}

impl Write for Whole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        if self.line.ends_with(b"\n") {
            // There is nowhere left to report a log that cannot be written.
            let _ = match &mut self.output {
                Output::Stream(stream) => {
                    stream.write_all(&self.line).and_then(|()| stream.flush())
                }
                Output::File(file) => {
                    file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&self.line)
                }
            };
            self.line.clear();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lines to syslog(3).
struct Syslog {
    levels: Levels,
    facility: Facility,
}

impl Log for Syslog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.levels.of(metadata.target())
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let mut line = String::new();
            escape_into(&mut line, &record.args().to_string());
            let priority = Priority::new(severity(record.level()), self.facility);
            // Fails only on a NUL, which is escaped.
            let _ = nix::syslog::syslog(priority, &line);
        }
    }

    fn flush(&self) {}
}

impl SharedLogger for Syslog {
    fn level(&self) -> LevelFilter {
        self.levels.max()
    }

    fn config(&self) -> Option<&Config> {
        None
    }

    fn as_log(self: Box<Self>) -> Box<dyn Log> {
        self
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

fn severity(level: Level) -> Severity {
    match level {
        Level::Error => Severity::LOG_ERR,
        Level::Warn => Severity::LOG_WARNING,
        Level::Info => Severity::LOG_INFO,
        Level::Debug | Level::Trace => Severity::LOG_DEBUG,
    }
}

/// Appends the message without anything that ends a line, drives a terminal or turns text around:
/// peers choose some of its bytes.
fn escape_into(line: &mut String, message: &str) {
    for char in message.chars() {
        let separates = matches!(char, '\u{2028}' | '\u{2029}');
        let turns = matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if char.is_control() || separates || turns {
            line.extend(char.escape_default());
        } else {
            line.push(char);
        }
    }
}

/// RFC 3339 in UTC with milliseconds; a clock before 1970 shows as 1970.
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days: years begin
    // in March, eras of 400 years have 146097 days, and day 0 is 719468 days after 0000-03-01.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut text = String::with_capacity(24);
    // Writing to a String does not fail.
    let _ = write!(text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    let _ = write!(text, ".{:03}Z", since.subsec_millis());
    text
}

#[cfg(test)]
mod tests;
