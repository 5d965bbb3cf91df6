//! Datagrams between local UDP and the tunnels: a local port whose datagrams go to a member's
//! service (`--forward`), and a local service for the members' datagrams (`--serve`).

use super::Forwarding;
use super::counters::{Counters, DropReason};
use super::network::receive_batch;
use crate::net::sys::mmsg::receive::ReceiveQueue;
use crate::net::sys::mmsg::send::SendQueue;
use crate::net::udp::{Buffers, UdpSocket, any_port};
use crate::runtime::event_loop::EventLoop;
use crate::state::flow_table::{Flow, FlowId, FlowTable};
use crate::state::token_bucket::LogGate;
use crate::wire::rendezvous::MemberId;
use mio::{Interest, Token};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

/// The largest kernel buffers that a busy tunnel asks for: 10 ms at 1 Gbit/s.
const BUFFERS: Buffers = Buffers { receive: 1 << 20, send: 1 << 20 };

/// A datagram for a tunnel.
pub(super) struct ForTunnel<'a> {
    /// The flow's number.
    pub(super) number: u32,
    /// The datagram.
    pub(super) payload: &'a [u8],
}

/// `--forward`: a port whose every source is a flow.
pub(super) struct Listening {
    socket: UdpSocket,
    token: Token,
    flows: FlowTable,
    /// Numbers that were not used lately: a late answer of an old flow reaches nobody.
    next_number: u16,
}

/// `--serve`: a socket for each flow, connected to the service.
pub(super) struct Serving {
    service: SocketAddr,
    first_token: usize,
    sockets: Vec<Option<Served>>,
    opened: u64,
    members: HashMap<MemberId, FlowTable>,
    forwarding: Forwarding,
    trouble_log: LogGate,
}

/// A served flow's socket: the place in the list, and how many have been opened before it, since a
/// place may be another flow's by the time that a datagram leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ServedFlow {
    slot: usize,
    generation: u64,
}

struct Served {
    generation: u64,
    socket: UdpSocket,
    member: MemberId,
    flow: FlowId,
    number: u16,
}

impl Listening {
    pub(super) fn open(
        address: SocketAddr,
        forwarding: &Forwarding,
        events: &mut EventLoop,
        token: Token,
    ) -> io::Result<Listening> {
        let mut socket = UdpSocket::bind(address, false, BUFFERS)?;
        events.register(socket.source(), token, Interest::READABLE)?;
        let flows = FlowTable::new(forwarding.flows_max, forwarding.idle());
        Ok(Listening { socket, token, flows, next_number: 0 })
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// One `recvmmsg`; each datagram goes to `take`.
    pub(super) fn receive(
        &mut self,
        queue: &mut ReceiveQueue,
        events: &mut EventLoop,
        counters: &Counters,
        now: Instant,
        mut take: impl FnMut(ForTunnel<'_>),
    ) {
        if !receive_batch(&self.socket, self.token, queue, events, counters) {
            return;
        }
        for message in queue.messages() {
            let Some(source) = message.source else { continue };
            let number = self.flow_of(source, counters, now);
            for payload in message.datagrams() {
                take(ForTunnel { number: u32::from(number), payload });
            }
        }
    }

    fn flow_of(&mut self, source: SocketAddr, counters: &Counters, now: Instant) -> u16 {
        if let Some(flow) = self.flows.by_remote(0, source) {
            self.flows.touch(flow, now);
            return self.flows.get(flow).conid;
        }
        if let Some(surplus) = self.flows.surplus() {
            self.flows.remove(surplus);
            counters.flows.add(-1);
            counters.flows_evicted.increment();
        }
        while self.flows.by_conid(self.next_number).is_some() {
            self.next_number = self.next_number.wrapping_add(1);
        }
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        self.flows.insert(flow(number, source, 0, now));
        counters.flows.add(1);
        log::debug!("flow {number}: opened for {source}");
        number
    }

    /// Where an answer of the service belongs, if its flow is still there.
    pub(super) fn source_of(&mut self, number: u32, now: Instant) -> Option<SocketAddr> {
        let flow = self.flows.by_conid(u16::try_from(number).ok()?)?;
        self.flows.touch(flow, now);
        Some(self.flows.get(flow).remote)
    }

    /// Sends answers to their sources, in one batch.
    pub(super) fn send<'d>(
        &self,
        queue: &mut SendQueue,
        answers: impl Iterator<Item = (SocketAddr, &'d [u8])>,
        counters: &Counters,
    ) {
        let mut batch = self.socket.batch(queue);
        for (source, payload) in answers {
            batch.push(Some(source), payload);
        }
        counters.sent_locally(&batch.finish(), &self.socket);
    }

    pub(super) fn expire(&mut self, counters: &Counters, now: Instant) {
        while let Some(flow) = self.flows.expired(now) {
            let flow = self.flows.remove(flow);
            counters.flows.add(-1);
            log::debug!("flow {}: {} has been silent for too long", flow.conid, flow.remote);
        }
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.flows.next_expiry()
    }
}

impl Serving {
    pub(super) fn new(service: SocketAddr, forwarding: &Forwarding, first_token: usize) -> Serving {
        Serving {
            service,
            first_token,
            sockets: Vec::new(),
            opened: 0,
            members: HashMap::new(),
            forwarding: forwarding.clone(),
            trouble_log: LogGate::new(1, 8),
        }
    }

    /// Whose flow's socket has that token.
    pub(super) fn owner(&self, token: Token) -> Option<MemberId> {
        let slot = token.0.checked_sub(self.first_token)?;
        self.sockets.get(slot)?.as_ref().map(|served| served.member)
    }

    /// One `recvmmsg` on a flow's socket; each datagram goes to `take`.
    pub(super) fn receive(
        &mut self,
        token: Token,
        queue: &mut ReceiveQueue,
        events: &mut EventLoop,
        counters: &Counters,
        now: Instant,
        mut take: impl FnMut(ForTunnel<'_>),
    ) {
        let slot = token.0.checked_sub(self.first_token);
        let Some(served) = slot.and_then(|slot| self.sockets.get(slot)).and_then(Option::as_ref)
        else {
            return;
        };
        if !receive_batch(&served.socket, token, queue, events, counters) {
            return;
        }
        if let Some(flows) = self.members.get_mut(&served.member) {
            flows.touch(served.flow, now);
        }
        for message in queue.messages() {
            for payload in message.datagrams() {
                let number = u32::from(served.number);
                take(ForTunnel { number, payload });
            }
        }
    }

    /// The socket of a member's flow, opened if need be.
    pub(super) fn slot_of(
        &mut self,
        member: MemberId,
        number: u32,
        events: &mut EventLoop,
        counters: &Counters,
        now: Instant,
    ) -> Option<ServedFlow> {
        // Our own numbers have 16 bits; anything else is no flow of ours.
        let number = u16::try_from(number).ok()?;
        let forwarding = &self.forwarding;
        let flows = self
            .members
            .entry(member)
            .or_insert_with(|| FlowTable::new(forwarding.flows_max, forwarding.idle()));
        if let Some(flow) = flows.by_conid(number) {
            flows.touch(flow, now);
            let slot = flows.get(flow).socket;
            let served = self.sockets.get(slot).and_then(Option::as_ref)?;
            return Some(ServedFlow { slot, generation: served.generation });
        }
        if let Some(surplus) = flows.surplus() {
            let evicted = flows.remove(surplus);
            counters.flows_evicted.increment();
            self.close(evicted.socket, events, counters);
        }
        match self.open(member, number, events, now) {
            Ok(slot) => {
                counters.flows.add(1);
                log::debug!("flow {number}: opened to {}", self.service);
                Some(slot)
            }
            Err(error) => {
                counters.drop(DropReason::NoSocket, 1);
                if let Some(more) = self.trouble_log.pass(now) {
                    log::warn!("no flow to {}: {error} ({more} more lines)", self.service);
                }
                None
            }
        }
    }

    fn open(
        &mut self,
        member: MemberId,
        number: u16,
        events: &mut EventLoop,
        now: Instant,
    ) -> io::Result<ServedFlow> {
        let mut socket = UdpSocket::bind(any_port(self.service), false, BUFFERS)?;
        socket.connect(self.service)?;
        let slot = self.sockets.iter().position(Option::is_none).unwrap_or(self.sockets.len());
        let token = Token(self.first_token + slot);
        events.register(socket.source(), token, Interest::READABLE)?;
        let flows = self.members.get_mut(&member).ok_or(io::ErrorKind::NotFound)?;
        let flow = flows.insert(flow(number, self.service, slot, now));
        let generation = self.opened;
        self.opened += 1;
        let served = Some(Served { generation, socket, member, flow, number });
        match self.sockets.get_mut(slot) {
            Some(place) => *place = served,
            None => self.sockets.push(served),
        }
        Ok(ServedFlow { slot, generation })
    }

    fn close(&mut self, slot: usize, events: &mut EventLoop, counters: &Counters) {
        if let Some(mut served) = self.sockets.get_mut(slot).and_then(Option::take) {
            // Its descriptor is closed next, which ends the watch in any case.
            let _ = events.deregister(served.socket.source(), Token(self.first_token + slot));
            counters.flows.add(-1);
        }
    }

    /// Sends one flow's datagrams to the service, in one batch.
    pub(super) fn send<'d>(
        &self,
        flow: ServedFlow,
        queue: &mut SendQueue,
        datagrams: impl Iterator<Item = &'d [u8]>,
        counters: &Counters,
    ) {
        let served = self.sockets.get(flow.slot).and_then(Option::as_ref);
        let Some(served) = served.filter(|served| served.generation == flow.generation) else {
            return counters.drop(DropReason::NoFlow, datagrams.count() as u64);
        };
        let mut batch = served.socket.batch(queue);
        for payload in datagrams {
            batch.push(None, payload);
        }
        counters.sent_locally(&batch.finish(), &served.socket);
    }

    pub(super) fn expire(&mut self, events: &mut EventLoop, counters: &Counters, now: Instant) {
        let mut ended = Vec::new();
        for flows in self.members.values_mut() {
            while let Some(flow) = flows.expired(now) {
                ended.push(flows.remove(flow).socket);
            }
        }
        for slot in ended {
            self.close(slot, events, counters);
        }
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.members.values().filter_map(FlowTable::next_expiry).min()
    }

    /// A member is gone for good: so are its flows.
    pub(super) fn forget(&mut self, member: MemberId, events: &mut EventLoop, counters: &Counters) {
        let Some(mut flows) = self.members.remove(&member) else {
            return;
        };
        while let Some(oldest) = flows.oldest() {
            let slot = flows.remove(oldest).socket;
            self.close(slot, events, counters);
        }
    }
}

fn flow(number: u16, remote: SocketAddr, socket: usize, now: Instant) -> Flow {
    Flow { conid: number, address: remote, remote, socket, last_used: now, queries: None }
}
