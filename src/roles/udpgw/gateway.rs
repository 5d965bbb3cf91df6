//! The role's main thread: listens, accepts within limits, starts a thread per client, and stops.

use super::client::{Client, GATEWAY_LOG_LINES, STOP, Shared, Stop};
use super::counters::{Counters, EndReason};
use super::sockets::{LocalPorts, PortPools};
use super::workbench::Workbenches;
use super::{Config, LocalAddresses, TlsFiles};
use crate::error::Error;
use crate::net::resolver::Resolver;
use crate::net::tls::{Acceptor, Identity, TlsError};
use crate::net::{listen, tcp};
use crate::roles::startup::{ASKED_FOR, Running, Startup};
use crate::runtime::event_loop::{EventLoop, Readiness};
use crate::runtime::metrics::Registry;
use crate::runtime::queue::{self, Receiver, Sender};
use crate::runtime::scrape::{self, Scrapes};
use crate::runtime::signals::{Request, Signals};
use crate::runtime::thread::{self, Thread};
use crate::runtime::{clock, notify};
use crate::state::admission::Admission;
use crate::state::backoff::Backoff;
use crate::state::token_bucket::LogGate;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Token};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SIGNALS: Token = Token(0);
const GONE: Token = Token(1);
const FIRST_SCRAPE: usize = 2;
const FIRST_LISTENER: usize = FIRST_SCRAPE + scrape::TOKENS;

/// A client's thread needs about 10 KiB of stack over plain TCP; OpenSSL's handshake needs more.
const PLAIN_STACK: usize = 128 * 1024;
const TLS_STACK: usize = 256 * 1024;

/// Connections accepted per turn, so that a flood of them cannot keep signals waiting.
const ACCEPTS_PER_TURN: usize = 64;

/// Descriptors of a client without own-socket flows: stream, poll, waker, shared UDP socket.
const DESCRIPTORS_PER_CLIENT: u64 = 4;
/// Descriptors of the gateway itself, with every listener and scrape in use.
const DESCRIPTORS_RESERVED: u64 = 64;

/// How long accepting pauses when the system has no descriptors, memory or threads left.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// How often `systemctl status` is given new numbers.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// A client's thread has ended.
struct Gone {
    id: u64,
}

struct ClientHandle {
    stop: Sender<Stop>,
    thread: Thread<EndReason>,
}

/// What happens at intervals.
struct Ticker {
    interval: Option<Duration>,
    next: Option<Instant>,
}

impl Ticker {
    fn new(interval: Option<Duration>, now: Instant) -> Ticker {
        Ticker { interval, next: interval.and_then(|interval| now.checked_add(interval)) }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let due = self.next.is_some_and(|next| next <= now);
        if due {
            self.next = self.interval.and_then(|interval| now.checked_add(interval));
        }
        due
    }
}

struct Gateway {
    shared: Arc<Shared>,
    registry: Registry,
    events: EventLoop,
    signals: Signals,
    running: Running,
    scrapes: Option<Scrapes>,
    listeners: Vec<TcpListener>,
    acceptor: Option<Arc<Acceptor>>,
    clients: HashMap<u64, ClientHandle>,
    clients_started: u64,
    gone: Receiver<Gone>,
    gone_sender: Sender<Gone>,
    /// Clients that the descriptor limit has room for.
    descriptor_clients_max: usize,
    accept_pause: Backoff,
    accept_again: Option<Instant>,
    limit_log: LogGate,
}

/// Serves until stopped.
pub(super) fn serve(config: Config, startup: Startup) -> Result<(), Error> {
    let mut events = EventLoop::new().map_err(Error::while_doing(|| "cannot make a poll"))?;
    let mut signals =
        Signals::take().map_err(Error::while_doing(|| "cannot take over the signals"))?;
    events
        .register(&mut signals, SIGNALS, Interest::READABLE)
        .map_err(Error::while_doing(|| "cannot watch the signals"))?;
    let acceptor = config.tls.as_ref().map(load_acceptor).transpose()?;
    let mut listeners = open_listeners(&config)?;
    for (listener, token) in listeners.iter_mut().zip(FIRST_LISTENER..) {
        events
            .register(listener, Token(token), Interest::READABLE)
            .map_err(Error::while_doing(|| "cannot watch a listener"))?;
    }
    let scrapes = config
        .common
        .metrics
        .map(|address| {
            Scrapes::listen(address, &mut events, FIRST_SCRAPE).map_err(Error::while_doing(|| {
                format!("cannot listen for metrics on tcp {address}")
            }))
        })
        .transpose()?;
    let waker = events.waker(GONE).map_err(Error::while_doing(|| "cannot make a waker"))?;
    // Each client sends one message in its life, so this never fills.
    let (gone_sender, gone) = queue::bounded(config.clients_max, waker);
    let mut registry = Registry::new();
    let counters = Counters::new(&mut registry);
    let descriptor_clients_max = usize::try_from(
        startup.open_files_max.saturating_sub(DESCRIPTORS_RESERVED) / DESCRIPTORS_PER_CLIENT,
    )
    .unwrap_or(usize::MAX)
    .max(1);
    if descriptor_clients_max < config.clients_max {
        log::warn!(
            "the limit of {} open files has room for {descriptor_clients_max} clients, not for \
             --max-clients {}: raise LimitNOFILE or ulimit -n",
            startup.open_files_max,
            config.clients_max
        );
    }
    let shared = Arc::new(Shared {
        counters,
        resolver: Resolver::new(config.dns, Path::new(RESOLV_CONF)),
        workbenches: Workbenches::default(),
        pools: port_pools(&config),
        admission: Mutex::new(Admission::new(config.clients_per_address_max)),
        log_gate: Mutex::new(LogGate::new(GATEWAY_LOG_LINES.0, GATEWAY_LOG_LINES.1)),
        config,
    });
    for listener in &listeners {
        if let Ok(address) = listener.local_addr() {
            log::info!("listening on tcp {address}");
        }
    }
    if let Some(address) = scrapes.as_ref().and_then(|scrapes| scrapes.local_addr().ok()) {
        log::info!("serving metrics on tcp {address}");
    }
    let running = startup.ready()?;
    Gateway {
        shared,
        registry,
        events,
        signals,
        running,
        scrapes,
        listeners,
        acceptor,
        clients: HashMap::new(),
        clients_started: 0,
        gone,
        gone_sender,
        descriptor_clients_max,
        accept_pause: Backoff::new(ACCEPT_PAUSE.0, ACCEPT_PAUSE.1),
        accept_again: None,
        limit_log: LogGate::new(1, 5),
    }
    .run()
}

/// The listeners that the service manager passed in, and the configured ones. Passed ones stand in
/// for the default address, and for configured addresses that they have.
fn open_listeners(config: &Config) -> Result<Vec<TcpListener>, Error> {
    let inherited = listen::inherited_tcp_listeners()
        .map_err(Error::while_doing(|| "cannot take the passed listening sockets"))?;
    let mut listeners = Vec::new();
    let mut taken = Vec::new();
    for listener in inherited {
        taken.extend(listener.local_addr());
        listeners.push(
            tcp::adopt(listener, &config.stream)
                .map_err(Error::while_doing(|| "cannot use a passed listening socket"))?,
        );
    }
    if !listeners.is_empty() && !config.listen_given {
        return Ok(listeners);
    }
    for address in config.listen.iter().filter(|address| !taken.contains(address)) {
        listeners.push(
            tcp::listen(*address, &config.stream)
                .map_err(Error::while_doing(|| format!("cannot listen on tcp {address}")))?,
        );
    }
    Ok(listeners)
}

fn load_acceptor(files: &TlsFiles) -> Result<Arc<Acceptor>, TlsError> {
    let identity = Identity::load(&files.certificate, &files.key)?;
    Acceptor::new(&identity, files.client_ca.as_deref()).map(Arc::new)
}

fn port_pools(config: &Config) -> PortPools {
    let pool = |addresses: &Option<LocalAddresses>| {
        addresses
            .as_ref()
            .map(|given| LocalPorts::new(given.first, given.count, config.unique_local_ports))
    };
    PortPools { v4: pool(&config.local_v4), v6: pool(&config.local_v6) }
}

impl Gateway {
    fn run(mut self) -> Result<(), Error> {
        let now = clock::now();
        let mut stats = Ticker::new(self.shared.config.stats_interval, now);
        let mut watchdog = Ticker::new(notify::watchdog_interval(), now);
        let tells_status = std::env::var_os("NOTIFY_SOCKET").is_some();
        let mut status = Ticker::new(tells_status.then_some(STATUS_INTERVAL), now);
        // The first at once, so that `systemctl status` never shows a service without a status.
        status.next = status.next.map(|_| now);
        loop {
            let deadline = [stats.next, watchdog.next, status.next, self.accept_again]
                .into_iter()
                .flatten()
                .chain(self.scrapes.as_ref().and_then(Scrapes::next_deadline))
                .min();
            let timeout = deadline.map(|deadline| clock::until(deadline, clock::now()));
            self.events.wait(timeout).map_err(Error::while_doing(|| "cannot wait for events"))?;
            let now = clock::now();
            while let Some((token, readiness)) = self.events.next_ready() {
                match token {
                    SIGNALS => {
                        if self.obey() {
                            self.stop();
                            return Ok(());
                        }
                    }
                    GONE => self.bury(now),
                    token => self.handle_socket(token, readiness, now),
                }
            }
            if let Some(scrapes) = &mut self.scrapes {
                scrapes.expire(now, &mut self.events);
            }
            if self.accept_again.is_some_and(|again| again <= now) {
                self.accept_again = None;
                self.events.unpark();
            }
            if stats.is_due(now) {
                log::info!(target: ASKED_FOR, "{}", self.shared.counters.stats_line());
            }
            if watchdog.is_due(now) {
                notify::watchdog();
            }
            if status.is_due(now) {
                notify::status(&format!(
                    "{} clients, {} flows",
                    self.shared.counters.clients.get(),
                    self.shared.counters.flows.get()
                ));
            }
        }
    }

    fn handle_socket(&mut self, token: Token, readiness: Readiness, now: Instant) {
        if let Some(scrapes) = self.scrapes.as_mut().filter(|scrapes| scrapes.owns(token)) {
            scrapes.handle(token, readiness, now, &mut self.events, &self.registry);
        } else {
            self.accept(token, readiness, now);
        }
    }

    /// Does what signals ask for; true for stop.
    fn obey(&mut self) -> bool {
        let requests: Vec<Request> = self.signals.requests().collect();
        for request in requests {
            match request {
                Request::Stop => return true,
                Request::Reload => self.reload(),
                Request::Report => log::info!(target: ASKED_FOR, "{}", self.registry.summary()),
            }
        }
        false
    }

    fn reload(&mut self) {
        if let Err(error) = self.running.log.reopen() {
            log::error!("cannot reopen the log, the old file stays: {error}");
        }
        if let Some(files) = &self.shared.config.tls {
            match load_acceptor(files) {
                Ok(acceptor) => {
                    self.acceptor = Some(acceptor);
                    log::info!("certificate reloaded from {}", files.certificate.display());
                }
                Err(error) => {
                    self.shared.counters.certificate_reload_errors.increment();
                    log::error!("the old certificate stays in use: {error}");
                }
            }
        }
    }

    /// Joins the clients that have ended.
    fn bury(&mut self, now: Instant) {
        let gone: Vec<Gone> = self.gone.drain().collect();
        for Gone { id } in gone {
            let Some(client) = self.clients.remove(&id) else {
                continue;
            };
            // It has said its last word; what is left of it takes no time. A panic has been logged.
            let reason = client.thread.join().unwrap_or(EndReason::Fault);
            self.shared.counters.client_closed(reason);
            self.shared.counters.clients.add(-1);
        }
        // Their descriptors are back.
        if self.accept_again.take().is_some() {
            self.accept_pause.succeeded();
        }
        self.events.unpark();
        let _ = now;
    }

    fn accept(&mut self, token: Token, readiness: Readiness, now: Instant) {
        for _ in 0..ACCEPTS_PER_TURN {
            if self.clients.len() >= self.descriptor_clients_max {
                // The kernel's backlog holds them until a client goes.
                self.events.park(token, readiness);
                return;
            }
            let Some(listener) = self.listeners.get(token.0.wrapping_sub(FIRST_LISTENER)) else {
                return;
            };
            match listener.accept() {
                Ok((stream, address)) => {
                    self.shared.counters.clients_accepted.increment();
                    if let Err(error) = self.admit(stream, address, now) {
                        self.pause(&error, now);
                        self.events.park(token, readiness);
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // accept(2): errors of the connection itself are like those of no connection.
                Err(error) if is_connection_error(&error) => {}
                Err(error) => {
                    self.pause(&error, now);
                    self.events.park(token, readiness);
                    return;
                }
            }
        }
        self.events.again(token, readiness);
    }

    fn pause(&mut self, error: &io::Error, now: Instant) {
        self.shared.counters.accept_errors.increment();
        let pause = self.accept_pause.failed();
        self.accept_again = now.checked_add(pause);
        if let Some(suppressed) = self.limit_log.pass(now) {
            log::error!("cannot accept clients for {pause:?}: {error} ({suppressed} more lines)");
        }
    }

    fn admit(&mut self, stream: TcpStream, address: SocketAddr, now: Instant) -> io::Result<()> {
        if self.clients.len() >= self.shared.config.clients_max {
            self.shared.counters.clients_over_limit.increment();
            if let Some(suppressed) = self.limit_log.pass(now) {
                log::warn!(
                    "client {address}: refused: --max-clients {} are connected ({suppressed} more \
                     lines)",
                    self.shared.config.clients_max
                );
            }
            return Ok(());
        }
        let id = self.clients_started;
        let events = EventLoop::new()?;
        let (stop, stopped) = queue::bounded(1, events.waker(STOP)?);
        let shared = Arc::clone(&self.shared);
        let acceptor = self.acceptor.as_deref();
        let client = Client::new(shared, id, address, stream, events, stopped, acceptor)?;
        let gone = GoneOnDrop { id, sender: self.gone_sender.clone() };
        let stack = if self.acceptor.is_some() { TLS_STACK } else { PLAIN_STACK };
        let thread = thread::spawn("udpgw:c", id, stack, move || {
            let _gone = gone;
            client.run()
        })?;
        self.clients_started += 1;
        self.clients.insert(id, ClientHandle { stop, thread });
        self.shared.counters.clients.add(1);
        self.accept_pause.succeeded();
        Ok(())
    }

    fn stop(mut self) {
        notify::stopping();
        log::info!("stopping, {} clients", self.clients.len());
        self.listeners.clear();
        for client in self.clients.values() {
            // A client that does not take it has ended already.
            let _ = client.stop.send(Stop);
        }
        for (_, client) in self.clients.drain() {
            let reason = client.thread.join().unwrap_or(EndReason::Fault);
            self.shared.counters.client_closed(reason);
        }
        log::info!("stopped");
    }
}

/// Tells the main thread of a client's end, however it ends.
struct GoneOnDrop {
    id: u64,
    sender: Sender<Gone>,
}

impl Drop for GoneOnDrop {
    fn drop(&mut self) {
        if self.sender.send(Gone { id: self.id }).is_err() {
            log::error!("a client's end could not be told");
        }
    }
}

/// Errors of `accept` that say something of one connection and nothing of the next (accept(2)).
fn is_connection_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::TimedOut
            | io::ErrorKind::PermissionDenied
    )
}
