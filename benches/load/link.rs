//! What the load loop asks of a client, whatever way its datagrams take.

use super::clock::Clock;
use super::histogram::Histogram;
use super::window::{Answer, Windows};
use mio::event::Source;
use std::io;
use std::ops::Range;
use udpferry::net::sys::mmsg::receive::ReceiveQueue;
use udpferry::net::sys::mmsg::send::SendQueue;

/// Bytes per read of a stream, what is carried over included. More than a whole frame, so that a
/// read always has room.
pub(crate) const READ_LEN: usize = 256 << 10;

/// Whether a receive emptied the socket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    All,
    MoreWaits,
}

/// One client. Errors end the measurement: it would not be one.
pub(crate) trait Link {
    /// For registration with the poll.
    fn source(&mut self) -> &mut dyn Source;
    /// The slots of all its flows.
    fn slots(&self) -> Range<usize>;
    /// One system call's worth of answers, into the tally and the list of free slots.
    fn receive(&mut self, windows: &mut Windows, scratch: &mut Scratch) -> io::Result<Received>;
    /// A new datagram in each of `slots`, with one system call while the kernel takes them.
    fn send(
        &mut self,
        slots: &[usize],
        windows: &mut Windows,
        scratch: &mut Scratch,
    ) -> io::Result<()>;
    /// Sends what the kernel would not take before.
    fn flush(&mut self) -> io::Result<()>;
}

/// What happened since the measurement began.
pub(crate) struct Tally {
    pub(crate) round_trips: u64,
    pub(crate) lost: u64,
    pub(crate) unexpected: u64,
    pub(crate) corrupt: u64,
    pub(crate) round_trip_ns: Histogram,
}

impl Tally {
    pub(crate) fn new() -> Tally {
        Tally {
            round_trips: 0,
            lost: 0,
            unexpected: 0,
            corrupt: 0,
            round_trip_ns: Histogram::new(),
        }
    }

    pub(crate) fn count(&mut self, answer: &Answer, free: &mut Vec<usize>) {
        match answer {
            Answer::Expected { slot, round_trip_ns } => {
                self.round_trips += 1;
                self.round_trip_ns.record(*round_trip_ns);
                free.push(*slot);
            }
            Answer::Unexpected => self.unexpected += 1,
            Answer::Corrupt => self.corrupt += 1,
        }
    }
}

/// Buffers that all clients share, one after the other.
pub(crate) struct Scratch {
    pub(crate) clock: Clock,
    pub(crate) tally: Tally,
    /// Slots whose answer has come.
    pub(crate) free: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) frames: Vec<u8>,
    pub(crate) read_buffer: Vec<u8>,
    pub(crate) receive_queue: ReceiveQueue,
    pub(crate) send_queue: SendQueue,
}

impl Scratch {
    pub(crate) fn new(clock: Clock) -> Scratch {
        Scratch {
            clock,
            tally: Tally::new(),
            free: Vec::new(),
            bytes: Vec::new(),
            frames: Vec::new(),
            read_buffer: vec![0; READ_LEN],
            receive_queue: ReceiveQueue::default(),
            send_queue: SendQueue::default(),
        }
    }
}
