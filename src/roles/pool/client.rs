//! `pool client`: the main thread, which receives from the local endpoints and spreads each one's
//! datagrams over its session's uplinks.

mod sessions;

use super::backlog::Backlog;
use super::batch::{Batch, LinkHandle, Links, new_batch, recycle};
use super::counters::DropReason;
use super::route::{Route, load_tls, route, try_mark};
use super::server::DESCRIPTORS_EACH;
use super::session::hand_over;
use super::uplink::Word;
use super::{Activity, ClientConfig, ErrorRun, Shared};
use crate::error::Error;
use crate::net::sys::mmsg::receive::{RECEIVE_BATCH, ReceiveQueue};
use crate::net::udp::UdpSocket;
use crate::roles::frame::{FIRST_OWN, Frame, Happening, WAKE};
use crate::roles::listening::room_for;
use crate::roles::startup::Startup;
use crate::runtime::clock;
use crate::runtime::event_loop::{EventLoop, Readiness};
use crate::runtime::queue::{self, Receiver, Sender};
use crate::runtime::thread::Thread;
use crate::state::token_bucket::LogGate;
use crate::wire::pool::SessionId;
use mio::{Interest, Token};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

const UDP: Token = Token(FIRST_OWN);

/// Messages from the uplinks that may wait; more make the sender wait.
const MESSAGES_MAX: usize = 1024;

/// How often uplinks are told that a session without connections has something to send, at most.
const NEED_INTERVAL: Duration = Duration::from_millis(250);

/// What a session is for: an endpoint, and the address of this host that it sends to, which is the
/// one that it takes answers from. Only sockets on a wildcard address need to know the latter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) endpoint: SocketAddr,
    pub(super) asked: Option<IpAddr>,
}

/// Word from the uplinks.
#[derive(Debug)]
pub(super) enum ToMain {
    /// A connection is up.
    Up { flow: Flow, session: SessionId, link: LinkHandle },
    /// It is down again.
    Down { flow: Flow, id: u64 },
    /// An uplink's thread has ended, in whatever way.
    Gone { flow: Flow, session: SessionId, serial: u64 },
}

struct UplinkHandle {
    words: Sender<Word>,
    thread: Thread<()>,
}

struct Session {
    id: SessionId,
    /// Those whose threads have not ended.
    uplinks: Vec<u64>,
    /// When missing ones are started, at the earliest.
    next_fill: Instant,
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

    /// An uplink's thread has ended while the session goes on, which only a fault can do: it takes
    /// its connection along, and another one may be started at `next_fill`.
    fn lose_uplink(&mut self, serial: u64, next_fill: Instant) {
        self.uplinks.retain(|uplink| *uplink != serial);
        self.links.remove(serial);
        self.next_fill = next_fill;
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
    sessions: HashMap<Flow, Session>,
    uplinks: HashMap<u64, UplinkHandle>,
    uplinks_started: u64,
    /// As many as there are descriptors for.
    uplinks_room: usize,
    to_main: Sender<ToMain>,
    next_look: Option<Instant>,
    limit_log: LogGate,
    errors: ErrorRun,
}

/// Serves until stopped.
pub(super) fn serve(config: ClientConfig, startup: Startup) -> Result<(), Error> {
    let mut frame = Frame::new(config.shared.common.metrics, None)?;
    let shared = Arc::new(Shared::new(&mut frame.registry));
    let bind = config.bind;
    let cannot_bind = || format!("cannot bind udp {bind}");
    let buffers = config.shared.udp_buffers;
    let mut socket = UdpSocket::listen(bind, buffers).map_err(Error::while_doing(cannot_bind))?;
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
    let uplinks_room = room_for(startup.open_files_max, DESCRIPTORS_EACH);
    frame.ready(startup)?;
    let mut client = Client {
        config,
        route,
        socket: Arc::new(socket),
        sessions: HashMap::new(),
        uplinks: HashMap::new(),
        uplinks_started: 0,
        uplinks_room,
        to_main,
        next_look: None,
        limit_log: LogGate::new(1, 5),
        errors: ErrorRun::default(),
    };
    let mut receive = ReceiveQueue::default();
    loop {
        let numbers = || {
            let line = shared.counters.status_line();
            (line.clone(), line)
        };
        match frame.next_happening(client.next_look, numbers)? {
            Happening::Stop => {
                drop(from_uplinks);
                client.stop();
                return Ok(());
            }
            // The certificate is read again for new connections.
            Happening::Reload => client.reload(),
            Happening::Ready(WAKE, _) => client.listen_to_uplinks(&from_uplinks),
            Happening::Ready(_, _) => client.receive(&mut receive, &mut frame.events),
            Happening::RoundOver(now) => client.look_after_sessions(now),
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
        // What one flow has sent in a row, if its session has a connection.
        let mut batch = new_batch(&shared.buffers, now);
        let mut last: Option<Flow> = None;
        for message in queue.messages() {
            let Some(endpoint) = message.source else {
                continue;
            };
            let flow = Flow { endpoint, asked: message.destination() };
            if last.is_some_and(|last| last != flow) && !batch.is_empty() {
                let full = std::mem::replace(&mut batch, new_batch(&shared.buffers, now));
                self.dispatch(last, full, &shared, now);
            }
            last = Some(flow);
            if !self.sessions.contains_key(&flow) && !self.open_session(flow, now) {
                shared.counters.drop(DropReason::SessionLimit, message.datagrams().count());
                continue;
            }
            let Some(session) = self.sessions.get_mut(&flow) else {
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

    /// Hands a batch of the flow's session over.
    fn dispatch(&mut self, from: Option<Flow>, batch: Batch, shared: &Shared, now: Instant) {
        match from.and_then(|flow| self.sessions.get_mut(&flow)) {
            Some(session) => hand_over(shared, &mut session.links, batch, now),
            None => recycle(&shared.buffers, batch.bytes),
        }
    }

    fn listen_to_uplinks(&mut self, messages: &Receiver<ToMain>) {
        let shared = Arc::clone(&self.route.shared);
        let now = clock::now();
        for message in messages.drain() {
            match message {
                ToMain::Up { flow, session: id, link } => {
                    // A session that has just expired has closed its uplinks, and another may have
                    // its flow.
                    let session = self.sessions.get_mut(&flow);
                    if let Some(session) = session.filter(|session| session.id == id) {
                        session.links.add(link, now);
                        session.send_backlog(&shared, now);
                    }
                }
                ToMain::Down { flow, id } => {
                    if let Some(session) = self.sessions.get_mut(&flow) {
                        session.links.remove(id);
                        // The next datagram is told of at once: it may be the only one.
                        session.next_need = now;
                    }
                }
                ToMain::Gone { flow, session: id, serial } => {
                    if let Some(uplink) = self.uplinks.remove(&serial) {
                        // A panic has been logged.
                        let _ = uplink.thread.join();
                    }
                    let session = self.sessions.get_mut(&flow);
                    if let Some(session) = session.filter(|session| session.id == id) {
                        session.lose_uplink(serial, now + self.config.backoff);
                    }
                }
            }
        }
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
