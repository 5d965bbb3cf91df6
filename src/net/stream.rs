//! A byte stream over TCP: TCP alone, or TLS from either side.

use super::tls::TlsStream;
use mio::event::Source;
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A non-blocking TCP socket that several threads may look at and one reads and writes.
#[derive(Debug, Clone)]
pub struct Socket(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    stream: TcpStream,
    written: AtomicU64,
    /// A short read is taken for the last one until the poll has news.
    trusts_short_reads: AtomicBool,
    /// A trusted short read has happened.
    is_emptied: AtomicBool,
}

impl Socket {
    /// Takes the socket over.
    pub fn new(stream: TcpStream) -> Socket {
        Socket(Arc::new(Inner {
            stream,
            written: AtomicU64::new(0),
            trusts_short_reads: AtomicBool::new(false),
            is_emptied: AtomicBool::new(false),
        }))
    }

    /// The socket itself, for options and for peeking.
    pub fn tcp(&self) -> &TcpStream {
        &self.0.stream
    }

    /// Bytes that the kernel has taken so far, TLS's own included.
    pub fn written(&self) -> u64 {
        self.0.written.load(Ordering::Relaxed)
    }

    /// From here on a short read, which empties a TCP socket (epoll(7), question 9), makes the next
    /// reads `WouldBlock` without asking the kernel; until this is called again.
    fn trust_short_reads(&self, trusts: bool) {
        self.0.is_emptied.store(false, Ordering::Relaxed);
        self.0.trusts_short_reads.store(trusts, Ordering::Relaxed);
    }
}

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.0.is_emptied.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let len = (&self.0.stream).read(bytes)?;
        // A read of nothing is the end, which is told as often as it is asked for.
        if (1..bytes.len()).contains(&len) && self.0.trusts_short_reads.load(Ordering::Relaxed) {
            self.0.is_emptied.store(true, Ordering::Relaxed);
        }
        Ok(len)
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

/// Small records whole, header and body, in one call. Of a longer record the rest goes straight to
/// the reader.
const READ_AHEAD_LEN: usize = 4096;

/// A socket below native-tls, which would read each record's five bytes of header by themselves.
#[derive(Debug)]
pub struct ReadAhead {
    socket: Socket,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl ReadAhead {
    /// Takes the socket; nothing is read yet.
    pub fn new(socket: Socket) -> ReadAhead {
        ReadAhead { socket, buffer: vec![0; READ_AHEAD_LEN].into(), start: 0, end: 0 }
    }
}

impl Read for ReadAhead {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            if bytes.len() >= self.buffer.len() {
                return self.socket.read(bytes);
            }
            (self.start, self.end) = (0, 0);
            self.end = self.socket.read(&mut self.buffer)?;
        }
        let waiting = &self.buffer[self.start..self.end];
        let len = waiting.len().min(bytes.len());
        bytes[..len].copy_from_slice(&waiting[..len]);
        self.start += len;
        Ok(len)
    }
}

impl Write for ReadAhead {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
    Client(Box<native_tls::TlsStream<ReadAhead>>),
}

impl Stream {
    /// The TCP socket below.
    pub fn socket(&mut self) -> &mut Socket {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Server(stream) => stream.get_mut(),
            Stream::Client(stream) => &mut stream.get_mut().socket,
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

    /// Whether a TLS client was to name an application protocol and has not.
    pub fn lacks_alpn(&self) -> bool {
        matches!(self, Stream::Server(stream) if stream.lacks_alpn())
    }

    /// Reads what is there, as far as it fits into `bytes`.
    ///
    /// To be called when the poll says so, or after [`Rest::More`]. A short read empties a TCP
    /// socket (epoll(7), question 9), unless its end has been announced (`read_closed`) and is still
    /// to be read. TLS hands out one record at a time and may hold more in its own buffers: it is
    /// read until it would block, which costs no call once the socket is empty.
    pub fn fill(&mut self, bytes: &mut [u8], read_closed: bool) -> Filled {
        self.socket().trust_short_reads(!read_closed);
        let filled = self.read_while_it_fits(bytes, read_closed);
        self.socket().trust_short_reads(false);
        filled
    }

    fn read_while_it_fits(&mut self, bytes: &mut [u8], read_closed: bool) -> Filled {
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

    /// What the other side has said before it closed, to be asked when a write has failed: the error
    /// that reading yields, such as a TLS alert, if it says more than that nothing can be read.
    pub fn last_word(&mut self) -> Option<io::Error> {
        if matches!(self, Stream::Plain(_)) {
            return None;
        }
        self.socket().trust_short_reads(false);
        self.read(&mut [0; 1]).err().filter(|error| error.kind() == io::ErrorKind::Other)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Ours blocks, so that a read that asks the kernel for what is not there would never end.
    fn pair() -> (Socket, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let other = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Socket::new(TcpStream::from_std(listener.accept().unwrap().0)), other)
    }

    fn would_block(result: io::Result<usize>) -> bool {
        result.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    #[test]
    fn after_a_short_read_the_kernel_is_asked_again_only_when_there_is_news() {
        let (mut ours, mut other) = pair();
        let mut bytes = [0; 64];
        ours.trust_short_reads(true);
        other.write_all(b"first").unwrap();
        assert_eq!(ours.read(&mut bytes).unwrap(), 5);
        assert!(would_block(ours.read(&mut bytes)));
        other.write_all(b"second").unwrap();
        assert!(would_block(ours.read(&mut bytes)));
        ours.trust_short_reads(true);
        assert_eq!(ours.read(&mut bytes[..6]).unwrap(), 6, "a full read is not a short one");
        drop(other);
        assert_eq!(ours.read(&mut bytes).unwrap(), 0);
        assert_eq!(ours.read(&mut bytes).unwrap(), 0, "the end stays");
    }

    #[test]
    fn an_announced_end_is_read_behind_a_short_read() {
        let (ours, mut other) = pair();
        other.write_all(b"last").unwrap();
        drop(other);
        let mut stream = Stream::Plain(ours);
        let mut bytes = [0; 64];
        let filled = stream.fill(&mut bytes, true);
        assert_eq!(filled.len, 4);
        assert!(matches!(filled.rest, Rest::More));
        assert!(matches!(stream.fill(&mut bytes, true).rest, Rest::Closed));
    }

    #[test]
    fn reading_ahead_changes_no_byte() {
        let (ours, mut other) = pair();
        let sent: Vec<u8> = (0..=250).cycle().take(3 * READ_AHEAD_LEN).collect();
        other.write_all(&sent).unwrap();
        drop(other);
        let mut ahead = ReadAhead::new(ours);
        let mut received = Vec::new();
        // As TLS reads: a header, a short body; a header, a long one.
        for len in [5, 100, 5, 2 * READ_AHEAD_LEN, 5, READ_AHEAD_LEN].into_iter().cycle() {
            let mut bytes = vec![0; len];
            let read = ahead.read(&mut bytes).unwrap();
            if read == 0 {
                break;
            }
            received.extend_from_slice(&bytes[..read]);
        }
        assert_eq!(received, sent);
    }

    #[test]
    fn a_small_record_costs_one_read() {
        let (ours, mut other) = pair();
        ours.trust_short_reads(true);
        other.write_all(&[7; 105]).unwrap();
        let mut ahead = ReadAhead::new(ours);
        assert_eq!(ahead.read(&mut [0; 5]).unwrap(), 5);
        assert_eq!(ahead.read(&mut [0; 100]).unwrap(), 100);
        assert!(would_block(ahead.read(&mut [0; 5])));
    }
}
