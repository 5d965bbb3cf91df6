use super::*;
use proptest::prelude::*;

fn any_ipv4() -> impl Strategy<Value = Ipv4Addr> {
    (1..u32::MAX).prop_map(Ipv4Addr::from_bits)
}

/// No IPv4 address in disguise.
fn any_ipv6() -> impl Strategy<Value = Ipv6Addr> {
    (1_u128 << 100..u128::MAX).prop_map(Ipv6Addr::from_bits)
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any_ipv4().prop_map(IpAddr::from), any_ipv6().prop_map(IpAddr::from)]
}

fn any_wish<A: std::fmt::Debug + Copy>(
    address: impl Strategy<Value = A>,
) -> impl Strategy<Value = Wish<A>> {
    (address, 0..3).prop_map(|(address, kind)| match kind {
        0 => Wish::Any,
        1 => Wish::Rather(address),
        _ => Wish::Only(address),
    })
}

fn any_request() -> impl Strategy<Value = Request> {
    let numbers = (any::<u64>(), any::<[u8; 16]>(), any::<[u8; 16]>(), 0..3);
    (numbers, any_wish(any_ipv4()), any_wish(any_ipv6())).prop_map(
        |((tx, cookie, client, kind), ipv4, ipv6)| match kind {
            0 => {
                Request::Hello { tx, cookie: Cookie(cookie), client: ClientId(client), ipv4, ipv6 }
            }
            1 => Request::Keepalive { tx, client: ClientId(client) },
            _ => Request::Goodbye { client: ClientId(client) },
        },
    )
}

fn any_welcome() -> impl Strategy<Value = Answer> {
    let ipv4 = || {
        (any_ipv4(), 1..=32_u8).prop_map(|(address, prefix)| Assignment {
            address,
            prefix,
            server: Ipv4Addr::from_bits(address.to_bits() ^ 1 << 31),
        })
    };
    let ipv6 = (any_ipv6(), 1..=128_u8).prop_map(|(address, prefix)| Assignment {
        address,
        prefix,
        server: Ipv6Addr::from_bits(address.to_bits() ^ 1 << 127),
    });
    let dns = proptest::collection::vec(any_address(), 0..=DNS_MAX);
    let families = (proptest::option::of(ipv4()), proptest::option::of(ipv6), ipv4());
    (any::<u64>(), families, any::<u16>(), any::<u16>(), dns).prop_map(
        |(tx, (ipv4, ipv6, otherwise), mtu, keepalive_s, dns)| Answer::Welcome {
            tx,
            ipv4: if ipv6.is_none() { ipv4.or(Some(otherwise)) } else { ipv4 },
            ipv6,
            mtu,
            keepalive_s,
            dns: DnsServers::new(dns),
        },
    )
}

fn any_answer() -> impl Strategy<Value = Answer> {
    let others = (any::<u64>(), any::<[u8; 16]>(), any_address(), any::<u16>(), any::<u8>(), 0..6);
    let others = others.prop_map(|(tx, bytes, address, port, number, kind)| match kind {
        0 => Answer::Cookie { tx, cookie: Cookie(bytes), endpoint: (address, port).into() },
        1 => Answer::Alive { tx },
        2 => Answer::WhoAreYou,
        3 => Answer::Goodbye { client: ClientId(bytes) },
        4 => {
            let reason = match number % 4 {
                0 => Refusal::Full,
                1 => Refusal::NoAddress,
                2 => Refusal::AddressTaken,
                _ => Refusal::AddressOutside,
            };
            Answer::Refused { tx, reason }
        }
        _ => Answer::OtherVersion { tx, version: number },
    });
    prop_oneof![any_welcome(), others]
}

fn request_bytes(request: &Request) -> Vec<u8> {
    let mut datagram = Vec::new();
    write_request(&mut datagram, request);
    datagram
}

fn answer_bytes(answer: &Answer) -> Vec<u8> {
    let mut datagram = Vec::new();
    write_answer(&mut datagram, answer);
    datagram
}

/// The second decoder, which knows positions alone: whether it is a request, and whether an answer.
fn naive(data: &[u8]) -> (bool, bool) {
    let (Some(b"\xf6uf"), Some(&version), Some(&kind)) = (data.get(..3), data.get(3), data.get(4))
    else {
        return (false, false);
    };
    let len = data.len();
    let zeros = |from: usize, to: usize| data[from..to].iter().all(|byte| *byte == 0);
    let family = |at: usize, bytes: usize| {
        let (prefix_at, server_at) = (at + bytes, at + bytes + 1);
        let end = server_at + bytes;
        if zeros(at, prefix_at) {
            return zeros(at, end);
        }
        let prefix = usize::from(data[prefix_at]);
        !zeros(server_at, end)
            && data[at..prefix_at] != data[server_at..end]
            && (1..=8 * bytes).contains(&prefix)
    };
    let request = version == 1
        && match kind {
            1 => {
                len == 66
                    && data[45] < 4
                    && (data[45] & 1 == 0 || !zeros(46, 50))
                    && (data[45] & 2 == 0 || !zeros(50, 66))
            }
            2 => len == 29,
            3 => len == 21,
            _ => false,
        };
    let answer = match kind {
        0x8f if len == 14 => data[13] == 5 || version == 1 && (1..=4).contains(&data[13]),
        _ if version != 1 => false,
        0x81 => len == 48 && (data[29] == 6 || data[29] == 4 && zeros(36, 48)),
        0x82 => {
            len >= 60
                && family(13, 4)
                && family(22, 16)
                && !zeros(13, 55)
                && data[59] <= 3
                && len == 60 + 16 * usize::from(data[59])
        }
        0x83 => len == 13,
        0x84 => len == 5,
        0x85 => len == 21,
        _ => false,
    };
    (request, answer)
}

proptest! {
    #[test]
    fn requests_are_read_as_written(request in any_request()) {
        let mut datagram = request_bytes(&request);
        prop_assert!(datagram.len() <= MESSAGE_LEN_MAX);
        prop_assert_eq!(parse_request(&datagram), Some(request));
        prop_assert_eq!(parse_answer(&datagram), None, "a request is no answer");
        prop_assert_eq!(naive(&datagram), (true, false));
        for len in 0..datagram.len() {
            prop_assert_eq!(parse_request(&datagram[..len]), None);
        }
        datagram.push(0);
        prop_assert_eq!(parse_request(&datagram), None, "bytes left over");
    }

    #[test]
    fn answers_are_read_as_written(answer in any_answer()) {
        let mut datagram = answer_bytes(&answer);
        prop_assert!(datagram.len() <= MESSAGE_LEN_MAX);
        prop_assert_eq!(parse_answer(&datagram), Some(answer));
        prop_assert_eq!(parse_request(&datagram), None, "an answer is no request");
        prop_assert_eq!(naive(&datagram), (false, true));
        for len in 0..datagram.len() {
            prop_assert_eq!(parse_answer(&datagram[..len]), None);
        }
        datagram.push(0);
        prop_assert_eq!(parse_answer(&datagram), None, "bytes left over");
    }

    #[test]
    fn whatever_is_read_is_written_alike(
        kind in prop_oneof![1..4_u8, 0x81..0x90_u8, any::<u8>()],
        body in proptest::collection::vec(prop_oneof![Just(0), Just(1), any::<u8>()], 0..120),
    ) {
        let mut datagram = b"\xf6uf\x01".to_vec();
        datagram.push(kind);
        datagram.extend(body);
        let (request, answer) = (parse_request(&datagram), parse_answer(&datagram));
        prop_assert_eq!(naive(&datagram), (request.is_some(), answer.is_some()));
        if let Some(request) = request {
            prop_assert_eq!(request_bytes(&request), datagram);
        } else if let Some(answer) = answer {
            prop_assert_eq!(answer_bytes(&answer), datagram);
        }
    }

    /// Random bytes almost never are a message: one that is, changed in one byte, often still is.
    #[test]
    fn a_changed_message_is_judged_alike(
        answer in any_answer(),
        request in any_request(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        for mut datagram in [answer_bytes(&answer), request_bytes(&request)] {
            let at = at.index(datagram.len());
            datagram[at] = byte;
            let read = (parse_request(&datagram).is_some(), parse_answer(&datagram).is_some());
            prop_assert_eq!(naive(&datagram), read);
        }
    }
}

/// Written out by hand from docs/protocols/vpn.md.
#[test]
fn a_hello_and_its_welcome_stand_as_documented() {
    let hello = Request::Hello {
        tx: 0x0102,
        cookie: Cookie([0xcc; 16]),
        client: ClientId([0xdd; 16]),
        ipv4: Wish::Only(Ipv4Addr::new(10, 0, 0, 1)),
        ipv6: Wish::Rather("fd00::1".parse().unwrap()),
    };
    let mut expected = b"\xf6uf\x01\x01\0\0\0\0\0\0\x01\x02".to_vec();
    expected.extend([0xcc; 16]);
    expected.extend([0xdd; 16]);
    expected.extend([1, 10, 0, 0, 1, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(request_bytes(&hello), expected);
    assert_eq!(expected.len(), HELLO_LEN);

    let welcome = Answer::Welcome {
        tx: 0x0102,
        ipv4: Some(Assignment {
            address: Ipv4Addr::new(10, 0, 0, 1),
            prefix: 24,
            server: Ipv4Addr::new(10, 0, 0, 2),
        }),
        ipv6: None,
        mtu: 1472,
        keepalive_s: 15,
        dns: DnsServers::new(["192.0.2.53".parse().unwrap()]),
    };
    let mut expected = b"\xf6uf\x01\x82\0\0\0\0\0\0\x01\x02".to_vec();
    expected.extend([10, 0, 0, 1, 24, 10, 0, 0, 2]);
    expected.extend([0; 33]);
    expected.extend([0x05, 0xc0, 0, 15, 1]);
    expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 53]);
    assert_eq!(answer_bytes(&welcome), expected);
}

#[test]
fn nothing_that_an_unproven_address_is_sent_is_longer_than_what_it_sent() {
    let hello = Request::Hello {
        tx: 1,
        cookie: Cookie([0; 16]),
        client: ClientId([1; 16]),
        ipv4: Wish::Any,
        ipv6: Wish::Any,
    };
    assert_eq!(request_bytes(&hello).len(), HELLO_LEN);
    let endpoint = "[2001:db8::1]:1".parse().unwrap();
    let cookie = Answer::Cookie { tx: 1, cookie: Cookie([3; 16]), endpoint };
    for answer in [cookie, Answer::OtherVersion { tx: 1, version: VERSION }] {
        assert!(answer_bytes(&answer).len() < HELLO_LEN);
    }
    // To a keepalive, and to the shortest IPv4 packet.
    let keepalive = Request::Keepalive { tx: 1, client: ClientId([1; 16]) };
    assert!(answer_bytes(&Answer::Alive { tx: 1 }).len() < request_bytes(&keepalive).len());
    assert!(answer_bytes(&Answer::WhoAreYou).len() < 20);
}

#[test]
fn versions_find_out_about_each_other() {
    let mut hello = vec![0xf6, b'u', b'f', 2, 1, 0, 0, 0, 0, 0, 0, 0, 9];
    assert_eq!(parse_hello_of_other_version(&hello), None, "too short for an answer");
    hello.resize(HELLO_LEN, 0xff);
    assert_eq!(parse_hello_of_other_version(&hello), Some(9));
    assert_eq!(parse_request(&hello), None);
    hello[3] = VERSION;
    assert_eq!(parse_hello_of_other_version(&hello), None);

    let answer = [0xf6, b'u', b'f', 2, 0x8f, 0, 0, 0, 0, 0, 0, 0, 9, 5];
    assert_eq!(parse_answer(&answer), Some(Answer::OtherVersion { tx: 9, version: 2 }));
    assert_eq!(answer_bytes(&Answer::OtherVersion { tx: 9, version: 2 }), answer);
}

#[test]
fn dns_servers_are_three_at_most_and_ipv4_ones_are_ipv4() {
    let servers: Vec<IpAddr> = ["::ffff:192.0.2.1", "2001:db8::1", "192.0.2.3", "192.0.2.4"]
        .map(|text| text.parse().unwrap())
        .into();
    let dns: Vec<String> = DnsServers::new(servers).iter().map(|it| it.to_string()).collect();
    assert_eq!(dns, ["192.0.2.1", "2001:db8::1", "192.0.2.3"]);
}
