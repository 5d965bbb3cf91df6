//! Many datagrams per system call: `sendmmsg` with `UDP_SEGMENT`, `recvmmsg` with `UDP_GRO`.
//!
//! [`send::SendQueue`] and [`receive::ReceiveQueue`] hold the kernel's argument arrays and are reused
//! from call to call; neither allocates once made. A server that is bound to a wildcard address
//! and shall answer from the address that it was asked at asks its socket for destinations
//! (`sockopt::report_destinations`), reads [`receive::Received::destination`] and answers with
//! [`send::SendBatch::push_from`]. Sources: sendmmsg(2), recvmmsg(2), udp(7), ip(7), ipv6(7), cmsg(3),
//! linux/include/uapi/linux/udp.h.

mod control;
mod name;
pub mod receive;
pub mod send;

use self::control::Control;
use self::name::Name;
use std::mem::{self, MaybeUninit};

/// Messages that the kernel takes or gives per call (UIO_MAXIOV).
const MESSAGES_MAX: usize = 1024;

/// The kernel's argument arrays for a batch of messages. The pointers in them are written and used
/// by one batch or one call, which borrows the queue around them mutably.
struct Arrays {
    headers: Box<[libc::mmsghdr]>,
    payloads: Box<[libc::iovec]>,
    names: Box<[Name]>,
    controls: Box<[Control]>,
}

// SAFETY: between batches nothing reads the raw pointers, so that the arrays may change threads.
unsafe impl Send for Arrays {}

impl Arrays {
    /// Room for `messages`, all zero.
    fn new(messages: usize) -> Arrays {
        // SAFETY: all-zero bytes are a valid value of these C structures (null pointers, zero
        // lengths) and of `Name`, whose every variant is plain integers.
        let (header, payload, name) = unsafe {
            (
                MaybeUninit::<libc::mmsghdr>::zeroed().assume_init(),
                MaybeUninit::<libc::iovec>::zeroed().assume_init(),
                MaybeUninit::<Name>::zeroed().assume_init(),
            )
        };
        Arrays {
            headers: vec![header; messages].into(),
            payloads: vec![payload; messages].into(),
            names: vec![name; messages].into(),
            controls: vec![Control::default(); messages].into(),
        }
    }
}

const fn size_of_u32<T>() -> u32 {
    // Socket addresses and control messages are tens of bytes.
    #[allow(clippy::cast_possible_truncation)]
    let size = mem::size_of::<T>() as u32;
    size
}

#[cfg(test)]
mod tests;
