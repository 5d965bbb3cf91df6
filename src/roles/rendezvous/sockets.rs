//! The role's UDP sockets, and which of them stand at the corners of address and port (RFC 5780).

use super::Config;
use crate::error::Error;
use crate::net::udp::UdpSocket;
use crate::wire::stun::attribute::ChangeRequest;
use std::io;
use std::net::{IpAddr, SocketAddr};

/// All sockets, by number.
pub(super) struct Sockets {
    sockets: Vec<UdpSocket>,
    corners: Vec<Option<Corner>>,
}

/// A socket's place among four: two addresses by two ports.
#[derive(Debug, Clone, Copy)]
struct Corner {
    /// The number of the first of the four sockets of its family.
    first: usize,
    /// 0 or 1.
    ip: usize,
    /// 0 or 1.
    port: usize,
}

impl Sockets {
    /// Opens them. Addresses that stand there by default and that this host does not have, such as
    /// IPv6 ones where it is switched off, are left out.
    pub(super) fn open(config: &Config) -> Result<Sockets, Error> {
        let mut opened = Sockets { sockets: Vec::new(), corners: Vec::new() };
        // Two ports of one address have one second port between them.
        let mut second_ports = Vec::new();
        for address in &config.listen {
            let alternate = config.alternates.iter().find(|(primary, _)| primary == address);
            match (alternate, config.stun_port) {
                (Some((_, other)), Some(stun_port)) => {
                    opened.open_corners(config, *address, *other, stun_port)?;
                    second_ports.push(SocketAddr::new(address.ip(), stun_port));
                }
                (_, stun_port) => {
                    let second = stun_port.map(|port| SocketAddr::new(address.ip(), port));
                    let second = second.filter(|second| !second_ports.contains(second));
                    second_ports.extend(second);
                    for address in [Some(*address), second].into_iter().flatten() {
                        match UdpSocket::listen(address, config.udp_buffers) {
                            Ok(socket) => opened.push(socket, None),
                            Err(error) if !config.listen_given && is_missing(&error) => {
                                log::info!("not listening on udp {address}: {error}");
                            }
                            Err(error) => return Err(cannot(address, error)),
                        }
                    }
                }
            }
        }
        for socket in &opened.sockets {
            if let Ok(address) = socket.local_addr() {
                log::info!("listening on udp {address}");
            }
        }
        Ok(opened)
    }

    fn open_corners(
        &mut self,
        config: &Config,
        primary: SocketAddr,
        other: IpAddr,
        stun_port: u16,
    ) -> Result<(), Error> {
        let first = self.sockets.len();
        for (ip, address) in [primary.ip(), other].into_iter().enumerate() {
            for (port, number) in [primary.port(), stun_port].into_iter().enumerate() {
                let address = SocketAddr::new(address, number);
                let socket = UdpSocket::listen(address, config.udp_buffers)
                    .map_err(|error| cannot(address, error))?;
                self.push(socket, Some(Corner { first, ip, port }));
            }
        }
        Ok(())
    }

    fn push(&mut self, socket: UdpSocket, corner: Option<Corner>) {
        self.sockets.push(socket);
        self.corners.push(corner);
    }

    /// Each with its number.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &UdpSocket)> {
        self.sockets.iter().enumerate()
    }

    /// For registration with a poll.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut UdpSocket)> {
        self.sockets.iter_mut().enumerate()
    }

    /// The socket of that number.
    pub(super) fn get(&self, number: usize) -> Option<&UdpSocket> {
        self.sockets.get(number)
    }

    /// The socket at another corner, as `change` wants it, and its address; None if the socket is
    /// not one of four.
    pub(super) fn change(
        &self,
        number: usize,
        change: ChangeRequest,
    ) -> Option<(usize, SocketAddr)> {
        let Corner { first, ip, port } = *self.corners.get(number)?.as_ref()?;
        let chosen = first + 2 * (ip ^ usize::from(change.ip)) + (port ^ usize::from(change.port));
        let address = self.sockets.get(chosen)?.local_addr().ok()?;
        Some((chosen, address))
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
