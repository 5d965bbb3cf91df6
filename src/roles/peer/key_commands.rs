//! `udpferry keygen` and `udpferry pubkey`: as `wg genkey` and `wg pubkey`, for hosts without it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

use super::identity::{self, PrivateKey};
use crate::cli::common::INFORMATION;
use crate::cli::flags::Matches;
use crate::cli::table::Command;
use crate::error::Error;
use crate::net::random;

/// Everybody: may they read or write it?
const EVERYBODY: u32 = 0o007;

/// The options of `keygen`.
pub const KEYGEN: Command = Command {
    name: "keygen",
    summary: "make a private key for a peer, in WireGuard's format",
    about: "Prints a new private key: 32 random bytes in base64, as wg genkey does. A file that \
            holds it is for the peer's option --key-file; who can read it can pass for its owner.",
    positionals: &[],
    sections: &[("Common", INFORMATION)],
    examples: &[
        ("umask 077; udpferry keygen > peer.key", "Make a key that nobody else can read."),
        ("udpferry keygen | tee peer.key | udpferry pubkey", "Make a key and see its public half."),
    ],
};

/// The options of `pubkey`.
pub const PUBKEY: Command = Command {
    name: "pubkey",
    summary: "print the public key of a private key, in WireGuard's format",
    about: "Reads a private key from standard input and prints its public half, as wg pubkey \
            does. The others give it to their peer's option --peer-key.",
    positionals: &[],
    sections: &[("Common", INFORMATION)],
    examples: &[("udpferry pubkey < peer.key", "What to tell the others.")],
};

/// Prints a new private key.
pub fn keygen(_: &Matches) -> Result<u8, Error> {
    let random = random::bytes().map_err(Error::while_doing(|| "cannot make a key"))?;
    if written_for_everybody() {
        // Nobody to tell is no reason to stop.
        let _ = writeln!(
            io::stderr(),
            "udpferry: everybody may read this file; consider umask 077 before"
        );
    }
    print_line(&PrivateKey::from_random(random).to_text())
}

/// Prints the public key of the private key on standard input.
pub fn pubkey(_: &Matches) -> Result<u8, Error> {
    let doing = "cannot read a private key from standard input";
    let key = identity::read_private_key(io::stdin().lock());
    print_line(&key.map_err(Error::while_doing(|| doing))?.public().to_string())
}

/// As `wg genkey` warns: standard output is a file that everybody may open.
fn written_for_everybody() -> bool {
    let file = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    let metadata = file.and_then(|file| file.metadata());
    metadata.is_ok_and(|file| file.is_file() && file.permissions().mode() & EVERYBODY != 0)
}

fn print_line(line: &str) -> Result<u8, Error> {
    // Unlike a text that is read with `| head`, a key that does not arrive is a failure.
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .map_err(Error::while_doing(|| "cannot write to standard output"))?;
    Ok(0)
}
