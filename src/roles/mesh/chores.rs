//! What other programs do for us, one after the other on a thread of its own, as they may take their
//! time: the operator's hooks, and nft(8) for the size of TCP's segments.

use super::counters::Counters;
use super::running::{Running, packet_max};
use crate::roles::host::hooks::{self, Outcome};
use crate::roles::host::program;
use crate::runtime::errands::Errands;
use crate::state::mesh::tunnel::Tunnel;
use std::fmt::Write;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Chores that may wait: a hook for each tunnel of a large set. More are left undone and counted.
const WAITING_MAX: usize = 20_000;
const STACK: usize = 128 * 1024;

/// How long a hook may hold up the next one.
const HOOK_LIMIT: Duration = Duration::from_secs(30);
/// How long those of a stop may take together.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// IP and TCP headers without options.
const HEADERS_IPV4: u16 = 40;
const HEADERS_IPV6: u16 = 60;

/// The nftables table that is ours.
const TABLE: &str = "udpferry_mesh";

/// What has happened to a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// It has been made.
    Up,
    /// It is gone.
    Down,
}

/// The thread, seen from the main thread.
pub(super) struct Chores {
    errands: Errands,
    up: Option<String>,
    down: Option<String>,
    counters: Arc<Counters>,
}

impl Chores {
    pub(super) fn start(
        up: Option<String>,
        down: Option<String>,
        counters: &Arc<Counters>,
    ) -> io::Result<Chores> {
        let errands = Errands::start("mesh:errand", WAITING_MAX, STACK)?;
        Ok(Chores { errands, up, down, counters: Arc::clone(counters) })
    }

    /// Has the operator's command run, if there is one for the event.
    pub(super) fn run_hook(&self, event: Event, tunnel: &Tunnel, running: &Running) {
        let command = match event {
            Event::Up => &self.up,
            Event::Down => &self.down,
        };
        let Some(command) = command.clone() else { return };
        let facts = facts(event, tunnel, running);
        let (name, counters) = (tunnel.name.clone(), Arc::clone(&self.counters));
        let is_sent = self.errands.send(move || {
            let failure = match hooks::run(&command, &facts, HOOK_LIMIT) {
                Ok(Outcome::Done) => return,
                Ok(Outcome::Failed(status)) => format!("it failed: {status}"),
                Ok(Outcome::Slow) => format!("it still runs after {HOOK_LIMIT:?}"),
                Err(error) => error.to_string(),
            };
            counters.hook_failures.increment();
            log::warn!("{name}: hook {command:?}: {failure}");
        });
        if !is_sent {
            self.counters.hook_failures.increment();
            log::warn!("{}: too many hooks wait: this one is not run", tunnel.name);
        }
    }

    /// Has TCP connections through these tunnels keep to segments that their paths carry.
    pub(super) fn clamp<'a>(&self, tunnels: impl Iterator<Item = (&'a Tunnel, &'a Running)>) {
        let text = clamp_text(tunnels);
        let is_sent = self.errands.send(move || {
            if let Err(error) = program::run("nft", &["-f", "-"], &text) {
                log::error!("mssClamp has no effect: {error}");
            }
        });
        if !is_sent {
            log::error!("mssClamp has no effect: too many hooks wait");
        }
    }

    /// Waits until all is done that has been begun; not for long.
    pub(super) fn finish(&self) {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let is_sent = self.errands.send(move || {
            let _ = tell.send(());
        });
        if is_sent && told.recv_timeout(STOP_LIMIT).is_err() {
            log::warn!("hooks still run after {STOP_LIMIT:?}: not waiting for them");
        }
    }
}

fn facts(event: Event, tunnel: &Tunnel, running: &Running) -> Vec<(&'static str, String)> {
    let first = |is_ipv4: bool| {
        let mut found = tunnel.addresses.iter().filter(|it| it.ip().is_ipv4() == is_ipv4);
        found.next().map(ToString::to_string).unwrap_or_default()
    };
    let routes: Vec<String> = tunnel.routes.iter().map(ToString::to_string).collect();
    vec![
        ("EVENT", if event == Event::Up { "up" } else { "down" }.to_owned()),
        ("TUN", tunnel.name.to_string()),
        ("ADDRESS4", first(true)),
        ("ADDRESS6", first(false)),
        ("MTU", running.mtu.to_string()),
        ("REMOTE", running.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default()),
        ("ROUTES", routes.join(" ")),
    ]
}

/// Our whole table, in place of the one that is there; only its removal when nobody wants it.
fn clamp_text<'a>(tunnels: impl Iterator<Item = (&'a Tunnel, &'a Running)>) -> String {
    let mut text = format!("add table inet {TABLE}\ndelete table inet {TABLE}\n");
    let mut rules = [String::new(), String::new()];
    for (tunnel, running) in tunnels.filter(|(tunnel, _)| tunnel.clamp_mss) {
        let packet = running.mtu.min(packet_max(tunnel, running.payload_max));
        for (way, rules) in ["iifname", "oifname"].into_iter().zip(&mut rules) {
            for (family, headers) in [("ipv4", HEADERS_IPV4), ("ipv6", HEADERS_IPV6)] {
                // Writing to a String cannot fail. The kernel never raises a size
                // (nft_exthdr_tcp_set_eval() in net/netfilter/nft_exthdr.c).
                let _ = writeln!(
                    rules,
                    "    {way} \"{}\" meta nfproto {family} tcp flags & (syn|rst) == syn tcp option \
                     maxseg size set {}",
                    tunnel.name,
                    packet.saturating_sub(headers)
                );
            }
        }
    }
    let [inbound, outbound] = &rules;
    if inbound.is_empty() {
        return text;
    }
    let _ = writeln!(text, "table inet {TABLE} {{");
    for (chain, rules) in [("prerouting", inbound), ("postrouting", outbound)] {
        let _ = writeln!(
            text,
            "  chain {chain} {{\n    type filter hook {chain} priority mangle; policy accept;\n{rules}  }}"
        );
    }
    text.push_str("}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::mesh::message::fields::read_tunnel;
    use crate::runtime::clock;
    use serde_json::json;

    fn running(mtu: u16, payload_max: Option<u32>) -> Running {
        Running::new(clock::now(), "192.0.2.1:5000".parse().ok(), payload_max, mtu)
    }

    fn tunnel(clamp_mss: bool) -> Tunnel {
        let object = json!({
            "name": "udp2", "tunnelIP": "10.0.1.1/30", "addresses": ["fd00::1/64"],
            "remoteServer": "192.0.2.1", "mtu": 1500, "mssClamp": clamp_mss,
            "routes": ["192.168.2.0/24", "192.168.3.0/24"]
        });
        read_tunnel(0, object.as_object().unwrap()).unwrap()
    }

    #[test]
    fn segments_fit_what_the_path_carries() {
        let (clamped, other) = (tunnel(true), tunnel(false));
        // Ethernet, IPv4: 1500 less 28, 4 of packet information, and TCP's own headers.
        let running = running(1500, Some(1472));
        let text = clamp_text([(&clamped, &running), (&other, &running)].into_iter());
        assert_eq!(text.matches("\"udp2\"").count(), 4);
        for line in [
            "iifname \"udp2\" meta nfproto ipv4 tcp flags & (syn|rst) == syn tcp option maxseg size set 1428",
            "oifname \"udp2\" meta nfproto ipv6 tcp flags & (syn|rst) == syn tcp option maxseg size set 1408",
            "type filter hook postrouting priority mangle; policy accept;",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        let none = clamp_text([(&other, &running)].into_iter());
        assert_eq!(none, "add table inet udpferry_mesh\ndelete table inet udpferry_mesh\n");
    }

    #[test]
    fn hooks_are_told_what_they_need() {
        let facts = facts(Event::Up, &tunnel(false), &running(1468, None));
        let expected = [
            ("EVENT", "up"),
            ("TUN", "udp2"),
            ("ADDRESS4", "10.0.1.1/30"),
            ("ADDRESS6", "fd00::1/64"),
            ("MTU", "1468"),
            ("REMOTE", "192.0.2.1:5000"),
            ("ROUTES", "192.168.2.0/24 192.168.3.0/24"),
        ];
        assert_eq!(facts, expected.map(|(name, value)| (name, value.to_owned())));
    }
}
