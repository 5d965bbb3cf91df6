//! The way from one set of tunnels to another on the host: single steps, in an order that works,
//! each with the step that takes it back.
//!
//! New devices are made first: should that fail, nothing has been lost, not even routes that somebody
//! made by hand, which the kernel drops with the addresses that they stand on. What is removed gives up
//! its routes and addresses then, as others may get them; its device goes last, when nothing can fail
//! any more. A tunnel that loses an address loses its routes for a moment, for the same reason.

use super::set::Change;
use super::tunnel::{Address, Tunnel, TunnelName};
use crate::state::access::Prefix;

/// One thing done to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Whose device it is.
    pub tunnel: TunnelName,
    /// What is done.
    pub action: Action,
}

/// What is done to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Make the device.
    Open,
    /// Let the device go, with all that it has.
    Close,
    /// Give it an MTU; what it was before.
    SetMtu {
        /// From now on.
        to: u16,
        /// None if the device is new: then it need not be given back.
        from: Option<u16>,
    },
    /// Give it an address.
    AddAddress(Address),
    /// Take an address.
    RemoveAddress(Address),
    /// Switch it on.
    Up,
    /// Switch it off.
    Down,
    /// Send a network's packets to it.
    AddRoute(Prefix),
    /// Send them elsewhere.
    RemoveRoute(Prefix),
}

impl Action {
    /// What takes it back; None if nothing need be done.
    pub fn inverse(self) -> Option<Action> {
        match self {
            Action::Open => Some(Action::Close),
            // The last steps of a plan, behind which nothing fails.
            Action::Close => None,
            Action::SetMtu { to, from } => {
                from.map(|from| Action::SetMtu { to: from, from: Some(to) })
            }
            Action::AddAddress(address) => Some(Action::RemoveAddress(address)),
            Action::RemoveAddress(address) => Some(Action::AddAddress(address)),
            Action::Up => Some(Action::Down),
            Action::Down => Some(Action::Up),
            Action::AddRoute(route) => Some(Action::RemoveRoute(route)),
            Action::RemoveRoute(route) => Some(Action::AddRoute(route)),
        }
    }
}

/// The steps of some changes. `mtu_of` says the MTU of a tunnel's device.
pub fn plan(changes: &[Change], mtu_of: impl Fn(&Tunnel) -> u16) -> Vec<Step> {
    let mut steps = Vec::new();
    // What is most likely to fail comes before anything is lost.
    for change in changes {
        if let Change::Add(tunnel) = change {
            let mut device = Device { tunnel: &tunnel.name, steps: &mut steps };
            device.does(Action::Open);
            device.does(Action::SetMtu { to: mtu_of(tunnel), from: None });
            device.does(Action::Up);
        }
    }
    for change in changes {
        match change {
            Change::Remove(tunnel) => {
                let device = Device { tunnel: &tunnel.name, steps: &mut steps };
                device.lose(&tunnel.routes, &tunnel.addresses);
            }
            Change::Update { from, to } => {
                let device = Device { tunnel: &to.name, steps: &mut steps };
                let gone = missing(&from.addresses, &to.addresses);
                if gone.is_empty() {
                    let routes = missing(&from.routes, &to.routes);
                    device.lose(&routes, &[]);
                } else {
                    device.lose(&from.routes, &gone);
                }
            }
            Change::Add(_) => {}
        }
    }
    for change in changes {
        match change {
            Change::Remove(_) => {}
            Change::Update { from, to } => {
                let mut device = Device { tunnel: &to.name, steps: &mut steps };
                let (before, after) = (mtu_of(from), mtu_of(to));
                if before != after {
                    device.does(Action::SetMtu { to: after, from: Some(before) });
                }
                let new = missing(&to.addresses, &from.addresses);
                if missing(&from.addresses, &to.addresses).is_empty() {
                    device.get(&new, &missing(&to.routes, &from.routes));
                } else {
                    device.get(&new, &to.routes);
                }
            }
            Change::Add(tunnel) => {
                let device = Device { tunnel: &tunnel.name, steps: &mut steps };
                device.get(&tunnel.addresses, &tunnel.routes);
            }
        }
    }
    for change in changes {
        if let Change::Remove(tunnel) = change {
            Device { tunnel: &tunnel.name, steps: &mut steps }.does(Action::Close);
        }
    }
    steps
}

/// Those of the one list that are not in the other.
fn missing<T: Copy + PartialEq>(of: &[T], within: &[T]) -> Vec<T> {
    of.iter().filter(|one| !within.contains(one)).copied().collect()
}

struct Device<'a> {
    tunnel: &'a TunnelName,
    steps: &'a mut Vec<Step>,
}

impl Device<'_> {
    fn does(&mut self, action: Action) {
        self.steps.push(Step { tunnel: self.tunnel.clone(), action });
    }

    fn lose(mut self, routes: &[Prefix], addresses: &[Address]) {
        for route in routes {
            self.does(Action::RemoveRoute(*route));
        }
        for address in addresses {
            self.does(Action::RemoveAddress(*address));
        }
    }

    fn get(mut self, addresses: &[Address], routes: &[Prefix]) {
        for address in addresses {
            self.does(Action::AddAddress(*address));
        }
        for route in routes {
            self.does(Action::AddRoute(*route));
        }
    }
}

/// Does the steps in order. When one fails, those before it are taken back, the last one first, and
/// its error is returned with its number; what cannot be taken back is told to `lost`.
pub fn carry_out<E>(
    steps: &[Step],
    mut perform: impl FnMut(&TunnelName, Action) -> Result<(), E>,
    mut lost: impl FnMut(&Step, E),
) -> Result<(), (usize, E)> {
    for (done, step) in steps.iter().enumerate() {
        let Err(error) = perform(&step.tunnel, step.action) else { continue };
        for step in steps.iter().take(done).rev() {
            if let Some(inverse) = step.action.inverse() {
                if let Err(error) = perform(&step.tunnel, inverse) {
                    lost(step, error);
                }
            }
        }
        return Err((done, error));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
