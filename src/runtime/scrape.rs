//! The metrics listener: Prometheus scrapes and health checks over HTTP, in a role's own poll.

use super::event_loop::{EventLoop, Readiness};
use super::metrics::{REQUEST_MAX, Registry, respond};
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Token};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Scrapes under way at once: a few Prometheus servers and health checks. One more pushes out the
/// oldest, so that idle connections cannot keep a scraper out.
const CONNECTIONS_MAX: usize = 16;

/// From accept to the end of the answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long accepting pauses when the system has no descriptor left. The poll tells of a connection
/// once, so nobody else would remind us of it when descriptors return.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

/// The poll tokens that a [`Scrapes`] uses, from its first one.
pub const TOKENS: usize = 1 + CONNECTIONS_MAX;

struct Connection {
    socket: TcpStream,
    place: usize,
    deadline: Instant,
    request: Vec<u8>,
    answer: Option<Vec<u8>>,
    written: usize,
}

/// The listener and its connections, oldest first.
pub struct Scrapes {
    listener: TcpListener,
    first_token: usize,
    connections: VecDeque<Connection>,
    accept_again: Option<Instant>,
}

impl Scrapes {
    /// Listens on `address` and uses the [`TOKENS`] tokens from `first_token` on in `events`.
    pub fn listen(
        address: SocketAddr,
        events: &mut EventLoop,
        first_token: usize,
    ) -> io::Result<Scrapes> {
        let mut listener = TcpListener::bind(address)?;
        events.register(&mut listener, Token(first_token), Interest::READABLE)?;
        Ok(Scrapes { listener, first_token, connections: VecDeque::new(), accept_again: None })
    }

    /// The address listened on.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Whether a token is one of ours.
    pub fn owns(&self, token: Token) -> bool {
        (self.first_token..self.first_token + TOKENS).contains(&token.0)
    }

    /// When [`Scrapes::expire`] is worth calling.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.oldest_deadline().into_iter().chain(self.accept_again).min()
    }

    /// Closes connections that took too long, and ends a pause in accepting.
    pub fn expire(&mut self, now: Instant, events: &mut EventLoop) {
        while self.oldest_deadline().is_some_and(|deadline| deadline <= now) {
            self.close(0, events);
        }
        if self.accept_again.is_some_and(|again| again <= now) {
            self.accept_again = None;
            events.again(Token(self.first_token), Readiness::READABLE);
        }
    }

    fn oldest_deadline(&self) -> Option<Instant> {
        self.connections.front().map(|connection| connection.deadline)
    }

    /// Handles an event of one of our tokens.
    pub fn handle(
        &mut self,
        token: Token,
        readiness: Readiness,
        now: Instant,
        events: &mut EventLoop,
        registry: &Registry,
    ) {
        if token.0 == self.first_token {
            self.accept(token, readiness, now, events);
            return;
        }
        let place = token.0 - self.first_token - 1;
        let Some(index) = self.connections.iter().position(|connection| connection.place == place)
        else {
            return;
        };
        if self.connections[index].go_on(registry).is_some() {
            self.close(index, events);
        }
    }

    fn accept(&mut self, token: Token, readiness: Readiness, now: Instant, events: &mut EventLoop) {
        match self.listener.accept() {
            Ok((mut socket, _)) => {
                if self.connections.len() == CONNECTIONS_MAX {
                    self.close(0, events);
                }
                let place = (0..CONNECTIONS_MAX)
                    .find(|place| self.connections.iter().all(|other| other.place != *place));
                let both = Interest::READABLE | Interest::WRITABLE;
                if let Some(place) = place {
                    let token = Token(self.first_token + 1 + place);
                    if events.register(&mut socket, token, both).is_ok() {
                        self.connections.push_back(Connection {
                            socket,
                            place,
                            deadline: now + TIMEOUT,
                            request: Vec::new(),
                            answer: None,
                            written: 0,
                        });
                    }
                }
                events.again(token, readiness);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                events.again(token, readiness);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Out of descriptors, or the connection is gone already (accept(2)).
            Err(_) => self.accept_again = Some(now + ACCEPT_PAUSE),
        }
    }

    fn close(&mut self, index: usize, events: &mut EventLoop) {
        if let Some(mut connection) = self.connections.remove(index) {
            let token = Token(self.first_token + 1 + connection.place);
            // The socket is closed next, which ends the watching in any case.
            let _ = events.deregister(&mut connection.socket, token);
        }
    }
}

impl Connection {
    /// Reads and answers as far as possible; `Some` when the connection is over.
    fn go_on(&mut self, registry: &Registry) -> Option<()> {
        while self.answer.is_none() {
            let mut bytes = [0; REQUEST_MAX];
            match self.socket.read(&mut bytes) {
                Ok(0) => return Some(()),
                Ok(len) => {
                    self.request.extend_from_slice(&bytes[..len]);
                    self.answer = respond(&self.request, registry);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(_) => return Some(()),
            }
        }
        let answer = self.answer.as_deref().unwrap_or_default();
        while self.written < answer.len() {
            match self.socket.write(&answer[self.written..]) {
                Ok(len) if len > 0 => self.written += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Ok(_) | Err(_) => return Some(()),
            }
        }
        Some(())
    }
}
