//! What tests ask of the kernel: namespaces and limits of their own, and what it knows of sockets.

use super::{Scratch, await_some};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

const INSIDE: &str = "TEST_IN_OWN_NAMESPACES";

/// Whether the caller, the test of that name, runs in network and mount namespaces of its own. If
/// not, runs it there to its end, which must be good.
///
/// ```ignore
/// if !in_own_namespaces("limits::the_test") { return; }
/// ```
pub fn in_own_namespaces(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        return true;
    }
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount"]);
    if !nix::unistd::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.arg(std::env::current_exe().unwrap()).args([test, "--exact", "--nocapture"]);
    let output = command.env(INSIDE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{test} in its own namespaces:\n{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

/// Stops a process, and waits until it stands: kill(2) returns before that.
pub fn pause(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    await_state(pid, 'T');
}

/// Waits until the process's main thread sleeps (`S`) or stands still (`T`).
pub fn await_state(pid: i32, state: char) {
    // proc(5): the state is the first field behind the name, which is in parentheses.
    let has_it = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().trim_start().starts_with(state).then_some(())
    };
    await_some(has_it).unwrap_or_else(|| panic!("the process does not come to state {state}"));
}

/// Lets a stopped process go on.
pub fn go_on(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
}

/// SIGINT and SIGTERM, which the process meets both at once: two of the same would be one.
pub fn signal_twice(pid: i32) {
    pause(pid);
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        kill(Pid::from_raw(pid), signal).unwrap();
    }
    go_on(pid);
}

/// An empty directory in place of /etc, for the mount namespace of this test alone.
pub fn own_etc() -> Scratch {
    assert!(std::env::var_os(INSIDE).is_some(), "this would hide the machine's own /etc");
    let etc = Scratch::new();
    run("mount", &["--bind", etc.path("").to_str().unwrap(), "/etc"]);
    etc
}

/// Runs a program that must succeed, and returns what it printed.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Makes the command start with at most so many descriptors.
pub fn limit_descriptors(command: &mut Command, count: u32) {
    let mut limited = Command::new("prlimit");
    limited.arg(format!("--nofile={count}:{count}")).arg(command.get_program());
    limited.args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            limited.env(name, value);
        }
    }
    *command = limited;
}

/// Changes the descriptor limit of a process that runs; not above what it started with.
pub fn change_descriptor_limit(pid: i32, count: u32) {
    run("prlimit", &[&format!("--pid={pid}"), &format!("--nofile={count}:")]);
}

/// Lets this process have as many descriptors as it may.
pub fn raise_own_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// What `ss` says of the TCP socket at the other end of a connection on this host.
pub fn tcp_peer(stream: &TcpStream) -> String {
    let (sport, dport) = (
        format!(":{}", stream.peer_addr().unwrap().port()),
        format!(":{}", stream.local_addr().unwrap().port()),
    );
    let text = run("ss", &["-Htnmoi", "sport", "=", &sport, "and", "dport", "=", &dport]);
    assert!(!text.is_empty(), "ss knows no such connection");
    text
}

/// What `ss` says of the UDP sockets with that port.
pub fn udp_socket(port: u16) -> String {
    let text = run("ss", &["-Hunam", "sport", "=", &format!(":{port}")]);
    assert!(!text.is_empty(), "ss knows no such socket");
    text
}

/// A number of `skmem` in what `ss` said: `rb` and `tb` are the socket buffers' sizes.
pub fn skmem(said: &str, key: &str) -> u64 {
    let inside = said.split("skmem:(").nth(1).unwrap().split(')').next().unwrap();
    let number = inside.split(',').find_map(|item| item.strip_prefix(key));
    number.unwrap_or_else(|| panic!("no {key} in {said}")).parse().unwrap()
}

/// A number from a file under /proc/sys.
pub fn sysctl(name: &str) -> u64 {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

/// Waits until the process at the other end of an IPv4 connection on this host has read all that
/// has arrived there.
pub fn await_read(stream: &TcpStream) {
    let ends = [stream.peer_addr().unwrap(), stream.local_addr().unwrap()];
    let [local, peer] = ends.map(|end: SocketAddr| format!(":{:04X}", end.port()));
    await_some(|| {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let queues = table.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            (fields[1].ends_with(&local) && fields[2].ends_with(&peer))
                .then(|| fields[4].to_owned())
        });
        queues.expect("no such connection").ends_with(":00000000").then_some(())
    })
    .expect("the other end does not read");
}
