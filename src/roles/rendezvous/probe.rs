//! A blocking client, for `check` and `selftest`.

use crate::net::random;
use crate::roles::member_key::Secret;
use crate::runtime::clock;
use crate::wire::rendezvous::answer::{Answer, Introduced, parse_answer};
use crate::wire::rendezvous::request::{Request, Wish, write_request};
use crate::wire::rendezvous::{DATAGRAM_LEN_MAX, MemberId, Pass, RoomId};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// An unanswered request is repeated after so long, then after twice as long each time.
const RETRY: Duration = Duration::from_millis(250);

/// Any answer and any relayed datagram of the proof.
const BUFFER_LEN: usize = 2048;

const _: () = assert!(BUFFER_LEN > DATAGRAM_LEN_MAX);

/// One socket of a client.
pub(super) struct Probe {
    socket: UdpSocket,
    timeout: Duration,
    room: RoomId,
    secret: Secret,
    pass: Option<Pass>,
}

/// What the server said to a registration.
pub(super) struct Registered {
    pub(super) member: MemberId,
    pub(super) endpoint: SocketAddr,
    pub(super) refresh_s: u16,
    pub(super) expiry_s: u16,
    pub(super) relay: bool,
}

impl Probe {
    /// Talks to `server` and to nobody else; waits up to `timeout` for each answer.
    pub(super) fn connect(
        server: SocketAddr,
        room: RoomId,
        timeout: Duration,
    ) -> io::Result<Probe> {
        let socket = UdpSocket::bind(crate::net::udp::any_port(server))?;
        socket.connect(server)?;
        let secret = Secret::from_random(random::bytes()?);
        Ok(Probe { socket, timeout, room, secret, pass: None })
    }

    /// Our own endpoint, without any NAT.
    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Asks for a cookie and returns where the server sees us.
    pub(super) fn hello(&mut self) -> io::Result<SocketAddr> {
        let tx = random_tx()?;
        let request = written(&Request::Hello { tx });
        let (pass, endpoint) = self.ask(&request, |datagram| match parse_answer(datagram) {
            Some(Answer::Cookie { tx: of, pass, endpoint }) if of == tx => {
                Some(Ok((pass, endpoint)))
            }
            _ => None,
        })?;
        self.pass = Some(pass);
        Ok(endpoint)
    }

    /// Enters the room.
    pub(super) fn register(&mut self) -> io::Result<Registered> {
        let tx = random_tx()?;
        let request = self.boxed(tx, &Wish::Register { rtt_ms: 0, sealed: &[] })?;
        self.ask(&request, |datagram| match parse_answer(datagram) {
            Some(Answer::Registered {
                tx: of,
                member,
                endpoint,
                refresh_s,
                expiry_s,
                relay,
                ..
            }) if of == tx => Some(Ok(Registered { member, endpoint, refresh_s, expiry_s, relay })),
            Some(Answer::Refused { tx: of, reason }) if of == tx => {
                Some(Err(io::Error::other(format!("refused: {reason:?}"))))
            }
            Some(Answer::Cookie { tx: of, .. }) if of == tx => {
                Some(Err(io::Error::other("the cookie does not count")))
            }
            _ => None,
        })
    }

    /// Waits for the introduction to another member and acknowledges it; returns where it is.
    pub(super) fn introduced(&self) -> io::Result<(MemberId, SocketAddr)> {
        let (introduction, member, endpoint) =
            self.receive(clock::now() + self.timeout, |datagram| match parse_answer(datagram) {
                Some(Answer::Introduce(Introduced { introduction, member, endpoints, .. })) => {
                    Some((introduction, member, endpoints.first))
                }
                _ => None,
            })?;
        self.socket.send(&written(&Request::Introduced { introduction }))?;
        Ok((member, endpoint))
    }

    /// Leaves the room.
    pub(super) fn leave(&self) -> io::Result<()> {
        let tx = random_tx()?;
        self.ask(&self.boxed(tx, &Wish::Leave)?, |datagram| match parse_answer(datagram) {
            Some(Answer::Left { tx: of }) if of == tx => Some(Ok(())),
            _ => None,
        })
    }

    /// A wish as only the server can read it.
    fn boxed(&self, tx: u64, wish: &Wish<'_>) -> io::Result<Vec<u8>> {
        let pass = self.pass.ok_or_else(|| io::Error::other("no cookie yet"))?;
        let cipher = self.secret.towards(pass.server);
        let cipher = cipher.ok_or_else(|| io::Error::other("the server's key is none"))?;
        let mut datagram = Vec::new();
        cipher.write(&mut datagram, tx, pass, self.room, wish);
        Ok(datagram)
    }

    /// Sends a datagram to a member through the server.
    pub(super) fn relay(&self, member: MemberId, payload: &[u8]) -> io::Result<()> {
        self.socket.send(&written(&Request::Relay { member, payload })).map(|_| ())
    }

    /// The next datagram of `member` that came through the server.
    pub(super) fn relayed(&self, member: MemberId) -> io::Result<Vec<u8>> {
        self.receive(clock::now() + self.timeout, |datagram| match parse_answer(datagram) {
            Some(Answer::Relayed { member: from, payload }) if from == member => {
                Some(payload.to_vec())
            }
            _ => None,
        })
    }

    /// Sends a request until something comes that `read` takes for its answer.
    pub(super) fn ask<T>(
        &self,
        request: &[u8],
        read: impl Fn(&[u8]) -> Option<io::Result<T>>,
    ) -> io::Result<T> {
        let deadline = clock::now() + self.timeout;
        let mut retry = RETRY;
        loop {
            self.socket.send(request)?;
            let until = deadline.min(clock::now() + retry);
            match self.receive(until, &read) {
                Ok(answer) => return answer,
                Err(error) if is_timeout(&error) && clock::now() < deadline => retry *= 2,
                Err(error) => return Err(error),
            }
        }
    }

    fn receive<T>(&self, deadline: Instant, read: impl Fn(&[u8]) -> Option<T>) -> io::Result<T> {
        let mut bytes = [0; BUFFER_LEN];
        loop {
            let left = clock::until(deadline, clock::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.recv(&mut bytes) {
                Ok(len) => {
                    if let Some(found) = read(&bytes[..len]) {
                        return Ok(found);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted || is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether nothing came in time.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

fn random_tx() -> io::Result<u64> {
    random::bytes().map(u64::from_ne_bytes)
}

fn written(request: &Request<'_>) -> Vec<u8> {
    let mut datagram = Vec::new();
    write_request(&mut datagram, request);
    datagram
}
