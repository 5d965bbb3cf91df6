//! UDP sockets for flows: made in one place, with the options that batching wants.

use super::sys::mmsg::receive::ReceiveQueue;
use super::sys::mmsg::send::{SendBatch, SendQueue};
use super::sys::sockopt;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Socket buffer sizes in bytes; 0 leaves the system's.
#[derive(Debug, Clone, Copy, Default)]
pub struct Buffers {
    /// `SO_RCVBUF`; the kernel grants more than net.core.rmem_max only to CAP_NET_ADMIN.
    pub receive: usize,
    /// `SO_SNDBUF`; the kernel grants more than net.core.wmem_max only to CAP_NET_ADMIN.
    pub send: usize,
}

/// Asked once: a kernel does not learn it while it runs.
static KNOWS_SEGMENTATION: OnceLock<bool> = OnceLock::new();

/// A non-blocking UDP socket that sends and receives in batches.
#[derive(Debug)]
pub struct UdpSocket {
    socket: mio::net::UdpSocket,
    segmentation: AtomicBool,
    kernel_drops: AtomicU32,
}

/// The wildcard address of `like`'s family with port 0: the kernel picks a random free port.
pub fn any_port(like: SocketAddr) -> SocketAddr {
    match like {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

impl UdpSocket {
    /// A socket bound to `local` that talks to anyone. With `shared_port`, other sockets that also
    /// ask for it may bind the same address (`SO_REUSEADDR`).
    pub fn bind(local: SocketAddr, shared_port: bool, buffers: Buffers) -> io::Result<UdpSocket> {
        let socket = make(local, buffers)?;
        if shared_port {
            socket.set_reuse_address(true)?;
        }
        UdpSocket::bind_made(socket, local)
    }

    /// A socket bound to `local` that answers whoever comes. On a wildcard address, received messages
    /// tell which address of this host they were sent to ([`Received::destination`]), which costs
    /// something for each; elsewhere there is one, which answers leave from anyway.
    ///
    /// [`Received::destination`]: super::sys::mmsg::receive::Received::destination
    pub fn listen(local: SocketAddr, buffers: Buffers) -> io::Result<UdpSocket> {
        let socket = make(local, buffers)?;
        tell_destinations(&socket, local)?;
        UdpSocket::bind_made(socket, local)
    }

    /// The same, for datagrams of this host's own programs, to whichever of its addresses: what has
    /// not come over a loopback device is dropped by the kernel, and counts among its drops.
    ///
    /// Binding the socket to the device instead would refuse those to other addresses than 127.0.0.1:
    /// the kernel has them arrive on the interface that has the address (`orig_oif` in
    /// ip_route_output_key_hash_rcu(), net/ipv4/route.c; `IP6CB(skb)->iif` in ip6_rcv_core()).
    pub fn bind_for_this_host(local: SocketAddr, buffers: Buffers) -> io::Result<UdpSocket> {
        let socket = make(local, buffers)?;
        tell_destinations(&socket, local)?;
        // Before the socket has a port: nothing gets in earlier.
        socket.attach_filter(&over_loopback())?;
        UdpSocket::bind_made(socket, local)
    }

    /// A bound socket that the service manager opened, as one of [`UdpSocket::listen`].
    pub fn adopt(socket: std::net::UdpSocket, buffers: Buffers) -> io::Result<UdpSocket> {
        let local = socket.local_addr()?;
        let socket = Socket::from(socket);
        socket.set_nonblocking(true)?;
        set_buffers(&socket, buffers)?;
        tell_destinations(&socket, local)?;
        Ok(UdpSocket::made(socket))
    }

    fn bind_made(socket: Socket, local: SocketAddr) -> io::Result<UdpSocket> {
        let made = UdpSocket::made(socket);
        socket2::SockRef::from(&made).bind(&local.into())?;
        Ok(made)
    }

    fn made(socket: Socket) -> UdpSocket {
        // Both only save work or add a count, and old kernels have neither: a refusal is no failure.
        let _ = sockopt::receive_merged(&socket, true);
        let _ = sockopt::report_drops(&socket);
        let segmentation = *KNOWS_SEGMENTATION.get_or_init(|| sockopt::knows_segmentation(&socket));
        UdpSocket {
            socket: mio::net::UdpSocket::from_std(socket.into()),
            segmentation: AtomicBool::new(segmentation),
            kernel_drops: AtomicU32::new(0),
        }
    }

    /// Fixes the only remote endpoint: the kernel drops other sources' datagrams from now on (not
    /// those that already wait), and reports ICMP errors.
    pub fn connect(&self, remote: SocketAddr) -> io::Result<()> {
        self.socket.connect(remote)
    }

    /// The address and port that the socket is bound to.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// For registration with a poll.
    pub fn source(&mut self) -> &mut mio::net::UdpSocket {
        &mut self.socket
    }

    /// Starts a batch of datagrams out of this socket.
    pub fn batch<'q, 'd>(&'q self, queue: &'q mut SendQueue) -> SendBatch<'q, 'd> {
        queue.batch(&self.socket, self.segments())
    }

    /// Remembers that the kernel or the route's device does not segment.
    pub fn stop_segmentation(&self) {
        self.segmentation.store(false, Ordering::Relaxed);
    }

    /// Whether runs of equal datagrams leave as one.
    pub fn segments(&self) -> bool {
        self.segmentation.load(Ordering::Relaxed)
    }

    /// From now on each received message is one datagram (no `UDP_GRO`).
    pub fn stop_merging(&self) {
        // A kernel that does not know the option does not merge.
        let _ = sockopt::receive_merged(&self.socket, false);
    }

    /// Receives a batch; see [`ReceiveQueue::receive`].
    pub fn receive(&self, queue: &mut ReceiveQueue) -> io::Result<usize> {
        queue.receive(&self.socket)
    }

    /// How many datagrams the kernel has dropped on this socket since the last question, as told by
    /// the batch just received.
    pub fn new_kernel_drops(&self, queue: &ReceiveQueue) -> u32 {
        let Some(drops) = queue.kernel_drops() else {
            return 0;
        };
        drops.wrapping_sub(self.kernel_drops.swap(drops, Ordering::Relaxed))
    }
}

/// A socket for `local`, not bound yet.
fn make(local: SocketAddr, buffers: Buffers) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(local),
        Type::DGRAM.nonblocking().cloexec(),
        Some(Protocol::UDP),
    )?;
    if local.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    set_buffers(&socket, buffers)?;
    Ok(socket)
}

/// Has received messages tell which address of this host they were sent to, if `local` leaves that open.
fn tell_destinations(socket: &Socket, local: SocketAddr) -> io::Result<()> {
    if local.ip().is_unspecified() {
        sockopt::report_destinations(socket, local.is_ipv6())?;
    }
    Ok(())
}

fn set_buffers(socket: &Socket, buffers: Buffers) -> io::Result<()> {
    if sockopt::force_buffers(socket, buffers.receive, buffers.send).is_err() {
        // Without privileges the kernel grants what its limits allow.
        if buffers.receive > 0 {
            socket.set_recv_buffer_size(buffers.receive)?;
        }
        if buffers.send > 0 {
            socket.set_send_buffer_size(buffers.send)?;
        }
    }
    Ok(())
}

/// Takes what a device of type `ARPHRD_LOOPBACK` has delivered, and nothing else (linux/filter.h).
fn over_loopback() -> [SockFilter; 4] {
    // BPF_LD | BPF_W | BPF_ABS of SKF_AD_OFF + SKF_AD_HATYPE; BPF_JMP | BPF_JEQ | BPF_K; BPF_RET | BPF_K.
    const LOAD_WORD: u16 = 0x20;
    const DEVICE_TYPE: u32 = 0xffff_f000 + 28;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    [
        SockFilter::new(LOAD_WORD, 0, 0, DEVICE_TYPE),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, libc::ARPHRD_LOOPBACK.into()),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn buffers_are_set_and_ports_are_shared_only_when_asked() {
        let buffers = Buffers { receive: 65_536, send: 32_768 };
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let socket = UdpSocket::bind(any, false, buffers).unwrap();
        let options = socket2::SockRef::from(&socket);
        // socket(7): the kernel doubles what was asked, for its own bookkeeping.
        assert_eq!(options.recv_buffer_size().unwrap(), 131_072);
        assert_eq!(options.send_buffer_size().unwrap(), 65_536);
        let taken = socket.local_addr().unwrap();
        let error = UdpSocket::bind(taken, false, Buffers::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);

        let first = UdpSocket::bind(any, true, Buffers::default()).unwrap();
        let address = first.local_addr().unwrap();
        UdpSocket::bind(address, true, Buffers::default()).unwrap();
    }

    #[test]
    fn an_ipv6_socket_leaves_the_ipv4_port_alone() {
        let v6 = UdpSocket::bind("[::]:0".parse().unwrap(), false, Buffers::default()).unwrap();
        let port = v6.local_addr().unwrap().port();
        let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        UdpSocket::bind(v4, false, Buffers::default()).unwrap();
        assert_eq!(any_port(v4), "0.0.0.0:0".parse().unwrap());
        assert_eq!(any_port("[::1]:5".parse().unwrap()), "[::]:0".parse().unwrap());
    }

    #[test]
    fn destinations_are_told_where_there_are_several() {
        for (local, to, adopted) in [
            ("0.0.0.0:0", "127.0.0.2", false),
            ("[::]:0", "::1", false),
            ("0.0.0.0:0", "127.0.0.3", true),
            ("127.0.0.4:0", "127.0.0.4", false),
            ("127.0.0.5:0", "127.0.0.5", true),
        ] {
            let local: SocketAddr = local.parse().unwrap();
            let mut server = if adopted {
                let bound = std::net::UdpSocket::bind(local).unwrap();
                UdpSocket::adopt(bound, Buffers::default()).unwrap()
            } else {
                UdpSocket::listen(local, Buffers::default()).unwrap()
            };
            let sender = std::net::UdpSocket::bind(any_port(local)).unwrap();
            let to = SocketAddr::new(to.parse().unwrap(), server.local_addr().unwrap().port());
            sender.send_to(b"x", to).unwrap();
            let mut queue = ReceiveQueue::default();
            let mut poll = mio::Poll::new().unwrap();
            poll.registry()
                .register(server.source(), mio::Token(0), mio::Interest::READABLE)
                .unwrap();
            poll.poll(&mut mio::Events::with_capacity(1), Some(Duration::from_secs(5))).unwrap();
            assert_eq!(server.receive(&mut queue).unwrap(), 1);
            let told = queue.messages().next().unwrap().destination();
            assert_eq!(told, local.ip().is_unspecified().then_some(to.ip()));
        }
    }
}
