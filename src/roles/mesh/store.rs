//! The file that tunnels survive a restart in. It is always whole: the old state or the new one,
//! whenever the process or the machine stops.

use super::message::fields::{read_tunnel, written};
use crate::error::Error;
use crate::state::mesh::tunnel::Tunnel;
use serde_json::{Value, json};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The form of the file.
const VERSION: u64 = 1;

/// How many corrupt files are set aside under different names, before the start is refused: somebody
/// should look at them.
const SET_ASIDE_MAX: u32 = 100;

/// What the file holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct State {
    pub(super) tunnels: Vec<Tunnel>,
    /// The time of the newest command with a proof that has counted, in milliseconds since 1970.
    pub(super) command_time_ms: u64,
}

/// Where the state is kept.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
}

/// What a file is that cannot be read.
#[derive(Debug, PartialEq, Eq)]
enum Unreadable {
    /// It is none of ours, or damaged.
    Corrupt(String),
    /// A later version of this program has written it.
    Newer(u64),
}

impl Store {
    pub(super) fn new(path: PathBuf) -> Store {
        Store { path }
    }

    /// The state as it was saved last; None if there is no file, or if it is corrupt: then it is
    /// set aside and logged.
    pub(super) fn load(&self) -> Result<Option<State>, Error> {
        let shown = self.path.display();
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).map_err(Error::while_doing(|| format!("cannot read {shown}")));
            }
        };
        match read(&text) {
            Ok(state) => Ok(Some(state)),
            Err(Unreadable::Newer(version)) => {
                let cause = io::Error::other(format!("its version is {version}, not {VERSION}"));
                Err(cause)
                    .map_err(Error::while_doing(|| format!("cannot take the state of {shown}")))
            }
            Err(Unreadable::Corrupt(why)) => {
                self.set_aside(&format!("is corrupt: {why}")).map(|()| None)
            }
        }
    }

    /// Renames the file of tunnels that are not wanted in this run, in place of the last one of those.
    pub(super) fn put_away(&self) -> Result<(), Error> {
        let (shown, aside) = (self.path.display(), beside(&self.path, ".not-restored"));
        fs::rename(&self.path, &aside)
            .map_err(Error::while_doing(|| format!("cannot set {shown} aside")))?;
        log::info!("{shown} is not restored (--no-restore); it is now {}", aside.display());
        Ok(())
    }

    /// Renames the file, so that nothing overwrites it; `why` says what it is.
    pub(super) fn set_aside(&self, why: &str) -> Result<(), Error> {
        let shown = self.path.display();
        for number in 1..=SET_ASIDE_MAX {
            let aside = beside(&self.path, &format!(".corrupt-{number}"));
            // Linking refuses a name that is taken, which renaming does not.
            match fs::hard_link(&self.path, &aside) {
                Ok(()) => {
                    fs::remove_file(&self.path)
                        .map_err(Error::while_doing(|| format!("cannot set {shown} aside")))?;
                    log::error!("{shown} {why}; it is now {}", aside.display());
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).map_err(Error::while_doing(|| {
                        format!("{shown} {why}; cannot set it aside")
                    }));
                }
            }
        }
        Err(io::ErrorKind::AlreadyExists.into()).map_err(Error::while_doing(|| {
            format!("{shown} {why}; {SET_ASIDE_MAX} such files are there already")
        }))
    }

    /// Writes the state. When this returns it is on the disk.
    pub(super) fn save(&self, state: &State) -> io::Result<()> {
        replace(&mut RealDisk, &self.path, write(state).as_bytes())
    }
}

fn write(state: &State) -> String {
    let tunnels: Value =
        state.tunnels.iter().map(|tunnel| Value::Object(written(tunnel))).collect();
    let object = json!({
        "version": VERSION, "commandTime": state.command_time_ms, "tunnel": tunnels
    });
    format!("{object:#}\n")
}

fn read(text: &[u8]) -> Result<State, Unreadable> {
    let corrupt = |why: &str| Unreadable::Corrupt(why.to_owned());
    let value: Value = serde_json::from_slice(text).map_err(|error| corrupt(&error.to_string()))?;
    match value.get("version").and_then(Value::as_u64) {
        Some(VERSION) => {}
        Some(newer) if newer > VERSION => return Err(Unreadable::Newer(newer)),
        _ => return Err(corrupt("it has no version")),
    }
    let command_time_ms = value.get("commandTime").and_then(Value::as_u64);
    let tunnels = value.get("tunnel").and_then(Value::as_array);
    let (Some(command_time_ms), Some(tunnels)) = (command_time_ms, tunnels) else {
        return Err(corrupt("commandTime or tunnel is missing"));
    };
    let tunnel = |(index, tunnel): (usize, &Value)| {
        let object = tunnel.as_object().ok_or_else(|| corrupt("a tunnel is no object"))?;
        read_tunnel(index, object).map_err(|refusal| corrupt(&refusal.to_string()))
    };
    let tunnels = tunnels.iter().enumerate().map(tunnel).collect::<Result<_, _>>()?;
    Ok(State { tunnels, command_time_ms })
}

/// What replacing a file takes of a file system.
trait Disk {
    /// Makes the file, or empties it.
    fn create(&mut self, path: &Path) -> io::Result<()>;
    /// Writes behind what has been written.
    fn append(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// What has been written stays, whatever happens (fsync(2)).
    fn sync_file(&mut self, path: &Path) -> io::Result<()>;
    /// Renames over what has that name.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    /// The names of the directory stay, whatever happens.
    fn sync_directory(&mut self, path: &Path) -> io::Result<()>;
}

/// Puts `bytes` in the place of the file: all of them or none, wherever this is interrupted.
fn replace(disk: &mut impl Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = beside(path, ".new");
    disk.create(&new)?;
    disk.append(&new, bytes)?;
    // Before the new name: else it could be there without what it names.
    disk.sync_file(&new)?;
    disk.rename(&new, path)?;
    disk.sync_directory(directory_of(path))
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

struct RealDisk;

impl Disk for RealDisk {
    fn create(&mut self, path: &Path) -> io::Result<()> {
        // Nobody else's business: who talks to whom.
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).map(drop)
    }

    fn append(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().append(true).open(path)?.write_all(bytes)
    }

    fn sync_file(&mut self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_directory(&mut self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

#[cfg(test)]
mod tests;
