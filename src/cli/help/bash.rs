//! The bash completion script. It holds lists alone; its logic is the constant text below.

use std::fmt::Write as _;

use super::super::table::{Command, Takes};

/// A bash script that completes subcommands, options and file names, for the program and for the
/// symlinks in `aliases` (name of the symlink, name of the command).
pub(super) fn script(commands: &[&'static Command], aliases: &[(&str, &str)]) -> String {
    let firsts = first_words(commands);
    let mut text = COMPLETION_START.to_owned();
    for (symlink, name) in aliases {
        let _ = writeln!(text, "        '{symlink}') command='{name}' ;;");
    }
    let _ = writeln!(text, "        *) case $count:${{words[1]-}} in");
    let _ = writeln!(text, "            1:*) subcommands='{}' ;;", firsts.join(" "));
    for first in firsts {
        let seconds = second_words(commands, first);
        let _ = if seconds.is_empty() {
            writeln!(text, "            *:'{first}') command='{first}' ;;")
        } else {
            let seconds = seconds.join(" ");
            writeln!(text, "            2:'{first}') subcommands='{seconds}' ;;").and_then(|()| {
                writeln!(text, "            *:'{first}') command=\"{first} ${{words[2]}}\" ;;")
            })
        };
    }
    text.push_str(COMPLETION_OPTIONS);
    for command in commands {
        let names = |wanted: fn(Takes) -> bool| -> String {
            let options = command.options().filter(|option| wanted(option.takes));
            // A blank on both sides of each name makes the list searchable by `*" name "*`.
            options
                .flat_map(|option| option.names)
                .fold(" ".to_owned(), |list, name| list + name + " ")
        };
        let _ = write!(
            text,
            "        '{}')\n            options='{}'\n            files='{}'\n            \
             dirs='{}'\n            values='{}'\n            pairs='{}'",
            command.name,
            names(|_| true),
            names(|takes| takes == Takes::One("FILE")),
            names(|takes| takes == Takes::One("DIR")),
            names(|takes| !matches!(takes, Takes::Nothing | Takes::Word(_))),
            names(|takes| matches!(takes, Takes::Two(_, _))),
        );
        for option in command.options() {
            let Takes::Word(words) = option.takes else { continue };
            let (names, words) = (option.names.join("|"), words.join(" "));
            // Another option may follow as well.
            let _ = write!(
                text,
                "\n            case ${{words[count - 1]}} in {names}) options+='{words} ' ;; esac"
            );
        }
        text.push_str(" ;;\n");
    }
    text.push_str(COMPLETION_END);
    let _ = write!(text, "complete -F _udpferry udpferry");
    for (symlink, _) in aliases {
        let _ = write!(text, " '{symlink}'");
    }
    text.push('\n');
    text
}

const COMPLETION_START: &str = r#"# bash completion for udpferry

_udpferry() {
    local cur word count command='' subcommands=''
    local options files dirs values pairs prev before
    local -a words=()
    COMPREPLY=()
    # Bash splits --option=value at the equals sign.
    for word in "${COMP_WORDS[@]:0:COMP_CWORD}"; do
        [[ $word == '=' ]] || words+=("$word")
    done
    cur=${COMP_WORDS[COMP_CWORD]}
    [[ $cur == '=' ]] && cur=''
    count=${#words[@]}
    case ${words[0]##*/} in
"#;

const COMPLETION_OPTIONS: &str = r#"        esac ;;
    esac
    if [[ -n $subcommands ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$subcommands" -- "$cur")
        return
    fi
    case $command in
"#;

const COMPLETION_END: &str = r#"        *) return ;;
    esac
    prev=${words[count - 1]}
    before=''
    ((count < 2)) || before=${words[count - 2]}
    if [[ $files == *" $prev "* ]]; then
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    elif [[ $dirs == *" $prev "* ]]; then
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -d -- "$cur")
    elif [[ $values != *" $prev "* && $pairs != *" $before "* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
    fi
}

"#;

fn first_words(commands: &[&'static Command]) -> Vec<&'static str> {
    let mut words: Vec<&str> = Vec::new();
    for word in commands.iter().filter_map(|command| command.name.split(' ').next()) {
        if !words.contains(&word) {
            words.push(word);
        }
    }
    words
}

fn second_words(commands: &[&'static Command], first: &str) -> Vec<&'static str> {
    let names = commands.iter().filter_map(|command| command.name.split_once(' '));
    names.filter(|(word, _)| *word == first).map(|(_, second)| second).collect()
}
