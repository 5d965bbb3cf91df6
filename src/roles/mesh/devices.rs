//! The tunnels' devices: what a plan's steps come to on this host.

use crate::net::netlink::changes::Touched;
use crate::net::netlink::link::Link;
use crate::net::netlink::route::{Hop, MAIN, Route};
use crate::net::netlink::{Netlink, Network};
use crate::net::random;
use crate::net::tun::TunDevice;
use crate::roles::data_plane::Plane;
use crate::roles::data_plane::orders::Order;
use crate::roles::data_plane::table::DeviceId;
use crate::state::access::Prefix;
use crate::state::mesh::plan::Action;
use crate::state::mesh::tunnel::{Address, TunnelName};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Weak};

/// Bytes of IP and UDP headers in front of what a datagram carries.
const OVERHEAD_IPV4: u32 = 28;
const OVERHEAD_IPV6: u32 = 48;

/// A step that the kernel refused. Displayed: what was done, to what, the cause.
#[derive(Debug)]
pub(super) struct Failure {
    doing: String,
    cause: io::Error,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.cause)
    }
}

/// A device that is there.
#[derive(Debug)]
pub(super) struct Device {
    /// The data plane's number of it.
    pub(super) id: DeviceId,
    /// The kernel's.
    pub(super) index: u32,
    file: Weak<TunDevice>,
}

/// All devices, by the names of their tunnels.
pub(super) struct Devices {
    netlink: Netlink,
    offload: bool,
    /// The group of all devices: a number that nobody else uses.
    group: u32,
    by_name: BTreeMap<TunnelName, Device>,
    /// Those of closed tunnels, which [`Devices::sweep`] deletes.
    closed: Vec<Device>,
    /// Numbers below `next_id` that are free again.
    free: Vec<DeviceId>,
    next_id: u32,
}

impl Devices {
    pub(super) fn open(offload: bool) -> io::Result<Devices> {
        Ok(Devices {
            netlink: Netlink::open()?,
            offload,
            group: random_group()?,
            by_name: BTreeMap::new(),
            closed: Vec::new(),
            free: Vec::new(),
            next_id: 0,
        })
    }

    /// The device of a tunnel.
    pub(super) fn get(&self, name: &TunnelName) -> Option<&Device> {
        self.by_name.get(name)
    }

    /// The tunnel whose device this is.
    pub(super) fn owner(&self, device: &Arc<TunDevice>) -> Option<&TunnelName> {
        let is_it = |found: &Device| std::ptr::eq(found.file.as_ptr(), Arc::as_ptr(device));
        self.by_name.iter().find(|(_, found)| is_it(found)).map(|(name, _)| name)
    }

    /// Whether one of the devices has that number of the kernel's.
    pub(super) fn has_index(&self, index: u32) -> bool {
        self.by_name.values().any(|device| device.index == index)
    }

    /// Whether the kernel still has the device.
    pub(super) fn is_there(&mut self, name: &TunnelName) -> bool {
        let Some(device) = self.by_name.get(name) else { return false };
        self.netlink.link_by_index(device.index).is_ok_and(|link| link.name == name.as_str())
    }

    /// Does one step; after the last one comes [`Devices::sweep`].
    pub(super) fn perform(
        &mut self,
        plane: &Plane,
        name: &TunnelName,
        action: Action,
    ) -> Result<(), Failure> {
        let done = match action {
            Action::Open => self.make(plane, name),
            Action::Close => {
                self.closed.extend(self.by_name.remove(name));
                Ok(())
            }
            _ => match self.by_name.get(name) {
                Some(device) => self.change(device.index, action),
                // Somebody has deleted it, and it could not be made again yet: it has nothing to
                // lose, and what it shall have it gets when it is made.
                None => Ok(()),
            },
        };
        done.map_err(|cause| Failure { doing: doing(name, action), cause })
    }

    fn make(&mut self, plane: &Plane, name: &TunnelName) -> io::Result<()> {
        match self.netlink.link(name.as_str()) {
            Ok(_) => {
                let there = "there is an interface of that name already";
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, there));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let device = TunDevice::open(name.as_str(), self.offload)?;
        let index = self.netlink.link(name.as_str())?.index;
        self.netlink.set_group(index, self.group)?;
        let id = self.free.pop().unwrap_or_else(|| {
            self.next_id += 1;
            DeviceId(self.next_id - 1)
        });
        let device = Arc::new(device);
        let file = Arc::downgrade(&device);
        plane.order(&Order::AddDevice(id, device));
        self.by_name.insert(name.clone(), Device { id, index, file });
        Ok(())
    }

    /// Has the kernel delete the devices whose tunnels have been closed, and the data plane forget
    /// them. When this returns their names are free.
    ///
    /// Here, and not by the data plane's closing them: that takes 10 to 20 ms each, and nothing is
    /// carried meanwhile.
    pub(super) fn sweep(&mut self, plane: &Plane) {
        let closed = std::mem::take(&mut self.closed);
        let deleted = match &closed[..] {
            [] => return,
            [device] => self.netlink.delete_link(device.index),
            _ => self.delete_all(&closed),
        };
        match deleted {
            // Somebody else was faster.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("cannot delete devices, which go when they are closed: {error}");
            }
            _ => {}
        }
        for device in closed {
            plane.order(&Order::RemoveDevice(device.id));
            self.free.push(device.id);
        }
    }

    fn delete_all(&mut self, devices: &[Device]) -> io::Result<()> {
        let group = random_group()?;
        let mut any = false;
        for device in devices {
            match self.netlink.set_group(device.index, group) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                set => {
                    set?;
                    any = true;
                }
            }
        }
        if any { self.netlink.delete_group(group) } else { Ok(()) }
    }

    /// Has the kernel delete all devices, at once: it takes 0.3 ms each, and 10 to 20 ms for those
    /// that somebody has put into another group, which go when they are closed.
    pub(super) fn delete_everything(&mut self) {
        if self.by_name.is_empty() {
            return;
        }
        match self.netlink.delete_group(self.group) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("cannot delete the devices, which go when they are closed: {error}");
            }
            _ => {}
        }
        self.by_name.clear();
    }

    fn change(&mut self, index: u32, action: Action) -> io::Result<()> {
        let netlink = &mut self.netlink;
        match action {
            Action::SetMtu { to, .. } => netlink.set_mtu(index, to.into()),
            Action::Up => netlink.set_up(index, true),
            Action::Down => netlink.set_up(index, false),
            Action::AddAddress(address) => {
                match netlink.add_address(index, network_of(address)) {
                    // Somebody else was faster.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    added => added?,
                }
                self.delete_broadcast(index, address)
            }
            Action::RemoveAddress(address) => {
                present(netlink.delete_address(index, network_of(address)))
            }
            Action::AddRoute(to) => match netlink.add_route(route(index, to)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let routes = netlink.routes(MAIN)?;
                    let ours = Hop::Device(index);
                    let to = route(index, to).to;
                    let is_ours = routes.iter().any(|found| found.to == to && found.hop == ours);
                    if is_ours { Ok(()) } else { Err(error) }
                }
                added => added,
            },
            Action::RemoveRoute(to) => present(netlink.delete_route(route(index, to))),
            Action::Open | Action::Close => Ok(()),
        }
    }

    /// Adds what is gone of a device; false if it is there after all, such as a route that somebody
    /// has replaced by his own to the same device.
    pub(super) fn put_back(&mut self, name: &TunnelName, action: Action) -> Result<bool, Failure> {
        let Some(index) = self.get(name).map(|device| device.index) else { return Ok(false) };
        let done = match action {
            Action::AddRoute(to) => match self.netlink.add_route(route(index, to)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let path = self.netlink.path_to(to.network());
                    let leads_here = path.is_ok_and(|path| path.device == index);
                    if leads_here { Ok(false) } else { Err(error) }
                }
                added => added.map(|()| true),
            },
            _ => self.change(index, action).map(|()| true),
        };
        done.map_err(|cause| Failure { doing: doing(name, action), cause })
    }

    /// The tunnels whose devices something has changed about.
    pub(super) fn touched(&self, touched: &Touched) -> Vec<TunnelName> {
        let these = self.by_name.iter().filter(|(_, device)| touched.has(device.index));
        these.map(|(name, _)| name.clone()).collect()
    }

    /// Asks for all links, addresses and routes.
    pub(super) fn there(&mut self) -> io::Result<There> {
        let links = self.netlink.links()?.into_iter().map(|link| (link.index, link));
        let links = links.collect();
        let addresses = self.netlink.addresses()?.into_iter();
        let addresses = addresses.map(|found| (found.index, found.network)).collect();
        let routes = self.netlink.static_routes(MAIN)?.into_iter();
        let routes = routes.filter_map(|found| match found.hop {
            Hop::Device(index) => Some((index, found.to)),
            _ => None,
        });
        Ok(There { links, addresses, routes: routes.collect() })
    }

    /// Makes the last address of an IPv4 network a host's. The kernel takes it for the broadcast
    /// address again whenever the device is switched on.
    pub(super) fn delete_broadcast(&mut self, index: u32, address: Address) -> io::Result<()> {
        match address.broadcast() {
            Some(last) => present(self.netlink.delete_broadcast(index, last)),
            None => Ok(()),
        }
    }

    /// Says whether the device has a carrier.
    pub(super) fn set_carrier(&mut self, name: &TunnelName, has_carrier: bool) -> io::Result<()> {
        match self.by_name.get(name) {
            Some(device) => self.netlink.set_carrier(device.index, has_carrier),
            None => Ok(()),
        }
    }

    /// Bytes of the largest datagram's payload that the way to a remote carries in one piece.
    pub(super) fn payload_max(&mut self, remote: IpAddr) -> io::Result<u32> {
        let path = self.netlink.path_to(remote)?;
        let mtu = match path.mtu {
            Some(mtu) => mtu,
            None => self.netlink.link_by_index(path.device)?.mtu,
        };
        let overhead = if remote.is_ipv4() { OVERHEAD_IPV4 } else { OVERHEAD_IPV6 };
        Ok(mtu.saturating_sub(overhead))
    }
}

/// What the kernel has of all devices.
pub(super) struct There {
    links: HashMap<u32, Link>,
    addresses: HashSet<(u32, Network)>,
    routes: HashSet<(u32, Network)>,
}

impl There {
    /// Whether the device of that number is switched on; None if it is not there, or has another name.
    pub(super) fn is_up(&self, index: u32, name: &TunnelName) -> Option<bool> {
        let link = self.links.get(&index).filter(|link| link.name == name.as_str());
        link.map(|link| link.is_up)
    }

    pub(super) fn has_address(&self, index: u32, address: Address) -> bool {
        self.addresses.contains(&(index, network_of(address)))
    }

    pub(super) fn has_route(&self, index: u32, to: Prefix) -> bool {
        self.routes.contains(&(index, route(index, to).to))
    }
}

/// The number of a group that nobody else uses.
fn random_group() -> io::Result<u32> {
    Ok(u32::from_ne_bytes(random::bytes()?) | 1 << 30)
}

/// Removing what is gone already is no error.
fn present(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if Netlink::is_absent(&error) => Ok(()),
        removed => removed,
    }
}

fn network_of(address: Address) -> Network {
    Network { address: address.ip(), length: address.network().length() }
}

fn route(index: u32, to: Prefix) -> Route {
    let to = Network { address: to.network(), length: to.length() };
    Route { to, hop: Hop::Device(index), table: MAIN, metric: 0 }
}

fn doing(name: &TunnelName, action: Action) -> String {
    match action {
        Action::Open => format!("cannot make the device {name}"),
        Action::Close => format!("cannot delete the device {name}"),
        Action::SetMtu { to, .. } => format!("cannot set the MTU of {name} to {to}"),
        Action::AddAddress(address) => format!("cannot give {name} the address {address}"),
        Action::RemoveAddress(address) => format!("cannot take the address {address} from {name}"),
        Action::Up => format!("cannot switch {name} on"),
        Action::Down => format!("cannot switch {name} off"),
        Action::AddRoute(route) => format!("cannot route {route} to {name}"),
        Action::RemoveRoute(route) => format!("cannot remove the route {route} to {name}"),
    }
}
