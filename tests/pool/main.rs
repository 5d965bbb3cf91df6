//! The role `pool`, both sides, run as its users run them.
#![allow(clippy::disallowed_methods)] // Tests measure time and start threads of their own.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

#[path = "../support/mod.rs"]
mod support;

mod check;
