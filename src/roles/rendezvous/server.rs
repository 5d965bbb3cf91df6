//! The loop: receives in batches, has every datagram answered, sends in batches.

use super::Config;
use super::counters::{Counters, DropReason};
use super::desk::Desk;
use super::sockets::Sockets;
use super::store::Store;
use crate::error::Error;
use crate::net::sys::mmsg::receive::{RECEIVE_BATCH, ReceiveQueue};
use crate::roles::frame::{FIRST_OWN, Frame, Happening, WAKE};
use crate::roles::startup::Startup;
use crate::runtime::clock;
use crate::runtime::event_loop::{EventLoop, Readiness};
use crate::state::contact::Contact;
use mio::{Interest, Token};
use std::io;
use std::sync::Arc;

/// Batches of a socket per turn, so that a flood cannot keep signals, deadlines and the other
/// sockets waiting: 512 datagrams take about a millisecond.
const BATCHES_PER_TURN: usize = 16;

/// Serves until it is stopped.
pub(super) fn serve(config: &Config, startup: Startup) -> Result<(), Error> {
    let mut frame = Frame::new(config.common.metrics, None)?;
    let mut sockets = Sockets::open(config)?;
    for (index, socket) in sockets.iter_mut() {
        frame
            .events
            .register(socket.source(), Token(FIRST_OWN + index), Interest::READABLE)
            .map_err(Error::while_doing(|| "cannot watch a socket"))?;
    }
    let counters = Arc::new(Counters::new(&mut frame.registry));
    let store = match &config.store {
        Some(url) => Some(Store::start(url, config.limits.expiry, &counters, &frame.wake()?)?),
        None => None,
    };
    let mut desk = Desk::new(config, sockets, counters, store, clock::now())?;
    let mut queue = ReceiveQueue::default();
    frame.ready(startup)?;
    loop {
        let numbers = || {
            let line = desk.counters.status_line();
            (line.clone(), line)
        };
        match frame.next_happening(desk.next_deadline(clock::now()), numbers)? {
            Happening::Stop => return Ok(()),
            // There are no files but the log.
            Happening::Reload => {}
            Happening::Ready(WAKE, readiness) => {
                if !desk.hear_store(clock::now()) {
                    frame.events.again(WAKE, readiness);
                }
            }
            Happening::Ready(token, readiness) => {
                receive(&mut desk, &mut queue, &mut frame.events, (token, readiness));
            }
            Happening::RoundOver(now) => desk.tend(now),
        }
    }
}

fn receive(
    desk: &mut Desk,
    queue: &mut ReceiveQueue,
    events: &mut EventLoop,
    (token, readiness): (Token, Readiness),
) {
    let index = token.0.wrapping_sub(FIRST_OWN);
    for _ in 0..BATCHES_PER_TURN {
        let Some(socket) = desk.sockets.get(index) else { return };
        match socket.receive(queue) {
            Ok(count) => {
                let drops = socket.new_kernel_drops(queue);
                desk.counters.dropped(DropReason::ReceiveBufferFull, drops as usize);
                answer(desk, queue, index);
                if count < RECEIVE_BATCH {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let now = clock::now();
                desk.tell(now, || format!("cannot receive: {error}"));
                break;
            }
        }
    }
    events.again(token, readiness);
}

fn answer(desk: &mut Desk, queue: &ReceiveQueue, socket: usize) {
    let now = clock::now();
    for message in queue.messages() {
        let Some(endpoint) = message.source else { continue };
        let from = Contact { endpoint, socket, local: message.destination() };
        for datagram in message.datagrams() {
            desk.answer(now, from, datagram);
            if desk.outbox.is_full() {
                desk.send(now);
            }
        }
    }
    desk.send(now);
}
