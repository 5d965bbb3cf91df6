//! The resolver's servers: by systemd-resolved, by resolvconf, or in /etc/resolv.conf itself, whichever is first there
//! and does it.

use super::journal::Step;
use super::{Host, Places, program};
use crate::error::Error;
use crate::net::netlink::Network;
use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The first line of a file that we wrote goes on with the tunnel's name, the number of the machine's run in which it was
/// written, and a full stop: a file without it is somebody else's.
const MARK: &str = "# written by udpferry vpn for ";
/// systemd-resolved's own file with the servers that it asks, and the directory that belongs to it
/// (systemd-resolved.service(8)).
const RESOLVED: &str = "/run/systemd/resolve";
const RESOLVED_SERVERS: &str = "resolv.conf";
/// Its stub, where /etc/resolv.conf leads to it without a link.
const RESOLVED_STUB: &str = "nameserver 127.0.0.53";
/// Where Debian's resolvconf says in which order interfaces count: those that begin with "tun." before Ethernet's.
const INTERFACE_ORDER: &str = "/etc/resolvconf/interface-order";
/// Another one after each start of the machine (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Tunnels that replace each other's file, one upon the other.
const TUNNELS_MAX: usize = 16;

/// Whom this host asks for names when no tunnel is there, and which users ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lookups {
    /// The servers of the file that was there before any tunnel's; none: whoever a daemon of this host asks.
    pub servers: Vec<IpAddr>,
    /// This process's user, and systemd-resolved's where there is one; none: a daemon's, which may be any.
    pub users: Vec<u32>,
}

/// DNS, and DNS over TLS (RFC 7858).
pub const LOOKUP_PORTS: [u16; 2] = [53, 853];
/// A cache of the C library's that asks in its clients' place.
const NSCD: &str = "/run/nscd/socket";

impl Lookups {
    /// As it is now.
    pub fn now(places: &Places) -> Lookups {
        let servers = servers_in(&content_below_tunnels(&places.resolv_conf));
        Lookups::of(servers, Path::new(RESOLVED), Path::new(NSCD))
    }

    fn of(mut servers: Vec<IpAddr>, resolved: &Path, nscd: &Path) -> Lookups {
        let mut users = vec![nix::unistd::geteuid().as_raw()];
        if let Ok(directory) = fs::metadata(resolved) {
            // The C library may ask it whatever the file says (nss-resolve(8)).
            users.push(directory.uid());
            let own = fs::read_to_string(resolved.join(RESOLVED_SERVERS)).unwrap_or_default();
            let is_stub = servers.iter().all(IpAddr::is_loopback);
            servers.extend(servers_in(&own));
            if is_stub {
                servers.retain(|server| !server.is_loopback());
            }
        }
        if servers.iter().any(IpAddr::is_loopback) {
            // dnsmasq, unbound, a container's: nobody says whom they ask.
            return Lookups::default();
        }
        if nscd.exists() {
            users.clear();
        }
        Lookups { servers, users }
    }

    /// Where questions go, and to which ports; a length of 0 is everywhere.
    pub(super) fn ways(&self) -> Vec<(Network, Option<u16>)> {
        if self.servers.is_empty() {
            let everywhere = [IpAddr::from([0; 4]), IpAddr::from([0; 16])];
            let everywhere = everywhere.map(|address| Network { address, length: 0 });
            let ways = everywhere.iter().flat_map(|to| LOOKUP_PORTS.map(|port| (*to, Some(port))));
            return ways.collect();
        }
        self.servers.iter().map(|server| (Network::host(server.to_canonical()), None)).collect()
    }
}

fn servers_in(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let address = line.strip_prefix("nameserver")?.split_ascii_whitespace().next()?;
        // Without the zone of a link-local address.
        address.split('%').next()?.parse().ok()
    };
    text.lines().filter_map(server).collect()
}

impl Host {
    /// Sends the resolver's questions to these servers, through the tunnel.
    pub(crate) fn resolve_by(&mut self, servers: &[IpAddr]) -> Result<(), Error> {
        if self.places.resolv_conf == Path::new("/etc/resolv.conf") {
            for (is_there, act) in [
                (is_resolved_asked(), Host::resolve_by_resolved as fn(&mut Host, &[IpAddr]) -> _),
                (program::is_there("resolvconf"), Host::resolve_by_resolvconf),
            ] {
                if !is_there {
                    continue;
                }
                let (step, done) = act(self, servers);
                match done {
                    Ok(()) => return Ok(()),
                    Err(error) => {
                        log::warn!("{}: {error}; trying another way to set DNS", self.tun);
                        self.abandon(&step);
                    }
                }
            }
        }
        let (path, tun) = (self.places.resolv_conf.clone(), self.tun.clone());
        self.step(Step::ResolvConf, |_| {
            replace(&path, &tun, servers)
                .map_err(Error::while_doing(|| format!("cannot replace {}", path.display())))
        })
    }

    fn resolve_by_resolved(&mut self, servers: &[IpAddr]) -> (Step, Result<(), Error>) {
        let tun = self.tun.clone();
        let step = Step::Run(["resolvectl", "revert", &tun].map(str::to_owned).to_vec());
        let done = self.step(step.clone(), |_| {
            let texts: Vec<String> = servers.iter().map(ToString::to_string).collect();
            let mut words = vec!["dns", &tun];
            words.extend(texts.iter().map(String::as_str));
            program::run("resolvectl", &words, "")?;
            // All domains, before those of other interfaces.
            program::run("resolvectl", &["domain", &tun, "~."], "")?;
            program::run("resolvectl", &["default-route", &tun, "true"], "").map(drop)
        });
        (step, done)
    }

    fn resolve_by_resolvconf(&mut self, servers: &[IpAddr]) -> (Step, Result<(), Error>) {
        let prefix = if Path::new(INTERFACE_ORDER).exists() { "tun." } else { "" };
        let name = format!("{prefix}{}.udpferry", self.tun);
        let step = Step::Run(["resolvconf", "-d", &name].map(str::to_owned).to_vec());
        let done = self.step(step.clone(), |_| {
            // Of openresolv: the first in order, and alone. Debian's takes no notice of it.
            let words = ["-a", &name, "-m", "0", "-x"];
            program::run("resolvconf", &words, &text(servers)).map(drop)
        });
        (step, done)
    }

    /// Whether a step of this kind is in force.
    pub(super) fn dns_step(&self) -> Option<Step> {
        let is_of_dns = |step: &&Step| match step {
            Step::ResolvConf => true,
            Step::Run(words) => words.first().is_some_and(|name| name.starts_with("resolv")),
            _ => false,
        };
        self.journal.steps().iter().find(is_of_dns).cloned()
    }
}

/// Whether programs that read /etc/resolv.conf ask systemd-resolved.
fn is_resolved_asked() -> bool {
    let path = Path::new("/etc/resolv.conf");
    let leads_there = fs::canonicalize(path).is_ok_and(|path| path.starts_with(RESOLVED))
        || content_below_tunnels(path).lines().any(|line| line.trim() == RESOLVED_STUB);
    leads_there && program::is_there("resolvectl")
}

fn text(servers: &[IpAddr]) -> String {
    servers.iter().fold(String::new(), |mut text, server| {
        let _ = writeln!(text, "nameserver {server}");
        text
    })
}

/// Where the file that was there stands meanwhile: beside it, since /run may be empty when the machine comes back. Each
/// tunnel sets its own aside, which may be another tunnel's.
fn beside(path: &Path, tun: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".before-udpferry-");
    name.push(tun);
    name.into()
}

/// Puts a file in place of `path`, which is set aside, be it a file or a symbolic link.
fn replace(path: &Path, tun: &str, servers: &[IpAddr]) -> io::Result<()> {
    if owner(path).is_none_or(|owner| owner.tun != tun) {
        match fs::rename(path, beside(path, tun)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let new = path.with_extension("udpferry-new");
    let title = format!("{MARK}{tun} in boot {}. The file before it is beside it.", boot());
    fs::write(&new, format!("{title}\n{}", text(servers)))?;
    set_readable(&new)?;
    fs::rename(new, path)
}

/// Everybody resolves names.
fn set_readable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

/// Puts the file back that a tunnel has set aside, be it below another tunnel's. One that somebody else has put in its
/// place since stays.
pub(super) fn restore(path: &Path, tun: &str) -> Result<(), Error> {
    let aside = beside(path, tun);
    let mut place = path.to_owned();
    for _ in 0..TUNNELS_MAX {
        match owner(&place) {
            Some(owner) if owner.tun == tun => break,
            Some(other) => place = beside(path, &other.tun),
            None if fs::symlink_metadata(&place).is_ok() => {
                if fs::symlink_metadata(&aside).is_ok() {
                    log::warn!(
                        "{} has been changed by others; it stays, and {} too",
                        path.display(),
                        aside.display()
                    );
                }
                return Ok(());
            }
            None => break,
        }
    }
    let exists = fs::symlink_metadata(&place).is_ok();
    let result = match fs::rename(&aside, &place) {
        // There was none.
        Err(error) if error.kind() == io::ErrorKind::NotFound && exists => fs::remove_file(&place),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    result.map_err(Error::while_doing(|| format!("cannot put {} back", path.display())))
}

/// Restores the file in the place of those that were written before the machine was started: whoever wrote them lost
/// his journal with it, and they lead nowhere. Returns whether there were any.
pub(crate) fn restore_orphans(places: &Places) -> bool {
    let path = &places.resolv_conf;
    let now = boot();
    // Who cannot tell which run of the machine this is says nothing of others.
    if now.is_empty() {
        return false;
    }
    let mut any = false;
    for _ in 0..TUNNELS_MAX {
        let is_orphan = |owner: &Owner| !owner.boot.is_empty() && owner.boot != now;
        let orphan = owners(path).into_iter().find(is_orphan);
        let Some(Owner { tun, .. }) = orphan else { break };
        if let Err(error) = restore(path, &tun) {
            log::error!("{error}");
            break;
        }
        log::warn!("{}: put back what {tun} had replaced before a loss of power", path.display());
        any = true;
    }
    any
}

fn boot() -> String {
    fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned()
}

/// Who wrote a file.
#[derive(Debug, PartialEq, Eq)]
struct Owner {
    tun: String,
    boot: String,
}

/// Those whose files are there, the last one first.
fn owners(path: &Path) -> Vec<Owner> {
    let mut owners = Vec::new();
    let mut place = path.to_owned();
    while let Some(owner) = owner(&place).filter(|_| owners.len() < TUNNELS_MAX) {
        place = beside(path, &owner.tun);
        owners.push(owner);
    }
    owners
}

fn content_below_tunnels(path: &Path) -> String {
    let place = owners(path).last().map_or_else(|| path.to_owned(), |it| beside(path, &it.tun));
    fs::read_to_string(place).unwrap_or_default()
}

fn owner(path: &Path) -> Option<Owner> {
    if !fs::symlink_metadata(path).is_ok_and(|found| found.is_file()) {
        return None;
    }
    let text = fs::read_to_string(path).ok()?;
    let (title, _) = text.strip_prefix(MARK)?.split_once(". ")?;
    let (tun, boot) = title.split_once(" in boot ")?;
    super::is_interface_name(tun).then(|| Owner { tun: tun.to_owned(), boot: boot.to_owned() })
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

    fn servers(address: &str) -> Vec<IpAddr> {
        vec![address.parse().unwrap()]
    }

    #[test]
    fn two_tunnels_end_in_any_order() {
        for order in [["vpn.a", "b"], ["b", "vpn.a"]] {
            let place = place();
            let path = place.join("resolv.conf");
            fs::write(&path, "nameserver 192.0.2.53\n").unwrap();
            replace(&path, "vpn.a", &servers("10.0.0.2")).unwrap();
            replace(&path, "b", &servers("10.1.0.2")).unwrap();
            let names: Vec<String> = owners(&path).into_iter().map(|owner| owner.tun).collect();
            assert_eq!(names, ["b", "vpn.a"]);
            assert_eq!(servers_in(&content_below_tunnels(&path)), servers("192.0.2.53"));
            restore(&path, order[0]).unwrap();
            let left = fs::read_to_string(&path).unwrap();
            let own =
                if order[1] == "b" { "nameserver 10.1.0.2\n" } else { "nameserver 10.0.0.2\n" };
            assert!(left.ends_with(own), "{left}");
            restore(&path, order[1]).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 192.0.2.53\n");
            assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
            fs::remove_dir_all(place).unwrap();
        }
    }

    #[test]
    fn what_a_power_cut_left_is_put_back() {
        let place = place();
        let places =
            Places { runtime_dir: place.join("run"), resolv_conf: place.join("resolv.conf") };
        fs::create_dir(&places.runtime_dir).unwrap();
        let path = &places.resolv_conf;
        fs::write(path, "nameserver 192.0.2.53\n").unwrap();
        replace(path, "vpnc", &servers("10.0.0.2")).unwrap();
        let of_before = |path: &Path| {
            let text = fs::read_to_string(path).unwrap();
            fs::write(path, text.replace(&boot(), "11111111-0000")).unwrap();
        };
        of_before(path);
        replace(path, "vpnd", &servers("10.0.0.3")).unwrap();
        // That one runs.
        assert!(restore_orphans(&places));
        assert_eq!(owners(path).len(), 1);
        assert!(fs::read_to_string(path).unwrap().ends_with("10.0.0.3\n"));
        assert!(!restore_orphans(&places));
        of_before(path);
        assert!(restore_orphans(&places));
        assert_eq!(fs::read_to_string(path).unwrap(), "nameserver 192.0.2.53\n");
        assert!(!restore_orphans(&places));
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn whoever_asks_for_names_is_let_pass() {
        let place = place();
        let resolved = place.join("resolve");
        let nscd = place.join("nscd");
        let own = nix::unistd::geteuid().as_raw();
        let direct = Lookups::of(servers("192.0.2.53"), &resolved, &nscd);
        assert_eq!(direct, Lookups { servers: servers("192.0.2.53"), users: vec![own] });
        assert_eq!(direct.ways(), [(Network::host("192.0.2.53".parse().unwrap()), None)]);
        let daemon = Lookups::of(servers("127.0.0.1"), &resolved, &nscd);
        assert_eq!(daemon, Lookups::default());
        let ports: Vec<_> = daemon.ways().into_iter().map(|(to, port)| (to.length, port)).collect();
        assert_eq!(ports, [(0, Some(53)), (0, Some(853)), (0, Some(53)), (0, Some(853))]);
        fs::write(&nscd, "").unwrap();
        assert!(Lookups::of(servers("192.0.2.53"), &resolved, &nscd).users.is_empty());
        fs::remove_file(&nscd).unwrap();
        fs::create_dir(&resolved).unwrap();
        fs::write(resolved.join("resolv.conf"), "nameserver 192.0.2.54\n").unwrap();
        let stub = Lookups::of(servers("127.0.0.53"), &resolved, &nscd);
        assert_eq!((stub.servers, stub.users.len()), (servers("192.0.2.54"), 2));
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn servers_are_read_from_any_file() {
        let text = "# nameserver 1.1.1.1\nsearch x\nnameserver 192.0.2.53 # ours\nnameserver\tfe80::1%eth0\nnameserver x\n";
        let found = servers_in(text);
        assert_eq!(found, ["192.0.2.53".parse::<IpAddr>().unwrap(), "fe80::1".parse().unwrap()]);
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
            replace(&path, "vpnc", &servers("10.0.0.2")).unwrap();
            // Again, as after a run that was killed: what was set aside is not lost.
            replace(&path, "vpnc", &servers("10.0.0.3")).unwrap();
            assert!(fs::read_to_string(&path).unwrap().ends_with("10.0.0.3\n"));
            restore(&path, "vpnc").unwrap();
            restore(&path, "vpnc").unwrap();
            match kind {
                "file" => assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 192.0.2.53\n"),
                "link" => assert_eq!(fs::read_link(&path).unwrap(), Path::new("../run/stub")),
                _ => assert!(!path.exists()),
            }
            assert!(!beside(&path, "vpnc").exists());
            fs::remove_dir_all(place).unwrap();
        }
    }

    #[test]
    fn what_others_wrote_meanwhile_stays() {
        let place = place();
        let path = place.join("resolv.conf");
        fs::write(&path, "nameserver 192.0.2.53\n").unwrap();
        replace(&path, "vpnc", &servers("10.0.0.2")).unwrap();
        fs::write(&path, "nameserver 192.0.2.54\n").unwrap();
        restore(&path, "vpnc").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 192.0.2.54\n");
        fs::remove_dir_all(place).unwrap();
    }
}
