//! How it is run: as a daemon, under a service manager, as another user; its logs and signals.

use crate::support::kernel::signal_twice;
use crate::support::programs::{
    Process, await_listener, is_root, only_line, program, socket_activated,
};
use crate::support::{
    Client, Echo, Gateway, PATIENCE, Scratch, UDPFERRY, await_some, free_port, http_get,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

const ALLOW: &str = "--allow=127.0.0.0/8";

fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// The other side of NOTIFY_SOCKET.
struct Manager {
    socket: UnixDatagram,
    scratch: Scratch,
}

impl Manager {
    fn new() -> Manager {
        let scratch = Scratch::new();
        let socket = UnixDatagram::bind(scratch.path("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Manager { socket, scratch }
    }

    fn next(&self) -> String {
        let mut bytes = [0; 1024];
        let len = self.socket.recv(&mut bytes).expect("the service manager was told nothing");
        String::from_utf8_lossy(&bytes[..len]).trim_end().to_owned()
    }

    fn await_message(&self, beginning: &str) -> String {
        loop {
            let message = self.next();
            if message.starts_with(beginning) {
                return message;
            }
        }
    }

    /// Starts `command` with this manager and waits until it is ready.
    fn start(&self, mut command: Command) -> Process {
        command.env("NOTIFY_SOCKET", self.scratch.path("notify"));
        let process = Process::start(command);
        self.await_message("READY=1");
        process
    }
}

fn udpgw(address: SocketAddr, args: &[&str]) -> Command {
    let mut command = Command::new(UDPFERRY);
    command.args(["udpgw", ALLOW, &format!("--listen-addr={address}")]).args(args);
    command
}

/// A daemon, killed on drop if it still runs.
struct Daemon {
    pid: Pid,
    pid_file: std::path::PathBuf,
}

impl Daemon {
    /// The daemon whose pid the file holds.
    fn of(pid_file: &Path) -> Daemon {
        let pid: i32 = std::fs::read_to_string(pid_file).unwrap().trim_end().parse().unwrap();
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
        assert_eq!(program, Path::new(UDPFERRY).canonicalize().unwrap());
        Daemon { pid: Pid::from_raw(pid), pid_file: pid_file.to_owned() }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Only while it holds its pid file is the number surely its own.
        if self.pid_file.exists() {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }
}

fn start_daemon(address: SocketAddr, pid_file: &Path, log: &Path) -> Output {
    udpgw(address, &["--daemon", "--log-level=debug"])
        .arg("--log-file")
        .arg(log)
        .arg("--pid-file")
        .arg(pid_file)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn a_daemon_is_there_when_its_parent_returns() {
    let scratch = Scratch::new();
    let (pid_file, log) = (scratch.path("pid"), scratch.path("log"));
    let address = free_address();
    let output = start_daemon(address, &pid_file, &log);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    // Without another try: it must accept by now.
    let mut client = Client::connect(address);
    let daemon = Daemon::of(&pid_file);
    client.echo(1, Echo::start().address, b"from the background");
    let proc = |name: &str| std::fs::read_link(format!("/proc/{}/{name}", daemon.pid)).unwrap();
    assert_eq!(proc("cwd"), Path::new("/"));
    for descriptor in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(proc(descriptor), Path::new("/dev/null"));
    }

    let other = free_address();
    let second = start_daemon(other, &pid_file, &log);
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    let line = only_line(&second);
    assert!(line.contains(pid_file.to_str().unwrap()), "{line}");
    assert!(line.contains(&format!("process {} holds it", daemon.pid)), "{line}");
    TcpStream::connect(other).unwrap_err();
    client.echo(1, Echo::start().address, b"unhurt");

    kill(daemon.pid, Signal::SIGTERM).unwrap();
    assert!(client.is_closed());
    assert!(await_some(|| (!pid_file.exists()).then_some(())).is_some(), "the pid file stays");
    let logged = std::fs::read_to_string(&log).unwrap();
    assert!(logged.lines().last().unwrap().ends_with("info stopped"), "{logged}");
    assert_eq!(std::fs::metadata(&log).unwrap().mode() & 0o777, 0o640);
    // The lock of a file that a crash left behind does not keep the next one out.
    std::fs::write(&pid_file, format!("{}\n", std::process::id())).unwrap();
    let again = start_daemon(address, &pid_file, &log);
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    let daemon = Daemon::of(&pid_file);
    kill(daemon.pid, Signal::SIGTERM).unwrap();
    assert!(await_some(|| (!pid_file.exists()).then_some(())).is_some(), "the pid file stays");
}

#[test]
fn a_daemon_that_cannot_start_says_so_and_leaves_nothing() {
    let scratch = Scratch::new();
    let (pid_file, log) = (scratch.path("pid"), scratch.path("log"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let output = start_daemon(address, &pid_file, &log);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let line = only_line(&output);
    assert!(line.contains(&format!("cannot listen on tcp {address}: ")), "{line}");
    assert!(line.contains("in use"), "{line}");
    assert!(!pid_file.exists());
    // The log has it too, for a start that nobody watched.
    assert!(std::fs::read_to_string(&log).unwrap().contains(&address.to_string()));
    // Wrong arguments are found before anything goes to the background.
    let output = udpgw(address, &["--daemon", "--max-clients=x"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    only_line(&output);
}

/// A pid file of somebody else's must not be overwritten, whatever `--pid-file` says.
#[test]
fn a_file_that_holds_no_pid_is_left_alone() {
    let scratch = Scratch::new();
    let path = scratch.path("notes");
    std::fs::write(&path, "important\n").unwrap();
    let output = udpgw(free_address(), &["--pid-file", path.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(only_line(&output).contains("it holds something else"), "{output:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "important\n");
}

/// A port that only root may bind, and that nobody has.
fn privileged_port() -> u16 {
    let ports = 600..1024;
    let start = std::process::id() % 400;
    let mut ports = ports.cycle().skip(usize::try_from(start).unwrap()).take(424);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

#[test]
fn another_user_keeps_no_privileges() {
    if !is_root() {
        // Only root can become another; what everybody else must get is a refusal.
        let output = udpgw(free_address(), &["--user=root"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(only_line(&output).contains("only root may change that"));
        return;
    }
    let scratch = Scratch::new();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let (uid, gid) = (nobody.uid.as_raw(), nobody.gid.as_raw());
    let (log, pid_file) = (scratch.path("log"), scratch.path("pid"));
    let address = SocketAddr::from(([127, 0, 0, 1], privileged_port()));
    let mut command = udpgw(address, &["--user=nobody", "--log-level=info"]);
    command.arg("--log-file").arg(&log).arg("--pid-file").arg(&pid_file);
    let manager = Manager::new();
    // Its socket must be within the new user's reach, as the service manager's is.
    let notify = manager.scratch.path("notify");
    std::fs::set_permissions(&notify, std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut process = manager.start(command);
    let mut client = Client::connect(address);
    client.echo(1, Echo::start().address, b"as nobody");
    let tasks: Vec<_> =
        std::fs::read_dir(format!("/proc/{}/task", process.pid())).unwrap().collect();
    assert!(tasks.len() >= 2, "a client's thread is missing");
    for task in tasks {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| -> Vec<&str> {
            let line = status.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
            line.split_whitespace().skip(1).collect()
        };
        assert_eq!(field("Uid"), [&*uid.to_string(); 4]);
        assert_eq!(field("Gid"), [&*gid.to_string(); 4]);
        assert!(!field("Groups").contains(&"0"), "{status}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(set), ["0000000000000000"], "{set}");
        }
    }
    // What was opened as root must still be within reach when it is opened again.
    for file in [&log, &pid_file] {
        assert_eq!(std::fs::metadata(file).unwrap().uid(), uid, "{}", file.display());
    }
    process.signal(Signal::SIGHUP);
    process.signal(Signal::SIGUSR1);
    let logged = || std::fs::read_to_string(&log).unwrap();
    let counted = || logged().contains("udpferry_udpgw_clients_accepted_total=1").then_some(());
    assert!(await_some(counted).is_some(), "{}", logged());
    assert!(!logged().contains("cannot reopen"), "{}", logged());
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait().code(), Some(0));
    // Its directory is root's, so it cannot be removed: it is emptied instead.
    assert_eq!(std::fs::read_to_string(&pid_file).unwrap_or_default(), "");
}

#[test]
fn sighup_opens_the_log_anew() {
    let gateway = Gateway::start(&[]);
    let log = gateway.service.log_path().to_owned();
    let moved = log.with_extension("1");
    gateway.service.await_log("listening on tcp ");
    std::fs::rename(&log, &moved).unwrap();
    let mut client = gateway.connect();
    client.echo(1, Echo::start().address, b"logged in the moved file");
    let own = client.stream.local_addr().unwrap();
    assert!(std::fs::read_to_string(&moved).unwrap().contains(&format!("client {own}: connected")));
    assert!(!log.exists());
    gateway.service.signal(Signal::SIGHUP);
    assert!(await_some(|| log.exists().then_some(())).is_some(), "the log was not opened anew");
    drop(client);
    gateway
        .service
        .await_log(&format!("client {own}: gone (closed by the client); 1 datagrams to remotes"));
    assert!(!std::fs::read_to_string(&moved).unwrap().contains("gone"));
}

#[test]
fn sigusr1_logs_the_counters_at_every_level_but_none() {
    for (level, speaks) in [("error", true), ("none", false)] {
        let address = free_address();
        let metrics = free_address();
        let manager = Manager::new();
        let level = format!("--log-level={level}");
        let mut process = manager.start(udpgw(address, &[&level, &format!("--metrics={metrics}")]));
        let mut client = Client::connect(address);
        client.echo(1, Echo::start().address, b"count me");
        // A thread's tally reaches the counters after its answer has reached the client.
        let counted = "udpferry_udpgw_datagrams_total{direction=\"to-client\"} 1\n";
        let page = || http_get(metrics, "/metrics").contains(counted).then_some(());
        assert!(await_some(page).is_some(), "{}", http_get(metrics, "/metrics"));
        process.signal(Signal::SIGUSR1);
        if speaks {
            let line = process.await_stderr("udpferry_udpgw_clients_accepted_total=1");
            assert!(line.contains(" info ") && line.contains("udpferry_udpgw_flows=1"), "{line}");
            assert!(line.contains("{direction=\"to-client\"}=1"), "{line}");
        }
        process.signal(Signal::SIGTERM);
        assert_eq!(process.wait().code(), Some(0));
        assert_eq!(process.stderr().lines().count(), usize::from(speaks), "{}", process.stderr());
    }
}

/// /dev/log as the program sees it is a socket of the test's own, in a mount namespace.
#[test]
fn syslog_gets_ident_and_facility() {
    let scratch = Scratch::new();
    let dev = scratch.path("dev");
    std::fs::create_dir(&dev).unwrap();
    let socket = UnixDatagram::bind(scratch.path("log.sock")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let script = "mount -t tmpfs none \"$1\"; for node in null zero random urandom; do \
                  touch \"$1/$node\"; mount --bind \"/dev/$node\" \"$1/$node\"; done; \
                  ln -s \"$2\" \"$1/log\"; mount --rbind \"$1\" /dev; shift 2; exec \"$@\"";
    let address = free_address();
    let mut command = Command::new(program("unshare"));
    command.arg("--mount");
    if !is_root() {
        command.arg("--map-root-user");
    }
    command.args(["sh", "-ec", script, "sh"]).arg(&dev).arg(scratch.path("log.sock"));
    command.args([UDPFERRY, "udpgw", ALLOW, &format!("--listen-addr={address}")]);
    command.args(["--logger=syslog", "--syslog-ident=gw7", "--syslog-facility=local3"]);
    command.args(["--log-level=info", "--max-clients-per-address=1"]);
    let process = Process::start(command);
    let next = || {
        let mut bytes = [0; 2048];
        let len =
            socket.recv(&mut bytes).unwrap_or_else(|error| panic!("{error}: {}", process.stderr()));
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    };
    // local3 is 19; info 6, warning 4 (RFC 5424 §6.2.1).
    let line = next();
    assert!(line.starts_with("<158>"), "{line}");
    let message = format!("gw7[{}]: listening on tcp {address}", process.pid());
    assert!(line.trim_end_matches(['\n', '\0']).ends_with(&message), "{line}");
    let mut client = Client::connect(address);
    client.echo(1, Echo::start().address, b"logged");
    assert!(next().contains(": connected"));
    assert!(Client::connect(address).is_closed());
    let line = next();
    assert!(line.starts_with("<156>") && line.contains(": refused"), "{line}");
    assert_eq!(process.stderr(), "");
}

#[test]
fn journald_gets_priorities_and_no_times() {
    let address = free_address();
    let manager = Manager::new();
    let inner = udpgw(address, &["--log-level=info", "--max-clients-per-address=1"]);
    let mut command = std::process::Command::new("sh");
    // As systemd sets it: the device and inode of standard error.
    let set = "JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) exec \"$0\" \"$@\"";
    command.arg("-c").arg(set).arg(inner.get_program()).args(inner.get_args());
    let process = manager.start(command);
    let mut client = Client::connect(address);
    client.echo(1, Echo::start().address, b"logged");
    assert!(Client::connect(address).is_closed());
    process.await_stderr("refused");
    let said = process.stderr();
    assert_eq!(said.lines().next(), Some(&*format!("<6>listening on tcp {address}")), "{said}");
    assert!(said.lines().any(|line| line.starts_with("<4>client 127.0.0.1:")), "{said}");
    assert!(said.lines().all(|line| line.starts_with("<6>") || line.starts_with("<4>")), "{said}");
}

#[test]
fn a_journal_that_standard_error_does_not_lead_to_is_none() {
    let address = free_address();
    let manager = Manager::new();
    let mut command = udpgw(address, &["--log-level=info"]);
    command.env("JOURNAL_STREAM", "8:12345");
    let process = manager.start(command);
    process.await_stderr("listening");
    assert!(!process.stderr().starts_with('<'), "{}", process.stderr());
}

#[test]
fn the_service_manager_hears_of_everything() {
    let address = free_address();
    let manager = Manager::new();
    let mut command = udpgw(address, &[]);
    // Two seconds: half of it leaves a loaded machine a second.
    command.env("WATCHDOG_USEC", "2000000").env_remove("WATCHDOG_PID");
    command.env("NOTIFY_SOCKET", manager.scratch.path("notify"));
    let mut process = Process::start(command);
    assert_eq!(manager.next(), "READY=1");
    assert_eq!(manager.await_message("STATUS="), "STATUS=0 clients, 0 flows");
    drop(Client::connect(address));
    manager.await_message("WATCHDOG=1");
    let first = Instant::now();
    manager.await_message("WATCHDOG=1");
    let gap = first.elapsed().as_secs_f64();
    assert!((0.8..2.0).contains(&gap), "WATCHDOG=1 came after {gap} s");
    process.signal(Signal::SIGTERM);
    manager.await_message("STOPPING=1");
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn a_second_stop_ends_it_at_once() {
    let manager = Manager::new();
    let mut process = manager.start(udpgw(free_address(), &["--log-level=info"]));
    signal_twice(process.pid());
    assert_eq!(process.wait().code(), Some(1));
    assert!(!process.stderr().contains("stopped"), "{}", process.stderr());
}

#[test]
fn sigint_stops_as_sigterm_does() {
    let manager = Manager::new();
    let mut process = manager.start(udpgw(free_address(), &["--log-level=info"]));
    process.signal(Signal::SIGINT);
    assert_eq!(process.wait().code(), Some(0));
    assert!(process.stderr().ends_with(" info stopped\n"), "{}", process.stderr());
}

/// `udpferry udpgw ARGS` started on the first connection to `address`, which it gets as a socket.
fn activated_gateway(address: SocketAddr, args: &[&str]) -> Process {
    socket_activated(address, &[&["udpgw", ALLOW, "--log-level=info"], args].concat())
}

#[test]
fn a_passed_socket_stands_in_for_the_default_address() {
    let address = free_address();
    let process = activated_gateway(address, &[]);
    let mut client = Client::over(await_listener(address));
    client.echo(1, Echo::start().address, b"activated");
    let said = process.stderr();
    let listening: Vec<&str> =
        said.lines().filter_map(|line| line.split("listening on tcp ").nth(1)).collect();
    assert_eq!(listening, [address.to_string()], "{said}");
}

#[test]
fn configured_addresses_join_the_passed_socket() {
    let (address, other) = (free_address(), free_address());
    let listen = [format!("--listen-addr={address}"), format!("--listen-addr={other}")];
    let process = activated_gateway(address, &[&listen[0], &listen[1]]);
    let echo = Echo::start();
    Client::over(await_listener(address)).echo(1, echo.address, b"passed");
    Client::connect(other).echo(1, echo.address, b"configured");
    let said = process.stderr();
    assert_eq!(said.matches(&format!("listening on tcp {address}\n")).count(), 1, "{said}");
    assert_eq!(said.matches(&format!("listening on tcp {other}\n")).count(), 1, "{said}");
}

#[test]
fn a_low_limit_of_open_files_is_warned_of() {
    let address = free_address();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 200; exec \"$@\"", "sh", UDPFERRY, "udpgw", ALLOW]);
    command.args(["--log-level=warning", &format!("--listen-addr={address}")]);
    let manager = Manager::new();
    let process = manager.start(command);
    let line = process.await_stderr("the limit of 200 open files has room for ");
    assert!(line.contains("--max-clients 1000"), "{line}");
    assert!(line.contains("LimitNOFILE") && line.contains("ulimit -n"), "{line}");
    // A soft limit alone is raised, without a word.
    let address = free_address();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -S -n 200; exec \"$@\"", "sh", UDPFERRY, "udpgw"]);
    command.args(["--log-level=warning", "--max-clients=50", &format!("--listen-addr={address}")]);
    let process = manager.start(command);
    assert_eq!(process.stderr(), "");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.pid())).unwrap();
    let open_files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<&str> = open_files.split_whitespace().collect();
    assert_eq!(numbers[3], numbers[4], "{open_files}");
}
