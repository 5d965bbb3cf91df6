//! The server's thread of one session: receives what the target sends and hands it to the
//! session's connections.

use super::batch::{Batch, LinkHandle, Links, new_batch, recycle};
use super::counters::DropReason;
use super::{Activity, Shared};
use crate::net::sys::mmsg::receive::{RECEIVE_BATCH, ReceiveQueue};
use crate::net::udp::UdpSocket;
use crate::runtime::clock;
use crate::runtime::event_loop::{EventLoop, Readiness};
use crate::runtime::queue::Receiver;
use mio::Token;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) const WAKE: Token = Token(0);
pub(super) const UDP: Token = Token(1);

/// The main thread's word to a session; closing the queue ends it.
#[derive(Debug)]
pub(super) enum Order {
    /// A connection has joined.
    Add(LinkHandle),
    /// A connection has ended.
    Remove(u64),
}

/// One session.
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) events: EventLoop,
    pub(super) orders: Receiver<Order>,
    pub(super) socket: Arc<UdpSocket>,
    pub(super) activity: Arc<Activity>,
    pub(super) links: Links,
    pub(super) silence_max: Option<Duration>,
    pub(super) grace: Duration,
    /// While there is no connection: when that has lasted too long.
    pub(super) deserted_until: Option<Instant>,
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SessionEnd {
    Silent,
    Deserted,
    Stopped,
    Fault,
}

impl Session {
    /// The thread's body. All connections of the session end with it.
    pub(super) fn run(mut self) -> SessionEnd {
        let end = loop {
            match self.round() {
                Ok(()) => {}
                Err(end) => break end,
            }
        };
        // Connections that were added in the last moment too.
        for order in self.orders.drain() {
            if let Order::Add(link) = order {
                self.links.add(link, clock::now());
            }
        }
        self.links.close();
        end
    }

    fn round(&mut self) -> Result<(), SessionEnd> {
        let now = clock::now();
        let deadline = self.deadline();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Err(if self.deserted_until.is_some() {
                SessionEnd::Deserted
            } else {
                SessionEnd::Silent
            });
        }
        let timeout = deadline.map(|deadline| clock::until(deadline, now));
        self.events.wait(timeout).map_err(|error| {
            log::error!("session: cannot wait for events: {error}");
            SessionEnd::Fault
        })?;
        while let Some((token, _)) = self.events.next_ready() {
            // Before what the target says too: it may answer a connection whose order waits.
            self.obey()?;
            if token == UDP {
                let make = || Box::new(ReceiveQueue::default());
                let mut queue = self.shared.receive_queues.take(make);
                self.receive(&mut queue);
                self.shared.receive_queues.give_back(queue);
            }
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        let silent = self.silence_max.and_then(|timeout| self.activity.last().checked_add(timeout));
        [silent, self.deserted_until].into_iter().flatten().min()
    }

    fn obey(&mut self) -> Result<(), SessionEnd> {
        if self.orders.is_closed() {
            return Err(SessionEnd::Stopped);
        }
        let now = clock::now();
        for order in self.orders.drain() {
            match order {
                Order::Add(link) => {
                    self.links.add(link, now);
                    self.deserted_until = None;
                }
                Order::Remove(id) => {
                    self.links.remove(id);
                    if self.links.is_empty() && self.deserted_until.is_none() {
                        self.deserted_until = now.checked_add(self.grace);
                    }
                }
            }
        }
        Ok(())
    }

    /// One `recvmmsg`, and its datagrams on their way.
    fn receive(&mut self, queue: &mut ReceiveQueue) {
        match self.socket.receive(queue) {
            Ok(received) if received == RECEIVE_BATCH => {
                self.events.again(UDP, Readiness::READABLE);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // An ICMP error of an earlier datagram: told and thereby cleared.
            Err(_) => {
                self.shared.counters.icmp_error();
                self.events.again(UDP, Readiness::READABLE);
                return;
            }
        }
        let now = clock::now();
        self.activity.touch(now);
        let kernel_drops = self.socket.new_kernel_drops(queue);
        self.shared.counters.drop(DropReason::ReceiveBufferFull, kernel_drops as usize);
        let mut batch = new_batch(&self.shared.buffers);
        for datagram in queue.messages().flat_map(|message| message.datagrams()) {
            if batch.is_full_for(datagram.len()) {
                let full = std::mem::replace(&mut batch, new_batch(&self.shared.buffers));
                hand_over(&self.shared, &mut self.links, full, now);
            }
            // UDP datagrams are shorter than the longest frame.
            batch.push(datagram);
        }
        hand_over(&self.shared, &mut self.links, batch, now);
    }
}

/// Gives a batch to a connection, or drops it.
pub(super) fn hand_over(shared: &Shared, links: &mut Links, batch: Batch, now: Instant) {
    if batch.is_empty() {
        recycle(&shared.buffers, batch.bytes);
        return;
    }
    if let Err(batch) = links.send(now, batch) {
        let reason =
            if links.is_empty() { DropReason::NotConnected } else { DropReason::QueuesFull };
        shared.counters.drop(reason, batch.datagrams);
        recycle(&shared.buffers, batch.bytes);
    }
}
