//! Whether the remote of a tunnel is there.

use std::time::{Duration, Instant};

/// A remote is missing when nothing of it has come for so many keepalives: two may be lost.
const KEEPALIVES_MISSED_MAX: u32 = 3;

/// Without a keepalive, a remote that was heard so recently counts as there: half a minute is how
/// long the kernel itself trusts a neighbour without proof, at most (RFC 4861 §10).
const RECENT: Duration = Duration::from_secs(45);

/// What is known of a remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It has been silent, and nobody has asked, or not for long enough yet.
    Unknown,
    /// Something came of it lately.
    Up,
    /// It was asked several times, and nothing came.
    Down,
}

impl Life {
    /// In one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Life::Unknown => "unknown",
            Life::Up => "up",
            Life::Down => "down",
        }
    }
}

/// What is known of a remote that was last heard at `heard`, and has been asked every `keepalive`
/// since `asked`, if at all.
pub fn judge(
    now: Instant,
    heard: Option<Instant>,
    asked: Instant,
    keepalive: Option<Duration>,
) -> Life {
    let patience = keepalive.map_or(RECENT, |interval| interval * KEEPALIVES_MISSED_MAX);
    let silent = |since: Instant| now.saturating_duration_since(since) >= patience;
    if heard.is_some_and(|heard| !silent(heard)) {
        Life::Up
    } else if keepalive.is_some() && silent(asked) {
        Life::Down
    } else {
        Life::Unknown
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
    fn a_remote_is_missing_after_three_keepalives() {
        let start = base();
        let at = |seconds| start + Duration::from_secs(seconds);
        let keepalive = Some(Duration::from_secs(15));
        let life = |now, heard| judge(now, heard, start, keepalive);
        assert_eq!(life(at(0), None), Life::Unknown);
        assert_eq!(life(at(44), None), Life::Unknown);
        assert_eq!(life(at(45), None), Life::Down);
        assert_eq!(life(at(45), Some(at(1))), Life::Up);
        assert_eq!(life(at(99), Some(at(55))), Life::Up);
        assert_eq!(life(at(100), Some(at(55))), Life::Down);
        // Heard before, asked only lately: it has had no chance yet.
        assert_eq!(judge(at(100), Some(at(1)), at(90), keepalive), Life::Unknown);
    }

    #[test]
    fn who_is_not_asked_is_never_missing() {
        let start = base();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(judge(at(9999), None, start, None), Life::Unknown);
        assert_eq!(judge(at(44), Some(start), start, None), Life::Up);
        assert_eq!(judge(at(45), Some(start), start, None), Life::Unknown);
    }
}
