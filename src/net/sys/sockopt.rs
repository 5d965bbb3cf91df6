//! Socket options that no crate of ours sets.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Lets the kernel hand over runs of datagrams merged (`UDP_GRO`, Linux 5.0).
pub fn receive_merged(socket: &impl AsFd) -> io::Result<()> {
    set_int(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Lets received messages carry the socket's count of dropped datagrams (`SO_RXQ_OVFL`).
pub fn report_drops(socket: &impl AsFd) -> io::Result<()> {
    set_int(socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)
}

fn set_int(
    socket: &impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(0);
    // SAFETY: `value` lives through the call and `len` is its size.
    let result = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw const value).cast(), len)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
