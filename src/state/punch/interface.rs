//! What a [`Punch`](super::Punch) is told, and what it says.

use super::candidates::{Candidate, CandidateKind};
use super::prospects::NatFacts;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The index of the socket that sends over IPv4, and of the one over IPv6.
pub const IPV4_SOCKET: u16 = 0;
/// See [`IPV4_SOCKET`].
pub const IPV6_SOCKET: u16 = 1;
/// The index of the first of the sockets that [`Action::Open`] asks for.
pub const EXTRA_SOCKET_FIRST: u16 = 2;

/// Over what a host can send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Both,
}

impl Families {
    /// Whether there is a socket of this index: an extra one is there when it was heard on.
    pub(super) fn has_socket(self, socket: u16) -> bool {
        match socket {
            IPV4_SOCKET => self != Families::V6,
            IPV6_SOCKET => self != Families::V4,
            _ => true,
        }
    }
}

/// What does not change while the member is there.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Which of the two sockets there are.
    pub families: Families,
    /// This side starts the handshake (its public key is the smaller), and where both sides found
    /// paths, its path counts.
    pub leads: bool,
    /// Datagrams can go over the server's relay.
    pub relay: bool,
    /// How often a path is pinged; after three times as long a silence it is probed anew.
    pub keepalive: Duration,
    /// A random number.
    pub seed: u64,
}

/// What the server and the member's announcement say.
#[derive(Debug, Clone)]
pub struct Introduction {
    /// Where the member may be, announced and seen.
    pub candidates: Vec<Candidate>,
    /// What this side knows of its own NAT.
    pub mine: NatFacts,
    /// What the member knows of its NAT.
    pub theirs: NatFacts,
    /// When to send the first ping; at most a second ahead.
    pub start: Instant,
}

/// A direct path that works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// Through which socket.
    pub socket: u16,
    /// Where to.
    pub endpoint: SocketAddr,
    /// How that endpoint was known.
    pub kind: CandidateKind,
    /// The last ping's round trip.
    pub rtt: Option<Duration>,
    /// Where the member sees this side.
    pub seen: Option<SocketAddr>,
}

/// What the caller is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send a ping.
    Ping {
        /// Through which socket. If that one could not be opened, there is nothing to do.
        socket: u16,
        /// Where to.
        to: SocketAddr,
        /// Its number.
        tx: u64,
    },
    /// There is a path, or it is another one than before.
    Path(Path),
    /// There is no path (any more): send over the relay. A path may follow.
    Relay,
    /// There is no path any more, and no relay. A path may follow.
    Lost,
    /// Probing has ended without a path, and there is no relay. It begins anew in a minute.
    Failed,
    /// Ask the server to introduce both sides again.
    Call,
    /// Open so many more IPv4 sockets on ports of the system's choice; their indices begin with
    /// [`EXTRA_SOCKET_FIRST`].
    Open(u16),
    /// Close the extra sockets, except the one of this index.
    Close(Option<u16>),
}
