//! System calls: the only layer that makes them.

pub mod listen;
pub mod sys;
