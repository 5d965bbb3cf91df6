//! What the daemon answers: `{"id": 7, "ok": true, …}`, or `"ok": false` with the field at fault.

use crate::state::mesh::refusal::Refusal;
use crate::state::mesh::set::Change;
use serde_json::{Map, Value, json};

/// An answer that everything is done, to be filled with what is told.
pub fn done(id: &Value) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("id".to_owned(), id.clone());
    object.insert("ok".to_owned(), true.into());
    object
}

/// An answer that nothing has changed; the id is null where the request's could not be read.
pub fn refused(id: &Value, refusal: &Refusal) -> String {
    let error = json!({ "field": refusal.field, "reason": refusal.reason.to_string() });
    json!({ "id": id, "ok": false, "error": error }).to_string()
}

/// What a request changes, one entry for a tunnel; an update names its fields.
pub fn changes(changes: &[Change]) -> Value {
    changes
        .iter()
        .map(|change| {
            let name = change.name().as_str();
            match change {
                Change::Add(_) => json!({ "change": "add", "name": name }),
                Change::Remove(_) => json!({ "change": "del", "name": name }),
                Change::Update { from, to } => {
                    let (from, to) = (super::fields::written(from), super::fields::written(to));
                    let differs = |field: &&&str| from.get(**field) != to.get(**field);
                    let fields = super::fields::FIELDS.iter().filter(differs);
                    let mut fields: Map<String, Value> = fields
                        .map(|field| {
                            let [from, to] = [&from, &to].map(|side| side.get(*field).cloned());
                            ((*field).to_owned(), json!([from, to]))
                        })
                        .collect();
                    let mut entry = Map::new();
                    entry.insert("change".to_owned(), "update".into());
                    entry.insert("name".to_owned(), name.into());
                    entry.insert("fields".to_owned(), std::mem::take(&mut fields).into());
                    entry.into()
                }
            }
        })
        .collect()
}

/// The answer with as many of the entries under `tunnel` as its length allows, and `"more": true` if
/// there are others. At least one stands there, if there is any.
pub fn page(
    object: Map<String, Value>,
    entries: impl Iterator<Item = Value>,
    len_max: usize,
) -> String {
    const MORE: &str = r#"],"more":true}"#;
    let mut text = Value::Object(object).to_string();
    // Its closing brace makes room.
    text.pop();
    text.push_str(r#","tunnel":["#);
    let first = text.len();
    for entry in entries {
        let entry = entry.to_string();
        if text.len() == first {
            text.push_str(&entry);
        } else if text.len() + 1 + entry.len() + MORE.len() <= len_max {
            text.push(',');
            text.push_str(&entry);
        } else {
            text.push_str(MORE);
            return text;
        }
    }
    text.push_str("]}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::mesh::message::request::{Operation, read};
    use crate::state::mesh::refusal::Reason;

    #[test]
    fn a_refusal_names_the_field() {
        let refusal = Refusal::of_tunnel(2, "netmask", Reason::Missing);
        assert_eq!(
            refused(&7.into(), &refusal),
            r#"{"id":7,"ok":false,"error":{"field":"tunnel[2].netmask","reason":"is required"}}"#
        );
    }

    #[test]
    fn pages_end_where_they_must_and_say_so() {
        let entries = || (0..10).map(|number| json!({ "name": format!("t{number}") }));
        let head = || done(&1.into());
        let whole = page(head(), entries(), 10_000);
        assert!(!whole.contains("more") && whole.contains("t9"));
        assert_eq!(page(head(), std::iter::empty(), 0), r#"{"id":1,"ok":true,"tunnel":[]}"#);
        for len_max in 0..whole.len() + 40 {
            let page = page(head(), entries(), len_max);
            let value: Value = serde_json::from_str(&page).unwrap();
            let count = value["tunnel"].as_array().unwrap().len();
            assert!(page.len() <= len_max || count == 1, "{len_max}: {page}");
            assert_eq!(value["more"] == true, count < 10, "{page}");
        }
    }

    #[test]
    fn changes_say_what_differs() {
        let tunnels = |text: &str| match read(text.as_bytes()).unwrap().operation {
            Operation::Add(tunnels) => tunnels,
            other => panic!("{other:?}"),
        };
        let one = tunnels(
            r#"{"op":"add","tunnel":[{"name":"a","tunnelIP":"10.0.0.1","remoteServer":"h"}]}"#,
        );
        let other = tunnels(
            r#"{"op":"add","tunnel":[{"name":"a","tunnelIP":"10.0.0.1","remoteServer":"h:7","follow":true}]}"#,
        );
        let update = Change::Update { from: one[0].clone(), to: other[0].clone() };
        let all = [Change::Remove(one[0].clone()), update, Change::Add(one[0].clone())];
        assert_eq!(
            changes(&all).to_string(),
            r#"[{"change":"del","name":"a"},{"change":"update","name":"a","fields":{"remoteServer":["h","h:7"],"follow":[null,true]}},{"change":"add","name":"a"}]"#
        );
    }
}
