//! A role's control socket: a Unix socket on which the operator asks a running process for
//! something. A line is the question, and text is the answer; then the connection ends.
//!
//! Only root and the user that the process runs as are answered: the socket's mode says so, and the
//! kernel says who is at its other end.

use crate::error::Error;
use crate::runtime::event_loop::{EventLoop, Readiness};
use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Token};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::geteuid;
use std::collections::VecDeque;
use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Questions at once: an operator, and a script or two. One more pushes out the oldest.
const CONNECTIONS_MAX: usize = 4;
/// The poll tokens that a [`Control`] uses, from its first one.
pub const TOKENS: usize = 1 + CONNECTIONS_MAX;
/// From accept to the end of the answer; also how long a question waits for its answer.
const TIMEOUT: Duration = Duration::from_secs(5);
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// A longer question is none.
const QUESTION_LEN_MAX: usize = 64;
/// A status with as many clients as there can be.
const ANSWER_LEN_MAX: u64 = 16 << 20;

/// What a process says to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It has done it, or here it is.
    Done(String),
    /// It has not, and why.
    Refused(String),
}

struct Connection {
    socket: UnixStream,
    place: usize,
    deadline: Instant,
    question: Vec<u8>,
    answer: Option<Vec<u8>>,
    /// The question has been asked, and is answered by the end of the process.
    is_held: bool,
    written: usize,
}

/// The socket and its connections, oldest first. The socket's file goes with it.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    first_token: usize,
    connections: VecDeque<Connection>,
}

impl Control {
    /// Listens at `path` and uses the [`TOKENS`] tokens from `first_token` on in `events`. The file
    /// of a process that was killed is replaced; that of one that runs is an error.
    pub fn listen(
        path: &Path,
        events: &mut EventLoop,
        first_token: usize,
    ) -> Result<Control, Error> {
        let cannot = || format!("cannot listen on {}", path.display());
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(Error::while_doing(cannot))?;
        }
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => {
                let cause = io::Error::new(io::ErrorKind::AddrInUse, "another process has it");
                return Err(Error::System { doing: cannot(), cause });
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(Error::while_doing(cannot))?;
            }
            Err(_) => {}
        }
        let mut listener = UnixListener::bind(path).map_err(Error::while_doing(cannot))?;
        fs::set_permissions(path, Permissions::from_mode(0o600))
            .map_err(Error::while_doing(cannot))?;
        events
            .register(&mut listener, Token(first_token), Interest::READABLE)
            .map_err(Error::while_doing(cannot))?;
        Ok(Control { listener, path: path.to_owned(), first_token, connections: VecDeque::new() })
    }

    /// Whether a token is one of ours.
    pub fn owns(&self, token: Token) -> bool {
        (self.first_token..self.first_token + TOKENS).contains(&token.0)
    }

    /// When [`Control::expire`] is worth calling.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.connections.front().map(|connection| connection.deadline)
    }

    /// Closes connections that took too long.
    pub fn expire(&mut self, now: Instant, events: &mut EventLoop) {
        while self.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.close(0, events);
        }
    }

    /// Handles an event of one of our tokens; `answer` is asked for each question. `None` answers it
    /// by the end of the process, which closes the connection.
    pub fn handle(
        &mut self,
        (token, readiness): (Token, Readiness),
        now: Instant,
        events: &mut EventLoop,
        answer: impl FnOnce(&str) -> Option<Answer>,
    ) {
        if token.0 == self.first_token {
            return self.accept((token, readiness), now, events);
        }
        let place = token.0 - self.first_token - 1;
        let of_place = |connection: &Connection| connection.place == place;
        let Some(index) = self.connections.iter().position(of_place) else { return };
        if self.connections[index].go_on(answer).is_break() {
            self.close(index, events);
        }
    }

    fn accept(&mut self, ready: (Token, Readiness), now: Instant, events: &mut EventLoop) {
        // None waits any more; or there is no descriptor for it, and it may ask again.
        let Ok((mut socket, _)) = self.listener.accept() else { return };
        events.again(ready.0, ready.1);
        if !is_trusted(&socket) {
            return;
        }
        if self.connections.len() == CONNECTIONS_MAX {
            self.close(0, events);
        }
        let place = (0..CONNECTIONS_MAX)
            .find(|place| self.connections.iter().all(|other| other.place != *place));
        let Some(place) = place else { return };
        let both = Interest::READABLE | Interest::WRITABLE;
        if events.register(&mut socket, Token(self.first_token + 1 + place), both).is_ok() {
            self.connections.push_back(Connection {
                socket,
                place,
                deadline: now + TIMEOUT,
                question: Vec::new(),
                answer: None,
                is_held: false,
                written: 0,
            });
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

impl Drop for Control {
    fn drop(&mut self) {
        // What stays is replaced at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

/// Root, or the user that we are.
fn is_trusted(socket: &UnixStream) -> bool {
    getsockopt(socket, PeerCredentials)
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw())
}

impl Connection {
    /// Reads the question, writes the answer, as far as it goes now.
    fn go_on(&mut self, answer: impl FnOnce(&str) -> Option<Answer>) -> std::ops::ControlFlow<()> {
        use std::ops::ControlFlow::{Break, Continue};
        if self.answer.is_none() {
            let mut bytes = [0; QUESTION_LEN_MAX];
            loop {
                match self.socket.read(&mut bytes) {
                    Ok(0) => return Break(()),
                    Ok(len) => self.question.extend_from_slice(&bytes[..len]),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => return Break(()),
                }
                if self.question.len() > QUESTION_LEN_MAX {
                    return Break(());
                }
            }
            let Some(question) = self.question.strip_suffix(b"\n").filter(|_| !self.is_held) else {
                return Continue(());
            };
            let (sign, text) = match answer(&String::from_utf8_lossy(question)) {
                Some(Answer::Done(text)) => (b'+', text),
                Some(Answer::Refused(text)) => (b'-', text),
                None => {
                    self.is_held = true;
                    return Continue(());
                }
            };
            self.answer = Some(std::iter::once(sign).chain(text.into_bytes()).collect());
        }
        let bytes = self.answer.as_deref().unwrap_or_default();
        while let Some(rest) = bytes.get(self.written..).filter(|rest| !rest.is_empty()) {
            match self.socket.write(rest) {
                Ok(len) => self.written += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Continue(()),
                Err(_) => return Break(()),
            }
        }
        Break(())
    }
}

/// Asks the process that listens at `path`.
///
/// Errors: `NotFound` or `ConnectionRefused` when none does; `PermissionDenied` for those who are
/// not root; `UnexpectedEof` when it ended, or did not trust us, before it answered.
pub fn ask(path: &Path, question: &str) -> io::Result<Answer> {
    let mut socket = std::os::unix::net::UnixStream::connect(path)?;
    // The end of a tunnel waits for hooks and programs, and may take several times as long as an answer.
    let patience = if question == "down" { END_TIMEOUT } else { TIMEOUT };
    socket.set_read_timeout(Some(patience))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    socket.write_all(format!("{question}\n").as_bytes())?;
    let mut bytes = Vec::new();
    socket.take(ANSWER_LEN_MAX).read_to_end(&mut bytes)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match bytes.split_first() {
        Some((b'+', rest)) => Ok(Answer::Done(text(rest))),
        Some((b'-', rest)) => Ok(Answer::Refused(text(rest))),
        _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it did not answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock;
    use crate::runtime::thread;
    use std::os::unix::net::UnixStream as Stream;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Place {
            let place = format!("udpferry-control-{name}-{}", std::process::id());
            Place(std::env::temp_dir().join(place))
        }

        fn socket(&self) -> PathBuf {
            self.0.join("sub/x.sock")
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    /// Answers until a question says "stop".
    fn serve(control: &mut Control, events: &mut EventLoop) {
        let mut stops = false;
        while !stops || control.connections.iter().any(|connection| !connection.is_held) {
            events.wait(Some(Duration::from_secs(5))).unwrap();
            while let Some(ready) = events.next_ready() {
                assert!(control.owns(ready.0));
                control.handle(ready, clock::now(), events, |question| match question {
                    "stop" => {
                        stops = true;
                        Some(Answer::Done(String::new()))
                    }
                    "long" => Some(Answer::Done("x".repeat(3_000_000))),
                    "end" => None,
                    other => Some(Answer::Refused(format!("no {other} here"))),
                });
            }
        }
    }

    #[test]
    fn questions_are_answered_also_at_length() {
        let place = Place::new("answers");
        let path = place.socket();
        let mut events = EventLoop::new().unwrap();
        let mut control = Control::listen(&path, &mut events, 3).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let asker = {
            let path = path.clone();
            thread::spawn("test", 0, 128 * 1024, move || {
                let long = ask(&path, "long").unwrap();
                assert_eq!(long, Answer::Done("x".repeat(3_000_000)));
                assert_eq!(ask(&path, "tea").unwrap(), Answer::Refused("no tea here".into()));
                // Neither a question without an end nor one that is too long disturbs the next.
                let mut bad = Stream::connect(&path).unwrap();
                bad.write_all(&[b'x'; 200]).unwrap();
                let silent = Stream::connect(&path).unwrap();
                let mut held = Stream::connect(&path).unwrap();
                held.write_all(b"end\n").unwrap();
                assert_eq!(ask(&path, "stop").unwrap(), Answer::Done(String::new()));
                drop(silent);
                held
            })
            .unwrap()
        };
        serve(&mut control, &mut events);
        let mut held = asker.join().unwrap();
        drop(control);
        assert_eq!(held.read(&mut [0]).unwrap(), 0, "answered by the end");
        assert_eq!(ask(&path, "x").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_that_was_left_is_replaced_and_one_in_use_is_not() {
        let place = Place::new("left");
        let path = place.socket();
        let mut events = EventLoop::new().unwrap();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert_eq!(ask(&path, "x").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let control = Control::listen(&path, &mut events, 3).unwrap();
        let error = Control::listen(&path, &mut events, 9).err().unwrap().to_string();
        assert!(error.ends_with("another process has it"), "{error}");
        drop(control);
        assert!(!path.exists());
    }

    #[test]
    fn more_questions_than_there_is_room_for_push_out_the_oldest() {
        let place = Place::new("many");
        let path = place.socket();
        let mut events = EventLoop::new().unwrap();
        let mut control = Control::listen(&path, &mut events, 3).unwrap();
        let mut silent: Vec<Stream> = (0..6).map(|_| Stream::connect(&path).unwrap()).collect();
        for stream in &silent {
            stream.set_nonblocking(true).unwrap();
        }
        let is_closed = |stream: &mut Stream| matches!(stream.read(&mut [0]), Ok(0));
        let now = clock::now();
        while !is_closed(&mut silent[1]) {
            events.wait(Some(Duration::from_secs(5))).unwrap();
            let mut first = events.next_ready();
            assert!(first.is_some(), "nothing happens any more");
            while let Some(ready) = first {
                control.handle(ready, now, &mut events, |_| unreachable!());
                first = events.next_ready();
            }
        }
        assert!(is_closed(&mut silent[0]));
        assert_eq!(control.next_deadline(), Some(now + TIMEOUT));
        control.expire(now + TIMEOUT, &mut events);
        assert_eq!(control.next_deadline(), None);
        assert!(is_closed(&mut silent[5]));
    }
}
