//! The operator's own commands, when the tunnel is up and before it goes.

use crate::cli::flags::HOOK_VARIABLE;
use crate::error::Error;
use crate::runtime::errands::Errands;
use crate::runtime::{signals, thread};
use crossbeam_channel::{RecvTimeoutError, bounded};
use std::io;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

/// Longer than a command that sets things up takes; the tunnel waits for it.
pub const UP_LIMIT: Duration = Duration::from_secs(10);
/// The operator's command is part of the stop: a service manager kills what has not ended with the process. Within
/// the ten seconds (TimeoutStopSec) that the units give it.
pub const DOWN_LIMIT: Duration = Duration::from_secs(5);

/// What a command is told in its environment: names without their prefix `UDPFERRY_`, and values.
pub type Facts<'a> = &'a [(&'a str, String)];

/// How a command went.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ended well.
    Done,
    /// It ended otherwise.
    Failed(ExitStatus),
    /// It had not ended in time, and goes on.
    Slow,
}

/// Runs a command with `/bin/sh -c` and waits for its end, `limit` at the most. It reads nothing, and prints where this
/// program prints.
pub fn run(command: &str, facts: Facts<'_>, limit: Duration) -> Result<Outcome, Error> {
    let doing = || format!("cannot run the hook {command:?}");
    let names: Vec<&str> = facts.iter().map(|(name, _)| *name).collect();
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", command])
        .envs(facts.iter().map(|(name, value)| (format!("UDPFERRY_{name}"), value)))
        .env(HOOK_VARIABLE, names.join(" "))
        .stdin(Stdio::null());
    let mut child = signals::start(&mut shell).map_err(Error::while_doing(doing))?;
    let (sender, ended) = bounded(1);
    // Not joined when the command is slow: it ends with the command, or with the process.
    let _waiter = thread::spawn("vpn:hook", 0, 32 * 1024, move || {
        let _ = sender.send(child.wait());
    })
    .map_err(Error::while_doing(doing))?;
    match ended.recv_timeout(limit) {
        Ok(Ok(status)) if status.success() => Ok(Outcome::Done),
        Ok(Ok(status)) => Ok(Outcome::Failed(status)),
        Ok(Err(cause)) => Err(Error::System { doing: doing(), cause }),
        Err(RecvTimeoutError::Timeout) => Ok(Outcome::Slow),
        Err(RecvTimeoutError::Disconnected) => {
            Err(Error::System { doing: doing(), cause: io::ErrorKind::BrokenPipe.into() })
        }
    }
}

/// Runs a command as [`run`] does; whatever becomes of it is a line in the log.
pub fn run_and_log(command: &str, facts: Facts<'_>, limit: Duration) {
    match run(command, facts, limit) {
        Ok(Outcome::Done) => {}
        Ok(Outcome::Failed(status)) => log::warn!("the hook {command:?} failed: {status}"),
        Ok(Outcome::Slow) => {
            log::warn!("the hook {command:?} still runs after {limit:?}; not waiting for it");
        }
        Err(error) => log::warn!("{error}"),
    }
}

/// Runs the command of an end behind those that still run, and waits for it, [`DOWN_LIMIT`] at the most.
pub fn run_last(hooks: &Errands, command: &str, facts: Vec<(&'static str, String)>) {
    let (sender, ended) = bounded(1);
    let last = command.to_owned();
    let is_sent = hooks.send(move || {
        run_and_log(&last, &facts, DOWN_LIMIT);
        let _ = sender.send(());
    });
    if !is_sent || ended.recv_timeout(DOWN_LIMIT).is_err() {
        log::warn!("the hook {command:?} is not waited for any longer");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_is_told_and_its_end_is_seen() {
        let facts = [("TUN", "vpnc".to_owned())];
        assert_eq!(run("test \"$UDPFERRY_TUN\" = vpnc", &facts, UP_LIMIT).unwrap(), Outcome::Done);
        let marker = "test \"$UDPFERRY_HOOK\" = TUN";
        assert_eq!(run(marker, &facts, UP_LIMIT).unwrap(), Outcome::Done);
        let Outcome::Failed(status) = run("exit 3", &facts, UP_LIMIT).unwrap() else { panic!() };
        assert_eq!(status.code(), Some(3));
        // A hook that starts a daemon starts one that can be stopped, whichever thread runs the hook.
        let unblocked = || run("grep -q '^SigBlk:.*0000$' /proc/self/status", &[], UP_LIMIT);
        let waiter = thread::spawn("test", 0, 128 * 1024, move || unblocked().unwrap()).unwrap();
        assert_eq!(waiter.join().unwrap(), Outcome::Done);
        assert_eq!(run("exec sleep 5", &facts, Duration::from_millis(20)).unwrap(), Outcome::Slow);
    }
}
