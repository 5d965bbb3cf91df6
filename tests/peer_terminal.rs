//! The terminal and the pipes of the role `peer`, with the other side of `--legacy` played here.
#![allow(clippy::disallowed_methods)] // Tests measure time and start threads of their own.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

#[path = "support/mod.rs"]
mod support;

use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use support::{
    PATIENCE, UDPFERRY, await_some, free_port, http_get, recv, recv_from, takes_less_than,
};

/// A member, its server and its partner.
struct Chat {
    child: Child,
    server: UdpSocket,
    partner: UdpSocket,
    member: Option<SocketAddr>,
    metrics: SocketAddr,
}

impl Drop for Chat {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Chat {
    fn start(change: impl FnOnce(&mut Command)) -> Chat {
        let socket = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        };
        let (server, partner) = (socket(), socket());
        let metrics = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = Command::new(UDPFERRY);
        command
            .args(["peer", "--legacy", "--server"])
            .arg(server.local_addr().unwrap().to_string());
        command.arg("--metrics").arg(metrics.to_string()).env("TERM", "xterm");
        change(&mut command);
        let child = command.spawn().unwrap();
        let mut chat = Chat { child, server, partner, member: None, metrics };
        if let Err(error) = chat.server.peek_from(&mut [0; 16]) {
            panic!("the member asks nobody: {error}; {}", chat.last_words());
        }
        chat
    }

    fn in_pipes() -> Chat {
        let piped = || (Stdio::piped(), Stdio::piped());
        Chat::start(|command| {
            let (input, output) = piped();
            command.stdin(input).stdout(output).stderr(Stdio::piped());
        })
    }

    /// Ends the member, and tells how it ended and what it logged into a pipe.
    fn last_words(&mut self) -> String {
        let ended = self.child.try_wait();
        let _ = self.child.kill();
        let mut log = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut log).unwrap();
        }
        format!("{ended:?}: {log}")
    }

    /// Brings the two together.
    fn meet(&mut self) {
        let (_, member) = recv_from(&self.server, &mut [0; 16]).unwrap();
        let partner = self.partner.local_addr().unwrap().to_string();
        self.server.send_to(partner.as_bytes(), member).unwrap();
        self.partner.send_to(b"PING", member).unwrap();
        self.member = Some(member);
    }

    fn say(&self, text: &str) {
        self.partner.send_to(text.as_bytes(), self.member.unwrap()).unwrap();
    }

    /// The next line of the member's.
    fn hear(&self) -> String {
        let mut bytes = [0; 2048];
        let begin = Instant::now();
        loop {
            assert!(begin.elapsed() < PATIENCE, "nothing is said");
            let len = recv(&self.partner, &mut bytes).expect("nothing is said");
            if bytes[..len] != *b"PING" {
                return String::from_utf8(bytes[..len].to_vec()).unwrap();
            }
        }
    }

    fn await_metric(&self, line: &str) {
        let shows =
            || http_get(self.metrics, "/metrics").lines().any(|it| it == line).then_some(());
        await_some(shows).unwrap_or_else(|| panic!("{line}"));
    }

    fn stop(&mut self) -> (ExitStatus, Duration) {
        let begin = Instant::now();
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        (self.child.wait().unwrap(), begin.elapsed())
    }

    fn wait(&mut self) -> ExitStatus {
        await_some(|| self.child.try_wait().unwrap()).expect("the member does not end")
    }
}

/// A terminal: its screen's text arrives in pieces, so that it never blocks.
struct Tty {
    keys: File,
    screen: Receiver<Vec<u8>>,
    slave: File,
}

fn resize(terminal: &File, columns: u16) {
    let size = ["rows", "24", "cols", &columns.to_string()];
    let input = Stdio::from(terminal.try_clone().unwrap());
    assert!(Command::new("stty").args(size).stdin(input).status().unwrap().success());
}

fn on_a_terminal() -> (Chat, Tty) {
    // Not openpty(3): its ends would be open in every process that another test starts meanwhile.
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let slave = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(ptsname_r(&master).unwrap())
        .unwrap();
    resize(&slave, 80);
    let chat = Chat::start(|command| {
        let end = || Stdio::from(slave.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(end());
    });
    let keys = File::from(OwnedFd::from(master));
    let mut output = keys.try_clone().unwrap();
    let (pieces, screen) = channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(read) = output.read(&mut bytes) {
            if read == 0 || pieces.send(bytes[..read].to_vec()).is_err() {
                break;
            }
        }
    });
    let tty = Tty { keys, screen, slave };
    tty.await_text("> ");
    (chat, tty)
}

impl Tty {
    fn await_text(&self, text: &str) {
        let mut all = Vec::new();
        while !String::from_utf8_lossy(&all).contains(text) {
            let piece = self.screen.recv_timeout(PATIENCE);
            all.extend(piece.unwrap_or_else(|_| panic!("no {text:?} in {all:?}")));
        }
    }

    fn type_in(&mut self, text: &str) {
        self.keys.write_all(text.as_bytes()).unwrap();
    }

    fn is_as_a_shell_wants_it(&self) -> bool {
        let settings = tcgetattr(&self.slave).unwrap();
        settings.local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }
}

#[test]
fn a_burst_of_keys_is_taken_whole() {
    let (mut chat, mut tty) = on_a_terminal();
    chat.meet();
    tty.await_text("connected");
    tty.type_in("hello\r");
    assert_eq!(chat.hear(), "hello");
    // Each one longer than a terminal's buffer of 4 KiB, and no more than the partner's socket
    // holds while nobody reads it.
    for burst in 0..4 {
        let lines: Vec<String> =
            (0..100).map(|number| format!("{burst} {number} {}", "grüße ".repeat(12))).collect();
        let mut keys = tty.keys.try_clone().unwrap();
        let pasted = lines.join("\r") + "\r";
        let typist = std::thread::spawn(move || keys.write_all(pasted.as_bytes()).unwrap());
        for line in lines {
            assert_eq!(chat.hear(), line);
        }
        typist.join().unwrap();
    }
    assert!(!tty.is_as_a_shell_wants_it());
    assert!(chat.stop().0.success());
    assert!(tty.is_as_a_shell_wants_it());
}

#[test]
fn what_arrives_leaves_the_line_that_is_typed() {
    let (mut chat, mut tty) = on_a_terminal();
    chat.meet();
    tty.await_text("connected");
    tty.type_in("half");
    tty.await_text("> half");
    chat.say("good\u{1b}[2J day");
    tty.await_text("\r\u{1b}[Kpeer: good␛[2J day\r\n\r\u{1b}[K> half\r\u{1b}[6C");
    tty.type_in(" a line\r");
    assert_eq!(chat.hear(), "half a line");
}

#[test]
fn keys_that_come_in_pieces_are_keys() {
    let (mut chat, mut tty) = on_a_terminal();
    chat.meet();
    tty.await_text("connected");
    // Each byte by itself, as far as the terminal keeps them apart: characters, arrows, Alt.
    for byte in "gr\u{fc}ße, \u{4e16}\u{1b}[D\u{1b}[1;5Dx\u{1b}OF\u{1b}\u{e4}!\r".as_bytes() {
        tty.keys.write_all(&[*byte]).unwrap();
    }
    assert_eq!(chat.hear(), "gr\u{fc}ße,x \u{4e16}\u{e4}!");
}

#[test]
fn many_arrivals_leave_the_line_that_is_typed() {
    let (mut chat, mut tty) = on_a_terminal();
    chat.meet();
    tty.await_text("connected");
    let half: Vec<char> = "abcdefghijklmnopqrst".chars().collect();
    for (number, letter) in half.iter().enumerate() {
        for line in 0..10 {
            chat.say(&format!("{number} {line}"));
        }
        tty.type_in(&letter.to_string());
        chat.await_metric(&format!("udpferry_peer_lines_received_total {}", 10 * (number + 1)));
    }
    let typed: String = half.iter().collect();
    tty.await_text(&format!("\r\u{1b}[K> {typed}\r\u{1b}[22C"));
    tty.type_in("\r");
    assert_eq!(chat.hear(), typed);
}

#[test]
fn a_window_of_another_size_is_drawn_anew() {
    let (chat, mut tty) = on_a_terminal();
    tty.type_in("0123456789abcdefghij");
    tty.await_text("> 0123456789abcdefghij\r\u{1b}[22C");
    resize(&tty.slave, 13);
    // The kernel tells the terminal's own processes; this one has none.
    let pid = Pid::from_raw(i32::try_from(chat.child.id()).unwrap());
    kill(pid, Signal::SIGWINCH).unwrap();
    tty.await_text("\r\u{1b}[K> abcdefghij\r\u{1b}[12C");
}

#[test]
fn a_terminal_is_left_as_it_was_however_often_it_is_asked() {
    for _ in 0..5 {
        let (mut chat, mut tty) = on_a_terminal();
        // More than the terminal shows while nobody reads it would keep the member for a second.
        tty.type_in("half a line");
        let pid = Pid::from_raw(i32::try_from(chat.child.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        // As soon as the first one has been heard.
        await_some(|| tty.is_as_a_shell_wants_it().then_some(())).expect("it stays raw");
        let _ = kill(pid, Signal::SIGTERM);
        chat.wait();
        assert!(tty.is_as_a_shell_wants_it());
    }
}

#[test]
fn a_terminal_that_hangs_up_ends_the_member() {
    let (mut chat, tty) = on_a_terminal();
    chat.meet();
    tty.await_text("connected");
    // With what it reads next the reader of the screen closes the other end, too.
    drop(tty);
    chat.say("anybody?");
    assert!(chat.wait().success());
}

#[test]
fn who_waits_for_somebody_may_leave() {
    for keys in ["hello\r/quit\r", "\u{4}", "\u{3}"] {
        let (mut chat, mut tty) = on_a_terminal();
        tty.type_in(keys);
        assert!(chat.wait().success(), "{keys:?}");
        assert!(tty.is_as_a_shell_wants_it());
    }
}

#[test]
fn what_was_typed_early_waits_for_somebody() {
    let (mut chat, mut tty) = on_a_terminal();
    tty.type_in("one\rtwo\r");
    tty.await_text("> two");
    chat.meet();
    assert_eq!((chat.hear(), chat.hear()), ("one".to_owned(), "two".to_owned()));
}

#[test]
fn a_pipe_waits_for_somebody_and_ends_when_all_is_said() {
    let mut chat = Chat::in_pipes();
    let long = "世".repeat(6000);
    let mut input = chat.child.stdin.take().unwrap();
    input.write_all(format!("one\n{long}\n").as_bytes()).unwrap();
    drop(input);
    chat.meet();
    assert_eq!(chat.hear(), "one");
    let mut heard = String::new();
    while heard.len() < long.len() {
        heard.push_str(&chat.hear());
    }
    assert_eq!(heard, long);
    assert!(chat.wait().success());
}

#[test]
fn an_output_that_nobody_reads_stops_nothing() {
    takes_less_than(Duration::from_millis(250), stop_of_one_that_nobody_reads);
}

fn stop_of_one_that_nobody_reads() -> Duration {
    let mut chat = Chat::in_pipes();
    chat.meet();
    // A pipe's 64 KiB, the queue's 256 lines, and more.
    for number in 1..=600 {
        chat.say(&"x".repeat(1000));
        if number % 50 == 0 {
            // Not faster than its socket takes them.
            chat.child.stdin.as_mut().unwrap().write_all(b"sync\n").unwrap();
            assert_eq!(chat.hear(), "sync");
        }
    }
    let dropped = || {
        let metrics = http_get(chat.metrics, "/metrics");
        let line = metrics.lines().find(|line| line.contains("\"output-full\""))?.to_owned();
        (!line.ends_with(" 0")).then_some(())
    };
    await_some(dropped).expect("no line was dropped");
    let (status, took) = chat.stop();
    assert!(status.success());
    took
}

#[test]
fn what_waits_is_written_before_the_end() {
    let mut chat = Chat::in_pipes();
    chat.meet();
    for number in 0..150 {
        chat.say(&format!("{number:01000}"));
        chat.await_metric(&format!("udpferry_peer_lines_received_total {}", number + 1));
    }
    let pid = Pid::from_raw(i32::try_from(chat.child.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let mut output = String::new();
    chat.child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    let expected: Vec<String> = (0..150).map(|number| format!("{number:01000}")).collect();
    let output: Vec<&str> = output.lines().collect();
    assert!(output == expected, "{} lines of {}", output.len(), expected.len());
    assert!(chat.wait().success());
}

#[test]
fn an_output_that_is_closed_ends_the_member() {
    let mut chat = Chat::in_pipes();
    chat.meet();
    drop(chat.child.stdout.take());
    // More than once: a process that another test is just starting holds the pipe until its exec.
    let ended = || {
        chat.say("anybody?");
        chat.child.try_wait().unwrap()
    };
    assert!(await_some(ended).expect("the member does not end").success());
}
