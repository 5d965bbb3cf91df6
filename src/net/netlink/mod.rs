//! Links, addresses, routes and rules, asked of the kernel in its own words (rtnetlink(7)).
//!
//! The kernel works a request off before the call that sends it returns, so that waiting for its answer
//! waits for nothing: there is no thread and no event loop here. [`changes::Changes`] tells when others
//! have changed something.

pub mod address;
pub mod changes;
pub mod link;
pub mod route;
pub mod rule;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use std::fmt;
use std::io;
use std::net::IpAddr;

/// Times that a list is asked for which changes all the time.
const LISTS_MAX: usize = 4;

/// An address and how many of its bits name the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    /// An address in it; of a network itself, the bits behind `length` are 0.
    pub address: IpAddr,
    /// 0 to 32 for IPv4, 0 to 128 for IPv6.
    pub length: u8,
}

impl Network {
    /// The network that holds this address alone.
    pub fn host(address: IpAddr) -> Network {
        Network { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.address, self.length)
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// A conversation with the kernel.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens one.
    pub fn open() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Has something changed, with `flags` of NLM_F_CREATE and its kind, and waits for the
    /// acknowledgement. Errors are the kernel's: `AlreadyExists`, `NotFound`, `PermissionDenied` ...
    fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.ask(message, flags | NLM_F_ACK).map(drop)
    }

    /// Asks for all things of a kind; again when they have changed meanwhile, and what came may not
    /// be all.
    fn list(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 1..LISTS_MAX {
            if let (answers, true) = self.ask(message.clone(), NLM_F_DUMP)? {
                return Ok(answers);
            }
        }
        self.ask(message, NLM_F_DUMP).map(|(answers, _)| answers)
    }

    /// Asks for one thing; what comes is one answer or an error.
    fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        let (answers, _) = self.ask(message, 0)?;
        answers.into_iter().next().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Returns the answers, and whether they are of one time.
    fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let ends_alone = flags & (NLM_F_ACK | NLM_F_DUMP) == 0;
        let mut answers = Vec::new();
        let mut is_whole = true;
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                let len = padded(message.header.length).max(1);
                rest = rest.get(len..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                is_whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok((answers, is_whole)),
                            Some(code) => {
                                Err(io::Error::from_raw_os_error(code.get().saturating_neg()))
                            }
                        };
                    }
                    // The kernel has no such family, and so nothing of it.
                    NetlinkPayload::Done(done)
                        if done.code < 0 && done.code != -libc::EAFNOSUPPORT =>
                    {
                        return Err(io::Error::from_raw_os_error(done.code.saturating_neg()));
                    }
                    NetlinkPayload::Done(_) => return Ok((answers, is_whole)),
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    _ => {}
                }
                if ends_alone {
                    return Ok((answers, is_whole));
                }
            }
        }
    }
}

/// Messages begin at multiples of four bytes (NLMSG_ALIGN).
fn padded(len: u32) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX).saturating_add(3) & !3
}
