//! `recvmmsg`: what waits on a socket, with each datagram's source and, if the socket was asked for
//! it, its destination.

use super::control::{CONTROL_LEN, read_destination, read_int};
use super::name::{Name, read_name};
use super::{Arrays, MESSAGES_MAX, size_of_u32};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

/// Messages per `recvmmsg`, unless a queue is made for more; with UDP_GRO each may hold many
/// datagrams.
pub const RECEIVE_BATCH: usize = 32;
/// Bytes per received message: no UDP datagram or GRO train is longer than 65,535 bytes.
const RECEIVE_SLOT: usize = 65_536;
/// Messages of at most so many bytes are short: lone datagrams.
pub(super) const SHORT_LEN: usize = 2 * 1024;
/// From one message to the next. With a power of two all packets of a batch would share the same few
/// sets of the processor's caches; so a packet of 1,500 bytes has its own.
const RECEIVE_STRIDE: usize = RECEIVE_SLOT + 1664;

/// One received message: a datagram, or with `UDP_GRO` a train of them from one source.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// Who sent it; `None` only for address families that are not IP.
    pub source: Option<SocketAddr>,
    /// Length of each datagram in the train; the last may be shorter.
    segment_len: usize,
    bytes: &'a [u8],
    /// Where they begin in the queue's buffer.
    start: usize,
    header: &'a libc::msghdr,
}

impl<'a> Received<'a> {
    /// The datagrams, in order; one, possibly empty, unless the kernel merged several.
    pub fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let empty = self.bytes.is_empty().then_some(self.bytes);
        empty.into_iter().chain(self.bytes.chunks(self.segment_len.max(1)))
    }

    /// Where those stand in [`ReceiveQueue::bytes`].
    pub fn ranges(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (start, end, each) = (self.start, self.start + self.bytes.len(), self.segment_len);
        let empty = self.bytes.is_empty().then_some(start..end);
        let starts = (start..end).step_by(each.max(1));
        empty.into_iter().chain(starts.map(move |start| start..end.min(start + each)))
    }

    /// The address of this host that it was sent to, which is the one to answer from: for IPv4
    /// broadcasts and multicasts, what ip(7) calls the local address of the packet.
    ///
    /// `None` unless the socket was asked for destinations before the message came, and for IPv6
    /// multicasts, from whose destination nobody may answer.
    pub fn destination(&self) -> Option<IpAddr> {
        let is_ipv4 = self.source.is_some_and(|source| source.is_ipv4());
        read_destination(self.header, is_ipv4)
            .filter(|address| !address.is_unspecified() && !address.is_multicast())
    }
}

/// The arrays and buffers behind `recvmmsg`.
pub struct ReceiveQueue {
    arrays: Arrays,
    /// A slot for each message; untouched pages cost nothing.
    bytes: Vec<u8>,
    /// Messages per call, and per call while they are short.
    limits: (usize, usize),
    /// Of the last or next call.
    limit: usize,
    received: usize,
}

impl Default for ReceiveQueue {
    fn default() -> ReceiveQueue {
        ReceiveQueue::with_room_for(RECEIVE_BATCH)
    }
}

impl ReceiveQueue {
    /// A queue for so many messages in a call; 1 to 1024 (UIO_MAXIOV).
    pub fn with_room_for(messages: usize) -> ReceiveQueue {
        ReceiveQueue::with_room_for_short(messages, messages)
    }

    /// A queue for so many messages in a call, and for `short` once more than those have come in a row
    /// and were short: where the wire brings datagrams one by one, more of them in a call make longer
    /// packets for the device. Of trains, as many would be megabytes, which stay resident.
    pub fn with_room_for_short(messages: usize, short: usize) -> ReceiveQueue {
        let messages = messages.clamp(1, MESSAGES_MAX);
        let short = short.clamp(messages, MESSAGES_MAX);
        let mut queue = ReceiveQueue {
            arrays: Arrays::new(short),
            bytes: vec![0; short * RECEIVE_STRIDE],
            limits: (messages, short),
            limit: messages,
            received: 0,
        };
        queue.prepare(short);
        queue
    }

    /// Whether the last call received as many messages as it could: there may be more.
    pub fn is_full(&self) -> bool {
        self.received == self.limit
    }

    /// Makes the first `messages` headers say where the kernel may put what, which it then
    /// overwrites with how much it put there. Neither the boxes nor the bytes ever move.
    fn prepare(&mut self, messages: usize) {
        let arrays = &mut self.arrays;
        for index in 0..messages {
            let slot = &mut self.bytes[index * RECEIVE_STRIDE..][..RECEIVE_SLOT];
            arrays.payloads[index] =
                libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            let header = &mut arrays.headers[index];
            header.msg_len = 0;
            header.msg_hdr.msg_name = (&raw mut arrays.names[index]).cast();
            header.msg_hdr.msg_namelen = size_of_u32::<Name>();
            header.msg_hdr.msg_iov = &raw mut arrays.payloads[index];
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = (&raw mut arrays.controls[index]).cast();
            header.msg_hdr.msg_controllen = CONTROL_LEN as _;
            header.msg_hdr.msg_flags = 0;
        }
    }

    /// Decides how many messages the next call may bring, by what the last one did, whose headers are
    /// still as it left them.
    fn adapt(&mut self, used: usize) {
        let (limit, short) = self.limits;
        if short == limit || used == 0 {
            return;
        }
        let len_of = |header: &libc::mmsghdr| header.msg_len as usize;
        let headers = &self.arrays.headers[..used];
        let are_short = headers.iter().all(|header| len_of(header) <= SHORT_LEN);
        self.limit = if used >= limit && are_short { short } else { limit };
        // Trains have come where lone datagrams had been.
        let behind = headers.get(limit..).unwrap_or_default();
        if behind.iter().map(len_of).sum::<usize>() > (short - limit) * SHORT_LEN {
            give_back(&mut self.bytes[limit * RECEIVE_STRIDE..]);
        }
    }

    /// Receives what waits, at most as many messages as the queue was made for ([`RECEIVE_BATCH`]), and
    /// returns how many came.
    ///
    /// Fewer than that means that the socket is empty (or holds an error, which the next
    /// call reports). Errors: `WouldBlock` when nothing waits; on a connected socket also the ICMP
    /// errors of earlier datagrams.
    pub fn receive(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        // Only those that were used: for a lone datagram, all 32 would be the most of the work.
        let used = std::mem::take(&mut self.received);
        self.adapt(used);
        self.prepare(used.max(1));
        let arrays = &mut self.arrays;
        // SAFETY: every header points at a name, a control buffer and one iovec of this queue, and
        // the iovec at a slot of `bytes` that overlaps no other; all live as long as `self`.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                arrays.headers.as_mut_ptr(),
                libc::c_uint::try_from(self.limit).unwrap_or(1),
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        self.received = received.min(self.limit);
        Ok(self.received)
    }

    /// The buffer that messages are received in.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The messages of the last [`ReceiveQueue::receive`].
    pub fn messages(&self) -> impl Iterator<Item = Received<'_>> {
        (0..self.received).map(|index| {
            let header = &self.arrays.headers[index];
            let len = (header.msg_len as usize).min(RECEIVE_SLOT);
            let start = index * RECEIVE_STRIDE;
            Received {
                source: read_name(&self.arrays.names[index], header.msg_hdr.msg_namelen),
                segment_len: read_int(&header.msg_hdr, libc::SOL_UDP, libc::UDP_GRO)
                    .and_then(|segment_len| usize::try_from(segment_len).ok())
                    .filter(|segment_len| *segment_len > 0)
                    .unwrap_or(RECEIVE_SLOT),
                bytes: &self.bytes[start..start + len],
                start,
                header: &header.msg_hdr,
            }
        })
    }

    /// How many datagrams the kernel had dropped on this socket, since it was made, for want of
    /// room when the last message of the last call came (`SO_RXQ_OVFL`; wraps at 2^32).
    pub fn kernel_drops(&self) -> Option<u32> {
        let last = self.received.checked_sub(1)?;
        let drops =
            read_int(&self.arrays.headers[last].msg_hdr, libc::SOL_SOCKET, libc::SO_RXQ_OVFL)?;
        Some(u32::from_ne_bytes(drops.to_ne_bytes()))
    }
}

/// Gives the memory behind `bytes` back to the kernel, but for what shares a page with others. It reads
/// as zeros, and takes memory again when it is written.
fn give_back(bytes: &mut [u8]) {
    // SAFETY: a question without arguments in memory.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let Some(page) = usize::try_from(page).ok().filter(|page| page.is_power_of_two()) else {
        return;
    };
    let before = bytes.as_ptr().align_offset(page);
    let Some(pages) = bytes.get_mut(before..) else { return };
    let len = pages.len() / page * page;
    // SAFETY: the range lies within `bytes`, which nobody else has, and any bytes are valid there.
    unsafe { libc::madvise(pages.as_mut_ptr().cast(), len, libc::MADV_DONTNEED) };
}
