//! Threads and time.

pub mod daemon;
pub mod limits;
pub mod metrics;
pub mod notify;
pub mod privileges;
