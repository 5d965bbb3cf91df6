//! System calls: the only layer that makes them.

pub mod listen;
pub mod sys;
pub mod tcp;
pub mod tls;
pub mod udp;
pub mod resolv_conf;
