//! Texts: in pieces that fit a message, and as they may go to a terminal.

use crate::wire::peer::LINE_LEN_MAX;
use std::fmt::Write as _;

/// A text in pieces that fit a line, cut between characters; none for an empty text.
pub fn split_line(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut end = rest.len().min(LINE_LEN_MAX);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (piece, after) = rest.split_at(end);
        rest = after;
        Some(piece)
    })
}

/// A peer's text as a terminal may have it: what steers a terminal or turns text around is shown
/// by its picture or its number, so that nobody takes it for something else.
///
/// U+200C and U+200D stay: Persian, Hindi and families of emoji cannot be written without.
pub fn for_terminal(text: &str) -> String {
    made_visible(text, |sign| matches!(sign, '\u{200c}' | '\u{200d}'))
}

/// As [`for_terminal`], for a nickname: without exception, since two that look the same should not
/// differ in what nobody sees, and without blanks at its ends.
pub fn name_for_terminal(name: &str) -> String {
    made_visible(name.trim(), |_| false)
}

fn made_visible(text: &str, allowed: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for sign in text.chars() {
        match u32::from(sign) {
            code @ 0..0x20 => shown.extend(char::from_u32(0x2400 + code)),
            0x7f => shown.push('\u{2421}'),
            _ if is_printable(sign) || allowed(sign) => shown.push(sign),
            // Writing to a String cannot fail.
            code => drop(write!(shown, "<U+{code:04X}>")),
        }
    }
    shown
}

/// Letters, marks, digits, signs and spaces; not controls, formats (bidi overrides among them),
/// line and paragraph separators, private use and what Unicode has not assigned.
fn is_printable(sign: char) -> bool {
    if sign.is_whitespace() {
        return !matches!(sign, '\u{2028}' | '\u{2029}') && !sign.is_control();
    }
    // The standard library's table of what is printable is behind `escape_debug`, which also
    // escapes quotes and, at the beginning of a text, combining marks.
    let text: [char; 2] = ['x', sign];
    let text: String = text.iter().collect();
    matches!(sign, '\\' | '"' | '\'') || text.escape_debug().count() == 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn long_texts_are_split_between_characters() {
        assert_eq!(split_line("").count(), 0);
        let text = format!("x{}", "ä".repeat(LINE_LEN_MAX));
        let lengths: Vec<_> = split_line(&text).map(str::len).collect();
        assert_eq!(lengths, [1023, 1024, 2]);
    }

    #[test]
    fn what_steers_a_terminal_is_made_visible() {
        for (text, shown) in [
            ("plain 'text' \"and\" \\ more", "plain 'text' \"and\" \\ more"),
            (
                "naïve e\u{301} 日本\u{3000}語 हिन्दी 👋🏽 ❤\u{fe0f}",
                "naïve e\u{301} 日本\u{3000}語 हिन्दी 👋🏽 ❤\u{fe0f}",
            ),
            ("\u{1b}[2J\u{1b}]0;title\u{7}", "␛[2J␛]0;title␇"),
            ("a\rb\nc\td\0\u{8}\u{7f}", "a␍b␊c␉d␀␈␡"),
            ("\u{9b}31m\u{85}", "<U+009B>31m<U+0085>"),
            ("\u{202e}evil\u{2066}\u{2069}\u{200f}", "<U+202E>evil<U+2066><U+2069><U+200F>"),
            ("\u{feff}\u{200b}\u{ad}\u{2028}\u{2029}", "<U+FEFF><U+200B><U+00AD><U+2028><U+2029>"),
            ("\u{e0041}\u{e000}\u{10ffff}", "<U+E0041><U+E000><U+10FFFF>"),
            ("می\u{200c}خواهم", "می\u{200c}خواهم"),
        ] {
            assert_eq!(for_terminal(text), shown);
        }
        assert_eq!(name_for_terminal("  al\u{200d}ice\n "), "al<U+200D>ice");
    }

    proptest! {
        #[test]
        fn pieces_are_the_text_and_fit(text in "(?s).{0,2000}") {
            let pieces: Vec<_> = split_line(&text).collect();
            prop_assert!(pieces.iter().all(|it| !it.is_empty() && it.len() <= LINE_LEN_MAX));
            prop_assert_eq!(pieces.concat(), text);
        }

        #[test]
        fn nothing_that_steers_gets_through(text in "(?s).{0,200}") {
            let shown = for_terminal(&text);
            prop_assert!(!shown.chars().any(char::is_control), "{:?}", shown);
            let steers = ['\u{202e}', '\u{202d}', '\u{2067}', '\u{2028}'];
            prop_assert!(!shown.contains(steers));
            prop_assert_eq!(for_terminal(&shown), shown, "once is enough");
        }
    }
}
