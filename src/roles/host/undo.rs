//! How each step is undone.

use super::journal::Step;
use super::{Host, dns, firewall, program};
use crate::error::Error;
use crate::net::netlink::Netlink;
use std::fs;
use std::io;
use std::path::Path;

/// The switch that makes this host an IPv6 router.
pub(super) const IPV6_FORWARDING: &str = "net/ipv6/conf/all/forwarding";

/// Undoes a step. What is gone already is undone.
pub(super) fn undo(host: &mut Host, step: &Step) -> Result<(), Error> {
    match step {
        Step::Sysctl(name, before) => {
            if value_before_others(host, name).is_some() {
                return Ok(());
            }
            let is_forwarding = name.contains("forward");
            if let Some(link) = forwarder(host).filter(|_| is_forwarding && before == "0") {
                log::warn!("{}: {name} stays 1: {link} needs it, too", host.tun);
                return Ok(());
            }
            // Undone behind forwarding: as long as that stays, router advertisements would not be heard.
            if !is_forwarding && read_sysctl(IPV6_FORWARDING).is_ok_and(|value| value == "1") {
                return Ok(());
            }
            match write_sysctl(name, before) {
                // Its interface is gone.
                Err(Error::System { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
                    Ok(())
                }
                other => other,
            }
        }
        Step::Table(family, name) => firewall::delete_table(family, name),
        Step::KillSwitch(name) => firewall::delete_table("inet", name),
        Step::Rule(rule) => gone(host.netlink.delete_rule(*rule)),
        Step::Route(to, table) => gone(host.netlink.delete_route_to(*to, *table)),
        Step::Run(words) => {
            let Some((name, arguments)) = words.split_first() else { return Ok(()) };
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            if !program::is_there(name) || !is_still_there(host, name, &arguments) {
                return Ok(());
            }
            program::run(name, &arguments, "").map(drop)
        }
        Step::ResolvConf => dns::restore(&host.places.resolv_conf, &host.tun),
    }
}

/// Whether what a command is to remove is there as yet: the command itself would call its absence an error.
fn is_still_there(host: &mut Host, name: &str, arguments: &[&str]) -> bool {
    match name {
        // Resolved forgets an interface when it goes.
        "resolvectl" => {
            let link = host.netlink.link(&host.tun);
            !link.is_err_and(|error| Netlink::is_absent(&error))
        }
        "iptables" | "ip6tables" => {
            let check: Vec<&str> =
                arguments.iter().map(|word| if *word == "-D" { "-C" } else { word }).collect();
            // An exit code of 1: there is none. 4: the lock was not to be had, or no memory.
            !program::run(name, &check, "").is_err_and(|error| program::has_exited_with(&error, 1))
        }
        _ => true,
    }
}

/// An interface of a program that has this host forward too, and that switches forwarding on only when it is off:
/// containers' and virtual machines' bridges.
fn forwarder(host: &mut Host) -> Option<String> {
    const PREFIXES: [&str; 7] = ["docker", "br-", "virbr", "lxcbr", "lxdbr", "cni", "podman"];
    let links = host.netlink.links().ok()?;
    let mut names = links.into_iter().map(|link| link.name);
    names.find(|name| PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
}

fn gone(result: io::Result<()>) -> Result<(), Error> {
    match result {
        Err(error) if !Netlink::is_absent(&error) && !Netlink::is_family_absent(&error) => {
            Err(Error::System { doing: "cannot delete it".into(), cause: error })
        }
        _ => Ok(()),
    }
}

/// The value of a switch below /proc/sys.
pub(super) fn read_sysctl(name: &str) -> Result<String, Error> {
    let path = Path::new("/proc/sys").join(name);
    fs::read_to_string(&path)
        .map(|text| text.trim().to_owned())
        .map_err(Error::while_doing(|| format!("cannot read {}", path.display())))
}

/// Sets a switch below /proc/sys.
pub(super) fn write_sysctl(name: &str, value: &str) -> Result<(), Error> {
    let path = Path::new("/proc/sys").join(name);
    fs::write(&path, value)
        .map_err(Error::while_doing(|| format!("cannot write {value} to {}", path.display())))
}

/// The value that another tunnel's journal keeps of this switch: that of before the first of them.
pub(super) fn value_before_others(host: &Host, name: &str) -> Option<String> {
    let own = super::journal_path(&host.places.runtime_dir, &host.tun);
    let begins = format!("sysctl {name} ");
    fs::read_dir(&host.places.runtime_dir)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| *path != own && path.extension().is_some_and(|ending| ending == "journal"))
        .filter_map(|path| fs::read_to_string(path).ok())
        .find_map(|text| text.lines().find_map(|line| Some(line.strip_prefix(&begins)?.to_owned())))
}
