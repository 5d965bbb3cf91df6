//! The server's clients: who is there, where each one is talked to, and which addresses it has.
//!
//! A client has shown by a cookie that it receives at its endpoint, and says by its number who it
//! is: so it may move to another endpoint whenever it wants, and nobody else can take its addresses.
//! A **bare** client only sends packets, and is whoever its inner address says; it may move, too, but
//! only within its host at once.

use super::leases::{Leases, NoLease};
use super::{Addresses, Wishes, family};
use crate::state::contact::Contact;
use crate::state::token_bucket::TokenBucket;
use crate::wire::vpn::{ClientId, Refusal};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// A bare client's address passes to another host when nothing has come from it for so long. No
/// keepalive tells whether it is still there; a person who changes networks waits as long.
pub const BARE_SILENCE: Duration = Duration::from_secs(15);

/// A client in a hurry says something once in a quarter of a second.
const MESSAGES_PER_SECOND: u32 = 20;

/// A client's number: no other one of this run has it.
pub type Number = u64;

/// What bounds the clients.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Clients at once; further ones are refused. Bare ones, which anybody can be who forges a source address,
    /// are half of them at most.
    pub clients_max: usize,
    /// A client that nothing has come from for so long is gone.
    pub idle_timeout: Duration,
}

/// A client that is there.
#[derive(Debug, Clone)]
pub struct Client {
    /// `None` for a bare one.
    pub id: Option<ClientId>,
    /// Where it is talked to.
    pub contact: Contact,
    /// Its inner addresses.
    pub addresses: Addresses,
    /// When it came.
    pub since: Instant,
    /// When it was last heard of, as far as we were told.
    last_heard: Instant,
    /// What it says, being who it is, at the endpoint that it has shown.
    messages: TokenBucket,
}

/// A client that has come, or come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entered {
    /// Its number.
    pub number: Number,
    /// What it has now.
    pub addresses: Addresses,
    /// How it differs from before.
    pub change: Change,
}

/// What has become of a client that was heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was not there.
    New,
    /// It has another endpoint now; this was the old one.
    Moved(SocketAddr),
    /// It has other addresses now.
    Readdressed,
    /// Nothing.
    Same,
}

/// Why a packet binds nobody to its inner source address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotBound {
    /// There are as many clients as there may be.
    Full,
    /// The address is not in the server's network.
    Outside,
    /// Somebody else has the address.
    Taken,
    /// The client at that endpoint has another address.
    HasAnother,
}

/// Everybody.
#[derive(Debug)]
pub struct Clients {
    limits: Limits,
    leases: Leases,
    present: BTreeMap<Number, Client>,
    by_endpoint: HashMap<SocketAddr, Number>,
    by_id: HashMap<ClientId, Number>,
    by_address: HashMap<IpAddr, Number>,
    next_number: Number,
    /// Those present that are bare.
    bare: usize,
    /// No client expires before.
    next_expiry: Option<Instant>,
}

impl Clients {
    /// Nobody yet.
    pub fn new(limits: Limits, leases: Leases) -> Clients {
        Clients {
            limits,
            leases,
            present: BTreeMap::new(),
            by_endpoint: HashMap::new(),
            by_id: HashMap::new(),
            by_address: HashMap::new(),
            next_number: 0,
            bare: 0,
            next_expiry: None,
        }
    }

    /// The endpoint has been proved to be this client's. Removes whoever else was there.
    pub fn displace(&mut self, endpoint: SocketAddr, id: ClientId) -> Option<(Number, Client)> {
        let number = self.by_endpoint.get(&endpoint).copied()?;
        if self.by_id.get(&id) == Some(&number) {
            return None;
        }
        self.remove(number).map(|client| (number, client))
    }

    /// A client says hello, from an endpoint that it has proved and where nobody else is (any more).
    pub fn enter(
        &mut self,
        now: Instant,
        id: ClientId,
        contact: Contact,
        wishes: Wishes,
    ) -> Result<Entered, Refusal> {
        let known = self.by_id.get(&id).copied();
        if known.is_none() && self.present.len() >= self.limits.clients_max {
            return Err(Refusal::Full);
        }
        let addresses = self.leases.take(id, wishes).map_err(|reason| match reason {
            NoLease::Exhausted => Refusal::NoAddress,
            NoLease::Taken => Refusal::AddressTaken,
            NoLease::Outside => Refusal::AddressOutside,
        })?;
        let number = known.unwrap_or_else(|| self.add(now, Some(id), contact));
        let change = self.renew(number, now, contact, addresses);
        let change = if known.is_none() { Change::New } else { change };
        Ok(Entered { number, addresses, change })
    }

    /// A packet came from an endpoint that nobody has, or with an inner source that is not its
    /// client's. Binds the endpoint to the address, if a bare client may have it. `last_heard` says
    /// when a client was last heard of by others than us.
    pub fn bind(
        &mut self,
        now: Instant,
        contact: Contact,
        inner: IpAddr,
        last_heard: impl Fn(Number) -> Option<Instant>,
    ) -> Result<Entered, NotBound> {
        let here = self.by_endpoint.get(&contact.endpoint).copied();
        let holder = self.by_address.get(&inner).copied();
        if let Some((number, client)) = holder.and_then(|it| Some((it, self.present.get(&it)?))) {
            let heard =
                last_heard(number).map_or(client.last_heard, |at| at.max(client.last_heard));
            let is_same_host = client.contact.endpoint.ip() == contact.endpoint.ip();
            let is_silent = now.saturating_duration_since(heard) >= BARE_SILENCE;
            if client.id.is_some() || !(is_same_host || is_silent) {
                return Err(NotBound::Taken);
            }
            if here.is_some() {
                return Err(NotBound::HasAnother);
            }
            let addresses = client.addresses;
            let change = self.renew(number, now, contact, addresses);
            return Ok(Entered { number, addresses, change });
        }
        let mut addresses = Addresses::default();
        if let Some(client) = here.and_then(|here| self.present.get(&here)) {
            addresses = client.addresses;
            if client.id.is_some() || addresses.0[family(inner)].is_some() {
                return Err(NotBound::HasAnother);
            }
        } else if self.present.len() >= self.limits.clients_max
            || self.bare >= self.limits.clients_max.div_ceil(2)
        {
            return Err(NotBound::Full);
        }
        self.leases.take_bare(inner).map_err(|reason| match reason {
            NoLease::Outside => NotBound::Outside,
            NoLease::Taken | NoLease::Exhausted => NotBound::Taken,
        })?;
        addresses.0[family(inner)] = Some(inner);
        let number = here.unwrap_or_else(|| self.add(now, None, contact));
        let change = self.renew(number, now, contact, addresses);
        let change = if here.is_none() { Change::New } else { change };
        Ok(Entered { number, addresses, change })
    }

    /// Whether there is time for a message of a client that is there and knows its number; `None` if it is nobody's such.
    /// They are counted for themselves, so that nobody who forges its address can use up what it may say.
    pub fn admits(&mut self, now: Instant, endpoint: SocketAddr, id: ClientId) -> Option<bool> {
        let number = self.at(endpoint, id)?;
        self.present.get_mut(&number).map(|client| client.messages.take(now))
    }

    /// A keepalive. Returns whose, unless no client of that number is at the endpoint.
    pub fn keep(&mut self, now: Instant, endpoint: SocketAddr, id: ClientId) -> Option<Number> {
        let number = self.at(endpoint, id)?;
        self.present.get_mut(&number)?.last_heard = now;
        Some(number)
    }

    /// A goodbye. Returns who has gone.
    pub fn leave(&mut self, endpoint: SocketAddr, id: ClientId) -> Option<(Number, Client)> {
        let number = self.at(endpoint, id)?;
        self.remove(number).map(|client| (number, client))
    }

    /// Removes those that have been silent for too long; `last_heard` as in [`Clients::bind`].
    pub fn expire(
        &mut self,
        now: Instant,
        last_heard: impl Fn(Number) -> Option<Instant>,
    ) -> Vec<(Number, Client)> {
        if self.next_expiry.is_none_or(|next| next > now) {
            return Vec::new();
        }
        let mut silent = Vec::new();
        self.next_expiry = None;
        for (number, client) in &mut self.present {
            client.last_heard =
                last_heard(*number).map_or(client.last_heard, |at| at.max(client.last_heard));
            let expiry = client.last_heard + self.limits.idle_timeout;
            if expiry <= now {
                silent.push(*number);
            } else {
                let next = self.next_expiry.map_or(expiry, |next| next.min(expiry));
                self.next_expiry = Some(next);
            }
        }
        let gone = silent.into_iter().map(|number| (number, self.remove(number)));
        gone.filter_map(|(number, client)| Some((number, client?))).collect()
    }

    /// When [`Clients::expire`] has something to do, at the earliest.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.next_expiry
    }

    /// Who is at an endpoint.
    pub fn at_endpoint(&self, endpoint: SocketAddr) -> Option<&Client> {
        self.present.get(self.by_endpoint.get(&endpoint)?)
    }

    /// Whether an inner address is somebody's who is there.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.by_address.contains_key(&address)
    }

    /// Everybody, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = (Number, &Client)> {
        self.present.iter().map(|(number, client)| (*number, client))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.present.len()
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.present.is_empty()
    }

    /// The addresses of those that are there, and of those that may come back.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    fn at(&self, endpoint: SocketAddr, id: ClientId) -> Option<Number> {
        let number = self.by_id.get(&id).copied()?;
        (self.by_endpoint.get(&endpoint) == Some(&number)).then_some(number)
    }

    fn add(&mut self, now: Instant, id: Option<ClientId>, contact: Contact) -> Number {
        let number = self.next_number;
        self.next_number += 1;
        self.bare += usize::from(id.is_none());
        let addresses = Addresses::default();
        let messages = TokenBucket::new(MESSAGES_PER_SECOND, MESSAGES_PER_SECOND);
        let client = Client { id, contact, addresses, since: now, last_heard: now, messages };
        self.present.insert(number, client);
        if let Some(id) = id {
            self.by_id.insert(id, number);
        }
        number
    }

    /// The client is heard of from this contact, and has these addresses.
    fn renew(
        &mut self,
        number: Number,
        now: Instant,
        contact: Contact,
        addresses: Addresses,
    ) -> Change {
        let expiry = now + self.limits.idle_timeout;
        self.next_expiry = Some(self.next_expiry.map_or(expiry, |next| next.min(expiry)));
        let Some(client) = self.present.get_mut(&number) else { return Change::Same };
        client.last_heard = now;
        let before = std::mem::replace(&mut client.contact, contact);
        let had = std::mem::replace(&mut client.addresses, addresses);
        if before.endpoint != contact.endpoint {
            self.by_endpoint.remove(&before.endpoint);
        }
        self.by_endpoint.insert(contact.endpoint, number);
        if had != addresses {
            for address in had.iter() {
                self.by_address.remove(&address);
            }
            self.by_address.extend(addresses.iter().map(|address| (address, number)));
        }
        if before != contact {
            Change::Moved(before.endpoint)
        } else if had != addresses {
            Change::Readdressed
        } else {
            Change::Same
        }
    }

    fn remove(&mut self, number: Number) -> Option<Client> {
        let client = self.present.remove(&number)?;
        self.by_endpoint.remove(&client.contact.endpoint);
        for address in client.addresses.iter() {
            self.by_address.remove(&address);
        }
        if let Some(id) = client.id {
            self.by_id.remove(&id);
            self.leases.release(id);
        } else {
            self.bare -= 1;
            client.addresses.iter().for_each(|address| self.leases.release_bare(address));
        }
        Some(client)
    }
}

#[cfg(test)]
mod tests;
