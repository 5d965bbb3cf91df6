//! A member made by hand out of the library's parts: it says what ours never would.

use crate::member::ROOM;
use crate::support::{PATIENCE, recv_from};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;
use udpferry::roles::member_key::{Secret, member_of};
use udpferry::roles::peer::identity::{PrivateKey, PublicKey};
use udpferry::roles::peer::probe::ProbeAuth;
use udpferry::roles::peer::room::{Room, RoomKeys};
use udpferry::roles::peer::seal::{NONCE_LEN, open, seal};
use udpferry::roles::peer::tunnel::{Handshakes, Outcome, Tunnel};
use udpferry::wire::peer::{Announcement, Kind, Message, PROBE_MAGIC, Probe, ProbeKind};
use udpferry::wire::rendezvous::answer::{Answer, Introduced, parse_answer};
use udpferry::wire::rendezvous::request::{Request, Wish, write_request};
use udpferry::wire::rendezvous::{MemberId, is_rendezvous};

const BUFFER_LEN: usize = 65_536;

/// One that has met one other member.
pub(crate) struct Handmade {
    pub(crate) socket: UdpSocket,
    pub(crate) probes: ProbeAuth,
    pub(crate) me: MemberId,
    /// The other one.
    pub(crate) peer: MemberId,
    /// Where it is.
    pub(crate) at: SocketAddr,
    tunnel: Tunnel,
    /// Every datagram that was sent to the member's socket, but pongs.
    pub(crate) sent: Vec<Vec<u8>>,
}

/// What a member sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) kind: Kind,
    pub(crate) number: u32,
    pub(crate) body: Vec<u8>,
}

/// One that announces a key of somebody else, and has everybody think that it is there.
pub(crate) struct Impostor {
    socket: UdpSocket,
    probes: ProbeAuth,
    me: MemberId,
}

impl Impostor {
    /// Enters [`ROOM`]. Members of the same `number` are the same.
    pub(crate) fn enter(server: SocketAddr, number: u8, key: PublicKey, made_ms: u64) -> Impostor {
        let keys = Room::parse_code(ROOM).unwrap().keys().unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let secret = Secret::from_random([number; 32]);
        let me = member_of(secret.member_key());
        let sealed = announcement(&keys, me, key, made_ms, "impostor");
        register(&socket, server, &keys, &secret, &sealed);
        Impostor { socket, probes: ProbeAuth::new(&keys), me }
    }

    /// Answers the pings to it, and passes what is WireGuard's on between the member at `victim` and
    /// the first other one that pings, until it `must_end`.
    pub(crate) fn pass_on(&self, victim: SocketAddr, must_end: impl Fn() -> bool) {
        self.socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut bytes = vec![0; BUFFER_LEN];
        let mut other = None;
        while !must_end() {
            let Ok((len, from)) = recv_from(&self.socket, &mut bytes) else { continue };
            let datagram = &bytes[..len];
            if let Ok(ping) = self.probes.read(datagram) {
                if ping.kind == ProbeKind::Ping && from != victim && from.ip().is_loopback() {
                    other.get_or_insert(from);
                    let pong = Probe {
                        kind: ProbeKind::Pong,
                        tx: ping.tx,
                        from: self.me,
                        to: ping.from,
                        seen: from,
                    };
                    let mut out = Vec::new();
                    self.probes.write(&mut out, &pong);
                    self.socket.send_to(&out, from).unwrap();
                }
            } else if !is_rendezvous(datagram) && !datagram.starts_with(&PROBE_MAGIC) {
                let to = if from == victim { other } else { Some(victim) };
                if let Some(to) = to {
                    self.socket.send_to(datagram, to).unwrap();
                }
            }
        }
    }
}

impl Handmade {
    /// Enters [`ROOM`] and meets who is there; `name` is what it announces and greets with.
    pub(crate) fn meet(server: SocketAddr, name: &str, greeting: &[u8]) -> Handmade {
        let keys = Room::parse_code(ROOM).unwrap().keys().unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let secret = [socket.local_addr().unwrap().port().to_be_bytes()[1]; 32];
        let secret = Secret::from_random(secret);
        let me = member_of(secret.member_key());
        let handshakes = Handshakes::new(PrivateKey::from_random([me.0[0]; 32]));
        let sealed = announcement(&keys, me, handshakes.public(), 1, name);
        let introduced = register(&socket, server, &keys, &secret, &sealed);
        let (peer, theirs) = introduced;
        let tunnel =
            Tunnel::new(&handshakes, PublicKey(theirs.public_key), keys.preshared, 0).unwrap();
        let probes = ProbeAuth::new(&keys);
        let mut member =
            Handmade { socket, probes, me, peer, at: server, tunnel, sent: Vec::new() };
        member.connect();
        let mut body = 7_u64.to_be_bytes().to_vec();
        body.extend_from_slice(greeting);
        member.say(Kind::Here, 0, &body);
        member.until(|said| said.kind == Kind::Here);
        member
    }

    /// Pings until a ping comes, answers it, and shakes hands.
    fn connect(&mut self) {
        loop {
            let (bytes, from) = self.receive();
            let Ok(ping) = self.probes.read(&bytes) else { continue };
            if ping.kind != ProbeKind::Ping || !from.ip().is_loopback() {
                continue;
            }
            assert_eq!((ping.from, ping.to), (self.peer, self.me));
            self.at = from;
            self.probe(ProbeKind::Pong, ping.tx);
            break;
        }
        let mut out = vec![0; BUFFER_LEN];
        let hello = self.tunnel.start_handshake(true, &mut out).unwrap().to_vec();
        self.send(&hello);
        while !self.tunnel.is_established() {
            let (bytes, from) = self.receive();
            if bytes.starts_with(&PROBE_MAGIC) || is_rendezvous(&bytes) {
                continue;
            }
            if let Outcome::Send(answer) = self.tunnel.receive(from.ip(), &bytes, &mut out) {
                let answer = answer.to_vec();
                self.send(&answer);
            }
        }
    }

    pub(crate) fn probe(&mut self, kind: ProbeKind, tx: u64) {
        let (from, to, seen) = (self.me, self.peer, self.at);
        let mut bytes = Vec::new();
        self.probes.write(&mut bytes, &Probe { kind, tx, from, to, seen });
        self.send(&bytes);
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.socket.send_to(bytes, self.at).unwrap();
        self.sent.push(bytes.to_vec());
    }

    pub(crate) fn say(&mut self, kind: Kind, number: u32, body: &[u8]) {
        let mut out = vec![0; BUFFER_LEN];
        let len = self.tunnel.send(&Message { kind, number, body }, &mut out).unwrap();
        self.send(&out[..len]);
    }

    fn receive(&self) -> (Vec<u8>, SocketAddr) {
        let mut bytes = vec![0; BUFFER_LEN];
        let (len, from) = recv_from(&self.socket, &mut bytes).expect("nothing came");
        bytes.truncate(len);
        (bytes, from)
    }

    /// The next message in the tunnel that is `wanted`; others are passed over, pings answered.
    pub(crate) fn until(&mut self, wanted: impl Fn(&Said) -> bool) -> Said {
        let mut out = vec![0; BUFFER_LEN];
        loop {
            let (bytes, from) = self.receive();
            if let Ok(Probe { kind: ProbeKind::Ping, tx, .. }) = self.probes.read(&bytes) {
                if from == self.at {
                    self.probe(ProbeKind::Pong, tx);
                }
                continue;
            }
            match self.tunnel.receive(from.ip(), &bytes, &mut out) {
                Outcome::Message(Message { kind, number, body }) => {
                    let said = Said { kind, number, body: body.to_vec() };
                    if wanted(&said) {
                        return said;
                    }
                }
                Outcome::Send(answer) => {
                    let answer = answer.to_vec();
                    self.send(&answer);
                }
                _ => {}
            }
        }
    }
}

fn announcement(
    keys: &RoomKeys,
    me: MemberId,
    key: PublicKey,
    made_ms: u64,
    name: &str,
) -> Vec<u8> {
    let announcement = Announcement {
        public_key: key.0,
        mapping: udpferry::wire::peer::Dependence::None,
        filtering: udpferry::wire::peer::Dependence::None,
        tries_hard: false,
        serves: false,
        relay: false,
        made_ms,
        name: name.to_owned(),
        endpoints: vec![],
    };
    seal(keys, me, [me.0[1]; NONCE_LEN], &announcement).unwrap()
}

/// Enters the room, and returns who is there.
fn register(
    socket: &UdpSocket,
    server: SocketAddr,
    keys: &RoomKeys,
    secret: &Secret,
    sealed: &[u8],
) -> (MemberId, Announcement) {
    let send = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = Vec::new();
        write(&mut bytes);
        socket.send_to(&bytes, server).unwrap();
    };
    send(&|bytes| write_request(bytes, &Request::Hello { tx: 1 }));
    let mut bytes = vec![0; BUFFER_LEN];
    loop {
        let (len, _) = recv_from(socket, &mut bytes).expect("the server is silent");
        match parse_answer(&bytes[..len]) {
            Some(Answer::Cookie { pass, .. }) => {
                let cipher = secret.towards(pass.server).unwrap();
                let wish = Wish::Register { rtt_ms: 0, sealed };
                send(&|bytes| cipher.write(bytes, 2, pass, keys.id, &wish));
            }
            Some(Answer::Introduce(Introduced { introduction, member, sealed, .. })) => {
                send(&|bytes| write_request(bytes, &Request::Introduced { introduction }));
                return (member, open(keys, member, sealed).unwrap());
            }
            _ => {}
        }
    }
}
