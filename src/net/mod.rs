//! System calls: the only layer that makes them.

pub mod resolv_conf;
