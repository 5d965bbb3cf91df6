//! Packets on their way into the sockets, in both threads.

use super::counters::{Counters, DropReason};
use super::members::Members;
use super::table::{Framing, Peer};
use crate::net::sys::mmsg::send::{SendQueue, SendReport};
use crate::runtime::clock;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a thread waits in a round for sockets' send buffers to have room, all together. So long what
/// comes out of the device queues up there, where senders notice; longer, other peers' packets and the
/// main thread's orders would have to wait too.
#[derive(Debug)]
pub(super) struct Patience {
    left: Duration,
}

impl Patience {
    pub(super) const fn new(left: Duration) -> Patience {
        Patience { left }
    }

    /// None is left in this round.
    pub(super) fn is_exhausted(&self) -> bool {
        self.left.is_zero()
    }

    /// Milliseconds of a wait; 0 for none.
    fn milliseconds(&self) -> u8 {
        u8::try_from(self.left.as_millis()).unwrap_or(u8::MAX)
    }

    fn spend(&mut self, time: Duration) {
        self.left = self.left.saturating_sub(time);
        if self.milliseconds() == 0 {
            self.left = Duration::ZERO;
        }
    }
}

/// Packets for one peer that stand in a buffer: one, or several of equal length one behind the
/// other, of which the last may be shorter.
pub(super) struct Outgoing {
    pub(super) peer: Arc<Peer>,
    pub(super) range: Range<usize>,
    pub(super) segment_len: usize,
}

impl Outgoing {
    fn packets(&self) -> usize {
        self.range.len().div_ceil(self.segment_len.max(1))
    }
}

/// What stands in front of every packet to the peer in its datagram.
pub(super) fn prefix_len(framing: Framing) -> usize {
    match framing {
        Framing::Raw => 0,
        Framing::PacketInformation => 4,
    }
}

/// Sends everything in `outgoing`, which stands in `buffer`, and empties it. Neighbours that share a
/// socket leave together. Waits for room as long as `patience` lasts, and then drops.
pub(super) fn send(
    outgoing: &mut Vec<Outgoing>,
    buffer: &[u8],
    queue: &mut SendQueue,
    members: &Members,
    counters: &Counters,
    patience: &mut Patience,
) {
    let now = clock::now();
    let mut since = now;
    let mut rest = &outgoing[..];
    while let Some(first) = rest.first() {
        let (socket_id, trains) = (first.peer.socket, first.peer.takes_trains(now));
        let is_together = |next: &Outgoing| {
            next.peer.socket == socket_id
                && (Arc::ptr_eq(&next.peer, &first.peer) || next.peer.takes_trains(now) == trains)
        };
        let count = rest.iter().position(|next| !is_together(next)).unwrap_or(rest.len());
        let (together, behind) = rest.split_at(count);
        rest = behind;
        let Some(socket) = members.socket(socket_id) else {
            for lost in together {
                lost.peer.counters.dropped(lost.packets() as u64);
                counters.dropped(DropReason::NoSocket, lost.packets());
            }
            continue;
        };
        let mut batch = socket.udp.batch(queue);
        if !patience.is_exhausted() {
            batch = batch.waiting(patience.milliseconds());
        }
        if !trains {
            batch = batch.singly();
        }
        for Outgoing { peer, range, segment_len } in together {
            let bytes = &buffer[range.clone()];
            if bytes.len() > *segment_len {
                batch.push_train(peer.source, Some(peer.endpoint), bytes, *segment_len);
            } else {
                batch.push_from(peer.source, Some(peer.endpoint), bytes);
            }
        }
        let report = batch.finish();
        if report.waits > 0 {
            let now = clock::now();
            patience.spend(now.saturating_duration_since(since));
            since = now;
        }
        count_sent(together, &report, members, counters, now);
    }
    outgoing.clear();
}

fn count_sent(
    sent: &[Outgoing],
    report: &SendReport,
    members: &Members,
    counters: &Counters,
    now: Instant,
) {
    let mut bytes_sent = 0;
    for run in sent.chunk_by(|one, next| Arc::ptr_eq(&one.peer, &next.peer)) {
        let peer = &run[0].peer;
        let prefix_len = prefix_len(peer.framing);
        let (mut packets, mut bytes) = (0, 0);
        for outgoing in run {
            packets += outgoing.packets();
            bytes += outgoing.range.len() - outgoing.packets() * prefix_len;
        }
        peer.counters.sent(packets as u64, bytes as u64);
        bytes_sent += bytes;
    }
    for lost in &report.lost {
        let peer = lost.destination.and_then(|endpoint| members.table.by_endpoint(endpoint));
        // Unless the table has changed meanwhile, it is there.
        if let Some(peer) = peer {
            let bytes = lost.bytes - lost.datagrams * prefix_len(peer.framing);
            peer.counters.lost(lost.datagrams as u64, bytes as u64);
            bytes_sent = bytes_sent.saturating_sub(bytes);
        }
    }
    counters.sent(report.sent as u64, bytes_sent as u64);
    counters.dropped(DropReason::SendBufferFull, report.blocked);
    counters.dropped(DropReason::SendFailed, report.failed);
    if report.segmentation_refused {
        counters.refused_segmentation();
        let refused = report.refused_destination;
        if let Some(peer) = refused.and_then(|endpoint| members.table.by_endpoint(endpoint)) {
            peer.refuse_segmentation(now);
        }
    }
}
