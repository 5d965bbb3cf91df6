//! What a tunnel changes on its host, and how all of it is undone: forwarding and NAT, routes and rules, a
//! kill switch, DNS, hooks.
//!
//! ```text
//!   plan (server, client) --> step: written to the journal, then done
//!                                   |
//!   <runtime-dir>/vpn-<tun>.journal |   one line a step: how to undo it
//!                                   v
//!   stop, next start, `vpn down`: undone from the last to the first, whoever made them
//! ```
//!
//! A step is in the journal before it is done, so that a run that was killed at any moment leaves nothing
//! behind that the next one does not know of. Undoing what is gone already is no error.

pub mod client;
pub mod dns;
pub mod firewall;
pub mod hooks;
pub mod journal;
mod mend;
pub mod program;
pub mod server;
pub mod ssh;
mod undo;

use crate::error::Error;
use crate::net::netlink::Netlink;
use journal::{Journal, Step};
use std::path::{Path, PathBuf};

/// The files that a tunnel's host set-up reads and writes. Tests have others.
#[derive(Debug, Clone)]
pub struct Places {
    /// Where journals are: by default `/run/udpferry-vpn`.
    pub runtime_dir: PathBuf,
    /// The resolver's configuration: `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
}

impl Places {
    /// The usual places, with this runtime directory.
    pub fn new(runtime_dir: impl Into<PathBuf>) -> Places {
        Places { runtime_dir: runtime_dir.into(), resolv_conf: "/etc/resolv.conf".into() }
    }
}

/// Whether a text is an interface's name that is safe everywhere it goes: into nftables, into a command, into a
/// file's name. 1 to 15 bytes (IFNAMSIZ), letters, digits, `-`, `_` and `.`, no dot first.
pub fn is_interface_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// A tunnel's changes to its host. They stay when this is dropped: [`Host::undo`] undoes them.
pub struct Host {
    /// The tunnel's interface.
    pub(crate) tun: String,
    pub(crate) places: Places,
    pub(crate) netlink: Netlink,
    journal: Journal,
    /// Those of a client's plan that is in force, to be changed when the server's address does.
    client: Option<client::InForce>,
    /// A server's table of nftables that is in force.
    server: Option<server::InForce>,
    /// Whether the log says that something cannot be mended.
    has_complained: bool,
}

impl Host {
    /// Takes the tunnel's host set-up over: what a run that was killed has left behind is undone, except for
    /// a kill switch when `keeps_kill_switch`, so that there is no gap until the new one replaces it.
    ///
    /// `tun` must be an interface's name ([`is_interface_name`]).
    pub fn open(places: Places, tun: &str, keeps_kill_switch: bool) -> Result<Host, Error> {
        std::fs::create_dir_all(&places.runtime_dir).map_err(Error::while_doing(|| {
            format!("cannot make the directory {}", places.runtime_dir.display())
        }))?;
        let path = journal_path(&places.runtime_dir, tun);
        let (journal, left) = Journal::open(&path).map_err(Error::while_doing(|| {
            format!("cannot open the journal {}", path.display())
        }))?;
        let netlink = Netlink::open().map_err(Error::while_doing(|| "cannot open netlink"))?;
        let tun = tun.to_owned();
        let mut host = Host {
            tun,
            places,
            netlink,
            journal,
            client: None,
            server: None,
            has_complained: false,
        };
        if !left.is_empty() {
            let tun = &host.tun;
            log::warn!("{tun}: undoing {} changes that a run before this one left", left.len());
        }
        host.undo_steps(left, keeps_kill_switch)?;
        dns::restore_orphans(&host.places);
        Ok(host)
    }

    /// Undoes everything, from the last to the first. What fails is logged and stays in the journal, for the next
    /// start or `vpn down`; the rest is undone all the same.
    pub fn undo(&mut self) {
        (self.client, self.server) = (None, None);
        let steps = self.journal.take();
        if let Err(error) = self.undo_steps(steps, false) {
            log::error!("{error}");
        }
    }

    /// Whether a kill switch is in force.
    pub fn is_guarded(&self) -> bool {
        self.journal.steps().iter().any(|step| matches!(step, Step::KillSwitch(_)))
    }

    /// Undoes everything but a kill switch, which stays in force until the next plan replaces it.
    pub fn undo_but_kill_switch(&mut self) -> Result<(), Error> {
        (self.client, self.server) = (None, None);
        let steps = self.journal.take();
        self.undo_steps(steps, true)
    }

    /// Writes a step down, then does it. A step that fails stays in the journal: it may be half done.
    pub(crate) fn step(
        &mut self,
        step: Step,
        act: impl FnOnce(&mut Host) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.journal.note(step).map_err(Error::while_doing(|| "cannot write the journal"))?;
        act(self)
    }

    fn undo_steps(&mut self, steps: Vec<Step>, keeps_kill_switch: bool) -> Result<(), Error> {
        let mut kept = Vec::new();
        for step in steps.into_iter().rev() {
            if keeps_kill_switch && matches!(step, Step::KillSwitch(_)) {
                kept.push(step);
            } else if let Err(error) = undo::undo(self, &step) {
                log::error!(
                    "{}: cannot undo \"{step}\": {error}; it stays in the journal",
                    self.tun
                );
                kept.push(step);
            }
        }
        kept.reverse();
        self.journal.replace(kept).map_err(Error::while_doing(|| "cannot write the journal"))
    }

    /// Undoes a step that has failed, as far as it was done, for another one in its place.
    pub(crate) fn abandon(&mut self, step: &Step) {
        if let Err(error) = undo::undo(self, step) {
            log::debug!("{}: cannot undo \"{step}\": {error}", self.tun);
        }
        if let Err(error) = self.journal.forget(step) {
            log::error!("{}: cannot write the journal: {error}", self.tun);
        }
    }

    /// Undoes one step that is not needed any more.
    pub(crate) fn withdraw(&mut self, step: &Step) {
        if let Err(error) = undo::undo(self, step) {
            log::error!("{}: cannot undo \"{step}\": {error}; it stays in the journal", self.tun);
            return;
        }
        if let Err(error) = self.journal.forget(step) {
            log::error!("{}: cannot write the journal: {error}", self.tun);
        }
    }
}

/// The journal of a tunnel.
pub fn journal_path(runtime_dir: &Path, tun: &str) -> PathBuf {
    runtime_dir.join(format!("vpn-{tun}.journal"))
}
