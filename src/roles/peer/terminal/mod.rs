//! The terminal, or the pipe that stands in for it.
//!
//! ```text
//!   terminal: keys, screen <--> "peer:tty0" (output, line_editor) <--queues--> main
//!   pipe:     input -------> "peer:tty0" (pipe) --queue------------------> main
//!             output, errors <-- "peer:out0" (output) <--queue------------ main
//! ```
//!
//! On a terminal the line is edited, and what arrives meanwhile goes above it. In a pipe, standard
//! input is lines to send and standard output the lines that came, nothing else; notices go to
//! standard error, or to the log of a service that forwards. The main thread waits for none of them.

mod line_editor;
mod output;
mod pipe;
mod raw;

use crate::error::Error;
use crate::runtime::queue::{self, Receiver, Sender, Wake};
use crate::runtime::signals;
use crate::runtime::thread::{self, Thread};
use output::{Drain, Keys, Outlet, Stream};
use raw::Raw;
use std::io::{self, IsTerminal};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// A line and its history.
const STACK: usize = 256 * 1024;
/// Lines read ahead; more wait in the pipe.
const LINES_MAX: usize = 16;
/// Bytes of a line, at most; a longer one becomes several.
pub(super) const LINE_LEN_MAX: usize = 8 * 1024;

/// What the reading thread tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// A line, without its end.
    Line(String),
    /// A line that is no UTF-8.
    NotText,
    /// There will be no more.
    End,
}

/// What ends the whole program.
#[derive(Debug)]
pub(super) enum Broken {
    /// Nobody reads standard output.
    Output(io::Error),
    /// A thread has panicked.
    Thread,
}

/// Tells of the panic that its thread ends with, if it does.
struct TellPanic(Sender<Broken>);

impl Drop for TellPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // When it is full there is reason enough to end.
            let _ = self.0.send(Broken::Thread);
        }
    }
}

/// The main thread's side.
pub(super) struct Terminal {
    /// What was typed; wakes the main thread.
    pub(super) typed: Receiver<Typed>,
    broken: Receiver<Broken>,
    outlet: Outlet,
    writer: Option<Thread<()>>,
    input: Input,
    notices_are_logged: bool,
}

enum Input {
    /// The writer reads it, too. The terminal's settings are restored when this is dropped.
    Screen(Restored),
    /// Its reader, which ends when the other end of the stream is gone.
    Pipe(Option<Thread<()>>, Option<UnixStream>),
}

struct Restored(Arc<Raw>);

impl Drop for Restored {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Terminal {
    /// Starts reading and writing. An editor where both ends are a terminal that can do it, else
    /// pipes. Whatever the main thread has to look at, it is woken by `wake`. The notices of a
    /// service go to its log there: a daemon has no standard error.
    pub(super) fn start(wake: &Wake, is_service: bool) -> Result<Terminal, Error> {
        let cannot_start = || "cannot start a thread";
        let cannot_pair = || "cannot make a socket pair";
        let (lines, typed) = queue::bounded(LINES_MAX, wake);
        let (report, broken) = queue::bounded(2, wake);
        let start = |name, drain: Drain, keys| {
            let report = report.clone();
            thread::spawn(name, 0, STACK, move || {
                let _tells = TellPanic(report.clone());
                drain.run(keys, &report);
            })
            .map_err(Error::while_doing(cannot_start))
        };
        if has_editor() {
            let (outlet, drain) =
                output::queue(Stream::Out).map_err(Error::while_doing(cannot_pair))?;
            let raw = Raw::start().map_err(Error::while_doing(|| "cannot set the terminal up"))?;
            let raw = Arc::new(raw);
            let input = Input::Screen(Restored(Arc::clone(&raw)));
            let resized = outlet.wake_end().and_then(signals::tell_resizes);
            resized.map_err(Error::while_doing(|| "cannot watch the window's size"))?;
            let writer = Some(start("peer:tty", drain, Some(Keys::new(lines, raw)))?);
            let notices_are_logged = false;
            return Ok(Terminal { typed, broken, outlet, writer, input, notices_are_logged });
        }
        let (outlet, drain) =
            output::queue(Stream::Err).map_err(Error::while_doing(cannot_pair))?;
        let (stop, stopped) = UnixStream::pair().map_err(Error::while_doing(cannot_pair))?;
        let writer = start("peer:out", drain, None)?;
        let tells = TellPanic(report);
        let reader = thread::spawn("peer:tty", 0, STACK, move || {
            let _tells = tells;
            pipe::read(&lines, &stopped);
        })
        .map_err(Error::while_doing(cannot_start))?;
        let input = Input::Pipe(Some(reader), Some(stop));
        let writer = Some(writer);
        Ok(Terminal { typed, broken, outlet, writer, input, notices_are_logged: is_service })
    }

    /// Whether a person sits there.
    pub(super) fn is_interactive(&self) -> bool {
        matches!(self.input, Input::Screen(_))
    }

    /// Whether [`Terminal::show_line`] has room now. To be asked before a member's line is taken:
    /// if not, the user is told later that lines were refused.
    pub(super) fn has_room(&self) -> bool {
        self.outlet.has_room()
    }

    /// Shows a line that a member sent; without [room](Terminal::has_room) it is dropped. `text`
    /// must be fit for a terminal.
    pub(super) fn show_line(&mut self, from: &str, text: &str) {
        let line =
            if self.is_interactive() { format!("{from}: {text}\n") } else { format!("{text}\n") };
        if !self.outlet.line(line) {
            log::debug!("a line of {from} was dropped: standard output is too slow");
        }
    }

    /// Shows what the program itself has to say. When too much waits, it is logged instead.
    pub(super) fn notice(&mut self, text: &str) {
        if self.notices_are_logged {
            log::info!("{text}");
        } else {
            self.confide(text);
        }
    }

    /// Shows what no log may have.
    pub(super) fn confide(&mut self, text: &str) {
        if !self.outlet.notice(format!("* {text}\n")) {
            log::debug!("a notice was not shown");
        }
    }

    /// The exit code, if this process should end: whoever read standard output has ended, or there
    /// is nobody here who reads or writes. To be asked whenever the thread was woken.
    pub(super) fn must_end(&self) -> Option<u8> {
        match self.broken.drain().next()? {
            Broken::Output(error) => {
                log::info!("nobody reads standard output: {error}");
                Some(0)
            }
            // The panic has been logged.
            Broken::Thread => Some(1),
        }
    }

    /// Writes what waits, for a second at most and not to a stream that takes nothing for 100 ms;
    /// ends the threads and leaves the terminal as it was.
    pub(super) fn stop(mut self) {
        // First, as a second SIGTERM ends the process at once.
        if let Input::Screen(restored) = &self.input {
            restored.0.leave();
        }
        // A reader that waits for room in the queue ends by this.
        drop(self.typed);
        if let Input::Pipe(reader, stop) = &mut self.input {
            drop(stop.take());
            // A panic has been logged.
            let _ = reader.take().map(Thread::join);
        }
        // A writer that has not ended is inside write(2), where nothing can wake it; it goes with
        // the process.
        if self.outlet.close() {
            let _ = self.writer.take().map(Thread::join);
        }
    }
}

/// Whether lines can be edited here.
fn has_editor() -> bool {
    // Terminals that do not know even how to erase a line.
    const TOO_SIMPLE: [&str; 3] = ["dumb", "cons25", "emacs"];
    let term = std::env::var("TERM").unwrap_or_default();
    let is_simple = term.is_empty() || TOO_SIMPLE.contains(&term.as_str());
    !is_simple && io::stdin().is_terminal() && io::stdout().is_terminal()
}
