//! Behind a load balancer: the README's recipe, read from there, and the real HAProxy.

use crate::pair::{Endpoint, Pki, Protection, Side, words};
use crate::support::pki::SERVER;
use crate::support::programs::{Process, await_listener, program};
use crate::support::{Echo, PATIENCE, Scratch, free_port};
use nix::sys::signal::Signal;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

const HEADING: &str = "### Several pool servers behind HAProxy";

/// The configuration that the README prints, with places of this test in place of its own.
fn configuration(places: &[(&str, String)]) -> String {
    let readme = include_str!("../../README.md");
    let section = readme.lines().skip_while(|line| !line.starts_with(HEADING)).skip(1);
    let lines = section.take_while(|line| !line.starts_with('#'));
    let mut text: String =
        lines.filter_map(|line| line.strip_prefix("    ")).flat_map(|line| [line, "\n"]).collect();
    for (theirs, ours) in places {
        assert_eq!(text.matches(theirs).count(), 1, "{theirs} in\n{text}");
        text = text.replace(theirs, ours);
    }
    text
}

#[test]
fn haproxy_keeps_a_session_on_one_server_and_moves_it_when_that_one_dies() {
    let echo = Echo::start();
    let pki = Pki::new();
    let args = Protection::Tls.server(&pki);
    let servers = [(); 2].map(|()| Side::server(echo.address, &words(&args)));
    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let balancer = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let scratch = Scratch::new();
    let places = [
        (":443", balancer.to_string()),
        ("vpn.example.net", SERVER.to_owned()),
        ("192.0.2.11:8443", servers[0].address.to_string()),
        ("192.0.2.12:8443", servers[1].address.to_string()),
        ("127.0.0.1:8444", web.local_addr().unwrap().to_string()),
    ];
    std::fs::write(scratch.path("haproxy.cfg"), configuration(&places)).unwrap();
    let mut command = Command::new(program("haproxy"));
    command.arg("-db").arg("-f").arg(scratch.path("haproxy.cfg"));
    let _haproxy = Process::start(command);
    drop(await_listener(balancer));

    let name = format!("--tls-servername={SERVER}");
    let mut args = pki.trust();
    args.extend([name, "--pool-size=4".to_owned(), "--backoff=0.2".to_owned()]);
    let client = Side::client(balancer, &words(&args));
    let endpoint = Endpoint::to(client.address);
    endpoint.echo(b"through HAProxy");
    client.await_metric("connections", 4);
    let home = servers.iter().position(|server| server.metric("sessions") == 1).unwrap();
    let (home, other) = (&servers[home], &servers[1 - home]);
    home.await_metric("connections", 4);
    assert_eq!(other.metric("sessions_opened_total"), 0, "a session is on both servers");

    // Another name is the web server's, which gets the handshake untouched.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let stream = TcpStream::connect(balancer).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let connector = native_tls::TlsConnector::new().unwrap();
            assert!(connector.connect("www.example.net", stream).is_err(), "nobody answers");
        });
        // Who said nothing to HAProxy, as above, is passed on without a name.
        let mut first = [0; 1];
        while first == [0] {
            let (mut stream, _) = web.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let _ = stream.read(&mut first).unwrap();
        }
        assert_eq!(first, [22], "RFC 8446 section 5.1: a handshake record");
    });

    home.service.signal(Signal::SIGKILL);
    endpoint.echo_at_last(b"through the other server");
    other.await_at_least("connections", 1);
    assert_eq!(other.metric("sessions"), 1);
}
