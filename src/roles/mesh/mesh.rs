//! The tunnels: what is wished for, what is there, and the way from the one to the other.

use super::Config;
use super::chores::{Chores, Event};
use super::counters::Counters;
use super::devices::{Devices, Failure};
use super::names::Names;
use super::running::{Running, mtu_of};
use super::series::Series;
use super::sockets::Sockets;
use super::store::{State, Store};
use crate::error::Error;
use crate::net::random;
use crate::roles::data_plane::Plane;
use crate::roles::data_plane::orders::Order;
use crate::roles::data_plane::table::{Table, TableOptions};
use crate::state::mesh::plan::{Action, Step, carry_out, plan};
use crate::state::mesh::refusal::{Reason, Refusal};
use crate::state::mesh::set::{Change, TunnelSet};
use crate::state::mesh::tunnel::{Tunnel, TunnelName};
use crate::state::seeded::Seeded;
use crate::state::token_bucket::LogGate;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// All tunnels, and all that they need.
pub(super) struct Mesh {
    pub(super) set: TunnelSet,
    pub(super) running: BTreeMap<TunnelName, Running>,
    /// The tunnels that have an endpoint, by it.
    pub(super) by_endpoint: HashMap<SocketAddr, TunnelName>,
    pub(super) devices: Devices,
    pub(super) sockets: Sockets,
    pub(super) names: Names,
    pub(super) chores: Chores,
    pub(super) counters: Arc<Counters>,
    /// The tunnel whose path was looked at last.
    pub(super) measured: Option<TunnelName>,
    /// Numbers of pings.
    pub(super) chance: Seeded,
    pub(super) log: LogGate,
    plane: Plane,
    series: Series,
    store: Option<Store>,
    is_unsaved: bool,
    /// That it cannot be saved is in the log.
    is_told: bool,
}

/// What the tunnels stand on.
pub(super) struct Ground {
    pub(super) plane: Plane,
    pub(super) sockets: Sockets,
    pub(super) names: Names,
    pub(super) series: Series,
    pub(super) counters: Arc<Counters>,
}

impl Mesh {
    /// Without tunnels.
    pub(super) fn new(config: &Config, ground: Ground) -> Result<Mesh, Error> {
        let Ground { plane, sockets, names, series, counters } = ground;
        sockets.hand_over(&plane);
        let seed = random::bytes().map_err(Error::while_doing(|| "cannot make random numbers"))?;
        Ok(Mesh {
            set: TunnelSet::new(config.data_port, config.tunnels_max),
            running: BTreeMap::new(),
            by_endpoint: HashMap::new(),
            devices: Devices::open(config.offload)
                .map_err(Error::while_doing(|| "cannot open netlink"))?,
            sockets,
            names,
            chores: Chores::start(config.up.clone(), config.down.clone(), &counters)
                .map_err(Error::while_doing(|| "cannot start a thread"))?,
            counters,
            measured: None,
            chance: Seeded::new(u64::from_ne_bytes(seed)),
            log: LogGate::new(1, 10),
            plane,
            series,
            store: config.state_file.clone().map(Store::new),
            is_unsaved: false,
            is_told: false,
        })
    }

    /// Makes the tunnels of the state file, each by itself: what cannot be made now is tried again.
    /// Returns the time of the newest command with a proof of an earlier run.
    pub(super) fn restore(&mut self, now: Instant, restores: bool) -> Result<Option<u64>, Error> {
        let Some(store) = &self.store else { return Ok(None) };
        let Some(state) = store.load()? else { return Ok(None) };
        let floor = Some(state.command_time_ms).filter(|time| *time > 0);
        if !restores {
            if !state.tunnels.is_empty() {
                store.put_away()?;
                self.is_unsaved = true;
            }
            return Ok(floor);
        }
        let changes = match self.set.replace(state.tunnels.clone()) {
            Ok(changes) => {
                self.set.commit(&changes);
                changes
            }
            // The options are others than when it was saved: that is no reason to lose them all.
            Err(refusal) => {
                store.set_aside(&format!("does not fit the options: {refusal}"))?;
                self.is_unsaved = true;
                self.take_in(state.tunnels)
            }
        };
        for change in &changes {
            let Change::Add(tunnel) = change else { continue };
            let running = self.begun(now, tunnel);
            self.running.insert(tunnel.name.clone(), running);
            self.make(now, &tunnel.name);
        }
        log::info!("restored {} tunnels", self.set.len());
        self.publish();
        self.reclamp(&changes);
        Ok(floor)
    }

    /// Those of the tunnels that may be, one after the other.
    fn take_in(&mut self, tunnels: Vec<Tunnel>) -> Vec<Change> {
        let mut taken = Vec::new();
        for tunnel in tunnels {
            let name = tunnel.name.clone();
            match self.set.add(vec![tunnel]) {
                Ok(changes) => {
                    self.set.commit(&changes);
                    taken.extend(changes);
                }
                Err(refusal) => log::error!("{name} is not restored: {refusal}"),
            }
        }
        taken
    }

    /// Carries out changes, all or none. `names` are those of the request, for the refusal.
    pub(super) fn change(
        &mut self,
        now: Instant,
        changes: &[Change],
        names: &[TunnelName],
    ) -> Result<(), Refusal> {
        let mut next: BTreeMap<TunnelName, Running> = BTreeMap::new();
        for change in changes {
            match change {
                Change::Add(tunnel) => {
                    next.insert(tunnel.name.clone(), self.begun(now, tunnel));
                }
                Change::Update { from, to } => {
                    next.insert(to.name.clone(), self.changed(now, from, to));
                }
                Change::Remove(_) => {}
            }
        }
        let mtu = |tunnel: &Tunnel| {
            let before = self.set.get(&tunnel.name).is_some_and(|before| before == tunnel);
            let running =
                if before { self.running.get(&tunnel.name) } else { next.get(&tunnel.name) };
            running.map_or_else(|| mtu_of(tunnel, None), |running| running.mtu)
        };
        let steps = plan(changes, mtu);
        self.take(&steps).map_err(|(at, failure)| {
            self.counters.rollbacks.increment();
            let field = steps.get(at).map_or("tunnel".to_owned(), |step| field_of(step, names));
            Refusal::new(field, Reason::Failed(failure.to_string()))
        })?;
        self.set.commit(changes);
        self.counters.changes.add(changes.len() as u64);
        let changed = |owner: &TunnelName| changes.iter().any(|change| change.name() == owner);
        self.by_endpoint.retain(|_, owner| !changed(owner));
        for change in changes {
            let name = change.name();
            let before = match next.remove(name) {
                Some(running) => self.running.insert(name.clone(), running),
                None => self.running.remove(name),
            };
            match (change, before) {
                (Change::Remove(tunnel), Some(running)) => {
                    log::info!("{name}: removed");
                    self.chores.run_hook(Event::Down, tunnel, &running);
                }
                (Change::Add(tunnel), _) => {
                    log::info!("{name}: added, to {}", tunnel.remote);
                    if let Some(running) = self.running.get(name) {
                        self.chores.run_hook(Event::Up, tunnel, running);
                    }
                }
                (Change::Update { from, to }, _) => {
                    log::info!("{name}: changed");
                    if from.carrier && !to.carrier {
                        self.show_carrier(name);
                    }
                }
                (Change::Remove(_), None) => {}
            }
            self.settle(now, name);
        }
        self.publish();
        self.reclamp(changes);
        self.is_unsaved |= !changes.is_empty();
        Ok(())
    }

    /// Makes the device of a tunnel that has none, with all that belongs to it.
    pub(super) fn make(&mut self, now: Instant, name: &TunnelName) {
        let (Some(tunnel), Some(running)) = (self.set.get(name), self.running.get(name)) else {
            return;
        };
        let mtu = running.mtu;
        let steps = plan(&[Change::Add(tunnel.clone())], |_| mtu);
        let made = self.take(&steps);
        let (Some(tunnel), Some(running)) = (self.set.get(name), self.running.get_mut(name)) else {
            return;
        };
        match made {
            Ok(()) => {
                running.made();
                self.chores.run_hook(Event::Up, tunnel, running);
            }
            Err((_, failure)) => {
                log::error!("{name}: {failure}; trying again later");
                running.failed(now, failure.to_string());
            }
        }
        self.settle(now, name);
    }

    /// The device is gone: makes another.
    pub(super) fn remake(&mut self, now: Instant, name: &TunnelName) {
        if self.devices.perform(&self.plane, name, Action::Close).is_ok() {
            self.devices.sweep(&self.plane);
        }
        self.counters.devices_remade.increment();
        self.make(now, name);
        self.publish();
    }

    /// Gives a tunnel's device another MTU, where the path decides.
    pub(super) fn remeasure(&mut self, name: &TunnelName) {
        let (Some(tunnel), Some(running)) = (self.set.get(name), self.running.get_mut(name)) else {
            return;
        };
        let found = running.endpoint.and_then(|at| self.devices.payload_max(at.ip()).ok());
        running.payload_max = found.or(running.payload_max);
        let (from, to) = (running.mtu, mtu_of(tunnel, running.payload_max));
        if from == to {
            return;
        }
        let action = Action::SetMtu { to, from: Some(from) };
        match self.devices.perform(&self.plane, name, action) {
            Ok(()) => {
                running.mtu = to;
                log::info!("{name}: the MTU is {to}");
                if tunnel.clamp_mss {
                    self.chores.clamp(self.with_running());
                }
            }
            Err(failure) => log::error!("{failure}"),
        }
    }

    /// The steps on the host; what cannot be taken back is logged.
    fn take(&mut self, steps: &[Step]) -> Result<(), (usize, Failure)> {
        let Mesh { devices, plane, .. } = self;
        let done = carry_out(
            steps,
            |name, action| devices.perform(plane, name, action),
            |_, failure| log::error!("while taking back: {failure}"),
        );
        devices.sweep(plane);
        done
    }

    /// What a tunnel begins with.
    fn begun(&mut self, now: Instant, tunnel: &Tunnel) -> Running {
        let port = self.set.port_of(tunnel);
        let endpoint = tunnel.remote.address().map(|ip| SocketAddr::new(ip, port));
        let payload_max = endpoint.and_then(|at| self.devices.payload_max(at.ip()).ok());
        let mtu = mtu_of(tunnel, payload_max);
        Running::new(now, endpoint, payload_max, mtu)
    }

    /// What a tunnel goes on with.
    fn changed(&mut self, now: Instant, from: &Tunnel, to: &Tunnel) -> Running {
        let mut next = self.begun(now, to);
        let Some(before) = self.running.get(&from.name) else { return next };
        next.counters = Arc::clone(&before.counters);
        next.device_fault.clone_from(&before.device_fault);
        next.is_off = before.is_off;
        (next.retry_at, next.backoff) = (before.retry_at, before.backoff);
        next.heard_before = before.counters.last_heard();
        if from.remote == to.remote {
            next.heard_before = before.heard_before;
            next.followed = before.followed;
            next.payload_max = before.payload_max;
            next.mtu = mtu_of(to, before.payload_max);
            next.endpoint = before.endpoint;
            next.resolved = before.resolved;
            next.remote_fault.clone_from(&before.remote_fault);
            next.asked = before.asked;
            next.life = before.life;
            next.round_trip = before.round_trip;
            next.peer.clone_from(&before.peer);
            if from.keepalive.is_some() {
                next.asked_since = before.asked_since;
            }
        }
        next
    }

    /// A tunnel has begun, or its remote is another: sees to what cannot be refused any more.
    fn settle(&mut self, now: Instant, name: &TunnelName) {
        self.by_endpoint.retain(|_, owner| owner != name);
        let (Some(tunnel), Some(running)) = (self.set.get(name), self.running.get_mut(name)) else {
            return;
        };
        if let Some(endpoint) = running.endpoint {
            running.remote_fault = None;
            if !self.sockets.has(endpoint) {
                running.remote_fault = Some(format!("no socket for {endpoint}: --data-addr"));
            } else if let Some(other) = self.by_endpoint.get(&endpoint) {
                running.remote_fault = Some(format!("{endpoint} is the remote of {other}"));
            }
            if running.remote_fault.is_some() {
                running.move_to(now, None);
            } else {
                self.by_endpoint.insert(endpoint, name.clone());
            }
        }
        if tunnel.carrier {
            self.show_carrier(name);
        }
    }

    /// Moves a tunnel's remote; false if it is another's place.
    pub(super) fn move_remote(
        &mut self,
        now: Instant,
        name: &TunnelName,
        endpoint: SocketAddr,
    ) -> bool {
        let taken = self.by_endpoint.get(&endpoint).is_some_and(|owner| owner != name);
        let Some(running) = self.running.get_mut(name) else { return false };
        if taken || !self.sockets.has(endpoint) {
            return false;
        }
        if running.endpoint != Some(endpoint) {
            self.counters.remotes_moved.increment();
            log::info!("{name}: the remote is at {endpoint}");
            running.move_to(now, Some(endpoint));
        }
        running.remote_fault = None;
        self.by_endpoint.retain(|_, owner| owner != name);
        self.by_endpoint.insert(endpoint, name.clone());
        self.remeasure(name);
        self.publish();
        true
    }

    /// Tells the data plane who the peers are.
    pub(super) fn publish(&mut self) {
        let mut peers = Vec::with_capacity(self.running.len());
        for (name, running) in &mut self.running {
            let (Some(tunnel), Some(device)) = (self.set.get(name), self.devices.get(name)) else {
                running.peer = None;
                continue;
            };
            peers.extend(running.as_peer(tunnel, device.id));
        }
        let follows = self.set.iter().any(|tunnel| tunnel.follow);
        let options =
            TableOptions { peer_to_peer: false, reports_strangers: follows, ..Default::default() };
        self.plane.order(&Order::Table(Arc::new(Table::new(peers, options))));
        self.series.show(&self.running);
        self.counters.tunnels.set(i64::try_from(self.set.len()).unwrap_or(i64::MAX));
    }

    /// Has the clamping rules follow the tunnels, if any of these has to do with them.
    fn reclamp(&self, changes: &[Change]) {
        let clamps = |change: &Change| match change {
            Change::Add(tunnel) | Change::Remove(tunnel) => tunnel.clamp_mss,
            Change::Update { from, to } => from.clamp_mss || to.clamp_mss,
        };
        if changes.iter().any(clamps) {
            self.chores.clamp(self.with_running());
        }
    }

    /// Every tunnel with its state.
    pub(super) fn with_running(&self) -> impl Iterator<Item = (&Tunnel, &Running)> {
        self.set.iter().filter_map(|tunnel| Some((tunnel, self.running.get(&tunnel.name)?)))
    }

    /// Saves what has changed, if there is a file for it; says why it could not.
    pub(super) fn save(&mut self, command_time_ms: u64) -> Result<(), String> {
        let Some(store) = self.store.as_ref().filter(|_| self.is_unsaved) else { return Ok(()) };
        let tunnels = self.set.iter().cloned().collect();
        match store.save(&State { tunnels, command_time_ms }) {
            Ok(()) => {
                self.is_unsaved = false;
                if std::mem::take(&mut self.is_told) {
                    log::info!("the state is saved again");
                }
                self.counters.state_writes.increment();
                Ok(())
            }
            Err(error) => {
                self.counters.state_write_failures.increment();
                let said = format!("the state is not saved: {error}");
                if !std::mem::replace(&mut self.is_told, true) {
                    log::error!("{said}; trying again and again");
                }
                Err(said)
            }
        }
    }

    /// Whether something has changed that could not be saved.
    pub(super) fn is_unsaved(&self) -> bool {
        self.is_unsaved && self.store.is_some()
    }

    /// Takes everything down.
    pub(super) fn stop(self) {
        let Mesh { set, running, mut devices, plane, chores, counters, .. } = self;
        devices.delete_everything();
        plane.stop();
        // First: hooks may use up the time that there is.
        if set.iter().any(|tunnel| tunnel.clamp_mss) {
            chores.clamp(std::iter::empty());
        }
        for tunnel in set.iter() {
            if let Some(running) = running.get(&tunnel.name) {
                chores.run_hook(Event::Down, tunnel, running);
            }
        }
        chores.finish();
        counters.tunnels.set(0);
    }
}

/// The field of the request that the step comes from, as far as can be said.
fn field_of(step: &Step, names: &[TunnelName]) -> String {
    let field = match step.action {
        Action::Open | Action::Close | Action::Up | Action::Down => "name",
        Action::SetMtu { .. } => "mtu",
        Action::AddAddress(_) | Action::RemoveAddress(_) => "tunnelIP",
        Action::AddRoute(_) | Action::RemoveRoute(_) => "routes",
    };
    match names.iter().position(|name| *name == step.tunnel) {
        Some(index) => format!("tunnel[{index}].{field}"),
        None => "tunnel".to_owned(),
    }
}
