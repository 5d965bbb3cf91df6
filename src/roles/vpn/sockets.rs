//! The outer UDP sockets, which the data plane's threads and the main thread share.

use super::SharedConfig;
use crate::error::Error;
use crate::net::listen;
use crate::net::udp::UdpSocket;
use crate::roles::data_plane::orders::Order;
use crate::roles::data_plane::table::SocketId;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// All sockets, by number.
pub(super) struct Sockets(Vec<Arc<UdpSocket>>);

impl Sockets {
    /// Those of the service manager, or else one on each address. Addresses that stand there by
    /// default and that this host does not have, such as IPv6 ones where it is switched off, are left
    /// out.
    pub(super) fn listen(
        shared: &SharedConfig,
        addresses: &[SocketAddr],
        all_needed: bool,
    ) -> Result<Sockets, Error> {
        let inherited = listen::inherited_udp_sockets()
            .map_err(Error::while_doing(|| "cannot use a passed socket"))?;
        let mut sockets = Sockets(Vec::new());
        for socket in inherited {
            let socket = UdpSocket::adopt(socket, shared.udp_buffers)
                .map_err(Error::while_doing(|| "cannot use a passed socket"))?;
            sockets.add(shared, socket);
        }
        if sockets.0.is_empty() {
            for address in addresses {
                match UdpSocket::listen(*address, shared.udp_buffers) {
                    Ok(socket) => sockets.add(shared, socket),
                    Err(error) if !all_needed && is_missing(&error) => {
                        log::info!("not listening on udp {address}: {error}");
                    }
                    Err(error) => return Err(cannot(*address, error)),
                }
            }
        }
        for address in sockets.local_addresses() {
            log::info!("listening on udp {address}");
        }
        Ok(sockets)
    }

    /// One of each family, on any port: a client may find its server over either. One of them will
    /// do. They are not asked to which address of this host the server's datagrams came: it changes
    /// nothing, and would cost something for each.
    pub(super) fn any(shared: &SharedConfig) -> Result<Sockets, Error> {
        let mut sockets = Sockets(Vec::new());
        let mut failure = None;
        for any in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
            let address = SocketAddr::new(any, 0);
            match UdpSocket::bind(address, false, shared.udp_buffers) {
                Ok(socket) => sockets.add(shared, socket),
                Err(error) => failure = Some(cannot(address, error)),
            }
        }
        match failure {
            Some(failure) if sockets.0.is_empty() => Err(failure),
            _ => Ok(sockets),
        }
    }

    fn add(&mut self, shared: &SharedConfig, socket: UdpSocket) {
        if !shared.offload {
            socket.stop_segmentation();
            socket.stop_merging();
        }
        self.0.push(Arc::new(socket));
    }

    /// What the data plane is told.
    pub(super) fn orders(&self) -> impl Iterator<Item = Order> + '_ {
        let numbered = (0..).map(SocketId).zip(&self.0);
        numbered.map(|(id, socket)| Order::AddSocket(id, Arc::clone(socket)))
    }

    /// The socket of that number.
    pub(super) fn get(&self, number: usize) -> Option<&UdpSocket> {
        self.0.get(number).map(Arc::as_ref)
    }

    /// The number of the socket for remote endpoints of that family.
    pub(super) fn number_for(&self, remote: SocketAddr) -> Option<usize> {
        let is_of_family = |address: SocketAddr| address.is_ipv4() == remote.is_ipv4();
        self.0.iter().position(|socket| socket.local_addr().is_ok_and(is_of_family))
    }

    pub(super) fn local_addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.0.iter().filter_map(|socket| socket.local_addr().ok())
    }

    /// Whether any of them sends runs of datagrams as one.
    pub(super) fn segments(&self) -> bool {
        self.0.iter().any(|socket| socket.segments())
    }
}

fn cannot(address: SocketAddr, error: io::Error) -> Error {
    Error::while_doing(|| format!("cannot bind udp {address}"))(error)
}

/// No such address, or no such family at all: EAFNOSUPPORT is not in std's kinds.
fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32)
}
