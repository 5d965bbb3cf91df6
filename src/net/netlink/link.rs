//! Network interfaces.

use super::Netlink;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use std::io;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name, 15 bytes at most.
    pub name: String,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// Whether it is switched on.
    pub is_up: bool,
}

impl Netlink {
    /// The interface of that name. `NotFound`: there is none (the kernel says ENODEV).
    pub fn link(&mut self, name: &str) -> io::Result<Link> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.one_link(message)
    }

    /// The interface of that number.
    pub fn link_by_index(&mut self, index: u32) -> io::Result<Link> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.one_link(message)
    }

    fn one_link(&mut self, message: LinkMessage) -> io::Result<Link> {
        let answer = self.get(RouteNetlinkMessage::GetLink(message)).map_err(no_device)?;
        parsed(answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// All interfaces.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let answers = self.list(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(answers.into_iter().filter_map(parsed).collect())
    }

    /// Switches an interface on or off.
    pub fn set_up(&mut self, index: u32, is_up: bool) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if is_up { LinkFlags::Up } else { LinkFlags::empty() };
        self.change(RouteNetlinkMessage::SetLink(message), 0).map_err(no_device)
    }

    /// Sets the largest packet, in bytes. `InvalidInput`: the interface takes no such MTU.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        self.set(index, LinkAttribute::Mtu(mtu))
    }

    /// Sets how many packets may wait in the interface's queue.
    pub fn set_queue_len(&mut self, index: u32, packets: u32) -> io::Result<()> {
        self.set(index, LinkAttribute::TxQueueLen(packets))
    }

    /// Says whether an interface that somebody else drives, such as a TUN device, has a carrier
    /// (Linux 5.0). Routing daemons leave one without alone.
    pub fn set_carrier(&mut self, index: u32, has_carrier: bool) -> io::Result<()> {
        self.set(index, LinkAttribute::Carrier(has_carrier.into()))
    }

    /// Puts an interface into a group of that number.
    pub fn set_group(&mut self, index: u32, group: u32) -> io::Result<()> {
        self.set(index, LinkAttribute::Group(group))
    }

    /// Deletes all interfaces of a group at once: the kernel waits for its readers once, not once for
    /// each, which takes it 10 to 20 ms (rtnl_group_dellink() in net/core/rtnetlink.c).
    pub fn delete_group(&mut self, group: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Group(group));
        self.change(RouteNetlinkMessage::DelLink(message), 0).map_err(no_device)
    }

    fn set(&mut self, index: u32, attribute: LinkAttribute) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(attribute);
        self.change(RouteNetlinkMessage::SetLink(message), 0).map_err(no_device)
    }

    /// Deletes an interface.
    pub fn delete_link(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.change(RouteNetlinkMessage::DelLink(message), 0).map_err(no_device)
    }
}

fn parsed(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let (mut name, mut mtu) = (None, 0);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text),
            LinkAttribute::Mtu(bytes) => mtu = bytes,
            _ => {}
        }
    }
    let is_up = message.header.flags.contains(LinkFlags::Up);
    Some(Link { index: message.header.index, name: name?, mtu, is_up })
}

/// ENODEV has no kind of its own.
fn no_device(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(libc::ENODEV) {
        return io::Error::new(io::ErrorKind::NotFound, error.to_string());
    }
    error
}
