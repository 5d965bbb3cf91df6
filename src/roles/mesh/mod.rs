//! Many tunnels over one UDP port, changed while running.

pub mod message;
