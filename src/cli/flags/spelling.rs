//! One spelling per option, and the nearest one for a spelling that nobody knows.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::super::table::{Command, Takes};
use super::{UsageError, lossy, needs_value};

/// Rewrites every option to its canonical spelling with its values behind it, one value each:
/// `-dp=1` is `--dest-port 1`, `--pair A B` is `--pair A --pair B`. No value begins with `--`
/// afterwards, and what is no option is a positional.
pub(super) fn spell_out(
    command: &'static Command,
    args: Vec<OsString>,
) -> Result<Vec<OsString>, UsageError> {
    let mut spelled = Vec::with_capacity(args.len());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        if !bytes.starts_with(b"-") || bytes == b"-" {
            spelled.push(arg);
            continue;
        }
        let equals = bytes.iter().position(|byte| *byte == b'=');
        let (name, attached) = match equals {
            Some(at) => (&bytes[..at], Some(OsString::from_vec(bytes[at + 1..].to_vec()))),
            None => (bytes, None),
        };
        let name = String::from_utf8_lossy(name);
        let Some(option) = command.option(&name) else {
            return Err(unknown(command, &name, attached.as_deref()));
        };
        let count = match option.takes {
            Takes::Nothing => {
                if let Some(value) = attached {
                    let option = option.canonical().to_owned();
                    return Err(UsageError::TakesNoValue { option, value: lossy(&value) });
                }
                spelled.push(option.canonical().into());
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

fn unknown(command: &'static Command, name: &str, attached: Option<&OsStr>) -> UsageError {
    const BUILT_IN: [&str; 4] = ["-h", "--help", "-V", "--version"];
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
