//! The original on either side: udp-over-tls-pool 0.1.1 from PyPI, in a virtual environment that
//! the first test to need it makes below the target directory.

use crate::pair::{Endpoint, Pki, Protection, Side, payload, words};
use crate::support::programs::{Process, await_listener, python_package};
use crate::support::{Echo, PATIENCE, Scratch, await_some, free_port, receive_from, remote};
use nix::sys::signal::Signal;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

const PACKAGE: &str = "udp-over-tls-pool==0.1.1";
/// Empty ones have tests of their own: asyncio before Python 3.12 receives them and sends none.
const SIZES: [usize; 4] = [1, 1200, 16_384, 65_000];
const ENDPOINTS: usize = 8;

/// The package's scripts.
fn scripts() -> &'static Path {
    static SCRIPTS: OnceLock<PathBuf> = OnceLock::new();
    SCRIPTS.get_or_init(|| python_package(PACKAGE))
}

/// A Python peer that serves.
struct Peer {
    _process: Process,
    address: SocketAddr,
}

/// The peer tells a service manager when it is ready, by a path as it knows no abstract ones.
fn start(mut command: Command) -> Process {
    let scratch = Scratch::new();
    let path = scratch.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    command.env("NOTIFY_SOCKET", &path);
    let process = Process::start(command);
    let mut bytes = [0; 256];
    let len = socket.recv(&mut bytes).unwrap_or_else(|_| panic!("{}", process.stderr()));
    assert!(bytes[..len].starts_with(b"READY=1"));
    process
}

fn python_server(target: SocketAddr, args: &[String]) -> Peer {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = Command::new(scripts().join("uotp-server"));
    command.args(["-a", "127.0.0.1", "-p", &address.port().to_string()]).args(args);
    command.args([target.ip().to_string(), target.port().to_string()]);
    let process = start(command);
    drop(await_listener(address));
    Peer { _process: process, address }
}

fn python_client(server: SocketAddr, args: &[String]) -> Peer {
    // Free a moment ago; the peer cannot say which port it has taken.
    let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = Command::new(scripts().join("uotp-client"));
    command.args(["-B", "0.2", "-p", &address.port().to_string()]).args(args);
    command.args([server.ip().to_string(), server.port().to_string()]);
    Peer { _process: start(command), address }
}

/// Pushes every size through 8 endpoints at once, one datagram of each under way, and checks what
/// comes back byte by byte. Only a Python peer is allowed to lose some: its queue is read by all
/// connections, and a datagram that one of them has taken while the server closes it is gone.
fn verify(client: SocketAddr, may_lose: bool) {
    std::thread::scope(|scope| {
        for number in 0..ENDPOINTS {
            scope.spawn(move || {
                let endpoint = Endpoint::to(client);
                for (seed, len) in SIZES.into_iter().enumerate() {
                    let datagram = payload(len, 100 * number + seed);
                    if may_lose {
                        exchange(&endpoint, &datagram);
                    } else {
                        endpoint.echo(&datagram);
                    }
                }
            });
        }
    });
}

/// Sends a datagram until it comes back; an answer to an earlier sending may come late.
fn exchange(endpoint: &Endpoint, datagram: &[u8]) {
    endpoint.socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let came = await_some(|| {
        endpoint.send(datagram);
        loop {
            match endpoint.try_receive() {
                Ok(answer) if answer == datagram => return Some(()),
                // Of an earlier one, sent twice.
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    });
    assert!(came.is_some(), "{} bytes do not come back", datagram.len());
}

fn python_client_to_our_server(protection: Protection) {
    let (echo, pki) = (Echo::start(), Pki::new());
    let server = Side::server(echo.address, &words(&protection.server(&pki)));
    let client = python_client(server.address, &protection.client(&pki));
    verify(client.address, true);
    assert_eq!(server.metric("sessions"), 8);
    server.await_metric("connections", 64);
}

fn our_client_to_python_server(protection: Protection) {
    let (echo, pki) = (Echo::start(), Pki::new());
    let server = python_server(echo.address, &protection.server(&pki));
    let client = Side::client(server.address, &words(&protection.client(&pki)));
    verify(client.address, true);
    assert_eq!(client.metric("sessions"), 8);
    client.await_metric("connections", 64);
}

/// The two of ours, under the same conditions and without any loss.
fn ours(protection: Protection) {
    let (echo, pki) = (Echo::start(), Pki::new());
    let server = Side::server(echo.address, &words(&protection.server(&pki)));
    let client = Side::client(server.address, &words(&protection.client(&pki)));
    verify(client.address, false);
}

/// Shows that what this file expects of the peers is what they are.
fn theirs(protection: Protection) {
    let (echo, pki) = (Echo::start(), Pki::new());
    let server = python_server(echo.address, &protection.server(&pki));
    let client = python_client(server.address, &protection.client(&pki));
    verify(client.address, true);
}

macro_rules! matrix {
    ($($row:ident: $run:ident;)*) => {$(
        mod $row {
            use super::{Protection, $run};

            #[test]
            fn plain() {
                $run(Protection::Plain);
            }

            #[test]
            fn tls() {
                $run(Protection::Tls);
            }

            #[test]
            fn client_certificates() {
                $run(Protection::ClientCertificates);
            }
        }
    )*};
}

matrix! {
    our_client_our_server: ours;
    our_client_python_server: our_client_to_python_server;
    python_client_our_server: python_client_to_our_server;
    python_client_python_server: theirs;
}

#[test]
fn an_empty_datagram_of_a_python_client_reaches_the_target() {
    let pki = Pki::new();
    for protection in Protection::ALL {
        let (target, target_address) = remote();
        target.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let server = Side::server(target_address, &words(&protection.server(&pki)));
        let client = python_client(server.address, &protection.client(&pki));
        let endpoint = Endpoint::to(client.address);
        let came = await_some(|| {
            endpoint.send(b"");
            target.recv(&mut [0; 16]).ok()
        });
        assert_eq!(came, Some(0), "{protection:?}");
    }
}

#[test]
fn an_empty_datagram_from_a_python_server_reaches_the_endpoint() {
    let pki = Pki::new();
    for protection in Protection::ALL {
        let (target, target_address) = remote();
        let server = python_server(target_address, &protection.server(&pki));
        let client = Side::client(server.address, &words(&protection.client(&pki)));
        let endpoint = Endpoint::to(client.address);
        endpoint.send(b"hello");
        let (_, source) = receive_from(&target);
        endpoint.socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let came = await_some(|| {
            target.send_to(b"", source).unwrap();
            endpoint.try_receive().ok()
        });
        assert_eq!(came, Some(Vec::new()), "{protection:?}");
    }
}

#[test]
fn a_python_client_survives_a_restart_of_our_server() {
    let echo = Echo::start();
    let port = free_port();
    let start =
        || Side::server_on("127.0.0.1", port, "127.0.0.1", echo.address.port(), &["--no-tls"]);
    let server = start();
    let client = python_client(server.address, &["--no-tls".to_owned()]);
    let endpoint = Endpoint::to(client.address);
    exchange(&endpoint, b"before");
    server.service.signal(Signal::SIGKILL);
    drop(server);
    let _server = start();
    exchange(&endpoint, b"after");
}
