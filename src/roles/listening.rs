//! TCP listeners of a role: opened or passed in, accepting within what the system has room for.

use super::frame::FIRST_OWN;
use crate::error::Error;
use crate::net::listen;
use crate::net::tcp::{self, StreamOptions};
use crate::runtime::event_loop::{EventLoop, Readiness};
use crate::runtime::metrics::Counter;
use crate::state::backoff::Backoff;
use crate::state::token_bucket::LogGate;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Token};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Connections accepted per turn, so that a flood of them cannot keep signals waiting.
const ACCEPTS_PER_TURN: usize = 64;

/// How long accepting pauses when the system has no descriptors, memory or threads left.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Descriptors of the process itself, with every listener and scrape in use.
pub const DESCRIPTORS_RESERVED: u64 = 64;

/// How many things of `descriptors_each` fit into the limit of open files, at least one.
pub fn room_for(open_files_max: u64, descriptors_each: u64) -> usize {
    let room = open_files_max.saturating_sub(DESCRIPTORS_RESERVED) / descriptors_each.max(1);
    usize::try_from(room).unwrap_or(usize::MAX).max(1)
}

/// A role's listeners, watched by its main thread's poll from token [`FIRST_OWN`] on.
pub struct Listening {
    listeners: Vec<TcpListener>,
    pause: Backoff,
    again: Option<Instant>,
    log: LogGate,
    errors: Arc<Counter>,
}

impl Listening {
    /// Takes the listeners that the service manager passed in, and opens `addresses`. Passed ones
    /// stand in for the addresses if those are only the `default`, and for any address that they
    /// have. Pauses are counted in `errors`.
    pub fn open(
        events: &mut EventLoop,
        addresses: &[SocketAddr],
        default: bool,
        options: &StreamOptions,
        errors: Arc<Counter>,
    ) -> Result<Listening, Error> {
        let inherited = listen::inherited_tcp_listeners()
            .map_err(Error::while_doing(|| "cannot take the passed listening sockets"))?;
        let mut listeners = Vec::new();
        let mut taken = Vec::new();
        for listener in inherited {
            taken.extend(listener.local_addr());
            listeners.push(
                tcp::adopt(listener, options)
                    .map_err(Error::while_doing(|| "cannot use a passed listening socket"))?,
            );
        }
        if listeners.is_empty() || !default {
            for address in addresses.iter().filter(|address| !taken.contains(address)) {
                listeners.push(
                    tcp::listen(*address, options).map_err(Error::while_doing(|| {
                        format!("cannot listen on tcp {address}")
                    }))?,
                );
            }
        }
        for (listener, token) in listeners.iter_mut().zip(FIRST_OWN..) {
            events
                .register(listener, Token(token), Interest::READABLE)
                .map_err(Error::while_doing(|| "cannot watch a listener"))?;
            if let Ok(address) = listener.local_addr() {
                log::info!("listening on tcp {address}");
            }
        }
        Ok(Listening {
            listeners,
            pause: Backoff::new(PAUSE.0, PAUSE.1),
            again: None,
            log: LogGate::new(1, 5),
            errors,
        })
    }

    /// When [`Listening::resume`] is worth calling.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.again
    }

    /// Goes on accepting when a pause is over.
    pub fn resume(&mut self, now: Instant, events: &mut EventLoop) {
        if self.again.is_some_and(|again| again <= now) {
            self.again = None;
            events.unpark();
        }
    }

    /// Something ended and gave descriptors back: goes on accepting at once.
    pub fn room_again(&mut self, events: &mut EventLoop) {
        if self.again.take().is_some() {
            self.pause.succeeded();
        }
        events.unpark();
    }

    /// Accepts while `has_room`, and gives each connection to `admit`, whose error means that the
    /// system has no room. Without room connections wait in the kernel's backlog.
    pub fn accept(
        &mut self,
        events: &mut EventLoop,
        (token, readiness): (Token, Readiness),
        now: Instant,
        mut admit: impl FnMut(TcpStream, SocketAddr) -> io::Result<Room>,
    ) {
        let Some(listener) = self.listeners.get(token.0.wrapping_sub(FIRST_OWN)) else {
            return;
        };
        for _ in 0..ACCEPTS_PER_TURN {
            let error = match listener.accept() {
                Ok((stream, address)) => match admit(stream, address) {
                    Ok(Room::More) => {
                        self.pause.succeeded();
                        continue;
                    }
                    Ok(Room::Full) => {
                        self.errors.increment();
                        if let Some(more) = self.log.pass(now) {
                            log::warn!(
                                "no descriptors for more connections: further ones wait until one \
                                 ends ({more} more lines)"
                            );
                        }
                        events.park(token, readiness);
                        return;
                    }
                    Err(error) => error,
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if is_connection_error(&error) => continue,
                Err(error) => error,
            };
            self.errors.increment();
            let pause = self.pause.failed();
            self.again = now.checked_add(pause);
            if let Some(more) = self.log.pass(now) {
                log::error!("accepting pauses for {pause:?}: {error} ({more} more lines)");
            }
            events.park(token, readiness);
            return;
        }
        events.again(token, readiness);
    }
}

/// Whether another connection can be taken after this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Yes.
    More,
    /// No: the rest waits until [`Listening::room_again`].
    Full,
}

/// Errors of `accept` that say something of one connection and nothing of the next (accept(2)).
fn is_connection_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::TimedOut
            | io::ErrorKind::PermissionDenied
    )
}
