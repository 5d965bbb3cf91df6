//! How each step is undone.

use super::journal::Step;
use super::{Host, dns, firewall, program};
use crate::error::Error;
use crate::net::netlink::Netlink;
use std::fs;
use std::io;
use std::path::Path;

/// Undoes a step. What is gone already is undone.
pub(super) fn undo(host: &mut Host, step: &Step) -> Result<(), Error> {
    match step {
        Step::Sysctl(name, before) => {
            if is_needed_by_others(host, name) {
                return Ok(());
            }
            write_sysctl(name, before)
        }
        Step::Table(family, name) => firewall::delete_table(family, name),
        Step::KillSwitch(name) => firewall::delete_table("inet", name),
        Step::Rule(rule) => gone(host.netlink.delete_rule(*rule)),
        Step::Route(to, table) => gone(host.netlink.delete_route_to(*to, *table)),
        Step::Run(words) => {
            let Some((name, arguments)) = words.split_first() else { return Ok(()) };
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            program::run(name, &arguments, "").map(drop)
        }
        Step::ResolvConf => dns::restore(&host.places.resolv_conf),
    }
}

fn gone(result: io::Result<()>) -> Result<(), Error> {
    match result {
        Err(error) if !Netlink::is_absent(&error) => {
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

fn is_needed_by_others(host: &Host, name: &str) -> bool {
    value_before_others(host, name).is_some()
}
