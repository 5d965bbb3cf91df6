//! How a client of a server with several sockets and addresses is reached.

use std::net::{IpAddr, SocketAddr};

/// A client's endpoint, and through what it talks to us: a NAT may drop whatever comes from
/// elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contact {
    /// Where its datagrams come from.
    pub endpoint: SocketAddr,
    /// The number of our socket that they come to.
    pub socket: usize,
    /// Our address that they come to, if the socket has several.
    pub local: Option<IpAddr>,
}
