//! mio's poll, and the one place that knows what edge-triggered means.
//!
//! mio tells only that a source *became* ready. Whoever stops before the source said `WouldBlock`
//! must come back on his own, or waits forever. So readiness is kept here: [`EventLoop::next_ready`]
//! hands a source out; a handler that did not drain it says [`EventLoop::again`] (come back in the
//! next round, without sleeping in between) or [`EventLoop::park`] (come back after
//! [`EventLoop::unpark`], when what blocked it is gone). A handler that drained it says nothing.

use mio::event::Source;
use mio::{Events, Interest, Poll, Token, Waker};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

/// Sources with events per round; more wait for the next one.
const EVENTS_PER_ROUND: usize = 64;

/// What a source is ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Readiness {
    /// Reading would not block.
    pub readable: bool,
    /// Writing would not block.
    pub writable: bool,
    /// The other side will send no more, or the connection failed: read until that shows.
    pub read_closed: bool,
}

impl Readiness {
    /// Ready for reading alone.
    pub const READABLE: Readiness =
        Readiness { readable: true, writable: false, read_closed: false };

    fn join(&mut self, other: Readiness) {
        self.readable |= other.readable;
        self.writable |= other.writable;
        self.read_closed |= other.read_closed;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    #[default]
    Idle,
    Queued,
    Parked,
}

/// A poll with its memory of what is still ready. Tokens should be small numbers: they index it.
#[derive(Debug)]
pub struct EventLoop {
    poll: Poll,
    events: Events,
    sources: Vec<(Place, Readiness)>,
    round: VecDeque<Token>,
    next_round: Vec<Token>,
    parked: Vec<Token>,
}

impl EventLoop {
    /// A poll of its own: one descriptor.
    pub fn new() -> io::Result<EventLoop> {
        Ok(EventLoop {
            poll: Poll::new()?,
            events: Events::with_capacity(EVENTS_PER_ROUND),
            sources: Vec::new(),
            round: VecDeque::new(),
            next_round: Vec::new(),
            parked: Vec::new(),
        })
    }

    /// Starts watching a source.
    pub fn register(
        &mut self,
        source: &mut impl Source,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        self.poll.registry().register(source, token, interest)
    }

    /// Stops watching a source and forgets its readiness.
    pub fn deregister(&mut self, source: &mut impl Source, token: Token) -> io::Result<()> {
        if let Some(slot) = self.sources.get_mut(token.0) {
            let (place, _) = std::mem::take(slot);
            match place {
                Place::Idle => {}
                Place::Queued => {
                    self.round.retain(|queued| *queued != token);
                    self.next_round.retain(|queued| *queued != token);
                }
                Place::Parked => self.parked.retain(|parked| *parked != token),
            }
        }
        self.poll.registry().deregister(source)
    }

    /// A waker whose wake shows as `token` being readable: one descriptor.
    pub fn waker(&self, token: Token) -> io::Result<Waker> {
        Waker::new(self.poll.registry(), token)
    }

    /// Begins a round: waits until a source is ready or `timeout` has passed, not at all if a source
    /// of the round before asked to come again. A signal ends the wait early.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.round.extend(self.next_round.drain(..));
        let timeout = if self.round.is_empty() { timeout } else { Some(Duration::ZERO) };
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        }
        for event in &self.events {
            let readiness = Readiness {
                readable: event.is_readable() || event.is_error(),
                writable: event.is_writable(),
                read_closed: event.is_read_closed() || event.is_error(),
            };
            let slot = slot(&mut self.sources, event.token());
            slot.1.join(readiness);
            if slot.0 == Place::Idle {
                slot.0 = Place::Queued;
                self.round.push_back(event.token());
            }
        }
        Ok(())
    }

    /// The next ready source of this round; its readiness is forgotten here unless the handler
    /// gives it back.
    pub fn next_ready(&mut self) -> Option<(Token, Readiness)> {
        let token = self.round.pop_front()?;
        let (_, readiness) = std::mem::take(slot(&mut self.sources, token));
        Some((token, readiness))
    }

    /// The source was not drained: its turn comes again in the next round.
    pub fn again(&mut self, token: Token, readiness: Readiness) {
        let slot = slot(&mut self.sources, token);
        slot.1.join(readiness);
        if slot.0 == Place::Idle {
            slot.0 = Place::Queued;
            self.next_round.push(token);
        }
    }

    /// The source was not drained and shall not be until [`EventLoop::unpark`].
    pub fn park(&mut self, token: Token, readiness: Readiness) {
        let slot = slot(&mut self.sources, token);
        slot.1.join(readiness);
        if slot.0 == Place::Idle {
            slot.0 = Place::Parked;
            self.parked.push(token);
        }
    }

    /// What was parked comes in this round.
    pub fn unpark(&mut self) {
        for token in self.parked.drain(..) {
            slot(&mut self.sources, token).0 = Place::Queued;
            self.round.push_back(token);
        }
    }
}

fn slot(sources: &mut Vec<(Place, Readiness)>, token: Token) -> &mut (Place, Readiness) {
    if sources.len() <= token.0 {
        sources.resize(token.0 + 1, Default::default());
    }
    &mut sources[token.0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::net::UdpSocket;

    const SOCKET: Token = Token(3);

    fn watched() -> (EventLoop, UdpSocket, std::net::UdpSocket) {
        let mut events = EventLoop::new().unwrap();
        let mut socket = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        events.register(&mut socket, SOCKET, Interest::READABLE).unwrap();
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(socket.local_addr().unwrap()).unwrap();
        (events, socket, sender)
    }

    #[test]
    fn an_undrained_source_comes_again_only_when_it_says_so() {
        let (mut events, _socket, sender) = watched();
        sender.send(b"x").unwrap();
        events.wait(None).unwrap();
        let (token, readiness) = events.next_ready().unwrap();
        assert_eq!((token, readiness), (SOCKET, Readiness::READABLE));
        assert_eq!(events.next_ready(), None);
        events.again(token, readiness);
        assert_eq!(events.next_ready(), None, "again is for the next round");
        events.wait(None).unwrap();
        assert_eq!(events.next_ready(), Some((SOCKET, Readiness::READABLE)));
        events.wait(Some(Duration::ZERO)).unwrap();
        assert_eq!(events.next_ready(), None, "edge-triggered: nobody reminds us");
    }

    #[test]
    fn a_parked_source_waits_for_unpark_and_gathers_what_happens() {
        let (mut events, _socket, sender) = watched();
        sender.send(b"x").unwrap();
        events.wait(None).unwrap();
        let (token, readiness) = events.next_ready().unwrap();
        events.park(token, readiness);
        sender.send(b"y").unwrap();
        events.wait(None).unwrap();
        assert_eq!(events.next_ready(), None);
        events.unpark();
        assert_eq!(events.next_ready(), Some((SOCKET, Readiness::READABLE)));
        assert_eq!(events.next_ready(), None);
    }

    #[test]
    fn a_deregistered_source_is_forgotten_wherever_it_stood() {
        for stand in 0..3 {
            let (mut events, mut socket, sender) = watched();
            sender.send(b"x").unwrap();
            events.wait(None).unwrap();
            if stand > 0 {
                let (token, readiness) = events.next_ready().unwrap();
                if stand == 1 {
                    events.again(token, readiness);
                } else {
                    events.park(token, readiness);
                }
            }
            events.deregister(&mut socket, SOCKET).unwrap();
            events.unpark();
            events.wait(Some(Duration::ZERO)).unwrap();
            assert_eq!(events.next_ready(), None);
        }
    }
}
