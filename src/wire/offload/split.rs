//! One packet that stands for several, taken apart: as a network card does that can (TSO, USO).

use super::{Kind, VirtioHeader, put};
use crate::wire::ip::{
    Header, Sum, TCP, TCP_CHECKSUM_AT, TCP_HEADER_LEN, UDP, UDP_CHECKSUM_AT, UDP_HEADER_LEN,
};

/// Where a TCP header has its sequence number and its flags.
const SEQUENCE_AT: usize = 4;
const FLAGS_AT: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// Where a UDP header has its length.
const UDP_LEN_AT: usize = 4;

/// A packet that is to be split.
#[derive(Debug, Clone, Copy)]
pub struct Split<'a> {
    ip: Header,
    protocol: u8,
    /// Where the TCP or UDP header begins.
    transport: usize,
    headers: &'a [u8],
    payload: &'a [u8],
    segment_len: usize,
}

impl<'a> Split<'a> {
    /// Makes out what is to be split; `ip` is the packet's header. `None` for single packets, and for
    /// those that are not what `virtio` says.
    ///
    /// Extension headers of IPv6 are repeated in every packet. Checksums are computed anew for the
    /// destination that the IPv6 header names: of a packet with a routing header they are wrong.
    pub fn new(virtio: &VirtioHeader, ip: Header, packet: &'a [u8]) -> Option<Split<'a>> {
        let protocol = match (virtio.kind, ip.source.is_ipv4()) {
            (Kind::Tcp4, true) | (Kind::Tcp6, false) => TCP,
            (Kind::Udp, _) => UDP,
            _ => return None,
        };
        let packet = packet.get(..ip.packet_len)?;
        let (start, _) = virtio.checksum?;
        let transport = usize::from(start);
        let is_where_it_should = if ip.source.is_ipv4() {
            transport == ip.transport && ip.protocol == protocol && !ip.is_fragment
        } else {
            // Extension headers may stand in between.
            transport > ip.transport || (transport == ip.transport && ip.protocol == protocol)
        };
        if !is_where_it_should {
            return None;
        }
        let header = packet.get(transport..)?;
        let header_len = if protocol == TCP {
            let words = usize::from(header.get(12)? >> 4);
            Some(words.wrapping_mul(4)).filter(|len| *len >= TCP_HEADER_LEN)?
        } else {
            UDP_HEADER_LEN
        };
        let (headers, payload) = packet.split_at_checked(transport.checked_add(header_len)?)?;
        let segment_len = usize::from(virtio.segment_len);
        (segment_len > 0 && !payload.is_empty()).then_some(Split {
            ip,
            protocol,
            transport,
            headers,
            payload,
            segment_len: segment_len.min(payload.len()),
        })
    }

    /// How many packets it stands for; at least one.
    pub fn packets(&self) -> usize {
        self.payload.len().div_ceil(self.segment_len)
    }

    /// Bytes of each packet; the last may be shorter.
    pub fn packet_len(&self) -> usize {
        self.headers.len().wrapping_add(self.segment_len)
    }

    /// Whether the last packet is as long as the others.
    pub fn is_even(&self) -> bool {
        self.payload.len().checked_rem(self.segment_len) == Some(0)
    }

    /// Bytes of all packets, each behind a prefix of `prefix_len`.
    pub fn total_len(&self, prefix_len: usize) -> usize {
        let each = self.headers.len().saturating_add(prefix_len);
        self.packets().saturating_mul(each).saturating_add(self.payload.len())
    }

    /// Writes all packets, each behind `prefix`, one after the other to the front of `out`. `None` if
    /// `out` is shorter than [`Split::total_len`].
    pub fn write(&self, prefix: &[u8], out: &mut [u8]) -> Option<()> {
        let mut rest = out.get_mut(..self.total_len(prefix.len()))?;
        let last = self.packets().wrapping_sub(1);
        for (index, payload) in self.payload.chunks(self.segment_len).enumerate() {
            let len = self.headers.len().wrapping_add(payload.len());
            let (front, behind) = rest.split_at_mut_checked(prefix.len())?;
            front.copy_from_slice(prefix);
            let (packet, behind) = behind.split_at_mut_checked(len)?;
            let (headers, body) = packet.split_at_mut_checked(self.headers.len())?;
            headers.copy_from_slice(self.headers);
            body.copy_from_slice(payload);
            self.finish(packet, index, index == last)?;
            rest = behind;
        }
        Some(())
    }

    /// Changes what the headers of the packet with that index must have of their own.
    #[inline]
    fn finish(&self, packet: &mut [u8], index: usize, is_last: bool) -> Option<()> {
        let (ip, segment) = packet.split_at_mut_checked(self.transport)?;
        let segment_len = u16::try_from(segment.len()).ok()?;
        if self.ip.source.is_ipv4() {
            let len = u16::try_from(ip.len()).ok()?.checked_add(segment_len)?;
            put(ip, 2, len.to_be_bytes())?;
            let id = u16::from_be_bytes(*ip.get(4..)?.first_chunk()?);
            // The ids of what was one packet follow each other, as inet_gso_segment in
            // linux/net/ipv4/af_inet.c has it.
            #[allow(clippy::cast_possible_truncation)] // Ids wrap.
            put(ip, 4, id.wrapping_add(index as u16).to_be_bytes())?;
            put(ip, 10, [0, 0])?;
            let sum = Sum::default().with(ip).checksum();
            put(ip, 10, sum)?;
        } else {
            let extensions = u16::try_from(ip.len().checked_sub(self.ip.transport)?).ok()?;
            put(ip, 4, segment_len.checked_add(extensions)?.to_be_bytes())?;
        }
        let checksum_at = if self.protocol == TCP {
            let sequence = u32::from_be_bytes(*segment.get(SEQUENCE_AT..)?.first_chunk()?);
            let offset = index.wrapping_mul(self.segment_len);
            #[allow(clippy::cast_possible_truncation)] // Sequence numbers wrap.
            let sequence = sequence.wrapping_add(offset as u32);
            put(segment, SEQUENCE_AT, sequence.to_be_bytes())?;
            let flags = segment.get_mut(FLAGS_AT)?;
            if !is_last {
                *flags &= !(FIN | PSH);
            }
            if index > 0 {
                *flags &= !CWR;
            }
            TCP_CHECKSUM_AT
        } else {
            put(segment, UDP_LEN_AT, segment_len.to_be_bytes())?;
            UDP_CHECKSUM_AT
        };
        put(segment, checksum_at, [0, 0])?;
        let sum = self.ip.pseudo_sum(self.protocol, segment.len()).with(segment);
        let checksum = if self.protocol == TCP { sum.checksum() } else { sum.udp_checksum() };
        put(segment, checksum_at, checksum)
    }
}
