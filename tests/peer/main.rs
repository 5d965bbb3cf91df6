//! The role `peer`, run as its users run it, with a server on loopback. What NATs do is shown by
//! tests/netns/peer.sh.
#![allow(clippy::disallowed_methods)] // Tests measure time and start threads of their own.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code)] // What tests/rendezvous needs beside the server itself.
#[path = "../rendezvous/server.rs"]
mod server;

mod chat;
mod forwarding;
mod handmade;
mod impostors;
mod legacy;
mod member;
mod operation;
mod outages;
mod robustness;
mod rooms;
