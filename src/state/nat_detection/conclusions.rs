//! What the answers say together.

use super::{Detection, Outcome, Test};
use crate::wire::peer::Dependence;
use std::net::SocketAddr;

impl Detection {
    /// What the answers say of mapping and filtering.
    pub(super) fn conclude(&mut self) {
        let Some((_, _, first)) = self.primary else {
            return;
        };
        let is_translated = self.report.is_translated() == Some(true);
        let (address, both) =
            (self.outcome(Test::MappedOtherAddress), self.outcome(Test::MappedOtherBoth));
        self.report.mapping =
            match (address, both) {
                _ if !is_translated => Dependence::None,
                (Some(Outcome::Mapped(second)), _) if second == first => Dependence::None,
                (_, Some(Outcome::Mapped(third))) if third == first => Dependence::None,
                (Some(Outcome::Mapped(second)), Some(Outcome::Mapped(third))) => {
                    if second == third { Dependence::Address } else { Dependence::AddressAndPort }
                }
                _ => self.mapping_by_servers(),
            };
        // An answer that did not come says something only if that address can be reached at all.
        let reachable =
            matches!(address, Some(Outcome::Mapped(_))) || matches!(both, Some(Outcome::Mapped(_)));
        let filtered = (self.outcome(Test::FilteredBoth), self.outcome(Test::FilteredPort));
        self.report.filtering = match filtered {
            (Some(Outcome::Yes), _) => Dependence::None,
            (Some(Outcome::Nothing), Some(Outcome::Yes)) if reachable => Dependence::Address,
            (Some(Outcome::Nothing), Some(Outcome::Nothing)) if reachable => {
                Dependence::AddressAndPort
            }
            _ => Dependence::Unknown,
        };
    }

    /// The mapping by what several servers, or ports of one, have seen.
    fn mapping_by_servers(&self) -> Dependence {
        let mut seen = Vec::new();
        for (place, server) in self.config.servers.iter().enumerate() {
            if let Some(Outcome::Mapped(mapped)) = self.outcome(Test::Mapped(place)) {
                seen.push((*server, mapped));
            }
        }
        let pairs = || {
            seen.iter()
                .enumerate()
                .flat_map(|(place, one)| seen[place + 1..].iter().map(move |other| (one, other)))
        };
        let agree = |same_address: bool| {
            let mut compared = pairs()
                .filter(|(one, other)| one.0 != other.0)
                .filter(|(one, other)| (one.0.ip() == other.0.ip()) == same_address)
                .map(|(one, other)| one.1 == other.1);
            let first = compared.next()?;
            Some(first && compared.all(|agrees| agrees))
        };
        match (agree(false), agree(true)) {
            // Where only another port was asked: a mapping that depends on the address alone is rare.
            (Some(true), _) | (None, Some(true)) => Dependence::None,
            (Some(false), Some(true)) => Dependence::Address,
            // Where only another address was asked: of the two dependences this is the common one,
            // and what to do is the same.
            (Some(false), None | Some(false)) | (None, Some(false)) => Dependence::AddressAndPort,
            (None, None) => Dependence::Unknown,
        }
    }
}

/// Whether OTHER-ADDRESS names another address and another port of the same family; some servers
/// name what they were asked at.
pub(super) fn is_second_address(other: SocketAddr, server: SocketAddr) -> bool {
    other.is_ipv4() == server.is_ipv4()
        && other.ip() != server.ip()
        && other.port() != server.port()
        && !other.ip().is_unspecified()
}
