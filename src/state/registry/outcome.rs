//! What comes of what clients ask.

use crate::state::contact::Contact;
use crate::state::slots::Slot;
use crate::wire::rendezvous::{MemberId, RoomId};

/// What is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// To one member of another. The slot is that of the registry until it is changed.
    Introduce {
        /// The introduction's number.
        introduction: u64,
        /// Milliseconds until the first probe shall be sent.
        start_ms: u16,
        /// Who is told, over one family or both.
        to: [Option<Contact>; 2],
        /// Of whom.
        about: Slot,
    },
    /// A member is gone.
    Gone {
        /// Who is told, over one family or both.
        to: [Option<Contact>; 2],
        /// Who is gone.
        member: MemberId,
    },
    /// To the store: a member has registered here. Only where rooms are shared, as the next ones.
    Share {
        /// Who.
        member: Slot,
    },
    /// To the store: a member is not registered here any more.
    Unshare {
        /// The room.
        room: RoomId,
        /// Who.
        member: MemberId,
    },
    /// To the servers where a member is: one of ours calls it.
    Call {
        /// Who calls.
        caller: Slot,
        /// Whom.
        called: Slot,
    },
}

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Called {
    /// Both are introduced to each other, or will be when the store has passed it on.
    Introduced,
    /// They are being introduced already.
    Pending,
    /// The called one is not in the room.
    NotThere,
    /// The caller is not in the room.
    NotAMember,
}

/// Why a datagram is not relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotRelayed {
    /// It comes from no member's endpoint.
    NotAMember,
    /// It is for nobody in the sender's room.
    NotThere,
    /// The room has used up its rate.
    RoomRate,
    /// All rooms together have.
    TotalRate,
}
