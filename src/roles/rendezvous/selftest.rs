//! The role's row of `udpferry selftest`: pairs that meet in rooms, and the relay between them.

use super::probe::{Probe, is_timeout};
use crate::error::Error;
use crate::net::random;
use crate::roles::proof::{TIMEOUT, Tally, datagram, run_clients};
use crate::roles::selftest::{SelftestRow, Service, free_udp_address};
use crate::runtime::clock;
use crate::wire::rendezvous::RoomId;
use std::io;
use std::net::SocketAddr;

const ROOMS: usize = 8;
/// Round trips through the relay in each room.
const ROUNDS: u32 = 500;
/// What crosses any path, with the relay's header.
const SIZES: [usize; 6] = [0, 1, 64, 200, 512, 1200];

/// Runs a server; members meet in rooms, and verify what the relay carries between them.
pub fn selftest() -> Result<Vec<SelftestRow>, Error> {
    let server = free_udp_address()?;
    let args = ["rendezvous", "--log-level=error", "--source-rate=0", "--relay"];
    let mut args = args.map(str::to_owned).to_vec();
    args.extend(["--relay-rate=4G", "--relay-total-rate=4G"].map(str::to_owned));
    args.push(format!("--listen-addr={server}"));
    let service = Service::start(&args)?;
    let rooms = (0..ROOMS).map(|_| move || meet(server));
    let none = || Ok(Tally::default());
    let row = run_clients("rendezvous", 2 * ROOMS, ROOMS, rooms.collect(), none);
    drop(service);
    row.map(|row| vec![row])
}

fn meet(server: SocketAddr) -> io::Result<Tally> {
    let room = RoomId(random::bytes()?);
    let mut tally = Tally::default();
    let mut enter = || -> io::Result<_> {
        let begin = clock::now();
        let mut member = Probe::connect(server, room, TIMEOUT)?;
        let seen = member.hello()?;
        let registered = member.register()?;
        if seen == member.local_addr()? && registered.endpoint == seen {
            tally.verified(0, clock::now().saturating_duration_since(begin));
        } else {
            tally.lost += 1;
        }
        Ok((member, registered.member, seen))
    };
    let (one, one_id, one_at) = enter()?;
    let (other, other_id, other_at) = enter()?;
    for (member, expected) in [(&one, (other_id, other_at)), (&other, (one_id, one_at))] {
        let begin = clock::now();
        if member.introduced()? == expected {
            tally.verified(0, clock::now().saturating_duration_since(begin));
        } else {
            tally.lost += 1;
        }
    }
    for round in 0..ROUNDS {
        let size = SIZES[round as usize % SIZES.len()];
        let sent = datagram(round, size);
        let begin = clock::now();
        one.relay(other_id, &sent)?;
        let there = or_lost(other.relayed(one_id))?;
        other.relay(one_id, &there)?;
        let back = or_lost(one.relayed(other_id))?;
        if there == sent && back == sent {
            tally.verified(size, clock::now().saturating_duration_since(begin));
        } else {
            tally.lost += 1;
        }
    }
    one.leave()?;
    other.leave()?;
    Ok(tally)
}

/// What did not come is lost, which the tally says.
fn or_lost(received: io::Result<Vec<u8>>) -> io::Result<Vec<u8>> {
    match received {
        Err(error) if is_timeout(&error) => Ok(b"nothing came".to_vec()),
        received => received,
    }
}
