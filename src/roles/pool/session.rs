//! The server's thread of one session: receives what the target sends and hands it to the
//! session's connections.

use super::batch::{Batch, LinkHandle, Links, new_batch, recycle};
use super::counters::DropReason;
use super::{Activity, ErrorRun, Shared};
use crate::net::sys::mmsg::receive::{RECEIVE_BATCH, ReceiveQueue};
use crate::net::udp::UdpSocket;
use crate::runtime::clock;
use crate::runtime::event_loop::{EventLoop, Readiness};
use crate::runtime::queue::{self, NotSent, Receiver, Sender, Wake};
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

/// The main thread's end of a session: its orders, and room for those that must arrive.
///
/// A connection is added only if the queue has room, beside what waits, for the removals of all
/// connections and this one. The main thread alone sends and the session alone takes out, so that
/// room stays until the removal needs it. A lost one would keep a session without connections for
/// ever: nothing would tell it that its grace has begun.
#[derive(Debug)]
pub(super) struct Orders {
    sender: Sender<Order>,
    capacity: usize,
    /// Connections that were added and not removed yet: removals still to come.
    connections: usize,
}

impl Orders {
    /// Orders for a session of so many connections, which `wake` wakes.
    pub(super) fn new(connections_max: usize, wake: &Wake) -> (Orders, Receiver<Order>) {
        // All of them come, go and come again before the session has looked once.
        let capacity = 3 * connections_max;
        let (sender, receiver) = queue::bounded(capacity, wake);
        (Orders { sender, capacity, connections: 0 }, receiver)
    }

    /// The session's connections, as the main thread sees them.
    pub(super) fn connections(&self) -> usize {
        self.connections
    }

    /// A connection joins; false when the session has ended or lags too far behind to take more.
    pub(super) fn add(&mut self, link: LinkHandle) -> bool {
        let removals = self.connections + 1;
        let has_room = self.sender.waiting() + 1 + removals <= self.capacity;
        let is_added = has_room && self.sender.send(Order::Add(link)).is_ok();
        self.connections += usize::from(is_added);
        is_added
    }

    /// A connection that was added has ended.
    pub(super) fn remove(&mut self, id: u64) {
        self.connections = self.connections.saturating_sub(1);
        // Never full, see above. One that has ended needs no telling.
        let sent = self.sender.send(Order::Remove(id));
        debug_assert!(!matches!(sent, Err(NotSent::Full(_))), "no room for a removal");
    }

    /// Ends the session.
    pub(super) fn close(&self) {
        self.sender.close();
    }
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
    pub(super) errors: ErrorRun,
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
            return Err(if self.deserted_until.is_some_and(|deadline| deadline <= now) {
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
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.errors.is_over();
                return;
            }
            // An ICMP error of an earlier datagram: told and thereby cleared.
            Err(_) => {
                self.shared.counters.icmp_error();
                if self.errors.tries_again() {
                    self.events.again(UDP, Readiness::READABLE);
                }
                return;
            }
        }
        self.errors.is_over();
        let now = clock::now();
        self.activity.touch(now);
        let kernel_drops = self.socket.new_kernel_drops(queue);
        self.shared.counters.drop(DropReason::ReceiveBufferFull, kernel_drops as usize);
        let mut batch = new_batch(&self.shared.buffers, now);
        for datagram in queue.messages().flat_map(|message| message.datagrams()) {
            if batch.is_full_for(datagram.len()) {
                let full = std::mem::replace(&mut batch, new_batch(&self.shared.buffers, now));
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
    if let Err(batch) = links.send(&shared.buffers, now, batch) {
        let reason =
            if links.is_empty() { DropReason::NotConnected } else { DropReason::QueuesFull };
        shared.counters.drop(reason, batch.datagrams);
        recycle(&shared.buffers, batch.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::stream::Socket;
    use crate::roles::pool::batch::{BATCH_LEN, Waiting};
    use crate::runtime::metrics::Registry;
    use crate::state::link_choice::QUEUED_LEN_MAX;

    /// Connections that are nobody's, to one listener.
    struct Handles {
        wake: Wake,
        socket: Socket,
        unsent: Arc<crate::runtime::metrics::Gauge>,
        lost: Arc<crate::runtime::metrics::Counter>,
    }

    impl Handles {
        fn make(&self, id: u64) -> LinkHandle {
            LinkHandle {
                id,
                queue: queue::bounded(1, &self.wake).0,
                waiting: Arc::new(Waiting::new(
                    self.socket.clone(),
                    Arc::clone(&self.unsent),
                    Arc::clone(&self.lost),
                )),
            }
        }
    }

    #[test]
    fn whatever_was_added_can_be_removed_before_the_session_looks() {
        let events = EventLoop::new().unwrap();
        let wake = Wake::new(events.waker(WAKE).unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = mio::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let unsent = Registry::new().gauge("unsent", "Unsent.");
        let lost = Registry::new().counter("lost_total", "Lost.");
        let handles = Handles { wake: wake.clone(), socket: Socket::new(stream), unsent, lost };
        for connections_max in [1, 2, 64] {
            let (mut orders, receiver) = Orders::new(connections_max, &wake);
            let mut links = Links::new(1);
            let mut added = std::collections::VecDeque::new();
            let mut refused = 0;
            for id in 0..20 * connections_max as u64 {
                // As the server: the oldest goes when the session has all that it may have.
                if added.len() == connections_max {
                    orders.remove(added.pop_front().unwrap());
                }
                if orders.add(handles.make(id)) {
                    added.push_back(id);
                } else {
                    refused += 1;
                }
                // The session looks rarely.
                if id % (5 * connections_max as u64) == 0 {
                    take(&receiver, &mut links);
                }
            }
            assert!(refused > 0, "the queue was never full: {connections_max}");
            assert_eq!(orders.connections(), added.len());
            for id in added {
                orders.remove(id);
            }
            assert_eq!((orders.connections(), orders.sender.dropped()), (0, 0));
            take(&receiver, &mut links);
            assert!(links.is_empty(), "a removal is lost");
            assert!(orders.add(handles.make(u64::MAX)), "a session that has caught up takes more");
        }
        let (mut orders, receiver) = Orders::new(2, &wake);
        drop(receiver);
        assert!(!orders.add(handles.make(0)));
        assert_eq!(orders.connections(), 0);
    }

    #[test]
    fn batches_that_their_connection_has_not_written_are_counted_whoever_goes_first() {
        let events = EventLoop::new().unwrap();
        let wake = Wake::new(events.waker(WAKE).unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = mio::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let lost = Registry::new().counter("lost_total", "Lost.");
        let unsent = Registry::new().gauge("unsent", "Unsent.");
        let socket = Socket::new(stream);
        let handles = Handles { wake: wake.clone(), socket, unsent, lost: Arc::clone(&lost) };
        for receiver_first in [true, false] {
            let (queue, batches) = queue::bounded(2, &wake);
            let mut links = Links::new(2);
            links.add(LinkHandle { queue, ..handles.make(1) }, clock::now());
            let buffers = crate::runtime::stock::Stock::new(1);
            let mut batch = new_batch(&buffers, clock::now());
            batch.push(b"one");
            batch.push(b"two");
            links.send(&buffers, clock::now(), batch).unwrap();
            let before = lost.get();
            if receiver_first {
                drop(batches);
                links.remove(1);
            } else {
                links.remove(1);
                drop(batches);
            }
            assert_eq!(lost.get(), before + 2);
        }
        assert_eq!(handles.unsent.get(), 0);
    }

    #[test]
    fn lone_small_datagrams_wait_in_no_more_memory_than_large_ones() {
        const QUEUE: usize = 65_535;
        let events = EventLoop::new().unwrap();
        let wake = Wake::new(events.waker(WAKE).unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = mio::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut registry = Registry::new();
        let (lost, unsent) = (registry.counter("lost_total", "."), registry.gauge("unsent", "."));
        let handles = Handles { wake: wake.clone(), socket: Socket::new(stream), unsent, lost };
        for len in [1, 100, 1_200, 9_000, 20_000, 65_000] {
            let (queue, batches) = queue::bounded(QUEUE, &wake);
            let mut links = Links::new(QUEUE);
            let link = LinkHandle { queue, ..handles.make(1) };
            let waiting = Arc::clone(&link.waiting);
            links.add(link, clock::now());
            let buffers = crate::runtime::stock::Stock::new(1);
            let mut sent = 0;
            loop {
                let mut batch = new_batch(&buffers, clock::now());
                batch.push(&vec![7; len]);
                if links.send(&buffers, clock::now(), batch).is_err() {
                    break;
                }
                sent += 1;
            }
            assert!(sent >= QUEUE.min(QUEUED_LEN_MAX / 2 / (len + 2)), "{sent} of {len} bytes");
            let charged = waiting.held();
            let held: usize = batches.drain().map(|batch| batch.bytes.capacity()).sum();
            assert_eq!(held, charged);
            assert!(held < QUEUED_LEN_MAX + BATCH_LEN.max(len + 2), "{held} bytes hold {sent}");
        }
    }

    fn take(orders: &Receiver<Order>, links: &mut Links) {
        for order in orders.drain() {
            match order {
                Order::Add(link) => links.add(link, clock::now()),
                Order::Remove(id) => links.remove(id),
            }
        }
    }
}
