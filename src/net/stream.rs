//! A byte stream over TCP: TCP alone, or TLS from either side.

use super::tls::TlsStream;
use mio::event::Source;
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A non-blocking TCP socket that several threads may look at and one reads and writes.
#[derive(Debug, Clone)]
pub struct Socket(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    stream: TcpStream,
    written: AtomicU64,
}

impl Socket {
    /// Takes the socket over.
    pub fn new(stream: TcpStream) -> Socket {
        Socket(Arc::new(Inner { stream, written: AtomicU64::new(0) }))
    }

    /// The socket itself, for options and for peeking.
    pub fn tcp(&self) -> &TcpStream {
        &self.0.stream
    }

    /// Bytes that the kernel has taken so far, TLS's own included.
    pub fn written(&self) -> u64 {
        self.0.written.load(Ordering::Relaxed)
    }
}

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (&self.0.stream).read(bytes)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = (&self.0.stream).write(bytes)?;
        self.0.written.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.stream.as_fd()
    }
}

impl Source for Socket {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        SourceFd(&self.0.stream.as_raw_fd()).register(registry, token, interest)
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        SourceFd(&self.0.stream.as_raw_fd()).reregister(registry, token, interest)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        SourceFd(&self.0.stream.as_raw_fd()).deregister(registry)
    }
}

/// What [`Stream::fill`] has read.
#[derive(Debug)]
pub struct Filled {
    /// How many bytes.
    pub len: usize,
    /// What comes behind them.
    pub rest: Rest,
}

/// What comes behind the bytes that were read.
#[derive(Debug)]
pub enum Rest {
    /// Nothing until the poll says so.
    Nothing,
    /// Something, perhaps: read again without waiting.
    More,
    /// The end.
    Closed,
    /// A failure.
    Failed(io::Error),
}

/// A non-blocking stream. A TLS stream has one owner that reads and writes it: it cannot be split.
#[derive(Debug)]
pub enum Stream {
    /// TCP alone.
    Plain(Socket),
    /// The server's end of TLS; the box keeps plain streams small.
    Server(Box<TlsStream<Socket>>),
    /// The client's end of TLS, after its handshake.
    Client(Box<native_tls::TlsStream<Socket>>),
}

impl Stream {
    /// The TCP socket below.
    pub fn socket(&mut self) -> &mut Socket {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Server(stream) => stream.get_mut(),
            Stream::Client(stream) => stream.get_mut(),
        }
    }

    /// Goes on with a server's TLS handshake; other streams have none left. `WouldBlock` when the
    /// other side's turn has come.
    pub fn handshake(&mut self) -> io::Result<()> {
        match self {
            Stream::Server(stream) => stream.handshake(),
            Stream::Plain(_) | Stream::Client(_) => Ok(()),
        }
    }

    /// Reads what is there, as far as it fits into `bytes`.
    ///
    /// A short read empties a TCP socket (epoll(7), question 9), unless its end has been announced
    /// (`read_closed`) and is still to be read. TLS hands out one record at a time and may hold more
    /// in its own buffers: it is read until it would block.
    pub fn fill(&mut self, bytes: &mut [u8], read_closed: bool) -> Filled {
        let is_plain = matches!(self, Stream::Plain(_));
        let mut len = 0;
        let rest = loop {
            if len == bytes.len() {
                break Rest::More;
            }
            match self.read(&mut bytes[len..]) {
                Ok(0) => break Rest::Closed,
                Ok(read) => {
                    len += read;
                    if is_plain && len < bytes.len() {
                        break if read_closed { Rest::More } else { Rest::Nothing };
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Rest::Nothing,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Rest::Failed(error),
            }
        };
        Filled { len, rest }
    }

    /// Says goodbye in TLS, if that needs no waiting.
    pub fn close(&mut self) {
        match self {
            Stream::Plain(_) => {}
            Stream::Server(stream) => stream.close(),
            // The connection ends whatever comes of it.
            Stream::Client(stream) => drop(stream.shutdown()),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.read(bytes),
            Stream::Server(stream) => stream.read(bytes),
            Stream::Client(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.write(bytes),
            Stream::Server(stream) => stream.write(bytes),
            Stream::Client(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
