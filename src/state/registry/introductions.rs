//! Introductions under way: each is repeated until its receiver acknowledges it.

use crate::state::slots::{Slot, Slots};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// After how long an introduction that nobody acknowledged is repeated, from the first time on.
pub const REPEATS: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_millis(400), Duration::from_millis(800)];

/// The number of an introduction that is not repeated: there was no room for it.
const NO_SLOT: u32 = u32::MAX;

/// One member is told of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Introduction {
    pub(super) number: u64,
    /// Who is told.
    pub(super) to: Slot,
    /// Of whom.
    pub(super) about: Slot,
    /// Over which families it waits for its acknowledgement: IPv4, IPv6.
    pub(super) waits: [bool; 2],
    made: Instant,
    start: Duration,
}

impl Introduction {
    /// How long, from `now`, until the first probe shall be sent; at most 65.535 s.
    pub(super) fn start_ms(&self, now: Instant) -> u16 {
        let passed = now.saturating_duration_since(self.made);
        u16::try_from(self.start.saturating_sub(passed).as_millis()).unwrap_or(u16::MAX)
    }
}

/// Those that are not acknowledged, in a queue for each repeat, oldest first.
#[derive(Debug)]
pub(super) struct Introductions {
    pending_max: usize,
    pending: Slots<Introduction, { REPEATS.len() }>,
    by_pair: HashMap<(Slot, Slot), Slot>,
}

impl Introductions {
    pub(super) fn new(pending_max: usize) -> Introductions {
        Introductions { pending_max, pending: Slots::default(), by_pair: HashMap::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn is_pending(&self, to: Slot, about: Slot) -> bool {
        self.by_pair.contains_key(&(to, about))
    }

    /// Makes one; an earlier one of the pair is void. `random` is nobody's to guess.
    pub(super) fn make(
        &mut self,
        now: Instant,
        (to, about): (Slot, Slot),
        waits: [bool; 2],
        start: Duration,
        random: u32,
    ) -> Introduction {
        self.forget(to, about);
        let made = |slot: u32| Introduction {
            number: u64::from(random) << 32 | u64::from(slot),
            to,
            about,
            waits,
            made: now,
            start,
        };
        if self.pending.len() >= self.pending_max {
            return made(NO_SLOT);
        }
        let slot = self.pending.push(0, made(NO_SLOT));
        self.by_pair.insert((to, about), slot);
        if let Some(pending) = self.pending.get_mut(slot) {
            *pending = made(slot);
        }
        made(slot)
    }

    /// The pending one of that number.
    pub(super) fn get(&self, number: u64) -> Option<Introduction> {
        let slot = u32::try_from(number & u64::from(u32::MAX)).ok()?;
        self.pending.get(slot).copied().filter(|pending| pending.number == number)
    }

    /// The pending one of that number is acknowledged over one family. Returns false if it was
    /// before.
    pub(super) fn acknowledge(&mut self, number: u64, family: usize) -> bool {
        let Some(mut pending) = self.get(number) else { return false };
        if !std::mem::take(&mut pending.waits[family]) {
            return false;
        }
        if pending.waits.contains(&true) {
            let slot = self.by_pair.get(&(pending.to, pending.about));
            if let Some(found) = slot.and_then(|slot| self.pending.get_mut(*slot)) {
                *found = pending;
            }
        } else {
            self.forget(pending.to, pending.about);
        }
        true
    }

    /// The pair's is acknowledged, or void.
    pub(super) fn forget(&mut self, to: Slot, about: Slot) {
        if let Some(slot) = self.by_pair.remove(&(to, about)) {
            self.pending.remove(slot);
        }
    }

    /// The next one that is to be repeated at `now`; it has moved on in the schedule.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<Introduction> {
        for (queue, after) in REPEATS.into_iter().enumerate() {
            let Some((slot, pending)) = self.pending.front(queue) else { continue };
            let pending = *pending;
            if now.saturating_duration_since(pending.made) < after {
                continue;
            }
            if queue + 1 < REPEATS.len() {
                self.pending.move_to_back(slot, queue + 1);
            } else {
                // Whoever has heard none of four is not there.
                self.forget(pending.to, pending.about);
            }
            return Some(pending);
        }
        None
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let due = |(queue, after): (usize, Duration)| {
            self.pending.front(queue)?.1.made.checked_add(after)
        };
        REPEATS.into_iter().enumerate().filter_map(due).min()
    }
}
