//! Many datagrams per system call: `sendmmsg` with `UDP_SEGMENT`, `recvmmsg` with `UDP_GRO`.
//!
//! [`SendQueue`] and [`ReceiveQueue`] hold the kernel's argument arrays and are reused from call to
//! call; neither allocates once made. Sources: sendmmsg(2), recvmmsg(2), udp(7),
//! linux/include/uapi/linux/udp.h.

use std::io;
use std::marker::PhantomData;
use std::mem::{self, MaybeUninit};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Datagrams per `sendmmsg`. Past 64 the call's own cost (about 180 ns) is lost in the datagrams'.
pub const SEND_BATCH: usize = 64;
/// Messages per `recvmmsg`; with UDP_GRO each may hold many datagrams.
pub const RECEIVE_BATCH: usize = 32;
/// Bytes per received message: no UDP datagram or GRO train is longer than 65,535 bytes.
const RECEIVE_SLOT: usize = 65_536;
/// UDP_MAX_SEGMENTS of linux/udp.h before Linux 6.9, which doubled it.
const SEGMENTS_MAX: usize = 64;
/// A train must fit one IPv4 datagram: 65,535 less the IP and UDP headers.
const TRAIN_LEN_MAX: usize = 65_507;
/// Segmentation refuses to fragment, so datagrams larger than what fits a 1500-byte IPv6 packet go
/// singly and are fragmented as any other.
const SEGMENT_LEN_MAX: usize = 1452;
const CONTROL_LEN: usize = 64;

/// A control buffer, aligned as `cmsghdr` demands (cmsg(3)).
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

/// Room for one socket address of either family.
#[derive(Clone, Copy)]
#[repr(C)]
union Name {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

/// What became of a batch of datagrams.
#[derive(Debug, Default)]
pub struct SendReport {
    /// Datagrams that the kernel took.
    pub sent: usize,
    /// Their bytes, without headers.
    pub sent_bytes: usize,
    /// Datagrams dropped because the socket's send buffer was full.
    pub blocked: usize,
    /// Datagrams that the kernel refused: no route, too large, firewall.
    pub failed: usize,
    /// Errors of earlier datagrams (ICMP answers) that were reported and passed over.
    pub icmp_errors: usize,
    /// The last refusal.
    pub last_error: Option<io::Error>,
    /// The kernel or the route's device refused a segmented send: the caller should not ask again.
    pub segmentation_refused: bool,
}

/// The arrays behind `sendmmsg`.
pub struct SendQueue {
    headers: Box<[libc::mmsghdr]>,
    payloads: Box<[libc::iovec]>,
    names: Box<[Name]>,
    controls: Box<[Control]>,
    trains: Box<[Train]>,
}

/// One message of a batch: a datagram, or several of one size to one destination.
#[derive(Debug, Clone, Copy, Default)]
struct Train {
    /// Where its first payload stands.
    first: usize,
    datagrams: usize,
    segment_len: usize,
    total_len: usize,
    /// Bytes of its address; 0 on a connected socket.
    name_len: libc::socklen_t,
    closed: bool,
}

// SAFETY: the raw pointers in the arrays are written by `SendBatch` and read only by the `sendmmsg`
// of the same `SendBatch`, which borrows the queue and the payloads; between batches nothing reads
// them, so that the queue may change threads.
unsafe impl Send for SendQueue {}

impl Default for SendQueue {
    fn default() -> SendQueue {
        // SAFETY: all-zero bytes are a valid value of these C structures (null pointers, zero
        // lengths) and of `Name`, whose every variant is plain integers.
        let (header, payload, name) = unsafe {
            (
                MaybeUninit::<libc::mmsghdr>::zeroed().assume_init(),
                MaybeUninit::<libc::iovec>::zeroed().assume_init(),
                MaybeUninit::<Name>::zeroed().assume_init(),
            )
        };
        SendQueue {
            headers: vec![header; SEND_BATCH].into(),
            payloads: vec![payload; SEND_BATCH].into(),
            names: vec![name; SEND_BATCH].into(),
            controls: vec![Control([0; CONTROL_LEN]); SEND_BATCH].into(),
            trains: vec![Train::default(); SEND_BATCH].into(),
        }
    }
}

impl SendQueue {
    /// Starts a batch on `socket`. With `segmentation`, runs of equal datagrams to one destination
    /// leave as one `UDP_SEGMENT` train; on the wire they are datagrams like any other.
    pub fn batch<'q, 'd>(
        &'q mut self,
        socket: &'q impl AsFd,
        segmentation: bool,
    ) -> SendBatch<'q, 'd> {
        SendBatch {
            queue: self,
            socket: socket.as_fd(),
            segmentation,
            messages: 0,
            datagrams: 0,
            last_destination: None,
            report: SendReport::default(),
            payloads: PhantomData,
        }
    }
}

/// Datagrams on their way into one socket. Sent when 64 wait, and by [`SendBatch::finish`].
#[must_use = "datagrams that wait are lost without `finish`"]
pub struct SendBatch<'q, 'd> {
    queue: &'q mut SendQueue,
    socket: BorrowedFd<'q>,
    segmentation: bool,
    messages: usize,
    datagrams: usize,
    last_destination: Option<SocketAddr>,
    report: SendReport,
    payloads: PhantomData<&'d [u8]>,
}

impl<'d> SendBatch<'_, 'd> {
    /// Adds a datagram; `destination` is `None` on a connected socket.
    pub fn push(&mut self, destination: Option<SocketAddr>, payload: &'d [u8]) {
        if self.datagrams == SEND_BATCH {
            self.flush();
        }
        self.queue.payloads[self.datagrams] =
            libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
        self.datagrams += 1;
        if self.joins_last_train(destination, payload.len()) {
            let train = &mut self.queue.trains[self.messages - 1];
            train.datagrams += 1;
            train.total_len += payload.len();
            train.closed = payload.len() < train.segment_len;
            return;
        }
        let name = &mut self.queue.names[self.messages];
        self.queue.trains[self.messages] = Train {
            first: self.datagrams - 1,
            datagrams: 1,
            segment_len: payload.len(),
            total_len: payload.len(),
            name_len: destination.map_or(0, |destination| write_name(name, destination)),
            closed: payload.is_empty() || payload.len() > SEGMENT_LEN_MAX,
        };
        self.last_destination = destination;
        self.messages += 1;
    }

    /// Sends what waits and says what became of all that was pushed.
    pub fn finish(mut self) -> SendReport {
        self.flush();
        self.report
    }

    fn joins_last_train(&self, destination: Option<SocketAddr>, len: usize) -> bool {
        let Some(train) = self.messages.checked_sub(1).map(|last| &self.queue.trains[last]) else {
            return false;
        };
        self.segmentation
            && !train.closed
            && len <= train.segment_len
            && len > 0
            && train.datagrams < SEGMENTS_MAX
            && train.total_len + len <= TRAIN_LEN_MAX
            && self.last_destination == destination
    }

    fn flush(&mut self) {
        let queue = &mut *self.queue;
        let names = queue.names.as_mut_ptr();
        let payloads = queue.payloads.as_mut_ptr();
        let controls = queue.controls.as_mut_ptr();
        for (index, train) in queue.trains[..self.messages].iter().enumerate() {
            let header = &mut queue.headers[index].msg_hdr;
            header.msg_name = match train.name_len {
                0 => std::ptr::null_mut(),
                _ => names.wrapping_add(index).cast(),
            };
            header.msg_namelen = train.name_len;
            header.msg_iov = payloads.wrapping_add(train.first);
            header.msg_iovlen = train.datagrams as _;
            if train.datagrams > 1 {
                header.msg_control = controls.wrapping_add(index).cast();
                header.msg_controllen = CONTROL_LEN as _;
                // A train holds segments of at most SEGMENT_LEN_MAX bytes.
                let segment_len = u16::try_from(train.segment_len).unwrap_or(u16::MAX);
                header.msg_controllen = write_segment_len(header, segment_len) as _;
            } else {
                header.msg_control = std::ptr::null_mut();
                header.msg_controllen = 0;
            }
        }
        let mut next = 0;
        // The message whose first attempt reported an error that may not be its own.
        let mut retried = None;
        while next < self.messages {
            match self.send_from(next) {
                Ok(0) => {
                    // sendmmsg(2) never returns 0 for a batch that is not empty; do not spin if it does.
                    self.report.failed += self.datagrams_from(next);
                    break;
                }
                Ok(sent) => {
                    // What was reported belonged to an earlier datagram.
                    self.report.icmp_errors += usize::from(retried == Some(next));
                    for train in &self.queue.trains[next..next + sent] {
                        self.report.sent += train.datagrams;
                        self.report.sent_bytes += train.total_len;
                    }
                    next += sent;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.report.blocked += self.datagrams_from(next);
                    break;
                }
                Err(error) => {
                    let train = self.queue.trains[next];
                    if is_of_this_datagram(&error) && train.datagrams > 1 {
                        if self.send_singly(next) {
                            self.report.segmentation_refused = true;
                            self.segmentation = false;
                        }
                    } else if is_of_this_datagram(&error) || retried == Some(next) {
                        self.report.failed += train.datagrams;
                        self.report.last_error = Some(error);
                    } else {
                        // A connected socket reports the ICMP answer to an earlier datagram once,
                        // and has not tried this one.
                        retried = Some(next);
                        continue;
                    }
                    next += 1;
                }
            }
        }
        self.messages = 0;
        self.datagrams = 0;
        self.last_destination = None;
    }

    fn datagrams_from(&self, message: usize) -> usize {
        self.queue.trains[message..self.messages].iter().map(|train| train.datagrams).sum()
    }

    fn send_from(&mut self, first: usize) -> io::Result<usize> {
        let headers = &mut self.queue.headers[first..self.messages];
        let count = libc::c_uint::try_from(headers.len()).unwrap_or(0);
        // SAFETY: every header in the slice was filled by `push` and `flush`: its name and control
        // point into this queue's boxes, its iovecs into the same queue, and they at payloads of
        // lifetime 'd, which outlives this batch. The kernel only reads them.
        let sent = unsafe {
            libc::sendmmsg(
                self.socket.as_raw_fd(),
                headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// The datagrams of a refused train, one `sendmsg` each. Returns whether any of them was taken:
    /// then it was the segmentation that was refused, not the destination.
    fn send_singly(&mut self, message: usize) -> bool {
        let sent_before = self.report.sent;
        let datagrams = self.queue.trains[message].datagrams;
        let mut header = self.queue.headers[message].msg_hdr;
        header.msg_control = std::ptr::null_mut();
        header.msg_controllen = 0;
        header.msg_iovlen = 1;
        for _ in 0..datagrams {
            // SAFETY: as in `send_from`; `msg_iov` walks over the train's own iovecs, of which
            // there are `datagrams`.
            let sent = unsafe {
                libc::sendmsg(
                    self.socket.as_raw_fd(),
                    &raw const header,
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            };
            if let Ok(len) = usize::try_from(sent) {
                self.report.sent += 1;
                self.report.sent_bytes += len;
            } else {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::WouldBlock {
                    self.report.blocked += 1;
                } else {
                    self.report.failed += 1;
                    self.report.last_error = Some(error);
                }
            }
            header.msg_iov = header.msg_iov.wrapping_add(1);
        }
        self.report.sent > sent_before
    }
}

/// Errors that the message itself causes, at once and every time: too large, or not to be
/// segmented on this route (udp_send_skb in linux/net/ipv4/udp.c). Any other may be the ICMP answer
/// to an earlier datagram (ip(7), "Error handling").
fn is_of_this_datagram(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMSGSIZE | libc::EINVAL | libc::EIO | libc::EOPNOTSUPP)
    )
}

/// One received message: a datagram, or with `UDP_GRO` a train of them from one source.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a> {
    /// Who sent it; `None` only for address families that are not IP.
    pub source: Option<SocketAddr>,
    /// Length of each datagram in the train; the last may be shorter.
    segment_len: usize,
    bytes: &'a [u8],
}

impl<'a> Received<'a> {
    /// The datagrams, in order; one, possibly empty, unless the kernel merged several.
    pub fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let empty = self.bytes.is_empty().then_some(self.bytes);
        empty.into_iter().chain(self.bytes.chunks(self.segment_len.max(1)))
    }
}

/// The arrays and buffers behind `recvmmsg`.
pub struct ReceiveQueue {
    headers: Box<[libc::mmsghdr]>,
    payloads: Box<[libc::iovec]>,
    names: Box<[Name]>,
    controls: Box<[Control]>,
    /// RECEIVE_BATCH slots; untouched pages cost nothing.
    bytes: Vec<u8>,
    received: usize,
}

// SAFETY: the raw pointers in the arrays are written and used within one call of `receive`, which
// borrows the queue mutably; between calls nothing reads them.
unsafe impl Send for ReceiveQueue {}

impl Default for ReceiveQueue {
    fn default() -> ReceiveQueue {
        // SAFETY: as in `SendQueue::default`.
        let (header, payload, name) = unsafe {
            (
                MaybeUninit::<libc::mmsghdr>::zeroed().assume_init(),
                MaybeUninit::<libc::iovec>::zeroed().assume_init(),
                MaybeUninit::<Name>::zeroed().assume_init(),
            )
        };
        ReceiveQueue {
            headers: vec![header; RECEIVE_BATCH].into(),
            payloads: vec![payload; RECEIVE_BATCH].into(),
            names: vec![name; RECEIVE_BATCH].into(),
            controls: vec![Control([0; CONTROL_LEN]); RECEIVE_BATCH].into(),
            bytes: vec![0; RECEIVE_BATCH * RECEIVE_SLOT],
            received: 0,
        }
    }
}

impl ReceiveQueue {
    /// Receives what waits, at most [`RECEIVE_BATCH`] messages, and returns how many came.
    ///
    /// Fewer than `RECEIVE_BATCH` means that the socket is empty (or holds an error, which the next
    /// call reports). Errors: `WouldBlock` when nothing waits; on a connected socket also the ICMP
    /// errors of earlier datagrams.
    pub fn receive(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        self.received = 0;
        for index in 0..RECEIVE_BATCH {
            let slot = &mut self.bytes[index * RECEIVE_SLOT..(index + 1) * RECEIVE_SLOT];
            self.payloads[index] =
                libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            let header = &mut self.headers[index];
            header.msg_len = 0;
            header.msg_hdr.msg_name = (&raw mut self.names[index]).cast();
            header.msg_hdr.msg_namelen = size_of_u32::<Name>();
            header.msg_hdr.msg_iov = &raw mut self.payloads[index];
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = (&raw mut self.controls[index]).cast();
            header.msg_hdr.msg_controllen = CONTROL_LEN as _;
            header.msg_hdr.msg_flags = 0;
        }
        // SAFETY: every header points at a name, a control buffer and one iovec of this queue, and
        // the iovec at a slot of `bytes` that overlaps no other; all live as long as `self`.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.as_mut_ptr(),
                size_of_batch(),
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        self.received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        Ok(self.received)
    }

    /// The messages of the last [`ReceiveQueue::receive`].
    pub fn messages(&self) -> impl Iterator<Item = Received<'_>> {
        (0..self.received.min(RECEIVE_BATCH)).map(|index| {
            let header = &self.headers[index];
            let len = (header.msg_len as usize).min(RECEIVE_SLOT);
            let start = index * RECEIVE_SLOT;
            Received {
                source: read_name(&self.names[index], header.msg_hdr.msg_namelen),
                segment_len: read_control(&header.msg_hdr, libc::SOL_UDP, libc::UDP_GRO)
                    .and_then(|segment_len| usize::try_from(segment_len).ok())
                    .filter(|segment_len| *segment_len > 0)
                    .unwrap_or(RECEIVE_SLOT),
                bytes: &self.bytes[start..start + len],
            }
        })
    }

    /// How many datagrams the kernel had dropped on this socket, since it was made, for want of
    /// room when the last message of the last call came (`SO_RXQ_OVFL`; wraps at 2^32).
    pub fn kernel_drops(&self) -> Option<u32> {
        let last = self.received.min(RECEIVE_BATCH).checked_sub(1)?;
        let drops = read_control(&self.headers[last].msg_hdr, libc::SOL_SOCKET, libc::SO_RXQ_OVFL)?;
        Some(u32::from_ne_bytes(drops.to_ne_bytes()))
    }
}

const fn size_of_u32<T>() -> u32 {
    // Socket addresses and control messages are tens of bytes.
    #[allow(clippy::cast_possible_truncation)]
    let size = mem::size_of::<T>() as u32;
    size
}

const fn size_of_batch() -> libc::c_uint {
    #[allow(clippy::cast_possible_truncation)] // 32.
    let batch = RECEIVE_BATCH as libc::c_uint;
    batch
}

const fn family(value: libc::c_int) -> libc::sa_family_t {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // AF_INET 2, AF_INET6 10.
    let family = value as libc::sa_family_t;
    family
}

fn write_name(name: &mut Name, address: SocketAddr) -> libc::socklen_t {
    match address {
        SocketAddr::V4(address) => {
            name.v4 = libc::sockaddr_in {
                sin_family: family(libc::AF_INET),
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                sin_zero: [0; 8],
            };
            size_of_u32::<libc::sockaddr_in>()
        }
        SocketAddr::V6(address) => {
            name.v6 = libc::sockaddr_in6 {
                sin6_family: family(libc::AF_INET6),
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            };
            size_of_u32::<libc::sockaddr_in6>()
        }
    }
}

fn read_name(name: &Name, len: libc::socklen_t) -> Option<SocketAddr> {
    if len < size_of_u32::<libc::sockaddr_in>() {
        return None;
    }
    // SAFETY: every variant of the union is plain integers and starts with the family, and the
    // union was zeroed before the kernel wrote into it, so any of them may be read.
    unsafe {
        if name.family == family(libc::AF_INET) {
            let ip = Ipv4Addr::from(u32::from_be(name.v4.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(name.v4.sin_port)).into())
        } else if name.family == family(libc::AF_INET6)
            && len >= size_of_u32::<libc::sockaddr_in6>()
        {
            let ip = Ipv6Addr::from(name.v6.sin6_addr.s6_addr);
            let port = u16::from_be(name.v6.sin6_port);
            // The flow label of an incoming packet is no part of who sent it.
            Some(SocketAddrV6::new(ip, port, 0, name.v6.sin6_scope_id).into())
        } else {
            None
        }
    }
}

/// Writes the `UDP_SEGMENT` control message into `header`'s control buffer; returns its length.
fn write_segment_len(header: &libc::msghdr, segment_len: u16) -> usize {
    // SAFETY: `msg_control` points at a `Control`, aligned for `cmsghdr` and CONTROL_LEN bytes long,
    // which is more than CMSG_SPACE(2); CMSG_FIRSTHDR therefore is that buffer's start, and
    // CMSG_DATA lies within it.
    unsafe {
        let message = libc::CMSG_FIRSTHDR(header);
        if message.is_null() {
            return 0;
        }
        (*message).cmsg_level = libc::SOL_UDP;
        (*message).cmsg_type = libc::UDP_SEGMENT;
        (*message).cmsg_len = libc::CMSG_LEN(size_of_u32::<u16>()) as _;
        std::ptr::write_unaligned(libc::CMSG_DATA(message).cast::<u16>(), segment_len);
        libc::CMSG_SPACE(size_of_u32::<u16>()) as usize
    }
}

/// The integer in the control message of that level and kind, if the kernel sent one.
fn read_control(
    header: &libc::msghdr,
    level: libc::c_int,
    kind: libc::c_int,
) -> Option<libc::c_int> {
    // SAFETY: after recvmmsg, `msg_control` and `msg_controllen` describe the part of our aligned
    // control buffer that the kernel filled; the CMSG macros stay within it, and an integer is read
    // only from a message long enough to hold one.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            if (*message).cmsg_level == level
                && (*message).cmsg_type == kind
                && (*message).cmsg_len as usize
                    >= libc::CMSG_LEN(size_of_u32::<libc::c_int>()) as usize
            {
                return Some(std::ptr::read_unaligned(libc::CMSG_DATA(message).cast()));
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    None
}

#[cfg(test)]
mod tests;
