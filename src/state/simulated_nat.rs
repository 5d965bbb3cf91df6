//! A NAT for tests, of the kinds that a Linux host makes with nftables.

use super::seeded::Seeded;
use crate::wire::peer::Dependence;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How a simulated NAT behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NatKind {
    /// Full cone: endpoint-independent mapping and filtering.
    Full,
    /// Address-restricted cone.
    Address,
    /// Port-restricted cone: `masquerade`, and what comes unasked is dropped.
    Port,
    /// `masquerade` whose input is open: what comes unasked takes its tuple, and the inside host's
    /// own datagram to there then gets another port, as do all that it sends to other places later.
    OpenInput,
    /// `masquerade random`: a random port for each remote endpoint.
    Symmetric,
    /// The same, and what comes unasked takes its tuple.
    SymmetricOpenInput,
    /// A random port for each remote address; filtering by address and port.
    SymmetricByAddress,
}

pub(crate) const KINDS: [NatKind; 7] = [
    NatKind::Full,
    NatKind::Address,
    NatKind::Port,
    NatKind::OpenInput,
    NatKind::Symmetric,
    NatKind::SymmetricOpenInput,
    NatKind::SymmetricByAddress,
];

impl NatKind {
    /// Of its mapping and of its filtering, in the words of RFC 4787.
    pub(crate) fn behaviour(self) -> (Dependence, Dependence) {
        use Dependence::{Address, AddressAndPort, None};
        match self {
            NatKind::Full => (None, None),
            NatKind::Address => (None, Address),
            NatKind::Port | NatKind::OpenInput => (None, AddressAndPort),
            NatKind::Symmetric | NatKind::SymmetricOpenInput => (AddressAndPort, AddressAndPort),
            NatKind::SymmetricByAddress => (Address, AddressAndPort),
        }
    }
}

#[derive(Debug)]
struct Mapping {
    inside: SocketAddr,
    remote: SocketAddr,
    expires: Instant,
}

/// A NAT with one public address.
#[derive(Debug)]
pub(crate) struct SimulatedNat {
    pub(crate) kind: NatKind,
    pub(crate) public: IpAddr,
    /// How long a mapping lives without traffic.
    pub(crate) lifetime: Duration,
    /// By public port.
    mappings: HashMap<u16, Vec<Mapping>>,
    ports: HashMap<(SocketAddr, SocketAddr), u16>,
    /// The public port that an inside endpoint was given last, which Linux tries first the next time
    /// (`find_appropriate_src` in nf_nat_core.c; not for `masquerade random`).
    latest: HashMap<SocketAddr, u16>,
    /// What came unasked: from where, to which port.
    own: HashMap<(SocketAddr, u16), Instant>,
    random: Seeded,
}

impl SimulatedNat {
    pub(crate) fn new(kind: NatKind, public: &str, seed: u64) -> SimulatedNat {
        SimulatedNat {
            kind,
            public: public.parse().unwrap(),
            lifetime: Duration::from_secs(30),
            mappings: HashMap::new(),
            ports: HashMap::new(),
            latest: HashMap::new(),
            own: HashMap::new(),
            random: Seeded::new(seed),
        }
    }

    /// Forgets everything, as after a reboot.
    pub(crate) fn flush(&mut self) {
        self.mappings.clear();
        self.ports.clear();
        self.latest.clear();
        self.own.clear();
    }

    /// A datagram goes out: from where it is seen to come.
    pub(crate) fn outbound(
        &mut self,
        inside: SocketAddr,
        remote: SocketAddr,
        now: Instant,
    ) -> SocketAddr {
        let expires = now + self.lifetime;
        let known = self.ports.get(&(inside, remote)).copied();
        let mapping = known.and_then(|port| {
            let all = self.mappings.get_mut(&port)?;
            let mapping = all
                .iter_mut()
                .find(|mapping| (mapping.inside, mapping.remote) == (inside, remote))?;
            (mapping.expires > now).then_some((port, mapping))
        });
        if let Some((port, mapping)) = mapping {
            mapping.expires = expires;
            return SocketAddr::new(self.public, port);
        }
        if let Some(all) = known.and_then(|port| self.mappings.get_mut(&port)) {
            all.retain(|mapping| (mapping.inside, mapping.remote) != (inside, remote));
        }
        let mut port = match self.kind {
            NatKind::Symmetric | NatKind::SymmetricOpenInput => self.random_port(),
            NatKind::SymmetricByAddress => {
                let known = self.ports.iter().find(|((from, to), port)| {
                    (*from, to.ip()) == (inside, remote.ip())
                        && self.is_mapped(**port, now, |mapping| {
                            (mapping.inside, mapping.remote) == (*from, *to)
                        })
                });
                let known = known.map(|(_, port)| *port);
                known.unwrap_or_else(|| self.random_port())
            }
            _ => {
                let is_live =
                    |port: &u16| self.is_mapped(*port, now, |mapping| mapping.inside == inside);
                self.latest.get(&inside).copied().filter(is_live).unwrap_or(inside.port())
            }
        };
        while self.is_taken(port, remote, now) {
            port = self.random_port();
        }
        self.ports.insert((inside, remote), port);
        self.latest.insert(inside, port);
        self.mappings.entry(port).or_default().push(Mapping { inside, remote, expires });
        SocketAddr::new(self.public, port)
    }

    /// A datagram comes in for a port: to whom it goes.
    pub(crate) fn inbound(
        &mut self,
        remote: SocketAddr,
        port: u16,
        now: Instant,
    ) -> Option<SocketAddr> {
        let (kind, lifetime) = (self.kind, self.lifetime);
        let mapping = self.mappings.get_mut(&port).and_then(|all| {
            all.iter_mut().find(|mapping| {
                mapping.expires > now
                    && match kind {
                        NatKind::Full => true,
                        NatKind::Address => mapping.remote.ip() == remote.ip(),
                        _ => mapping.remote == remote,
                    }
            })
        });
        if let Some(mapping) = mapping {
            mapping.expires = now + lifetime;
            return Some(mapping.inside);
        }
        if matches!(kind, NatKind::OpenInput | NatKind::SymmetricOpenInput) {
            self.own.insert((remote, port), now + lifetime);
        }
        None
    }

    fn is_taken(&self, port: u16, remote: SocketAddr, now: Instant) -> bool {
        self.own.get(&(remote, port)).is_some_and(|expires| *expires > now)
            || self.is_mapped(port, now, |mapping| mapping.remote == remote)
    }

    /// Whether the public port has such a mapping that lives.
    fn is_mapped(&self, port: u16, now: Instant, such: impl Fn(&Mapping) -> bool) -> bool {
        let all = self.mappings.get(&port).into_iter().flatten();
        all.filter(|mapping| mapping.expires > now).any(such)
    }

    fn random_port(&mut self) -> u16 {
        u16::try_from(1024 + self.random.below(64_512)).unwrap()
    }
}
