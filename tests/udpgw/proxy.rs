//! Behind a load balancer: PROXY headers of both versions, and the real HAProxy.

use crate::support::pki::{SERVER, authority};
use crate::support::programs::{Process, await_listener, program};
use crate::support::{Client, Echo, Gateway, PATIENCE, Reply, Scratch, frame, free_port};
use nix::sys::signal::Signal;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const CLOSED_BY_HEADER: &str = "udpferry_udpgw_clients_closed_total{reason=\"proxy-header\"}";

fn v1(source: &str) -> Vec<u8> {
    let source: SocketAddr = source.parse().unwrap();
    let (family, destination) =
        if source.is_ipv4() { ("TCP4", "198.51.100.1") } else { ("TCP6", "2001:db8::1") };
    format!("PROXY {family} {} {destination} {} 7300\r\n", source.ip(), source.port()).into_bytes()
}

/// Version 2 with `command` 1 (PROXY) or 0 (LOCAL), and whatever follows the addresses.
fn v2(command: u8, source: &str, tlvs: &[u8]) -> Vec<u8> {
    let source: SocketAddr = source.parse().unwrap();
    let mut body = Vec::new();
    let family = match source.ip() {
        IpAddr::V4(ip) => {
            body.extend(ip.octets());
            body.extend([198, 51, 100, 1]);
            0x11
        }
        IpAddr::V6(ip) => {
            body.extend(ip.octets());
            body.extend([0x20; 16]);
            0x21
        }
    };
    body.extend(source.port().to_be_bytes());
    body.extend(7300_u16.to_be_bytes());
    body.extend(tlvs);
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([0x20 | command, family]);
    header.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    header.extend(body);
    header
}

/// PP2_TYPE_AUTHORITY, PP2_TYPE_UNIQUE_ID and PP2_TYPE_NOOP of the PROXY specification §2.2.
const TLVS: &[u8] = b"\x02\0\x0cgateway.test\x05\0\x04\x01\x02\x03\x04\x04\0\x02\0\0";

#[test]
fn the_address_in_the_header_is_the_clients() {
    let gateway = Gateway::start(&["--proxy-protocol"]);
    let echo = Echo::start();
    let local = [b"PROXY UNKNOWN\r\n".to_vec(), v2(0, "203.0.113.99:9", b"")];
    let named = [
        (v1("203.0.113.7:50001"), "203.0.113.7:50001"),
        (v1("[2001:db8::7]:50002"), "[2001:db8::7]:50002"),
        (v2(1, "203.0.113.8:50003", b""), "203.0.113.8:50003"),
        (v2(1, "[2001:db8::8]:50004", b""), "[2001:db8::8]:50004"),
        (v2(1, "203.0.113.9:50005", TLVS), "203.0.113.9:50005"),
        (v2(1, "[::ffff:203.0.113.10]:50006", TLVS), "203.0.113.10:50006"),
        // As long as a version 2 header may reasonably be: a certificate's name and more.
        (
            v2(1, "203.0.113.11:50007", &[&b"\x02\x01\xe0"[..], &[b'a'; 480]].concat()),
            "203.0.113.11:50007",
        ),
    ];
    for (header, shown) in named {
        let mut client = gateway.connect();
        // In one segment with the first frame.
        let question = frame(1, echo.address, b"proxied");
        client.write(&[header, question].concat());
        assert_eq!(client.receive().payload, b"proxied", "{shown}");
        gateway.service.await_log(&format!("client {shown}: connected"));
    }
    for header in local {
        let mut client = gateway.connect();
        client.write(&[header, frame(1, echo.address, b"the balancer's own")].concat());
        assert_eq!(client.receive().payload, b"the balancer's own");
        // It tells no address: the connection's own counts.
        let own = client.stream.local_addr().unwrap();
        gateway.service.await_log(&format!("client {own}: connected"));
    }
    assert_eq!(gateway.metric(CLOSED_BY_HEADER), 0);
}

#[test]
fn a_header_split_at_any_byte_is_read() {
    let gateway = Gateway::start(&["--proxy-protocol"]);
    let echo = Echo::start();
    let mut witness = gateway.connect();
    witness.write(&v1("203.0.113.1:1"));
    let unknown = b"PROXY UNKNOWN ffff::1 some tail\r\n".to_vec();
    for header in [v1("203.0.113.7:50001"), v2(1, "203.0.113.8:50002", TLVS), unknown] {
        let bytes = [header, frame(2, echo.address, b"split")].concat();
        for at in 1..bytes.len() {
            let mut client = gateway.connect();
            client.write(&bytes[..at]);
            // A round trip of another client: time enough for the gateway to see the first part.
            witness.echo(1, echo.address, b"meanwhile");
            client.write(&bytes[at..]);
            assert_eq!(client.receive().payload, b"split", "split after {at} bytes");
        }
    }
    assert_eq!(gateway.metric(CLOSED_BY_HEADER), 0);
}

#[test]
fn a_missing_or_invalid_header_closes_and_counts() {
    let gateway = Gateway::start(&["--proxy-protocol"]);
    let echo = Echo::start();
    let mut wrong_version = v2(1, "203.0.113.7:1", b"");
    wrong_version[12] = 0x31;
    let mut too_short = v2(1, "203.0.113.7:1", b"");
    too_short[15] = 4;
    let wrong: [Vec<u8>; 9] = [
        frame(1, echo.address, b"no header"),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"PROXY TCP4 203.0.113.7\r\n".to_vec(),
        b"PROXY TCP4 203.0.113.999 198.51.100.1 1 2\r\n".to_vec(),
        b"PROXY TCP4 203.0.113.7 198.51.100.1 1 65536\r\n".to_vec(),
        b"PROXY TCP6 203.0.113.7 198.51.100.1 1 2\r\n".to_vec(),
        [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 200]].concat(),
        wrong_version,
        too_short,
    ];
    let mut count = 0;
    for bytes in wrong {
        let mut client = gateway.connect();
        let own = client.stream.local_addr().unwrap();
        client.write(&bytes);
        assert!(client.is_closed(), "{}", bytes.escape_ascii());
        count += 1;
        gateway.await_metric(CLOSED_BY_HEADER, count);
        gateway.service.await_log(&format!("client {own}: no PROXY header: "));
    }
    // Nothing at all, or half a header, and gone: that is told at once too.
    for beginning in [&b""[..], b"PROXY TCP4 203", b"\r\n\r\n\0\r\nQUIT\n\x21\x11"] {
        let mut client = gateway.connect();
        client.write(beginning);
        client.stream.shutdown(Shutdown::Write).unwrap();
        assert!(client.is_closed());
        count += 1;
        gateway.await_metric(CLOSED_BY_HEADER, count);
    }
}

#[test]
fn the_limit_per_address_counts_proxied_addresses() {
    let gateway = Gateway::start(&["--proxy-protocol", "--max-clients-per-address=2"]);
    let echo = Echo::start();
    let connect = |source: &str, header: fn(&str) -> Vec<u8>| {
        let mut client = gateway.connect();
        client.write(&[header(source), frame(1, echo.address, b"counted")].concat());
        client
    };
    let second: fn(&str) -> Vec<u8> = |source| v2(1, source, b"");
    let mut first = connect("203.0.113.7:1", v1);
    let mut mapped = connect("[::ffff:203.0.113.7]:2", second);
    assert_eq!(first.receive().payload, b"counted");
    assert_eq!(mapped.receive().payload, b"counted");
    let mut third = connect("203.0.113.7:3", second);
    assert!(third.is_closed());
    let refused = "udpferry_udpgw_clients_closed_total{reason=\"address-limit\"}";
    gateway.await_metric(refused, 1);
    gateway.service.await_log("client 203.0.113.7:3: refused");
    // All of these come from 127.0.0.1 in truth.
    for number in 8..20 {
        let mut other = connect(&format!("203.0.113.{number}:1"), v1);
        assert_eq!(other.receive().payload, b"counted");
    }
    drop(first);
    gateway.await_metric("udpferry_udpgw_clients", 1);
    assert_eq!(connect("203.0.113.7:4", v1).receive().payload, b"counted");
    assert_eq!(gateway.metric(refused), 1);
}

#[test]
fn the_header_stands_before_tls() {
    let authority = authority("udpferry test authority");
    let issued = authority.issue();
    let scratch = Scratch::new();
    let file = |name: &str, bytes: Vec<u8>| {
        std::fs::write(scratch.path(name), bytes).unwrap();
        scratch.path(name).display().to_string()
    };
    let certificate = format!("--tls-cert={}", file("cert.pem", issued.pem()));
    let key = format!("--tls-key={}", file("key.pem", issued.key_pem()));
    let gateway = Gateway::start(&["--proxy-protocol", &certificate, &key]);
    let mut builder = native_tls::TlsConnector::builder();
    builder.disable_built_in_roots(true);
    builder.add_root_certificate(native_tls::Certificate::from_pem(&authority.pem()).unwrap());
    let connector = builder.build().unwrap();
    let echo = Echo::start();
    for (header, shown) in [
        (v1("203.0.113.7:50001"), "203.0.113.7:50001"),
        (v2(1, "203.0.113.8:50002", TLVS), "203.0.113.8:50002"),
    ] {
        let mut stream = gateway.connect().stream;
        stream.write_all(&header).unwrap();
        let mut client = Client::over(connector.connect(SERVER, stream).unwrap());
        client.echo(1, echo.address, b"proxied and encrypted");
        gateway.service.await_log(&format!("client {shown}: connected"));
    }
    connector.connect(SERVER, gateway.connect().stream).unwrap_err();
    gateway.await_metric(CLOSED_BY_HEADER, 1);
}

/// A client whose connection comes from `source`.
fn connect_from(source: Ipv4Addr, to: SocketAddr) -> io::Result<Client<TcpStream>> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect(&to.into())?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(Client::over(stream))
}

/// A connection through the balancer, and how many round trips it has made.
struct Worker {
    client: Client<TcpStream>,
    sent: u32,
}

impl Worker {
    fn connect(source: Ipv4Addr, to: SocketAddr) -> io::Result<Worker> {
        connect_from(source, to).map(|client| Worker { client, sent: 0 })
    }

    /// One round trip; an error when the connection is gone, a panic on a wrong answer.
    fn round_trip(&mut self, remote: SocketAddr) -> io::Result<()> {
        self.sent += 1;
        let payload = self.sent.to_le_bytes();
        self.client.stream.write_all(&frame(3, remote, &payload))?;
        match self.client.try_receive() {
            Ok(Reply { conid: 3, payload: answer, .. }) => assert_eq!(answer, payload),
            Ok(other) => panic!("{other:?}"),
            // Silence is loss, and a dead connection is none.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("a datagram is lost"),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

const WORKERS: u8 = 8;
const BEFORE: u32 = 100;
const AFTER: u32 = 200;

/// What became of one worker.
struct Outcome {
    first: SocketAddr,
    reconnects: u32,
}

fn work(
    source: Ipv4Addr,
    balancer: SocketAddr,
    remote: SocketAddr,
    warmed_up: &AtomicUsize,
    killed: &AtomicBool,
) -> Outcome {
    let mut worker = Worker::connect(source, balancer).unwrap();
    let first = worker.client.stream.local_addr().unwrap();
    let (mut reconnects, mut after) = (0, 0);
    let (mut done, mut warm) = (0, false);
    while after < AFTER {
        if let Err(error) = worker.round_trip(remote) {
            assert!(killed.load(Ordering::SeqCst), "{source}: {error} before the kill");
            reconnects += 1;
            assert!(reconnects < 100, "{source}: {error}");
            worker = Worker::connect(source, balancer).unwrap();
            continue;
        }
        done += 1;
        if done >= BEFORE && !warm {
            warm = true;
            warmed_up.fetch_add(1, Ordering::SeqCst);
        }
        after += u32::from(killed.load(Ordering::SeqCst));
    }
    Outcome { first, reconnects }
}

#[test]
fn haproxy_in_front_of_two_gateways_survives_the_death_of_one() {
    let gateways = [Gateway::start(&["--proxy-protocol"]), Gateway::start(&["--proxy-protocol"])];
    let balancer = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let scratch = Scratch::new();
    let config = format!(
        "global\n    maxconn 200\ndefaults\n    mode tcp\n    timeout connect 2s\n    \
         timeout client 60s\n    timeout server 60s\n    retries 3\n    option redispatch 1\n\
         frontend udpgw\n    bind {balancer}\n    default_backend gateways\nbackend gateways\n    \
         balance roundrobin\n    server one {} send-proxy-v2\n    server two {} send-proxy-v2\n",
        gateways[0].address, gateways[1].address
    );
    std::fs::write(scratch.path("haproxy.cfg"), config).unwrap();
    let mut command = Command::new(program("haproxy"));
    command.arg("-db").arg("-f").arg(scratch.path("haproxy.cfg"));
    let _haproxy = Process::start(command);
    drop(await_listener(balancer));
    let echo = Echo::start();
    let (warmed_up, killed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|number| {
                let source = Ipv4Addr::new(127, 0, 0, 2 + number);
                let (remote, warmed_up, killed) = (echo.address, &warmed_up, &killed);
                scope.spawn(move || work(source, balancer, remote, warmed_up, killed))
            })
            .collect();
        let warm = || warmed_up.load(Ordering::SeqCst) == usize::from(WORKERS);
        let all_warm = crate::support::await_some(|| warm().then_some(())).is_some();
        killed.store(true, Ordering::SeqCst);
        gateways[0].service.signal(Signal::SIGKILL);
        assert!(all_warm, "the clients do not get through HAProxy");
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let connected = |gateway: &Gateway, client: SocketAddr| {
        gateway.service.log().contains(&format!("client {client}: connected"))
    };
    let mut survivors = 0;
    for Outcome { first, reconnects } in outcomes {
        // The log tells the client's own address, not HAProxy's.
        let homes = gateways.each_ref().map(|gateway| connected(gateway, first));
        match homes {
            [true, false] => assert!(reconnects >= 1, "{first} did not notice the kill"),
            [false, true] => {
                assert_eq!(reconnects, 0, "{first} was cut off from the living gateway");
                survivors += 1;
            }
            _ => panic!("{first} is in the logs of {homes:?}"),
        }
    }
    assert!(survivors > 0 && survivors < WORKERS, "{survivors} of {WORKERS}: not balanced");
}
