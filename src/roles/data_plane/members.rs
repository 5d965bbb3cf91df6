//! What a thread works with: the table, and all sockets and devices by their numbers.

use super::orders::Order;
use super::table::{DeviceId, SocketId, Table};
use crate::net::tun::TunDevice;
use crate::net::udp::UdpSocket;
use std::sync::Arc;

/// A socket, and what is asked of it for every packet.
pub(super) struct Socket {
    pub(super) udp: Arc<UdpSocket>,
    pub(super) port: u16,
}

/// The table, the sockets and the devices as a thread knows them.
#[derive(Default)]
pub(super) struct Members {
    pub(super) table: Arc<Table>,
    sockets: Vec<Option<Socket>>,
    devices: Vec<Option<Arc<TunDevice>>>,
}

impl Members {
    /// Takes an order in.
    pub(super) fn obey(&mut self, order: Order) {
        match order {
            Order::Table(table) => self.table = table,
            Order::AddSocket(id, udp) => {
                let port = udp.local_addr().map_or(0, |address| address.port());
                *place(&mut self.sockets, id.0) = Some(Socket { udp, port });
            }
            Order::RemoveSocket(id) => *place(&mut self.sockets, id.0) = None,
            Order::AddDevice(id, device) => *place(&mut self.devices, id.0) = Some(device),
            Order::RemoveDevice(id) => *place(&mut self.devices, id.0) = None,
        }
    }

    pub(super) fn socket(&self, id: SocketId) -> Option<&Socket> {
        self.sockets.get(id.0 as usize)?.as_ref()
    }

    /// Whether a socket of ours has that port.
    pub(super) fn has_port(&self, port: u16) -> bool {
        self.sockets.iter().flatten().any(|socket| socket.port == port)
    }

    pub(super) fn device(&self, id: DeviceId) -> Option<&Arc<TunDevice>> {
        self.devices.get(id.0 as usize)?.as_ref()
    }
}

fn place<T>(all: &mut Vec<Option<T>>, number: u32) -> &mut Option<T> {
    let index = number as usize;
    if all.len() <= index {
        all.resize_with(index + 1, || None);
    }
    &mut all[index]
}
