//! The UDP sockets that carry the tunnels: one of each family. The data plane receives from them;
//! the main thread sends signs of life.

use super::Config;
use super::running::socket_for;
use crate::error::Error;
use crate::net::sys::mmsg::send::SendQueue;
use crate::net::udp::UdpSocket;
use crate::roles::data_plane::Plane;
use crate::roles::data_plane::orders::Order;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// By their numbers in the data plane: IPv4, IPv6.
pub(super) struct Sockets {
    sockets: [Option<Arc<UdpSocket>>; 2],
    queue: SendQueue,
}

impl Sockets {
    /// Opens them. Without addresses in the configuration, a family that this host does not have is
    /// left out.
    pub(super) fn open(config: &Config) -> Result<Sockets, Error> {
        let mut sockets = [None, None];
        let given = !config.data_addresses.is_empty();
        let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let addresses = if given { &config.data_addresses[..] } else { &any };
        for address in addresses {
            let local = SocketAddr::new(*address, config.data_port);
            match UdpSocket::listen(local, config.udp_buffers) {
                Ok(socket) => {
                    if !config.offload {
                        socket.stop_segmentation();
                        socket.stop_merging();
                    }
                    log::info!("tunnels over udp {local}");
                    sockets[usize::from(local.is_ipv6())] = Some(Arc::new(socket));
                }
                Err(error) if !given && local.is_ipv6() && is_missing(&error) => {
                    log::info!("no tunnels over udp {local}: {error}");
                }
                Err(error) => {
                    return Err(error)
                        .map_err(Error::while_doing(|| format!("cannot bind udp {local}")));
                }
            }
        }
        Ok(Sockets { sockets, queue: SendQueue::default() })
    }

    /// Hands them to the data plane.
    pub(super) fn hand_over(&self, plane: &Plane) {
        for socket in self.sockets.iter().flatten() {
            if let Ok(local) = socket.local_addr() {
                plane.order(&Order::AddSocket(socket_for(local), Arc::clone(socket)));
            }
        }
    }

    /// Whether there is one for that family.
    pub(super) fn has(&self, endpoint: SocketAddr) -> bool {
        self.sockets[usize::from(endpoint.is_ipv6())].is_some()
    }

    /// Sends a datagram, from that address of ours if it is known. One that is lost is like one that
    /// the network loses.
    pub(super) fn send(&mut self, to: SocketAddr, from: Option<IpAddr>, bytes: &[u8]) {
        if let Some(socket) = &self.sockets[usize::from(to.is_ipv6())] {
            let mut batch = socket.batch(&mut self.queue);
            batch.push_from(from, Some(to), bytes);
            let _ = batch.finish();
        }
    }
}

/// No such address, or no such family at all: EAFNOSUPPORT is not in std's kinds.
pub(super) fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32)
}
