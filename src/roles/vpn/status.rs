//! What `udpferry vpn status` shows of a running tunnel: as text, and as JSON for programs.

use super::sockets::Sockets;
use crate::net::tun::TunDevice;
use crate::roles::data_plane::counters::PeerCounters;
use crate::runtime::metrics::Registry;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// The data plane's.
const PACKETS_DROPPED: &str = "udpferry_tunnel_packets_dropped_total";

/// The other end of the tunnel, or one of many.
#[derive(Debug, Clone, Default)]
pub(super) struct Peer {
    /// Where it is talked to.
    pub(super) endpoint: String,
    /// Its addresses inside.
    pub(super) addresses: Vec<String>,
    /// Without a number of its own.
    pub(super) is_bare: bool,
    /// How long ago it was last heard of.
    pub(super) last_heard: Option<Duration>,
    pub(super) packets_in: u64,
    pub(super) bytes_in: u64,
    pub(super) packets_out: u64,
    pub(super) bytes_out: u64,
    pub(super) dropped: u64,
}

/// A running tunnel.
#[derive(Debug, Clone, Default)]
pub(super) struct Status {
    pub(super) device: String,
    /// `server` or `client`.
    pub(super) side: &'static str,
    pub(super) up_for: Duration,
    /// What a person wants to know first: names and values, in order.
    pub(super) facts: Vec<(&'static str, String)>,
    pub(super) peers: Vec<Peer>,
    /// What was dropped, by reason.
    pub(super) drops: Vec<(String, u64)>,
}

impl Status {
    /// For people.
    pub(super) fn text(&self) -> String {
        let mut text = format!("{}: {}, for {}\n", self.device, self.side, for_people(self.up_for));
        // Writing to a String cannot fail.
        for (name, value) in &self.facts {
            let _ = writeln!(text, "  {:<11}{value}", format!("{name}:"));
        }
        if !self.peers.is_empty() {
            let _ = writeln!(
                text,
                "\n  {:<42}{:<28}{:>10}{:>11}{:>11}{:>9}",
                "endpoint", "addresses", "heard", "in", "out", "dropped"
            );
        }
        for peer in &self.peers {
            let heard = peer
                .last_heard
                .map_or("never".to_owned(), |ago| format!("{} ago", for_people(ago)));
            let bare = if peer.is_bare { " bare" } else { "" };
            let _ = writeln!(
                text,
                "  {:<42}{:<28}{heard:>10}{:>11}{:>11}{:>9}",
                peer.endpoint,
                format!("{}{bare}", peer.addresses.join(" ")),
                bytes_for_people(peer.bytes_in),
                bytes_for_people(peer.bytes_out),
                peer.dropped
            );
        }
        if !self.drops.is_empty() {
            let all: Vec<String> =
                self.drops.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
            let _ = writeln!(text, "\n  {:<11}{}", "dropped:", all.join(", "));
        }
        text
    }

    /// For programs: an object on one line.
    pub(super) fn json(&self) -> String {
        let facts = self.facts.iter().map(|(name, value)| (*name, quoted(value)));
        let drops = self.drops.iter().map(|(reason, count)| (reason.as_str(), count.to_string()));
        let peers: Vec<String> = self.peers.iter().map(Peer::json).collect();
        let mut members = vec![
            ("device", quoted(&self.device)),
            ("side", quoted(self.side)),
            ("up_for_s", self.up_for.as_secs().to_string()),
        ];
        members.extend(facts);
        members.push(("peers", format!("[{}]", peers.join(","))));
        members.push(("dropped", object(drops)));
        object(members) + "\n"
    }
}

/// The offloads in use.
pub(super) fn offloads(device: &TunDevice, sockets: &Sockets) -> String {
    let trains = if sockets.segments() { "trains of datagrams" } else { "none" };
    format!("{} on the device, {trains} on the sockets", device.offloads())
}

/// What was dropped of packets and, in the family `messages`, of control messages, by reason.
pub(super) fn drops(registry: &Registry, messages: &str) -> Vec<(String, u64)> {
    let packets = registry.counted(PACKETS_DROPPED).into_iter();
    let packets = packets.map(|(reason, count)| (reason.to_owned(), count));
    let messages = registry.counted(messages).into_iter();
    packets.chain(messages.map(|(reason, count)| (format!("message-{reason}"), count))).collect()
}

impl Peer {
    /// What has been counted of it.
    pub(super) fn of(counters: &PeerCounters, now: Instant) -> Peer {
        let totals = counters.totals();
        Peer {
            last_heard: counters.last_heard().map(|at| now.saturating_duration_since(at)),
            packets_in: totals.packets_in,
            bytes_in: totals.bytes_in,
            packets_out: totals.packets_out,
            bytes_out: totals.bytes_out,
            dropped: totals.dropped,
            ..Peer::default()
        }
    }

    fn json(&self) -> String {
        let addresses: Vec<String> = self.addresses.iter().map(|it| quoted(it)).collect();
        let heard =
            self.last_heard.map_or("null".to_owned(), |ago| format!("{:.3}", ago.as_secs_f64()));
        object([
            ("endpoint", quoted(&self.endpoint)),
            ("addresses", format!("[{}]", addresses.join(","))),
            ("bare", self.is_bare.to_string()),
            ("last_heard_s", heard),
            ("packets_in", self.packets_in.to_string()),
            ("bytes_in", self.bytes_in.to_string()),
            ("packets_out", self.packets_out.to_string()),
            ("bytes_out", self.bytes_out.to_string()),
            ("dropped", self.dropped.to_string()),
        ])
    }
}

fn object<'a>(members: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let members: Vec<String> =
        members.into_iter().map(|(name, value)| format!("{}:{value}", quoted(name))).collect();
    format!("{{{}}}", members.join(","))
}

/// RFC 8259, section 7.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for sign in text.chars() {
        match sign {
            '"' | '\\' => quoted.extend(['\\', sign]),
            sign if u32::from(sign) < 0x20 => {
                // Writing to a String cannot fail.
                let _ = write!(quoted, "\\u{:04x}", u32::from(sign));
            }
            sign => quoted.push(sign),
        }
    }
    quoted.push('"');
    quoted
}

fn for_people(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

fn bytes_for_people(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] =
        [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "kB")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => {
            let tenths = u128::from(bytes) * 10 / u128::from(*unit);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Status {
        Status {
            device: "vpns".into(),
            side: "server",
            up_for: Duration::from_secs(7384),
            facts: vec![("addresses", "10.0.0.2/24 fd00::2/64".into()), ("mtu", "1472".into())],
            peers: vec![Peer {
                endpoint: "192.0.2.2:40000".into(),
                addresses: vec!["10.0.0.1".into(), "fd00::1".into()],
                last_heard: Some(Duration::from_millis(1250)),
                packets_in: 3,
                bytes_in: 999,
                bytes_out: 1_250_000,
                ..Peer::default()
            }],
            drops: vec![("no-route".into(), 2), ("multicast".into(), 7)],
        }
    }

    #[test]
    fn people_see_a_table() {
        let text = sample().text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "vpns: server, for 2 h 3 min");
        assert_eq!(lines[1], "  addresses: 10.0.0.2/24 fd00::2/64");
        assert!(lines[4].trim_start().starts_with("endpoint"));
        let words: Vec<&str> = lines[5].split_whitespace().collect();
        assert_eq!(words.join(" "), "192.0.2.2:40000 10.0.0.1 fd00::1 1.2 s ago 999 B 1.2 MB 0");
        assert_eq!(lines[7], "  dropped:   no-route 2, multicast 7");
    }

    #[test]
    fn programs_see_json() {
        assert_eq!(
            sample().json(),
            "{\"device\":\"vpns\",\"side\":\"server\",\"up_for_s\":7384,\
             \"addresses\":\"10.0.0.2/24 fd00::2/64\",\"mtu\":\"1472\",\
             \"peers\":[{\"endpoint\":\"192.0.2.2:40000\",\"addresses\":[\"10.0.0.1\",\"fd00::1\"],\
             \"bare\":false,\"last_heard_s\":1.250,\"packets_in\":3,\"bytes_in\":999,\
             \"packets_out\":0,\"bytes_out\":1250000,\"dropped\":0}],\
             \"dropped\":{\"no-route\":2,\"multicast\":7}}\n"
        );
        assert_eq!(quoted("a\"b\\c\n"), "\"a\\\"b\\\\c\\u000a\"");
    }

    #[test]
    fn times_and_bytes_have_their_units() {
        for (seconds, shown) in
            [(0, "0.0 s"), (59, "59.0 s"), (60, "1 min"), (3600, "1 h 0 min"), (90_000, "1 d 1 h")]
        {
            assert_eq!(for_people(Duration::from_secs(seconds)), shown);
        }
        for (bytes, shown) in
            [(999, "999 B"), (1000, "1.0 kB"), (1_999_999, "1.9 MB"), (u64::MAX, "18446744.0 TB")]
        {
            assert_eq!(bytes_for_people(bytes), shown);
        }
    }
}
