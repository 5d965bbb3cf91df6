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

#[cfg(test)]
mod tests {
    use super::*;

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
