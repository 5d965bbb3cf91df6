//! The roles `vpn server` and `vpn client`, run as their users run them, in namespaces of the tests'
//! own.
#![allow(clippy::disallowed_methods)] // Tests measure time and start threads of their own.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

#[path = "../support/mod.rs"]
mod support;

mod carrying;
mod handmade;
mod hosts;
mod limits;
mod operation;
mod strangers;
