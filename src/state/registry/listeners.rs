//! What is sent unasked to an endpoint: so much, and no more once nothing shows that it is heard.
//!
//! A cookie proves an endpoint for up to a minute. Whoever had it in that time, and has it no more,
//! could have its new holder flooded with introductions; what is here is therefore kept by
//! endpoint, and outlasts the member that was there.

use crate::state::recent::Recent;
use crate::state::token_bucket::TokenBucket;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long a first introduction waits for its acknowledgement: the last repeat goes out after
/// 800 ms, and takes a round trip.
pub const ROUND: Duration = Duration::from_secs(1);

/// As many rounds of introductions may be lost.
const UNHEARD_MAX: u8 = 2;

/// As long as a cookie counts at most: what was proven before has to be proven again by then.
const KEPT: Duration = Duration::from_secs(60);

/// An endpoint hears of a full room in so many seconds. Much faster than rooms change, and of the
/// default 16 members no more than 2.3 KB/s.
const ROOM_SECONDS: u32 = 4;

/// Whether an introduction may be sent to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hearing {
    /// It may.
    Now,
    /// There have been too many lately; a repeat may.
    Later,
    /// It has acknowledged none of the last ones.
    Deaf,
}

/// Endpoints that have been told of something in the last minute. The one that has waited longest
/// is forgotten when another one needs its place.
#[derive(Debug)]
pub(super) struct Listeners {
    members_max: u32,
    endpoints: Recent<SocketAddr, Listener>,
    silences: u64,
}

#[derive(Debug)]
struct Listener {
    allowance: TokenBucket,
    told: Instant,
    /// Rounds without an acknowledgement, and when the last of them began.
    unheard: u8,
    round: Instant,
    is_deaf: bool,
    /// The number of its last silence.
    silence: u64,
}

impl Listeners {
    /// For rooms of up to so many members. Remembers `endpoints_max` endpoints; 0 counts as 1.
    pub(super) fn new(members_max: usize, endpoints_max: usize) -> Listeners {
        Listeners {
            members_max: u32::try_from(members_max.clamp(1, 255)).unwrap_or(255),
            endpoints: Recent::new(endpoints_max),
            silences: 0,
        }
    }

    /// Counts an introduction to `endpoint`, unless it should not be sent.
    pub(super) fn tell(&mut self, now: Instant, endpoint: SocketAddr) -> Hearing {
        self.endpoints.forget_while(|it| now.saturating_duration_since(it.told) > KEPT);
        let allowance = self.allowance();
        let listener = self.endpoints.use_or_make(endpoint, || Listener::new(allowance, now));
        let Some(listener) = listener else { return Hearing::Later };
        listener.told = now;
        if listener.is_deaf {
            return Hearing::Deaf;
        }
        let begins =
            listener.unheard == 0 || now.saturating_duration_since(listener.round) >= ROUND;
        if begins && listener.unheard >= UNHEARD_MAX {
            listener.is_deaf = true;
            self.silences += 1;
            listener.silence = self.silences;
            return Hearing::Deaf;
        }
        if !listener.allowance.take_many(ROOM_SECONDS, now) {
            return Hearing::Later;
        }
        if begins {
            listener.unheard += 1;
            listener.round = now;
        }
        Hearing::Now
    }

    /// `endpoint` has acknowledged an introduction.
    pub(super) fn heard(&mut self, endpoint: SocketAddr) {
        if let Some(listener) = self.endpoints.get_mut(&endpoint) {
            listener.unheard = 0;
            listener.is_deaf = false;
        }
    }

    /// `endpoint` has shown a cookie that was made over its [`Listeners::silence`]. Returns whether
    /// it was taken for deaf; what was sent in vain does not count then.
    pub(super) fn is_back(&mut self, endpoint: SocketAddr) -> bool {
        let allowance = self.allowance();
        let deaf = self.endpoints.get_mut(&endpoint).filter(|listener| listener.is_deaf);
        let was_deaf = deaf.is_some();
        if let Some(listener) = deaf {
            listener.allowance = allowance;
            self.heard(endpoint);
        }
        was_deaf
    }

    /// The number of the last silence of `endpoint`, 0 without one. No two silences have the same.
    pub(super) fn silence(&self, endpoint: SocketAddr) -> u64 {
        self.endpoints.get(&endpoint).map_or(0, |listener| listener.silence)
    }

    /// A newcomer hears of everybody, and once more of everybody who has news.
    fn allowance(&self) -> TokenBucket {
        TokenBucket::new(self.members_max, 2 * self.members_max * ROOM_SECONDS)
    }
}

impl Listener {
    fn new(allowance: TokenBucket, now: Instant) -> Listener {
        Listener { allowance, told: now, unheard: 0, round: now, is_deaf: false, silence: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // An Instant cannot be made from a number; any base will do.
    #[allow(clippy::disallowed_methods)]
    fn base() -> Instant {
        Instant::now()
    }

    fn endpoint(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    #[test]
    fn after_two_rounds_without_an_answer_there_is_no_third() {
        let now = base();
        let mut listeners = Listeners::new(16, 10);
        let at = |rounds: u32| now + ROUND * rounds;
        for _ in 0..10 {
            assert_eq!(listeners.tell(now, endpoint(1)), Hearing::Now);
        }
        assert_eq!(listeners.tell(at(1), endpoint(1)), Hearing::Now);
        assert_eq!(listeners.silence(endpoint(1)), 0);
        assert!(!listeners.is_back(endpoint(1)), "not deaf yet: an old cookie changes nothing");
        assert_eq!(listeners.tell(at(2), endpoint(1)), Hearing::Deaf);
        assert_eq!(listeners.silence(endpoint(1)), 1);
        assert_eq!(listeners.tell(at(50), endpoint(1)), Hearing::Deaf);
        assert_eq!(listeners.tell(at(50), endpoint(2)), Hearing::Now);
        assert!(listeners.is_back(endpoint(1)));
        assert_eq!(listeners.tell(at(50), endpoint(1)), Hearing::Now);
        // The cookie of before the silence never counts again.
        assert_eq!(listeners.silence(endpoint(1)), 1);
    }

    #[test]
    fn who_acknowledges_hears_a_room_in_four_seconds() {
        let now = base();
        let mut listeners = Listeners::new(16, 10);
        let mut told = |after: Duration| {
            (0..100)
                .filter(|_| {
                    listeners.heard(endpoint(1));
                    listeners.tell(now + after, endpoint(1)) == Hearing::Now
                })
                .count()
        };
        assert_eq!(told(Duration::ZERO), 32);
        assert_eq!(told(Duration::from_secs(1)), 4);
        assert_eq!(told(Duration::from_secs(4)), 12);
    }

    #[test]
    fn endpoints_are_forgotten_with_their_cookies_and_at_the_limit() {
        let now = base();
        let mut listeners = Listeners::new(16, 3);
        for port in 1..=4 {
            listeners.tell(now, endpoint(port));
        }
        assert_eq!(listeners.endpoints.len(), 3);
        listeners.tell(now + KEPT, endpoint(2));
        listeners.tell(now + KEPT + Duration::from_secs(1), endpoint(5));
        assert_eq!(listeners.endpoints.len(), 2);
    }
}
