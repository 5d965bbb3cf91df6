//! Listening sockets that a role did not open itself.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd as _;

use socket2::{Domain, Socket, Type};

use crate::net::sys::listen_fds::{self, Inherited};

/// The TCP listeners that the service manager opened (socket activation), non-blocking; empty
/// when it opened none. Only the first call in a process can return any.
///
/// Errors: those of [`listen_fds::take`], and one that names the descriptor when it is anything
/// but a listening TCP socket over IPv4 or IPv6.
pub fn inherited_tcp_listeners() -> io::Result<Vec<TcpListener>> {
    listen_fds::take()?.into_iter().map(tcp_listener).collect()
}

/// The same of UDP sockets, bound and not connected.
pub fn inherited_udp_sockets() -> io::Result<Vec<std::net::UdpSocket>> {
    listen_fds::take()?.into_iter().map(udp_socket).collect()
}

fn udp_socket(inherited: Inherited) -> io::Result<std::net::UdpSocket> {
    let title = title(&inherited);
    let failed = |error: io::Error| io::Error::new(error.kind(), format!("{title}: {error}"));
    let socket = Socket::from(inherited.fd);
    let datagrams = socket.r#type().map_err(failed)? == Type::DGRAM;
    let internet = matches!(socket.domain().map_err(failed)?, Domain::IPV4 | Domain::IPV6);
    let bound = internet
        && socket.local_addr().map_err(failed)?.as_socket().is_some_and(|it| it.port() > 0);
    if !(datagrams && bound) || socket.peer_addr().is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{title} is not a bound UDP socket"),
        ));
    }
    socket.set_nonblocking(true).map_err(failed)?;
    Ok(socket.into())
}

fn title(inherited: &Inherited) -> String {
    let number = inherited.fd.as_raw_fd();
    match &inherited.name {
        Some(name) => format!("inherited descriptor {number} ({name})"),
        None => format!("inherited descriptor {number}"),
    }
}

fn tcp_listener(inherited: Inherited) -> io::Result<TcpListener> {
    let title = title(&inherited);
    let failed = |error: io::Error| io::Error::new(error.kind(), format!("{title}: {error}"));
    let socket = Socket::from(inherited.fd);
    let stream = socket.r#type().map_err(failed)? == Type::STREAM;
    let internet = matches!(socket.domain().map_err(failed)?, Domain::IPV4 | Domain::IPV6);
    if !(stream && internet && socket.is_listener().map_err(failed)?) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{title} is not a listening TCP socket"),
        ));
    }
    socket.set_nonblocking(true).map_err(failed)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpStream, UdpSocket};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn check(fd: impl Into<OwnedFd>) -> io::Result<TcpListener> {
        tcp_listener(Inherited { name: Some("proxy".to_owned()), fd: fd.into() })
    }

    #[test]
    fn keeps_listeners_and_makes_them_non_blocking() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let bound = TcpListener::bind(address).unwrap();
            let expected = bound.local_addr().unwrap();
            let listener = check(bound).unwrap();
            assert_eq!(listener.local_addr().unwrap(), expected);
            assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn keeps_bound_udp_sockets_alone() {
        let inherited = |fd: OwnedFd| udp_socket(Inherited { name: None, fd });
        let bound = UdpSocket::bind("127.0.0.1:0").unwrap();
        let expected = bound.local_addr().unwrap();
        let socket = inherited(bound.into()).unwrap();
        assert_eq!(socket.local_addr().unwrap(), expected);
        assert_eq!(socket.recv(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
        connected.connect(expected).unwrap();
        let descriptors: [OwnedFd; 4] = [
            connected.into(),
            TcpListener::bind("127.0.0.1:0").unwrap().into(),
            Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap().into(),
            std::fs::File::open("/dev/null").unwrap().into(),
        ];
        for fd in descriptors {
            let error = inherited(fd).unwrap_err();
            assert!(error.to_string().starts_with("inherited descriptor "), "{error}");
        }
    }

    #[test]
    fn refuses_everything_else_by_number_and_name() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let path = std::env::temp_dir().join(format!("udpferry-listen-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let descriptors: [OwnedFd; 5] = [
            UdpSocket::bind("127.0.0.1:0").unwrap().into(),
            TcpStream::connect(listener.local_addr().unwrap()).unwrap().into(),
            UnixListener::bind(&path).unwrap().into(),
            Socket::new(Domain::IPV4, Type::STREAM, None).unwrap().into(),
            std::fs::File::open("/dev/null").unwrap().into(),
        ];
        std::fs::remove_file(&path).unwrap();
        for fd in descriptors {
            let title = format!("inherited descriptor {} (proxy)", fd.as_raw_fd());
            let error = check(fd).unwrap_err();
            assert!(error.to_string().starts_with(&title), "{error}");
        }
    }
}
