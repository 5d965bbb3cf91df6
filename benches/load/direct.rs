//! A client that speaks plain UDP: to the echo server itself, or to the near end of a tunnel that
//! carries datagrams there.
//!
//! One connected UDP socket per client; its flows are told apart by their slots. A socket per flow
//! would cost more calls for the same datagrams: this is the cheapest way there, and so the harder
//! figure to come near.

use super::link::{Link, Received, Scratch};
use super::window::Windows;
use mio::event::Source;
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use udpferry::net::sys::mmsg::receive::RECEIVE_BATCH;

/// More than any workload has in flight per client.
const SOCKET_BUFFER_LEN: usize = 1 << 20;

pub(crate) struct DirectClient {
    socket: mio::net::UdpSocket,
    slots: Range<usize>,
}

impl DirectClient {
    pub(crate) fn connect(address: SocketAddr, slots: Range<usize>) -> io::Result<DirectClient> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), None)?;
        socket.set_recv_buffer_size(SOCKET_BUFFER_LEN)?;
        socket.set_send_buffer_size(SOCKET_BUFFER_LEN)?;
        socket.connect(&address.into())?;
        Ok(DirectClient { socket: mio::net::UdpSocket::from_std(socket.into()), slots })
    }
}

impl Link for DirectClient {
    fn source(&mut self) -> &mut dyn Source {
        &mut self.socket
    }

    fn slots(&self) -> Range<usize> {
        self.slots.clone()
    }

    fn receive(&mut self, windows: &mut Windows, scratch: &mut Scratch) -> io::Result<Received> {
        let messages = match scratch.receive_queue.receive(&self.socket) {
            Ok(messages) => messages,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::All),
            Err(error) => return Err(error),
        };
        let now_ns = scratch.clock.now_ns();
        for message in scratch.receive_queue.messages() {
            for datagram in message.datagrams() {
                let answer = windows.accept(datagram, &self.slots, now_ns);
                scratch.tally.count(&answer, &mut scratch.free);
            }
        }
        Ok(if messages < RECEIVE_BATCH { Received::All } else { Received::MoreWaits })
    }

    fn send(
        &mut self,
        slots: &[usize],
        windows: &mut Windows,
        scratch: &mut Scratch,
    ) -> io::Result<()> {
        let now_ns = scratch.clock.now_ns();
        scratch.bytes.clear();
        for slot in slots {
            windows.write_payload(*slot, now_ns, &mut scratch.bytes);
        }
        let mut batch = scratch.send_queue.batch(&self.socket, false);
        for payload in scratch.bytes.chunks_exact(windows.payload_len()) {
            batch.push(None, payload);
        }
        // What the kernel refuses is never answered, and so counts as lost in time.
        match batch.finish().last_error {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
