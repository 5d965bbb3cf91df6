//! What others remove of a tunnel's changes, and how it is put back: systemd-networkd clears rules that it does
//! not know, `ip link set down` a device's routes, and the first line of many nftables.conf is `flush ruleset`.

use super::client::is_well;
use super::journal::Step;
use super::{Host, firewall};
use crate::error::Error;
use crate::net::netlink::Network;
use crate::net::netlink::route::Route;
use crate::net::netlink::rule::Rule;
use std::fmt::Display;
use std::io;

impl Host {
    /// Looks for the rules and routes that this tunnel needs, and adds those that are gone; returns whether all are there
    /// then. To be called a little after the kernel has told of a change, and again a little later if they are not.
    /// What cannot be added is a line in the log, once.
    pub fn mend_routes(&mut self) -> bool {
        let (rules, routes) = match self.missing_routes() {
            Ok(missing) => missing,
            Err(error) => {
                self.complain(&format_args!("cannot look after its routes: {error}"));
                return false;
            }
        };
        let mut failure = None;
        for rule in rules {
            let added = self.netlink.add_rule(rule);
            failure = self.tell("the rule for", rule.to, added).or(failure);
        }
        for route in routes {
            let added = self.netlink.add_route(route);
            failure = self.tell("the route to", route.to, added).or(failure);
        }
        match failure {
            Some(failure) => self.complain(&failure),
            None => self.has_complained = false,
        }
        !self.has_complained
    }

    fn tell(&self, what: &str, to: Network, added: io::Result<()>) -> Option<String> {
        match added {
            Ok(()) => {
                log::warn!("{}: {what} {to} was removed by others; put back", self.tun);
                None
            }
            // Back already, or of a family that the kernel does not have.
            failed => {
                let error = is_well(failed, to).err()?;
                Some(format!("{what} {to} was removed by others: {error}"))
            }
        }
    }

    fn complain(&mut self, what: &dyn Display) {
        if !std::mem::replace(&mut self.has_complained, true) {
            log::warn!("{}: {what}; trying again", self.tun);
        }
    }

    fn missing_routes(&mut self) -> io::Result<(Vec<Rule>, Vec<Route>)> {
        let Some(in_force) = self.client.as_ref().filter(|it| !it.routes.is_empty()) else {
            return Ok((Vec::new(), Vec::new()));
        };
        let wanted = in_force.routes.clone();
        let table = wanted.first().map_or(0, |route| route.table);
        let there = self.netlink.static_routes(table)?;
        let routes = wanted.into_iter().filter(|route| !has_route(&there, route)).collect();
        let there = self.netlink.rules()?;
        let rules = self.journal.steps().iter().filter_map(|step| match step {
            Step::Rule(rule) if !there.contains(rule) => Some(*rule),
            _ => None,
        });
        Ok((rules.collect(), routes))
    }

    /// Looks for this tunnel's tables of nftables, and puts in those that are gone. To be called again after an error.
    pub fn mend_tables(&mut self) -> Result<(), Error> {
        let tables: Vec<Step> = self.journal.steps().to_vec();
        for step in tables {
            let (family, name) = match &step {
                Step::KillSwitch(name) => ("inet", name),
                Step::Table(family, name) => (&family[..], name),
                _ => continue,
            };
            if firewall::has_table(family, name)? {
                continue;
            }
            log::error!("{}: the table {name} of nftables was removed by others", self.tun);
            match step {
                Step::KillSwitch(_) => {
                    if let Some(in_force) = self.client.take() {
                        let done = self.kill(&in_force);
                        self.client = Some(in_force);
                        done?;
                    }
                }
                _ => self.put_table()?,
            }
            log::warn!("{}: the table {name} is put back", self.tun);
        }
        Ok(())
    }
}

/// The kernel gives an IPv6 route a metric of its own choice.
fn has_route(there: &[Route], wanted: &Route) -> bool {
    there.iter().any(|route| route.to == wanted.to && route.hop == wanted.hop)
}
