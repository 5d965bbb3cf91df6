//! What is said to Redis and what it answers: RESP3, which tells what others publish between the
//! answers to our own commands, in the order in which it happened.

use super::Written;
use crate::roles::rendezvous::store_url::StoreUrl;
use crate::wire::rendezvous::shared::{
    Place, RECORD_LEN_MAX, ServerId, parse_message, parse_place, parse_record, write_place,
};
use crate::wire::rendezvous::{MemberId, RoomId};
use redis::{Cmd, Parser, PushKind, ServerError, ServerErrorKind, Value, cmd};
use std::fmt::Write as _;
use std::io::{self, Read};
use std::time::Duration;

/// Before the keys and channels of this format.
const PREFIX: &str = "udpferry:1:";

const PUT: &str = include_str!("put.lua");
const REMOVE: &str = include_str!("remove.lua");

/// Commands, and how many answers they will have besides pushes.
#[derive(Debug)]
pub(super) struct Commands {
    pub(super) bytes: Vec<u8>,
    put: String,
    remove: String,
}

/// What a connection begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SetUp {
    Hello,
    Select,
    LoadPut,
    LoadRemove,
    /// A member that is none is written down, which shows that others can be.
    Write,
    /// And crossed out.
    Erase,
}

impl Commands {
    /// None yet.
    pub(super) fn new() -> Commands {
        Commands { bytes: Vec::new(), put: String::new(), remove: String::new() }
    }

    /// Begins a connection; these are answered in this order, and then `own` is subscribed to.
    pub(super) fn begin(&mut self, url: &StoreUrl, own: ServerId) -> Vec<SetUp> {
        self.bytes.clear();
        let mut expected = vec![SetUp::Hello];
        let mut hello = cmd("HELLO");
        hello.arg(3);
        if url.user.is_some() || url.password.is_some() {
            let user = url.user.as_deref().unwrap_or("default");
            hello.arg("AUTH").arg(user).arg(url.password.as_deref().unwrap_or_default());
        }
        hello.arg("SETNAME").arg("udpferry");
        self.add(&hello);
        if url.database != 0 {
            expected.push(SetUp::Select);
            self.add(cmd("SELECT").arg(url.database));
        }
        for (script, kind) in [(PUT, SetUp::LoadPut), (REMOVE, SetUp::LoadRemove)] {
            expected.push(kind);
            self.add(cmd("SCRIPT").arg("LOAD").arg(script));
        }
        self.add(cmd("SUBSCRIBE").arg(channel(own)));
        expected
    }

    /// Goes on when `own` is subscribed to. A server that is somebody's replica, or whose disk is full,
    /// has taken all so far. No right is needed that members do not need.
    pub(super) fn prove(&mut self, own: ServerId, ttl: Duration) -> [SetUp; 2] {
        // Server ids are random, as rooms' are: nobody's room.
        let mut room = [0; 16];
        room[..own.0.len()].copy_from_slice(&own.0);
        let place = Place { member: MemberId([0; 8]), server: own };
        self.put(RoomId(room), place, &[0; 4], ttl);
        self.remove(RoomId(room), place);
        [SetUp::Write, SetUp::Erase]
    }

    /// Takes an answer to the beginning; the error is for people.
    pub(super) fn set_up(&mut self, step: SetUp, answer: Value) -> Result<(), String> {
        if let Value::ServerError(error) = answer {
            return Err(match step {
                SetUp::Hello => why_no_hello(&error),
                _ => words(&error),
            });
        }
        let script = match step {
            SetUp::Hello | SetUp::Select | SetUp::Write | SetUp::Erase => return Ok(()),
            SetUp::LoadPut => &mut self.put,
            SetUp::LoadRemove => &mut self.remove,
        };
        match answer {
            Value::BulkString(sum) => *script = String::from_utf8_lossy(&sum).into_owned(),
            Value::SimpleString(sum) => *script = sum,
            _ => return Err("it does not take scripts".to_owned()),
        }
        Ok(())
    }

    /// Writes a member down, for so long.
    pub(super) fn put(&mut self, room: RoomId, place: Place, record: &[u8], ttl: Duration) {
        let mut command = cmd("EVALSHA");
        let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        command.arg(&self.put).arg(1).arg(room_key(room)).arg(bytes_of(place)).arg(record);
        command.arg(ttl).arg(channels()).arg(&room.0[..]);
        self.add(&command);
    }

    /// Crosses a member out.
    pub(super) fn remove(&mut self, room: RoomId, place: Place) {
        let mut command = cmd("EVALSHA");
        command.arg(&self.remove).arg(1).arg(room_key(room)).arg(bytes_of(place));
        command.arg(channels()).arg(&room.0[..]);
        self.add(&command);
    }

    /// Passes a message on to a server.
    pub(super) fn publish(&mut self, to: ServerId, message: &[u8]) {
        self.add(cmd("PUBLISH").arg(channel(to)).arg(message));
    }

    /// Asks whether anybody is there.
    pub(super) fn ping(&mut self) {
        self.add(&cmd("PING"));
    }

    fn add(&mut self, command: &Cmd) {
        command.write_packed_command(&mut self.bytes);
    }
}

/// What comes from Redis.
#[derive(Debug)]
pub(super) enum Heard {
    /// An answer to the oldest command that has none.
    Answer(Value),
    /// We hear now what others publish.
    Subscribed,
    /// Somebody has published this for us.
    Published(Vec<u8>),
    /// Something that nobody asked for.
    Other,
}

/// Reads what comes, in whatever pieces.
pub(super) struct Listener(Parser);

impl Listener {
    pub(super) fn new() -> Listener {
        Listener(Parser::new())
    }

    /// The next thing. `WouldBlock` if it is not there yet as a whole; `UnexpectedEof` at the end.
    pub(super) fn next(&mut self, from: impl Read) -> io::Result<Heard> {
        let mut from = Noted { from, failure: None };
        let value = self.0.parse_value(&mut from).map_err(|error| {
            // The parser's error does not say which one of the stream it is.
            let malformed = || io::Error::new(io::ErrorKind::InvalidData, error.to_string());
            from.failure.unwrap_or_else(malformed)
        })?;
        let Value::Push { kind, data } = value else { return Ok(Heard::Answer(value)) };
        Ok(match (kind, data.into_iter().nth(1)) {
            (PushKind::Subscribe, _) => Heard::Subscribed,
            (PushKind::Message, Some(Value::BulkString(payload))) => Heard::Published(payload),
            _ => Heard::Other,
        })
    }
}

/// A stream whose last failure is remembered.
struct Noted<R> {
    from: R,
    failure: Option<io::Error>,
}

impl<R: Read> Read for Noted<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(bytes);
        self.failure = match &read {
            Ok(0) => Some(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => None,
            Err(error) => Some(match error.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => io::Error::new(error.kind(), error.to_string()),
            }),
        };
        read
    }
}

/// Why HELLO with its AUTH was refused. A server that does not know HELLO answers with all of it, and
/// so with the password: of its words nothing is repeated but the code.
fn why_no_hello(error: &ServerError) -> String {
    let (code, details) = (error.code(), error.details().unwrap_or_default());
    let why = match code {
        "WRONGPASS" => "the user or password is wrong, or the user is disabled",
        "NOAUTH" => "it wants a password, and the URL has none",
        "NOPERM" => "the user may not say HELLO or CLIENT SETNAME",
        "DENIED" => "it is in protected mode: without a password it talks to its own host alone",
        "LOADING" => "it is still loading its data",
        "NOPROTO" => "it does not speak RESP3: Redis 6.0 or later is needed",
        "ERR" if details.starts_with("unknown command") => {
            "it does not know HELLO: Redis 6.0 or later is needed"
        }
        "ERR" if details.starts_with("max number of clients") => "it has too many clients",
        _ => {
            "it refuses HELLO 3: Redis 6.0 or later is needed, and a user and password that it knows"
        }
    };
    format!("{code}: {why}")
}

/// What Redis says to a command without secrets.
pub(super) fn words(error: &ServerError) -> String {
    let details = error.details().unwrap_or_default();
    let hint = match error.kind() {
        Some(ServerErrorKind::NoPerm) => "; the rights needed are in docs/protocols/rendezvous.md",
        _ => "",
    };
    format!("{}: {details}{hint}", error.code())
}

/// What Redis would not do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// For people.
    pub(super) cause: String,
    /// Other commands will fare no better on this connection.
    pub(super) is_lasting: bool,
}

/// Of a server that is somebody's replica now, that has moved, or that cannot write: a name may lead
/// elsewhere by now. Of scripts that are forgotten: another connection loads them. Of rights that are
/// missing: somebody has to see that nothing is shared.
fn is_lasting(error: &ServerError) -> bool {
    use ServerErrorKind::{
        Ask, ClusterDown, CrossSlot, MasterDown, Moved, NoPerm, NoScript, ReadOnly,
    };
    match error.kind() {
        Some(kind) => matches!(
            kind,
            Ask | ClusterDown | CrossSlot | MasterDown | Moved | NoPerm | NoScript | ReadOnly
        ),
        None => error.code() == "MISCONF",
    }
}

impl From<ServerError> for Refusal {
    fn from(error: ServerError) -> Refusal {
        Refusal { is_lasting: is_lasting(&error), cause: words(&error) }
    }
}

/// Reads the answer to [`Commands::put`]: those that are well-formed, and how many are not.
pub(super) fn read_found(answer: Value) -> Result<(Vec<Written>, usize), Refusal> {
    let values = match answer {
        Value::Array(values) => values,
        Value::ServerError(error) => return Err(error.into()),
        _ => {
            let cause = "an answer of another kind".to_owned();
            return Err(Refusal { cause, is_lasting: false });
        }
    };
    let (mut found, mut malformed) = (Vec::with_capacity(values.len() / 3), 0);
    let mut values = values.into_iter();
    while let (Some(place), Some(age), Some(record)) = (values.next(), values.next(), values.next())
    {
        match written(&place, &age, record) {
            Some(written) => found.push(written),
            None => malformed += 1,
        }
    }
    Ok((found, malformed))
}

fn written(place: &Value, age: &Value, record: Value) -> Option<Written> {
    let (Value::BulkString(place), Value::Int(age), Value::BulkString(record)) =
        (place, age, record)
    else {
        return None;
    };
    parse_record(&record)?;
    let age = Duration::from_millis(u64::try_from(*age).ok()?);
    Some(Written { place: parse_place(place)?, age, record })
}

/// Whether a message is one of ours.
pub(super) fn is_message(bytes: &[u8]) -> bool {
    bytes.len() <= RECORD_LEN_MAX + 64 && parse_message(bytes).is_some()
}

fn bytes_of(place: Place) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_place(&mut bytes, place);
    bytes
}

fn room_key(room: RoomId) -> String {
    format!("{PREFIX}room:{}", hex(&room.0))
}

fn channels() -> String {
    format!("{PREFIX}server:")
}

fn channel(server: ServerId) -> String {
    format!("{}{}", channels(), hex(&server.0))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of an error's line.
    fn error(line: &str) -> ServerError {
        match Parser::new().parse_value(line.as_bytes()) {
            Ok(Value::ServerError(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nobody_sees_the_password_in_what_an_old_server_repeats() {
        let said = |line: &str| {
            let answer = Value::ServerError(error(line));
            Commands::new().set_up(SetUp::Hello, answer).unwrap_err()
        };
        for (line, words) in [
            (
                "-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `s3cret`\r\n",
                "ERR: it does not know HELLO: Redis 6.0",
            ),
            ("-ERR max number of clients reached\r\n", "ERR: it has too many clients"),
            ("-ERR s3cret\r\n", "ERR: it refuses HELLO 3"),
            ("-WRONGPASS invalid username-password pair s3cret\r\n", "WRONGPASS: the user or"),
            ("-NOAUTH HELLO must be called with the client already\r\n", "NOAUTH: it wants a pass"),
            ("-NOPERM User ferry has no permissions\r\n", "NOPERM: the user may not"),
            ("-DENIED Redis is running in protected mode\r\n", "DENIED: it is in protected mode"),
            ("-LOADING Redis is loading the dataset in memory\r\n", "LOADING: it is still"),
        ] {
            let said = said(line);
            assert!(said.starts_with(words) && !said.contains("s3cret"), "{said}");
        }
    }

    #[test]
    fn refusals_that_last_are_told_from_others() {
        for (line, lasts) in [
            ("-READONLY You can't write against a read only replica.\r\n", true),
            ("-MOVED 3999 127.0.0.1:6381\r\n", true),
            ("-NOSCRIPT No matching script.\r\n", true),
            ("-NOPERM no permissions\r\n", true),
            ("-MISCONF Redis is configured to save RDB snapshots\r\n", true),
            ("-BUSY Redis is busy running a script\r\n", false),
            ("-OOM command not allowed\r\n", false),
        ] {
            assert_eq!(Refusal::from(error(line)).is_lasting, lasts, "{line}");
        }
    }

    /// Gives a byte at a time, and nothing between two of them.
    struct Slow<'a>(&'a [u8], bool);

    impl Read for Slow<'_> {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            match self.0.split_first() {
                _ if self.1 => Err(io::ErrorKind::WouldBlock.into()),
                Some((first, rest)) => {
                    bytes[0] = *first;
                    self.0 = rest;
                    Ok(1)
                }
                None => Ok(0),
            }
        }
    }

    #[test]
    fn answers_are_read_in_whatever_pieces_they_come() {
        let text = b"%1\r\n+server\r\n$5\r\nredis\r\n>3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n\
            *3\r\n$16\r\nmmmmmmmmssssssss\r\n:7\r\n$3\r\nx\r\n\r\n\
            >3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$4\r\n\0\r\n\xff\r\n-ERR no\r\n:1\r\n+PONG\r\n";
        let mut slow = Slow(text, false);
        let mut listener = Listener::new();
        let mut heard = Vec::new();
        let mut waits = 0;
        loop {
            match listener.next(&mut slow) {
                Ok(one) => heard.push(format!("{one:?}")),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => waits += 1,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
                    break;
                }
            }
        }
        assert!(waits >= text.len(), "{waits}");
        let expected = [
            "Answer(map",
            "Subscribed",
            "Answer(array",
            "Published([0, 13, 10, 255])",
            "Answer(Server",
            "Answer(int(1))",
            "Answer(simple-string(\"PONG\"))",
        ];
        assert_eq!(heard.len(), expected.len(), "{heard:?}");
        for (one, expected) in heard.iter().zip(expected) {
            assert!(one.to_lowercase().starts_with(&expected.to_lowercase()), "{one}");
        }
    }

    #[test]
    fn what_is_malformed_in_an_answer_is_left_out_and_counted() {
        let text = |bytes: &[u8]| Value::BulkString(bytes.to_vec());
        let mut record = vec![0, 0, 0, 1, 0, 20, 1, 4, 0x13, 0x88, 192, 0, 2, 1];
        record.extend([0; 12]);
        record.extend([0, 1, b'x']);
        let place = [7; 16];
        let good = [text(&place), Value::Int(30), text(&record)];
        let mut values = good.to_vec();
        for bad in [
            [text(&place[1..]), Value::Int(30), text(&record)],
            [text(&place), Value::Int(-1), text(&record)],
            [text(&place), text(b"30"), text(&record)],
            [text(&place), Value::Int(30), text(&record[1..])],
            [text(&place), Value::Int(30), Value::Nil],
        ] {
            values.extend(bad);
        }
        values.push(text(&place));
        let (found, malformed) = read_found(Value::Array(values)).unwrap();
        assert_eq!((found.len(), malformed), (1, 5));
        assert_eq!((found[0].age, &found[0].record), (Duration::from_millis(30), &record));
        assert!(read_found(Value::Nil).is_err());
        assert!(!is_message(b"") && !is_message(&[1; 2000]));
    }
}
