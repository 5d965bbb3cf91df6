//! Where a member may be reached, in the order in which that is tried.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Candidates of a member, at most: 12 announced, 2 seen by the server, and sources of its pings.
pub const CANDIDATES_MAX: usize = 32;
/// Of these, sources of pings: a forger who repeats pings from invented sources must not push out
/// the others.
const REFLEXIVE_MAX: usize = 16;
/// Pings to a candidate between two introductions, at most: the rounds send ten, and each ping of
/// the peer from there has one sent back.
const PINGS_MAX: u8 = 64;
/// A candidate is not pinged again sooner.
const PING_GAP: Duration = Duration::from_millis(20);

/// How a candidate is known; RFC 8445 section 5.1.2.2's order, the least preferred first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CandidateKind {
    /// The server sees the member there ("server reflexive").
    Seen,
    /// A valid ping came from there.
    PeerReflexive,
    /// The member announced it as its own interface's.
    Host,
}

/// Where a member may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// How it is known.
    pub kind: CandidateKind,
}

impl Candidate {
    /// RFC 8445 section 5.1.2.1 with its type preferences, IPv6 first (RFC 8421). There is one
    /// local base in each family, so the order of candidates is that of pairs.
    pub(super) fn priority(self) -> u32 {
        let type_preference = match self.kind {
            CandidateKind::Host => 126,
            CandidateKind::PeerReflexive => 110,
            CandidateKind::Seen => 100,
        };
        let local_preference = if self.endpoint.is_ipv6() { 65_535 } else { 65_534 };
        (type_preference << 24) | (local_preference << 8) | 255
    }

    /// Whether a member may have it. A loopback address is its own only where the server sees it
    /// there; a link-local IPv6 address is none without the interface, which no announcement names.
    fn is_usable(self) -> bool {
        let ip = self.endpoint.ip();
        let is_refused = match ip {
            IpAddr::V4(v4) => v4.is_broadcast(),
            IpAddr::V6(v6) => {
                self.kind != CandidateKind::PeerReflexive && v6.segments()[0] & 0xffc0 == 0xfe80
            }
        };
        self.endpoint.port() != 0
            && !ip.is_unspecified()
            && !ip.is_multicast()
            && !is_refused
            && (self.kind != CandidateKind::Host || !ip.is_loopback())
    }
}

/// `::ffff:192.0.2.1` is 192.0.2.1, or one candidate would be two.
pub(super) fn canonical(endpoint: SocketAddr) -> SocketAddr {
    match endpoint.ip() {
        IpAddr::V6(_) if endpoint.ip().to_canonical().is_ipv4() => {
            SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port())
        }
        _ => endpoint,
    }
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) candidate: Candidate,
    pub(super) socket: u16,
    /// When to ping it out of its turn.
    pub(super) trigger: Option<Instant>,
    pinged: Option<Instant>,
    pings: u8,
    added: u64,
}

impl Entry {
    /// Pings it as soon as may be, but `gap` after the last ping.
    pub(super) fn trigger(&mut self, gap: Duration, now: Instant) {
        if self.pings < PINGS_MAX {
            let due = self.pinged.map_or(now, |pinged| now.max(pinged + gap.max(PING_GAP)));
            self.trigger = Some(self.trigger.map_or(due, |trigger| trigger.min(due)));
        }
    }

    /// It may be pinged in its turn.
    pub(super) fn may_be_pinged(&self, now: Instant) -> bool {
        self.pings < PINGS_MAX && self.pinged.is_none_or(|pinged| now >= pinged + PING_GAP)
    }

    /// It is pinged now.
    pub(super) fn pinged(&mut self, now: Instant) {
        self.trigger = None;
        self.pinged = Some(now);
        self.pings = self.pings.saturating_add(1);
    }
}

/// A member's candidates, the best first.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    entries: Vec<Entry>,
    added: u64,
}

impl Candidates {
    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    /// Forgets those of the extra sockets but `kept`.
    pub(super) fn forget_sockets(&mut self, first: u16, kept: Option<u16>) {
        self.entries.retain(|entry| entry.socket < first || Some(entry.socket) == kept);
    }

    /// The candidate through this socket, which is added if there is room and it is usable.
    pub(super) fn add(&mut self, candidate: Candidate, socket: u16) -> Option<&mut Entry> {
        let endpoint = canonical(candidate.endpoint);
        let candidate = Candidate { endpoint, ..candidate };
        let place = self.place(endpoint, socket);
        if let Some(place) = place {
            let known = self.entries[place].candidate.kind;
            // A ping from where the member was expected teaches nothing; what is announced and also
            // seen has no NAT.
            if candidate.kind == CandidateKind::PeerReflexive
                || (known != CandidateKind::PeerReflexive && candidate.kind <= known)
            {
                return self.entries.get_mut(place);
            }
        }
        if !candidate.is_usable() {
            return None;
        }
        let entry = if let Some(place) = place {
            Entry { candidate, ..self.entries.remove(place) }
        } else {
            self.make_room(candidate.kind)?;
            self.added += 1;
            Entry { candidate, socket, trigger: None, pinged: None, pings: 0, added: self.added }
        };
        let rank = candidate.priority();
        let place = self.entries.partition_point(|entry| entry.candidate.priority() >= rank);
        self.entries.insert(place, entry);
        self.entries.get_mut(place)
    }

    /// The last sources of pings count, the first announced endpoints.
    fn make_room(&mut self, kind: CandidateKind) -> Option<()> {
        if kind == CandidateKind::PeerReflexive {
            let reflexive = || {
                self.entries.iter().enumerate().filter(|(_, entry)| entry.candidate.kind == kind)
            };
            if reflexive().count() >= REFLEXIVE_MAX || self.entries.len() >= CANDIDATES_MAX {
                let (oldest, _) = reflexive().min_by_key(|(_, entry)| entry.added)?;
                self.entries.remove(oldest);
            }
        }
        (self.entries.len() < CANDIDATES_MAX).then_some(())
    }

    fn place(&self, endpoint: SocketAddr, socket: u16) -> Option<usize> {
        self.entries
            .iter()
            .position(|entry| entry.candidate.endpoint == endpoint && entry.socket == socket)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    pub(super) fn get_mut(&mut self, place: usize) -> Option<&mut Entry> {
        self.entries.get_mut(place)
    }

    /// The first that is to be pinged out of its turn.
    pub(super) fn triggered(&mut self, now: Instant) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.trigger.is_some_and(|due| due <= now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(endpoint: &str, kind: CandidateKind) -> Candidate {
        Candidate { endpoint: endpoint.parse().unwrap(), kind }
    }

    fn listed(candidates: &Candidates) -> Vec<String> {
        candidates.iter().map(|entry| entry.candidate.endpoint.to_string()).collect()
    }

    #[test]
    fn own_interfaces_come_first_and_ipv6_in_each_kind() {
        use CandidateKind::{Host, PeerReflexive, Seen};
        let mut candidates = Candidates::default();
        for (endpoint, kind) in [
            ("203.0.113.1:5", Seen),
            ("10.0.0.1:5", Host),
            ("203.0.113.9:5", PeerReflexive),
            ("[2001:db8::1]:5", Seen),
            ("10.0.0.2:5", Host),
            ("[2001:db8::2]:5", Host),
            ("[::ffff:203.0.113.1]:5", Seen),
        ] {
            assert!(candidates.add(candidate(endpoint, kind), 0).is_some());
        }
        let expected = [
            "[2001:db8::2]:5",
            "10.0.0.1:5",
            "10.0.0.2:5",
            "203.0.113.9:5",
            "[2001:db8::1]:5",
            "203.0.113.1:5",
        ];
        assert_eq!(listed(&candidates), expected);
        // A host without a NAT is seen at what it announces.
        candidates.add(candidate("203.0.113.1:5", Host), 0);
        assert_eq!(listed(&candidates)[3], "203.0.113.1:5");
        candidates.add(candidate("203.0.113.1:5", Seen), 0);
        assert_eq!(listed(&candidates).len(), 6);
        assert_eq!(candidates.iter().nth(3).unwrap().candidate.kind, Host);
    }

    #[test]
    fn what_no_member_can_have_is_refused() {
        use CandidateKind::{Host, PeerReflexive, Seen};
        let mut candidates = Candidates::default();
        for (endpoint, kind) in [
            ("0.0.0.0:5", Host),
            ("[::]:5", Seen),
            ("203.0.113.1:0", Seen),
            ("224.0.0.1:5", Host),
            ("[ff02::1]:5", Host),
            ("255.255.255.255:5", Host),
            ("127.0.0.1:53", Host),
            ("[::1]:53", Host),
            ("[::ffff:127.0.0.1]:53", Host),
            ("[fe80::1]:5", Host),
        ] {
            assert!(candidates.add(candidate(endpoint, kind), 0).is_none(), "{endpoint}");
        }
        assert!(candidates.add(candidate("127.0.0.1:5", Seen), 0).is_some());
        assert!(candidates.add(candidate("[fe80::1]:5", PeerReflexive), 0).is_some());
    }

    #[test]
    fn the_list_is_bounded_and_the_latest_sources_count() {
        let mut candidates = Candidates::default();
        let kind = CandidateKind::PeerReflexive;
        for port in 1..=100 {
            let source = candidate(&format!("203.0.113.1:{port}"), kind);
            assert!(candidates.add(source, 0).is_some());
        }
        assert_eq!(listed(&candidates).len(), REFLEXIVE_MAX);
        assert!(listed(&candidates).contains(&"203.0.113.1:100".to_owned()));
        for port in 1..=100 {
            candidates.add(candidate(&format!("10.0.0.1:{port}"), CandidateKind::Host), 0);
        }
        assert_eq!(listed(&candidates).len(), CANDIDATES_MAX);
        assert_eq!(listed(&candidates)[0], "10.0.0.1:1");
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // Tests count from whatever instant they start at.
    fn a_candidate_is_pinged_a_limited_number_of_times() {
        let mut now = Instant::now();
        let mut candidates = Candidates::default();
        let source = candidate("203.0.113.1:7", CandidateKind::PeerReflexive);
        let mut pings = 0;
        for _ in 0..1000 {
            now += Duration::from_millis(10);
            candidates.add(source, 0).unwrap().trigger(Duration::ZERO, now);
            if let Some(entry) = candidates.triggered(now) {
                entry.pinged(now);
                assert!(!entry.may_be_pinged(now + Duration::from_millis(19)));
                pings += 1;
            }
        }
        assert_eq!(pings, PINGS_MAX);
    }
}
