//! Limits, timeouts, listeners and socket options.

use crate::support::kernel::{skmem, sysctl, tcp_peer, udp_socket};
use crate::support::{Client, Echo, Gateway, PATIENCE, Service, free_port, receive_from, remote};
use socket2::{Domain, SockRef, Socket, Type};
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

#[test]
fn clients_over_the_limit_are_closed_at_once() {
    let gateway = Gateway::start(&["--max-clients=2"]);
    let echo = Echo::start();
    let mut first = gateway.connect();
    let mut second = gateway.connect();
    first.echo(1, echo.address, b"in");
    second.echo(1, echo.address, b"in");
    for refused in 1..=3 {
        assert!(gateway.connect().is_closed());
        gateway.await_metric("udpferry_udpgw_clients_over_limit_total", refused);
    }
    gateway.await_clients(2);
    drop(first);
    gateway.await_clients(1);
    gateway.connect().echo(1, echo.address, b"a place is free");
    second.echo(1, echo.address, b"still in");
}

fn connect_from(source: [u8; 4], gateway: SocketAddr) -> Client<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&gateway.into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    Client::over(socket.into())
}

#[test]
fn clients_of_one_address_are_limited() {
    let gateway = Gateway::start(&["--max-clients-per-address=2"]);
    let echo = Echo::start();
    let mut one = connect_from([127, 0, 0, 2], gateway.address);
    let mut two = connect_from([127, 0, 0, 2], gateway.address);
    one.echo(1, echo.address, b"in");
    two.echo(1, echo.address, b"in");
    assert!(connect_from([127, 0, 0, 2], gateway.address).is_closed());
    gateway.await_clients_closed("address-limit", 1);
    let mut other = connect_from([127, 0, 0, 3], gateway.address);
    other.echo(1, echo.address, b"another address");
    drop(one);
    gateway.await_clients_closed("closed", 1);
    connect_from([127, 0, 0, 2], gateway.address).echo(1, echo.address, b"a place is free");
    two.echo(1, echo.address, b"still in");
}

#[test]
fn a_silent_client_is_closed() {
    let gateway = Gateway::start(&["--client-timeout=0.5"]);
    let begin = Instant::now();
    let mut silent = gateway.connect();
    // Not a whole frame, so nothing was said.
    silent.write(&[3, 0]);
    assert!(silent.is_closed());
    assert!(begin.elapsed() >= Duration::from_millis(500), "after {:?}", begin.elapsed());
    gateway.await_clients_closed("silent", 1);
    gateway.await_clients(0);
}

#[test]
fn dripping_a_frame_byte_by_byte_is_silence() {
    let gateway = Gateway::start(&["--client-timeout=0.5"]);
    let mut client = gateway.connect();
    let begin = Instant::now();
    // A frame of 61,439 bytes would take an hour at this pace.
    client.write(&[0xff, 0xef]);
    while client.is_silent_for(Duration::from_millis(50)) {
        assert!(begin.elapsed() < PATIENCE, "never closed");
        // The gateway may be closing at this moment.
        let _ = client.stream.write_all(&[0]);
    }
    gateway.await_clients_closed("silent", 1);
}

#[test]
fn keepalives_keep_a_client() {
    const TIMEOUT: Duration = Duration::from_millis(500);
    let gateway = Gateway::start(&["--client-timeout=0.5"]);
    let mut client = gateway.connect();
    let begin = Instant::now();
    let (mut since, mut last) = (begin, begin);
    // Where this machine stops for half of the timeout, the time counts anew.
    while since.elapsed() < TIMEOUT * 2 {
        assert!(begin.elapsed() < PATIENCE, "the machine is too slow for this test");
        client.keepalive();
        if last.elapsed() > TIMEOUT / 2 {
            since = Instant::now();
        }
        last = Instant::now();
        assert!(client.is_silent_for(Duration::from_millis(50)), "closed");
    }
    assert!(client.is_closed());
    gateway.await_clients_closed("silent", 1);
}

#[test]
fn a_timeout_of_zero_is_none() {
    let gateway = Gateway::start(&["--client-timeout=0", "--udp-timeout=0"]);
    let (remote, address) = remote();
    let mut client = gateway.connect();
    client.send(1, address, b"hello");
    let (_, source) = receive_from(&remote);
    assert!(client.is_silent_for(Duration::from_secs(1)), "closed");
    remote.send_to(b"late", source).unwrap();
    assert_eq!(client.receive().payload, b"late");
    assert_eq!(gateway.flows_closed("idle"), 0);
}

#[test]
fn datagrams_over_the_mtu_are_dropped_both_ways_and_the_client_stays() {
    let gateway = Gateway::start(&["--udp-mtu=1000"]);
    let (remote, address) = remote();
    let mut client = gateway.connect();
    client.send(1, address, &[1; 1000]);
    let (datagram, source) = receive_from(&remote);
    assert_eq!(datagram, [1; 1000]);
    // The longest body that a frame may have here: 1021, of which 9 are the header.
    client.send(1, address, &[2; 1001]);
    client.send(1, address, &[2; 1012]);
    gateway.await_dropped("too-long", 2);
    remote.send_to(&[3; 1001], source).unwrap();
    gateway.await_dropped("reply-too-long", 1);
    remote.send_to(&[4; 1000], source).unwrap();
    assert_eq!(client.receive().payload, [4; 1000]);
    client.send(1, address, b"after");
    assert_eq!(receive_from(&remote).0, b"after");

    client.send(1, address, &[5; 1013]);
    assert!(client.is_closed());
    gateway.await_clients_closed("oversize-frame", 1);
}

#[test]
fn numbers_are_logged_at_intervals_at_the_default_level() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let listen = format!("--listen-addr={address}");
    let args = ["udpgw", &listen, "--stats-interval=0.2", "--allow=127.0.0.0/8"];
    let service = Service::start_as_given(&args, |_| {});
    let echo = Echo::start();
    let mut client = Client::connect(address);
    client.echo(1, echo.address, b"12345");
    client.echo(2, echo.address, b"12345");
    client.send(3, "169.254.169.254:80".parse().unwrap(), b"refused");
    let line = service.await_log("dropped=1");
    let stats = line.split("stats: ").nth(1).expect("no line of numbers");
    assert_eq!(
        stats,
        "clients=1 clients_total=1 flows=2 flows_total=2 datagrams_to_remote=2 \
         datagrams_to_client=2 bytes_to_remote=10 bytes_to_client=10 dropped=1 \
         dropped_destination-link-local=1"
    );
    drop(client);
    service.await_log("clients=0 clients_total=1");
    let log = service.log();
    assert!(log.lines().all(|line| line.contains("stats: ")), "more than asked for:\n{log}");
}

#[test]
fn several_addresses_are_listened_on() {
    let second = free_port();
    let v6 = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], second));
    let v4 = SocketAddr::from(([127, 0, 0, 1], second));
    let gateway =
        Gateway::start(&[&format!("--listen-addr={v6}"), "--listen-addr", &v4.to_string()]);
    let echo = Echo::start();
    for address in [gateway.address, v6, v4] {
        Client::connect(address).echo(1, echo.address, b"hello");
    }
    // Every one of them is bound.
    for address in [gateway.address, v6, v4] {
        TcpListener::bind(address).unwrap_err();
    }
}

#[test]
fn buffer_sizes_are_as_asked() {
    let echo = Echo::start();
    let buffers = |args: &[&str]| {
        let gateway = Gateway::start(args);
        let mut client = gateway.connect();
        client.echo(1, echo.address, b"hello");
        let (tcp, udp) = (tcp_peer(&client.stream), udp_socket(echo.source().port()));
        [skmem(&tcp, "rb"), skmem(&tcp, "tb"), skmem(&udp, "rb"), skmem(&udp, "tb")]
    };
    // socket(7): the kernel doubles what was asked, for its own bookkeeping.
    assert_eq!(
        buffers(&["--tcp-buffer=65536", "--udp-buffer=32k"]),
        [131_072, 131_072, 65_536, 65_536]
    );
    assert_eq!(
        buffers(&["--tcp-buffer=65536", "--client-socket-sndbuf=32768"])[..2],
        [131_072, 65_536]
    );
    let cap = |name| sysctl(name).min(262_144) * 2;
    let udp_cap = |name| sysctl(name).min(131_072) * 2;
    assert_eq!(
        buffers(&[]),
        [
            cap("net.core.rmem_max"),
            cap("net.core.wmem_max"),
            udp_cap("net.core.rmem_max"),
            udp_cap("net.core.wmem_max")
        ]
    );
    // The system's own: a UDP socket's default, and a TCP buffer that differs from all of ours.
    let [_, _, udp_receive, udp_send] = buffers(&["--tcp-buffer=0", "--udp-buffer=0"]);
    assert_eq!(udp_receive, sysctl("net.core.rmem_default"));
    assert_eq!(udp_send, sysctl("net.core.wmem_default"));
}

#[test]
fn a_tcp_buffer_of_zero_is_the_systems() {
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(plain.local_addr().unwrap()).unwrap();
    let _accepted = plain.accept().unwrap();
    let receive = skmem(&tcp_peer(&stream), "rb");
    let gateway = Gateway::start(&["--tcp-buffer=0"]);
    let client = gateway.connect();
    gateway.await_clients(1);
    assert_eq!(skmem(&tcp_peer(&client.stream), "rb"), receive);
}

#[test]
fn silent_connections_are_probed_unless_told_not_to() {
    for (args, probed) in [(&[][..], true), (&["--no-keepalive"], false)] {
        let gateway = Gateway::start(args);
        let mut client = gateway.connect();
        client.echo(1, Echo::start().address, b"hello");
        // Until the answer is acknowledged, the socket's timer is that of retransmission.
        let said = crate::support::await_some(|| {
            let said = tcp_peer(&client.stream);
            (!said.contains("timer:(on,")).then_some(said)
        })
        .unwrap();
        assert_eq!(said.contains("timer:(keepalive,"), probed, "{said}");
        let in_a_minute =
            said.contains("timer:(keepalive,59sec") || said.contains("keepalive,1min");
        assert_eq!(in_a_minute, probed, "{said}");
    }
}

/// How long the second of two answers takes, when the first is not acknowledged at once.
fn second_answer(args: &[&str]) -> Duration {
    let gateway = Gateway::start(args);
    let (remote, address) = remote();
    let mut client = gateway.connect();
    client.send(1, address, b"hello");
    let (_, source) = receive_from(&remote);
    let times = (0..5).map(|_| {
        // tcp(7): off puts the socket into delayed acknowledgement, 40 ms or more.
        SockRef::from(&client.stream).set_tcp_quickack(false).unwrap();
        remote.send_to(b"first", source).unwrap();
        assert_eq!(client.receive().payload, b"first");
        let begin = Instant::now();
        remote.send_to(b"second", source).unwrap();
        assert_eq!(client.receive().payload, b"second");
        let time = begin.elapsed();
        // Acknowledges everything, so that the next round begins as this one.
        client.keepalive();
        time
    });
    times.min().unwrap()
}

#[test]
fn small_answers_are_not_held_back_unless_told_so() {
    let half_a_delay = Duration::from_millis(20);
    assert!(second_answer(&[]) < half_a_delay);
    assert!(second_answer(&["--no-tcp-nodelay"]) >= half_a_delay);
}
