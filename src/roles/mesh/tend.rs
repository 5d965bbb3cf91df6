//! What is done in time: keepalives, who is missing, names, devices that could not be made.

use super::mesh::Mesh;
use super::names::{AGAIN, AGAIN_SOON, Asked, Found, NO_ROOM};
use crate::state::mesh::liveness::Life;
use crate::state::mesh::tunnel::{Host, TunnelName};
use crate::wire::mesh::{Kind, Sign};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How often the tunnels are looked after, or twice in the shortest keepalive.
const ROUND: Duration = Duration::from_secs(1);

impl Mesh {
    /// When to come again.
    pub(super) fn next_round(&self, now: Instant) -> Option<Instant> {
        if self.set.is_empty() && !self.is_unsaved() {
            return None;
        }
        let shortest = self.set.iter().filter_map(|tunnel| tunnel.keepalive).min();
        let pause = shortest.map_or(ROUND, |shortest| ROUND.min(shortest / 2));
        now.checked_add(pause)
    }

    /// Does what is due.
    pub(super) fn tend(&mut self, now: Instant) {
        let names: Vec<TunnelName> = self.running.keys().cloned().collect();
        let (mut up, mut down, mut faulty) = (0, 0, 0);
        for name in &names {
            self.ask_for_life(now, name);
            match self.judge_life(now, name) {
                Some(Life::Up) => up += 1,
                Some(Life::Down) => down += 1,
                _ => {}
            }
            self.look_up(now, name);
            self.claim(now, name);
            let Some(running) = self.running.get_mut(name) else { continue };
            if running.retry_at.is_some_and(|at| at <= now) {
                running.retry_at = None;
                self.remake(now, name);
            }
            let is_faulty = self.running.get(name).is_some_and(|it| it.fault().is_some());
            faulty += i64::from(is_faulty);
        }
        self.remeasure_next();
        self.counters.tunnels_up.set(up);
        self.counters.tunnels_down.set(down);
        self.counters.tunnels_faulty.set(faulty);
    }

    /// Paths change, with uplinks and routes: one tunnel after the other, round by round.
    fn remeasure_next(&mut self) {
        let last = self.measured.take();
        let behind = |last: &TunnelName| {
            use std::ops::Bound::{Excluded, Unbounded};
            self.running.range((Excluded(last), Unbounded)).next()
        };
        let next = last.as_ref().and_then(behind).or_else(|| self.running.iter().next());
        if let Some(name) = next.map(|(name, _)| name.clone()) {
            self.remeasure(&name);
            self.measured = Some(name);
        }
    }

    fn ask_for_life(&mut self, now: Instant, name: &TunnelName) {
        let (Some(tunnel), Some(running)) = (self.set.get(name), self.running.get_mut(name)) else {
            return;
        };
        let (Some(keepalive), Some(endpoint)) = (tunnel.keepalive, running.endpoint) else {
            return;
        };
        let Some(inner) = tunnel.addresses.first().map(|address| address.ip()) else { return };
        if running.next_ping > now {
            return;
        }
        running.next_ping = now.checked_add(keepalive).unwrap_or(now);
        let number = self.chance.next_u64();
        running.ping = Some((number, now));
        let ping = Sign { kind: Kind::Ping, number, inner };
        self.counters.pings.increment();
        self.sockets.send(endpoint, None, &ping.to_bytes());
    }

    fn judge_life(&mut self, now: Instant, name: &TunnelName) -> Option<Life> {
        let (tunnel, running) = (self.set.get(name)?, self.running.get_mut(name)?);
        let life = running.life(now, tunnel);
        if life != running.life {
            log::info!("{name}: {}, was {}", life.as_str(), running.life.as_str());
            running.life = life;
            if tunnel.carrier {
                self.show_carrier(name);
            }
        }
        Some(life)
    }

    /// A device whose remote is missing has no carrier, where that is wished for.
    pub(super) fn show_carrier(&mut self, name: &TunnelName) {
        let (Some(tunnel), Some(running)) = (self.set.get(name), self.running.get(name)) else {
            return;
        };
        let has_carrier = !tunnel.carrier || running.life != Life::Down;
        if let Err(error) = self.devices.set_carrier(name, has_carrier) {
            log::warn!("{name}: cannot set the carrier: {error}");
        }
    }

    fn look_up(&mut self, now: Instant, name: &TunnelName) {
        let (Some(tunnel), Some(running)) = (self.set.get(name), self.running.get_mut(name)) else {
            return;
        };
        let Host::Name(host) = &tunnel.remote.host else { return };
        if !matches!(running.asked, Asked::Due(at) if at <= now) {
            return;
        }
        let port = self.set.port_of(tunnel);
        if self.names.ask(name, &tunnel.remote, host, port) {
            self.counters.lookups.increment();
            running.asked = Asked::UnderWay;
        } else {
            running.asked = Asked::Due(now.checked_add(NO_ROOM).unwrap_or(now));
        }
    }

    /// A tunnel that has found another one at its remote's place takes it when that has gone.
    fn claim(&mut self, now: Instant, name: &TunnelName) {
        let (Some(tunnel), Some(running)) = (self.set.get(name), self.running.get(name)) else {
            return;
        };
        let Some(ip) = tunnel.remote.address().filter(|_| running.endpoint.is_none()) else {
            return;
        };
        let at = SocketAddr::new(ip, self.set.port_of(tunnel));
        if !self.by_endpoint.contains_key(&at) {
            self.move_remote(now, name, at);
        }
    }

    /// A lookup has come to its end.
    pub(super) fn found(&mut self, now: Instant, found: Found) {
        let Found { tunnel: name, remote, endpoints } = found;
        let sockets = &self.sockets;
        let (Some(tunnel), Some(running)) = (self.set.get(&name), self.running.get_mut(&name))
        else {
            return;
        };
        if tunnel.remote != remote {
            return;
        }
        let is_missing = tunnel.keepalive.is_some() && running.life != Life::Up;
        let pause = if endpoints.is_err() || is_missing { AGAIN_SOON } else { AGAIN };
        running.asked = Asked::Due(now.checked_add(pause).unwrap_or(now));
        let usable: Vec<SocketAddr> = match endpoints {
            Ok(endpoints) => {
                let canonical = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
                endpoints.into_iter().map(canonical).filter(|at| sockets.has(*at)).collect()
            }
            Err(why) => {
                self.counters.lookup_failures.increment();
                if running.endpoint.is_none() {
                    running.remote_fault = Some(format!("cannot look up {remote}: {why}"));
                }
                return;
            }
        };
        // One that still stands there stays; so does a remote that was followed elsewhere.
        let is_known = running.resolved.is_some_and(|before| usable.contains(&before));
        if is_known && running.endpoint.is_some() {
            running.remote_fault = None;
            return;
        }
        let Some(endpoint) = usable.first().copied() else {
            if running.endpoint.is_none() {
                running.remote_fault = Some(format!("{remote} has no address that we can reach"));
            }
            return;
        };
        running.resolved = Some(endpoint);
        if !self.move_remote(now, &name, endpoint) {
            let fault = match self.by_endpoint.get(&endpoint) {
                Some(other) => format!("{remote} is {endpoint}, the remote of {other}"),
                None => format!("no socket for {endpoint}"),
            };
            if let Some(running) = self.running.get_mut(&name) {
                running.resolved = None;
                running.remote_fault = Some(fault);
            }
        }
    }
}
