//! What others remove of a tunnel's changes, and how it is put back: systemd-networkd clears rules that it does
//! not know, `ip link set down` a device's routes, and the first line of many nftables.conf is `flush ruleset`.

use super::journal::Step;
use super::{Host, firewall};
use crate::error::Error;
use crate::net::netlink::route::Route;
use crate::net::netlink::rule::Rule;

impl Host {
    /// Looks for the rules and routes that this tunnel needs, and adds those that are gone. To be called a little after
    /// the kernel has told of a change. What cannot be added now is a line in the log.
    pub fn mend_routes(&mut self) {
        match self.missing_routes() {
            Ok((rules, routes)) => {
                for rule in &rules {
                    self.report("the rule for", rule.to, |host| host.netlink.add_rule(*rule));
                }
                for route in &routes {
                    self.report("the route to", route.to, |host| host.netlink.add_route(*route));
                }
            }
            Err(error) => log::warn!("{}: cannot look after its routes: {error}", self.tun),
        }
    }

    fn report(
        &mut self,
        what: &str,
        to: crate::net::netlink::Network,
        add: impl FnOnce(&mut Host) -> std::io::Result<()>,
    ) {
        match add(self) {
            Ok(()) => log::warn!("{}: {what} {to} was removed by others; put back", self.tun),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                log::warn!("{}: {what} {to} was removed by others: {error}", self.tun);
            }
        }
    }

    fn missing_routes(&mut self) -> std::io::Result<(Vec<Rule>, Vec<Route>)> {
        let Some(in_force) = self.client.as_ref().filter(|it| !it.routes.is_empty()) else {
            return Ok((Vec::new(), Vec::new()));
        };
        let wanted = in_force.routes.clone();
        let table = wanted.first().map_or(0, |route| route.table);
        let there = self.netlink.routes(table)?;
        let routes = wanted.into_iter().filter(|route| !has_route(&there, route)).collect();
        let there = self.netlink.rules()?;
        let rules = self.journal.steps().iter().filter_map(|step| match step {
            Step::Rule(rule) if !there.contains(rule) => Some(*rule),
            _ => None,
        });
        Ok((rules.collect(), routes))
    }

    /// Looks for this tunnel's tables of nftables, and puts in those that are gone.
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
