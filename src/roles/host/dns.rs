//! The resolver's servers: by systemd-resolved, by resolvconf, or in /etc/resolv.conf itself, whichever is first there.

use super::journal::Step;
use super::{Host, program};
use crate::error::Error;
use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// The first line of a file that we wrote: a file without it is somebody else's.
const MARK: &str = "# written by udpferry vpn; the file before it is beside it";
/// systemd-resolved is there when this is (systemd-resolved.service(8)).
const RESOLVED: &str = "/run/systemd/resolve/stub-resolv.conf";

impl Host {
    /// Sends the resolver's questions to these servers, through the tunnel.
    pub(crate) fn resolve_by(&mut self, servers: &[IpAddr]) -> Result<(), Error> {
        let tun = self.tun.clone();
        let own = self.places.resolv_conf == Path::new("/etc/resolv.conf");
        if own && Path::new(RESOLVED).exists() && program::is_there("resolvectl") {
            let revert = ["resolvectl", "revert", &tun].map(str::to_owned).to_vec();
            return self.step(Step::Run(revert), |_| {
                let texts: Vec<String> = servers.iter().map(ToString::to_string).collect();
                let mut words = vec!["dns", &tun];
                words.extend(texts.iter().map(String::as_str));
                program::run("resolvectl", &words, "")?;
                // All domains, before those of other interfaces.
                program::run("resolvectl", &["domain", &tun, "~."], "")?;
                program::run("resolvectl", &["default-route", &tun, "true"], "").map(drop)
            });
        }
        if own && program::is_there("resolvconf") {
            let name = format!("{tun}.udpferry");
            let delete = ["resolvconf", "-d", &name].map(str::to_owned).to_vec();
            return self.step(Step::Run(delete), |_| {
                program::run("resolvconf", &["-a", &name], &text(servers)).map(drop)
            });
        }
        let path = self.places.resolv_conf.clone();
        self.step(Step::ResolvConf, |_| {
            replace(&path, &format!("{MARK}\n{}", text(servers)))
                .map_err(Error::while_doing(|| format!("cannot replace {}", path.display())))
        })
    }
}

fn text(servers: &[IpAddr]) -> String {
    servers.iter().fold(String::new(), |mut text, server| {
        let _ = writeln!(text, "nameserver {server}");
        text
    })
}

/// Where the file that was there stands meanwhile: beside it, since /run may be empty when the machine comes back.
fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".before-udpferry");
    name.into()
}

/// Puts a file in place of `path`, which is set aside, be it a file or a symbolic link.
fn replace(path: &Path, content: &str) -> io::Result<()> {
    let aside = beside(path);
    if !is_ours(path) {
        match fs::rename(path, &aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let new = path.with_extension("udpferry-new");
    fs::write(&new, content)?;
    set_readable(&new)?;
    fs::rename(new, path)
}

/// Everybody resolves names.
fn set_readable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

/// Puts the file back that was set aside. One that somebody else has put in its place since stays.
pub(super) fn restore(path: &Path) -> Result<(), Error> {
    let aside = beside(path);
    let exists = fs::symlink_metadata(path).is_ok();
    if exists && !is_ours(path) {
        log::warn!(
            "{} has been changed by others; it stays, and {} too",
            path.display(),
            aside.display()
        );
        return Ok(());
    }
    let result = match fs::rename(&aside, path) {
        // There was none.
        Err(error) if error.kind() == io::ErrorKind::NotFound && exists => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    result.map_err(Error::while_doing(|| format!("cannot put {} back", path.display())))
}

fn is_ours(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
        && fs::read_to_string(path).is_ok_and(|text| text.starts_with(MARK))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> PathBuf {
        let serial = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        let place =
            std::env::temp_dir().join(format!("udpferry-dns-{}-{serial}", std::process::id()));
        fs::create_dir(&place).unwrap();
        place
    }

    #[test]
    fn files_links_and_nothing_come_back() {
        for kind in ["file", "link", "nothing"] {
            let place = place();
            let path = place.join("resolv.conf");
            match kind {
                "file" => fs::write(&path, "nameserver 192.0.2.53\n").unwrap(),
                "link" => std::os::unix::fs::symlink("../run/stub", &path).unwrap(),
                _ => {}
            }
            replace(&path, &format!("{MARK}\nnameserver 10.0.0.2\n")).unwrap();
            // Again, as after a run that was killed: what was set aside is not lost.
            replace(&path, &format!("{MARK}\nnameserver 10.0.0.3\n")).unwrap();
            assert!(fs::read_to_string(&path).unwrap().ends_with("10.0.0.3\n"));
            restore(&path).unwrap();
            restore(&path).unwrap();
            match kind {
                "file" => assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 192.0.2.53\n"),
                "link" => assert_eq!(fs::read_link(&path).unwrap(), Path::new("../run/stub")),
                _ => assert!(!path.exists()),
            }
            assert!(!beside(&path).exists());
            fs::remove_dir_all(place).unwrap();
        }
    }

    #[test]
    fn what_others_wrote_meanwhile_stays() {
        let place = place();
        let path = place.join("resolv.conf");
        fs::write(&path, "nameserver 192.0.2.53\n").unwrap();
        replace(&path, MARK).unwrap();
        fs::write(&path, "nameserver 192.0.2.54\n").unwrap();
        restore(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 192.0.2.54\n");
        fs::remove_dir_all(place).unwrap();
    }
}
