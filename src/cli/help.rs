//! The texts that the tables make: `--help`, man pages, bash completions.

use std::fmt::Write as _;

use super::table::{Command, Opt, Takes};

mod bash;

/// Help is for terminals of this width.
const COLUMNS: usize = 80;

/// Where the meaning of an option begins; longer spellings push it to the next line.
const HELP_COLUMN_MAX: usize = 30;

/// The date of the man pages: when their text last changed in substance.
const MAN_DATE: &str = "2026-11-21";

/// The text of `--help`, with a line feed at its end; no line but a long word passes 80 columns.
pub fn usage(command: &Command) -> String {
    let mut text = format!("Usage: {}\n", synopsis(command));
    if !command.about.is_empty() {
        text.push('\n');
        paragraph(&mut text, 0, command.about);
    }
    if !command.positionals.is_empty() {
        let rows = command.positionals.iter().map(|row| (row.name.to_owned(), row.help.to_owned()));
        table(&mut text, "Arguments", &rows.collect::<Vec<_>>());
    }
    for (heading, options) in command.sections {
        let rows: Vec<_> = options
            .iter()
            .map(|option| (spellings(option), format!("{}{}", option.help, remarks(option))))
            .collect();
        table(&mut text, heading, &rows);
    }
    if let Some(example) = variable_example(command) {
        text.push('\n');
        let variable = example.variable();
        let spelling = example.canonical();
        paragraph(
            &mut text,
            0,
            &format!(
                "Every option may also come from the environment: {variable} is {spelling}. The \
                 command line wins."
            ),
        );
    }
    if !command.examples.is_empty() {
        text.push_str("\nExamples:\n");
        for (line, meaning) in command.examples {
            command_line(&mut text, line);
            paragraph(&mut text, 6, meaning);
        }
    }
    text
}

fn synopsis(command: &Command) -> String {
    let mut text = format!("udpferry {}", command.name);
    if command.options().next().is_some() {
        text.push_str(" [OPTIONS]");
    }
    for row in command.positionals {
        // Writing to a String does not fail, here and below.
        let _ = if row.required {
            write!(text, " {}", row.name)
        } else {
            write!(text, " [{}]", row.name)
        };
    }
    text
}

/// Rows under a heading, their second column aligned.
fn table(text: &mut String, heading: &str, rows: &[(String, String)]) {
    let _ = writeln!(text, "\n{heading}:");
    let widest = rows.iter().map(|(left, _)| left.chars().count() + 4);
    let column = widest.filter(|width| *width <= HELP_COLUMN_MAX).max().unwrap_or(HELP_COLUMN_MAX);
    for (left, right) in rows {
        let width = left.chars().count() + 4;
        let mut wrapped = String::new();
        paragraph(&mut wrapped, column, right);
        let _ = if width <= column {
            writeln!(text, "  {left:<pad$}{}", wrapped.trim(), pad = column - 2)
        } else {
            write!(text, "  {left}\n{wrapped}")
        };
    }
}

/// Short spellings first, long ones in one column: `-h, --help`, `    --port PORT`.
fn spellings(option: &Opt) -> String {
    let (long, short): (Vec<&str>, Vec<&str>) =
        option.names.iter().partition(|name| name.starts_with("--"));
    let mut text = match (short.is_empty(), long.is_empty()) {
        (true, _) => "    ".to_owned(),
        (false, true) => short.join(", "),
        (false, false) => format!("{}, ", short.join(", ")),
    };
    text.push_str(&long.join(", "));
    match option.takes {
        Takes::Nothing => {}
        Takes::One(placeholder) => {
            let _ = write!(text, " {placeholder}");
        }
        Takes::Word(words) => {
            let _ = write!(text, "[={}]", words.join("|"));
        }
        Takes::Two(first, second) => {
            let _ = write!(text, " {first} {second}");
        }
    }
    text
}

fn remarks(option: &Opt) -> String {
    let mut text = String::new();
    if option.times_max > 1 {
        // No-break spaces keep a remark on one line until `paragraph` has wrapped it.
        let _ = write!(text, " [up\u{a0}to\u{a0}{}\u{a0}times]", option.times_max);
    }
    if let Some(default) = option.default {
        let _ = write!(text, " [default:\u{a0}{}]", default.replace(' ', "\u{a0}"));
    }
    text
}

/// An option that shows how variables are named.
fn variable_example(command: &Command) -> Option<&'static Opt> {
    let told = |option: &&Opt| !matches!(option.canonical(), "--help" | "--version");
    command.options().find(told)
}

/// Wraps words at 80 columns, every line indented.
fn paragraph(text: &mut String, indent: usize, words: &str) {
    let mut column = 0;
    for word in words.split([' ', '\n']).filter(|word| !word.is_empty()) {
        let width = word.chars().count();
        if column > 0 && column + 1 + width > COLUMNS {
            text.push('\n');
            column = 0;
        }
        if column == 0 {
            let _ = write!(text, "{:indent$}", "");
            column = indent;
        } else {
            text.push(' ');
            column += 1;
        }
        text.extend(word.chars().map(|char| if char == '\u{a0}' { ' ' } else { char }));
        column += width;
    }
    text.push('\n');
}

/// A command line, continued with backslashes before options so that it can be copied.
fn command_line(text: &mut String, line: &str) {
    let mut column = 2;
    text.push_str("  ");
    for (at, part) in line.split(" -").enumerate() {
        let width = part.chars().count() + 2;
        // Two columns stay free for the backslash.
        if at > 0 && column + width > COLUMNS - 2 {
            text.push_str(" \\\n      -");
            column = 5 + width;
        } else if at > 0 {
            text.push_str(" -");
            column += width;
        } else {
            column += width;
        }
        text.push_str(part);
    }
    text.push('\n');
}

/// The man page, section 8, in man(7) macros; `version` is the program's.
pub fn man(command: &Command, version: &str) -> String {
    let page = format!("udpferry-{}", command.name.replace(' ', "-"));
    let mut text = format!(
        ".TH {} 8 \"{MAN_DATE}\" \"udpferry {}\" \"System Manager's Manual\"\n",
        roff(&page.to_uppercase()),
        roff(version)
    );
    let _ = writeln!(text, ".SH NAME\n{} \\- {}", roff(&page), roff(command.summary));
    let _ = writeln!(text, ".SH SYNOPSIS\n.B udpferry {}", roff(command.name));
    if command.options().next().is_some() {
        text.push_str("[\\fIOPTIONS\\fR]\n");
    }
    for row in command.positionals {
        let name = roff(row.name);
        let _ = if row.required {
            writeln!(text, "\\fI{name}\\fR")
        } else {
            writeln!(text, "[\\fI{name}\\fR]")
        };
    }
    let about = if command.about.is_empty() { command.summary } else { command.about };
    let _ = writeln!(text, ".SH DESCRIPTION\n{}", roff(about));
    for row in command.positionals {
        let _ = writeln!(text, ".TP\n\\fI{}\\fR\n{}", roff(row.name), roff(row.help));
    }
    if command.options().next().is_some() {
        text.push_str(".SH OPTIONS\n");
    }
    for (heading, options) in command.sections {
        let _ = writeln!(text, ".SS \"{}\"", roff(heading).replace('"', "\\(dq"));
        for option in *options {
            man_option(&mut text, option);
        }
    }
    man_environment(&mut text, command);
    if is_service(command) {
        text.push_str(SIGNALS);
    }
    text.push_str(EXIT_STATUS);
    if !command.examples.is_empty() {
        text.push_str(".SH EXAMPLES\n");
        for (line, meaning) in command.examples {
            let _ = writeln!(text, ".TP\n\\fB{}\\fR\n{}", roff(line), roff(meaning));
        }
    }
    text.push_str(SEE_ALSO);
    text
}

const SIGNALS: &str = "\
.SH SIGNALS
.TP
.BR SIGTERM \", \" SIGINT
Stop.
A second one ends the program at once.
.TP
.B SIGHUP
Reopen the log file and reload certificates.
.TP
.B SIGUSR1
Log the counters.
";

const EXIT_STATUS: &str = "\
.SH EXIT STATUS
.TP
.B 0
Done, or stopped by request.
.TP
.B 1
Failed to start, or a fatal fault.
.TP
.B 2
Wrong usage: one line on standard error names the option, its value and what is allowed.
";

const SEE_ALSO: &str = "\
.SH SEE ALSO
.BR syslog (3),
.BR signal (7),
.BR systemd.exec (5),
.BR systemd.socket (5)
";

/// Whether it serves until a signal: such commands have the common options.
fn is_service(command: &Command) -> bool {
    command.option("--daemon").is_some()
}

fn man_option(text: &mut String, option: &Opt) {
    let names: Vec<String> =
        option.names.iter().map(|name| format!("\\fB{}\\fR", roff(name))).collect();
    let _ = write!(text, ".TP\n{}", names.join(", "));
    let _ = match option.takes {
        Takes::Nothing => Ok(()),
        Takes::One(value) => write!(text, " \\fI{}\\fR", roff(value)),
        Takes::Word(words) => write!(text, "[=\\fI{}\\fR]", roff(&words.join("|"))),
        Takes::Two(first, second) => write!(text, " \\fI{} {}\\fR", roff(first), roff(second)),
    };
    let _ = writeln!(text, "\n{}", roff(option.help));
    if option.times_max > 1 {
        let _ = writeln!(text, "May be given up to {} times.", option.times_max);
    }
    if let Some(default) = option.default {
        let _ = writeln!(text, "Default: {}.", roff(default));
    }
}

fn man_environment(text: &mut String, command: &Command) {
    let Some(example) = variable_example(command) else { return };
    let _ = writeln!(
        text,
        ".SH ENVIRONMENT\n.TP\n.BI UDPFERRY_ OPTION\nEvery option may also come from the \
         environment: \\fB{}\\fR is \\fB{}\\fR.\nSwitches take 1, yes, true or on, and 0, no, \
         false or off.\nOptions that may be given several times, or take two values, are split at \
         blanks.\nThe command line wins; an empty variable counts as absent, and so do those that \
         UDPFERRY_HOOK names, by which a hook is told what it is run for.",
        roff(&example.variable()),
        roff(example.canonical())
    );
    if is_service(command) {
        text.push_str(
            ".TP\n.B JOURNAL_STREAM\nSet by systemd: what is logged to standard error carries \
             priorities instead of times.\n",
        );
    }
}

/// Escapes text for troff: backslashes and dashes, and control characters at the start of a line.
fn roff(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for word in text.split(['\n', ' ']).filter(|word| !word.is_empty()) {
        if escaped.is_empty() {
            if word.starts_with(['.', '\'']) {
                escaped.push_str("\\&");
            }
        } else {
            escaped.push(' ');
        }
        for char in word.chars() {
            match char {
                '\\' => escaped.push_str("\\e"),
                '-' => escaped.push_str("\\-"),
                char => escaped.push(char),
            }
        }
    }
    escaped
}

/// A bash script that completes subcommands, options and file names, for the program and for the
/// symlinks in `aliases` (name of the symlink, name of the command).
pub fn bash_completions(commands: &[&'static Command], aliases: &[(&str, &str)]) -> String {
    bash::script(commands, aliases)
}

#[cfg(test)]
mod tests;
