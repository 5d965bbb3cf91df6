//! What the NAT in front of this host does: [`crate::state::nat_detection`] on sockets of its own,
//! beside everything else or, with `--detect`, alone.

use super::counters::{Counters, DropReason};
use super::network::receive_batch;
use super::run::random_number;
use super::{Config, Detection as Wanted};
use crate::error::Error;
use crate::net::sys::mmsg::receive::ReceiveQueue;
use crate::net::sys::mmsg::send::SendQueue;
use crate::net::udp::{Buffers, UdpSocket, any_port};
use crate::roles::destination::Destination;
use crate::roles::frame::{FIRST_OWN, Frame, Happening};
use crate::roles::startup::Startup;
use crate::runtime::clock;
use crate::runtime::event_loop::EventLoop;
use crate::state::nat_detection::lifetime::LifetimeBounds;
use crate::state::nat_detection::message::{Heard, REQUEST_LEN_MAX};
use crate::state::nat_detection::report::Report;
use crate::state::nat_detection::schedule::Schedule;
use crate::state::nat_detection::{Config as Settings, Detection, MAIN_SOCKET, message};
use mio::{Interest, Token};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::time::Instant;

/// STUN's port: the server's second one, if it has one.
const STUN_PORT: u16 = 3_478;
/// A few answers.
const BUFFERS: Buffers = Buffers { receive: 0, send: 0 };

/// A detection under way, and its sockets.
pub(super) struct Detector {
    detection: Detection,
    sockets: Vec<UdpSocket>,
    first_token: usize,
    queue: SendQueue,
}

impl Detector {
    /// Tokens that it takes.
    pub(super) const TOKENS: usize = 2;

    /// Begins, with those of the servers that are of one family, IPv4 if there is any. `None` if
    /// there are none.
    pub(super) fn start(
        servers: impl Iterator<Item = SocketAddr> + Clone,
        lifetime: Option<LifetimeBounds>,
        first_token: usize,
        events: &mut EventLoop,
        now: Instant,
    ) -> io::Result<Option<Detector>> {
        let family = servers.clone().any(|server| server.is_ipv4());
        let mut found = Vec::new();
        for server in servers.filter(|server| server.is_ipv4() == family) {
            for server in [server, SocketAddr::new(server.ip(), STUN_PORT)] {
                if !found.contains(&server) {
                    found.push(server);
                }
            }
        }
        let Some(first) = found.first().copied() else {
            return Ok(None);
        };
        let mut sockets = Vec::new();
        for number in 0..Detector::TOKENS {
            let mut socket = UdpSocket::bind(any_port(first), false, BUFFERS)?;
            events.register(socket.source(), Token(first_token + number), Interest::READABLE)?;
            sockets.push(socket);
        }
        let port =
            sockets.first().map(UdpSocket::local_addr).transpose()?.map_or(0, |it| it.port());
        let local = SocketAddr::new(local_address(first)?, port);
        let settings = Settings {
            servers: found,
            local,
            schedule: Schedule::QUICK,
            lifetime,
            seed: random_number().unwrap_or_default(),
        };
        let detection = Detection::new(settings, now);
        Ok(Some(Detector { detection, sockets, first_token, queue: SendQueue::default() }))
    }

    /// Whether the token is one of its sockets'.
    pub(super) fn owns(&self, token: Token) -> bool {
        (self.first_token..self.first_token + Detector::TOKENS).contains(&token.0)
    }

    /// Sends what is due.
    pub(super) fn drive(&mut self, counters: &Counters, now: Instant) {
        while let Some(request) = self.detection.poll(now) {
            let mut bytes = [0; REQUEST_LEN_MAX];
            let Ok(len) = request.write(&mut bytes) else {
                continue;
            };
            if let Some(socket) = self.sockets.get(usize::from(request.socket)) {
                let mut batch = socket.batch(&mut self.queue);
                batch.push(Some(request.to), bytes.get(..len).unwrap_or_default());
                counters.refused(&batch.finish(), socket);
            }
        }
    }

    /// A batch of one of its sockets.
    pub(super) fn receive(
        &mut self,
        token: Token,
        queue: &mut ReceiveQueue,
        events: &mut EventLoop,
        counters: &Counters,
        now: Instant,
    ) {
        let place = token.0 - self.first_token;
        let Some(socket) = self.sockets.get(place) else {
            return;
        };
        if !receive_batch(socket, token, queue, events, counters) {
            return;
        }
        for message in queue.messages() {
            let Some(from) = message.source else { continue };
            for datagram in message.datagrams() {
                if !self.take(u16::try_from(place).unwrap_or(MAIN_SOCKET), from, datagram, now) {
                    counters.drop(DropReason::UnknownSender, 1);
                }
            }
        }
        self.drive(counters, now);
    }

    fn take(&mut self, socket: u16, from: SocketAddr, datagram: &[u8], now: Instant) -> bool {
        match message::read(datagram, from, socket) {
            Some(Heard::Answer(answer)) => self.detection.answered(&answer, now),
            Some(Heard::Request(id)) => {
                socket == MAIN_SOCKET && self.detection.request_heard(id, now)
            }
            None => false,
        }
    }

    /// When to [`Detector::drive`] again.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.detection.next_deadline()
    }

    /// What was found out, once all is.
    pub(super) fn report(&self) -> Option<&Report> {
        self.detection.report()
    }

    /// Stops watching its sockets.
    pub(super) fn close(&mut self, events: &mut EventLoop) {
        for (number, socket) in self.sockets.iter_mut().enumerate() {
            // Their descriptors are closed next, which ends the watch in any case.
            let _ = events.deregister(socket.source(), Token(self.first_token + number));
        }
    }
}

/// The address from which this host sends to `remote`.
fn local_address(remote: SocketAddr) -> io::Result<std::net::IpAddr> {
    let socket = UdpSocket::bind(any_port(remote), false, BUFFERS)?;
    socket.connect(remote)?;
    Ok(socket.local_addr()?.ip())
}

/// `--detect`: finds out, prints it, and returns the exit code.
pub(super) fn serve(config: &Config, wanted: Wanted, startup: Startup) -> Result<u8, Error> {
    let mut frame = Frame::new(config.common.metrics, None)?;
    let counters = Counters::new(&mut frame.registry);
    let servers = look_up(&config.servers)?;
    let lifetime = (wanted == Wanted::Lifetime).then(LifetimeBounds::default);
    let now = clock::now();
    let started =
        Detector::start(servers.iter().copied(), lifetime, FIRST_OWN, &mut frame.events, now);
    let Some(mut detector) = started.map_err(Error::while_doing(|| "cannot send to the server"))?
    else {
        let cause = io::Error::new(io::ErrorKind::NotFound, "the servers have no address");
        return Err(Error::System { doing: "cannot look at the NAT".to_owned(), cause });
    };
    frame.ready(startup)?;
    let mut queue = ReceiveQueue::default();
    loop {
        detector.drive(&counters, clock::now());
        if let Some(report) = detector.report() {
            let found = report.public.is_some();
            return match writeln!(io::stdout(), "{report}") {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    let doing = "cannot write to standard output".to_owned();
                    Err(Error::System { doing, cause: error })
                }
                _ => Ok(u8::from(!found)),
            };
        }
        let numbers = || ("looking at the NAT".to_owned(), "looking at the NAT".to_owned());
        match frame.next_happening(detector.next_deadline(), numbers)? {
            Happening::Stop => return Ok(0),
            Happening::Ready(token, _) if detector.owns(token) => {
                let now = clock::now();
                detector.receive(token, &mut queue, &mut frame.events, &counters, now);
            }
            _ => {}
        }
    }
}

fn look_up(servers: &[Destination]) -> Result<Vec<SocketAddr>, Error> {
    let mut found = Vec::new();
    for server in servers {
        let cannot = || format!("cannot resolve {server}");
        found.extend(server.resolve().map_err(Error::while_doing(cannot))?);
    }
    Ok(found)
}
