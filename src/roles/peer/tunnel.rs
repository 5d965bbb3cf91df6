//! A tunnel to one member: WireGuard's handshake and transport, by boringtun's `Tunn`.
//!
//! `Tunn` reads the clock itself (handshake timestamps, key ages, the limiter's seconds), so
//! nothing here takes `now`.
//!
//! What `Tunn` does and this does not let it do:
//!
//! - `encapsulate` without a session keeps a copy of the packet, up to 256 of them, and starts a
//!   handshake by itself. [`Tunnel::send`] says [`NotSent::NoSession`] instead: chat repeats its
//!   lines, and a datagram that waits for a handshake is late.
//! - A session that it made as responder is one before the other side has shown that it has the
//!   preshared key. Here it counts when the first datagram has been decrypted with it.
//! - It panics when a buffer is too short; the lengths are looked at before.
//! - It lets an idle session end after 180 s. Members ping each other anyway and want to talk at
//!   once, so [`Tunnel::tick`] renews the keys of an idle tunnel too.

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::identity::{PrivateKey, PublicKey};
use crate::wire::peer::{Message, parse_message, write_message};

/// Bytes by which a datagram is longer than its message: type 4, receiver 4, counter 8, tag 16.
pub const OVERHEAD: usize = 32;
/// No buffer may be shorter: that of a handshake initiation.
pub const BUFFER_LEN_MIN: usize = 148;
/// Tunnels of a member are numbered below this: eight bits of WireGuard's index count sessions.
pub const INDEX_END: u32 = 1 << 24;
/// How often [`Tunnel::tick`] and [`Handshakes::tick`] want to be called.
pub const TICK: Duration = Duration::from_millis(250);

/// Handshake messages that are answered in a second, of all members together; then senders must
/// show by a cookie that they receive at their address. Each costs up to five X25519 operations; an
/// initiation counts twice, as it is looked at by [`Handshakes`] and by its tunnel. The 15 others of
/// a full room that begin anew at once are 30, or 45 with the responses to our own.
const HANDSHAKES_MAX: u64 = 200;

/// The first byte of a datagram.
const TYPE_RESPONSE: u8 = 2;
const TYPE_DATA: u8 = 4;

/// WireGuard's REJECT_AFTER_MESSAGES: 2^64 - 2^13 - 1. boringtun adds to counters beyond it.
const COUNTER_END: u64 = u64::MAX - (1 << 13);

/// WireGuard's REKEY_AFTER_TIME, for the initiator of the last handshake.
const REKEY_INITIATOR: Duration = Duration::from_secs(120);
/// The responder steps in later, when the initiator has not, and before REJECT_AFTER_TIME (180 s).
const REKEY_RESPONDER: Duration = Duration::from_secs(150);

/// Why there is no tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelError {
    /// Their key is ours: our own datagrams, sent back to us, would seem to be theirs.
    OwnKey,
    /// Their key gives the same shared secret whatever ours is (RFC 7748, section 6.1).
    WeakKey,
    /// The index is not below [`INDEX_END`].
    Index,
}

impl fmt::Display for TunnelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TunnelError::OwnKey => "the member's key is our own",
            TunnelError::WeakKey => "the member's key is none that anybody makes",
            TunnelError::Index => "too many tunnels",
        })
    }
}

impl std::error::Error for TunnelError {}

/// Why a datagram was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is none of WireGuard's, or its length is wrong.
    Malformed,
    /// Another key or preshared key, or changed on the way.
    Forged,
    /// It has been here before, or is too old.
    Replayed,
    /// There is no such session or handshake, any more or at all.
    NoSession,
    /// Too many handshakes, and no address to send a cookie to.
    UnderLoad,
    /// It decrypts, and is no message of ours.
    NoMessage,
    /// The caller's buffer is shorter than the datagram or than [`BUFFER_LEN_MIN`].
    Buffer,
}

impl Refusal {
    /// The word for logs and counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::Malformed => "malformed",
            Refusal::Forged => "forged",
            Refusal::Replayed => "replayed",
            Refusal::NoSession => "no_session",
            Refusal::UnderLoad => "under_load",
            Refusal::NoMessage => "no_message",
            Refusal::Buffer => "buffer",
        }
    }

    fn of(error: &WireGuardError) -> Refusal {
        match error {
            WireGuardError::DestinationBufferTooSmall => Refusal::Buffer,
            WireGuardError::IncorrectPacketLength
            | WireGuardError::WrongPacketType
            | WireGuardError::InvalidPacket
            | WireGuardError::InvalidTai64nTimestamp => Refusal::Malformed,
            WireGuardError::InvalidMac
            | WireGuardError::InvalidAeadTag
            | WireGuardError::WrongKey => Refusal::Forged,
            WireGuardError::InvalidCounter
            | WireGuardError::DuplicateCounter
            | WireGuardError::WrongTai64nTimestamp => Refusal::Replayed,
            WireGuardError::UnexpectedPacket
            | WireGuardError::WrongIndex
            | WireGuardError::NoCurrentSession
            | WireGuardError::ConnectionExpired
            | WireGuardError::LockFailed => Refusal::NoSession,
            WireGuardError::UnderLoad => Refusal::UnderLoad,
        }
    }
}

/// What a datagram of WireGuard is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressee {
    /// A handshake initiation: [`Handshakes::sender_of`] tells whose.
    Initiation,
    /// The tunnel of this index: a response, a cookie or data.
    Tunnel(u32),
}

/// Where a datagram belongs. `None` if it is none of WireGuard's, or its length is wrong.
pub fn addressee(datagram: &[u8]) -> Option<Addressee> {
    let receiver = match Tunn::parse_incoming_packet(datagram).ok()? {
        Packet::HandshakeInit(_) => return Some(Addressee::Initiation),
        Packet::HandshakeResponse(packet) => packet.receiver_idx,
        Packet::PacketCookieReply(packet) => packet.receiver_idx,
        Packet::PacketData(packet) => packet.receiver_idx,
    };
    Some(Addressee::Tunnel(receiver >> 8))
}

/// Who knocks.
#[derive(Debug, PartialEq, Eq)]
pub enum Knock<'a> {
    /// The holder of this key says so; its tunnel's [`Tunnel::receive`] sees whether it is true.
    Member(PublicKey),
    /// Too many handshakes: send this cookie to where the datagram came from, and nothing else.
    Send(&'a [u8]),
    /// Not for us.
    Refused(Refusal),
}

/// What all tunnels of this member have in common: its key, and how many handshakes a second it
/// answers. Who does not know the member's public key, which the room's announcements alone tell,
/// is refused after one hash, and uses up none of them.
pub struct Handshakes {
    private: PrivateKey,
    public: x25519::PublicKey,
    limiter: Arc<RateLimiter>,
}

impl Handshakes {
    /// For the member of this key.
    pub fn new(private: PrivateKey) -> Handshakes {
        let public = x25519::PublicKey::from(private.secret());
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES_MAX));
        Handshakes { private, public, limiter }
    }

    /// The member's public key.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.public.to_bytes())
    }

    /// To be called every [`TICK`]: the limiter counts by the second.
    pub fn tick(&self) {
        self.limiter.reset_count();
    }

    /// Whose initiation a datagram is, that came from `from`. `out` has [`BUFFER_LEN_MIN`] bytes.
    pub fn sender_of<'a>(&self, from: IpAddr, datagram: &[u8], out: &'a mut [u8]) -> Knock<'a> {
        if out.len() < BUFFER_LEN_MIN {
            return Knock::Refused(Refusal::Buffer);
        }
        let packet = match self.limiter.verify_packet(Some(from), datagram, out) {
            Ok(Packet::HandshakeInit(packet)) => packet,
            Err(TunnResult::WriteToNetwork(cookie)) => return Knock::Send(cookie),
            Err(TunnResult::Err(error)) => return Knock::Refused(Refusal::of(&error)),
            Ok(_) | Err(_) => return Knock::Refused(Refusal::Malformed),
        };
        match parse_handshake_anon(self.private.secret(), &self.public, &packet) {
            Ok(half) => Knock::Member(PublicKey(half.peer_static_public)),
            Err(error) => Knock::Refused(Refusal::of(&error)),
        }
    }
}

/// What came of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// Send this to where the datagram came from, and then whatever [`Tunnel::flush`] gives.
    Send(&'a [u8]),
    /// What the peer says. The datagram is authentic: the path may move to its source.
    Message(Message<'a>),
    /// Nothing to do, and authentic as a message is.
    Keepalive,
    /// Nothing to do: a cookie for the next handshake.
    Nothing,
    /// To be counted.
    Refused(Refusal),
}

/// What the time has brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Tick<'a> {
    /// Nothing to do.
    Nothing,
    /// Send this to the peer: a keepalive, or a handshake.
    Send(&'a [u8]),
    /// A handshake was not answered for 90 s, or there was no session for nine minutes: the tunnel
    /// has given up. [`Tunnel::start_handshake`] begins anew; until then each tick says so.
    Expired,
}

/// Why a message did not become a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotSent {
    /// There is no session (yet, or any more): nothing is kept, the message is dropped.
    NoSession,
    /// The message is too long, or the buffer too short: message, [`OVERHEAD`], and not below
    /// [`BUFFER_LEN_MIN`].
    Length,
}

/// A tunnel to one member.
pub struct Tunnel {
    tunn: Tunn,
    /// The message as `Tunn` wants it, in one piece; kept for its memory.
    packet: Vec<u8>,
    /// The peer has shown that it has the session's keys.
    confirmed: bool,
    /// We began the last handshake that came to its end.
    initiator: bool,
}

impl Tunnel {
    /// A tunnel without a session. `index` tells our tunnels apart ([`addressee`]).
    pub fn new(
        handshakes: &Handshakes,
        theirs: PublicKey,
        preshared: [u8; 32],
        index: u32,
    ) -> Result<Tunnel, TunnelError> {
        if index >= INDEX_END {
            return Err(TunnelError::Index);
        }
        if theirs == handshakes.public() {
            return Err(TunnelError::OwnKey);
        }
        let secret = handshakes.private.secret();
        let public = x25519::PublicKey::from(theirs.0);
        if !secret.diffie_hellman(&public).was_contributory() {
            return Err(TunnelError::WeakKey);
        }
        // Persistent keepalives are left to the probes, which find out about the path as well.
        let limiter = Some(Arc::clone(&handshakes.limiter));
        let tunn = Tunn::new(secret.clone(), public, Some(preshared), None, index, limiter);
        Ok(Tunnel { tunn, packet: Vec::new(), confirmed: false, initiator: false })
    }

    /// The handshake initiation to send; `None` when one is under way, unless `force`, or when
    /// `out` is shorter than [`BUFFER_LEN_MIN`].
    ///
    /// An unanswered one is repeated by [`Tunnel::tick`] after 5 s. Who forces it earlier should
    /// wait for a round trip: only the answers to the last two count.
    pub fn start_handshake<'a>(&mut self, force: bool, out: &'a mut [u8]) -> Option<&'a [u8]> {
        match self.tunn.format_handshake_initiation(out, force) {
            TunnResult::WriteToNetwork(datagram) => Some(datagram),
            _ => None,
        }
    }

    /// Makes a message a datagram in `out`; returns its length.
    pub fn send(&mut self, message: &Message<'_>, out: &mut [u8]) -> Result<usize, NotSent> {
        self.packet.clear();
        if !write_message(&mut self.packet, message)
            || out.len() < BUFFER_LEN_MIN.max(self.packet.len() + OVERHEAD)
        {
            return Err(NotSent::Length);
        }
        if !self.is_established() {
            return Err(NotSent::NoSession);
        }
        match self.tunn.encapsulate(&self.packet, out) {
            TunnResult::WriteToNetwork(datagram) => Ok(datagram.len()),
            _ => Err(NotSent::NoSession),
        }
    }

    /// Takes a datagram that came from `from` (through a relay: from the relay). `out` is at least
    /// as long as the datagram and as [`BUFFER_LEN_MIN`].
    pub fn receive<'a>(&mut self, from: IpAddr, datagram: &[u8], out: &'a mut [u8]) -> Outcome<'a> {
        if out.len() < BUFFER_LEN_MIN.max(datagram.len()) {
            return Outcome::Refused(Refusal::Buffer);
        }
        let kind = match Tunn::parse_incoming_packet(datagram) {
            Ok(Packet::PacketData(_)) if counter_of(datagram) >= COUNTER_END => {
                return Outcome::Refused(Refusal::Replayed);
            }
            Ok(packet) => Kind::of(&packet),
            Err(error) => return Outcome::Refused(Refusal::of(&error)),
        };
        match self.tunn.decapsulate(Some(from), datagram, out) {
            TunnResult::WriteToNetwork(answer) => {
                // Under load either is answered by a cookie, and nothing has come of it.
                match (kind, answer.first()) {
                    (Kind::Response, Some(&TYPE_DATA)) => {
                        self.confirmed = true;
                        self.initiator = true;
                    }
                    (Kind::Initiation, Some(&TYPE_RESPONSE)) => self.initiator = false,
                    _ => {}
                }
                Outcome::Send(answer)
            }
            TunnResult::WriteToTunnelV4(packet, _) => {
                // The peer has the keys, also where we were the responder.
                self.confirmed = true;
                parse_message(packet).map_or(Outcome::Refused(Refusal::NoMessage), Outcome::Message)
            }
            TunnResult::WriteToTunnelV6(_, _) => {
                self.confirmed = true;
                Outcome::Refused(Refusal::NoMessage)
            }
            TunnResult::Done if kind == Kind::Data => {
                self.confirmed = true;
                Outcome::Keepalive
            }
            TunnResult::Done => Outcome::Nothing,
            // The form of the datagram is right, so it is that of its content.
            TunnResult::Err(WireGuardError::InvalidPacket) if kind == Kind::Data => {
                Outcome::Refused(Refusal::NoMessage)
            }
            TunnResult::Err(error) => Outcome::Refused(Refusal::of(&error)),
        }
    }

    /// What is left to send after [`Outcome::Send`], one at a time until `None`: `Tunn` keeps a
    /// keepalive, at most 256 of them, that came due without a session.
    pub fn flush<'a>(&mut self, out: &'a mut [u8]) -> Option<&'a [u8]> {
        if out.len() < BUFFER_LEN_MIN || !self.is_established() {
            return None;
        }
        // No address is looked at when there is no datagram.
        match self.tunn.decapsulate(None, &[], out) {
            TunnResult::WriteToNetwork(datagram) => Some(datagram),
            _ => None,
        }
    }

    /// To be called every [`TICK`]; `out` has at least [`BUFFER_LEN_MIN`] bytes.
    pub fn tick<'a>(&mut self, out: &'a mut [u8]) -> Tick<'a> {
        if out.len() < BUFFER_LEN_MIN {
            return Tick::Nothing;
        }
        // The length first: the borrow of `out` would last through the other branches.
        let len = match self.tunn.update_timers(out) {
            TunnResult::WriteToNetwork(datagram) => datagram.len(),
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                self.confirmed = false;
                return Tick::Expired;
            }
            _ => 0,
        };
        let age = self.tunn.time_since_last_handshake();
        self.confirmed &= age.is_some();
        if len > 0 {
            return Tick::Send(&out[..len]);
        }
        if self.confirmed && age.is_some_and(|age| is_rekey_due(age, self.initiator)) {
            return self.start_handshake(false, out).map_or(Tick::Nothing, Tick::Send);
        }
        Tick::Nothing
    }

    /// Whether messages can be sent: a handshake is complete, the peer has the preshared key, and
    /// the session is no older than three minutes.
    pub fn is_established(&self) -> bool {
        self.confirmed && self.since_handshake().is_some()
    }

    /// The age of the session, to a [`TICK`]; `None` without one.
    pub fn since_handshake(&self) -> Option<Duration> {
        if self.confirmed { self.tunn.time_since_last_handshake() } else { None }
    }
}

/// Whether the keys of a session of this age want to be renewed, idle or not.
fn is_rekey_due(age: Duration, initiator: bool) -> bool {
    age >= if initiator { REKEY_INITIATOR } else { REKEY_RESPONDER }
}

/// The counter of a data datagram, 16 bytes or more.
fn counter_of(datagram: &[u8]) -> u64 {
    datagram.get(8..).and_then(|rest| rest.first_chunk()).map_or(0, |it| u64::from_le_bytes(*it))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Initiation,
    Response,
    Cookie,
    Data,
}

impl Kind {
    fn of(packet: &Packet<'_>) -> Kind {
        match packet {
            Packet::HandshakeInit(_) => Kind::Initiation,
            Packet::HandshakeResponse(_) => Kind::Response,
            Packet::PacketCookieReply(_) => Kind::Cookie,
            Packet::PacketData(_) => Kind::Data,
        }
    }
}

#[cfg(test)]
mod tests;
