//! Datagrams on their way into a stream: batches of frames, and the connections that take them.

use crate::net::stream::Socket;
use crate::net::sys::sockopt;
use crate::runtime::metrics::{Counter, Gauge};
use crate::runtime::queue::{NotSent, Sender};
use crate::runtime::stock::Stock;
use crate::state::link_choice::{LinkChoice, Load};
use crate::wire::length_prefix::PREFIX_LEN;
use crate::wire::pool::write_frame;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What a batch holds before it is handed on: one TLS record (RFC 8446 §5.1).
pub(super) const BATCH_LEN: usize = 16_384;
/// Datagrams that have waited for so long, for a connection or in the queue of a stalled one, are
/// dropped: what they carry has been sent again (TCP's and QUIC's first time-outs are at most 1 s,
/// RFC 6298 §2.1, RFC 9002 §6.2.2), or is of no use any more (a call).
pub(super) const STALE_AFTER: Duration = Duration::from_secs(1);
/// Idle batch buffers kept for the next one.
pub(super) const BATCHES_KEPT: usize = 256;
/// A buffer that grew past this, for a datagram larger than a batch, is not kept.
const BUFFER_KEPT: usize = 2 * BATCH_LEN;
/// Behind so many buffers a small batch waits in a copy of its own length. A connection that keeps
/// up has fewer in its queue, and its batches are never copied.
const ROOMY_HELD_MAX: usize = 8 * BATCH_LEN;

/// Frames that wait for their connection.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) datagrams: usize,
    /// When the first of them came.
    pub(super) since: Instant,
}

impl Batch {
    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.datagrams == 0
    }

    /// Whether nobody wants it any more.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= STALE_AFTER
    }

    /// Whether another datagram of `len` bytes should rather begin the next batch.
    pub(super) fn is_full_for(&self, len: usize) -> bool {
        !self.is_empty() && self.bytes.len() + PREFIX_LEN + len > BATCH_LEN
    }

    /// Bytes of memory that it holds.
    pub(super) fn held(&self) -> usize {
        self.bytes.capacity()
    }

    /// Gives a buffer that is mostly empty back, and keeps a copy of what is in it.
    fn fit(&mut self, buffers: &Buffers) {
        if self.bytes.len() < self.bytes.capacity() / 2 {
            let copy = self.bytes.as_slice().to_vec();
            recycle(buffers, std::mem::replace(&mut self.bytes, copy));
        }
    }

    /// Adds a datagram; false when it is longer than any frame.
    pub(super) fn push(&mut self, datagram: &[u8]) -> bool {
        // A buffer that doubles for a large one would hold twice of what is in it.
        if self.is_empty() {
            self.bytes.reserve_exact(PREFIX_LEN + datagram.len());
        }
        let fits = write_frame(&mut self.bytes, datagram);
        self.datagrams += usize::from(fits);
        fits
    }
}

/// Buffers of batches that have been sent.
pub(super) type Buffers = Stock<Vec<u8>>;

/// A batch of datagrams that come `now`, with a buffer from the stock.
pub(super) fn new_batch(buffers: &Buffers, now: Instant) -> Batch {
    Batch { bytes: buffers.take(|| Vec::with_capacity(BATCH_LEN)), datagrams: 0, since: now }
}

/// Gives a batch's buffer back.
pub(super) fn recycle(buffers: &Buffers, mut bytes: Vec<u8>) {
    bytes.clear();
    bytes.shrink_to(BUFFER_KEPT);
    buffers.give_back(bytes);
}

/// What waits in a connection's queue, kept by both of its ends.
#[derive(Debug)]
pub(super) struct Waiting {
    socket: Socket,
    datagrams: AtomicUsize,
    bytes: AtomicUsize,
    /// The memory of their buffers.
    held: AtomicUsize,
    /// The bytes of all queues.
    all: Arc<Gauge>,
    /// Datagrams whose connection ended before they were written.
    lost: Arc<Counter>,
}

impl Waiting {
    /// Nothing waits yet for `socket`. `all` tells the bytes of all queues; `lost` counts what waits
    /// when both ends of the queue are gone.
    pub(super) fn new(socket: Socket, all: Arc<Gauge>, lost: Arc<Counter>) -> Waiting {
        let (datagrams, bytes, held) = Default::default();
        Waiting { socket, datagrams, bytes, held, all, lost }
    }

    fn add(&self, datagrams: usize, bytes: usize, held: usize) {
        self.datagrams.fetch_add(datagrams, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.held.fetch_add(held, Ordering::Relaxed);
        self.all.add(signed(bytes));
    }

    /// The kernel has taken these, or they were given up.
    pub(super) fn subtract(&self, datagrams: usize, bytes: usize) {
        self.datagrams.fetch_sub(datagrams, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.all.add(-signed(bytes));
    }

    /// Batches that held so much have left the queue.
    pub(super) fn release(&self, held: usize) {
        self.held.fetch_sub(held, Ordering::Relaxed);
    }

    /// Datagrams in the queue now.
    pub(super) fn datagrams(&self) -> usize {
        self.datagrams.load(Ordering::Relaxed)
    }

    /// Memory of the queue's buffers, and of what is being written.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    fn load(&self) -> Load {
        // A socket that cannot be asked is closed, which its thread will tell.
        let outstanding = sockopt::unacknowledged(&self.socket).unwrap_or(0);
        // What has all been acknowledged has been sent.
        let unsent = match outstanding {
            0 => 0,
            _ => sockopt::unsent(&self.socket).unwrap_or(0).min(outstanding),
        };
        Load {
            queued_datagrams: self.datagrams(),
            queued: self.bytes.load(Ordering::Relaxed),
            held: self.held(),
            unsent,
            unacknowledged: outstanding - unsent,
            acknowledged: self.socket.written().saturating_sub(outstanding as u64),
        }
    }
}

impl Drop for Waiting {
    /// What waited for a connection that has ended waits no more.
    fn drop(&mut self) {
        self.all.add(-signed(*self.bytes.get_mut()));
        self.lost.add(*self.datagrams.get_mut() as u64);
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The sending side's view of a connection that is up.
#[derive(Debug)]
pub(super) struct LinkHandle {
    pub(super) id: u64,
    pub(super) queue: Sender<Batch>,
    pub(super) waiting: Arc<Waiting>,
}

/// A session's connections that are up.
#[derive(Debug)]
pub(super) struct Links {
    handles: Vec<LinkHandle>,
    choice: LinkChoice,
}

impl Links {
    /// None; each may hold `queue_datagrams_max` datagrams in its queue.
    pub(super) fn new(queue_datagrams_max: usize) -> Links {
        Links { handles: Vec::new(), choice: LinkChoice::new(queue_datagrams_max) }
    }

    pub(super) fn add(&mut self, link: LinkHandle, now: Instant) {
        self.choice.add(link.id, now);
        self.handles.push(link);
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.choice.remove(id);
        self.handles.retain(|link| link.id != id);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }

    /// Hands a batch to the connection that should take it; gives it back when none can.
    pub(super) fn send(
        &mut self,
        buffers: &Buffers,
        now: Instant,
        mut batch: Batch,
    ) -> Result<(), Batch> {
        while !self.handles.is_empty() {
            let handles = &self.handles;
            let load = |id| {
                let handle = handles.iter().find(|handle| handle.id == id);
                handle.map(|handle| handle.waiting.load()).unwrap_or_default()
            };
            let Some(id) = self.choice.choose(now, load) else {
                return Err(batch);
            };
            let Some(link) = self.handles.iter().find(|handle| handle.id == id) else {
                return Err(batch);
            };
            if link.waiting.held() >= ROOMY_HELD_MAX {
                batch.fit(buffers);
            }
            let (datagrams, bytes, held) = (batch.datagrams, batch.bytes.len(), batch.held());
            link.waiting.add(datagrams, bytes, held);
            match link.queue.send(batch) {
                Ok(()) => return Ok(()),
                Err(NotSent::Full(back)) => {
                    link.waiting.subtract(datagrams, bytes);
                    link.waiting.release(held);
                    return Err(back);
                }
                // The connection has just ended; its thread's word of that is on its way.
                Err(NotSent::Closed(back)) => {
                    link.waiting.subtract(datagrams, bytes);
                    link.waiting.release(held);
                    batch = back;
                    self.remove(id);
                }
            }
        }
        Err(batch)
    }

    /// Ends every connection.
    pub(super) fn close(&self) {
        for link in &self.handles {
            link.queue.close();
        }
    }
}
