//! Requests carried out, and their answers.

use super::control::Asker;
use super::mesh::Mesh;
use super::message::answer::{self, changes as shown_changes, done, page};
use super::message::request::{Operation, Unreadable, read};
use crate::state::mesh::refusal::Refusal;
use crate::state::mesh::set::Change;
use crate::state::mesh::tunnel::TunnelName;
use serde_json::{Map, Value};
use std::time::Instant;

/// An answer, which may have to wait until what it says is saved.
pub(super) enum Answer {
    /// As it will be sent.
    Ready(String),
    /// Something has changed.
    Changed(Map<String, Value>),
}

impl Mesh {
    /// Carries out a request; an answer is wanted by who gives an id, and at the Unix socket of
    /// every error.
    pub(super) fn handle(&mut self, now: Instant, asker: Asker, text: &[u8]) -> Option<Answer> {
        self.counters.requests.increment();
        let (id, result) = match read(text) {
            Ok(request) => {
                let id = request.id.unwrap_or_default();
                let result = self.carry_out(now, &id, asker.answer_len_max, request.operation);
                (id, result)
            }
            Err(unreadable) => {
                let Unreadable { id, refusal } = *unreadable;
                (id.unwrap_or_default(), Err(refusal))
            }
        };
        match result {
            Ok(answer) => Some(answer).filter(|_| !id.is_null()),
            Err(refusal) => {
                self.counters.requests_refused.increment();
                if let Some(held_back) = self.log.pass(now) {
                    log::warn!("request refused: {refusal} ({held_back} lines held back)");
                }
                let is_wanted = !id.is_null() || asker.is_told_errors;
                is_wanted.then(|| Answer::Ready(answer::refused(&id, &refusal)))
            }
        }
    }

    fn carry_out(
        &mut self,
        now: Instant,
        id: &Value,
        len_max: usize,
        operation: Operation,
    ) -> Result<Answer, Refusal> {
        let tells_state = matches!(operation, Operation::Add(_) | Operation::Update(_));
        let (changes, names): (Vec<Change>, Vec<TunnelName>) = match operation {
            Operation::Add(tunnels) => {
                let names = tunnels.iter().map(|tunnel| tunnel.name.clone()).collect();
                (self.set.add(tunnels)?, names)
            }
            Operation::Del(names) => (self.set.remove(&names)?, names),
            Operation::Update(patches) => {
                let applied = patches.iter().enumerate();
                let applied = applied.map(|(index, patch)| patch.applied(index, &self.set));
                let tunnels = applied.collect::<Result<Vec<_>, _>>()?;
                let names = tunnels.iter().map(|tunnel| tunnel.name.clone()).collect();
                (self.set.update(tunnels)?, names)
            }
            Operation::Apply { tunnels, dry_run } => {
                let names = tunnels.iter().map(|tunnel| tunnel.name.clone()).collect();
                let changes = self.set.replace(tunnels)?;
                if dry_run {
                    let object = with_changes(done(id), &changes, len_max);
                    return Ok(Answer::Ready(Value::Object(object).to_string()));
                }
                (changes, names)
            }
            Operation::List(after) => {
                let entries = self.set.after(after.as_ref());
                let entries = entries.filter_map(|tunnel| self.shown(now, tunnel));
                return Ok(Answer::Ready(page(done(id), entries, len_max)));
            }
            Operation::Stats(after) => {
                let entries = self.set.after(after.as_ref());
                let entries = entries.filter_map(|tunnel| self.stats(now, tunnel));
                return Ok(Answer::Ready(page(done(id), entries, len_max)));
            }
            Operation::Get(names) => {
                let found = names.iter().enumerate();
                let found = found.map(|(index, name)| self.set.existing(index, name));
                let found = found.collect::<Result<Vec<_>, _>>()?;
                let entries = found.into_iter().filter_map(|tunnel| self.shown(now, tunnel));
                return Ok(Answer::Ready(page(done(id), entries, len_max)));
            }
        };
        self.change(now, &changes, &names)?;
        let mut object = with_changes(done(id), &changes, len_max);
        if tells_state {
            self.add_states(now, &mut object, &names, len_max);
        }
        Ok(Answer::Changed(object))
    }

    /// Adds the tunnels as `get` shows them, where the answer does not get too long by it.
    fn add_states(
        &self,
        now: Instant,
        object: &mut Map<String, Value>,
        names: &[TunnelName],
        len_max: usize,
    ) {
        let tunnels = names.iter().filter_map(|name| self.set.get(name));
        let shown: Value = tunnels.filter_map(|tunnel| self.shown(now, tunnel)).collect();
        let len = |value: &Value| value.to_string().len();
        let before = object.get("changes").map_or(0, len);
        if before + len(&shown) + BESIDES_LEN <= len_max {
            object.insert("tunnel".to_owned(), shown);
        }
    }
}

/// Bytes of an answer beside its lists: the id, and the warning of what is not saved.
const BESIDES_LEN: usize = 256;

/// The answer with what changes; where that is too long, only how much.
fn with_changes(
    mut object: Map<String, Value>,
    changes: &[Change],
    len_max: usize,
) -> Map<String, Value> {
    object.insert("changed".to_owned(), changes.len().into());
    let shown = shown_changes(changes);
    if shown.to_string().len() + BESIDES_LEN <= len_max {
        object.insert("changes".to_owned(), shown);
    }
    object
}

impl Answer {
    /// About how many bytes it takes.
    pub(super) fn len(&self) -> usize {
        match self {
            Answer::Ready(text) => text.len(),
            // A line or two for each changed tunnel, of which the request had one.
            Answer::Changed(object) => object.len(),
        }
    }

    /// What is sent, once it is known whether the change has been saved.
    pub(super) fn text(self, saved: &Result<(), String>) -> String {
        match (self, saved) {
            (Answer::Ready(text), _) => text,
            (Answer::Changed(object), Ok(())) => Value::Object(object).to_string(),
            (Answer::Changed(mut object), Err(why)) => {
                object.insert("warning".to_owned(), why.as_str().into());
                Value::Object(object).to_string()
            }
        }
    }
}
