//! Which client has which inner address, and which ones are left.
//!
//! A lease outlives its client's absence: who comes back has the address that it had. Only when the
//! pool has no address that was never given out does the client that has been away for longest lose
//! its own. So every address of the pool is leased, or waits to be given out for the first time.

use super::subnet::Subnet;
use super::{Addresses, IPV4, IPV6, Wishes, family};
use crate::state::slots::{Slot, Slots};
use crate::wire::vpn::{ClientId, Wish};
use std::collections::HashMap;
use std::net::IpAddr;

/// Leases remembered: a /16 of clients, at about 200 bytes each. With as many of clients that are
/// there, nobody new gets one; else the one of the client that has been away for longest goes.
pub const LEASES_MAX: usize = 65_536;

/// Why there is no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoLease {
    /// No address is left.
    Exhausted,
    /// Another client has the address.
    Taken,
    /// The address is not in the server's network, or no client's.
    Outside,
}

/// The queues of leases: of clients that are away, the longest first, and of those that are there.
const AWAY: usize = 0;
const THERE: usize = 1;

#[derive(Debug)]
struct Lease {
    client: ClientId,
    addresses: Addresses,
    is_there: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Lease(Slot),
    /// Somebody without a lease, for as long as he is there.
    Bare,
}

#[derive(Debug)]
struct Family {
    subnet: Subnet,
    /// Every address of the pool before this place has a holder.
    next: u128,
}

/// All leases.
#[derive(Debug)]
pub struct Leases {
    families: [Option<Family>; 2],
    count_max: usize,
    slots: Slots<Lease, 2>,
    by_client: HashMap<ClientId, Slot>,
    held: HashMap<IpAddr, Holder>,
}

impl Leases {
    /// None yet, with addresses of these networks: one of each family at most, the later one counts.
    /// `count_max` is [`LEASES_MAX`] but for tests.
    pub fn new(subnets: impl IntoIterator<Item = Subnet>, count_max: usize) -> Leases {
        let mut families = [None, None];
        for subnet in subnets {
            families[family(subnet.own())] = Some(Family { subnet, next: 0 });
        }
        Leases {
            families,
            count_max: count_max.max(1),
            slots: Slots::default(),
            by_client: HashMap::new(),
            held: HashMap::new(),
        }
    }

    /// A client comes. It gets an address of each family that there is, by its wishes, the one that
    /// it had, or any. Nothing changes when it gets none.
    pub fn take(&mut self, client: ClientId, wishes: Wishes) -> Result<Addresses, NoLease> {
        let slot = self.by_client.get(&client).copied();
        if slot.is_none() && self.slots.len() >= self.count_max {
            self.slots.front(AWAY).ok_or(NoLease::Exhausted)?;
        }
        let mut chosen = Addresses::default();
        for family in [IPV4, IPV6] {
            chosen.0[family] = self.choose(family, slot, wishes.0[family], chosen)?;
        }
        self.assign(client, chosen);
        Ok(chosen)
    }

    /// The client has gone, or fallen silent. Its lease waits for it.
    pub fn release(&mut self, client: ClientId) {
        if let Some(slot) = self.by_client.get(&client).copied() {
            self.slots.move_to_back(slot, AWAY);
            if let Some(lease) = self.slots.get_mut(slot) {
                lease.is_there = false;
            }
        }
    }

    /// Somebody without a lease uses this address for as long as he is there. He has shown nothing: an address that
    /// waits for a client which is away is not free for him.
    pub fn take_bare(&mut self, address: IpAddr) -> Result<(), NoLease> {
        let family = self.families[family(address)].as_ref();
        if !family.is_some_and(|family| family.subnet.takes(address)) {
            return Err(NoLease::Outside);
        }
        if self.held.contains_key(&address) {
            return Err(NoLease::Taken);
        }
        self.held.insert(address, Holder::Bare);
        Ok(())
    }

    /// He is not there any more.
    pub fn release_bare(&mut self, address: IpAddr) {
        if self.held.get(&address) == Some(&Holder::Bare) {
            self.give_up(address);
        }
    }

    /// A lease of an earlier run, of a client that is away since later than the ones before. What
    /// contradicts them or the networks is left out.
    pub fn restore(&mut self, client: ClientId, addresses: Addresses) {
        let mut sound = Addresses::default();
        for address in addresses.iter() {
            let place = family(address);
            let family = self.families[place].as_ref();
            if family.is_some_and(|family| family.subnet.takes(address))
                && !self.held.contains_key(&address)
            {
                sound.0[place] = Some(address);
            }
        }
        let has_room = self.slots.len() < self.count_max;
        if !sound.is_empty() && has_room && !self.by_client.contains_key(&client) {
            self.assign(client, sound);
            self.release(client);
        }
    }

    /// Every lease, in the order in which they should be restored.
    pub fn iter(&self) -> impl Iterator<Item = (ClientId, Addresses)> {
        let all = [AWAY, THERE].into_iter().flat_map(|queue| self.slots.iter(queue));
        all.map(|lease| (lease.client, lease.addresses))
    }

    /// The networks.
    pub fn subnets(&self) -> impl Iterator<Item = &Subnet> {
        self.families.iter().flatten().map(|family| &family.subnet)
    }

    /// An address of one family for the lease in `slot`, or a new one.
    fn choose(
        &self,
        place: usize,
        slot: Option<Slot>,
        wish: Wish<IpAddr>,
        chosen: Addresses,
    ) -> Result<Option<IpAddr>, NoLease> {
        let Some(Family { subnet, next }) = &self.families[place] else {
            return if let Wish::Only(_) = wish { Err(NoLease::Outside) } else { Ok(None) };
        };
        if let Wish::Only(address) = wish {
            if !subnet.takes(address) {
                return Err(NoLease::Outside);
            }
            return if self.is_free(address, slot) {
                Ok(Some(address))
            } else {
                Err(NoLease::Taken)
            };
        }
        let had = slot.and_then(|slot| self.slots.get(slot)?.addresses.0[place]);
        let said = if let Wish::Rather(address) = wish { Some(address) } else { None };
        // fd00::7 beside 10.0.0.7, for people.
        let twin = chosen.ipv4().and_then(|ipv4| {
            let ipv4_place = self.families[IPV4].as_ref()?.subnet.place(ipv4.into());
            subnet.at(ipv4_place)
        });
        // Whoever loses its IPv4 address now loses the other one, too.
        let ends = chosen.ipv4().and_then(|ipv4| self.held.get(&ipv4.into()));
        let is_unheld = |address: &IpAddr| {
            let holder = self.held.get(address);
            holder.is_none() || holder == ends
        };
        let others = [said, twin].into_iter().flatten().filter(is_unheld);
        let preferred = had.into_iter().chain(others).find(|address| subnet.pools(*address));
        let fresh = || subnet.pooled_from(*next).map(|(_, address)| address).find(is_unheld);
        preferred
            .or_else(fresh)
            .or_else(|| self.of_longest_away(place, subnet))
            .map(Some)
            .ok_or(NoLease::Exhausted)
    }

    fn of_longest_away(&self, place: usize, subnet: &Subnet) -> Option<IpAddr> {
        let leases = self.slots.iter(AWAY);
        leases.filter_map(|lease| lease.addresses.0[place]).find(|address| subnet.pools(*address))
    }

    /// Whether nobody who is there holds it, but for the lease in `slot`.
    fn is_free(&self, address: IpAddr, slot: Option<Slot>) -> bool {
        match self.held.get(&address) {
            None => true,
            Some(Holder::Bare) => false,
            Some(Holder::Lease(holder)) => {
                slot == Some(*holder) || self.slots.get(*holder).is_none_or(|lease| !lease.is_there)
            }
        }
    }

    /// Gives these addresses, which are free, to a client, which is there.
    fn assign(&mut self, client: ClientId, addresses: Addresses) {
        if let Some(slot) = self.by_client.get(&client).copied() {
            let had = self.slots.get(slot).map_or(Addresses::default(), |lease| lease.addresses);
            for address in had.iter().filter(|had| !addresses.iter().any(|it| it == *had)) {
                self.give_up(address);
            }
        }
        for address in addresses.iter() {
            if self.held.get(&address) != self.holder(client).as_ref() {
                self.strip(address);
            }
        }
        let slot = match self.by_client.get(&client) {
            Some(slot) => *slot,
            None => self.add(client),
        };
        self.slots.move_to_back(slot, THERE);
        if let Some(lease) = self.slots.get_mut(slot) {
            (lease.addresses, lease.is_there) = (addresses, true);
        }
        for address in addresses.iter() {
            self.held.insert(address, Holder::Lease(slot));
            self.advance(address);
        }
    }

    fn holder(&self, client: ClientId) -> Option<Holder> {
        self.by_client.get(&client).map(|slot| Holder::Lease(*slot))
    }

    fn add(&mut self, client: ClientId) -> Slot {
        if self.slots.len() >= self.count_max {
            if let Some((oldest, _)) = self.slots.front(AWAY) {
                self.remove(oldest);
            }
        }
        let lease = Lease { client, addresses: Addresses::default(), is_there: true };
        let slot = self.slots.push(THERE, lease);
        self.by_client.insert(client, slot);
        slot
    }

    fn remove(&mut self, slot: Slot) {
        if let Some(lease) = self.slots.remove(slot) {
            self.by_client.remove(&lease.client);
            for address in lease.addresses.iter() {
                self.give_up(address);
            }
        }
    }

    /// Ends the lease that holds an address, if one does: its client gets another one as a whole.
    fn strip(&mut self, address: IpAddr) {
        if let Some(Holder::Lease(slot)) = self.held.get(&address).copied() {
            self.remove(slot);
        }
    }

    fn give_up(&mut self, address: IpAddr) {
        self.held.remove(&address);
        if let Some(family) = &mut self.families[family(address)] {
            family.next = family.next.min(family.subnet.place(address));
        }
    }

    /// The first place without a holder may have moved on.
    fn advance(&mut self, taken: IpAddr) {
        let Some(family) = &mut self.families[family(taken)] else { return };
        if !family.subnet.pools(taken) {
            return;
        }
        let mut pool = family.subnet.pooled_from(family.next);
        let unheld = pool.find(|(_, address)| !self.held.contains_key(address));
        family.next = unheld.map_or(u128::MAX, |(place, _)| place);
    }
}

#[cfg(test)]
mod tests;
