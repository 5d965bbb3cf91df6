//! Other programs that do what no library does for us: nft, iptables, resolvectl, resolvconf.

use crate::error::Error;
use crate::runtime::{signals, thread};
use crossbeam_channel::bounded;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Where root's programs are, for callers whose PATH does not say.
const PLACES: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Each of them takes milliseconds. One that hangs (resolvectl waits 25 s for a D-Bus that does not answer) must not keep
/// the main thread from signals, keepalives and the watchdog's 30 s.
const LIMIT: Duration = Duration::from_secs(5);

/// Whether there is such a program.
pub fn is_there(name: &str) -> bool {
    PLACES.iter().any(|place| Path::new(place).join(name).is_file())
}

/// Runs a program to its end, with `input` to read, and returns what it printed. One that takes more than five
/// seconds is killed, which is an error.
pub fn run(name: &str, arguments: &[&str], input: &str) -> Result<String, Error> {
    let shown = || format!("cannot run {name} {}", arguments.join(" "));
    let output = start(name, arguments, input).map_err(Error::while_doing(shown))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // The first line has the reason; nft goes on with a drawing of the place.
    let reason = said.lines().next().unwrap_or("it failed without a word").to_owned();
    let failure = Failure { code: output.status.code(), reason };
    Err(Error::System { doing: shown(), cause: io::Error::other(failure) })
}

/// Whether an error of [`run`] is that the program has ended with this exit code.
pub fn has_exited_with(error: &Error, code: i32) -> bool {
    let Error::System { cause, .. } = error else { return false };
    let failure = cause.get_ref().and_then(|inner| inner.downcast_ref::<Failure>());
    failure.is_some_and(|failure| failure.code == Some(code))
}

/// A program's end.
#[derive(Debug)]
struct Failure {
    /// None if a signal ended it.
    code: Option<i32>,
    reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.reason)
    }
}

impl std::error::Error for Failure {}

fn start(name: &str, arguments: &[&str], input: &str) -> io::Result<Output> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(name);
    command
        .args(arguments)
        .env("PATH", format!("{path}:{}", PLACES.join(":")))
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    finish(command, input, LIMIT)
}

fn finish(mut command: Command, input: &str, limit: Duration) -> io::Result<Output> {
    let mut child = signals::start(&mut command)?;
    let id = child.id();
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading tells why in its output.
        let _ = stdin.write_all(input.as_bytes());
    }
    let (sender, ended) = bounded(1);
    // Not joined: when the program has been killed it ends too, whoever else still holds its output.
    let _waiter = thread::spawn("vpn:program", 0, 32 * 1024, move || {
        let _ = sender.send(child.wait_with_output());
    })?;
    ended.recv_timeout(limit).unwrap_or_else(|_| {
        signals::kill(id);
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("not done within {limit:?}, killed")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock;

    #[test]
    fn a_program_that_hangs_is_killed() {
        let begun = clock::now();
        let mut command = Command::new("sleep");
        command.arg("60").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let error = finish(command, "", Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(clock::now() - begun < Duration::from_secs(30));
    }

    #[test]
    fn what_a_program_prints_and_why_it_fails_is_told() {
        assert_eq!(run("cat", &[], "heard").unwrap(), "heard");
        let error = run("sh", &["-c", "echo why >&2; exit 4"], "").unwrap_err();
        assert!(has_exited_with(&error, 4) && !has_exited_with(&error, 1));
        assert!(error.to_string().ends_with(": why"), "{error}");
    }
}
