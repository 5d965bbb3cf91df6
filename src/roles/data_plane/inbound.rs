//! From the sockets to the devices: what was received in one call is sorted, put together where it
//! belongs together, and written.

use super::counters::{Counters, DropReason};
use super::members::Members;
use super::orders::{CONTROL_LEN_MAX, Order, Report, Reports, Whose};
use super::sending::{self, Outgoing, Patience};
use super::table::{DeviceId, Framing, Peer, SocketId};
use super::{Link, ORDERS};
use crate::net::sys::mmsg::receive::{ReceiveQueue, Received};
use crate::net::sys::mmsg::send::SendQueue;
use crate::net::tun::{TunDevice, is_down, is_gone};
use crate::net::udp::UdpSocket;
use crate::runtime::clock;
use crate::runtime::event_loop::Readiness;
use crate::wire::ip::Header;
use crate::wire::offload::coalesce::{Coalescer, Merging, Output, PIECES_MAX};
use crate::wire::offload::{Kind, VIRTIO_HEADER_LEN};
use mio::unix::SourceFd;
use mio::{Interest, Token};
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a round waits for sockets when packets go from peer to peer: little, as everybody else's wait
/// in the receive buffer meanwhile.
const PATIENCE: Duration = Duration::from_millis(1);
/// After so many errors without a datagram in between, the socket waits for its next event: an
/// error that does not go away by being told must not keep a processor busy.
const ERRORS_IN_A_ROW_MAX: u8 = 16;

/// Messages that are received in a call: trains of up to 64 KiB, half a MiB together, which is what they may
/// keep of the processor's cache and of the memory.
const MESSAGES: usize = 8;
/// The same where the wire brings datagrams one by one: what fills two of the longest packets for a
/// device.
const SHORT_MESSAGES: usize = 96;

/// The thread's body.
pub(super) fn run(link: Link) -> io::Result<()> {
    let inbound = Inbound {
        link,
        members: Members::default(),
        receive: ReceiveQueue::with_room_for_short(MESSAGES, SHORT_MESSAGES),
        coalescer: Coalescer::default(),
        forwards: Vec::new(),
        queue: SendQueue::default(),
        errors: 0,
        patience: Patience::new(PATIENCE),
    };
    inbound.serve()
}

struct Inbound {
    link: Link,
    members: Members,
    receive: ReceiveQueue,
    coalescer: Coalescer,
    /// Packets for other peers.
    forwards: Vec<Outgoing>,
    queue: SendQueue,
    errors: u8,
    /// What is left of it in this round.
    patience: Patience,
}

impl Inbound {
    fn serve(mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        while let Some(orders) = self.link.next_round(&mut ready)? {
            self.obey(orders);
            self.patience = Patience::new(PATIENCE);
            for token in &ready {
                self.read_socket(*token);
            }
        }
        Ok(())
    }

    fn obey(&mut self, orders: Vec<Order>) {
        for order in orders {
            match &order {
                Order::AddSocket(id, socket) => self.watch(*id, socket),
                Order::RemoveSocket(id) => self.forget(*id),
                _ => {}
            }
            self.members.obey(order);
        }
    }

    fn watch(&mut self, id: SocketId, socket: &UdpSocket) {
        let fd = socket.as_fd().as_raw_fd();
        match self.link.events.register(&mut SourceFd(&fd), token(id), Interest::READABLE) {
            // What came before this will not be told again.
            Ok(()) => self.link.events.again(token(id), Readiness::READABLE),
            Err(error) => self.link.must_tell(Report::SocketGone { socket: id, error }),
        }
    }

    fn forget(&mut self, id: SocketId) {
        if let Some(socket) = self.members.socket(id) {
            let fd = socket.udp.as_fd().as_raw_fd();
            // It was watched, or that has been reported.
            let _ = self.link.events.deregister(&mut SourceFd(&fd), token(id));
        }
    }

    /// Receives one batch and passes it on.
    fn read_socket(&mut self, token: Token) {
        let id = SocketId(u32::try_from(token.0 - 1).unwrap_or(u32::MAX));
        let Some(socket) = self.members.socket(id) else {
            return;
        };
        match socket.udp.receive(&mut self.receive) {
            Ok(_) => {
                self.errors = 0;
                if self.receive.is_full() {
                    self.link.events.again(token, Readiness::READABLE);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // The ICMP answer to an earlier datagram, which is told once; datagrams may wait behind
            // it.
            Err(_) => {
                self.errors = self.errors.saturating_add(1);
                if self.errors < ERRORS_IN_A_ROW_MAX {
                    self.link.events.again(token, Readiness::READABLE);
                }
                return;
            }
        }
        let kernel_drops = socket.udp.new_kernel_drops(&self.receive);
        self.link.counters.dropped(DropReason::ReceiveBufferFull, kernel_drops as usize);
        self.pass_on(id);
    }

    fn pass_on(&mut self, socket: SocketId) {
        let Inbound { link, members, receive, coalescer, forwards, queue, patience, .. } = self;
        let now = clock::now();
        let mut pass = Pass {
            socket,
            members,
            buffer: receive.bytes(),
            counters: &link.counters,
            reports: &link.reports,
            now,
            coalescer,
            forwards,
            reported: None,
            neighbour: None,
            refused: Refused::default(),
            packets: 0,
            bytes: 0,
        };
        let mut last: Option<(SocketAddr, Origin<'_>)> = None;
        for message in receive.messages() {
            let Some(source) = message.source else {
                pass.count_drop(None, DropReason::Malformed);
                continue;
            };
            let origin = match last {
                Some((known, origin)) if known == source => origin,
                _ => Origin::of(members, source),
            };
            last = Some((source, origin));
            pass.take(&message, source, origin);
        }
        pass.finish();
        sending::send(forwards, receive.bytes(), queue, members, &link.counters, patience);
    }
}

/// Whose datagrams they are.
#[derive(Clone, Copy)]
enum Origin<'a> {
    Peer(&'a Arc<Peer>),
    Stranger,
    /// Not listened to.
    NotAllowed,
}

impl<'a> Origin<'a> {
    fn of(members: &'a Members, source: SocketAddr) -> Origin<'a> {
        if !members.table.admits(source.ip()) {
            return Origin::NotAllowed;
        }
        members.table.by_endpoint(source).map_or(Origin::Stranger, Origin::Peer)
    }
}

/// One batch on its way.
struct Pass<'a> {
    socket: SocketId,
    members: &'a Members,
    buffer: &'a [u8],
    counters: &'a Counters,
    reports: &'a Reports,
    now: Instant,
    coalescer: &'a mut Coalescer,
    forwards: &'a mut Vec<Outgoing>,
    /// The stranger that was reported last.
    reported: Option<SocketAddr>,
    /// Where the last packet went that was looked up.
    neighbour: Option<(DeviceId, IpAddr, Option<&'a Arc<Peer>>)>,
    refused: Refused,
    packets: u64,
    bytes: u64,
}

/// What devices did not take, of what has been counted as received.
#[derive(Default)]
struct Refused {
    packets: u64,
    bytes: u64,
    /// Not allocated as long as all goes well.
    by_peer: Vec<(Arc<Peer>, u64, u64)>,
}

impl Refused {
    /// A packet of a device's was not taken.
    fn add(&mut self, members: &Members, device: DeviceId, packet: &[u8]) {
        let bytes = packet.len() as u64;
        self.packets += 1;
        self.bytes += bytes;
        let ip = Header::parse(packet);
        let Some(peer) = ip.and_then(|ip| members.table.route(device, ip.source)) else { return };
        match self.by_peer.last_mut().filter(|(last, ..)| Arc::ptr_eq(last, peer)) {
            Some((_, packets, all)) => (*packets, *all) = (*packets + 1, *all + bytes),
            None => self.by_peer.push((Arc::clone(peer), 1, bytes)),
        }
    }
}

impl<'a> Pass<'a> {
    /// Takes a message: a datagram, or a train of them.
    fn take(&mut self, message: &Received<'_>, source: SocketAddr, origin: Origin<'_>) {
        let (mut packets, mut bytes) = (0, 0);
        for range in message.ranges() {
            match self.sort(message, source, origin, range) {
                Ok(0) => {}
                Ok(len) => {
                    packets += 1;
                    bytes += len as u64;
                }
                Err(reason) => {
                    let peer = if let Origin::Peer(peer) = origin { Some(&**peer) } else { None };
                    self.count_drop(peer, reason);
                }
            }
        }
        if let (Origin::Peer(peer), 1..) = (origin, packets) {
            peer.counters.received(packets, bytes);
            peer.counters.heard(self.now);
            self.packets += packets;
            self.bytes += bytes;
        }
    }

    /// Passes one datagram on; returns the length of its packet, 0 for control.
    fn sort(
        &mut self,
        message: &Received<'_>,
        source: SocketAddr,
        origin: Origin<'_>,
        datagram: Range<usize>,
    ) -> Result<usize, DropReason> {
        if let Origin::NotAllowed = origin {
            return Err(DropReason::NotAllowed);
        }
        let bytes = &self.buffer[datagram.clone()];
        let packet = match bytes {
            [0xf0..=0xff, ..] => return self.hear(message, source, origin, bytes).map(|()| 0),
            // The ethertypes of IPv4 and IPv6 behind flags of 0: a packet with packet information.
            [0, 0, 0x08, 0x00, ..] | [0, 0, 0x86, 0xdd, ..] => datagram.start + 4..datagram.end,
            _ => datagram.clone(),
        };
        let ip = Header::parse(&self.buffer[packet.clone()]).ok_or(DropReason::Malformed)?;
        let options = self.members.table.options();
        let Origin::Peer(peer) = origin else {
            if options.reports_strangers {
                self.report_stranger(message, source, (ip.source, packet));
            }
            return Err(DropReason::UnknownEndpoint);
        };
        if !peer.inner.has(ip.source) || options.own.contains(&ip.source) {
            self.report_stranger(message, source, (ip.source, packet));
            return Err(DropReason::ForeignSource);
        }
        let len = packet.len();
        // A later stage, decryption, ends here: what follows looks at packets alone.
        let neighbour = self.neighbour(peer.device, ip.destination);
        match neighbour.filter(|neighbour| !Arc::ptr_eq(neighbour, peer)) {
            Some(_) if !options.peer_to_peer => return Err(DropReason::PeerToPeer),
            // As it came, framing and all: who is sent packet information understands both.
            Some(neighbour) if neighbour.framing == Framing::Raw => self.forward(neighbour, packet),
            Some(neighbour) => self.forward(neighbour, datagram),
            None => self.write(peer.device, packet, &ip)?,
        }
        Ok(len)
    }

    /// Looked up when it changes: what comes in a row is of one flow nearly always.
    fn neighbour(&mut self, device: DeviceId, destination: IpAddr) -> Option<&'a Arc<Peer>> {
        match self.neighbour {
            Some((of, to, known)) if (of, to) == (device, destination) => known,
            _ => {
                let found = self.members.table.neighbour(device, destination);
                self.neighbour = Some((device, destination, found));
                found
            }
        }
    }

    /// A datagram that is no packet but a message of the role's own.
    fn hear(
        &self,
        message: &Received<'_>,
        source: SocketAddr,
        origin: Origin<'_>,
        bytes: &[u8],
    ) -> Result<(), DropReason> {
        let whose = match origin {
            Origin::Peer(_) => Whose::Peer,
            Origin::Stranger | Origin::NotAllowed => Whose::Stranger,
        };
        let report = || Report::Control {
            socket: self.socket,
            source,
            destination: message.destination(),
            bytes: bytes.into(),
        };
        let is_heard = bytes.len() <= CONTROL_LEN_MAX && self.reports.tell(whose, report);
        if is_heard { Ok(()) } else { Err(DropReason::ControlUnheard) }
    }

    /// Once for all that came in a row.
    fn report_stranger(
        &mut self,
        message: &Received<'_>,
        source: SocketAddr,
        (inner_source, packet): (IpAddr, Range<usize>),
    ) {
        if self.reported == Some(source) {
            return;
        }
        self.reported = Some(source);
        self.reports.tell(Whose::Stranger, || Report::Stranger {
            socket: self.socket,
            source,
            destination: message.destination(),
            inner_source,
            packet: if packet.len() <= CONTROL_LEN_MAX {
                self.buffer[packet].into()
            } else {
                Box::default()
            },
        });
    }

    fn forward(&mut self, peer: &Arc<Peer>, datagram: Range<usize>) {
        self.counters.forwarded(1);
        match self.forwards.last_mut() {
            // Datagrams of a train stand one behind the other.
            Some(last)
                if Arc::ptr_eq(&last.peer, peer)
                    && last.range.end == datagram.start
                    && last.range.len() % last.segment_len == 0
                    && datagram.len() <= last.segment_len =>
            {
                last.range.end = datagram.end;
            }
            _ => {
                let peer = Arc::clone(peer);
                self.forwards.push(Outgoing { peer, segment_len: datagram.len(), range: datagram });
            }
        }
    }

    fn write(&mut self, id: DeviceId, packet: Range<usize>, ip: &Header) -> Result<(), DropReason> {
        let device = self.members.device(id).ok_or(DropReason::NoDevice)?;
        let offloads = device.offloads();
        let merging = Merging { tcp: offloads.tcp, udp: offloads.udp };
        let Pass { members, buffer, counters, coalescer, refused, .. } = self;
        let mut writer = Writer { members, buffer, counters, refused };
        coalescer.push((id.0, merging), buffer, packet, ip, &mut |output| writer.write(&output));
        Ok(())
    }

    fn finish(self) {
        let Pass { members, buffer, counters, coalescer, packets, bytes, mut refused, .. } = self;
        let mut writer = Writer { members, buffer, counters, refused: &mut refused };
        coalescer.finish(&mut |output| writer.write(&output));
        counters.received(packets - refused.packets, bytes - refused.bytes);
        for (peer, packets, bytes) in refused.by_peer {
            peer.counters.refused(packets, bytes);
        }
    }

    fn count_drop(&self, peer: Option<&Peer>, reason: DropReason) {
        self.counters.dropped(reason, 1);
        if let Some(peer) = peer {
            peer.counters.dropped(1);
        }
    }
}

/// Writes packets to the devices.
struct Writer<'a, 'b> {
    members: &'a Members,
    buffer: &'a [u8],
    counters: &'a Counters,
    refused: &'b mut Refused,
}

impl Writer<'_, '_> {
    /// Writes a packet, or many in one, to its device; singly what the device refuses.
    fn write(&mut self, output: &Output<'_>) {
        let id = DeviceId(output.device);
        let Some(device) = self.members.device(id) else {
            return self.lose(output, DropReason::NoDevice);
        };
        let buffer = self.buffer;
        let head = if device.offloads().header { output.head } else { &[] };
        let written = if let [piece] = output.pieces {
            device.write(&[IoSlice::new(head), IoSlice::new(&buffer[piece.clone()])])
        } else {
            let mut parts = [IoSlice::new(&[]); 1 + PIECES_MAX];
            parts[0] = IoSlice::new(head);
            for (part, piece) in parts[1..].iter_mut().zip(output.pieces) {
                *part = IoSlice::new(&buffer[piece.clone()]);
            }
            device.write(&parts[..=output.pieces.len()])
        };
        match written {
            Ok(()) => self.counters.wrote_device(),
            Err(error)
                if error.kind() == io::ErrorKind::InvalidInput && output.pieces.len() > 1 =>
            {
                self.counters.refused_merging();
                match output.kind {
                    Kind::Udp => device.stop_merging_udp(),
                    _ => device.stop_merging_tcp(),
                }
                self.write_singly(device, output);
            }
            Err(error) => self.lose(output, reason_of(&error)),
        }
    }

    fn write_singly(&mut self, device: &TunDevice, output: &Output<'_>) {
        let head = [0; VIRTIO_HEADER_LEN];
        for packet in output.packets() {
            let bytes = &self.buffer[packet];
            match device.write(&[IoSlice::new(&head), IoSlice::new(bytes)]) {
                Ok(()) => self.counters.wrote_device(),
                Err(error) => {
                    self.counters.dropped(reason_of(&error), 1);
                    self.refused.add(self.members, DeviceId(output.device), bytes);
                }
            }
        }
    }

    fn lose(&mut self, output: &Output<'_>, reason: DropReason) {
        self.counters.dropped(reason, output.pieces.len());
        for packet in output.packets() {
            self.refused.add(self.members, DeviceId(output.device), &self.buffer[packet]);
        }
    }
}

fn reason_of(error: &io::Error) -> DropReason {
    if is_down(error) {
        DropReason::DeviceDown
    } else if is_gone(error) {
        DropReason::NoDevice
    } else {
        DropReason::WriteFailed
    }
}

/// Sockets and devices come behind the orders.
fn token(id: SocketId) -> Token {
    Token(ORDERS.0 + 1 + id.0 as usize)
}
