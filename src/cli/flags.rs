//! From the words of a command line and the environment to the rows of a [`Command`]'s table.
//!
//! pico-args extracts; `spelling` first rewrites the words so that its traps cannot spring:
//! it would take `--a --b` as option `--a` with value `--b`, strip quotes from `--a="b"`, refuse
//! spellings such as `-dp` and `-n2`, look past `--`, and leave repeats for somebody else to find.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;

use super::table::{Command, Opt, Takes};

mod environment;
mod spelling;

pub use environment::HOOK_VARIABLE;
use environment::from_env;
use spelling::spell_out;

/// How much of a wrong value an error shows.
const SHOWN_CHARS_MAX: usize = 100;

/// What a command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// `-h` or `--help`: print the help text.
    Help,
    /// `-V` or `--version`: print the version.
    Version,
    /// Do what the command does.
    Run(Matches),
}

/// The options and arguments of one command line, environment included; values are unparsed.
#[derive(Debug)]
pub struct Matches {
    command: &'static Command,
    found: Vec<Found>,
    positionals: Vec<String>,
}

/// One option that stands on the command line or in the environment.
#[derive(Debug)]
struct Found {
    option: &'static Opt,
    /// What errors call it: the canonical spelling, or the variable.
    subject: String,
    /// Two per occurrence when the option takes two; none for a switch.
    values: Vec<OsString>,
}

/// What is wrong with a command line: one line when displayed, without the program's name.
/// `option` is the canonical spelling, the name of a variable, or a positional's placeholder.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // The fields say it, and Display says the rest.
pub enum UsageError {
    /// No such option; the nearest spelling when it is near enough.
    Unknown { option: String, nearest: Option<&'static str> },
    /// A single option stands there twice.
    Repeated { option: String },
    /// More occurrences than the table allows.
    TooMany { option: String, max: usize },
    /// No value, or another option in its place.
    NeedsValue { option: String, placeholder: String, found: Option<String> },
    /// `--switch=value`.
    TakesNoValue { option: String, value: String },
    /// The value is not one of those that `allowed` describes.
    NotAllowed { option: String, value: String, allowed: String },
    /// An option or argument that must be there is not.
    Missing { option: String, placeholder: String },
    /// An argument more than the command takes.
    Unexpected { value: String },
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { option, nearest: None } => {
                write!(f, "{}: unknown option", shown(option))
            }
            Self::Unknown { option, nearest: Some(nearest) } => {
                write!(f, "{}: unknown option, did you mean {nearest}?", shown(option))
            }
            Self::Repeated { option } => write!(f, "{option}: may be given only once"),
            Self::TooMany { option, max } => {
                write!(f, "{option}: may be given at most {max} times")
            }
            Self::NeedsValue { option, placeholder, found: None } => {
                write!(f, "{option}: needs a value: {placeholder}")
            }
            Self::NeedsValue { option, placeholder, found: Some(found) } => {
                write!(f, "{option}: needs a value, not {}: {placeholder}", quoted(found))
            }
            Self::TakesNoValue { option, value } => {
                write!(f, "{option}: {} is not allowed: it takes no value", quoted(value))
            }
            Self::NotAllowed { option, value, allowed } => {
                write!(f, "{option}: {} is not allowed: {allowed}", quoted(value))
            }
            Self::Missing { option, placeholder } if placeholder.is_empty() => {
                write!(f, "{option}: is required")
            }
            Self::Missing { option, placeholder } => {
                write!(f, "{option}: is required: {placeholder}")
            }
            Self::Unexpected { value } => {
                write!(f, "{} is not allowed: no further argument is expected", quoted(value))
            }
        }
    }
}

impl std::error::Error for UsageError {}

/// Reads a command line (without the program's and the command's name) and, for the options that
/// are absent from it, the environment through `env`.
pub fn parse(
    command: &'static Command,
    args: Vec<OsString>,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Parsed, UsageError> {
    let mut args = args;
    let rest = match args.iter().position(|arg| arg == "--") {
        Some(at) => args.split_off(at).split_off(1),
        None => Vec::new(),
    };
    if args.iter().any(|arg| arg == "-h" || arg == "--help") {
        return Ok(Parsed::Help);
    }
    if args.iter().any(|arg| arg == "-V" || arg == "--version") {
        return Ok(Parsed::Version);
    }
    debug_assert!(
        command.options().all(|option| option.canonical().starts_with("--")),
        "an option of {} has no long spelling",
        command.name
    );
    let mut arguments = pico_args::Arguments::from_vec(spell_out(command, args)?);
    let mut found = Vec::new();
    // Values before switches: a switch never stands where a value is expected.
    let (switches, valued): (Vec<&Opt>, Vec<&Opt>) =
        command.options().partition(|option| option.takes == Takes::Nothing);
    for option in valued {
        let keep = |value: &OsStr| Ok::<_, std::convert::Infallible>(value.to_owned());
        let values = arguments.values_from_os_str(option.canonical(), keep);
        let values = values.map_err(|_| needs_value(option, None))?;
        if !values.is_empty() {
            let subject = option.canonical().to_owned();
            found.push(Found::checked(option, subject, values)?);
        } else if let Some(of_env) = from_env(option, env)? {
            found.push(of_env);
        }
    }
    for option in switches {
        let subject = option.canonical().to_owned();
        if arguments.contains(option.canonical()) {
            if arguments.contains(option.canonical()) {
                return Err(UsageError::Repeated { option: subject });
            }
            found.push(Found { option, subject, values: Vec::new() });
        } else if let Some(of_env) = from_env(option, env)? {
            found.push(of_env);
        }
    }
    let positionals = positionals(command, arguments.finish().into_iter().chain(rest))?;
    Ok(Parsed::Run(Matches { command, found, positionals }))
}

fn needs_value(option: &Opt, found: Option<String>) -> UsageError {
    let placeholder = match option.takes {
        Takes::Nothing => String::new(),
        Takes::One(placeholder) => placeholder.to_owned(),
        Takes::Word(words) => words.join("|"),
        Takes::Two(first, second) => format!("{first} {second}"),
    };
    UsageError::NeedsValue { option: option.canonical().to_owned(), placeholder, found }
}

fn positionals(
    command: &'static Command,
    words: impl Iterator<Item = OsString>,
) -> Result<Vec<String>, UsageError> {
    let mut positionals = Vec::new();
    for word in words {
        let Some(row) = command.positionals.get(positionals.len()) else {
            return Err(UsageError::Unexpected { value: lossy(&word) });
        };
        positionals.push(utf8(row.name, &word)?.to_owned());
    }
    match command.positionals.get(positionals.len()).filter(|row| row.required) {
        Some(row) => {
            let placeholder = row.help.trim_end_matches('.').to_owned();
            Err(UsageError::Missing { option: row.name.to_owned(), placeholder })
        }
        None => Ok(positionals),
    }
}

impl Found {
    /// Checks how often the option stands there.
    fn checked(
        option: &'static Opt,
        subject: String,
        values: Vec<OsString>,
    ) -> Result<Found, UsageError> {
        let per_time = if matches!(option.takes, Takes::Two(_, _)) { 2 } else { 1 };
        match (values.len() / per_time, option.times_max) {
            (times, max) if times <= max => Ok(Found { option, subject, values }),
            (_, 1) => Err(UsageError::Repeated { option: subject }),
            (_, max) => Err(UsageError::TooMany { option: subject, max }),
        }
    }
}

impl Matches {
    /// The command that was parsed for.
    pub fn command_name(&self) -> &'static str {
        self.command.name
    }

    /// Whether a switch is on.
    pub fn flag(&self, name: &str) -> bool {
        self.given(name)
    }

    /// The value of a single option, or its default, through `parse`; None when it has neither.
    /// `parse` answers a wrong text with what is allowed: "a number from 1 to 65535".
    pub fn one<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, UsageError> {
        let (subject, values) = self.values(name)?;
        values.last().map(|value| parsed(subject, value, &parse)).transpose()
    }

    /// As [`Matches::one`] for text in which a secret may be: no error shows it, but `shown` in its
    /// place.
    pub fn hidden(&self, name: &str, shown: &str) -> Result<Option<String>, UsageError> {
        self.one(name, |text| Ok(text.to_owned())).map_err(|error| match error {
            UsageError::NotAllowed { option, allowed, .. } => {
                UsageError::NotAllowed { option, value: shown.to_owned(), allowed }
            }
            other => other,
        })
    }

    /// As [`Matches::one`], for an option that has a default or must be given.
    pub fn required<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, UsageError> {
        self.one(name, parse)?.ok_or_else(|| UsageError::Missing {
            option: name.to_owned(),
            placeholder: match self.row(name).map(|option| option.takes) {
                Some(Takes::One(placeholder)) => placeholder.to_owned(),
                _ => String::new(),
            },
        })
    }

    /// The values of a repeatable option in their order, or its defaults (separated by blanks).
    pub fn many<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, UsageError> {
        let (subject, values) = self.values(name)?;
        values.iter().map(|value| parsed(subject, value, &parse)).collect()
    }

    /// The values of an option that takes two, in their order.
    pub fn pairs<T>(
        &self,
        name: &str,
        parse: impl Fn(&str, &str) -> Result<T, String>,
    ) -> Result<Vec<T>, UsageError> {
        let (subject, values) = self.values(name)?;
        let pairs = values.chunks_exact(2).map(|pair| {
            parse(pair[0], pair[1]).map_err(|allowed| UsageError::NotAllowed {
                option: subject.to_owned(),
                value: pair.join(" "),
                allowed,
            })
        });
        pairs.collect()
    }

    /// The value as a path, which need not be UTF-8.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        let row = self.row(name)?;
        match self.found(row).and_then(|found| found.values.last()) {
            Some(value) => Some(PathBuf::from(value)),
            None => row.default.map(PathBuf::from),
        }
    }

    /// The argument at this place, counted from 0.
    pub fn positional(&self, index: usize) -> Option<&str> {
        self.positionals.get(index).map(String::as_str)
    }

    /// Whether the command line or the environment has the option. A switch that a variable turns
    /// off is not given.
    pub fn given(&self, name: &str) -> bool {
        self.row(name).and_then(|row| self.found(row)).is_some()
    }

    /// The error for a value that is wrong beside another option: the option and its value are
    /// said as they were given, `allowed` says what would do.
    pub fn wrong(&self, name: &str, allowed: &str) -> UsageError {
        let row = self.row(name);
        let found = row.and_then(|row| self.found(row));
        let words: Vec<String> = match (found, row.and_then(|row| row.default)) {
            (Some(found), _) => found.values.iter().map(|value| lossy(value)).collect(),
            (None, default) => default.into_iter().map(str::to_owned).collect(),
        };
        let option = found.map_or(name, |found| found.subject.as_str()).to_owned();
        UsageError::NotAllowed { option, value: words.join(" "), allowed: allowed.to_owned() }
    }

    fn row(&self, name: &str) -> Option<&'static Opt> {
        let row = self.command.option(name);
        debug_assert!(row.is_some(), "{name} is not in the table of {}", self.command.name);
        row
    }

    fn found(&self, row: &Opt) -> Option<&Found> {
        self.found.iter().find(|found| found.option.canonical() == row.canonical())
    }

    /// What errors call the option, and its values or else its defaults.
    fn values<'a>(&'a self, name: &'a str) -> Result<(&'a str, Vec<&'a str>), UsageError> {
        let Some(row) = self.row(name) else { return Ok((name, Vec::new())) };
        if let Some(found) = self.found(row) {
            let values = found.values.iter().map(|value| utf8(&found.subject, value));
            return Ok((&found.subject, values.collect::<Result<_, _>>()?));
        }
        let single = row.times_max == 1 && matches!(row.takes, Takes::One(_));
        Ok(match row.default {
            None => (name, Vec::new()),
            Some(default) if single => (name, vec![default]),
            Some(default) => (name, default.split_whitespace().collect()),
        })
    }
}

fn parsed<T>(
    subject: &str,
    value: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, UsageError> {
    parse(value).map_err(|allowed| UsageError::NotAllowed {
        option: subject.to_owned(),
        value: value.to_owned(),
        allowed,
    })
}

fn utf8<'a>(subject: &str, value: &'a OsStr) -> Result<&'a str, UsageError> {
    value.to_str().ok_or_else(|| UsageError::NotAllowed {
        option: subject.to_owned(),
        value: lossy(value),
        allowed: "text in UTF-8".to_owned(),
    })
}

fn lossy(text: &OsStr) -> String {
    text.to_string_lossy().into_owned()
}

/// The text in quotes, control characters escaped, cut where nobody reads on.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((at, _)) => format!("{:?}", format_args!("{}...", &text[..at]).to_string()),
        None => format!("{text:?}"),
    }
}

fn shown(text: &str) -> String {
    let quoted = quoted(text);
    quoted.trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests;
