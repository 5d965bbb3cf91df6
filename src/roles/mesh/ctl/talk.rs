//! The way to a daemon, and questions and answers over it.

use super::super::control::key::Key;
use crate::error::Error;
use crate::net::random;
use crate::net::udp::any_port;
use crate::runtime::clock;
use crate::wire::mesh::{Way as SealedWay, parse_sealed};
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A question that changes nothing is asked again after so long.
const RETRY: Duration = Duration::from_secs(1);
/// How long the seed's message waits for the answer that an original daemon does not give.
const SEED_PATIENCE: Duration = Duration::from_secs(1);
/// Questions over UDP without a proof are as long as this: a daemon that may not answer at greater
/// length than it was asked then has room.
const QUESTION_LEN: usize = 1200;
/// The longest answer over UDP.
const DATAGRAM_LEN_MAX: usize = 65_536;

/// How a daemon is reached.
#[derive(Debug, Clone)]
pub(in crate::roles::mesh) enum Way {
    /// At its Unix socket.
    Socket { path: PathBuf, timeout: Duration },
    /// Over UDP, with a proof if there is a key.
    Datagrams { host: String, port: u16, key: Option<PathBuf>, timeout: Duration },
}

/// A conversation with a daemon.
pub(in crate::roles::mesh) struct Talk {
    line: Line,
    shown: String,
    timeout: Duration,
    number: u64,
}

enum Line {
    Socket(BufReader<UnixStream>),
    Datagrams { socket: UdpSocket, key: Option<Key> },
}

impl Talk {
    /// Opens it.
    pub(in crate::roles::mesh) fn begin(way: &Way) -> Result<Talk, Error> {
        let first = random::bytes().map_err(Error::while_doing(|| "cannot make random numbers"))?;
        // JSON numbers of other programs are exact below 2^53.
        let number = u64::from_be_bytes(first) >> 12;
        match way {
            Way::Socket { path, timeout } => {
                let shown = path.display().to_string();
                let stream = UnixStream::connect(path)
                    .and_then(|stream| stream.set_read_timeout(Some(*timeout)).map(|()| stream))
                    .map_err(Error::while_doing(|| {
                        format!(
                            "cannot reach the daemon at {shown} (is it running, and are you root?)"
                        )
                    }))?;
                let line = Line::Socket(BufReader::new(stream));
                Ok(Talk { line, shown, timeout: *timeout, number })
            }
            Way::Datagrams { host, port, key, timeout } => {
                let key = key.as_deref().map(Key::load).transpose()?;
                let doing = || format!("cannot reach {host}");
                let host_name = host.trim_matches(['[', ']']);
                let daemon = (host_name, *port)
                    .to_socket_addrs()
                    .and_then(|mut found| {
                        found.next().ok_or_else(|| io::Error::other("it has no address"))
                    })
                    .map_err(Error::while_doing(doing))?;
                let socket = connected(daemon).map_err(Error::while_doing(doing))?;
                let line = Line::Datagrams { socket, key };
                Ok(Talk { line, shown: format!("udp {daemon}"), timeout: *timeout, number })
            }
        }
    }

    /// Asks, and returns the answer, if it is no refusal. What may be `repeated` is asked again when
    /// no answer comes.
    pub(in crate::roles::mesh) fn ask(
        &mut self,
        request: Value,
        repeated: bool,
    ) -> Result<Value, Error> {
        self.ask_within(request, repeated, self.timeout)
    }

    /// Asks once for what takes so much longer than other things.
    pub(super) fn ask_patiently(
        &mut self,
        request: Value,
        longer: Duration,
    ) -> Result<Value, Error> {
        self.ask_within(request, false, self.timeout.saturating_add(longer))
    }

    fn ask_within(
        &mut self,
        request: Value,
        repeated: bool,
        timeout: Duration,
    ) -> Result<Value, Error> {
        let answer = self.try_ask(request, repeated, timeout)?.ok_or_else(|| Error::System {
            doing: format!("no answer from {}", self.shown),
            cause: if repeated {
                io::Error::other("is the daemon there, and does it take commands from here?")
            } else {
                io::Error::other("it may have been carried out, or not: `meshctl list` says")
            },
        })?;
        Ok(answer)
    }

    /// Asks as the seed's control program does, and waits a little for an answer.
    pub(super) fn ask_seed(&mut self, request: Value) -> Result<Option<Value>, Error> {
        let timeout = self.timeout.min(SEED_PATIENCE);
        self.try_ask(request, false, timeout)
    }

    /// Sends, and does not wait.
    pub(super) fn send(&mut self, request: &Value) -> Result<(), Error> {
        let text = request.to_string();
        self.put(&text).map_err(Error::while_doing(|| format!("cannot send to {}", self.shown)))?;
        Ok(())
    }

    fn try_ask(
        &mut self,
        mut request: Value,
        repeated: bool,
        timeout: Duration,
    ) -> Result<Option<Value>, Error> {
        self.number += 1;
        request["id"] = self.number.into();
        let mut text = request.to_string();
        if repeated && matches!(self.line, Line::Datagrams { key: None, .. }) {
            text.push_str(&" ".repeat(QUESTION_LEN.saturating_sub(text.len())));
        }
        let doing = format!("cannot ask {}", self.shown);
        let deadline = clock::now() + timeout;
        loop {
            let answered = self.put(&text).and_then(|nonce| {
                let may_be_lost = repeated && matches!(self.line, Line::Datagrams { .. });
                let until = if may_be_lost { deadline.min(clock::now() + RETRY) } else { deadline };
                self.get(nonce, until)
            });
            match answered.map_err(Error::while_doing(|| &doing))? {
                Some(answer) => return judged(answer).map(Some),
                None if clock::now() >= deadline => return Ok(None),
                None => {}
            }
        }
    }

    /// Sends the text; returns the nonce of its proof.
    fn put(&mut self, text: &str) -> io::Result<[u8; 16]> {
        let nonce = random::bytes()?;
        match &mut self.line {
            Line::Socket(stream) => {
                let stream = stream.get_mut();
                stream.write_all(text.as_bytes())?;
                stream.write_all(b"\n")?;
            }
            Line::Datagrams { socket, key: None } => {
                socket.send(text.as_bytes())?;
            }
            Line::Datagrams { socket, key: Some(key) } => {
                let time = clock::milliseconds_since_1970();
                socket.send(&key.seal(SealedWay::Command, time, nonce, text.as_bytes()))?;
            }
        }
        Ok(nonce)
    }

    /// Waits for the answer to the last question.
    fn get(&mut self, nonce: [u8; 16], deadline: Instant) -> io::Result<Option<Value>> {
        let number = self.number;
        let is_ours = |answer: &Value| {
            answer.get("id").is_some_and(|id| id.is_null() || id.as_u64() == Some(number))
        };
        match &mut self.line {
            Line::Socket(stream) => loop {
                let left = clock::until(deadline, clock::now());
                if left.is_zero() {
                    return Ok(None);
                }
                // For each part of a line.
                stream.get_ref().set_read_timeout(Some(left))?;
                let mut text = String::new();
                match stream.read_line(&mut text) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(_) => {}
                    Err(error) if is_timeout(&error) => return Ok(None),
                    Err(error) => return Err(error),
                }
                let answer: Value = serde_json::from_str(&text)?;
                if is_ours(&answer) {
                    return Ok(Some(answer));
                }
            },
            Line::Datagrams { socket, key } => {
                let mut bytes = vec![0; DATAGRAM_LEN_MAX];
                loop {
                    let left = clock::until(deadline, clock::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    socket.set_read_timeout(Some(left))?;
                    let len = match socket.recv(&mut bytes) {
                        Ok(len) => len,
                        Err(error) if is_timeout(&error) => return Ok(None),
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(error) => return Err(error),
                    };
                    let received = &bytes[..len];
                    let body = match key {
                        None => Some(received),
                        Some(key) => parse_sealed(received)
                            .filter(|sealed| sealed.way == SealedWay::Answer)
                            .filter(|sealed| sealed.nonce == nonce && key.proves(sealed))
                            .map(|sealed| sealed.body),
                    };
                    let answer = body.and_then(|body| serde_json::from_slice(body).ok());
                    if let Some(answer) = answer.filter(&is_ours) {
                        return Ok(Some(answer));
                    }
                }
            }
        }
    }
}

fn connected(daemon: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(any_port(daemon))?;
    socket.connect(daemon)?;
    Ok(socket)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

/// An answer that is no refusal.
fn judged(answer: Value) -> Result<Value, Error> {
    if answer.get("ok") == Some(&Value::Bool(true)) {
        return Ok(answer);
    }
    let word = |field: &str| {
        let word = answer.get("error").and_then(|error| error.get(field)).and_then(Value::as_str);
        word.unwrap_or("?").to_owned()
    };
    let cause = io::Error::other(format!("{}: {}", word("field"), word("reason")));
    Err(Error::System { doing: "the daemon refuses".to_owned(), cause })
}
