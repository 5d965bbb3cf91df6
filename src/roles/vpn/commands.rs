//! `udpferry vpn status`, `vpn confirm` and `vpn down`: what an operator asks of a running tunnel, or
//! of one that was killed.

use super::args::tun_name;
use super::socket_path;
use crate::cli::common::INFORMATION;
use crate::cli::flags::Matches;
use crate::cli::table::{Command, Opt};
use crate::error::Error;
use crate::roles::control::{Answer, ask};
use crate::roles::host::{Host, Places, dns, journal_path};
use crate::roles::report::say;
use crate::runtime::daemon::absolute;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Which tunnel is meant.
const TUNNEL: &[Opt] = &[
    Opt::value(
        &["--tun-name"],
        "NAME",
        None,
        "The tunnel's device. Without it, the only one that there is (of status: all).",
    ),
    Opt::value(
        &["--runtime-dir"],
        "DIR",
        Some("/run/udpferry-vpn"),
        "The tunnel's own --runtime-dir.",
    ),
];

const FORMAT: &[Opt] =
    &[Opt::switch(&["--json"], "Print an object in JSON on a line for each tunnel.")];

/// The options of `vpn status`.
pub const STATUS: Command = Command {
    name: "vpn status",
    summary: "endpoint, addresses, clients, offloads in use and drops of a running vpn",
    about: "Asks the running `udpferry vpn server` or `vpn client` on this machine. Root only.",
    positionals: &[],
    sections: &[("Tunnel", TUNNEL), ("Format", FORMAT), ("Common", INFORMATION)],
    examples: &[("udpferry vpn status", "Every tunnel of this machine.")],
};

/// The options of `vpn confirm`.
pub const CONFIRM: Command = Command {
    name: "vpn confirm",
    summary: "keep what a vpn client with --confirm has changed",
    about: "Tells a running `udpferry vpn client --confirm TIME` on this machine that its operator \
            still reaches it: it goes on. Root only.",
    positionals: &[],
    sections: &[("Tunnel", TUNNEL), ("Common", INFORMATION)],
    examples: &[("udpferry vpn confirm", "The only tunnel of this machine.")],
};

/// The options of `vpn down`.
pub const DOWN: Command = Command {
    name: "vpn down",
    summary: "stop a vpn and undo what it changed, also what a killed one left",
    about: "Stops the running `udpferry vpn server` or `vpn client`, which undoes its changes to this \
            machine. Where none runs, undoes what one that was killed has left, a kill switch \
            included. Root only.",
    positionals: &[],
    sections: &[("Tunnel", TUNNEL), ("Common", INFORMATION)],
    examples: &[("udpferry vpn down", "The only tunnel of this machine.")],
};

/// Prints the status of one tunnel, or of all.
pub fn status(m: &Matches) -> Result<u8, Error> {
    let place = Place::of(m)?;
    let question = if m.flag("--json") { "status json" } else { "status" };
    let tunnels = match &place.tun {
        Some(tun) => vec![tun.clone()],
        None => place.tunnels(),
    };
    if tunnels.is_empty() {
        return Err(place.nothing());
    }
    // One that was killed hides none of the others.
    let mut failure = None;
    for (index, tun) in tunnels.iter().enumerate() {
        if index > 0 && question == "status" {
            say("\n")?;
        }
        match place.ask(tun, question) {
            Ok(answer) => say(&answer)?,
            Err(error) => {
                if let Some(before) = failure.replace(error) {
                    log::error!("{before}");
                }
            }
        }
    }
    failure.map_or(Ok(0), Err)
}

/// Confirms.
pub fn confirm(m: &Matches) -> Result<u8, Error> {
    let place = Place::of(m)?;
    let tun = place.the_one()?;
    say(&place.ask(&tun, "confirm")?).map(|()| 0)
}

/// Stops, or undoes.
pub fn down(m: &Matches) -> Result<u8, Error> {
    let place = Place::of(m)?;
    let places = Places::new(&place.runtime_dir);
    if dns::restore_orphans(&places) {
        say("put back what a run before a loss of power had left in /etc/resolv.conf\n")?;
        if place.tun.is_none() && place.tunnels().is_empty() {
            return Ok(0);
        }
    }
    let tun = place.the_one()?;
    let has_kind = |error: &Error, kinds: &[io::ErrorKind]| match error {
        Error::System { cause, .. } => kinds.contains(&cause.kind()),
        _ => false,
    };
    let is_ended = |error: &Error| has_kind(error, &[io::ErrorKind::UnexpectedEof]);
    let killed = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
    let is_killed = |error: &Error| has_kind(error, &killed);
    let journal = journal_path(&place.runtime_dir, &tun);
    match place.ask(&tun, "down") {
        // Its end is the answer.
        Err(error) if is_ended(&error) && !journal.exists() => {
            say(&format!("{tun}: stopped, everything is undone\n"))?;
        }
        Err(error) if is_killed(&error) && journal.exists() => {
            // Opening it undoes what is in it.
            Host::open(places, &tun, false)?.undo();
            if journal.exists() {
                return Err(Error::System {
                    doing: format!("cannot undo everything that a run of {tun} has left"),
                    cause: io::Error::other(format!("{} has the rest", journal.display())),
                });
            }
            // Left by the same process.
            let _ = fs::remove_file(socket_path(&place.runtime_dir, &tun));
            say(&format!("{tun}: undone what a run that was killed had left\n"))?;
        }
        answer => say(&answer?)?,
    }
    Ok(0)
}

/// Where tunnels are looked for, and which.
struct Place {
    runtime_dir: PathBuf,
    tun: Option<String>,
}

impl Place {
    fn of(m: &Matches) -> Result<Place, Error> {
        Ok(Place {
            // Its row has a default.
            runtime_dir: m.path("--runtime-dir").map(|path| absolute(&path)).unwrap_or_default(),
            tun: m.one("--tun-name", tun_name)?,
        })
    }

    /// The tunnels that run here, or were killed.
    fn tunnels(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.runtime_dir) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| tun_of(&entry.path()));
        let mut tunnels: Vec<String> = names.collect();
        tunnels.sort_unstable();
        tunnels.dedup();
        tunnels
    }

    fn the_one(&self) -> Result<String, Error> {
        if let Some(tun) = &self.tun {
            return Ok(tun.clone());
        }
        match &self.tunnels()[..] {
            [] => Err(self.nothing()),
            [tun] => Ok(tun.clone()),
            several => Err(Error::System {
                doing: "cannot choose a tunnel".to_owned(),
                cause: io::Error::other(format!("--tun-name: one of {}", several.join(", "))),
            }),
        }
    }

    fn nothing(&self) -> Error {
        Error::System {
            doing: format!("cannot find a tunnel in {}", self.runtime_dir.display()),
            cause: io::Error::new(io::ErrorKind::NotFound, "no vpn runs here, and none was killed"),
        }
    }

    fn ask(&self, tun: &str, question: &str) -> Result<String, Error> {
        let path = socket_path(&self.runtime_dir, tun);
        let cannot = || format!("cannot ask the vpn on {tun} at {}", path.display());
        match ask(&path, question).map_err(Error::while_doing(cannot))? {
            Answer::Done(text) => Ok(text),
            Answer::Refused(why) => Err(Error::System {
                doing: format!("{tun} refuses to {question}"),
                cause: io::Error::other(why),
            }),
        }
    }
}

/// The device whose socket or journal this is.
fn tun_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_prefix("vpn-")?;
    let name = name.strip_suffix(".sock").or_else(|| name.strip_suffix(".journal"))?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_are_found_by_their_files() {
        for (file, tun) in [
            ("/run/udpferry-vpn/vpn-vpnc.sock", Some("vpnc")),
            ("/run/udpferry-vpn/vpn-a.b.journal", Some("a.b")),
            ("/run/udpferry-vpn/vpn-vpnc.client", None),
            ("/run/udpferry-vpn/mesh-x.sock", None),
        ] {
            assert_eq!(tun_of(Path::new(file)).as_deref(), tun, "{file}");
        }
    }
}
