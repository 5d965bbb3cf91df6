//! Flags, help and logging. One declarative table per role is the source of all of them.

pub mod common;
pub mod flags;
pub mod help;
pub mod logging;
pub mod table;
pub mod values;
