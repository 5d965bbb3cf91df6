//! The role `rendezvous`, run as its users run it.
#![allow(clippy::disallowed_methods)] // Tests measure time and start threads of their own.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

#[path = "../support/mod.rs"]
mod support;

mod check;
mod floods;
mod interop;
mod operation;
mod plain;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redis")]
mod registry;
mod relay;
mod rooms;
mod server;
mod stun;
