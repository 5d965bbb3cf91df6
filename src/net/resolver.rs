//! The machine's own resolver, as resolv.conf names it at the moment.

use super::resolv_conf::nameservers;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the file is looked at, at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What tells one version of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

#[derive(Debug, Default)]
struct Known {
    looked: Option<Instant>,
    stamp: Option<Stamp>,
    nameserver: Option<SocketAddr>,
}

/// Where queries go: a fixed address, or the first nameserver of a resolv.conf that is read again
/// when it changes.
#[derive(Debug)]
pub struct Resolver {
    fixed: Option<SocketAddr>,
    path: PathBuf,
    known: Mutex<Known>,
}

impl Resolver {
    /// `fixed` wins; without it the file at `path` is asked.
    pub fn new(fixed: Option<SocketAddr>, path: &Path) -> Resolver {
        Resolver { fixed, path: path.to_owned(), known: Mutex::default() }
    }

    /// The nameserver of now. `None` when the file is missing or names none.
    pub fn nameserver(&self, now: Instant) -> Option<SocketAddr> {
        if self.fixed.is_some() {
            return self.fixed;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = known
            .looked
            .is_some_and(|looked| now.saturating_duration_since(looked) < LOOK_INTERVAL);
        if !fresh {
            known.looked = Some(now);
            let stamp = self.stamp();
            if stamp != known.stamp || stamp.is_none() {
                known.stamp = stamp;
                known.nameserver = self.read();
            }
        }
        known.nameserver
    }

    fn stamp(&self) -> Option<Stamp> {
        let metadata = fs::metadata(&self.path).ok()?;
        Some(Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    fn read(&self) -> Option<SocketAddr> {
        let bytes = fs::read(&self.path).ok()?;
        nameservers(&String::from_utf8_lossy(&bytes), interface_index).first().copied()
    }
}

/// An interface's number, from sysfs.
fn interface_index(name: &str) -> Option<u32> {
    // Interface names hold no slash, and nobody shall lead us elsewhere.
    if name.contains('/') || name.starts_with('.') {
        return None;
    }
    fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::disallowed_methods)] // Tests count from whatever instant they start at.
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn the_file_is_read_again_when_it_changes_but_not_all_the_time() {
        let path = std::env::temp_dir().join(format!("udpferry-resolver-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let resolver = Resolver::new(None, &path);
        let begin = start();
        let second = Duration::from_secs(1);
        assert_eq!(resolver.nameserver(begin), None, "the file is missing");
        fs::write(&path, "nameserver 2001:db8::53\n").unwrap();
        assert_eq!(resolver.nameserver(begin + second / 2), None, "looked at a moment ago");
        let v6 = "[2001:db8::53]:53".parse().unwrap();
        assert_eq!(resolver.nameserver(begin + second), Some(v6));
        fs::write(&path, "nameserver 192.0.2.53\n").unwrap();
        let v4 = "192.0.2.53:53".parse().unwrap();
        assert_eq!(resolver.nameserver(begin + second * 2), Some(v4));
        fs::write(&path, "# none\n").unwrap();
        assert_eq!(resolver.nameserver(begin + second * 3), None);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_fixed_nameserver_wins_and_interfaces_have_numbers() {
        let fixed = Some("192.0.2.1:5353".parse().unwrap());
        assert_eq!(Resolver::new(fixed, Path::new("/nowhere")).nameserver(start()), fixed);
        assert_eq!(interface_index("lo"), Some(1));
        assert_eq!(interface_index("../lo"), None);
        assert_eq!(interface_index("no-such"), None);
    }
}
