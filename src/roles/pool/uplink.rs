//! The client's thread of one connection: connects, backs off, connects again; while it is up it is
//! a [`super::link`].

use super::Activity;
use super::batch::{Batch, LinkHandle, STALE_AFTER, Waiting};
use super::client::{Flow, ToMain};
use super::counters::{DropReason, LinkEnd, SetUpFailure};
use super::link::{Link, STREAM, Sink};
use super::route::Route;
use super::server::STREAM_OPTIONS;
use crate::net::random;
use crate::net::stream::Stream;
use crate::net::tls_failure::{in_plain_words, is_certificate_refused};
use crate::roles::connect::{self, Failed, Target};
use crate::roles::lookup;
use crate::runtime::clock;
use crate::runtime::event_loop::EventLoop;
use crate::runtime::queue::{self, Receiver, Sender, Wake};
use crate::state::address_order;
use crate::state::redial::{Outcome, Redial};
use crate::wire::pool::SessionId;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Words that may wait for an uplink: the answer to a lookup, a late one, and a need.
pub(super) const WORDS_MAX: usize = 3;

/// What a thread waits for.
#[derive(Debug)]
pub(super) enum Word {
    /// The destination's addresses, as they were asked for.
    Addresses(lookup::Answer),
    /// A fresh datagram waits, and its session has no connection.
    Needed,
}

/// One uplink.
pub(super) struct Uplink {
    pub(super) route: Arc<Route>,
    pub(super) serial: u64,
    pub(super) session: SessionId,
    pub(super) flow: Flow,
    pub(super) sink: Sink,
    pub(super) activity: Arc<Activity>,
    pub(super) words: Receiver<Word>,
    pub(super) word_sender: Sender<Word>,
    pub(super) to_main: Sender<ToMain>,
    pub(super) events: EventLoop,
    pub(super) wake: Wake,
    /// Whether it has been up before.
    pub(super) was_up: bool,
    /// When it last learnt that a datagram waits for it, since its last connection.
    pub(super) needed_at: Option<Instant>,
}

type Failure = (SetUpFailure, String);

impl Uplink {
    /// The thread's body.
    pub(super) fn run(mut self) {
        let mut redial = Redial::new(self.route.backoff, clock::now());
        while !self.words.is_closed() {
            let (outcome, failure) = match self.connect() {
                Ok(Some(stream)) => self.serve(stream),
                Ok(None) => return,
                Err(failure) => (Outcome::Failed, Some(failure)),
            };
            // Without chance all connections come back at once, and come back all the same.
            let chance = random::bytes().map_or(1 << 15, u16::from_ne_bytes);
            let delay = redial.after(outcome, clock::now(), chance);
            if let Some((failure, cause)) = failure {
                self.complain(failure, &cause, delay);
            }
            if !self.rest(&mut redial) {
                return;
            }
        }
    }

    fn complain(&self, failure: SetUpFailure, cause: &str, delay: Duration) {
        self.route.shared.counters.set_up_failed(failure);
        let mut gate = self.route.log_gate.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(more) = gate.pass(clock::now()) {
            log::warn!(
                "uplink to {}: {cause}; next attempt in {delay:.1?} ({more} more lines)",
                self.route.destination
            );
        }
    }

    /// Waits until the next attempt is due and, where connections are made on demand, until a
    /// datagram waits for it; false when the uplink is to end.
    fn rest(&mut self, redial: &mut Redial) -> bool {
        loop {
            // Late answers to lookups that were given up are of no use.
            let words = self.words.drain();
            let is_needed = words.filter(|word| matches!(word, Word::Needed)).count() > 0;
            let (now, due) = (clock::now(), redial.due());
            if is_needed {
                self.needed_at = Some(now);
                redial.is_needed();
                continue;
            }
            if self.words.is_closed() {
                return false;
            }
            let may_connect = !self.route.connects_on_demand || self.is_needed(now);
            if now >= due && may_connect {
                return true;
            }
            let timeout = may_connect.then(|| clock::until(due, now));
            if self.events.wait(timeout).is_err() {
                return false;
            }
            while self.events.next_ready().is_some() {}
        }
    }

    /// Whether a datagram waits for it that is not stale.
    fn is_needed(&self, now: Instant) -> bool {
        self.needed_at.is_some_and(|needed| now.saturating_duration_since(needed) < STALE_AFTER)
    }

    /// A connection that is ready for frames; `None` when the uplink is to end.
    fn connect(&mut self) -> Result<Option<Stream>, Failure> {
        let deadline = clock::now() + self.route.connect_timeout;
        let Some(found) = self.look_up(deadline)? else {
            return Ok(None);
        };
        let addresses = self.route.in_order(&found);
        let mut failures: Vec<Failure> = Vec::new();
        for (number, address) in addresses.iter().enumerate() {
            let now = clock::now();
            let left = clock::until(deadline, now);
            if left.is_zero() {
                break;
            }
            let its_deadline = now + address_order::share(left, addresses.len() - number);
            match self.connect_to(*address, its_deadline) {
                Ok(Some(stream)) => {
                    self.route.is_good(*address);
                    return Ok(Some(stream));
                }
                Ok(None) => return Ok(None),
                Err(failure) => failures.push(failure),
            }
        }
        let causes: Vec<&str> = failures.iter().map(|(_, cause)| cause.as_str()).collect();
        let causes = causes.join("; ");
        // Counted as the one that came nearest to a connection, which is the last of its kind.
        let kind = failures.iter().map(|(kind, _)| *kind).max_by_key(|kind| kind.nearness());
        Err(match kind {
            Some(kind) => (kind, causes),
            None => (SetUpFailure::Timeout, "the lookup has taken all of --timeout".to_owned()),
        })
    }

    /// The destination's addresses. Those of an earlier lookup stand in for an answer that fails, or
    /// that does not come soon.
    fn look_up(&mut self, deadline: Instant) -> Result<Option<Vec<SocketAddr>>, Failure> {
        let host = &self.route.destination.host;
        let failed =
            |cause: String| (SetUpFailure::Lookup, format!("cannot resolve {host}: {cause}"));
        let Some(lookup) = &self.route.lookup else {
            return Ok(self.route.fixed.clone());
        };
        let sender = self.word_sender.clone();
        let is_asked = lookup.ask(move |found| {
            // An uplink that has ended does not want it any more.
            let _ = sender.send(Word::Addresses(found));
        });
        let known = lookup.known();
        if !is_asked {
            return known.map(Some).ok_or_else(|| failed("too many lookups".to_owned()));
        }
        let begin = clock::now();
        let patience = clock::until(deadline, begin) / if known.is_some() { 4 } else { 1 };
        let deadline = begin + patience;
        loop {
            let now = clock::now();
            if self.words.is_closed() {
                return Ok(None);
            }
            let needed_at = &mut self.needed_at;
            let found = self.words.drain().find_map(|word| match word {
                Word::Addresses(found) => Some(found),
                Word::Needed => {
                    *needed_at = Some(now);
                    None
                }
            });
            match found {
                Some(Ok(found)) => return Ok(Some(found)),
                Some(Err(cause)) => return known.map(Some).ok_or_else(|| failed(cause)),
                None => {}
            }
            if now >= deadline {
                return known.map(Some).ok_or_else(|| failed("no answer in time".to_owned()));
            }
            self.events
                .wait(Some(clock::until(deadline, now)))
                .map_err(|error| (SetUpFailure::System, error.to_string()))?;
            while self.events.next_ready().is_some() {}
        }
    }

    fn connect_to(
        &mut self,
        address: SocketAddr,
        deadline: Instant,
    ) -> Result<Option<Stream>, Failure> {
        let route = Arc::clone(&self.route);
        let tls = route.tls();
        let target = Target {
            address,
            options: &STREAM_OPTIONS,
            mark: route.mark,
            tls: tls.as_ref().map(|tls| (&tls.connector, tls.server_name.as_str())),
        };
        let words = &self.words;
        let connected =
            connect::connect(&mut self.events, STREAM, &target, deadline, &|| words.is_closed());
        let mut stream = match connected {
            Ok(Some(stream)) => stream,
            Ok(None) => return Ok(None),
            Err(failed) => {
                let name = tls.as_ref().map_or("", |tls| tls.server_name.as_str());
                return Err(failure_of(failed, address, name));
            }
        };
        if route.sends_session_id {
            // An empty send buffer takes 16 bytes, and one TLS record.
            if let Err(error) = stream.write_all(&self.session.bytes()) {
                return Err(match stream.last_word() {
                    Some(word) => {
                        let text = word.to_string();
                        (kind_of(&text), format!("{address}: {}", in_plain_words(&text)))
                    }
                    None => failure_of(Failed::Connect(error), address, ""),
                });
            }
        }
        Ok(Some(stream))
    }

    /// Carries datagrams until the connection ends. A failure if it has never been one: a server
    /// of TLS 1.3 judges the client's certificate when the client takes the connection for up.
    fn serve(&mut self, mut stream: Stream) -> (Outcome, Option<Failure>) {
        let began = clock::now();
        let shared = Arc::clone(&self.route.shared);
        let waiting = Arc::new(Waiting::new(
            stream.socket().clone(),
            Arc::clone(&shared.counters.queued_bytes),
            shared.counters.drop_counter(DropReason::ConnectionLost),
        ));
        let (batch_sender, batches) =
            queue::bounded::<Batch>(self.route.queue_datagrams_max, &self.wake);
        let link =
            LinkHandle { id: self.serial, queue: batch_sender, waiting: Arc::clone(&waiting) };
        let up = ToMain::Up { flow: self.flow, session: self.session, link };
        if self.to_main.send_waiting(up).is_err() {
            return (Outcome::Failed, None);
        }
        shared.counters.connections_up.increment();
        if std::mem::replace(&mut self.was_up, true) {
            shared.counters.reconnects.increment();
        }
        shared.counters.connections.add(1);
        log::debug!("uplink {}: up for {}", self.serial, self.flow.endpoint);
        let link = Link::new(
            Arc::clone(&shared),
            stream,
            batches,
            waiting,
            self.sink.clone(),
            Arc::clone(&self.activity),
        );
        let words = &self.words;
        let ended = link.serve(&mut self.events, || words.is_closed());
        // What is told from here on, the main thread tells of datagrams that have no connection.
        let _ = words.drain().count();
        self.needed_at = None;
        shared.counters.connections.add(-1);
        shared.counters.link_down(&ended.end);
        let lived = clock::now().saturating_duration_since(began);
        let mut outcome = Outcome::Ended { lived, has_received: ended.has_received };
        let mut refusal = None;
        match ended.end {
            LinkEnd::Failed(error) if is_certificate_refused(&error.to_string()) => {
                let cause = in_plain_words(&error.to_string());
                outcome = Outcome::Failed;
                refusal = Some((SetUpFailure::ClientCertificate, cause));
            }
            LinkEnd::Failed(error) => {
                let destination = &self.route.destination;
                let cause = in_plain_words(&error.to_string());
                shared.warn(&format_args!("uplink to {destination}: {cause}"));
            }
            end => log::debug!("uplink {}: {end}", self.serial),
        }
        // A main thread that has gone needs no telling.
        let _ = self.to_main.send_waiting(ToMain::Down { flow: self.flow, id: self.serial });
        (outcome, refusal)
    }
}

fn failure_of(failed: Failed, address: SocketAddr, tls_name: &str) -> Failure {
    match failed {
        Failed::Connect(error) => (SetUpFailure::Connect, format!("{address}: {error}")),
        Failed::Timeout => (SetUpFailure::Timeout, format!("{address}: no answer in time")),
        Failed::Tls(text) => {
            let cause = in_plain_words(&text);
            (kind_of(&text), format!("{address}: TLS with {tls_name}: {cause}"))
        }
        Failed::System(error) => (SetUpFailure::System, error.to_string()),
    }
}

/// The kind of a failure of TLS with this text.
fn kind_of(text: &str) -> SetUpFailure {
    if is_certificate_refused(text) { SetUpFailure::ClientCertificate } else { SetUpFailure::Tls }
}
