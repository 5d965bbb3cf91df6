//! One other member: its announcement, the search for a path to it, and the tunnel over that path.

use super::chat::Chat;
use super::tunnel::Tunnel;
use crate::state::backoff::Backoff;
use crate::state::punch::{Path, Punch};
use crate::wire::peer::Announcement;
use crate::wire::rendezvous::MemberId;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A handshake or a greeting without an answer is repeated after so long, then after twice as long.
/// WireGuard takes 5 s; the path has just been seen to work.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// The follower starts the handshake itself if it has heard nothing for so long.
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
    /// Through the server's relay: over that socket, to that server.
    Relay { socket: u16, server: SocketAddr },
}

pub(super) struct Member {
    pub(super) id: MemberId,
    pub(super) announcement: Announcement,
    /// What to call it on a terminal.
    pub(super) name: String,
    pub(super) punch: Punch,
    pub(super) tunnel: Tunnel,
    pub(super) chat: Chat,
    pub(super) via: Via,
    /// This side starts handshakes.
    pub(super) leads: bool,
    /// The server has it in the room.
    pub(super) is_registered: bool,
    /// Its greeting has come: what is said reaches it.
    pub(super) is_here: bool,
    /// Since the path, or the lack of one, was shown.
    pub(super) shown: Option<Via>,
    /// When it was introduced last.
    pub(super) introduced: Instant,
    /// When anything of it was heard last.
    pub(super) heard: Instant,
    introductions: VecDeque<u64>,
    retry: Backoff,
    /// When to start a handshake, or to greet, (again).
    pub(super) due: Option<Instant>,
}

/// What a member needs from its own side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// A handshake.
    Handshake,
    /// A greeting.
    Greeting,
}

impl Member {
    pub(super) fn new(
        id: MemberId,
        announcement: Announcement,
        name: String,
        punch: Punch,
        tunnel: Tunnel,
        leads: bool,
        now: Instant,
    ) -> Member {
        Member {
            id,
            announcement,
            name,
            punch,
            tunnel,
            chat: Chat::default(),
            via: Via::Nowhere,
            leads,
            is_registered: true,
            is_here: false,
            shown: None,
            introduced: now,
            heard: now,
            introductions: VecDeque::new(),
            retry: Backoff::new(FIRST_RETRY, LONGEST_RETRY),
            due: None,
        }
    }

    /// Whether this introduction has not been heard before.
    pub(super) fn is_new(&mut self, introduction: u64) -> bool {
        if self.introductions.contains(&introduction) {
            return false;
        }
        if self.introductions.len() >= INTRODUCTIONS_MAX {
            self.introductions.pop_front();
        }
        self.introductions.push_back(introduction);
        true
    }

    /// It can be reached now, or otherwise than before.
    pub(super) fn reached(&mut self, via: Via, now: Instant) {
        self.via = via;
        if self.is_here || via == Via::Nowhere {
            self.due = None;
            return;
        }
        self.retry.succeeded();
        self.due = Some(if self.leads { now } else { now + FOLLOWER_WAITS });
    }

    /// What is due at `now`; it is due again later, until the member is here.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Due> {
        if self.via == Via::Nowhere || self.is_here || self.due.is_none_or(|due| due > now) {
            return None;
        }
        self.due = Some(now + self.retry.failed());
        Some(if self.tunnel.is_established() { Due::Greeting } else { Due::Handshake })
    }

    /// The handshake is complete: the greeting is due.
    pub(super) fn established(&mut self, now: Instant) {
        if !self.is_here {
            self.retry.succeeded();
            self.due = Some(now);
        }
    }

    /// Its greeting has come. Returns whether it was not here before.
    pub(super) fn greeted(&mut self) -> bool {
        self.due = None;
        !std::mem::replace(&mut self.is_here, true)
    }

    /// When [`Member::poll`] has something to say again.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let own = if self.via == Via::Nowhere { None } else { self.due };
        [own, self.punch.next_deadline(), self.chat.next_deadline()].into_iter().flatten().min()
    }
}
