//! Commands over the Unix socket: one JSON object on a line, and one on a line as the answer.

use super::super::Config;
use super::super::counters::Counters;
use super::{Asker, Door};
use crate::error::Error;
use crate::net::unix::UnixDoor;
use crate::runtime::clock;
use crate::runtime::event_loop::{EventLoop, Readiness};
use mio::net::UnixStream;
use mio::{Interest, Token};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Controllers at once. More are closed at once and counted: they are root's own.
const CONNECTIONS_MAX: usize = 32;
/// Bytes of a line: some thousand tunnels with all their routes.
const LINE_LEN_MAX: usize = 8 * 1024 * 1024;
/// Bytes of answers that wait for a slow reader; it is not listened to meanwhile.
const OUTPUT_LEN_MAX: usize = 1024 * 1024;
/// Bytes of one answer; there are pages.
const ANSWER_LEN_MAX: usize = 256 * 1024;
/// Bytes read at a time.
const READ_LEN: usize = 64 * 1024;

/// Without descriptors or memory, so long nobody is accepted: somebody else may give some back.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// The listening socket and those who came through it.
pub(super) struct Connections {
    door: UnixDoor,
    first_token: usize,
    places: Vec<Option<Connection>>,
    /// Whose turn it is, so that nobody waits for one who asks a lot.
    turn: usize,
    buffer: Box<[u8]>,
    /// When to accept again.
    accept_again: Option<Instant>,
    counters: Arc<Counters>,
}

struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    /// Where the next line begins, and up to where there is known to be no end of it.
    begin: usize,
    searched: usize,
    output: Vec<u8>,
    /// It has said all that it will; or it has broken a rule.
    is_ending: bool,
}

impl Connections {
    pub(super) fn open(
        config: &Config,
        events: &mut EventLoop,
        first_token: usize,
        counters: &Arc<Counters>,
    ) -> Result<Connections, Error> {
        let path = &config.control_socket;
        let cannot = || format!("cannot listen at {}", path.display());
        if let Some(directory) = path.parent().filter(|it| !it.as_os_str().is_empty()) {
            // /run is empty after every boot.
            std::fs::create_dir_all(directory).map_err(Error::while_doing(cannot))?;
        }
        let mut door =
            UnixDoor::open(path, config.control_group).map_err(Error::while_doing(cannot))?;
        events
            .register(door.listener(), Token(first_token), Interest::READABLE)
            .map_err(Error::while_doing(cannot))?;
        log::info!("control at {}", path.display());
        Ok(Connections {
            door,
            first_token,
            places: (0..CONNECTIONS_MAX).map(|_| None).collect(),
            turn: 0,
            accept_again: None,
            buffer: vec![0; READ_LEN].into(),
            counters: Arc::clone(counters),
        })
    }

    pub(super) fn handle(&mut self, token: Token, readiness: Readiness, events: &mut EventLoop) {
        match token.0.checked_sub(self.first_token + 1) {
            None if token.0 == self.first_token => self.accept(token, readiness, events),
            Some(number)
                if number < CONNECTIONS_MAX && (readiness.readable || readiness.read_closed) =>
            {
                self.read(number, readiness, events);
            }
            // Writing is what `flush` does in every round.
            _ => {}
        }
    }

    fn accept(&mut self, token: Token, readiness: Readiness, events: &mut EventLoop) {
        loop {
            let mut stream = match self.door.listener().accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) =>
                {
                    continue;
                }
                Err(error) => {
                    // Descriptors, memory: whoever waits is met later.
                    log::error!("cannot accept a controller: {error}");
                    self.accept_again = clock::now().checked_add(ACCEPT_PAUSE);
                    return events.park(token, readiness);
                }
            };
            let free = self.places.iter().position(Option::is_none);
            let Some(number) = free else {
                self.counters.connections_refused.increment();
                continue;
            };
            let token = Token(self.first_token + 1 + number);
            let interest = Interest::READABLE | Interest::WRITABLE;
            if let Err(error) = events.register(&mut stream, token, interest) {
                log::error!("cannot watch a controller: {error}");
                continue;
            }
            self.counters.connections.add(1);
            self.places[number] = Some(Connection {
                stream,
                input: Vec::new(),
                begin: 0,
                searched: 0,
                output: Vec::new(),
                is_ending: false,
            });
        }
    }

    fn read(&mut self, number: usize, readiness: Readiness, events: &mut EventLoop) {
        let token = Token(self.first_token + 1 + number);
        let Some(connection) = &mut self.places[number] else { return };
        if connection.is_blocked() {
            return events.park(token, readiness);
        }
        match connection.stream.read(&mut self.buffer) {
            Ok(0) => connection.is_ending = true,
            Ok(len) => {
                connection.input.extend_from_slice(&self.buffer[..len]);
                // Its turn comes again when the lines have been carried out.
                events.again(token, readiness);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                events.again(token, readiness);
            }
            Err(_) => self.close(number, events),
        }
    }

    pub(super) fn next_request(&mut self) -> Option<(Asker, Vec<u8>)> {
        for offset in 0..CONNECTIONS_MAX {
            let number = (self.turn + offset) % CONNECTIONS_MAX;
            let Some(connection) = &mut self.places[number] else { continue };
            if let Some(line) = connection.next_line() {
                self.turn = number + 1;
                let asker = Asker {
                    door: Door::Connection(number),
                    answer_len_max: ANSWER_LEN_MAX,
                    is_limited: false,
                    is_told_errors: true,
                };
                return Some((asker, line));
            }
        }
        None
    }

    pub(super) fn answer(&mut self, number: usize, text: &str) {
        if let Some(connection) = &mut self.places[number] {
            connection.output.extend_from_slice(text.as_bytes());
            connection.output.push(b'\n');
        }
    }

    /// When [`Connections::flush`] has something to do though nothing happens.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.accept_again
    }

    pub(super) fn flush(&mut self, events: &mut EventLoop) {
        let is_due = self.accept_again.is_some_and(|at| at <= clock::now());
        let mut has_changed = is_due;
        if is_due {
            self.accept_again = None;
        }
        for number in 0..CONNECTIONS_MAX {
            let Some(connection) = &mut self.places[number] else { continue };
            let was_blocked = connection.is_blocked();
            let written = connection.write();
            let is_done = connection.is_ending && connection.output.is_empty();
            if written.is_err() || is_done {
                self.close(number, events);
                has_changed = true;
            } else if was_blocked && !connection.is_blocked() {
                has_changed = true;
            }
        }
        if has_changed {
            events.unpark();
        }
    }

    fn close(&mut self, number: usize, events: &mut EventLoop) {
        if let Some(mut connection) = self.places[number].take() {
            let token = Token(self.first_token + 1 + number);
            if let Err(error) = events.deregister(&mut connection.stream, token) {
                log::error!("cannot stop watching a controller: {error}");
            }
            self.counters.connections.add(-1);
        }
    }
}

impl Connection {
    /// Whether it must read its answers first.
    fn is_blocked(&self) -> bool {
        self.output.len() >= OUTPUT_LEN_MAX
    }

    /// The next line that is not empty, without its end.
    fn next_line(&mut self) -> Option<Vec<u8>> {
        while !self.is_blocked() {
            let from = self.searched.max(self.begin);
            let end = match self.input[from..].iter().position(|byte| *byte == b'\n') {
                Some(len) => from + len,
                // The last line of somebody who ends may lack its end.
                None if self.is_ending && self.begin < self.input.len() => self.input.len(),
                None => {
                    self.tidy();
                    return None;
                }
            };
            let line = self.input[self.begin..end].trim_ascii().to_vec();
            self.begin = (end + 1).min(self.input.len());
            self.searched = self.begin;
            if !line.is_empty() {
                return Some(line);
            }
        }
        None
    }

    /// There is no whole line: what has been read is forgotten.
    fn tidy(&mut self) {
        self.input.drain(..self.begin);
        self.begin = 0;
        self.searched = self.input.len();
        if self.input.is_empty() {
            // An idle controller holds no memory.
            self.input = Vec::new();
        } else if self.input.len() >= LINE_LEN_MAX {
            log::warn!("a controller's line is longer than {LINE_LEN_MAX} bytes: closed");
            self.is_ending = true;
            self.input = Vec::new();
            self.searched = 0;
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let mut written = 0;
        while written < self.output.len() {
            match self.stream.write(&self.output[written..]) {
                Ok(len) => written += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output.drain(..written);
        Ok(())
    }
}
