//! Bounded queues between threads: a crossbeam channel and the receiver's mio waker in one type,
//! so that nobody can send without waking.

use crossbeam_channel::TrySendError;
use mio::Waker;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a sender meets when the queue is full, and its message back.
#[derive(Debug, PartialEq, Eq)]
pub enum NotSent<T> {
    /// The queue is at its bound. The drop has been counted.
    Full(T),
    /// The receiver is gone.
    Closed(T),
}

/// A thread's waker, for all the queues that it receives from: mio has one waker per poll. When its
/// token is ready, the thread must look at every one of them.
#[derive(Debug, Clone)]
pub struct Wake(Arc<WakeState>);

#[derive(Debug)]
struct WakeState {
    waker: Waker,
    /// Set while a wake is under way that the receiver has not answered: one wake serves all.
    woken: AtomicBool,
}

impl Wake {
    /// Shares `waker` among queues.
    pub fn new(waker: Waker) -> Wake {
        Wake(Arc::new(WakeState { waker, woken: AtomicBool::new(false) }))
    }

    fn wake(&self) {
        if !self.0.woken.swap(true, Ordering::AcqRel) {
            self.wake_at_once();
        }
    }

    fn wake_at_once(&self) {
        // Writing to an eventfd fails only when its counter is full, and then it is awake.
        let _: io::Result<()> = self.0.waker.wake();
    }

    fn answer(&self) {
        self.0.woken.store(false, Ordering::Release);
    }
}

#[derive(Debug)]
struct Shared {
    wake: Wake,
    /// Asked to end, ahead of whatever waits.
    closed: AtomicBool,
    dropped: AtomicU64,
}

/// The sending end; clones send into the same queue. When it is full the newest message is refused.
#[derive(Debug)]
pub struct Sender<T> {
    channel: crossbeam_channel::Sender<T>,
    shared: Arc<Shared>,
}

/// The receiving end, for the thread whose poll the waker belongs to.
#[derive(Debug)]
pub struct Receiver<T> {
    channel: crossbeam_channel::Receiver<T>,
    shared: Arc<Shared>,
}

/// A queue of at most `capacity` messages, whose receiver `wake` wakes.
pub fn bounded<T>(capacity: usize, wake: &Wake) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = crossbeam_channel::bounded(capacity);
    let shared = Arc::new(Shared {
        wake: wake.clone(),
        closed: AtomicBool::new(false),
        dropped: AtomicU64::new(0),
    });
    (
        Sender { channel: sender, shared: Arc::clone(&shared) },
        Receiver { channel: receiver, shared },
    )
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        Sender { channel: self.channel.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<T> Sender<T> {
    /// Queues a message and wakes the receiver.
    pub fn send(&self, message: T) -> Result<(), NotSent<T>> {
        self.channel.try_send(message).map_err(|error| match error {
            TrySendError::Full(message) => {
                self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                NotSent::Full(message)
            }
            TrySendError::Disconnected(message) => NotSent::Closed(message),
        })?;
        self.shared.wake.wake();
        Ok(())
    }

    /// The same, but waits for room. Only towards a thread that never waits for this one.
    pub fn send_waiting(&self, message: T) -> Result<(), NotSent<T>> {
        self.channel.send(message).map_err(|error| NotSent::Closed(error.0))?;
        self.shared.wake.wake();
        Ok(())
    }

    /// Asks the receiver to end. It sees that at once, however much waits in the queue.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        // Even if a wake is under way: a receiver that cannot take more now (its stream is blocked)
        // has seen that one and not answered it.
        self.shared.wake.wake_at_once();
    }

    /// Messages that wait now. For the only sender, who sees it shrink alone until it sends again.
    pub fn waiting(&self) -> usize {
        self.channel.len()
    }

    /// Messages refused because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl<T> Receiver<T> {
    /// Whether a sender has asked to end.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    /// What waits now, without blocking. To be called when the waker's token is ready, until it
    /// yields no more.
    pub fn drain(&self) -> impl Iterator<Item = T> + '_ {
        // Before looking: whoever sends from here on wakes again.
        self.shared.wake.answer();
        self.channel.try_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::event_loop::EventLoop;
    use mio::Token;
    use std::time::Duration;

    #[test]
    fn every_message_arrives_and_wakes() {
        let mut events = EventLoop::new().unwrap();
        let (sender, receiver) = bounded(4, &Wake::new(events.waker(Token(0)).unwrap()));
        for expected in 0..100 {
            let sender = sender.clone();
            let thread = crate::runtime::thread::spawn("test", 0, 65_536, move || {
                sender.send(expected).unwrap();
            })
            .unwrap();
            events.wait(None).unwrap();
            assert_eq!(events.next_ready().map(|(token, _)| token), Some(Token(0)));
            assert_eq!(receiver.drain().collect::<Vec<_>>(), [expected]);
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_close_wakes_and_is_seen_ahead_of_what_waits() {
        let mut events = EventLoop::new().unwrap();
        let (sender, receiver) = bounded(1, &Wake::new(events.waker(Token(0)).unwrap()));
        sender.send(1).unwrap();
        events.wait(None).unwrap();
        assert!(events.next_ready().is_some());
        assert_eq!(receiver.drain().take(0).count(), 0);
        assert!(!receiver.is_closed());
        sender.close();
        events.wait(None).unwrap();
        assert!(events.next_ready().is_some());
        assert!(receiver.is_closed());
    }

    #[test]
    fn a_close_wakes_a_receiver_that_left_an_earlier_wake_unanswered() {
        let mut events = EventLoop::new().unwrap();
        let (sender, receiver) = bounded(2, &Wake::new(events.waker(Token(0)).unwrap()));
        sender.send(1).unwrap();
        events.wait(None).unwrap();
        assert!(events.next_ready().is_some());
        sender.close();
        events.wait(Some(Duration::ZERO)).unwrap();
        assert!(events.next_ready().is_some());
        assert!(receiver.is_closed());
    }

    #[test]
    fn a_full_queue_refuses_the_newest_and_counts() {
        let mut events = EventLoop::new().unwrap();
        let (sender, receiver) = bounded(2, &Wake::new(events.waker(Token(0)).unwrap()));
        sender.send(1).unwrap();
        sender.send(2).unwrap();
        assert_eq!(sender.waiting(), 2);
        assert_eq!(sender.send(3), Err(NotSent::Full(3)));
        assert_eq!(sender.dropped(), 1);
        assert_eq!(receiver.drain().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(sender.waiting(), 0);
        events.wait(Some(Duration::ZERO)).unwrap();
        drop(receiver);
        assert_eq!(sender.send(4), Err(NotSent::Closed(4)));
    }
}
