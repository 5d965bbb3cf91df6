//! Socket options that no crate of ours sets.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// linux/sockios.h; the libc crate does not have it.
const SIOCOUTQNSD: libc::Ioctl = 0x894B;

/// Whether the kernel hands over runs of datagrams merged (`UDP_GRO`, Linux 5.0).
pub fn receive_merged(socket: &impl AsFd, wanted: bool) -> io::Result<()> {
    set_int(socket, libc::SOL_UDP, libc::UDP_GRO, wanted.into())
}

/// Whether the kernel knows `UDP_SEGMENT` (Linux 4.18). One that does not ignores the control message
/// and would send a whole train as one datagram.
pub fn knows_segmentation(socket: &impl AsFd) -> bool {
    // 0 leaves the socket as it is.
    set_int(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok()
}

/// Lets received messages carry the socket's count of dropped datagrams (`SO_RXQ_OVFL`).
pub fn report_drops(socket: &impl AsFd) -> io::Result<()> {
    set_int(socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)
}

/// Lets received messages carry the address that they were sent to (`IP_PKTINFO`, ip(7), or
/// `IPV6_RECVPKTINFO`, ipv6(7)). The kernel notes an IPv4 one when the message comes: to be called
/// before the socket is bound.
pub fn report_destinations(socket: &impl AsFd, is_ipv6: bool) -> io::Result<()> {
    if is_ipv6 {
        set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)
    } else {
        set_int(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)
    }
}

/// Asks for socket buffers past net.core.rmem_max and wmem_max (`SO_RCVBUFFORCE`,
/// `SO_SNDBUFFORCE`); only for CAP_NET_ADMIN.
pub fn force_buffers(socket: &impl AsFd, receive: usize, send: usize) -> io::Result<()> {
    for (option, bytes) in [(libc::SO_RCVBUFFORCE, receive), (libc::SO_SNDBUFFORCE, send)] {
        if bytes > 0 {
            let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
            set_int(socket, libc::SOL_SOCKET, option, bytes)?;
        }
    }
    Ok(())
}

/// Bytes that a TCP socket has taken and the other side has not acknowledged, sent or not
/// (`SIOCOUTQ`, tcp(7)).
pub fn unacknowledged(socket: &impl AsFd) -> io::Result<usize> {
    read_count(socket, libc::TIOCOUTQ)
}

/// Those of [`unacknowledged`] that have not been sent yet (`SIOCOUTQNSD`, linux/sockios.h).
pub fn unsent(socket: &impl AsFd) -> io::Result<usize> {
    read_count(socket, SIOCOUTQNSD)
}

fn read_count(socket: &impl AsFd, request: libc::Ioctl) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both requests that come here write one int, into `bytes`.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), request, &raw mut bytes) };
    if result == 0 {
        Ok(usize::try_from(bytes).unwrap_or(0))
    } else {
        Err(io::Error::last_os_error())
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn what_a_peer_does_not_acknowledge_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(unacknowledged(&sender).unwrap(), 0);
        sender.set_nonblocking(true).unwrap();
        let mut written = 0;
        while let Ok(len) = sender.write(&[0; 8192]) {
            written += len;
        }
        let waiting = unacknowledged(&sender).unwrap();
        assert!(waiting > 0 && waiting <= written, "{waiting} of {written}");
        assert!((1..=waiting).contains(&unsent(&sender).unwrap()));
        let (mut receiver, _) = listener.accept().unwrap();
        drop(sender);
        assert_eq!(receiver.read_to_end(&mut Vec::new()).unwrap(), written);
    }
}
