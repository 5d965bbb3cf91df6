//! Socket addresses as the kernel lays them out.

use super::size_of_u32;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Room for one socket address of either family.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union Name {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

const fn family(value: libc::c_int) -> libc::sa_family_t {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // AF_INET 2, AF_INET6 10.
    let family = value as libc::sa_family_t;
    family
}

/// Lays `address` out in `name`; returns its length there.
pub(super) fn write_name(name: &mut Name, address: SocketAddr) -> libc::socklen_t {
    match address {
        SocketAddr::V4(address) => {
            name.v4 = libc::sockaddr_in {
                sin_family: family(libc::AF_INET),
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                sin_zero: [0; 8],
            };
            size_of_u32::<libc::sockaddr_in>()
        }
        SocketAddr::V6(address) => {
            name.v6 = libc::sockaddr_in6 {
                sin6_family: family(libc::AF_INET6),
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            };
            size_of_u32::<libc::sockaddr_in6>()
        }
    }
}

/// The address that the kernel has left in `name`; `None` for families that are not IP.
pub(super) fn read_name(name: &Name, len: libc::socklen_t) -> Option<SocketAddr> {
    if len < size_of_u32::<libc::sockaddr_in>() {
        return None;
    }
    // SAFETY: every variant of the union is plain integers and starts with the family, and the
    // union was zeroed before the kernel wrote into it, so any of them may be read.
    unsafe {
        if name.family == family(libc::AF_INET) {
            let ip = Ipv4Addr::from(u32::from_be(name.v4.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(name.v4.sin_port)).into())
        } else if name.family == family(libc::AF_INET6)
            && len >= size_of_u32::<libc::sockaddr_in6>()
        {
            let ip = Ipv6Addr::from(name.v6.sin6_addr.s6_addr);
            let port = u16::from_be(name.v6.sin6_port);
            // The flow label of an incoming packet is no part of who sent it.
            Some(SocketAddrV6::new(ip, port, 0, name.v6.sin6_scope_id).into())
        } else {
            None
        }
    }
}
