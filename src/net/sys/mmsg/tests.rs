mod trains;

use super::receive::{ReceiveQueue, SHORT_LEN};
use super::send::{SEGMENT_LEN_MAX, SEND_BATCH, SendQueue, SendReport};
use super::size_of_u32;
use crate::net::sys::sockopt;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

fn socket(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

fn next(socket: &UdpSocket) -> Vec<u8> {
    let mut bytes = vec![0; 65_536];
    let len = socket.recv(&mut bytes).unwrap();
    bytes.truncate(len);
    bytes
}

/// A socket without checksums may not segment (udp_send_skb: EINVAL).
fn leave_out_checksums(socket: &UdpSocket) {
    let yes: libc::c_int = 1;
    // SAFETY: the option takes an int, which lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NO_CHECK,
            (&raw const yes).cast(),
            size_of_u32::<libc::c_int>(),
        )
    };
    assert_eq!(result, 0);
}

/// Blocks until something waits, as the event loop would.
fn await_readable(socket: &UdpSocket) {
    socket.peek(&mut [0; 1]).unwrap();
}

/// One batch of `payloads` out of a connected socket.
fn send_connected(socket: &UdpSocket, payloads: &[Vec<u8>]) -> SendReport {
    let mut queue = SendQueue::default();
    let mut batch = queue.batch(socket, true);
    for payload in payloads {
        batch.push(None, payload);
    }
    batch.finish()
}

/// A connected socket that holds an ICMP error, and the other end, which is there again.
///
/// What a firewall answers (ICMP host prohibited: EHOSTUNREACH) as the kernel keeps it for a
/// connected socket: here made by sending to a port that was closed, which is all that loopback has.
fn with_icmp_error() -> (UdpSocket, UdpSocket) {
    let sender = socket("127.0.0.1:0");
    let gone = socket("127.0.0.1:0");
    let address = gone.local_addr().unwrap();
    sender.connect(address).unwrap();
    drop(gone);
    sender.send(b"to nobody").unwrap();
    let back = socket(&address.to_string());
    (sender, back)
}

#[test]
fn a_batch_reaches_every_destination_in_order() {
    for any in ["127.0.0.1:0", "[::1]:0"] {
        let sender = socket(any);
        let (left, right) = (socket(any), socket(any));
        let payloads: Vec<Vec<u8>> =
            (0..150u8).map(|n| vec![n; usize::from(n) * 7 % 50 + 1]).collect();
        for segmentation in [false, true] {
            let mut queue = SendQueue::default();
            let mut batch = queue.batch(&sender, segmentation);
            for (n, payload) in payloads.iter().enumerate() {
                let to = if n % 3 == 0 { &left } else { &right };
                batch.push(Some(to.local_addr().unwrap()), payload);
            }
            assert_eq!(batch.finish().sent, payloads.len());
            for (n, payload) in payloads.iter().enumerate() {
                let to = if n % 3 == 0 { &left } else { &right };
                assert_eq!(&next(to), payload);
            }
        }
    }
}

#[test]
fn equal_datagrams_leave_as_one_train_and_arrive_apart() {
    let (sender, receiver) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    let sizes = [1000, 1000, 1000, 400, 1000, 0, 0, 1000, 1000];
    let payloads: Vec<Vec<u8>> =
        sizes.iter().enumerate().map(|(n, size)| vec![u8::try_from(n).unwrap(); *size]).collect();
    let mut queue = SendQueue::default();
    let mut batch = queue.batch(&sender, true);
    for payload in &payloads {
        batch.push(None, payload);
    }
    // 3 equal ones and the shorter one that ends them; 1000; two empty ones; a pair.
    assert_eq!(batch.messages, 5);
    let report = batch.finish();
    assert_eq!(report.sent, payloads.len());
    assert!(!report.segmentation_refused);
    for payload in &payloads {
        assert_eq!(&next(&receiver), payload);
    }
}

#[test]
fn a_full_run_keeps_to_the_kernels_train_limits() {
    let (sender, receiver) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    let payload = vec![9; SEGMENT_LEN_MAX];
    let mut queue = SendQueue::default();
    let mut batch = queue.batch(&sender, true);
    for _ in 0..64 {
        batch.push(None, &payload);
    }
    assert_eq!(batch.messages, 2, "45 segments of 1452 bytes fit into 65,507");
    let report = batch.finish();
    assert_eq!((report.sent, report.segmentation_refused), (64, false));
}

#[test]
fn a_refused_train_is_sent_singly() {
    let (sender, receiver) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    leave_out_checksums(&sender);
    let payloads: Vec<Vec<u8>> = (0..10u8).map(|n| vec![n; 100]).collect();
    let report = send_connected(&sender, &payloads);
    assert!(report.segmentation_refused);
    assert_eq!((report.sent, report.failed), (10, 0));
    for payload in &payloads {
        assert_eq!(&next(&receiver), payload);
    }
}

#[test]
fn one_bad_destination_costs_only_its_own_datagram() {
    let (sender, receiver) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let good = receiver.local_addr().unwrap();
    let mut queue = SendQueue::default();
    let mut batch = queue.batch(&sender, true);
    batch.push(Some(good), b"first");
    batch.push(Some("255.255.255.255:9".parse().unwrap()), b"broadcast is not allowed");
    batch.push(Some(good), b"second");
    let report = batch.finish();
    assert_eq!((report.sent, report.failed), (2, 1));
    assert_eq!(report.last_error.unwrap().raw_os_error(), Some(libc::EACCES));
    assert_eq!(next(&receiver), b"first");
    assert_eq!(next(&receiver), b"second");
}

#[test]
fn an_icmp_error_does_not_swallow_the_next_datagram() {
    let (sender, back) = with_icmp_error();
    let mut queue = SendQueue::default();
    let mut batch = queue.batch(&sender, true);
    batch.push(None, b"to somebody");
    let report = batch.finish();
    assert_eq!((report.sent, report.icmp_errors), (1, 1));
    assert_eq!(next(&back), b"to somebody");
}

#[test]
fn receives_sources_empty_and_largest_datagrams() {
    for any in ["127.0.0.1:0", "[::1]:0"] {
        let (sender, receiver) = (socket(any), socket(any));
        let to = receiver.local_addr().unwrap();
        let largest = vec![5; 65_507];
        for payload in [&b""[..], b"x", &largest] {
            sender.send_to(payload, to).unwrap();
        }
        let mut queue = ReceiveQueue::default();
        let mut found = Vec::new();
        while found.len() < 3 {
            await_readable(&receiver);
            queue.receive(&receiver).unwrap();
            for message in queue.messages() {
                assert_eq!(message.source, Some(sender.local_addr().unwrap()));
                found.extend(message.datagrams().map(<[u8]>::to_vec));
            }
        }
        assert_eq!(found, [Vec::new(), b"x".to_vec(), largest]);
        let error = queue.receive(&receiver).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(queue.messages().count(), 0);
    }
}

#[test]
fn a_merged_train_comes_apart_again() {
    let (sender, receiver) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    sockopt::receive_merged(&receiver, true).unwrap();
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    let payloads: Vec<Vec<u8>> =
        (0..20u8).map(|n| vec![n; if n == 19 { 7 } else { 100 }]).collect();
    assert_eq!(send_connected(&sender, &payloads).sent, 20);
    let mut queue = ReceiveQueue::default();
    await_readable(&receiver);
    assert_eq!(queue.receive(&receiver).unwrap(), 1, "loopback keeps the train whole");
    let found: Vec<_> =
        queue.messages().flat_map(|message| message.datagrams()).map(<[u8]>::to_vec).collect();
    assert_eq!(found, payloads);
}

#[test]
fn the_kernels_drops_are_told() {
    let (sender, receiver) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    sockopt::report_drops(&receiver).unwrap();
    socket2::SockRef::from(&receiver).set_recv_buffer_size(4096).unwrap();
    let to = receiver.local_addr().unwrap();
    for _ in 0..100 {
        sender.send_to(&[0; 1000], to).unwrap();
    }
    let mut queue = ReceiveQueue::default();
    let mut kept = 0;
    while let Ok(count) = queue.receive(&receiver) {
        kept += count;
    }
    assert!(kept < 100);
    sender.send_to(b"one more", to).unwrap();
    await_readable(&receiver);
    queue.receive(&receiver).unwrap();
    assert_eq!(queue.kernel_drops(), Some(u32::try_from(100 - kept).unwrap()));
}

#[test]
fn an_icmp_error_stops_neither_a_train_nor_segmentation() {
    let (sender, back) = with_icmp_error();
    let payloads: Vec<Vec<u8>> = (0..10u8).map(|n| vec![n; 100]).collect();
    let report = send_connected(&sender, &payloads);
    assert_eq!((report.sent, report.failed, report.icmp_errors), (10, 0, 1));
    assert!(!report.segmentation_refused);
    for payload in &payloads {
        assert_eq!(&next(&back), payload);
    }
}

#[test]
fn a_larger_queue_sends_as_many_in_one_call() {
    let (sender, receiver) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    socket2::SockRef::from(&receiver).set_recv_buffer_size(1 << 20).unwrap();
    let mut queue = SendQueue::with_room_for(3 * SEND_BATCH);
    let mut batch = queue.batch(&sender, false);
    for number in 0..3 * SEND_BATCH {
        batch.push(
            Some(receiver.local_addr().unwrap()),
            if number % 2 == 0 { b"even" } else { b"odd" },
        );
    }
    assert_eq!(batch.messages, 3 * SEND_BATCH);
    assert_eq!(batch.finish().sent, 3 * SEND_BATCH);
    assert_eq!([next(&receiver), next(&receiver)], [b"even".to_vec(), b"odd".to_vec()]);
}

#[test]
fn more_messages_are_received_in_a_call_while_they_are_short() {
    const LIMIT: usize = 8;
    const SHORT: usize = 16;
    let (sender, receiver) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    let mut queue = ReceiveQueue::with_room_for_short(LIMIT, SHORT);
    let send = |count, len| {
        for _ in 0..count {
            sender.send(&vec![7; len]).unwrap();
        }
    };
    // That there are more than it takes shows in a full call; that they are not short, in one.
    send(LIMIT + SHORT, 100);
    assert_eq!(queue.receive(&receiver).unwrap(), LIMIT);
    assert!(queue.is_full());
    assert_eq!(queue.receive(&receiver).unwrap(), SHORT);
    assert!(queue.is_full());
    send(SHORT, 2 * SHORT_LEN);
    assert_eq!(queue.receive(&receiver).unwrap(), SHORT);
    let last = queue.messages().last().unwrap().ranges().next().unwrap();
    assert_eq!(queue.bytes()[last.clone()], vec![7; 2 * SHORT_LEN]);
    send(LIMIT + 1, 100);
    assert_eq!(queue.receive(&receiver).unwrap(), LIMIT);
    assert!(queue.is_full());
    // What they took is the kernel's again.
    assert_eq!(queue.bytes()[last.end - 4096..last.end], [0; 4096]);
}

#[test]
fn a_refused_destination_fails_its_whole_train_and_no_other() {
    let (sender, receiver) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let mut queue = SendQueue::default();
    let mut batch = queue.batch(&sender, true);
    for _ in 0..5 {
        batch.push(Some("255.255.255.255:9".parse().unwrap()), b"broadcast is not allowed");
    }
    batch.push(Some(receiver.local_addr().unwrap()), b"good");
    let report = batch.finish();
    assert_eq!((report.sent, report.failed), (1, 5));
    assert!(!report.segmentation_refused);
    assert_eq!(next(&receiver), b"good");
}

/// A socket that is bound to a wildcard address and asked for destinations, and its port.
fn wildcard(any: &str) -> (UdpSocket, u16) {
    let local: SocketAddr = any.parse().unwrap();
    let made =
        socket2::Socket::new(socket2::Domain::for_address(local), socket2::Type::DGRAM, None);
    let server = made.unwrap();
    sockopt::report_destinations(&server, local.is_ipv6()).unwrap();
    server.bind(&local.into()).unwrap();
    let server = UdpSocket::from(server);
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let port = server.local_addr().unwrap().port();
    (server, port)
}

#[test]
fn a_wildcard_socket_answers_each_from_the_address_that_was_asked() {
    for (any, asked) in [("0.0.0.0:0", &["127.0.0.1", "127.0.0.2"][..]), ("[::]:0", &["::1"][..])] {
        let (server, port) = wildcard(any);
        let asked: Vec<IpAddr> = asked.iter().map(|address| address.parse().unwrap()).collect();
        // Two ask at each address, and take answers from there alone.
        let clients: Vec<(UdpSocket, SocketAddr)> = asked
            .iter()
            .flat_map(|address| [address, address])
            .map(|address| {
                let client = socket(&SocketAddr::new(asked[0], 0).to_string());
                client.connect(SocketAddr::new(*address, port)).unwrap();
                client.send(address.to_string().as_bytes()).unwrap();
                let own = client.local_addr().unwrap();
                (client, own)
            })
            .collect();
        let mut receiving = ReceiveQueue::default();
        let mut questions = Vec::new();
        while questions.len() < clients.len() {
            await_readable(&server);
            receiving.receive(&server).unwrap();
            for message in receiving.messages() {
                let text = message.datagrams().next().unwrap().to_vec();
                questions.push((message.source.unwrap(), message.destination().unwrap(), text));
            }
        }
        let mut sending = SendQueue::default();
        let mut batch = sending.batch(&server, true);
        for (source, destination, text) in &questions {
            assert!(clients.iter().any(|(_, client)| client == source));
            assert_eq!(text, destination.to_string().as_bytes());
            batch.push_from(Some(*destination), Some(*source), text);
        }
        assert_eq!(batch.messages, clients.len(), "all in one call");
        let report = batch.finish();
        assert_eq!((report.sent, report.failed), (clients.len(), 0));
        let told: BTreeSet<IpAddr> = clients
            .iter()
            .map(|(client, _)| String::from_utf8(next(client)).unwrap().parse().unwrap())
            .collect();
        assert_eq!(told, asked.into_iter().collect());
    }
}

#[test]
fn a_source_that_is_not_ours_costs_only_its_own_datagrams() {
    for (local, foreign) in [("127.0.0.1:0", "192.0.2.1"), ("[::1]:0", "2001:db8::1")] {
        let (server, port) = wildcard(if local.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" });
        let receiver = socket(local);
        let to = receiver.local_addr().unwrap();
        let mut queue = SendQueue::default();
        let mut batch = queue.batch(&server, true);
        batch.push_from(Some(to.ip()), Some(to), b"good");
        batch.push_from(Some(foreign.parse().unwrap()), Some(to), b"forged");
        batch.push_from(Some(foreign.parse().unwrap()), Some(to), b"forged");
        batch.push(Some(to), b"from wherever");
        assert_eq!(batch.messages, 3);
        let report = batch.finish();
        assert_eq!((report.sent, report.failed), (2, 2));
        assert!(report.last_error.is_some() && !report.segmentation_refused);
        let mut bytes = [0; 20];
        for payload in [&b"good"[..], b"from wherever"] {
            let (len, from) = receiver.recv_from(&mut bytes).unwrap();
            assert_eq!((&bytes[..len], from), (payload, SocketAddr::new(to.ip(), port)));
        }
    }
}

#[test]
fn a_train_has_one_source_and_keeps_it_when_it_is_taken_apart() {
    for is_refused in [false, true] {
        let (server, port) = wildcard("0.0.0.0:0");
        if is_refused {
            leave_out_checksums(&server);
        }
        let receiver = socket("127.0.0.1:0");
        let to = receiver.local_addr().unwrap();
        let sources: [IpAddr; 2] = ["127.0.0.2", "127.0.0.3"].map(|ip| ip.parse().unwrap());
        let mut queue = SendQueue::default();
        let mut batch = queue.batch(&server, true);
        for source in sources {
            for n in 0..3u8 {
                batch.push_from(Some(source), Some(to), if n == 0 { b"a" } else { b"b" });
            }
        }
        assert_eq!(batch.messages, 2);
        let report = batch.finish();
        assert_eq!((report.sent, report.segmentation_refused), (6, is_refused));
        let mut bytes = [0; 20];
        for source in sources {
            for payload in [b"a", b"b", b"b"] {
                let (len, from) = receiver.recv_from(&mut bytes).unwrap();
                assert_eq!((&bytes[..len], from), (&payload[..], SocketAddr::new(source, port)));
            }
        }
    }
}

#[test]
fn a_merged_train_tells_its_destination_and_the_kernels_drops_too() {
    for (any, to) in [("0.0.0.0:0", "127.0.0.2"), ("[::]:0", "::1")] {
        let (server, port) = wildcard(any);
        sockopt::receive_merged(&server, true).unwrap();
        sockopt::report_drops(&server).unwrap();
        let to: IpAddr = to.parse().unwrap();
        let sender = socket(&any.replace("0.0.0.0", "127.0.0.1"));
        sender.connect((to, port)).unwrap();
        // The kernel says nothing of drops before the first one: cause it.
        socket2::SockRef::from(&server).set_recv_buffer_size(4096).unwrap();
        for _ in 0..100 {
            sender.send(&[0; 1000]).unwrap();
        }
        let mut queue = ReceiveQueue::default();
        // Until what stands behind the drops has come: a train.
        loop {
            while queue.receive(&server).is_ok() {}
            let report = send_connected(&sender, &[b"one".to_vec(), b"two".to_vec()]);
            assert_eq!(report.sent, 2);
            await_readable(&server);
            queue.receive(&server).unwrap();
            let last = queue.messages().last().unwrap();
            assert_eq!(last.destination(), Some(to));
            if last.datagrams().eq([b"one", b"two"]) {
                break;
            }
        }
        assert!(queue.kernel_drops().is_some_and(|drops| drops > 0));
    }
}

#[test]
fn a_socket_that_was_not_asked_tells_no_destination() {
    for any in ["127.0.0.1:0", "[::1]:0"] {
        let (sender, receiver) = (socket(any), socket(any));
        sender.send_to(b"x", receiver.local_addr().unwrap()).unwrap();
        let mut queue = ReceiveQueue::default();
        await_readable(&receiver);
        queue.receive(&receiver).unwrap();
        assert_eq!(queue.messages().next().unwrap().destination(), None);
    }
}
