//! The one place that asks for the time; below the roles, time is an argument.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The monotonic clock.
#[allow(clippy::disallowed_methods)] // This is the place.
pub fn now() -> Instant {
    Instant::now()
}

/// The time of day: milliseconds since 1970, as the operator or a time server has set it. For what
/// other machines or the next run compare; it may jump.
pub fn milliseconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The time until `deadline`, zero when it has passed.
pub fn until(deadline: Instant, now: Instant) -> Duration {
    deadline.saturating_duration_since(now)
}
