//! The server's thread of one connection: handshake, session id, then [`super::link`].

use super::batch::{Batch, LinkHandle, Waiting};
use super::counters::{DropReason, LinkEnd, SetUpFailure};
use super::link::{Link, STREAM, Sink, WAKE};
use super::server::ToMain;
use super::{Activity, Framing, Shared};
use crate::net::random;
use crate::net::stream::{Socket, Stream};
use crate::net::tls::Acceptor;
use crate::net::tls_failure::is_client_certificate_bad;
use crate::runtime::clock;
use crate::runtime::event_loop::EventLoop;
use crate::runtime::queue::{self, Receiver, Sender, Wake};
use crate::wire::pool::{SESSION_ID_LEN, SessionId, is_client_hello};
use mio::Interest;
use mio::net::TcpStream;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The main thread's word: the connection belongs to a session. Closing the queue ends it.
#[derive(Debug)]
pub(super) struct Begin {
    pub(super) sink: Sink,
    pub(super) activity: Arc<Activity>,
}

/// One accepted connection.
pub(super) struct Connection {
    shared: Arc<Shared>,
    id: u64,
    address: SocketAddr,
    stream: Stream,
    events: EventLoop,
    wake: Wake,
    orders: Receiver<Begin>,
    to_main: Sender<ToMain>,
    framing: Framing,
    queue_datagrams_max: usize,
    deadline: Instant,
}

/// What a connection has said first.
#[derive(Debug)]
struct Beginning {
    session: SessionId,
    /// A byte of the first frame.
    read_ahead: Option<u8>,
}

/// What the main thread gives every connection.
pub(super) struct Frame<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) to_main: &'a Sender<ToMain>,
    pub(super) acceptor: Option<&'a Acceptor>,
    pub(super) framing: Framing,
    pub(super) queue_datagrams_max: usize,
    pub(super) handshake_timeout: Duration,
}

impl Connection {
    /// A connection just accepted, and the queue to it. Fails when the system has no room.
    pub(super) fn new(
        frame: &Frame<'_>,
        id: u64,
        address: SocketAddr,
        socket: TcpStream,
    ) -> io::Result<(Connection, Sender<Begin>)> {
        let mut events = EventLoop::new()?;
        let wake = Wake::new(events.waker(WAKE)?);
        let (sender, orders) = queue::bounded(1, &wake);
        let mut socket = Socket::new(socket);
        events.register(&mut socket, STREAM, Interest::READABLE | Interest::WRITABLE)?;
        let stream = match frame.acceptor {
            Some(acceptor) => {
                Stream::Server(Box::new(acceptor.wrap(socket).map_err(io::Error::other)?))
            }
            None => Stream::Plain(socket),
        };
        let connection = Connection {
            shared: Arc::clone(frame.shared),
            id,
            address,
            stream,
            events,
            wake,
            orders,
            to_main: frame.to_main.clone(),
            framing: frame.framing,
            queue_datagrams_max: frame.queue_datagrams_max,
            deadline: clock::now() + frame.handshake_timeout,
        };
        Ok((connection, sender))
    }

    /// The thread's body.
    pub(super) fn run(mut self) {
        let Beginning { session, read_ahead } = match self.set_up() {
            Ok(Some(beginning)) => beginning,
            Ok(None) => return,
            Err((failure, cause)) => {
                self.shared.counters.set_up_failed(failure);
                self.shared.warn(&format_args!("connection {}: not set up: {cause}", self.address));
                return;
            }
        };
        let waiting = Arc::new(Waiting::new(
            self.stream.socket().clone(),
            Arc::clone(&self.shared.counters.queued_bytes),
            self.shared.counters.drop_counter(DropReason::ConnectionLost),
        ));
        let (batch_sender, batches) = queue::bounded::<Batch>(self.queue_datagrams_max, &self.wake);
        let link = LinkHandle { id: self.id, queue: batch_sender, waiting: Arc::clone(&waiting) };
        let joins = ToMain::Joins { connection: self.id, session, link };
        if self.to_main.send_waiting(joins).is_err() {
            return;
        }
        let Some(begin) = self.await_session() else {
            return;
        };
        log::debug!("connection {}: up in session {session}", self.address);
        let link = Link::new(
            Arc::clone(&self.shared),
            self.stream,
            batches,
            waiting,
            begin.sink,
            begin.activity,
        )
        .with_read_ahead(read_ahead);
        let orders = self.orders;
        let end = link.serve(&mut self.events, || orders.is_closed()).end;
        self.shared.counters.link_down(&end);
        match end {
            LinkEnd::Failed(error) => {
                self.shared.warn(&format_args!("connection {}: {error}", self.address));
            }
            end => log::debug!("connection {}: {end}", self.address),
        }
    }

    /// Handshake and session id, before the deadline. `None` when the process stops.
    fn set_up(&mut self) -> Result<Option<Beginning>, (SetUpFailure, io::Error)> {
        let mut is_shaking_hands = true;
        let mut first = [0; SESSION_ID_LEN];
        let id = match self.framing {
            Framing::Pool => &mut first[..],
            // Its first byte is proof enough that somebody is there.
            Framing::Mullvad => &mut first[..1],
        };
        let mut have = 0;
        loop {
            let now = clock::now();
            if now >= self.deadline {
                let cause =
                    io::Error::new(io::ErrorKind::TimedOut, "no handshake and session id in time");
                return Err((SetUpFailure::Timeout, cause));
            }
            self.events
                .wait(Some(clock::until(self.deadline, now)))
                .map_err(|error| (SetUpFailure::System, error))?;
            while let Some((token, readiness)) = self.events.next_ready() {
                if token == WAKE {
                    if self.orders.is_closed() {
                        return Ok(None);
                    }
                    continue;
                }
                if is_shaking_hands {
                    match self.stream.handshake() {
                        Ok(()) => is_shaking_hands = false,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                        Err(error) => return Err((failed_handshake(&error), error)),
                    }
                    if self.stream.lacks_alpn() {
                        self.stream.close();
                        let cause = io::Error::other(
                            "the client offers no application protocol (ALPN), --alpn wants one",
                        );
                        return Err((SetUpFailure::Alpn, cause));
                    }
                }
                match self.stream.read(&mut id[have..]) {
                    Ok(0) => {
                        let cause = io::Error::new(
                            io::ErrorKind::UnexpectedEof,
                            "closed before it said enough",
                        );
                        return Err((SetUpFailure::ProtocolError, cause));
                    }
                    Ok(len) => {
                        have += len;
                        if have == id.len() {
                            return self.beginning(first).map(Some);
                        }
                        self.events.again(STREAM, readiness);
                    }
                    Err(error)
                        if matches!(
                            error.kind(),
                            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                        ) => {}
                    Err(error) => {
                        let failure = match self.stream {
                            Stream::Plain(_) => SetUpFailure::Connect,
                            _ => SetUpFailure::Tls,
                        };
                        return Err((failure, error));
                    }
                }
            }
        }
    }

    /// What the first bytes say.
    fn beginning(
        &self,
        first: [u8; SESSION_ID_LEN],
    ) -> Result<Beginning, (SetUpFailure, io::Error)> {
        if self.framing == Framing::Mullvad {
            // An id of its own, which nobody else can ask for.
            let bytes = random::bytes().map_err(|error| (SetUpFailure::System, error))?;
            let session = SessionId::from_random(bytes);
            return Ok(Beginning { session, read_ahead: Some(first[0]) });
        }
        // Within TLS it would be somebody's odd id, and no mistake.
        if matches!(self.stream, Stream::Plain(_)) && is_client_hello(&first) {
            let cause = io::Error::other(
                "the client speaks TLS, this server was started with --no-tls instead of --cert",
            );
            return Err((SetUpFailure::TlsToPlain, cause));
        }
        let cause = || (SetUpFailure::ProtocolError, io::ErrorKind::InvalidData.into());
        let session = SessionId::parse(&first).ok_or_else(cause)?;
        Ok(Beginning { session, read_ahead: None })
    }

    /// Waits for the main thread; `None` when it refuses.
    fn await_session(&mut self) -> Option<Begin> {
        loop {
            self.events.wait(None).ok()?;
            // Whatever the stream says meanwhile, the link looks at it first of all.
            while self.events.next_ready().is_some() {}
            // First: what was counted as up goes down with a reason.
            if let Some(begin) = self.orders.drain().next() {
                return Some(begin);
            }
            if self.orders.is_closed() {
                return None;
            }
        }
    }
}

fn failed_handshake(error: &io::Error) -> SetUpFailure {
    if is_client_certificate_bad(&error.to_string()) {
        SetUpFailure::ClientCertificate
    } else {
        SetUpFailure::Tls
    }
}
