use super::*;
use proptest::prelude::*;

#[test]
fn names_are_those_of_devices_that_need_no_quotes() {
    for good in ["udp2", "a", "tun-b_c.1", "123456789012345", "...", "Lo"] {
        assert_eq!(TunnelName::new(good).unwrap().as_str(), good);
    }
    let wrong = [
        "",
        ".",
        "..",
        "lo",
        "all",
        "default",
        "1234567890123456",
        "a b",
        "a/b",
        "a:b",
        "tun%d",
        "-a",
        "ü",
        "a\n",
        "a\0",
        "a'b",
        "a\"b",
        "$(x)",
    ];
    for wrong in wrong {
        assert_eq!(TunnelName::new(wrong), None, "{wrong:?}");
    }
}

fn address(text: &str) -> Option<Address> {
    let (ip, len) = text.split_once('/').unwrap();
    Address::new(ip.parse().unwrap(), len.parse().unwrap())
}

#[test]
fn addresses_are_those_that_a_host_can_have() {
    let seed = address("10.0.1.1/30").unwrap();
    assert_eq!(seed.network().to_string(), "10.0.1.0/30");
    assert_eq!(seed.broadcast(), Some(Ipv4Addr::new(10, 0, 1, 3)));
    assert_eq!(address("10.0.1.1/1").unwrap().broadcast(), Some(Ipv4Addr::new(127, 255, 255, 255)));
    assert_eq!(address("10.0.1.1/31").unwrap().broadcast(), None);
    assert_eq!(address("fd00::1/64").unwrap().broadcast(), None);
    assert_eq!(address("fd00::1/64").unwrap().to_string(), "fd00::1/64");
    let wrong = [
        "0.0.0.0/8",
        "127.0.0.1/8",
        "224.0.0.1/4",
        "255.255.255.255/32",
        "10.0.0.1/0",
        "10.0.0.1/33",
        "::/64",
        "::1/128",
        "ff02::1/64",
        "fd00::1/129",
        "::ffff:10.0.0.1/96",
    ];
    for wrong in wrong {
        assert_eq!(address(wrong), None, "{wrong}");
    }
}

#[test]
fn netmasks_have_no_holes() {
    for len in 0..=32 {
        assert_eq!(netmask_len(netmask(len)), Some(len));
    }
    assert_eq!(netmask(30), Ipv4Addr::new(255, 255, 255, 252));
    for hole in [[255, 0, 255, 0], [0, 0, 0, 1], [255, 255, 255, 253]] {
        assert_eq!(netmask_len(hole.into()), None, "{hole:?}");
    }
}

#[test]
fn remotes_are_addresses_or_names_with_or_without_a_port() {
    for (text, shown) in [
        ("172.100.1.2", "172.100.1.2"),
        ("172.100.1.2:6000", "172.100.1.2:6000"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:1", "[2001:db8::1]:1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("[::ffff:192.0.2.1]:7", "192.0.2.1:7"),
        ("127.0.0.1:65535", "127.0.0.1:65535"),
        ("A.Example.net", "a.example.net"),
        ("minion_2:5000", "minion_2:5000"),
        ("a.example.net.", "a.example.net."),
    ] {
        assert_eq!(Remote::parse(text).map(|remote| remote.to_string()).as_deref(), Some(shown));
    }
    let wrong = [
        "",
        ":5000",
        "172.100.1.2:0",
        "172.100.1.2:65536",
        "172.100.1",
        "256.1.1.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "ff02::1",
        "fe80::1",
        "[fe80::1%1]:5",
        "[a]:1",
        "a:",
        "a:+1",
        "a b",
        "a..b",
        "a:5:6",
        "a/b",
        "ü.example.net",
        "[172.100.1.2]",
    ];
    for wrong in wrong {
        assert_eq!(Remote::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn what_is_in_a_network_and_not_ours_is_the_remotes() {
    let tunnel = Tunnel {
        name: TunnelName::new("udp2").unwrap(),
        addresses: vec![address("10.0.1.1/30").unwrap(), address("fd00::1/64").unwrap()],
        mtu: None,
        remote: Remote::parse("192.0.2.1").unwrap(),
        framing: Framing::Raw,
        routes: vec![],
        keepalive: None,
        follow: false,
        carrier: false,
        clamp_mss: false,
    };
    for (inner, theirs) in
        [("10.0.1.2", true), ("10.0.1.1", false), ("10.0.1.5", false), ("fd00::2", true)]
    {
        assert_eq!(tunnel.is_remotes(inner.parse().unwrap()), theirs, "{inner}");
    }
}

proptest! {
    #[test]
    fn a_remote_reads_as_it_is_written(text in "\\PC{0,20}") {
        if let Some(remote) = Remote::parse(&text) {
            prop_assert_eq!(Remote::parse(&remote.to_string()), Some(remote));
        }
    }
}
