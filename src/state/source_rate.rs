//! How many requests an address may make in a second, for as many addresses as there is room for.

use super::admission::household;
use super::recent::Recent;
use super::token_bucket::TokenBucket;
use std::net::IpAddr;
use std::time::Instant;

/// Requests by address; of IPv6 by /64. The least recently seen address is forgotten when another
/// one needs its place; should it come back, it starts anew.
#[derive(Debug)]
pub struct SourceRate {
    per_second: u32,
    sources: Recent<IpAddr, TokenBucket>,
}

impl SourceRate {
    /// At most `per_second` requests of an address in a second, and as many at once; 0 for no limit.
    /// Remembers `sources_max` addresses; 0 counts as 1.
    pub fn new(per_second: u32, sources_max: usize) -> SourceRate {
        SourceRate { per_second, sources: Recent::new(sources_max) }
    }

    /// How many addresses are remembered.
    pub fn len(&self) -> usize {
        self.sources.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Counts a request of `address` that weighs as much as `weight` plain ones, or returns false
    /// at the limit.
    pub fn admit(&mut self, now: Instant, address: IpAddr, weight: u32) -> bool {
        let per_second = self.per_second;
        if per_second == 0 {
            return true;
        }
        let bucket = || TokenBucket::new(per_second, per_second);
        let bucket = self.sources.use_or_make(household(address), bucket);
        bucket.is_none_or(|bucket| bucket.take_many(weight, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    // An Instant cannot be made from a number; any base will do.
    #[allow(clippy::disallowed_methods)]
    fn base() -> Instant {
        Instant::now()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_address_has_its_own_rate() {
        let now = base();
        let mut rate = SourceRate::new(2, 10);
        let (one, other) = (ip("192.0.2.1"), ip("192.0.2.2"));
        assert!(rate.admit(now, one, 1));
        assert!(rate.admit(now, ip("::ffff:192.0.2.1"), 1));
        assert!(!rate.admit(now, one, 1));
        assert!(rate.admit(now, other, 2));
        assert!(!rate.admit(now, other, 1));
        assert!(rate.admit(now + Duration::from_millis(500), one, 1));
        assert!(!rate.admit(now + Duration::from_millis(500), one, 1));
    }

    #[test]
    fn an_ipv6_network_has_one_rate() {
        let now = base();
        let mut rate = SourceRate::new(1, 10);
        assert!(rate.admit(now, ip("2001:db8::1"), 1));
        assert!(!rate.admit(now, ip("2001:db8::ffff:2"), 1));
        assert!(rate.admit(now, ip("2001:db8:0:1::1"), 1));
    }

    #[test]
    fn the_least_recently_seen_is_forgotten() {
        let now = base();
        let mut rate = SourceRate::new(1, 2);
        let (one, two, three) = (ip("192.0.2.1"), ip("192.0.2.2"), ip("192.0.2.3"));
        assert!(rate.admit(now, one, 1));
        assert!(rate.admit(now, two, 1));
        assert!(!rate.admit(now, one, 1));
        assert!(rate.admit(now, three, 1));
        // Two was forgotten, not one.
        assert!(!rate.admit(now, one, 1));
        assert!(rate.admit(now, two, 1));
        assert_eq!(rate.len(), 2);
    }

    #[test]
    fn zero_is_no_limit() {
        let now = base();
        let mut rate = SourceRate::new(0, 2);
        assert!((0..10_000).all(|_| rate.admit(now, ip("192.0.2.1"), 2)));
        assert!(rate.is_empty());
    }
}
