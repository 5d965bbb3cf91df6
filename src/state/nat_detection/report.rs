//! What was found out of a NAT, in plain words.

use super::lifetime::Lifetime;
use crate::state::punch::prospects::{NatFacts, Prospects, prospects};
use crate::wire::peer::Dependence;
use std::fmt;
use std::net::SocketAddr;

/// What was found out of a NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// The socket's own endpoint.
    pub local: SocketAddr,
    /// Where the server sees it; `None` if no server answered.
    pub public: Option<SocketAddr>,
    /// How the public endpoint depends on whom is sent to.
    pub mapping: Dependence,
    /// Who gets in. Without a NAT, that is the firewall's doing.
    pub filtering: Dependence,
    /// A host behind the NAT reaches another one by its public endpoint. `None` without a NAT.
    pub hairpin: Option<bool>,
    /// How long a mapping lives.
    pub lifetime: Lifetime,
}

impl Report {
    pub(super) fn new(local: SocketAddr) -> Report {
        Report {
            local,
            public: None,
            mapping: Dependence::Unknown,
            filtering: Dependence::Unknown,
            hairpin: None,
            lifetime: Lifetime::NotAsked,
        }
    }

    /// Whether there is a NAT: the public endpoint is not the local one. `None` if no server
    /// answered.
    pub fn is_translated(&self) -> Option<bool> {
        self.public.map(|public| public != self.local)
    }

    /// What to announce.
    pub fn facts(&self, tries_hard: bool) -> NatFacts {
        NatFacts { mapping: self.mapping, filtering: self.filtering, tries_hard }
    }

    fn with(&self, filtering: Dependence, mapping: Dependence) -> Prospects {
        prospects(self.facts(false), NatFacts { mapping, filtering, tries_hard: false })
    }
}

impl fmt::Display for Report {
    /// Several lines, without a line feed at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(public) = self.public else {
            return write!(f, "no STUN server answered: UDP may be blocked on the way");
        };
        writeln!(f, "local endpoint: {}", self.local)?;
        writeln!(f, "public endpoint: {public}")?;
        if self.is_translated() == Some(true) {
            writeln!(f, "mapping: {}", words(self.mapping))?;
        } else {
            writeln!(f, "mapping: no NAT, the public endpoint is the local one")?;
        }
        writeln!(f, "filtering: {}", words(self.filtering))?;
        if let Some(hairpin) = self.hairpin {
            writeln!(f, "hairpin: {}", if hairpin { "yes" } else { "no" })?;
        }
        match self.lifetime {
            Lifetime::NotAsked => {}
            Lifetime::NotKnown => {
                writeln!(f, "mapping lifetime: not known, the server cannot test it")?;
            }
            Lifetime::Between(lived, gone) => {
                let (lived, gone) = (lived.as_secs_f64(), gone.as_secs_f64());
                writeln!(f, "mapping lifetime: between {lived:.1} and {gone:.1} s")?;
            }
            Lifetime::AtLeast(lived) => {
                writeln!(f, "mapping lifetime: {:.1} s or more", lived.as_secs_f64())?;
            }
        }
        let port = Dependence::AddressAndPort;
        let (cone, symmetric) = (self.with(port, Dependence::None), self.with(port, port));
        writeln!(f, "with a peer behind a NAT of the usual kind: {cone}")?;
        write!(f, "with a peer behind a symmetric NAT: {symmetric}")?;
        if self.mapping == Dependence::Unknown || self.filtering == Dependence::Unknown {
            write!(f, "\nwhat is not known is taken to be as it mostly is")?;
        }
        Ok(())
    }
}

fn words(dependence: Dependence) -> &'static str {
    match dependence {
        Dependence::Unknown => "not known",
        Dependence::None => "endpoint-independent",
        Dependence::Address => "address-dependent",
        Dependence::AddressAndPort => "address- and port-dependent",
    }
}
