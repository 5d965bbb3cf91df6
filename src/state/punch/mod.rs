//! Finding a direct path to one other member, and keeping it: `docs/protocols/peer.md`.
//!
//! A [`Punch`] says which pings to send and when, through which socket, and is told what is heard.
//! It knows no bytes, keys or sockets; sockets have numbers: 0 is the IPv4 socket, 1 the IPv6
//! socket, and from [`EXTRA_SOCKET_FIRST`] on those that birthday probing opens.
//!
//! ```text
//! introduced -> probing -> path found -> settles for a second -> kept: a ping each 15 s
//!                  |                                                |
//!                  | 2 s: over the relay meanwhile                  | 45 s of silence: call, probe anew
//!                  | 10 s (birthday probing: up to 23 s)            v
//!                  +-> given up: call again each minute -> introduced ...
//! ```

pub mod birthday;
pub mod candidates;
mod heard;
pub mod interface;
pub mod prospects;

use birthday::{Birthday, Side};
use candidates::{Candidate, CandidateKind, Candidates, canonical};
use interface::{Action, Config, EXTRA_SOCKET_FIRST, IPV4_SOCKET, IPV6_SOCKET, Introduction, Path};
use prospects::{Prospects, prospects};

use crate::state::backoff::Backoff;
use crate::state::seeded::Seeded;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// One ping each 20 ms: RFC 8445's Ta lies between 5 and 50 ms (section 14.2).
const PING_GAP: Duration = Duration::from_millis(20);
/// From the start of a round of pings to the next, at first and at last.
const ROUND_FIRST: Duration = Duration::from_millis(100);
const ROUND_LAST: Duration = Duration::from_millis(1_600);
/// How long candidates are pinged.
const PROBING: Duration = Duration::from_secs(10);
/// After so long the relay is used meanwhile: a direct path within one continent needs a tenth.
const RELAY_AFTER: Duration = Duration::from_secs(2);
/// How long a better candidate may take the path from the first.
const SETTLING: Duration = Duration::from_secs(1);
/// How long the extra sockets stay when a path is found: meanwhile the other side may still move to
/// the path of the side that leads.
const SOCKETS_LINGER: Duration = Duration::from_secs(5);
/// Keepalives without an answer after which a path is in doubt.
const SILENT_KEEPALIVES: u32 = 3;
/// A path given up is tried again when both sides have been silent for longer than the 30 s for which
/// a NAT keeps a mapping that saw one direction only, so that a mapping made by the probing that
/// failed is not in the way.
const CALL_AGAIN_LEADING: Duration = Duration::from_secs(60);
/// The side that leads calls; the other does if that one does not.
const CALL_AGAIN_FOLLOWING: Duration = Duration::from_secs(75);
/// With good prospects of a birthday attempt, ordinary probing has this long before.
const BIRTHDAY_AFTER: Duration = Duration::from_secs(1);
/// Between two attempts at one member.
const BIRTHDAY_PAUSE: Duration = Duration::from_secs(30);
/// How often a member that waits for another's attempt to end looks.
const TURN_CHECK: Duration = Duration::from_millis(500);
/// The server holds a start back by half a second at most.
const START_MAX: Duration = Duration::from_secs(1);
/// Pings whose pong may come: at 20 ms each, those of the last 1.3 s.
const OUTSTANDING_MAX: usize = 64;

/// Rounds of pings under way.
#[derive(Debug)]
struct Probing {
    start: Instant,
    /// When the ordinary rounds end; a birthday attempt may last longer.
    end: Instant,
    next: Instant,
    /// When the round began that is under way, and how long it takes at least.
    round: Instant,
    interval: Duration,
    backoff: Backoff,
    /// The place in the list that is next.
    place: usize,
    /// When a pong came.
    found: Option<Instant>,
    given_up_waiting: bool,
    /// When birthday probing begins.
    birthday: Option<(Side, Instant)>,
}

#[derive(Debug)]
struct Current {
    path: Path,
    priority: u32,
    heard: Instant,
    keepalive: Instant,
}

#[derive(Debug)]
struct Outstanding {
    tx: u64,
    socket: u16,
    to: SocketAddr,
    sent: Instant,
}

/// The sockets of birthday probing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExtraSockets {
    Closed,
    Open,
    /// Open until then.
    Closing(Instant),
    /// Closed but for the path's.
    Kept(u16),
}

/// The search for a direct path to one member. See the [module](self).
#[derive(Debug)]
pub struct Punch {
    config: Config,
    prospects: Prospects,
    candidates: Candidates,
    outstanding: VecDeque<Outstanding>,
    /// The numbers of the pings last heard and whence they came.
    heard: VecDeque<(u64, u16, SocketAddr)>,
    actions: VecDeque<Action>,
    random: Seeded,
    probing: Option<Probing>,
    current: Option<Current>,
    birthday: Option<Birthday>,
    birthday_ended: Option<Instant>,
    waits_for_turn: Option<Instant>,
    extra: ExtraSockets,
    call: Option<Instant>,
}

impl Punch {
    /// Of a member that is not introduced yet.
    pub fn new(config: Config) -> Punch {
        Punch {
            config,
            prospects: Prospects::Direct,
            candidates: Candidates::default(),
            outstanding: VecDeque::new(),
            heard: VecDeque::new(),
            actions: VecDeque::new(),
            random: Seeded::new(config.seed),
            probing: None,
            current: None,
            birthday: None,
            birthday_ended: None,
            waits_for_turn: None,
            extra: ExtraSockets::Closed,
            call: None,
        }
    }

    /// The member was introduced, first or again: probes from the start on. A path that there is
    /// stays until another answers first, or none does.
    ///
    /// The server repeats an introduction that is not acknowledged: the caller takes each once.
    pub fn introduce(&mut self, introduction: &Introduction, now: Instant) {
        let kept = self.current.as_ref().map(|current| current.path);
        // Several servers may introduce one member, each with what it sees.
        let is_under_way = |probing: &Probing| now < probing.start + PROBING;
        if !self.probing.as_ref().is_some_and(is_under_way) {
            self.candidates.clear();
        }
        for candidate in &introduction.candidates {
            self.candidates.add(*candidate, socket_for(canonical(candidate.endpoint)));
        }
        if let Some(path) = kept {
            let kind = CandidateKind::PeerReflexive;
            self.candidates.add(Candidate { endpoint: path.endpoint, kind }, path.socket);
        }
        let (mine, theirs) = (introduction.mine, introduction.theirs);
        self.prospects = prospects(mine, theirs);
        let side = match (mine.has_dependent_mapping(), theirs.has_dependent_mapping()) {
            (true, true) => None,
            (true, false) => Some(Side::Opens),
            (false, true) => Some(Side::Scans),
            // The facts are not known, or a NAT has given this one member another port (a plain
            // masquerade): if all else fails.
            (false, false) => Some(if self.config.leads { Side::Scans } else { Side::Opens }),
        };
        let start = introduction.start.clamp(now, now + START_MAX);
        self.probe(start);
        let is_seen = |target: SocketAddr| {
            let seen = |candidate: &Candidate| canonical(candidate.endpoint) == target;
            introduction.candidates.iter().any(seen)
        };
        if !self.birthday.as_ref().is_some_and(|birthday| is_seen(birthday.target)) {
            self.end_birthday(start);
        }
        self.waits_for_turn = None;
        self.call = None;
        let is_fresh = self.birthday.is_none()
            && self
                .birthday_ended
                .is_none_or(|ended| start.saturating_duration_since(ended) >= BIRTHDAY_PAUSE);
        let takes_part = mine.tries_hard
            && theirs.tries_hard
            && self.config.families.has_socket(IPV4_SOCKET)
            && is_fresh;
        if let (Some(probing), Some(side), true) = (&mut self.probing, side, takes_part) {
            let after = match (self.prospects, kept) {
                (Prospects::Direct, _) => PROBING,
                // A path that may be that of an extra socket is given up before others are opened.
                (_, Some(_)) => RELAY_AFTER,
                (_, None) => BIRTHDAY_AFTER,
            };
            probing.birthday = Some((side, start + after));
        }
    }

    /// Whether datagrams can go over the server's relay, as is known now.
    pub fn set_relay(&mut self, relay: bool) {
        self.config.relay = relay;
    }

    /// Asks for an introduction and probes anew: the own address has changed, say.
    pub fn recheck(&mut self, now: Instant) {
        self.actions.push_back(Action::Call);
        self.probe(now);
    }

    /// What to do next; `None` when there is nothing until the [deadline](Self::next_deadline).
    ///
    /// One birthday attempt at a time is enough for a NAT: `may_try_hard` is false while another
    /// member's [`Punch::is_trying_hard`].
    pub fn poll(&mut self, now: Instant, may_try_hard: bool) -> Option<Action> {
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        self.advance(now, may_try_hard);
        self.actions.pop_front().or_else(|| self.ping(now))
    }

    /// When to [`poll`](Self::poll) again, after that has said `None`.
    pub fn next_deadline(&self) -> Option<Instant> {
        let mut deadlines = Vec::new();
        if let ExtraSockets::Closing(close) = self.extra {
            deadlines.push(Some(close));
        }
        deadlines.extend(self.candidates.iter().map(|entry| entry.trigger));
        if let Some(birthday) = &self.birthday {
            deadlines.extend([birthday.deadline(), Some(birthday.end())]);
        }
        if let Some(probing) = &self.probing {
            let birthday = probing.birthday.map(|(_, begin)| begin);
            let end = if self.birthday.is_some() { None } else { Some(probing.end) };
            deadlines.extend(match probing.found {
                Some(found) => [Some(probing.next), Some(found + SETTLING), None],
                None if probing.given_up_waiting => [Some(probing.next), birthday, end],
                None => [Some(probing.next), birthday, Some(probing.start + RELAY_AFTER)],
            });
        } else if let Some(current) = &self.current {
            deadlines.extend([Some(current.keepalive), Some(current.heard + self.silence_max())]);
        } else {
            deadlines.extend([self.call, self.waits_for_turn]);
        }
        deadlines.into_iter().flatten().min()
    }

    /// The path, if there is one.
    pub fn path(&self) -> Option<Path> {
        self.current.as_ref().map(|current| current.path)
    }

    /// What the two NATs' facts promise.
    pub fn prospects(&self) -> Prospects {
        self.prospects
    }

    /// Whether a birthday attempt is under way.
    pub fn is_trying_hard(&self) -> bool {
        self.birthday.is_some()
    }

    fn probe(&mut self, start: Instant) {
        self.probing = Some(Probing {
            start,
            end: start + PROBING,
            next: start,
            round: start,
            interval: Duration::ZERO,
            backoff: Backoff::new(ROUND_FIRST, ROUND_LAST),
            place: 0,
            found: None,
            given_up_waiting: false,
            birthday: None,
        });
        // The path that there is answers first, if it still works.
        if let Some(path) = self.path() {
            let kind = CandidateKind::PeerReflexive;
            let candidate = Candidate { endpoint: path.endpoint, kind };
            if let Some(entry) = self.candidates.add(candidate, path.socket) {
                entry.trigger(Duration::ZERO, start);
            }
        }
    }

    /// What is due, pings apart.
    fn advance(&mut self, now: Instant, may_try_hard: bool) {
        if self.probing.is_some() {
            self.advance_probing(now, may_try_hard);
        } else if let Some(current) = &self.current {
            if now >= current.heard + self.silence_max() {
                self.recheck(now);
            }
        } else if let Some(due) = self.waits_for_turn.filter(|due| *due <= now) {
            // Both sides must begin together.
            if may_try_hard {
                self.waits_for_turn = None;
                self.actions.push_back(Action::Call);
            } else {
                self.waits_for_turn = Some(due.max(now) + TURN_CHECK);
            }
        } else if self.call.is_some_and(|due| due <= now) {
            self.actions.push_back(Action::Call);
            self.call_again(now);
        }
        self.close_sockets(now);
    }

    fn close_sockets(&mut self, now: Instant) {
        let kept = self.path().map(|path| path.socket);
        let kept = kept.filter(|socket| *socket >= EXTRA_SOCKET_FIRST);
        let is_due = match self.extra {
            ExtraSockets::Closed | ExtraSockets::Open => false,
            ExtraSockets::Closing(close) => close <= now,
            ExtraSockets::Kept(socket) => kept != Some(socket),
        };
        if is_due {
            self.extra = kept.map_or(ExtraSockets::Closed, ExtraSockets::Kept);
            self.candidates.forget_sockets(EXTRA_SOCKET_FIRST, kept);
            self.actions.push_back(Action::Close(kept));
        }
    }

    fn advance_probing(&mut self, now: Instant, may_try_hard: bool) {
        let Some(probing) = &mut self.probing else {
            return;
        };
        if let Some(found) = probing.found {
            if now >= found + SETTLING {
                self.probing = None;
            }
            return;
        }
        if !probing.given_up_waiting && now >= probing.start + RELAY_AFTER {
            probing.given_up_waiting = true;
            let had_path = self.current.take().is_some();
            if self.config.relay {
                self.actions.push_back(Action::Relay);
            } else if had_path {
                self.actions.push_back(Action::Lost);
            }
        }
        if let Some((side, _)) = probing.birthday.filter(|(_, begin)| *begin <= now) {
            probing.birthday = None;
            if may_try_hard {
                self.begin_birthday(side, now);
            } else {
                self.waits_for_turn = Some(now + TURN_CHECK);
            }
        }
        let is_over = match (&self.birthday, &self.probing) {
            (Some(birthday), _) => now >= birthday.end(),
            (None, Some(probing)) => now >= probing.end,
            (None, None) => false,
        };
        if is_over {
            self.probing = None;
            self.end_birthday(now);
            self.call_again(now);
            if !self.config.relay {
                self.actions.push_back(Action::Failed);
            }
        }
    }

    fn begin_birthday(&mut self, side: Side, now: Instant) {
        let target = self.candidates.iter().map(|entry| entry.candidate).find(|candidate| {
            // Seen at what it announces, it has no NAT; it is its public endpoint all the same.
            candidate.endpoint.is_ipv4() && candidate.kind == CandidateKind::Seen
        });
        if let Some(target) = target {
            self.birthday = Some(Birthday::new(side, target.endpoint, &mut self.random, now));
            if side == Side::Opens {
                self.extra = ExtraSockets::Open;
                self.actions.push_back(Action::Open(birthday::SOCKETS));
            }
        }
    }

    fn end_birthday(&mut self, now: Instant) {
        if self.birthday.take().is_some() {
            self.birthday_ended = Some(now);
        }
        if self.extra == ExtraSockets::Open {
            let linger = if self.current.is_some() { SOCKETS_LINGER } else { Duration::ZERO };
            self.extra = ExtraSockets::Closing(now + linger);
        }
    }

    fn silence_max(&self) -> Duration {
        self.config.keepalive * SILENT_KEEPALIVES
    }

    fn call_again(&mut self, now: Instant) {
        let after = if self.config.leads { CALL_AGAIN_LEADING } else { CALL_AGAIN_FOLLOWING };
        self.call = Some(now + after);
    }
}

/// The socket through which an endpoint is pinged that no ping came from.
fn socket_for(endpoint: SocketAddr) -> u16 {
    if endpoint.is_ipv4() { IPV4_SOCKET } else { IPV6_SOCKET }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
