//! Rates: a token bucket, and the gate that keeps repeated log lines rare.

use std::time::Instant;

/// Parts of a token. One part is what a rate of one per second earns in a nanosecond, so that
/// refilling is exact and no rounding is ever lost.
const TOKEN: u64 = 1_000_000_000;

/// Lets `per_second` events through in the long run and `burst` at once.
///
/// Starts full. Integer arithmetic only: in any span of time at most `burst` plus the span times
/// `per_second` events pass, exactly.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    per_second: u32,
    /// In parts of a token: at most `u32::MAX * TOKEN`, which is below 2^62.
    capacity: u64,
    available: u64,
    refilled: Option<Instant>,
}

impl TokenBucket {
    /// A full bucket. A rate of 0 never refills it; a burst of 0 lets nothing through, ever.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let capacity = u64::from(burst) * TOKEN;
        Self { per_second, capacity, available: capacity, refilled: None }
    }

    /// Takes one token. Returns false when there is none.
    ///
    /// `now` may go backwards: time then stands still until it passes the latest instant seen, so
    /// that no time is earned twice.
    pub fn take(&mut self, now: Instant) -> bool {
        self.take_many(1, now)
    }

    /// Takes so many tokens, or none of them: returns false when there are fewer. Time as in
    /// [`TokenBucket::take`].
    pub fn take_many(&mut self, tokens: u32, now: Instant) -> bool {
        self.take_leaving(0, tokens, now)
    }

    /// As [`TokenBucket::take_many`], but none if fewer than `reserve` would be left.
    pub fn take_leaving(&mut self, reserve: u32, tokens: u32, now: Instant) -> bool {
        self.refill(now);
        // Below 2^62, as the capacity.
        let rest = self.available.checked_sub(u64::from(tokens) * TOKEN);
        match rest.filter(|rest| *rest >= u64::from(reserve) * TOKEN) {
            Some(rest) => {
                self.available = rest;
                true
            }
            None => false,
        }
    }

    fn refill(&mut self, now: Instant) {
        let since = *self.refilled.get_or_insert(now);
        let Some(elapsed) = now.checked_duration_since(since) else { return };
        self.refilled = Some(now);
        // Below 2^126: a Duration is less than 2^94 nanoseconds, the rate less than 2^32.
        let earned = elapsed.as_nanos() * u128::from(self.per_second);
        let earned = u64::try_from(earned).unwrap_or(u64::MAX);
        self.available = self.available.saturating_add(earned).min(self.capacity);
    }
}

/// Keeps a kind of log line to a rate and counts what it holds back.
///
/// ```
/// # use udpferry::state::token_bucket::LogGate;
/// # #[allow(clippy::disallowed_methods)] // a doc test has no clock to borrow
/// # let now = std::time::Instant::now();
/// let mut gate = LogGate::new(1, 1);
/// assert_eq!(gate.pass(now), Some(0));
/// assert_eq!(gate.pass(now), None);
/// assert_eq!(gate.pass(now + std::time::Duration::from_secs(1)), Some(1));
/// ```
#[derive(Clone, Debug)]
pub struct LogGate {
    bucket: TokenBucket,
    suppressed: u64,
}

impl LogGate {
    /// A gate for `per_second` lines in the long run and `burst` at once.
    pub fn new(per_second: u32, burst: u32) -> Self {
        Self { bucket: TokenBucket::new(per_second, burst), suppressed: 0 }
    }

    /// Asks to write a line. Returns `None` when it is to be suppressed, else the number of lines
    /// suppressed since the last one that was written.
    pub fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.bucket.take(now) {
            Some(std::mem::take(&mut self.suppressed))
        } else {
            self.suppressed = self.suppressed.saturating_add(1);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    // An Instant cannot be made from a number; any base will do.
    #[allow(clippy::disallowed_methods)]
    fn base() -> Instant {
        Instant::now()
    }

    fn count(bucket: &mut TokenBucket, now: Instant, tries: u32) -> u32 {
        (0..tries).map(|_| u32::from(bucket.take(now))).sum()
    }

    #[test]
    fn many_tokens_are_taken_together_or_not_at_all() {
        let start = base();
        let mut bucket = TokenBucket::new(1000, 1500);
        assert!(bucket.take_many(1400, start));
        assert!(!bucket.take_many(101, start));
        assert!(bucket.take_many(100, start));
        assert!(!bucket.take_many(1001, start + Duration::from_secs(1)));
        assert!(bucket.take_many(1000, start + Duration::from_secs(1)));
        assert!(bucket.take_many(0, start));
    }

    #[test]
    fn a_reserve_is_left_to_others() {
        let start = base();
        let mut bucket = TokenBucket::new(1, 10);
        assert!(!bucket.take_leaving(5, 6, start));
        assert!(bucket.take_leaving(5, 5, start));
        assert!(!bucket.take_leaving(5, 1, start));
        assert!(bucket.take_many(5, start));
    }

    #[test]
    fn bursts_then_refills_at_the_rate() {
        let start = base();
        let mut bucket = TokenBucket::new(10, 3);
        assert_eq!(count(&mut bucket, start, 5), 3);
        assert!(!bucket.take(start + Duration::from_nanos(99_999_999)));
        assert!(bucket.take(start + Duration::from_millis(100)));
        assert!(!bucket.take(start + Duration::from_millis(199)));
        assert_eq!(count(&mut bucket, start + Duration::from_millis(400), 5), 3);
    }

    #[test]
    fn fractions_of_a_token_are_not_lost() {
        let start = base();
        // Three a second: a token is earned in a third of a second, which no nanosecond hits.
        let mut bucket = TokenBucket::new(3, 1);
        let taken: u32 = (0..=10_000u64)
            .map(|step| u32::from(bucket.take(start + Duration::from_millis(step))))
            .sum();
        // The first one, and one at each whole millisecond after a third, thus every 334 ms.
        assert_eq!(taken, 1 + 10_000 / 334);
        let mut bucket = TokenBucket::new(3, 100);
        assert_eq!(count(&mut bucket, start, 100), 100);
        for step in 1..1000 {
            bucket.refill(start + Duration::from_millis(step * 10));
        }
        assert_eq!(count(&mut bucket, start + Duration::from_secs(10), 100), 30);
    }

    #[test]
    fn time_going_backwards_earns_nothing_and_breaks_nothing() {
        let start = base() + Duration::from_secs(100);
        let mut bucket = TokenBucket::new(1, 2);
        assert_eq!(count(&mut bucket, start, 3), 2);
        assert!(!bucket.take(start.checked_sub(Duration::from_secs(50)).unwrap()));
        assert!(!bucket.take(start));
        assert!(!bucket.take(start + Duration::from_millis(999)));
        assert!(bucket.take(start + Duration::from_secs(1)));
    }

    #[test]
    fn a_very_long_pause_fills_and_does_not_overflow() {
        let start = base();
        let mut bucket = TokenBucket::new(u32::MAX, u32::MAX);
        assert!(bucket.take(start));
        let far = start + Duration::from_secs(u64::from(u32::MAX) * 1000);
        assert!(bucket.take(far));
        assert_eq!(bucket.available, bucket.capacity - TOKEN);
    }

    #[test]
    fn zero_rate_and_zero_burst() {
        let start = base();
        let later = start + Duration::from_secs(1_000_000);
        let mut never_refilled = TokenBucket::new(0, 2);
        assert_eq!(count(&mut never_refilled, start, 5), 2);
        assert!(!never_refilled.take(later));
        let mut shut = TokenBucket::new(1000, 0);
        assert!(!shut.take(start));
        assert!(!shut.take(later));
    }

    #[test]
    fn gate_counts_what_it_holds_back() {
        let start = base();
        let mut gate = LogGate::new(1, 2);
        let answers: Vec<_> = (0..5).map(|_| gate.pass(start)).collect();
        assert_eq!(answers, [Some(0), Some(0), None, None, None]);
        assert_eq!(gate.pass(start + Duration::from_secs(1)), Some(3));
        assert_eq!(gate.pass(start + Duration::from_secs(1)), None);
        assert_eq!(gate.pass(start + Duration::from_secs(9)), Some(1));
        assert_eq!(gate.pass(start + Duration::from_secs(9)), Some(0));
    }

    proptest! {
        /// Against whole-token bookkeeping in 128 bits, from the start instead of step by step.
        #[test]
        fn agrees_with_a_naive_model(
            per_second in 0u32..2000, burst in 0u32..50,
            steps in proptest::collection::vec(-2_000_000_000i64..3_000_000_000, 1..200),
        ) {
            let start = base() + Duration::from_secs(1000);
            let mut bucket = TokenBucket::new(per_second, burst);
            let (rate, full) = (u128::from(per_second), u128::from(burst) * 1_000_000_000);
            let (mut clock, mut seen, mut level) = (0i64, 0i64, full);
            bucket.refill(start);
            for step in steps {
                // Kept above the base, as a monotonic clock cannot go before its start.
                clock = (clock + step).max(-900_000_000_000);
                let elapsed = clock.max(seen) - seen;
                seen += elapsed;
                level = (level + u128::from(elapsed.unsigned_abs()) * rate).min(full);
                let expected = level >= 1_000_000_000;
                if expected {
                    level -= 1_000_000_000;
                }
                let offset = Duration::from_nanos(clock.unsigned_abs());
                let now = if clock < 0 { start.checked_sub(offset).unwrap() } else { start + offset };
                prop_assert_eq!(bucket.take(now), expected);
            }
        }

        #[test]
        fn never_more_than_burst_plus_rate_times_span(
            per_second in 0u32..100_000, burst in 0u32..1000,
            steps in proptest::collection::vec(0u64..10_000_000, 1..500),
        ) {
            let start = base();
            let mut bucket = TokenBucket::new(per_second, burst);
            let (mut elapsed, mut taken) = (0u64, 0u64);
            for step in steps {
                elapsed += step;
                taken += u64::from(bucket.take(start + Duration::from_nanos(elapsed)));
                let bound = u64::from(burst) + elapsed * u64::from(per_second) / 1_000_000_000;
                prop_assert!(taken <= bound);
            }
        }

        #[test]
        fn every_line_is_written_or_counted_once(
            per_second in 0u32..20, burst in 1u32..5,
            steps in proptest::collection::vec(0u64..500, 1..200),
        ) {
            let start = base();
            let mut gate = LogGate::new(per_second, burst);
            let (mut elapsed, mut accounted) = (0, 0);
            let asked = steps.len() as u64;
            for step in steps {
                elapsed += step;
                if let Some(suppressed) = gate.pass(start + Duration::from_millis(elapsed)) {
                    accounted += 1 + suppressed;
                }
            }
            prop_assert_eq!(accounted + gate.suppressed, asked);
        }
    }
}
