//! A tunnel as `list`, `get` and `stats` tell it.

use super::mesh::Mesh;
use super::message::fields::written;
use super::running::{Running, packet_max};
use crate::state::mesh::tunnel::Tunnel;
use serde_json::{Value, json};
use std::time::Instant;

impl Mesh {
    /// The tunnel with its state.
    pub(super) fn shown(&self, now: Instant, tunnel: &Tunnel) -> Option<Value> {
        let running = self.running.get(&tunnel.name)?;
        let mut object = written(tunnel);
        let mut put = |field: &str, value: Value| object.insert(field.to_owned(), value);
        put("state", running.life(now, tunnel).as_str().into());
        put("lastHeard", last_heard(now, running));
        put("endpoint", running.endpoint.map(|endpoint| endpoint.to_string()).into());
        put("deviceMtu", running.mtu.into());
        if let Some(round_trip) = running.round_trip {
            put("roundTrip", rounded(round_trip.as_secs_f64() * 1e3, 1000.0));
        }
        if let Some(fault) = running.fault() {
            put("fault", fault.into());
        }
        let fits = packet_max(tunnel, running.payload_max);
        if running.is_off {
            put("note", "somebody switched the device off".into());
        } else if running.payload_max.is_some() && running.mtu > fits {
            let note = format!("packets of more than {fits} bytes are fragmented on the way");
            put("note", note.into());
        }
        Some(Value::Object(object))
    }

    /// What was counted for the tunnel.
    pub(super) fn stats(&self, now: Instant, tunnel: &Tunnel) -> Option<Value> {
        let running = self.running.get(&tunnel.name)?;
        let totals = running.counters.totals();
        Some(json!({
            "name": tunnel.name.as_str(),
            "state": running.life(now, tunnel).as_str(),
            "lastHeard": last_heard(now, running),
            "packetsIn": totals.packets_in,
            "bytesIn": totals.bytes_in,
            "packetsOut": totals.packets_out,
            "bytesOut": totals.bytes_out,
            "dropped": totals.dropped,
        }))
    }
}

/// Seconds since something came of the remote.
fn last_heard(now: Instant, running: &Running) -> Value {
    let heard = running.last_heard();
    heard.map_or(Value::Null, |heard| {
        rounded(now.saturating_duration_since(heard).as_secs_f64(), 10.0)
    })
}

/// A number with as many decimals as are worth reading.
fn rounded(number: f64, parts: f64) -> Value {
    ((number * parts).round() / parts).into()
}
