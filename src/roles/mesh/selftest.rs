//! The role's row of `udpferry selftest`: a daemon in a network namespace of its own, and a remote
//! that sends every packet back.

use super::DEFAULT_DATA_PORT;
use crate::error::Error;
use crate::net::netlink::Netlink;
use crate::roles::proof::{TIMEOUT, Tally, datagram, run_clients};
use crate::roles::selftest::{SelftestRow, Service};
use crate::runtime::clock;
use crate::runtime::signals::uninterrupted;
use nix::sched::{CloneFlags, unshare};
use serde_json::json;
use std::fs;
use std::io;
use std::net::UdpSocket;
use std::path::PathBuf;

const NAME: &str = "mesh";
const ROUNDS: u32 = 1000;
/// From nothing to what fills a packet of 1400 bytes.
const SIZES: [usize; 6] = [0, 1, 64, 200, 512, 1372];

/// Packet information and an IPv4 header without options.
const BEFORE_UDP: usize = 24;

/// Runs a daemon with a tunnel; what goes into it is verified when it comes back.
pub fn selftest() -> Result<Vec<SelftestRow>, Error> {
    if !nix::unistd::geteuid().is_root() || fs::metadata("/dev/net/tun").is_err() {
        let why = "it needs root and /dev/net/tun";
        return Ok(vec![SelftestRow::skipped(NAME, why)]);
    }
    let directory = Scratch::make()?;
    let place = directory.0.clone();
    let none = || Ok(Tally::default());
    let row = run_clients(NAME, 1, 1, vec![move || carry(&place)], none);
    drop(directory);
    row.map(|row| vec![row])
}

/// On a thread of its own, whose network namespace, and that of its children, is another one.
fn carry(directory: &std::path::Path) -> io::Result<Tally> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let mut netlink = Netlink::open()?;
    let loopback = netlink.link("lo")?.index;
    netlink.set_up(loopback, true)?;
    let state = directory.join("mesh.json");
    let tunnel = json!({
        "name": "mesh0", "tunnelIP": "10.0.0.1/30", "mtu": 1400, "remoteServer": "127.0.0.2"
    });
    fs::write(&state, json!({ "version": 1, "commandTime": 0, "tunnel": [tunnel] }).to_string())?;
    let socket = directory.join("mesh.sock");
    let mut args = ["mesh", "--plaintext", "--log-level=none", "--data-addr=127.0.0.1", "-cp", "0"]
        .map(str::to_owned)
        .to_vec();
    args.push(format!("--state-file={}", state.display()));
    args.push(format!("--control-socket={}", socket.display()));
    let remote = UdpSocket::bind(("127.0.0.2", DEFAULT_DATA_PORT))?;
    remote.set_read_timeout(Some(TIMEOUT))?;
    let service = Service::start(&args).map_err(|error| io::Error::other(error.to_string()))?;
    let program = UdpSocket::bind("10.0.0.1:0")?;
    program.connect("10.0.0.2:7")?;
    program.set_read_timeout(Some(TIMEOUT))?;
    let mut tally = Tally::default();
    for round in 0..ROUNDS {
        let size = SIZES[round as usize % SIZES.len()];
        let sent = datagram(round, size);
        let begin = clock::now();
        program.send(&sent)?;
        send_back(&remote)?;
        let mut bytes = [0; 2048];
        match uninterrupted(|| program.recv(&mut bytes)) {
            Ok(len) if bytes[..len] == sent[..] => {
                tally.verified(size, clock::now().saturating_duration_since(begin));
            }
            Ok(_) => tally.lost += 1,
            Err(error) if is_timeout(&error) => tally.lost += 1,
            Err(error) => return Err(error),
        }
    }
    drop(service);
    Ok(tally)
}

/// Sends the next UDP packet back to whom it came from: source and destination swapped, which no
/// checksum minds.
fn send_back(remote: &UdpSocket) -> io::Result<()> {
    let mut bytes = [0; 2048];
    loop {
        let (len, daemon) = match uninterrupted(|| remote.recv_from(&mut bytes)) {
            // What did not come is lost, as the program will see.
            Err(error) if is_timeout(&error) => return Ok(()),
            received => received?,
        };
        // The host sends some packets by itself.
        if len < BEFORE_UDP + 8 || bytes[2..5] != [8, 0, 0x45] || bytes[13] != 17 {
            continue;
        }
        for (one, other, len) in [(16, 20, 4), (BEFORE_UDP, BEFORE_UDP + 2, 2)] {
            for at in 0..len {
                bytes.swap(one + at, other + at);
            }
        }
        return remote.send_to(&bytes[..len], daemon).map(drop);
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

/// The daemon's files, until dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> Result<Scratch, Error> {
        let name = format!("udpferry-selftest-mesh-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let cannot = || format!("selftest: cannot make {}", directory.display());
        fs::create_dir(&directory).map_err(Error::while_doing(cannot))?;
        Ok(Scratch(directory))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is a small file in the temporary directory.
        let _ = fs::remove_dir_all(&self.0);
    }
}
