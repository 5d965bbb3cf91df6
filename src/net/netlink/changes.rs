//! Word that somebody has changed links, addresses, routes or rules, or the tables of nftables.

use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteAttribute;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd;

/// RTNLGRP_IPV4_RULE and RTNLGRP_IPV6_RULE, as bits.
const RULE_GROUPS: u32 = 1 << 7 | 1 << 18;
/// NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h, as a bit.
const NFTABLES_GROUP: u32 = 1 << 6;
/// RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR and RTMGRP_IPV6_ROUTE of
/// linux/rtnetlink.h.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// A source that is readable when something has changed.
#[derive(Debug)]
pub struct Changes {
    socket: Socket,
}

impl Changes {
    /// Listens from now on to links, addresses and routes.
    pub fn open() -> io::Result<Changes> {
        Changes::of(NETLINK_ROUTE, GROUPS)
    }

    /// Listens from now on to rules.
    pub fn of_rules() -> io::Result<Changes> {
        Changes::of(NETLINK_ROUTE, RULE_GROUPS)
    }

    /// Listens from now on to nftables; takes CAP_NET_ADMIN.
    pub fn of_nftables() -> io::Result<Changes> {
        Changes::of(NETLINK_NETFILTER, NFTABLES_GROUP)
    }

    fn of(protocol: isize, groups: u32) -> io::Result<Changes> {
        let mut socket = Socket::new(protocol)?;
        socket.bind(&SocketAddr::new(0, groups))?;
        socket.set_non_blocking(true)?;
        Ok(Changes { socket })
    }

    /// Takes all word that waits of links, addresses and routes, and says which interfaces it is about.
    pub fn take_touched(&mut self) -> Touched {
        let mut touched = Touched::default();
        self.drain(|word| match word.ok_or(()).and_then(device_of) {
            Ok(device) => touched.devices.extend(device),
            Err(()) => touched.all = true,
        });
        touched
    }

    /// Takes all word that waits, and says whether there was any.
    pub fn take(&mut self) -> bool {
        let mut any = false;
        self.drain(|_| any = true);
        any
    }

    /// Takes all word that waits; `None` for what the kernel had to leave out for want of room (ENOBUFS).
    fn drain(&mut self, mut hear: impl FnMut(Option<&[u8]>)) {
        loop {
            match self.socket.recv_from_full() {
                Ok((bytes, _)) => hear(Some(&bytes)),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => hear(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

/// The interfaces that something has changed about, by their numbers.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Touched {
    /// These.
    pub devices: BTreeSet<u32>,
    /// Perhaps others too: there was no room for all word.
    pub all: bool,
}

impl Touched {
    /// Whether something may have changed about that one.
    pub fn has(&self, device: u32) -> bool {
        self.all || self.devices.contains(&device)
    }
}

/// The interface that a message is about, if it is about one.
fn device_of(bytes: &[u8]) -> Result<Option<u32>, ()> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes).map_err(drop)?;
    let NetlinkPayload::InnerMessage(message) = message.payload else { return Err(()) };
    Ok(match message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
            Some(link.header.index)
        }
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
            Some(address.header.index)
        }
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(device) => Some(*device),
                _ => None,
            })
        }
        _ => None,
    })
}

impl Source for Changes {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        SourceFd(&self.socket.as_raw_fd()).register(registry, token, interests)
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        SourceFd(&self.socket.as_raw_fd()).reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        SourceFd(&self.socket.as_raw_fd()).deregister(registry)
    }
}
