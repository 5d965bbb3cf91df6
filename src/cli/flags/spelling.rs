//! One spelling per option, and the nearest one for a spelling that nobody knows.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::super::table::{Command, Opt, Takes};
use super::{UsageError, lossy, needs_value};

const BUILT_IN: [&str; 4] = ["-h", "--help", "-V", "--version"];

/// Rewrites every option to its canonical spelling with its values behind it, one value each:
/// `-dp=1` is `--dest-port 1`, `--pair A B` is `--pair A --pair B`. No value begins with `--`
/// afterwards, and what is no option is a positional.
pub(super) fn spell_out(
    command: &'static Command,
    args: Vec<OsString>,
) -> Result<Vec<OsString>, UsageError> {
    let mut spelled = Vec::with_capacity(args.len());
    let mut args = args.into_iter().peekable();
    // What is left of a word of several short options: `-n2` of `-Rn2`.
    let mut rest_of_word = None;
    while let Some(arg) = rest_of_word.take().or_else(|| args.next()) {
        let bytes = arg.as_bytes();
        if !bytes.starts_with(b"-") || bytes == b"-" {
            spelled.push(arg);
            continue;
        }
        let Word { option, attached, rest } = read_word(command, bytes)?;
        rest_of_word = rest;
        let count = match option.takes {
            Takes::Nothing => {
                if let Some(value) = attached {
                    let option = option.canonical().to_owned();
                    return Err(UsageError::TakesNoValue { option, value: lossy(&value) });
                }
                spelled.push(option.canonical().into());
                continue;
            }
            Takes::Word(words) => {
                let is_one = |next: &OsString| words.iter().any(|word| next == word);
                let value = match attached {
                    Some(value) if value.is_empty() => return Err(needs_value(option, None)),
                    Some(value) => value,
                    None => match args.next_if(is_one) {
                        Some(value) => value,
                        None => words.first().copied().unwrap_or_default().into(),
                    },
                };
                spelled.extend([option.canonical().into(), value]);
                continue;
            }
            Takes::One(_) => 1,
            Takes::Two(_, _) => 2,
        };
        let mut values = attached.into_iter().chain(&mut args);
        for _ in 0..count {
            let value = values.next().ok_or_else(|| needs_value(option, None))?;
            if value.is_empty() || value.as_bytes().starts_with(b"--") {
                return Err(needs_value(option, Some(lossy(&value))));
            }
            spelled.extend([option.canonical().into(), value]);
        }
    }
    Ok(spelled)
}

/// An option as it stands there.
struct Word {
    option: &'static Opt,
    attached: Option<OsString>,
    /// The short options that share the word with a switch, as a word of their own.
    rest: Option<OsString>,
}

/// A whole name, alone or before `=`; else a short one with what is attached to it, which
/// argparse's programs take: `-n2`, `-Rn2`. Of `-d` and `-dp`, the longer one has the word.
fn read_word(command: &'static Command, bytes: &[u8]) -> Result<Word, UsageError> {
    let owned = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    let (name, attached) = match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) => (&bytes[..at], Some(owned(&bytes[at + 1..]))),
        None => (bytes, None),
    };
    let name = String::from_utf8_lossy(name);
    if let Some(option) = command.option(&name) {
        return Ok(Word { option, attached, rest: None });
    }
    let nothing_known = || unknown(command, &name, attached.as_deref());
    let Some((option, behind)) = short_prefix(command, bytes) else {
        return Err(nothing_known());
    };
    if option.takes != Takes::Nothing {
        return Ok(Word { option, attached: Some(owned(behind)), rest: None });
    }
    let rest = [b"-", behind].concat();
    let next = short_prefix(command, &rest).map(|(next, _)| next);
    // Help and version are looked for before, as whole words; in here they would do nothing.
    let does_nothing = |option: &Opt| BUILT_IN.contains(&option.canonical());
    if !does_nothing(option) && next.is_some_and(|next| !does_nothing(next)) {
        return Ok(Word { option, attached: None, rest: Some(OsString::from_vec(rest)) });
    }
    Err(match nothing_known() {
        // One dash where two belong: `-daemon`.
        has_nearest @ UsageError::Unknown { nearest: Some(nearest), .. }
            if nearest.starts_with("--") =>
        {
            has_nearest
        }
        _ => UsageError::TakesNoValue {
            option: option.canonical().to_owned(),
            value: lossy(OsStr::from_bytes(behind)),
        },
    })
}

/// The longest short option that the word begins with, and what is behind it: options with one
/// dash and more letters only with values.
fn short_prefix<'a>(
    command: &'static Command,
    bytes: &'a [u8],
) -> Option<(&'static Opt, &'a [u8])> {
    let named = command.options().flat_map(|option| {
        let short = option.names.iter().filter(|name| !name.starts_with("--"));
        short.map(move |name| (option, *name))
    });
    let usable = named.filter(|(option, name)| name.len() == 2 || option.takes != Takes::Nothing);
    let fitting = usable
        .filter_map(|(option, name)| Some((option, name, bytes.strip_prefix(name.as_bytes())?)));
    fitting.max_by_key(|(_, name, _)| name.len()).map(|(option, _, behind)| (option, behind))
}

fn unknown(command: &'static Command, name: &str, attached: Option<&OsStr>) -> UsageError {
    if let (true, Some(value)) = (BUILT_IN.contains(&name), attached) {
        return UsageError::TakesNoValue { option: name.to_owned(), value: lossy(value) };
    }
    let letters = name.trim_start_matches('-').chars().count();
    let nearest = command
        .options()
        .flat_map(|option| option.names.iter())
        .chain(&BUILT_IN)
        .map(|known| (edit_distance(name, known), *known))
        // A spelling of which nothing is left is no suggestion: -x for -h.
        .filter(|(distance, _)| *distance <= 2 && *distance < letters)
        .min_by_key(|(distance, _)| *distance);
    UsageError::Unknown { option: name.to_owned(), nearest: nearest.map(|(_, known)| known) }
}

/// The Levenshtein distance in characters; anything above 2 when the lengths alone are too far
/// apart, as a word of the command line may be 128 KiB long.
pub(super) fn edit_distance(a: &str, b: &str) -> usize {
    if a.len().abs_diff(b.len()) > 8 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (j, to) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j] = left;
            left = (above + 1).min(left + 1).min(diagonal + usize::from(from != *to));
            diagonal = above;
        }
        row[b.len()] = left;
    }
    row[b.len()]
}
