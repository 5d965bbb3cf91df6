use super::*;
use std::net::UdpSocket;
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

/// Blocks until something waits, as the event loop would.
fn await_readable(socket: &UdpSocket) {
    socket.peek(&mut [0; 1]).unwrap();
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
    // A socket without checksums may not segment (udp_send_skb: EINVAL).
    let (sender, receiver) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    let yes: libc::c_int = 1;
    // SAFETY: the option takes an int, which lives through the call.
    let result = unsafe {
        libc::setsockopt(
            sender.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NO_CHECK,
            (&raw const yes).cast(),
            size_of_u32::<libc::c_int>(),
        )
    };
    assert_eq!(result, 0);
    let payloads: Vec<Vec<u8>> = (0..10u8).map(|n| vec![n; 100]).collect();
    let mut queue = SendQueue::default();
    let mut batch = queue.batch(&sender, true);
    for payload in &payloads {
        batch.push(None, payload);
    }
    let report = batch.finish();
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
    let sender = socket("127.0.0.1:0");
    let gone = socket("127.0.0.1:0");
    let address = gone.local_addr().unwrap();
    sender.connect(address).unwrap();
    drop(gone);
    sender.send(b"to nobody").unwrap();
    let back = socket(&address.to_string());
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
    crate::net::sys::sockopt::receive_merged(&receiver).unwrap();
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    let payloads: Vec<Vec<u8>> =
        (0..20u8).map(|n| vec![n; if n == 19 { 7 } else { 100 }]).collect();
    let mut sending = SendQueue::default();
    let mut batch = sending.batch(&sender, true);
    for payload in &payloads {
        batch.push(None, payload);
    }
    assert_eq!(batch.finish().sent, 20);
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
    crate::net::sys::sockopt::report_drops(&receiver).unwrap();
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

/// What a firewall answers (ICMP host prohibited: EHOSTUNREACH) as the kernel keeps it for a
/// connected socket: here made by sending to a port that was closed, which is all that loopback has.
#[test]
fn an_icmp_error_stops_neither_a_train_nor_segmentation() {
    let sender = socket("127.0.0.1:0");
    let gone = socket("127.0.0.1:0");
    let address = gone.local_addr().unwrap();
    sender.connect(address).unwrap();
    drop(gone);
    sender.send(b"to nobody").unwrap();
    let back = socket(&address.to_string());
    let payloads: Vec<Vec<u8>> = (0..10u8).map(|n| vec![n; 100]).collect();
    let mut queue = SendQueue::default();
    let mut batch = queue.batch(&sender, true);
    for payload in &payloads {
        batch.push(None, payload);
    }
    let report = batch.finish();
    assert_eq!((report.sent, report.failed, report.icmp_errors), (10, 0, 1));
    assert!(!report.segmentation_refused);
    for payload in &payloads {
        assert_eq!(&next(&back), payload);
    }
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
