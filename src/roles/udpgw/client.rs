//! The thread of one TCP client: owns its stream, its UDP sockets and its flows.

use super::counters::{Counters, EndReason, FlowEnd, Tally, Totals};
use super::sockets::{Budget, PortPools, Sockets};
use super::workbench::{Workbench, Workbenches};
use super::{Config, inbound, outbound};
use crate::net::resolver::Resolver;
use crate::net::stream::{Socket, Stream};
use crate::net::tls::Acceptor;
use crate::runtime::clock;
use crate::runtime::event_loop::{EventLoop, Readiness};
use crate::runtime::queue::Receiver;
use crate::state::admission::Admission;
use crate::state::flow_table::{FlowId, FlowTable};
use crate::state::token_bucket::LogGate;
use crate::wire::length_prefix::Unfinished;
use crate::wire::proxy_protocol::{self, Source};
use mio::net::TcpStream;
use mio::{Interest, Token};
use std::fmt::{Display, Write as _};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub(super) const STREAM: Token = Token(0);
pub(super) const STOP: Token = Token(1);

/// From accept to the end of the PROXY header and the TLS handshake. A phone on a bad network needs
/// about three; longer only helps those who hold connections open.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Log lines about dropped datagrams, per client and for all of them together: enough to see what
/// goes on, too few to fill a disk.
const CLIENT_LOG_LINES: (u32, u32) = (1, 3);
pub(super) const GATEWAY_LOG_LINES: (u32, u32) = (20, 40);

/// What all clients' threads share.
pub(super) struct Shared {
    pub config: Config,
    pub counters: Counters,
    pub resolver: Resolver,
    pub workbenches: Workbenches,
    pub pools: PortPools,
    pub spare_sockets: Budget,
    pub admission: Mutex<Admission>,
    pub log_gate: Mutex<LogGate>,
}

/// The queue to a client carries nothing: closing it stops the client.
#[derive(Debug)]
pub(super) enum Stop {}

/// A client counted against its address's limit, until dropped.
struct AddressSlot {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl AddressSlot {
    fn take(shared: &Arc<Shared>, address: SocketAddr) -> Option<AddressSlot> {
        let mut admission = shared.admission.lock().unwrap_or_else(PoisonError::into_inner);
        let admitted = admission.admit(address.ip());
        admitted.then(|| AddressSlot { shared: Arc::clone(shared), address })
    }
}

impl Drop for AddressSlot {
    fn drop(&mut self) {
        let mut admission = self.shared.admission.lock().unwrap_or_else(PoisonError::into_inner);
        admission.release(self.address.ip());
    }
}

/// How far a connection has come.
enum Phase {
    /// The PROXY header is expected.
    ProxyHeader,
    /// TLS shakes hands; over plain TCP there is nothing to shake.
    Handshake,
    /// Frames flow.
    Serving,
}

/// One client.
pub(super) struct Client {
    pub shared: Arc<Shared>,
    /// The client's own address, or the one that a PROXY header told.
    address: SocketAddr,
    pub stream: Stream,
    pub events: EventLoop,
    stop: Receiver<Stop>,
    phase: Phase,
    address_slot: Option<AddressSlot>,
    /// When the client was last heard: accepted, or a whole frame.
    pub heard: Instant,
    pub unfinished: Unfinished,
    /// Frames that the stream would not take yet. While there are any, no UDP socket is read.
    pub unsent: Vec<u8>,
    pub flows: FlowTable,
    pub sockets: Sockets,
    pub tally: Tally,
    totals: Totals,
    log_gate: LogGate,
}

/// Why the client is over; `Ok` goes on.
pub(super) type Verdict = Result<(), EndReason>;

impl Client {
    /// A client just accepted; `events` watches `stop` already. Fails when the system has no room.
    pub(super) fn new(
        shared: Arc<Shared>,
        id: u64,
        address: SocketAddr,
        socket: TcpStream,
        mut events: EventLoop,
        stop: Receiver<Stop>,
        acceptor: Option<&Acceptor>,
    ) -> io::Result<Client> {
        let mut socket = Socket::new(socket);
        events.register(&mut socket, STREAM, Interest::READABLE | Interest::WRITABLE)?;
        let stream = match acceptor {
            Some(acceptor) => {
                Stream::Server(Box::new(acceptor.wrap(socket).map_err(io::Error::other)?))
            }
            None => Stream::Plain(socket),
        };
        let config = &shared.config;
        let flows = FlowTable::new(config.flows_per_client_max, config.flow_timeout);
        let sockets = Sockets::new(config.udp_buffers, id);
        let now = clock::now();
        Ok(Client {
            address,
            stream,
            events,
            stop,
            phase: Phase::ProxyHeader,
            address_slot: None,
            heard: now,
            unfinished: Unfinished::default(),
            unsent: Vec::new(),
            flows,
            sockets,
            tally: Tally::default(),
            totals: Totals::default(),
            log_gate: LogGate::new(CLIENT_LOG_LINES.0, CLIENT_LOG_LINES.1),
            shared,
        })
    }

    /// The thread's body: serves until the client ends, and says why it did.
    pub(super) fn run(mut self) -> EndReason {
        let reason = loop {
            if let Err(reason) = self.round() {
                break reason;
            }
        };
        if !matches!(reason, EndReason::StreamError) {
            self.stream.close();
        }
        self.forget_flows();
        log::info!(
            "client {}: gone ({reason}); {} datagrams to remotes, {} to the client, {} dropped",
            self.address,
            self.totals.datagrams_to_remote,
            self.totals.datagrams_to_client,
            self.totals.dropped
        );
        reason
    }

    /// One wait and all that it brought.
    fn round(&mut self) -> Verdict {
        let timeout = self.next_deadline().map(|deadline| clock::until(deadline, clock::now()));
        self.events.wait(timeout).map_err(|error| self.fault("cannot wait for events", &error))?;
        let now = clock::now();
        let mut bench = None;
        let verdict = self.handle_events(now, &mut bench);
        if let Some(bench) = bench {
            self.shared.workbenches.give_back(bench);
        }
        let verdict = verdict.and_then(|()| self.expire(now));
        // After all that counts: the next wake may be long in coming.
        self.tally.report(&self.shared.counters, &mut self.totals);
        verdict
    }

    fn handle_events(&mut self, now: Instant, bench: &mut Option<Box<Workbench>>) -> Verdict {
        while let Some((token, readiness)) = self.events.next_ready() {
            if token == STOP {
                if self.stop.is_closed() {
                    return Err(EndReason::Stopped);
                }
                continue;
            }
            if token == STREAM && !matches!(self.phase, Phase::Serving) {
                self.advance(readiness, now)?;
                continue;
            }
            let bench = bench.get_or_insert_with(|| self.shared.workbenches.take());
            if token == STREAM {
                // TLS may have waited for something to read before it could write.
                if readiness.writable || !matches!(self.stream, Stream::Plain(_)) {
                    outbound::write_unsent(self)?;
                }
                if readiness.readable || readiness.read_closed {
                    inbound::read_stream(self, bench, readiness, now)?;
                }
            } else if let Some(socket) = Sockets::by_token(token) {
                if self.unsent.is_empty() {
                    outbound::read_socket(self, bench, token, socket, now)?;
                } else {
                    self.events.park(token, readiness);
                }
            }
        }
        match bench {
            Some(bench) => outbound::write_output(self, &mut bench.output),
            None => Ok(()),
        }
    }

    /// Goes through the phases before the first frame.
    fn advance(&mut self, readiness: Readiness, now: Instant) -> Verdict {
        if matches!(self.phase, Phase::ProxyHeader) {
            if self.shared.config.proxy_protocol {
                match self.read_proxy_header() {
                    Ok(true) => {}
                    // The rest will never come, and no further event will tell so.
                    Ok(false) if readiness.read_closed => {
                        self.complain(now, || "no PROXY header: closed in the middle of it");
                        return Err(EndReason::ProxyHeader);
                    }
                    Ok(false) => return Ok(()),
                    Err(cause) => {
                        self.complain(now, || format!("no PROXY header: {cause}"));
                        return Err(EndReason::ProxyHeader);
                    }
                }
            }
            self.address_slot = AddressSlot::take(&self.shared, self.address);
            if self.address_slot.is_none() {
                let max = self.shared.config.clients_per_address_max;
                self.complain(now, || format!("refused: its address has {max} clients already"));
                return Err(EndReason::AddressLimit);
            }
            self.phase = Phase::Handshake;
        }
        match self.stream.handshake() {
            Ok(()) => {
                self.phase = Phase::Serving;
                // A slow handshake is not the silence of a client.
                self.heard = now;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => {
                self.complain(now, || format!("TLS handshake failed: {error}"));
                return Err(EndReason::TlsHandshake);
            }
        }
        log::info!("client {}: connected", self.address);
        // The socket, or TLS, may hold frames already that no further event will tell of.
        self.events.again(STREAM, Readiness { readable: true, ..readiness });
        Ok(())
    }

    /// Takes the PROXY header off the front of the stream, and nothing more. `Ok(false)` while it
    /// is incomplete.
    #[inline(never)] // Its buffer would be a page of every client's stack for life.
    fn read_proxy_header(&mut self) -> Result<bool, String> {
        let mut bytes = [0; proxy_protocol::HEADER_MAX];
        let socket = self.stream.socket();
        let len = match socket.tcp().peek(&mut bytes) {
            Ok(0) => return Err("connection closed".to_owned()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.to_string()),
        };
        let header = proxy_protocol::parse(&bytes[..len]).map_err(|error| error.to_string())?;
        let Some(header) = header else {
            return Ok(false);
        };
        // The bytes wait in the socket: they have just been seen there.
        socket.read_exact(&mut bytes[..header.len]).map_err(|error| error.to_string())?;
        if let Source::Proxied { source, .. } = header.source {
            self.address = SocketAddr::new(source.ip().to_canonical(), source.port());
        }
        Ok(true)
    }

    fn next_deadline(&self) -> Option<Instant> {
        if !matches!(self.phase, Phase::Serving) {
            return self.heard.checked_add(HANDSHAKE_TIMEOUT);
        }
        let silence =
            self.shared.config.client_timeout.and_then(|timeout| self.heard.checked_add(timeout));
        [silence, self.flows.next_expiry()].into_iter().flatten().min()
    }

    fn expire(&mut self, now: Instant) -> Verdict {
        let silent = now.saturating_duration_since(self.heard);
        if !matches!(self.phase, Phase::Serving) {
            return if silent < HANDSHAKE_TIMEOUT {
                Ok(())
            } else {
                self.complain(now, || format!("no handshake in {HANDSHAKE_TIMEOUT:?}"));
                Err(EndReason::HandshakeTimeout)
            };
        }
        if self.shared.config.client_timeout.is_some_and(|timeout| silent >= timeout) {
            return Err(EndReason::Silent);
        }
        while let Some(flow) = self.flows.expired(now) {
            self.close_flow(flow, FlowEnd::Idle);
        }
        Ok(())
    }

    /// Forgets a flow, and closes its socket if no other uses it.
    pub(super) fn close_flow(&mut self, id: FlowId, end: FlowEnd) {
        let flow = self.flows.remove(id);
        self.tally.flow_closed(end);
        let (pools, budget) = (&self.shared.pools, &self.shared.spare_sockets);
        self.sockets.release(&mut self.events, flow.socket, pools, budget);
    }

    /// Logs what went wrong, unless too much has been logged lately. `describe` runs only for lines
    /// that are written.
    pub(super) fn complain<D: Display>(&mut self, now: Instant, describe: impl FnOnce() -> D) {
        if !log::log_enabled!(log::Level::Warn) {
            return;
        }
        let Some(more) = self.log_gate.pass(now) else {
            return;
        };
        let mut gate = self.shared.log_gate.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(of_others) = gate.pass(now) else {
            return;
        };
        drop(gate);
        let mut line = format!("client {}: {}", self.address, describe());
        // Writing to a String cannot fail.
        if more > 0 {
            let _ = write!(line, " ({more} more lines of this client)");
        }
        if of_others > 0 {
            let _ = write!(line, " ({of_others} more lines of all clients)");
        }
        log::warn!("{line}");
    }

    /// Logs why the stream is of no more use.
    pub(super) fn stream_failed(&self, cause: &io::Error) -> EndReason {
        log::info!("client {}: the connection failed: {cause}", self.address);
        EndReason::StreamError
    }

    fn forget_flows(&mut self) {
        while let Some(flow) = self.flows.oldest() {
            self.close_flow(flow, FlowEnd::ClientGone);
        }
        self.tally.report(&self.shared.counters, &mut self.totals);
    }

    fn fault(&self, what: &str, cause: &dyn Display) -> EndReason {
        log::error!("client {}: {what}: {cause}", self.address);
        EndReason::Fault
    }
}

impl Drop for Client {
    /// After a panic too, the gauges are right and the ports of the pool free.
    fn drop(&mut self) {
        self.forget_flows();
    }
}
