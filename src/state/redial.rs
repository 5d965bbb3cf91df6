//! When a client that must be connected connects again.

use super::backoff::{Backoff, jittered};
use std::time::{Duration, Instant};

/// A connection that lived so long was a success even if it carried nothing: longer than a server
/// waits for one that says nothing (the pool's `--handshake-timeout`, 10 s).
const LONG_LIVED: Duration = Duration::from_secs(20);
/// Delays grow to this many times the first one.
const GROWTH: u32 = 6;
/// The free attempt comes after this part of the first delay.
const FREE_PART: u32 = 10;

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There was no connection, or the other side refused it.
    Failed,
    /// A connection that lived for `lived` has ended; `has_received` if a datagram came over it.
    Ended {
        /// From up to down.
        lived: Duration,
        /// Whether the other side has proved that it is a working server.
        has_received: bool,
    },
}

/// The waits of one connection between its attempts.
///
/// The first attempt after the loss of a connection that worked is free: it comes soon, and the
/// delays begin anew behind it. All others wait for the whole delay, which doubles: a server that
/// accepts and drops is asked as rarely as one that refuses.
#[derive(Debug)]
pub struct Redial {
    backoff: Backoff,
    first: Duration,
    /// When the next attempt is due, and when it may come at the earliest if somebody needs it.
    due: Instant,
    earliest: Instant,
}

impl Redial {
    /// The first attempt is due `now`; `first` is the delay after one failure.
    pub fn new(first: Duration, now: Instant) -> Redial {
        Redial { backoff: Backoff::new(first, first * GROWTH), first, due: now, earliest: now }
    }

    /// An attempt is over `now`. `chance` is random. Returns the time until the next one.
    pub fn after(&mut self, outcome: Outcome, now: Instant, chance: u16) -> Duration {
        let delay = match outcome {
            Outcome::Ended { lived, has_received } if has_received || lived >= LONG_LIVED => {
                self.backoff.succeeded();
                jittered(self.first / FREE_PART, chance)
            }
            Outcome::Failed | Outcome::Ended { .. } => jittered(self.backoff.failed(), chance),
        };
        self.due = now + delay;
        self.earliest = now + delay.min(jittered(self.first, chance));
        delay
    }

    /// Somebody needs the connection: it does not wait for longer than the first delay, however
    /// often it has failed.
    pub fn is_needed(&mut self) {
        self.due = self.due.min(self.earliest);
    }

    /// When the next attempt is due.
    pub fn due(&self) -> Instant {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No jitter.
    const MIDDLE: u16 = 1 << 15;
    const FIRST: Duration = Duration::from_secs(5);

    #[allow(clippy::disallowed_methods)] // Tests count from whatever instant they start at.
    fn start() -> Instant {
        Instant::now()
    }

    /// Rounded to a tenth of a second.
    fn tenths(delay: Duration) -> u128 {
        (delay.as_millis() + 50) / 100
    }

    fn delays(redial: &mut Redial, now: Instant, outcomes: &[Outcome]) -> Vec<u128> {
        outcomes.iter().map(|outcome| tenths(redial.after(*outcome, now, MIDDLE))).collect()
    }

    const WORKED: Outcome = Outcome::Ended { lived: Duration::ZERO, has_received: true };
    const OLD: Outcome = Outcome::Ended { lived: LONG_LIVED, has_received: false };
    const DROPPED: Outcome = Outcome::Ended { lived: Duration::from_secs(9), has_received: false };

    #[test]
    fn the_free_attempt_uses_up_no_step() {
        let now = start();
        for loss in [WORKED, OLD] {
            let mut redial = Redial::new(FIRST, now);
            let outcomes = [loss, Outcome::Failed, Outcome::Failed, Outcome::Failed];
            let waits = delays(&mut redial, now, &outcomes);
            assert_eq!(waits, [5, 50, 100, 200]);
            // The pool's server keeps a session for 10 s: two attempts fall into that.
            assert!(waits[0] + waits[1] < 100);
            assert_eq!(delays(&mut redial, now, &[loss, Outcome::Failed]), [5, 50]);
        }
    }

    #[test]
    fn a_server_that_accepts_and_drops_is_asked_as_rarely_as_one_that_refuses() {
        let now = start();
        let mut redial = Redial::new(FIRST, now);
        assert_eq!(delays(&mut redial, now, &[DROPPED; 5]), [50, 100, 200, 300, 300]);
        let mut redial = Redial::new(FIRST, now);
        assert_eq!(delays(&mut redial, now, &[WORKED, DROPPED, DROPPED]), [5, 50, 100]);
    }

    #[test]
    fn a_need_cuts_long_waits_short_and_never_below_the_first_delay() {
        let now = start();
        let mut redial = Redial::new(FIRST, now);
        redial.after(WORKED, now, MIDDLE);
        redial.is_needed();
        assert_eq!(tenths(redial.due() - now), 5);
        let mut later = now;
        for _ in 0..5 {
            redial.after(Outcome::Failed, later, MIDDLE);
            let unneeded = redial.due();
            for _ in 0..3 {
                redial.is_needed();
            }
            assert_eq!(tenths(redial.due() - later), 50);
            later = unneeded;
        }
    }

    #[test]
    fn those_that_fell_together_do_not_rise_together() {
        let now = start();
        let due = |chance| {
            let mut redial = Redial::new(FIRST, now);
            redial.after(Outcome::Failed, now, chance);
            redial.is_needed();
            redial.due() - now
        };
        assert_eq!([due(0), due(u16::MAX)].map(tenths), [40, 60]);
        assert!(due(20_000) < due(20_010));
    }
}
