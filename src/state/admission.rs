//! How many clients one address may have.

use std::collections::HashMap;
use std::net::IpAddr;

/// Clients by address.
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
        let clients = self.clients.entry(address.to_canonical()).or_default();
        if self.per_address_max > 0 && *clients >= self.per_address_max {
            return false;
        }
        *clients += 1;
        true
    }

    /// One admitted client of `address` is gone.
    pub fn release(&mut self, address: IpAddr) {
        let address = address.to_canonical();
        if let Some(clients) = self.clients.get_mut(&address) {
            *clients = clients.saturating_sub(1);
            if *clients == 0 {
                self.clients.remove(&address);
            }
        }
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
    fn zero_is_no_limit() {
        let mut admission = Admission::new(0);
        assert!((0..1000).all(|_| admission.admit("192.0.2.1".parse().unwrap())));
    }
}
