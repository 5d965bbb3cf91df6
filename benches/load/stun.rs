//! STUN Binding requests in a closed loop: each of many source ports keeps its window of requests in
//! flight, and an answer makes room for the next one.
//!
//! A request's transaction id is the time at which it was made and a number of this run, so that
//! an answer tells its round trip and nothing is kept per request.

use super::clock::Clock;
use super::histogram::Histogram;
use super::process::{CpuTime, Size, udp_drops};
use super::{Failure, failed};
use mio::{Events, Interest, Poll, Token};
use socket2::SockRef;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;
use udpferry::net::sys::mmsg::receive::{RECEIVE_BATCH, ReceiveQueue};
use udpferry::net::sys::mmsg::send::SendQueue;
use udpferry::wire::stun::writer::Writer;
use udpferry::wire::stun::{Class, HEADER_LEN, Message, Method, TransactionId};

/// A port from which nothing has come for so long has lost what it had in flight.
const LOST_AFTER_NS: u64 = 200_000_000;
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// What to ask of whom.
pub(crate) struct Workload {
    pub(crate) server: SocketAddr,
    pub(crate) ports: usize,
    /// Requests in flight per port.
    pub(crate) window: usize,
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
    pub(crate) server_pids: Vec<u32>,
    /// The server is a bare echo server: what comes back is what was sent.
    pub(crate) is_echoed: bool,
}

struct Port {
    socket: mio::net::UdpSocket,
    address: SocketAddr,
    in_flight: usize,
    last_ns: u64,
}

struct Load {
    clock: Clock,
    run: [u8; 4],
    ports: Vec<Port>,
    is_echoed: bool,
    requests: Vec<[u8; HEADER_LEN]>,
    sending: SendQueue,
    receiving: ReceiveQueue,
    bindings: u64,
    lost: u64,
    corrupt: u64,
    round_trip_ns: Histogram,
}

struct Snapshot {
    at_ns: u64,
    own: CpuTime,
    server: CpuTime,
}

/// Runs the workload and prints what came of it, as one JSON object.
pub(crate) fn run(workload: &Workload) -> Result<(), Failure> {
    if workload.ports == 0 || !(1..=RECEIVE_BATCH).contains(&workload.window) {
        let refusal = format!("--ports is at least 1, --window 1 to {RECEIVE_BATCH}");
        return Err(Failure::Usage(refusal));
    }
    let mut poll = Poll::new().map_err(failed("cannot make an epoll"))?;
    let ports: io::Result<Vec<Port>> = (0..workload.ports)
        .map(|number| {
            let mut port = connect(workload.server)?;
            poll.registry().register(&mut port.socket, Token(number), Interest::READABLE)?;
            Ok(port)
        })
        .collect();
    let mut load = Load {
        clock: Clock::start(),
        run: std::process::id().to_be_bytes(),
        ports: ports.map_err(failed(format!("cannot connect to udp {}", workload.server)))?,
        is_echoed: workload.is_echoed,
        requests: Vec::with_capacity(workload.window),
        sending: SendQueue::default(),
        receiving: ReceiveQueue::default(),
        bindings: 0,
        lost: 0,
        corrupt: 0,
        round_trip_ns: Histogram::new(),
    };
    for number in 0..workload.ports {
        load.fill(number, workload.window)?;
    }
    load.run_for(&mut poll, workload.warm_up, workload.window)?;
    let start = load.snapshot(workload);
    let drops = udp_drops(workload.server.port());
    (load.bindings, load.lost, load.corrupt) = (0, 0, 0);
    load.round_trip_ns = Histogram::new();
    load.run_for(&mut poll, workload.duration, workload.window)?;
    let end = load.snapshot(workload);
    let drops = udp_drops(workload.server.port()).saturating_sub(drops);
    load.print(workload, &start, &end, drops);
    Ok(())
}

fn connect(server: SocketAddr) -> io::Result<Port> {
    let socket = UdpSocket::bind(udpferry::net::udp::any_port(server))?;
    SockRef::from(&socket).set_nonblocking(true)?;
    socket.connect(server)?;
    let address = socket.local_addr()?;
    let socket = mio::net::UdpSocket::from_std(socket);
    Ok(Port { socket, address, in_flight: 0, last_ns: 0 })
}

impl Load {
    fn snapshot(&self, workload: &Workload) -> Snapshot {
        Snapshot {
            at_ns: self.clock.now_ns(),
            own: CpuTime::of(&[std::process::id()]),
            server: CpuTime::of(&workload.server_pids),
        }
    }

    fn run_for(
        &mut self,
        poll: &mut Poll,
        duration: Duration,
        window: usize,
    ) -> Result<(), Failure> {
        let end_ns = self.clock.now_ns() + nanoseconds(duration);
        let mut look_ns = self.clock.now_ns() + nanoseconds(LOOK_INTERVAL);
        let mut events = Events::with_capacity(1024);
        loop {
            match poll.poll(&mut events, Some(LOOK_INTERVAL)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => other.map_err(failed("cannot wait for sockets"))?,
            }
            for event in &events {
                let number = event.token().0;
                self.receive(number)?;
                self.fill(number, window)?;
            }
            let now_ns = self.clock.now_ns();
            if now_ns >= look_ns {
                look_ns = now_ns + nanoseconds(LOOK_INTERVAL);
                for number in 0..self.ports.len() {
                    if self.ports[number].last_ns + LOST_AFTER_NS < now_ns {
                        self.lost += self.ports[number].in_flight as u64;
                        self.ports[number].in_flight = 0;
                        self.fill(number, window)?;
                    }
                }
            }
            if now_ns >= end_ns {
                return Ok(());
            }
        }
    }

    /// Sends as many requests as the window has room for, with one system call.
    fn fill(&mut self, number: usize, window: usize) -> Result<(), Failure> {
        let port = &mut self.ports[number];
        let now_ns = self.clock.now_ns();
        self.requests.clear();
        for _ in port.in_flight..window {
            let mut id = [0; 12];
            id[..8].copy_from_slice(&now_ns.to_be_bytes());
            id[8..].copy_from_slice(&self.run);
            let mut request = [0; HEADER_LEN];
            let id = TransactionId::new(id);
            // A header fits a header's length.
            let _ = Writer::new(&mut request, Class::Request, Method::BINDING, id);
            self.requests.push(request);
        }
        let mut batch = self.sending.batch(&port.socket, false);
        for request in &self.requests {
            batch.push(None, request);
        }
        let report = batch.finish();
        if let Some(error) = report.last_error {
            return Err(error).map_err(failed("cannot send"));
        }
        port.in_flight += report.sent;
        port.last_ns = now_ns;
        Ok(())
    }

    /// Takes everything that has come to a port: the window is at most one receive's worth.
    fn receive(&mut self, number: usize) -> Result<(), Failure> {
        let port = &mut self.ports[number];
        loop {
            match self.receiving.receive(&port.socket) {
                Ok(count) => {
                    let now_ns = self.clock.now_ns();
                    for datagram in
                        self.receiving.messages().flat_map(|message| message.datagrams())
                    {
                        let read = if self.is_echoed { read_request } else { read };
                        match read(datagram, self.run, port.address) {
                            Some(sent_ns) => {
                                self.bindings += 1;
                                self.round_trip_ns.record(now_ns.saturating_sub(sent_ns));
                                port.in_flight = port.in_flight.saturating_sub(1);
                            }
                            None => self.corrupt += 1,
                        }
                    }
                    if count < RECEIVE_BATCH {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).map_err(failed("cannot receive")),
            }
        }
    }

    fn print(&self, workload: &Workload, start: &Snapshot, end: &Snapshot, drops: u64) {
        let seconds = milli(end.at_ns - start.at_ns) / 1e6;
        let per_binding = |ns: u64| milli(ns) / milli(self.bindings.max(1) * 1000);
        let microseconds = |per_mille| milli(self.round_trip_ns.quantile_ns(per_mille));
        let size = Size::of(&workload.server_pids);
        // The names of the other workloads: the server is what they call a gateway.
        println!(
            concat!(
                "{{\"ports\": {}, \"window\": {}, \"seconds\": {:.3}, \"round_trips\": {}, ",
                "\"rt_per_s\": {:.1}, \"lost\": {}, \"unexpected\": 0, \"corrupt\": {}, ",
                "\"echo_drops\": {}, \"p50_us\": {:.2}, \"p99_us\": {:.2}, \"p999_us\": {:.2}, ",
                "\"max_us\": {:.2}, \"load_cpu_us_per_rt\": {:.3}, \"echo_cpu_us_per_rt\": 0.0, ",
                "\"gateway_cpu_us_per_rt\": {:.3}, \"tunnel_cpu_us_per_rt\": 0.0, ",
                "\"gateway_rss_kib\": {}, \"tunnel_rss_kib\": 0, ",
                "\"gateway_threads\": {}, \"gateway_descriptors\": {}}}"
            ),
            workload.ports,
            workload.window,
            seconds,
            self.bindings,
            milli(self.bindings * 1000) / seconds,
            self.lost,
            self.corrupt,
            drops,
            microseconds(500),
            microseconds(990),
            microseconds(999),
            milli(self.round_trip_ns.max_ns()),
            per_binding(end.own.ns_since(&start.own)),
            per_binding(end.server.ns_since(&start.server)),
            size.rss_kib,
            size.threads,
            size.descriptors,
        );
    }
}

/// When the request was made whose right answer this is.
fn read(datagram: &[u8], run: [u8; 4], address: SocketAddr) -> Option<u64> {
    let answer = Message::parse(datagram).ok().filter(|answer| answer.class == Class::Success)?;
    let id = answer.id.id();
    let mapped = answer.mapped_address().ok().flatten()?;
    // Bound to a wildcard and connected: the port tells which socket it was.
    if id[8..] != run || mapped.port() != address.port() {
        return None;
    }
    id[..8].try_into().ok().map(u64::from_be_bytes)
}

/// When this request was made, if we made it.
fn read_request(datagram: &[u8], run: [u8; 4], _address: SocketAddr) -> Option<u64> {
    let request = Message::parse(datagram).ok().filter(|it| it.class == Class::Request)?;
    let id = request.id.id();
    let made = id[..8].try_into().ok().map(u64::from_be_bytes);
    made.filter(|_| id[8..] == run)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A thousandth of `value`, as a float: nanoseconds to microseconds.
#[allow(clippy::cast_precision_loss)] // Counters and times of one run stay far below 2^53.
fn milli(value: u64) -> f64 {
    value as f64 / 1e3
}
