//! A closed loop: each flow of each client keeps its window of datagrams in flight, and an answer
//! makes room for the next datagram.
//!
//! One thread and one epoll set. It sleeps when nothing waits, because it may share its core with
//! the echo server. Nothing is allocated per datagram. Send and receive times are taken once per
//! system call, just before the datagrams of a batch are made and just after they were read.

use super::clock::Clock;
use super::direct::DirectClient;
use super::gateway::GatewayClient;
use super::link::{Link, Received, Scratch, Tally};
use super::process::{CpuTime, Size, udp_drops};
use super::window::{PAYLOAD_LEN_MIN, Windows};
use super::{Failure, failed};
use mio::{Events, Interest, Poll, Token};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use udpferry::wire::udpgw::payload_len_max;

/// An answer that takes longer counts as lost, and another datagram takes its place. Far above the
/// round trip of any server worth its place here (the slowest peer's p50 is 20 ms under load).
const LOST_AFTER_NS: u64 = 200_000_000;
/// How often lost datagrams are looked for.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(20);

/// The way to the echo server.
#[derive(Clone, Copy)]
pub(crate) enum Path {
    Direct,
    /// Through a udpgw gateway.
    Gateway(SocketAddr),
    /// Through a tunnel whose near end takes plain UDP; each client is an endpoint of its own.
    Tunnel(SocketAddr),
}

/// What to put on the network, and whose CPU time to read.
pub(crate) struct Workload {
    pub(crate) echo: SocketAddr,
    pub(crate) path: Path,
    pub(crate) clients: usize,
    /// Per client.
    pub(crate) flows: usize,
    /// Datagrams in flight per flow.
    pub(crate) window: usize,
    pub(crate) payload_len: usize,
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
    pub(crate) gateway_pids: Vec<u32>,
    /// Those of a tunnel's near end.
    pub(crate) tunnel_pids: Vec<u32>,
    pub(crate) echo_pids: Vec<u32>,
}

impl Workload {
    fn refusal(&self) -> Option<String> {
        let len_max = payload_len_max(self.echo).min(65_507);
        if self.clients == 0 || self.flows == 0 || self.window == 0 {
            return Some("--clients, --flows and --window are at least 1".into());
        }
        if self.flows > usize::from(u16::MAX) {
            return Some("--flows is at most 65535, the number of conids".into());
        }
        if !(PAYLOAD_LEN_MIN..=len_max).contains(&self.payload_len) {
            return Some(format!("--payload is {PAYLOAD_LEN_MIN} to {len_max} bytes"));
        }
        None
    }
}

/// Runs the workload and prints what came of it, as one JSON object.
pub(crate) fn run(workload: &Workload) -> Result<(), Failure> {
    if let Some(refusal) = workload.refusal() {
        return Err(Failure::Usage(refusal));
    }
    let per_client = workload.flows * workload.window;
    let slots_of = |client: usize| client * per_client..(client + 1) * per_client;
    let clients = 0..workload.clients;
    let plain = |address| {
        let links: io::Result<Vec<_>> = clients
            .clone()
            .map(|client| DirectClient::connect(address, slots_of(client)))
            .collect();
        links.map_err(failed(format!("cannot connect to udp {address}")))
    };
    match workload.path {
        Path::Direct => measure(workload, plain(workload.echo)?),
        Path::Tunnel(near_end) => measure(workload, plain(near_end)?),
        Path::Gateway(gateway) => {
            let connect = |client| {
                GatewayClient::connect(gateway, workload.echo, slots_of(client), workload.window)
            };
            let links: io::Result<Vec<_>> = clients.clone().map(connect).collect();
            let links = links.map_err(failed(format!("cannot connect to tcp {gateway}")))?;
            measure(workload, links)
        }
    }
}

/// The counters that are read when the measurement begins and when it ends.
struct Snapshot {
    at_ns: u64,
    own: CpuTime,
    gateway: CpuTime,
    tunnel: CpuTime,
    echo: CpuTime,
    echo_drops: u64,
}

impl Snapshot {
    fn take(workload: &Workload, clock: Clock) -> Snapshot {
        Snapshot {
            at_ns: clock.now_ns(),
            own: CpuTime::of(&[std::process::id()]),
            gateway: CpuTime::of(&workload.gateway_pids),
            tunnel: CpuTime::of(&workload.tunnel_pids),
            echo: CpuTime::of(&workload.echo_pids),
            echo_drops: udp_drops(workload.echo.port()),
        }
    }
}

struct Load<L> {
    links: Vec<L>,
    windows: Windows,
    scratch: Scratch,
    slots: Vec<usize>,
}

fn measure<L: Link>(workload: &Workload, links: Vec<L>) -> Result<(), Failure> {
    let clock = Clock::start();
    let slot_count = workload.clients * workload.flows * workload.window;
    let run_id = u64::from(std::process::id());
    let mut load = Load {
        links,
        windows: Windows::new(run_id, slot_count, workload.payload_len),
        scratch: Scratch::new(clock),
        slots: Vec::with_capacity(slot_count),
    };
    let mut poll = Poll::new().map_err(failed("cannot make an epoll"))?;
    for (client, link) in load.links.iter_mut().enumerate() {
        poll.registry()
            .register(link.source(), Token(client), Interest::READABLE | Interest::WRITABLE)
            .map_err(failed("cannot watch a socket"))?;
    }
    for client in 0..load.links.len() {
        load.slots.clear();
        load.slots.extend(load.links[client].slots());
        load.send(client).map_err(failed(format!("client {client}")))?;
    }
    load.run_for(&mut poll, workload.warm_up)?;
    let start = Snapshot::take(workload, clock);
    load.scratch.tally = Tally::new();
    load.run_for(&mut poll, workload.duration)?;
    let end = Snapshot::take(workload, clock);
    print_report(workload, &load.scratch.tally, &start, &end);
    Ok(())
}

impl<L: Link> Load<L> {
    fn run_for(&mut self, poll: &mut Poll, duration: Duration) -> Result<(), Failure> {
        let clock = self.scratch.clock;
        let end_ns = clock.now_ns() + nanoseconds(duration);
        let mut expiry_ns = clock.now_ns() + nanoseconds(EXPIRY_INTERVAL);
        let mut events = Events::with_capacity(1024);
        loop {
            match poll.poll(&mut events, Some(EXPIRY_INTERVAL)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => other.map_err(failed("cannot wait for sockets"))?,
            }
            for event in &events {
                let client = event.token().0;
                self.serve(client, event.is_readable(), event.is_writable())
                    .map_err(failed(format!("client {client}")))?;
            }
            let now_ns = clock.now_ns();
            if now_ns >= expiry_ns {
                expiry_ns = now_ns + nanoseconds(EXPIRY_INTERVAL);
                self.replace_lost(now_ns)?;
            }
            if now_ns >= end_ns {
                return Ok(());
            }
        }
    }

    fn serve(&mut self, client: usize, readable: bool, writable: bool) -> io::Result<()> {
        if writable {
            self.links[client].flush()?;
        }
        let mut received = if readable { Received::MoreWaits } else { Received::All };
        while received == Received::MoreWaits {
            self.scratch.free.clear();
            received = self.links[client].receive(&mut self.windows, &mut self.scratch)?;
            std::mem::swap(&mut self.slots, &mut self.scratch.free);
            self.send(client)?;
        }
        Ok(())
    }

    /// Refills `self.slots`.
    fn send(&mut self, client: usize) -> io::Result<()> {
        if self.slots.is_empty() {
            return Ok(());
        }
        self.links[client].send(&self.slots, &mut self.windows, &mut self.scratch)
    }

    fn replace_lost(&mut self, now_ns: u64) -> Result<(), Failure> {
        let deadline_ns = now_ns.saturating_sub(LOST_AFTER_NS);
        for client in 0..self.links.len() {
            self.slots.clear();
            self.windows.expire(self.links[client].slots(), deadline_ns, &mut self.slots);
            self.scratch.tally.lost += self.slots.len() as u64;
            self.send(client).map_err(failed(format!("client {client}")))?;
        }
        Ok(())
    }
}

fn print_report(workload: &Workload, tally: &Tally, start: &Snapshot, end: &Snapshot) {
    let seconds = milli(end.at_ns - start.at_ns) / 1e6;
    let per_round_trip = |ns: u64| milli(ns) / milli(tally.round_trips.max(1) * 1000);
    let microseconds = |per_mille| milli(tally.round_trip_ns.quantile_ns(per_mille));
    let gateway = Size::of(&workload.gateway_pids);
    let tunnel = Size::of(&workload.tunnel_pids);
    println!(
        concat!(
            "{{\"clients\": {}, \"flows\": {}, \"window\": {}, \"payload\": {}, ",
            "\"seconds\": {:.3}, \"round_trips\": {}, \"rt_per_s\": {:.1}, ",
            "\"lost\": {}, \"unexpected\": {}, \"corrupt\": {}, \"echo_drops\": {}, ",
            "\"p50_us\": {:.2}, \"p99_us\": {:.2}, \"p999_us\": {:.2}, \"max_us\": {:.2}, ",
            "\"load_cpu_us_per_rt\": {:.3}, \"echo_cpu_us_per_rt\": {:.3}, ",
            "\"gateway_cpu_us_per_rt\": {:.3}, \"tunnel_cpu_us_per_rt\": {:.3}, ",
            "\"gateway_rss_kib\": {}, \"tunnel_rss_kib\": {}, ",
            "\"gateway_threads\": {}, \"gateway_descriptors\": {}}}"
        ),
        workload.clients,
        workload.flows,
        workload.window,
        workload.payload_len,
        seconds,
        tally.round_trips,
        milli(tally.round_trips * 1000) / seconds,
        tally.lost,
        tally.unexpected,
        tally.corrupt,
        end.echo_drops.saturating_sub(start.echo_drops),
        microseconds(500),
        microseconds(990),
        microseconds(999),
        milli(tally.round_trip_ns.max_ns()),
        per_round_trip(end.own.ns_since(&start.own)),
        per_round_trip(end.echo.ns_since(&start.echo)),
        per_round_trip(end.gateway.ns_since(&start.gateway)),
        per_round_trip(end.tunnel.ns_since(&start.tunnel)),
        gateway.rss_kib,
        tunnel.rss_kib,
        gateway.threads,
        gateway.descriptors,
    );
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A thousandth of `value`, as a float: nanoseconds to microseconds.
#[allow(clippy::cast_precision_loss)] // Counters and times of one run stay far below 2^53.
fn milli(value: u64) -> f64 {
    value as f64 / 1e3
}
