//! Datagrams of a session that has no connection: the freshest, as nobody wants stale ones.

use super::batch::STALE_AFTER;
use std::collections::VecDeque;
use std::time::Instant;

/// Bytes that wait, besides the limit of datagrams.
const LEN_MAX: usize = 1 << 20;

/// What waits for a session's next connection. Takes no memory while nothing does.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    waiting: VecDeque<(Instant, Vec<u8>)>,
    len: usize,
}

impl Backlog {
    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Datagrams that wait.
    pub(super) fn datagrams(&self) -> usize {
        self.waiting.len()
    }

    /// Adds a datagram. The oldest go until there are at most `datagrams_max`; returns how many went.
    pub(super) fn push(&mut self, datagram: &[u8], now: Instant, datagrams_max: usize) -> usize {
        self.waiting.push_back((now, datagram.to_vec()));
        self.len += datagram.len();
        let before = self.waiting.len();
        while self.waiting.len() > datagrams_max || self.len > LEN_MAX {
            let Some((_, oldest)) = self.waiting.pop_front() else {
                break;
            };
            self.len -= oldest.len();
        }
        before - self.waiting.len()
    }

    /// Empties it. Gives those that are not stale to `each`, oldest first, with the time when they
    /// came; returns how many were stale.
    pub(super) fn take(&mut self, now: Instant, mut each: impl FnMut(Instant, &[u8])) -> usize {
        let mut stale = 0;
        for (came, datagram) in std::mem::take(self).waiting {
            if now.saturating_duration_since(came) >= STALE_AFTER {
                stale += 1;
            } else {
                each(came, &datagram);
            }
        }
        stale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock;
    use std::time::Duration;

    fn take(backlog: &mut Backlog, now: Instant) -> (Vec<Vec<u8>>, usize) {
        let mut fresh = Vec::new();
        let stale = backlog.take(now, |_, datagram| fresh.push(datagram.to_vec()));
        (fresh, stale)
    }

    #[test]
    fn the_oldest_go_first_and_stale_ones_never() {
        let now = clock::now();
        let mut backlog = Backlog::default();
        for number in 0..5 {
            let dropped = backlog.push(&[number], now, 3);
            assert_eq!(dropped, usize::from(number >= 3));
        }
        assert_eq!(backlog.datagrams(), 3);
        let later = now + Duration::from_millis(999);
        assert_eq!(backlog.push(&[5], later, 3), 1);
        assert_eq!(take(&mut backlog, now + STALE_AFTER), (vec![vec![5]], 2));
        assert!(backlog.is_empty());
        assert_eq!(take(&mut backlog, now), (vec![], 0));
    }

    #[test]
    fn bytes_are_limited_too() {
        let now = clock::now();
        let mut backlog = Backlog::default();
        let large = vec![7; 65_000];
        let dropped: usize = (0..100).map(|_| backlog.push(&large, now, 1000)).sum();
        assert_eq!(backlog.datagrams(), LEN_MAX / 65_000);
        assert_eq!(dropped, 100 - LEN_MAX / 65_000);
        assert_eq!(take(&mut backlog, now).0.len(), LEN_MAX / 65_000);
        assert_eq!(backlog.len, 0);
    }
}
