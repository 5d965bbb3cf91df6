//! Connections that are being set up: who goes when there are too many.

use super::admission::household;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// Connections that have not proved to be anything yet, by their serial numbers.
///
/// They are limited as a whole; at the limit the oldest of the address that has the most of them
/// goes. A flood from one address thus hurts that address alone, and one from everywhere cannot
/// keep newcomers out: each of them has the time that the flood needs to fill the limit once.
#[derive(Debug)]
pub struct SetUps {
    max: usize,
    under_way: BTreeMap<u64, IpAddr>,
    of_address: HashMap<IpAddr, usize>,
}

impl SetUps {
    /// At most `max` at once, at least one.
    pub fn new(max: usize) -> SetUps {
        SetUps { max: max.max(1), under_way: BTreeMap::new(), of_address: HashMap::new() }
    }

    /// A connection from `address` comes; `serial` is above all before it. Returns the one that has
    /// to go for it, which is forgotten here.
    pub fn begin(&mut self, serial: u64, address: IpAddr) -> Option<u64> {
        let victim = if self.under_way.len() < self.max { None } else { self.victim() };
        if let Some(victim) = victim {
            self.end(victim);
        }
        let address = household(address);
        self.under_way.insert(serial, address);
        *self.of_address.entry(address).or_default() += 1;
        victim
    }

    /// A connection is set up, or has ended; one that is not here is passed over.
    pub fn end(&mut self, serial: u64) {
        let Some(address) = self.under_way.remove(&serial) else {
            return;
        };
        if let Some(count) = self.of_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.of_address.remove(&address);
            }
        }
    }

    fn victim(&self) -> Option<u64> {
        let most = self.of_address.values().max()?;
        self.under_way
            .iter()
            .find(|(_, address)| self.of_address.get(address) == Some(most))
            .map(|(serial, _)| *serial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOD: [u8; 4] = [192, 0, 2, 1];
    const OTHER: [u8; 4] = [192, 0, 2, 2];

    #[test]
    fn at_the_limit_the_oldest_of_the_busiest_address_goes() {
        let mut set_ups = SetUps::new(3);
        assert_eq!(set_ups.begin(0, OTHER.into()), None);
        assert_eq!(set_ups.begin(1, FLOOD.into()), None);
        assert_eq!(set_ups.begin(2, FLOOD.into()), None);
        // However many come: the other one stays until it has been set up.
        for serial in 3..100 {
            assert_eq!(set_ups.begin(serial, FLOOD.into()), Some(serial - 2));
        }
        assert_eq!(set_ups.begin(100, OTHER.into()), Some(98));
        for serial in [0, 0, 99, 100] {
            set_ups.end(serial);
        }
        assert!(set_ups.under_way.is_empty() && set_ups.of_address.is_empty());
    }

    #[test]
    fn when_everybody_has_one_the_oldest_goes() {
        let mut set_ups = SetUps::new(2);
        for serial in 0..10 {
            let address = [198, 51, 100, u8::try_from(serial).unwrap()];
            assert_eq!(set_ups.begin(serial, address.into()), serial.checked_sub(2));
        }
    }
}
