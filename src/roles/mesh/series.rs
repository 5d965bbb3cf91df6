//! What is counted for each tunnel, for scrapes: series that come and go with the tunnels.

use super::running::Running;
use crate::roles::data_plane::counters::{PeerCounters, PeerTotals};
use crate::runtime::metrics::{Kind, Registry};
use crate::state::mesh::tunnel::TunnelName;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The counters of the tunnels that there are. The lock is taken at changes and scrapes alone.
#[derive(Clone, Default)]
pub(super) struct Series(Arc<Mutex<BTreeMap<TunnelName, Arc<PeerCounters>>>>);

/// A number of a tunnel.
type Read = fn(&PeerTotals) -> u64;

const FAMILIES: [(&str, &str, Read); 5] = [
    ("udpferry_mesh_tunnel_packets_in_total", "Packets from the remote, by tunnel.", |totals| {
        totals.packets_in
    }),
    ("udpferry_mesh_tunnel_packets_out_total", "Packets to the remote, by tunnel.", |totals| {
        totals.packets_out
    }),
    (
        "udpferry_mesh_tunnel_bytes_in_total",
        "Bytes of packets from the remote, by tunnel.",
        |totals| totals.bytes_in,
    ),
    (
        "udpferry_mesh_tunnel_bytes_out_total",
        "Bytes of packets to the remote, by tunnel.",
        |totals| totals.bytes_out,
    ),
    (
        "udpferry_mesh_tunnel_packets_dropped_total",
        "Packets of the tunnel that were dropped; the data plane's metrics have the reasons.",
        |totals| totals.dropped,
    ),
];

impl Series {
    /// Registers the families, without series as yet.
    pub(super) fn register(registry: &mut Registry) -> Series {
        let series = Series::default();
        for (name, help, read) in FAMILIES {
            let tunnels = series.clone();
            registry.live(name, help, Kind::Counter, "tunnel", move |put| {
                for (tunnel, counters) in tunnels.lock().iter() {
                    put(tunnel.as_str(), read(&counters.totals()));
                }
            });
        }
        series
    }

    /// From now on these are shown.
    pub(super) fn show(&self, running: &BTreeMap<TunnelName, Running>) {
        let mut shown = self.lock();
        if shown.len() == running.len() && shown.keys().eq(running.keys()) {
            return;
        }
        *shown = running
            .iter()
            .map(|(name, running)| (name.clone(), Arc::clone(&running.counters)))
            .collect();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<TunnelName, Arc<PeerCounters>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
