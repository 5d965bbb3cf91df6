//! Forwarded datagrams on their way to local sockets: written one after the other into one buffer,
//! sent in batches.

use super::counters::Counters;
use super::forward::{Listening, ServedFlow, Serving};
use crate::net::sys::mmsg::send::SendQueue;
use std::net::SocketAddr;
use std::ops::Range;

/// Where a datagram goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Local {
    /// From the listening socket to whose flow it is.
    Source(SocketAddr),
    /// To the service, by the flow's socket.
    Flow(ServedFlow),
}

/// A reused buffer, and what stands in it.
#[derive(Default)]
pub(super) struct Deliveries {
    bytes: Vec<u8>,
    entries: Vec<(Local, Range<usize>)>,
}

impl Deliveries {
    /// Adds an answer of the service for the source of a flow.
    pub(super) fn add_answer(&mut self, source: SocketAddr, payload: &[u8]) {
        self.add(Local::Source(source), payload);
    }

    /// Adds a datagram for the service, by the socket of that flow.
    pub(super) fn add_for_service(&mut self, flow: ServedFlow, payload: &[u8]) {
        self.add(Local::Flow(flow), payload);
    }

    fn add(&mut self, to: Local, payload: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(payload);
        self.entries.push((to, start..self.bytes.len()));
    }

    /// Sends everything, in order, each run of one socket's datagrams in a batch.
    pub(super) fn flush(
        &mut self,
        listening: Option<&Listening>,
        serving: Option<&Serving>,
        queue: &mut SendQueue,
        counters: &Counters,
    ) {
        let is_same_socket = |one: &(Local, Range<usize>), other: &(Local, Range<usize>)| {
            one.0 == other.0 || matches!((one.0, other.0), (Local::Source(_), Local::Source(_)))
        };
        for run in self.entries.chunk_by(is_same_socket) {
            let payload = |range: &Range<usize>| self.bytes.get(range.clone()).unwrap_or_default();
            match run.first() {
                Some((Local::Source(_), _)) => {
                    let answers = run.iter().filter_map(|(to, range)| match to {
                        Local::Source(source) => Some((*source, payload(range))),
                        Local::Flow(_) => None,
                    });
                    if let Some(listening) = listening {
                        listening.send(queue, answers, counters);
                    }
                }
                Some((Local::Flow(flow), _)) => {
                    let datagrams = run.iter().map(|(_, range)| payload(range));
                    if let Some(serving) = serving {
                        serving.send(*flow, queue, datagrams, counters);
                    }
                }
                None => {}
            }
        }
        self.entries.clear();
        self.bytes.clear();
    }
}
