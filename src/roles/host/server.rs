//! A server's host: forwarding, NAT, the clamp on TCP's segments.
//!
//! IPv6 routers do not listen to other routers (RFC 4861, section 6.2.8): with `forwarding` the kernel drops
//! the default route that it had from router advertisements, and takes no other, unless `accept_ra` is 2.

use super::journal::Step;
use super::undo::{IPV6_FORWARDING, read_sysctl, value_before_others, write_sysctl};
use super::{Host, firewall, is_interface_name, program};
use crate::error::Error;
use crate::net::netlink::Network;
use crate::net::netlink::route::Path;
use std::io;
use std::net::IpAddr;

/// What a server changes on its host.
#[derive(Debug, Clone)]
pub struct ServerPlan {
    /// The tunnel's networks.
    pub networks: Vec<Network>,
    /// Clients' traffic goes on to other networks, with this host's address.
    pub nat: Option<Nat>,
}

/// Where clients' traffic leaves.
#[derive(Debug, Clone, Default)]
pub struct Nat {
    /// The interface; `None`: that of the default route.
    pub out_interface: Option<String>,
}

/// What of a plan is in force, to be put back when others remove it.
#[derive(Debug)]
pub struct InForce {
    networks: Vec<Network>,
    out: String,
}

/// Addresses that no route but the default one leads to: TEST-NET-3 and its like of IPv6 (RFC 5737, RFC 3849).
const FAR_AWAY: [&str; 2] = ["203.0.113.1", "2001:db8::1"];

impl Host {
    /// Makes the changes of a server; without NAT there are none.
    ///
    /// Errors name what is missing: an interface, nft, a permission. What was done before an error is undone by
    /// [`Host::undo`].
    pub fn serve(&mut self, plan: &ServerPlan) -> Result<(), Error> {
        let Some(nat) = &plan.nat else { return Ok(()) };
        let out = match &nat.out_interface {
            Some(name) => self.known(name)?,
            None => self.default_interface()?,
        };
        let has_ipv6 = plan.networks.iter().any(|network| network.address.is_ipv6());
        self.switch_on("net/ipv4/ip_forward")?;
        if has_ipv6 {
            self.keep_advertised_route(&out);
            self.switch_on(IPV6_FORWARDING)?;
        }
        let has_iptables = program::is_there("iptables");
        self.server = Some(InForce { networks: plan.networks.clone(), out: out.clone() });
        let step = Step::Table("inet".into(), firewall::table_name(&self.tun));
        let nft = program::is_there("nft").then(|| self.step(step.clone(), Host::put_table));
        match nft {
            Some(Ok(())) => {}
            // Such as a kernel whose nftables have no NAT for both families (before 5.2).
            Some(Err(error)) if has_iptables => {
                log::warn!("{}: {error}; trying iptables", self.tun);
                self.abandon(&step);
                self.masquerade_by_iptables(plan, &out)?;
            }
            Some(Err(error)) => return Err(error),
            None if has_iptables => self.masquerade_by_iptables(plan, &out)?,
            None => {
                let cause = io::Error::other("neither nft nor iptables is there: install nftables");
                return Err(Error::System { doing: "cannot set up NAT".into(), cause });
            }
        }
        self.open_iptables(has_ipv6)?;
        log::info!("{}: clients leave by {out} with its address", self.tun);
        Ok(())
    }

    /// Puts the server's table in, or back.
    pub(super) fn put_table(&mut self) -> Result<(), Error> {
        let Some(InForce { networks, out }) = &self.server else { return Ok(()) };
        firewall::serve(&firewall::Server { tun: &self.tun, networks, masquerade: Some(out) })
    }

    /// Before IPv6 is forwarded: see the top of this file. A host that forwards already has made up its mind. What cannot
    /// be done here holds nobody up.
    fn keep_advertised_route(&mut self, out: &str) {
        let Ok(forwarding) = read_sysctl(IPV6_FORWARDING) else { return };
        if forwarding == "1" && value_before_others(self, IPV6_FORWARDING).is_none() {
            return;
        }
        // The way of IPv6 may be another one.
        let far_away = FAR_AWAY[1].parse::<IpAddr>().ok();
        let way = far_away.and_then(|address| self.netlink.path_to(address).ok());
        let way = way.and_then(|path| self.interface_of(path).ok());
        let out = way.unwrap_or_else(|| out.to_owned());
        let name = format!("net/ipv6/conf/{out}/accept_ra");
        let Ok(value) = read_sysctl(&name) else { return };
        let before = value_before_others(self, &name);
        if !(value == "1" || value == "2" && before.is_some()) {
            return;
        }
        let step = Step::Sysctl(name.clone(), before.unwrap_or(value));
        if let Err(error) = self.step(step.clone(), |_| write_sysctl(&name, "2")) {
            log::warn!("{}: {error}; an IPv6 route of router advertisements may go", self.tun);
            self.abandon(&step);
        }
    }

    fn known(&mut self, name: &str) -> Result<String, Error> {
        let doing = || format!("cannot use the interface {name}");
        if !is_interface_name(name) {
            let cause = io::Error::new(io::ErrorKind::InvalidInput, "no interface has such a name");
            return Err(Error::System { doing: doing(), cause });
        }
        self.netlink.link(name).map(|link| link.name).map_err(Error::while_doing(doing))
    }

    fn default_interface(&mut self) -> Result<String, Error> {
        let doing = || "cannot find the default route's interface (--out-interface names one)";
        let mut failure = io::ErrorKind::NotFound.into();
        for address in FAR_AWAY.iter().filter_map(|text| text.parse::<IpAddr>().ok()) {
            match self.netlink.path_to(address) {
                Ok(path) => return self.interface_of(path).map_err(Error::while_doing(doing)),
                Err(error) => failure = error,
            }
        }
        Err(Error::System { doing: doing().into(), cause: failure })
    }

    fn interface_of(&mut self, path: Path) -> io::Result<String> {
        self.netlink.link_by_index(path.device).map(|link| link.name)
    }

    /// Sets a switch to 1, unless it is; another tunnel that did so first told what it was before.
    fn switch_on(&mut self, name: &str) -> Result<(), Error> {
        let now = read_sysctl(name)?;
        let before = match value_before_others(self, name) {
            Some(before) => before,
            None if now == "1" => return Ok(()),
            None => now.clone(),
        };
        self.step(Step::Sysctl(name.into(), before), |_| {
            if now == "1" { Ok(()) } else { write_sysctl(name, "1") }
        })
    }

    fn masquerade_by_iptables(&mut self, plan: &ServerPlan, out: &str) -> Result<(), Error> {
        for network in &plan.networks {
            let program = if network.address.is_ipv4() { "iptables" } else { "ip6tables" };
            let network = network.to_string();
            let rule = ["-t", "nat", "POSTROUTING", "-s", &network, "-o", out, "-j", "MASQUERADE"];
            self.iptables(program, &rule)?;
        }
        let tun = self.tun.clone();
        for (program, is_ipv4) in [("iptables", true), ("ip6tables", false)] {
            if plan.networks.iter().all(|network| network.address.is_ipv4() != is_ipv4) {
                continue;
            }
            for way in ["-i", "-o"] {
                let flags = ["-p", "tcp", "--tcp-flags", "SYN,RST", "SYN"];
                let clamp = ["-j", "TCPMSS", "--clamp-mss-to-pmtu"];
                let rule = [&["-t", "mangle", "FORWARD", way, &tun][..], &flags, &clamp].concat();
                self.iptables(program, &rule)?;
            }
        }
        Ok(())
    }

    /// Where iptables keeps others from forwarding (a policy of DROP, as Docker sets it), lets the tunnel pass: what
    /// our own table accepts, theirs may still drop.
    fn open_iptables(&mut self, has_ipv6: bool) -> Result<(), Error> {
        let tun = self.tun.clone();
        for (program, wanted) in [("iptables", true), ("ip6tables", has_ipv6)] {
            if !wanted || !program::is_there(program) {
                continue;
            }
            match program::run(program, &["-w", "-S", "FORWARD"], "") {
                Ok(listed) if listed.trim() == "-P FORWARD ACCEPT" => continue,
                Ok(_) => {}
                Err(error) => {
                    log::warn!(
                        "{tun}: {error}; if its rules drop what is forwarded, clients get nowhere"
                    );
                    continue;
                }
            }
            self.iptables(program, &["-t", "filter", "FORWARD", "-i", &tun, "-j", "ACCEPT"])?;
            let answers = ["-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED"];
            let rule = [&["-t", "filter", "FORWARD", "-o", &tun][..], &answers, &["-j", "ACCEPT"]]
                .concat();
            self.iptables(program, &rule)?;
        }
        Ok(())
    }

    /// Inserts a rule, given as `-t TABLE CHAIN RULE...`, at the front of its chain.
    fn iptables(&mut self, program: &str, rule: &[&str]) -> Result<(), Error> {
        let with = |action: &'static str| -> Vec<String> {
            // Waits for whoever has the lock; program::run bounds it.
            let words = ["-w"].iter().chain(&rule[..2]).chain([&action]).chain(&rule[2..]);
            words.map(|word| (*word).to_owned()).collect()
        };
        let undo = std::iter::once(program.to_owned()).chain(with("-D")).collect();
        self.step(Step::Run(undo), |_| {
            let words = with("-I");
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            program::run(program, &words, "").map(drop)
        })
    }
}
