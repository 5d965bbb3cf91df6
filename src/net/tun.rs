//! TUN devices: the kernel's packets, and with offloads many of them in one read or write.

use super::sys::tun as sys;
use crate::wire::offload::VIRTIO_HEADER_LEN;
use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use tun::AbstractDevice;

/// What a device does for us in one read or write. Each needs the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Every packet stands behind a [`VirtioHeader`](crate::wire::offload::VirtioHeader)
    /// (`IFF_VNET_HDR`).
    pub header: bool,
    /// TCP segments come and go merged, and checksums are completed by the reader (`TUN_F_CSUM`,
    /// `TUN_F_TSO4`, `TUN_F_TSO6`).
    pub tcp: bool,
    /// UDP datagrams come and go merged (`TUN_F_USO4`, `TUN_F_USO6`; Linux 6.2).
    pub udp: bool,
}

impl fmt::Display for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.tcp, self.udp) {
            (true, true) => "tcp and udp",
            (true, false) => "tcp",
            (false, true) => "udp",
            (false, false) => "none",
        })
    }
}

/// A TUN device, non-blocking. Any thread may read and write it: a read yields and a write takes a
/// whole packet. The interface goes with the last owner, unless somebody else made it persistent.
#[derive(Debug)]
pub struct TunDevice {
    file: File,
    name: String,
    has_header: bool,
    merges_tcp: AtomicBool,
    merges_udp: AtomicBool,
}

impl TunDevice {
    /// Opens or makes the device of that name; the kernel puts a number in place of a `%d` in it.
    /// With `offload`, it has as many offloads as the kernel knows, else none. It is neither
    /// up nor has it addresses yet.
    ///
    /// Errors: `NotFound` without /dev/net/tun, `PermissionDenied` without CAP_NET_ADMIN,
    /// `ResourceBusy` when another process has the device, `InvalidInput` when it is no TUN device.
    pub fn open(name: &str, offload: bool) -> io::Result<TunDevice> {
        let made = if offload {
            // A kernel without virtio headers refuses them with EINVAL.
            make(name, true).or_else(|error| match error.kind() {
                io::ErrorKind::InvalidInput => make(name, false),
                _ => Err(error),
            })?
        } else {
            make(name, false)?
        };
        let Made { file, name, has_header } = made;
        let (mut tcp, mut udp) = (false, false);
        if has_header {
            sys::set_header_len(&file, VIRTIO_HEADER_LEN)?;
            udp = sys::set_offloads(&file, sys::CHECKSUM | sys::TCP | sys::UDP).is_ok();
            tcp = udp || sys::set_offloads(&file, sys::CHECKSUM | sys::TCP).is_ok();
        }
        if !tcp {
            // A device that somebody made persistent may have kept those of its last owner.
            let _ = sys::set_offloads(&file, 0);
        }
        let (merges_tcp, merges_udp) = (AtomicBool::new(tcp), AtomicBool::new(udp));
        Ok(TunDevice { file, name, has_header, merges_tcp, merges_udp })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The offloads in use, which may be fewer than at first.
    pub fn offloads(&self) -> Offloads {
        Offloads {
            header: self.has_header,
            tcp: self.merges_tcp.load(Ordering::Relaxed),
            udp: self.merges_udp.load(Ordering::Relaxed),
        }
    }

    /// Remembers that the device refused a merged TCP packet: none are written any more.
    pub fn stop_merging_tcp(&self) {
        self.merges_tcp.store(false, Ordering::Relaxed);
    }

    /// The same of UDP.
    pub fn stop_merging_udp(&self) {
        self.merges_udp.store(false, Ordering::Relaxed);
    }

    /// Reads one packet, which with offloads may be one to split, behind its header if the device
    /// has headers. What does not fit the buffer is lost; 65,535 bytes and the header fit always.
    ///
    /// Errors: `WouldBlock` when there is none; EBADFD when the interface has been deleted.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Writes one packet, gathered from `parts`, the first of which begins with the header if the
    /// device has headers.
    ///
    /// Errors: EIO when the interface is down; EINVAL when the kernel does not take the header or
    /// the packet; EBADFD when the interface has been deleted.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        (&self.file).write_vectored(parts).map(drop)
    }
}

impl AsFd for TunDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Whether this error says that the interface has been deleted: EBADFD, file descriptor in bad
/// state (tun_chr_read_iter in linux/drivers/net/tun.c).
pub fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(sys::GONE)
}

/// Whether this error of a write says that the interface is down.
pub fn is_down(error: &io::Error) -> bool {
    error.raw_os_error() == Some(sys::DOWN)
}

struct Made {
    file: File,
    name: String,
    has_header: bool,
}

fn make(name: &str, has_header: bool) -> io::Result<Made> {
    let mut configuration = tun::Configuration::default();
    configuration.tun_name(name).platform_config(|platform| {
        // Addresses, MTU and being up are set by netlink.
        platform.ensure_root_privileges(false).vnet_hdr(has_header);
    });
    let device = tun::create(&configuration)?;
    device.set_nonblock()?;
    let name = device.tun_name()?;
    Ok(Made { file: sys::into_descriptor(device).into(), name, has_header })
}
