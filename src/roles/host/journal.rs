//! The journal: a line for each change, which says how to undo it.

use crate::net::netlink::Network;
use crate::net::netlink::rule::Rule;
use std::fmt::{self, Display};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

/// A change, by what undoes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A switch below /proc/sys, and its value before.
    Sysctl(String, String),
    /// A table of nftables: its family and name.
    Table(String, String),
    /// The kill switch's table, which a run that was killed leaves in force.
    KillSwitch(String),
    /// A routing rule.
    Rule(Rule),
    /// The route to a network, in this table.
    Route(Network, u32),
    /// A program with its arguments, none of which has a blank in it.
    Run(Vec<String>),
    /// /etc/resolv.conf was set aside.
    ResolvConf,
}

impl Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Sysctl(name, before) => write!(out, "sysctl {name} {before}"),
            Step::Table(family, name) => write!(out, "table {family} {name}"),
            Step::KillSwitch(name) => write!(out, "kill-switch {name}"),
            Step::Rule(Rule { priority, to, port: None, table }) => {
                write!(out, "rule {priority} {to} {table}")
            }
            Step::Rule(Rule { priority, to, port: Some(port), table }) => {
                write!(out, "rule {priority} {to} {table} {port}")
            }
            Step::Route(to, table) => write!(out, "route {to} {table}"),
            Step::Run(words) => write!(out, "run {}", words.join(" ")),
            Step::ResolvConf => out.write_str("resolv.conf"),
        }
    }
}

impl Step {
    /// `None` for a line that none of ours is.
    fn parse(line: &str) -> Option<Step> {
        let mut words = line.split(' ');
        let kind = words.next()?;
        let rest: Vec<&str> = words.collect();
        Some(match (kind, &rest[..]) {
            ("sysctl", [name, before]) if is_own_sysctl(name) => {
                Step::Sysctl((*name).into(), (*before).into())
            }
            ("table", [family @ ("inet" | "ip" | "ip6"), name]) if is_own_table(name) => {
                Step::Table((*family).into(), (*name).into())
            }
            ("kill-switch", [name]) if is_own_table(name) => Step::KillSwitch((*name).into()),
            ("rule", [priority, to, table, port @ ..]) if port.len() < 2 => Step::Rule(Rule {
                priority: priority.parse().ok()?,
                to: network(to)?,
                port: port.first().map(|port| port.parse()).transpose().ok()?,
                table: table.parse().ok()?,
            }),
            ("route", [to, table]) => Step::Route(network(to)?, table.parse().ok()?),
            ("run", words) if is_own_command(words) => {
                Step::Run(rest.iter().map(|word| (*word).to_owned()).collect())
            }
            ("resolv.conf", []) => Step::ResolvConf,
            _ => return None,
        })
    }
}

// A service's journal belongs to the service's user, and `vpn down` undoes it as root: it may say nothing that
// does more than undo what is written here.

fn is_own_sysctl(name: &str) -> bool {
    let accept_ra =
        name.strip_prefix("net/ipv6/conf/").and_then(|it| it.strip_suffix("/accept_ra"));
    matches!(name, "net/ipv4/ip_forward" | "net/ipv6/conf/all/forwarding")
        || accept_ra.is_some_and(super::is_interface_name)
}

fn is_own_table(name: &str) -> bool {
    let is_of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    name.starts_with("udpferry_") && name.bytes().all(is_of_a_name)
}

/// Of iptables the deletion of a rule, by the options that ours have: `--modprobe` would run a program.
fn is_own_command(words: &[&str]) -> bool {
    const OPTIONS: [&str; 9] =
        ["-s", "-i", "-o", "-p", "-m", "-j", "--tcp-flags", "--ctstate", "--clamp-mss-to-pmtu"];
    match words {
        ["iptables" | "ip6tables", "-w", "-t", _, "-D", rule @ ..] => {
            rule.iter().all(|word| !word.starts_with('-') || OPTIONS.contains(word))
        }
        ["resolvectl", "revert", name] => super::is_interface_name(name),
        ["resolvconf", "-d", name] => !name.starts_with('-') && !name.contains('/'),
        _ => false,
    }
}

fn network(text: &str) -> Option<Network> {
    let (address, length) = text.split_once('/')?;
    Some(Network { address: address.parse().ok()?, length: length.parse().ok()? })
}

/// What has been changed, on disk and in memory.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    steps: Vec<Step>,
}

impl Journal {
    /// Opens the journal at `path`, and returns it empty with what it held. A line that cannot be read is passed over
    /// with a word in the log: it may be the last one of a run that was killed while it wrote, before it acted.
    pub fn open(path: &Path) -> io::Result<(Journal, Vec<Step>)> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let mut left = Vec::new();
        for line in text.lines() {
            match Step::parse(line) {
                Some(step) => left.push(step),
                None => log::warn!("{}: a line that says nothing: {line:?}", path.display()),
            }
        }
        Ok((Journal { path: path.to_owned(), steps: Vec::new() }, left))
    }

    /// Whether a step has been made and not undone.
    pub fn has(&self, step: &Step) -> bool {
        self.steps.contains(step)
    }

    /// The steps that have been made and not undone, the first one first.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Adds a step, on disk first.
    /// One that is there already, as it could not be undone before, is there once.
    pub fn note(&mut self, step: Step) -> io::Result<()> {
        if self.has(&step) {
            return Ok(());
        }
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
        // One write: whole or not there.
        file.write_all(format!("{step}\n").as_bytes())?;
        self.steps.push(step);
        Ok(())
    }

    /// All steps, in the order in which they were made; they stay on disk until [`Journal::replace`].
    pub fn take(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.steps)
    }

    /// Removes a step that has been undone.
    pub fn forget(&mut self, step: &Step) -> io::Result<()> {
        let mut steps = self.take();
        if let Some(place) = steps.iter().rposition(|other| other == step) {
            steps.remove(place);
        }
        self.replace(steps)
    }

    /// These steps and no others, on disk too; without any there is no file.
    pub fn replace(&mut self, steps: Vec<Step>) -> io::Result<()> {
        self.steps = steps;
        if self.steps.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let beside = self.path.with_extension("new");
        // New, so that a symbolic link that somebody has put there leads nowhere.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file: File =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        // Of a service's user, when root undoes what the service has left.
        if let Ok(before) = fs::metadata(&self.path) {
            let _ = fchown(&file, Some(before.uid()), Some(before.gid()));
        }
        for step in &self.steps {
            writeln!(file, "{step}")?;
        }
        fs::rename(beside, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn all_kinds() -> Vec<Step> {
        let to = Network { address: "2001:db8::".parse::<IpAddr>().unwrap(), length: 32 };
        vec![
            Step::Sysctl("net/ipv4/ip_forward".into(), "0".into()),
            Step::Table("inet".into(), "udpferry_vpns".into()),
            Step::KillSwitch("udpferry_vpnc_kill".into()),
            Step::Rule(Rule { priority: 5200, to, port: None, table: 254 }),
            Step::Rule(Rule { priority: 5200, to, port: Some(53), table: 254 }),
            Step::Route(to, 5555),
            Step::Run(vec!["resolvectl".into(), "revert".into(), "vpnc".into()]),
            Step::Sysctl("net/ipv6/conf/eth0.7/accept_ra".into(), "1".into()),
            Step::Run(
                "iptables -w -t filter -D FORWARD -i vpns -j ACCEPT"
                    .split(' ')
                    .map(str::to_owned)
                    .collect(),
            ),
            Step::ResolvConf,
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        for step in all_kinds() {
            assert_eq!(Step::parse(&step.to_string()), Some(step));
        }
        for wrong in [
            "",
            "sysctl",
            "sysctl a",
            "rule x 1.2.3.4/5 6",
            "rule 1 1.2.3.4 6",
            "rule 1 1.2.3.4/5 6 x",
            "rule 1 1.2.3.4/5 6 7 8",
            "run",
            "table inet",
            "what 1",
            "sysctl ../../etc/cron.d/x y",
            "sysctl net/ipv6/conf/../../../x/accept_ra 1",
            "table inet filter",
            "kill-switch udpferry_x;flush",
            "run sh -c reboot",
            "run iptables -w -t nat -D POSTROUTING --modprobe=/tmp/x",
            "run iptables -w -t nat -D POSTROUTING -M /tmp/x",
            "run iptables -F",
            "run resolvconf -d ../x",
        ] {
            assert_eq!(Step::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_journal_outlives_its_process() {
        let place = std::env::temp_dir().join(format!("udpferry-journal-{}", std::process::id()));
        fs::create_dir(&place).unwrap();
        let path = place.join("vpn-x.journal");
        let (mut journal, left) = Journal::open(&path).unwrap();
        assert!(left.is_empty());
        for step in all_kinds() {
            journal.note(step).unwrap();
        }
        drop(journal);
        // Killed while it wrote the next line.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"rul").unwrap();
        let (mut journal, left) = Journal::open(&path).unwrap();
        assert_eq!(left, all_kinds());
        journal.replace(left).unwrap();
        journal.forget(&Step::ResolvConf).unwrap();
        let (_, left) = Journal::open(&path).unwrap();
        assert_eq!(left.len(), all_kinds().len() - 1);
        journal.replace(Vec::new()).unwrap();
        assert!(!path.exists());
        fs::remove_dir_all(place).unwrap();
    }
}
