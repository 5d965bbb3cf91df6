//! The one place that asks for the time; below the roles, time is an argument.

use std::time::{Duration, Instant};

/// The monotonic clock.
#[allow(clippy::disallowed_methods)] // This is the place.
pub fn now() -> Instant {
    Instant::now()
}

/// The time until `deadline`, zero when it has passed.
pub fn until(deadline: Instant, now: Instant) -> Duration {
    deadline.saturating_duration_since(now)
}
