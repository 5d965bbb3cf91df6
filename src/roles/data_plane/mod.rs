//! Packets between TUN devices and UDP sockets: what `vpn` and `mesh` have in common.
//!
//! ```text
//!                    main: control, timers, signals; builds tables
//!                      |  orders: 64 places each             ^ reports: REPORTS_MAX places
//!          +-----------+-------------+                       |
//!          v                         v                       |
//!   "<role>:tun0" (outbound)   "<role>:udp0" (inbound) ------+
//!    devices ==read==> sockets  sockets ==recvmmsg==> devices
//! ```
//!
//! Both threads have all sockets and all devices: one thread reads each, any may write to it. They
//! decide by a [`table::Table`], which the main thread replaces as a whole, and share nothing else
//! but counters. There is no lock and no allocation on a packet's way.
//!
//! One packet is one datagram on the wire. Offloads only change how many of them cross the kernel's
//! border at once, and each has its fallback: a device that knows none yields and takes packets one
//! by one, a path that refuses trains of datagrams gets them one by one.

pub mod counters;
pub mod orders;
pub mod table;

mod inbound;
mod members;
mod outbound;
mod sending;

use crate::error::Error;
use crate::net::tun::TunDevice;
use crate::runtime::event_loop::EventLoop;
use crate::runtime::metrics::Registry;
use crate::runtime::queue::{self, Receiver, Sender, Wake};
use crate::runtime::thread::{self, Thread};
use crate::wire::offload::VIRTIO_HEADER_LEN;
use counters::{Counters, PeerCounters};
use mio::Token;
use orders::{Order, Report, Reports};
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

/// How much a thread needs of its stack: its buffers are in the heap.
const STACK: usize = 128 * 1024;

/// Orders that may wait. The main thread waits for room when there are more: the threads never wait
/// for it.
const ORDERS_MAX: usize = 64;

/// Writes a packet that was reported with a stranger to its device, now that he is a peer.
pub fn deliver(packet: &[u8], device: &TunDevice, peer: &PeerCounters) -> io::Result<()> {
    let header = [0; VIRTIO_HEADER_LEN];
    let front = if device.offloads().header { &header[..] } else { &[] };
    device.write(&[IoSlice::new(front), IoSlice::new(packet)])?;
    peer.received(1, packet.len() as u64);
    Ok(())
}

/// The two threads at work.
pub struct Plane {
    inbound: Worker,
    outbound: Worker,
}

struct Worker {
    orders: Sender<Order>,
    thread: Thread<()>,
}

/// A main thread that lags behind is told again after so long what it must know.
const TELL_AGAIN: Duration = Duration::from_millis(10);

/// The token of a thread's orders; sockets and devices come behind it.
const ORDERS: Token = Token(0);

/// What a thread does until it is told to end.
type Body = fn(Link) -> io::Result<()>;

/// A thread's side of what it shares with the others.
struct Link {
    events: EventLoop,
    orders: Receiver<Order>,
    reports: Reports,
    counters: Arc<Counters>,
    /// Devices and sockets that are gone, of which the main thread had no time to hear.
    untold: Vec<Report>,
}

impl Link {
    /// Waits for a round of events and leaves in `ready` what is to be handled in it, after the
    /// orders that are returned. `None` when the thread shall end.
    fn next_round(&mut self, ready: &mut Vec<Token>) -> io::Result<Option<Vec<Order>>> {
        while let Some(report) = self.untold.pop() {
            if let Err(report) = self.reports.tell_once(report) {
                self.untold.push(report);
                break;
            }
        }
        self.events.wait((!self.untold.is_empty()).then_some(TELL_AGAIN))?;
        // Not allocated as long as there are none.
        let mut orders = Vec::new();
        ready.clear();
        while let Some((token, _)) = self.events.next_ready() {
            if token != ORDERS {
                ready.push(token);
            } else if self.orders.is_closed() {
                return Ok(None);
            } else {
                orders.extend(self.orders.drain());
            }
        }
        Ok(Some(orders))
    }
}

impl Link {
    /// Tells the main thread of what will not happen again: as soon as it has time.
    fn must_tell(&mut self, report: Report) {
        if let Err(report) = self.reports.tell_once(report) {
            self.untold.push(report);
        }
    }
}

impl Plane {
    /// Starts the threads, `<role>:udp0` and `<role>:tun0`, with nothing to do yet, and returns
    /// their reports, for which `wake` wakes the main thread. Registers the metrics of
    /// [`Counters::new`].
    pub fn start(
        role: &str,
        wake: &Wake,
        registry: &mut Registry,
    ) -> Result<(Plane, Receiver<Report>), Error> {
        let counters = Arc::new(Counters::new(registry));
        let (reports, receiver) = Reports::queue(wake, &counters);
        let start = |job: &str, body| {
            let name = format!("{role}:{job}");
            start(&name, body, reports.clone(), Arc::clone(&counters))
                .map_err(Error::while_doing(|| format!("cannot start thread {name}0")))
        };
        let (inbound, outbound) = (start("udp", inbound::run)?, start("tun", outbound::run)?);
        Ok((Plane { inbound, outbound }, receiver))
    }

    /// Tells both threads. An order is obeyed before the next packet is looked at.
    pub fn order(&self, order: &Order) {
        for worker in [&self.inbound, &self.outbound] {
            // One that has ended has reported that.
            let _ = worker.orders.send_waiting(order.clone());
        }
    }

    /// Ends both threads and waits for that: a few milliseconds. Sockets and devices that nobody
    /// else has are closed.
    pub fn stop(self) {
        let Plane { inbound, outbound } = self;
        for worker in [&inbound, &outbound] {
            worker.orders.close();
        }
        for worker in [inbound, outbound] {
            // A panic is in the log.
            let _ = worker.thread.join();
        }
    }
}

fn start(name: &str, body: Body, reports: Reports, counters: Arc<Counters>) -> io::Result<Worker> {
    let events = EventLoop::new()?;
    let (sender, receiver) = queue::bounded(ORDERS_MAX, &Wake::new(events.waker(ORDERS)?));
    let thread_name = format!("{name}0");
    let thread = thread::spawn(name, 0, STACK, move || {
        let mut end = ToldEnd { thread: thread_name, reports: reports.clone(), outcome: None };
        let link = Link { events, orders: receiver, reports, counters, untold: Vec::new() };
        end.outcome = Some(body(link));
    })?;
    Ok(Worker { orders: sender, thread })
}

/// Tells the main thread how a thread ended, unless by request.
struct ToldEnd {
    thread: String,
    reports: Reports,
    /// `None` while it runs, and after a panic.
    outcome: Option<io::Result<()>>,
}

impl Drop for ToldEnd {
    fn drop(&mut self) {
        let error = match self.outcome.take() {
            Some(Ok(())) => return,
            Some(Err(error)) => Some(error),
            None => None,
        };
        self.reports.tell_end(std::mem::take(&mut self.thread), error);
    }
}
