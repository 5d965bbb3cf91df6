//! The rooms of several servers in one Redis: what each of them says of its members, and who else
//! is in a room. [`crate::state::registry::elsewhere`] decides what comes of it.
//!
//! ```text
//!   main (registry) --Task: 4,096 places--> "rendezvous:reg0" (link) <==RESP3==> Redis
//!                   <--Told: 4,096 places--                                      put.lua, remove.lua
//! ```
//!
//! Neither side waits for the other: what a queue has no room for is dropped and counted, and made
//! up for by the members' next refresh, in 15 s at the latest. So is everything while there is no
//! connection.

#[cfg(feature = "redis")]
mod link;
#[cfg(feature = "redis")]
mod session;
#[cfg(feature = "redis")]
mod talk;

use super::counters::{Counters, StoreDrop};
use super::store_url::StoreUrl;
use crate::error::Error;
use crate::runtime::queue::{NotSent, Receiver, Sender, Wake};
use crate::runtime::thread::Thread;
use crate::wire::rendezvous::shared::{Place, ServerId};
use crate::wire::rendezvous::{MemberId, RoomId};
use std::sync::Arc;
use std::time::Duration;

/// Six seconds of the refreshes of 10,000 members.
const TASKS_MAX: usize = 4096;
/// As many answers.
const TOLD_MAX: usize = 4096;
/// The parser of RESP nests deep.
const STACK: usize = 512 * 1024;

/// What the store shall do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Write a member down.
    Put {
        /// The room.
        room: RoomId,
        /// Who, and where: here.
        place: Place,
        /// The number of its news.
        news: u32,
        /// The record.
        record: Vec<u8>,
    },
    /// Cross a member out.
    Remove {
        /// The room.
        room: RoomId,
        /// Who, and where: here.
        place: Place,
    },
    /// Pass a call on.
    Call {
        /// The room.
        room: RoomId,
        /// Who calls whom.
        pair: (MemberId, MemberId),
        /// To these servers.
        servers: Vec<ServerId>,
        /// As it travels.
        message: Vec<u8>,
    },
}

/// A member as it is written down.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) place: Place,
    pub(super) age: Duration,
    /// Well-formed.
    pub(super) record: Vec<u8>,
}

/// What the store says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It is there, first or again.
    Up,
    /// A member is written down; these are in the room at other servers.
    Found {
        /// The room.
        room: RoomId,
        /// The member of ours.
        member: MemberId,
        /// The number of its news.
        news: u32,
        /// The others.
        all: Vec<Written>,
        /// How long that took.
        rtt: Duration,
    },
    /// A well-formed message of another server.
    Message(Vec<u8>),
    /// A call has been passed on.
    PassedOn {
        /// The room.
        room: RoomId,
        /// Who calls whom.
        pair: (MemberId, MemberId),
    },
}

/// The main thread's end.
pub(super) struct Store {
    id: ServerId,
    tasks: Sender<Task>,
    /// What the store says; wakes the main thread.
    pub(super) told: Receiver<Told>,
    counters: Arc<Counters>,
    thread: Option<Thread<()>>,
}

impl Store {
    /// Starts the thread that talks to the store. `ttl` is how long a member is written down for.
    #[cfg(feature = "redis")]
    pub(super) fn start(
        url: &StoreUrl,
        ttl: Duration,
        counters: &Arc<Counters>,
        wake: &Wake,
    ) -> Result<Store, Error> {
        use crate::net::random;
        use crate::runtime::event_loop::EventLoop;
        use crate::runtime::{queue, thread};
        use mio::Token;

        let random = random::bytes().map_err(Error::while_doing(|| "cannot make an id"))?;
        let id = ServerId(random);
        let events = EventLoop::new().map_err(Error::while_doing(|| "cannot make a poll"))?;
        let waker = events.waker(Token(link::WAKE)).map(Wake::new);
        let own_wake = waker.map_err(Error::while_doing(|| "cannot make a waker"))?;
        let (tasks, tasks_here) = queue::bounded(TASKS_MAX, &own_wake);
        let (told_here, told) = queue::bounded(TOLD_MAX, wake);
        let link = link::Link::new(
            (url.clone(), id, ttl),
            (events, own_wake),
            (tasks_here, told_here),
            Arc::clone(counters),
        )?;
        let cannot = || "cannot start a thread";
        let thread = thread::spawn("rendezvous:reg", 0, STACK, move || link.run())
            .map_err(Error::while_doing(cannot))?;
        Ok(Store { id, tasks, told, counters: Arc::clone(counters), thread: Some(thread) })
    }

    /// There is nothing that could talk to it.
    #[cfg(not(feature = "redis"))]
    pub(super) fn start(
        url: &StoreUrl,
        _: Duration,
        _: &Arc<Counters>,
        _: &Wake,
    ) -> Result<Store, Error> {
        let cause = std::io::ErrorKind::Unsupported.into();
        Err(Error::System {
            doing: format!("cannot share rooms by {url}: this program was built without redis"),
            cause,
        })
    }

    /// What this server is to the others.
    pub(super) fn id(&self) -> ServerId {
        self.id
    }

    /// Has something done; when too much waits it is dropped.
    pub(super) fn send(&self, task: Task) {
        if let Err(NotSent::Full(_)) = self.tasks.send(task) {
            self.counters.store_dropped(StoreDrop::QueueFull, 1);
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.tasks.close();
        if let Some(thread) = self.thread.take() {
            // A panic has been logged.
            let _ = thread.join();
        }
    }
}
