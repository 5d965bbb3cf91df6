//! A client that talks to the echo server through a udpgw gateway.
//!
//! As a good udpgw client does, it writes all frames of a wake at once and reads all that wait at
//! once.

use super::link::{Link, READ_LEN, Received, Scratch};
use super::window::{Answer, Windows};
use mio::event::Source;
use mio::net::TcpStream;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::ops::Range;
use udpferry::wire::length_prefix::Frames;
use udpferry::wire::udpgw::{BODY_LEN_MAX, BYTE_ORDER, Datagram, Message, parse, write_frame};

pub(crate) struct GatewayClient {
    stream: TcpStream,
    echo: SocketAddr,
    slots: Range<usize>,
    /// Slots per flow. Flow n has conid n and the n-th stretch of `slots`.
    depth: usize,
    /// The start of a frame whose end has not arrived.
    unfinished: Vec<u8>,
    /// Frames that the stream has not taken.
    unsent: Vec<u8>,
}

impl GatewayClient {
    pub(crate) fn connect(
        gateway: SocketAddr,
        echo: SocketAddr,
        slots: Range<usize>,
        depth: usize,
    ) -> io::Result<GatewayClient> {
        let stream = std::net::TcpStream::connect(gateway)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(GatewayClient {
            stream: TcpStream::from_std(stream),
            echo,
            slots,
            depth,
            unfinished: Vec::new(),
            unsent: Vec::new(),
        })
    }

    fn judge(&self, body: &[u8], windows: &mut Windows, now_ns: u64) -> Answer {
        let Ok(Message::Datagram(datagram)) = parse(body) else {
            return Answer::Corrupt;
        };
        let first = self.slots.start + usize::from(datagram.conid) * self.depth;
        if datagram.address != self.echo || !self.slots.contains(&first) {
            return Answer::Corrupt;
        }
        windows.accept(datagram.payload, &(first..first + self.depth), now_ns)
    }

    /// Writes `bytes`, or what of them the stream takes; returns how many.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = 0;
        while written < bytes.len() {
            match self.stream.write(&bytes[written..]) {
                Ok(taken) => written += taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }
}

impl Link for GatewayClient {
    fn source(&mut self) -> &mut dyn Source {
        &mut self.stream
    }

    fn slots(&self) -> Range<usize> {
        self.slots.clone()
    }

    fn receive(&mut self, windows: &mut Windows, scratch: &mut Scratch) -> io::Result<Received> {
        let Scratch { clock, read_buffer, tally, free, .. } = scratch;
        let carried = self.unfinished.len();
        read_buffer[..carried].copy_from_slice(&self.unfinished);
        let read = match self.stream.read(&mut read_buffer[carried..]) {
            Ok(0) => return Err(io::Error::other("the gateway closed the connection")),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::All),
            Err(error) => return Err(error),
        };
        let now_ns = clock.now_ns();
        let filled = carried + read;
        let mut frames = Frames::new(&read_buffer[..filled], BYTE_ORDER, BODY_LEN_MAX);
        for body in &mut frames {
            let Ok(body) = body else {
                return Err(io::Error::other("a frame is too long"));
            };
            let answer = self.judge(body, windows, now_ns);
            tally.count(&answer, free);
        }
        self.unfinished.clear();
        self.unfinished.extend_from_slice(frames.unfinished());
        // Edge-triggered: a read that leaves room has emptied the stream (epoll(7)).
        Ok(if filled < READ_LEN { Received::All } else { Received::MoreWaits })
    }

    fn send(
        &mut self,
        slots: &[usize],
        windows: &mut Windows,
        scratch: &mut Scratch,
    ) -> io::Result<()> {
        let Scratch { clock, bytes, frames, .. } = scratch;
        let now_ns = clock.now_ns();
        frames.clear();
        for slot in slots {
            bytes.clear();
            windows.write_payload(*slot, now_ns, bytes);
            let flow = (slot - self.slots.start) / self.depth;
            let datagram = Datagram {
                conid: u16::try_from(flow).unwrap_or(u16::MAX),
                rebind: false,
                dns: false,
                address: self.echo,
                payload: bytes,
            };
            write_frame(frames, &datagram);
        }
        let written = if self.unsent.is_empty() { self.write(frames)? } else { 0 };
        self.unsent.extend_from_slice(&frames[written..]);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.unsent.is_empty() {
            return Ok(());
        }
        let unsent = std::mem::take(&mut self.unsent);
        let written = self.write(&unsent)?;
        self.unsent = unsent;
        self.unsent.drain(..written);
        Ok(())
    }
}
