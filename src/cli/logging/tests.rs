use super::*;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn levels(default: LevelFilter, channels: &[(&str, LevelFilter)]) -> Levels {
    let channels = channels.iter().map(|(name, level)| ((*name).to_owned(), *level)).collect();
    Levels { default, channels }
}

fn write(logger: &dyn Log, level: Level, target: &str, message: &str) {
    let args = format_args!("{message}");
    logger.log(&Record::builder().level(level).target(target).args(args).build());
}

/// A fresh directory that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let name = format!("udpferry-logging-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn to_file(path: &Path) -> io::Result<(Box<dyn SharedLogger>, LogHandle)> {
    let sink = Sink::File(path.to_owned());
    build(&LogConfig { level: LevelFilter::Info, channels: Vec::new(), sink }, false)
}

#[test]
fn timestamps_are_rfc_3339() {
    // Seconds from `date -u -d @N`.
    let cases = [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_782_399_999, "2000-02-28T23:59:59.999Z"),
        (951_782_400_000, "2000-02-29T00:00:00.000Z"),
        (1_709_251_199_001, "2024-02-29T23:59:59.001Z"),
        (1_735_689_599_500, "2024-12-31T23:59:59.500Z"),
        (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
    ];
    for (millis, text) in cases {
        assert_eq!(timestamp(UNIX_EPOCH + Duration::from_millis(millis)), text);
    }
    assert_eq!(timestamp(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000Z");
}

#[test]
fn channels_set_targets_and_those_below() {
    let levels = levels(
        LevelFilter::Error,
        &[
            ("udpgw", LevelFilter::Debug),
            ("udpgw::client", LevelFilter::Off),
            ("pool", LevelFilter::Info),
            ("pool", LevelFilter::Warn),
        ],
    );
    let cases = [
        ("udpgw", LevelFilter::Debug),
        ("udpferry::roles::udpgw", LevelFilter::Debug),
        ("udpgw::table", LevelFilter::Debug),
        ("udpgw::client", LevelFilter::Off),
        ("udpferry::roles::udpgw::client", LevelFilter::Off),
        ("pool", LevelFilter::Warn),
        ("udpgwx", LevelFilter::Error),
        ("", LevelFilter::Error),
    ];
    for (target, level) in cases {
        assert_eq!(levels.of(target), level, "{target}");
    }
    assert_eq!(levels.max(), LevelFilter::Debug);
}

#[test]
fn lines_have_time_level_and_an_escaped_message() {
    let scratch = Scratch::new("lines");
    let path = scratch.0.join("log");
    let (logger, _) = to_file(&path).unwrap();
    assert_eq!(logger.level(), LevelFilter::Info);
    write(&*logger, Level::Error, "x", "a\nb\r\u{1b}[0m\0\u{85}\u{2028}\u{202e}é");
    write(&*logger, Level::Warn, "x", "second");
    write(&*logger, Level::Debug, "x", "too fine");
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    let (time, rest) = lines[0].split_at(24);
    assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
    let escaped = " error a\\nb\\r\\u{1b}[0m\\u{0}\\u{85}\\u{2028}\\u{202e}é";
    assert_eq!(rest, escaped);
    assert!(lines[1].ends_with("Z warning second"));
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o137, 0);
}

#[test]
fn nothing_is_logged_at_none() {
    let scratch = Scratch::new("none");
    let path = scratch.0.join("log");
    let sink = Sink::File(path.clone());
    let config = LogConfig { level: LevelFilter::Off, channels: Vec::new(), sink };
    let (logger, _) = build(&config, false).unwrap();
    write(&*logger, Level::Error, "x", "a");
    assert_eq!(std::fs::read(&path).unwrap(), b"");
    assert_eq!(logger.level(), LevelFilter::Off);
}

#[test]
fn journald_gets_priorities_and_no_time() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let all = levels(LevelFilter::Trace, &[]);
    let logger = Lines::boxed(all, Stamp::Priority, Output::Stream(Box::new(ours)));
    for level in [Level::Error, Level::Warn, Level::Info, Level::Debug] {
        write(&*logger, level, "x", "m\n<0>forged");
    }
    drop(logger);
    let mut text = String::new();
    theirs.read_to_string(&mut text).unwrap();
    let expected = ["<3>", "<4>", "<6>", "<7>"].map(|p| format!("{p}m\\n<0>forged\n"));
    assert_eq!(text, expected.concat());
}

#[test]
fn reopening_follows_a_rotation() {
    let scratch = Scratch::new("reopen");
    let (path, moved) = (scratch.0.join("log"), scratch.0.join("log.1"));
    let (logger, handle) = to_file(&path).unwrap();
    write(&*logger, Level::Info, "x", "one");
    std::fs::rename(&path, &moved).unwrap();
    write(&*logger, Level::Info, "x", "two");
    handle.reopen().unwrap();
    write(&*logger, Level::Info, "x", "three");
    let count = |path: &Path| std::fs::read_to_string(path).unwrap().lines().count();
    assert_eq!((count(&moved), count(&path)), (2, 1));

    // A directory in its place: the file that is open stays.
    std::fs::rename(&path, &moved).unwrap();
    std::fs::create_dir(&path).unwrap();
    let error = handle.reopen().unwrap_err().to_string();
    assert!(error.contains(&path.display().to_string()), "{error}");
    write(&*logger, Level::Info, "x", "four");
    assert_eq!(count(&moved), 2);
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let error = to_file(Path::new("/nonexistent/log")).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert!(error.to_string().starts_with("cannot open log file /nonexistent/log: "));
}

#[test]
fn failing_sinks_lose_lines_and_nothing_else() {
    let (logger, _) = to_file(Path::new("/dev/full")).unwrap();
    write(&*logger, Level::Error, "x", "lost");
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let all = levels(LevelFilter::Trace, &[]);
    let logger = Lines::boxed(all, Stamp::Time, Output::Stream(Box::new(ours)));
    write(&*logger, Level::Error, "x", "lost");
    write(&*logger, Level::Error, "x", "lost again");
}

#[test]
fn a_line_is_one_write_after_a_failure_too() {
    struct Failing(Arc<Mutex<Vec<Vec<u8>>>>);
    impl Write for Failing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut writes = self.0.lock().unwrap();
            writes.push(bytes.to_vec());
            if writes.len() == 1 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let writes = Arc::new(Mutex::new(Vec::new()));
    let output = Output::Stream(Box::new(Failing(Arc::clone(&writes))));
    let logger = Lines::boxed(levels(LevelFilter::Trace, &[]), Stamp::Priority, output);
    write(&*logger, Level::Error, "x", "first");
    write(&*logger, Level::Error, "x", "second");
    assert_eq!(*writes.lock().unwrap(), [b"<3>first\n".to_vec(), b"<3>second\n".to_vec()]);
}

#[test]
fn syslog_filters_and_refuses_a_name_with_nul() {
    let sink =
        |ident: &str| Sink::Syslog { facility: Facility::LOG_DAEMON, ident: ident.to_owned() };
    let config = |ident| LogConfig {
        level: LevelFilter::Error,
        channels: vec![("udpgw".to_owned(), LevelFilter::Info)],
        sink: sink(ident),
    };
    assert!(build(&config("a\0b"), false).is_err());
    let (logger, handle) = build(&config("udpferry-test"), false).unwrap();
    let enabled =
        |target, level| logger.enabled(&Metadata::builder().target(target).level(level).build());
    assert!(enabled("udpgw", Level::Info) && !enabled("pool", Level::Info));
    assert_eq!(logger.level(), LevelFilter::Info);
    assert!(handle.reopen().is_ok());
}
