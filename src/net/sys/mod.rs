//! The only unsafe code: system calls that no crate of ours wraps. Every block says why it is sound.
#![allow(unsafe_code)] // This module exists to hold it.

pub mod mmsg;
pub mod sockopt;
