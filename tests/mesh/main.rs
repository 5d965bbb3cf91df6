//! The roles `mesh` and `meshctl`, run as their users run them, in network namespaces of the tests'
//! own. What takes several hosts is in tests/netns/mesh.sh.
#![allow(clippy::disallowed_methods)] // Tests measure time and start threads of their own.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

#[path = "../support/mod.rs"]
mod support;

mod changes;
mod control;
mod daemon;
mod operation;
mod packets;
