//! What `udpferry check` prints: a line for each step, and where to look when one fails.

use crate::error::Error;
use crate::runtime::clock;
use std::io::{self, Write};
use std::time::Instant;

/// The steps of a check, in order and with their times.
#[derive(Debug)]
pub struct Report {
    started: Instant,
}

impl Report {
    /// Prints what is checked; the first step begins.
    pub fn begin(title: &str) -> Result<Report, Error> {
        say(&format!("{title}\n"))?;
        Ok(Report { started: clock::now() })
    }

    /// The step worked; the next one begins.
    pub fn ok(&mut self, what: &str) -> Result<(), Error> {
        let took = clock::now().saturating_duration_since(self.started);
        say(&format!("  ok    {what} ({:.1} ms)\n", took.as_secs_f64() * 1e3))?;
        self.started = clock::now();
        Ok(())
    }

    /// Something else about the last step.
    pub fn note(&self, what: &str) -> Result<(), Error> {
        say(&format!("        {what}\n"))
    }

    /// The step failed: says so, and where to look.
    pub fn failed(&self, what: &str, advice: &[&str]) -> Error {
        let took = clock::now().saturating_duration_since(self.started);
        let mut text = format!("  FAIL  {what} ({:.1} ms)\n", took.as_secs_f64() * 1e3);
        for line in advice {
            text.push_str("        ");
            text.push_str(line);
            text.push('\n');
        }
        say(&text).err().unwrap_or(Error::CheckFailed)
    }
}

/// Prints a line that is no step.
pub fn say(text: &str) -> Result<(), Error> {
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(Error::while_doing(|| "cannot write to standard output"))
}
