//! Threads and time.

pub mod clock;
pub mod event_loop;
pub mod queue;
pub mod signals;
pub mod thread;
