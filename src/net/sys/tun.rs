//! What a TUN device's descriptor needs beside reading and writing.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

/// The reader completes checksums (linux/if_tun.h, as all of these).
pub const CHECKSUM: u32 = libc::TUN_F_CSUM;
/// The reader splits TCP over IPv4 and IPv6, with congestion marks too.
pub const TCP: u32 = libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// The reader splits UDP over IPv4 and IPv6 (Linux 6.2).
pub const UDP: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Tells the kernel what the reader of the device does itself. `EINVAL`: a flag that this kernel
/// does not know; nothing has changed then.
pub fn set_offloads(device: &impl AsFd, flags: u32) -> io::Result<()> {
    // SAFETY: the request takes its argument by value.
    let result = unsafe {
        libc::ioctl(device.as_fd().as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags))
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How long the header in front of every packet is. A device that somebody made persistent may have
/// kept another length of its last owner's.
pub fn set_header_len(device: &impl AsFd, len: usize) -> io::Result<()> {
    let len = libc::c_int::try_from(len).unwrap_or(libc::c_int::MAX);
    // SAFETY: the request reads an int from there, which lives through the call.
    let result = unsafe {
        libc::ioctl(device.as_fd().as_raw_fd(), libc::TUNSETVNETHDRSZ, std::ptr::from_ref(&len))
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The descriptor of an opened device.
pub fn into_descriptor(device: tun::Device) -> OwnedFd {
    // SAFETY: the device owned its descriptor, which is open, and has given it up.
    unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) }
}

/// What reads and writes say of an interface that has been deleted.
pub const GONE: i32 = libc::EBADFD;
/// What writes say of an interface that is down.
pub const DOWN: i32 = libc::EIO;
