//! A blocking client without a device, for `check` and `selftest`: gets addresses, and pings the
//! server through its tunnel.

use crate::net::random;
use crate::runtime::clock;
use crate::wire::icmp_echo::{self, Echo, data_len};
use crate::wire::vpn::{
    Answer, ClientId, Cookie, Refusal, Request, Wish, parse_answer, write_request,
};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// An unanswered request is repeated after so long, then after twice as long each time.
const RETRY: Duration = Duration::from_millis(250);
/// The longest datagram.
const BUFFER_LEN: usize = 65_536;

/// One client.
pub(super) struct Probe {
    socket: UdpSocket,
    timeout: Duration,
    id: ClientId,
    sequence: u16,
    bytes: Vec<u8>,
}

/// What the server has given it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Where the server sees it.
    pub(super) endpoint: SocketAddr,
    /// Its own addresses, each with the length of its prefix and the server's.
    pub(super) addresses: Vec<(IpAddr, u8, IpAddr)>,
    pub(super) mtu: u16,
    pub(super) keepalive_s: u16,
    pub(super) dns: Vec<IpAddr>,
}

/// Why there is no place.
#[derive(Debug)]
pub(super) enum NoPlace {
    Io(io::Error),
    Refused(Refusal),
    OtherVersion(u8),
    /// It sends cookies that it does not take.
    CookieRefused,
}

impl From<io::Error> for NoPlace {
    fn from(error: io::Error) -> NoPlace {
        NoPlace::Io(error)
    }
}

impl Probe {
    /// Talks to `server` and to nobody else; waits up to `timeout` for each answer.
    pub(super) fn connect(server: SocketAddr, timeout: Duration) -> io::Result<Probe> {
        let socket = UdpSocket::bind(crate::net::udp::any_port(server))?;
        socket.connect(server)?;
        let id = ClientId(random::bytes()?);
        Ok(Probe { socket, timeout, id, sequence: 0, bytes: vec![0; BUFFER_LEN] })
    }

    /// Our own endpoint, without any NAT.
    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Asks where the server sees us, with a cookie.
    pub(super) fn hello(&mut self) -> Result<(SocketAddr, Cookie), NoPlace> {
        let tx = random_tx()?;
        let request = self.request(tx, Cookie([0; 16]));
        self.ask(&request, |answer| match answer {
            Answer::Cookie { tx: of, cookie, endpoint } if of == tx => Some(Ok((endpoint, cookie))),
            Answer::OtherVersion { tx: of, version } if of == tx => {
                Some(Err(NoPlace::OtherVersion(version)))
            }
            _ => None,
        })?
    }

    /// Shows the cookie.
    pub(super) fn enter(&mut self, endpoint: SocketAddr, cookie: Cookie) -> Result<Place, NoPlace> {
        let tx = random_tx()?;
        let request = self.request(tx, cookie);
        self.ask(&request, |answer| match answer {
            Answer::Welcome { tx: of, ipv4, ipv6, mtu, keepalive_s, dns } if of == tx => {
                let ipv4 = ipv4.map(|it| (it.address.into(), it.prefix, it.server.into()));
                let ipv6 = ipv6.map(|it| (it.address.into(), it.prefix, it.server.into()));
                let addresses = ipv4.into_iter().chain(ipv6).collect();
                let dns = dns.iter().collect();
                Some(Ok(Place { endpoint, addresses, mtu, keepalive_s, dns }))
            }
            Answer::Refused { tx: of, reason } if of == tx => Some(Err(NoPlace::Refused(reason))),
            Answer::Cookie { tx: of, .. } if of == tx => Some(Err(NoPlace::CookieRefused)),
            _ => None,
        })?
    }

    /// Sends an echo request in a packet of `packet_len` bytes through the tunnel and waits for the
    /// reply, which must be the same. Returns the round trip; `None` if none came.
    pub(super) fn ping(
        &mut self,
        (source, server): (IpAddr, IpAddr),
        packet_len: usize,
        content: &[u8],
    ) -> io::Result<Option<Duration>> {
        self.sequence = self.sequence.wrapping_add(1);
        let len = data_len(packet_len, source.is_ipv4()).unwrap_or(0);
        let data: Vec<u8> = content.iter().cycle().take(len).copied().collect();
        let identifier = u16::from_be_bytes([self.id.0[0], self.id.0[1]]);
        let sequence = self.sequence;
        let echo = Echo { source, destination: server, identifier, sequence, data: &data };
        let mut packet = Vec::new();
        if !icmp_echo::write_request(&mut packet, &echo) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let begin = clock::now();
        self.socket.send(&packet)?;
        let expected = Echo { source: server, destination: source, ..echo };
        let deadline = begin + self.timeout;
        let reply = self.receive(deadline, |bytes| {
            icmp_echo::parse_reply(bytes).filter(|reply| *reply == expected).map(|_| ())
        });
        match reply {
            Ok(()) => Ok(Some(clock::now().saturating_duration_since(begin))),
            Err(error) if is_timeout(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives the addresses back.
    pub(super) fn leave(&self) -> io::Result<()> {
        self.socket.send(&written(&Request::Goodbye { client: self.id })).map(drop)
    }

    fn request(&self, tx: u64, cookie: Cookie) -> Vec<u8> {
        let (client, ipv4, ipv6) = (self.id, Wish::Any, Wish::Any);
        written(&Request::Hello { tx, cookie, client, ipv4, ipv6 })
    }

    fn ask<T>(&mut self, request: &[u8], read: impl Fn(Answer) -> Option<T>) -> io::Result<T> {
        let deadline = clock::now() + self.timeout;
        let mut retry = RETRY;
        loop {
            self.socket.send(request)?;
            let until = deadline.min(clock::now() + retry);
            match self.receive(until, |bytes| read(parse_answer(bytes)?)) {
                Err(error) if is_timeout(&error) && clock::now() < deadline => retry *= 2,
                outcome => return outcome,
            }
        }
    }

    fn receive<T>(
        &mut self,
        deadline: Instant,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> io::Result<T> {
        loop {
            let left = clock::until(deadline, clock::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.recv(&mut self.bytes) {
                Ok(len) => {
                    if let Some(found) = read(&self.bytes[..len]) {
                        return Ok(found);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted || is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether nothing came in time.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

fn random_tx() -> io::Result<u64> {
    random::bytes().map(u64::from_ne_bytes)
}

fn written(request: &Request) -> Vec<u8> {
    let mut datagram = Vec::new();
    write_request(&mut datagram, request);
    datagram
}
