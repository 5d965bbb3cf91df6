//! Calls of late: two members are not introduced again and again.

use crate::wire::rendezvous::{MemberId, RoomId};
use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

/// A pair is introduced once in so long for being called: an attempt to reach each other takes
/// longer.
pub const CALL_EVERY: Duration = Duration::from_secs(2);

type Pair = (RoomId, MemberId, MemberId);

/// Pairs that have been called in the last [`CALL_EVERY`].
#[derive(Debug)]
pub(super) struct Calls {
    pairs_max: usize,
    pairs: HashSet<Pair>,
    /// The oldest first.
    order: VecDeque<(Instant, Pair)>,
}

impl Calls {
    /// At most so many at once; further ones are refused.
    pub(super) fn new(pairs_max: usize) -> Calls {
        Calls { pairs_max, pairs: HashSet::new(), order: VecDeque::new() }
    }

    /// Counts a call between the two, or returns false if there was one lately.
    pub(super) fn admit(
        &mut self,
        now: Instant,
        room: RoomId,
        one: MemberId,
        other: MemberId,
    ) -> bool {
        while let Some((at, pair)) = self.order.front() {
            if now.saturating_duration_since(*at) < CALL_EVERY {
                break;
            }
            self.pairs.remove(pair);
            self.order.pop_front();
        }
        let pair = (room, one.min(other), one.max(other));
        if self.order.len() >= self.pairs_max || !self.pairs.insert(pair) {
            return false;
        }
        self.order.push_back((now, pair));
        true
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

    #[test]
    fn a_pair_is_called_once_in_two_seconds_by_whichever_of_them() {
        let now = base();
        let mut calls = Calls::new(2);
        let (room, [a, b, c]) = (RoomId([0; 16]), [1, 2, 3].map(|id| MemberId([id; 8])));
        assert!(calls.admit(now, room, a, b));
        assert!(!calls.admit(now, room, b, a));
        assert!(calls.admit(now, RoomId([1; 16]), a, b), "another room");
        assert!(!calls.admit(now, room, a, c), "full");
        let later = now + CALL_EVERY;
        assert!(!calls.admit(later.checked_sub(Duration::from_millis(1)).unwrap(), room, a, b));
        assert!(calls.admit(later, room, a, c) && calls.admit(later, room, a, b));
        assert_eq!((calls.pairs.len(), calls.order.len()), (2, 2));
    }
}
