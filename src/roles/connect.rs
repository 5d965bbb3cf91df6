//! A connection to a server, from a thread that must end at once when it is asked to: nothing here
//! blocks but the thread's own poll.

use crate::net::stream::{ReadAhead, Socket, Stream};
use crate::net::tcp::{self, StreamOptions};
use crate::runtime::clock;
use crate::runtime::event_loop::EventLoop;
use mio::{Interest, Token};
use native_tls::HandshakeError;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

/// Where to connect to, and how.
pub struct Target<'a> {
    /// The server.
    pub address: SocketAddr,
    /// TCP's options.
    pub options: &'a StreamOptions,
    /// The packets' netfilter mark.
    pub mark: Option<u32>,
    /// TLS, with a server of that name.
    pub tls: Option<(&'a native_tls::TlsConnector, &'a str)>,
}

/// Why there is no connection.
#[derive(Debug)]
pub enum Failed {
    /// TCP said so.
    Connect(io::Error),
    /// There was no answer in time.
    Timeout,
    /// TLS said so, in its own words.
    Tls(String),
    /// The poll failed.
    System(io::Error),
}

/// Connects, and shakes hands if there is TLS; until `deadline`, and as long as nobody `is_closed`:
/// then there is no connection, and no failure. The stream is watched as `token`.
pub fn connect(
    events: &mut EventLoop,
    token: Token,
    target: &Target<'_>,
    deadline: Instant,
    is_closed: &dyn Fn() -> bool,
) -> Result<Option<Stream>, Failed> {
    let connecting = tcp::connect(target.address, target.options, target.mark);
    let mut socket = Socket::new(connecting.map_err(Failed::Connect)?);
    events
        .register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)
        .map_err(Failed::Connect)?;
    let mut waiting = Waiting { events, token, deadline, is_closed };
    match shake_hands(&mut waiting, &socket, target) {
        Ok(Some(stream)) => Ok(Some(stream)),
        other => {
            // The socket is closed next, which ends the watching in any case.
            let _ = events.deregister(&mut socket, token);
            other
        }
    }
}

fn shake_hands(
    waiting: &mut Waiting<'_>,
    socket: &Socket,
    target: &Target<'_>,
) -> Result<Option<Stream>, Failed> {
    if !waiting.has_news()? {
        return Ok(None);
    }
    if let Some(error) = socket.tcp().take_error().map_err(Failed::Connect)? {
        return Err(Failed::Connect(error));
    }
    socket.tcp().peer_addr().map_err(Failed::Connect)?;
    let Some((connector, name)) = target.tls else {
        return Ok(Some(Stream::Plain(socket.clone())));
    };
    let mut result = connector.connect(name, ReadAhead::new(socket.clone()));
    loop {
        match result {
            Ok(stream) => return Ok(Some(Stream::Client(Box::new(stream)))),
            Err(HandshakeError::Failure(error)) => return Err(Failed::Tls(error.to_string())),
            Err(HandshakeError::WouldBlock(half)) => {
                if !waiting.has_news()? {
                    return Ok(None);
                }
                result = half.handshake();
            }
        }
    }
}

struct Waiting<'a> {
    events: &'a mut EventLoop,
    token: Token,
    deadline: Instant,
    is_closed: &'a dyn Fn() -> bool,
}

impl Waiting<'_> {
    /// Waits for news of the stream; false when there shall be no connection any more.
    fn has_news(&mut self) -> Result<bool, Failed> {
        loop {
            let now = clock::now();
            if now >= self.deadline {
                return Err(Failed::Timeout);
            }
            self.events.wait(Some(clock::until(self.deadline, now))).map_err(Failed::System)?;
            let mut has_news = false;
            while let Some((token, _)) = self.events.next_ready() {
                has_news |= token == self.token;
            }
            if (self.is_closed)() {
                return Ok(false);
            }
            if has_news {
                return Ok(true);
            }
        }
    }
}
