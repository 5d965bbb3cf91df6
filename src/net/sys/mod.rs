//! The only unsafe code: system calls and allocator settings that no safe crate offers. Each
//! block says why it is sound; each public function is safe to call.

// The one exception to `unsafe_code = "deny"`: everything that needs it is below this module.
#![allow(unsafe_code)]

pub mod heap;
pub mod listen_fds;
pub mod mmsg;
pub mod sockopt;
pub mod tun;
pub mod window;
