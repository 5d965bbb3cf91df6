//! The role `udpgw`, run as its users run it.
#![allow(clippy::disallowed_methods)] // Tests measure time and start threads of their own.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

#[path = "../support/mod.rs"]
mod support;

mod carrying;
mod check;
mod destinations;
mod flows;
mod limits;
mod metrics;
mod operation;
mod proxy;
mod robustness;
mod tls;
