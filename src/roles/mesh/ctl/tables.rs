//! Answers as people read them.

use serde_json::Value;
use std::fmt::Write as _;

/// Every tunnel, a line each.
pub(super) fn list(tunnels: &[Value]) -> String {
    let head = ["NAME", "ADDRESS", "REMOTE", "STATE", "HEARD", "RTT", "MTU", "ROUTES", ""];
    let rows = tunnels.iter().map(|tunnel| {
        let routes = list_of(tunnel, "routes");
        let remark = ["fault", "note"].iter().find_map(|field| tunnel.get(*field));
        [
            text(tunnel, "name"),
            addresses(tunnel),
            remote(tunnel),
            state(tunnel),
            ago(tunnel),
            tunnel.get("roundTrip").map_or_else(|| "-".to_owned(), |time| format!("{time} ms")),
            text(tunnel, "deviceMtu"),
            if routes.is_empty() { "-".to_owned() } else { routes },
            remark.and_then(Value::as_str).unwrap_or_default().to_owned(),
        ]
    });
    table(head, rows)
}

/// What was counted, a line for each tunnel.
pub(super) fn stats(tunnels: &[Value]) -> String {
    let head =
        ["NAME", "STATE", "HEARD", "PACKETS-IN", "BYTES-IN", "PACKETS-OUT", "BYTES-OUT", "DROPPED"];
    let rows = tunnels.iter().map(|tunnel| {
        [
            text(tunnel, "name"),
            text(tunnel, "state"),
            ago(tunnel),
            text(tunnel, "packetsIn"),
            text(tunnel, "bytesIn"),
            text(tunnel, "packetsOut"),
            text(tunnel, "bytesOut"),
            text(tunnel, "dropped"),
        ]
    });
    table(head, rows)
}

/// A tunnel, a line for each field.
pub(super) fn one(tunnels: &[Value]) -> String {
    let fields = tunnels.iter().filter_map(Value::as_object).flatten();
    table(["FIELD", "VALUE"], fields.map(|(field, value)| [field.clone(), plain(value)]))
}

/// What has changed, or would.
pub(super) fn changes(answer: &Value) -> String {
    let mut shown = String::new();
    let all = answer.get("changes").and_then(Value::as_array);
    for change in all.into_iter().flatten() {
        let name = text(change, "name");
        // Writing to a String cannot fail, here and below.
        let _ = match change.get("change").and_then(Value::as_str) {
            Some("add") => writeln!(shown, "+ {name}"),
            Some("del") => writeln!(shown, "- {name}"),
            _ => {
                let fields = change.get("fields").and_then(Value::as_object);
                let fields = fields.into_iter().flatten().map(|(field, sides)| {
                    let [from, to] =
                        [0, 1].map(|side| sides.get(side).map_or("-".to_owned(), plain));
                    format!("{field} {from} -> {to}")
                });
                writeln!(shown, "~ {name}: {}", fields.collect::<Vec<_>>().join(", "))
            }
        };
    }
    let count = answer.get("changed").and_then(Value::as_u64).unwrap_or(0);
    if count == 0 {
        shown.push_str("nothing to change\n");
    } else if all.is_none() {
        let tunnels = if count == 1 { "tunnel" } else { "tunnels" };
        let _ = writeln!(shown, "{count} {tunnels} changed");
    }
    if let Some(warning) = answer.get("warning").and_then(Value::as_str) {
        let _ = writeln!(shown, "warning: {warning}");
    }
    shown
}

fn text(object: &Value, field: &str) -> String {
    object.get(field).map_or_else(|| "-".to_owned(), plain)
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

fn list_of(tunnel: &Value, field: &str) -> String {
    tunnel.get(field).map(plain).unwrap_or_default()
}

fn addresses(tunnel: &Value) -> String {
    let mask = match tunnel.get("netmask") {
        Some(Value::String(mask)) => mask
            .parse()
            .ok()
            .and_then(crate::state::mesh::tunnel::netmask_len)
            .map_or_else(|| mask.clone(), |len| len.to_string()),
        other => other.map_or_else(String::new, plain),
    };
    let first = format!("{}/{mask}", text(tunnel, "tunnelIP"));
    [first, list_of(tunnel, "addresses")].join(" ").trim_end().to_owned()
}

/// What was wished for, and where it is if that says more.
fn remote(tunnel: &Value) -> String {
    let (wish, endpoint) = (text(tunnel, "remoteServer"), text(tunnel, "endpoint"));
    if endpoint.contains(&wish) {
        endpoint
    } else if endpoint == "-" {
        wish
    } else {
        format!("{wish} ({endpoint})")
    }
}

fn state(tunnel: &Value) -> String {
    if tunnel.get("fault").is_some() { "faulty".to_owned() } else { text(tunnel, "state") }
}

fn ago(tunnel: &Value) -> String {
    match tunnel.get("lastHeard").and_then(Value::as_f64) {
        None => "never".to_owned(),
        Some(seconds) if seconds < 100.0 => format!("{seconds:.1} s"),
        Some(seconds) if seconds < 6000.0 => format!("{:.0} min", seconds / 60.0),
        Some(seconds) => format!("{:.0} h", seconds / 3600.0),
    }
}

/// Columns as wide as they need to be.
fn table<const COLUMNS: usize>(
    head: [&str; COLUMNS],
    rows: impl Iterator<Item = [String; COLUMNS]>,
) -> String {
    let rows: Vec<[String; COLUMNS]> =
        std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let mut widths = [0; COLUMNS];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut shown = String::new();
    for row in &rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        shown.push_str(line.trim_end());
        shown.push('\n');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_list_shows_at_a_glance_who_is_missing() {
        let tunnels = [
            json!({
                "name": "udp2", "tunnelIP": "10.0.1.1", "netmask": "255.255.255.252",
                "remoteServer": "172.100.1.2", "endpoint": "172.100.1.2:5000", "state": "up",
                "lastHeard": 0.3, "deviceMtu": 1468, "roundTrip": 0.25,
                "routes": ["192.168.2.0/24", "192.168.22.0/24"]
            }),
            json!({
                "name": "udp3", "tunnelIP": "fd00::1", "netmask": 126, "remoteServer": "c.example.net",
                "endpoint": null, "state": "unknown", "lastHeard": null, "deviceMtu": 1448,
                "fault": "cannot look up c.example.net: no"
            }),
        ];
        assert_eq!(
            list(&tunnels),
            "NAME  ADDRESS      REMOTE            STATE   HEARD  RTT      MTU   ROUTES\n\
             udp2  10.0.1.1/30  172.100.1.2:5000  up      0.3 s  0.25 ms  1468  192.168.2.0/24 192.168.22.0/24\n\
             udp3  fd00::1/126  c.example.net     faulty  never  -        1448  -                               cannot look up c.example.net: no\n"
        );
        assert_eq!(stats(&[]).lines().count(), 1);
    }

    #[test]
    fn changes_are_signs_and_names() {
        let answer = json!({ "ok": true, "changed": 3, "changes": [
            { "change": "del", "name": "a" },
            { "change": "update", "name": "b", "fields": { "mtu": ["auto", 1400], "routes": [null, ["10.0.0.0/8"]] } },
            { "change": "add", "name": "c" }
        ]});
        assert_eq!(changes(&answer), "- a\n~ b: mtu auto -> 1400, routes - -> 10.0.0.0/8\n+ c\n");
        assert_eq!(changes(&json!({ "changed": 0, "changes": [] })), "nothing to change\n");
        let brief = json!({ "changed": 500, "warning": "the state is not saved: no space" });
        assert_eq!(
            changes(&brief),
            "500 tunnels changed\nwarning: the state is not saved: no space\n"
        );
    }
}
