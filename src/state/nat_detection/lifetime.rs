//! How long a mapping lives without traffic: RFC 5780 section 4.6.
//!
//! The main socket makes a mapping and is silent; then the other socket asks the server to answer
//! to the main one's public port (RESPONSE-PORT). If the answer comes, the mapping lives. Waits
//! double until one is too long, then halve the difference.

use std::time::{Duration, Instant};

/// Between what to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LifetimeBounds {
    /// The first wait.
    pub min: Duration,
    /// No wait is longer.
    pub max: Duration,
    /// The difference that is small enough; an eighth of the lifetime always is.
    pub resolution: Duration,
}

impl Default for LifetimeBounds {
    /// 1 s to 5 min, which RFC 4787 (REQ-5) recommends, to a second or an eighth: half an hour at
    /// most, two and a half minutes for the 30 s that many NATs have.
    fn default() -> LifetimeBounds {
        LifetimeBounds {
            min: Duration::from_secs(1),
            max: Duration::from_secs(300),
            resolution: Duration::from_secs(1),
        }
    }
}

/// How long a mapping lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Nobody asked.
    NotAsked,
    /// The server has no RESPONSE-PORT, or was lost on the way.
    NotKnown,
    /// It was there after the first time and gone after the second.
    Between(Duration, Duration),
    /// It was there after that time, the longest that was tried.
    AtLeast(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// Make a mapping.
    Refresh,
    /// Ask for an answer to this port.
    Alive(u16),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Refresh,
    Refreshing,
    Wait { port: u16, until: Instant },
    Asking,
    Over(Lifetime),
}

/// The trials, one after the other.
#[derive(Debug)]
pub(super) struct Trial {
    bounds: LifetimeBounds,
    /// It has lived so long.
    lived: Duration,
    /// And was gone after so long.
    gone: Option<Duration>,
    wait: Duration,
    step: Step,
}

impl Trial {
    pub(super) fn new(bounds: LifetimeBounds) -> Trial {
        let wait = bounds.min.min(bounds.max);
        Trial { bounds, lived: Duration::ZERO, gone: None, wait, step: Step::Refresh }
    }

    /// What to ask now.
    pub(super) fn ask(&mut self, now: Instant) -> Option<Ask> {
        match self.step {
            Step::Refresh => {
                self.step = Step::Refreshing;
                Some(Ask::Refresh)
            }
            Step::Wait { port, until } if until <= now => {
                self.step = Step::Asking;
                Some(Ask::Alive(port))
            }
            _ => None,
        }
    }

    /// The end of the wait; `None` while an answer is waited for.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.step {
            Step::Wait { until, .. } => Some(until),
            _ => None,
        }
    }

    /// The mapping has this port and was used last now.
    pub(super) fn refreshed(&mut self, port: u16, now: Instant) {
        self.step = Step::Wait { port, until: now + self.wait };
    }

    /// The mapping lived, or not.
    pub(super) fn ended(&mut self, lived: bool) {
        if lived {
            self.lived = self.wait;
        } else {
            self.gone = Some(self.wait);
        }
        self.step = match self.gone {
            None if self.wait >= self.bounds.max => Step::Over(Lifetime::AtLeast(self.lived)),
            None => {
                self.wait = (self.wait * 2).min(self.bounds.max);
                Step::Refresh
            }
            Some(gone)
                if gone.saturating_sub(self.lived)
                    <= self.bounds.resolution.max(self.lived / 8) =>
            {
                Step::Over(Lifetime::Between(self.lived, gone))
            }
            Some(gone) => {
                self.wait = self.lived + gone.saturating_sub(self.lived) / 2;
                Step::Refresh
            }
        };
    }

    /// The server cannot do it.
    pub(super) fn is_impossible(&mut self) {
        self.step = Step::Over(Lifetime::NotKnown);
    }

    /// The result; `None` while it goes on.
    pub(super) fn result(&self) -> Option<Lifetime> {
        match self.step {
            Step::Over(lifetime) => Some(lifetime),
            _ => None,
        }
    }
}
