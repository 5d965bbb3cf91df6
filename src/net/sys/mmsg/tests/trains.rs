//! Datagrams that stand one behind the other, and batches that wait for room.

use super::super::receive::ReceiveQueue;
use super::super::send::{Lost, SendQueue};
use super::{await_readable, leave_out_checksums, next, socket};
use crate::net::sys::sockopt;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;

fn numbered(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at / 7 % 256).unwrap()).collect()
}

/// What arrives of a train over `sender` to `receiver`, in order.
fn through(sender: &UdpSocket, receiver: &UdpSocket, bytes: &[u8], len: usize) -> Vec<Vec<u8>> {
    let mut queue = SendQueue::default();
    let mut batch = queue.batch(sender, true);
    batch.push_train(None, Some(receiver.local_addr().unwrap()), bytes, len);
    let expected = bytes.len().div_ceil(len);
    let report = batch.finish();
    assert_eq!((report.sent, report.sent_bytes, report.lost.len()), (expected, bytes.len(), 0));
    (0..expected).map(|_| next(receiver)).collect()
}

#[test]
fn trains_of_any_length_arrive_apart() {
    let (sender, receiver) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    // Longer than Ethernet takes, more than 64, more than 64 KiB, and one alone.
    for (total, len) in [(10_000, 3000), (6400, 64), (9001, 90), (130_000, 1400), (100, 200)] {
        let bytes = numbered(total);
        let expected: Vec<Vec<u8>> = bytes.chunks(len).map(<[u8]>::to_vec).collect();
        assert!(through(&sender, &receiver, &bytes, len) == expected, "{total} by {len}");
    }
}

#[test]
fn a_refused_train_is_taken_apart_and_its_destination_told() {
    let (sender, receiver) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    leave_out_checksums(&sender);
    let (bytes, to) = (numbered(2500), receiver.local_addr().unwrap());
    let mut queue = SendQueue::default();
    let mut batch = queue.batch(&sender, true);
    batch.push_train(None, Some(to), &bytes, 1000);
    let report = batch.finish();
    assert!(report.segmentation_refused);
    assert_eq!(report.refused_destination, Some(to));
    assert_eq!((report.sent, report.failed), (3, 0));
    for expected in bytes.chunks(1000) {
        assert_eq!(next(&receiver), expected);
    }
}

#[test]
fn trains_and_single_datagrams_keep_their_order() {
    let (sender, receiver) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let (bytes, to) = (numbered(300), Some(receiver.local_addr().unwrap()));
    for segmentation in [true, false] {
        let mut queue = SendQueue::default();
        let mut batch = queue.batch(&sender, segmentation);
        batch.push(to, b"first");
        batch.push_train(None, to, &bytes, 100);
        batch.push(to, &bytes[..100]);
        batch.push(to, &bytes[..100]);
        batch.push_train(None, to, &[], 100);
        assert_eq!(batch.messages, if segmentation { 3 } else { 6 });
        assert_eq!(batch.finish().sent, 6);
        assert_eq!(next(&receiver), b"first");
        for at in [0, 100, 200, 0, 0] {
            assert_eq!(next(&receiver), bytes[at..at + 100]);
        }
    }
}

#[test]
fn what_is_lost_is_told_by_destination() {
    let (sender, receiver) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let to = receiver.local_addr().unwrap();
    // A broadcast without SO_BROADCAST: EACCES.
    let refused = "255.255.255.255:9".parse().unwrap();
    let bytes = numbered(250);
    let mut queue = SendQueue::default();
    let mut batch = queue.batch(&sender, true);
    batch.push(Some(to), b"one");
    batch.push_train(None, Some(refused), &bytes, 100);
    batch.push(Some(refused), b"four");
    batch.push(Some(to), b"two");
    let report = batch.finish();
    assert_eq!((report.sent, report.failed), (2, 4));
    assert_eq!(report.lost, [Lost { destination: Some(refused), datagrams: 4, bytes: 254 }]);
    assert_eq!([next(&receiver), next(&receiver)], [b"one", b"two"]);
}

#[test]
fn a_batch_waits_for_room_or_drops_after_a_while() {
    // A UNIX socket holds a few datagrams (net.unix.max_dgram_qlen), where loopback never fills.
    let (sender, receiver) = UnixDatagram::pair().unwrap();
    let payloads = vec![numbered(1000); 300];
    let mut queue = SendQueue::default();
    let mut send = |milliseconds: u8| {
        let mut batch = queue.batch(&sender, false).waiting(milliseconds);
        for payload in &payloads {
            batch.push(None, payload);
        }
        batch.finish()
    };
    let report = send(1);
    assert!(report.sent > 0 && report.blocked > 0);
    assert_eq!(report.sent + report.blocked, 300);
    let lost = Lost { destination: None, datagrams: report.blocked, bytes: report.blocked * 1000 };
    assert_eq!(report.lost, [lost]);

    let waiting = report.sent;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut bytes = [0; 2000];
            let mut count = 0;
            while receiver.recv(&mut bytes).unwrap() > 0 {
                count += 1;
            }
            count
        });
        // The reader makes room again and again.
        let report = send(250);
        sender.send(&[]).unwrap();
        assert_eq!(reader.join().unwrap(), waiting + report.sent);
        assert!(report.sent >= 8, "{report:?}");
    });
}

#[test]
fn received_datagrams_are_found_in_the_buffer() {
    let (sender, receiver) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    sockopt::receive_merged(&receiver, true).unwrap();
    let (bytes, to) = (numbered(250), Some(receiver.local_addr().unwrap()));
    let mut queue = SendQueue::default();
    let mut batch = queue.batch(&sender, true);
    batch.push_train(None, to, &bytes, 100);
    batch.push(to, &[]);
    batch.push(to, b"x");
    assert_eq!(batch.finish().sent, 5);
    await_readable(&receiver);
    let mut queue = ReceiveQueue::default();
    assert_eq!(queue.receive(&receiver).unwrap(), 3);
    let found: Vec<&[u8]> = queue
        .messages()
        .flat_map(|message| message.ranges())
        .map(|range| &queue.bytes()[range])
        .collect();
    assert_eq!(found, [&bytes[..100], &bytes[100..200], &bytes[200..], &[], b"x"]);
    let same: Vec<&[u8]> = queue.messages().flat_map(|message| message.datagrams()).collect();
    assert_eq!(found, same);
}
