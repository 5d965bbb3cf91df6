//! The large buffers that a client's thread needs while it works, and only then.
//!
//! A wake takes a workbench and gives it back. Idle clients therefore hold no buffers, and the next
//! thread finds the one that is still warm in the cache. The lock is taken once per wake, not per
//! datagram.

use super::sockets::SocketId;
use crate::net::sys::mmsg::receive::ReceiveQueue;
use crate::net::sys::mmsg::send::SendQueue;
use crate::runtime::stock::Stock;
use std::net::SocketAddr;

/// Room for one read of the stream: as much as two of the longest frames, and what the default
/// TCP buffer hands over at once.
pub(super) const INPUT_LEN: usize = 131_072;
/// Frames for the stream are written as soon as this much waits.
pub(super) const OUTPUT_LEN: usize = 131_072;
/// An output buffer that grew past this is not kept.
const OUTPUT_KEPT: usize = 4 * OUTPUT_LEN;
/// Idle workbenches kept for the next wake. As many threads as cores use one at a time; twice that
/// for those that are preempted in mid-work, on machines of up to 8 cores.
const KEPT_MAX: usize = 16;

/// A datagram that waits for its socket's turn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outgoing {
    /// The next datagram for the same socket.
    pub next: Option<usize>,
    /// `None` for the connected socket of a flow of its own.
    pub destination: Option<SocketAddr>,
    /// Where it lies in the input buffer.
    pub start: usize,
    pub len: usize,
}

/// Buffers for one wake of one client.
pub(super) struct Workbench {
    pub input: Vec<u8>,
    pub outgoing: Vec<Outgoing>,
    /// Sockets with outgoing datagrams, in the order in which they got the first.
    pub sending: Vec<SocketId>,
    pub send: SendQueue,
    pub receive: ReceiveQueue,
    pub output: Vec<u8>,
}

impl Workbench {
    #[inline(never)] // Rarely called, from where every client's stack would pay for it.
    fn new() -> Workbench {
        Workbench {
            input: vec![0; INPUT_LEN],
            outgoing: Vec::new(),
            sending: Vec::new(),
            send: SendQueue::default(),
            receive: ReceiveQueue::default(),
            output: Vec::new(),
        }
    }
}

/// The workbenches that nobody uses at the moment.
pub(super) struct Workbenches {
    idle: Stock<Box<Workbench>>,
}

impl Workbenches {
    /// None yet.
    pub(super) fn new() -> Workbenches {
        Workbenches { idle: Stock::new(KEPT_MAX) }
    }

    /// The one that was given back last, or a new one.
    pub(super) fn take(&self) -> Box<Workbench> {
        self.idle.take(|| Box::new(Workbench::new()))
    }

    /// Gives it back, emptied.
    pub(super) fn give_back(&self, mut bench: Box<Workbench>) {
        bench.outgoing.clear();
        bench.sending.clear();
        bench.output.clear();
        bench.output.shrink_to(OUTPUT_KEPT);
        self.idle.give_back(bench);
    }
}
