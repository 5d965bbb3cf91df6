//! Members that know the room's code, and announce a key that is not theirs.

use crate::handmade::Impostor;
use crate::member::Peer;
use crate::rooms::key;
use crate::server::Server;
use crate::support::{Scratch, await_some};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use udpferry::roles::peer::identity::PublicKey;

/// As docs/protocols/peer.md has it.
const CLAIM_TIME: Duration = Duration::from_secs(5);
/// The last of them was introduced a little later than the first.
const SECOND: Duration = Duration::from_secs(1);

fn chats(one: &mut Peer, other: &mut Peer, word: &str) {
    one.say(word);
    other.expect_line(word);
    other.say(word);
    one.expect_line(word);
}

/// A member with a key of its own, and one that talks to that key alone.
fn pair(server: &Server, scratch: &Scratch) -> (Peer, Peer, String, PublicKey) {
    let file = scratch.path("key");
    let public = key(&file);
    let file = file.to_str().unwrap().to_owned();
    let bob = Peer::start(server.address, "bob", &["--peer-key", &public]);
    let alice = Peer::start(server.address, "alice", &["--key-file", &file]);
    bob.await_members(&["alice"]);
    alice.await_members(&["bob"]);
    (alice, bob, file, PublicKey::parse(&public).unwrap())
}

#[test]
fn who_announces_the_key_of_another_member_disturbs_nobody() {
    let server = Server::start(&[]);
    let scratch = Scratch::new();
    let (mut alice, mut bob, file, public) = pair(&server, &scratch);
    chats(&mut alice, &mut bob, "before");
    let refused = bob.metric("announcements_refused_total");
    let begin = Instant::now();
    let impostors: Vec<Impostor> =
        (1..=4).map(|number| Impostor::enter(server.address, number, public, u64::MAX)).collect();
    // Three may claim it, and are pinged.
    bob.await_metric("announcements_refused_total", refused + 1);
    chats(&mut alice, &mut bob, "meanwhile");
    // Made long before what the member itself has announced.
    let _early = Impostor::enter(server.address, 5, public, 1);
    bob.await_metric("announcements_refused_total", refused + 2);
    chats(&mut alice, &mut bob, "after");
    assert!(!bob.said().contains("anew"), "{}", bob.said());
    assert_eq!(bob.metric("members"), 1);
    // The member is started anew among those who claim to be it, whose time is over then.
    await_some(|| (begin.elapsed() > CLAIM_TIME + SECOND).then_some(())).unwrap();
    drop(alice);
    let mut after = Peer::start(server.address, "alice", &["--key-file", &file]);
    bob.await_notice("* alice comes anew");
    after.await_members(&["bob"]);
    chats(&mut after, &mut bob, "anew");
    assert_eq!(bob.metric("members"), 1);
    drop(impostors);
}

#[test]
fn who_passes_on_what_another_member_says_does_not_become_it() {
    let server = Server::start(&[]);
    let scratch = Scratch::new();
    let (mut alice, mut bob, file, public) = pair(&server, &scratch);
    chats(&mut alice, &mut bob, "before");
    let impostor = Impostor::enter(server.address, 1, public, u64::MAX);
    let victim = ([127, 0, 0, 1], alice.endpoint().port()).into();
    let is_over = Arc::new(AtomicBool::new(false));
    let must_end = Arc::clone(&is_over);
    let passes = std::thread::spawn(move || {
        impostor.pass_on(victim, || must_end.load(Ordering::Relaxed));
    });
    bob.service.await_log("is not talked to: it passes on what another member says");
    for word in ["one", "two", "three"] {
        chats(&mut alice, &mut bob, word);
    }
    assert!(!bob.said().contains("anew"), "{}", bob.said());
    assert_eq!(bob.metric("members"), 1);
    drop(alice);
    let mut after = Peer::start(server.address, "alice", &["--key-file", &file]);
    bob.await_notice("* alice comes anew");
    after.await_members(&["bob"]);
    chats(&mut after, &mut bob, "anew");
    is_over.store(true, Ordering::Relaxed);
    passes.join().unwrap();
    assert!(await_some(|| (bob.metric("members") == 1).then_some(())).is_some());
}
