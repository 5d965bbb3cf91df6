//! From the devices to the sockets: one read yields a packet or many in one, and what was read
//! leaves in one call.

use super::counters::DropReason;
use super::members::Members;
use super::orders::{Order, Report};
use super::sending::{self, Outgoing, Patience};
use super::table::{DeviceId, Framing, Peer};
use super::{Link, ORDERS};
use crate::net::sys::mmsg::send::SendQueue;
use crate::net::tun::{TunDevice, is_gone};
use crate::runtime::clock;
use crate::runtime::event_loop::Readiness;
use crate::state::token_bucket::TokenBucket;
use crate::wire::icmp_error::{ERROR_LEN_MAX, write_unreachable};
use crate::wire::ip::{self, Header};
use crate::wire::offload::split::Split;
use crate::wire::offload::{Kind, VIRTIO_HEADER_LEN, VirtioHeader};
use mio::unix::SourceFd;
use mio::{Interest, Token};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

/// What a round waits for sockets: see [`Patience`].
const PATIENCE: Duration = Duration::from_millis(10);
/// Reads of one device in its turn, and datagrams that leave in one call: four of the longest trains.
/// Who receives them is woken once for all, and a wake costs more than a dozen of small packets.
const READS_PER_TURN: usize = 256;
/// A device that has nothing but errors is taken for gone.
const ERRORS_IN_A_ROW_MAX: u8 = 16;
/// What UDP over IPv4 carries.
const DATAGRAM_LEN_MAX: usize = 65_507;
/// Datagrams of ours in datagrams of ours that are looked into.
const LAYERS_MAX: usize = 4;
/// Room for one read: the longest packet behind its header.
const SLOT_LEN: usize = VIRTIO_HEADER_LEN + 65_535;
/// Room for the packets that are read in a row, of which all but the last may be 1.5 KiB.
const READ_LEN: usize = 96 * 1024 + SLOT_LEN;
/// Room for the packets that were split: four of the longest trains. They are sent while they are
/// still in the cache.
const SPLIT_LEN: usize = 256 * 1024;

/// Senders told a second that nobody has the address: as many as the kernel tells
/// (`icmp_msgs_per_sec`, `icmp_msgs_burst`), so that a scan costs no more than it does elsewhere.
const UNREACHABLES: (u32, u32) = (1000, 50);

/// The thread's body.
pub(super) fn run(link: Link) -> io::Result<()> {
    let outbound = Outbound {
        link,
        members: Members::default(),
        arena: Arena::default(),
        outgoing: Vec::new(),
        queue: SendQueue::with_room_for(READS_PER_TURN),
        errors: 0,
        patience: Patience::new(PATIENCE),
        unreachable: Vec::with_capacity(ERROR_LEN_MAX),
        unreachables: TokenBucket::new(UNREACHABLES.0, UNREACHABLES.1),
    };
    outbound.serve()
}

struct Outbound {
    link: Link,
    members: Members,
    arena: Arena,
    outgoing: Vec<Outgoing>,
    queue: SendQueue,
    errors: u8,
    /// What is left of it in this round.
    patience: Patience,
    /// An answer to a packet that nobody takes; kept, for its memory.
    unreachable: Vec<u8>,
    unreachables: TokenBucket,
}

/// Where packets wait to be sent. The front is for what was split, the back for what was read and
/// stays there.
struct Arena {
    bytes: Vec<u8>,
    /// Where the next split packet goes.
    split_end: usize,
    /// Where the next read goes.
    read_end: usize,
}

impl Default for Arena {
    fn default() -> Arena {
        Arena { bytes: vec![0; SPLIT_LEN + READ_LEN], split_end: 0, read_end: SPLIT_LEN }
    }
}

impl Arena {
    fn clear(&mut self) {
        self.split_end = 0;
        self.read_end = SPLIT_LEN;
    }

    fn has_room_to_read(&self) -> bool {
        self.bytes.len() - self.read_end >= SLOT_LEN
    }
}

impl Outbound {
    fn serve(mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        while let Some(orders) = self.link.next_round(&mut ready)? {
            self.obey(orders);
            self.patience = Patience::new(PATIENCE);
            let mut impatient = None;
            for token in &ready {
                if self.patience.is_exhausted() {
                    self.link.events.again(*token, Readiness::READABLE);
                } else if !self.read_device(*token) {
                    impatient = Some(*token);
                }
            }
            // It has had what there was for all: those that had none come first in the next round.
            if let Some(token) = impatient {
                self.link.events.again(token, Readiness::READABLE);
            }
        }
        Ok(())
    }

    fn obey(&mut self, orders: Vec<Order>) {
        for order in orders {
            match &order {
                Order::AddDevice(id, device) => self.watch(*id, device),
                Order::RemoveDevice(id) => self.forget(*id),
                _ => {}
            }
            self.members.obey(order);
        }
    }

    fn watch(&mut self, id: DeviceId, device: &Arc<TunDevice>) {
        let fd = device.as_fd().as_raw_fd();
        match self.link.events.register(&mut SourceFd(&fd), token(id), Interest::READABLE) {
            // What came before this will not be told again.
            Ok(()) => self.link.events.again(token(id), Readiness::READABLE),
            Err(error) => {
                let source = Arc::clone(device);
                self.link.must_tell(Report::DeviceGone { device: id, source, error });
            }
        }
    }

    fn forget(&mut self, id: DeviceId) {
        if let Some(device) = self.members.device(id) {
            let fd = device.as_fd().as_raw_fd();
            // An interface that has been deleted is not watched any more.
            let _ = self.link.events.deregister(&mut SourceFd(&fd), token(id));
        }
    }

    /// Reads until the device has nothing more, or its turn is over, and sends it all. Returns false
    /// if there may be more, and sockets have had to be waited for until the round's patience was
    /// over: what is not read waits in the device, where senders notice.
    fn read_device(&mut self, token: Token) -> bool {
        let id = DeviceId(u32::try_from(token.0 - 1).unwrap_or(u32::MAX));
        let Some(device) = self.members.device(id).map(Arc::clone) else {
            return true;
        };
        let has_header = device.offloads().header;
        // A packet begins at the same place with or without a header in front of it.
        let before = if has_header { 0 } else { VIRTIO_HEADER_LEN };
        for _ in 0..READS_PER_TURN {
            if !self.arena.has_room_to_read() {
                self.send();
            }
            if self.patience.is_exhausted() {
                self.send();
                return false;
            }
            let start = self.arena.read_end + before;
            match device.read(&mut self.arena.bytes[start..]) {
                Ok(len) => {
                    self.errors = 0;
                    self.link.counters.read_device();
                    self.take(id, has_header, start + len);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.send();
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.errors = self.errors.saturating_add(1);
                    if is_gone(&error) || self.errors > ERRORS_IN_A_ROW_MAX {
                        self.send();
                        self.forget(id);
                        self.members.obey(Order::RemoveDevice(id));
                        self.link.must_tell(Report::DeviceGone {
                            device: id,
                            source: device,
                            error,
                        });
                        return true;
                    }
                    // A packet that the kernel could not hand over.
                    self.link.counters.dropped(DropReason::ReadFailed, 1);
                }
            }
        }
        self.send();
        self.link.events.again(token, Readiness::READABLE);
        true
    }

    /// Takes in what has been read to the end of the arena, up to `end`.
    fn take(&mut self, device: DeviceId, has_header: bool, end: usize) {
        if let Err((reason, packets)) = self.sort(device, has_header, end) {
            self.link.counters.dropped(reason, packets);
        }
    }

    fn sort(
        &mut self,
        device: DeviceId,
        has_header: bool,
        end: usize,
    ) -> Result<(), (DropReason, usize)> {
        let start = self.arena.read_end;
        let packet = start + VIRTIO_HEADER_LEN..end;
        let malformed = (DropReason::DeviceMalformed, 1);
        let virtio = if has_header {
            VirtioHeader::parse(&self.arena.bytes[start..end]).ok_or(malformed)?
        } else {
            VirtioHeader::default()
        };
        let bytes = self.arena.bytes.get(packet.clone()).ok_or(malformed)?;
        let ip = Header::parse(bytes).ok_or(malformed)?;
        let packets = match virtio.kind {
            Kind::Single => 1,
            // About: of headers it counts one.
            _ => ip.packet_len.div_ceil(usize::from(virtio.segment_len).max(1)),
        };
        let Some(peer) = self.members.table.route(device, ip.destination).map(Arc::clone) else {
            if ip.is_for_many() {
                return Err((DropReason::Multicast, packets));
            }
            self.tell_unreachable(device, packet);
            return Err((DropReason::NoRoute, packets));
        };
        if self.leads_back(ip, bytes, &peer) {
            peer.counters.dropped(packets as u64);
            return Err((DropReason::RoutingLoop, packets));
        }
        if virtio.kind == Kind::Single {
            self.keep(&virtio, packet, peer)
        } else {
            self.split(&virtio, ip, packet, peer)
        }
    }

    /// Tells the sender of a packet that nobody has its address: it need not wait for an answer.
    fn tell_unreachable(&mut self, device: DeviceId, packet: Range<usize>) {
        let Some(device) = self.members.device(device) else { return };
        self.unreachable.clear();
        if !self.unreachables.take(clock::now())
            || !write_unreachable(&mut self.unreachable, &self.arena.bytes[packet])
        {
            return;
        }
        let header = [0; VIRTIO_HEADER_LEN];
        let front = if device.offloads().header { &header[..] } else { &[] };
        // As every packet of its kind, it may get lost.
        if device.write(&[IoSlice::new(front), IoSlice::new(&self.unreachable)]).is_ok() {
            self.link.counters.told_unreachable();
        }
    }

    /// Whether this is one of our datagrams to that peer, which a route has led back to us: it would
    /// come round for ever, and grow. Two tunnels that lead into each other pass it on as often as they
    /// like, each with its own datagram around it: the other one's is looked into.
    fn leads_back(&self, ip: Header, packet: &[u8], peer: &Peer) -> bool {
        let own_port = self.members.socket(peer.socket).map(|socket| socket.port);
        let (mut ip, mut packet) = (ip, packet);
        for _ in 0..LAYERS_MAX {
            let datagram = packet.get(ip.transport..).filter(|_| ip.protocol == ip::UDP);
            let header = datagram.and_then(<[u8]>::first_chunk::<{ ip::UDP_HEADER_LEN }>);
            let Some([a, b, c, d, ..]) = header else { return false };
            let source = u16::from_be_bytes([*a, *b]);
            let destination = SocketAddr::new(ip.destination, u16::from_be_bytes([*c, *d]));
            if Some(source) == own_port && destination == peer.endpoint {
                return true;
            }
            if !self.members.has_port(source)
                || self.members.table.by_endpoint(destination).is_none()
            {
                return false;
            }
            packet = match packet.get(ip.transport + ip::UDP_HEADER_LEN..).unwrap_or_default() {
                [0, 0, 0x08, 0x00, inner @ ..] | [0, 0, 0x86, 0xdd, inner @ ..] | inner => inner,
            };
            // The rest of it may be in another fragment.
            let Some(inner) = Header::parse_front(packet) else { return false };
            ip = inner;
        }
        false
    }

    /// A packet that stays where it was read.
    fn keep(
        &mut self,
        virtio: &VirtioHeader,
        packet: Range<usize>,
        peer: Arc<Peer>,
    ) -> Result<(), (DropReason, usize)> {
        let bytes = &mut self.arena.bytes[packet.clone()];
        virtio.complete_checksum(bytes).ok_or((DropReason::DeviceMalformed, 1))?;
        let prefix = prefix(peer.framing, bytes);
        let range = packet.start - prefix.len()..packet.end;
        if range.len() > DATAGRAM_LEN_MAX {
            peer.counters.dropped(1);
            return Err((DropReason::TooLong, 1));
        }
        // In place of the end of the virtio header.
        self.arena.bytes[range.start..packet.start].copy_from_slice(prefix);
        self.arena.read_end = range.end;
        self.outgoing.push(Outgoing { segment_len: range.len(), range, peer });
        Ok(())
    }

    /// Packets in one: they are split, and the place where they were read is free again.
    fn split(
        &mut self,
        virtio: &VirtioHeader,
        ip: Header,
        packet: Range<usize>,
        peer: Arc<Peer>,
    ) -> Result<(), (DropReason, usize)> {
        let malformed = (DropReason::DeviceMalformed, 1);
        let (bytes, from) = (&self.arena.bytes[packet.clone()], packet.start);
        let prefix = prefix(peer.framing, bytes);
        let split = Split::new(virtio, ip, bytes).ok_or(malformed)?;
        let len = split.total_len(prefix.len());
        if len > SPLIT_LEN {
            peer.counters.dropped(split.packets() as u64);
            return Err((DropReason::TooLong, split.packets()));
        }
        if self.arena.split_end + len > SPLIT_LEN {
            // What was read stays where it is meanwhile.
            self.send();
        }
        let (front, back) = self.arena.bytes.split_at_mut(from);
        let split = Split::new(virtio, ip, &back[..packet.len()]).ok_or(malformed)?;
        let range = self.arena.split_end..self.arena.split_end + len;
        split.write(prefix, &mut front[range.clone()]).ok_or(malformed)?;
        self.arena.split_end = range.end;
        let segment_len = prefix.len() + split.packet_len();
        match self.outgoing.last_mut() {
            // One run with what was split before, unless that has a short packet at its end.
            Some(last)
                if Arc::ptr_eq(&last.peer, &peer)
                    && last.range.end == range.start
                    && last.segment_len == segment_len
                    && last.range.len() % segment_len == 0 =>
            {
                last.range.end = range.end;
            }
            _ => self.outgoing.push(Outgoing { peer, range, segment_len }),
        }
        Ok(())
    }

    fn send(&mut self) {
        if !self.outgoing.is_empty() {
            let Outbound { link, members, arena, outgoing, queue, patience, .. } = self;
            sending::send(outgoing, &arena.bytes, queue, members, &link.counters, patience);
        }
        self.arena.clear();
    }
}

/// Sockets and devices come behind the orders.
fn token(id: DeviceId) -> Token {
    Token(ORDERS.0 + 1 + id.0 as usize)
}

/// What stands in front of the packet in a datagram: flags 0 and the ethertype (linux/if_tun.h,
/// `tun_pi`), or nothing.
fn prefix(framing: Framing, packet: &[u8]) -> &'static [u8] {
    match (framing, packet.first().map(|byte| byte >> 4)) {
        (Framing::Raw, _) => &[],
        (Framing::PacketInformation, Some(6)) => &[0, 0, 0x86, 0xdd],
        (Framing::PacketInformation, _) => &[0, 0, 0x08, 0x00],
    }
}
