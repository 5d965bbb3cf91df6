//! A client's host: what goes into the tunnel and what does not.
//!
//! ```text
//!   rules, before the main table's                      what it is for
//!   P    to SERVER, EXCLUDE or an ssh peer: main        stays outside, by the routes that were there
//!   P+1  all: the tunnel's own table                    --route networks, or the two halves of everything
//! ```
//!
//! A route that DHCP puts into the main table (option 121) wins over none of ours: ours are asked first.

use super::dns::Lookups;
use super::journal::Step;
use super::{Host, firewall, ssh};
use crate::error::Error;
use crate::net::netlink::route::{Hop, MAIN, Route};
use crate::net::netlink::rule::Rule;
use crate::net::netlink::{Netlink, Network};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What a client changes on its host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientPlan {
    /// Where the tunnel's datagrams go: these never go into it.
    pub servers: Vec<SocketAddr>,
    /// Networks that go into the tunnel.
    pub routes: Vec<Network>,
    /// Everything goes into the tunnel.
    pub default_route: bool,
    /// Networks that stay outside all the same.
    pub excludes: Vec<Network>,
    /// Nothing leaves but into the tunnel and to the servers, until [`Host::undo`].
    pub kill_switch: bool,
    /// The resolver's servers; none leaves it as it is.
    pub dns: Vec<IpAddr>,
    /// sshd's ports besides those that [`ssh::ports`] finds.
    pub ssh_ports: Vec<u16>,
    /// Whether the tunnel has an IPv6 address. Without one a default route makes IPv6 unreachable, so that nothing
    /// leaves beside the tunnel.
    pub has_ipv6: bool,
}

/// A plan that is in force.
#[derive(Debug, Clone)]
pub struct InForce {
    plan: ClientPlan,
    priority: u32,
    ssh_peers: Vec<IpAddr>,
    /// Names are asked for outside the tunnel.
    lookups: Option<Lookups>,
    /// What is in the tunnel's own table.
    pub(super) routes: Vec<Route>,
}

/// Tables and priorities are looked for from here on: below the main table's priority, above those of other programs.
const FIRST: u32 = 5555;
/// The same of a tunnel that takes everything: those that take only some networks are asked before it, in whichever order
/// they start.
const FIRST_OF_ALL: u32 = 15_555;
/// Priorities that a client takes.
const PRIORITIES: u32 = 2;

impl Host {
    /// Makes the changes of a client; its device must be up. Whatever is done before an error is undone by
    /// [`Host::undo`].
    pub fn route(&mut self, plan: &ClientPlan) -> Result<(), Error> {
        let link = self
            .netlink
            .link(&self.tun)
            .map_err(Error::while_doing(|| format!("cannot find the device {}", self.tun)))?;
        let networks = networks(plan);
        let needs_table = !networks.is_empty();
        // Asked before anything is changed.
        let ssh_peers =
            if needs_table || plan.kill_switch { self.ssh_peers(plan) } else { Vec::new() };
        let (table, priority) =
            self.free_numbers(if plan.default_route { FIRST_OF_ALL } else { FIRST })?;
        let mut in_force =
            InForce { plan: plan.clone(), priority, ssh_peers, lookups: None, routes: Vec::new() };
        if plan.kill_switch {
            self.kill(&in_force)?;
        }
        if needs_table {
            for (to, port) in outside(&in_force) {
                self.rule(Rule { priority, to, port, table: MAIN })?;
            }
            for network in networks {
                let hop = if network.address.is_ipv6() && !plan.has_ipv6 {
                    Hop::Unreachable
                } else {
                    Hop::Device(link.index)
                };
                let route = Route { to: network, hop, table, metric: 0 };
                self.own_route(route)?;
                in_force.routes.push(route);
            }
            for any in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
                let to = Network { address: any, length: 0 };
                // Of a family that is asked for: the other one may not be there at all.
                if in_force.routes.iter().any(|route| route.to.address.is_ipv4() == any.is_ipv4()) {
                    self.rule(Rule { priority: priority + 1, to, port: None, table })?;
                }
            }
        }
        if !plan.dns.is_empty() {
            self.resolve_by(&plan.dns)?;
        }
        self.client = Some(in_force);
        Ok(())
    }

    /// Who has an ssh session with this host now; each is a line in the log.
    fn ssh_peers(&self, plan: &ClientPlan) -> Vec<IpAddr> {
        let mut ports = ssh::ports();
        ports.extend(&plan.ssh_ports);
        let peers = ssh::peers(&ports);
        for peer in &peers {
            log::info!("{}: the way to {peer}, which has an ssh session, stays as it is", self.tun);
        }
        if peers.is_empty() {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            let ports = ports.join(", ");
            log::info!("{}: no ssh session is seen on port {ports} (--ssh-port)", self.tun);
        }
        peers
    }

    /// The servers' addresses have changed: what is outside the tunnel changes with them. Nothing else does.
    pub fn move_servers(&mut self, servers: &[SocketAddr]) -> Result<(), Error> {
        self.change(|in_force| in_force.plan.servers = servers.to_vec())
    }

    /// The server has to be found by its name, and the tunnel is down: from now on names are asked for as
    /// they were before it, until [`Host::close_lookups`]. A kill switch lets these questions pass and no others.
    pub fn open_lookups(&mut self) -> Result<(), Error> {
        if let Some(step) = self.dns_step() {
            self.withdraw(&step);
        }
        let lookups = Lookups::now(&self.places);
        self.change(|in_force| in_force.lookups = Some(lookups))
    }

    /// A lookup is over: names are asked for in the tunnel again. To be called again after an error.
    pub fn close_lookups(&mut self) -> Result<(), Error> {
        let Some(InForce { lookups: Some(_), plan, .. }) = &self.client else { return Ok(()) };
        let dns = plan.dns.clone();
        if !dns.is_empty() && self.dns_step().is_none() {
            self.resolve_by(&dns)?;
        }
        self.change(|in_force| in_force.lookups = None)
    }

    fn change(&mut self, how: impl FnOnce(&mut InForce)) -> Result<(), Error> {
        let Some(mut in_force) = self.client.take() else { return Ok(()) };
        let unchanged = in_force.clone();
        let before = outside(&in_force);
        how(&mut in_force);
        let after = outside(&in_force);
        let result = self.exchange(&in_force, &before, &after);
        self.client = Some(if result.is_ok() { in_force } else { unchanged });
        result
    }

    fn exchange(&mut self, in_force: &InForce, before: &[Way], after: &[Way]) -> Result<(), Error> {
        if in_force.plan.kill_switch {
            self.kill(in_force)?;
        }
        if networks(&in_force.plan).is_empty() {
            return Ok(());
        }
        let rule = |(to, port): &Way| Rule {
            priority: in_force.priority,
            to: *to,
            port: *port,
            table: MAIN,
        };
        for way in after.iter().filter(|way| !before.contains(way)) {
            self.rule(rule(way))?;
        }
        for way in before.iter().filter(|way| !after.contains(way)) {
            self.withdraw(&Step::Rule(rule(way)));
        }
        Ok(())
    }

    pub(super) fn kill(&mut self, in_force: &InForce) -> Result<(), Error> {
        let step = Step::KillSwitch(firewall::kill_switch_name(&self.tun));
        let act = |host: &mut Host| {
            firewall::kill(&firewall::KillSwitch {
                tun: &host.tun,
                servers: &in_force.plan.servers,
                excludes: &in_force.plan.excludes,
                ssh_peers: &in_force.ssh_peers,
                lookups: in_force.lookups.as_ref(),
            })
        };
        // One that is in force already, or was left by a run that was killed, is replaced.
        if self.journal.has(&step) { act(self) } else { self.step(step, act) }
    }

    fn rule(&mut self, rule: Rule) -> Result<(), Error> {
        self.step(Step::Rule(rule), |host| {
            let doing =
                || format!("cannot add a rule for {} with priority {}", rule.to, rule.priority);
            let added = host.netlink.add_rule(rule).and_then(|()| host.check_port(rule));
            is_well(added, rule.to).map_err(Error::while_doing(doing))
        })
    }

    /// Before Linux 4.17 a rule for a port would be one for all ports: the kernel passes over what it does not know.
    fn check_port(&mut self, rule: Rule) -> io::Result<()> {
        if rule.port.is_none() || self.netlink.rules()?.contains(&rule) {
            return Ok(());
        }
        self.netlink.delete_rule(Rule { port: None, ..rule })?;
        Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel has no rules for ports"))
    }

    fn own_route(&mut self, route: Route) -> Result<(), Error> {
        self.step(Step::Route(route.to, route.table), |host| {
            let doing = || format!("cannot add a route to {} by {}", route.to, host.tun);
            let added = host.netlink.add_route(route);
            is_well(added, route.to).map_err(Error::while_doing(doing))
        })
    }

    /// A table that is empty and priorities that nobody has.
    fn free_numbers(&mut self, first: u32) -> Result<(u32, u32), Error> {
        let doing = || "cannot list the routing rules";
        let taken = self.netlink.rules().map_err(Error::while_doing(doing))?;
        let is_free = |first: &u32| {
            let own = *first..*first + PRIORITIES;
            taken.iter().all(|rule| !own.contains(&rule.priority) && !own.contains(&rule.table))
        };
        // There are 32766 priorities before the main table's.
        let priority = (first..32_000).step_by(2).find(is_free).ok_or_else(|| Error::System {
            doing: "cannot find a free priority for routing rules".into(),
            cause: io::ErrorKind::QuotaExceeded.into(),
        })?;
        Ok((priority, priority))
    }
}

/// What goes into the tunnel's table: halves, so that they are more than a default route that somebody adds there.
fn networks(plan: &ClientPlan) -> Vec<Network> {
    let mut networks = plan.routes.clone();
    if plan.default_route {
        for half in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(128, 0, 0, 0)] {
            networks.push(Network { address: half.into(), length: 1 });
        }
        for half in [Ipv6Addr::UNSPECIFIED, Ipv6Addr::new(0x8000, 0, 0, 0, 0, 0, 0, 0)] {
            networks.push(Network { address: half.into(), length: 1 });
        }
    }
    networks
}

/// What stays outside the tunnel, each once.
fn outside(in_force: &InForce) -> Vec<Way> {
    let servers = in_force.plan.servers.iter().map(SocketAddr::ip);
    let hosts = servers.chain(in_force.ssh_peers.iter().copied());
    let mut ways: Vec<Way> = hosts
        .map(|host| Network::host(host.to_canonical()))
        .chain(in_force.plan.excludes.iter().copied())
        .map(|network| (network, None))
        .chain(in_force.lookups.iter().flat_map(Lookups::ways))
        .collect();
    ways.sort_unstable();
    ways.dedup();
    ways
}

/// A network, and the port there if not all are meant.
type Way = (Network, Option<u16>);

/// Whether an addition for this network has come to what was wanted: it may be there already; and where the kernel has
/// no IPv6 at all (ipv6.disable=1), nothing of it goes anywhere.
pub(super) fn is_well(result: io::Result<()>, to: Network) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if to.address.is_ipv6() && Netlink::is_family_absent(&error) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_four_halves() {
        let plan = ClientPlan { default_route: true, ..ClientPlan::default() };
        let halves: Vec<String> = networks(&plan).iter().map(ToString::to_string).collect();
        assert_eq!(halves, ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]);
        assert!(networks(&ClientPlan::default()).is_empty());
    }

    #[test]
    fn what_stays_outside_is_named_once() {
        let plan = ClientPlan {
            servers: vec!["192.0.2.1:5555".parse().unwrap(), "192.0.2.1:5556".parse().unwrap()],
            excludes: vec![Network { address: "10.0.0.0".parse().unwrap(), length: 8 }],
            ..ClientPlan::default()
        };
        let ssh_peers = vec!["192.0.2.9".parse().unwrap()];
        let lookups =
            Some(Lookups { servers: vec!["192.0.2.53".parse().unwrap()], users: vec![0] });
        let in_force = InForce { plan, priority: 1, ssh_peers, lookups, routes: Vec::new() };
        let names: Vec<String> = outside(&in_force).iter().map(|(to, _)| to.to_string()).collect();
        assert_eq!(names, ["10.0.0.0/8", "192.0.2.1/32", "192.0.2.9/32", "192.0.2.53/32"]);
    }

    #[test]
    fn a_kernel_without_ipv6_is_no_error_for_ipv6() {
        let net = |text: &str| Network { address: text.parse().unwrap(), length: 1 };
        // EOPNOTSUPP and EAFNOSUPPORT.
        for code in [95, 97] {
            let error = || Err(io::Error::from_raw_os_error(code));
            is_well(error(), net("::")).unwrap();
            is_well(error(), net("0.0.0.0")).unwrap_err();
        }
        is_well(Err(io::ErrorKind::PermissionDenied.into()), net("::")).unwrap_err();
        is_well(Err(io::ErrorKind::AlreadyExists.into()), net("0.0.0.0")).unwrap();
    }
}
