//! Word that the machine has slept, or that its clock was set.

use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{self, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// In the year 2100: as good as never, and no clock that is set by mistake gets there.
const NEVER: i64 = 4_102_444_800;

/// A source that is readable when the machine has woken up. All other timers stand still while it
/// sleeps, and go on as if nothing had been. A clock that was set cannot be told from that without
/// asking it all the time, and is as rare.
///
/// A timer on the wall clock that the kernel cancels when that clock jumps (`TFD_TIMER_CANCEL_ON_SET`,
/// timerfd_create(2)), which it also does when it resumes (`timerfd_resume`, fs/timerfd.c).
#[derive(Debug)]
pub struct Wakes {
    timer: TimerFd,
}

impl Wakes {
    /// Listens from now on.
    pub fn open() -> io::Result<Wakes> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let wakes = Wakes { timer: TimerFd::new(timerfd::ClockId::CLOCK_REALTIME, flags)? };
        wakes.listen()?;
        Ok(wakes)
    }

    fn listen(&self) -> Result<(), Errno> {
        let flags =
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        self.timer.set(Expiration::OneShot(TimeSpec::new(NEVER, 0)), flags)
    }

    /// Takes all word that waits, and says whether there was any.
    pub fn take(&mut self) -> bool {
        // ECANCELED, which nix tells as it tells an expiry; that does not come.
        let has_jumped = self.timer.wait().is_ok();
        if has_jumped {
            // Cancelled by another jump in between, it is armed all the same.
            let _ = self.listen();
        }
        has_jumped
    }
}

impl Source for Wakes {
    fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        SourceFd(&self.timer.as_fd().as_raw_fd()).register(registry, token, interests)
    }

    fn reregister(
        &mut self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        SourceFd(&self.timer.as_fd().as_raw_fd()).reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        SourceFd(&self.timer.as_fd().as_raw_fd()).deregister(registry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::time::ClockId;

    /// A jump of some microseconds: the time that it takes to say what time it is.
    fn jump() -> Result<(), Errno> {
        ClockId::CLOCK_REALTIME.set_time(ClockId::CLOCK_REALTIME.now()?)
    }

    #[test]
    fn it_has_word_of_a_jump_and_of_the_next_one() {
        let mut wakes = Wakes::open().unwrap();
        assert!(!wakes.take());
        if jump() == Err(Errno::EPERM) {
            println!("skipped: only root sets the clock");
            return;
        }
        for _ in 0..2 {
            assert!(wakes.take());
            assert!(!wakes.take());
            jump().unwrap();
        }
    }
}
