//! The tunnel's network of one family, and the part of it that clients are given addresses from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The shortest prefix of a tunnel's network. A shorter one would take a good part of the Internet from a client that
/// has asked for no more than an address.
pub fn prefix_min(address: IpAddr) -> u8 {
    if address.is_ipv4() { 8 } else { 16 }
}

/// The server's address, the network around it, and the pool in that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    own: IpAddr,
    prefix: u8,
    /// The first host and the last.
    hosts: (u128, u128),
    /// The same of those that are given to clients.
    pool: (u128, u128),
}

impl Subnet {
    /// The network of `prefix` bits that the server's `own` address is in, with all of it as pool.
    /// `None` if there is no room for a client, or `own` is no host's address there.
    pub fn new(own: IpAddr, prefix: u8) -> Option<Subnet> {
        let (first, last) = Subnet::hosts_of(own, prefix)?;
        let hosts = (number(first), number(last));
        is_within(hosts, own).then_some(Subnet { own, prefix, hosts, pool: hosts })
    }

    /// The first host and the last of the network of `prefix` bits that the address is in. `None` if
    /// it has not two of them.
    pub fn hosts_of(address: IpAddr, prefix: u8) -> Option<(IpAddr, IpAddr)> {
        let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
        let host_bits = bits.checked_sub(prefix).filter(|host_bits| *host_bits > 0)?;
        let host_mask = u128::MAX >> (128 - u32::from(host_bits));
        let network = number(address) & !host_mask;
        let last = network | host_mask;
        // RFC 3021 and RFC 6164: on a link of two both addresses are hosts'. Else the first is the
        // network's, or any router's (RFC 4291, 2.6.1), and the last of IPv4 the broadcast's.
        let (first, last) = match (address, host_bits) {
            (_, 1) => (network, last),
            (IpAddr::V4(_), _) => (network + 1, last - 1),
            (IpAddr::V6(_), _) => (network + 1, last),
        };
        Some((of_number(address, first), of_number(address, last)))
    }

    /// The same with a smaller pool, from `first` to `last`. `None` if it is not within the network,
    /// or the server's address alone.
    #[must_use]
    pub fn with_pool(self, first: IpAddr, last: IpAddr) -> Option<Subnet> {
        let is_sound = self.hosts(first) && self.hosts(last) && first <= last;
        let is_own = first == last && first == self.own;
        (is_sound && !is_own).then(|| Subnet { pool: (number(first), number(last)), ..self })
    }

    /// The server's address.
    pub fn own(&self) -> IpAddr {
        self.own
    }

    /// The number of leading bits that all addresses of the network have in common.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The network's first address, which names it.
    pub fn network(&self) -> IpAddr {
        of_number(self.own, self.base())
    }

    /// Whether a client may have the address.
    pub fn takes(&self, address: IpAddr) -> bool {
        self.hosts(address) && address != self.own
    }

    /// Whether a client may be given the address without having asked for it.
    pub fn pools(&self, address: IpAddr) -> bool {
        self.takes(address) && is_within(self.pool, address)
    }

    /// Whether the address is a host's in the network.
    fn hosts(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.own.is_ipv4() && is_within(self.hosts, address)
    }

    /// The pool's addresses at or behind a place, which is counted from the network's first.
    pub(super) fn pooled_from(&self, place: u128) -> impl Iterator<Item = (u128, IpAddr)> + use<> {
        let subnet = *self;
        let network = subnet.base();
        let begin = network.saturating_add(place).max(subnet.pool.0);
        (begin..=subnet.pool.1)
            .map(move |number| (number - network, of_number(subnet.own, number)))
            .filter(move |(_, address)| *address != subnet.own)
    }

    /// Where an address of the network stands in it.
    pub(super) fn place(&self, address: IpAddr) -> u128 {
        number(address).saturating_sub(self.base())
    }

    /// The address that stands at a place, if it is one of the pool.
    pub(super) fn at(&self, place: u128) -> Option<IpAddr> {
        let address = of_number(self.own, self.base().checked_add(place)?);
        self.pools(address).then_some(address)
    }

    fn base(&self) -> u128 {
        let bits: u8 = if self.own.is_ipv4() { 32 } else { 128 };
        let host_bits = u32::from(bits.saturating_sub(self.prefix));
        number(self.own) & !u128::MAX.checked_shr(128 - host_bits).unwrap_or(0)
    }
}

/// The address of that number, of the same family as `like`.
fn of_number(like: IpAddr, number: u128) -> IpAddr {
    if like.is_ipv4() {
        // A number of IPv4 has 32 bits.
        Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)).into()
    } else {
        Ipv6Addr::from_bits(number).into()
    }
}

fn is_within((first, last): (u128, u128), address: IpAddr) -> bool {
    (first..=last).contains(&number(address))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn subnet(own: &str, prefix: u8) -> Subnet {
        Subnet::new(ip(own), prefix).unwrap()
    }

    #[test]
    fn a_network_has_hosts_and_the_server_is_one() {
        let v4 = subnet("10.0.0.2", 24);
        for (address, takes) in [
            ("10.0.0.0", false),
            ("10.0.0.1", true),
            ("10.0.0.2", false),
            ("10.0.0.254", true),
            ("10.0.0.255", false),
            ("10.0.1.1", false),
            ("::a00:1", false),
        ] {
            assert_eq!(v4.takes(ip(address)), takes, "{address}");
            assert_eq!(v4.pools(ip(address)), takes, "{address}");
        }
        let v6 = subnet("fd00::2", 64);
        assert!(v6.takes(ip("fd00::1")) && v6.takes(ip("fd00::ffff:ffff:ffff:ffff")));
        assert!(!v6.takes(ip("fd00::")) && !v6.takes(ip("fd00:0:0:1::1")));
        assert!(subnet("10.0.0.0", 31).takes(ip("10.0.0.1")));
        assert!(subnet("fd00::1", 127).takes(ip("fd00::")));
    }

    #[test]
    fn a_network_without_room_is_none() {
        for (own, prefix) in [
            ("10.0.0.2", 32),
            ("fd00::2", 128),
            ("10.0.0.2", 33),
            ("10.0.0.0", 24),
            ("10.0.0.255", 24),
            ("fd00::", 64),
        ] {
            assert_eq!(Subnet::new(ip(own), prefix), None, "{own}/{prefix}");
        }
        assert!(Subnet::new(ip("10.0.0.2"), 0).is_some());
        assert!(Subnet::new(ip("fd00::2"), 0).is_some());
    }

    #[test]
    fn a_pool_is_a_part_of_its_network() {
        let whole = subnet("10.0.0.2", 24);
        let part = whole.with_pool(ip("10.0.0.1"), ip("10.0.0.4")).unwrap();
        assert!(part.takes(ip("10.0.0.9")) && !part.pools(ip("10.0.0.9")));
        let all: Vec<String> = part.pooled_from(0).map(|(_, it)| it.to_string()).collect();
        assert_eq!(all, ["10.0.0.1", "10.0.0.3", "10.0.0.4"]);
        let rest: Vec<u128> = part.pooled_from(4).map(|(place, _)| place).collect();
        assert_eq!(rest, [4]);
        assert_eq!(part.at(3), Some(ip("10.0.0.3")));
        assert_eq!((part.at(2), part.at(5)), (None, None));
        assert_eq!(part.place(ip("10.0.0.9")), 9);
        for (first, last) in [
            ("10.0.0.4", "10.0.0.1"),
            ("10.0.0.0", "10.0.0.4"),
            ("10.0.0.4", "10.0.1.4"),
            ("10.0.0.2", "10.0.0.2"),
            ("fd00::1", "fd00::4"),
        ] {
            assert_eq!(whole.with_pool(ip(first), ip(last)), None, "{first} {last}");
        }
    }
}
