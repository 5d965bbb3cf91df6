use super::*;
use crate::state::seeded::Seeded;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn client(number: u8) -> ClientId {
    ClientId([number; 16])
}

/// 10.0.0.2/29 and fd00::2/64: the clients' are 10.0.0.1 and .3 to .6.
fn leases() -> Leases {
    let subnets = [("10.0.0.2", 29), ("fd00::2", 64)];
    Leases::new(subnets.map(|(own, prefix)| Subnet::new(ip(own), prefix).unwrap()), LEASES_MAX)
}

fn any() -> Wishes {
    Wishes::default()
}

fn only(address: &str) -> Wishes {
    match ip(address) {
        IpAddr::V4(address) => Wishes::new(Wish::Only(address), Wish::Any),
        IpAddr::V6(address) => Wishes::new(Wish::Any, Wish::Only(address)),
    }
}

fn rather(address: &str) -> Wishes {
    Wishes::new(Wish::Rather(address.parse().unwrap()), Wish::Any)
}

fn shown(addresses: Addresses) -> String {
    addresses.iter().map(|address| address.to_string()).collect::<Vec<_>>().join(" ")
}

#[test]
fn clients_get_different_addresses_and_keep_them() {
    let mut leases = leases();
    let all: Vec<String> =
        (1..=5).map(|number| shown(leases.take(client(number), any()).unwrap())).collect();
    let expected = [
        "10.0.0.1 fd00::1",
        "10.0.0.3 fd00::3",
        "10.0.0.4 fd00::4",
        "10.0.0.5 fd00::5",
        "10.0.0.6 fd00::6",
    ];
    assert_eq!(all, expected);
    assert_eq!(leases.take(client(6), any()), Err(NoLease::Exhausted));
    assert_eq!(shown(leases.take(client(2), any()).unwrap()), "10.0.0.3 fd00::3");
    leases.release(client(2));
    assert_eq!(shown(leases.take(client(2), any()).unwrap()), "10.0.0.3 fd00::3");
}

#[test]
fn whoever_has_been_away_for_longest_gives_way() {
    let mut leases = leases();
    for number in 1..=5 {
        leases.take(client(number), any()).unwrap();
    }
    leases.release(client(4));
    leases.release(client(2));
    assert_eq!(shown(leases.take(client(6), any()).unwrap()), "10.0.0.5 fd00::5");
    // Client 4 has lost its address to 6, and takes that of 2 now.
    assert_eq!(shown(leases.take(client(4), any()).unwrap()), "10.0.0.3 fd00::3");
    assert_eq!(leases.take(client(2), any()), Err(NoLease::Exhausted));
    assert_eq!(leases.iter().count(), 5);
}

#[test]
fn a_fixed_address_is_one_clients_while_it_is_there() {
    let mut leases = leases();
    assert_eq!(shown(leases.take(client(1), only("10.0.0.3")).unwrap()), "10.0.0.3 fd00::3");
    assert_eq!(leases.take(client(2), only("10.0.0.3")), Err(NoLease::Taken));
    assert_eq!(shown(leases.take(client(1), only("10.0.0.3")).unwrap()), "10.0.0.3 fd00::3");
    leases.release(client(1));
    assert_eq!(shown(leases.take(client(2), only("10.0.0.3")).unwrap()), "10.0.0.3 fd00::3");
    assert_eq!(shown(leases.take(client(1), any()).unwrap()), "10.0.0.1 fd00::1");
    for outside in ["10.0.0.2", "10.0.0.0", "10.0.0.7", "10.0.1.1", "fd00::2", "fd01::1"] {
        assert_eq!(leases.take(client(3), only(outside)), Err(NoLease::Outside), "{outside}");
    }
    assert_eq!(leases.iter().count(), 2, "a refused client has no lease");
}

#[test]
fn a_fixed_address_may_lie_outside_the_pool_and_is_not_given_to_others() {
    let subnet = Subnet::new(ip("10.0.0.2"), 24).unwrap();
    let subnet = subnet.with_pool(ip("10.0.0.100"), ip("10.0.0.101")).unwrap();
    let mut leases = Leases::new([subnet], LEASES_MAX);
    assert_eq!(leases.take(client(1), only("fd00::1")), Err(NoLease::Outside));
    assert_eq!(shown(leases.take(client(1), only("10.0.0.9")).unwrap()), "10.0.0.9");
    assert_eq!(shown(leases.take(client(2), only("10.0.0.100")).unwrap()), "10.0.0.100");
    assert_eq!(shown(leases.take(client(3), any()).unwrap()), "10.0.0.101");
    leases.release(client(1));
    assert_eq!(leases.take(client(4), any()), Err(NoLease::Exhausted));
    // Without its wish it gets one of the pool, and its own is nobody's.
    leases.release(client(3));
    assert_eq!(shown(leases.take(client(1), any()).unwrap()), "10.0.0.101");
    assert_eq!(shown(leases.take(client(5), only("10.0.0.9")).unwrap()), "10.0.0.9");
}

#[test]
fn an_address_that_a_client_had_before_a_restart_is_its_own_if_it_is_free() {
    let mut leases = leases();
    assert_eq!(shown(leases.take(client(1), rather("10.0.0.5")).unwrap()), "10.0.0.5 fd00::5");
    assert_eq!(shown(leases.take(client(2), rather("10.0.0.5")).unwrap()), "10.0.0.1 fd00::1");
    assert_eq!(shown(leases.take(client(3), rather("192.0.2.1")).unwrap()), "10.0.0.3 fd00::3");
}

#[test]
fn addresses_that_are_used_without_a_lease_are_taken() {
    let mut leases = leases();
    assert_eq!(leases.take_bare(ip("10.0.0.1")), Ok(()));
    assert_eq!(leases.take_bare(ip("10.0.0.1")), Err(NoLease::Taken));
    assert_eq!(leases.take_bare(ip("10.0.0.2")), Err(NoLease::Outside));
    assert_eq!(leases.take_bare(ip("10.0.0.9")), Err(NoLease::Outside));
    assert_eq!(leases.take(client(1), only("10.0.0.1")), Err(NoLease::Taken));
    assert_eq!(shown(leases.take(client(1), any()).unwrap()), "10.0.0.3 fd00::3");
    assert_eq!(leases.take_bare(ip("10.0.0.3")), Err(NoLease::Taken));
    leases.release(client(1));
    assert_eq!(leases.take_bare(ip("10.0.0.3")), Err(NoLease::Taken), "it waits for its client");
    leases.release_bare(ip("10.0.0.1"));
    leases.release_bare(ip("10.0.0.3"));
    assert_eq!(shown(leases.take(client(1), any()).unwrap()), "10.0.0.3 fd00::3");
    assert_eq!(leases.take_bare(ip("10.0.0.1")), Ok(()));
}

#[test]
fn leases_survive_a_restart_in_their_order() {
    let mut before = leases();
    for number in 1..=5 {
        before.take(client(number), any()).unwrap();
    }
    before.release(client(3));
    before.release(client(1));
    let mut after = leases();
    for (client, addresses) in before.iter() {
        after.restore(client, addresses);
    }
    assert_eq!(after.iter().count(), 5);
    // What contradicts what is there: another client's addresses, addresses of another network.
    after.restore(client(7), Addresses::new(Some(Ipv4Addr::new(10, 0, 0, 1)), None));
    after.restore(client(8), Addresses::new(Some(Ipv4Addr::new(10, 9, 0, 1)), None));
    after.restore(client(1), Addresses::new(None, Some("fd00::77".parse().unwrap())));
    assert_eq!(after.iter().count(), 5);
    assert_eq!(shown(after.take(client(5), any()).unwrap()), "10.0.0.6 fd00::6");
    assert_eq!(shown(after.take(client(6), any()).unwrap()), "10.0.0.4 fd00::4");
    assert_eq!(shown(after.take(client(7), any()).unwrap()), "10.0.0.1 fd00::1");
}

#[test]
fn the_number_of_leases_is_bounded_where_addresses_are_not() {
    let mut leases = Leases::new([Subnet::new(ip("fd00::2"), 64).unwrap()], 2);
    leases.take(client(1), any()).unwrap();
    leases.take(client(2), any()).unwrap();
    assert_eq!(leases.take(client(3), any()), Err(NoLease::Exhausted));
    leases.release(client(1));
    assert_eq!(shown(leases.take(client(3), any()).unwrap()), "fd00::4");
    assert_eq!(leases.iter().count(), 2);
}

/// What leases are, said simply: who is there, and who has which address.
#[derive(Default)]
struct Model {
    there: BTreeSet<ClientId>,
    bare: BTreeSet<IpAddr>,
}

/// Random comings and goings against what must hold always.
#[test]
fn no_address_is_ever_two_clients() {
    for seed in 0..200 {
        let mut seeded = Seeded::new(seed);
        let mut leases = leases();
        let mut model = Model::default();
        for step in 0..300 {
            let who = client(u8::try_from(seeded.below(9)).unwrap());
            let last = u8::try_from(seeded.below(9)).unwrap();
            let address = Ipv4Addr::new(10, 0, 0, last);
            match seeded.below(7) {
                0 => {
                    leases.release(who);
                    model.there.remove(&who);
                }
                1 => {
                    if leases.take_bare(address.into()).is_ok() {
                        assert!(model.bare.insert(address.into()));
                    }
                }
                2 => {
                    leases.release_bare(address.into());
                    model.bare.remove(&address.into());
                }
                kind => {
                    let ipv6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into());
                    let wishes = match kind {
                        3 => Wishes::new(Wish::Only(address), Wish::Any),
                        4 => Wishes::new(Wish::Rather(address), Wish::Only(ipv6)),
                        _ => any(),
                    };
                    let before: Vec<_> = leases.iter().collect();
                    match leases.take(who, wishes) {
                        Ok(_) => {
                            model.there.insert(who);
                        }
                        Err(_) => assert_eq!(leases.iter().collect::<Vec<_>>(), before),
                    }
                }
            }
            let mut seen = BTreeMap::new();
            for (holder, addresses) in leases.iter() {
                assert!(!addresses.is_empty());
                for address in addresses.iter() {
                    assert_eq!(seen.insert(address, holder), None, "seed {seed}, step {step}");
                    assert!(!model.bare.contains(&address), "seed {seed}, step {step}");
                    assert!(leases.subnets().any(|subnet| subnet.takes(address)));
                }
            }
            for present in &model.there {
                let had = leases.iter().find(|(holder, _)| holder == present).unwrap().1;
                assert!(had.ipv4().is_some() && had.ipv6().is_some(), "seed {seed}, step {step}");
            }
            // Somebody new gets an address as long as one is held by nobody who is there.
            let free = (1..=6).map(|last| ip(&format!("10.0.0.{last}"))).any(|address| {
                let holder = seen.get(&address);
                address != ip("10.0.0.2")
                    && !model.bare.contains(&address)
                    && holder.is_none_or(|holder| !model.there.contains(holder))
            });
            assert_eq!(leases.take(client(99), any()).is_ok(), free, "seed {seed}, step {step}");
            leases.release(client(99));
        }
    }
}
