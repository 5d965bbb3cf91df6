//! A client's byte stream: TCP, or TLS over it.

use super::tls::TlsStream;
use mio::net::TcpStream;
use std::io::{self, Read, Write};

/// A non-blocking stream. A TLS stream has one owner that reads and writes it: it cannot be split.
#[derive(Debug)]
pub enum Stream {
    /// TCP alone.
    Plain(TcpStream),
    /// TLS; the box keeps plain clients small.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// The TCP socket, for registration with a poll.
    pub fn socket(&mut self) -> &mut TcpStream {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(stream) => stream.get_mut(),
        }
    }

    /// Goes on with the TLS handshake; a plain stream has none. `WouldBlock` when the other side's
    /// turn has come.
    pub fn handshake(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(_) => Ok(()),
            Stream::Tls(stream) => stream.handshake(),
        }
    }

    /// Whether a read that filled `len` of `room` bytes has emptied the stream, so that nothing is
    /// lost by waiting for the next event.
    ///
    /// A short read empties a TCP socket (epoll(7), question 9). A TLS stream may hold more in its
    /// own buffers: only `WouldBlock` says that it does not.
    pub fn is_drained_by(&self, len: usize, room: usize) -> bool {
        matches!(self, Stream::Plain(_)) && len < room
    }

    /// Says goodbye in TLS, if that needs no waiting.
    pub fn close(&mut self) {
        if let Stream::Tls(stream) = self {
            stream.close();
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.read(bytes),
            Stream::Tls(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.write(bytes),
            Stream::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
