//! Pure codecs, one format per file: slices in, views or lengths out, never a panic.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

pub mod cursor;
pub mod dns;
pub mod icmp_echo;
pub mod icmp_error;
pub mod ip;
pub mod length_prefix;
pub mod mesh;
pub mod offload;
pub mod peer;
pub mod pool;
pub mod proxy_protocol;
pub mod rendezvous;
pub mod stun;
pub mod udpgw;
pub mod vpn;
