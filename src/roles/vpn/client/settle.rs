//! What a welcome comes to: the device's addresses, the table, the host's routes.

use super::conversation::suppressed;
use super::{Client, chance};
use crate::error::Error;
use crate::net::netlink::{Netlink, Network};
use crate::roles::host::Host;
use crate::roles::host::client::ClientPlan;
use crate::roles::host::hooks;
use crate::roles::vpn::{Dns, mtu_inside};
use crate::state::access::Prefix;
use crate::state::vpn::subnet::prefix_min;
use crate::wire::vpn::{Assignment, DnsServers};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

/// Smaller MTUs are no network's (RFC 791, RFC 8200): where the way has less room, datagrams are
/// sent in fragments.
const MTU_MIN_IPV4: u16 = 576;
const MTU_MIN_IPV6: u16 = 1280;

/// What the server has given us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) ipv4: Option<Assignment<Ipv4Addr>>,
    pub(super) ipv6: Option<Assignment<Ipv6Addr>>,
    pub(super) mtu: u16,
    pub(super) dns: DnsServers,
    /// The server's endpoint.
    pub(super) server: SocketAddr,
}

impl Settled {
    /// The server's own addresses inside.
    pub(super) fn server_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let ipv4 = self.ipv4.map(|ipv4| ipv4.server.into());
        ipv4.into_iter().chain(self.ipv6.map(|ipv6| ipv6.server.into()))
    }

    /// Why no host should take these, if so: a mistake, or somebody on the way who wants more of the traffic than was
    /// asked for.
    fn unusable(&self) -> Option<String> {
        let ipv4 =
            self.ipv4.map(|it| (IpAddr::from(it.address), it.prefix, IpAddr::from(it.server)));
        let ipv6 =
            self.ipv6.map(|it| (IpAddr::from(it.address), it.prefix, IpAddr::from(it.server)));
        for (address, length, server) in ipv4.into_iter().chain(ipv6) {
            let network = Network { address, length };
            if !(is_hosts(address) && is_hosts(server)) {
                return Some(format!("{network} with the server {server} are no hosts' addresses"));
            }
            if length < prefix_min(address) {
                return Some(format!("the network of {network} is too large"));
            }
            let prefix = Prefix::new(address, length);
            if prefix.is_some_and(|prefix| prefix.contains(self.server.ip().to_canonical())) {
                return Some(format!("{network} holds {}, its own endpoint", self.server.ip()));
            }
        }
        (self.mtu < MTU_MIN_IPV4).then(|| format!("an MTU of {}", self.mtu))
    }
}

impl Client {
    /// The server's addresses, for the first hello of this run, as they were in the last one.
    pub(super) fn try_first(
        &mut self,
        servers: Vec<SocketAddr>,
        host: &mut Host,
    ) -> Result<(), Error> {
        let now = self.started;
        // The name is looked up all the same.
        self.connection.know(now, servers);
        self.follow_servers(host)
    }

    /// The server's name has been looked up.
    pub(super) fn resolved(
        &mut self,
        now: Instant,
        servers: Vec<SocketAddr>,
        host: &mut Host,
    ) -> Result<(), Error> {
        let is_usable = |server: &SocketAddr| self.sockets.number_for(*server).is_some();
        let usable: Vec<SocketAddr> = servers.into_iter().filter(is_usable).collect();
        if usable.is_empty() {
            log::warn!("{} has no address that can be reached from here", self.config.server);
            self.connection.unresolved(now, chance());
            return Ok(());
        }
        if self.lookup.is_some() {
            self.identity.remember(&self.config.server, &usable);
        }
        self.connection.resolved(now, usable);
        self.follow_servers(host)
    }

    /// What is outside the tunnel, and whom the data plane listens to, follows the server's
    /// addresses, before the first message goes there.
    fn follow_servers(&mut self, host: &mut Host) -> Result<(), Error> {
        host.move_servers(self.connection.servers())?;
        self.publish();
        Ok(())
    }

    /// The kill switch, alone, if it is asked for.
    pub(super) fn guard(&mut self, host: &mut Host) -> Result<(), Error> {
        if !self.config.kill_switch {
            return Ok(());
        }
        if self.settled.is_none() {
            self.ask_to_confirm(self.started);
        }
        host.route(&ClientPlan {
            servers: self.connection.servers().to_vec(),
            excludes: self.config.excludes.clone(),
            kill_switch: true,
            ssh_ports: self.config.ssh_ports.clone(),
            ..ClientPlan::default()
        })
    }

    /// The host is about to change for the first time, or to be routed for the first time: the operator has to confirm it.
    fn ask_to_confirm(&mut self, now: Instant) {
        self.confirm_by = self.config.confirm.map(|time| now + time);
    }

    /// Takes a welcome. One that comes to an error is a welcome to nothing: a tunnel that has been up before goes on looking
    /// for its server, and its host is as it was without a tunnel.
    pub(super) fn welcome(
        &mut self,
        now: Instant,
        new: Settled,
        host: &mut Host,
    ) -> Result<(), Error> {
        let is_first = self.settled.is_none();
        match self.settle(now, new, host) {
            Err(error) if !is_first => {
                log::error!("{}: {error}; looking for another welcome", self.config.shared.tun);
                self.connection.on_unusable(now, chance());
                self.counters.connected.set(0);
                self.routed = None;
                host.undo_but_kill_switch()?;
                self.guard(host)
            }
            result => result,
        }
    }

    /// The server has a place for us.
    fn settle(&mut self, now: Instant, new: Settled, host: &mut Host) -> Result<(), Error> {
        if let Some(why) = new.unusable() {
            let doing = format!("cannot use what {} gives", self.config.server);
            return Err(Error::System { doing, cause: io::Error::other(why) });
        }
        self.counters.connections.increment();
        self.counters.connected.set(1);
        let before = self.settled.replace(new);
        let is_changed = self.set_device(&new)?;
        if is_changed || before.as_ref().map(|before| before.server) != Some(new.server) {
            self.publish();
        }
        if self.config.dns.contains(&Dns::Pushed) && new.dns.iter().next().is_none() {
            log::warn!("--dns server: {} tells no DNS server", self.config.server);
        }
        if before.is_none() {
            self.ask_to_confirm(now);
        }
        self.route(&new, host)?;
        self.close_lookups(now, host);
        self.connection.on_settled();
        let addresses: Vec<String> =
            self.device.addresses().iter().map(ToString::to_string).collect();
        let (tun, server) = (&self.config.shared.tun, &self.config.server);
        let addresses = addresses.join(" ");
        if let Some(more) = self.log_gate.pass(now) {
            log::info!(
                "{tun}: connected to {server} at {}, with {addresses}{}",
                new.server,
                suppressed(more)
            );
        }
        if is_changed {
            self.run_up_hook();
        }
        Ok(())
    }

    /// Returns whether the addresses or the MTU are others than before.
    fn set_device(&mut self, settled: &Settled) -> Result<bool, Error> {
        let mtu = self.mtu(settled);
        let addresses = self.addresses(settled);
        let only_ipv4: Vec<Network> =
            addresses.iter().filter(|it| it.address.is_ipv4()).copied().collect();
        match self.device.set(&addresses, mtu) {
            // Such as a host with IPv6 switched off.
            Err(error) if !only_ipv4.is_empty() && only_ipv4 != addresses => {
                log::warn!("going on without IPv6: {error}");
                self.device.set(&only_ipv4, mtu)?;
                Ok(true)
            }
            set => set,
        }
    }

    fn addresses(&self, settled: &Settled) -> Vec<Network> {
        let fixed = self.config.fixed;
        let ipv4 = settled.ipv4.map(|ipv4| Network {
            address: ipv4.address.into(),
            length: fixed.ipv4.map_or(ipv4.prefix, |(_, length)| length),
        });
        let ipv6 = settled.ipv6.map(|ipv6| Network {
            address: ipv6.address.into(),
            length: fixed.ipv6.map_or(ipv6.prefix, |(_, length)| length),
        });
        ipv4.into_iter().chain(ipv6).collect()
    }

    /// What the server says, but no more than is asked for here, and than what this host's own way
    /// to the server has room for.
    fn mtu(&self, settled: &Settled) -> u16 {
        let told = settled.mtu.min(self.config.shared.mtu.unwrap_or(u16::MAX));
        let room = path_mtu(settled.server.ip())
            .map_or(u16::MAX, |mtu| mtu_inside(mtu, settled.server.is_ipv4()));
        told.min(room.max(if settled.ipv6.is_some() { MTU_MIN_IPV6 } else { MTU_MIN_IPV4 }))
    }

    /// Brings the host in line with what we have been given, if it is not.
    fn route(&mut self, settled: &Settled, host: &mut Host) -> Result<(), Error> {
        let wanted = self.plan(settled);
        if self.routed.as_ref() == Some(&wanted) {
            return Ok(());
        }
        if self.routed.take().is_some() {
            host.undo_but_kill_switch()?;
        }
        host.route(&ClientPlan { servers: self.connection.servers().to_vec(), ..wanted.clone() })?;
        self.routed = Some(wanted);
        Ok(())
    }

    /// But for the servers, whose part follows them by itself.
    fn plan(&self, settled: &Settled) -> ClientPlan {
        let config = &self.config;
        let dns = config.dns.iter().flat_map(|dns| match dns {
            Dns::Server(server) => vec![*server],
            Dns::Pushed => settled.dns.iter().collect(),
        });
        ClientPlan {
            servers: Vec::new(),
            routes: config.routes.clone(),
            default_route: config.default_route,
            excludes: config.excludes.clone(),
            kill_switch: config.kill_switch,
            ssh_ports: config.ssh_ports.clone(),
            dns: dns.collect(),
            has_ipv6: self.device.addresses().iter().any(|it| it.address.is_ipv6()),
        }
    }

    fn run_up_hook(&self) {
        let Some(command) = self.config.shared.hooks.up.clone() else { return };
        let facts = self.facts();
        let is_sent = self.hooks.send(move || {
            hooks::run_and_log(&command, &facts, hooks::UP_LIMIT);
        });
        if !is_sent {
            log::warn!("the hook of --up is not run again: it is too slow");
        }
    }

    /// What hooks are told.
    pub(super) fn facts(&self) -> Vec<(&'static str, String)> {
        let own = |is_ipv4: bool| {
            let mut addresses = self.device.addresses().iter();
            let found = addresses.find(|network| network.address.is_ipv4() == is_ipv4);
            found.map_or_else(String::new, ToString::to_string)
        };
        let mut facts = vec![
            ("TUN", self.config.shared.tun.clone()),
            ("ADDRESS4", own(true)),
            ("ADDRESS6", own(false)),
            ("MTU", self.device.mtu().to_string()),
        ];
        if let Some(settled) = &self.settled {
            let text =
                |address: Option<IpAddr>| address.map_or_else(String::new, |it| it.to_string());
            let dns: Vec<String> = settled.dns.iter().map(|it| it.to_string()).collect();
            facts.extend([
                ("SERVER4", text(settled.ipv4.map(|ipv4| ipv4.server.into()))),
                ("SERVER6", text(settled.ipv6.map(|ipv6| ipv6.server.into()))),
                ("ENDPOINT", settled.server.to_string()),
                ("DNS", dns.join(" ")),
            ]);
        }
        facts
    }
}

fn is_hosts(address: IpAddr) -> bool {
    let is_broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || is_broadcast)
}

/// The MTU of the way to the server, as far as this host knows it.
fn path_mtu(server: IpAddr) -> Option<u16> {
    let find = || -> io::Result<u32> {
        let mut netlink = Netlink::open()?;
        let path = netlink.path_to(server)?;
        let link = netlink.link_by_index(path.device)?;
        Ok(path.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)))
    };
    // A loopback device takes more than 16 bits can say.
    find().ok().map(|mtu| u16::try_from(mtu).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_welcome_takes_no_more_than_a_tunnels_network() {
        let given = |address: [u8; 4], prefix, server: [u8; 4], mtu| Settled {
            ipv4: Some(Assignment { address: address.into(), prefix, server: server.into() }),
            ipv6: None,
            mtu,
            dns: DnsServers::default(),
            server: "198.51.100.1:5555".parse().unwrap(),
        };
        let own = [10, 0, 0, 2];
        assert_eq!(given([10, 0, 0, 5], 24, own, 1472).unusable(), None);
        for (given, why) in [
            (given([10, 0, 0, 5], 1, own, 1472), "too large"),
            (given([10, 0, 0, 5], 7, own, 1472), "too large"),
            (given([198, 51, 100, 9], 24, own, 1472), "its own endpoint"),
            (given([127, 0, 0, 1], 8, own, 1472), "no hosts'"),
            (given([10, 0, 0, 5], 24, [224, 0, 0, 1], 1472), "no hosts'"),
            (given([10, 0, 0, 5], 24, own, 67), "an MTU of 67"),
        ] {
            let said = given.unusable().unwrap();
            assert!(said.contains(why), "{said}");
        }
    }
}
