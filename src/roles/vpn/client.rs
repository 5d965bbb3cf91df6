//! `vpn client`: the main thread, which finds the server, gets addresses from it, and sets the host
//! up with them.

mod asked;
mod conversation;
mod settle;

use super::counters::{Counters, Loss};
use super::device::Device;
use super::identity::Identity;
use super::outbox::Outbox;
use super::sockets::Sockets;
use super::{
    ClientConfig, DEVICE, HOOK_STACK, MEND_DELAY, REPEAT_DELAY, listen, listen_to_tables,
    mend_tables, socket_path, tell_plaintext,
};
use crate::error::Error;
use crate::net::netlink::changes::Changes;
use crate::net::random;
use crate::roles::control::{self, Control};
use crate::roles::data_plane::Plane;
use crate::roles::data_plane::counters::PeerCounters;
use crate::roles::data_plane::orders::{Order, REPORTS_PER_TURN, Report};
use crate::roles::data_plane::table::{Peer, SocketId, Table, TableOptions};
use crate::roles::frame::{FIRST_OWN, Frame, Happening, WAKE};
use crate::roles::host::client::ClientPlan;
use crate::roles::host::{Host, Places, hooks};
use crate::roles::lookup::{self, Lookup};
use crate::roles::startup::Startup;
use crate::runtime::clock;
use crate::runtime::errands::Errands;
use crate::runtime::event_loop::{EventLoop, Readiness};
use crate::runtime::queue::{self, Receiver, Sender};
use crate::runtime::wakes::Wakes;
use crate::state::access::Prefix;
use crate::state::token_bucket::LogGate;
use crate::state::vpn::connection::{Connection, Step};
use crate::wire::vpn::Request;
use mio::{Interest, Token};
use settle::Settled;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

/// Word of the network's changes; the control socket's tokens stand before it.
const CHANGES: Token = Token(FIRST_OWN + control::TOKENS);
/// Word that the machine has slept.
const WAKES: Token = Token(CHANGES.0 + 1);
/// Word of changes of nftables, and of rules, which are no changes of the network: most are our own.
const TABLES: Token = Token(CHANGES.0 + 2);
const RULES: Token = Token(CHANGES.0 + 3);
/// One lookup is under way at a time; a late answer may wait beside it.
const ANSWERS_MAX: usize = 2;
/// Hooks run on a thread of their own: a slow one holds up nothing but the next.
const HOOKS_MAX: usize = 4;

/// What a running client has.
struct Client {
    config: ClientConfig,
    started: Instant,
    identity: Identity,
    connection: Connection,
    /// `None` where the server is an address.
    lookup: Option<Lookup>,
    found: Sender<lookup::Answer>,
    device: Device,
    sockets: Sockets,
    plane: Plane,
    outbox: Outbox,
    hooks: Errands,
    counters: Counters,
    server_counters: Arc<PeerCounters>,
    /// What the server has given us, and what has been made of it.
    settled: Option<Settled>,
    /// The host's set-up that is in force.
    routed: Option<ClientPlan>,
    /// When all is undone unless the operator confirms.
    confirm_by: Option<Instant>,
    /// When to look after routes and rules, and after tables of nftables.
    mend_routes_at: Option<Instant>,
    /// When to end what a lookup has needed.
    close_lookups_at: Option<Instant>,
    mend_tables_at: Option<Instant>,
    /// Anybody may say "who are you" in the server's name.
    log_gate: LogGate,
}

/// What the main thread receives from others.
struct Inbox {
    reports: Receiver<Report>,
    found: Receiver<lookup::Answer>,
    changes: Changes,
    wakes: Wakes,
    rules: Changes,
    tables: Option<Changes>,
}

/// Serves until stopped.
pub(super) fn serve(config: ClientConfig, startup: Startup) -> Result<(), Error> {
    let shared = &config.shared;
    tell_plaintext(&shared.tun, "whoever is on the way may read and change them");
    let mut frame = Frame::new(shared.common.metrics, None)?;
    // First, as two processes cannot have one tunnel.
    let path = socket_path(&shared.runtime_dir, &shared.tun);
    let mut control = Control::listen(&path, &mut frame.events, FIRST_OWN)?;
    let places = Places::new(&shared.runtime_dir);
    let mut host = Host::open(places, &shared.tun, config.kill_switch)?;
    let tun = shared.tun.clone();
    let mut is_unconfirmed = false;
    let result = Client::start(config, &mut frame).and_then(|(mut client, mut inbox)| {
        let result = client
            .begin(&mut host)
            .and_then(|()| frame.ready(startup))
            .and_then(|()| client.serve(&mut frame, &mut control, &mut inbox, &mut host));
        is_unconfirmed = client.confirm_by.is_some();
        client.stop();
        result
    });
    // Whatever it was that failed: nothing shall leave until somebody has said so.
    if result.is_err() && !is_unconfirmed {
        if let Err(error) = host.undo_but_kill_switch() {
            log::error!("{error}");
        }
        if host.is_guarded() {
            log::error!("{tun}: the kill switch stays in force; `udpferry vpn down` removes it");
        }
    } else {
        host.undo();
    }
    result
}

impl Client {
    fn start(config: ClientConfig, frame: &mut Frame) -> Result<(Client, Inbox), Error> {
        let now = clock::now();
        let shared = &config.shared;
        let directory = shared.state_dir.as_ref().unwrap_or(&shared.runtime_dir);
        let identity = Identity::open(directory, &shared.tun)?;
        let sockets = Sockets::any(shared)?;
        let device = Device::open(&shared.tun, shared.offload)?;
        let rules = listen(Changes::of_rules(), frame, RULES)
            .map_err(Error::while_doing(|| "cannot listen to changes of routing rules"))?;
        let changes = listen(Changes::open(), frame, CHANGES)
            .map_err(Error::while_doing(|| "cannot listen to the network's changes"))?;
        let cannot_listen = || "cannot listen to the machine's sleep";
        let mut wakes = Wakes::open().map_err(Error::while_doing(cannot_listen))?;
        let registered = frame.events.register(&mut wakes, WAKES, Interest::READABLE);
        registered.map_err(Error::while_doing(cannot_listen))?;
        let tables = listen_to_tables(config.kill_switch, frame, TABLES);
        let counters = Counters::new(&mut frame.registry);
        let wake = frame.wake()?;
        let (plane, reports) = Plane::start("vpn", &wake, &mut frame.registry)?;
        for order in sockets.orders() {
            plane.order(&order);
        }
        plane.order(&Order::AddDevice(DEVICE, Arc::clone(&device.tun)));
        let (found, answers) = queue::bounded(ANSWERS_MAX, &wake);
        let cannot_start = || "cannot start a thread";
        let is_address = config.server.host.parse::<IpAddr>().is_ok();
        let lookup = (!is_address)
            .then(|| Lookup::start("vpn:lookup", config.server.clone()))
            .transpose()
            .map_err(Error::while_doing(cannot_start))?;
        let hooks = Errands::start("vpn:hooks", HOOKS_MAX, HOOK_STACK)
            .map_err(Error::while_doing(cannot_start))?;
        let client = Client {
            started: now,
            identity,
            connection: Connection::new(now),
            lookup,
            found,
            device,
            sockets,
            plane,
            outbox: Outbox::default(),
            hooks,
            counters,
            server_counters: Arc::new(PeerCounters::new(now)),
            settled: None,
            routed: None,
            confirm_by: None,
            mend_routes_at: None,
            close_lookups_at: None,
            mend_tables_at: None,
            log_gate: LogGate::new(1, 5),
            config,
        };
        Ok((client, Inbox { reports, found: answers, changes, wakes, rules, tables }))
    }

    /// The kill switch first; then tries the addresses of the last run while the name is looked up.
    fn begin(&mut self, host: &mut Host) -> Result<(), Error> {
        let known = self.identity.servers(&self.config.server);
        self.guard(host)?;
        if known.is_empty() || self.lookup.is_none() { Ok(()) } else { self.try_first(known, host) }
    }

    fn serve(
        &mut self,
        frame: &mut Frame,
        control: &mut Control,
        inbox: &mut Inbox,
        host: &mut Host,
    ) -> Result<(), Error> {
        let mut stops = false;
        while !stops {
            let deadline = [
                self.connection.next_deadline(),
                self.confirm_by,
                self.mend_routes_at,
                self.mend_tables_at,
                self.close_lookups_at,
                control.next_deadline(),
            ];
            let deadline = deadline.into_iter().flatten().min();
            let numbers = || {
                let line = self.status_line();
                (line.clone(), line)
            };
            match frame.next_happening(deadline, numbers)? {
                Happening::Stop => return Ok(()),
                // A hook of the system's may have sent it.
                Happening::Reload => self.connection.on_network_change(clock::now()),
                Happening::Ready(WAKE, _) => self.hear(inbox, host, &mut frame.events)?,
                Happening::Ready(CHANGES, _) => {
                    if inbox.changes.take() {
                        let now = clock::now();
                        self.connection.on_network_change(now);
                        self.mend_routes_at.get_or_insert(now + MEND_DELAY);
                    }
                }
                Happening::Ready(RULES, _) => {
                    if inbox.rules.take() {
                        self.mend_routes_at.get_or_insert(clock::now() + MEND_DELAY);
                    }
                }
                Happening::Ready(TABLES, _) => {
                    if inbox.tables.as_mut().is_some_and(Changes::take) {
                        self.mend_tables_at.get_or_insert(clock::now() + MEND_DELAY);
                    }
                }
                Happening::Ready(WAKES, _) => {
                    if inbox.wakes.take() {
                        log::debug!("the machine has slept, or its clock was set");
                        self.connection.on_network_change(clock::now());
                    }
                }
                Happening::Ready(token, readiness) => {
                    let now = clock::now();
                    let Frame { events, registry, .. } = &mut *frame;
                    control.handle((token, readiness), now, events, |question| {
                        stops = question == "down";
                        self.answer(question, now, registry)
                    });
                }
                Happening::RoundOver(now) => {
                    control.expire(now, &mut frame.events);
                    stops |= self.tend(now, host)?;
                }
            }
        }
        Ok(())
    }

    fn hear(
        &mut self,
        inbox: &Inbox,
        host: &mut Host,
        events: &mut EventLoop,
    ) -> Result<(), Error> {
        let now = clock::now();
        for answer in inbox.found.drain() {
            self.close_lookups(now, host);
            match answer {
                Ok(servers) => self.resolved(now, servers, host)?,
                Err(error) => {
                    log::warn!("cannot resolve {}: {error}", self.config.server);
                    self.connection.unresolved(now, chance());
                }
            }
        }
        let mut heard = 0;
        for report in inbox.reports.drain().take(REPORTS_PER_TURN) {
            heard += 1;
            match report {
                Report::Control { source, bytes, .. } => self.listen(now, source, &bytes, host)?,
                // The table lets nobody else in.
                Report::Stranger { .. } => {}
                Report::DeviceGone { error, .. } => {
                    return Err(gone(&format!("the device {}", self.config.shared.tun), error));
                }
                Report::SocketGone { error, .. } => return Err(gone("a socket", error)),
                Report::ThreadGone { thread, error } => {
                    let error = error.unwrap_or_else(|| io::Error::other("it panicked"));
                    return Err(gone(&format!("the thread {thread}"), error));
                }
            }
        }
        if heard == REPORTS_PER_TURN {
            // The wake has been answered: nobody wakes us for what is left.
            events.again(WAKE, Readiness::READABLE);
        }
        Ok(())
    }

    /// Does what is due; returns whether all is over.
    fn tend(&mut self, now: Instant, host: &mut Host) -> Result<bool, Error> {
        if self.confirm_by.is_some_and(|by| by <= now) {
            let tun = &self.config.shared.tun;
            log::warn!(target: crate::roles::startup::ASKED_FOR, "{tun}: not confirmed, stopping");
            // This is the end that was asked for.
            self.confirm_by = None;
            return Ok(true);
        }
        if self.mend_routes_at.is_some_and(|at| at <= now) {
            self.mend_routes_at = (!host.mend_routes()).then(|| now + REPEAT_DELAY);
        }
        mend_tables(&mut self.mend_tables_at, now, host);
        if self.close_lookups_at.is_some_and(|at| at <= now) {
            self.close_lookups(now, host);
        }
        while let Some(step) = self.connection.poll(now, random_number()) {
            match step {
                Step::Resolve => self.look_up(now, host)?,
                Step::Hello { to, tx, cookie } => {
                    let (ipv4, ipv6) = self.wishes();
                    let client = self.identity.id;
                    self.say(to, &Request::Hello { tx, cookie, client, ipv4, ipv6 });
                }
                Step::Keepalive { to, tx } => {
                    self.say(to, &Request::Keepalive { tx, client: self.identity.id });
                }
                Step::Lost => self.lose(now, Loss::Silence, "it does not answer"),
            }
        }
        self.outbox.send(&self.sockets, &self.counters);
        Ok(false)
    }

    fn look_up(&mut self, now: Instant, host: &mut Host) -> Result<(), Error> {
        let Some(lookup) = &self.lookup else {
            let servers = self.config.server.resolve().unwrap_or_default();
            return self.resolved(now, servers, host);
        };
        if self.connection.is_searching() {
            // The tunnel is down, and it may be that the server has moved.
            if let Err(error) = host.open_lookups() {
                log::error!("{error}");
            }
        }
        let found = self.found.clone();
        let is_asked = lookup.ask(move |answer| {
            // Full, or nobody listens any more: the next one is as good.
            let _ = found.send(answer);
        });
        if !is_asked {
            self.close_lookups(now, host);
            self.connection.unresolved(now, chance());
        }
        Ok(())
    }

    /// Names are asked for in the tunnel again; what fails is tried again.
    pub(super) fn close_lookups(&mut self, now: Instant, host: &mut Host) {
        let closed = host.close_lookups();
        self.close_lookups_at = closed.is_err().then(|| now + REPEAT_DELAY);
        if let Err(error) = closed {
            log::error!("{}: {error}; trying again", self.config.shared.tun);
        }
    }

    /// Only the server is listened to, and it is the only peer.
    fn publish(&self) {
        let servers = self.connection.servers().iter();
        let host =
            |server: &SocketAddr| Prefix::new(server.ip(), if server.is_ipv4() { 32 } else { 128 });
        let options = TableOptions {
            peer_to_peer: false,
            reports_strangers: false,
            allow_from: servers.filter_map(host).collect(),
            own: self.device.addresses().iter().map(|network| network.address).collect(),
        };
        let peer = self.settled.as_ref().and_then(|settled| {
            let socket = u32::try_from(self.sockets.number_for(settled.server)?).ok()?;
            let counters = Arc::clone(&self.server_counters);
            Some(Arc::new(Peer::new(settled.server, SocketId(socket), DEVICE, counters)))
        });
        self.plane.order(&Order::Table(Arc::new(Table::new(peer, options))));
    }

    fn stop(mut self) {
        log::info!("{}: stopping", self.config.shared.tun);
        if let (Some(command), Some(_)) = (&self.config.shared.hooks.down, &self.settled) {
            hooks::run_last(&self.hooks, command, self.facts());
        }
        if let (Some(server), true) = (self.connection.server(), self.settled.is_some()) {
            self.say(server, &Request::Goodbye { client: self.identity.id });
            self.outbox.send(&self.sockets, &self.counters);
        }
        self.plane.stop();
    }
}

fn gone(what: &str, cause: io::Error) -> Error {
    Error::System { doing: format!("{what} is gone"), cause }
}

/// Without chance numbers are still known only to whoever gets them.
fn random_number() -> u64 {
    random::bytes().map_or(0, u64::from_ne_bytes)
}

fn chance() -> u16 {
    random::bytes().map_or(0, u16::from_ne_bytes)
}
