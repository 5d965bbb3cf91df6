//! What the servers of one registry tell each other of their members, through a store that all of
//! them trust and none controls alone.
//!
//! ```text
//! place   = member:8 . server:8
//! record  = news:u32 . rtt:u16 (ms) . count:u8 (1, 2) . endpoint × count . sealed
//! message = kind:u8 . room:16 . place . body      1 news: record   2 call: member:8 . record   3 gone
//! ```
//!
//! Member 1 of server 2 is gone from a room:
//!
//! ```
//! use udpferry::wire::rendezvous::shared::{Message, Place, ServerId, parse_message, write_message};
//! use udpferry::wire::rendezvous::{MemberId, RoomId};
//! let place = Place { member: MemberId([1; 8]), server: ServerId([2; 8]) };
//! let message = Message::Gone { room: RoomId([9; 16]), place };
//! let mut bytes = Vec::new();
//! write_message(&mut bytes, &message);
//! assert_eq!(bytes, [&[3][..], &[9; 16], &[1; 8], &[2; 8]].concat());
//! assert_eq!(parse_message(&bytes), Some(message));
//! ```

use super::{
    Endpoints, MemberId, RoomId, SEALED_LEN_MAX, member, read_endpoints, read_sealed, room,
    write_endpoints, write_sealed,
};
use crate::wire::cursor::Cursor;

/// Bytes of a place.
pub const PLACE_LEN: usize = 16;
/// Bytes of a record, at most.
pub const RECORD_LEN_MAX: usize = 4 + 2 + 1 + 2 * 19 + 2 + SEALED_LEN_MAX;

/// A server, as long as its process lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerId(pub [u8; 8]);

/// A member at a server; the same one may be at several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// Who.
    pub member: MemberId,
    /// Where.
    pub server: ServerId,
}

/// What a server says of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Another number than before: it is to be introduced to all.
    pub news: u32,
    /// Its round trip to the store, by way of its server, in milliseconds.
    pub rtt_ms: u16,
    /// Where that server sees it.
    pub endpoints: Endpoints,
    /// Its announcement, at most [`SEALED_LEN_MAX`] bytes.
    pub sealed: &'a [u8],
}

/// What a server tells another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// A member has entered, or has changed.
    News {
        /// The room.
        room: RoomId,
        /// Who, and where.
        place: Place,
        /// What others are to be told.
        record: Record<'a>,
    },
    /// A member wants to be introduced to one of the receiver's.
    Call {
        /// The room.
        room: RoomId,
        /// Who, and where.
        place: Place,
        /// To whom.
        to: MemberId,
        /// What that one is to be told.
        record: Record<'a>,
    },
    /// A member is not there any more.
    Gone {
        /// The room.
        room: RoomId,
        /// Who, and where.
        place: Place,
    },
}

const NEWS: u8 = 1;
const CALL: u8 = 2;
const GONE: u8 = 3;

/// Reads a place. `None` if it has another length.
pub fn parse_place(bytes: &[u8]) -> Option<Place> {
    let mut cursor = Cursor::new(bytes);
    let place = place(&mut cursor)?;
    cursor.rest().is_empty().then_some(place)
}

/// Appends a place.
pub fn write_place(out: &mut Vec<u8>, place: Place) {
    out.extend_from_slice(&place.member.0);
    out.extend_from_slice(&place.server.0);
}

/// Reads a record. `None` if it is malformed, or has bytes left over.
pub fn parse_record(bytes: &[u8]) -> Option<Record<'_>> {
    let mut cursor = Cursor::new(bytes);
    let record = record(&mut cursor)?;
    cursor.rest().is_empty().then_some(record)
}

/// Appends a record. `sealed` beyond [`SEALED_LEN_MAX`] bytes is cut off, which no caller has.
pub fn write_record(out: &mut Vec<u8>, record: &Record<'_>) {
    out.extend_from_slice(&record.news.to_be_bytes());
    out.extend_from_slice(&record.rtt_ms.to_be_bytes());
    write_endpoints(out, record.endpoints);
    write_sealed(out, record.sealed);
}

/// Reads a message. `None` if it is of an unknown kind, malformed, or has bytes left over.
pub fn parse_message(bytes: &[u8]) -> Option<Message<'_>> {
    let mut cursor = Cursor::new(bytes);
    let kind = cursor.u8()?;
    let room = room(&mut cursor)?;
    let place = place(&mut cursor)?;
    let message = match kind {
        NEWS => Message::News { room, place, record: record(&mut cursor)? },
        CALL => {
            let to = member(&mut cursor)?;
            Message::Call { room, place, to, record: record(&mut cursor)? }
        }
        GONE => Message::Gone { room, place },
        _ => return None,
    };
    cursor.rest().is_empty().then_some(message)
}

/// Appends a message.
pub fn write_message(out: &mut Vec<u8>, message: &Message<'_>) {
    let (kind, room, place) = match *message {
        Message::News { room, place, .. } => (NEWS, room, place),
        Message::Call { room, place, .. } => (CALL, room, place),
        Message::Gone { room, place } => (GONE, room, place),
    };
    out.push(kind);
    out.extend_from_slice(&room.0);
    write_place(out, place);
    match message {
        Message::News { record, .. } => write_record(out, record),
        Message::Call { to, record, .. } => {
            out.extend_from_slice(&to.0);
            write_record(out, record);
        }
        Message::Gone { .. } => {}
    }
}

fn place(cursor: &mut Cursor<'_>) -> Option<Place> {
    let member = member(cursor)?;
    Some(Place { member, server: cursor.take_array().map(ServerId)? })
}

fn record<'a>(cursor: &mut Cursor<'a>) -> Option<Record<'a>> {
    Some(Record {
        news: cursor.u32_be()?,
        rtt_ms: cursor.u16_be()?,
        endpoints: read_endpoints(cursor)?,
        sealed: read_sealed(cursor)?,
    })
}
