//! The control messages of the VPN: how a client gets its addresses and keeps them.
//!
//! ```text
//! datagram   = f6 75 66 01 . type:u8 . body                      (numbers are big-endian)
//! assignment = address . prefix:u8 . server's address            (all zeros: none of this family)
//! ```
//!
//! The types and their bodies are in `docs/protocols/vpn.md`, and here in [`Request`] (from a
//! client) and [`Answer`] (from the server), in the order of their fields. On the same port each
//! datagram that begins with another four bits than f is one IP packet, with nothing around it.
//!
//! A client that has been seen at 192.0.2.1:5000 is asked to show a cookie:
//!
//! ```
//! use udpferry::wire::vpn::{Answer, Cookie, parse_answer, write_answer};
//! let answer = Answer::Cookie {
//!     tx: 7,
//!     cookie: Cookie([9; 16]),
//!     endpoint: "192.0.2.1:5000".parse().unwrap(),
//! };
//! let mut datagram = Vec::new();
//! write_answer(&mut datagram, &answer);
//! assert_eq!(datagram[..13], [0xf6, b'u', b'f', 1, 0x81, 0, 0, 0, 0, 0, 0, 0, 7]);
//! assert_eq!(datagram[29..37], [4, 0x13, 0x88, 192, 0, 2, 1, 0]);
//! assert_eq!(parse_answer(&datagram), Some(answer));
//! ```

use super::cursor::Cursor;
use super::rendezvous::{read_endpoint, write_endpoint};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The first bytes of every message but for the version: f stands where an IP packet has 4 or 6.
const MAGIC: [u8; 3] = [0xf6, b'u', b'f'];
/// The protocol's version, which is the fourth byte.
pub const VERSION: u8 = 1;
/// The length of a hello. Its answer to an address that has proved nothing (48 bytes) is shorter.
pub const HELLO_LEN: usize = 66;
/// DNS servers in a welcome, at most: resolv.conf(5) takes as many (MAXNS).
pub const DNS_MAX: usize = 3;
/// The longest message: a welcome with [`DNS_MAX`] servers.
pub const MESSAGE_LEN_MAX: usize = 108;

/// What the server keys to an address, to see that its holder receives there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cookie(pub [u8; 16]);

/// A client's secret number, by which the server knows it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub [u8; 16]);

/// An address that a client would like to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wish<A> {
    /// Any.
    #[default]
    Any,
    /// This one, if it is free: the client had it before.
    Rather(A),
    /// This one or none.
    Only(A),
}

/// What a client has of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment<A> {
    /// The client's own address; never the unspecified one.
    pub address: A,
    /// The length of the tunnel network's prefix.
    pub prefix: u8,
    /// The server's address there.
    pub server: A,
}

/// DNS servers that a client may use: [`DNS_MAX`] at most, without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DnsServers([Option<IpAddr>; DNS_MAX]);

impl DnsServers {
    /// The first [`DNS_MAX`] of them.
    pub fn new(servers: impl IntoIterator<Item = IpAddr>) -> DnsServers {
        let mut all = DnsServers::default();
        for (place, server) in all.0.iter_mut().zip(servers) {
            *place = Some(server.to_canonical());
        }
        all
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = IpAddr> {
        self.0.into_iter().flatten()
    }
}

/// What a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Asks for addresses. Answered with a cookie unless its own counts.
    Hello {
        /// Random; the answer has it too.
        tx: u64,
        /// As given by the server; zeros at first.
        cookie: Cookie,
        /// Who asks.
        client: ClientId,
        /// The IPv4 address wished for.
        ipv4: Wish<Ipv4Addr>,
        /// The IPv6 address wished for.
        ipv6: Wish<Ipv6Addr>,
    },
    /// Says that the client is there, and asks whether the server is.
    Keepalive {
        /// Random; the answer has it too.
        tx: u64,
        /// Who says so.
        client: ClientId,
    },
    /// Gives its addresses back.
    Goodbye {
        /// Who does.
        client: ClientId,
    },
}

/// Why a client gets no addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// The server has as many clients as it takes.
    Full = 1,
    /// No address is left.
    NoAddress = 2,
    /// Another client has the address.
    AddressTaken = 3,
    /// The address is not in the server's network, or is its own.
    AddressOutside = 4,
}

const REFUSED_FOR_VERSION: u8 = 5;

/// What the server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The cookie for the asking endpoint.
    Cookie {
        /// The hello's.
        tx: u64,
        /// For the next hello, for half a minute to a minute.
        cookie: Cookie,
        /// The endpoint that asked, as the server sees it.
        endpoint: SocketAddr,
    },
    /// The client has addresses, of one family at least.
    Welcome {
        /// The hello's.
        tx: u64,
        /// Its IPv4 address.
        ipv4: Option<Assignment<Ipv4Addr>>,
        /// Its IPv6 address.
        ipv6: Option<Assignment<Ipv6Addr>>,
        /// Bytes of the longest packet inside.
        mtu: u16,
        /// Seconds after which to say that it is still there.
        keepalive_s: u16,
        /// DNS servers that it may use.
        dns: DnsServers,
    },
    /// An answer to a keepalive.
    Alive {
        /// The keepalive's.
        tx: u64,
    },
    /// No client is known at the endpoint that a packet or a keepalive came from.
    WhoAreYou,
    /// The server stops, or has ended this client.
    Goodbye {
        /// Which client.
        client: ClientId,
    },
    /// The client gets no addresses.
    Refused {
        /// The hello's.
        tx: u64,
        /// Why.
        reason: Refusal,
    },
    /// The client gets none as the server speaks this other version of the protocol. The first 14
    /// bytes are the same in all versions.
    OtherVersion {
        /// The hello's.
        tx: u64,
        /// The server's version.
        version: u8,
    },
}

const HELLO: u8 = 0x01;
const KEEPALIVE: u8 = 0x02;
const GOODBYE: u8 = 0x03;
const COOKIE: u8 = 0x81;
const WELCOME: u8 = 0x82;
const ALIVE: u8 = 0x83;
const WHO_ARE_YOU: u8 = 0x84;
const SERVER_GOODBYE: u8 = 0x85;
const REFUSED: u8 = 0x8f;

/// In a hello's wishes: the IPv4 address or none.
const ONLY_IPV4: u8 = 1;
/// In a hello's wishes: the IPv6 address or none.
const ONLY_IPV6: u8 = 2;

/// Reads what a client sent. `None` if it is no well-formed request of this version: an unknown
/// type, another length, or a wish for one address only without the address.
pub fn parse_request(datagram: &[u8]) -> Option<Request> {
    let (VERSION, kind, mut body) = open(datagram)? else {
        return None;
    };
    let request = match kind {
        HELLO => {
            let (tx, cookie, client) = (body.u64_be()?, cookie(&mut body)?, client(&mut body)?);
            let only = body.u8().filter(|only| *only & !(ONLY_IPV4 | ONLY_IPV6) == 0)?;
            let ipv4 = body.ipv4()?;
            let ipv6 = body.ipv6()?;
            Request::Hello {
                tx,
                cookie,
                client,
                ipv4: wish(ipv4, ipv4.is_unspecified(), only & ONLY_IPV4 != 0)?,
                ipv6: wish(ipv6, ipv6.is_unspecified(), only & ONLY_IPV6 != 0)?,
            }
        }
        KEEPALIVE => Request::Keepalive { tx: body.u64_be()?, client: client(&mut body)? },
        GOODBYE => Request::Goodbye { client: client(&mut body)? },
        _ => return None,
    };
    body.rest().is_empty().then_some(request)
}

/// The number of a hello of another version of this protocol, if the datagram is one; it is at least
/// as long as our own.
pub fn parse_hello_of_other_version(datagram: &[u8]) -> Option<u64> {
    let (version, kind, mut body) = open(datagram)?;
    let tx = body.u64_be()?;
    (version != VERSION && kind == HELLO && datagram.len() >= HELLO_LEN).then_some(tx)
}

/// Reads what the server sent. `None` if it is no well-formed answer: an unknown type, another
/// length, a prefix or a number of DNS servers that cannot be, or no address at all.
pub fn parse_answer(datagram: &[u8]) -> Option<Answer> {
    let (version, kind, mut body) = open(datagram)?;
    if version != VERSION && kind != REFUSED {
        return None;
    }
    let answer = match kind {
        COOKIE => Answer::Cookie {
            tx: body.u64_be()?,
            cookie: cookie(&mut body)?,
            endpoint: read_endpoint(&mut body)?,
        },
        WELCOME => {
            let tx = body.u64_be()?;
            let (address, prefix, server) = (body.ipv4()?, body.u8()?, body.ipv4()?);
            let given = Assignment { address, prefix, server };
            let ipv4 = is_sound(&given, &Ipv4Addr::UNSPECIFIED, 32)?.then_some(given);
            let (address, prefix, server) = (body.ipv6()?, body.u8()?, body.ipv6()?);
            let given = Assignment { address, prefix, server };
            let ipv6 = is_sound(&given, &Ipv6Addr::UNSPECIFIED, 128)?.then_some(given);
            if ipv4.is_none() && ipv6.is_none() {
                return None;
            }
            let (mtu, keepalive_s) = (body.u16_be()?, body.u16_be()?);
            Answer::Welcome { tx, ipv4, ipv6, mtu, keepalive_s, dns: dns(&mut body)? }
        }
        ALIVE => Answer::Alive { tx: body.u64_be()? },
        WHO_ARE_YOU => Answer::WhoAreYou,
        SERVER_GOODBYE => Answer::Goodbye { client: client(&mut body)? },
        REFUSED => match (body.u64_be()?, body.u8()?) {
            (tx, REFUSED_FOR_VERSION) => Answer::OtherVersion { tx, version },
            (tx, reason) => Answer::Refused { tx, reason: refusal(reason, version)? },
        },
        _ => return None,
    };
    body.rest().is_empty().then_some(answer)
}

/// Appends a request's datagram.
pub fn write_request(out: &mut Vec<u8>, request: &Request) {
    out.extend_from_slice(&MAGIC);
    out.push(VERSION);
    match *request {
        Request::Hello { tx, cookie, client, ipv4, ipv6 } => {
            out.push(HELLO);
            out.extend_from_slice(&tx.to_be_bytes());
            out.extend_from_slice(&cookie.0);
            out.extend_from_slice(&client.0);
            let only_ipv4 = if matches!(ipv4, Wish::Only(_)) { ONLY_IPV4 } else { 0 };
            let only_ipv6 = if matches!(ipv6, Wish::Only(_)) { ONLY_IPV6 } else { 0 };
            out.push(only_ipv4 | only_ipv6);
            out.extend_from_slice(&wished(ipv4, Ipv4Addr::UNSPECIFIED).octets());
            out.extend_from_slice(&wished(ipv6, Ipv6Addr::UNSPECIFIED).octets());
        }
        Request::Keepalive { tx, client } => {
            out.push(KEEPALIVE);
            out.extend_from_slice(&tx.to_be_bytes());
            out.extend_from_slice(&client.0);
        }
        Request::Goodbye { client } => {
            out.push(GOODBYE);
            out.extend_from_slice(&client.0);
        }
    }
}

/// Appends an answer's datagram.
pub fn write_answer(out: &mut Vec<u8>, answer: &Answer) {
    out.extend_from_slice(&MAGIC);
    out.push(if let Answer::OtherVersion { version, .. } = answer { *version } else { VERSION });
    match *answer {
        Answer::Cookie { tx, cookie, endpoint } => {
            out.push(COOKIE);
            out.extend_from_slice(&tx.to_be_bytes());
            out.extend_from_slice(&cookie.0);
            write_endpoint(out, endpoint);
        }
        Answer::Welcome { tx, ipv4, ipv6, mtu, keepalive_s, dns } => {
            out.push(WELCOME);
            out.extend_from_slice(&tx.to_be_bytes());
            let (address, prefix, server) =
                ipv4.map_or((Ipv4Addr::UNSPECIFIED, 0, Ipv4Addr::UNSPECIFIED), parts);
            out.extend_from_slice(&address.octets());
            out.push(prefix);
            out.extend_from_slice(&server.octets());
            let (address, prefix, server) =
                ipv6.map_or((Ipv6Addr::UNSPECIFIED, 0, Ipv6Addr::UNSPECIFIED), parts);
            out.extend_from_slice(&address.octets());
            out.push(prefix);
            out.extend_from_slice(&server.octets());
            out.extend_from_slice(&mtu.to_be_bytes());
            out.extend_from_slice(&keepalive_s.to_be_bytes());
            write_dns(out, dns);
        }
        Answer::Alive { tx } => {
            out.push(ALIVE);
            out.extend_from_slice(&tx.to_be_bytes());
        }
        Answer::WhoAreYou => out.push(WHO_ARE_YOU),
        Answer::Goodbye { client } => {
            out.push(SERVER_GOODBYE);
            out.extend_from_slice(&client.0);
        }
        Answer::Refused { tx, reason } => {
            out.push(REFUSED);
            out.extend_from_slice(&tx.to_be_bytes());
            out.push(reason as u8);
        }
        Answer::OtherVersion { tx, .. } => {
            out.push(REFUSED);
            out.extend_from_slice(&tx.to_be_bytes());
            out.push(REFUSED_FOR_VERSION);
        }
    }
}

/// Version, type and body.
fn open(datagram: &[u8]) -> Option<(u8, u8, Cursor<'_>)> {
    let mut cursor = Cursor::new(datagram);
    if cursor.take_array()? != MAGIC {
        return None;
    }
    Some((cursor.u8()?, cursor.u8()?, cursor))
}

fn cookie(cursor: &mut Cursor<'_>) -> Option<Cookie> {
    cursor.take_array().map(Cookie)
}

fn client(cursor: &mut Cursor<'_>) -> Option<ClientId> {
    cursor.take_array().map(ClientId)
}

fn wish<A>(address: A, is_none: bool, only: bool) -> Option<Wish<A>> {
    match (is_none, only) {
        (true, true) => None,
        (true, false) => Some(Wish::Any),
        (false, true) => Some(Wish::Only(address)),
        (false, false) => Some(Wish::Rather(address)),
    }
}

fn wished<A>(wish: Wish<A>, none: A) -> A {
    match wish {
        Wish::Any => none,
        Wish::Rather(address) | Wish::Only(address) => address,
    }
}

/// Whether there is an assignment; `None` where its parts contradict each other.
fn is_sound<A: PartialEq>(given: &Assignment<A>, unspecified: &A, bits: u8) -> Option<bool> {
    let Assignment { address, prefix, server } = given;
    let is_there = address != unspecified;
    let agrees = if is_there {
        server != unspecified && server != address && (1..=bits).contains(prefix)
    } else {
        server == unspecified && *prefix == 0
    };
    agrees.then_some(is_there)
}

fn parts<A>(assignment: Assignment<A>) -> (A, u8, A) {
    (assignment.address, assignment.prefix, assignment.server)
}

fn dns(cursor: &mut Cursor<'_>) -> Option<DnsServers> {
    let count = usize::from(cursor.u8()?);
    let mut servers = DnsServers::default();
    for place in servers.0.get_mut(..count)? {
        *place = Some(IpAddr::V6(cursor.ipv6()?).to_canonical());
    }
    Some(servers)
}

/// An IPv4 address stands as IPv6's `::ffff:a.b.c.d`.
fn write_dns(out: &mut Vec<u8>, dns: DnsServers) {
    // DNS_MAX fits.
    out.push(u8::try_from(dns.iter().count()).unwrap_or(0));
    for server in dns.iter() {
        let server = match server {
            IpAddr::V4(server) => server.to_ipv6_mapped(),
            IpAddr::V6(server) => server,
        };
        out.extend_from_slice(&server.octets());
    }
}

fn refusal(reason: u8, version: u8) -> Option<Refusal> {
    match reason {
        _ if version != VERSION => None,
        1 => Some(Refusal::Full),
        2 => Some(Refusal::NoAddress),
        3 => Some(Refusal::AddressTaken),
        4 => Some(Refusal::AddressOutside),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
