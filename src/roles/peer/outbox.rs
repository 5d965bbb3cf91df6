//! Datagrams on their way out: written one after the other into one buffer, sent in batches.

use super::counters::Counters;
use super::network::Network;
use std::net::SocketAddr;
use std::ops::Range;

struct Entry {
    socket: u16,
    to: SocketAddr,
    bytes: Range<usize>,
}

/// A reused buffer, and what stands in it.
#[derive(Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

impl Outbox {
    /// Adds a datagram that `write` appends. If that says `false`, nothing is added.
    pub(super) fn add(
        &mut self,
        socket: u16,
        to: SocketAddr,
        write: impl FnOnce(&mut Vec<u8>) -> bool,
    ) -> bool {
        let start = self.bytes.len();
        let is_written = write(&mut self.bytes);
        if is_written {
            self.entries.push(Entry { socket, to, bytes: start..self.bytes.len() });
        } else {
            self.bytes.truncate(start);
        }
        is_written
    }

    /// Sends everything, in order, each run of one socket's datagrams in a batch.
    pub(super) fn flush(&mut self, network: &mut Network, counters: &Counters) {
        for run in self.entries.chunk_by(|one, other| one.socket == other.socket) {
            let Some(first) = run.first() else { continue };
            let datagrams = run
                .iter()
                .map(|entry| (entry.to, self.bytes.get(entry.bytes.clone()).unwrap_or_default()));
            network.send_all(first.socket, datagrams, counters);
        }
        self.entries.clear();
        self.bytes.clear();
    }
}
