//! What the data plane reports: signs of life, packets from elsewhere, devices that are gone.

use super::mesh::Mesh;
use super::running::{BETWEEN_MOVES, SILENT_BEFORE_MOVE};
use crate::error::Error;
use crate::roles::data_plane::orders::Report;
use crate::state::mesh::tunnel::TunnelName;
use crate::wire::mesh::{Kind, Sign, parse_sign};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

impl Mesh {
    /// Sees to a report. Fails when the data plane cannot go on.
    pub(super) fn hear(&mut self, now: Instant, report: Report) -> Result<(), Error> {
        match report {
            Report::Control { source, destination, bytes, .. } => {
                match parse_sign(&bytes) {
                    Some(sign) => self.hear_sign(now, source, destination, &sign),
                    None => self.counters.signs_dropped.increment(),
                }
                Ok(())
            }
            Report::Stranger { source, inner_source, .. } => {
                self.follow(now, source, inner_source);
                Ok(())
            }
            Report::DeviceGone { source, error, .. } => {
                if let Some(name) = self.devices.owner(&source).cloned() {
                    if self.devices.is_there(&name) {
                        self.gave_up(now, &name, &error);
                    } else {
                        log::warn!("{name}: somebody deleted the device: {error}; making it again");
                        self.remake(now, &name);
                    }
                }
                Ok(())
            }
            Report::SocketGone { error, .. } => {
                Err(error).map_err(Error::while_doing(|| "cannot watch the data port"))
            }
            Report::ThreadGone { thread, error } => {
                let cause = error.unwrap_or_else(|| io::Error::other("it panicked"));
                Err(cause).map_err(Error::while_doing(|| format!("thread {thread} has ended")))
            }
        }
    }

    /// The interface is there, and carries nothing any more: another one is made, not at once, as it
    /// may go the same way.
    fn gave_up(&mut self, now: Instant, name: &TunnelName, error: &io::Error) {
        let fault = format!("the device cannot be read any more: {error}");
        log::error!("{name}: {fault}; making it again");
        if let Some(running) = self.running.get_mut(name) {
            running.failed(now, fault);
        }
    }

    fn hear_sign(
        &mut self,
        now: Instant,
        source: SocketAddr,
        destination: Option<IpAddr>,
        sign: &Sign,
    ) {
        let known = self.by_endpoint.get(&source).cloned();
        let Some(name) = known.or_else(|| self.follow(now, source, sign.inner)) else {
            return self.counters.signs_dropped.increment();
        };
        let (Some(tunnel), Some(running)) = (self.set.get(&name), self.running.get_mut(&name))
        else {
            return;
        };
        match sign.kind {
            Kind::Ping => {
                running.counters.heard(now);
                let Some(inner) = tunnel.addresses.first().map(|address| address.ip()) else {
                    return;
                };
                // As long as what it answers, and to a remote of ours alone.
                let pong = Sign { kind: Kind::Pong, number: sign.number, inner };
                self.sockets.send(source, destination, &pong.to_bytes());
            }
            Kind::Pong => match running.ping.take_if(|(number, _)| *number == sign.number) {
                Some((_, sent)) => {
                    running.counters.heard(now);
                    running.round_trip = Some(now.saturating_duration_since(sent));
                    self.counters.pongs.increment();
                }
                // Late, twice, or made up: it proves nothing.
                None => self.counters.signs_dropped.increment(),
            },
        }
    }

    /// Something from an inner address has come from a place that no remote is at. If a tunnel whose
    /// remote may move has that address at its other end, and has not heard of it lately, that is
    /// where it is now: on the same host at once, elsewhere after a silence.
    fn follow(&mut self, now: Instant, source: SocketAddr, inner: IpAddr) -> Option<TunnelName> {
        let name = self.set.towards(inner).filter(|tunnel| tunnel.follow)?.name.clone();
        let running = self.running.get(&name)?;
        let same_host = running.endpoint.is_some_and(|at| at.ip() == source.ip());
        let heard = running.last_heard();
        let silent =
            heard.is_none_or(|heard| now.saturating_duration_since(heard) >= SILENT_BEFORE_MOVE);
        // A move costs questions to the kernel and a new table: whoever forges ports causes few.
        let is_late = running
            .followed
            .is_none_or(|last| now.saturating_duration_since(last) >= BETWEEN_MOVES);
        if (same_host || silent) && is_late && self.move_remote(now, &name, source) {
            if let Some(running) = self.running.get_mut(&name) {
                running.followed = Some(now);
            }
            Some(name)
        } else {
            if let Some(held_back) = self.log.pass(now) {
                log::info!(
                    "{name}: {source} sends from its inner address, but it is heard elsewhere \
                     ({held_back} lines held back)"
                );
            }
            None
        }
    }
}
