//! Commands that count once: each has a time and a nonce under its proof, and is remembered for as
//! long as its time is near enough to be believed.

use std::collections::BTreeSet;
use std::time::Duration;

/// A random number of a command.
pub type Nonce = [u8; 16];

/// Why a command with a good proof does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// Its time is too far from ours, or not behind the last time that counted before a restart.
    Time,
    /// It has counted already.
    Replayed,
    /// Too many are remembered.
    Full,
}

/// The commands that have counted lately. Times are milliseconds since 1970, as both sides' clocks
/// have them.
#[derive(Debug)]
pub struct ReplayWindow {
    width_ms: u64,
    counted_max: usize,
    /// Nothing up to this time counts.
    floor_ms: Option<u64>,
    counted: BTreeSet<(u64, Nonce)>,
    newest_ms: u64,
}

impl ReplayWindow {
    /// Clocks may differ by `width`; `counted_max` commands are remembered, and more within twice
    /// that time do not count. Commands up to `floor_ms` count as replays: what counted before a
    /// restart is not remembered.
    pub fn new(width: Duration, counted_max: usize, floor_ms: Option<u64>) -> ReplayWindow {
        ReplayWindow {
            width_ms: u64::try_from(width.as_millis()).unwrap_or(u64::MAX),
            counted_max,
            floor_ms,
            counted: BTreeSet::new(),
            newest_ms: floor_ms.unwrap_or(0),
        }
    }

    /// Counts a command with a good proof, or says why it does not count. `now_ms` is our clock.
    pub fn count(&mut self, now_ms: u64, time_ms: u64, nonce: Nonce) -> Result<(), Stale> {
        let oldest = now_ms.saturating_sub(self.width_ms);
        // What is older is refused for its time; what has counted of it, even if our clock goes back.
        let near = self.counted.split_off(&(oldest, [0; 16]));
        let forgotten = std::mem::replace(&mut self.counted, near);
        self.floor_ms = self.floor_ms.max(forgotten.last().map(|(time_ms, _)| *time_ms));
        let believable = (oldest..=now_ms.saturating_add(self.width_ms)).contains(&time_ms);
        if !believable || self.floor_ms.is_some_and(|floor| time_ms <= floor) {
            return Err(Stale::Time);
        }
        if self.counted.contains(&(time_ms, nonce)) {
            return Err(Stale::Replayed);
        }
        if self.counted.len() >= self.counted_max {
            return Err(Stale::Full);
        }
        self.counted.insert((time_ms, nonce));
        self.newest_ms = self.newest_ms.max(time_ms);
        Ok(())
    }

    /// The latest time of a command that counted: the floor of the next run.
    pub fn newest_ms(&self) -> u64 {
        self.newest_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const WIDTH: Duration = Duration::from_secs(60);

    #[test]
    fn a_command_counts_once_and_near_its_time() {
        let now = 1_000_000;
        let mut window = ReplayWindow::new(WIDTH, 10, None);
        assert_eq!(window.count(now, now, [1; 16]), Ok(()));
        // The same nonce at another time is another command.
        assert_eq!(window.count(now, now + 1, [1; 16]), Ok(()));
        assert_eq!(window.count(now, now - 60_000, [2; 16]), Ok(()));
        assert_eq!(window.count(now, now - 60_001, [3; 16]), Err(Stale::Time));
        assert_eq!(window.count(now, now + 60_000, [4; 16]), Ok(()));
        assert_eq!(window.count(now, now + 60_001, [4; 16]), Err(Stale::Time));
        assert_eq!(window.newest_ms(), now + 60_000);
        assert_eq!(window.count(now + 60_000, now, [1; 16]), Err(Stale::Replayed));
        assert_eq!(window.count(now + 60_001, now, [1; 16]), Err(Stale::Time));
        // Nor when our clock goes back.
        assert_eq!(window.count(now, now, [1; 16]), Err(Stale::Time));
    }

    #[test]
    fn what_counted_before_a_restart_does_not_count_again() {
        let mut window = ReplayWindow::new(WIDTH, 10, None);
        assert_eq!(window.count(100_000, 130_000, [1; 16]), Ok(()));
        let mut window = ReplayWindow::new(WIDTH, 10, Some(window.newest_ms()));
        assert_eq!(window.count(101_000, 130_000, [1; 16]), Err(Stale::Time));
        assert_eq!(window.count(101_000, 130_001, [1; 16]), Ok(()));
        // Nothing has counted since: the floor stays.
        assert_eq!(ReplayWindow::new(WIDTH, 10, Some(7)).newest_ms(), 7);
    }

    #[test]
    fn too_many_are_refused_until_some_are_old() {
        let mut window = ReplayWindow::new(WIDTH, 2, None);
        assert_eq!(window.count(100_000, 100_000, [1; 16]), Ok(()));
        assert_eq!(window.count(100_000, 100_001, [2; 16]), Ok(()));
        assert_eq!(window.count(100_000, 100_000, [3; 16]), Err(Stale::Full));
        assert_eq!(window.count(100_000, 100_000, [1; 16]), Err(Stale::Replayed));
        assert_eq!(window.count(160_001, 160_000, [3; 16]), Ok(()));
    }

    proptest! {
        /// Against a memory that forgets nothing: no command counts twice, whatever the clocks do.
        #[test]
        fn nothing_counts_twice(
            steps in proptest::collection::vec((-90_000_i64..90_000, 0_u64..200_000, 0..4_u8), 0..300)
        ) {
            let mut window = ReplayWindow::new(WIDTH, 1000, None);
            let mut counted = HashSet::new();
            let mut now: u64 = 1_000_000;
            for (pass, time, nonce) in steps {
                now = now.saturating_add_signed(pass);
                let time = (now + time).saturating_sub(100_000) / 10_000 * 10_000;
                if window.count(now, time, [nonce; 16]).is_ok() {
                    prop_assert!(counted.insert((time, nonce)));
                }
            }
        }
    }
}
