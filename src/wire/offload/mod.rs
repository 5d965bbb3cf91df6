//! Many packets of one flow as one, as the kernel takes and gives them at a TUN device.
//!
//! ```text
//! flags:u8 kind:u8 . headers_len:u16 segment_len:u16 . checksum_start:u16 checksum_offset:u16 . packet
//!
//! flags = 1 the checksum is to be completed: from checksum_start to the end, stored checksum_offset behind it
//! kind  = 0 a packet; 1 TCP over IPv4, 4 TCP over IPv6, 5 UDP: packets in one, with segment_len of payload each;
//!         80 (hexadecimal) is added when the first TCP segment alone has CWR
//! ```
//!
//! Integers are in the machine's byte order. Sources: `struct virtio_net_hdr` in
//! linux/virtio_net.h, and the virtio 1.3 specification, section 5.1.6, for what the fields
//! mean. [`split`] takes such packets apart, [`coalesce`] makes them.
//!
//! ```
//! use udpferry::wire::offload::{Kind, VirtioHeader};
//! let header = VirtioHeader {
//!     kind: Kind::Tcp4,
//!     headers_len: 40,
//!     segment_len: 1380,
//!     checksum: Some((20, 16)),
//! };
//! let bytes = header.bytes();
//! assert_eq!(bytes[..2], [1, 1]);
//! assert_eq!(bytes[4..6], 1380_u16.to_ne_bytes());
//! assert_eq!(VirtioHeader::parse(&bytes), Some(header));
//! ```

pub mod coalesce;
pub mod split;

use super::ip::Sum;

/// Bytes in front of every packet of a device with `IFF_VNET_HDR`.
pub const VIRTIO_HEADER_LEN: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
/// The first segment has CWR, which the segments behind it do not have (RFC 3168 section 6.1.2).
const WITH_CWR: u8 = 0x80;

/// What stands behind the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// One packet.
    #[default]
    Single,
    /// TCP segments over IPv4.
    Tcp4,
    /// TCP segments over IPv6.
    Tcp6,
    /// UDP datagrams.
    Udp,
}

/// What the kernel tells of a packet beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VirtioHeader {
    /// What stands behind it.
    pub kind: Kind,
    /// Bytes of IP and transport headers: a hint, which [`split`] does not follow.
    pub headers_len: u16,
    /// Bytes of payload in each packet but the last.
    pub segment_len: u16,
    /// From where on, and how far behind that, the checksum is to be completed; `None` when it is
    /// whole.
    pub checksum: Option<(u16, u16)>,
}

impl VirtioHeader {
    /// Reads the header at the front of `bytes`. `None` for short ones, and kinds that nobody asked
    /// the kernel for.
    pub fn parse(bytes: &[u8]) -> Option<VirtioHeader> {
        let bytes: &[u8; VIRTIO_HEADER_LEN] = bytes.first_chunk()?;
        let kind = match bytes[1] & !WITH_CWR {
            0 => Kind::Single,
            1 => Kind::Tcp4,
            4 => Kind::Tcp6,
            5 => Kind::Udp,
            _ => return None,
        };
        let checksum = (bytes[0] & NEEDS_CHECKSUM != 0).then_some((
            u16::from_ne_bytes([bytes[6], bytes[7]]),
            u16::from_ne_bytes([bytes[8], bytes[9]]),
        ));
        Some(VirtioHeader {
            kind,
            headers_len: u16::from_ne_bytes([bytes[2], bytes[3]]),
            segment_len: u16::from_ne_bytes([bytes[4], bytes[5]]),
            checksum,
        })
    }

    /// As the kernel reads it.
    pub fn bytes(&self) -> [u8; VIRTIO_HEADER_LEN] {
        let kind = match self.kind {
            Kind::Single => 0,
            Kind::Tcp4 => 1,
            Kind::Tcp6 => 4,
            Kind::Udp => 5,
        };
        let flags = if self.checksum.is_some() { NEEDS_CHECKSUM } else { 0 };
        let [h0, h1] = self.headers_len.to_ne_bytes();
        let [s0, s1] = self.segment_len.to_ne_bytes();
        let (start, offset) = self.checksum.unwrap_or_default();
        let ([c0, c1], [o0, o1]) = (start.to_ne_bytes(), offset.to_ne_bytes());
        [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1]
    }

    /// Completes the checksum of a single packet, in place. `None`, and nothing changed, when the
    /// place for it lies outside of the packet.
    pub fn complete_checksum(&self, packet: &mut [u8]) -> Option<()> {
        let Some((start, offset)) = self.checksum else {
            return Some(());
        };
        let protected = packet.get_mut(usize::from(start)..)?;
        let sum = Sum::default().with(protected);
        let field = protected.get_mut(usize::from(offset)..)?.first_chunk_mut()?;
        // As skb_checksum_help in linux/net/core/dev.c: TCP takes both words for zero.
        *field = sum.udp_checksum();
        Some(())
    }
}

/// Overwrites bytes of a header; `None` when they lie outside of it.
fn put<const N: usize>(header: &mut [u8], at: usize, bytes: [u8; N]) -> Option<()> {
    *header.get_mut(at..)?.first_chunk_mut()? = bytes;
    Some(())
}

#[cfg(test)]
mod tests;
