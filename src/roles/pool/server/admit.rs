//! Who gets in: connections and sessions within their limits, and who goes for them.

use super::{ConnectionHandle, FIRST_JOIN_MAX, STACK, Server, SessionHandle, Tells, ToMain};
use crate::net::udp::{UdpSocket, any_port};
use crate::roles::listening::Room;
use crate::roles::pool::batch::{LinkHandle, Links};
use crate::roles::pool::connection::{Begin, Connection, Frame};
use crate::roles::pool::counters::SetUpFailure;
use crate::roles::pool::link::Sink;
use crate::roles::pool::session::{Orders, Session, UDP, WAKE as SESSION_WAKE};
use crate::roles::pool::{Activity, ErrorRun, Framing};
use crate::runtime::clock;
use crate::runtime::event_loop::EventLoop;
use crate::runtime::queue::Wake;
use crate::runtime::thread;
use crate::state::session_choice::{Candidate, victim};
use crate::wire::pool::SessionId;
use mio::Interest;
use mio::net::TcpStream;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Sessions that make room and whose threads have not ended yet.
const LEAVING_MAX: usize = 64;

/// One in so many of the places that descriptors allow, and this many at most, stays free for those
/// who come before those who make room for them have gone.
const SPARE_PART: usize = 8;
const SPARE_MAX: usize = 64;

/// Connections and sessions that may stay, where descriptors allow `room` of both together.
pub(super) fn staying_max(room: usize) -> usize {
    (room - (room / SPARE_PART).clamp(1, SPARE_MAX).min(room)).max(1)
}

impl Server {
    /// Takes an accepted connection, whose thread sets it up.
    pub(super) fn admit(
        &mut self,
        stream: TcpStream,
        address: SocketAddr,
        now: Instant,
    ) -> io::Result<Room> {
        let max = self.config.connections_max;
        // Those that leave have ended in a moment; a flood must not make many of them.
        let staying = self.connections.len() - self.connections_leaving;
        let lacks_descriptors = staying + self.sessions.len() >= staying_max(self.descriptor_room);
        let has_room =
            (staying < max && !lacks_descriptors) || self.give_up_session_with_connections();
        if !has_room || self.connections.len() >= 2 * max {
            self.shared.counters.set_up_failed(SetUpFailure::Limit);
            if let Some(more) = self.limit_log.pass(now) {
                let limit = if lacks_descriptors {
                    format!("{staying} are open, and descriptors allow no more")
                } else {
                    format!("--max-connections {max} are open")
                };
                log::warn!("connection {address}: refused: {limit} ({more} more lines)");
            }
            return Ok(Room::More);
        }
        // Never twice the same, not even after a failure: ends are told by it.
        let id = self.connections_started;
        self.connections_started += 1;
        let frame = Frame {
            shared: &self.shared,
            to_main: &self.to_main,
            acceptor: self.acceptor.as_ref(),
            framing: self.config.shared.framing,
            queue_datagrams_max: self.config.shared.queue_datagrams_max,
            handshake_timeout: self.config.handshake_timeout,
        };
        let (connection, orders) = Connection::new(&frame, id, address, stream)?;
        let to_main = self.to_main.clone();
        let thread = thread::spawn("pool:c", id, STACK, move || {
            // Made here: a thread that did not start tells nothing.
            let _gone = Tells { message: Some(ToMain::ConnectionGone { connection: id }), to_main };
            connection.run();
        })?;
        let handle = ConnectionHandle { orders, thread, session: None, address, is_leaving: false };
        self.connections.insert(id, handle);
        if let Some(victim) = self.set_ups.begin(id, address.ip()) {
            self.refuse(victim, "too many --max-handshakes, and its address has the most of them");
        }
        Ok(if self.has_descriptors() { Room::More } else { Room::Full })
    }

    /// Whether there are descriptors for one more connection or session, beside those that leave.
    fn has_descriptors(&self) -> bool {
        let taken = self.connections.len() + self.sessions.len() + self.sessions_leaving.len();
        taken < self.descriptor_room
    }

    /// A connection has told its session.
    pub(super) fn join(&mut self, connection: u64, session: SessionId, link: LinkHandle) {
        self.set_ups.end(connection);
        if self.connections.get(&connection).is_none_or(|handle| handle.is_leaving) {
            return;
        }
        if !self.sessions.contains_key(&session) {
            if let Err(cause) = self.open_session(session) {
                self.refuse(connection, &cause);
                return;
            }
        }
        let connections_max = self.config.connections_per_session_max;
        let (Some(handle), Some(owner)) =
            (self.connections.get_mut(&connection), self.sessions.get_mut(&session))
        else {
            return;
        };
        if owner.orders.connections() >= connections_max {
            let cause = format!("its session has --max-connections-per-session {connections_max}");
            self.refuse(connection, &cause);
            return;
        }
        let begin = Begin {
            sink: Sink { socket: Arc::clone(&owner.socket), endpoint: None, source: None },
            activity: Arc::clone(&owner.activity),
        };
        if !owner.orders.add(link) {
            // The session ends at this moment, or has not kept up; the client comes again.
            handle.orders.close();
            return;
        }
        if owner.deserted_since.take().is_some() {
            self.shared.counters.reconnects.increment();
        }
        handle.session = Some(owner.serial);
        self.shared.counters.connections_up.increment();
        self.shared.counters.connections.add(1);
        // Only now: the target's answer to the first datagram must find the connection. One that
        // has ended meanwhile says so itself.
        let _ = handle.orders.send(begin);
    }

    fn refuse(&mut self, connection: u64, cause: &str) {
        self.shared.counters.set_up_failed(SetUpFailure::Limit);
        if let Some(handle) = self.connections.get(&connection) {
            if let Some(more) = self.limit_log.pass(clock::now()) {
                log::warn!("connection {}: refused: {cause} ({more} more lines)", handle.address);
            }
        }
        self.close_connection(connection);
    }

    fn close_connection(&mut self, connection: u64) {
        if let Some(handle) = self.connections.get_mut(&connection) {
            handle.orders.close();
            self.connections_leaving += usize::from(!handle.is_leaving);
            handle.is_leaving = true;
        }
    }

    /// Ends the session that is missed least, and its connections, if one may be given up.
    fn give_up_session(&mut self, may_be: impl Fn(&SessionHandle) -> bool) -> bool {
        if self.sessions_leaving.len() >= LEAVING_MAX {
            return false;
        }
        let candidates = self.sessions.values().filter(|owner| may_be(owner));
        let given_up = victim(candidates.map(|owner| Candidate {
            serial: owner.serial,
            deserted_since: owner.deserted_since,
            has_carried: owner.activity.has_carried(),
        }));
        let id = given_up.and_then(|serial| {
            self.sessions.values().find(|owner| owner.serial == serial).map(|owner| owner.id)
        });
        let Some((id, owner)) = id.and_then(|id| self.sessions.remove_entry(&id)) else {
            return false;
        };
        self.shared.tell(id, &"given up for another one");
        owner.orders.close();
        let its = |(id, handle): (&u64, &ConnectionHandle)| {
            (handle.session == Some(owner.serial)).then_some(*id)
        };
        let connections: Vec<u64> = self.connections.iter().filter_map(its).collect();
        for connection in connections {
            self.close_connection(connection);
        }
        self.sessions_leaving.insert(owner.serial, (id, owner.thread));
        true
    }

    fn give_up_session_with_connections(&mut self) -> bool {
        self.give_up_session(|owner| owner.orders.connections() > 0)
    }

    fn open_session(&mut self, id: SessionId) -> Result<(), String> {
        let max = self.config.shared.sessions_max;
        let lacks_descriptors = !self.has_descriptors();
        if (self.sessions.len() >= max || lacks_descriptors) && !self.give_up_session(|_| true) {
            return Err(if lacks_descriptors {
                "no descriptors for another session".to_owned()
            } else {
                format!("--max-sessions {max} are open")
            });
        }
        if let Some(lookup) = &self.lookup {
            // For the next session: this one takes what is known.
            let to_main = self.to_main.clone();
            lookup.ask(move |found| match found {
                Ok(targets) => drop(to_main.send_waiting(ToMain::Addresses(targets))),
                Err(error) => log::warn!("cannot resolve the destination again: {error}"),
            });
        }
        let now = clock::now();
        let serial = self.sessions_started;
        self.sessions_started += 1;
        // The queue's memory is taken at once: not for more than there can be.
        let connections_max =
            self.config.connections_per_session_max.min(self.config.connections_max);
        let activity = Arc::new(Activity::new(now));
        let opened = self.connect_target().and_then(|mut socket| {
            let mut events = EventLoop::new()?;
            let wake = Wake::new(events.waker(SESSION_WAKE)?);
            let (orders_sender, orders) = Orders::new(connections_max, &wake);
            events.register(socket.source(), UDP, Interest::READABLE)?;
            let socket = Arc::new(socket);
            let session = Session {
                shared: Arc::clone(&self.shared),
                events,
                orders,
                socket: Arc::clone(&socket),
                activity: Arc::clone(&activity),
                links: Links::new(self.config.shared.queue_datagrams_max),
                silence_max: self.config.session_timeout,
                grace: match self.config.shared.framing {
                    Framing::Pool => self.config.session_grace,
                    // Nobody can come back to it.
                    Framing::Mullvad => Duration::ZERO,
                },
                // Its first connection is on its way, whatever the grace.
                deserted_until: Some(now + self.config.session_grace.max(FIRST_JOIN_MAX)),
                errors: ErrorRun::default(),
            };
            let to_main = self.to_main.clone();
            let thread = thread::spawn("pool:s", serial, STACK, move || {
                let _gone = Tells { message: Some(ToMain::SessionGone { serial }), to_main };
                session.run()
            })?;
            Ok((orders_sender, thread, socket))
        });
        let (orders, thread, socket) =
            opened.map_err(|error| format!("cannot open a session: {error}"))?;
        let handle =
            SessionHandle { serial, id, orders, thread, socket, activity, deserted_since: None };
        self.sessions.insert(id, handle);
        self.shared.counters.sessions.add(1);
        self.shared.counters.sessions_opened.increment();
        self.shared.tell(id, &"opened");
        Ok(())
    }

    fn connect_target(&self) -> io::Result<UdpSocket> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for target in &self.targets {
            let socket = UdpSocket::bind(any_port(*target), false, self.config.shared.udp_buffers)
                .and_then(|socket| socket.connect(*target).map(|()| socket));
            match socket {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}
