//! Who meets whom: rooms, secrets and keys.

use crate::member::{Peer, ROOM};
use crate::server::Server;
use crate::support::programs::only_line;
use crate::support::{Scratch, UDPFERRY, run};
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

/// A file that its owner alone can read.
fn secret_file(path: &Path, text: &str) {
    let mut file = std::fs::OpenOptions::new();
    let mut file = file.write(true).create_new(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// A private key in a file, and its public half.
pub(crate) fn key(path: &Path) -> String {
    let private = String::from_utf8(run(&["keygen"]).stdout).unwrap();
    secret_file(path, &private);
    let mut pubkey = Command::new(UDPFERRY);
    pubkey.arg("pubkey").stdin(std::fs::File::open(path).unwrap()).stdout(Stdio::piped());
    String::from_utf8(pubkey.output().unwrap().stdout).unwrap().trim().to_owned()
}

#[test]
fn the_code_of_a_new_room_lets_others_in() {
    let server = Server::start(&[]);
    let mut alice = Peer::start_anywhere(server.address, "alice", &["--room", "new"]);
    let notice = alice.await_notice("the room's code, for the others: ");
    let code = notice.rsplit(' ').next().unwrap();
    assert!(!alice.service.log().contains(code), "the code is in the log");
    // As it is heard over the telephone.
    let heard = code.to_lowercase().replace('-', "");
    let bob = Peer::start_anywhere(server.address, "bob", &["--room", &heard]);
    bob.say("found it");
    alice.expect_line("found it");
    // From a file.
    let scratch = Scratch::new();
    let file = scratch.path("room");
    secret_file(&file, &format!("{code}\n"));
    let file = file.to_str().unwrap();
    let carol = Peer::start_anywhere(server.address, "carol", &["--room-file", file]);
    carol.await_members(&["alice", "bob"]);
    carol.say("so did I");
    alice.expect_line("so did I");
    // A service tells its new room's code to whoever starts it, and not to its log.
    let args = ["--room=new", "--forward=127.0.0.1:0"];
    let service = Peer::start_anywhere(server.address, "dave", &args);
    service.await_notice("the room's code, for the others: ");
    assert!(!service.service.log().contains("the room's code"), "the code is in the log");
    let (first, last) = code.split_at(code.len() - 1);
    let typo = format!("{first}{}", if last == "7" { "8" } else { "7" });
    let refused = run(&["peer", "--server=127.0.0.1", "--room", &typo]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(only_line(&refused).contains("the room's code is mistyped"));
}

#[test]
fn another_secret_is_another_room() {
    let server = Server::start(&[]);
    let args = ["--room=attic", "--connect-timeout=1s"];
    let mut strangers = ["the secret of one", "the secret of another"].map(|secret| {
        let args = [&args[..], &["--secret", secret]].concat();
        Peer::start_anywhere(server.address, secret.rsplit(' ').next().unwrap(), &args)
    });
    for stranger in &mut strangers {
        stranger.await_notice("* nobody could be reached");
        assert_eq!(stranger.exit_code(), 1);
        assert_eq!(stranger.line(), None);
        assert!(!stranger.said().contains("is here"), "{}", stranger.said());
    }
    // A room's name and secret are its code.
    let mut alice = Peer::start(server.address, "alice", &[]);
    let (name, secret) = ROOM.split_once(':').unwrap();
    let args = ["--room", name, "--secret", secret];
    let bob = Peer::start_anywhere(server.address, "bob", &args);
    bob.say("here");
    alice.expect_line("here");
}

#[test]
fn what_is_no_room_is_one_line_and_two() {
    for (args, word) in [
        (&["--room=attic", "--secret=seven77"][..], "--secret"),
        (&["--room=attic:seven77"], "--room"),
        (&["--room=attic"], "NAME:SECRET"),
        (&[], "--room"),
        (&["--room=new", "--legacy"], "--legacy"),
        (&["--room=attic:seven777", "--legacy"], "--legacy"),
        (&["--room=attic", "--secret=seven777", "--legacy"], "--legacy"),
        (&["--room=attic:seven777", "--room-file=/dev/null"], "--room-file"),
        (&["--room-file=/dev/null", "--secret=seven777"], "--room-file"),
    ] {
        let args = [&["peer", "--server=127.0.0.1"], args].concat();
        let refused = run(&args);
        assert_eq!(refused.status.code(), Some(2), "{args:?}");
        let line = only_line(&refused);
        assert!(line.contains(word) && !line.contains("seven77"), "{line}");
    }
    for option in ["--room", "--secret"] {
        let mut command = Command::new(UDPFERRY);
        command.args(["peer", "--server=127.0.0.1", "--room=attic", option]);
        let refused = command.arg(OsStr::from_bytes(b"seven77\xff")).output().unwrap();
        assert_eq!(refused.status.code(), Some(2));
        assert!(!only_line(&refused).contains("seven77"));
    }
    let refused = run(&["peer", "--server=127.0.0.1", "--room-file=/nonexistent/room"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(only_line(&refused).contains("/nonexistent/room"));
}

#[test]
fn a_pinned_key_is_the_only_one_that_is_talked_to() {
    let server = Server::start(&[]);
    let scratch = Scratch::new();
    let (right, wrong) = (scratch.path("right"), scratch.path("wrong"));
    let public = key(&right);
    key(&wrong);
    let mut bob = Peer::start(server.address, "bob", &["--peer-key", &public]);
    let args = ["--connect-timeout=1s", "--key-file", wrong.to_str().unwrap()];
    let mut mallory = Peer::start(server.address, "mallory", &args);
    bob.await_metric("announcements_refused_total", 1);
    bob.service.await_log("is not talked to: its key is none of --peer-key");
    assert_eq!(mallory.exit_code(), 1);
    let alice = Peer::start(server.address, "alice", &["--key-file", right.to_str().unwrap()]);
    alice.say("it is me");
    bob.expect_line("it is me");
    assert!(!bob.said().contains("mallory"), "{}", bob.said());
    assert_eq!(bob.metric("members"), 1);
}

#[test]
fn who_comes_anew_with_the_same_key_goes_on() {
    let server = Server::start(&[]);
    let scratch = Scratch::new();
    let file = scratch.path("key");
    key(&file);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let args = ["--key-file", file.to_str().unwrap()];
    let mut bob = Peer::start(server.address, "bob", &[]);
    let mut before = Peer::start(server.address, "alice", &args);
    before.service.await_log("others than its owner can read this private key");
    before.say("one");
    bob.expect_line("one");
    bob.say("two");
    before.expect_line("two");
    // Killed, so that it says no good-bye.
    drop(before);
    let mut after = Peer::start(server.address, "alice", &args);
    bob.await_notice("* alice comes anew");
    after.await_members(&["bob"]);
    after.say("three");
    bob.expect_line("three");
    bob.say("four");
    after.expect_line("four");
    assert_eq!(bob.metric("members"), 1);
}
