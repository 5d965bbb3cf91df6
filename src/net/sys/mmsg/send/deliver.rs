//! A batch's way into the kernel, and what becomes of its messages.

use super::super::name::read_name;
use super::{Lost, SendBatch, SendQueue, Train};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

impl SendBatch<'_, '_> {
    pub(super) fn flush(&mut self) {
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
            header.msg_iovlen = train.payloads as _;
            let control = &mut arrays.controls[index];
            let mut control_len = train.source_len;
            if train.datagrams > 1 {
                // Longer ones stand alone.
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
                    self.report.failed += self.lose_from(next);
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
                    if self.has_room_soon() {
                        continue;
                    }
                    self.report.blocked += self.lose_from(next);
                    break;
                }
                Err(error) => {
                    let train = self.queue.trains[next];
                    if is_of_this_datagram(&error) && train.datagrams > 1 {
                        if self.send_singly(next) {
                            self.report.segmentation_refused = true;
                            self.report.refused_destination = self.destination_of(next);
                            self.segmentation = false;
                        }
                    } else if is_of_this_datagram(&error) || retried == Some(next) {
                        self.report.failed += train.datagrams;
                        self.report.last_error = Some(error);
                        self.lose(next, train.datagrams, train.total_len);
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
        self.payloads_used = 0;
        self.last_destination = None;
        self.last_source = None;
    }

    /// Whether to try again: after a wait, if the batch may still wait. Also after one that was in
    /// vain, as poll(2) wants half of the buffer to be free (`sock_writeable` in linux/net/sock.h),
    /// and a datagram only its own room.
    fn has_room_soon(&mut self) -> bool {
        let Some(waits_left) = self.waits_left.checked_sub(1) else {
            return false;
        };
        self.report.waits += 1;
        let mut poll =
            libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: one structure, which lives through the call.
        let ready = unsafe { libc::poll(&raw mut poll, 1, libc::c_int::from(self.wait_max)) };
        // A whole wait without room was the last one.
        self.waits_left = if ready == 1 { waits_left } else { 0 };
        true
    }

    /// Gives up all messages from that one on; returns how many datagrams they have.
    fn lose_from(&mut self, first: usize) -> usize {
        let mut datagrams = 0;
        for message in first..self.messages {
            let train = self.queue.trains[message];
            datagrams += train.datagrams;
            self.lose(message, train.datagrams, train.total_len);
        }
        datagrams
    }

    fn lose(&mut self, message: usize, datagrams: usize, bytes: usize) {
        let destination = self.destination_of(message);
        match self.report.lost.last_mut() {
            Some(last) if last.destination == destination => {
                last.datagrams += datagrams;
                last.bytes += bytes;
            }
            _ => self.report.lost.push(Lost { destination, datagrams, bytes }),
        }
    }

    fn destination_of(&self, message: usize) -> Option<SocketAddr> {
        read_name(&self.queue.arrays.names[message], self.queue.trains[message].name_len)
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
        let train = self.queue.trains[message];
        let mut header = self.queue.arrays.headers[message].msg_hdr;
        // The source address, if any, stands before the segment size.
        header.msg_controllen = train.source_len as _;
        header.msg_iovlen = 1;
        for index in 0..train.datagrams {
            let mut payload = self.payload_of(&train, index);
            header.msg_iov = &raw mut payload;
            // SAFETY: as in `send_from`; `payload` lies within what was pushed.
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
                continue;
            }
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::WouldBlock {
                self.report.blocked += 1;
            } else {
                self.report.failed += 1;
                self.report.last_error = Some(error);
            }
            self.lose(message, 1, payload.iov_len);
        }
        self.report.sent > sent_before
    }

    /// A train's datagram.
    fn payload_of(&self, train: &Train, index: usize) -> libc::iovec {
        let payloads = &self.queue.arrays.payloads[train.first..train.first + train.payloads];
        match payloads {
            [all] => {
                let from = index * train.segment_len;
                libc::iovec {
                    iov_base: all.iov_base.wrapping_byte_add(from),
                    iov_len: train.segment_len.min(all.iov_len - from),
                }
            }
            each => each[index],
        }
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
