//! What every role does before it serves, in the order that works: background, log, limits, pid
//! file; then the role opens its sockets; then privileges go and the world is told.

use crate::cli::common::Common;
use crate::cli::logging::{self, LogHandle, Sink};
use crate::error::Error;
use crate::net::sys::heap;
use crate::runtime::daemon::{self, Daemon, PidFile, Started};
use crate::runtime::privileges::Identity;
use crate::runtime::{limits, notify};
use log::LevelFilter;
use nix::syslog::Facility;
use std::fs;

/// The log target of lines that the operator asked for (`--stats-interval`, SIGUSR1): shown at
/// every level but `none`.
pub const ASKED_FOR: &str = "asked";

/// A role that is opening what it needs.
#[must_use]
pub struct Startup {
    log: LogHandle,
    pid_file: Option<PidFile>,
    identity: Option<Identity>,
    daemon: Option<Daemon>,
    /// Open files that the process may have (RLIMIT_NOFILE).
    pub open_files_max: u64,
}

/// A role that serves. The pid file goes with it.
#[must_use]
pub struct Running {
    /// For SIGHUP.
    pub log: LogHandle,
    _pid_file: Option<PidFile>,
}

/// Runs a role's `serve` with everything prepared, in the background if so asked. Returns the
/// process's exit code.
pub fn run(
    name: &'static str,
    common: &Common,
    serve: impl FnOnce(Startup) -> Result<(), Error>,
) -> Result<u8, Error> {
    let cannot_detach = Error::while_doing(|| "cannot go to the background");
    let daemon = match daemon::enter(common.daemon).map_err(cannot_detach)? {
        Started::Parent(code) => return Ok(u8::try_from(code).unwrap_or(1)),
        Started::Child(daemon) => Some(daemon),
        Started::Foreground => None,
    };
    heap::tune();
    let mut config = common.log.clone();
    if common.daemon && matches!(config.sink, Sink::Stderr | Sink::Stdout) {
        // A daemon's standard error goes nowhere.
        config.sink = Sink::Syslog { facility: Facility::LOG_DAEMON, ident: name.to_owned() };
    }
    if config.level != LevelFilter::Off {
        config.channels.push((ASKED_FOR.to_owned(), LevelFilter::Info));
    }
    let log = logging::start(&config).map_err(Error::while_doing(|| "cannot start the log"))?;
    let served = prepare(common, log, daemon).and_then(serve);
    if let Err(error) = &served {
        if !matches!(config.sink, Sink::Stderr) {
            // Standard error hears it from main.
            log::error!("{error}");
        }
    }
    served.map(|()| 0)
}

fn prepare(common: &Common, log: LogHandle, daemon: Option<Daemon>) -> Result<Startup, Error> {
    let (_, open_files_max) = limits::raise_open_files();
    let identity = Identity::lookup(common.user.as_deref(), common.group.as_deref())
        .map_err(Error::Privileges)?;
    let pid_file = match &common.pid_file {
        Some(path) => Some(
            PidFile::create(&daemon::absolute(path))
                .map_err(Error::while_doing(|| "cannot write the pid file"))?,
        ),
        None => None,
    };
    Ok(Startup { log, pid_file, identity, daemon, open_files_max })
}

impl Startup {
    /// Everything is open: gives up privileges and says that the role is ready.
    pub fn ready(self) -> Result<Running, Error> {
        if let Some(identity) = &self.identity {
            if let Some(pid_file) = &self.pid_file {
                identity.chown_path(pid_file.path()).map_err(Error::Privileges)?;
            }
            give_log_to(identity, &self.log);
            identity.drop_to().map_err(Error::Privileges)?;
        }
        if let Some(daemon) = self.daemon {
            daemon.ready().map_err(Error::while_doing(|| "cannot go to the background"))?;
        }
        notify::ready();
        Ok(Running { log: self.log, _pid_file: self.pid_file })
    }
}

/// Gives the log file to the new user, who must open it again on SIGHUP. Only a regular file: a
/// device or a pipe is not ours to give. A failure costs no more than that reopening.
fn give_log_to(identity: &Identity, log: &LogHandle) {
    let Some(path) = log.path() else { return };
    if !fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file()) {
        return;
    }
    if let Err(reason) = identity.chown_path(path) {
        log::warn!("the log file cannot be opened again on SIGHUP: {reason}");
    }
}
