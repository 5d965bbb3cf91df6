//! Signals as events: a pipe in the poll, so that a stop is a wake and never a poll of a flag.

use mio::event::Source;
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGWINCH};
use std::io::{self, Read};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The exit code of a process that a second SIGTERM or SIGINT ended at once.
const IMPATIENT_EXIT: i32 = 1;

/// The signals that are requests. Only the main thread takes them, one after the other: of two
/// handlers on two threads neither would see that it is the second.
#[must_use]
pub fn requests() -> SigSet {
    use Signal::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
    [SIGTERM, SIGINT, SIGHUP, SIGUSR1].into_iter().collect()
}

/// From now on a byte is written to `wake` whenever the terminal's window changes its size.
pub fn tell_resizes(wake: std::os::unix::net::UnixStream) -> io::Result<()> {
    signal_hook::low_level::pipe::register(SIGWINCH, wake).map(drop)
}

/// Starts a program that takes these signals as any other does: it inherits what its parent's thread blocks.
pub fn start(command: &mut Command) -> io::Result<Child> {
    let mask = requests().thread_swap_mask(SigmaskHow::SIG_UNBLOCK)?;
    let child = command.spawn();
    mask.thread_set_mask()?;
    child
}

/// Makes a blocking call again that was interrupted. One with a time limit is, even though no handler runs, when
/// the process was stopped (Ctrl-Z, a debugger) and goes on (signal(7), on `SO_RCVTIMEO`).
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Kills a child that has not been waited for yet.
pub fn kill(child: u32) {
    if let Ok(id) = i32::try_from(child) {
        // Gone already, at worst.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), Signal::SIGKILL);
    }
}

/// What the operator asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// SIGTERM or SIGINT: end. A second one ends the process at once, without our help.
    Stop,
    /// SIGHUP: reopen log files, reload certificates.
    Reload,
    /// SIGUSR1: log the counters.
    Report,
}

/// The process's signals, as a source for one poll.
#[derive(Debug)]
pub struct Signals {
    pipe: UnixStream,
    raised: [(Request, Arc<AtomicBool>); 3],
}

impl Signals {
    /// Takes over SIGTERM, SIGINT, SIGHUP and SIGUSR1 of the process. Once per process.
    pub fn take() -> io::Result<Signals> {
        let (pipe, write_end) = std::os::unix::net::UnixStream::pair()?;
        pipe.set_nonblocking(true)?;
        let raised = [Request::Stop, Request::Reload, Request::Report]
            .map(|request| (request, Arc::new(AtomicBool::new(false))));
        for (request, flag) in &raised {
            let signals: &[i32] = match request {
                Request::Stop => &[SIGTERM, SIGINT],
                Request::Reload => &[SIGHUP],
                Request::Report => &[SIGUSR1],
            };
            if *request == Request::Stop {
                // Armed by the first stop, below; registered before the flag so that the first
                // signal does not meet its own flag.
                for signal in signals {
                    signal_hook::flag::register_conditional_shutdown(
                        *signal,
                        IMPATIENT_EXIT,
                        Arc::clone(flag),
                    )?;
                }
            }
            for signal in signals {
                signal_hook::flag::register(*signal, Arc::clone(flag))?;
                signal_hook::low_level::pipe::register(*signal, write_end.try_clone()?)?;
            }
        }
        Ok(Signals { pipe: UnixStream::from_std(pipe), raised })
    }

    /// What has been asked for since the last question. Stop is told once and stays armed: the next
    /// SIGTERM or SIGINT ends the process.
    pub fn requests(&mut self) -> impl Iterator<Item = Request> + '_ {
        let mut bytes = [0; 64];
        while self.pipe.read(&mut bytes).is_ok_and(|len| len > 0) {}
        self.raised.iter().filter_map(|(request, flag)| {
            let raised = match request {
                Request::Stop => flag.load(Ordering::SeqCst),
                Request::Reload | Request::Report => flag.swap(false, Ordering::SeqCst),
            };
            raised.then_some(*request)
        })
    }
}

impl Source for Signals {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        self.pipe.register(registry, token, interest)
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        self.pipe.reregister(registry, token, interest)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.pipe.deregister(registry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::event_loop::EventLoop;
    use signal_hook::low_level::raise;

    #[test]
    fn an_interrupted_call_is_made_again_and_no_other() {
        let mut results =
            [Err(io::ErrorKind::Interrupted), Err(io::ErrorKind::Interrupted), Ok(7)].into_iter();
        assert_eq!(uninterrupted(|| Ok(results.next().unwrap()?)).unwrap(), 7);
        let error = uninterrupted::<()>(|| Err(io::ErrorKind::WouldBlock.into())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    // One test: the signals are the process's.
    #[test]
    fn signals_wake_the_poll_and_say_what_was_asked() {
        let mut signals = Signals::take().unwrap();
        let mut events = EventLoop::new().unwrap();
        events.register(&mut signals, Token(0), Interest::READABLE).unwrap();
        for (signal, request) in [(SIGHUP, Request::Reload), (SIGUSR1, Request::Report)] {
            raise(signal).unwrap();
            events.wait(None).unwrap();
            assert!(events.next_ready().is_some());
            assert_eq!(signals.requests().collect::<Vec<_>>(), [request]);
            assert_eq!(signals.requests().count(), 0);
        }
        raise(SIGTERM).unwrap();
        events.wait(None).unwrap();
        assert!(events.next_ready().is_some());
        assert_eq!(signals.requests().collect::<Vec<_>>(), [Request::Stop]);
    }
}
