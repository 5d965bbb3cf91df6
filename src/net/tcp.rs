//! TCP listeners whose options the accepted connections inherit, so that accepting costs one call.

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Connections that may wait for `accept`; the kernel caps it at net.core.somaxconn (4096).
const BACKLOG: i32 = 1024;

/// How a dead connection is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub idle: Duration,
    /// Between probes.
    pub interval: Duration,
    /// Unanswered probes that end the connection.
    pub probes: u32,
}

impl Keepalive {
    /// When unacknowledged data has waited this long the connection is as dead as when the probes
    /// fail (`TCP_USER_TIMEOUT`, tcp(7)).
    pub fn user_timeout(self) -> Duration {
        self.idle + self.interval * self.probes
    }
}

/// Options of accepted connections.
#[derive(Debug, Clone, Copy)]
pub struct StreamOptions {
    /// `TCP_NODELAY`: a frame leaves at once.
    pub nodelay: bool,
    /// Keepalive and the matching `TCP_USER_TIMEOUT`; `None` for neither.
    pub keepalive: Option<Keepalive>,
    /// `SO_RCVBUF` in bytes; 0 for the system's.
    pub receive_buffer: usize,
    /// `SO_SNDBUF` in bytes; 0 for the system's.
    pub send_buffer: usize,
    /// Bytes that the kernel may hold unsent (`TCP_NOTSENT_LOWAT`): more would only age there, and
    /// what does not fit stays with us.
    pub unsent_max: u32,
}

/// Listens on `address`. An IPv6 listener takes IPv6 alone, so that `[::]` and `0.0.0.0` can share
/// a port.
pub fn listen(address: SocketAddr, options: &StreamOptions) -> io::Result<mio::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    apply(&SockRef::from(&socket), options)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(mio::net::TcpListener::from_std(socket.into()))
}

/// Takes over a listening socket that the service manager made.
pub fn adopt(
    listener: std::net::TcpListener,
    options: &StreamOptions,
) -> io::Result<mio::net::TcpListener> {
    listener.set_nonblocking(true)?;
    apply(&SockRef::from(&listener), options)?;
    Ok(mio::net::TcpListener::from_std(listener))
}

/// Whether this process may mark packets, which takes CAP_NET_ADMIN.
pub fn may_mark(mark: u32) -> io::Result<()> {
    Socket::new(Domain::IPV4, Type::STREAM, None)?.set_mark(mark)
}

/// Begins to connect to `address`; the stream is writable once that has succeeded or failed
/// (`take_error` says which). `mark` is the packets' netfilter mark (`SO_MARK`, which needs
/// CAP_NET_ADMIN), set before the first of them leaves.
pub fn connect(
    address: SocketAddr,
    options: &StreamOptions,
    mark: Option<u32>,
) -> io::Result<mio::net::TcpStream> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    apply(&SockRef::from(&socket), options)?;
    match socket.connect(&address.into()) {
        Ok(()) => {}
        // EINPROGRESS: it goes on by itself.
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    Ok(mio::net::TcpStream::from_std(socket.into()))
}

/// Linux hands a listener's options on to what it accepts (`tcp_create_openreq_child` copies the
/// socket), buffer sizes included, and only sizes set before the handshake scale the window.
fn apply(socket: &SockRef<'_>, options: &StreamOptions) -> io::Result<()> {
    socket.set_tcp_nodelay(options.nodelay)?;
    socket.set_tcp_notsent_lowat(options.unsent_max)?;
    if options.receive_buffer > 0 {
        socket.set_recv_buffer_size(options.receive_buffer)?;
    }
    if options.send_buffer > 0 {
        socket.set_send_buffer_size(options.send_buffer)?;
    }
    if let Some(keepalive) = options.keepalive {
        let probes = TcpKeepalive::new()
            .with_time(keepalive.idle)
            .with_interval(keepalive.interval)
            .with_retries(keepalive.probes);
        socket.set_tcp_keepalive(&probes)?;
        socket.set_tcp_user_timeout(Some(keepalive.user_timeout()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(options: &StreamOptions) -> mio::net::TcpStream {
        let listener = listen("127.0.0.1:0".parse().unwrap(), options).unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        listener.accept().unwrap().0
    }

    #[test]
    fn accepted_connections_inherit_every_option() {
        let keepalive = Keepalive {
            idle: Duration::from_secs(60),
            interval: Duration::from_secs(10),
            probes: 6,
        };
        let stream = accepted(&StreamOptions {
            nodelay: true,
            keepalive: Some(keepalive),
            receive_buffer: 65_536,
            send_buffer: 32_768,
            unsent_max: 131_072,
        });
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), keepalive.idle);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), keepalive.interval);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), keepalive.probes);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(120)));
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), 131_072);
        assert_eq!(socket.recv_buffer_size().unwrap(), 131_072);
        assert_eq!(socket.send_buffer_size().unwrap(), 65_536);
    }

    #[test]
    fn options_can_be_left_off() {
        let stream = accepted(&StreamOptions {
            nodelay: false,
            keepalive: None,
            receive_buffer: 0,
            send_buffer: 0,
            unsent_max: 131_072,
        });
        let socket = SockRef::from(&stream);
        assert!(!socket.tcp_nodelay().unwrap());
        assert!(!socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
    }
}
