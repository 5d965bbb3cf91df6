//! The VPN's decisions: which client has which address, who talks from where, and when a client
//! asks its server again.

pub mod clients;
pub mod connection;
pub mod leases;
pub mod subnet;

use crate::wire::vpn::Wish;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The places of the families in [`Addresses`], [`Wishes`] and a server's subnets.
const IPV4: usize = 0;
const IPV6: usize = 1;

/// A client's addresses inside the tunnel: one of each family at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Addresses([Option<IpAddr>; 2]);

impl Addresses {
    /// These two.
    pub fn new(ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>) -> Addresses {
        Addresses([ipv4.map(IpAddr::V4), ipv6.map(IpAddr::V6)])
    }

    /// Each of them, the IPv4 address first.
    pub fn iter(self) -> impl Iterator<Item = IpAddr> {
        self.0.into_iter().flatten()
    }

    /// The IPv4 address.
    pub fn ipv4(self) -> Option<Ipv4Addr> {
        match self.0[IPV4] {
            Some(IpAddr::V4(address)) => Some(address),
            _ => None,
        }
    }

    /// The IPv6 address.
    pub fn ipv6(self) -> Option<Ipv6Addr> {
        match self.0[IPV6] {
            Some(IpAddr::V6(address)) => Some(address),
            _ => None,
        }
    }

    fn is_empty(self) -> bool {
        self.iter().next().is_none()
    }
}

/// What a client says about the addresses that it wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wishes([Wish<IpAddr>; 2]);

impl Wishes {
    /// Of both families.
    pub fn new(ipv4: Wish<Ipv4Addr>, ipv6: Wish<Ipv6Addr>) -> Wishes {
        Wishes([of_any_family(ipv4), of_any_family(ipv6)])
    }
}

fn of_any_family<A: Into<IpAddr>>(wish: Wish<A>) -> Wish<IpAddr> {
    match wish {
        Wish::Any => Wish::Any,
        Wish::Rather(address) => Wish::Rather(address.into()),
        Wish::Only(address) => Wish::Only(address.into()),
    }
}

/// The place of an address's family.
fn family(address: IpAddr) -> usize {
    if address.is_ipv4() { IPV4 } else { IPV6 }
}
