//! The role's row of `udpferry selftest`: a server with its device in a network namespace of its
//! own, whose UDP socket is on this side's loopback, and clients that ping it through the tunnel.

use super::probe::{NoPlace, Place, Probe};
use crate::error::Error;
use crate::roles::proof::{TIMEOUT, Tally, run_clients};
use crate::roles::selftest::{SelftestRow, Service};
use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const CLIENTS: usize = 4;
/// Pings of each client, half of them over IPv6.
const ROUNDS: usize = 500;
/// From an echo without data over IPv6 to the whole MTU of a path over Ethernet.
const SIZES: [usize; 6] = [48, 84, 200, 576, 1280, 1452];
/// Passes the socket on as systemd does (sd_listen_fds(3)), and becomes the program.
const PASS_ON: &str = "exec 3<&0 </dev/null && LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";
const NAME: &str = "vpn server";

/// Runs a server in namespaces of its own; clients verify what comes back through its device.
pub fn selftest() -> Result<Vec<SelftestRow>, Error> {
    if let Err(why) = may_prove() {
        return Ok(vec![SelftestRow::skipped(NAME, &why)]);
    }
    let directory = Scratch::make()?;
    let doing = || "selftest: no free UDP port on 127.0.0.1";
    let socket = UdpSocket::bind("127.0.0.1:0").map_err(Error::while_doing(doing))?;
    let server = socket.local_addr().map_err(Error::while_doing(doing))?;
    let program = std::env::current_exe()
        .map_err(Error::while_doing(|| "selftest: cannot find this program"))?;
    let mut process = in_namespaces();
    process.args(["/bin/sh", "-c", PASS_ON, "sh"]).arg(program);
    process.args(["vpn", "server", "--plaintext", "--log-level=none", "--address=10.0.0.2/24"]);
    process.args(["--address=fd00::2/64", "--runtime-dir"]).arg(&directory.0);
    process.stdin(Stdio::from(OwnedFd::from(socket)));
    let service = Service::start_by(process)?;
    let clients = (0..CLIENTS).map(|_| move || client(server));
    let none = || Ok(Tally::default());
    let row = run_clients(NAME, CLIENTS, 2 * CLIENTS, clients.collect(), none);
    drop(service);
    row.map(|row| vec![row])
}

fn client(server: SocketAddr) -> io::Result<Tally> {
    let mut probe = Probe::connect(server, TIMEOUT)?;
    let (seen, cookie) = probe.hello().map_err(failed)?;
    let place: Place = probe.enter(seen, cookie).map_err(failed)?;
    let mut tally = Tally::default();
    for round in 0..ROUNDS {
        let size = SIZES[round / 2 % SIZES.len()];
        let Some((own, _, inside)) = place.addresses.get(round % 2).copied() else {
            return Err(io::Error::other("there are not two addresses"));
        };
        match probe.ping((own, inside), size, &round.to_le_bytes())? {
            Some(round_trip) => tally.verified(size, round_trip),
            None => tally.lost += 1,
        }
    }
    probe.leave()?;
    Ok(tally)
}

fn failed(why: NoPlace) -> io::Error {
    match why {
        NoPlace::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

/// Whether this machine lets us make a device in namespaces of our own, or why not.
fn may_prove() -> Result<(), String> {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(|error| format!("/dev/net/tun cannot be opened here: {error}"))?;
    let output = in_namespaces()
        .arg("true")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("unshare(1) cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let why = said.lines().next().unwrap_or("it does not say why").to_owned();
    Err(format!("this machine gives us no network namespace: {why}"))
}

/// A command in a new network namespace, of which it is root.
fn in_namespaces() -> Command {
    let mut command = Command::new("unshare");
    command.arg("--net");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.arg("--");
    command
}

/// The server's runtime directory, until dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> Result<Scratch, Error> {
        let name = format!("udpferry-selftest-vpn-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let cannot = || format!("selftest: cannot make {}", directory.display());
        fs::create_dir(&directory).map_err(Error::while_doing(cannot))?;
        Ok(Scratch(directory))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is an empty directory in the temporary one.
        let _ = fs::remove_dir_all(&self.0);
    }
}
