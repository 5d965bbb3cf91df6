//! Which session goes when another one needs its place.

use std::time::Instant;

/// A session, as the choice sees it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Sessions that began later have higher ones.
    pub serial: u64,
    /// While it has no connection: since when.
    pub deserted_since: Option<Instant>,
    /// Whether it has ever carried a datagram.
    pub has_carried: bool,
}

/// The session that is missed least: one that was deserted longest ago, best one that has never
/// carried anything; else the oldest that has never carried anything. `None` when all are in use.
pub fn victim(sessions: impl Iterator<Item = Candidate>) -> Option<u64> {
    sessions
        .filter(|session| session.deserted_since.is_some() || !session.has_carried)
        // None, a session with connections, is below every instant.
        .min_by_key(|session| {
            let since = session.deserted_since;
            (since.is_none(), session.has_carried, since, session.serial)
        })
        .map(|session| session.serial)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn deserted_ones_go_first_then_those_that_never_carried_anything() {
        #[allow(clippy::disallowed_methods)] // Tests count from whatever instant they start at.
        let now = Instant::now();
        let session = |serial, since: Option<u64>, has_carried| Candidate {
            serial,
            deserted_since: since.map(|since| now + Duration::from_secs(since)),
            has_carried,
        };
        let mut sessions = vec![
            session(0, None, true),
            session(1, None, false),
            session(2, None, false),
            session(3, Some(9), true),
            session(4, Some(8), true),
            session(5, Some(10), false),
        ];
        let mut gone = Vec::new();
        while let Some(serial) = victim(sessions.iter().copied()) {
            gone.push(serial);
            sessions.retain(|session| session.serial != serial);
        }
        assert_eq!(gone, [5, 4, 3, 1, 2], "the one that is in use stays");
    }
}
