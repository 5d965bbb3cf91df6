//! The thread that owns the connection to Redis: connects, backs off, connects again; while it is up,
//! commands go out as they come, and answers come in the order of the commands.

use super::session::{Asked, End, Session, lost};
use super::talk::{Heard, Refusal, SetUp, is_message, read_found, words};
use super::{Task, Told};
use crate::error::Error;
use crate::net::random;
use crate::net::stream::Stream;
use crate::net::tcp::StreamOptions;
use crate::net::tls::{ClientTrust, connector};
use crate::roles::connect::{self, Failed, Target};
use crate::roles::rendezvous::counters::{Counters, StoreDrop, StoreFailure};
use crate::roles::rendezvous::store_url::StoreUrl;
use crate::runtime::clock;
use crate::runtime::errands::Errands;
use crate::runtime::event_loop::{EventLoop, Readiness};
use crate::runtime::queue::{self, NotSent, Receiver, Sender, Wake};
use crate::state::address_order;
use crate::state::backoff::{Backoff, jittered};
use crate::state::token_bucket::LogGate;
use crate::wire::rendezvous::shared::ServerId;
use mio::Token;
use redis::Value;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The token of the queues.
pub(super) const WAKE: usize = 0;
const STREAM: Token = Token(1);

/// Between attempts: members refresh within 15 s, so that a longer one would be felt.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// For the name, the connection and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Things heard in a turn, so that commands have theirs.
const HEARD_PER_TURN: usize = 256;
/// getaddrinfo(3) with its plug-ins uses more stack than our own code.
const LOOKUP_STACK: usize = 256 * 1024;

const STREAM_OPTIONS: StreamOptions = StreamOptions {
    nodelay: true,
    // Pings notice sooner.
    keepalive: None,
    receive_buffer: 0,
    send_buffer: 0,
    unsent_max: 128 * 1024,
};

type Looked = io::Result<Vec<SocketAddr>>;

pub(super) struct Link {
    url: StoreUrl,
    own: ServerId,
    ttl: Duration,
    tls: Option<native_tls::TlsConnector>,
    events: EventLoop,
    tasks: Receiver<Task>,
    told: Sender<Told>,
    counters: Arc<Counters>,
    errands: Errands,
    looked: Receiver<Looked>,
    answer_lookup: Sender<Looked>,
    trouble_log: LogGate,
}

impl Link {
    pub(super) fn new(
        (url, own, ttl): (StoreUrl, ServerId, Duration),
        (events, wake): (EventLoop, Wake),
        (tasks, told): (Receiver<Task>, Sender<Told>),
        counters: Arc<Counters>,
    ) -> Result<Link, Error> {
        let tls = url.is_tls.then(|| connector(&ClientTrust::default())).transpose()?;
        let (answer_lookup, looked) = queue::bounded(1, &wake);
        let errands = Errands::start("rendezvous:name", 1, LOOKUP_STACK)
            .map_err(Error::while_doing(|| "cannot start a thread"))?;
        Ok(Link {
            url,
            own,
            ttl,
            tls,
            events,
            tasks,
            told,
            counters,
            errands,
            looked,
            answer_lookup,
            trouble_log: LogGate::new(1, 5),
        })
    }

    /// The thread's body.
    pub(super) fn run(mut self) {
        let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let end = match self.connect() {
                Ok(stream) => self.serve(stream, &mut pauses),
                Err(end) => end,
            };
            self.counters.store_up.set(0);
            let End::Failed(failure, cause) = end else { return };
            self.counters.store_failed(failure);
            // Without chance all servers come back at once, and come back all the same.
            let chance = random::bytes().map_or(1 << 15, u16::from_ne_bytes);
            let pause = jittered(pauses.failed(), chance);
            let now = clock::now();
            if let Some(more) = self.trouble_log.pass(now) {
                log::warn!(
                    "registry at {}: {cause}; next attempt in {pause:.1?}, rooms are this server's alone \
                     meanwhile ({more} more lines)",
                    self.url
                );
            }
            if self.wait(now + pause, |_| None::<()>).is_err() {
                return;
            }
        }
    }

    /// Waits until `due`, or until there is what `look` looks for, without a connection.
    fn wait<T>(
        &mut self,
        due: Instant,
        look: impl Fn(&Link) -> Option<T>,
    ) -> Result<Option<T>, End> {
        loop {
            if self.tasks.is_closed() {
                return Err(End::Closed);
            }
            let dropped = self.tasks.drain().count();
            self.counters.store_dropped(StoreDrop::Down, dropped);
            let (now, found) = (clock::now(), look(self));
            if found.is_some() || now >= due {
                return Ok(found);
            }
            let waited = self.events.wait(Some(clock::until(due, now)));
            waited.map_err(|error| End::Failed(StoreFailure::Connect, error.to_string()))?;
            while self.events.next_ready().is_some() {}
        }
    }

    fn connect(&mut self) -> Result<Stream, End> {
        let deadline = clock::now() + CONNECT_TIMEOUT;
        let addresses = address_order::in_order(&self.look_up(deadline)?, None);
        let mut cause = "the name has no address".to_owned();
        for (number, address) in addresses.iter().enumerate() {
            let now = clock::now();
            let share = address_order::share(clock::until(deadline, now), addresses.len() - number);
            let target = Target {
                address: *address,
                options: &STREAM_OPTIONS,
                mark: None,
                tls: self.tls.as_ref().map(|connector| (connector, self.url.host.as_str())),
            };
            let tasks = &self.tasks;
            let is_closed = || tasks.is_closed();
            match connect::connect(&mut self.events, STREAM, &target, now + share, &is_closed) {
                Ok(Some(stream)) => return Ok(stream),
                Ok(None) => return Err(End::Closed),
                Err(failed) => cause = format!("{address}: {}", why(failed)),
            }
        }
        Err(End::Failed(StoreFailure::Connect, cause))
    }

    fn look_up(&mut self, deadline: Instant) -> Result<Vec<SocketAddr>, End> {
        let failed = |cause: String| {
            End::Failed(StoreFailure::Lookup, format!("cannot resolve its name: {cause}"))
        };
        // A late answer to the last time that this was asked.
        self.looked.drain().for_each(drop);
        let (host, port, answer) =
            (self.url.host.clone(), self.url.port, self.answer_lookup.clone());
        let is_sent = self.errands.send(move || {
            let found = (host.as_str(), port).to_socket_addrs().map(Iterator::collect);
            // The thread has ended when it takes no more.
            let _ = answer.send(found);
        });
        if !is_sent {
            return Err(failed("the last lookup is still under way".to_owned()));
        }
        match self.wait(deadline, |link| link.looked.drain().next())? {
            Some(found) => found.map_err(|error| failed(error.to_string())),
            None => Err(failed("no answer in time".to_owned())),
        }
    }

    /// Serves a connection until it ends.
    fn serve(&mut self, stream: Stream, pauses: &mut Backoff) -> End {
        let mut session = Session::new(stream, clock::now());
        let steps = session.commands.begin(&self.url, self.own);
        session.expect(steps.into_iter().map(Asked::SetUp));
        let end = loop {
            match self.turn(&mut session, pauses) {
                Ok(()) => {}
                Err(end) => break end,
            }
        };
        session.stream.close();
        // Its descriptor is closed next, which ends the watching in any case.
        let _ = self.events.deregister(session.stream.socket(), STREAM);
        let lost = session.asked.iter().filter(|(_, asked)| !matches!(asked, Asked::SetUp(_)));
        self.counters.store_dropped(StoreDrop::Down, lost.count());
        end
    }

    fn turn(&mut self, session: &mut Session, pauses: &mut Backoff) -> Result<(), End> {
        if self.tasks.is_closed() {
            return Err(End::Closed);
        }
        if session.is_up {
            self.take_tasks(session);
        }
        session.write()?;
        let now = clock::now();
        let deadline = session.deadline();
        if now >= deadline {
            if !session.asked.is_empty() || !session.is_up {
                return Err(End::Failed(StoreFailure::Silent, "it does not answer".to_owned()));
            }
            session.commands.ping();
            session.expect([Asked::Nothing]);
            return Ok(());
        }
        let waited = self.events.wait(Some(clock::until(deadline, now)));
        waited.map_err(|error| lost(&error))?;
        while let Some((token, readiness)) = self.events.next_ready() {
            if token == STREAM && !self.listen(session, pauses)? {
                self.events.again(token, Readiness { readable: true, ..readiness });
            }
        }
        Ok(())
    }

    fn take_tasks(&mut self, session: &mut Session) {
        while session.has_room() {
            let Some(task) = self.tasks.drain().next() else { break };
            match task {
                Task::Put { room, place, news, record } => {
                    session.commands.put(room, place, &record, self.ttl);
                    session.expect([Asked::Put { room, member: place.member, news }]);
                }
                Task::Remove { room, place } => {
                    session.commands.remove(room, place);
                    session.expect([Asked::Nothing]);
                }
                Task::Call { room, pair, servers, message } => {
                    for server in &servers {
                        session.commands.publish(*server, &message);
                    }
                    let more = servers.len().saturating_sub(1);
                    session.expect((0..more).map(|_| Asked::Nothing));
                    session.expect(servers.last().map(|_| Asked::Call { room, pair }));
                }
            }
        }
    }

    /// Takes what has come; false if there may be more.
    fn listen(&mut self, session: &mut Session, pauses: &mut Backoff) -> Result<bool, End> {
        for _ in 0..HEARD_PER_TURN {
            let heard = match session.listener.next(&mut session.stream) {
                Ok(heard) => heard,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(lost(&error)),
            };
            session.heard = clock::now();
            match heard {
                Heard::Answer(answer) => self.answered(session, answer, pauses)?,
                Heard::Subscribed => {
                    let steps = session.commands.prove(self.own, self.ttl);
                    session.expect(steps.map(Asked::SetUp));
                }
                Heard::Published(message) if is_message(&message) => {
                    self.counters.store_messages.increment();
                    self.tell(Told::Message(message));
                }
                Heard::Published(_) | Heard::Other => {
                    self.counters.store_dropped(StoreDrop::Malformed, 1);
                }
            }
        }
        Ok(false)
    }

    fn answered(
        &mut self,
        session: &mut Session,
        answer: Value,
        pauses: &mut Backoff,
    ) -> Result<(), End> {
        let Some((since, asked)) = session.asked.pop_front() else {
            // SUBSCRIBE has no answer but a push, unless it is refused.
            if let Value::ServerError(error) = answer {
                return Err(End::Failed(StoreFailure::Refused, words(&error)));
            }
            return Err(End::Failed(
                StoreFailure::Lost,
                "it answers what was not asked".to_owned(),
            ));
        };
        match asked {
            Asked::SetUp(step) => {
                let refused = |cause| End::Failed(StoreFailure::Refused, cause);
                session.commands.set_up(step, answer).map_err(refused)?;
                if step == SetUp::Write {
                    session.is_up = true;
                    pauses.succeeded();
                    self.counters.store_up.set(1);
                    self.tell(Told::Up);
                    log::info!("registry at {}: connected", self.url);
                }
            }
            Asked::Put { room, member, news } => match read_found(answer) {
                Ok((all, malformed)) => {
                    self.counters.store_written.increment();
                    self.counters.store_dropped(StoreDrop::Malformed, malformed);
                    let rtt = clock::now().saturating_duration_since(since);
                    self.tell(Told::Found { room, member, news, all, rtt });
                }
                Err(refusal) => return self.refused(refusal),
            },
            Asked::Call { .. } | Asked::Nothing => {
                if let Value::ServerError(error) = answer {
                    return self.refused(error.into());
                }
                if let Asked::Call { room, pair } = asked {
                    self.tell(Told::PassedOn { room, pair });
                }
            }
        }
        Ok(())
    }

    /// A command was refused. If the next ones will be too, this connection is of no use.
    fn refused(&mut self, Refusal { cause, is_lasting }: Refusal) -> Result<(), End> {
        self.counters.store_dropped(StoreDrop::Refused, 1);
        if is_lasting {
            return Err(End::Failed(StoreFailure::Refused, cause));
        }
        if let Some(more) = self.trouble_log.pass(clock::now()) {
            log::warn!("registry at {}: {cause} ({more} more lines)", self.url);
        }
        Ok(())
    }

    fn tell(&self, told: Told) {
        if let Err(NotSent::Full(_)) = self.told.send(told) {
            self.counters.store_dropped(StoreDrop::AnswersFull, 1);
        }
    }
}

fn why(failed: Failed) -> String {
    match failed {
        Failed::Connect(error) | Failed::System(error) => error.to_string(),
        Failed::Timeout => "no answer in time".to_owned(),
        Failed::Tls(text) => text,
    }
}
