//! What controllers and the daemon say to each other: JSON objects, one in a datagram or on a line.
//! `docs/protocols/mesh.md` has every field.

pub mod answer;
pub mod fields;
pub mod request;
