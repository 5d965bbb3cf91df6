//! A terminal that hands over each key as it is typed, and its settings from before.

use nix::sys::termios::{
    InputFlags, LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr,
};
use std::io;
use std::sync::{Mutex, PoisonError};

/// Standard input's terminal.
#[derive(Debug)]
pub(super) struct Raw {
    /// Not shareable otherwise: it has a cell inside.
    before: Mutex<Termios>,
}

impl Raw {
    /// Fails where standard input is no terminal.
    pub(super) fn start() -> io::Result<Raw> {
        let raw = Raw { before: Mutex::new(tcgetattr(io::stdin())?) };
        raw.enter();
        Ok(raw)
    }

    /// Keys one by one, not shown, and none that the kernel obeys. Output stays as it is: a line
    /// feed begins a line.
    pub(super) fn enter(&self) {
        let mut settings = self.before();
        settings.input_flags &= !(InputFlags::BRKINT
            | InputFlags::ICRNL
            | InputFlags::INLCR
            | InputFlags::IGNCR
            | InputFlags::ISTRIP
            | InputFlags::IXON);
        settings.local_flags &=
            !(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::IEXTEN | LocalFlags::ISIG);
        settings.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        settings.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        set(&settings);
    }

    /// As it was before.
    pub(super) fn leave(&self) {
        set(&self.before());
    }

    fn before(&self) -> Termios {
        self.before.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn set(settings: &Termios) {
    if let Err(error) = tcsetattr(io::stdin(), SetArg::TCSANOW, settings) {
        log::debug!("cannot set the terminal up: {error}");
    }
}
