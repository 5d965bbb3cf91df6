//! Addresses of interfaces.

use super::{Netlink, Network, family};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use std::io;
use std::net::IpAddr;

/// An address, and the interface that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkAddress {
    /// The interface's number.
    pub index: u32,
    /// The address, and the length of its network's prefix.
    pub network: Network,
    /// The other end's address on a point-to-point interface.
    pub peer: Option<IpAddr>,
}

impl Netlink {
    /// Gives an interface an address; the route to its network comes along. An IPv6 address counts at
    /// once, without duplicate address detection. `AlreadyExists`: it has it.
    pub fn add_address(&mut self, index: u32, network: Network) -> io::Result<()> {
        self.add_point_to_point(index, network, None)
    }

    /// The same with the address of the other end, to which `network`'s length then belongs.
    pub fn add_point_to_point(
        &mut self,
        index: u32,
        network: Network,
        peer: Option<IpAddr>,
    ) -> io::Result<()> {
        let mut message = message(index, network, peer);
        if network.address.is_ipv6() {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Takes an address away. `AddrNotAvailable`: it is not there.
    pub fn delete_address(&mut self, index: u32, network: Network) -> io::Result<()> {
        self.change(RouteNetlinkMessage::DelAddress(message(index, network, None)), 0)
    }

    /// All addresses of all interfaces.
    pub fn addresses(&mut self) -> io::Result<Vec<LinkAddress>> {
        let answers = self.list(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        Ok(answers.into_iter().filter_map(parsed).collect())
    }
}

fn message(index: u32, network: Network, peer: Option<IpAddr>) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(network.address);
    message.header.prefix_len = network.length;
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    message.attributes.push(AddressAttribute::Local(network.address));
    message.attributes.push(AddressAttribute::Address(peer.unwrap_or(network.address)));
    message
}

fn parsed(message: RouteNetlinkMessage) -> Option<LinkAddress> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let (mut local, mut other) = (None, None);
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(address),
            AddressAttribute::Address(address) => other = Some(address),
            _ => {}
        }
    }
    // IPv6 has only the second where there is no other end.
    let address = local.or(other)?;
    let network = Network { address, length: message.header.prefix_len };
    let peer = other.filter(|other| *other != address);
    Some(LinkAddress { index: message.header.index, network, peer })
}
