//! A line that is being typed: what keys do to it, and how it looks. Pure: bytes in, text out.

use super::super::text::for_terminal;
use super::LINE_LEN_MAX;
use std::collections::VecDeque;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Stands before what is typed.
const PROMPT: &str = "> ";
/// A line that gets longer is handed over, so that the longest one has at most [`LINE_LEN_MAX`]
/// bytes.
const LINE_CHARS_MAX: usize = LINE_LEN_MAX / 4;
/// Lines that the arrow keys bring back.
const HISTORY_MAX: usize = 100;
/// Of an escape sequence: what is longer is none of a key.
const SEQUENCE_LEN_MAX: usize = 16;

/// Removes what the cursor's line shows.
pub(super) const ERASE: &str = "\r\x1b[K";

/// What the user wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// This line is complete.
    Line(String),
    /// To leave: Ctrl-C, or Ctrl-D in an empty line.
    End,
    /// Back to the shell for a while: Ctrl-Z.
    Suspend,
    /// A clean screen: Ctrl-L.
    Clear,
}

/// Where in an escape sequence the input is.
#[derive(Debug, Default)]
enum Sequence {
    #[default]
    None,
    Escape,
    /// ESC O, which one letter follows.
    Single,
    /// ESC [ and these parameters.
    Csi(Vec<u8>),
}

/// The line, its cursor, and the lines before it.
#[derive(Debug, Default)]
pub(super) struct LineEditor {
    line: Vec<char>,
    /// In characters.
    cursor: usize,
    /// The first character that shows, when the line is wider than the window.
    first: usize,
    history: VecDeque<Vec<char>>,
    /// Which line of the history is edited, and what was typed before it was called.
    recalled: Option<usize>,
    draft: Vec<char>,
    sequence: Sequence,
    /// The beginning of a character.
    partial: Vec<u8>,
    /// A line feed now belongs to the carriage return before it.
    ends_by_return: bool,
}

impl LineEditor {
    /// Takes one byte of input, and adds what the user wants by it.
    pub(super) fn take(&mut self, byte: u8, wishes: &mut Vec<Wish>) {
        let after_return = std::mem::take(&mut self.ends_by_return);
        if self.is_of_sequence(byte) {
            return;
        }
        if byte >= 0x80 || !self.partial.is_empty() {
            return self.take_of_character(byte, wishes);
        }
        match byte {
            b'\n' if after_return => {}
            b'\r' | b'\n' => {
                self.ends_by_return = byte == b'\r';
                wishes.push(self.hand_over());
            }
            b'\t' | 0x20..0x7f => self.insert(char::from(byte), wishes),
            _ => wishes.extend(self.control(byte)),
        }
    }

    /// Whether the byte belongs to an escape sequence, which may end with it.
    fn is_of_sequence(&mut self, byte: u8) -> bool {
        // No key has a control inside, and none a character beyond ASCII: Alt with a letter is the
        // letter, and a sequence that was cut off is nothing.
        if byte >= 0x80 || byte < 0x20 && byte != 0x1b {
            self.sequence = Sequence::None;
        }
        match &mut self.sequence {
            Sequence::None => return false,
            Sequence::Escape => {
                self.sequence = match byte {
                    b'[' => Sequence::Csi(Vec::new()),
                    b'O' => Sequence::Single,
                    0x1b => Sequence::Escape,
                    _ => Sequence::None,
                };
            }
            Sequence::Single => {
                self.sequence = Sequence::None;
                self.key(byte, &[]);
            }
            Sequence::Csi(_) if byte == 0x1b => self.sequence = Sequence::Escape,
            // ECMA-48, 5.4: parameters and intermediates, and then one final byte. Of too many of
            // them the rest counts for nothing, and neither does what they are of.
            Sequence::Csi(parameters) if (0x20..0x40).contains(&byte) => {
                if parameters.len() <= SEQUENCE_LEN_MAX {
                    parameters.push(byte);
                }
            }
            Sequence::Csi(parameters) => {
                let parameters = std::mem::take(parameters);
                self.sequence = Sequence::None;
                if parameters.len() <= SEQUENCE_LEN_MAX {
                    self.key(byte, &parameters);
                }
            }
        }
        true
    }

    fn take_of_character(&mut self, byte: u8, wishes: &mut Vec<Wish>) {
        self.partial.push(byte);
        let (sign, rest) = match std::str::from_utf8(&self.partial) {
            Ok(text) => (text.chars().next(), None),
            // No more than a character's beginning can be waiting.
            Err(error) => match error.error_len() {
                Some(len) => {
                    let rest = (len < self.partial.len()).then_some(byte);
                    (Some(char::REPLACEMENT_CHARACTER), rest)
                }
                None => return,
            },
        };
        self.partial.clear();
        if let Some(sign) = sign {
            self.insert(sign, wishes);
        }
        // What cut the character short is one itself.
        if let Some(byte) = rest {
            self.take(byte, wishes);
        }
    }

    fn insert(&mut self, sign: char, wishes: &mut Vec<Wish>) {
        if self.line.len() >= LINE_CHARS_MAX {
            wishes.push(self.hand_over());
        }
        self.line.insert(self.cursor, sign);
        self.cursor += 1;
    }

    fn hand_over(&mut self) -> Wish {
        let line = std::mem::take(&mut self.line);
        (self.cursor, self.first, self.recalled) = (0, 0, None);
        let is_blank = line.iter().all(|sign| sign.is_whitespace());
        if !is_blank && self.history.back() != Some(&line) {
            if self.history.len() >= HISTORY_MAX {
                self.history.pop_front();
            }
            self.history.push_back(line.clone());
        }
        Wish::Line(line.into_iter().collect())
    }

    /// What the key Ctrl with a letter does, as in other programs' lines.
    fn control(&mut self, byte: u8) -> Option<Wish> {
        const fn ctrl(letter: u8) -> u8 {
            letter & 0x1f
        }
        const A: u8 = ctrl(b'A');
        const B: u8 = ctrl(b'B');
        const C: u8 = ctrl(b'C');
        const D: u8 = ctrl(b'D');
        const E: u8 = ctrl(b'E');
        const F: u8 = ctrl(b'F');
        const H: u8 = ctrl(b'H');
        const K: u8 = ctrl(b'K');
        const L: u8 = ctrl(b'L');
        const N: u8 = ctrl(b'N');
        const P: u8 = ctrl(b'P');
        const U: u8 = ctrl(b'U');
        const W: u8 = ctrl(b'W');
        const Z: u8 = ctrl(b'Z');
        match byte {
            C => return Some(Wish::End),
            D if self.line.is_empty() => return Some(Wish::End),
            Z => return Some(Wish::Suspend),
            L => return Some(Wish::Clear),
            A => self.cursor = 0,
            E => self.cursor = self.line.len(),
            B => self.cursor = self.left(),
            F => self.cursor = self.right(),
            P => self.recall_older(),
            N => self.recall_newer(),
            // DEL: what the backspace key sends nearly everywhere.
            H | 0x7f => self.remove_from(self.left()),
            D => drop(self.line.drain(self.cursor..self.right())),
            K => self.line.truncate(self.cursor),
            U => self.remove_from(0),
            W => self.remove_from(self.word_start()),
            0x1b => self.sequence = Sequence::Escape,
            _ => {}
        }
        None
    }

    /// A key that sends a sequence: the cursor keys and those around them, as xterm has them
    /// (ctlseqs, "PC-Style Function Keys").
    fn key(&mut self, last: u8, parameters: &[u8]) {
        match (last, parameters) {
            (b'A', _) => self.recall_older(),
            (b'B', _) => self.recall_newer(),
            (b'C', _) => self.cursor = self.right(),
            (b'D', _) => self.cursor = self.left(),
            (b'H', _) | (b'~', b"1" | b"7") => self.cursor = 0,
            (b'F', _) | (b'~', b"4" | b"8") => self.cursor = self.line.len(),
            (b'~', b"3") => drop(self.line.drain(self.cursor..self.right())),
            _ => {}
        }
    }

    fn remove_from(&mut self, start: usize) {
        self.line.drain(start..self.cursor);
        self.cursor = start;
    }

    /// The place before the character left of the cursor, with the marks on it.
    fn left(&self) -> usize {
        let before = &self.line[..self.cursor];
        before.iter().rposition(|sign| cells(*sign) > 0).unwrap_or(0)
    }

    fn right(&self) -> usize {
        let after = self.line[self.cursor..].iter().skip(1);
        let marks = after.take_while(|sign| cells(**sign) == 0).count();
        self.line.len().min(self.cursor + 1 + marks)
    }

    fn word_start(&self) -> usize {
        let before = &self.line[..self.cursor];
        let end = before.iter().rposition(|sign| !sign.is_whitespace()).unwrap_or(0);
        before[..end].iter().rposition(|sign| sign.is_whitespace()).map_or(0, |space| space + 1)
    }

    fn recall_older(&mut self) {
        let older = self.recalled.unwrap_or(self.history.len()).checked_sub(1);
        if older.is_some() {
            self.recall(older);
        }
    }

    fn recall_newer(&mut self) {
        if let Some(recalled) = self.recalled {
            self.recall(Some(recalled + 1).filter(|newer| *newer < self.history.len()));
        }
    }

    fn recall(&mut self, which: Option<usize>) {
        if self.recalled.is_none() {
            self.draft = std::mem::take(&mut self.line);
        }
        self.line = match which {
            Some(which) => self.history.get(which).cloned().unwrap_or_default(),
            None => std::mem::take(&mut self.draft),
        };
        (self.cursor, self.first, self.recalled) = (self.line.len(), 0, which);
    }

    /// What draws the line, from wherever the cursor is in it, into a window of that many columns:
    /// the part around the cursor, if it is too wide.
    pub(super) fn drawn(&mut self, columns: u16) -> String {
        // The cursor needs a place behind the last character, too.
        let room = usize::from(columns).saturating_sub(PROMPT.width() + 1).max(1);
        self.first = self.first.min(self.cursor);
        let width = |signs: &[char]| signs.iter().map(|it| cells(*it)).sum::<usize>();
        let mut before = width(&self.line[self.first..self.cursor]);
        while before > room {
            before -= cells(self.line[self.first]);
            self.first += 1;
        }
        // Marks without their character would stand on the prompt.
        while self.first < self.cursor && cells(self.line[self.first]) == 0 {
            self.first += 1;
        }
        // What has become shorter, or a wider window, shows as much as it can.
        let mut all = width(&self.line[self.first..]);
        while let Some(start) = self.line[..self.first].iter().rposition(|it| cells(*it) > 0) {
            let more = width(&self.line[start..self.first]);
            if all + more > room {
                break;
            }
            (all, before, self.first) = (all + more, before + more, start);
        }
        let mut text = format!("{ERASE}{PROMPT}");
        let mut used = 0;
        for sign in &self.line[self.first..] {
            used += cells(*sign);
            if used > room {
                break;
            }
            text.push_str(&shown(*sign));
        }
        text + &format!("\r\x1b[{}C", PROMPT.width() + before)
    }
}

/// A complete line as it stays on the screen.
pub(super) fn entered(line: &str) -> String {
    format!("{ERASE}{PROMPT}{}\n", for_terminal(line))
}

/// How many columns a character takes here. What terminals make of several characters together,
/// such as families of emoji, is different in each.
fn cells(sign: char) -> usize {
    match sign.width() {
        // Nearly all of them.
        Some(width) if sign == ' ' || sign.is_alphanumeric() => width,
        _ => shown(sign).width(),
    }
}

fn shown(sign: char) -> String {
    let mut bytes = [0; 4];
    for_terminal(sign.encode_utf8(&mut bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wishes(editor: &mut LineEditor, input: &[u8]) -> Vec<Wish> {
        let mut wishes = Vec::new();
        for byte in input {
            editor.take(*byte, &mut wishes);
        }
        wishes
    }

    fn line(text: &str) -> Wish {
        Wish::Line(text.to_owned())
    }

    /// What a line becomes by keys.
    fn typed(input: &str) -> String {
        let mut editor = LineEditor::default();
        let mut wishes = wishes(&mut editor, format!("{input}\r").as_bytes());
        match (wishes.pop(), wishes.is_empty()) {
            (Some(Wish::Line(line)), true) => line,
            other => panic!("{input:?}: {other:?}"),
        }
    }

    #[test]
    fn keys_edit_the_line() {
        for (input, expected) in [
            ("hello", "hello"),
            ("hellp\x7fo", "hello"),
            ("\x7f\x08x", "x"),
            ("Grüße, 世界\x7f\x7f🙂", "Grüße, 🙂"),
            ("e\u{301}x\x02\x7f", "x"),
            ("abc\x1b[D\x1b[Dx", "axbc"),
            ("abc\x1bOD\x1b[1;5Dx", "axbc"),
            ("bc\x1b[Ha\x1b[Fd", "abcd"),
            ("bc\x01a\x05d", "abcd"),
            ("bc\x1b[1~a\x1b[4~d", "abcd"),
            ("abc\x1b[H\x1b[3~\x04", "c"),
            ("abc\x1b[H\x1b[C\x0b", "a"),
            ("abc def\x15x", "x"),
            ("abc def  \x17x", "abc x"),
            ("abc\x17\x17x", "x"),
            ("a\x1b[200~b\x1b[201~c", "abc"),
            ("a\x1bxb\x1b\x1b[Dc", "acb"),
            ("a\tb", "a\tb"),
            ("a\x1b[12\x05b", "ab"),
            // Alt with a letter that has several bytes, and sequences that were cut off by one.
            ("a\x1büb", "aüb"),
            ("a\x1b[1;5üb", "aüb"),
            ("a\x1bOüb", "aüb"),
            ("abc\x1b[1\x1b[Dx", "abxc"),
            // Longer than any key's: a report of the mouse, say.
            ("abc\x1b[1;2;3;4;5;6;7;8;9;10;11;12Dx", "abcx"),
            ("abc\x1b[1;2;3;4;5;6;7;8Dx", "abxc"),
        ] {
            assert_eq!(typed(input), expected, "{input:?}");
        }
    }

    #[test]
    fn what_is_no_text_shows() {
        let mut editor = LineEditor::default();
        let input = [&b"a\xff\xe4\xb8b\xc3"[..], "ü\r".as_bytes()].concat();
        assert_eq!(wishes(&mut editor, &input), [line("a\u{fffd}\u{fffd}b\u{fffd}ü")]);
    }

    #[test]
    fn lines_end_each_way() {
        let mut editor = LineEditor::default();
        let lines = wishes(&mut editor, b"a\rb\nc\r\n\nd\n");
        assert_eq!(lines, ["a", "b", "c", "", "d"].map(line));
    }

    #[test]
    fn the_user_leaves() {
        let mut editor = LineEditor::default();
        assert_eq!(wishes(&mut editor, b"\x04"), [Wish::End]);
        assert_eq!(wishes(&mut editor, b"abc\x03"), [Wish::End]);
        assert_eq!(wishes(&mut editor, b"\x1a\x0c"), [Wish::Suspend, Wish::Clear]);
        assert_eq!(wishes(&mut editor, b"\x04\r"), [line("abc")], "in a line it removes");
    }

    #[test]
    fn arrows_call_earlier_lines() {
        let mut editor = LineEditor::default();
        wishes(&mut editor, b"one\rtwo\rtwo\r  \r");
        assert_eq!(wishes(&mut editor, b"\x1b[A\r"), [line("two")]);
        assert_eq!(wishes(&mut editor, b"\x1b[A\x1b[A\x1b[A\x1b[A!\r"), [line("one!")]);
        assert_eq!(wishes(&mut editor, b"dra\x10\x10\x0e\x0e\x0eft\r"), [line("draft")]);
        for number in 0..2 * HISTORY_MAX {
            wishes(&mut editor, format!("{number}\r").as_bytes());
        }
        assert_eq!(editor.history.len(), HISTORY_MAX);
        assert_eq!(wishes(&mut editor, b"\x10\r"), [line("199")]);
    }

    #[test]
    fn a_long_line_becomes_several() {
        let mut editor = LineEditor::default();
        let text = "世".repeat(LINE_CHARS_MAX * 2 + 1);
        let mut lines = wishes(&mut editor, text.as_bytes());
        lines.extend(wishes(&mut editor, b"\r"));
        let whole = "世".repeat(LINE_CHARS_MAX);
        assert_eq!(lines, [line(&whole), line(&whole), line("世")]);
        assert!("🙂".len() * LINE_CHARS_MAX <= LINE_LEN_MAX);
    }

    #[test]
    fn a_long_line_loses_nothing_where_a_character_is_cut_short() {
        let mut editor = LineEditor::default();
        wishes(&mut editor, "x".repeat(LINE_CHARS_MAX).as_bytes());
        let whole = "x".repeat(LINE_CHARS_MAX);
        assert_eq!(wishes(&mut editor, b"\xc3\r"), [line(&whole), line("\u{fffd}")]);
    }

    #[test]
    fn a_line_is_drawn_with_its_cursor() {
        let mut editor = LineEditor::default();
        assert_eq!(editor.drawn(80), "\r\x1b[K> \r\x1b[2C");
        wishes(&mut editor, "a世\tb\u{202e}".as_bytes());
        assert_eq!(editor.drawn(80), "\r\x1b[K> a世␉b<U+202E>\r\x1b[15C");
        wishes(&mut editor, b"\x02\x02");
        assert_eq!(editor.drawn(80), "\r\x1b[K> a世␉b<U+202E>\r\x1b[6C");
    }

    #[test]
    fn a_wide_line_scrolls_with_its_cursor() {
        let mut editor = LineEditor::default();
        wishes(&mut editor, b"0123456789");
        assert_eq!(editor.drawn(8), "\r\x1b[K> 56789\r\x1b[7C");
        wishes(&mut editor, b"\x02\x02");
        assert_eq!(editor.drawn(8), "\r\x1b[K> 56789\r\x1b[5C");
        wishes(&mut editor, b"\x01");
        assert_eq!(editor.drawn(8), "\r\x1b[K> 01234\r\x1b[2C");
        wishes(&mut editor, "\x05世".as_bytes());
        assert_eq!(editor.drawn(8), "\r\x1b[K> 789世\r\x1b[7C");
        // A window that is too narrow for anything is no reason to panic.
        assert!(!editor.drawn(0).is_empty());
    }

    #[test]
    fn what_becomes_shorter_shows_again() {
        let mut editor = LineEditor::default();
        wishes(&mut editor, b"0123456789");
        assert_eq!(editor.drawn(8), "\r\x1b[K> 56789\r\x1b[7C");
        wishes(&mut editor, b"\x7f\x7f\x7f");
        assert_eq!(editor.drawn(8), "\r\x1b[K> 23456\r\x1b[7C");
        assert_eq!(editor.drawn(80), "\r\x1b[K> 0123456\r\x1b[9C", "a wider window");
        assert_eq!(editor.drawn(6), "\r\x1b[K> 456\r\x1b[5C", "a narrower one");
    }

    #[test]
    fn marks_do_not_lose_their_characters() {
        let mut editor = LineEditor::default();
        wishes(&mut editor, "ae\u{301}bcdef".as_bytes());
        assert_eq!(editor.drawn(8), "\r\x1b[K> bcdef\r\x1b[7C");
        wishes(&mut editor, b"\x02");
        assert_eq!(editor.drawn(7), "\r\x1b[K> bcde\r\x1b[6C");
    }

    #[test]
    fn a_line_stays_without_what_steers_a_terminal() {
        assert_eq!(entered("a\tb"), "\r\x1b[K> a␉b\n");
    }

    proptest! {
        #[test]
        fn any_input_is_taken(input: Vec<u8>, columns in 0_u16..50) {
            let mut editor = LineEditor::default();
            for byte in input {
                editor.take(byte, &mut Vec::new());
                prop_assert!(editor.cursor <= editor.line.len());
                editor.drawn(columns);
            }
        }

        #[test]
        fn text_is_taken_whole(text in "[^\\p{Cc}]{0,200}") {
            prop_assert_eq!(typed(&text), text);
        }
    }
}
