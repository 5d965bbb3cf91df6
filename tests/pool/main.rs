//! The roles `pool server` and `pool client`, run as their users run them.
#![allow(clippy::disallowed_methods)] // Tests measure time and start threads of their own.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

#[path = "../support/mod.rs"]
mod support;

mod carrying;
mod check;
mod interop;
mod limits;
mod operation;
mod outages;
mod pair;
mod proxy;
mod tls;
