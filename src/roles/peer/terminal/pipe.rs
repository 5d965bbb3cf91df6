//! Lines from a pipe or a file.

use super::{LINE_LEN_MAX, Typed};
use crate::runtime::queue::Sender;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

/// Nobody wants lines any more.
#[derive(Debug)]
struct Unwanted;

/// Reads lines until the end, or until the other end of `stopped` is gone.
pub(super) fn read(lines: &Sender<Typed>, stopped: &UnixStream) {
    let mut cutter = Cutter::default();
    let mut hand_over = |typed| lines.send_waiting(typed).map_err(|_| Unwanted);
    let mut chunk = [0; 4096];
    loop {
        // poll(2) rather than epoll: a file from the shell's `<` cannot be watched by the latter.
        let input = io::stdin();
        let mut watched = [
            PollFd::new(input.as_fd(), PollFlags::POLLIN),
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        if watched[1].any().unwrap_or(true) {
            return;
        }
        if !watched[0].any().unwrap_or(true) {
            continue;
        }
        // Not through std's buffer, whose contents poll(2) would not see.
        let read = match nix::unistd::read(&input, &mut chunk) {
            Ok(read) => read,
            Err(Errno::EINTR | Errno::EAGAIN) => continue,
            Err(_) => 0,
        };
        let taken = if read == 0 {
            cutter.end(&mut hand_over).and_then(|()| hand_over(Typed::End))
        } else {
            cutter.take(&chunk[..read], &mut hand_over)
        };
        if read == 0 || taken.is_err() {
            return;
        }
    }
}

/// Makes lines of at most [`LINE_LEN_MAX`] bytes; a longer one becomes several, cut between
/// characters.
#[derive(Debug, Default)]
struct Cutter {
    line: Vec<u8>,
}

impl Cutter {
    fn take(
        &mut self,
        bytes: &[u8],
        mut hand_over: impl FnMut(Typed) -> Result<(), Unwanted>,
    ) -> Result<(), Unwanted> {
        for &byte in bytes {
            if byte == b'\n' {
                hand_over(self.line_until_here())?;
                continue;
            }
            if self.line.len() >= LINE_LEN_MAX {
                let rest = self.line.split_off(character_start(&self.line, byte));
                hand_over(typed(std::mem::replace(&mut self.line, rest)))?;
            }
            self.line.push(byte);
        }
        Ok(())
    }

    /// The last line may lack its end.
    fn end(
        &mut self,
        mut hand_over: impl FnMut(Typed) -> Result<(), Unwanted>,
    ) -> Result<(), Unwanted> {
        if self.line.is_empty() { Ok(()) } else { hand_over(self.line_until_here()) }
    }

    fn line_until_here(&mut self) -> Typed {
        let mut line = std::mem::take(&mut self.line);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        typed(line)
    }
}

/// Where the character that `next` belongs to begins: in `line`, or behind it.
fn character_start(line: &[u8], next: u8) -> usize {
    let is_continuation = |byte: u8| byte & 0b1100_0000 == 0b1000_0000;
    if !is_continuation(next) {
        return line.len();
    }
    // RFC 3629: before the last byte there are at most three.
    let earliest = line.len().saturating_sub(3);
    let begin = line[earliest..].iter().rposition(|byte| !is_continuation(*byte));
    // Behind a whole character there is nothing to continue: this is no text.
    let begin = begin.map(|begin| earliest + begin).filter(|begin| line[*begin] >= 0xc0);
    begin.unwrap_or(line.len())
}

fn typed(line: Vec<u8>) -> Typed {
    String::from_utf8(line).map_or(Typed::NotText, Typed::Line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(chunks: &[&[u8]]) -> Vec<Typed> {
        let mut cutter = Cutter::default();
        let mut lines = Vec::new();
        let mut hand_over = |typed| {
            lines.push(typed);
            Ok(())
        };
        for chunk in chunks {
            cutter.take(chunk, &mut hand_over).unwrap();
        }
        cutter.end(&mut hand_over).unwrap();
        lines
    }

    fn line(text: &str) -> Typed {
        Typed::Line(text.to_owned())
    }

    #[test]
    fn lines_end_where_they_should() {
        assert_eq!(
            cut(&[b"one\ntw", b"o\r\n\n\xff\nlast"]),
            [line("one"), line("two"), line(""), Typed::NotText, line("last")]
        );
        assert_eq!(cut(&[b"one\n"]), [line("one")]);
    }

    #[test]
    fn a_long_line_loses_nothing() {
        let lens = |text: &str| {
            let lines = cut(&[text.as_bytes()]);
            let mut all = String::new();
            let mut lens = Vec::new();
            for typed in lines {
                let Typed::Line(line) = typed else { panic!("{typed:?}") };
                lens.push(line.len());
                all.push_str(&line);
            }
            assert_eq!(all, text);
            lens
        };
        assert_eq!(lens(&"a".repeat(20_000)), [8192, 8192, 3616]);
        assert_eq!(lens(&"a".repeat(8192)), [8192]);
        assert_eq!(lens(&"世".repeat(6000)), [8190, 8190, 1620]);
        assert_eq!(lens(&format!("a{}", "🙂".repeat(4000))), [8189, 7812]);
        assert_eq!(lens(&format!("{}\rb", "a".repeat(8191))), [8192, 1], "no end of a line");
    }

    #[test]
    fn only_the_part_that_is_no_text_is_refused() {
        let mut bytes = vec![b'a'; 8192];
        bytes.extend([0x80; 8192]);
        bytes.push(b'b');
        let a = line(&"a".repeat(8192));
        assert_eq!(cut(&[&bytes]), [a, Typed::NotText, line("b")]);
    }

    proptest! {
        #[test]
        fn any_text_is_kept(text in "[^\r\n]{1,3000}", repeats in 1_usize..10, at in 0_usize..9000) {
            let text = text.repeat(repeats);
            let (first, second) = text.as_bytes().split_at(at.min(text.len()));
            let all: String = cut(&[first, second])
                .into_iter()
                .map(|typed| match typed {
                    Typed::Line(line) => line,
                    other => panic!("{other:?}"),
                })
                .collect();
            prop_assert_eq!(all, text);
        }
    }
}
