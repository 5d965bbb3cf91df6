//! `pool server`: the main thread, which groups accepted connections into sessions.

mod admit;

use self::admit::staying_max;
use super::batch::LinkHandle;
use super::connection::Begin;
use super::session::{Orders, SessionEnd};
use super::{Activity, ServerConfig, ServerTls, Shared};
use crate::error::Error;
use crate::net::tcp::{Keepalive, StreamOptions};
use crate::net::tls::{Acceptor, Identity, TlsError};
use crate::net::udp::UdpSocket;
use crate::roles::frame::{Frame, Happening, WAKE};
use crate::roles::listening::{Listening, room_for};
use crate::roles::lookup::Lookup;
use crate::roles::startup::Startup;
use crate::runtime::clock;
use crate::runtime::queue::{self, Receiver, Sender};
use crate::runtime::thread::Thread;
use crate::state::set_ups::SetUps;
use crate::state::token_bucket::LogGate;
use crate::wire::pool::SessionId;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// OpenSSL's handshake needs more than our own code.
const STACK: usize = 256 * 1024;

/// How long a new session waits for its first connection, which is only a message away.
const FIRST_JOIN_MAX: Duration = Duration::from_secs(10);

/// Messages from the threads that may wait; more make the sender wait.
const MESSAGES_MAX: usize = 1024;

/// Descriptors of a connection, on both sides: stream, poll, waker. A session has three as well.
pub(super) const DESCRIPTORS_EACH: u64 = 4;

/// A dead connection is given up after 25 s: of silence, with two probes in the last ten, or of
/// unacknowledged data. Batches avoid it long before that.
pub(super) const KEEPALIVE: Keepalive =
    Keepalive { idle: Duration::from_secs(15), interval: Duration::from_secs(5), probes: 2 };

/// Without --max-handshakes so many of the connections may be without a session id: the others are
/// safe from floods of those who say nothing.
const SET_UPS_PART: usize = 4;
/// The connections of the largest --pool-size come at once.
const SET_UPS_MAX_LEAST: usize = 64;

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
    /// It has been told to end, for another one's sake.
    is_leaving: bool,
}

struct SessionHandle {
    serial: u64,
    id: SessionId,
    orders: Orders,
    thread: Thread<SessionEnd>,
    socket: Arc<UdpSocket>,
    activity: Arc<Activity>,
    /// While it has no connections.
    deserted_since: Option<Instant>,
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
    /// Those of them that are leaving.
    connections_leaving: usize,
    set_ups: SetUps,
    sessions: HashMap<SessionId, SessionHandle>,
    sessions_started: u64,
    /// Sessions that had to go for another one, until their threads have ended.
    sessions_leaving: HashMap<u64, (SessionId, Thread<SessionEnd>)>,
    /// Connections and sessions, both together, that there are descriptors for.
    descriptor_room: usize,
    limit_log: LogGate,
}

/// Serves until stopped.
pub(super) fn serve(config: ServerConfig, startup: Startup) -> Result<(), Error> {
    let mut frame = Frame::new(config.shared.common.metrics, None)?;
    let acceptor = config.tls.as_ref().map(load_acceptor).transpose()?;
    let shared = Arc::new(Shared::new(&mut frame.registry));
    let destination = &config.shared.destination;
    let targets = destination
        .resolve()
        .map_err(Error::while_doing(|| format!("cannot resolve {destination}")))?;
    let lookup = match destination.host.parse::<std::net::IpAddr>() {
        Ok(_) => None,
        Err(_) => Some(
            Lookup::start("pool:lookup", destination.clone())
                .map_err(Error::while_doing(|| "cannot start a thread"))?,
        ),
    };
    let mut listening = Listening::open(
        &mut frame.events,
        &config.listen,
        config.listen_is_default,
        &STREAM_OPTIONS,
        Arc::clone(&shared.counters.accept_errors),
    )?;
    let (to_main, from_threads) = queue::bounded(MESSAGES_MAX, &frame.wake()?);
    let descriptor_room = room_for(startup.open_files_max, DESCRIPTORS_EACH);
    frame.ready(startup)?;
    let connections_max = config.connections_max.min(staying_max(descriptor_room));
    let set_ups_max =
        config.set_ups_max.unwrap_or((connections_max / SET_UPS_PART).max(SET_UPS_MAX_LEAST));
    let mut server = Server {
        config,
        shared,
        acceptor,
        lookup,
        targets,
        to_main,
        connections: HashMap::new(),
        connections_started: 0,
        connections_leaving: 0,
        set_ups: SetUps::new(set_ups_max),
        sessions: HashMap::new(),
        sessions_started: 0,
        sessions_leaving: HashMap::new(),
        descriptor_room,
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

    fn bury_connection(&mut self, connection: u64) {
        let Some(handle) = self.connections.remove(&connection) else {
            return;
        };
        self.set_ups.end(connection);
        self.connections_leaving -= usize::from(handle.is_leaving);
        // A panic has been logged.
        let _ = handle.thread.join();
        let Some(serial) = handle.session else {
            return;
        };
        // Not sooner: who sees that there are fewer finds room for another one.
        self.shared.counters.connections.add(-1);
        let owner = self.sessions.values_mut().find(|owner| owner.serial == serial);
        if let Some(owner) = owner {
            owner.orders.remove(connection);
            if owner.orders.connections() == 0 {
                owner.deserted_since = Some(clock::now());
            }
        }
    }

    fn bury_session(&mut self, serial: u64) {
        let find = |owner: &&SessionHandle| owner.serial == serial;
        let found = match self.sessions.values().find(find).map(|owner| owner.id) {
            Some(id) => self.sessions.remove(&id).map(|owner| (id, owner.thread)),
            None => self.sessions_leaving.remove(&serial),
        };
        if let Some((id, thread)) = found {
            let end = thread.join().unwrap_or(SessionEnd::Fault);
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
        for (_, (_, thread)) in self.sessions_leaving.drain() {
            let _ = thread.join();
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
