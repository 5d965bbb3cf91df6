//! System calls: the only layer that makes them.

pub mod certificate;
pub mod listen;
pub mod netlink;
pub mod random;
pub mod resolv_conf;
pub mod resolver;
pub mod stream;
pub mod sys;
pub mod tcp;
pub mod tls;
pub mod tls_failure;
pub mod tun;
pub mod udp;
pub mod unix;
