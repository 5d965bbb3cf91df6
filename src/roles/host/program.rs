//! Other programs that do what no library does for us: nft, iptables, resolvectl, resolvconf.

use crate::error::Error;
use crate::runtime::signals;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Where root's programs are, for callers whose PATH does not say.
const PLACES: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Whether there is such a program.
pub fn is_there(name: &str) -> bool {
    PLACES.iter().any(|place| Path::new(place).join(name).is_file())
}

/// Runs a program to its end, with `input` to read, and returns what it printed.
pub fn run(name: &str, arguments: &[&str], input: &str) -> Result<String, Error> {
    let shown = || format!("cannot run {name} {}", arguments.join(" "));
    let output = start(name, arguments, input).map_err(Error::while_doing(shown))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // The first line has the reason; nft goes on with a drawing of the place.
    let reason = said.lines().next().unwrap_or("it failed without a word").to_owned();
    Err(Error::System { doing: shown(), cause: io::Error::other(reason) })
}

fn start(name: &str, arguments: &[&str], input: &str) -> io::Result<std::process::Output> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(name);
    command
        .args(arguments)
        .env("PATH", format!("{path}:{}", PLACES.join(":")))
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = signals::start(&mut command)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading tells why in its output.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output()
}
