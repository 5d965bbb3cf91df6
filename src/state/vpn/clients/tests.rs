use super::*;
use crate::state::seeded::Seeded;
use crate::state::vpn::leases::LEASES_MAX;
use crate::state::vpn::subnet::Subnet;
use crate::wire::vpn::Wish;
use std::net::Ipv4Addr;

const IDLE: Duration = Duration::from_secs(60);

#[allow(clippy::disallowed_methods)] // Tests count from whatever instant they start at.
fn start() -> Instant {
    Instant::now()
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn clients(clients_max: usize) -> Clients {
    let subnets = [("10.0.0.2", 24), ("fd00::2", 64)];
    let subnets = subnets.map(|(own, prefix)| Subnet::new(ip(own), prefix).unwrap());
    let limits = Limits { clients_max, idle_timeout: IDLE };
    Clients::new(limits, Leases::new(subnets, LEASES_MAX))
}

fn id(number: u8) -> ClientId {
    ClientId([number; 16])
}

fn from(endpoint: &str) -> Contact {
    Contact { endpoint: endpoint.parse().unwrap(), socket: 0, local: None }
}

fn only(address: &str) -> Wishes {
    Wishes::new(Wish::Only(address.parse().unwrap()), Wish::Any)
}

fn nobody(_: Number) -> Option<Instant> {
    None
}

/// Who is where, with which addresses.
fn present(clients: &Clients) -> Vec<String> {
    let shown = |client: &Client| {
        let addresses: Vec<_> = client.addresses.iter().map(|it| it.to_string()).collect();
        format!("{} {}", client.contact.endpoint, addresses.join(" "))
    };
    clients.iter().map(|(_, client)| shown(client)).collect()
}

#[test]
fn a_client_comes_keeps_its_place_and_leaves() {
    let now = start();
    let mut clients = clients(10);
    let here = from("192.0.2.1:5000");
    let entered = clients.enter(now, id(1), here, Wishes::default()).unwrap();
    assert_eq!(entered.change, Change::New);
    assert_eq!(present(&clients), ["192.0.2.1:5000 10.0.0.1 fd00::1"]);
    let again = clients.enter(now, id(1), here, Wishes::default()).unwrap();
    assert_eq!(again, Entered { change: Change::Same, ..entered });
    assert_eq!(clients.keep(now, here.endpoint, id(1)), Some(entered.number));
    assert_eq!(clients.keep(now, here.endpoint, id(2)), None, "another client");
    assert_eq!(clients.keep(now, "192.0.2.1:5001".parse().unwrap(), id(1)), None, "elsewhere");
    assert!(clients.leave("192.0.2.2:5000".parse().unwrap(), id(1)).is_none());
    assert_eq!(clients.leave(here.endpoint, id(1)).unwrap().0, entered.number);
    assert!(clients.is_empty());
    let back = clients.enter(now, id(1), here, Wishes::default()).unwrap();
    assert_eq!(back.addresses, entered.addresses);
    assert_ne!(back.number, entered.number);
}

#[test]
fn a_client_moves_and_keeps_its_addresses() {
    let now = start();
    let mut clients = clients(10);
    let entered = clients.enter(now, id(1), from("192.0.2.1:5000"), Wishes::default()).unwrap();
    let moved = clients.enter(now, id(1), from("[2001:db8::1]:9"), Wishes::default()).unwrap();
    assert_eq!((moved.number, moved.addresses), (entered.number, entered.addresses));
    assert_eq!(moved.change, Change::Moved("192.0.2.1:5000".parse().unwrap()));
    assert_eq!(present(&clients), ["[2001:db8::1]:9 10.0.0.1 fd00::1"]);
    assert_eq!(clients.keep(now, "192.0.2.1:5000".parse().unwrap(), id(1)), None);
    let elsewhere = clients.enter(now, id(1), from("[2001:db8::1]:9"), only("10.0.0.9")).unwrap();
    assert_eq!(elsewhere.change, Change::Readdressed);
    assert_eq!(present(&clients), ["[2001:db8::1]:9 10.0.0.9 fd00::1"]);
}

#[test]
fn an_endpoint_is_one_clients() {
    let now = start();
    let mut clients = clients(1);
    let here = from("192.0.2.1:5000");
    let first = clients.enter(now, id(1), here, Wishes::default()).unwrap();
    assert!(clients.displace(here.endpoint, id(1)).is_none(), "its own");
    assert_eq!(clients.displace(here.endpoint, id(2)).unwrap().0, first.number);
    assert!(clients.enter(now, id(2), here, Wishes::default()).is_ok(), "there is room now");
    assert!(clients.displace("192.0.2.9:1".parse().unwrap(), id(2)).is_none(), "nobody is there");
}

#[test]
fn one_more_than_there_may_be_is_refused_and_those_who_are_there_stay() {
    let now = start();
    let mut clients = clients(2);
    clients.enter(now, id(1), from("192.0.2.1:1"), Wishes::default()).unwrap();
    clients.enter(now, id(2), from("192.0.2.2:2"), Wishes::default()).unwrap();
    let third = clients.enter(now, id(3), from("192.0.2.3:3"), Wishes::default());
    assert_eq!(third, Err(Refusal::Full));
    let bare = clients.bind(now, from("192.0.2.3:3"), ip("10.0.0.9"), nobody);
    assert_eq!(bare, Err(NotBound::Full));
    let moved = clients.enter(now, id(1), from("192.0.2.9:1"), Wishes::default());
    assert!(moved.is_ok());
    clients.leave("192.0.2.2:2".parse().unwrap(), id(2));
    assert!(clients.enter(now, id(3), from("192.0.2.3:3"), Wishes::default()).is_ok());
}

#[test]
fn whoever_is_silent_is_gone_and_whoever_sends_is_not() {
    let now = start();
    let mut clients = clients(10);
    let silent = clients.enter(now, id(1), from("192.0.2.1:1"), Wishes::default()).unwrap();
    let sends = clients.enter(now, id(2), from("192.0.2.2:2"), Wishes::default()).unwrap();
    let keeps = clients.enter(now, id(3), from("192.0.2.3:3"), Wishes::default()).unwrap();
    assert_eq!(clients.next_deadline(), Some(now + IDLE));
    clients.keep(now + seconds(50), "192.0.2.3:3".parse().unwrap(), id(3));
    let heard = |number| (number == sends.number).then(|| now + seconds(20));
    assert!(clients.expire(now + seconds(59), heard).is_empty());
    let gone = clients.expire(now + IDLE, heard);
    assert_eq!(gone.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [silent.number]);
    assert_eq!(clients.next_deadline(), Some(now + seconds(80)));
    let gone = clients.expire(now + seconds(80), heard);
    assert_eq!(gone.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [sends.number]);
    let gone = clients.expire(now + seconds(110), nobody);
    assert_eq!(gone.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [keeps.number]);
    assert!(clients.is_empty());
    assert_eq!(clients.next_deadline(), None);
}

#[test]
fn an_address_is_given_up_with_its_silent_client() {
    let now = start();
    let mut clients = clients(10);
    clients.enter(now, id(1), from("192.0.2.1:1"), only("10.0.0.1")).unwrap();
    let taken = clients.enter(now, id(2), from("192.0.2.2:2"), only("10.0.0.1"));
    assert_eq!(taken, Err(Refusal::AddressTaken));
    let outside = clients.enter(now, id(2), from("192.0.2.2:2"), only("10.0.0.2"));
    assert_eq!(outside, Err(Refusal::AddressOutside));
    clients.expire(now + IDLE, nobody);
    let now = now + IDLE;
    assert!(clients.enter(now, id(2), from("192.0.2.2:2"), only("10.0.0.1")).is_ok());
}

#[test]
fn a_bare_client_is_bound_to_what_it_sends_from() {
    let now = start();
    let mut clients = clients(10);
    let here = from("192.0.2.1:5000");
    let first = clients.bind(now, here, ip("10.0.0.1"), nobody).unwrap();
    assert_eq!(first.change, Change::New);
    let second = clients.bind(now, here, ip("fd00::1"), nobody).unwrap();
    assert_eq!((second.number, second.change), (first.number, Change::Readdressed));
    assert_eq!(present(&clients), ["192.0.2.1:5000 10.0.0.1 fd00::1"]);
    for (inner, reason) in [
        ("10.0.0.3", NotBound::HasAnother),
        ("10.0.0.2", NotBound::HasAnother),
        ("fd00::3", NotBound::HasAnother),
    ] {
        assert_eq!(clients.bind(now, here, ip(inner), nobody), Err(reason), "{inner}");
    }
    for inner in ["10.0.0.2", "10.0.0.255", "192.0.2.1", "fd01::1"] {
        let bound = clients.bind(now, from("192.0.2.2:1"), ip(inner), nobody);
        assert_eq!(bound, Err(NotBound::Outside), "{inner}");
    }
    assert_eq!(clients.expire(now + IDLE, nobody).len(), 1);
    assert!(clients.bind(now, from("192.0.2.2:1"), ip("10.0.0.1"), nobody).is_ok());
}

#[test]
fn a_bare_client_moves_within_its_host_at_once_and_to_another_one_after_silence() {
    let now = start();
    let mut clients = clients(10);
    let inner = ip("10.0.0.1");
    let first = clients.bind(now, from("192.0.2.1:5000"), inner, nobody).unwrap();
    let moved = clients.bind(now, from("192.0.2.1:5001"), inner, nobody).unwrap();
    assert_eq!(moved.number, first.number);
    assert_eq!(moved.change, Change::Moved("192.0.2.1:5000".parse().unwrap()));
    let elsewhere = from("192.0.2.9:5000");
    assert_eq!(clients.bind(now, elsewhere, inner, nobody), Err(NotBound::Taken));
    let later = now + BARE_SILENCE;
    let heard = |_| Some(now + seconds(1));
    assert_eq!(clients.bind(later, elsewhere, inner, heard), Err(NotBound::Taken));
    let moved = clients.bind(later, elsewhere, inner, nobody).unwrap();
    assert_eq!(moved.number, first.number);
    assert_eq!(present(&clients), ["192.0.2.9:5000 10.0.0.1"]);
}

#[test]
fn no_packet_takes_anything_from_a_client_with_a_number() {
    let now = start();
    let mut clients = clients(10);
    clients.enter(now, id(1), from("192.0.2.1:5000"), only("10.0.0.1")).unwrap();
    let before = present(&clients);
    let late = now + seconds(59);
    for (endpoint, inner, reason) in [
        ("192.0.2.1:5001", "10.0.0.1", NotBound::Taken),
        ("192.0.2.9:1", "10.0.0.1", NotBound::Taken),
        ("192.0.2.1:5000", "10.0.0.3", NotBound::HasAnother),
        ("192.0.2.1:5000", "fd00::3", NotBound::HasAnother),
    ] {
        let bound = clients.bind(late, from(endpoint), ip(inner), nobody);
        assert_eq!(bound, Err(reason), "{endpoint} {inner}");
    }
    assert_eq!(present(&clients), before);
    // A bare client that says hello is one with a number from then on.
    clients.bind(now, from("192.0.2.2:1"), ip("10.0.0.5"), nobody).unwrap();
    assert!(clients.displace("192.0.2.2:1".parse().unwrap(), id(2)).is_some());
    clients.enter(now, id(2), from("192.0.2.2:1"), only("10.0.0.5")).unwrap();
    assert_eq!(clients.len(), 2);
}

/// Random clients: every index agrees with every other one, and nobody loses what is his.
#[test]
fn the_tables_agree_whatever_happens() {
    for seed in 0..200 {
        let mut seeded = Seeded::new(seed);
        let mut clients = clients(4);
        let mut now = start();
        for step in 0..300 {
            now += Duration::from_millis(u64::from(seeded.below(12_000)));
            let who = id(u8::try_from(seeded.below(6)).unwrap());
            let (host, port) = (seeded.below(3), seeded.below(3));
            let here = from(&format!("192.0.2.{host}:{}", port + 1));
            let last = u8::try_from(seeded.below(6)).unwrap();
            let inner = Ipv4Addr::new(10, 0, 0, last);
            let before = present(&clients);
            match seeded.below(6) {
                0 => {
                    clients.keep(now, here.endpoint, who);
                }
                1 => {
                    clients.leave(here.endpoint, who);
                }
                2 => {
                    clients.expire(now, nobody);
                }
                3 => match clients.bind(now, here, inner.into(), nobody) {
                    Ok(entered) => {
                        let client = clients.present.get(&entered.number).unwrap();
                        assert_eq!((client.id, client.contact), (None, here));
                    }
                    Err(_) => assert_eq!(present(&clients), before),
                },
                kind => {
                    let wish = if kind == 4 { Wish::Only(inner) } else { Wish::Any };
                    clients.displace(here.endpoint, who);
                    let before = present(&clients);
                    match clients.enter(now, who, here, Wishes::new(wish, Wish::Any)) {
                        Ok(entered) => {
                            let client = clients.present.get(&entered.number).unwrap();
                            assert_eq!((client.id, client.contact), (Some(who), here));
                            assert!(kind != 4 || client.addresses.ipv4() == Some(inner));
                        }
                        Err(_) => assert_eq!(present(&clients), before),
                    }
                }
            }
            assert!(clients.len() <= 4, "seed {seed}, step {step}");
            let mut addresses = 0;
            for (number, client) in clients.iter() {
                let endpoint = client.contact.endpoint;
                assert_eq!(
                    clients.by_endpoint.get(&endpoint),
                    Some(&number),
                    "seed {seed}, step {step}"
                );
                assert_eq!(client.id.map(|id| clients.by_id[&id]), client.id.map(|_| number));
                for address in client.addresses.iter() {
                    assert_eq!(
                        clients.by_address.get(&address),
                        Some(&number),
                        "seed {seed}, step {step}"
                    );
                    addresses += 1;
                }
                assert!(client.last_heard + IDLE >= clients.next_deadline().unwrap());
            }
            assert_eq!(clients.by_endpoint.len(), clients.len());
            assert_eq!(clients.by_address.len(), addresses);
            let with_number = clients.iter().filter(|(_, client)| client.id.is_some()).count();
            assert_eq!(clients.by_id.len(), with_number);
        }
    }
}

#[test]
fn what_a_client_says_is_counted_for_itself() {
    let now = start();
    let mut clients = clients(10);
    let here = from("192.0.2.1:5000");
    clients.enter(now, id(1), here, Wishes::default()).unwrap();
    let other: SocketAddr = "192.0.2.1:5001".parse().unwrap();
    assert_eq!(clients.admits(now, other, id(1)), None);
    assert_eq!(clients.admits(now, here.endpoint, id(2)), None);
    let mut admits = |at| clients.admits(at, here.endpoint, id(1)).unwrap();
    assert_eq!((0..100).filter(|_| admits(now)).count(), 20);
    assert!(admits(now + seconds(1)));
}

#[test]
fn bare_clients_are_half_at_most() {
    let now = start();
    let mut clients = clients(5);
    for number in 3..6 {
        let here = from(&format!("192.0.2.1:{number}"));
        clients.bind(now, here, ip(&format!("10.0.0.{number}")), nobody).unwrap();
    }
    let fourth = clients.bind(now, from("192.0.2.1:9"), ip("10.0.0.9"), nobody);
    assert_eq!(fourth, Err(NotBound::Full));
    clients.enter(now, id(1), from("192.0.2.1:10"), Wishes::default()).unwrap();
    assert_eq!(clients.expire(now + IDLE, nobody).len(), 4);
    assert!(clients.bind(now, from("192.0.2.1:9"), ip("10.0.0.9"), nobody).is_ok());
}
