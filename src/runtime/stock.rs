//! Large things that threads borrow while they work: what was given back last is taken first, so
//! that it is still warm in the cache, and idle threads hold none.

use std::sync::{Mutex, PoisonError};

/// Things that nobody uses at the moment, at most `kept_max`; more are dropped.
///
/// The lock is meant to be taken once per wake of a thread, not once per datagram.
#[derive(Debug)]
pub struct Stock<T> {
    kept: Mutex<Vec<T>>,
    kept_max: usize,
}

impl<T> Stock<T> {
    /// An empty stock.
    pub fn new(kept_max: usize) -> Stock<T> {
        Stock { kept: Mutex::default(), kept_max }
    }

    /// The thing given back last, or a new one.
    pub fn take(&self, make: impl FnOnce() -> T) -> T {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(make)
    }

    /// Gives a thing back.
    pub fn give_back(&self, thing: T) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < self.kept_max {
            kept.push(thing);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_given_back_is_the_first_taken_and_too_many_are_dropped() {
        let stock = Stock::new(2);
        assert_eq!(stock.take(|| 1), 1);
        for thing in [5, 6, 7] {
            stock.give_back(thing);
        }
        assert_eq!([stock.take(|| 1), stock.take(|| 1), stock.take(|| 1)], [6, 5, 1]);
    }
}
