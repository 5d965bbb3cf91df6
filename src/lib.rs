//! udpferry carries UDP where UDP cannot go. Six layers, in reading order:
//!
//! - [`wire`]: bytes. Pure codecs, one format per file, no clock, no socket, never a panic.
//! - [`state`]: decisions. Tables and limits that take `now` as an argument and hold no payload.
//! - [`net`]: system calls. Batched UDP, TCP, TLS; the only unsafe code is in `net::sys`.
//! - [`runtime`]: threads and time. Event loop, queues, signals, metrics, privileges.
//! - [`cli`]: flags. Option tables, help, man pages, logging.
//! - [`roles`]: programs. Each role's `mod.rs` draws its threads and queues.
//!
//! Every role is the same sentence: *net* fills a buffer, *wire* reads it, *state* decides,
//! *wire* writes, *net* sends; *runtime* says when.

pub mod error;

pub mod wire;

pub mod state;

pub mod net;

pub mod runtime;

pub mod cli;

pub mod roles;
