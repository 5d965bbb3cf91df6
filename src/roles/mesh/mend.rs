//! What others remove of the tunnels, and how it is put back: `ip addr del`, `ip route flush`, `ip link set DEV down`,
//! a device that is renamed or moved.

use super::devices::Devices;
use super::mesh::Mesh;
use crate::error::Error;
use crate::net::netlink::changes::{Changes, Touched};
use crate::runtime::event_loop::EventLoop;
use crate::state::mesh::plan::Action;
use crate::state::mesh::tunnel::TunnelName;
use mio::{Interest, Token};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Between a change and the look at it, and so between two looks: who does something by hand is left to finish.
const DELAY: Duration = Duration::from_secs(1);

/// Things that the log's line names; of more it says how many.
const NAMED_MAX: usize = 8;

/// Word of changes to the tunnels' devices.
pub(super) struct Watch {
    changes: Changes,
    touched: Touched,
    look_at: Option<Instant>,
}

impl Watch {
    pub(super) fn open(events: &mut EventLoop, token: Token) -> Result<Watch, Error> {
        let doing = || "cannot listen to the network's changes";
        let mut changes = Changes::open().map_err(Error::while_doing(doing))?;
        events
            .register(&mut changes, token, Interest::READABLE)
            .map_err(Error::while_doing(doing))?;
        Ok(Watch { changes, touched: Touched::default(), look_at: None })
    }

    /// Hears what has come. Others' routes may come and go all the time, and are not looked at.
    pub(super) fn hear(&mut self, now: Instant, devices: &Devices) {
        let Touched { devices: touched, all } = self.changes.take_touched();
        self.touched.devices.extend(touched.into_iter().filter(|index| devices.has_index(*index)));
        self.touched.all |= all;
        if self.touched != Touched::default() {
            self.look_at = self.look_at.or_else(|| now.checked_add(DELAY));
        }
    }

    /// When [`Watch::due`] has something.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.look_at
    }

    /// What is to be looked at now.
    pub(super) fn due(&mut self, now: Instant) -> Option<Touched> {
        self.look_at.take_if(|at| *at <= now)?;
        Some(std::mem::take(&mut self.touched))
    }
}

impl Mesh {
    /// Looks whether the devices have what they shall have, and gives them what is gone. A device that somebody has
    /// switched off is left so.
    pub(super) fn mend(&mut self, now: Instant, touched: &Touched) {
        let names = self.devices.touched(touched);
        if names.is_empty() {
            return;
        }
        let there = match self.devices.there() {
            Ok(there) => there,
            Err(error) => return log::warn!("cannot look after the devices: {error}"),
        };
        let mut gone = Vec::new();
        for name in names {
            let Some(index) = self.devices.get(&name).map(|device| device.index) else { continue };
            let Some(is_up) = there.is_up(index, &name) else {
                log::warn!("{name}: somebody renamed or moved the device; making another");
                self.remake(now, &name);
                continue;
            };
            self.show_off(&name, !is_up);
            if !is_up {
                continue;
            }
            let Some(tunnel) = self.set.get(&name) else { continue };
            let addresses = tunnel.addresses.iter().filter(|it| !there.has_address(index, **it));
            let addresses = addresses.map(|address| Action::AddAddress(*address));
            let routes = tunnel.routes.iter().filter(|it| !there.has_route(index, **it));
            let routes = routes.map(|route| Action::AddRoute(*route));
            for action in addresses.chain(routes) {
                match self.devices.put_back(&name, action) {
                    Ok(true) => gone.push((name.clone(), action)),
                    Ok(false) => {}
                    Err(failure) => log::warn!("{failure}, which others removed"),
                }
            }
            for address in &tunnel.addresses {
                if let Err(error) = self.devices.delete_broadcast(index, *address) {
                    log::warn!("{name}: the last address of {address} is no host's: {error}");
                }
            }
        }
        if !gone.is_empty() {
            log::warn!("removed by others, and put back: {}", listed(&gone));
        }
    }

    fn show_off(&mut self, name: &TunnelName, is_off: bool) {
        let Some(running) = self.running.get_mut(name) else { return };
        if std::mem::replace(&mut running.is_off, is_off) != is_off {
            log::warn!(
                "{name}: somebody switched the device {}",
                if is_off { "off" } else { "on" }
            );
        }
    }
}

fn listed(gone: &[(TunnelName, Action)]) -> String {
    let mut text = String::new();
    for (name, action) in gone.iter().take(NAMED_MAX) {
        let comma = if text.is_empty() { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = match action {
            Action::AddAddress(address) => write!(text, "{comma}{address} of {name}"),
            Action::AddRoute(route) => write!(text, "{comma}the route {route} to {name}"),
            _ => Ok(()),
        };
    }
    if gone.len() > NAMED_MAX {
        let _ = write!(text, " and {} more", gone.len() - NAMED_MAX);
    }
    text
}
