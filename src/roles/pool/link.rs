//! One connection at work: owns its stream, writes the batches that it is given, and sends the
//! datagrams that it reads straight to the UDP side. The same on both sides of the tunnel.

use super::batch::{BATCH_LEN, Batch, Waiting, recycle};
use super::counters::{DropReason, LinkEnd};
use super::{Activity, Shared};
use crate::net::stream::{Filled, Rest, Stream};
use crate::net::sys::mmsg::send::SendQueue;
use crate::net::udp::UdpSocket;
use crate::runtime::clock;
use crate::runtime::event_loop::{EventLoop, Readiness};
use crate::runtime::queue::Receiver;
use crate::wire::length_prefix::{Frames, Unfinished};
use crate::wire::pool::{BYTE_ORDER, DATAGRAM_LEN_MAX};
use mio::Token;
use std::io::{self, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::sync::Arc;

pub(super) const STREAM: Token = Token(0);
pub(super) const WAKE: Token = Token(1);

/// Room for one read of the stream: two of the longest frames, eight TLS records.
const INPUT_LEN: usize = 131_072;

/// Writes in one turn, of a TLS record or so each: a socket that never blocks must not keep what
/// arrives waiting.
const WRITES_PER_TURN: usize = 16;

/// Where datagrams from the stream go.
#[derive(Debug, Clone)]
pub(super) struct Sink {
    pub(super) socket: Arc<UdpSocket>,
    /// `None` on a connected socket.
    pub(super) endpoint: Option<SocketAddr>,
    /// The address of this host to send from; `None` leaves the choice to the kernel.
    pub(super) source: Option<IpAddr>,
}

/// Buffers for one wake of one connection.
pub(super) struct Workbench {
    input: Vec<u8>,
    send: SendQueue,
}

impl Workbench {
    #[inline(never)] // Rarely called, from where every connection's stack would pay for it.
    pub(super) fn new() -> Workbench {
        Workbench { input: vec![0; INPUT_LEN], send: SendQueue::default() }
    }
}

/// How a connection's work ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) end: LinkEnd,
    /// Whether a whole datagram has come over it.
    pub(super) has_received: bool,
}

/// A connection of a session.
pub(super) struct Link {
    shared: Arc<Shared>,
    stream: Stream,
    batches: Receiver<Batch>,
    waiting: Arc<Waiting>,
    sink: Sink,
    activity: Arc<Activity>,
    unfinished: Unfinished,
    /// Frames being written, and how much of them the stream has taken.
    writing: Vec<u8>,
    written: usize,
    writing_datagrams: usize,
    /// Memory of the batches that they came in.
    writing_held: usize,
    has_received: bool,
}

impl Link {
    /// A connection that is ready to carry frames.
    pub(super) fn new(
        shared: Arc<Shared>,
        stream: Stream,
        batches: Receiver<Batch>,
        waiting: Arc<Waiting>,
        sink: Sink,
        activity: Arc<Activity>,
    ) -> Link {
        Link {
            shared,
            stream,
            batches,
            waiting,
            sink,
            activity,
            unfinished: Unfinished::default(),
            writing: Vec::new(),
            written: 0,
            writing_datagrams: 0,
            writing_held: 0,
            has_received: false,
        }
    }

    /// The same, with a byte of the first frame that has been read already.
    pub(super) fn with_read_ahead(mut self, byte: Option<u8>) -> Link {
        self.unfinished.keep(byte.as_slice());
        self
    }

    /// Carries datagrams both ways until the connection ends or `is_stopped`, which is asked at
    /// each wake. `events` watches the stream as [`STREAM`], and the queue wakes it as [`WAKE`].
    pub(super) fn serve(mut self, events: &mut EventLoop, is_stopped: impl Fn() -> bool) -> Ended {
        // What arrived before this will not be told again, the end included.
        events.again(STREAM, Readiness { readable: true, writable: true, read_closed: true });
        events.again(WAKE, Readiness::READABLE);
        let end = loop {
            if let Err(end) = self.round(events, &is_stopped) {
                break end;
            }
        };
        if !matches!(end, LinkEnd::Failed(_)) {
            self.stream.close();
        }
        // Whoever hands out batches still has the socket; the connection ends here all the same.
        let socket = self.stream.socket();
        let _ = events.deregister(socket, STREAM);
        let _ = socket.tcp().shutdown(Shutdown::Both);
        Ended { end, has_received: self.has_received }
    }

    fn round(
        &mut self,
        events: &mut EventLoop,
        is_stopped: &impl Fn() -> bool,
    ) -> Result<(), LinkEnd> {
        events.wait(None).map_err(LinkEnd::Failed)?;
        let mut bench = None;
        let mut verdict = Ok(());
        while let Some((token, readiness)) = events.next_ready() {
            verdict = match token {
                WAKE if is_stopped() || self.batches.is_closed() => Err(LinkEnd::Stopped),
                WAKE => self.write_batches(events),
                STREAM => {
                    let bench = bench.get_or_insert_with(|| {
                        self.shared.workbenches.take(|| Box::new(Workbench::new()))
                    });
                    self.handle_stream(events, readiness, bench)
                }
                _ => Ok(()),
            };
            if verdict.is_err() {
                break;
            }
        }
        if let Some(bench) = bench {
            self.shared.workbenches.give_back(bench);
        }
        verdict
    }

    fn handle_stream(
        &mut self,
        events: &mut EventLoop,
        readiness: Readiness,
        bench: &mut Workbench,
    ) -> Result<(), LinkEnd> {
        if readiness.writable {
            self.write_batches(events)?;
        }
        if readiness.readable || readiness.read_closed {
            self.read_frames(events, readiness, bench)?;
        }
        Ok(())
    }

    /// Writes what waits until the stream would block, or its turn is over. Batches that wait
    /// together leave together.
    fn write_batches(&mut self, events: &mut EventLoop) -> Result<(), LinkEnd> {
        for _ in 0..WRITES_PER_TURN {
            if self.written == self.writing.len() && !self.next_writing() {
                return Ok(());
            }
            match self.stream.write(&self.writing[self.written..]) {
                Ok(0) => return Err(LinkEnd::Closed),
                Ok(len) => {
                    self.written += len;
                    let done = self.written == self.writing.len();
                    let mut datagrams = 0;
                    if done {
                        datagrams = std::mem::take(&mut self.writing_datagrams);
                        self.waiting.release(std::mem::take(&mut self.writing_held));
                    }
                    self.waiting.subtract(datagrams, len);
                    self.shared.counters.to_stream(datagrams, len);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // "Broken pipe" is only how the alert that came first looks from here.
                    let error = self.stream.last_word().unwrap_or(error);
                    return Err(LinkEnd::Failed(error));
                }
            }
        }
        events.again(STREAM, Readiness { readable: false, writable: true, read_closed: false });
        Ok(())
    }

    /// Takes the next batches out of the queue, up to a TLS record's worth.
    fn next_writing(&mut self) -> bool {
        self.written = 0;
        self.writing.clear();
        let now = clock::now();
        for batch in self.batches.drain() {
            if batch.is_stale(now) {
                self.waiting.subtract(batch.datagrams, batch.bytes.len());
                self.waiting.release(batch.held());
                self.shared.counters.drop(DropReason::Stale, batch.datagrams);
                recycle(&self.shared.buffers, batch.bytes);
                continue;
            }
            self.writing_datagrams += batch.datagrams;
            self.writing_held += batch.held();
            if self.writing.is_empty() {
                let empty = std::mem::replace(&mut self.writing, batch.bytes);
                recycle(&self.shared.buffers, empty);
            } else {
                self.writing.extend_from_slice(&batch.bytes);
                recycle(&self.shared.buffers, batch.bytes);
            }
            if self.writing.len() >= BATCH_LEN {
                break;
            }
        }
        !self.writing.is_empty()
    }

    /// One read of the stream, and all its datagrams on their way.
    fn read_frames(
        &mut self,
        events: &mut EventLoop,
        readiness: Readiness,
        bench: &mut Workbench,
    ) -> Result<(), LinkEnd> {
        let Workbench { input, send } = bench;
        let kept = self.unfinished.restore(input);
        let Filled { len: read, rest } =
            self.stream.fill(&mut input[kept..], readiness.read_closed);
        let mut frames = Frames::new(&input[..kept + read], BYTE_ORDER, DATAGRAM_LEN_MAX);
        let mut batch = self.sink.socket.batch(send);
        // No length is over the maximum: 16 bits cannot say one.
        let mut carries = false;
        for datagram in frames.by_ref().flatten() {
            batch.push_from(self.sink.source, self.sink.endpoint, datagram);
            carries = true;
        }
        // Connections that come and go, and bytes that never become a datagram, are no traffic.
        if carries {
            self.has_received = true;
            self.activity.touch(clock::now());
        }
        let report = batch.finish();
        if report.segmentation_refused {
            self.sink.socket.stop_segmentation();
        }
        let counters = &self.shared.counters;
        counters.to_udp(&report);
        counters.drop(DropReason::SendBufferFull, report.blocked);
        counters.drop(DropReason::SendFailed, report.failed);
        self.unfinished.keep(frames.unfinished());
        match rest {
            Rest::Nothing => Ok(()),
            Rest::More => {
                events.again(STREAM, Readiness { writable: false, ..readiness });
                Ok(())
            }
            Rest::Closed => Err(LinkEnd::Closed),
            Rest::Failed(error) => Err(LinkEnd::Failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::stream::Socket;
    use crate::net::udp::Buffers;
    use crate::roles::pool::batch::{LinkHandle, Links, new_batch};
    use crate::runtime::metrics::Registry;
    use crate::runtime::queue::{self, Wake};
    use crate::wire::pool::write_frame;
    use mio::Interest;
    use std::time::Duration;

    /// Less than what a queue may hold, more than what one round may write of it.
    const BATCHES: usize = 60;

    #[test]
    fn what_arrives_has_its_turn_while_much_is_written() {
        let now = clock::now();
        let mut registry = Registry::new();
        let shared = Arc::new(Shared::new(&mut registry));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        // On loopback the kernel takes all of the batches, and the stream never blocks.
        let mut socket = Socket::new(mio::net::TcpStream::from_std(stream));
        let mut events = EventLoop::new().unwrap();
        events.register(&mut socket, STREAM, Interest::READABLE | Interest::WRITABLE).unwrap();
        let target = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        target.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let local = "127.0.0.1:0".parse().unwrap();
        let udp = UdpSocket::bind(local, false, Buffers::default()).unwrap();
        let sink = Sink {
            socket: Arc::new(udp),
            endpoint: Some(target.local_addr().unwrap()),
            source: None,
        };
        let wake = Wake::new(events.waker(WAKE).unwrap());
        let (queue, batches) = queue::bounded(BATCHES, &wake);
        let waiting = Arc::new(Waiting::new(
            socket.clone(),
            Arc::clone(&shared.counters.queued_bytes),
            shared.counters.drop_counter(DropReason::ConnectionLost),
        ));
        let mut links = Links::new(BATCHES);
        links.add(LinkHandle { id: 1, queue, waiting: Arc::clone(&waiting) }, now);
        for _ in 0..BATCHES {
            let mut batch = new_batch(&shared.buffers, now);
            batch.push(&[7; BATCH_LEN]);
            links.send(&shared.buffers, now, batch).unwrap();
        }
        let mut frame = Vec::new();
        write_frame(&mut frame, b"meanwhile");
        peer.write_all(&frame).unwrap();
        let activity = Arc::new(Activity::new(now));
        let mut link =
            Link::new(shared, Stream::Plain(socket), batches, Arc::clone(&waiting), sink, activity);
        link.round(&mut events, &|| false).unwrap();
        let mut datagram = [0; 16];
        assert_eq!(target.recv(&mut datagram).unwrap(), 9);
        let left = waiting.datagrams();
        assert!(left > 0 && left < BATCHES, "{left} of {BATCHES} batches are left");
        // Nothing new happens, and the rest is written all the same.
        for _ in 0..BATCHES {
            events.wait(Some(Duration::ZERO)).unwrap();
            let Some((token, readiness)) = events.next_ready() else {
                break;
            };
            events.again(token, readiness);
            link.round(&mut events, &|| false).unwrap();
        }
        assert_eq!((waiting.datagrams(), waiting.held()), (0, 0));
    }
}
