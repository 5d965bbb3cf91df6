//! Other programs that tests run: peers, tools, and the binary under names of its own.

use super::{PATIENCE, Scratch, UDPFERRY, await_some};
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Instant;

/// Where a program is; a missing one fails the test, which could prove nothing without it.
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    // Debian keeps daemons where users' PATH does not look.
    let places = path.split(':').chain(["/usr/local/sbin", "/usr/sbin", "/sbin"]);
    places
        .map(|place| Path::new(place).join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("this test needs {name}, which is missing: scripts/setup --test"))
}

/// The programs of a package from PyPI, `name==version`, in a virtual environment that the first
/// test to need it makes below the target directory.
pub fn python_package(package: &str) -> PathBuf {
    // target/debug/udpferry: the environment lives as long as the rest of the target directory.
    let target = Path::new(super::UDPFERRY).parent().and_then(Path::parent).unwrap();
    let name = format!("test-peers-{}", package.split('=').next().unwrap());
    // Another test run may make it at the same time; the file's lock ends with this call.
    let lock = std::fs::File::create(target.join(format!("{name}.lock"))).unwrap();
    let fd = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive);
    let _lock = fd.map_err(|(_, error)| error).unwrap();
    let venv = target.join(name);
    let done = venv.join("complete");
    if std::fs::read_to_string(&done).is_ok_and(|made| made == package) {
        return venv.join("bin");
    }
    succeed(Command::new(program("python3")).args(["-m", "venv", "--clear"]).arg(&venv));
    let mut pip = Command::new(venv.join("bin/pip"));
    succeed(pip.args(["install", "--quiet", "--disable-pip-version-check", package]));
    std::fs::write(done, package).unwrap();
    venv.join("bin")
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "the Python peers cannot be installed (python3 with venv, and PyPI or a mirror, are \
         needed): {command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A process that ends with the test at the latest; what it says goes to files.
pub struct Process {
    child: Option<Child>,
    scratch: Scratch,
}

impl Process {
    pub fn start(command: Command) -> Process {
        Process::start_with_stdin(command, Stdio::null())
    }

    pub fn start_with_stdin(mut command: Command, stdin: Stdio) -> Process {
        let scratch = Scratch::new();
        let file = |name: &str| std::fs::File::create(scratch.path(name)).unwrap();
        command.stdin(stdin).stdout(file("stdout")).stderr(file("stderr"));
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Process { child: Some(child), scratch }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().unwrap().id()).unwrap()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// How it ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let child = self.child.as_mut().unwrap();
        await_some(|| child.try_wait().unwrap()).expect("the process does not end")
    }

    pub fn stdout(&self) -> String {
        std::fs::read_to_string(self.scratch.path("stdout")).unwrap()
    }

    pub fn stderr(&self) -> String {
        std::fs::read_to_string(self.scratch.path("stderr")).unwrap()
    }

    /// Waits until a line on standard error contains `text`, and returns that line.
    pub fn await_stderr(&self, text: &str) -> String {
        let find = || self.stderr().lines().find(|line| line.contains(text)).map(str::to_owned);
        await_some(find).unwrap_or_else(|| panic!("no line has {text:?}:\n{}", self.stderr()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- output of a process ---\n{}{}", self.stdout(), self.stderr());
        }
    }
}

/// Waits until something listens there, and returns that first connection.
pub fn await_listener(address: SocketAddr) -> TcpStream {
    let stream = await_some(|| TcpStream::connect(address).ok());
    let stream = stream.unwrap_or_else(|| panic!("nothing listens on {address}"));
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// `udpferry ARGS` started on the first connection to `address`, which it gets as a socket.
pub fn socket_activated(address: SocketAddr, args: &[&str]) -> Process {
    let mut command = Command::new(program("systemd-socket-activate"));
    command.arg(format!("--listen={address}")).arg(UDPFERRY).args(args);
    Process::start(command)
}

/// Exactly so many bytes from a pipe, which has no timeouts of its own.
pub fn read_pipe<P: Read + AsFd>(pipe: &mut P, len: usize) -> Vec<u8> {
    let deadline = Instant::now() + PATIENCE;
    let mut bytes = vec![0; len];
    let mut have = 0;
    while have < len {
        assert!(Instant::now() < deadline, "only {have} of {len} bytes came");
        let mut fds = [nix::poll::PollFd::new(pipe.as_fd(), nix::poll::PollFlags::POLLIN)];
        if nix::poll::poll(&mut fds, nix::poll::PollTimeout::from(1000u16)).unwrap() > 0 {
            match pipe.read(&mut bytes[have..]).unwrap() {
                0 => panic!("end of file after {have} of {len} bytes"),
                more => have += more,
            }
        }
    }
    bytes
}

/// The one line that a failed command says, and nothing on standard output.
pub fn only_line(output: &Output) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    let mut lines = said.lines();
    let line = lines.next().unwrap_or_else(|| panic!("nothing said: {output:?}")).to_owned();
    assert_eq!(lines.next(), None, "more than one line: {said}");
    assert!(output.stdout.is_empty(), "{output:?}");
    line
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
