//! What the words on the command line mean.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use udpferry::cli::flags::{self, Parsed, UsageError};
use udpferry::cli::help;
use udpferry::cli::table::{Command, Opt};
use udpferry::error::Error;
use udpferry::roles::mesh::ctl;
use udpferry::roles::peer::key_commands;
use udpferry::roles::{self, Program, ROLES, Role, vpn};
use udpferry::runtime::daemon;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const PROGRAM: &str = "udpferry";
const VARIABLE_PREFIX: &str = "UDPFERRY_";

/// Commands that are no role's.
const OTHERS: &[(&Command, Program)] = &[
    (&key_commands::KEYGEN, key_commands::keygen),
    (&key_commands::PUBKEY, key_commands::pubkey),
    (&ctl::COMMAND, ctl::run),
    (&vpn::STATUS, vpn::status),
    (&vpn::CONFIRM, vpn::confirm),
    (&vpn::DOWN, vpn::down),
    (&roles::SELFTEST, roles::selftest),
];

/// Names of symlinks to the binary that start commands that are no role's.
const OTHER_ALIASES: &[(&str, &Command)] = &[("udpProxyServerControl", &ctl::COMMAND)];

/// What a symlink's name says that an option must say otherwise: whoever calls the daemon by its old
/// name knows what it did.
const IMPLIED: &[(&str, &str)] = &[("udpProxyServer", "--plaintext")];

/// Runs the program called `name` with `args`; returns the process's exit code.
pub(crate) fn run(name: &str, args: Vec<OsString>) -> Result<u8, Error> {
    if let Some(role) = ROLES.iter().find(|role| role.aliases.contains(&name)) {
        return run_role(role, with_implied(name, args));
    }
    if let Some((_, command)) = OTHER_ALIASES.iter().find(|(alias, _)| *alias == name) {
        if let Some((command, program)) = OTHERS.iter().find(|row| row.0.name == command.name) {
            return run_command(command, args, *program);
        }
    }
    let mut args = args.into_iter();
    let Some(word) = args.next() else {
        return say(&overview());
    };
    let mut rest: Vec<OsString> = args.collect();
    let word = word.to_string_lossy();
    if let Some(role) = role_named(&word) {
        return run_role(role, rest);
    }
    if let Some(second) = rest.first() {
        let words = format!("{word} {}", second.to_string_lossy());
        if let Some(role) = role_named(&words) {
            rest.remove(0);
            return run_role(role, rest);
        }
        if let Some((command, program)) = other_named(&words) {
            rest.remove(0);
            return run_command(command, rest, program);
        }
    }
    match &*word {
        "help" if !rest.is_empty() => {
            let command = command_named(&rest)?;
            say(&help::usage(command))
        }
        "help" | "-h" | "--help" => say(&overview()),
        "version" | "-V" | "--version" => say(&format!("{PROGRAM} {VERSION}\n")),
        "man" => say(&help::man(command_named(&rest)?, VERSION)),
        "completions" => completions(&rest),
        "check" => check(rest),
        other => {
            if let Some((command, program)) = other_named(other) {
                return run_command(command, rest, program);
            }
            let roles = ROLES.iter().map(|role| role.command.name).chain(["check"]);
            let others = OTHERS.iter().map(|row| row.0.name);
            let words: Vec<_> = roles.chain(others).collect();
            Err(unexpected(other, &format!("{}, help, man, completions", words.join(", "))))
        }
    }
}

fn run_role(role: &'static Role, args: Vec<OsString>) -> Result<u8, Error> {
    refuse_unknown_variables()?;
    run_command(role.command, args, role.run)
}

fn with_implied(name: &str, mut args: Vec<OsString>) -> Vec<OsString> {
    let implied = IMPLIED.iter().filter(|(alias, _)| *alias == name);
    for (_, option) in implied {
        if !args.iter().any(|arg| arg == option) {
            args.insert(0, (*option).into());
        }
    }
    args
}

fn check(args: Vec<OsString>) -> Result<u8, Error> {
    let mut args = args.into_iter();
    let word = args.next().unwrap_or_default();
    let name = format!("check {}", word.to_string_lossy());
    let found = ROLES.iter().filter_map(|role| role.check).find(|check| check.0.name == name);
    let (command, program) = found.ok_or_else(|| {
        let checks = ROLES.iter().filter_map(|role| role.check).map(|check| check.0.name);
        let checks = checks.collect::<Vec<_>>().join(", ");
        unexpected(&word.to_string_lossy(), &format!("check and a role: {checks}"))
    })?;
    run_command(command, args.collect(), program)
}

fn run_command(command: &'static Command, args: Vec<OsString>, run: Program) -> Result<u8, Error> {
    match flags::parse(command, args, &|name| env::var_os(name))? {
        Parsed::Help => say(&help::usage(command)),
        Parsed::Version => say(&format!("{PROGRAM} {VERSION}\n")),
        Parsed::Run(matches) => run(&matches),
    }
}

fn role_named(name: &str) -> Option<&'static Role> {
    ROLES.iter().find(|role| role.command.name == name)
}

fn other_named(name: &str) -> Option<(&'static Command, Program)> {
    OTHERS.iter().find(|row| row.0.name == name).copied()
}

fn all_commands() -> Vec<&'static Command> {
    let roles = ROLES.iter().map(|role| role.command);
    let checks = ROLES.iter().filter_map(|role| role.check).map(|check| check.0);
    roles.chain(checks).chain(OTHERS.iter().map(|row| row.0)).collect()
}

/// `udpgw`, or `check udpgw`.
fn command_named(words: &[OsString]) -> Result<&'static Command, Error> {
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let name = words.join(" ");
    all_commands().into_iter().find(|command| command.name == name).ok_or_else(|| {
        let names: Vec<_> = all_commands().iter().map(|command| command.name).collect();
        unexpected(&name, &format!("one of {}", names.join(", ")))
    })
}

fn completions(args: &[OsString]) -> Result<u8, Error> {
    match args {
        [shell] if shell == "bash" => {
            let aliases = ROLES
                .iter()
                .flat_map(|role| role.aliases.iter().map(|alias| (*alias, role.command.name)));
            let others = OTHER_ALIASES.iter().map(|(alias, command)| (*alias, command.name));
            let aliases: Vec<(&str, &str)> = aliases.chain(others).collect();
            say(&help::bash_completions(&all_commands(), &aliases))
        }
        [] => Err(unexpected("", "completions bash")),
        [shell, ..] => Err(unexpected(&shell.to_string_lossy(), "completions bash")),
    }
}

fn overview() -> String {
    let mut text = format!(
        "{PROGRAM} {VERSION}: carries UDP where UDP cannot go\n\nUsage: {PROGRAM} COMMAND [OPTION]...\n\nCommands:\n"
    );
    let commands = all_commands().into_iter().map(|command| (command.name, command.summary));
    let texts = [
        ("help ROLE", "every option of a role"),
        ("man ROLE", "the manual page, for man(1)"),
        ("completions bash", "command line completion for bash"),
    ];
    for (name, summary) in commands.chain(texts) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<18} {summary}");
    }
    text
}

/// A misspelt variable would else be as if it were not there.
fn refuse_unknown_variables() -> Result<(), Error> {
    let known: Vec<String> = all_commands()
        .iter()
        .flat_map(|command| command.options())
        .map(Opt::variable)
        .chain([daemon::MARKER.to_owned()])
        .collect();
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with(VARIABLE_PREFIX) && !known.iter().any(|known| *known == name) {
            return Err(Error::Usage(UsageError::Unknown {
                option: name.into_owned(),
                nearest: None,
            }));
        }
    }
    Ok(())
}

fn unexpected(word: &str, allowed: &str) -> Error {
    Error::Usage(UsageError::NotAllowed {
        option: "command".to_owned(),
        value: word.to_owned(),
        allowed: allowed.to_owned(),
    })
}

fn say(text: &str) -> Result<u8, Error> {
    // A reader that has seen enough (`| head`) is no failure.
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::System { doing: "cannot write to standard output".to_owned(), cause: error })
        }
        _ => Ok(0),
    }
}
