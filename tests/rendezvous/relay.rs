//! The relay: between members of a room, within its rates.

use crate::server::{Member, Server, is_silent_for};
use std::time::Duration;
use udpferry::wire::rendezvous::MemberId;
use udpferry::wire::rendezvous::answer::Answer;
use udpferry::wire::rendezvous::request::Request;

fn send(from: &Member, member: MemberId, payload: &[u8]) {
    from.send(&Request::Relay { member, payload });
}

fn receive(at: &Member) -> (MemberId, Vec<u8>) {
    at.until(|answer| match answer {
        Answer::Relayed { member, payload } => Some((member, payload.to_vec())),
        _ => None,
    })
}

#[test]
fn members_of_a_room_reach_each_other() {
    let server = Server::start(&["--relay"]);
    let one = Member::new(server.address, 1);
    let other = Member::new(server.address, 1);
    let stranger = Member::new(server.address, 2);
    let (one_id, _) = one.register();
    let (other_id, _) = other.register();
    let (stranger_id, _) = stranger.register();
    for size in [0, 1, 1200, 1400, 20_000, 60_000] {
        let payload = vec![7; size];
        send(&one, other_id, &payload);
        assert_eq!(receive(&other), (one_id, payload.clone()));
        if size <= 1400 {
            send(&other, one_id, &payload);
            assert_eq!(receive(&one), (other_id, payload));
        }
    }
    send(&one, stranger_id, b"x");
    server.await_dropped("relay-not-there", 1);
    send(&stranger, one_id, b"x");
    server.await_dropped("relay-not-there", 2);
    // A cookie is no membership.
    let outside = Member::new(server.address, 1);
    send(&outside, one_id, b"x");
    server.await_dropped("relay-not-a-member", 1);
}

#[test]
fn it_is_off_unless_asked_for() {
    let server = Server::start(&[]);
    let one = Member::entered(server.address, 1);
    let other = Member::new(server.address, 1);
    send(&one, other.register().0, b"x");
    server.await_dropped("relay-off", 1);
}

#[test]
fn a_room_and_all_rooms_have_a_rate() {
    let server = Server::start(&["--relay", "--relay-rate=1k", "--relay-total-rate=4G"]);
    let one = Member::entered(server.address, 1);
    let other = Member::new(server.address, 1);
    let (other_id, _) = other.register();
    other.acknowledge(other.introduced().0);
    // The burst is one largest datagram: 64 KiB.
    for _ in 0..70 {
        send(&one, other_id, &[0; 1011]);
    }
    server.await_metric("requests_total{kind=\"relay\"}", 70);
    let refused = server.dropped("relay-room-rate");
    assert!((5..=6).contains(&refused), "{refused}");
    for _ in refused..70 {
        receive(&other);
    }
    assert!(is_silent_for(&other.socket, Duration::from_millis(50)));
}
