use super::*;
use crate::state::mesh::set::TunnelSet;
use crate::state::mesh::tunnel::{Framing, Remote};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A host that refuses what the kernel refuses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Host {
    devices: BTreeMap<TunnelName, Link>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Link {
    mtu: Option<u16>,
    is_up: bool,
    addresses: Vec<String>,
    routes: Vec<String>,
}

impl Host {
    fn perform(&mut self, name: &TunnelName, action: Action) -> Result<(), String> {
        let taken = |route: &str| {
            self.devices.values().any(|link| link.routes.iter().any(|other| other == route))
        };
        let wrong = Err(format!("{name}: {action:?}"));
        match action {
            Action::Open => {
                let before = self.devices.insert(name.clone(), Link::default());
                return if before.is_none() { Ok(()) } else { wrong };
            }
            Action::Close => {
                return if self.devices.remove(name).is_some() { Ok(()) } else { wrong };
            }
            Action::AddRoute(route) if taken(&route.to_string()) => return wrong,
            _ => {}
        }
        let Some(link) = self.devices.get_mut(name) else { return wrong };
        let add = |list: &mut Vec<String>, item: String| {
            let is_new = !list.contains(&item);
            list.push(item);
            list.sort();
            is_new
        };
        let remove = |list: &mut Vec<String>, item: String| {
            let at = list.iter().position(|other| *other == item);
            at.map(|at| list.remove(at)).is_some()
        };
        let done = match action {
            Action::SetMtu { to, from } => {
                let expected = from.is_none() || link.mtu == from;
                link.mtu = Some(to);
                expected
            }
            Action::AddAddress(address) => add(&mut link.addresses, address.to_string()),
            // The kernel drops the routes of a device with its last address.
            Action::RemoveAddress(address) => {
                link.routes.is_empty() && remove(&mut link.addresses, address.to_string())
            }
            Action::Up => !std::mem::replace(&mut link.is_up, true),
            Action::Down => std::mem::replace(&mut link.is_up, false),
            // ENETDOWN.
            Action::AddRoute(route) => link.is_up && add(&mut link.routes, route.to_string()),
            Action::RemoveRoute(route) => remove(&mut link.routes, route.to_string()),
            Action::Open | Action::Close => true,
        };
        if done { Ok(()) } else { wrong }
    }

    /// What it must look like with those tunnels.
    fn with(set: &TunnelSet) -> Host {
        let link = |tunnel: &Tunnel| {
            let mut link = Link {
                mtu: Some(mtu_of(tunnel)),
                is_up: true,
                addresses: tunnel.addresses.iter().map(ToString::to_string).collect(),
                routes: tunnel.routes.iter().map(ToString::to_string).collect(),
            };
            link.addresses.sort();
            link.routes.sort();
            (tunnel.name.clone(), link)
        };
        Host { devices: set.iter().map(link).collect() }
    }
}

fn mtu_of(tunnel: &Tunnel) -> u16 {
    tunnel.mtu.unwrap_or(1468)
}

fn any_tunnel() -> impl Strategy<Value = Tunnel> {
    let mtu = proptest::option::of(prop_oneof![Just(1400_u16), Just(1500)]);
    let routes = proptest::collection::vec(0..6_u8, 0..3);
    (0..5_u8, 0..6_u8, 1..3_u8, 0..6_u8, mtu, routes).prop_map(
        |(called, network, host, remote, mtu, routes)| {
            let route = |route: &u8| Prefix::new([192, 168, *route, 0].into(), 24).unwrap();
            Tunnel {
                name: TunnelName::new(&format!("t{called}")).unwrap(),
                addresses: vec![Address::new([10, 0, network, host].into(), 30).unwrap()],
                mtu,
                remote: Remote::parse(&format!("192.0.2.{}", remote + 1)).unwrap(),
                framing: Framing::Raw,
                routes: routes.iter().map(route).collect(),
                keepalive: None,
                follow: false,
                carrier: false,
                clamp_mss: false,
            }
        },
    )
}

proptest! {
    /// Whatever set follows whatever other: the steps lead from the one to the other on a host that
    /// forgives nothing, and a step that fails leaves the host as it was.
    #[test]
    fn plans_arrive_or_leave_no_trace(
        sets in proptest::collection::vec(proptest::collection::vec(any_tunnel(), 0..5), 1..12),
        fails_at in 0..40_usize,
    ) {
        let mut set = TunnelSet::new(5000, 10);
        let mut host = Host::default();
        for wanted in sets {
            let Ok(changes) = set.replace(wanted) else { continue };
            let steps = plan(&changes, mtu_of);
            let before = host.clone();
            let mut count = 0;
            let failing = |name: &TunnelName, action| {
                count += 1;
                // Once, and not in the end, where devices go: that cannot fail.
                if count == fails_at + 1 && action != Action::Close {
                    return Err("made to fail".to_owned());
                }
                host.perform(name, action)
            };
            let mut lost = Vec::new();
            let result = carry_out(&steps, failing, |step, error| lost.push((step.clone(), error)));
            prop_assert!(lost.is_empty(), "{lost:?}");
            if let Err((at, error)) = result {
                prop_assert_eq!((at, error.as_str()), (fails_at, "made to fail"));
                prop_assert_eq!(&host, &before);
                let mut perform = |name: &TunnelName, action| host.perform(name, action);
                prop_assert_eq!(carry_out(&steps, &mut perform, |_, _| ()), Ok(()));
            }
            set.commit(&changes);
            prop_assert_eq!(&host, &Host::with(&set));
        }
    }
}

#[test]
fn an_update_of_routes_leaves_the_addresses_alone() {
    let mut set = TunnelSet::new(5000, 10);
    let before = Tunnel {
        name: TunnelName::new("udp2").unwrap(),
        addresses: vec![Address::new([10, 0, 1, 1].into(), 30).unwrap()],
        mtu: Some(1500),
        remote: Remote::parse("192.0.2.1").unwrap(),
        framing: Framing::Raw,
        routes: vec![Prefix::new([192, 168, 2, 0].into(), 24).unwrap()],
        keepalive: None,
        follow: false,
        carrier: false,
        clamp_mss: false,
    };
    set.commit(&set.add(vec![before.clone()]).unwrap());
    let mut after = before.clone();
    after.routes = vec![Prefix::new([192, 168, 3, 0].into(), 24).unwrap()];
    after.mtu = None;
    let steps = plan(&set.update(vec![after.clone()]).unwrap(), mtu_of);
    let actions: Vec<Action> = steps.iter().map(|step| step.action).collect();
    let expected = [
        Action::RemoveRoute(before.routes[0]),
        Action::SetMtu { to: 1468, from: Some(1500) },
        Action::AddRoute(after.routes[0]),
    ];
    assert_eq!(actions, expected);
    // What only the daemon itself knows takes no steps.
    let mut other = before.clone();
    other.remote = Remote::parse("192.0.2.2").unwrap();
    assert_eq!(plan(&set.update(vec![other]).unwrap(), mtu_of), []);
}
