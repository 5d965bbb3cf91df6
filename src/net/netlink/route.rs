//! Routes, and the way that a packet would take.

use super::{Netlink, Network, family};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::io;
use std::net::{IpAddr, Ipv4Addr};

/// The kernel's main table.
pub const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// Straight out of this interface.
    Device(u32),
    /// To this neighbour out of this interface.
    Gateway(IpAddr, u32),
    /// Nowhere: the sender gets an error.
    Unreachable,
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// What it is for.
    pub to: Network,
    /// Where it leads.
    pub hop: Hop,
    /// The number of its table.
    pub table: u32,
    /// Of several to the same network the one with the smallest metric counts; 0 is the kernel's own
    /// choice.
    pub metric: u32,
}

/// The way to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// The interface that packets leave by.
    pub device: u32,
    /// The neighbour that they go to first, if that is not the address itself.
    pub gateway: Option<IpAddr>,
    /// The address that they leave from.
    pub source: Option<IpAddr>,
    /// The largest packet that is known to pass, where that is less than the interface's MTU.
    pub mtu: Option<u32>,
}

impl Netlink {
    /// Adds a route. `AlreadyExists`: there is one to the same network with the same metric.
    pub fn add_route(&mut self, route: Route) -> io::Result<()> {
        self.change(RouteNetlinkMessage::NewRoute(message(route)), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Adds a route in place of the one to the same network with the same metric, if there is one.
    pub fn replace_route(&mut self, route: Route) -> io::Result<()> {
        self.change(RouteNetlinkMessage::NewRoute(message(route)), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes a route. `NotFound`, or ESRCH, for which [`is_absent`](Netlink::is_absent) looks: there
    /// is none.
    pub fn delete_route(&mut self, route: Route) -> io::Result<()> {
        self.change(RouteNetlinkMessage::DelRoute(message(route)), 0)
    }

    /// Makes an address of an interface's network, which the kernel takes for its broadcast address,
    /// a host's address like others: on a link with two ends there is nothing to broadcast to.
    pub fn delete_broadcast(&mut self, index: u32, address: Ipv4Addr) -> io::Result<()> {
        let mut message = message(Route {
            to: Network::host(address.into()),
            hop: Hop::Device(index),
            table: libc::RT_TABLE_LOCAL.into(),
            metric: 0,
        });
        message.header.kind = RouteType::Broadcast;
        message.header.protocol = RouteProtocol::Kernel;
        self.change(RouteNetlinkMessage::DelRoute(message), 0)
    }

    /// Removes the route to a network from a table, wherever it leads.
    pub fn delete_route_to(&mut self, to: Network, table: u32) -> io::Result<()> {
        let mut message = message(Route { to, hop: Hop::Unreachable, table, metric: 0 });
        message.header.kind = RouteType::Unspec;
        message.header.protocol = RouteProtocol::Unspec;
        message.header.scope = RouteScope::NoWhere;
        self.change(RouteNetlinkMessage::DelRoute(message), 0)
    }

    /// Whether an error of a deletion says that the thing was not there.
    pub fn is_absent(error: &io::Error) -> bool {
        matches!(
            error.raw_os_error(),
            Some(libc::ESRCH | libc::ENOENT | libc::ENODEV | libc::EADDRNOTAVAIL)
        ) || error.kind() == io::ErrorKind::NotFound
    }

    /// Whether an error says that the kernel has no such address family, as with `ipv6.disable=1`.
    pub fn is_family_absent(error: &io::Error) -> bool {
        matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
    }

    /// The way that a packet of this host to `address` takes now. `NetworkUnreachable`: there is none.
    pub fn path_to(&mut self, address: IpAddr) -> io::Result<Path> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(address);
        message.header.destination_prefix_length = Network::host(address).length;
        message.attributes.push(RouteAttribute::Destination(address.into()));
        let RouteNetlinkMessage::NewRoute(answer) =
            self.get(RouteNetlinkMessage::GetRoute(message))?
        else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let mut path = Path { device: 0, gateway: None, source: None, mtu: None };
        for attribute in answer.attributes {
            match attribute {
                RouteAttribute::Oif(device) => path.device = device,
                RouteAttribute::Gateway(gateway) => path.gateway = ip(&gateway),
                RouteAttribute::PrefSource(source) => path.source = ip(&source),
                RouteAttribute::Metrics(metrics) => {
                    path.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        Ok(path)
    }

    /// The routes of a table, of both families, to networks of unicast addresses or nowhere. Since Linux 4.20 the
    /// kernel leaves the other tables out; before, a host with all of the Internet's routes takes its time.
    pub fn routes(&mut self, table: u32) -> io::Result<Vec<Route>> {
        self.routes_by(table, None)
    }

    /// Those of [`Netlink::routes`] that were added as [`Netlink::add_route`] adds them. Others, of which
    /// a routing daemon may have a million, the kernel leaves out itself (Linux 4.20).
    pub fn static_routes(&mut self, table: u32) -> io::Result<Vec<Route>> {
        self.routes_by(table, Some(RouteProtocol::Static))
    }

    fn routes_by(&mut self, table: u32, by: Option<RouteProtocol>) -> io::Result<Vec<Route>> {
        let is_filtered = self.socket.set_netlink_get_strict_chk(true).is_ok();
        let answers = self.dump_routes(table, by, is_filtered);
        if is_filtered {
            // Other requests are made without thought for what the kernel checks then.
            self.socket.set_netlink_get_strict_chk(false)?;
        }
        let is_by = |answer: &RouteNetlinkMessage| match answer {
            RouteNetlinkMessage::NewRoute(route) => by.is_none_or(|by| route.header.protocol == by),
            _ => false,
        };
        let routes = answers?.into_iter().filter(is_by).filter_map(parsed);
        Ok(routes.filter(|route| route.table == table).collect())
    }

    fn dump_routes(
        &mut self,
        table: u32,
        by: Option<RouteProtocol>,
        is_filtered: bool,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut answers = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            if is_filtered {
                message.header.protocol = by.unwrap_or(RouteProtocol::Unspec);
                message.attributes.push(RouteAttribute::Table(table));
            }
            match self.list(RouteNetlinkMessage::GetRoute(message)) {
                Ok(found) => answers.extend(found),
                // There is no such table, or no such family.
                Err(error) if Netlink::is_absent(&error) || Netlink::is_family_absent(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(answers)
    }
}

fn message(route: Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.to.address);
    message.header.destination_prefix_length = route.to.length;
    // Tables above 255 are in the attribute alone.
    message.header.table = u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Destination(route.to.address.into()));
    message.attributes.push(RouteAttribute::Table(route.table));
    if route.metric > 0 {
        message.attributes.push(RouteAttribute::Priority(route.metric));
    }
    match route.hop {
        Hop::Device(device) => {
            if route.to.address.is_ipv4() {
                message.header.scope = RouteScope::Link;
            }
            message.attributes.push(RouteAttribute::Oif(device));
        }
        Hop::Gateway(gateway, device) => {
            message.attributes.push(RouteAttribute::Gateway(gateway.into()));
            message.attributes.push(RouteAttribute::Oif(device));
        }
        Hop::Unreachable => message.header.kind = RouteType::Unreachable,
    }
    message
}

fn parsed(message: RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let header = message.header;
    let any = match header.address_family {
        netlink_packet_route::AddressFamily::Inet => IpAddr::from([0; 4]),
        netlink_packet_route::AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let to = Network { address: any, length: header.destination_prefix_length };
    let table = u32::from(header.table);
    let mut route = Route { to, hop: Hop::Unreachable, table, metric: 0 };
    let (mut device, mut gateway) = (None, None);
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.to.address = ip(&address)?,
            RouteAttribute::Table(table) => route.table = table,
            RouteAttribute::Priority(metric) => route.metric = metric,
            RouteAttribute::Oif(index) => device = Some(index),
            RouteAttribute::Gateway(address) => gateway = ip(&address),
            _ => {}
        }
    }
    route.hop = match (header.kind, gateway, device) {
        (RouteType::Unicast, Some(gateway), Some(device)) => Hop::Gateway(gateway, device),
        (RouteType::Unicast, None, Some(device)) => Hop::Device(device),
        (RouteType::Unreachable, _, _) => Hop::Unreachable,
        _ => return None,
    };
    Some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
