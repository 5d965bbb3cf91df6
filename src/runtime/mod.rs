//! Threads and time.

pub mod clock;
pub mod daemon;
pub mod errands;
pub mod event_loop;
pub mod limits;
pub mod metrics;
pub mod notify;
pub mod privileges;
pub mod queue;
pub mod scrape;
pub mod signals;
pub mod stock;
pub mod thread;
pub mod wakes;
