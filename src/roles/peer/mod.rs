//! `udpferry peer`: hosts behind NATs meet in a room and talk directly, encrypted end to end.
//!
//! What the members of a room share, say and may believe; no sockets and no threads in these.

pub mod chat;
pub mod identity;
pub mod key_commands;
pub mod probe;
pub mod room;
pub mod seal;
pub mod tunnel;
