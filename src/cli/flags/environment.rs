//! The environment stands in for options that are absent from the command line.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::super::table::{Opt, Takes};
use super::{Found, UsageError, lossy};

/// Tells a hook's programs, and ours among them, which variables were set to tell the hook something:
/// their names without the prefix `UDPFERRY_`, separated by blanks. Those are nobody's options.
pub const HOOK_VARIABLE: &str = "UDPFERRY_HOOK";

/// Reads the variable of an option; None when it is absent, empty, or turns a switch off.
pub(super) fn from_env(
    option: &'static Opt,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Option<Found>, UsageError> {
    // UDPFERRY_VERSION=1.2 in somebody's script must not print a version instead of serving.
    if matches!(option.canonical(), "--help" | "--version") {
        return Ok(None);
    }
    let subject = option.variable();
    if env(HOOK_VARIABLE).is_some_and(|told| is_named(&told, &subject)) {
        return Ok(None);
    }
    let Some(value) = env(&subject).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let split = || -> Vec<OsString> {
        let words = value.as_bytes().split(u8::is_ascii_whitespace);
        let words = words.filter(|word| !word.is_empty());
        words.map(|word| OsString::from_vec(word.to_vec())).collect()
    };
    let values = match option.takes {
        Takes::Nothing => {
            let word = lossy(&value);
            return match word.trim().to_ascii_lowercase().as_str() {
                "1" | "yes" | "true" | "on" => {
                    Ok(Some(Found { option, subject, values: Vec::new() }))
                }
                "" | "0" | "no" | "false" | "off" => Ok(None),
                _ => Err(UsageError::NotAllowed {
                    option: subject,
                    value: word,
                    allowed: "1, yes, true, on, 0, no, false or off".to_owned(),
                }),
            };
        }
        Takes::One(_) | Takes::Word(_) if option.times_max == 1 => vec![value.clone()],
        Takes::One(_) | Takes::Word(_) => split(),
        Takes::Two(first, second) => {
            let words = split();
            if words.len() % 2 != 0 {
                let allowed = format!("{first} {second}, separated by blanks");
                let value = lossy(&value);
                return Err(UsageError::NotAllowed { option: subject, value, allowed });
            }
            words
        }
    };
    if values.is_empty() { Ok(None) } else { Found::checked(option, subject, values).map(Some) }
}

fn is_named(told: &OsStr, variable: &str) -> bool {
    let told = told.to_string_lossy();
    told.split_whitespace().any(|name| variable.strip_prefix("UDPFERRY_") == Some(name))
}
