//! Waiting longer after each failure.

use std::time::Duration;

/// Delays that double from `first` to `max`.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// The first delay and the longest.
    pub fn new(first: Duration, max: Duration) -> Backoff {
        Backoff { first, max, next: first }
    }

    /// The delay after one more failure.
    pub fn failed(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.max);
        delay
    }

    /// A success: the next failure waits for the first delay again.
    pub fn succeeded(&mut self) {
        self.next = self.first;
    }
}

/// `delay` and up to a fifth more or less, as `chance` falls: from 0, a fifth less, to its maximum,
/// a fifth more. Those who wait for the same thing thus do not all come at once.
pub fn jittered(delay: Duration, chance: u16) -> Duration {
    let fifth = delay / 5;
    fifth * 4 + fifth * 2 / u32::from(u16::MAX) * u32::from(chance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_moves_a_delay_by_a_fifth() {
        let second = Duration::from_secs(1);
        let delays = [0, 1 << 15, u16::MAX].map(|chance| jittered(second, chance).as_micros());
        assert!(delays[0] == 800_000, "{delays:?}");
        assert!((999_000..=1_001_000).contains(&delays[1]), "{delays:?}");
        assert!((1_199_000..=1_200_000).contains(&delays[2]), "{delays:?}");
        assert_eq!(jittered(Duration::ZERO, 7), Duration::ZERO);
    }

    #[test]
    fn doubles_up_to_the_longest_and_starts_anew() {
        let milliseconds = |count| Duration::from_millis(count);
        let mut backoff = Backoff::new(milliseconds(50), milliseconds(1000));
        let delays: Vec<_> = (0..7).map(|_| backoff.failed()).collect();
        assert_eq!(delays, [50, 100, 200, 400, 800, 1000, 1000].map(milliseconds));
        backoff.succeeded();
        assert_eq!(backoff.failed(), milliseconds(50));
    }
}
