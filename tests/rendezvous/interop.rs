//! Other people's STUN clients: coturn's from Debian, pystun3 from PyPI.

use crate::server::{Server, free_udp_port};
use crate::support::programs::{program, python_package};
use std::net::SocketAddr;
use std::process::Command;

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
