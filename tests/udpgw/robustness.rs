//! Clients that misbehave, systems that run out, and the end under load.

use crate::support::kernel::{
    await_read, change_descriptor_limit, in_own_namespaces, limit_descriptors, own_etc,
    raise_own_descriptor_limit,
};
use crate::support::{
    Client, Echo, Gateway, PATIENCE, Reply, await_some, frame, free_port, receive_from, remote,
    remote_on,
};
use socket2::{Domain, Socket, Type};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const FLOOD_LEN: usize = 1400;

/// A datagram of a flood that tells its place, and whether it is whole.
fn flood_datagram(number: u32) -> Vec<u8> {
    let mut payload = number.to_le_bytes().repeat(FLOOD_LEN / 4);
    payload[4] ^= 0xff;
    payload
}

fn flood_number(payload: &[u8]) -> u32 {
    let number = u32::from_le_bytes(payload[..4].try_into().unwrap());
    assert_eq!(payload, flood_datagram(number), "a torn frame");
    number
}

/// A client with a small receive buffer whose remote is about to flood it.
struct Victim {
    client: Client<TcpStream>,
    remote: UdpSocket,
    address: SocketAddr,
    source: SocketAddr,
    sent: u32,
}

impl Victim {
    fn connect(gateway: &Gateway) -> Victim {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(65_536).unwrap();
        socket.connect(&gateway.address.into()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Client::over(TcpStream::from(socket));
        let (remote, address) = remote();
        client.send(1, address, b"tell me everything");
        let (_, source) = receive_from(&remote);
        Victim { client, remote, address, source, sent: 0 }
    }

    fn flood(&mut self, count: u32) {
        for _ in 0..count {
            self.remote.send_to(&flood_datagram(self.sent), self.source).unwrap();
            self.sent += 1;
        }
    }

    /// Reads all that was kept: whole frames, in order. Then the connection is as good as new.
    fn recover(&mut self) {
        let mut count: u32 = 0;
        let mut next = 0;
        while let Some(reply) = self.client.receive_within(Duration::from_millis(300)) {
            assert_eq!((reply.conid, reply.address), (1, self.address));
            let number = flood_number(&reply.payload);
            assert!(number >= next, "{number} after {next}");
            next = number + 1;
            count += 1;
        }
        assert!(count > 0, "nothing was kept");
        assert!(count < self.sent, "all of the flood was kept");
        self.remote.send_to(b"the end", self.source).unwrap();
        assert_eq!(self.client.receive().payload, b"the end");
        self.client.echo(2, Echo::start().address, b"as good as new");
    }
}

const KIB_PER_MIB: u64 = 1024;

#[test]
fn a_client_that_does_not_read_hurts_nobody_and_may_begin_to_read() {
    let gateway = Gateway::start(&[]);
    let echo = Echo::start();
    let mut victim = Victim::connect(&gateway);
    let mut other = gateway.connect();
    other.echo(1, echo.address, &[7; 1400]);
    let before = gateway.service.status("VmRSS");
    let mut slowest = Duration::ZERO;
    for number in 0..200_u8 {
        victim.flood(100);
        let begin = Instant::now();
        other.echo(1, echo.address, &[number; 200]);
        slowest = slowest.max(begin.elapsed());
    }
    // 28 MB were sent to it.
    let growth = gateway.service.status("VmRSS").saturating_sub(before);
    assert!(growth < 16 * KIB_PER_MIB, "memory grew by {growth} KiB");
    assert!(slowest < Duration::from_secs(1), "an echo took {slowest:?}");
    victim.recover();
    // The kernel's buffer was the queue, and dropped what did not fit.
    assert!(gateway.dropped("receive-buffer-full") > 0);
}

#[test]
fn many_clients_that_do_not_read_are_bounded_too() {
    const VICTIMS: usize = 20;
    let gateway = Gateway::start(&[]);
    let echo = Echo::start();
    let mut victims: Vec<Victim> = (0..VICTIMS).map(|_| Victim::connect(&gateway)).collect();
    let mut other = gateway.connect();
    other.echo(1, echo.address, &[7; 1400]);
    let before = gateway.service.status("VmRSS");
    for number in 0..20_u8 {
        for victim in &mut victims {
            victim.flood(100);
        }
        other.echo(1, echo.address, &[number; 200]);
    }
    let growth = gateway.service.status("VmRSS").saturating_sub(before);
    assert!(growth < 16 * KIB_PER_MIB, "memory grew by {growth} KiB");
    for victim in victims.iter_mut().step_by(7) {
        victim.recover();
    }
    drop(victims);
    gateway.await_clients(1);
    other.echo(1, echo.address, b"still here");
}

#[test]
fn a_client_that_floods_its_remote_keeps_nobody_waiting() {
    let gateway = Gateway::start(&[]);
    let echo = Echo::start();
    let (_deaf, deaf_address) = remote();
    let mut loud = gateway.connect();
    let mut other = gateway.connect();
    let frames = frame(1, deaf_address, &[1; 1400]).repeat(500);
    for number in 0..20_u8 {
        loud.write(&frames);
        let begin = Instant::now();
        other.echo(1, echo.address, &[number; 200]);
        assert!(begin.elapsed() < Duration::from_secs(1));
    }
    loud.echo(2, echo.address, b"done");
    let to_remote = gateway.metric("udpferry_udpgw_datagrams_total{direction=\"to-remote\"}");
    assert_eq!(to_remote + gateway.dropped("send-buffer-full"), 20 * 501 + 1);
}

#[test]
fn half_a_frame_waits_for_its_other_half_and_keeps_nobody_else_waiting() {
    let gateway = Gateway::start(&[]);
    let echo = Echo::start();
    let payload = [9; 1000];
    let whole = frame(3, echo.address, &payload);
    let mut halves: Vec<_> = (0..10)
        .map(|_| {
            let mut client = gateway.connect();
            client.write(&whole[..500]);
            await_read(&client.stream);
            client
        })
        .collect();
    gateway.connect().echo(1, echo.address, b"whole");
    for client in &mut halves {
        client.write(&whole[500..]);
        let expected = Reply { conid: 3, address: echo.address, payload: payload.to_vec() };
        assert_eq!(client.receive(), expected);
    }
}

#[test]
fn something_other_than_udpgw_is_closed() {
    let gateway = Gateway::start(&["--udp-mtu=1500"]);
    let mut client = gateway.connect();
    client.write(b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n");
    assert!(client.is_closed());
    gateway.await_clients_closed("oversize-frame", 1);
    // "GE" read as a length.
    let line = gateway.service.await_log("17735");
    assert!(line.contains(&client.address().to_string()) && line.contains(" warning "), "{line}");
}

#[test]
fn garbage_harms_nobody() {
    let (dns, dns_address) = remote();
    let gateway =
        Gateway::start(&["--deny=0.0.0.0/0", "--deny=::/0", &format!("--dns={dns_address}")]);
    let echo = Echo::start();
    let mut other = gateway.connect();
    other.echo(1, echo.address, b"before");
    let before = gateway.service.status("VmRSS");
    let mut state = 1_u64;
    let garbage: Vec<u8> = (0..4_000_000)
        .map(|_| {
            // A linear congruential generator (Knuth, MMIX), of which the high bits are good.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_le_bytes()[7]
        })
        .collect();
    for part in garbage.chunks(1_000_000) {
        gateway.connect().write(part);
        other.echo(1, echo.address, b"meanwhile");
    }
    gateway.await_clients(1);
    let growth = gateway.service.status("VmRSS").saturating_sub(before);
    assert!(growth < 16 * KIB_PER_MIB, "memory grew by {growth} KiB");
    drop(dns);
}

/// Asserts that the gateway rests for a second.
fn assert_rests(gateway: &Gateway, client: &mut Client<TcpStream>) {
    let before = gateway.service.cpu();
    assert!(client.is_silent_for(Duration::from_secs(1)));
    let used = gateway.service.cpu().saturating_sub(before);
    assert!(used < Duration::from_millis(200), "{used:?} of processor time for nothing");
}

#[test]
fn more_clients_than_descriptors_wait_their_turn() {
    raise_own_descriptor_limit();
    let gateway = Gateway::start_with(&[], |command| limit_descriptors(command, 256));
    gateway.service.await_log("raise LimitNOFILE");
    let echo = Echo::start();
    let mut first = gateway.connect();
    first.echo(1, echo.address, b"in");
    let mut crowd: Vec<_> = (0..1000).map(|_| gateway.connect()).collect();
    // The numbers can be asked for all the time.
    gateway.await_clients((256 - 64) / 4);
    assert_rests(&gateway, &mut first);
    assert_eq!(gateway.metric("udpferry_udpgw_accept_errors_total"), 0);
    first.echo(1, echo.address, b"still in");
    crowd[0].echo(1, echo.address, b"and so is the next");
    // Places that come free are taken by those who wait.
    let (going, waiting) = crowd.split_at_mut(100);
    for client in going {
        client.stream.shutdown(std::net::Shutdown::Both).unwrap();
    }
    waiting[0].echo(1, echo.address, b"in at last");
    drop(crowd);
    gateway.await_clients(1);
    gateway.connect().echo(1, echo.address, b"as if nothing had been");
    first.echo(1, echo.address, b"still in");
}

#[test]
fn descriptors_that_run_out_in_earnest_come_back() {
    raise_own_descriptor_limit();
    let gateway = Gateway::start(&[]);
    let echo = Echo::start();
    let mut first = gateway.connect();
    first.echo(1, echo.address, b"in");
    // The gateway has seen a higher limit, so that it runs into this one.
    change_descriptor_limit(gateway.service.pid(), 256);
    let crowd: Vec<_> = (0..1000).map(|_| gateway.connect()).collect();
    let line = gateway.service.await_log("cannot accept clients");
    assert!(line.contains(" error "), "{line}");
    assert_rests(&gateway, &mut first);
    first.echo(1, echo.address, b"still in");
    // A new socket cannot be had, or can just be: either way the client stays.
    first.send_dns(2, echo.address, b"needs a socket");
    first.echo(1, echo.address, b"still in");
    drop(crowd);
    gateway.await_clients(1);
    gateway.connect().echo(1, echo.address, b"as if nothing had been");
    assert!(gateway.metric("udpferry_udpgw_accept_errors_total") > 0);
    first.echo(3, echo.address, b"still in");
}

#[test]
fn flows_without_a_descriptor_are_dropped_and_counted() {
    let gateway = Gateway::start(&["--mapping=per-flow"]);
    let echo = Echo::start();
    let mut client = gateway.connect();
    client.echo(0, echo.address, b"in");
    let open = u32::try_from(gateway.service.descriptors()).unwrap();
    change_descriptor_limit(gateway.service.pid(), open + 20);
    for conid in 1..=100 {
        client.send(conid, echo.address, b"me too");
    }
    for _ in 0..10 {
        client.receive();
    }
    client.send(0, echo.address, b"still here");
    await_some(|| (client.receive().payload == b"still here").then_some(())).unwrap();
    // Nor is there one for a scrape, which waits.
    let mut scrape = TcpStream::connect(gateway.metrics).unwrap();
    scrape.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    scrape.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert_eq!(scrape.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    change_descriptor_limit(gateway.service.pid(), open + 200);
    scrape.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = String::new();
    scrape.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let dropped = gateway.dropped("no-socket");
    // About 20 found a descriptor.
    assert!((75..=85).contains(&dropped), "{dropped}");
    assert_eq!(gateway.metric("udpferry_udpgw_flows"), 101 - dropped);
    client.echo(101, echo.address, b"there is room again");
    gateway.service.await_log("cannot open a socket towards");
}

/// Asks the gateway's resolver for an address until the server gets the question, and answers it.
fn ask(client: &mut Client<TcpStream>, server: &UdpSocket) {
    let address: SocketAddr = "192.0.2.1:53".parse().unwrap();
    server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let source = await_some(|| {
        // Each question is a new flow, since only these look for the resolver.
        client.write(&crate::support::flagged_frame(1, address, b"question", true, true));
        server.recv_from(&mut [0; 64]).ok()
    });
    let (_, source) = source.expect("the resolver got nothing");
    server.send_to(b"answer", source).unwrap();
    assert_eq!(client.receive(), Reply { conid: 1, address, payload: b"answer".to_vec() });
}

#[test]
fn the_resolver_is_that_of_resolv_conf_at_the_moment() {
    if !in_own_namespaces("robustness::the_resolver_is_that_of_resolv_conf_at_the_moment") {
        return;
    }
    let etc = own_etc();
    let conf = etc.path("resolv.conf");
    let gateway = Gateway::start(&[]);
    let mut client = gateway.connect();
    // No file.
    client.send_dns(1, "192.0.2.1:53".parse().unwrap(), b"question");
    gateway.await_dropped("no-resolver", 1);
    let line = gateway.service.await_log("no nameserver to ask");
    assert!(line.contains(" warning ") && line.contains("192.0.2.1:53"), "{line}");

    // IPv6 alone.
    let (v6, _) = remote_on("[::1]:53");
    std::fs::write(&conf, "search example.org\nnameserver ::1\n").unwrap();
    ask(&mut client, &v6);

    // Changed in place, then by another file of that name, as resolvconf and NetworkManager do.
    let (first, _) = remote_on("127.0.0.1:53");
    let (second, _) = remote_on("127.0.0.2:53");
    std::fs::write(&conf, "nameserver 127.0.0.1\nnameserver 127.0.0.2\n").unwrap();
    ask(&mut client, &first);
    std::fs::write(etc.path("resolv.conf.new"), "nameserver 127.0.0.2\n").unwrap();
    std::fs::rename(etc.path("resolv.conf.new"), &conf).unwrap();
    ask(&mut client, &second);

    // Gone again.
    std::fs::remove_file(&conf).unwrap();
    let before = gateway.dropped("no-resolver");
    await_some(|| {
        client.send_dns(2, "192.0.2.1:53".parse().unwrap(), b"question");
        client.send_rebind(2, "127.0.0.1:9".parse().unwrap(), b"");
        (gateway.dropped("no-resolver") > before).then_some(())
    })
    .expect("the old resolver stays");
}

#[test]
fn what_cannot_be_sent_is_dropped_and_counted() {
    if !in_own_namespaces("robustness::what_cannot_be_sent_is_dropped_and_counted") {
        return;
    }
    // There is no route here to anywhere.
    let gateway = Gateway::start(&[]);
    let echo = Echo::start();
    let mut client = gateway.connect();
    for _ in 0..3 {
        client.send(1, "192.0.2.1:9".parse().unwrap(), b"hello");
    }
    client.echo(2, echo.address, b"still here");
    gateway.await_dropped("send-failed", 3);
    assert_eq!(gateway.metric("udpferry_udpgw_datagrams_total{direction=\"to-remote\"}"), 1);
    assert_eq!(gateway.metric("udpferry_udpgw_bytes_total{direction=\"to-remote\"}"), 10);
    let line = gateway.service.await_log("not sent");
    assert!(line.contains(&client.address().to_string()), "{line}");
}

/// Says that it is over, even where that is because the test failed.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn it_stops_at_once_under_load() {
    let gateway = Gateway::start(&[]);
    let echo = Echo::start();
    let over = AtomicBool::new(false);
    let victims: Vec<Victim> = (0..2)
        .map(|_| {
            let mut victim = Victim::connect(&gateway);
            victim.flood(2000);
            victim
        })
        .collect();
    let mut idle: Vec<_> = (0..50).map(|_| gateway.connect()).collect();
    for client in &mut idle {
        client.echo(1, echo.address, b"hello");
    }
    std::thread::scope(|scope| {
        let _over = Over(&over);
        // Not more than half of the machine, so that the other half can be measured.
        for _ in 0..2 {
            let mut client = gateway.connect();
            let (echo, over) = (echo.address, &over);
            scope.spawn(move || {
                let frames = frame(1, echo, &[5; 1000]).repeat(16);
                client.write(&frames);
                while !over.load(Ordering::Relaxed) {
                    // One out for each that comes in; a lost one is made up for.
                    match client.try_receive() {
                        Ok(_) => {
                            if client.stream.write_all(&frames).is_err() {
                                return;
                            }
                        }
                        Err(_) => return,
                    }
                }
            });
        }
        gateway.await_at_least("udpferry_udpgw_datagrams_total{direction=\"to-client\"}", 3000);
        let log = gateway.service.log_path().to_owned();
        let (listening, metrics) = (gateway.address, gateway.metrics);
        let Gateway { service, .. } = gateway;
        let kept = std::fs::File::open(&log).unwrap();
        let (status, time) = service.stop();
        assert_eq!(status.code(), Some(0));
        assert!(time < Duration::from_millis(250), "stopped after {time:?}");
        let log = std::io::read_to_string(kept).unwrap();
        let last = log.lines().last().unwrap();
        assert!(last.ends_with("stopped"), "{last}");
        // Every client's thread has said its last word before that.
        assert_eq!(log.matches("gone (Stopped)").count(), 54, "{log}");
        for address in [listening, metrics] {
            TcpStream::connect(address).unwrap_err();
        }
    });
    drop(victims);
}

#[test]
fn an_address_in_use_is_an_error_with_its_name() {
    let port = free_port();
    let taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let listen = format!("--listen-addr={}", taken.local_addr().unwrap());
    let output = crate::support::run(&["udpgw", &listen]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(&taken.local_addr().unwrap().to_string()), "{said}");
}
