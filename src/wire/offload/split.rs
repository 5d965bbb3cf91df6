//! One packet that stands for several, taken apart: as a network card does that can (TSO, USO).

use super::{Kind, VirtioHeader, put};
use crate::wire::ip::{
    Header, Sum, TCP, TCP_CHECKSUM_AT, TCP_HEADER_LEN, UDP, UDP_CHECKSUM_AT, UDP_HEADER_LEN,
};

/// Where a TCP header has its sequence number, and the word of its flags.
const SEQUENCE_AT: usize = 4;
const WORDS_AND_FLAGS_AT: usize = 12;
const FIN: u16 = 0x01;
const PSH: u16 = 0x08;
const CWR: u16 = 0x80;
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
    /// Extension headers of IPv6 are repeated in every packet. Checksums are made out of the sum that
    /// stands in the packet: with a routing header its destination is not the IPv6 header's.
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
        let common = self.common()?;
        let last = self.packets().wrapping_sub(1);
        for (index, payload) in self.payload.chunks(self.segment_len).enumerate() {
            let (front, behind) = rest.split_at_mut_checked(prefix.len())?;
            front.copy_from_slice(prefix);
            let (headers, behind) = behind.split_at_mut_checked(self.headers.len())?;
            headers.copy_from_slice(self.headers);
            let (body, behind) = behind.split_at_mut_checked(payload.len())?;
            body.copy_from_slice(payload);
            self.finish(headers, &common, payload, index, index == last)?;
            rest = behind;
        }
        Some(())
    }

    /// What is the same in all packets.
    ///
    /// Sums are taken of what was read: a processor that loads a word of a header which has just been
    /// stored in pieces waits until all of them are in the cache.
    fn common(&self) -> Option<Common> {
        let (ip, segment) = self.headers.split_at_checked(self.transport)?;
        let word = |bytes: &[u8], at| Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        // Taking a word away is adding its complement (RFC 1071 section 2 (C)).
        let ip_sum = [2, 4, 10]
            .into_iter()
            .try_fold(Sum::default().with(ip), |sum, at| Some(sum.with_u16(!word(ip, at)?)))?;
        let own: &[usize] = match self.protocol {
            TCP => &[SEQUENCE_AT, 6, WORDS_AND_FLAGS_AT],
            _ => &[UDP_LEN_AT],
        };
        // The checksum's place has the sum of the pseudo header, with the length of all in one
        // (CHECKSUM_PARTIAL in linux/skbuff.h): it stays in, without that length.
        let len = u16::try_from(segment.len().checked_add(self.payload.len())?).ok()?;
        let segment_sum =
            own.iter().try_fold(Sum::default().with(segment).with_u16(!len), |sum, at| {
                Some(sum.with_u16(!word(segment, *at)?))
            })?;
        let sequence = segment.get(SEQUENCE_AT..)?.first_chunk().map(|it| u32::from_be_bytes(*it));
        Some(Common {
            ip_sum,
            segment_sum,
            id: word(ip, 4)?,
            sequence: sequence?,
            words_and_flags: if self.protocol == TCP {
                word(segment, WORDS_AND_FLAGS_AT)?
            } else {
                0
            },
        })
    }

    /// Changes what the headers of the packet with that index must have of their own.
    #[inline]
    fn finish(
        &self,
        headers: &mut [u8],
        common: &Common,
        payload: &[u8],
        index: usize,
        is_last: bool,
    ) -> Option<()> {
        let (ip, segment) = headers.split_at_mut_checked(self.transport)?;
        let segment_len = u16::try_from(segment.len().checked_add(payload.len())?).ok()?;
        if self.ip.source.is_ipv4() {
            let len = u16::try_from(ip.len()).ok()?.checked_add(segment_len)?;
            // The ids of what was one packet follow each other, as inet_gso_segment in
            // linux/net/ipv4/af_inet.c has it.
            #[allow(clippy::cast_possible_truncation)] // Ids wrap.
            let id = common.id.wrapping_add(index as u16);
            put(ip, 2, len.to_be_bytes())?;
            put(ip, 4, id.to_be_bytes())?;
            put(ip, 10, common.ip_sum.with_u16(len).with_u16(id).checksum())?;
        } else {
            let extensions = u16::try_from(ip.len().checked_sub(self.ip.transport)?).ok()?;
            put(ip, 4, segment_len.checked_add(extensions)?.to_be_bytes())?;
        }
        let sum = common.segment_sum.with_u16(segment_len).with(payload);
        if self.protocol == UDP {
            put(segment, UDP_LEN_AT, segment_len.to_be_bytes())?;
            return put(segment, UDP_CHECKSUM_AT, sum.with_u16(segment_len).udp_checksum());
        }
        #[allow(clippy::cast_possible_truncation)] // Sequence numbers wrap.
        let sequence = common.sequence.wrapping_add(index.wrapping_mul(self.segment_len) as u32);
        let mut flags = common.words_and_flags;
        if !is_last {
            flags &= !(FIN | PSH);
        }
        if index > 0 {
            flags &= !CWR;
        }
        put(segment, SEQUENCE_AT, sequence.to_be_bytes())?;
        put(segment, WORDS_AND_FLAGS_AT, flags.to_be_bytes())?;
        let sum = sum.with_u32(sequence).with_u16(flags);
        put(segment, TCP_CHECKSUM_AT, sum.checksum())
    }
}

/// What all packets have in common: sums without what each has of its own, and where that begins.
struct Common {
    /// Without length, id and checksum.
    ip_sum: Sum,
    /// Of pseudo header and header, without lengths, sequence number, flags and checksum.
    segment_sum: Sum,
    id: u16,
    /// TCP's.
    sequence: u32,
    /// TCP's length of the header, and flags.
    words_and_flags: u16,
}
