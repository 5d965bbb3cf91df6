//! `sendmmsg`: a batch of datagrams, each to its own destination and, if need be, from its own
//! source address.

use super::Arrays;
use super::name::write_name;
use std::io;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Datagrams per `sendmmsg`. Past 64 the call's own cost (about 180 ns) is lost in the datagrams'.
pub const SEND_BATCH: usize = 64;
/// UDP_MAX_SEGMENTS of linux/udp.h before Linux 6.9, which doubled it.
const SEGMENTS_MAX: usize = 64;
/// A train must fit one IPv4 datagram: 65,535 less the IP and UDP headers.
const TRAIN_LEN_MAX: usize = 65_507;
/// Segmentation refuses to fragment, so datagrams larger than what fits a 1500-byte IPv6 packet go
/// singly and are fragmented as any other.
pub(super) const SEGMENT_LEN_MAX: usize = 1452;

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
    arrays: Arrays,
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
    /// Bytes of the control message with its source address; 0 when the kernel chooses.
    source_len: usize,
    closed: bool,
}

impl Default for SendQueue {
    fn default() -> SendQueue {
        SendQueue {
            arrays: Arrays::new(SEND_BATCH),
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
            last_source: None,
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
    pub(super) messages: usize,
    datagrams: usize,
    last_destination: Option<SocketAddr>,
    last_source: Option<IpAddr>,
    report: SendReport,
    payloads: PhantomData<&'d [u8]>,
}

impl<'d> SendBatch<'_, 'd> {
    /// Adds a datagram; `destination` is `None` on a connected socket.
    pub fn push(&mut self, destination: Option<SocketAddr>, payload: &'d [u8]) {
        self.push_from(None, destination, payload);
    }

    /// Adds a datagram that leaves from `source`, an address of this host and of the socket's
    /// family; `None` leaves the choice to the kernel. The port is the socket's. Datagrams from
    /// addresses that the host does not have fail.
    #[inline]
    pub fn push_from(
        &mut self,
        source: Option<IpAddr>,
        destination: Option<SocketAddr>,
        payload: &'d [u8],
    ) {
        if self.datagrams == SEND_BATCH {
            self.flush();
        }
        self.queue.arrays.payloads[self.datagrams] =
            libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
        self.datagrams += 1;
        if self.joins_last_train(source, destination, payload.len()) {
            let train = &mut self.queue.trains[self.messages - 1];
            train.datagrams += 1;
            train.total_len += payload.len();
            train.closed = payload.len() < train.segment_len;
            return;
        }
        let SendQueue { arrays, trains } = &mut *self.queue;
        let name = &mut arrays.names[self.messages];
        let control = &mut arrays.controls[self.messages];
        trains[self.messages] = Train {
            first: self.datagrams - 1,
            datagrams: 1,
            segment_len: payload.len(),
            total_len: payload.len(),
            name_len: destination.map_or(0, |destination| write_name(name, destination)),
            source_len: source.map_or(0, |source| control.write_source(source)),
            closed: payload.is_empty() || payload.len() > SEGMENT_LEN_MAX,
        };
        self.last_destination = destination;
        self.last_source = source;
        self.messages += 1;
    }

    /// Sends what waits and says what became of all that was pushed.
    pub fn finish(mut self) -> SendReport {
        self.flush();
        self.report
    }

    fn joins_last_train(
        &self,
        source: Option<IpAddr>,
        destination: Option<SocketAddr>,
        len: usize,
    ) -> bool {
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
            && self.last_source == source
    }

    fn flush(&mut self) {
        let SendQueue { arrays, trains } = &mut *self.queue;
        let names = arrays.names.as_mut_ptr();
        let payloads = arrays.payloads.as_mut_ptr();
        for (index, train) in trains[..self.messages].iter().enumerate() {
            let header = &mut arrays.headers[index].msg_hdr;
            header.msg_name = match train.name_len {
                0 => std::ptr::null_mut(),
                _ => names.wrapping_add(index).cast(),
            };
            header.msg_namelen = train.name_len;
            header.msg_iov = payloads.wrapping_add(train.first);
            header.msg_iovlen = train.datagrams as _;
            let control = &mut arrays.controls[index];
            let mut control_len = train.source_len;
            if train.datagrams > 1 {
                // A train holds segments of at most SEGMENT_LEN_MAX bytes.
                let segment_len = u16::try_from(train.segment_len).unwrap_or(u16::MAX);
                control_len = control.append_segment_len(control_len, segment_len);
            }
            header.msg_control = match control_len {
                0 => std::ptr::null_mut(),
                _ => (&raw mut *control).cast(),
            };
            header.msg_controllen = control_len as _;
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
        self.last_source = None;
    }

    fn datagrams_from(&self, message: usize) -> usize {
        self.queue.trains[message..self.messages].iter().map(|train| train.datagrams).sum()
    }

    fn send_from(&mut self, first: usize) -> io::Result<usize> {
        let headers = &mut self.queue.arrays.headers[first..self.messages];
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
        let Train { datagrams, source_len, .. } = self.queue.trains[message];
        let mut header = self.queue.arrays.headers[message].msg_hdr;
        // The source address, if any, stands before the segment size.
        header.msg_controllen = source_len as _;
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

/// Errors that the message itself causes, at once and every time: too large, not to be segmented on
/// this route (udp_send_skb in linux/net/ipv4/udp.c), or from an address that is not ours. Any other may be the ICMP answer
/// to an earlier datagram (ip(7), "Error handling").
fn is_of_this_datagram(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMSGSIZE | libc::EINVAL | libc::EIO | libc::EOPNOTSUPP)
    )
}
