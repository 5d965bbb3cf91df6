//! `pool server`: the main thread, which groups accepted connections into sessions.

use super::batch::{LinkHandle, Links};
use super::connection::{Begin, Connection, Frame as ConnectionFrame};
use super::counters::SetUpFailure;
use super::link::Sink;
use super::lookup::{self, Lookup};
use super::session::{Orders, Session, SessionEnd, UDP, WAKE as SESSION_WAKE};
use super::{Activity, Framing, ServerConfig, ServerTls, Shared};
use crate::error::Error;
use crate::net::tcp::{Keepalive, StreamOptions};
use crate::net::tls::{Acceptor, Identity, TlsError};
use crate::net::udp::{UdpSocket, any_port};
use crate::roles::frame::{Frame, Happening, WAKE};
use crate::roles::listening::{Listening, Room, room_for};
use crate::roles::startup::Startup;
use crate::runtime::clock;
use crate::runtime::event_loop::EventLoop;
use crate::runtime::queue::{self, Receiver, Sender, Wake};
use crate::runtime::thread::{self, Thread};
use crate::state::token_bucket::LogGate;
use crate::wire::pool::SessionId;
use mio::Interest;
use mio::net::TcpStream;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// OpenSSL's handshake needs more than our own code.
const STACK: usize = 256 * 1024;

/// How long a new session waits for its first connection, which is only a message away.
const FIRST_JOIN_MAX: Duration = Duration::from_secs(10);

/// Messages from the threads that may wait; more make the sender wait.
const MESSAGES_MAX: usize = 1024;

/// Descriptors of a connection: stream, poll, waker. A session has three as well.
const DESCRIPTORS_EACH: u64 = 4;

/// A dead connection is given up after 25 s: of silence, with two probes in the last ten, or of
/// unacknowledged data. Batches avoid it long before that.
pub(super) const KEEPALIVE: Keepalive =
    Keepalive { idle: Duration::from_secs(15), interval: Duration::from_secs(5), probes: 2 };

/// Two TLS records unsent in the kernel: what waits stays in our queue, where the next batch can
/// see it and go elsewhere.
pub(super) const UNSENT_MAX: u32 = 32_768;

/// Options of the connections, on both sides.
pub(super) const STREAM_OPTIONS: StreamOptions = StreamOptions {
    nodelay: true,
    keepalive: Some(KEEPALIVE),
    // The kernel's own tuning follows the path; a fixed size would cap it.
    receive_buffer: 0,
    send_buffer: 0,
    unsent_max: UNSENT_MAX,
};

/// Word from the threads.
#[derive(Debug)]
pub(super) enum ToMain {
    /// A connection has told its session.
    Joins { connection: u64, session: SessionId, link: LinkHandle },
    /// A connection's thread has ended.
    ConnectionGone { connection: u64 },
    /// A session's thread has ended.
    SessionGone { serial: u64 },
    /// The destination's addresses have been looked up again.
    Addresses(Vec<SocketAddr>),
}

struct ConnectionHandle {
    orders: Sender<Begin>,
    thread: Thread<()>,
    /// The serial number of its session, once it has one.
    session: Option<u64>,
    address: SocketAddr,
}

struct SessionHandle {
    serial: u64,
    id: SessionId,
    orders: Orders,
    thread: Thread<SessionEnd>,
    socket: Arc<UdpSocket>,
    activity: Arc<Activity>,
}

struct Server {
    config: ServerConfig,
    shared: Arc<Shared>,
    acceptor: Option<Acceptor>,
    lookup: Option<Lookup>,
    targets: Vec<SocketAddr>,
    to_main: Sender<ToMain>,
    connections: HashMap<u64, ConnectionHandle>,
    connections_started: u64,
    sessions: HashMap<SessionId, SessionHandle>,
    sessions_started: u64,
    connections_room: usize,
    limit_log: LogGate,
}

/// Serves until stopped.
pub(super) fn serve(config: ServerConfig, startup: Startup) -> Result<(), Error> {
    let mut frame = Frame::new(config.shared.common.metrics, None)?;
    let acceptor = config.tls.as_ref().map(load_acceptor).transpose()?;
    let shared = Arc::new(Shared::new(&mut frame.registry));
    let destination = &config.shared.destination;
    let targets = lookup::addresses(destination)
        .map_err(Error::while_doing(|| format!("cannot resolve {destination}")))?;
    let lookup = match destination.host.parse::<std::net::IpAddr>() {
        Ok(_) => None,
        Err(_) => Some(
            Lookup::start(destination.clone())
                .map_err(Error::while_doing(|| "cannot start a thread"))?,
        ),
    };
    let mut listening = Listening::open(
        &mut frame.events,
        &[config.shared.bind],
        false,
        &STREAM_OPTIONS,
        Arc::clone(&shared.counters.accept_errors),
    )?;
    let (to_main, from_threads) = queue::bounded(MESSAGES_MAX, &frame.wake()?);
    let connections_room = room_for(startup.open_files_max, DESCRIPTORS_EACH);
    frame.ready(startup)?;
    let mut server = Server {
        config,
        shared,
        acceptor,
        lookup,
        targets,
        to_main,
        connections: HashMap::new(),
        connections_started: 0,
        sessions: HashMap::new(),
        sessions_started: 0,
        connections_room,
        limit_log: LogGate::new(1, 5),
    };
    loop {
        let counters = &server.shared.counters;
        let numbers = || {
            let line = counters.status_line();
            (line.clone(), line)
        };
        match frame.next_happening(listening.next_deadline(), numbers)? {
            Happening::Stop => {
                drop((listening, from_threads));
                server.stop();
                return Ok(());
            }
            Happening::Reload => server.reload(),
            Happening::Ready(WAKE, _) => {
                if server.listen_to_threads(&from_threads) {
                    listening.room_again(&mut frame.events);
                }
            }
            Happening::Ready(token, readiness) => {
                let now = clock::now();
                listening.accept(&mut frame.events, (token, readiness), now, |stream, address| {
                    server.admit(stream, address, now)
                });
            }
            Happening::RoundOver(now) => listening.resume(now, &mut frame.events),
        }
    }
}

fn load_acceptor(tls: &ServerTls) -> Result<Acceptor, TlsError> {
    let identity = Identity::load(&tls.files.certificate, &tls.files.key)?;
    Acceptor::with_alpn(&identity, tls.client_ca.as_deref(), tls.alpn.as_deref())
}

impl Server {
    fn reload(&mut self) {
        let Some(tls) = &self.config.tls else {
            return;
        };
        match load_acceptor(tls) {
            Ok(acceptor) => {
                self.acceptor = Some(acceptor);
                log::info!("certificate reloaded from {}", tls.files.certificate.display());
            }
            Err(error) => {
                self.shared.counters.certificate_reload_errors.increment();
                log::error!("the old certificate stays in use: {error}");
            }
        }
    }

    fn admit(&mut self, stream: TcpStream, address: SocketAddr, now: Instant) -> io::Result<Room> {
        if self.connections.len() >= self.config.connections_max {
            self.shared.counters.set_up_failed(SetUpFailure::Limit);
            if let Some(more) = self.limit_log.pass(now) {
                log::warn!(
                    "connection {address}: refused: --max-connections {} are open ({more} more \
                     lines)",
                    self.config.connections_max
                );
            }
            return Ok(Room::More);
        }
        // Never twice the same, not even after a failure: ends are told by it.
        let id = self.connections_started;
        self.connections_started += 1;
        let frame = ConnectionFrame {
            shared: &self.shared,
            to_main: &self.to_main,
            acceptor: self.acceptor.as_ref(),
            framing: self.config.shared.framing,
            queue_datagrams_max: self.config.shared.queue_datagrams_max,
            handshake_timeout: self.config.handshake_timeout,
        };
        let (connection, orders) = Connection::new(&frame, id, address, stream)?;
        let to_main = self.to_main.clone();
        let thread = thread::spawn("pool:c", id, STACK, move || {
            // Made here: a thread that did not start tells nothing.
            let _gone = Tells { message: Some(ToMain::ConnectionGone { connection: id }), to_main };
            connection.run();
        })?;
        self.connections.insert(id, ConnectionHandle { orders, thread, session: None, address });
        let room = self.connections.len() + self.sessions.len() < self.connections_room;
        Ok(if room { Room::More } else { Room::Full })
    }

    /// Does what the threads' messages ask for; true if something has ended.
    fn listen_to_threads(&mut self, messages: &Receiver<ToMain>) -> bool {
        let mut has_ended = false;
        for message in messages.drain() {
            match message {
                ToMain::Joins { connection, session, link } => self.join(connection, session, link),
                ToMain::Addresses(targets) => self.targets = targets,
                ToMain::ConnectionGone { connection } => {
                    has_ended = true;
                    self.bury_connection(connection);
                }
                ToMain::SessionGone { serial } => {
                    has_ended = true;
                    self.bury_session(serial);
                }
            }
        }
        has_ended
    }

    fn join(&mut self, connection: u64, session: SessionId, link: LinkHandle) {
        if !self.sessions.contains_key(&session) {
            if let Err(cause) = self.open_session(session) {
                self.refuse(connection, &cause);
                return;
            }
        }
        let connections_max = self.config.connections_per_session_max;
        let (Some(handle), Some(owner)) =
            (self.connections.get_mut(&connection), self.sessions.get_mut(&session))
        else {
            return;
        };
        if owner.orders.connections() >= connections_max {
            let cause = format!("its session has --max-connections-per-session {connections_max}");
            self.refuse(connection, &cause);
            return;
        }
        let begin = Begin {
            sink: Sink { socket: Arc::clone(&owner.socket), endpoint: None },
            activity: Arc::clone(&owner.activity),
        };
        if !owner.orders.add(link) {
            // The session ends at this moment, or has not kept up; the client comes again.
            handle.orders.close();
            return;
        }
        handle.session = Some(owner.serial);
        // Only now: the target's answer to the first datagram must find the connection. One that
        // has ended meanwhile says so itself.
        let _ = handle.orders.send(begin);
    }

    fn refuse(&mut self, connection: u64, cause: &str) {
        self.shared.counters.set_up_failed(SetUpFailure::Limit);
        if let Some(handle) = self.connections.get(&connection) {
            if let Some(more) = self.limit_log.pass(clock::now()) {
                log::warn!("connection {}: refused: {cause} ({more} more lines)", handle.address);
            }
            handle.orders.close();
        }
    }

    fn open_session(&mut self, id: SessionId) -> Result<(), String> {
        if self.sessions.len() >= self.config.shared.sessions_max {
            return Err(format!("--max-sessions {} are open", self.config.shared.sessions_max));
        }
        if let Some(lookup) = &self.lookup {
            // For the next session: this one takes what is known.
            let to_main = self.to_main.clone();
            lookup.ask(move |found| match found {
                Ok(targets) => drop(to_main.send_waiting(ToMain::Addresses(targets))),
                Err(error) => log::warn!("cannot resolve the destination again: {error}"),
            });
        }
        let now = clock::now();
        let serial = self.sessions_started;
        self.sessions_started += 1;
        // The queue's memory is taken at once: not for more than there can be.
        let connections_max =
            self.config.connections_per_session_max.min(self.config.connections_max);
        let activity = Arc::new(Activity::new(now));
        let opened = self.connect_target().and_then(|mut socket| {
            let mut events = EventLoop::new()?;
            let wake = Wake::new(events.waker(SESSION_WAKE)?);
            let (orders_sender, orders) = Orders::new(connections_max, &wake);
            events.register(socket.source(), UDP, Interest::READABLE)?;
            let socket = Arc::new(socket);
            let session = Session {
                shared: Arc::clone(&self.shared),
                events,
                orders,
                socket: Arc::clone(&socket),
                activity: Arc::clone(&activity),
                links: Links::new(self.config.shared.queue_datagrams_max),
                silence_max: self.config.session_timeout,
                grace: match self.config.shared.framing {
                    Framing::Pool => self.config.session_grace,
                    // Nobody can come back to it.
                    Framing::Mullvad => Duration::ZERO,
                },
                // Its first connection is on its way, whatever the grace.
                deserted_until: Some(now + self.config.session_grace.max(FIRST_JOIN_MAX)),
            };
            let to_main = self.to_main.clone();
            let thread = thread::spawn("pool:s", serial, STACK, move || {
                let _gone = Tells { message: Some(ToMain::SessionGone { serial }), to_main };
                session.run()
            })?;
            Ok((orders_sender, thread, socket))
        });
        let (orders, thread, socket) =
            opened.map_err(|error| format!("cannot open a session: {error}"))?;
        let handle = SessionHandle { serial, id, orders, thread, socket, activity };
        self.sessions.insert(id, handle);
        self.shared.counters.sessions.add(1);
        self.shared.counters.sessions_opened.increment();
        self.shared.tell(id, &"opened");
        Ok(())
    }

    fn connect_target(&self) -> io::Result<UdpSocket> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for target in &self.targets {
            let socket = UdpSocket::bind(any_port(*target), false, self.config.shared.udp_buffers)
                .and_then(|socket| socket.connect(*target).map(|()| socket));
            match socket {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn bury_connection(&mut self, connection: u64) {
        let Some(handle) = self.connections.remove(&connection) else {
            return;
        };
        // A panic has been logged.
        let _ = handle.thread.join();
        let owner = handle
            .session
            .and_then(|serial| self.sessions.values_mut().find(|owner| owner.serial == serial));
        if let Some(owner) = owner {
            owner.orders.remove(connection);
        }
    }

    fn bury_session(&mut self, serial: u64) {
        let Some(id) =
            self.sessions.values().find(|owner| owner.serial == serial).map(|owner| owner.id)
        else {
            return;
        };
        if let Some(handle) = self.sessions.remove(&id) {
            let end = handle.thread.join().unwrap_or(SessionEnd::Fault);
            self.shared.tell(id, &format_args!("closed ({end:?})"));
            self.shared.counters.sessions.add(-1);
        }
        // Those that joined in its last moment too.
        for handle in self.connections.values().filter(|handle| handle.session == Some(serial)) {
            handle.orders.close();
        }
    }

    fn stop(mut self) {
        log::info!("stopping, {} sessions", self.sessions.len());
        for session in self.sessions.values() {
            session.orders.close();
        }
        for connection in self.connections.values() {
            connection.orders.close();
        }
        for (_, session) in self.sessions.drain() {
            let _ = session.thread.join();
        }
        for (_, connection) in self.connections.drain() {
            let _ = connection.thread.join();
        }
        log::info!("stopped");
    }
}

/// Tells the main thread of a thread's end, however it ends.
pub(super) struct Tells<T> {
    pub(super) message: Option<T>,
    pub(super) to_main: Sender<T>,
}

impl<T> Drop for Tells<T> {
    fn drop(&mut self) {
        if let Some(message) = self.message.take() {
            // Nobody listens any more when the process stops.
            let _ = self.to_main.send_waiting(message);
        }
    }
}
