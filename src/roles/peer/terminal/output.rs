//! What is to be shown, and the thread that shows it: the main thread never waits for a reader of
//! standard output. On a terminal the same thread reads the keys, since both are one screen.

use super::line_editor::{ERASE, LineEditor, Wish, entered};
use super::raw::Raw;
use super::{Broken, Typed};
use crate::net::sys::window;
use crate::runtime::queue::Sender;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, raise};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Texts that wait for one stream.
const TEXTS_MAX: usize = 256;
/// Bytes of them.
const BYTES_MAX: usize = 256 * 1024;
/// Bytes of one write: a pipe that poll(2) calls writable takes so many (pipe(7), `PIPE_BUF`).
const WRITE_MAX: usize = 4096;
/// A window that does not tell its width.
const COLUMNS: u16 = 80;
/// At the end, a stream that has taken nothing for so long is blocked.
const BLOCKED_AFTER: Duration = Duration::from_millis(100);
/// And one that takes something may do so this many times as long: a second.
const PATIENCE: u32 = 10;

/// Where a text goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Out,
    Err,
}

const STREAMS: [Stream; 2] = [Stream::Out, Stream::Err];

#[derive(Debug, Default)]
struct Lane {
    texts: VecDeque<String>,
    bytes: usize,
}

impl Lane {
    fn has_room(&self) -> bool {
        self.texts.len() < TEXTS_MAX && self.bytes < BYTES_MAX
    }

    fn push(&mut self, text: String) {
        self.bytes += text.len();
        self.texts.push_back(text);
    }

    fn pop(&mut self) -> Option<String> {
        let text = self.texts.pop_front()?;
        self.bytes -= text.len();
        Some(text)
    }
}

#[derive(Debug, Default)]
struct State {
    lanes: [Lane; STREAMS.len()],
    /// Members' lines that found no room and of which nobody has been told.
    refused: u64,
    /// No more will come.
    is_closing: bool,
    /// The main thread waits no longer.
    is_given_up: bool,
    /// The thread has ended.
    is_finished: bool,
    written: u64,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics with the lock held; counts would be sound even so.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The main thread's end: a queue for each stream of at most 256 texts and 256 KiB, which refuses
/// the newest when it is full.
#[derive(Debug)]
pub(super) struct Outlet {
    shared: Arc<Shared>,
    wake: UnixStream,
    notices: Stream,
}

/// The thread's end.
pub(super) struct Drain {
    shared: Arc<Shared>,
    wake: UnixStream,
    notices: Stream,
}

/// A queue; notices go to that stream.
pub(super) fn queue(notices: Stream) -> io::Result<(Outlet, Drain)> {
    let (wake, woken) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    let shared = Arc::new(Shared::default());
    let drain = Drain { shared: Arc::clone(&shared), wake: woken, notices };
    Ok((Outlet { shared, wake, notices }, drain))
}

impl Outlet {
    /// Whether another line of a member's can be taken now. If not, the user is told later.
    pub(super) fn has_room(&self) -> bool {
        let mut state = self.shared.state();
        let has_room = state.lanes[Stream::Out as usize].has_room();
        if !has_room {
            state.refused += 1;
        }
        has_room
    }

    /// Queues a line of a member's.
    pub(super) fn line(&self, text: String) -> bool {
        self.push(Stream::Out, text)
    }

    /// Queues a notice.
    pub(super) fn notice(&self, text: String) -> bool {
        self.push(self.notices, text)
    }

    fn push(&self, stream: Stream, text: String) -> bool {
        {
            let mut state = self.shared.state();
            let lane = &mut state.lanes[stream as usize];
            if !lane.has_room() {
                return false;
            }
            lane.push(text);
        }
        self.wake();
        true
    }

    /// Whatever is written there has the window's size looked at.
    pub(super) fn wake_end(&self) -> io::Result<UnixStream> {
        self.wake.try_clone()
    }

    fn wake(&self) {
        // Full means that it is awake; gone is gone.
        let _ = (&self.wake).write(&[0]);
    }

    /// Waits until everything is written, but not for a stream that takes nothing. Returns whether
    /// the thread has ended.
    pub(super) fn close(&self) -> bool {
        let mut state = self.shared.state();
        state.is_closing = true;
        self.wake();
        for _ in 0..PATIENCE {
            let written = state.written;
            let waited = self
                .shared
                .changed
                .wait_timeout_while(state, BLOCKED_AFTER, |state| !state.is_finished);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.is_finished || state.written == written {
                break;
            }
        }
        state.is_given_up = true;
        self.wake();
        state.is_finished
    }
}

/// The keys, and where complete lines go.
pub(super) struct Keys {
    editor: LineEditor,
    lines: Sender<Typed>,
    raw: Arc<Raw>,
    columns: u16,
}

impl Keys {
    pub(super) fn new(lines: Sender<Typed>, raw: Arc<Raw>) -> Keys {
        Keys { editor: LineEditor::default(), lines, raw, columns: 0 }
    }

    /// Takes what was typed; returns what is to be written. Fails when nobody wants it.
    fn take(&mut self, bytes: &[u8]) -> Result<String, End> {
        let (mut text, mut wishes) = (String::new(), Vec::new());
        for byte in bytes {
            self.editor.take(*byte, &mut wishes);
        }
        for wish in wishes {
            match wish {
                Wish::Line(line) => {
                    text.push_str(&entered(&line));
                    self.lines.send_waiting(Typed::Line(line)).map_err(|_| End)?;
                }
                Wish::End => return Err(End),
                Wish::Suspend => {
                    self.raw.leave();
                    // Ends when the shell lets us go on.
                    let _ = raise(Signal::SIGTSTP);
                    self.raw.enter();
                }
                Wish::Clear => text.push_str("\x1b[H\x1b[2J"),
            }
        }
        Ok(text + &self.drawn())
    }

    fn drawn(&mut self) -> String {
        self.columns = window::columns(io::stdout()).unwrap_or(COLUMNS);
        self.editor.drawn(self.columns)
    }

    /// Whether the window has another width than when the line was drawn last.
    fn is_resized(&self) -> bool {
        window::columns(io::stdout()).unwrap_or(COLUMNS) != self.columns
    }
}

/// There will be no more input.
struct End;

/// What is on its way to a stream.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    is_broken: bool,
}

impl Pending {
    fn add(&mut self, text: &str) {
        if !self.is_broken {
            self.bytes.extend_from_slice(text.as_bytes());
        }
    }

    /// Writes some of it to a stream that is ready for that.
    fn write(&mut self, to: BorrowedFd<'_>) -> Result<usize, Errno> {
        let len = self.bytes.len().min(WRITE_MAX);
        match nix::unistd::write(to, &self.bytes[..len]) {
            Ok(written) => {
                self.bytes.drain(..written);
                Ok(written)
            }
            Err(Errno::EINTR | Errno::EAGAIN) => Ok(0),
            Err(error) => {
                self.is_broken = true;
                self.bytes.clear();
                Err(error)
            }
        }
    }
}

impl Drain {
    /// Shows what comes until the end. `broken` gets the error that standard output has met.
    pub(super) fn run(self, mut keys: Option<Keys>, broken: &Sender<Broken>) {
        self.show(&mut keys, broken);
        self.shared.state().is_finished = true;
        self.shared.changed.notify_all();
    }

    fn show(&self, keys: &mut Option<Keys>, broken: &Sender<Broken>) {
        let (input, out, err) = (io::stdin(), io::stdout(), io::stderr());
        let mut pending = [Pending::default(), Pending::default()];
        if let Some(keys) = keys {
            pending[Stream::Out as usize].add(&keys.drawn());
        }
        let mut reads = keys.is_some();
        loop {
            if self.refill(&mut pending, keys.as_mut()) {
                return;
            }
            // Who pastes faster than the terminal shows waits.
            let reads_now = reads && pending[Stream::Out as usize].bytes.len() < WRITE_MAX;
            let mut watched = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
            // Those that are not wanted stay out: poll(2) tells errors unasked.
            let mut places = [None; 3];
            let streams = [
                (reads_now, input.as_fd(), PollFlags::POLLIN),
                (!pending[0].bytes.is_empty(), out.as_fd(), PollFlags::POLLOUT),
                (!pending[1].bytes.is_empty(), err.as_fd(), PollFlags::POLLOUT),
            ];
            for (place, (is_wanted, fd, flag)) in places.iter_mut().zip(streams) {
                if is_wanted {
                    *place = Some(watched.len());
                    watched.push(PollFd::new(fd, flag));
                }
            }
            match poll(&mut watched, PollTimeout::NONE) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            }
            let is_ready =
                |place: Option<usize>| place.and_then(|at| watched[at].any()).unwrap_or_default();
            let ready = places.map(is_ready);
            if watched[0].any().unwrap_or(true) {
                self.clear_wake();
                if let Some(keys) = keys.as_mut().filter(|keys| keys.is_resized()) {
                    pending[Stream::Out as usize].add(&keys.drawn());
                }
            }
            for (stream, fd) in [(Stream::Out, out.as_fd()), (Stream::Err, err.as_fd())] {
                if !ready[1 + stream as usize] {
                    continue;
                }
                match pending[stream as usize].write(fd) {
                    Ok(written) => self.shared.state().written += written as u64,
                    Err(error) if stream == Stream::Out => {
                        // Its queue has one place, and there is one such error.
                        let _ = broken.send(Broken::Output(error.into()));
                    }
                    Err(error) => log::debug!("cannot show notices: {error}"),
                }
            }
            if let (true, Some(keys)) = (ready[0], keys.as_mut()) {
                if let Ok(text) = read_keys(keys, &input) {
                    pending[Stream::Out as usize].add(&text);
                } else {
                    reads = false;
                    let _ = keys.lines.send_waiting(Typed::End);
                }
            }
        }
    }

    /// Takes texts from the queues for streams that have little to write; returns whether it is
    /// over.
    fn refill(&self, pending: &mut [Pending; 2], keys: Option<&mut Keys>) -> bool {
        let mut state = self.shared.state();
        let mut on_screen = String::new();
        for stream in STREAMS {
            let pending = &mut pending[stream as usize];
            while pending.is_broken || pending.bytes.len() + on_screen.len() < WRITE_MAX {
                let Some(text) = state.lanes[stream as usize].pop() else { break };
                if keys.is_some() {
                    on_screen.push_str(&text);
                } else {
                    pending.add(&text);
                }
            }
            if stream == Stream::Out && state.refused > 0 && state.lanes[0].texts.is_empty() {
                let refused = std::mem::take(&mut state.refused);
                let text = format!(
                    "* standard output is too slow: {refused} arrivals of lines were not taken\n"
                );
                state.lanes[self.notices as usize].push(text);
                if self.notices == Stream::Out {
                    // Its turn is now: nothing else may come for long.
                    on_screen.extend(state.lanes[0].pop());
                }
            }
        }
        let is_empty = pending.iter().all(|it| it.bytes.is_empty()) && on_screen.is_empty();
        let is_over = state.is_given_up
            || state.is_closing && is_empty && state.lanes.iter().all(|it| it.texts.is_empty());
        drop(state);
        if let Some(keys) = keys {
            let out = &mut pending[Stream::Out as usize];
            if is_over {
                out.add(ERASE);
                if is_empty && !out.is_broken {
                    // The shell's prompt goes where ours is.
                    let _ = out.write(io::stdout().as_fd());
                }
            } else if !on_screen.is_empty() {
                out.add(&format!("{ERASE}{on_screen}{}", keys.drawn()));
            }
        }
        is_over
    }

    fn clear_wake(&self) {
        let mut bytes = [0; 64];
        while (&self.wake).read(&mut bytes).is_ok_and(|read| read == bytes.len()) {}
    }
}

fn read_keys(keys: &mut Keys, input: &io::Stdin) -> Result<String, End> {
    let mut chunk = [0; 1024];
    // Not through std's buffer, whose contents poll(2) would not see.
    match nix::unistd::read(input, &mut chunk) {
        Ok(0) => Err(End),
        Ok(read) => keys.take(&chunk[..read]),
        Err(Errno::EINTR | Errno::EAGAIN) => Ok(String::new()),
        // The terminal is gone.
        Err(_) => Err(End),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_refuses_the_newest_and_says_so_when_there_is_room() {
        let (outlet, drain) = queue(Stream::Err).unwrap();
        let mut pending = [Pending::default(), Pending::default()];
        for _ in 0..TEXTS_MAX {
            assert!(outlet.has_room() && outlet.line("0123456789\n".to_owned()));
        }
        assert!(!outlet.has_room() && !outlet.line("x".to_owned()));
        assert!(outlet.notice("* n\n".to_owned()), "a queue of its own");
        assert!(!drain.refill(&mut pending, None));
        assert_eq!(pending[0].bytes.len(), TEXTS_MAX * 11, "all but the refused one");
        let notices = String::from_utf8(pending[1].bytes.clone()).unwrap();
        let expected = "* n\n* standard output is too slow: 1 arrivals of lines were not taken\n";
        assert_eq!(notices, expected);
        assert!(outlet.has_room());
    }

    #[test]
    fn a_window_tells_its_columns() {
        let size = nix::pty::Winsize { ws_row: 24, ws_col: 97, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = nix::pty::openpty(Some(&size), None).unwrap();
        assert_eq!(window::columns(&pair.slave), Some(97));
        assert_eq!(window::columns(nix::pty::openpty(None, None).unwrap().slave), None);
    }

    #[test]
    fn the_queue_is_bounded_in_bytes_too() {
        let (outlet, _drain) = queue(Stream::Out).unwrap();
        let mut taken = 0;
        while outlet.line("x".repeat(10_000)) {
            taken += 1;
        }
        assert_eq!(taken, BYTES_MAX.div_ceil(10_000));
    }

    #[test]
    fn what_a_blocked_stream_has_waiting_is_given_up() {
        let (outlet, drain) = queue(Stream::Out).unwrap();
        outlet.line("x".to_owned());
        assert!(!outlet.close(), "nobody has taken it");
        assert!(drain.refill(&mut [Pending::default(), Pending::default()], None));
    }

    #[test]
    fn a_broken_stream_takes_everything_and_keeps_nothing() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut pending = Pending::default();
        pending.add("text");
        assert_eq!(pending.write(writer.as_fd()), Err(Errno::EPIPE));
        pending.add("text");
        assert!(pending.bytes.is_empty());
    }
}
