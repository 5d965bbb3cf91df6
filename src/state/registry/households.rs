//! Whose rooms there are: when there is room for no more, who has the most gives way.

use crate::state::admission::household;
use crate::state::slots::Slot;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

/// Rooms by the household of whoever made them: an IPv4 address or an IPv6 /64.
#[derive(Debug, Default)]
pub(super) struct Households {
    /// With the number of the making, so that a household's newest room is at hand.
    rooms: BTreeSet<(IpAddr, u64, Slot)>,
    counts: HashMap<IpAddr, usize>,
    by_count: BTreeSet<(usize, IpAddr)>,
    made: u64,
}

/// Whose a room is; to be given back when it ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    household: IpAddr,
    number: u64,
}

impl Households {
    /// For a room that is made from `address`.
    pub(super) fn next(&mut self, address: IpAddr) -> Owner {
        self.made += 1;
        Owner { household: household(address), number: self.made }
    }

    /// The room is made.
    pub(super) fn begin(&mut self, owner: Owner, room: Slot) {
        if self.rooms.insert((owner.household, owner.number, room)) {
            self.recount(owner.household, |count| count + 1);
        }
    }

    /// A room has ended.
    pub(super) fn end(&mut self, owner: Owner, room: Slot) {
        if self.rooms.remove(&(owner.household, owner.number, room)) {
            self.recount(owner.household, |count| count - 1);
        }
    }

    /// The room that has to go for another one from `address`: the newest of the household that has
    /// the most. None if `address` would then have the most itself.
    pub(super) fn victim(&self, address: IpAddr) -> Option<Slot> {
        let own = self.counts.get(&household(address)).copied().unwrap_or(0);
        let (most, household) = *self.by_count.last()?;
        if most <= own + 1 {
            return None;
        }
        let all = (household, 0, 0)..=(household, u64::MAX, Slot::MAX);
        self.rooms.range(all).next_back().map(|(_, _, room)| *room)
    }

    fn recount(&mut self, household: IpAddr, change: impl FnOnce(usize) -> usize) {
        let before = self.counts.remove(&household).unwrap_or(0);
        self.by_count.remove(&(before, household));
        let after = change(before);
        if after > 0 {
            self.counts.insert(household, after);
            self.by_count.insert((after, household));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_newest_room_of_who_has_the_most_goes() {
        let mut households = Households::default();
        let (flood, other) = (ip("2001:db8::1"), ip("192.0.2.2"));
        let mut make = |address, room| {
            let owner = households.next(address);
            households.begin(owner, room);
            owner
        };
        make(flood, 1);
        make(other, 2);
        assert_eq!(households.victim(ip("192.0.2.3")), None, "everybody has one");
        let mut make = |address, room| {
            let owner = households.next(address);
            households.begin(owner, room);
            owner
        };
        make(ip("2001:db8::2"), 3);
        let newest = make(ip("2001:db8::3"), 0);
        // Neither for itself nor for a neighbour in its network.
        assert_eq!(households.victim(ip("2001:db8::9")), None);
        assert_eq!(households.victim(ip("192.0.2.3")), Some(0));
        assert_eq!(households.victim(other), Some(0));
        households.end(newest, 0);
        assert_eq!(households.victim(other), None, "it would have as many");
        assert_eq!(households.victim(ip("192.0.2.3")), Some(3));
    }
}
