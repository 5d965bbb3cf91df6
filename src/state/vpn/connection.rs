//! A client's side of its connection: finds the server, says hello, keeps the connection, and starts
//! again when it is lost.
//!
//! ```text
//!               looked up              welcome
//!   Searching ------------> Asking ---------------> Up
//!       ^                    | ^                     |
//!       |   all are silent,  | |   who are you,      |
//!       +--- or refused -----+ +-- goodbye, silence -+
//! ```
//!
//! The name is looked up again for every search, and for every asking that follows a loss, while
//! the addresses known so far are tried: a resolver that cannot be reached holds nobody up.

use crate::state::backoff::{Backoff, jittered};
use crate::wire::vpn::Cookie;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// An unanswered hello is repeated after so long, then after twice as long each time: a person waits.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// With [`HELLOS`] an address has 3.75 s for its answer.
const LONGEST_RETRY: Duration = Duration::from_secs(2);
/// Hellos to one address before the next one is tried.
const HELLOS: u32 = 4;
/// The pause when no address has answered, or the server has refused; it doubles up to the longest.
/// A server that was away for hours is back within a quarter of a minute.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Keepalives without an answer, after which the connection is lost.
const KEEPALIVES: u32 = 3;
/// The time from one unanswered keepalive to the next. Slow links answer within it.
const KEEPALIVE_RETRY: Duration = Duration::from_secs(2);
/// The same when the network has changed and the path has probably gone: lost after 3 s.
const HURRIED_RETRY: Duration = Duration::from_secs(1);
/// No two messages of ours are closer than this when others make us send them: anybody can say
/// "who are you", and a network may change all the time.
const INTERVAL_MIN: Duration = Duration::from_millis(250);

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Look the server's name up, and say [`Connection::resolved`] or [`Connection::unresolved`].
    Resolve,
    /// Send a hello.
    Hello {
        /// Where to.
        to: SocketAddr,
        /// Its number.
        tx: u64,
        /// The cookie to show; zeros at first.
        cookie: Cookie,
    },
    /// Send a keepalive.
    Keepalive {
        /// Where to.
        to: SocketAddr,
        /// Its number.
        tx: u64,
    },
    /// The connection has been lost: the server does not answer. Hellos follow.
    Lost,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// No address is known, or none has answered: pauses, and looks for them again.
    Searching { until: Instant },
    /// Says hello to one address after the other.
    Asking {
        /// Until it has been answered, for all repeats.
        tx: Option<u64>,
        cookie: Option<Cookie>,
        /// Sent to this address.
        hellos: u32,
        next: Instant,
    },
    /// Has a place.
    Up {
        /// Of the keepalives that wait for an answer.
        tx: Option<u64>,
        unanswered: u32,
        retry: Duration,
        next: Instant,
    },
}

/// Whether the server's name is being looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lookup {
    Done,
    Wanted,
    UnderWay,
}

/// A connection to a server of several addresses.
#[derive(Debug)]
pub struct Connection {
    servers: Vec<SocketAddr>,
    /// The place in `servers` of the one that is talked to.
    current: usize,
    phase: Phase,
    lookup: Lookup,
    /// Of hellos.
    retry: Backoff,
    pause: Backoff,
    keepalive: Duration,
    /// When something was sent last.
    last_sent: Option<Instant>,
    /// It is the server's answer that makes us pause: a change of this host's network is no reason to ask it again sooner.
    is_turned_away: bool,
}

impl Connection {
    /// Begins with a lookup, at once.
    pub fn new(now: Instant) -> Connection {
        Connection {
            servers: Vec::new(),
            current: 0,
            phase: Phase::Searching { until: now },
            lookup: Lookup::Wanted,
            retry: Backoff::new(FIRST_RETRY, LONGEST_RETRY),
            pause: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            keepalive: Duration::ZERO,
            last_sent: None,
            is_turned_away: false,
        }
    }

    /// What is due at `now`; `random` is fresh. To be called again until it returns `None`.
    pub fn poll(&mut self, now: Instant, random: u64) -> Option<Step> {
        if self.lookup == Lookup::Wanted && self.is_due(now) {
            self.lookup = Lookup::UnderWay;
            return Some(Step::Resolve);
        }
        match self.phase {
            Phase::Searching { until } if until <= now && !self.servers.is_empty() => {
                self.ask(now);
                self.poll(now, random)
            }
            Phase::Asking { next, .. } if next <= now => self.say_hello(now, random),
            Phase::Up { next, .. } if next <= now => self.keep(now, random),
            _ => None,
        }
    }

    /// When [`Connection::poll`] has something to say again; not before an answer comes if `None`.
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Searching { until } => {
                (self.lookup == Lookup::Wanted || !self.servers.is_empty()).then_some(until)
            }
            Phase::Asking { next, .. } | Phase::Up { next, .. } => Some(next),
        }
    }

    /// Addresses that it had before, to be tried while the name is looked up.
    pub fn know(&mut self, now: Instant, servers: Vec<SocketAddr>) {
        let lookup = self.lookup;
        self.resolved(now, servers);
        self.lookup = lookup;
    }

    /// The name's addresses, in the order in which they should be tried; one at least.
    pub fn resolved(&mut self, now: Instant, servers: Vec<SocketAddr>) {
        self.lookup = Lookup::Done;
        let current = self.server();
        self.servers = servers;
        let place = self.servers.iter().position(|server| Some(*server) == current);
        match (self.phase, place) {
            // It answers: whatever its name says now.
            (Phase::Up { .. }, None) => {
                self.servers.extend(current);
                self.current = self.servers.len() - 1;
            }
            (_, Some(place)) => self.current = place,
            (_, None) => {
                self.current = 0;
                self.ask(now);
            }
        }
    }

    /// The name cannot be looked up now. `chance` is random.
    pub fn unresolved(&mut self, now: Instant, chance: u16) {
        self.lookup = Lookup::Done;
        if self.servers.is_empty() {
            self.search(now, chance);
        }
    }

    /// A cookie came. Returns whether it answers the last hello; then another one is due.
    pub fn on_cookie(&mut self, now: Instant, answered: u64, cookie: Cookie) -> bool {
        let Phase::Asking { tx, cookie: shown, hellos, next } = &mut self.phase else {
            return false;
        };
        if *tx != Some(answered) {
            return false;
        }
        if shown.is_none() {
            self.retry.succeeded();
            (*hellos, *next) = (0, now);
        }
        // A server that takes no cookie, not even its own, is asked as rarely as one that is silent.
        (*tx, *shown) = (None, Some(cookie));
        true
    }

    /// The server has a place for us. Returns whether it answers the last hello.
    pub fn on_welcome(&mut self, now: Instant, answered: u64, keepalive: Duration) -> bool {
        if !self.is_answer(answered) {
            return false;
        }
        self.retry.succeeded();
        self.keepalive = keepalive.max(KEEPALIVE_RETRY / 2);
        self.rest(now);
        true
    }

    /// The server has none. Returns whether it answers the last hello. `chance` is random.
    pub fn on_refused(&mut self, now: Instant, answered: u64, chance: u16) -> bool {
        let is_answer = self.is_answer(answered);
        if is_answer {
            self.search(now, chance);
            self.is_turned_away = true;
        }
        is_answer
    }

    /// The server lives. Returns whether it answers the last keepalive.
    pub fn on_alive(&mut self, now: Instant, answered: u64) -> bool {
        let is_answer = matches!(self.phase, Phase::Up { tx, .. } if tx == Some(answered));
        if is_answer {
            self.rest(now);
        }
        is_answer
    }

    /// The server does not know us, or not there: we have another address, or it was started again.
    /// Returns whether that is news.
    pub fn on_who_are_you(&mut self, now: Instant) -> bool {
        let is_news = self.is_up();
        if is_news {
            let at = self.not_too_soon(now);
            self.ask(at);
        }
        is_news
    }

    /// The server stops. Returns whether that is news. `chance` is random.
    pub fn on_goodbye(&mut self, now: Instant, chance: u16) -> bool {
        let is_news = self.is_up();
        if is_news {
            self.lookup = self.lookup.wanted();
            // It may be back in a moment, and others wait for it, too.
            self.ask(now + jittered(FIRST_RETRY, chance));
        }
        is_news
    }

    /// An address or a route of this host has changed, or it has woken up. What has been sent in vain counts all
    /// the same: on some hosts routes change all the time.
    pub fn on_network_change(&mut self, now: Instant) {
        let at = self.not_too_soon(now);
        match &mut self.phase {
            Phase::Searching { until } if !self.is_turned_away => *until = at.min(*until),
            Phase::Searching { .. } => {}
            Phase::Asking { next, .. } => {
                self.retry.succeeded();
                *next = at.min(*next);
            }
            Phase::Up { unanswered, retry, next, .. } => {
                *retry = HURRIED_RETRY;
                let waits = self.last_sent.filter(|_| *unanswered > 0);
                let at = waits.map_or(at, |last| at.max(last + HURRIED_RETRY));
                *next = at.min(*next);
            }
        }
    }

    /// What the server said with its welcome cannot be made use of here. `chance` is random.
    pub fn on_unusable(&mut self, now: Instant, chance: u16) {
        self.search(now, chance);
        self.is_turned_away = true;
    }

    /// What the server said with its welcome has been made use of.
    pub fn on_settled(&mut self) {
        self.pause.succeeded();
    }

    /// The address that is talked to, if any.
    pub fn server(&self) -> Option<SocketAddr> {
        self.servers.get(self.current).copied()
    }

    /// All addresses that may be talked to.
    pub fn servers(&self) -> &[SocketAddr] {
        &self.servers
    }

    /// Whether no address is known, or none of them has answered.
    pub fn is_searching(&self) -> bool {
        matches!(self.phase, Phase::Searching { .. })
    }

    /// Whether the server has a place for us, as far as we know.
    pub fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up { .. })
    }

    fn is_due(&self, now: Instant) -> bool {
        match self.phase {
            Phase::Searching { until } => until <= now,
            Phase::Asking { .. } | Phase::Up { .. } => true,
        }
    }

    fn is_answer(&self, answered: u64) -> bool {
        matches!(self.phase, Phase::Asking { tx, .. } if tx == Some(answered))
    }

    fn not_too_soon(&self, now: Instant) -> Instant {
        self.last_sent.map_or(now, |last| now.max(last + INTERVAL_MIN))
    }

    /// Says hello to the current address first, from `at` on.
    fn ask(&mut self, at: Instant) {
        self.retry.succeeded();
        self.phase = Phase::Asking { tx: None, cookie: None, hellos: 0, next: at };
    }

    fn search(&mut self, now: Instant, chance: u16) {
        self.lookup = self.lookup.wanted();
        self.is_turned_away = false;
        let until = now + jittered(self.pause.failed(), chance);
        self.phase = Phase::Searching { until };
    }

    fn rest(&mut self, now: Instant) {
        let next = now + self.keepalive;
        self.phase = Phase::Up { tx: None, unanswered: 0, retry: KEEPALIVE_RETRY, next };
    }

    fn say_hello(&mut self, now: Instant, random: u64) -> Option<Step> {
        let Phase::Asking { tx, cookie, hellos, next } = &mut self.phase else { return None };
        if *hellos >= HELLOS {
            self.current += 1;
            if self.current < self.servers.len() {
                self.ask(now);
            } else {
                self.current = 0;
                self.search(now, chance_of(random));
            }
            return self.poll(now, random);
        }
        *hellos += 1;
        *next = now + self.retry.failed();
        self.last_sent = Some(now);
        let tx = *tx.get_or_insert(random);
        let cookie = cookie.unwrap_or(Cookie([0; 16]));
        self.server().map(|to| Step::Hello { to, tx, cookie })
    }

    fn keep(&mut self, now: Instant, random: u64) -> Option<Step> {
        let Phase::Up { tx, unanswered, retry, next } = &mut self.phase else { return None };
        if *unanswered >= KEEPALIVES {
            self.lookup = self.lookup.wanted();
            self.ask(now);
            return Some(Step::Lost);
        }
        *unanswered += 1;
        *next = now + *retry;
        self.last_sent = Some(now);
        let tx = *tx.get_or_insert(random);
        self.server().map(|to| Step::Keepalive { to, tx })
    }
}

impl Lookup {
    fn wanted(self) -> Lookup {
        if self == Lookup::UnderWay { self } else { Lookup::Wanted }
    }
}

/// A part of a random number that nobody sees otherwise but the server.
fn chance_of(random: u64) -> u16 {
    (random >> 48) as u16
}

#[cfg(test)]
mod tests;
