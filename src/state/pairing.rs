//! Who is paired with whom among clients that say nothing but that they are there: first come,
//! first paired.
//!
//! Nothing proves such a client's address before it is answered, so the answers in all have a
//! rate: whoever forges addresses sends more than his victims get.

use super::contact::Contact;
use super::slots::{Slot, Slots};
use super::token_bucket::TokenBucket;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long a client that was paired gets the same answer again: its own request, repeated, may
/// have been on the way.
pub const PAIRED_KEPT: Duration = Duration::from_secs(10);

/// When to see again whether an answer may be sent; the rate is far below one in this time.
const RETRY: Duration = Duration::from_millis(10);

/// Waiting clients over IPv4 and IPv6, which are of no use to each other, and paired ones.
const QUEUES: usize = 3;
const PAIRED: usize = 2;

/// How many clients wait, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct PairingLimits {
    /// Clients remembered, waiting or paired; the oldest is forgotten when another one comes.
    pub clients_max: usize,
    /// How long a client waits.
    pub waiting_expiry: Duration,
    /// Answers in all in a second; those who must wait for theirs stay in line.
    pub answers_per_second: u32,
}

/// Tells a client of its partner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partner {
    /// Who is told.
    pub to: Contact,
    /// The other one's endpoint.
    pub endpoint: SocketAddr,
}

/// What a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The client is in line, or was already, or is paired now.
    Counted,
    /// The client was paired a moment ago, and must not be told again: too many answers.
    TooManyAnswers,
}

/// The clients that wait for a partner, and those that have just got one.
#[derive(Debug)]
pub struct Pairing {
    limits: PairingLimits,
    answers: TokenBucket,
    clients: Slots<Client, QUEUES>,
    by_endpoint: HashMap<SocketAddr, Slot>,
    waiting: [usize; PAIRED],
}

#[derive(Debug)]
struct Client {
    contact: Contact,
    since: Instant,
    partner: Option<SocketAddr>,
}

impl Client {
    fn queue(&self) -> usize {
        if self.partner.is_some() { PAIRED } else { usize::from(self.contact.endpoint.is_ipv6()) }
    }
}

impl Pairing {
    /// Nobody waits yet.
    pub fn new(limits: PairingLimits) -> Pairing {
        let rate = limits.answers_per_second;
        Pairing {
            limits,
            answers: TokenBucket::new(rate, rate.max(2)),
            clients: Slots::default(),
            by_endpoint: HashMap::new(),
            waiting: [0; PAIRED],
        }
    }

    /// How many clients wait.
    pub fn waiting(&self) -> usize {
        self.waiting.iter().sum()
    }

    /// A client's request. Whoever is told something because of it is added to `told`.
    pub fn arrive(&mut self, now: Instant, contact: Contact, told: &mut Vec<Partner>) -> Arrival {
        self.tend(now, told);
        if let Some(client) =
            self.by_endpoint.get(&contact.endpoint).and_then(|slot| self.clients.get(*slot))
        {
            let Some(endpoint) = client.partner else { return Arrival::Counted };
            if !self.answers.take(now) {
                return Arrival::TooManyAnswers;
            }
            told.push(Partner { to: contact, endpoint });
            return Arrival::Counted;
        }
        while self.by_endpoint.len() >= self.limits.clients_max.max(2) {
            let oldest = [PAIRED, 0, 1].into_iter().find_map(|queue| self.clients.front(queue));
            let Some((oldest, _)) = oldest else { break };
            self.forget(oldest);
        }
        let client = Client { contact, since: now, partner: None };
        self.waiting[client.queue()] += 1;
        let slot = self.clients.push(client.queue(), client);
        self.by_endpoint.insert(contact.endpoint, slot);
        self.pair(now, told);
        Arrival::Counted
    }

    /// Forgets whom it is time to forget, and pairs those who had to wait for their answers. To be
    /// called at [`Pairing::next_deadline`].
    pub fn tend(&mut self, now: Instant, told: &mut Vec<Partner>) {
        for queue in 0..QUEUES {
            while let Some((slot, client)) = self.clients.front(queue) {
                if now.saturating_duration_since(client.since) < self.kept(queue) {
                    break;
                }
                self.forget(slot);
            }
        }
        self.pair(now, told);
    }

    /// When [`Pairing::tend`] has something to do.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let expiry = (0..QUEUES)
            .filter_map(|queue| self.clients.front(queue)?.1.since.checked_add(self.kept(queue)))
            .min();
        let retry = self.waiting.iter().any(|waiting| *waiting >= 2);
        let retry = retry.then(|| now.checked_add(RETRY)).flatten();
        expiry.into_iter().chain(retry).min()
    }

    fn kept(&self, queue: usize) -> Duration {
        if queue == PAIRED { PAIRED_KEPT } else { self.limits.waiting_expiry }
    }

    fn pair(&mut self, now: Instant, told: &mut Vec<Partner>) {
        for family in 0..PAIRED {
            while self.waiting[family] >= 2 && self.answers.take_many(2, now) {
                let pair = [self.take_first(family, now), self.take_first(family, now)];
                if let [Some((one, first)), Some((other, second))] = pair {
                    for (slot, to, endpoint) in
                        [(one, first, second.endpoint), (other, second, first.endpoint)]
                    {
                        if let Some(client) = self.clients.get_mut(slot) {
                            client.partner = Some(endpoint);
                        }
                        told.push(Partner { to, endpoint });
                    }
                }
            }
        }
    }

    fn take_first(&mut self, family: usize, now: Instant) -> Option<(Slot, Contact)> {
        let (slot, _) = self.clients.front(family)?;
        self.clients.move_to_back(slot, PAIRED);
        self.waiting[family] -= 1;
        let client = self.clients.get_mut(slot)?;
        client.since = now;
        Some((slot, client.contact))
    }

    fn forget(&mut self, slot: Slot) {
        if let Some(client) = self.clients.remove(slot) {
            self.by_endpoint.remove(&client.contact.endpoint);
            if client.partner.is_none() {
                self.waiting[client.queue()] -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: PairingLimits = PairingLimits {
        clients_max: 1000,
        waiting_expiry: Duration::from_secs(60),
        answers_per_second: 100,
    };

    // An Instant cannot be made from a number; any base will do.
    #[allow(clippy::disallowed_methods)]
    fn base() -> Instant {
        Instant::now()
    }

    fn contact(port: u16) -> Contact {
        Contact { endpoint: ([192, 0, 2, 1], port).into(), socket: 0, local: None }
    }

    fn arrive(pairing: &mut Pairing, now: Instant, contact: Contact) -> Vec<Partner> {
        let mut told = Vec::new();
        assert_eq!(pairing.arrive(now, contact, &mut told), Arrival::Counted);
        told
    }

    #[test]
    fn two_are_told_of_each_other_together_many_times_over() {
        let now = base();
        let mut pairing = Pairing::new(LIMITS);
        for pair in 1..=10 {
            let (one, other) = (contact(2 * pair), contact(2 * pair + 1));
            assert_eq!(arrive(&mut pairing, now, one), []);
            assert_eq!(arrive(&mut pairing, now, one), [], "it waits already");
            let told = arrive(&mut pairing, now, other);
            let expected = [
                Partner { to: one, endpoint: other.endpoint },
                Partner { to: other, endpoint: one.endpoint },
            ];
            assert_eq!(told, expected);
        }
        assert_eq!(pairing.waiting(), 0);
    }

    #[test]
    fn the_same_answer_again_for_ten_seconds() {
        let now = base();
        let mut pairing = Pairing::new(LIMITS);
        arrive(&mut pairing, now, contact(1));
        arrive(&mut pairing, now, contact(2));
        let later = now + Duration::from_millis(9_999);
        let again = arrive(&mut pairing, later, contact(1));
        assert_eq!(again, [Partner { to: contact(1), endpoint: contact(2).endpoint }]);
        let later = now + PAIRED_KEPT;
        assert_eq!(arrive(&mut pairing, later, contact(1)), []);
        assert_eq!(pairing.waiting(), 1);
    }

    #[test]
    fn a_client_waits_a_minute() {
        let now = base();
        let mut pairing = Pairing::new(LIMITS);
        arrive(&mut pairing, now, contact(1));
        assert_eq!(pairing.next_deadline(now), Some(now + LIMITS.waiting_expiry));
        let late = now + LIMITS.waiting_expiry;
        assert_eq!(arrive(&mut pairing, late, contact(2)), []);
        assert_eq!(arrive(&mut pairing, late, contact(3)).len(), 2);
    }

    #[test]
    fn families_do_not_mix() {
        let now = base();
        let mut pairing = Pairing::new(LIMITS);
        let v6 = |port| Contact { endpoint: ([1; 8], port).into(), socket: 1, local: None };
        arrive(&mut pairing, now, contact(1));
        assert_eq!(arrive(&mut pairing, now, v6(1)), []);
        assert_eq!(pairing.waiting(), 2);
        assert_eq!(arrive(&mut pairing, now, v6(2))[0].to, v6(1));
        assert_eq!(arrive(&mut pairing, now, contact(2))[0].to, contact(1));
    }

    #[test]
    fn a_flood_gets_no_more_answers_than_the_rate_and_those_in_line_are_paired_later() {
        let now = base();
        let limits = PairingLimits { answers_per_second: 10, ..LIMITS };
        let mut pairing = Pairing::new(limits);
        let mut told = Vec::new();
        for port in 1..=900 {
            pairing.arrive(now, contact(port), &mut told);
        }
        assert_eq!(told.len(), 10);
        assert_eq!(pairing.waiting(), 890);
        assert_eq!(pairing.next_deadline(now), Some(now + RETRY));
        told.clear();
        assert_eq!(pairing.arrive(now, contact(1), &mut told), Arrival::TooManyAnswers);
        pairing.tend(now + Duration::from_secs(1), &mut told);
        let first = Partner { to: contact(11), endpoint: contact(12).endpoint };
        assert_eq!((told.len(), told[0]), (10, first));
    }

    #[test]
    fn the_oldest_is_forgotten_and_memory_stays() {
        let now = base();
        let limits = PairingLimits { clients_max: 10, answers_per_second: 0, ..LIMITS };
        let mut pairing = Pairing::new(limits);
        let mut told = Vec::new();
        for port in 1..=60_000 {
            pairing.arrive(now, contact(port), &mut told);
        }
        // The bucket starts with the two tokens of one pair.
        assert_eq!(told.len(), 2);
        assert_eq!(pairing.waiting(), 10);
        assert_eq!(pairing.clients.front(0).unwrap().1.contact, contact(59_991));
        assert!(pairing.by_endpoint.capacity() < 64);
    }
}
