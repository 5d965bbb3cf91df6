//! Flags, help and logging. One declarative table per role is the source of all of them.

pub mod flags;
pub mod table;
pub mod values;
