//! Which destinations a client may reach.
//!
//! A gateway sends from inside the operator's network, so a client that may name any destination
//! could reach services that trust the gateway's own address: loopback listeners, cloud metadata
//! on 169.254.169.254, routers, databases. [`AccessList::judge`] refuses those unless a rule of
//! the operator allows them.
//!
//! # Order of decision
//!
//! For one address: an `allow` rule that contains it lets it pass; else a `deny` rule that
//! contains it refuses it ([`DenyReason::Rule`]); else the default decides:
//!
//! | reason | IPv4 | IPv6 |
//! | --- | --- | --- |
//! | unspecified | 0.0.0.0/8 (RFC 1122 §3.2.1.3; Linux takes 0.0.0.0 as this host) | `::` |
//! | loopback | 127.0.0.0/8 (RFC 1122 §3.2.1.3) | `::1` (RFC 4291 §2.5.3) |
//! | multicast | 224.0.0.0/4 (RFC 5771) | `ff00::/8` (RFC 4291 §2.7) |
//! | broadcast | 255.255.255.255 (RFC 919 §7) | |
//! | link-local | 169.254.0.0/16 (RFC 3927) | `fe80::/10` (RFC 4291 §2.5.6) |
//! | private, if asked for | 10/8, 172.16/12, 192.168/16 (RFC 1918), 100.64/10 (RFC 6598) | `fc00::/7` (RFC 4193), `fec0::/10` (RFC 3879) |
//!
//! The directed broadcast address of a subnet cannot be told from a host's; deny it by rule.
//!
//! # Hidden addresses
//!
//! Some IPv6 addresses carry an IPv4 address that a kernel, tunnel or translator on the way takes
//! out again. Such a destination has several **views**: the IPv6 address itself and each IPv4
//! address hidden in it. Every view is judged by the order above, and one refused view refuses
//! the destination. An `allow` rule passes only the views it contains: `127.0.0.0/8` lets
//! `::ffff:127.0.0.1` pass, whereas `2002::/16` does not let 6to4 reach loopback.
//!
//! | form | prefix or mark | IPv4 address in | source |
//! | --- | --- | --- | --- |
//! | IPv4-mapped | `::ffff:0:0/96` | the last 32 bits | RFC 4291 §2.5.5.2 |
//! | IPv4-compatible | `::/96` except `::` and `::1` | the last 32 bits | RFC 4291 §2.5.5.1 |
//! | IPv4-translated | `::ffff:0:0:0/96` | the last 32 bits | RFC 2765 §2.1 |
//! | NAT64 | `64:ff9b::/96` | the last 32 bits | RFC 6052 §2.1 |
//! | NAT64, local use | `64:ff9b:1::/48` | the last 32 bits | RFC 8215, RFC 6052 §2.2 |
//! | 6to4 | `2002::/16` | bits 16 to 47 | RFC 3056 §2 |
//! | Teredo | `2001::/32` | server: bits 32 to 63; client: the last 32 bits, inverted | RFC 4380 §4 |
//! | ISATAP | interface identifier 0:5efe or 200:5efe | the last 32 bits | RFC 5214 §6.1 |
//!
//! Not seen: NAT64 prefixes that an operator picked from other space, and embeddings shorter than
//! /96 inside `64:ff9b:1::/48` (RFC 6052 §2.2 splits the address around bits 64 to 71; the zeros
//! of a /96 embedding would then read as 0.0.0.0). Where such a translator is in reach, deny its
//! prefix by rule.

use std::cmp::Reverse;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A block of addresses: a network address and the number of its leading bits that count.
///
/// The bits behind the length are zero, so equal blocks compare equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    network: IpAddr,
    length: u8,
}

impl Prefix {
    /// The block of `length` leading bits of `address`; host bits are masked off.
    ///
    /// An IPv4-mapped block (inside `::ffff:0:0/96`) becomes the IPv4 block it stands for, because
    /// such destinations are sent as IPv4 (see [`canonical`]).
    ///
    /// Returns `None` if `length` is above 32 for IPv4 or 128 for IPv6.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let network = match address {
            IpAddr::V4(v4) if length <= 32 => {
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask_v4(length)))
            }
            IpAddr::V6(v6) if length <= 128 => {
                if let (Some(v4), Some(v4_length)) = (v6.to_ipv4_mapped(), length.checked_sub(96)) {
                    return Self::new(IpAddr::V4(v4), v4_length);
                }
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask_v6(length)))
            }
            _ => return None,
        };
        Some(Self { network, length })
    }

    /// The first address of the block.
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// How many leading bits count.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether the blocks have an address in common: one of them then lies in the other.
    pub fn overlaps(&self, other: &Prefix) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// Whether `address` lies in the block. IPv4 and IPv6 never contain each other: ask for the
    /// IPv4 form of an IPv4-mapped address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(v4)) => {
                v4.to_bits() & mask_v4(self.length) == network.to_bits()
            }
            (IpAddr::V6(network), IpAddr::V6(v6)) => {
                v6.to_bits() & mask_v6(self.length) == network.to_bits()
            }
            _ => false,
        }
    }
}

impl fmt::Display for Prefix {
    /// `10.0.0.0/8`, `fc00::/7`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

/// Shifting by the whole width is an overflow, hence the `unwrap_or` for length 0.
fn mask_v4(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

fn mask_v6(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

/// Why a destination was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DenyReason {
    /// 0.0.0.0/8 or `::`.
    Unspecified,
    /// 127.0.0.0/8 or `::1`.
    Loopback,
    /// 224.0.0.0/4 or `ff00::/8`.
    Multicast,
    /// 255.255.255.255.
    Broadcast,
    /// 169.254.0.0/16 or `fe80::/10`.
    LinkLocal,
    /// A private block, and private blocks are refused.
    Private,
    /// A `deny` rule of the operator.
    Rule,
    /// Port 0, to which nothing can be sent; no rule allows it.
    PortZero,
}

impl DenyReason {
    /// Every reason, in order of declaration: `ALL[reason as usize] == reason`.
    pub const ALL: [Self; 8] = [
        Self::Unspecified,
        Self::Loopback,
        Self::Multicast,
        Self::Broadcast,
        Self::LinkLocal,
        Self::Private,
        Self::Rule,
        Self::PortZero,
    ];

    /// The value of the metrics label `reason`, also used in log lines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Loopback => "loopback",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::LinkLocal => "link-local",
            Self::Private => "private",
            Self::Rule => "rule",
            Self::PortZero => "port-zero",
        }
    }
}

/// The operator's rules over the default refusals. The default value has no rules and lets
/// private destinations pass.
#[derive(Clone, Debug, Default)]
pub struct AccessList {
    allow: Box<[Prefix]>,
    deny: Box<[Prefix]>,
    deny_private: bool,
}

impl AccessList {
    /// A list of rules. `deny_private` adds the private blocks to the default refusals.
    ///
    /// The rules are kept longest prefix first. As `allow` goes before `deny` whatever the
    /// lengths are, the order and repeats of the arguments never change a verdict.
    pub fn new(allow: Vec<Prefix>, deny: Vec<Prefix>, deny_private: bool) -> Self {
        Self { allow: longest_first(allow), deny: longest_first(deny), deny_private }
    }

    /// Whether a client may send to `destination`; the module's documentation has the rules.
    ///
    /// The time is linear in the number of rules, and nothing is allocated.
    ///
    /// # Errors
    ///
    /// The reason of the first refused view, the IPv6 address itself before what it hides.
    pub fn judge(&self, destination: SocketAddr) -> Result<(), DenyReason> {
        if destination.port() == 0 {
            return Err(DenyReason::PortZero);
        }
        self.judge_view(destination.ip())?;
        if let IpAddr::V6(v6) = destination.ip() {
            for hidden in hidden_in(v6).into_iter().flatten() {
                self.judge_view(IpAddr::V4(hidden))?;
            }
        }
        Ok(())
    }

    fn judge_view(&self, view: IpAddr) -> Result<(), DenyReason> {
        if self.allow.iter().any(|rule| rule.contains(view)) {
            return Ok(());
        }
        if self.deny.iter().any(|rule| rule.contains(view)) {
            return Err(DenyReason::Rule);
        }
        let refusal = match view {
            IpAddr::V4(v4) => default_refusal_v4(v4),
            IpAddr::V6(v6) => default_refusal_v6(v6),
        };
        match refusal {
            Some(DenyReason::Private) if !self.deny_private => Ok(()),
            Some(reason) => Err(reason),
            None => Ok(()),
        }
    }
}

fn longest_first(mut rules: Vec<Prefix>) -> Box<[Prefix]> {
    rules.sort_by_key(|rule| (Reverse(rule.length), rule.network));
    rules.dedup();
    rules.into_boxed_slice()
}

fn default_refusal_v4(address: Ipv4Addr) -> Option<DenyReason> {
    match address.octets() {
        [0, ..] => Some(DenyReason::Unspecified),
        [127, ..] => Some(DenyReason::Loopback),
        [224..=239, ..] => Some(DenyReason::Multicast),
        [255, 255, 255, 255] => Some(DenyReason::Broadcast),
        [169, 254, ..] => Some(DenyReason::LinkLocal),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => {
            Some(DenyReason::Private)
        }
        _ => None,
    }
}

fn default_refusal_v6(address: Ipv6Addr) -> Option<DenyReason> {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some(DenyReason::Unspecified),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some(DenyReason::Loopback),
        [0xff00..=0xffff, ..] => Some(DenyReason::Multicast),
        [0xfe80..=0xfebf, ..] => Some(DenyReason::LinkLocal),
        [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] => Some(DenyReason::Private),
        _ => None,
    }
}

/// The IPv4 addresses in `address`: at most two by its prefix, and one by an ISATAP interface
/// identifier, which may stand behind any prefix.
fn hidden_in(address: Ipv6Addr) -> [Option<Ipv4Addr>; 3] {
    let segments = address.segments();
    let last = ipv4(segments[6], segments[7]);
    let (first, second) = match segments {
        // `::` and `::1` are IPv6 addresses of their own (RFC 4291 §2.5.2, §2.5.3).
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => (None, None),
        // IPv4-compatible, IPv4-mapped, IPv4-translated; NAT64 well known and local.
        [0, 0, 0, 0, 0, 0 | 0xffff, _, _]
        | [0, 0, 0, 0, 0xffff, 0, _, _]
        | [0x64, 0xff9b, 0, 0, 0, 0, _, _]
        | [0x64, 0xff9b, 1, ..] => (Some(last), None),
        [0x2002, high, low, ..] => (Some(ipv4(high, low)), None),
        // Teredo clients are inverted so that NATs do not rewrite them (RFC 4380 §4).
        [0x2001, 0, high, low, ..] => {
            (Some(ipv4(high, low)), Some(Ipv4Addr::from_bits(!last.to_bits())))
        }
        _ => (None, None),
    };
    let isatap = matches!(segments, [_, _, _, _, 0 | 0x200, 0x5efe, _, _]).then_some(last);
    [first, second, isatap]
}

fn ipv4(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))
}

/// The address a datagram to `destination` is really sent to: IPv4-mapped IPv6 becomes plain IPv4,
/// everything else is unchanged.
pub fn canonical(destination: SocketAddr) -> SocketAddr {
    match destination.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::from((v4, destination.port())),
        // Not rebuilt from the address: scope and flow label must stay.
        IpAddr::V6(_) => destination,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::SocketAddrV6;

    fn prefix(text: &str) -> Prefix {
        let (address, length) = text.split_once('/').unwrap();
        Prefix::new(address.parse().unwrap(), length.parse().unwrap()).unwrap()
    }

    fn list(allow: &[&str], deny: &[&str], deny_private: bool) -> AccessList {
        let prefixes = |texts: &[&str]| texts.iter().map(|text| prefix(text)).collect();
        AccessList::new(prefixes(allow), prefixes(deny), deny_private)
    }

    fn verdict(list: &AccessList, address: &str) -> Result<(), &'static str> {
        let address: IpAddr = address.parse().unwrap();
        list.judge(SocketAddr::new(address, 53)).map_err(DenyReason::as_str)
    }

    #[test]
    fn prefixes_mask_print_and_refuse_long_lengths() {
        assert_eq!(prefix("10.1.2.3/8").to_string(), "10.0.0.0/8");
        assert_eq!(prefix("10.1.2.3/0").to_string(), "0.0.0.0/0");
        assert_eq!(prefix("10.1.2.3/32").to_string(), "10.1.2.3/32");
        assert_eq!(prefix("fdff::1/7").to_string(), "fc00::/7");
        assert_eq!(prefix("2001:db8::1/128").to_string(), "2001:db8::1/128");
        assert_eq!(prefix("ffff::1/0").to_string(), "::/0");
        assert_eq!(Prefix::new(Ipv4Addr::LOCALHOST.into(), 33), None);
        assert_eq!(Prefix::new(Ipv6Addr::LOCALHOST.into(), 129), None);
    }

    #[test]
    fn blocks_overlap_when_one_lies_in_the_other() {
        let block = prefix("10.0.1.0/30");
        assert_eq!((block.network().to_string().as_str(), block.length()), ("10.0.1.0", 30));
        for other in ["10.0.1.0/30", "10.0.1.2/32", "10.0.0.0/8", "0.0.0.0/0"] {
            assert!(block.overlaps(&prefix(other)) && prefix(other).overlaps(&block), "{other}");
        }
        for other in ["10.0.1.4/30", "10.0.0.0/24", "::/0"] {
            assert!(!block.overlaps(&prefix(other)) && !prefix(other).overlaps(&block), "{other}");
        }
    }

    #[test]
    fn mapped_prefixes_are_the_ipv4_prefixes_they_stand_for() {
        assert_eq!(prefix("::ffff:10.1.2.3/104"), prefix("10.0.0.0/8"));
        assert_eq!(prefix("::ffff:10.1.2.3/96"), prefix("0.0.0.0/0"));
        assert_eq!(prefix("::ffff:10.1.2.3/95").to_string(), "::fffe:0:0/95");
        let rules = list(&[], &["::ffff:198.51.100.0/120"], false);
        assert_eq!(verdict(&rules, "198.51.100.9"), Err("rule"));
    }

    #[test]
    fn families_do_not_contain_each_other() {
        assert!(!prefix("::/0").contains("1.2.3.4".parse().unwrap()));
        assert!(!prefix("0.0.0.0/0").contains("::ffff:1.2.3.4".parse().unwrap()));
    }

    /// First and last address of each refused block, and the neighbours outside.
    #[test]
    fn default_refusals_have_exact_edges() {
        let rules = list(&[], &[], true);
        for (address, expected) in [
            ("0.0.0.0", Err("unspecified")),
            ("0.255.255.255", Err("unspecified")),
            ("1.0.0.0", Ok(())),
            ("9.255.255.255", Ok(())),
            ("10.0.0.0", Err("private")),
            ("10.255.255.255", Err("private")),
            ("11.0.0.0", Ok(())),
            ("100.63.255.255", Ok(())),
            ("100.64.0.0", Err("private")),
            ("100.127.255.255", Err("private")),
            ("100.128.0.0", Ok(())),
            ("126.255.255.255", Ok(())),
            ("127.0.0.0", Err("loopback")),
            ("127.255.255.255", Err("loopback")),
            ("128.0.0.0", Ok(())),
            ("169.253.255.255", Ok(())),
            ("169.254.0.0", Err("link-local")),
            ("169.254.169.254", Err("link-local")),
            ("169.254.255.255", Err("link-local")),
            ("169.255.0.0", Ok(())),
            ("172.15.255.255", Ok(())),
            ("172.16.0.0", Err("private")),
            ("172.31.255.255", Err("private")),
            ("172.32.0.0", Ok(())),
            ("192.167.255.255", Ok(())),
            ("192.168.0.0", Err("private")),
            ("192.168.255.255", Err("private")),
            ("192.169.0.0", Ok(())),
            ("223.255.255.255", Ok(())),
            ("224.0.0.0", Err("multicast")),
            ("239.255.255.255", Err("multicast")),
            ("240.0.0.0", Ok(())),
            ("255.255.255.254", Ok(())),
            ("255.255.255.255", Err("broadcast")),
            ("::", Err("unspecified")),
            ("::1", Err("loopback")),
            ("fbff::1", Ok(())),
            ("fc00::", Err("private")),
            ("fdff:ffff::1", Err("private")),
            ("fe00::1", Ok(())),
            ("fe7f::1", Ok(())),
            ("fe80::1", Err("link-local")),
            ("febf::1", Err("link-local")),
            ("fec0::1", Err("private")),
            ("feff::1", Err("private")),
            ("ff00::", Err("multicast")),
            ("ff02::1", Err("multicast")),
            ("2606:4700::1111", Ok(())),
        ] {
            assert_eq!(verdict(&rules, address), expected, "{address}");
            let expected = if expected == Err("private") { Ok(()) } else { expected };
            assert_eq!(verdict(&AccessList::default(), address), expected, "{address}");
        }
    }

    /// 127.0.0.1 is 7f00:1, inverted 80ff:fffe; 8.8.8.8 is 808:808, inverted f7f7:f7f7.
    #[test]
    fn every_hidden_form_is_seen() {
        let rules = AccessList::default();
        for (address, expected) in [
            ("::ffff:127.0.0.1", Err("loopback")),
            ("::ffff:8.8.8.8", Ok(())),
            ("::127.0.0.1", Err("loopback")),
            ("::8.8.8.8", Ok(())),
            ("::2", Err("unspecified")),
            ("::ffff:0:127.0.0.1", Err("loopback")),
            ("::ffff:0:8.8.8.8", Ok(())),
            ("::1:0:127.0.0.1", Ok(())),
            ("64:ff9b::169.254.169.254", Err("link-local")),
            ("64:ff9b::8.8.8.8", Ok(())),
            ("64:ff9b:0:1::127.0.0.1", Ok(())),
            ("64:ff9b:1::255.255.255.255", Err("broadcast")),
            ("64:ff9b:1:ffff:ffff:ffff:127.0.0.1", Err("loopback")),
            ("64:ff9b:1::8.8.8.8", Ok(())),
            ("64:ff9b:2::127.0.0.1", Ok(())),
            ("2002:7f00:1::8", Err("loopback")),
            ("2002:e000:1:2:3:4:5:6", Err("multicast")),
            ("2002:808:808::7f00:1", Ok(())),
            ("2001:0:7f00:1:0:0:f7f7:f7f7", Err("loopback")),
            ("2001:0:808:808:0:0:80ff:fffe", Err("loopback")),
            ("2001:0:808:808:8000:1234:f7f7:f7f7", Ok(())),
            ("2001:1:7f00:1:0:0:80ff:fffe", Ok(())),
            ("2001:db8::5efe:127.0.0.1", Err("loopback")),
            ("2001:db8::200:5efe:127.0.0.1", Err("loopback")),
            ("2001:db8::100:5efe:127.0.0.1", Ok(())),
            ("2001:db8::5efe:8.8.8.8", Ok(())),
            ("2002:808:808::5efe:127.0.0.1", Err("loopback")),
        ] {
            assert_eq!(verdict(&rules, address), expected, "{address}");
        }
    }

    #[test]
    fn allow_overrides_deny_overrides_default() {
        let rules = list(&["10.1.0.0/16", "127.0.0.53/32"], &["10.1.2.0/24", "8.8.8.0/24"], false);
        // Allow wins although the deny rule is longer.
        assert_eq!(verdict(&rules, "10.1.2.3"), Ok(()));
        assert_eq!(verdict(&rules, "127.0.0.53"), Ok(()));
        assert_eq!(verdict(&rules, "127.0.0.1"), Err("loopback"));
        assert_eq!(verdict(&rules, "8.8.8.8"), Err("rule"));
        assert_eq!(verdict(&rules, "8.8.4.4"), Ok(()));
        // A rule's reason goes before the default's.
        assert_eq!(verdict(&list(&[], &["127.0.0.0/8"], false), "127.0.0.1"), Err("rule"));
    }

    #[test]
    fn allow_passes_only_the_views_it_contains() {
        let hidden = list(&["127.0.0.0/8"], &[], false);
        assert_eq!(verdict(&hidden, "::ffff:127.0.0.1"), Ok(()));
        assert_eq!(verdict(&hidden, "2002:7f00:1::1"), Ok(()));
        assert_eq!(verdict(&hidden, "fe80::5efe:127.0.0.1"), Err("link-local"));
        assert_eq!(verdict(&hidden, "::1"), Err("loopback"));
        let outer = list(&["::/0"], &[], false);
        assert_eq!(verdict(&outer, "::1"), Ok(()));
        assert_eq!(verdict(&outer, "2002:7f00:1::1"), Err("loopback"));
        assert_eq!(verdict(&outer, "::ffff:127.0.0.1"), Err("loopback"));
    }

    #[test]
    fn port_zero_is_refused_whatever_the_rules() {
        let rules = list(&["0.0.0.0/0"], &[], false);
        assert_eq!(rules.judge("8.8.8.8:0".parse().unwrap()), Err(DenyReason::PortZero));
        assert_eq!(rules.judge("8.8.8.8:1".parse().unwrap()), Ok(()));
    }

    #[test]
    fn labels_are_distinct_and_indexed_by_declaration() {
        for (index, reason) in DenyReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            let same = DenyReason::ALL.iter().filter(|other| other.as_str() == reason.as_str());
            assert_eq!(same.count(), 1, "{reason:?}");
        }
    }

    #[test]
    fn canonical_unmaps_and_keeps_the_rest() {
        let unmapped = canonical("[::ffff:192.0.2.1]:7".parse().unwrap());
        assert_eq!(unmapped, "192.0.2.1:7".parse().unwrap());
        let scoped = SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 7, 5, 3));
        assert_eq!(canonical(scoped), scoped);
        for same in ["192.0.2.1:7", "[::192.0.2.1]:7", "[2002:c000:201::]:7"] {
            let same: SocketAddr = same.parse().unwrap();
            assert_eq!(canonical(same), same);
        }
    }

    /// Addresses near the refused blocks and near the rules, else random ones hardly ever meet.
    fn near_ipv4() -> impl Strategy<Value = Ipv4Addr> {
        let first = prop_oneof![
            Just(0u8),
            Just(10),
            Just(127),
            Just(169),
            Just(172),
            Just(192),
            Just(224),
            Just(255),
            any::<u8>(),
        ];
        let second = prop_oneof![Just(0u8), Just(16), Just(168), Just(254), Just(255), any::<u8>()];
        (first, second, any::<[u8; 2]>()).prop_map(|(a, b, [c, d])| Ipv4Addr::new(a, b, c, d))
    }

    fn near_rules() -> impl Strategy<Value = Vec<Prefix>> {
        let v4 = (near_ipv4(), 0u8..=32).prop_map(|(v4, length)| (IpAddr::V4(v4), length));
        let v6 = (near_ipv4(), 0usize..9, 0u8..=128)
            .prop_map(|(v4, form, length)| (IpAddr::V6(wrap(v4, form)), length));
        let rule = prop_oneof![v4, v6].prop_map(|(ip, length)| Prefix::new(ip, length).unwrap());
        proptest::collection::vec(rule, 0..4)
    }

    /// Written as bytes, apart from the segments that the code matches.
    fn wrap(v4: Ipv4Addr, form: usize) -> Ipv6Addr {
        let mut bytes = [0u8; 16];
        bytes[12..].copy_from_slice(&v4.octets());
        match form {
            0 => bytes[10..12].fill(0xff),
            1 => bytes[8..10].fill(0xff),
            2 => bytes[..4].copy_from_slice(&[0, 0x64, 0xff, 0x9b]),
            3 => bytes[..6].copy_from_slice(&[0, 0x64, 0xff, 0x9b, 0, 1]),
            4 => {
                bytes[..2].copy_from_slice(&[0x20, 0x02]);
                bytes[2..6].copy_from_slice(&v4.octets());
                bytes[12..].fill(9);
            }
            5 => {
                bytes[..8].copy_from_slice(&[0x20, 1, 0, 0, 9, 9, 9, 9]);
                bytes[12..].copy_from_slice(&v4.octets().map(|octet| !octet));
            }
            6 => {
                bytes[..4].copy_from_slice(&[0x20, 1, 0, 0]);
                bytes[4..8].copy_from_slice(&v4.octets());
                bytes[12..].fill(0xf6);
            }
            7 => {
                bytes[..4].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
                bytes[8..12].copy_from_slice(&[2, 0, 0x5e, 0xfe]);
            }
            // IPv4-compatible; 0.0.0.0 and 0.0.0.1 in it are `::` and `::1`, refused by default.
            _ => {}
        }
        bytes.into()
    }

    proptest! {
        #[test]
        fn wrapping_never_gets_through_what_plain_ipv4_does_not(
            v4 in near_ipv4(), form in 0usize..8, port in 1u16..,
            allow in near_rules(), deny in near_rules(), deny_private: bool,
        ) {
            let rules = AccessList::new(allow, deny, deny_private);
            let plain = rules.judge(SocketAddr::from((v4, port)));
            let wrapped = rules.judge(SocketAddr::from((wrap(v4, form), port)));
            if plain.is_err() {
                prop_assert!(wrapped.is_err());
            }
            if wrapped.is_ok() {
                prop_assert!(plain.is_ok());
            }
        }

        /// The compatible form, whose `::` and `::1` are judged as themselves.
        #[test]
        fn compatible_form_is_no_way_around(v4 in near_ipv4(), deny in near_rules()) {
            let rules = AccessList::new(Vec::new(), deny, true);
            if rules.judge(SocketAddr::from((v4, 9))).is_err() {
                prop_assert!(rules.judge(SocketAddr::from((wrap(v4, 8), 9))).is_err());
            }
        }

        /// Without rules a wrapping of a good address is as good, so that nothing is over-refused.
        #[test]
        fn wrapping_a_good_address_is_good(v4 in near_ipv4(), form in 0usize..9) {
            let rules = AccessList::default();
            let plain = rules.judge(SocketAddr::from((v4, 9)));
            let wrapped = rules.judge(SocketAddr::from((wrap(v4, form), 9)));
            if plain.is_ok() {
                prop_assert_eq!(wrapped, Ok(()));
            }
        }

        #[test]
        fn containment_agrees_with_comparing_bit_by_bit(
            network: u128, flips: u128, keep in 0u32..=128, length in 0u8..=128,
        ) {
            // Never IPv4-mapped, which is another family.
            let network = network | 1 << 127;
            let other = network ^ (flips.checked_shr(keep).unwrap_or(0));
            let bit = |address: u128, index: u8| address >> (127 - index) & 1;
            let expected = (0..length).all(|index| bit(network, index) == bit(other, index));
            let rule = Prefix::new(Ipv6Addr::from_bits(network).into(), length).unwrap();
            prop_assert_eq!(rule.contains(Ipv6Addr::from_bits(other).into()), expected);
        }

        #[test]
        fn order_and_repeats_of_rules_do_not_matter(
            v4 in near_ipv4(), allow in near_rules(), deny in near_rules(), deny_private: bool,
        ) {
            let twice = |rules: &[Prefix]| rules.iter().chain(rules).rev().copied().collect();
            let turned = AccessList::new(twice(&allow), twice(&deny), deny_private);
            let rules = AccessList::new(allow, deny, deny_private);
            let destination = SocketAddr::from((v4, 9));
            prop_assert_eq!(rules.judge(destination), turned.judge(destination));
        }
    }
}
