use super::*;
use crate::wire::peer::Kind as MessageKind;
use proptest::prelude::*;

const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const PRESHARED: [u8; 32] = [9; 32];

fn handshakes(key: u8) -> Handshakes {
    Handshakes::new(PrivateKey::from_random([key; 32]))
}

/// Two members' tunnels to each other, of index 1 and 2.
fn pair() -> (Tunnel, Tunnel) {
    pair_with(PRESHARED, PRESHARED)
}

fn pair_with(preshared_a: [u8; 32], preshared_b: [u8; 32]) -> (Tunnel, Tunnel) {
    let (a, b) = (handshakes(1), handshakes(2));
    let of_a = Tunnel::new(&a, b.public(), preshared_a, 1).unwrap();
    let of_b = Tunnel::new(&b, a.public(), preshared_b, 2).unwrap();
    (of_a, of_b)
}

fn start(tunnel: &mut Tunnel) -> Vec<u8> {
    tunnel.start_handshake(true, &mut [0; 2048]).unwrap().to_vec()
}

/// What the tunnel sends in answer to a datagram, all of it.
fn answers(tunnel: &mut Tunnel, datagram: &[u8]) -> Vec<Vec<u8>> {
    let mut out = [0; 2048];
    let mut sent = Vec::new();
    match tunnel.receive(FROM, datagram, &mut out) {
        Outcome::Send(answer) => sent.push(answer.to_vec()),
        other => assert!(matches!(other, Outcome::Keepalive | Outcome::Nothing), "{other:?}"),
    }
    while let Some(more) = tunnel.flush(&mut out) {
        sent.push(more.to_vec());
    }
    sent
}

/// Hands datagrams to and fro, the first ones to `b`, until nobody answers.
fn exchange(a: &mut Tunnel, b: &mut Tunnel, mut to_a: Vec<Vec<u8>>, mut to_b: Vec<Vec<u8>>) {
    for _ in 0..10 {
        let from_b = to_b.iter().flat_map(|it| answers(b, it)).collect();
        let from_a = to_a.iter().flat_map(|it| answers(a, it)).collect();
        (to_a, to_b) = (from_b, from_a);
    }
    assert!(to_a.is_empty() && to_b.is_empty(), "it has no end");
}

fn connect(a: &mut Tunnel, b: &mut Tunnel) {
    let initiation = start(a);
    exchange(a, b, vec![], vec![initiation]);
    assert!(a.is_established() && b.is_established());
}

fn refusal(tunnel: &mut Tunnel, datagram: &[u8]) -> Refusal {
    match tunnel.receive(FROM, datagram, &mut [0; 2048]) {
        Outcome::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

fn line(number: u32, body: &[u8]) -> Message<'_> {
    Message { kind: MessageKind::Line, number, body }
}

fn datagram_of(tunnel: &mut Tunnel, message: &Message<'_>) -> Vec<u8> {
    let mut out = [0; 2048];
    let len = tunnel.send(message, &mut out).unwrap();
    out[..len].to_vec()
}

#[track_caller]
fn assert_carries(from: &mut Tunnel, to: &mut Tunnel, body: &[u8]) {
    let datagram = datagram_of(from, &line(7, body));
    assert_eq!(datagram.len(), 20 + body.len() + OVERHEAD);
    let mut out = [0; 2048];
    assert_eq!(to.receive(FROM, &datagram, &mut out), Outcome::Message(line(7, body)));
}

#[test]
fn messages_go_both_ways_after_a_handshake() {
    let (mut a, mut b) = pair();
    assert!(!a.is_established() && a.since_handshake().is_none());
    connect(&mut a, &mut b);
    assert_carries(&mut a, &mut b, b"from the initiator");
    assert_carries(&mut b, &mut a, b"from the responder");
    assert_carries(&mut b, &mut a, b"");
    assert!(a.since_handshake().unwrap() < REKEY_INITIATOR);
    assert_eq!(a.tick(&mut [0; 2048]), Tick::Nothing);
}

#[test]
fn nothing_is_sent_or_kept_without_a_session() {
    let (mut a, mut b) = pair();
    let mut out = [0; 2048];
    for number in 0..300 {
        assert_eq!(a.send(&line(number, b"early"), &mut out), Err(NotSent::NoSession));
    }
    let initiation = start(&mut a);
    let response = answers(&mut b, &initiation).remove(0);
    // The responder has a session and no proof that its peer has the preshared key.
    assert!(!b.is_established());
    assert_eq!(b.send(&line(1, b"early"), &mut out), Err(NotSent::NoSession));
    let keepalive = answers(&mut a, &response);
    assert_eq!(keepalive.len(), 1, "no message was kept");
    assert!(a.is_established());
    assert_eq!(b.receive(FROM, &keepalive[0], &mut out), Outcome::Keepalive);
    assert!(b.is_established());
}

#[test]
fn one_handshake_at_a_time_unless_forced() {
    let (mut a, mut b) = pair();
    let lost = start(&mut a);
    assert_eq!(a.start_handshake(false, &mut [0; 2048]), None);
    assert_eq!(a.start_handshake(true, &mut [0; 147]), None, "no room");
    let again = start(&mut a);
    assert_ne!(lost, again);
    exchange(&mut a, &mut b, vec![], vec![again]);
    assert_carries(&mut b, &mut a, b"the second one did");
}

#[test]
fn the_answer_to_the_last_but_one_counts() {
    let (mut a, mut b) = pair();
    let slow = start(&mut a);
    start(&mut a);
    exchange(&mut a, &mut b, vec![], vec![slow]);
    assert_carries(&mut a, &mut b, b"the first one did");
}

#[test]
fn both_may_begin_at_once() {
    let (mut a, mut b) = pair();
    let (of_a, of_b) = (start(&mut a), start(&mut b));
    exchange(&mut a, &mut b, vec![of_b], vec![of_a]);
    assert!(a.is_established() && b.is_established());
    for _ in 0..3 {
        assert_carries(&mut a, &mut b, b"this way");
        assert_carries(&mut b, &mut a, b"that way");
    }
}

#[test]
fn new_keys_replace_the_old_ones_while_messages_go_on() {
    let (mut a, mut b) = pair();
    for round in 0..20 {
        let before = if round > 0 { Some(datagram_of(&mut a, &line(1, b"late"))) } else { None };
        if round % 2 == 0 {
            connect(&mut a, &mut b);
        } else {
            connect(&mut b, &mut a);
        }
        if let Some(late) = before {
            let mut out = [0; 2048];
            let heard = b.receive(FROM, &late, &mut out);
            assert_eq!(heard, Outcome::Message(line(1, b"late")), "round {round}");
        }
        assert_carries(&mut a, &mut b, b"this way");
        assert_carries(&mut b, &mut a, b"that way");
    }
}

#[test]
fn replays_are_refused() {
    let (mut a, mut b) = pair();
    let initiation = start(&mut a);
    let response = answers(&mut b, &initiation).remove(0);
    assert_eq!(refusal(&mut b, &initiation), Refusal::Replayed);
    let keepalive = answers(&mut a, &response).remove(0);
    assert_eq!(refusal(&mut a, &response), Refusal::NoSession);
    answers(&mut b, &keepalive);
    assert_eq!(refusal(&mut b, &keepalive), Refusal::Replayed);
    let datagram = datagram_of(&mut a, &line(1, b"once"));
    let mut out = [0; 2048];
    assert_eq!(b.receive(FROM, &datagram, &mut out), Outcome::Message(line(1, b"once")));
    assert_eq!(refusal(&mut b, &datagram), Refusal::Replayed);
    // A datagram that is sent back to its sender is none for it.
    assert_eq!(refusal(&mut a, &datagram), Refusal::NoSession);
}

#[test]
fn datagrams_may_overtake_each_other() {
    let (mut a, mut b) = pair();
    connect(&mut a, &mut b);
    let sent: Vec<_> = (0..1000).map(|it| datagram_of(&mut a, &line(it, b"x"))).collect();
    for (number, datagram) in sent.iter().enumerate().rev() {
        let number = u32::try_from(number).unwrap();
        let mut out = [0; 2048];
        let heard = b.receive(FROM, datagram, &mut out);
        assert_eq!(heard, Outcome::Message(line(number, b"x")));
    }
}

#[test]
fn another_preshared_key_never_connects() {
    let (mut a, mut b) = pair_with(PRESHARED, [8; 32]);
    // More than there are sessions in boringtun's ring.
    for _ in 0..10 {
        let initiation = start(&mut a);
        let response = answers(&mut b, &initiation).remove(0);
        assert_eq!(refusal(&mut a, &response), Refusal::Forged);
        assert!(!a.is_established() && !b.is_established());
        assert_eq!(b.send(&line(1, b"x"), &mut [0; 2048]), Err(NotSent::NoSession));
        assert_eq!(b.since_handshake(), None);
    }
}

#[test]
fn another_key_is_refused() {
    let (mut a, mut b) = pair();
    let stranger = handshakes(3);
    let public_b = handshakes(2).public();
    // Knows the room, and whom to knock at, and is not whom b expects.
    let mut other = Tunnel::new(&stranger, public_b, PRESHARED, 1).unwrap();
    let initiation = start(&mut other);
    assert_eq!(refusal(&mut b, &initiation), Refusal::Forged);
    // Meant for b, arrives at a.
    assert_eq!(refusal(&mut a, &initiation), Refusal::Forged);
    assert!(!b.is_established());
}

#[test]
fn keys_that_cannot_be_a_members_make_no_tunnel() {
    let ours = handshakes(1);
    let tunnel = |key, index| Tunnel::new(&ours, key, PRESHARED, index).err();
    assert_eq!(tunnel(ours.public(), 1), Some(TunnelError::OwnKey));
    assert_eq!(tunnel(PublicKey([0; 32]), 1), Some(TunnelError::WeakKey));
    let mut one = [0; 32];
    one[0] = 1;
    assert_eq!(tunnel(PublicKey(one), 1), Some(TunnelError::WeakKey));
    assert_eq!(tunnel(handshakes(2).public(), INDEX_END), Some(TunnelError::Index));
    assert_eq!(tunnel(handshakes(2).public(), INDEX_END - 1), None);
}

#[test]
fn what_is_cut_or_changed_is_refused() {
    let (mut a, mut b) = pair();
    let initiation = start(&mut a);
    let (response, keepalive);
    {
        let (mut a, mut b) = pair();
        let first = start(&mut a);
        response = answers(&mut b, &first).remove(0);
        keepalive = answers(&mut a, &response).remove(0);
    }
    for datagram in [&initiation, &response, &keepalive] {
        for len in 0..datagram.len() {
            assert_eq!(refusal(&mut b, &datagram[..len]), Refusal::Malformed);
        }
    }
    // The last 16 bytes are the cookie's, which are not looked at unless there is load.
    for at in 0..initiation.len() - 16 {
        let mut changed = initiation.clone();
        changed[at] ^= 1;
        let refusal = refusal(&mut b, &changed);
        assert!(matches!(refusal, Refusal::Malformed | Refusal::Forged), "{at}: {refusal:?}");
    }
    exchange(&mut a, &mut b, vec![], vec![initiation]);
    let datagram = datagram_of(&mut a, &line(1, b"whole"));
    for at in 0..datagram.len() {
        let mut changed = datagram.clone();
        changed[at] ^= 1;
        refusal(&mut b, &changed);
    }
    let mut out = [0; 2048];
    assert_eq!(b.receive(FROM, &datagram, &mut out), Outcome::Message(line(1, b"whole")));
}

#[test]
fn a_counter_beyond_wireguards_end_is_refused() {
    let (mut a, mut b) = pair();
    connect(&mut a, &mut b);
    let mut datagram = datagram_of(&mut a, &line(1, b"x"));
    for counter in [COUNTER_END, u64::MAX] {
        datagram[8..16].copy_from_slice(&counter.to_le_bytes());
        assert_eq!(refusal(&mut b, &datagram), Refusal::Replayed);
    }
}

#[test]
fn short_buffers_are_no_panic() {
    let (mut a, mut b) = pair();
    connect(&mut a, &mut b);
    let body = [0; 200];
    let needed = 20 + body.len() + OVERHEAD;
    assert_eq!(a.send(&line(1, &body), &mut vec![0; needed - 1]), Err(NotSent::Length));
    assert_eq!(a.send(&line(1, b""), &mut [0; BUFFER_LEN_MIN - 1]), Err(NotSent::Length));
    assert_eq!(a.send(&line(1, &body), &mut vec![0; needed]), Ok(needed));
    let too_long = vec![0; 65_536];
    assert_eq!(a.send(&line(1, &too_long), &mut vec![0; 70_000]), Err(NotSent::Length));
    let datagram = datagram_of(&mut a, &line(1, &body));
    let buffer = Outcome::Refused(Refusal::Buffer);
    assert_eq!(b.receive(FROM, &datagram, &mut vec![0; needed - 1]), buffer);
    assert_eq!(b.receive(FROM, &datagram[..40], &mut [0; BUFFER_LEN_MIN - 1]), buffer);
    assert_eq!(b.flush(&mut [0; 10]), None);
    assert_eq!(b.tick(&mut [0; 10]), Tick::Nothing);
    let initiation = start(&mut a);
    let knock = handshakes(2);
    let refused = Knock::Refused(Refusal::Buffer);
    assert_eq!(knock.sender_of(FROM, &initiation, &mut [0; 10]), refused);
}

#[test]
fn what_decrypts_to_something_else_is_no_message() {
    let (mut a, mut b) = pair();
    connect(&mut a, &mut b);
    let mut ipv6 = [0; 40];
    ipv6[0] = 0x60;
    let mut ipv4 = [0; 20];
    ipv4[0] = 0x45;
    let mut longer_than_it_is = ipv4;
    longer_than_it_is[3] = 21;
    for packet in [&ipv6[..], &ipv4, &longer_than_it_is, b"x"] {
        let mut out = [0; 2048];
        let TunnResult::WriteToNetwork(datagram) = a.tunn.encapsulate(packet, &mut out) else {
            panic!("no session");
        };
        assert_eq!(refusal(&mut b, datagram), Refusal::NoMessage);
    }
}

#[test]
fn datagrams_tell_whose_they_are() {
    let (mut a, mut b) = pair();
    let knocked = handshakes(2);
    let mut out = [0; BUFFER_LEN_MIN];
    let initiation = start(&mut a);
    assert_eq!(addressee(&initiation), Some(Addressee::Initiation));
    let knock = knocked.sender_of(FROM, &initiation, &mut out);
    assert_eq!(knock, Knock::Member(handshakes(1).public()));
    let response = answers(&mut b, &initiation).remove(0);
    assert_eq!(addressee(&response), Some(Addressee::Tunnel(1)));
    let knock = knocked.sender_of(FROM, &response, &mut out);
    assert!(matches!(knock, Knock::Refused(_)), "{knock:?}");
    let keepalive = answers(&mut a, &response).remove(0);
    assert_eq!(addressee(&keepalive), Some(Addressee::Tunnel(2)));
    assert_eq!(addressee(b"\x01\0\0\0"), None);
    // For another member.
    let knock = handshakes(3).sender_of(FROM, &initiation, &mut out);
    assert_eq!(knock, Knock::Refused(Refusal::Forged));
}

#[test]
fn under_load_a_cookie_is_asked_for_and_helps() {
    let knocked = handshakes(2);
    let mut out = [0; 2048];
    let mut attacker = Tunnel::new(&handshakes(3), knocked.public(), PRESHARED, 3).unwrap();
    let flood = start(&mut attacker);
    // Whose key is not known cannot use up the answers.
    let mut outsider = flood.clone();
    outsider[130] ^= 1;
    for _ in 0..=HANDSHAKES_MAX {
        let knock = knocked.sender_of(FROM, &outsider, &mut out);
        assert_eq!(knock, Knock::Refused(Refusal::Forged));
    }
    for _ in 0..HANDSHAKES_MAX {
        let knock = knocked.sender_of(FROM, &flood, &mut out);
        assert_eq!(knock, Knock::Member(handshakes(3).public()));
    }
    // The tunnel's own look shares the count.
    let mut a = Tunnel::new(&handshakes(1), knocked.public(), PRESHARED, 1).unwrap();
    let mut b = Tunnel::new(&knocked, handshakes(1).public(), PRESHARED, 2).unwrap();
    let initiation = start(&mut a);
    let cookie = answers(&mut b, &initiation).remove(0);
    assert_eq!(cookie.len(), 64);
    assert_eq!(addressee(&cookie), Some(Addressee::Tunnel(1)));
    let Knock::Send(other) = knocked.sender_of(FROM, &initiation, &mut out) else {
        panic!("no cookie");
    };
    assert!(other.len() < initiation.len(), "no amplifier");
    assert!(answers(&mut a, &cookie).is_empty() && !a.is_established());
    let again = start(&mut a);
    let knock = knocked.sender_of(FROM, &again, &mut out);
    assert_eq!(knock, Knock::Member(handshakes(1).public()));
    // The cookie is for the address that it was sent to.
    let elsewhere = IpAddr::from([192, 0, 2, 2]);
    assert!(matches!(knocked.sender_of(elsewhere, &again, &mut out), Knock::Send(_)));
    exchange(&mut a, &mut b, vec![], vec![again]);
    assert_carries(&mut b, &mut a, b"in spite of the load");
}

#[test]
fn keys_are_renewed_before_they_end() {
    let seconds = Duration::from_secs;
    assert!(!is_rekey_due(seconds(119), true) && is_rekey_due(seconds(120), true));
    assert!(!is_rekey_due(seconds(149), false) && is_rekey_due(seconds(150), false));
}

proptest! {
    #[test]
    fn garbage_is_refused_without_a_panic(
        kind in 0..6_u8,
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        typical in 0..5_usize,
    ) {
        let sizes = [bytes.len(), 148, 92, 64, 32];
        bytes.resize(sizes[typical], kind);
        for (byte, value) in bytes.iter_mut().zip([kind, 0, 0, 0]) {
            *byte = value;
        }
        let (mut a, _) = pair();
        let _ = addressee(&bytes);
        refusal(&mut a, &bytes);
        let mut out = [0; BUFFER_LEN_MIN];
        let knock = handshakes(1).sender_of(FROM, &bytes, &mut out);
        prop_assert!(matches!(knock, Knock::Refused(_)));
    }
}
