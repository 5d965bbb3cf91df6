//! The rendezvous servers: a registration at each of them, over each family in which it can be
//! reached. Two members meet if they share one server that works, or if their servers share rooms.

use super::network::{IPV4, IPV6, Network};
use crate::roles::destination::Destination;
use crate::runtime::clock;
use crate::runtime::errands::Errands;
use crate::runtime::queue::{self, Receiver, Sender, Wake};
use crate::state::backoff::Backoff;
use crate::state::registration::{Registration, Step};
use crate::wire::rendezvous::{MemberId, Pass, RoomId, write_endpoint};
use blake2::{Blake2s256, Digest};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// getaddrinfo(3) with its plug-ins uses more stack than our own code.
const STACK: usize = 256 * 1024;
/// Lookups that may wait: one for each server.
const LOOKUPS_MAX: usize = 16;
/// A name is looked up again at most so often.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(15);

/// Members called at the same time: a room's.
const CALLS_MAX: usize = 16;
/// A call is sent so often.
const CALLS: u32 = 4;
/// The server repeats an introduction after 200 ms itself.
const FIRST_CALL_RETRY: Duration = Duration::from_millis(500);
const LONGEST_CALL_RETRY: Duration = Duration::from_secs(4);

/// What the resolver said of a server.
pub(super) struct Looked {
    server: usize,
    found: io::Result<Vec<SocketAddr>>,
}

/// A registration at one server over one socket.
pub(super) struct Place {
    server: usize,
    /// The socket.
    pub(super) socket: u16,
    /// The server's endpoint.
    pub(super) endpoint: SocketAddr,
    /// All that its name has in this family, in the order in which they are tried.
    addresses: Vec<SocketAddr>,
    /// How far it is.
    pub(super) registration: Registration,
    /// The server carries datagrams between members.
    pub(super) relay: bool,
    /// Where the server sees us.
    pub(super) seen: Option<SocketAddr>,
    /// Calls that no introduction has answered yet.
    pub(super) calls: Vec<Call>,
}

/// A call of a member, until it is answered.
pub(super) struct Call {
    pub(super) member: MemberId,
    tx: u64,
    next: Instant,
    retry: Backoff,
    left: u32,
}

/// What is to be sent to a server.
pub(super) enum ToServer {
    /// For the registration.
    Step(Step),
    /// A call.
    Call { tx: u64, pass: Pass, member: MemberId },
}

impl Place {
    /// A cookie that answers a call: the old one had expired. Returns whether it does.
    pub(super) fn renew(&mut self, tx: u64, pass: Pass, now: Instant) -> bool {
        let Some(call) = self.calls.iter_mut().find(|call| call.tx == tx) else {
            return false;
        };
        call.next = now;
        self.registration.renew(pass);
        true
    }

    /// Goes on to the next address of a silent server; returns the old one.
    fn turn(&mut self, now: Instant) -> Option<SocketAddr> {
        let current = self.addresses.iter().position(|address| *address == self.endpoint);
        let next = current.map_or(0, |current| (current + 1) % self.addresses.len());
        let next = *self.addresses.get(next).filter(|next| **next != self.endpoint)?;
        self.registration.restart(now);
        (self.relay, self.seen) = (false, None);
        Some(std::mem::replace(&mut self.endpoint, next))
    }

    fn due_call(&mut self, now: Instant, tx: u64) -> Option<ToServer> {
        self.calls.retain(|call| call.left > 0 || call.next > now);
        if !self.registration.is_in() {
            return None;
        }
        let pass = self.registration.pass()?;
        let call = self.calls.iter_mut().find(|call| call.next <= now)?;
        call.tx = tx;
        call.left -= 1;
        call.next = now + call.retry.failed();
        Some(ToServer::Call { tx, pass, member: call.member })
    }
}

pub(super) struct Meeting {
    room: RoomId,
    servers: Vec<Destination>,
    next_lookup: Vec<Instant>,
    errands: Errands,
    answers: Sender<Looked>,
    looked: Receiver<Looked>,
    places: Vec<Place>,
    /// Servers that were silent, and whose place another one has taken.
    left: Vec<SocketAddr>,
}

/// Brings the addresses of a name into the order in which a room's members try them: another one
/// for each room, so that many rooms spread over servers, and the same one for all members of one.
fn sort_for(room: RoomId, addresses: &mut [SocketAddr]) {
    addresses.sort_by_cached_key(|address| {
        let mut bytes = room.0.to_vec();
        write_endpoint(&mut bytes, *address);
        Blake2s256::digest(bytes)
    });
}

impl Meeting {
    /// Starts looking the servers up.
    pub(super) fn start(servers: &[Destination], room: RoomId, wake: &Wake) -> io::Result<Meeting> {
        let (answers, looked) = queue::bounded(LOOKUPS_MAX, wake);
        let now = clock::now();
        let mut meeting = Meeting {
            room,
            servers: servers.to_vec(),
            next_lookup: vec![now; servers.len()],
            errands: Errands::start("peer:lookup", LOOKUPS_MAX, STACK)?,
            answers,
            looked,
            places: Vec::new(),
            left: Vec::new(),
        };
        for server in 0..meeting.servers.len() {
            meeting.look_up(server, now);
        }
        Ok(meeting)
    }

    fn look_up(&mut self, index: usize, now: Instant) {
        let (Some(server), Some(next)) = (self.servers.get(index), self.next_lookup.get_mut(index))
        else {
            return;
        };
        if now < *next {
            return;
        }
        *next = now + LOOKUP_INTERVAL;
        let (server, answers) = (server.clone(), self.answers.clone());
        self.errands.send(move || {
            // The main thread has ended when it takes no more.
            let _ = answers.send(Looked { server: index, found: server.resolve() });
        });
    }

    /// Takes what the resolver has said. Returns whether there are new places.
    pub(super) fn listen_to_lookups(&mut self, network: &Network, now: Instant) -> bool {
        let mut is_new = false;
        let answers: Vec<Looked> = self.looked.drain().collect();
        for Looked { server, found } in answers {
            match found {
                Ok(mut found) => {
                    sort_for(self.room, &mut found);
                    for socket in [IPV4, IPV6] {
                        is_new |= self.settle(server, socket, &found, network, now);
                    }
                }
                Err(error) => {
                    if let Some(server) = self.servers.get(server) {
                        log::warn!("cannot resolve {server}: {error}");
                    }
                }
            }
        }
        is_new
    }

    /// A server's place over one socket: at the first address, until that is silent.
    fn settle(
        &mut self,
        server: usize,
        socket: u16,
        found: &[SocketAddr],
        network: &Network,
        now: Instant,
    ) -> bool {
        let fits =
            found.iter().copied().filter(|address| network.number_for(*address) == Some(socket));
        let place =
            self.places.iter_mut().find(|place| place.server == server && place.socket == socket);
        let Some(place) = place else {
            let addresses: Vec<SocketAddr> = fits.collect();
            // Two names of one server are one server.
            let is_known =
                |endpoint: &SocketAddr| self.places.iter().any(|place| place.endpoint == *endpoint);
            let endpoint = addresses.iter().copied().find(|endpoint| !is_known(endpoint));
            let Some(endpoint) = endpoint else { return false };
            self.places.push(Place {
                server,
                socket,
                endpoint,
                addresses,
                registration: Registration::new(now),
                relay: false,
                seen: None,
                calls: Vec::new(),
            });
            return true;
        };
        place.addresses = fits.collect();
        false
    }

    /// What is due: which place, and what to send there.
    pub(super) fn poll(
        &mut self,
        now: Instant,
        random: u64,
    ) -> Option<(u16, SocketAddr, ToServer)> {
        for at in 0..self.places.len() {
            let place = self.places.get_mut(at)?;
            if place.registration.is_silent() && place.registration.next_deadline() <= now {
                self.left.extend(place.turn(now));
            }
            let place = self.places.get_mut(at)?;
            if let Some(step) = place.registration.poll(now, random) {
                let (socket, endpoint, server) = (place.socket, place.endpoint, place.server);
                if place.registration.is_silent() {
                    self.look_up(server, now);
                }
                return Some((socket, endpoint, ToServer::Step(step)));
            }
            if let Some(call) = place.due_call(now, random) {
                return Some((place.socket, place.endpoint, call));
            }
        }
        None
    }

    /// When [`Meeting::poll`] has something to say again.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let unresolved = (0..self.servers.len())
            .filter(|server| self.places.iter().all(|place| place.server != *server))
            .filter_map(|server| self.next_lookup.get(server).copied());
        let due = self.places.iter().flat_map(|place| {
            let calls = place.calls.iter().filter(|_| place.registration.is_in());
            calls.map(|call| call.next).chain([place.registration.next_deadline()])
        });
        due.chain(unresolved).min()
    }

    /// Servers that are asked no more, since this was called last.
    pub(super) fn take_left(&mut self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.left)
    }

    /// Asks every server to introduce that member again.
    pub(super) fn call(&mut self, member: MemberId, now: Instant) {
        for place in &mut self.places {
            place.calls.retain(|call| call.member != member);
            if place.calls.len() < CALLS_MAX {
                let retry = Backoff::new(FIRST_CALL_RETRY, LONGEST_CALL_RETRY);
                place.calls.push(Call { member, tx: 0, next: now, retry, left: CALLS });
            }
        }
    }

    /// Looks up again what could not be resolved.
    pub(super) fn retry_lookups(&mut self, now: Instant) {
        for server in 0..self.servers.len() {
            if self.places.iter().all(|place| place.server != server) {
                self.look_up(server, now);
            }
        }
    }

    /// The place that a datagram came from.
    pub(super) fn place_at(&mut self, socket: u16, from: SocketAddr) -> Option<&mut Place> {
        self.places.iter_mut().find(|place| place.socket == socket && place.endpoint == from)
    }

    pub(super) fn places(&self) -> &[Place] {
        &self.places
    }

    /// Where to ask for things besides the registration: the places that have us in the room.
    pub(super) fn entered(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().filter(|place| place.registration.is_in())
    }

    /// Something changed that the others should know.
    pub(super) fn hurry(&mut self, now: Instant) {
        for place in &mut self.places {
            place.registration.hurry(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_a_room_go_to_one_server_and_rooms_to_all() {
        let of = |numbers: &[u8]| -> Vec<SocketAddr> {
            numbers.iter().map(|number| ([192, 0, 2, *number], 12_345).into()).collect()
        };
        let mut firsts = [0; 4];
        for number in 0..100 {
            let room = RoomId([number; 16]);
            let (mut one, mut other) = (of(&[0, 1, 2, 3]), of(&[2, 0, 3, 1]));
            sort_for(room, &mut one);
            sort_for(room, &mut other);
            assert_eq!(one, other);
            let first = (0..4).find(|number| of(&[*number])[0] == one[0]).unwrap();
            firsts[usize::from(first)] += 1;
            // Without the first the order is the same.
            other.remove(0);
            let mut rest = one.split_off(1);
            rest.reverse();
            sort_for(room, &mut rest);
            assert_eq!(rest, other);
        }
        assert!(firsts.iter().all(|count| *count >= 10), "{firsts:?}");
    }
}
