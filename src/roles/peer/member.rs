//! One other member: its announcement, the search for a path to it, and the tunnel over that path.

use super::chat::Chat;
use super::seal::Newest;
use super::tunnel::Tunnel;
use crate::state::backoff::Backoff;
use crate::state::punch::Punch;
use crate::state::punch::interface::Path;
use crate::wire::peer::Announcement;
use crate::wire::rendezvous::MemberId;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A handshake or a greeting without an answer is repeated after so long, then after twice as long
/// each time. WireGuard waits 5 s; this path has just been seen to work.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// The side that follows starts the handshake itself if it has heard nothing for so long.
const FOLLOWER_WAITS: Duration = Duration::from_secs(1);
/// Introductions remembered, so that a repeated one counts once.
const INTRODUCTIONS_MAX: usize = 8;

/// How a member is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    /// Not at all, now.
    Nowhere,
    /// Directly.
    Direct(Path),
    /// Through the relay of the server that introduced it.
    Relay,
}

/// A server's relay: through which socket, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Relay {
    pub(super) socket: u16,
    pub(super) server: SocketAddr,
}

/// What is due towards a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Handshake,
    Greeting,
}

pub(super) struct Member {
    pub(super) id: MemberId,
    pub(super) announcement: Announcement,
    pub(super) newest: Newest,
    /// What to call it, fit for a terminal.
    pub(super) name: String,
    pub(super) punch: Punch,
    pub(super) tunnel: Tunnel,
    pub(super) chat: Chat,
    pub(super) via: Via,
    pub(super) relay: Option<Relay>,
    /// This side starts handshakes.
    pub(super) leads: bool,
    /// The servers that have introduced it, and whether it is registered there itself: then their
    /// relay reaches it.
    pub(super) servers: Vec<(SocketAddr, bool)>,
    /// Of our chat with it.
    pub(super) epoch: u64,
    /// Its greeting has come: what is said reaches it.
    pub(super) is_here: bool,
    /// When it was introduced last.
    pub(super) introduced: Instant,
    /// When it was introduced first.
    pub(super) admitted: Instant,
    /// A handshake has shown that its key is its own. Until then it is one who claims so.
    pub(super) is_proven: bool,
    /// Of the chat with another member that has shown the same key: who greets with the same has
    /// passed that member's handshake on.
    pub(super) taken_epoch: Option<u64>,
    introductions: VecDeque<u64>,
    retry: Backoff,
    due: Option<Instant>,
}

impl Member {
    pub(super) fn new(
        id: MemberId,
        announcement: Announcement,
        name: String,
        punch: Punch,
        tunnel: Tunnel,
        (leads, epoch): (bool, u64),
        now: Instant,
    ) -> Member {
        Member {
            id,
            announcement,
            newest: Newest::default(),
            name,
            punch,
            tunnel,
            chat: Chat::new(),
            via: Via::Nowhere,
            relay: None,
            leads,
            servers: Vec::new(),
            epoch,
            is_here: false,
            introduced: now,
            admitted: now,
            is_proven: false,
            taken_epoch: None,
            introductions: VecDeque::new(),
            retry: Backoff::new(FIRST_RETRY, LONGEST_RETRY),
            due: None,
        }
    }

    /// Whether this introduction has not been heard before.
    pub(super) fn is_news(&mut self, introduction: u64) -> bool {
        if self.introductions.contains(&introduction) {
            return false;
        }
        if self.introductions.len() >= INTRODUCTIONS_MAX {
            self.introductions.pop_front();
        }
        self.introductions.push_back(introduction);
        true
    }

    /// Whether a server has it in the room.
    pub(super) fn is_registered(&self) -> bool {
        !self.servers.is_empty()
    }

    /// It can be reached now, or otherwise than before, or not any more.
    pub(super) fn reached(&mut self, via: Via, now: Instant) {
        self.via = via;
        self.chat.path_changed(now);
        if via == Via::Nowhere || (self.is_here && self.tunnel.is_established()) {
            self.due = None;
            return;
        }
        self.retry.succeeded();
        self.due = Some(if self.leads { now } else { now + FOLLOWER_WAITS });
    }

    /// What is due at `now`; it is due again later, until the member is here.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Due> {
        if self.via == Via::Nowhere || self.due.is_none_or(|due| due > now) {
            return None;
        }
        self.due = Some(now + self.retry.failed());
        Some(if self.tunnel.is_established() { Due::Greeting } else { Due::Handshake })
    }

    /// A handshake has been completed: greet, if it is not here yet.
    pub(super) fn established(&mut self, now: Instant) {
        self.due = None;
        if !self.is_here {
            self.retry.succeeded();
            self.due = Some(now);
        }
    }

    /// The session is gone: a handshake is due.
    pub(super) fn expired(&mut self, now: Instant) {
        if self.due.is_none() {
            self.retry.succeeded();
            self.due = Some(now);
        }
    }

    /// Its greeting has come. Returns whether it was not here before.
    pub(super) fn greeted(&mut self) -> bool {
        self.due = None;
        !std::mem::replace(&mut self.is_here, true)
    }

    /// When there is something to do, chat apart.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let own = if self.via == Via::Nowhere { None } else { self.due };
        [own, self.punch.next_deadline(), self.chat.next_due()].into_iter().flatten().min()
    }
}
