//! How many clients one address may have.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

/// Clients by address; of IPv6 by /64, which is what one household has (RFC 6177).
#[derive(Debug)]
pub struct Admission {
    per_address_max: usize,
    clients: HashMap<IpAddr, usize>,
}

impl Admission {
    /// At most `per_address_max` clients for an address; 0 for no limit.
    pub fn new(per_address_max: usize) -> Admission {
        Admission { per_address_max, clients: HashMap::new() }
    }

    /// Counts one more client of `address`, or returns false at the limit.
    pub fn admit(&mut self, address: IpAddr) -> bool {
        let clients = self.clients.entry(household(address)).or_default();
        if self.per_address_max > 0 && *clients >= self.per_address_max {
            return false;
        }
        *clients += 1;
        true
    }

    /// One admitted client of `address` is gone.
    pub fn release(&mut self, address: IpAddr) {
        let address = household(address);
        if let Some(clients) = self.clients.get_mut(&address) {
            *clients = clients.saturating_sub(1);
            if *clients == 0 {
                self.clients.remove(&address);
            }
        }
    }
}

/// What counts as one address: of IPv6 the /64 (RFC 6177), of IPv4 in IPv6 the IPv4 address.
pub fn household(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_limit() {
        let mut admission = Admission::new(2);
        let (one, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        assert!(admission.admit(one));
        assert!(admission.admit("::ffff:192.0.2.1".parse().unwrap()));
        assert!(!admission.admit(one));
        assert!(admission.admit(other));
        admission.release(one);
        assert!(admission.admit(one));
        for address in [one, one, other] {
            admission.release(address);
        }
        assert!(admission.clients.is_empty());
    }

    #[test]
    fn an_ipv6_network_counts_as_one() {
        let mut admission = Admission::new(1);
        assert!(admission.admit("2001:db8::1".parse().unwrap()));
        assert!(!admission.admit("2001:db8::2".parse().unwrap()));
        assert!(admission.admit("2001:db8:0:1::1".parse().unwrap()));
        admission.release("2001:db8::1".parse().unwrap());
        assert!(admission.admit("2001:db8::3".parse().unwrap()));
    }

    #[test]
    fn zero_is_no_limit() {
        let mut admission = Admission::new(0);
        assert!((0..1000).all(|_| admission.admit("192.0.2.1".parse().unwrap())));
    }
}
