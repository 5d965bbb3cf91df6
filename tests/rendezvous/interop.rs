//! Other people's STUN clients: coturn's from Debian, pystun3 from PyPI.

use crate::server::{Server, free_udp_port, socket_to};
use crate::support::programs::{Process, program, python_package};
use crate::support::{Scratch, await_some, run};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

/// A server with two addresses and two ports.
fn two_by_two() -> (Server, u16, u16) {
    let (port, stun) = (free_udp_port(), free_udp_port());
    let stun_port = format!("--stun-port={stun}");
    let args = [&stun_port, "--alternate-addr=127.0.0.2"];
    (Server::start_on(([127, 0, 0, 1], port).into(), &args), port, stun)
}

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn coturns_client_understands_every_answer() {
    let (_server, port, stun) = two_by_two();
    let mut client = Command::new(program("turnutils_stunclient"));
    let said = said(client.args(["-p", &port.to_string(), "127.0.0.1"]));
    assert!(said.contains("UDP reflexive addr: 127.0.0.1:"), "{said}");
    assert!(said.contains(&format!("Other addr: : 127.0.0.2:{stun}")), "{said}");
    // Also the answers from elsewhere, and the padded one.
    assert!(said.contains(&format!("Response origin: : 127.0.0.2:{stun}")), "{said}");
    assert!(!said.contains("error"), "{said}");
}

#[test]
fn coturns_client_of_a_server_with_one_address() {
    let server = Server::start(&[]);
    let port = server.address.port().to_string();
    let said = said(Command::new(program("turnutils_stunclient")).args(["-p", &port, "127.0.0.1"]));
    assert!(said.contains("UDP reflexive addr: 127.0.0.1:"), "{said}");
}

#[test]
fn coturns_discovery_finds_no_nat() {
    let (_server, port, _) = two_by_two();
    let mut client = Command::new(program("turnutils_natdiscovery"));
    let port = port.to_string();
    let said = said(client.args(["-m", "-f", "-p", &port, "-L", "127.0.0.1", "127.0.0.1"]));
    assert!(said.contains("No NAT! (Endpoint Independent Mapping)"), "{said}");
    assert!(said.contains("NAT with Endpoint Independent Filtering!"), "{said}");
}

/// Debian's TURN server as a STUN server with two addresses and two ports.
fn coturn() -> (Process, Scratch, SocketAddr) {
    let (port, alternate) = (free_udp_port(), free_udp_port());
    let scratch = Scratch::new();
    let mut command = Command::new(program("turnserver"));
    command.args(["-n", "--stun-only", "--no-cli", "--no-tls", "--no-dtls", "--no-tcp"]);
    command.args(["--listening-ip=127.0.0.1", "--listening-ip=127.0.0.2"]);
    command
        .arg(format!("--listening-port={port}"))
        .arg(format!("--alt-listening-port={alternate}"));
    // It writes a log, a pid file and a database of users wherever it can.
    command.args(["--log-file=stdout", "--simple-log"]).current_dir(scratch.path(""));
    command.arg("--pidfile").arg(scratch.path("pid")).arg("--userdb").arg(scratch.path("users"));
    // Versions differ: from 4.7 on RFC 5780 is off unless it is asked for.
    let help = Command::new(program("turnserver")).arg("--help").output().unwrap();
    let help = [help.stdout, help.stderr].concat();
    if String::from_utf8_lossy(&help).contains(" --rfc5780") {
        command.arg("--rfc5780");
    }
    let process = Process::start(command);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let client = socket_to(address);
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    // A Binding request of RFC 8489: type, length 0, magic cookie, a transaction of zeros.
    let request = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[0; 12]].concat();
    await_some(|| {
        let _ = client.send(&request);
        client.recv(&mut [0; 2048]).ok()
    })
    .expect("turnserver does not answer");
    (process, scratch, address)
}

#[test]
fn our_detection_understands_coturn() {
    let (_server, _scratch, address) = coturn();
    let output = run(&["peer", &format!("--server={address}"), "--detect"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    for line in [
        "mapping: no NAT, the public endpoint is the local one",
        "filtering: endpoint-independent",
        "with a peer behind a symmetric NAT: direct",
    ] {
        assert!(said.lines().any(|it| it == line), "no {line:?} in\n{said}");
    }
}

#[test]
fn pystun3_finds_an_open_host() {
    let (_server, port, _) = two_by_two();
    let python = python_package("pystun3==2.0.0").join("python");
    let own = SocketAddr::from(([127, 0, 0, 1], free_udp_port()));
    let script = format!(
        "import stun\nprint(stun.get_ip_info('127.0.0.1', {}, '127.0.0.1', {port}))",
        own.port()
    );
    let said = said(Command::new(python).args(["-c", &script]));
    assert_eq!(said.trim(), format!("('Open Internet', '127.0.0.1', {})", own.port()));
}
