//! `sendmmsg`: a batch of datagrams, each to its own destination and, if need be, from its own
//! source address.

mod deliver;

use super::name::write_name;
use super::{Arrays, MESSAGES_MAX};
use std::io;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

/// Datagrams per `sendmmsg`, unless a queue is made for more. Past 64 the call's own cost (about 180 ns)
/// is lost in the datagrams'.
pub const SEND_BATCH: usize = 64;
/// UDP_MAX_SEGMENTS of linux/udp.h before Linux 6.9, which doubled it.
const SEGMENTS_MAX: usize = 64;
/// A train must fit one IPv4 datagram: 65,535 less the IP and UDP headers.
const TRAIN_LEN_MAX: usize = 65_507;
/// Segmentation refuses to fragment, so datagrams larger than what fits a 1500-byte IPv6 packet go
/// singly and are fragmented as any other.
pub(super) const SEGMENT_LEN_MAX: usize = 1452;

/// Times that one batch waits for room before it drops what is left: with each but the last it has
/// made progress.
const WAITS_MAX: usize = 8;

/// What became of a batch of datagrams.
#[derive(Debug, Default)]
pub struct SendReport {
    /// Datagrams that the kernel took.
    pub sent: usize,
    /// Their bytes, without headers.
    pub sent_bytes: usize,
    /// Datagrams dropped because the socket's send buffer was full.
    pub blocked: usize,
    /// Times that the batch waited for room.
    pub waits: usize,
    /// Datagrams that the kernel refused: no route, too large, firewall.
    pub failed: usize,
    /// Errors of earlier datagrams (ICMP answers) that were reported and passed over.
    pub icmp_errors: usize,
    /// The last refusal.
    pub last_error: Option<io::Error>,
    /// The kernel or the route's device refused a segmented send: the caller should not ask again.
    pub segmentation_refused: bool,
    /// Whom that was to; `None` on a connected socket.
    pub refused_destination: Option<SocketAddr>,
    /// What was blocked or failed, by destination. Empty, and not allocated, as long as all goes
    /// well.
    pub lost: Vec<Lost>,
}

/// Datagrams to one destination that were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// Whom they were to; `None` on a connected socket.
    pub destination: Option<SocketAddr>,
    /// How many.
    pub datagrams: usize,
    /// Their bytes, without headers.
    pub bytes: usize,
}

/// The arrays behind `sendmmsg`.
pub struct SendQueue {
    arrays: Arrays,
    trains: Box<[Train]>,
}

/// One message of a batch: a datagram, or several of one size to one destination.
#[derive(Debug, Clone, Copy, Default)]
struct Train {
    /// Where its first payload stands.
    first: usize,
    /// One for each datagram, or a single one that holds them all.
    payloads: usize,
    datagrams: usize,
    segment_len: usize,
    total_len: usize,
    /// Bytes of its address; 0 on a connected socket.
    name_len: libc::socklen_t,
    /// Bytes of the control message with its source address; 0 when the kernel chooses.
    source_len: usize,
    closed: bool,
}

impl Default for SendQueue {
    fn default() -> SendQueue {
        SendQueue::with_room_for(SEND_BATCH)
    }
}

impl SendQueue {
    /// A queue for so many datagrams in a call; 1 to 1024 (UIO_MAXIOV). With trains, more of them per
    /// call wake who receives them less often.
    pub fn with_room_for(datagrams: usize) -> SendQueue {
        let datagrams = datagrams.clamp(1, MESSAGES_MAX);
        SendQueue {
            arrays: Arrays::new(datagrams),
            trains: vec![Train::default(); datagrams].into(),
        }
    }

    /// Starts a batch on `socket`. With `segmentation`, runs of equal datagrams to one destination
    /// leave as one `UDP_SEGMENT` train; on the wire they are datagrams like any other.
    pub fn batch<'q, 'd>(
        &'q mut self,
        socket: &'q impl AsFd,
        segmentation: bool,
    ) -> SendBatch<'q, 'd> {
        SendBatch {
            queue: self,
            socket: socket.as_fd(),
            segmentation,
            messages: 0,
            payloads_used: 0,
            waits_left: 0,
            wait_max: 0,
            last_destination: None,
            last_source: None,
            report: SendReport::default(),
            payloads: PhantomData,
        }
    }
}

/// Datagrams on their way into one socket. Sent when as many wait as the queue has room for
/// ([`SEND_BATCH`]), and by [`SendBatch::finish`].
#[must_use = "datagrams that wait are lost without `finish`"]
pub struct SendBatch<'q, 'd> {
    queue: &'q mut SendQueue,
    socket: BorrowedFd<'q>,
    segmentation: bool,
    pub(super) messages: usize,
    payloads_used: usize,
    waits_left: usize,
    /// Milliseconds.
    wait_max: u8,
    last_destination: Option<SocketAddr>,
    last_source: Option<IpAddr>,
    report: SendReport,
    payloads: PhantomData<&'d [u8]>,
}

impl<'d> SendBatch<'_, 'd> {
    /// Adds a datagram; `destination` is `None` on a connected socket.
    pub fn push(&mut self, destination: Option<SocketAddr>, payload: &'d [u8]) {
        self.push_from(None, destination, payload);
    }

    /// Adds a datagram that leaves from `source`, an address of this host and of the socket's
    /// family; `None` leaves the choice to the kernel. The port is the socket's. Datagrams from
    /// addresses that the host does not have fail.
    #[inline]
    pub fn push_from(
        &mut self,
        source: Option<IpAddr>,
        destination: Option<SocketAddr>,
        payload: &'d [u8],
    ) {
        if self.payloads_used == self.queue.trains.len() {
            self.flush();
        }
        let first = self.add_payload(payload);
        if self.joins_last_train(source, destination, payload.len()) {
            let train = &mut self.queue.trains[self.messages - 1];
            train.payloads += 1;
            train.datagrams += 1;
            train.total_len += payload.len();
            train.closed = payload.len() < train.segment_len;
            return;
        }
        let train = Train {
            first,
            payloads: 1,
            datagrams: 1,
            segment_len: payload.len(),
            total_len: payload.len(),
            closed: payload.is_empty() || payload.len() > SEGMENT_LEN_MAX,
            ..Train::default()
        };
        self.add_message(source, destination, train);
    }

    /// Adds datagrams that stand one behind the other in `bytes`, each `segment_len` long but the
    /// last, which may be shorter. They leave as trains, whatever their length, or one by one in a
    /// batch without segmentation. Otherwise as [`SendBatch::push_from`].
    pub fn push_train(
        &mut self,
        source: Option<IpAddr>,
        destination: Option<SocketAddr>,
        bytes: &'d [u8],
        segment_len: usize,
    ) {
        let segment_len = segment_len.max(1);
        let in_one = SEGMENTS_MAX.min(TRAIN_LEN_MAX / segment_len).max(1);
        for bytes in bytes.chunks(in_one * segment_len) {
            let datagrams = bytes.len().div_ceil(segment_len);
            if datagrams == 1 || !self.segmentation {
                for datagram in bytes.chunks(segment_len) {
                    self.push_from(source, destination, datagram);
                }
                continue;
            }
            if self.payloads_used == self.queue.trains.len() {
                self.flush();
            }
            let train = Train {
                first: self.add_payload(bytes),
                payloads: 1,
                datagrams,
                segment_len,
                total_len: bytes.len(),
                closed: true,
                ..Train::default()
            };
            self.add_message(source, destination, train);
        }
    }

    /// Waits up to `milliseconds` when the socket's send buffer is full, before what does not fit
    /// is dropped: whoever fills the sender's own queue meanwhile notices.
    pub fn waiting(mut self, milliseconds: u8) -> Self {
        self.wait_max = milliseconds;
        self.waits_left = WAITS_MAX;
        self
    }

    /// The same batch, whose datagrams leave one by one.
    pub fn singly(mut self) -> Self {
        self.segmentation = false;
        self
    }

    fn add_payload(&mut self, payload: &'d [u8]) -> usize {
        let at = self.payloads_used;
        self.queue.arrays.payloads[at] =
            libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
        self.payloads_used += 1;
        at
    }

    fn add_message(
        &mut self,
        source: Option<IpAddr>,
        destination: Option<SocketAddr>,
        train: Train,
    ) {
        let SendQueue { arrays, trains } = &mut *self.queue;
        let name = &mut arrays.names[self.messages];
        let control = &mut arrays.controls[self.messages];
        trains[self.messages] = Train {
            name_len: destination.map_or(0, |destination| write_name(name, destination)),
            source_len: source.map_or(0, |source| control.write_source(source)),
            ..train
        };
        self.last_destination = destination;
        self.last_source = source;
        self.messages += 1;
    }

    /// Sends what waits and says what became of all that was pushed.
    pub fn finish(mut self) -> SendReport {
        self.flush();
        self.report
    }

    fn joins_last_train(
        &self,
        source: Option<IpAddr>,
        destination: Option<SocketAddr>,
        len: usize,
    ) -> bool {
        let Some(train) = self.messages.checked_sub(1).map(|last| &self.queue.trains[last]) else {
            return false;
        };
        self.segmentation
            && !train.closed
            && len <= train.segment_len
            && len > 0
            && train.datagrams < SEGMENTS_MAX
            && train.total_len + len <= TRAIN_LEN_MAX
            && self.last_destination == destination
            && self.last_source == source
    }
}
