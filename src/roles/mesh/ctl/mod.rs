//! `meshctl`: the control program, as the seed's and beyond it.
//!
//! ```text
//!   args: what is wanted -> talk: Unix socket, or UDP, perhaps with a proof -> daemon
//!                                   |
//!   tables: for people      <-------+------->  --json: as it came
//! ```

mod args;
mod tables;
pub(super) mod talk;

pub use args::COMMAND;

use super::message::fields::FIELDS;
use crate::cli::flags::Matches;
use crate::error::Error;
use crate::roles::report::say;
use args::{Plan, Wanted};
use nix::poll::{PollTimeout, poll};
use serde_json::{Map, Value, json};
use std::io::{self, IsTerminal, Read};
use std::time::Duration;
use talk::Talk;

/// What a change of a tunnel may take: a device is made in some milliseconds, on a slow machine in more.
const EACH_CHANGE: Duration = Duration::from_millis(50);

/// Clears a terminal.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Runs the control program; returns the process's exit code.
pub fn run(matches: &Matches) -> Result<u8, Error> {
    let Plan { wanted, way, as_json } = args::plan(matches)?;
    let mut talk = Talk::begin(&way)?;
    match wanted {
        Wanted::List => show(&all(&mut talk, "list")?, as_json, tables::list)?,
        Wanted::Stats => show(&all(&mut talk, "stats")?, as_json, tables::stats)?,
        Wanted::Get(name) => {
            let answer = talk.ask(json!({ "op": "get", "tunnel": [{ "name": name }] }), true)?;
            show(&answer, as_json, tables::one)?;
        }
        Wanted::Export => {
            let mut tunnels = tunnels_of(&all(&mut talk, "list")?);
            tunnels.iter_mut().for_each(keep_wishes);
            say(&format!("{:#}\n", json!({ "tunnel": tunnels })))?;
        }
        Wanted::Change { op, tunnel } => {
            let answer = talk.ask(json!({ "op": op, "tunnel": [tunnel] }), false)?;
            tell_changes(&answer, as_json)?;
        }
        Wanted::Seed { op, tunnel, waits } => {
            let request = json!({ "op": op, "tunnel": [tunnel] });
            if waits {
                match talk.ask_seed(request)? {
                    Some(answer) => tell_changes(&answer, as_json)?,
                    None => say("sent; no answer, as the original daemon gives none\n")?,
                }
            } else {
                talk.send(&request)?;
            }
        }
        Wanted::Apply { file, dry_run } => {
            let tunnels = tunnels_in(&file)?;
            let request = json!({ "op": "apply", "tunnel": tunnels, "dryRun": true });
            let planned = talk.ask(request, true)?;
            if dry_run || changed(&planned) == Some(0) {
                tell_changes(&planned, as_json)?;
            } else {
                let changes = changed(&planned).and_then(|count| u32::try_from(count).ok());
                let longer = EACH_CHANGE.saturating_mul(changes.unwrap_or(0));
                let request = json!({ "op": "apply", "tunnel": tunnels });
                let answer = talk.ask_patiently(request, longer)?;
                tell_changes(&answer, as_json)?;
            }
        }
        Wanted::Watch { interval } => watch(&mut talk, interval, as_json)?,
    }
    Ok(0)
}

/// Every page of a list.
pub(super) fn all(talk: &mut Talk, op: &str) -> Result<Value, Error> {
    let mut tunnels: Vec<Value> = Vec::new();
    loop {
        let after = tunnels.last().and_then(|last| last.get("name")).cloned();
        let request = match after {
            None => json!({ "op": op }),
            Some(after) => json!({ "op": op, "after": after }),
        };
        let answer = talk.ask(request, true)?;
        let page = tunnels_of(&answer);
        let is_last = answer.get("more") != Some(&Value::Bool(true)) || page.is_empty();
        tunnels.extend(page);
        if is_last {
            return Ok(json!({ "tunnel": tunnels }));
        }
    }
}

pub(super) fn tunnels_of(answer: &Value) -> Vec<Value> {
    answer.get("tunnel").and_then(Value::as_array).cloned().unwrap_or_default()
}

/// Leaves what was wished for, without the state.
fn keep_wishes(tunnel: &mut Value) {
    if let Value::Object(object) = tunnel {
        let wishes = FIELDS.iter().filter_map(|field| object.remove_entry(*field));
        *object = wishes.collect::<Map<String, Value>>();
    }
}

/// The tunnels of a file that `export` has written, or of a list of them alone.
fn tunnels_in(file: &str) -> Result<Value, Error> {
    let doing = || format!("cannot read {file}");
    let mut text = String::new();
    match file {
        "-" => io::stdin().lock().read_to_string(&mut text).map(drop),
        path => std::fs::read_to_string(path).map(|read| text = read),
    }
    .map_err(Error::while_doing(doing))?;
    let value: Value =
        serde_json::from_str(&text).map_err(io::Error::other).map_err(Error::while_doing(doing))?;
    let tunnels = match value {
        Value::Array(_) => Some(value),
        Value::Object(mut object) => object.remove("tunnel").filter(Value::is_array),
        _ => None,
    };
    tunnels
        .ok_or_else(|| io::Error::other("it is neither a list of tunnels nor {\"tunnel\": [...]}"))
        .map_err(Error::while_doing(doing))
}

fn show(answer: &Value, as_json: bool, table: fn(&[Value]) -> String) -> Result<(), Error> {
    if as_json {
        return say(&format!("{:#}\n", json!({ "tunnel": tunnels_of(answer) })));
    }
    say(&table(&tunnels_of(answer)))
}

fn changed(answer: &Value) -> Option<u64> {
    answer.get("changed").and_then(Value::as_u64)
}

fn tell_changes(answer: &Value, as_json: bool) -> Result<(), Error> {
    if as_json {
        return say(&format!("{answer:#}\n"));
    }
    say(&tables::changes(answer))
}

fn watch(talk: &mut Talk, interval: Duration, as_json: bool) -> Result<(), Error> {
    let clears = io::stdout().is_terminal() && !as_json;
    loop {
        let tunnels = all(talk, "list")?;
        if clears {
            say(CLEAR)?;
        }
        if as_json {
            // One line for each look, for programs that follow.
            say(&format!("{tunnels}\n"))?;
        } else {
            show(&tunnels, false, tables::list)?;
        }
        let pause = PollTimeout::try_from(interval).unwrap_or(PollTimeout::MAX);
        // poll(2) on nothing. A signal that does not end us only makes the pause shorter.
        let _ = poll(&mut [], pause);
    }
}
