//! Control messages: what goes with a datagram besides its bytes and its remote endpoint.

use super::size_of_u32;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Room for the control messages of one message. The most that come together are those of a received
/// one: two integers (UDP_GRO, SO_RXQ_OVFL) at 24 bytes and an `in6_pktinfo` at 40.
pub(super) const CONTROL_LEN: usize = 88;

/// A control buffer, aligned as `cmsghdr` demands (cmsg(3)).
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control([u8; CONTROL_LEN]);

/// What a control message may carry.
///
/// # Safety
///
/// Every pattern of bytes must be a value of the type.
unsafe trait Plain: Copy {}

// SAFETY: integers, and C structures of nothing else.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for libc::c_int {}
// SAFETY: as above.
unsafe impl Plain for libc::in_pktinfo {}
// SAFETY: as above.
unsafe impl Plain for libc::in6_pktinfo {}

impl Default for Control {
    fn default() -> Control {
        Control([0; CONTROL_LEN])
    }
}

impl Control {
    /// Says which of this host's addresses the message leaves from; returns how many bytes that
    /// takes. No interface is named: the route to the destination decides that.
    pub(super) fn write_source(&mut self, source: IpAddr) -> usize {
        match source {
            IpAddr::V4(source) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from(source).to_be() },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                self.append(0, libc::IPPROTO_IP, libc::IP_PKTINFO, info)
            }
            IpAddr::V6(source) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: source.octets() },
                    ipi6_ifindex: 0,
                };
                self.append(0, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
            }
        }
    }

    /// Says, behind the first `used` bytes, how long each of the message's datagrams is; returns
    /// how many bytes are used then.
    pub(super) fn append_segment_len(&mut self, used: usize, segment_len: u16) -> usize {
        self.append(used, libc::SOL_UDP, libc::UDP_SEGMENT, segment_len)
    }

    /// Adds a control message behind the `used` bytes that earlier ones take; returns how many are
    /// used then.
    fn append<T: Plain>(
        &mut self,
        used: usize,
        level: libc::c_int,
        kind: libc::c_int,
        value: T,
    ) -> usize {
        // SAFETY: CMSG_SPACE and CMSG_LEN are arithmetic.
        let (space, len) = unsafe {
            let size = size_of_u32::<T>();
            (libc::CMSG_SPACE(size) as usize, libc::CMSG_LEN(size))
        };
        // CONTROL_LEN is enough for all that is ever sent together.
        let Some(room) = self.0.get_mut(used..used + space) else {
            return used;
        };
        let message = room.as_mut_ptr();
        // SAFETY: `room` has the header, the value and their padding, and the writes need no
        // alignment; CMSG_DATA is where the value begins within it. An all-zero header is valid.
        unsafe {
            let mut header = MaybeUninit::<libc::cmsghdr>::zeroed().assume_init();
            header.cmsg_level = level;
            header.cmsg_type = kind;
            header.cmsg_len = len as _;
            std::ptr::write_unaligned(message.cast::<libc::cmsghdr>(), header);
            std::ptr::write_unaligned(libc::CMSG_DATA(message.cast()).cast::<T>(), value);
        }
        used + space
    }
}

/// The integer in the control message of that level and kind, if the kernel sent one.
pub(super) fn read_int(
    header: &libc::msghdr,
    level: libc::c_int,
    kind: libc::c_int,
) -> Option<libc::c_int> {
    read(header, level, kind)
}

/// The address of this host that the message was sent to, if the kernel tells it.
pub(super) fn read_destination(header: &libc::msghdr, is_ipv4: bool) -> Option<IpAddr> {
    if is_ipv4 {
        let info: libc::in_pktinfo = read(header, libc::IPPROTO_IP, libc::IP_PKTINFO)?;
        Some(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into())
    } else {
        let info: libc::in6_pktinfo = read(header, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO)?;
        Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into())
    }
}

/// What the control message of that level and kind carries, if the kernel sent one.
fn read<T: Plain>(header: &libc::msghdr, level: libc::c_int, kind: libc::c_int) -> Option<T> {
    // SAFETY: after recvmmsg, `msg_control` and `msg_controllen` describe the part of our aligned
    // control buffer that the kernel filled; the CMSG macros stay within it, and a value is read
    // only from a message long enough to hold one.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            if (*message).cmsg_level == level
                && (*message).cmsg_type == kind
                && (*message).cmsg_len as usize >= libc::CMSG_LEN(size_of_u32::<T>()) as usize
            {
                return Some(std::ptr::read_unaligned(libc::CMSG_DATA(message).cast()));
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    None
}
