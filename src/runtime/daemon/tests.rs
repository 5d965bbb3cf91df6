use std::net::UdpSocket;
use std::os::unix::fs::symlink;
use std::process::Output;
use std::time::Duration;

use nix::unistd::{getpid, getsid};

use super::*;

/// Runs `test` as the process that a user starts; `enter` in it runs it again as the daemon.
fn start(test: &str, report_to: &str) -> Output {
    Command::new(env::current_exe().unwrap())
        .arg0("link-to-role")
        .args(["--exact", "--nocapture", &format!("runtime::daemon::tests::{test}")])
        .env("UDPFERRY_TEST_CHILD", report_to)
        .env_remove(MARKER)
        .current_dir(env::temp_dir())
        .output()
        .unwrap()
}

fn report_to() -> Option<String> {
    env::var("UDPFERRY_TEST_CHILD").ok()
}

#[test]
fn no_daemon_stays_in_the_foreground() {
    assert!(matches!(enter(false), Ok(Started::Foreground)));
}

#[test]
fn the_daemon_detaches_and_the_parent_exits_with_zero() {
    if let Some(address) = report_to() {
        match enter(true).unwrap() {
            Started::Parent(code) => std::process::exit(code),
            Started::Child(daemon) => {
                eprintln!("said on stderr");
                let before = env::current_dir().unwrap();
                daemon.ready().unwrap();
                let link = |fd: u32| fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
                let report = format!(
                    "{} {} {} {} {} {} {} {}",
                    getsid(None).unwrap() == getpid(),
                    env::args().next().unwrap(),
                    before == env::temp_dir(),
                    env::current_dir().unwrap().display(),
                    link(0).display(),
                    link(1).display(),
                    link(2).display(),
                    fs::read_to_string("/proc/self/comm").unwrap().trim() == "exe",
                );
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                socket.send_to(report.as_bytes(), address).unwrap();
                std::process::exit(0);
            }
            Started::Foreground => std::process::exit(99),
        }
    }
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let output = start("the_daemon_detaches_and_the_parent_exits_with_zero", &address);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("said on stderr"), "{output:?}");
    assert!(!output.stdout.contains(&READY));
    let mut buffer = [0; 512];
    let len = socket.recv(&mut buffer).unwrap();
    assert_eq!(
        std::str::from_utf8(&buffer[..len]).unwrap(),
        "true link-to-role true / /dev/null /dev/null /dev/null false"
    );
}

#[test]
fn a_failed_start_gives_its_exit_code() {
    if report_to().is_some() {
        match enter(true).unwrap() {
            Started::Parent(code) => std::process::exit(code),
            Started::Child(_) => {
                eprintln!("cannot bind");
                std::process::exit(7);
            }
            Started::Foreground => std::process::exit(99),
        }
    }
    let output = start("a_failed_start_gives_its_exit_code", "nobody");
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot bind"), "{output:?}");
}

#[test]
fn a_start_killed_by_a_signal_fails() {
    if report_to().is_some() {
        match enter(true).unwrap() {
            Started::Parent(code) => std::process::exit(code),
            Started::Child(_) => std::process::abort(),
            Started::Foreground => std::process::exit(99),
        }
    }
    let output = start("a_start_killed_by_a_signal_fails", "nobody");
    assert_eq!(output.status.code(), Some(128 + 6), "{output:?}");
}

#[test]
fn a_daemon_whose_parent_has_gone_is_told() {
    let test = "a_daemon_whose_parent_has_gone_is_told";
    if report_to().is_some() {
        let Started::Child(daemon) = enter(true).unwrap() else { std::process::exit(99) };
        eprintln!("started");
        // End of file: the parent has closed its end of our standard output.
        io::stdin().read_to_end(&mut Vec::new()).unwrap();
        let broken = daemon.ready().unwrap_err().kind() == io::ErrorKind::BrokenPipe;
        std::process::exit(if broken { 42 } else { 1 });
    }
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "--nocapture", &format!("runtime::daemon::tests::{test}")])
        .env("UDPFERRY_TEST_CHILD", "nobody")
        .env(MARKER, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The test harness has printed its own text by then.
    let mut word = [0; 7];
    child.stderr.as_mut().unwrap().read_exact(&mut word).unwrap();
    assert_eq!(&word, b"started");
    drop(child.stdout.take());
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(42));
}

#[test]
fn text_before_the_byte_is_passed_on() {
    let mut out = Vec::new();
    assert!(wait_for_ready(&b"listening\n\x06rest"[..], &mut out).unwrap());
    assert_eq!(out, b"listening\n");
    out.clear();
    assert!(!wait_for_ready(&b"usage"[..], &mut out).unwrap());
    assert_eq!(out, b"usage");
}

#[test]
fn paths_become_absolute() {
    assert_eq!(absolute(Path::new("/a/../b")), Path::new("/a/../b"));
    assert_eq!(absolute(Path::new("log")), env::current_dir().unwrap().join("log"));
    assert_eq!(absolute(Path::new("")), Path::new(""));
}

/// A folder of its own for each test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = env::temp_dir().join(format!("udpferry-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn pid_file(&self) -> PathBuf {
        self.0.join("a.pid")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn own_line() -> String {
    format!("{}\n", std::process::id())
}

#[test]
fn a_pid_file_is_held_and_then_removed() {
    let folder = Folder::new("held");
    let path = folder.pid_file();
    let first = PidFile::create(&path).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), own_line());
    let error = PidFile::create(&path).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert_eq!(
        error.to_string(),
        format!(
            "cannot create pid file {}: process {} holds it",
            path.display(),
            std::process::id()
        )
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), own_line(), "the refused one wrote nothing");
    drop(first);
    assert!(!path.exists());
    drop(PidFile::create(&path).unwrap());
}

#[test]
fn a_stale_pid_file_is_taken_over() {
    let folder = Folder::new("stale");
    let path = folder.pid_file();
    // Longer than our pid, and the number of a living process: pid 1.
    for stale in ["1\n", "", "123456789012345678\n"] {
        fs::write(&path, stale).unwrap();
        let file = PidFile::create(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), own_line());
        drop(file);
    }
}

#[test]
fn another_ones_file_is_not_removed() {
    let folder = Folder::new("other");
    let path = folder.pid_file();
    let file = PidFile::create(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "1\n").unwrap();
    drop(file);
    assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
}

#[test]
fn a_wrong_path_destroys_nothing() {
    let folder = Folder::new("wrong");
    let path = folder.pid_file();
    for content in ["root:x:0:0\n", &"1".repeat(100)] {
        fs::write(&path, content).unwrap();
        let error = PidFile::create(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), *content);
    }
    let link = folder.0.join("link.pid");
    symlink(&path, &link).unwrap();
    for bad in [link.as_path(), &folder.0, &folder.0.join("none/a.pid"), Path::new("/dev/null")] {
        let error = PidFile::create(bad).unwrap_err();
        assert!(error.to_string().contains(bad.to_str().unwrap()), "{error}");
    }
}
