//! `pool client`: the main thread, which receives from the local endpoints and spreads each one's
//! datagrams over its session's uplinks.

use super::backlog::Backlog;
use super::batch::{Batch, LinkHandle, Links, new_batch, recycle};
use super::counters::DropReason;
use super::link::{Sink, WAKE as LINK_WAKE};
use super::route::{Route, load_tls, route, try_mark};
use super::server::Tells;
use super::session::hand_over;
use super::uplink::{Uplink, WORDS_MAX, Word};
use super::{Activity, ClientConfig, ErrorRun, Shared};
use crate::error::Error;
use crate::net::random;
use crate::net::sys::mmsg::receive::{RECEIVE_BATCH, ReceiveQueue};
use crate::net::udp::UdpSocket;
use crate::roles::frame::{FIRST_OWN, Frame, Happening, WAKE};
use crate::roles::startup::Startup;
use crate::runtime::clock;
use crate::runtime::event_loop::{EventLoop, Readiness};
use crate::runtime::queue::{self, Receiver, Sender, Wake};
use crate::runtime::thread::{self, Thread};
use crate::state::token_bucket::LogGate;
use crate::wire::pool::SessionId;
use mio::{Interest, Token};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

const UDP: Token = Token(FIRST_OWN);

/// OpenSSL's handshake and its search for roots need more than our own code.
const STACK: usize = 256 * 1024;
/// Messages from the uplinks that may wait; more make the sender wait.
const MESSAGES_MAX: usize = 1024;
/// How often idle sessions are looked for, at most.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);

/// How often uplinks are told that a session without connections has something to send, at most.
const NEED_INTERVAL: Duration = Duration::from_millis(250);

/// Word from the uplinks.
#[derive(Debug)]
pub(super) enum ToMain {
    /// A connection is up.
    Up { endpoint: SocketAddr, session: SessionId, link: LinkHandle },
    /// It is down again.
    Down { endpoint: SocketAddr, id: u64 },
    /// An uplink's thread has ended.
    Gone { serial: u64 },
}

struct UplinkHandle {
    words: Sender<Word>,
    thread: Thread<()>,
}

struct Session {
    id: SessionId,
    uplinks: Vec<u64>,
    links: Links,
    activity: Arc<Activity>,
    /// What waits while there is no connection.
    backlog: Backlog,
    /// When the uplinks may be told again that they are needed.
    next_need: Instant,
}

impl Session {
    /// Tells the uplinks, now and then, that a fresh datagram waits for one of them.
    fn ask_for_connection(&mut self, uplinks: &HashMap<u64, UplinkHandle>, now: Instant) {
        if now < self.next_need {
            return;
        }
        self.next_need = now + NEED_INTERVAL;
        let uplinks = self.uplinks.iter().filter_map(|serial| uplinks.get(serial));
        // One that has not looked yet need not be told twice.
        for uplink in uplinks.filter(|uplink| uplink.words.waiting() == 0) {
            let _ = uplink.words.send(Word::Needed);
        }
    }

    /// Hands over what has waited for a connection and is not stale.
    fn send_backlog(&mut self, shared: &Shared, now: Instant) {
        if self.backlog.is_empty() {
            return;
        }
        let links = &mut self.links;
        let mut batch = new_batch(&shared.buffers, now);
        let stale = self.backlog.take(now, |came, datagram| {
            if batch.is_full_for(datagram.len()) {
                let full = std::mem::replace(&mut batch, new_batch(&shared.buffers, now));
                hand_over(shared, links, full, now);
            }
            batch.push(datagram);
            batch.since = batch.since.min(came);
        });
        shared.counters.drop(DropReason::Stale, stale);
        hand_over(shared, links, batch, now);
    }
}

struct Client {
    config: ClientConfig,
    route: Arc<Route>,
    socket: Arc<UdpSocket>,
    sessions: HashMap<SocketAddr, Session>,
    uplinks: HashMap<u64, UplinkHandle>,
    uplinks_started: u64,
    to_main: Sender<ToMain>,
    next_expiry: Option<Instant>,
    limit_log: LogGate,
    errors: ErrorRun,
}

/// Serves until stopped.
pub(super) fn serve(config: ClientConfig, startup: Startup) -> Result<(), Error> {
    let mut frame = Frame::new(config.shared.common.metrics, None)?;
    let shared = Arc::new(Shared::new(&mut frame.registry));
    let bind = config.shared.bind;
    let cannot_bind = || format!("cannot bind udp {bind}");
    let mut socket = UdpSocket::bind(bind, false, config.shared.udp_buffers)
        .map_err(Error::while_doing(cannot_bind))?;
    frame
        .events
        .register(socket.source(), UDP, Interest::READABLE)
        .map_err(Error::while_doing(cannot_bind))?;
    if let Ok(address) = socket.local_addr() {
        log::info!("listening on udp {address}");
    }
    if let Some(mark) = config.mark {
        try_mark(mark)?;
    }
    let (to_main, from_uplinks) = queue::bounded(MESSAGES_MAX, &frame.wake()?);
    let route = Arc::new(route(&config, &shared)?);
    frame.ready(startup)?;
    let mut client = Client {
        config,
        route,
        socket: Arc::new(socket),
        sessions: HashMap::new(),
        uplinks: HashMap::new(),
        uplinks_started: 0,
        to_main,
        next_expiry: None,
        limit_log: LogGate::new(1, 5),
        errors: ErrorRun::default(),
    };
    let mut receive = ReceiveQueue::default();
    loop {
        let numbers = || {
            let line = shared.counters.status_line();
            (line.clone(), line)
        };
        match frame.next_happening(client.next_expiry, numbers)? {
            Happening::Stop => {
                drop(from_uplinks);
                client.stop();
                return Ok(());
            }
            // The certificate is read again for new connections.
            Happening::Reload => client.reload(),
            Happening::Ready(WAKE, _) => client.listen_to_uplinks(&from_uplinks),
            Happening::Ready(_, _) => client.receive(&mut receive, &mut frame.events),
            Happening::RoundOver(now) => client.expire(now),
        }
    }
}

impl Client {
    fn reload(&mut self) {
        let Some(tls) = &self.config.tls else {
            return;
        };
        match load_tls(tls) {
            Ok(loaded) => {
                self.route.set_tls(Arc::new(loaded));
                log::info!("certificates reloaded; new connections use them");
            }
            Err(error) => {
                self.route.shared.counters.certificate_reload_errors.increment();
                log::error!("the old certificates stay in use: {error}");
            }
        }
    }

    /// One `recvmmsg`, and its datagrams on their way.
    fn receive(&mut self, queue: &mut ReceiveQueue, events: &mut EventLoop) {
        match self.socket.receive(queue) {
            Ok(received) if received == RECEIVE_BATCH => events.again(UDP, Readiness::READABLE),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.errors.is_over();
                return;
            }
            Err(_) => {
                self.route.shared.counters.icmp_error();
                if self.errors.tries_again() {
                    events.again(UDP, Readiness::READABLE);
                }
                return;
            }
        }
        self.errors.is_over();
        let now = clock::now();
        let shared = Arc::clone(&self.route.shared);
        let kernel_drops = self.socket.new_kernel_drops(queue);
        shared.counters.drop(DropReason::ReceiveBufferFull, kernel_drops as usize);
        // What one endpoint has sent in a row, if its session has a connection.
        let mut batch = new_batch(&shared.buffers, now);
        let mut last: Option<SocketAddr> = None;
        for message in queue.messages() {
            let Some(endpoint) = message.source else {
                continue;
            };
            if last.is_some_and(|last| last != endpoint) && !batch.is_empty() {
                let full = std::mem::replace(&mut batch, new_batch(&shared.buffers, now));
                self.dispatch(last, full, &shared, now);
            }
            last = Some(endpoint);
            if !self.sessions.contains_key(&endpoint) && !self.open_session(endpoint, now) {
                shared.counters.drop(DropReason::SessionLimit, message.datagrams().count());
                continue;
            }
            let Some(session) = self.sessions.get_mut(&endpoint) else {
                continue;
            };
            session.activity.touch(now);
            if session.links.is_empty() {
                let max = self.route.queue_datagrams_max;
                let push = |datagram| session.backlog.push(datagram, now, max);
                let dropped = message.datagrams().map(push).sum();
                shared.counters.drop(DropReason::NotConnected, dropped);
                session.ask_for_connection(&self.uplinks, now);
                continue;
            }
            for datagram in message.datagrams() {
                if batch.is_full_for(datagram.len()) {
                    let full = std::mem::replace(&mut batch, new_batch(&shared.buffers, now));
                    hand_over(&shared, &mut session.links, full, now);
                }
                // UDP datagrams are shorter than the longest frame.
                batch.push(datagram);
            }
        }
        self.dispatch(last, batch, &shared, now);
    }

    /// Hands a batch of the endpoint's session over.
    fn dispatch(&mut self, from: Option<SocketAddr>, batch: Batch, shared: &Shared, now: Instant) {
        match from.and_then(|endpoint| self.sessions.get_mut(&endpoint)) {
            Some(session) => hand_over(shared, &mut session.links, batch, now),
            None => recycle(&shared.buffers, batch.bytes),
        }
    }

    fn open_session(&mut self, endpoint: SocketAddr, now: Instant) -> bool {
        let opened = if self.sessions.len() >= self.config.shared.sessions_max {
            Err(format!("--max-sessions {} are open", self.config.shared.sessions_max))
        } else {
            self.start_session(endpoint, now).map_err(|error| error.to_string())
        };
        match opened {
            Ok(session) => {
                self.route.shared.tell(session.id, &format_args!("opened for {endpoint}"));
                self.sessions.insert(endpoint, session);
                let counters = &self.route.shared.counters;
                counters.sessions.add(1);
                counters.sessions_opened.increment();
                self.next_expiry.get_or_insert(now + EXPIRY_INTERVAL);
                true
            }
            Err(cause) => {
                if let Some(more) = self.limit_log.pass(now) {
                    log::warn!("no session for {endpoint}: {cause} ({more} more lines)");
                }
                false
            }
        }
    }

    fn start_session(&mut self, endpoint: SocketAddr, now: Instant) -> io::Result<Session> {
        let id = SessionId::from_random(random::bytes()?);
        let activity = Arc::new(Activity::new(now));
        let mut session = Session {
            id,
            uplinks: Vec::new(),
            links: Links::new(self.route.queue_datagrams_max),
            activity: Arc::clone(&activity),
            backlog: Backlog::default(),
            // The first attempts are under way.
            next_need: now + NEED_INTERVAL,
        };
        for _ in 0..self.config.pool_size {
            match self.start_uplink(id, endpoint, &activity) {
                Ok(serial) => session.uplinks.push(serial),
                // Fewer connections than asked for carry datagrams too.
                Err(error) if !session.uplinks.is_empty() => {
                    let count = session.uplinks.len();
                    let few = format_args!("session {id}: only {count} connections: {error}");
                    self.route.shared.warn(&few);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(session)
    }

    fn start_uplink(
        &mut self,
        session: SessionId,
        endpoint: SocketAddr,
        activity: &Arc<Activity>,
    ) -> io::Result<u64> {
        // Never twice the same, not even after a failure: ends are told by it.
        let serial = self.uplinks_started;
        self.uplinks_started += 1;
        let events = EventLoop::new()?;
        let wake = Wake::new(events.waker(LINK_WAKE)?);
        let (word_sender, words) = queue::bounded(WORDS_MAX, &wake);
        let uplink = Uplink {
            route: Arc::clone(&self.route),
            serial,
            session,
            endpoint,
            sink: Sink { socket: Arc::clone(&self.socket), endpoint: Some(endpoint) },
            activity: Arc::clone(activity),
            words,
            word_sender: word_sender.clone(),
            to_main: self.to_main.clone(),
            events,
            wake,
            was_up: false,
        };
        let to_main = self.to_main.clone();
        let thread = thread::spawn("pool:up", serial, STACK, move || {
            // Made here: a thread that did not start tells nothing.
            let _gone = Tells { message: Some(ToMain::Gone { serial }), to_main };
            uplink.run();
        })?;
        self.uplinks.insert(serial, UplinkHandle { words: word_sender, thread });
        Ok(serial)
    }

    fn listen_to_uplinks(&mut self, messages: &Receiver<ToMain>) {
        let shared = Arc::clone(&self.route.shared);
        let now = clock::now();
        for message in messages.drain() {
            match message {
                ToMain::Up { endpoint, session: id, link } => {
                    // A session that has just expired has closed its uplinks, and another may have
                    // its endpoint.
                    let session = self.sessions.get_mut(&endpoint);
                    if let Some(session) = session.filter(|session| session.id == id) {
                        session.links.add(link, now);
                        session.send_backlog(&shared, now);
                    }
                }
                ToMain::Down { endpoint, id } => {
                    if let Some(session) = self.sessions.get_mut(&endpoint) {
                        session.links.remove(id);
                    }
                }
                ToMain::Gone { serial } => {
                    if let Some(uplink) = self.uplinks.remove(&serial) {
                        // A panic has been logged.
                        let _ = uplink.thread.join();
                    }
                }
            }
        }
    }

    /// Ends the sessions that have been silent both ways for too long.
    fn expire(&mut self, now: Instant) {
        if self.next_expiry.is_none_or(|next| next > now) {
            return;
        }
        let expire = self.config.expire;
        let (uplinks, shared) = (&self.uplinks, &self.route.shared);
        self.sessions.retain(|endpoint, session| {
            let silent = now.saturating_duration_since(session.activity.last());
            if silent < expire {
                return true;
            }
            shared.tell(session.id, &format_args!("closed, {endpoint} was silent"));
            for serial in &session.uplinks {
                if let Some(uplink) = uplinks.get(serial) {
                    uplink.words.close();
                }
            }
            shared.counters.sessions.add(-1);
            shared.counters.drop(DropReason::NotConnected, session.backlog.datagrams());
            false
        });
        self.next_expiry =
            (!self.sessions.is_empty()).then(|| now + EXPIRY_INTERVAL.min(expire.max(MIN_TICK)));
    }

    fn stop(mut self) {
        log::info!("stopping, {} sessions", self.sessions.len());
        for uplink in self.uplinks.values() {
            uplink.words.close();
        }
        for (_, uplink) in self.uplinks.drain() {
            let _ = uplink.thread.join();
        }
        log::info!("stopped");
    }
}

/// An expiry of zero would spin.
const MIN_TICK: Duration = Duration::from_millis(10);
