//! What a NAT does, found out with a STUN server: RFC 5780.
//!
//! ```text
//! where am I?  -> filtering (4.4), hairpin (3.4), side by side -> mapping (4.3) -> lifetime (4.6)
//! ```
//!
//! Filtering comes before mapping: that sends to the server's other address, which would let its
//! answers in (4.5). A server without a second address leaves filtering unknown; mapping is then
//! found by a second port or a second server.
//!
//! A [`Detection`] says which requests to send through which socket, 0 or, for the lifetime, 1, and
//! is told the answers. It knows no bytes: the codec is `wire::stun`.

mod conclusions;
pub mod lifetime;
pub mod report;
pub mod schedule;

use conclusions::is_second_address;
use lifetime::{Lifetime, LifetimeBounds, Trial};
use report::Report;
use schedule::{Schedule, Transaction};

use crate::state::seeded::Seeded;
use std::net::SocketAddr;
use std::time::Instant;

/// Servers asked, at most: ports and addresses beyond teach nothing new.
pub const SERVERS_MAX: usize = 4;
/// The socket whose mapping is looked at.
pub const MAIN_SOCKET: u16 = 0;
/// The socket that asks whether the main one's mapping still lives.
pub const OTHER_SOCKET: u16 = 1;

/// What to find out, and how.
#[derive(Debug, Clone)]
pub struct Config {
    /// Endpoints of STUN servers, all of one family: the first [`SERVERS_MAX`] count. Two ports of
    /// one server, or two servers, tell the mapping where none has two addresses.
    pub servers: Vec<SocketAddr>,
    /// The main socket's own endpoint, with the interface's address instead of `0.0.0.0`.
    pub local: SocketAddr,
    /// When to repeat a request and when to give up.
    pub schedule: Schedule,
    /// Find out how long a mapping lives, which takes minutes.
    pub lifetime: Option<LifetimeBounds>,
    /// A random number.
    pub seed: u64,
}

/// A binding request to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Through which socket.
    pub socket: u16,
    /// Where to.
    pub to: SocketAddr,
    /// The transaction id.
    pub id: [u8; 12],
    /// CHANGE-REQUEST: answer from the other address.
    pub change_ip: bool,
    /// CHANGE-REQUEST: answer from the other port.
    pub change_port: bool,
    /// RESPONSE-PORT: answer to this port.
    pub response_port: Option<u16>,
}

/// A binding success response, or an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The transaction id.
    pub id: [u8; 12],
    /// Where it came from.
    pub from: SocketAddr,
    /// On which socket.
    pub socket: u16,
    /// XOR-MAPPED-ADDRESS, or MAPPED-ADDRESS; `None` in an error response.
    pub mapped: Option<SocketAddr>,
    /// OTHER-ADDRESS, or the classic CHANGED-ADDRESS.
    pub other: Option<SocketAddr>,
}

/// What a request is sent to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    /// Where the server of this place sees the main socket.
    Mapped(usize),
    /// Whether an answer from the other address and port gets in (4.4, test II).
    FilteredBoth,
    /// Whether an answer from the other port gets in (4.4, test III).
    FilteredPort,
    /// Whether a request to the own public endpoint comes back.
    Hairpin,
    /// Where the other address sees the main socket (4.3, test II).
    MappedOtherAddress,
    /// Where the other address and port see it (4.3, test III).
    MappedOtherBoth,
    /// Makes a mapping whose age is known (4.6).
    Refresh,
    /// Whether the mapping still lives (4.6).
    Alive,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Where,
    Filtering,
    Mapping,
    Lifetime,
    Done,
}

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Seen there.
    Mapped(SocketAddr),
    /// It got through.
    Yes,
    /// Nothing came.
    Nothing,
    /// The server cannot do it.
    Refused,
}

/// The search for what a NAT does. See the [module](self).
#[derive(Debug)]
pub struct Detection {
    config: Config,
    stage: Stage,
    transactions: Vec<(Test, Transaction)>,
    outcomes: Vec<(Test, Outcome)>,
    /// How many of the servers were asked.
    asked: usize,
    /// The first server that answered: its place, its other address, and where it sees this side.
    primary: Option<(usize, Option<SocketAddr>, SocketAddr)>,
    trial: Option<Trial>,
    random: Seeded,
    report: Report,
}

impl Detection {
    /// Begins now.
    pub fn new(mut config: Config, now: Instant) -> Detection {
        config.servers.truncate(SERVERS_MAX);
        let random = Seeded::new(config.seed);
        let report = Report::new(config.local);
        let mut detection = Detection {
            config,
            stage: Stage::Where,
            transactions: Vec::new(),
            outcomes: Vec::new(),
            asked: 0,
            primary: None,
            trial: None,
            random,
            report,
        };
        detection.go_on(now);
        detection
    }

    /// The next request to send; `None` when there is nothing until the
    /// [deadline](Self::next_deadline).
    pub fn poll(&mut self, now: Instant) -> Option<Request> {
        loop {
            self.ask_of_trial(now);
            let request =
                self.transactions.iter_mut().find_map(|(_, transaction)| transaction.poll(now));
            if request.is_some() {
                return request;
            }
            let over =
                self.transactions.iter().position(|(_, transaction)| transaction.is_over(now))?;
            let (test, _) = self.transactions.swap_remove(over);
            self.ended(test, Outcome::Nothing, now);
        }
    }

    /// When to [`poll`](Self::poll) again, after that has said `None`; `None` when it is
    /// [done](Self::report).
    pub fn next_deadline(&self) -> Option<Instant> {
        let transactions = self.transactions.iter().map(|(_, transaction)| transaction.deadline());
        transactions.chain(self.trial.as_ref().and_then(Trial::deadline)).min()
    }

    /// An answer came; poll after this. False if it answers nothing.
    pub fn answered(&mut self, answer: &Answer, now: Instant) -> bool {
        let known = self
            .transactions
            .iter()
            .position(|(_, transaction)| transaction.request.id == answer.id);
        let Some(place) = known else {
            return false;
        };
        let (test, transaction) = &self.transactions[place];
        let test = *test;
        let outcome = match (test, answer.mapped) {
            // Its own answer, or that of a host that has the public endpoint: no hairpin.
            (Test::Hairpin, _) => return false,
            (_, None) => Outcome::Refused,
            (Test::FilteredBoth | Test::FilteredPort, Some(_)) => {
                if self.is_from_elsewhere(test, transaction.request.to, answer.from) {
                    Outcome::Yes
                } else {
                    Outcome::Refused
                }
            }
            // The answer to the other socket means that the server knows no RESPONSE-PORT.
            (Test::Alive, Some(_)) if answer.socket != MAIN_SOCKET => Outcome::Refused,
            (Test::Alive, Some(_)) => Outcome::Yes,
            (_, Some(mapped)) => Outcome::Mapped(mapped),
        };
        if let (Test::Mapped(server), Outcome::Mapped(mapped)) = (test, outcome) {
            // The first that answers counts, one with two addresses more.
            let to = transaction.request.to;
            let other = answer.other.filter(|other| is_second_address(*other, to));
            let is_first = self.primary.is_none();
            let is_second = self.primary.is_some_and(|(_, known, _)| known.is_none());
            if is_first || (is_second && other.is_some() && self.stage == Stage::Where) {
                self.primary = Some((server, other, mapped));
            }
        }
        self.transactions.swap_remove(place);
        self.ended(test, outcome, now);
        true
    }

    /// A binding *request* came to the main socket: the own one, if the NAT sends it back. False if
    /// it is somebody else's.
    pub fn request_heard(&mut self, id: [u8; 12], now: Instant) -> bool {
        let known = self
            .transactions
            .iter()
            .position(|(test, transaction)| *test == Test::Hairpin && transaction.request.id == id);
        let Some(place) = known else {
            return false;
        };
        self.transactions.swap_remove(place);
        self.ended(Test::Hairpin, Outcome::Yes, now);
        true
    }

    /// What was found out, once all is.
    pub fn report(&self) -> Option<&Report> {
        (self.stage == Stage::Done).then_some(&self.report)
    }

    fn ask_of_trial(&mut self, now: Instant) {
        let Some(due) = self.trial.as_mut().and_then(|trial| trial.ask(now)) else {
            return;
        };
        let Some((server, _, _)) = self.primary else {
            return;
        };
        let to = self.config.servers[server];
        match due {
            lifetime::Ask::Refresh => self.ask(Test::Refresh, to, |_| {}, now),
            lifetime::Ask::Alive(port) => {
                let alive = |request: &mut Request| {
                    request.socket = OTHER_SOCKET;
                    request.response_port = Some(port);
                };
                self.ask(Test::Alive, to, alive, now);
            }
        }
    }

    /// The primary server's endpoint and its other one.
    fn second_address(&self) -> Option<(SocketAddr, SocketAddr)> {
        let (server, other, _) = self.primary?;
        Some((self.config.servers[server], other?))
    }

    /// Asks the next server where it sees this side; false if all were asked.
    fn ask_next_server(&mut self, now: Instant) -> bool {
        let next = self.config.servers.get(self.asked).copied();
        if let Some(to) = next {
            self.ask(Test::Mapped(self.asked), to, |_| {}, now);
            self.asked += 1;
        }
        next.is_some()
    }

    /// Whether the answer came from where it was asked to come from.
    fn is_from_elsewhere(&self, test: Test, to: SocketAddr, from: SocketAddr) -> bool {
        let Some((_, other)) = self.second_address() else {
            return false;
        };
        match test {
            Test::FilteredBoth => from == other,
            _ => from == SocketAddr::new(to.ip(), other.port()),
        }
    }

    fn ask(&mut self, test: Test, to: SocketAddr, change: impl FnOnce(&mut Request), now: Instant) {
        let mut id = [0; 12];
        id[..8].copy_from_slice(&self.random.next_u64().to_be_bytes());
        id[8..].copy_from_slice(&self.random.next_u64().to_be_bytes()[..4]);
        let mut request = Request {
            socket: MAIN_SOCKET,
            to,
            id,
            change_ip: false,
            change_port: false,
            response_port: None,
        };
        change(&mut request);
        self.transactions.push((test, Transaction::new(request, self.config.schedule, now)));
    }

    fn ended(&mut self, test: Test, outcome: Outcome, now: Instant) {
        if let Some(trial) = &mut self.trial {
            match (test, outcome) {
                (Test::Refresh, Outcome::Mapped(mapped)) => trial.refreshed(mapped.port(), now),
                (Test::Alive, Outcome::Yes) => trial.ended(true),
                (Test::Alive, Outcome::Nothing) => trial.ended(false),
                _ => trial.is_impossible(),
            }
        } else {
            self.outcomes.push((test, outcome));
        }
        self.go_on(now);
    }

    fn outcome(&self, test: Test) -> Option<Outcome> {
        self.outcomes.iter().find(|(one, _)| *one == test).map(|(_, outcome)| *outcome)
    }

    /// Enters the next stage when this one's tests are over.
    fn go_on(&mut self, now: Instant) {
        while self.transactions.is_empty() {
            match self.stage {
                Stage::Where => {
                    // One after the other: the next one might be the other address of this one.
                    let has_second = self.second_address().is_some();
                    if !has_second && self.ask_next_server(now) {
                        return;
                    }
                    let Some((server, _, mapped)) = self.primary else {
                        self.stage = Stage::Done;
                        return;
                    };
                    self.stage = Stage::Filtering;
                    self.report.public = Some(mapped);
                    let to = self.config.servers[server];
                    if has_second {
                        let both = |request: &mut Request| {
                            request.change_ip = true;
                            request.change_port = true;
                        };
                        self.ask(Test::FilteredBoth, to, both, now);
                        let port = |request: &mut Request| request.change_port = true;
                        self.ask(Test::FilteredPort, to, port, now);
                    }
                    if self.report.is_translated() == Some(true) {
                        self.ask(Test::Hairpin, mapped, |_| {}, now);
                    }
                }
                Stage::Filtering => {
                    self.report.hairpin =
                        self.outcome(Test::Hairpin).map(|outcome| outcome == Outcome::Yes);
                    self.stage = Stage::Mapping;
                    if let Some((to, other)) = self.second_address() {
                        let address = SocketAddr::new(other.ip(), to.port());
                        self.ask(Test::MappedOtherAddress, address, |_| {}, now);
                        self.ask(Test::MappedOtherBoth, other, |_| {}, now);
                    }
                    while self.ask_next_server(now) {}
                }
                Stage::Mapping => {
                    self.conclude();
                    self.stage = Stage::Lifetime;
                    self.trial = self.config.lifetime.map(Trial::new);
                }
                Stage::Lifetime => {
                    match self.trial.as_ref().map(Trial::result) {
                        Some(None) => return,
                        Some(Some(found)) => self.report.lifetime = found,
                        None => self.report.lifetime = Lifetime::NotAsked,
                    }
                    self.trial = None;
                    self.stage = Stage::Done;
                }
                Stage::Done => return,
            }
        }
    }
}

#[cfg(test)]
mod tests;
