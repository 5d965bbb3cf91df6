//! How much a registry holds.

use std::time::Duration;

/// How much there may be of everything.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rooms.
    pub rooms_max: usize,
    /// Members of a room, at most 255.
    pub members_max: usize,
    /// Introductions that wait for their acknowledgement; further ones are sent once.
    pub introductions_max: usize,
    /// Endpoints remembered for how much they are told; the one told least recently is forgotten.
    pub listeners_max: usize,
    /// How long a member lasts without a refresh.
    pub expiry: Duration,
    /// Bytes in a second that are relayed in a room and in all.
    pub relay: RelayRates,
}

/// Bytes in a second.
#[derive(Debug, Clone, Copy)]
pub struct RelayRates {
    /// Of a room.
    pub room: u32,
    /// Of all rooms.
    pub total: u32,
}
