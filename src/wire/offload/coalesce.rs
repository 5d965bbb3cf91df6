//! Packets of one flow, put together again: as a network card does that can (LRO), and the kernel
//! where it cannot (GRO).
//!
//! Packets stay in the buffer that they were received in. What is to be written is a head (a virtio
//! header, and of merged packets the IP and transport headers) and pieces of that buffer behind it.
//!
//! Merged are TCP segments and UDP datagrams that [`super::split`], and any router with such a card,
//! would take apart into the same packets again. The rules are those of `inet_gro_receive`,
//! `tcp_gro_receive` and `udp_gro_receive` in linux/net/ipv4:
//!
//! - the same addresses, ports, hop limit, traffic class and flow label; no fragment, no IP option or
//!   extension header; IPv4 ids that count up, or stay where DF is set;
//! - payloads of the same length, of which the last may be shorter; of TCP, sequence numbers without a
//!   gap, the same acknowledgement, window and options, and no flag but ACK, PSH and FIN, the latter
//!   two on the last only;
//! - checksums that have been verified here, because the kernel believes a merged packet its checksum.
//!
//! Packets of one flow keep their order, whether merged or not.

use super::{Kind, VIRTIO_HEADER_LEN, VirtioHeader, put};
use crate::wire::ip::{
    Header, IPV4_HEADER_LEN, IPV6_HEADER_LEN, Sum, TCP, TCP_CHECKSUM_AT, TCP_HEADER_LEN, UDP,
    UDP_CHECKSUM_AT, UDP_HEADER_LEN,
};
use std::net::IpAddr;
use std::ops::Range;

/// Flows that are put together at a time; the one that was begun first is written when another one
/// needs its place.
const FLOWS_MAX: usize = 16;
/// Packets in one: as many as UDP_GRO puts together (UDP_GRO_CNT_MAX in
/// linux/net/ipv4/udp_offload.c), and more than 64 KiB of packets of 1,024 bytes.
pub const PIECES_MAX: usize = 64;
/// Bytes of a merged packet: as IPv4's length field has it.
const PACKET_LEN_MAX: usize = 65_535;
/// IPv6 without extension headers, and the longest TCP header.
const HEADERS_LEN_MAX: usize = 40 + 60;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
/// DF in the first byte of IPv4's fragment field.
const DONT_FRAGMENT: u8 = 0x40;

/// Which packets the device takes merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Merging {
    /// TCP segments.
    pub tcp: bool,
    /// UDP datagrams.
    pub udp: bool,
}

/// What is to be written to a device at once.
#[derive(Debug, Clone, Copy)]
pub struct Output<'a> {
    /// The device's number, as it was pushed.
    pub device: u32,
    /// The virtio header, and of merged packets their headers.
    pub head: &'a [u8],
    /// What follows, in the buffer: the payload of each packet, or one whole packet.
    pub pieces: &'a [Range<usize>],
    /// What was merged; [`Kind::Single`] for a packet as it came.
    pub kind: Kind,
    headers_len: usize,
}

impl Output<'_> {
    /// The packets as they came, for a device that refuses them merged.
    pub fn packets(&self) -> impl Iterator<Item = Range<usize>> {
        let before = if self.kind == Kind::Single { 0 } else { self.headers_len };
        self.pieces.iter().map(move |piece| piece.start.saturating_sub(before)..piece.end)
    }
}

/// Puts packets together. Holds no payload; does not allocate once made.
#[derive(Debug)]
pub struct Coalescer {
    flows: Box<[Flow]>,
    /// Which of them have packets, in the order in which they were begun.
    open: Vec<usize>,
    /// The others.
    free: Vec<usize>,
}

/// Packets of one flow that wait to be written.
#[derive(Debug, Clone)]
struct Flow {
    device: u32,
    candidate: Candidate,
    /// A virtio header, and the first packet's headers.
    head: [u8; VIRTIO_HEADER_LEN + HEADERS_LEN_MAX],
    payload_len: usize,
    /// The id of the last packet, and how far it is from one to the next once there are two.
    last_id: u16,
    id_step: Option<u16>,
    pieces: [Range<usize>; PIECES_MAX],
    count: usize,
    is_verified: bool,
}

/// A packet that may be merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    ip: Header,
    headers_len: usize,
    /// Source and destination.
    ports: [u8; 4],
    payload: usize,
    /// TCP's.
    sequence: u32,
    /// IPv4's.
    id: u16,
    /// Nothing may follow: PSH or FIN.
    is_last: bool,
    /// It is merged with others at all.
    is_plain: bool,
}

impl Default for Coalescer {
    fn default() -> Coalescer {
        Coalescer {
            flows: vec![Flow::unused(); FLOWS_MAX].into(),
            open: Vec::with_capacity(FLOWS_MAX),
            free: (0..FLOWS_MAX).collect(),
        }
    }
}

impl Coalescer {
    /// Takes the next packet for `device`: the bytes of `buffer` in `packet`, whose header is `ip`. What
    /// has to be written goes to `write`, perhaps later: with another packet, or with
    /// [`Coalescer::finish`], up to which the buffer must stay as it is.
    pub fn push(
        &mut self,
        (device, merging): (u32, Merging),
        buffer: &[u8],
        packet: Range<usize>,
        ip: &Header,
        write: &mut impl FnMut(Output<'_>),
    ) {
        let bytes = buffer.get(packet.clone()).unwrap_or_default();
        let Some(candidate) = Candidate::parse(bytes, ip, merging) else {
            // Of a fragment, or of another protocol, it is not known which flow it must not overtake.
            self.finish_if(|flow| flow.device == device, write);
            write(single(device, &[packet]));
            return;
        };
        let payload = packet.start.saturating_add(candidate.headers_len)..packet.end;
        let is_same = |flow: &Flow| flow.is_same(device, &candidate);
        let mut open = self.open.iter();
        let index = open.find(|index| self.flows.get(**index).is_some_and(is_same)).copied();
        if let Some(flow) = index.and_then(|index| self.flows.get_mut(index)) {
            let is_appended = flow.append(buffer, bytes, &candidate, payload.clone());
            if !is_appended || flow.is_complete(&candidate) {
                self.finish_if(is_same, write);
            }
            if is_appended {
                return;
            }
        }
        if candidate.is_plain && !candidate.is_last {
            self.begin(device, candidate, bytes, payload, write);
        } else {
            write(single(device, &[packet]));
        }
    }

    /// Everything that waits is to be written.
    pub fn finish(&mut self, write: &mut impl FnMut(Output<'_>)) {
        self.finish_if(|_| true, write);
    }

    fn finish_if(&mut self, is_due: impl Fn(&Flow) -> bool, write: &mut impl FnMut(Output<'_>)) {
        let Coalescer { flows, open, free } = self;
        open.retain(|index| {
            let flow = flows.get_mut(*index).filter(|flow| is_due(flow));
            if let Some(flow) = flow {
                flow.finish(write);
                free.push(*index);
                return false;
            }
            true
        });
    }

    fn begin(
        &mut self,
        device: u32,
        candidate: Candidate,
        bytes: &[u8],
        payload: Range<usize>,
        write: &mut impl FnMut(Output<'_>),
    ) {
        let index = self.free.pop().unwrap_or_else(|| self.open.remove(0));
        if let Some(flow) = self.flows.get_mut(index) {
            flow.finish(write);
            flow.begin(device, candidate, bytes, payload);
        }
        self.open.push(index);
    }
}

/// A packet as it came.
fn single(device: u32, packet: &[Range<usize>; 1]) -> Output<'_> {
    Output {
        device,
        head: &[0; VIRTIO_HEADER_LEN],
        pieces: packet,
        kind: Kind::Single,
        headers_len: 0,
    }
}

impl Flow {
    fn unused() -> Flow {
        let nobody = IpAddr::from([0; 4]);
        let ip = Header {
            source: nobody,
            destination: nobody,
            protocol: 0,
            transport: 0,
            packet_len: 0,
            is_fragment: false,
        };
        let candidate = Candidate {
            ip,
            headers_len: 0,
            ports: [0; 4],
            payload: 0,
            sequence: 0,
            id: 0,
            is_last: false,
            is_plain: false,
        };
        Flow {
            device: 0,
            candidate,
            head: [0; VIRTIO_HEADER_LEN + HEADERS_LEN_MAX],
            payload_len: 0,
            last_id: 0,
            id_step: None,
            pieces: [const { 0..0 }; PIECES_MAX],
            count: 0,
            is_verified: false,
        }
    }

    #[inline]
    fn is_same(&self, device: u32, other: &Candidate) -> bool {
        let own = &self.candidate;
        own.ports == other.ports
            && self.device == device
            && own.ip.protocol == other.ip.protocol
            && own.ip.source == other.ip.source
            && own.ip.destination == other.ip.destination
    }

    fn begin(&mut self, device: u32, candidate: Candidate, bytes: &[u8], payload: Range<usize>) {
        let headers = bytes.get(..candidate.headers_len);
        let room = self
            .head
            .get_mut(VIRTIO_HEADER_LEN..)
            .and_then(|head| head.get_mut(..candidate.headers_len));
        let (Some(headers), Some(room)) = (headers, room) else {
            // Candidate::parse takes no longer headers.
            return;
        };
        room.copy_from_slice(headers);
        self.device = device;
        self.candidate = candidate;
        self.payload_len = candidate.payload;
        self.last_id = candidate.id;
        self.id_step = None;
        self.is_verified = false;
        self.count = 0;
        self.add_piece(payload);
    }

    fn add_piece(&mut self, payload: Range<usize>) {
        if let Some(piece) = self.pieces.get_mut(self.count) {
            *piece = payload;
            self.count = self.count.wrapping_add(1);
        }
    }

    /// Takes the packet in if it continues the flow.
    fn append(
        &mut self,
        buffer: &[u8],
        bytes: &[u8],
        next: &Candidate,
        payload: Range<usize>,
    ) -> bool {
        let first = self.candidate;
        let total = first.headers_len.saturating_add(self.payload_len).saturating_add(next.payload);
        // Sequence numbers wrap; at most 65,535 bytes wait here.
        #[allow(clippy::cast_possible_truncation)]
        let expected = first.sequence.wrapping_add(self.payload_len as u32);
        let is_next = next.is_plain
            && next.headers_len == first.headers_len
            && next.payload <= first.payload
            && (next.sequence == expected || first.ip.protocol == UDP)
            && total <= PACKET_LEN_MAX
            && self.count < PIECES_MAX
            && self.has_same_headers(bytes)
            && self.continues_ids(next.id);
        if !(is_next && next.is_sound(bytes) && self.verify(buffer)) {
            return false;
        }
        self.id_step = Some(next.id.wrapping_sub(self.last_id));
        self.last_id = next.id;
        self.payload_len = self.payload_len.saturating_add(next.payload);
        self.add_piece(payload);
        if next.is_last {
            self.take_over_flags(bytes);
        }
        true
    }

    /// Nothing can follow `last`, which has just been appended.
    fn is_complete(&self, last: &Candidate) -> bool {
        last.is_last || last.payload < self.candidate.payload || self.count == PIECES_MAX
    }

    /// Whether all that must not change from packet to packet is as in the first one.
    #[inline]
    fn has_same_headers(&self, bytes: &[u8]) -> bool {
        let headers_len = self.candidate.headers_len;
        let Some(own) = self.head.get(VIRTIO_HEADER_LEN..) else {
            return false;
        };
        let same = |range: Range<usize>| own.get(range.clone()) == bytes.get(range);
        // Addresses, protocol and ports have been compared to find the flow.
        let (is_same_ip, transport) = if self.candidate.ip.source.is_ipv4() {
            // Traffic class; fragment field and hop limit.
            (same(0..2) && same(6..9), IPV4_HEADER_LEN)
        } else {
            // Traffic class and flow label; hop limit.
            (same(0..4) && same(7..8), IPV6_HEADER_LEN)
        };
        let field = |from: usize, to: usize| {
            same(transport.saturating_add(from)..transport.saturating_add(to))
        };
        is_same_ip
            && (self.candidate.ip.protocol == UDP
                // Acknowledgement, length of the header, window; urgent pointer and options. Of the
                // flags, those of a plain packet that is not the last are the same always.
                || (field(8, 13) && field(14, 16) && same(transport.saturating_add(18)..headers_len)))
    }

    #[inline]
    fn continues_ids(&self, id: u16) -> bool {
        if self.candidate.ip.source.is_ipv6() {
            return true;
        }
        let step = id.wrapping_sub(self.last_id);
        let fragment_field = self.head.get(VIRTIO_HEADER_LEN.saturating_add(6));
        let may_stay = fragment_field.is_some_and(|field| field & DONT_FRAGMENT != 0);
        match self.id_step {
            Some(expected) => step == expected,
            None => step == 1 || (step == 0 && may_stay),
        }
    }

    /// The first packet's checksum, which is looked at when there is a second one.
    fn verify(&mut self, buffer: &[u8]) -> bool {
        if !self.is_verified {
            let first = self.pieces.first().cloned().unwrap_or_default();
            let start = first.start.saturating_sub(self.candidate.headers_len);
            let bytes = buffer.get(start..first.end).unwrap_or_default();
            self.is_verified = self.candidate.is_sound(bytes);
        }
        self.is_verified
    }

    /// PSH and FIN of the last packet are the merged one's.
    fn take_over_flags(&mut self, last: &[u8]) {
        let at = self.candidate.ip.transport.saturating_add(13);
        let own = self.head.get_mut(VIRTIO_HEADER_LEN.saturating_add(at));
        if let (Some(own), Some(flags)) = (own, last.get(at)) {
            *own |= flags & (PSH | FIN);
        }
    }

    /// What waits is to be written.
    fn finish(&mut self, write: &mut impl FnMut(Output<'_>)) {
        let Candidate { headers_len, .. } = self.candidate;
        match std::mem::take(&mut self.count) {
            0 => {}
            1 => {
                let payload = self.pieces.first().cloned().unwrap_or_default();
                let packet = payload.start.saturating_sub(headers_len)..payload.end;
                write(single(self.device, &[packet]));
            }
            count => {
                let kind = self.complete_head(headers_len);
                let head = self.head.get(..VIRTIO_HEADER_LEN.saturating_add(headers_len));
                let pieces = self.pieces.get(..count);
                // There is always all of it: the headers were long enough to be read.
                if let (Some(kind), Some(head), Some(pieces)) = (kind, head, pieces) {
                    write(Output { device: self.device, head, pieces, kind, headers_len });
                }
            }
        }
    }

    /// Makes the first packet's headers those of all packets.
    fn complete_head(&mut self, headers_len: usize) -> Option<Kind> {
        let Candidate { ip, payload, .. } = self.candidate;
        let (virtio, headers) = self.head.split_first_chunk_mut::<VIRTIO_HEADER_LEN>()?;
        let (ip_header, transport) =
            headers.get_mut(..headers_len)?.split_at_mut_checked(ip.transport)?;
        let segment_len = transport.len().checked_add(self.payload_len)?;
        let len = u16::try_from(segment_len).ok()?;
        if ip.source.is_ipv4() {
            let header_len = u16::try_from(ip.transport).ok()?;
            put(ip_header, 2, len.checked_add(header_len)?.to_be_bytes())?;
            put(ip_header, 10, [0, 0])?;
            let sum = Sum::default().with(ip_header).checksum();
            put(ip_header, 10, sum)?;
        } else {
            put(ip_header, 4, len.to_be_bytes())?;
        }
        let (kind, checksum_at) = match (ip.protocol, ip.source.is_ipv4()) {
            (UDP, _) => (Kind::Udp, UDP_CHECKSUM_AT),
            (_, true) => (Kind::Tcp4, TCP_CHECKSUM_AT),
            (_, false) => (Kind::Tcp6, TCP_CHECKSUM_AT),
        };
        if kind == Kind::Udp {
            put(transport, 4, len.to_be_bytes())?;
        }
        put(transport, checksum_at, ip.pseudo_sum(ip.protocol, segment_len).partial())?;
        let start = u16::try_from(ip.transport).ok()?;
        *virtio = VirtioHeader {
            kind,
            headers_len: u16::try_from(headers_len).ok()?,
            segment_len: u16::try_from(payload).ok()?,
            checksum: Some((start, u16::try_from(checksum_at).ok()?)),
        }
        .bytes();
        Some(kind)
    }
}

impl Candidate {
    /// A TCP segment or UDP datagram, as a whole and right behind its IP header.
    #[inline]
    fn parse(bytes: &[u8], ip: &Header, merging: Merging) -> Option<Candidate> {
        let is_whole = ip.packet_len == bytes.len() && !ip.is_fragment;
        let segment = bytes.get(ip.transport..).filter(|_| is_whole)?;
        let id = bytes.get(4..)?.first_chunk().map(|id| u16::from_be_bytes(*id))?;
        let has_options = ip.source.is_ipv4() && ip.transport > IPV4_HEADER_LEN;
        let (header_len, sequence, is_mergeable, is_last) = match ip.protocol {
            TCP => {
                let header: &[u8; TCP_HEADER_LEN] = segment.first_chunk()?;
                let header_len = usize::from(header[12] >> 4).wrapping_mul(4);
                let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                let flags = header[13];
                let is_mergeable =
                    merging.tcp && header_len >= TCP_HEADER_LEN && flags & !(PSH | FIN) == ACK;
                (header_len, sequence, is_mergeable, flags & (PSH | FIN) != 0)
            }
            UDP => {
                let header: &[u8; UDP_HEADER_LEN] = segment.first_chunk()?;
                let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
                let has_checksum = header[6..] != [0, 0];
                let is_mergeable = merging.udp && len == segment.len() && has_checksum;
                (UDP_HEADER_LEN, 0, is_mergeable, false)
            }
            _ => return None,
        };
        let payload = segment.len().checked_sub(header_len)?;
        Some(Candidate {
            ip: *ip,
            headers_len: ip.transport.saturating_add(header_len),
            ports: *segment.first_chunk()?,
            payload,
            sequence,
            id,
            is_last,
            is_plain: is_mergeable && payload > 0 && !has_options,
        })
    }

    /// Whether the packet's checksums hold, which the kernel will not look at any more.
    #[inline]
    fn is_sound(&self, bytes: &[u8]) -> bool {
        let Some((ip, segment)) = bytes.split_at_checked(self.ip.transport) else {
            return false;
        };
        let sum = self.ip.pseudo_sum(self.ip.protocol, segment.len()).with(segment);
        (self.ip.source.is_ipv6() || Sum::default().with(ip).is_sound()) && sum.is_sound()
    }
}
