//! The file in which a server's leases outlive it.
//!
//! ```text
//! udpferry vpn leases 1
//! 00112233445566778899aabbccddeeff 10.0.0.1 fd00::1
//! ffeeddccbbaa99887766554433221100 10.0.0.3 -
//! ```
//!
//! A line for each lease: the client's number in hexadecimal, its IPv4 and its IPv6 address, `-` for
//! none. The client that has been away for longest stands first.

use crate::error::Error;
use crate::state::vpn::Addresses;
use crate::state::vpn::leases::Leases;
use crate::wire::vpn::ClientId;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const TITLE: &str = "udpferry vpn leases 1";
/// A change is on disk after so long at the latest: a crash costs no more than the addresses of those
/// who came since, and they say which ones they had.
const DELAY: Duration = Duration::from_secs(1);
/// A disk that is full now has room in a while.
const RETRY: Duration = Duration::from_secs(60);

/// Where leases are kept, if they are.
pub(super) struct LeaseFile {
    path: Option<PathBuf>,
    /// When what has changed is to be written.
    due: Option<Instant>,
}

impl LeaseFile {
    /// The file of a tunnel below the state directory, which is made if need be. Its leases go into
    /// `leases`.
    pub(super) fn open(
        state_dir: Option<&Path>,
        tun: &str,
        leases: &mut Leases,
    ) -> Result<LeaseFile, Error> {
        let Some(directory) = state_dir else {
            return Ok(LeaseFile { path: None, due: None });
        };
        let path = directory.join(format!("vpn-{tun}.leases"));
        let cannot = || format!("cannot use the leases in {} (--state-dir)", path.display());
        fs::create_dir_all(directory).map_err(Error::while_doing(cannot))?;
        match fs::read(&path) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                let unread = restore(&text, leases);
                if unread > 0 {
                    // It is about to be written anew: what a later version wrote, or a slip of an editor, is not lost.
                    let aside = path.with_extension("leases-unread");
                    log::warn!(
                        "{}: {unread} lines that say nothing; the file is kept as {}",
                        path.display(),
                        aside.display()
                    );
                    write(&aside, &bytes).map_err(Error::while_doing(cannot))?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::while_doing(cannot)(error)),
        }
        Ok(LeaseFile { path: Some(path), due: None })
    }

    /// Leases have changed.
    pub(super) fn changed(&mut self, now: Instant) {
        self.due.get_or_insert(now + DELAY);
    }

    /// When [`LeaseFile::tend`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Writes what has changed, once it is due.
    pub(super) fn tend(&mut self, now: Instant, leases: &Leases) {
        if self.due.is_some_and(|due| due <= now) {
            self.save(leases);
            if self.due.is_some() {
                self.due = Some(now + RETRY);
            }
        }
    }

    /// Writes what has changed.
    pub(super) fn save(&mut self, leases: &Leases) {
        let (Some(path), Some(due)) = (&self.path, self.due.take()) else { return };
        if let Err(error) = write(path, text(leases).as_bytes()) {
            log::error!("cannot write {}: {error}", path.display());
            self.due = Some(due);
        }
    }
}

/// Whole or not at all, and there after a power cut.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = OsString::from(path);
    beside.push("-new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(beside, path)
}

fn text(leases: &Leases) -> String {
    let mut text = format!("{TITLE}\n");
    for (client, addresses) in leases.iter() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{}", hex(client));
        for address in
            [addresses.ipv4().map(Into::into), addresses.ipv6().map(std::net::IpAddr::V6)]
        {
            let _ = match address {
                Some(address) => write!(text, " {address}"),
                None => write!(text, " -"),
            };
        }
        text.push('\n');
    }
    text
}

/// Returns how many lines say nothing.
fn restore(text: &str, leases: &mut Leases) -> usize {
    let mut lines = text.lines();
    if lines.next().is_some_and(|title| title != TITLE) {
        return text.lines().count();
    }
    let mut unread = 0;
    for line in lines {
        match lease(line) {
            Some((client, addresses)) => leases.restore(client, addresses),
            None => unread += 1,
        }
    }
    unread
}

fn lease(line: &str) -> Option<(ClientId, Addresses)> {
    let words: Vec<&str> = line.split(' ').collect();
    let [client, ipv4, ipv6] = words[..] else { return None };
    let ipv4 = if ipv4 == "-" { None } else { Some(ipv4.parse().ok()?) };
    let ipv6 = if ipv6 == "-" { None } else { Some(ipv6.parse().ok()?) };
    Some((client_id(client)?, Addresses::new(ipv4, ipv6)))
}

/// A client's number in hexadecimal.
pub(super) fn hex(client: ClientId) -> String {
    client.0.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The number that [`hex`] writes.
pub(super) fn client_id(text: &str) -> Option<ClientId> {
    let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten()?;
    Some(ClientId(number.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock;
    use crate::state::vpn::Wishes;
    use crate::state::vpn::leases::LEASES_MAX;
    use crate::state::vpn::subnet::Subnet;

    fn leases() -> Leases {
        let subnets = ["10.0.0.2", "fd00::2"].map(|own| {
            let own: std::net::IpAddr = own.parse().unwrap();
            Subnet::new(own, if own.is_ipv4() { 24 } else { 64 }).unwrap()
        });
        Leases::new(subnets, LEASES_MAX)
    }

    #[test]
    fn leases_come_back_from_their_file() {
        let directory =
            std::env::temp_dir().join(format!("udpferry-leases-{}", std::process::id()));
        let mut before = leases();
        let mut file = LeaseFile::open(Some(&directory), "vpns", &mut before).unwrap();
        before.take(ClientId([1; 16]), Wishes::default()).unwrap();
        before.take(ClientId([0xfe; 16]), Wishes::default()).unwrap();
        let now = clock::now();
        assert_eq!(file.next_deadline(), None);
        file.changed(now);
        file.changed(now + DELAY / 2);
        file.tend(now + DELAY / 2, &before);
        let path = directory.join("vpn-vpns.leases");
        assert!(!path.exists(), "not yet");
        file.tend(now + DELAY, &before);
        let expected = "udpferry vpn leases 1\n\
                        01010101010101010101010101010101 10.0.0.1 fd00::1\n\
                        fefefefefefefefefefefefefefefefe 10.0.0.3 fd00::3\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        let mut after = leases();
        LeaseFile::open(Some(&directory), "vpns", &mut after).unwrap();
        assert!(after.iter().eq(before.iter()));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_says_nothing_is_passed_over() {
        let mut leases = leases();
        assert_eq!(restore("", &mut leases), 0);
        assert_eq!(restore("another file\n1\n", &mut leases), 2);
        let lines = [
            TITLE,
            "01010101010101010101010101010101 10.0.0.1 -",
            "+1010101010101010101010101010101 10.0.0.4 -",
            "02020202020202020202020202020202 10.0.0.1",
            "02020202020202020202020202020202 10.0.0.x -",
            "0303030303030303030303030303030 10.0.0.3 -",
            "",
        ];
        assert_eq!(restore(&lines.join("\n"), &mut leases), 4);
        let all: Vec<_> = leases.iter().collect();
        let ipv4 = Addresses::new(Some("10.0.0.1".parse().unwrap()), None);
        assert_eq!(all, [(ClientId([1; 16]), ipv4)]);
        assert_eq!(text(&leases), format!("{}\n{}\n", lines[0], lines[1]));
    }

    #[test]
    fn without_a_directory_nothing_is_written() {
        let mut leases = leases();
        let mut file = LeaseFile::open(None, "vpns", &mut leases).unwrap();
        file.changed(clock::now());
        file.save(&leases);
    }
}
