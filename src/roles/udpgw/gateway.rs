//! The role's main thread: accepts within limits, starts a thread per client, and stops.

use super::client::{Client, GATEWAY_LOG_LINES, STOP, Shared, Stop};
use super::counters::{Counters, EndReason};
use super::sockets::{Budget, LocalPorts, PortPools};
use super::workbench::Workbenches;
use super::{Config, LocalAddresses, TlsFiles};
use crate::error::Error;
use crate::net::resolver::Resolver;
use crate::net::tls::{Acceptor, Identity, TlsError};
use crate::roles::frame::{Frame, Happening, WAKE};
use crate::roles::listening::{DESCRIPTORS_RESERVED, Listening, Room};
use crate::roles::startup::Startup;
use crate::runtime::clock;
use crate::runtime::event_loop::EventLoop;
use crate::runtime::queue::{self, Receiver, Sender, Wake};
use crate::runtime::thread::{self, Thread};
use crate::state::admission::Admission;
use crate::state::token_bucket::LogGate;
use mio::net::TcpStream;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// A client's thread needs about 10 KiB of stack over plain TCP; OpenSSL's handshake needs more.
const PLAIN_STACK: usize = 128 * 1024;
const TLS_STACK: usize = 256 * 1024;

/// Descriptors that every client is sure of: stream, poll, waker, its first UDP socket. A quarter of
/// all is kept for the other UDP sockets, whatever the number of clients.
const DESCRIPTORS_PER_CLIENT: u64 = 4;

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// A client's thread has ended.
struct Gone {
    id: u64,
}

struct ClientHandle {
    stop: Sender<Stop>,
    thread: Thread<EndReason>,
}

/// The clients and what starting one takes.
struct Gateway {
    shared: Arc<Shared>,
    acceptor: Option<Arc<Acceptor>>,
    clients: HashMap<u64, ClientHandle>,
    clients_started: u64,
    gone_sender: Sender<Gone>,
    /// Clients that the descriptor limit has room for.
    descriptor_clients_max: usize,
    limit_log: LogGate,
}

/// Serves until stopped.
pub(super) fn serve(config: Config, startup: Startup) -> Result<(), Error> {
    let mut frame = Frame::new(config.common.metrics, config.stats_interval)?;
    let acceptor = config.tls.as_ref().map(load_acceptor).transpose()?;
    let counters = Counters::new(&mut frame.registry);
    let mut listening = Listening::open(
        &mut frame.events,
        &config.listen,
        !config.listen_given,
        &config.stream,
        Arc::clone(&counters.accept_errors),
    )?;
    // Each client sends one message in its life, so this never fills.
    let (gone_sender, gone) = queue::bounded(config.clients_max, &frame.wake()?);
    let descriptors = startup.open_files_max.saturating_sub(DESCRIPTORS_RESERVED);
    let descriptor_clients_max = count(descriptors / 4 * 3 / DESCRIPTORS_PER_CLIENT).max(1);
    let clients_max = descriptor_clients_max.min(config.clients_max);
    let own_sockets_max = count(descriptors)
        .saturating_sub(clients_max.saturating_mul(count(DESCRIPTORS_PER_CLIENT)));
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
        workbenches: Workbenches::new(),
        pools: port_pools(&config),
        spare_sockets: Budget::new(own_sockets_max),
        admission: Mutex::new(Admission::new(config.clients_per_address_max)),
        log_gate: Mutex::new(LogGate::new(GATEWAY_LOG_LINES.0, GATEWAY_LOG_LINES.1)),
        config,
    });
    frame.ready(startup)?;
    let mut gateway = Gateway {
        shared,
        acceptor,
        clients: HashMap::new(),
        clients_started: 0,
        gone_sender,
        descriptor_clients_max,
        limit_log: LogGate::new(1, 5),
    };
    loop {
        let counters = &gateway.shared.counters;
        let numbers = || (counters.status_line(), counters.stats_line());
        match frame.next_happening(listening.next_deadline(), numbers)? {
            Happening::Stop => {
                drop(listening);
                gateway.stop();
                return Ok(());
            }
            Happening::Reload => gateway.reload(),
            Happening::Ready(WAKE, _) => {
                if gateway.bury(&gone) {
                    listening.room_again(&mut frame.events);
                }
            }
            Happening::Ready(token, readiness) => {
                let now = clock::now();
                let ready = (token, readiness);
                listening.accept(&mut frame.events, ready, now, |stream, address| {
                    gateway.admit(stream, address, now)
                });
            }
            Happening::RoundOver(now) => listening.resume(now, &mut frame.events),
        }
    }
}

fn count(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
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
    fn reload(&mut self) {
        let Some(files) = &self.shared.config.tls else {
            return;
        };
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

    /// Joins the clients that have ended; true if there were any.
    fn bury(&mut self, gone: &Receiver<Gone>) -> bool {
        let before = self.clients.len();
        for Gone { id } in gone.drain() {
            if let Some(client) = self.clients.remove(&id) {
                // It has said its last word; what is left of it takes no time. A panic has been
                // logged.
                let reason = client.thread.join().unwrap_or(EndReason::Fault);
                self.shared.counters.client_closed(reason);
                self.shared.counters.clients.add(-1);
            }
        }
        self.clients.len() < before
    }

    /// Clients beyond --max-clients are refused at once; those that only the descriptors have no
    /// room for wait.
    fn room(&self) -> Room {
        let clients = self.clients.len();
        if clients >= self.shared.config.clients_max || clients < self.descriptor_clients_max {
            Room::More
        } else {
            Room::Full
        }
    }

    fn admit(&mut self, stream: TcpStream, address: SocketAddr, now: Instant) -> io::Result<Room> {
        self.shared.counters.clients_accepted.increment();
        if self.clients.len() >= self.shared.config.clients_max {
            self.shared.counters.clients_over_limit.increment();
            if let Some(suppressed) = self.limit_log.pass(now) {
                log::warn!(
                    "client {address}: refused: --max-clients {} are connected ({suppressed} more \
                     lines)",
                    self.shared.config.clients_max
                );
            }
            return Ok(self.room());
        }
        // Never twice the same, not even after a failure: ends are told by it.
        let id = self.clients_started;
        self.clients_started += 1;
        let events = EventLoop::new()?;
        let (stop, stopped) = queue::bounded(1, &Wake::new(events.waker(STOP)?));
        let shared = Arc::clone(&self.shared);
        let acceptor = self.acceptor.as_deref();
        let client = Client::new(shared, id, address, stream, events, stopped, acceptor)?;
        let sender = self.gone_sender.clone();
        let stack = if self.acceptor.is_some() { TLS_STACK } else { PLAIN_STACK };
        let thread = thread::spawn("udpgw:c", id, stack, move || {
            // Made here: a thread that did not start tells nothing.
            let _gone = GoneOnDrop { id, sender };
            client.run()
        })?;
        self.clients.insert(id, ClientHandle { stop, thread });
        self.shared.counters.clients.add(1);
        Ok(self.room())
    }

    fn stop(mut self) {
        log::info!("stopping, {} clients", self.clients.len());
        for client in self.clients.values() {
            client.stop.close();
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
