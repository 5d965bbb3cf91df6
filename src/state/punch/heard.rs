//! What a [`Punch`] sends and what it makes of what is heard.

use super::birthday::Side;
use super::candidates::{Candidate, CandidateKind, canonical};
use super::interface::{Action, EXTRA_SOCKET_FIRST, IPV4_SOCKET, Path};
use super::{Current, OUTSTANDING_MAX, Outstanding, PING_GAP, Punch, SETTLING};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Pings whose numbers are remembered, against repetition from elsewhere.
const HEARD_MAX: usize = 64;
/// Another way is looked at when the path has been silent for so long: on a path in use the
/// member's data or answers come all the time.
const QUIET: Duration = Duration::from_secs(1);
/// Between two pings to a source of data that is not the path.
const DATA_PING_GAP: Duration = Duration::from_millis(500);

impl Punch {
    /// A ping whose code is right came from the member: whether to answer it, with a pong to where
    /// it came from, through the same socket.
    ///
    /// It is pinged back at once, so poll after this. A ping that came before from elsewhere is a
    /// forger's copy: its answer would go to whom the forger chooses.
    pub fn ping_heard(&mut self, tx: u64, source: SocketAddr, socket: u16, now: Instant) -> bool {
        let source = canonical(source);
        let is_repeated = if let Some(first) = self.heard.iter().find(|heard| heard.0 == tx) {
            if (first.1, first.2) != (socket, source) {
                return false;
            }
            true
        } else {
            if self.heard.len() >= HEARD_MAX {
                self.heard.pop_front();
            }
            self.heard.push_back((tx, socket, source));
            false
        };
        let is_wanted = if let Some(current) = &mut self.current {
            // A copy of a ping shows no life.
            if (current.path.socket, current.path.endpoint) == (socket, source) && !is_repeated {
                current.heard = now;
            }
            // While nothing is found the path itself is in doubt.
            match &self.probing {
                Some(probing) => probing.found.is_none(),
                None => now >= current.heard + QUIET,
            }
        } else {
            true
        };
        let candidate = Candidate { endpoint: source, kind: CandidateKind::PeerReflexive };
        let priority = self.current.as_ref().map(|current| current.priority);
        let settles = self.probing.is_some();
        if let Some(entry) = self.candidates.add(candidate, socket) {
            let is_better = settles && priority.is_some_and(|old| entry.candidate.priority() > old);
            if is_wanted || is_better {
                entry.trigger(Duration::ZERO, now);
            }
        }
        true
    }

    /// Whether a ping of the member came from there lately, or its path leads there.
    pub fn has_heard(&self, source: SocketAddr) -> bool {
        let source = canonical(source);
        self.path().is_some_and(|path| path.endpoint == source)
            || self.heard.iter().any(|(_, _, from)| *from == source)
    }

    /// A pong whose code is right came from the member; `seen` is what it says. False if it answers
    /// nothing.
    pub fn pong_heard(
        &mut self,
        tx: u64,
        source: SocketAddr,
        socket: u16,
        seen: SocketAddr,
        now: Instant,
    ) -> bool {
        let source = canonical(source);
        let Some(place) = self.outstanding.iter().position(|ping| ping.tx == tx) else {
            let is_answer = self
                .birthday
                .as_ref()
                .is_some_and(|birthday| birthday.is_answer(tx, socket, source));
            if is_answer {
                self.ping_source(source, socket, Duration::ZERO, now);
            }
            return is_answer;
        };
        let Some(ping) = self.outstanding.remove(place) else {
            return false;
        };
        if (ping.socket, ping.to) != (socket, source) {
            // The member's NAT has sent it out elsewhere: perhaps that is a way in.
            self.ping_source(source, socket, Duration::ZERO, now);
            return true;
        }
        let candidate = Candidate { endpoint: source, kind: CandidateKind::PeerReflexive };
        let known =
            self.candidates.add(candidate, socket).map_or(candidate, |entry| entry.candidate);
        let rtt = Some(now.saturating_duration_since(ping.sent));
        let path =
            Path { socket, endpoint: source, kind: known.kind, rtt, seen: Some(canonical(seen)) };
        self.works(path, known.priority(), now);
        true
    }

    /// Data that decrypts, so it is the member's and no copy, came from there.
    ///
    /// The side that follows moves there, as WireGuard does; the side that leads pings first. So
    /// two paths that both work become one, the leading side's.
    pub fn data_heard(&mut self, source: SocketAddr, socket: u16, now: Instant) {
        let source = canonical(source);
        if let Some(current) = &mut self.current {
            if (current.path.socket, current.path.endpoint) == (socket, source) {
                current.heard = now;
                return;
            }
        }
        if self.config.leads {
            self.ping_source(source, socket, DATA_PING_GAP, now);
            return;
        }
        let candidate = Candidate { endpoint: source, kind: CandidateKind::PeerReflexive };
        let known =
            self.candidates.add(candidate, socket).map_or(candidate, |entry| entry.candidate);
        let path = Path { socket, endpoint: source, kind: known.kind, rtt: None, seen: None };
        self.take(path, known.priority(), now);
        self.ping_source(source, socket, Duration::ZERO, now);
    }

    fn ping_source(&mut self, source: SocketAddr, socket: u16, gap: Duration, now: Instant) {
        let candidate = Candidate { endpoint: source, kind: CandidateKind::PeerReflexive };
        if let Some(entry) = self.candidates.add(candidate, socket) {
            entry.trigger(gap, now);
        }
    }

    /// A ping that went there was answered from there.
    fn works(&mut self, path: Path, priority: u32, now: Instant) {
        let found = self.probing.as_ref().map(|probing| probing.found);
        if let Some(current) = &mut self.current {
            let old = current.path;
            if (old.socket, old.endpoint) == (path.socket, path.endpoint) {
                current.heard = now;
                current.path.rtt = path.rtt;
                current.path.seen = path.seen;
                if found == Some(None) {
                    self.found(now);
                }
                return;
            }
            match found {
                Some(None) => {}
                Some(Some(found)) => {
                    if priority <= current.priority || now >= found + SETTLING {
                        return;
                    }
                }
                None => {
                    // Two ways answer, or the member has moved: which one answers first?
                    if now >= current.heard + QUIET {
                        self.probe(now);
                    }
                    return;
                }
            }
        }
        self.take(path, priority, now);
    }

    fn take(&mut self, path: Path, priority: u32, now: Instant) {
        let keepalive = now + self.config.keepalive;
        self.current = Some(Current { path, priority, heard: now, keepalive });
        self.actions.push_back(Action::Path(path));
        self.found(now);
    }

    fn found(&mut self, now: Instant) {
        if let Some(probing) = &mut self.probing {
            probing.birthday = None;
            probing.found = probing.found.or(Some(now));
        }
        self.waits_for_turn = None;
        self.call = None;
        self.end_birthday(now);
    }

    /// The next ping that is due.
    pub(super) fn ping(&mut self, now: Instant) -> Option<Action> {
        if let Some(entry) = self.candidates.triggered(now) {
            entry.pinged(now);
            let (socket, to) = (entry.socket, entry.candidate.endpoint);
            if let Some(probing) = &mut self.probing {
                probing.next = probing.next.max(now + PING_GAP);
            }
            return Some(self.ping_to(socket, to, now));
        }
        if let Some(current) = &mut self.current {
            if self.probing.is_none() && current.keepalive <= now {
                current.keepalive = now + self.config.keepalive;
                let Path { socket, endpoint, .. } = current.path;
                return Some(self.ping_to(socket, endpoint, now));
            }
        }
        if let Some((socket, to)) = self.next_of_round(now) {
            return Some(self.ping_to(socket, to, now));
        }
        let birthday = self.birthday.as_mut()?;
        let (socket, to) = birthday.poll(now)?;
        let socket = match birthday.side {
            Side::Opens => EXTRA_SOCKET_FIRST + socket,
            Side::Scans => IPV4_SOCKET,
        };
        Some(Action::Ping { socket, to, tx: birthday.tx(socket, to) })
    }

    fn ping_to(&mut self, socket: u16, to: SocketAddr, now: Instant) -> Action {
        if self.outstanding.len() >= OUTSTANDING_MAX {
            self.outstanding.pop_front();
        }
        let tx = self.random.next_u64();
        self.outstanding.push_back(Outstanding { tx, socket, to, sent: now });
        Action::Ping { socket, to, tx }
    }

    /// The next candidate in its turn, when that has come.
    fn next_of_round(&mut self, now: Instant) -> Option<(u16, SocketAddr)> {
        let probing = self.probing.as_mut()?;
        let better_than = match (&self.current, probing.found) {
            (Some(current), Some(_)) => current.priority,
            _ => 0,
        };
        while probing.next <= now {
            if probing.place == 0 {
                probing.round = now;
                probing.interval = probing.backoff.failed();
            }
            let Some(entry) = self.candidates.get_mut(probing.place) else {
                probing.place = 0;
                probing.next = (probing.round + probing.interval).max(probing.next);
                // A round without a candidate would go round for ever.
                if probing.next <= now {
                    probing.next = now + PING_GAP;
                }
                continue;
            };
            probing.place += 1;
            let has_socket = self.config.families.has_socket(entry.socket);
            let is_wanted = entry.candidate.priority() > better_than;
            if has_socket && is_wanted && entry.may_be_pinged(now) {
                entry.pinged(now);
                probing.next = now + PING_GAP;
                return Some((entry.socket, entry.candidate.endpoint));
            }
        }
        None
    }
}
