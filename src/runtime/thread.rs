//! Threads: named, joined, their panics reported, and signals left to the main thread.

use super::signals;
use nix::sys::signal::SigmaskHow;
use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, JoinHandle};

/// The kernel shows 15 bytes of a thread's name (prctl(2), PR_SET_NAME).
const NAME_LEN_MAX: usize = 15;

/// What a thread panicked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked {
    /// The panic's message, if it had one.
    pub message: String,
}

/// A running thread. It must be joined.
#[derive(Debug)]
#[must_use]
pub struct Thread<T> {
    handle: JoinHandle<Result<T, Panicked>>,
}

impl<T> Thread<T> {
    /// Waits for its end.
    pub fn join(self) -> Result<T, Panicked> {
        self.handle.join().unwrap_or_else(|payload| Err(panicked(payload.as_ref())))
    }
}

/// Starts a thread named `name` and `number`, cut to 15 bytes. `stack_len` is in bytes; only pages
/// that are touched cost memory. A panic in `body` is logged, and told by [`Thread::join`].
///
/// Signals that are requests are left to the main thread ([`signals::requests`]).
#[allow(clippy::disallowed_methods)] // This is the place.
pub fn spawn<T: Send + 'static>(
    name: &str,
    number: u64,
    stack_len: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Thread<T>> {
    let mut full_name = format!("{name}{number}");
    full_name.truncate(NAME_LEN_MAX);
    // Blocked before the thread exists: it inherits the mask.
    let mask = signals::requests().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let spawned = Builder::new().name(full_name.clone()).stack_size(stack_len).spawn(move || {
        catch_unwind(AssertUnwindSafe(body)).map_err(|payload| {
            let reason = panicked(payload.as_ref());
            log::error!("thread {full_name} panicked: {}", reason.message);
            reason
        })
    });
    mask.thread_set_mask()?;
    spawned.map(|handle| Thread { handle })
}

fn panicked(payload: &(dyn Any + Send)) -> Panicked {
    let message = payload
        .downcast_ref::<&str>()
        .map(|message| (*message).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    Panicked { message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{SigSet, Signal};

    #[test]
    fn a_thread_has_a_name_and_a_result() {
        let thread = spawn("udpgw:client", 1_234_567, 65_536, || {
            std::thread::current().name().map(str::to_owned)
        })
        .unwrap();
        assert_eq!(thread.join().unwrap().as_deref(), Some("udpgw:client123"));
    }

    #[test]
    fn signals_are_left_to_the_thread_that_had_them() {
        let before = SigSet::thread_get_mask().unwrap();
        let mask = spawn("test", 0, 65_536, || SigSet::thread_get_mask().unwrap()).unwrap();
        let mask = mask.join().unwrap();
        assert!(mask.contains(Signal::SIGTERM) && mask.contains(Signal::SIGINT));
        assert!(!mask.contains(Signal::SIGSEGV));
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }

    #[test]
    fn a_panic_is_told_by_join() {
        let thread = spawn("test", 0, 65_536, || assert_eq!(1, 2, "no luck")).unwrap();
        let message = thread.join().unwrap_err().message;
        assert!(message.contains("no luck"), "{message}");
    }
}
