//! The terminal, or the pipe that stands in for it: a thread reads lines, the main thread writes.
//!
//! On a terminal rustyline edits the line, and what arrives meanwhile goes above it. In a pipe,
//! standard input is lines to send and standard output the lines that came, nothing else; notices
//! go to standard error, or to the log of a service that forwards.

use crate::error::Error;
use crate::runtime::queue::{self, NotSent, Receiver, Sender, Wake};
use crate::runtime::thread::{self, Thread};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use rustyline::error::ReadlineError;
use rustyline::{DefaultEditor, ExternalPrinter};
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

/// The editor's tables and a line's history.
const STACK: usize = 256 * 1024;
/// Lines read ahead; more wait in the pipe.
const LINES_MAX: usize = 16;
/// Bytes of a pipe's line, at most; a longer one becomes several.
const LINE_LEN_MAX: usize = 8 * 1024;
const PROMPT: &str = "> ";

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

/// The main thread's side.
pub(super) struct Terminal {
    /// What was typed; wakes the main thread.
    pub(super) typed: Receiver<Typed>,
    output: Output,
    reader: Thread<()>,
    /// Dropped to end the reader of a pipe.
    stop: Option<UnixStream>,
}

enum Output {
    Editor { printer: Box<dyn ExternalPrinter + Send>, before: Option<Termios> },
    Pipe { notices_are_logged: bool },
}

impl Terminal {
    /// Starts reading. An editor where both ends are a terminal that can do it, else a pipe. The
    /// notices of a service go to its log there: a daemon has no standard error.
    pub(super) fn start(wake: &Wake, is_service: bool) -> Result<Terminal, Error> {
        let (lines, typed) = queue::bounded(LINES_MAX, wake);
        if io::stdin().is_terminal() && io::stdout().is_terminal() {
            let before = tcgetattr(io::stdin()).ok();
            if let Ok((editor, printer)) = editor() {
                let reader = thread::spawn("peer:tty", 0, STACK, move || edit(editor, &lines))
                    .map_err(Error::while_doing(|| "cannot start a thread"))?;
                let output = Output::Editor { printer, before };
                return Ok(Terminal { typed, output, reader, stop: None });
            }
            // No editor without termcap's basics (TERM=dumb): lines then, as from a pipe.
        }
        let (stop, stopped) =
            UnixStream::pair().map_err(Error::while_doing(|| "cannot make a socket pair"))?;
        let reader = thread::spawn("peer:tty", 0, STACK, move || read_pipe(&lines, &stopped))
            .map_err(Error::while_doing(|| "cannot start a thread"))?;
        let output = Output::Pipe { notices_are_logged: is_service };
        Ok(Terminal { typed, output, reader, stop: Some(stop) })
    }

    /// Whether a person sits there.
    pub(super) fn is_interactive(&self) -> bool {
        matches!(self.output, Output::Editor { .. })
    }

    /// Shows a line that a member sent. `text` must be fit for a terminal.
    ///
    /// Fails when nobody reads the pipe any more.
    pub(super) fn show_line(&mut self, from: &str, text: &str) -> io::Result<()> {
        match &mut self.output {
            Output::Editor { printer, .. } => print(printer.as_mut(), &format!("{from}: {text}\n")),
            Output::Pipe { .. } => {
                let mut out = io::stdout().lock();
                out.write_all(text.as_bytes())?;
                out.write_all(b"\n")?;
                out.flush()
            }
        }
    }

    /// Shows what the program itself has to say.
    pub(super) fn notice(&mut self, text: &str) {
        if let Output::Pipe { notices_are_logged: true } = self.output {
            log::info!("{text}");
        } else {
            self.confide(text);
        }
    }

    /// Shows what no log may have.
    pub(super) fn confide(&mut self, text: &str) {
        let shown = match &mut self.output {
            Output::Editor { printer, .. } => print(printer.as_mut(), &format!("* {text}\n")),
            Output::Pipe { .. } => writeln!(io::stderr(), "* {text}"),
        };
        if let Err(error) = shown {
            log::debug!("cannot show a notice: {error}");
        }
    }

    /// Ends the reading thread, where that can be done, and leaves the terminal as it was.
    pub(super) fn stop(self) {
        let Terminal { typed, output, reader, stop } = self;
        // A reader that waits for room in the queue, or for input, ends by these.
        drop(typed);
        drop(stop);
        match output {
            Output::Editor { before: Some(before), .. } => {
                // The editor's thread blocks in read(2), where nothing can wake it; it goes with the
                // process. So the terminal's settings are put back here.
                let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &before);
            }
            Output::Editor { before: None, .. } => {}
            Output::Pipe { .. } => {
                // A panic has been logged.
                let _ = reader.join();
            }
        }
    }
}

fn print(printer: &mut dyn ExternalPrinter, text: &str) -> io::Result<()> {
    printer.print(text.to_owned()).map_err(io::Error::other)
}

fn editor() -> Result<(DefaultEditor, Box<dyn ExternalPrinter + Send>), ReadlineError> {
    let mut editor = DefaultEditor::new()?;
    let printer = editor.create_external_printer()?;
    Ok((editor, Box::new(printer)))
}

fn edit(mut editor: DefaultEditor, lines: &Sender<Typed>) {
    loop {
        let typed = match editor.readline(PROMPT) {
            Ok(line) => {
                if !line.trim().is_empty() {
                    // The history is only for the arrow keys.
                    let _ = editor.add_history_entry(line.as_str());
                }
                Typed::Line(line)
            }
            // Ctrl-C, Ctrl-D, or a terminal that is gone.
            Err(_) => Typed::End,
        };
        let ended = typed == Typed::End;
        if lines.send_waiting(typed).is_err() || ended {
            return;
        }
    }
}

/// Reads lines until the end, or until the other end of `stopped` is gone.
fn read_pipe(lines: &Sender<Typed>, stopped: &UnixStream) {
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        // poll(2) rather than epoll: a file from the shell's `<` cannot be watched by the latter.
        let input = io::stdin();
        let mut watched = [
            PollFd::new(input.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return,
        }
        if watched[1].any().unwrap_or(true) {
            return;
        }
        if !watched[0].any().unwrap_or(true) {
            continue;
        }
        // Not through std's buffer, whose contents poll(2) would not see.
        let read = match nix::unistd::read(&input, &mut chunk) {
            Ok(read) => read,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => 0,
        };
        if read == 0 {
            if !line.is_empty() && hand_over(lines, &mut line).is_none() {
                return;
            }
            let _ = lines.send_waiting(Typed::End);
            return;
        }
        for &byte in &chunk[..read] {
            if byte != b'\n' && line.len() < LINE_LEN_MAX {
                line.push(byte);
            } else if hand_over(lines, &mut line).is_none() {
                return;
            }
        }
    }
}

/// Waits for room in the queue; `None` when nobody wants lines any more.
fn hand_over(lines: &Sender<Typed>, line: &mut Vec<u8>) -> Option<()> {
    let bytes = std::mem::take(line);
    let typed = match String::from_utf8(bytes) {
        Ok(text) => Typed::Line(text.strip_suffix('\r').map(str::to_owned).unwrap_or(text)),
        Err(_) => Typed::NotText,
    };
    match lines.send_waiting(typed) {
        Ok(()) => Some(()),
        Err(NotSent::Full(_) | NotSent::Closed(_)) => None,
    }
}
