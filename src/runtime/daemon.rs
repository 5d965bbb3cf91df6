//! `--daemon` and `--pid-file`, for init scripts.
//!
//! A process cannot fork soundly once threads may exist, so the daemon is a second start of the
//! same program:
//!
//! ```text
//!     init script -> udpferry ... --daemon        parent: waits on the pipe
//!                        | starts itself, UDPFERRY_DAEMON_CHILD=1, stdout = the pipe
//!                        +-> udpferry ... --daemon    child: setsid, opens all it needs,
//!                                                     Daemon::ready writes one byte
//!     parent: the byte -> exit 0; end of file -> the child's exit code
//! ```
//!
//! So the script learns whether the start worked, and reads the reason on standard error, which
//! the child keeps until it is ready. Socket activation does not reach the child, whose pid the
//! service manager does not know; under a service manager `--daemon` is not wanted anyway.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

/// Marks the second start.
pub const MARKER: &str = "UDPFERRY_DAEMON_CHILD";

/// ASCII ACK: not a byte of the text that a role may print before it is ready, which goes through
/// the same pipe.
const READY: u8 = 0x06;

/// Which of the processes this is.
#[derive(Debug)]
pub enum Started {
    /// The one that the user started; the daemon has started or failed. Exit with this code.
    Parent(i32),
    /// The daemon: go on, and call [`Daemon::ready`].
    Child(Daemon),
    /// No daemon was asked for: go on.
    Foreground,
}

/// Starts the daemon when `daemon` is set and this is not the daemon yet; returns in both
/// processes. Call it before anything is opened and before any thread is started.
///
/// Errors: the program cannot be started again, or the session cannot be made.
pub fn enter(daemon: bool) -> io::Result<Started> {
    if !daemon {
        return Ok(Started::Foreground);
    }
    if env::var_os(MARKER).is_some_and(|value| value == "1") {
        setsid().map_err(|errno| explain("cannot start a session", &errno.into()))?;
        return Ok(Started::Child(Daemon { _private: () }));
    }
    start_again().map(Started::Parent)
}

/// The background process before it is ready.
#[derive(Debug)]
pub struct Daemon {
    _private: (),
}

impl Daemon {
    /// Tells the parent that the role serves, and lets go of the terminal: the working directory
    /// becomes `/`, and standard input, output and error `/dev/null`. Relative paths that are used
    /// later must have been made [`absolute`] before.
    ///
    /// Errors: besides the system's, `BrokenPipe` when the parent has gone. The start was given up
    /// then, and the role should end too.
    pub fn ready(self) -> io::Result<()> {
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(|error| explain("cannot open /dev/null", &error))?;
        let detach = |error: &io::Error| explain("cannot detach", error);
        let mut stdout = io::stdout();
        stdout.flush().map_err(|error| detach(&error))?;
        let pipe = stdout.as_fd().try_clone_to_owned().map_err(|error| detach(&error))?;
        env::set_current_dir("/").map_err(|error| detach(&error))?;
        dup2_stdin(&null).map_err(|errno| detach(&errno.into()))?;
        dup2_stdout(&null).map_err(|errno| detach(&errno.into()))?;
        File::from(pipe)
            .write_all(&[READY])
            .map_err(|error| explain("cannot report to the starting process", &error))?;
        // Last, so that an error above is still seen.
        dup2_stderr(&null).map_err(|errno| detach(&errno.into()))
    }
}

/// `path` made absolute by the working directory of now, without following links; `path` itself
/// when it is empty or there is no working directory. For what is opened again after
/// [`Daemon::ready`] (log file, certificates).
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn start_again() -> io::Result<i32> {
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_else(|| "udpferry".into());
    let failed = |error: &io::Error| explain("cannot start the daemon", error);
    let mut child = Command::new(own_program())
        // The role may be the name of a symbolic link to the program.
        .arg0(name)
        .args(arguments)
        .env(MARKER, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    let ready = match child.stdout.take() {
        Some(pipe) => wait_for_ready(pipe, &mut io::stdout()).map_err(|error| failed(&error))?,
        None => false,
    };
    if ready {
        return Ok(0);
    }
    let status = child.wait().map_err(|error| failed(&error))?;
    // A death by signal is told as the shell tells it. Exit 0 without the byte stays 0: a daemon
    // that was stopped by request before it was ready did not fail.
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

/// The running program. Its path rather than `/proc/self/exe` where that is the same file, so that
/// the process is called `udpferry` in ps and pgrep, and not `exe`.
fn own_program() -> PathBuf {
    let link = PathBuf::from("/proc/self/exe");
    let same = |path: &Path| {
        let (Ok(one), Ok(other)) = (fs::metadata(path), fs::metadata(&link)) else {
            return false;
        };
        (one.dev(), one.ino()) == (other.dev(), other.ino())
    };
    env::current_exe().ok().filter(|path| same(path)).unwrap_or(link)
}

/// Copies what the child prints to `out` until its [`READY`] byte (true) or its end (false).
fn wait_for_ready(mut pipe: impl Read, out: &mut impl io::Write) -> io::Result<bool> {
    let mut buffer = [0; 512];
    loop {
        let text = match pipe.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(len) => buffer.get(..len).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let ready = text.iter().position(|byte| *byte == READY);
        // Text that nobody can receive is not a failed start.
        let _ = out.write_all(text.get(..ready.unwrap_or(text.len())).unwrap_or_default());
        let _ = out.flush();
        if ready.is_some() {
            return Ok(true);
        }
    }
}

fn explain(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// A pid file, locked while the process lives and removed when it is dropped.
///
/// The lock (flock) and not the number tells whether the owner lives, so a file that a crash left
/// behind is taken over, even when its number belongs to another process by now.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    file: Flock<File>,
}

impl PidFile {
    /// Writes the pid and a line feed to `path`, made or taken over. Call it in the daemon, after
    /// [`enter`].
    ///
    /// Errors, all naming the path: `AddrInUse` when another living process holds the file;
    /// `InvalidInput` when it exists and holds something else than a number, or is no regular
    /// file (a symbolic link is not followed); else the system's.
    pub fn create(path: &Path) -> io::Result<Self> {
        let path = absolute(path);
        let failed = |error: &io::Error| {
            explain(&format!("cannot create pid file {}", path.display()), error)
        };
        let mut file = open_locked(&path).map_err(|error| failed(&error))?;
        write_pid(&mut file).map_err(|error| failed(&error))?;
        Ok(Self { path, file })
    }

    /// The absolute path, for [`chown_path`](crate::runtime::privileges::Identity::chown_path).
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PidFile {
    /// Removes the file if the path still leads to ours. Where a dropped user may not remove it
    /// (`/run` is root's), it is emptied instead, which its open descriptor allows.
    fn drop(&mut self) {
        if is_at(&self.file, &self.path) && fs::remove_file(&self.path).is_err() {
            if let Err(error) = self.file.set_len(0) {
                log::debug!("cannot empty pid file {}: {error}", self.path.display());
            }
        }
    }
}

fn open_locked(path: &Path) -> io::Result<Flock<File>> {
    // The owner before may remove the file between our open and our lock, once for each owner;
    // more than a few in a row is not an accident.
    for _ in 0..16 {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            // Non-blocking for what turns out to be a FIFO or a terminal.
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => return Err(held(file)),
            Err((_, errno)) => return Err(errno.into()),
        };
        if is_at(&file, path) {
            return Ok(file);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "it keeps changing"))
}

fn held(mut file: File) -> io::Error {
    let mut text = String::new();
    // The number is for the message only.
    let _ = (&mut file).take(32).read_to_string(&mut text);
    io::Error::new(io::ErrorKind::AddrInUse, format!("process {} holds it", text.trim()))
}

fn write_pid(file: &mut File) -> io::Result<()> {
    let mut old = Vec::new();
    (&mut *file).take(33).read_to_end(&mut old)?;
    let is_pid = old.trim_ascii().iter().all(u8::is_ascii_digit);
    if !is_pid || old.len() > 32 {
        // `--pid-file` with the wrong path must not destroy what is there.
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it holds something else"));
    }
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes())
}

/// Whether `path` leads to the open `file`.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), fs::symlink_metadata(path)) else {
        return false;
    };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

#[cfg(test)]
mod tests;
