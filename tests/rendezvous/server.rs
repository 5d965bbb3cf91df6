//! A server on a free port of 127.0.0.1, and a member that hides nothing.

use crate::support::{PATIENCE, Service, await_some, free_port, http_get, recv};
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;
use udpferry::roles::member_key::Secret;
use udpferry::wire::rendezvous::answer::{Answer, Introduced, parse_answer};
use udpferry::wire::rendezvous::request::{Request, Wish, write_request};
use udpferry::wire::rendezvous::{Cookie, MemberId, Pass, RoomId, ServerKey};

pub(crate) struct Server {
    pub(crate) service: Service,
    pub(crate) address: SocketAddr,
    metrics: SocketAddr,
}

impl Server {
    pub(crate) fn start(args: &[&str]) -> Server {
        Server::start_with(args, |_| {})
    }

    /// With changes to how the process is started.
    pub(crate) fn start_with(args: &[&str], change: impl FnOnce(&mut Command)) -> Server {
        let address = SocketAddr::from(([127, 0, 0, 1], free_udp_port()));
        Server::start_changed(address, args, change)
    }

    pub(crate) fn start_on(address: SocketAddr, args: &[&str]) -> Server {
        Server::start_changed(address, args, |_| {})
    }

    fn start_changed(
        address: SocketAddr,
        args: &[&str],
        change: impl FnOnce(&mut Command),
    ) -> Server {
        let metrics = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let listen = format!("--listen-addr={address}");
        let metrics_arg = format!("--metrics={metrics}");
        let mut all = vec!["rendezvous", &listen, &metrics_arg];
        all.extend_from_slice(args);
        Server { service: Service::start_with(&all, change), address, metrics }
    }

    /// The value of a metric without `udpferry_rendezvous_`, with its label if it has one.
    pub(crate) fn metric(&self, name: &str) -> i64 {
        let name = format!("udpferry_rendezvous_{name}");
        let page = http_get(self.metrics, "/metrics");
        let line = page.lines().find(|line| line.split(' ').next() == Some(&name));
        let line = line.unwrap_or_else(|| panic!("no metric {name} in\n{page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    pub(crate) fn await_metric(&self, name: &str, value: i64) {
        let reached = await_some(|| (self.metric(name) == value).then_some(()));
        assert!(reached.is_some(), "{name} is {}, not {value}", self.metric(name));
    }

    pub(crate) fn dropped(&self, reason: &str) -> i64 {
        self.metric(&format!("datagrams_dropped_total{{reason=\"{reason}\"}}"))
    }

    pub(crate) fn await_dropped(&self, reason: &str, value: i64) {
        self.await_metric(&format!("datagrams_dropped_total{{reason=\"{reason}\"}}"), value);
    }
}

/// A UDP port of 127.0.0.1 and 127.0.0.2 that nobody uses.
pub(crate) fn free_udp_port() -> u16 {
    loop {
        let port = free_port();
        if ["127.0.0.1", "127.0.0.2"].iter().all(|ip| UdpSocket::bind((*ip, port)).is_ok()) {
            return port;
        }
    }
}

/// A socket that talks to the server alone.
pub(crate) fn socket_to(server: SocketAddr) -> UdpSocket {
    let any = if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

pub(crate) fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut bytes = vec![0; 65_536];
    let len = recv(socket, &mut bytes).expect("nothing came");
    bytes.truncate(len);
    bytes
}

/// Whether nothing comes for so long.
pub(crate) fn is_silent_for(socket: &UdpSocket, time: Duration) -> bool {
    socket.set_read_timeout(Some(time)).unwrap();
    let silent = socket.recv(&mut [0; 2048]).is_err();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    silent
}

pub(crate) struct Member {
    pub(crate) socket: UdpSocket,
    pub(crate) room: RoomId,
    /// The secret half of its key.
    pub(crate) secret: [u8; 32],
    pub(crate) pass: Pass,
}

/// What no server has given: its cookie does not count.
pub(crate) const NO_PASS: Pass = Pass { cookie: Cookie([0; 16]), server: ServerKey([9; 32]) };

impl Member {
    /// A member of room `number` that has a cookie.
    pub(crate) fn new(server: SocketAddr, number: u8) -> Member {
        let socket = socket_to(server);
        let mut secret = [number; 32];
        // Not the first byte: X25519 takes no notice of three of its bits, and two ports would be one member.
        secret[1..3].copy_from_slice(&socket.local_addr().unwrap().port().to_be_bytes());
        let mut member = Member { socket, room: RoomId([number; 16]), secret, pass: NO_PASS };
        member.hello();
        member
    }

    /// The same with its registration.
    pub(crate) fn entered(server: SocketAddr, number: u8) -> Member {
        let member = Member::new(server, number);
        member.register();
        member
    }

    pub(crate) fn endpoint(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    pub(crate) fn send(&self, request: &Request<'_>) {
        let mut bytes = Vec::new();
        write_request(&mut bytes, request);
        self.socket.send(&bytes).unwrap();
    }

    /// The datagram of a wish, and so sent; its number is 2.
    pub(crate) fn boxed(&self, wish: &Wish<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let cipher = Secret::from_random(self.secret).towards(self.pass.server).unwrap();
        cipher.write(&mut bytes, 2, self.pass, self.room, wish);
        bytes
    }

    pub(crate) fn ask(&self, wish: &Wish<'_>) {
        self.socket.send(&self.boxed(wish)).unwrap();
    }

    /// What comes next.
    pub(crate) fn next(&self) -> Vec<u8> {
        receive(&self.socket)
    }

    /// The next answer that `wanted` takes; others are passed over.
    pub(crate) fn until<T>(&self, wanted: impl Fn(Answer<'_>) -> Option<T>) -> T {
        loop {
            let bytes = self.next();
            if let Some(found) = wanted(parse_answer(&bytes).unwrap()) {
                return found;
            }
        }
    }

    pub(crate) fn hello(&mut self) {
        self.send(&Request::Hello { tx: 1 });
        let (pass, endpoint) = self.until(|answer| match answer {
            Answer::Cookie { tx: 1, pass, endpoint } => Some((pass, endpoint)),
            _ => None,
        });
        assert_eq!(endpoint, self.endpoint());
        self.pass = pass;
    }

    /// Registers and returns who we are, and how many are in the room.
    pub(crate) fn register(&self) -> (MemberId, u8) {
        self.register_with(0, b"sealed")
    }

    pub(crate) fn register_with(&self, rtt_ms: u16, sealed: &[u8]) -> (MemberId, u8) {
        self.ask(&Wish::Register { rtt_ms, sealed });
        self.until(|answer| match answer {
            Answer::Registered { tx: 2, member, members, endpoint, .. } => {
                assert_eq!(endpoint, self.endpoint());
                Some((member, members))
            }
            Answer::Refused { reason, .. } => panic!("{reason:?}"),
            Answer::Cookie { .. } => panic!("the cookie does not count"),
            _ => None,
        })
    }

    /// The next introduction: number, start, who, where, announcement.
    pub(crate) fn introduced(&self) -> (u64, u16, MemberId, SocketAddr, Vec<u8>) {
        self.until(|answer| match answer {
            Answer::Introduce(Introduced {
                introduction,
                start_ms,
                member,
                endpoints,
                sealed,
                ..
            }) => {
                assert_eq!(endpoints.second, None);
                Some((introduction, start_ms, member, endpoints.first, sealed.to_vec()))
            }
            _ => None,
        })
    }

    pub(crate) fn acknowledge(&self, introduction: u64) {
        self.send(&Request::Introduced { introduction });
    }

    pub(crate) fn gone(&self) -> MemberId {
        self.until(|answer| match answer {
            Answer::Gone { member } => Some(member),
            _ => None,
        })
    }
}
