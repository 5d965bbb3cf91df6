//! The tunnels that there are, and what a request would make of them. Whoever may not be beside the
//! others is refused, with the field that is at fault; nothing changes until [`TunnelSet::commit`].

use super::refusal::{Reason, Refusal};
use super::tunnel::{Host, MTU_MIN_IPV6, Tunnel, TunnelName};
use crate::state::access::Prefix;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Tunnels that may be beside each other.
#[derive(Debug, Clone)]
pub struct TunnelSet {
    tunnels: BTreeMap<TunnelName, Tunnel>,
    default_port: u16,
    tunnels_max: usize,
}

/// One tunnel's part in a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// There was none of that name.
    Add(Tunnel),
    /// There will be none of that name.
    Remove(Tunnel),
    /// It stays, and becomes another.
    Update {
        /// What it was.
        from: Tunnel,
        /// What it will be.
        to: Tunnel,
    },
}

impl Change {
    /// Whose it is.
    pub fn name(&self) -> &TunnelName {
        match self {
            Change::Add(tunnel) | Change::Remove(tunnel) | Change::Update { to: tunnel, .. } => {
                &tunnel.name
            }
        }
    }
}

impl TunnelSet {
    /// An empty one, of at most `tunnels_max`. A remote without a port has the `default_port`.
    pub fn new(default_port: u16, tunnels_max: usize) -> TunnelSet {
        TunnelSet { tunnels: BTreeMap::new(), default_port, tunnels_max }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.tunnels.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tunnels.is_empty()
    }

    /// The tunnel of that name.
    pub fn get(&self, name: &TunnelName) -> Option<&Tunnel> {
        self.tunnels.get(name)
    }

    /// Every one, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Tunnel> {
        self.tunnels.values()
    }

    /// Those behind that name, by name; all without one.
    pub fn after(&self, name: Option<&TunnelName>) -> impl Iterator<Item = &Tunnel> {
        use std::ops::Bound::{Excluded, Unbounded};
        let start = name.map_or(Unbounded, Excluded);
        self.tunnels.range((start, Unbounded)).map(|(_, tunnel)| tunnel)
    }

    /// The port of the tunnel's remote.
    pub fn port_of(&self, tunnel: &Tunnel) -> u16 {
        tunnel.remote.port.unwrap_or(self.default_port)
    }

    /// What it takes to add tunnels.
    pub fn add(&self, tunnels: Vec<Tunnel>) -> Result<Vec<Change>, Refusal> {
        for (index, tunnel) in tunnels.iter().enumerate() {
            if self.tunnels.contains_key(&tunnel.name) {
                return Err(Refusal::of_tunnel(index, "name", Reason::Exists));
            }
        }
        self.with(&BTreeSet::new(), tunnels)
    }

    /// What it takes to remove tunnels.
    pub fn remove(&self, names: &[TunnelName]) -> Result<Vec<Change>, Refusal> {
        let mut seen = BTreeSet::new();
        let one = |(index, name)| {
            let tunnel = self.existing(index, name)?;
            if !seen.insert(name) {
                return Err(Refusal::of_tunnel(index, "name", Reason::NamedTwice));
            }
            Ok(Change::Remove(tunnel.clone()))
        };
        names.iter().enumerate().map(one).collect()
    }

    /// What it takes to have these in place of those of the same names, which there must be.
    pub fn update(&self, tunnels: Vec<Tunnel>) -> Result<Vec<Change>, Refusal> {
        for (index, tunnel) in tunnels.iter().enumerate() {
            self.existing(index, &tunnel.name)?;
        }
        self.with(&BTreeSet::new(), tunnels)
    }

    /// What it takes to have these tunnels and no others.
    pub fn replace(&self, tunnels: Vec<Tunnel>) -> Result<Vec<Change>, Refusal> {
        let kept: BTreeSet<&TunnelName> = tunnels.iter().map(|tunnel| &tunnel.name).collect();
        let gone = self.tunnels.keys().filter(|name| !kept.contains(name));
        let gone = gone.cloned().collect();
        self.with(&gone, tunnels)
    }

    /// The tunnel of that name, for the `index`th of a request.
    pub fn existing(&self, index: usize, name: &TunnelName) -> Result<&Tunnel, Refusal> {
        let found = self.tunnels.get(name);
        found.ok_or_else(|| Refusal::of_tunnel(index, "name", Reason::NoSuchTunnel))
    }

    /// The tunnel that an inner address is behind: routes may hold others' networks, and the longest
    /// prefix counts, as it does to the kernel.
    pub fn towards(&self, inner: IpAddr) -> Option<&Tunnel> {
        let reaching = self.tunnels.values().filter_map(|it| Some((it.reaches(inner)?, it)));
        reaching.max_by_key(|(how, _)| *how).map(|(_, tunnel)| tunnel)
    }

    /// Carries out what one of the above has returned.
    pub fn commit(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Remove(tunnel) => {
                    self.tunnels.remove(&tunnel.name);
                }
                Change::Add(tunnel) | Change::Update { to: tunnel, .. } => {
                    self.tunnels.insert(tunnel.name.clone(), tunnel.clone());
                }
            }
        }
    }

    /// The changes to have `tunnels` beside or in place of those that are there, without `gone`.
    /// Removals come first; what would stay as it is does not change.
    fn with(
        &self,
        gone: &BTreeSet<TunnelName>,
        tunnels: Vec<Tunnel>,
    ) -> Result<Vec<Change>, Refusal> {
        let named: BTreeSet<&TunnelName> = tunnels.iter().map(|tunnel| &tunnel.name).collect();
        let stay = self.tunnels.values();
        let stay =
            stay.filter(|tunnel| !gone.contains(&tunnel.name) && !named.contains(&tunnel.name));
        let mut beside: Vec<&Tunnel> = stay.collect();
        for (index, tunnel) in tunnels.iter().enumerate() {
            if beside.len() >= self.tunnels_max {
                let reason = Reason::TooMany(self.tunnels_max);
                return Err(Refusal::new(format!("tunnel[{index}]"), reason));
            }
            self.judge(&beside, tunnel)
                .map_err(|(field, reason)| Refusal::of_tunnel(index, &field, reason))?;
            beside.push(tunnel);
        }
        let removed = gone.iter().filter_map(|name| self.tunnels.get(name));
        let removed = removed.map(|tunnel| Change::Remove(tunnel.clone()));
        let wanted = tunnels.into_iter().filter_map(|to| match self.tunnels.get(&to.name) {
            None => Some(Change::Add(to)),
            Some(from) if *from == to => None,
            Some(from) => Some(Change::Update { from: from.clone(), to }),
        });
        Ok(removed.chain(wanted).collect())
    }

    /// Whether a tunnel may be, and may be beside the others.
    fn judge(&self, beside: &[&Tunnel], tunnel: &Tunnel) -> Result<(), (String, Reason)> {
        let wrong = |field: &str, reason| Err((field.to_owned(), reason));
        if beside.iter().any(|other| other.name == tunnel.name) {
            return wrong("name", Reason::NamedTwice);
        }
        let has_ipv6 = tunnel.addresses.iter().any(|address| address.ip().is_ipv6());
        if has_ipv6 && tunnel.mtu.is_some_and(|mtu| mtu < MTU_MIN_IPV6) {
            return wrong("mtu", Reason::NotAllowed("1280 or more with an IPv6 address"));
        }
        if tunnel.carrier && tunnel.keepalive.is_none() {
            return wrong("carrier", Reason::NotAllowed("only with keepalive, which finds out"));
        }
        judge_addresses(beside, tunnel)?;
        judge_networks(beside, tunnel)?;
        judge_routes(beside, tunnel)?;
        if let Some(other) = beside.iter().find(|other| self.same_remote(other, tunnel)) {
            return wrong("remoteServer", Reason::SameRemote(other.name.clone()));
        }
        let networks = |other: &Tunnel| {
            let own: Vec<Prefix> = other.addresses.iter().map(|it| it.network()).collect();
            own.into_iter().chain(other.routes.clone())
        };
        if beside.iter().any(|other| networks(other).any(|it| holds(it, tunnel))) {
            return wrong("remoteServer", Reason::LeadsAstray(tunnel.name.clone()));
        }
        Ok(())
    }

    fn same_remote(&self, one: &Tunnel, other: &Tunnel) -> bool {
        let same_host = match (&one.remote.host, &other.remote.host) {
            (Host::Address(one), Host::Address(other)) => one == other,
            (Host::Name(one), Host::Name(other)) => {
                one.trim_end_matches('.') == other.trim_end_matches('.')
            }
            // What the name stands for is seen when it has been looked up.
            _ => false,
        };
        same_host && self.port_of(one) == self.port_of(other)
    }
}

/// No two networks of a host's tunnels have an address in common.
fn judge_addresses(beside: &[&Tunnel], tunnel: &Tunnel) -> Result<(), (String, Reason)> {
    for (place, address) in tunnel.addresses.iter().enumerate() {
        let own = tunnel.addresses.iter().take(place).map(|other| (tunnel, other));
        let theirs =
            beside.iter().flat_map(|other| other.addresses.iter().map(|address| (*other, address)));
        let clash =
            own.chain(theirs).find(|(_, other)| other.network().overlaps(&address.network()));
        if let Some((other, theirs)) = clash {
            let reason = Reason::Overlaps(other.name.clone(), theirs.network());
            return Err((address_field(place), reason));
        }
    }
    Ok(())
}

/// No tunnel's own network takes the packets to a remote: outer addresses inside are the commonest
/// slip, and would cut off everybody else of that network.
fn judge_networks(beside: &[&Tunnel], tunnel: &Tunnel) -> Result<(), (String, Reason)> {
    for (place, address) in tunnel.addresses.iter().enumerate() {
        let mut all = std::iter::once(tunnel).chain(beside.iter().copied());
        if let Some(other) = all.find(|other| holds(address.network(), other)) {
            return Err((address_field(place), Reason::LeadsAstray(other.name.clone())));
        }
    }
    Ok(())
}

/// A network is behind one tunnel, and no tunnel carries its own packets.
fn judge_routes(beside: &[&Tunnel], tunnel: &Tunnel) -> Result<(), (String, Reason)> {
    for (place, route) in tunnel.routes.iter().enumerate() {
        let field = || format!("routes[{place}]");
        let again = tunnel.routes.iter().take(place).any(|other| other == route);
        let theirs = beside.iter().find(|other| other.routes.contains(route));
        if let Some(other) = again.then_some(tunnel).or(theirs.copied()) {
            return Err((field(), Reason::SameRoute(other.name.clone())));
        }
        let mut all = std::iter::once(tunnel).chain(beside.iter().copied());
        if let Some(other) = all.find(|other| holds(*route, other)) {
            return Err((field(), Reason::LeadsAstray(other.name.clone())));
        }
    }
    Ok(())
}

/// Whether the route would take the packets to the tunnel's remote, as far as an address is known.
fn holds(route: Prefix, tunnel: &Tunnel) -> bool {
    tunnel.remote.address().is_some_and(|ip| route.contains(ip))
}

/// The seed's field is the first address; further ones are ours.
fn address_field(place: usize) -> String {
    match place.checked_sub(1) {
        None => "tunnelIP".to_owned(),
        Some(further) => format!("addresses[{further}]"),
    }
}

#[cfg(test)]
mod tests;
