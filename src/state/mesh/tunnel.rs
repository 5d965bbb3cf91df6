//! A tunnel as it is wished for: every value of these types can be set up, whoever else is there.

use crate::state::access::Prefix;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// IFNAMSIZ without the final zero (linux/if.h).
pub const NAME_LEN_MAX: usize = 15;
/// Addresses of a tunnel: one for each family, and a few for who renumbers.
pub const ADDRESSES_MAX: usize = 8;
/// Routes of a tunnel: a remote with more networks should tell a routing daemon.
pub const ROUTES_MAX: usize = 64;
/// RFC 791 §3.1: every host must take that much.
pub const MTU_MIN: u16 = 68;
/// RFC 8200 §5: the kernel switches IPv6 off on a device with less.
pub const MTU_MIN_IPV6: u16 = 1280;
/// What fits into the largest UDP datagram over IPv4 (65,507 bytes) with 4 bytes in front.
pub const MTU_MAX: u16 = 65_503;
/// RFC 1035 §2.3.4, without the root's dot.
const HOST_NAME_LEN_MAX: usize = 253;

/// The name of a tunnel, which is the name of its device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelName(Box<str>);

impl TunnelName {
    /// What [`TunnelName::new`] takes, in words.
    pub const ALLOWED: &str = "1 to 15 letters, digits, dots, dashes and underscores, not lo, all \
                               or default";

    /// None unless it is [`TunnelName::ALLOWED`]: the kernel takes more (dev_valid_name() in
    /// net/core/dev.c), but such names would have to be quoted in scripts, and `%` makes patterns.
    pub fn new(text: &str) -> Option<TunnelName> {
        let fits = (1..=NAME_LEN_MAX).contains(&text.len());
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        // `all` and `default` are no devices, but directories beside them in /proc/sys/net.
        let reserved = matches!(text, "." | ".." | "lo" | "all" | "default");
        (fits && !text.starts_with('-') && text.bytes().all(plain) && !reserved)
            .then(|| TunnelName(text.into()))
    }

    /// As the kernel is told.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TunnelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An address of a device, with its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    ip: IpAddr,
    network: Prefix,
}

impl Address {
    /// An address and how many leading bits of it are those of its network. None if a host cannot
    /// have the address, or the network is none: 1 to 32 bits, or to 128.
    pub fn new(ip: IpAddr, prefix_len: u8) -> Option<Address> {
        let mapped = matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
        if !is_unicast(ip) || ip.is_loopback() || mapped || prefix_len == 0 {
            return None;
        }
        Some(Address { ip, network: Prefix::new(ip, prefix_len)? })
    }

    /// The address.
    pub fn ip(self) -> IpAddr {
        self.ip
    }

    /// The network.
    pub fn network(self) -> Prefix {
        self.network
    }

    /// The last address of an IPv4 network, which the kernel takes for its broadcast address:
    /// networks with at least four addresses have one.
    pub fn broadcast(self) -> Option<Ipv4Addr> {
        match self.ip {
            IpAddr::V4(ip) if self.network.length() <= 30 => {
                Some(Ipv4Addr::from_bits(ip.to_bits() | !netmask(self.network.length()).to_bits()))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.network.length())
    }
}

fn is_unicast(ip: IpAddr) -> bool {
    let broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(ip.is_unspecified() || ip.is_multicast() || broadcast)
}

/// The leading bits that a dotted netmask stands for; None if there is a hole in it.
pub fn netmask_len(mask: Ipv4Addr) -> Option<u8> {
    let bits = mask.to_bits();
    let len = bits.leading_ones();
    (len + bits.trailing_zeros() >= 32).then(|| u8::try_from(len).unwrap_or(32))
}

/// The dotted netmask of so many leading bits.
pub fn netmask(prefix_len: u8) -> Ipv4Addr {
    let hosts = 32_u32.saturating_sub(prefix_len.into());
    Ipv4Addr::from_bits(u32::MAX.checked_shl(hosts).unwrap_or(0))
}

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Where.
    pub host: Host,
    /// On which UDP port; None is that on which we receive ourselves, as all daemons of a mesh do.
    pub port: Option<u16>,
}

/// Where a remote is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// There.
    Address(IpAddr),
    /// Where the resolver says, in lower case.
    Name(Box<str>),
}

impl Remote {
    /// What [`Remote::parse`] takes, in words.
    pub const ALLOWED: &str = "a host's address or name, and a port from 1 to 65535 if any, such \
                               as 192.0.2.1, 192.0.2.1:5000, [2001:db8::1]:5000 or a.example.net";

    /// Reads an address or a name, with or without a port. An IPv6 address with one is in brackets.
    pub fn parse(text: &str) -> Option<Remote> {
        if let Ok(ip) = text.parse() {
            return Remote::at(ip, None);
        }
        if let Some(ip) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return Remote::at(ip.parse::<Ipv6Addr>().ok()?.into(), None);
        }
        if let Ok(endpoint) = text.parse::<SocketAddr>() {
            let scoped = matches!(endpoint, SocketAddr::V6(v6) if v6.scope_id() != 0);
            let port = Some(endpoint.port()).filter(|port| *port > 0 && !scoped)?;
            return Remote::at(endpoint.ip(), Some(port));
        }
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => {
                let digits = port.bytes().all(|byte| byte.is_ascii_digit());
                let port = port.parse().ok().filter(|port| digits && *port > 0)?;
                (name, Some(port))
            }
            None => (text, None),
        };
        is_host_name(name).then(|| Remote { host: Host::Name(lower_case(name)), port })
    }

    fn at(ip: IpAddr, port: Option<u16>) -> Option<Remote> {
        let ip = ip.to_canonical();
        // A link-local address means nothing without an interface.
        let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        (is_unicast(ip) && !link_local).then_some(Remote { host: Host::Address(ip), port })
    }

    /// The address, unless it is to be looked up.
    pub fn address(&self) -> Option<IpAddr> {
        match self.host {
            Host::Address(ip) => Some(ip),
            Host::Name(_) => None,
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (Host::Address(ip), None) => ip.fmt(f),
            (Host::Address(ip), Some(port)) => SocketAddr::new(*ip, port).fmt(f),
            (Host::Name(name), None) => f.write_str(name),
            (Host::Name(name), Some(port)) => write!(f, "{name}:{port}"),
        }
    }
}

/// Letters, digits, dashes, underscores and dots; the last label is no number, as such a name is a
/// misspelt address to the C library.
fn is_host_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    name.len() <= HOST_NAME_LEN_MAX
        && name.split('.').all(label)
        && !last.starts_with(|sign: char| sign.is_ascii_digit())
}

fn lower_case(name: &str) -> Box<str> {
    name.to_ascii_lowercase().into()
}

/// What stands before each packet that we send. Both are taken from a remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// The packet information of the kernel's TUN driver, as the seed's daemon sends it: 4 bytes.
    PacketInformation,
    /// Nothing.
    Raw,
}

/// A point-to-point tunnel to one remote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// The name of the tunnel and its device.
    pub name: TunnelName,
    /// The device's addresses, at least one.
    pub addresses: Vec<Address>,
    /// The device's MTU; None is what the path to the remote carries.
    pub mtu: Option<u16>,
    /// The other end.
    pub remote: Remote,
    /// What we send.
    pub framing: Framing,
    /// Networks behind the remote.
    pub routes: Vec<Prefix>,
    /// How often to ask the remote for a sign of life, if at all.
    pub keepalive: Option<Duration>,
    /// Whether the remote may move: whoever sends from its inner address is it.
    pub follow: bool,
    /// Whether the device loses its carrier while the remote is silent.
    pub carrier: bool,
    /// Whether TCP connections through the tunnel are told to fit the path.
    pub clamp_mss: bool,
}

impl Tunnel {
    /// Whether an inner address belongs to one of the tunnel's networks and is not our own: then it
    /// is the remote's.
    pub fn is_remotes(&self, inner: IpAddr) -> bool {
        self.addresses.iter().any(|address| address.network().contains(inner))
            && !self.addresses.iter().any(|address| address.ip() == inner)
    }

    /// How exactly the tunnel says that an inner address is behind its remote, if it does: the bits
    /// of the longest prefix, and whether that is one of its own networks.
    pub fn reaches(&self, inner: IpAddr) -> Option<(u8, bool)> {
        let networks = self.addresses.iter().map(|address| (address.network(), true));
        let networks = networks.filter(|_| self.is_remotes(inner));
        let routes = self.routes.iter().map(|route| (*route, false));
        let all = networks.chain(routes).filter(|(prefix, _)| prefix.contains(inner));
        all.map(|(prefix, is_own)| (prefix.length(), is_own)).max()
    }
}

#[cfg(test)]
mod tests;
