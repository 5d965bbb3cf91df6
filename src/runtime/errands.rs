//! Work that may hang in the C library, where nothing can wake it: a thread of its own does it, so
//! that nobody who must stop at once waits for it.

use super::thread;
use crossbeam_channel::{Receiver, Sender};
use std::io;

type Errand = Box<dyn FnOnce() + Send>;

/// A thread that does one errand after the other. Clones send to the same thread.
#[derive(Clone)]
pub struct Errands {
    queue: Sender<Errand>,
}

impl Errands {
    /// Starts the thread. It is never joined: it ends when the last `Errands` is gone, or with the
    /// process when it hangs then. At most `waiting_max` errands wait.
    pub fn start(name: &str, waiting_max: usize, stack_len: usize) -> io::Result<Errands> {
        let (queue, errands): (_, Receiver<Errand>) = crossbeam_channel::bounded(waiting_max);
        let thread = thread::spawn(name, 0, stack_len, move || {
            for errand in errands {
                errand();
            }
        })?;
        drop(thread);
        Ok(Errands { queue })
    }

    /// Has an errand done; false when too many wait.
    pub fn send(&self, errand: impl FnOnce() + Send + 'static) -> bool {
        self.queue.try_send(Box::new(errand)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errands_are_done_in_order_and_too_many_are_refused() {
        let errands = Errands::start("test", 1, 65_536).unwrap();
        let (go, gate) = crossbeam_channel::bounded::<()>(0);
        let (tell, told) = crossbeam_channel::bounded(2);
        let second = tell.clone();
        assert!(errands.send(move || {
            gate.recv().unwrap();
            tell.send(1).unwrap();
        }));
        // The first may still wait in the queue: the second is refused until it is under way.
        let second = move || second.send(2).unwrap();
        while !errands.send(second.clone()) {
            std::thread::yield_now();
        }
        assert!(!errands.send(|| ()));
        go.send(()).unwrap();
        assert_eq!([told.recv().unwrap(), told.recv().unwrap()], [1, 2]);
    }
}
