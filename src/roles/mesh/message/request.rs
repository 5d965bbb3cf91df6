//! What a controller wants.

use super::fields::{changed, read_name, read_tunnel, written};
use crate::state::mesh::refusal::{Reason, Refusal};
use crate::state::mesh::set::TunnelSet;
use crate::state::mesh::tunnel::{Tunnel, TunnelName};
use serde_json::{Map, Value, json};

/// Bytes of an id that is a string: it comes back in every answer.
const ID_LEN_MAX: usize = 64;

/// A request that can be read.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Whoever gives one wants an answer, which has it too.
    pub id: Option<Value>,
    /// What is wanted.
    pub operation: Operation,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    /// `add`: these tunnels beside those that are there.
    Add(Vec<Tunnel>),
    /// `del`: none of these names any more.
    Del(Vec<TunnelName>),
    /// `update`: the tunnels of these names, with the fields that are given.
    Update(Vec<Patch>),
    /// `apply`: these tunnels and no others.
    Apply {
        /// All that there shall be.
        tunnels: Vec<Tunnel>,
        /// Only say what would change.
        dry_run: bool,
    },
    /// `list`: every tunnel behind that name, or from the first.
    List(Option<TunnelName>),
    /// `get`: the tunnels of these names.
    Get(Vec<TunnelName>),
    /// `stats`: what was counted for the tunnels behind that name, or from the first.
    Stats(Option<TunnelName>),
}

impl Operation {
    /// Whether it can change anything.
    pub fn changes(&self) -> bool {
        match self {
            Operation::Add(_) | Operation::Del(_) | Operation::Update(_) => true,
            Operation::Apply { dry_run, .. } => !dry_run,
            Operation::List(_) | Operation::Get(_) | Operation::Stats(_) => false,
        }
    }
}

/// Fields of a tunnel that are to change.
#[derive(Debug, Clone, PartialEq)]
pub struct Patch {
    /// Whose.
    pub name: TunnelName,
    given: Map<String, Value>,
}

impl Patch {
    /// The tunnel as it shall be; `index` is the patch's place in its request.
    pub fn applied(&self, index: usize, set: &TunnelSet) -> Result<Tunnel, Refusal> {
        changed(index, set.existing(index, &self.name)?, &self.given)
    }
}

/// A request that cannot be read, or does not mean anything.
#[derive(Debug, Clone, PartialEq)]
pub struct Unreadable {
    /// For the answer.
    pub id: Option<Value>,
    /// Why.
    pub refusal: Refusal,
}

/// Reads a request.
pub fn read(text: &[u8]) -> Result<Request, Box<Unreadable>> {
    let without_id = |field: &str, allowed| {
        let refusal = Refusal::new(field, Reason::NotAllowed(allowed));
        Box::new(Unreadable { id: None, refusal })
    };
    let value = serde_json::from_slice(text);
    let Ok(Value::Object(object)) = value else {
        return Err(without_id("request", "one JSON object"));
    };
    let id = match object.get("id") {
        None | Some(Value::Null) => None,
        Some(id) if is_id(id) => Some(id.clone()),
        Some(_) => {
            return Err(without_id("id", "a whole number, or a string of 64 bytes at most"));
        }
    };
    match operation(&object) {
        Ok(operation) => Ok(Request { id, operation }),
        Err(refusal) => Err(Box::new(Unreadable { id, refusal })),
    }
}

fn is_id(id: &Value) -> bool {
    id.is_u64() || id.is_i64() || id.as_str().is_some_and(|text| text.len() <= ID_LEN_MAX)
}

fn operation(object: &Map<String, Value>) -> Result<Operation, Refusal> {
    let fields: &[&str] = match object.get("op") {
        None | Some(Value::Null) => return Err(Refusal::new("op", Reason::Missing)),
        Some(Value::String(op)) => match op.as_str() {
            "add" | "del" | "update" | "get" => &["tunnel"],
            "apply" => &["tunnel", "dryRun"],
            "list" | "stats" => &["after"],
            _ => return Err(Refusal::new("op", Reason::NotAllowed(OPERATIONS))),
        },
        Some(_) => return Err(Refusal::new("op", Reason::NotAllowed(OPERATIONS))),
    };
    let known = |field: &&String| {
        ["op", "id"].contains(&field.as_str()) || fields.contains(&field.as_str())
    };
    if let Some(unknown) = object.keys().find(|field| !known(field)) {
        return Err(Refusal::new(unknown.clone(), Reason::Unknown));
    }
    match object.get("op").and_then(Value::as_str).unwrap_or_default() {
        "add" => Ok(Operation::Add(each(object, 1, read_tunnel)?)),
        // The seed's control program sends all fields, of which only the name counts.
        "del" => Ok(Operation::Del(each(object, 1, read_name)?)),
        "update" => Ok(Operation::Update(each(object, 1, |index, given| {
            Ok(Patch { name: read_name(index, given)?, given: given.clone() })
        })?)),
        "apply" => Ok(Operation::Apply {
            tunnels: each(object, 0, read_tunnel)?,
            dry_run: match object.get("dryRun") {
                None | Some(Value::Null) => false,
                Some(Value::Bool(dry_run)) => *dry_run,
                Some(_) => return Err(Refusal::new("dryRun", Reason::NotAllowed("true or false"))),
            },
        }),
        "get" => Ok(Operation::Get(each(object, 1, read_name)?)),
        "list" => Ok(Operation::List(after(object)?)),
        _ => Ok(Operation::Stats(after(object)?)),
    }
}

const OPERATIONS: &str = "add, del, update, apply, list, get or stats";

/// The tunnels of a request, at least `min`.
fn each<T>(
    object: &Map<String, Value>,
    min: usize,
    read: impl Fn(usize, &Map<String, Value>) -> Result<T, Refusal>,
) -> Result<Vec<T>, Refusal> {
    let wrong = |field: String, allowed| Refusal::new(field, Reason::NotAllowed(allowed));
    let items = match object.get("tunnel") {
        None | Some(Value::Null) => return Err(Refusal::new("tunnel", Reason::Missing)),
        Some(Value::Array(items)) if items.len() >= min => items,
        Some(_) => return Err(wrong("tunnel".to_owned(), "a list of tunnels")),
    };
    let read = |(index, item): (usize, &Value)| match item {
        Value::Object(object) => read(index, object),
        _ => Err(wrong(format!("tunnel[{index}]"), "a JSON object")),
    };
    items.iter().enumerate().map(read).collect()
}

fn after(object: &Map<String, Value>) -> Result<Option<TunnelName>, Refusal> {
    match object.get("after") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_str().and_then(TunnelName::new) {
            Some(name) => Ok(Some(name)),
            None => Err(Refusal::new("after", Reason::NotAllowed(TunnelName::ALLOWED))),
        },
    }
}

/// Writes a request as a controller sends it.
pub fn write(request: &Request) -> String {
    let names = |names: &[TunnelName]| -> Value {
        names.iter().map(|name| json!({ "name": name.as_str() })).collect()
    };
    let tunnels = |tunnels: &[Tunnel]| -> Value {
        tunnels.iter().map(|tunnel| Value::Object(written(tunnel))).collect()
    };
    let mut object = match &request.operation {
        Operation::Add(added) => json!({ "op": "add", "tunnel": tunnels(added) }),
        Operation::Del(deleted) => json!({ "op": "del", "tunnel": names(deleted) }),
        Operation::Update(patches) => {
            let given = patches.iter().map(|patch| Value::Object(patch.given.clone()));
            json!({ "op": "update", "tunnel": given.collect::<Value>() })
        }
        Operation::Apply { tunnels: all, dry_run: false } => {
            json!({ "op": "apply", "tunnel": tunnels(all) })
        }
        Operation::Apply { tunnels: all, dry_run: true } => {
            json!({ "op": "apply", "tunnel": tunnels(all), "dryRun": true })
        }
        Operation::Get(names_of) => json!({ "op": "get", "tunnel": names(names_of) }),
        Operation::List(None) => json!({ "op": "list" }),
        Operation::List(Some(after)) => json!({ "op": "list", "after": after.as_str() }),
        Operation::Stats(None) => json!({ "op": "stats" }),
        Operation::Stats(Some(after)) => json!({ "op": "stats", "after": after.as_str() }),
    };
    if let Some(id) = &request.id {
        object["id"] = id.clone();
    }
    object.to_string()
}

#[cfg(test)]
mod tests;
