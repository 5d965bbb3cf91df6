use super::*;
use proptest::prelude::*;
use serde_json::json;

fn read(value: Value) -> Result<Tunnel, String> {
    let Value::Object(object) = value else { panic!("no object") };
    read_tunnel(0, &object).map_err(|refusal| refusal.to_string())
}

/// The seed's example, with a field replaced, or taken away by null.
fn with(field: &str, value: Value) -> Value {
    let mut object = json!({
        "name": "udp2", "tunnelIP": "10.0.1.1", "netmask": "255.255.255.252", "mtu": 1500,
        "remoteServer": "172.100.1.2"
    });
    object[field] = value;
    object
}

#[test]
fn the_seeds_fields_mean_what_they_meant() {
    let tunnel = read(with("name", "udp2".into())).unwrap();
    assert_eq!(tunnel.name.as_str(), "udp2");
    assert_eq!(tunnel.addresses[0].to_string(), "10.0.1.1/30");
    assert_eq!(tunnel.mtu, Some(1500));
    assert_eq!(tunnel.remote, Remote::parse("172.100.1.2").unwrap());
    assert_eq!(tunnel.framing, Framing::PacketInformation);
    assert!(tunnel.routes.is_empty() && tunnel.keepalive.is_none());
    assert!(!tunnel.follow && !tunnel.carrier && !tunnel.clamp_mss);
    // "mtu may arrive as a number or as a string of digits."
    assert_eq!(read(with("mtu", "1500".into())).unwrap(), tunnel);
    assert_eq!(read(with("netmask", Value::Null)).unwrap(), tunnel);
}

#[test]
fn every_form_of_a_value_is_taken() {
    let address = |ip: Value, mask: Value| {
        let mut object = with("tunnelIP", ip);
        object["netmask"] = mask;
        read(object).map(|tunnel| tunnel.addresses[0].to_string())
    };
    assert_eq!(address("10.0.1.1".into(), 24.into()).unwrap(), "10.0.1.1/24");
    assert_eq!(address("10.0.1.1".into(), "24".into()).unwrap(), "10.0.1.1/24");
    assert_eq!(address("10.0.1.1/31".into(), Value::Null).unwrap(), "10.0.1.1/31");
    assert_eq!(address("fd00::1".into(), Value::Null).unwrap(), "fd00::1/126");
    assert_eq!(address("fd00::1".into(), 64.into()).unwrap(), "fd00::1/64");
    assert!(address("fd00::1".into(), "255.255.255.0".into()).unwrap_err().contains(".netmask: "));
    assert!(address("10.0.1.1/31".into(), 24.into()).unwrap_err().contains(".netmask: "));
    assert_eq!(read(with("mtu", "auto".into())).unwrap().mtu, None);
    assert_eq!(read(with("mtu", Value::Null)).unwrap().mtu, None);
    let keepalive = |value: Value| read(with("keepalive", value)).unwrap().keepalive;
    assert_eq!(keepalive(true.into()), Some(Duration::from_secs(15)));
    assert_eq!(keepalive(false.into()), None);
    assert_eq!(keepalive(json!(0.25)), Some(Duration::from_millis(250)));
}

#[test]
fn times_are_written_as_they_were_given() {
    for (millis, expected) in [(15_000, "15"), (250, "0.25"), (10_851, "10.851")] {
        assert_eq!(seconds(Duration::from_millis(millis)).to_string(), expected);
    }
    let short =
        |millis| seconds(Duration::from_millis(millis)).to_string().len() <= "3599.999".len();
    assert_eq!((100..3_600_000).find(|millis| !short(*millis)), None);
}

#[test]
fn a_wrong_value_is_named_with_what_would_do() {
    let cases = [
        ("name", json!(null), "tunnel[0].name: is required"),
        ("name", json!("a b"), "tunnel[0].name: is not allowed: 1 to 15 letters"),
        ("name", json!(5), "tunnel[0].name: is not allowed: a string"),
        ("tunnelIP", json!(null), "tunnel[0].tunnelIP: is required"),
        ("tunnelIP", json!("10.0.1"), "tunnel[0].tunnelIP: is not allowed: an address"),
        ("tunnelIP", json!("127.0.0.1"), "tunnel[0].tunnelIP: is not allowed: an address"),
        ("tunnelIP", json!("10.0.1.1/33"), "tunnel[0].netmask: is not allowed: only when"),
        ("netmask", json!("255.0.255.0"), "tunnel[0].netmask: is not allowed: a netmask"),
        ("netmask", json!(0), "tunnel[0].netmask: is not allowed: a netmask"),
        ("netmask", json!(-1), "tunnel[0].netmask: is not allowed: a netmask"),
        ("netmask", json!("+8"), "tunnel[0].netmask: is not allowed: a netmask"),
        ("netmask", json!(24.5), "tunnel[0].netmask: is not allowed: a netmask"),
        ("mtu", json!(67), "tunnel[0].mtu: is not allowed: a number from 68 to 65503"),
        ("mtu", json!(65504), "tunnel[0].mtu: is not allowed"),
        ("mtu", json!("1500 "), "tunnel[0].mtu: is not allowed"),
        ("mtu", json!(1e3), "tunnel[0].mtu: is not allowed"),
        ("mtu", json!([]), "tunnel[0].mtu: is not allowed"),
        ("remoteServer", json!("300.1.1.1"), "tunnel[0].remoteServer: is not allowed: a host's"),
        ("remoteServer", json!(null), "tunnel[0].remoteServer: is required"),
        ("framing", json!("PI"), "tunnel[0].framing: is not allowed: pi or raw"),
        ("framing", json!(1), "tunnel[0].framing: is not allowed: pi or raw"),
        ("routes", json!("192.168.0.0/16"), "tunnel[0].routes: is not allowed: a list of strings"),
        ("routes", json!(["192.168.0.0/16", 7]), "tunnel[0].routes[1]: is not allowed: a string"),
        ("routes", json!(["192.168.2.1/24"]), "tunnel[0].routes[0]: is not allowed: a network"),
        ("routes", json!(["::ffff:10.0.0.0/104"]), "tunnel[0].routes[0]: is not allowed"),
        ("routes", json!(vec!["x"; 65]), "tunnel[0].routes: there may be 64 at most"),
        ("addresses", json!(["10.0.2.1"]), "tunnel[0].addresses[0]: is not allowed: an address"),
        ("addresses", json!(vec!["x"; 8]), "tunnel[0].addresses: there may be 7 at most"),
        ("keepalive", json!(0), "tunnel[0].keepalive: is not allowed: seconds from 0.1"),
        ("keepalive", json!(-1), "tunnel[0].keepalive: is not allowed"),
        ("keepalive", json!(1e300), "tunnel[0].keepalive: is not allowed"),
        ("keepalive", json!("15"), "tunnel[0].keepalive: is not allowed"),
        ("follow", json!("yes"), "tunnel[0].follow: is not allowed: true or false"),
        ("carrier", json!(1), "tunnel[0].carrier: is not allowed: true or false"),
        ("mssClamp", json!(1), "tunnel[0].mssClamp: is not allowed: true or false"),
        ("netMask", json!("x"), "tunnel[0].netMask: is unknown"),
    ];
    for (field, value, expected) in cases {
        let said = read(with(field, value.clone())).unwrap_err();
        assert!(said.starts_with(expected), "{field} = {value}: {said}");
    }
}

#[test]
fn a_change_keeps_what_is_not_given() {
    let tunnel = read(with("routes", json!(["192.168.2.0/24"]))).unwrap();
    let change = |given: Value| {
        let Value::Object(given) = given else { panic!("no object") };
        changed(3, &tunnel, &given)
    };
    assert_eq!(change(json!({ "name": "udp2" })).unwrap(), tunnel);
    let moved = change(json!({ "name": "udp2", "remoteServer": "b", "routes": null })).unwrap();
    assert_eq!((moved.remote.to_string().as_str(), moved.routes.len()), ("b", 0));
    assert_eq!(moved.addresses, tunnel.addresses);
    let at = |given| change(given).unwrap().addresses[0].to_string();
    assert_eq!(at(json!({ "tunnelIP": "10.0.9.1" })), "10.0.9.1/30");
    assert_eq!(at(json!({ "tunnelIP": "10.0.9.1/24" })), "10.0.9.1/24");
    assert_eq!(at(json!({ "netmask": 24 })), "10.0.1.1/24");
    let refusal = change(json!({ "mtu": 1 })).unwrap_err();
    assert!(refusal.to_string().starts_with("tunnel[3].mtu: "), "{refusal}");
}

pub(in crate::roles::mesh) fn any_tunnel() -> impl Strategy<Value = Tunnel> {
    let address = prop_oneof![
        (1..=223_u8, any::<[u8; 3]>(), 1..=32_u8)
            .prop_map(|(a, [b, c, d], len)| Address::new([a, b, c, d].into(), len)),
        (any::<[u8; 15]>(), 1..=128_u8).prop_map(|(rest, len)| {
            let mut bytes = [0xfd; 16];
            bytes[1..].copy_from_slice(&rest);
            Address::new(bytes.into(), len)
        }),
    ];
    let address = address.prop_filter_map("no host's", |address| address);
    let route = (any::<[u8; 4]>(), 0..=32_u8)
        .prop_map(|(bytes, len)| Prefix::new(bytes.into(), len).unwrap());
    let remote = prop_oneof![
        Just("172.100.1.2"),
        Just("[2001:db8::1]:7"),
        Just("a.example.net"),
        Just("b:6000")
    ];
    (
        "[a-z][a-z0-9._-]{0,9}",
        proptest::collection::vec(address, 1..4),
        proptest::option::of(MTU_MIN..=MTU_MAX),
        remote,
        proptest::collection::vec(route, 0..4),
        proptest::option::of(100..=3_600_000_u64),
        any::<[bool; 4]>(),
    )
        .prop_filter_map(
            "reserved",
            |(name, addresses, mtu, remote, routes, keepalive, flags)| {
                let [raw, follow, carrier, clamp_mss] = flags;
                Some(Tunnel {
                    name: TunnelName::new(&name)?,
                    addresses,
                    mtu,
                    remote: Remote::parse(remote).unwrap(),
                    framing: if raw { Framing::Raw } else { Framing::PacketInformation },
                    routes,
                    keepalive: keepalive.map(Duration::from_millis),
                    follow,
                    carrier,
                    clamp_mss,
                })
            },
        )
}

proptest! {
    #[test]
    fn a_tunnel_reads_as_it_is_written(tunnel in any_tunnel()) {
        let object = written(&tunnel);
        prop_assert!(object.keys().all(|field| FIELDS.contains(&field.as_str())));
        prop_assert_eq!(read_tunnel(0, &object), Ok(tunnel));
    }
}
