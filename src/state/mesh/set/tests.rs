use super::*;
use crate::state::mesh::tunnel::{Address, Framing, Remote};
use proptest::prelude::*;
use std::time::Duration;

fn name(text: &str) -> TunnelName {
    TunnelName::new(text).unwrap()
}

fn address(text: &str) -> Address {
    let (ip, len) = text.split_once('/').unwrap();
    Address::new(ip.parse().unwrap(), len.parse().unwrap()).unwrap()
}

fn prefix(text: &str) -> Prefix {
    let (ip, len) = text.split_once('/').unwrap();
    Prefix::new(ip.parse().unwrap(), len.parse().unwrap()).unwrap()
}

fn tunnel(called: &str, at: &str, remote: &str) -> Tunnel {
    Tunnel {
        name: name(called),
        addresses: vec![address(at)],
        mtu: None,
        remote: Remote::parse(remote).unwrap(),
        framing: Framing::PacketInformation,
        routes: vec![],
        keepalive: None,
        follow: false,
        carrier: false,
        clamp_mss: false,
    }
}

/// Host 1 of the seed's README.
fn host_1() -> TunnelSet {
    let mut set = TunnelSet::new(5000, 4);
    let tunnels = [("udp2", "10.0.1.1/30", "172.100.1.2"), ("udp3", "10.0.3.1/30", "172.100.1.3")];
    let tunnels = tunnels.map(|(name, at, remote)| tunnel(name, at, remote)).to_vec();
    set.commit(&set.add(tunnels).unwrap());
    set
}

fn said(result: Result<Vec<Change>, Refusal>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn an_inner_address_is_behind_the_tunnel_that_says_so_most_exactly() {
    let mut set = TunnelSet::new(5000, 4);
    let mut wide = tunnel("a", "10.9.0.1/30", "192.0.2.1");
    wide.routes = vec![prefix("10.0.0.0/8"), prefix("192.168.0.0/16")];
    let mut narrow = tunnel("b", "10.0.1.1/30", "192.0.2.2");
    narrow.routes = vec![prefix("192.168.2.0/24"), prefix("10.9.0.0/30")];
    set.commit(&set.add(vec![wide, narrow]).unwrap());
    let towards = |ip: &str| set.towards(ip.parse().unwrap()).map(|it| it.name.to_string());
    for (ip, name) in [
        ("10.0.1.2", Some("b")),
        ("10.0.2.2", Some("a")),
        ("192.168.2.9", Some("b")),
        ("192.168.3.9", Some("a")),
        // A network of its own is more than a route to it.
        ("10.9.0.2", Some("a")),
        ("172.16.0.1", None),
        ("fd00::1", None),
    ] {
        assert_eq!(towards(ip).as_deref(), name, "{ip}");
    }
}

#[test]
fn a_network_that_takes_the_way_to_a_remote_is_refused() {
    let set = host_1();
    let add = |tunnel: Tunnel| said(set.add(vec![tunnel]));
    assert!(
        add(tunnel("udp4", "172.100.2.1/24", "172.100.2.9")).starts_with("tunnel[0].tunnelIP: ")
    );
    assert!(add(tunnel("udp4", "172.100.1.9/24", "192.0.2.9")).starts_with("tunnel[0].tunnelIP: "));
    assert!(add(tunnel("udp4", "10.0.9.1/30", "10.0.1.2")).starts_with("tunnel[0].remoteServer: "));
}

#[test]
fn who_clashes_is_refused_with_the_field() {
    let set = host_1();
    let add = |tunnel: Tunnel| said(set.add(vec![tunnel]));
    assert_eq!(
        add(tunnel("udp2", "10.0.9.1/30", "172.100.1.9")),
        "tunnel[0].name: there is a tunnel of that name"
    );
    assert_eq!(
        add(tunnel("udp4", "10.0.1.2/30", "172.100.1.9")),
        "tunnel[0].tunnelIP: overlaps with 10.0.1.0/30 of tunnel udp2"
    );
    assert_eq!(
        add(tunnel("udp4", "10.0.0.1/8", "172.100.1.9")),
        "tunnel[0].tunnelIP: overlaps with 10.0.1.0/30 of tunnel udp2"
    );
    let mut second = tunnel("udp4", "10.0.9.1/30", "172.100.1.9");
    second.addresses.push(address("10.0.9.2/31"));
    assert_eq!(add(second), "tunnel[0].addresses[0]: overlaps with 10.0.9.0/30 of tunnel udp4");
    // The default port is a port like others.
    for remote in ["172.100.1.2", "172.100.1.2:5000"] {
        assert_eq!(
            add(tunnel("udp4", "10.0.9.1/30", remote)),
            "tunnel[0].remoteServer: is the remote of tunnel udp2 already"
        );
    }
    let other_port = tunnel("udp4", "10.0.9.1/30", "172.100.1.2:5001");
    assert_eq!(set.add(vec![other_port.clone()]).unwrap(), [Change::Add(other_port)]);
}

#[test]
fn routes_lead_to_one_tunnel_and_not_astray() {
    let mut set = host_1();
    let routed = |called, at, remote, routes: &[&str]| {
        let mut tunnel = tunnel(called, at, remote);
        tunnel.routes = routes.iter().map(|route| prefix(route)).collect();
        tunnel
    };
    let first = routed("udp4", "10.0.9.1/30", "172.100.1.9", &["192.168.9.0/24"]);
    set.commit(&set.add(vec![first]).unwrap());
    let add =
        |routes: &[&str]| said(set.add(vec![routed("x", "10.8.0.1/30", "192.0.2.1", routes)]));
    assert_eq!(
        add(&["192.168.1.0/24", "192.168.9.0/24"]),
        "tunnel[0].routes[1]: is a route of tunnel udp4 already"
    );
    assert_eq!(
        add(&["192.168.1.0/24", "192.168.1.0/24"]),
        "tunnel[0].routes[1]: is a route of tunnel x already"
    );
    assert!(
        add(&["0.0.0.0/0"]).starts_with("tunnel[0].routes[0]: contains the remote of tunnel x")
    );
    assert!(add(&["172.100.0.0/16"]).contains("contains the remote of tunnel udp2"));
    assert_eq!(
        said(set.add(vec![tunnel("x", "10.8.0.1/30", "192.168.9.7")])),
        "tunnel[0].remoteServer: contains the remote of tunnel x, whose packets would go astray"
    );
    // One within another is what routing is about.
    let within = routed("x", "10.8.0.1/30", "192.0.2.1", &["192.168.9.128/25"]);
    assert_eq!(set.add(vec![within]).unwrap().len(), 1);
}

#[test]
fn values_are_judged_together() {
    let set = host_1();
    let mut ipv6 = tunnel("x", "fd00::1/64", "192.0.2.1");
    ipv6.mtu = Some(1279);
    assert_eq!(
        said(set.add(vec![ipv6.clone()])),
        "tunnel[0].mtu: is not allowed: 1280 or more with an IPv6 address"
    );
    ipv6.mtu = Some(1280);
    ipv6.carrier = true;
    assert!(said(set.add(vec![ipv6.clone()])).starts_with("tunnel[0].carrier: is not allowed"));
    ipv6.keepalive = Some(Duration::from_secs(15));
    assert!(set.add(vec![ipv6]).is_ok());
}

#[test]
fn there_is_room_for_so_many_and_names_stand_once() {
    let mut set = host_1();
    let new = |number: u8| {
        let (at, remote) = (format!("10.1.{number}.1/30"), format!("192.0.2.{number}"));
        tunnel(&format!("t{number}"), &at, &remote)
    };
    assert_eq!(said(set.add(vec![new(1), new(2), new(3)])), "tunnel[2]: there may be 4 at most");
    assert_eq!(said(set.add(vec![new(1), new(1)])), "tunnel[1].name: stands there twice");
    set.commit(&set.add(vec![new(1), new(2)]).unwrap());
    assert_eq!(set.len(), 4);
    // In place of one that goes there is room.
    assert_eq!(set.replace((1..=4).map(new).collect()).unwrap().len(), 4);
    assert_eq!(said(set.replace((1..=5).map(new).collect())), "tunnel[4]: there may be 4 at most");
    let names = [name("t1"), name("t1")];
    assert_eq!(said(set.remove(&names)), "tunnel[1].name: stands there twice");
    assert_eq!(
        said(set.remove(&[name("t1"), name("no")])),
        "tunnel[1].name: there is no tunnel of that name"
    );
}

#[test]
fn a_replacement_says_what_differs_and_may_swap() {
    let mut set = host_1();
    let mut swapped: Vec<Tunnel> = set.iter().cloned().collect();
    assert_eq!(set.replace(swapped.clone()).unwrap(), []);
    let (first, second) = (swapped[0].addresses.clone(), swapped[1].addresses.clone());
    swapped[0].addresses = second;
    swapped[1].addresses = first;
    let changes = set.replace(swapped.clone()).unwrap();
    assert!(matches!(&changes[..], [Change::Update { .. }, Change::Update { .. }]), "{changes:?}");
    set.commit(&changes);
    assert_eq!(set.replace(swapped.clone()).unwrap(), []);
    // Another one with all that a removed one had.
    let mut renamed = swapped[0].clone();
    renamed.name = name("other");
    let changes = set.replace(vec![renamed.clone(), swapped[1].clone()]).unwrap();
    assert_eq!(changes, [Change::Remove(swapped[0].clone()), Change::Add(renamed)]);
    assert_eq!(set.replace(vec![]).unwrap().len(), 2);
    let unknown = tunnel("new", "10.9.0.1/30", "192.0.2.9");
    assert_eq!(said(set.update(vec![unknown])), "tunnel[0].name: there is no tunnel of that name");
}

#[test]
fn tunnels_are_paged_by_name() {
    let set = host_1();
    let names = |after: Option<&str>| -> Vec<String> {
        let after = after.map(name);
        set.after(after.as_ref()).map(|tunnel| tunnel.name.to_string()).collect()
    };
    assert_eq!(names(None), ["udp2", "udp3"]);
    assert_eq!(names(Some("udp2")), ["udp3"]);
    assert_eq!(names(Some("udp25")), ["udp3"]);
    assert!(names(Some("udp3")).is_empty());
}

/// Whether no two of the tunnels clash, pair by pair, as the module says.
fn is_sound(set: &TunnelSet) -> bool {
    let all: Vec<&Tunnel> = set.iter().collect();
    all.len() <= set.tunnels_max
        && all.iter().enumerate().all(|(at, one)| {
            all[at + 1..].iter().all(|other| {
                let networks = one.addresses.iter().all(|mine| {
                    other.addresses.iter().all(|theirs| !mine.network().overlaps(&theirs.network()))
                });
                let routes = one.routes.iter().all(|route| !other.routes.contains(route));
                networks && routes && !set.same_remote(one, other)
            })
        })
}

fn any_tunnel() -> impl Strategy<Value = Tunnel> {
    (0..6_u8, 0..6_u8, 0..6_u8, proptest::collection::vec(0..4_u8, 0..3)).prop_map(
        |(called, network, remote, routes)| {
            let at = format!("10.0.{network}.1/30");
            let mut tunnel = tunnel(&format!("t{called}"), &at, &format!("192.0.2.{remote}"));
            tunnel.routes =
                routes.iter().map(|route| prefix(&format!("192.168.{route}.0/24"))).collect();
            tunnel
        },
    )
}

proptest! {
    /// However requests follow each other, the set stays sound, and a refused one changes nothing.
    #[test]
    fn the_set_stays_sound(
        steps in proptest::collection::vec((0..4_u8, proptest::collection::vec(any_tunnel(), 0..4)), 0..30)
    ) {
        let mut set = TunnelSet::new(5000, 5);
        for (kind, tunnels) in steps {
            let before = set.clone();
            let names: Vec<TunnelName> = tunnels.iter().map(|tunnel| tunnel.name.clone()).collect();
            let changes = match kind {
                0 => set.add(tunnels.clone()),
                1 => set.remove(&names),
                2 => set.update(tunnels.clone()),
                _ => set.replace(tunnels.clone()),
            };
            if let Ok(changes) = changes {
                set.commit(&changes);
                prop_assert!(is_sound(&set), "{set:?}");
                for tunnel in &tunnels {
                    let expected = (kind != 1).then_some(tunnel);
                    prop_assert_eq!(set.get(&tunnel.name), expected);
                }
                if kind == 3 {
                    prop_assert_eq!(set.len(), tunnels.len());
                    prop_assert_eq!(set.replace(tunnels), Ok(vec![]));
                }
            } else {
                prop_assert_eq!(before.tunnels, set.tunnels.clone());
            }
        }
    }
}
