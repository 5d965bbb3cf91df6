//! What the mesh decides: which tunnels there may be, how the host gets from one set of them to
//! another, who is still there, and whose commands count.
//!
//! ```text
//!   request -> refusal? <- set: names, networks, remotes, routes, how many
//!                |
//!                v
//!             changes: add, remove, update
//!                |
//!                v
//!               plan: steps on the host, each with the step that takes it back
//! ```

pub mod liveness;
pub mod plan;
pub mod refusal;
pub mod replay;
pub mod set;
pub mod tunnel;
