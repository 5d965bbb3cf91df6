//! What two NATs let through: said before any probe is sent.

use crate::wire::peer::Dependence;
use std::fmt;

/// What one side knows of its NAT, and says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NatFacts {
    /// How its public endpoint depends on whom it sends to.
    pub mapping: Dependence,
    /// Who gets in.
    pub filtering: Dependence,
    /// It takes part in birthday probing (`--hard`).
    pub tries_hard: bool,
}

impl NatFacts {
    /// Whether its public endpoint towards a peer is another one than the server sees. What is not
    /// known counts as what most NATs do (RFC 4787 REQ-1).
    pub(super) fn has_dependent_mapping(self) -> bool {
        matches!(self.mapping, Dependence::Address | Dependence::AddressAndPort)
    }

    /// Whether a peer gets in whose port cannot be foretold, once its address was sent to.
    fn lets_any_port_in(self) -> bool {
        matches!(self.filtering, Dependence::None | Dependence::Address)
    }
}

/// What will work between two NATs. The table is in `docs/protocols/peer.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Prospects {
    /// A direct path.
    Direct,
    /// A direct path by birthday probing, if both sides take part; else the relay.
    DirectHard,
    /// Only the relay.
    RelayOnly,
}

impl fmt::Display for Prospects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Prospects::Direct => "direct",
            Prospects::DirectHard => "direct if both sides use --hard, else over the relay",
            Prospects::RelayOnly => {
                "these two NATs cannot be punched: only over the relay, if the server was started with --relay"
            }
        })
    }
}

/// What will work between two NATs, whether the sides try hard or not. The order of the two is all
/// one.
pub fn prospects(mine: NatFacts, theirs: NatFacts) -> Prospects {
    let (predictable, other) = match (mine.has_dependent_mapping(), theirs.has_dependent_mapping())
    {
        (true, true) => return Prospects::RelayOnly,
        (true, false) => (theirs, mine),
        (false, _) => (mine, theirs),
    };
    if !other.has_dependent_mapping() || predictable.lets_any_port_in() {
        Prospects::Direct
    } else {
        Prospects::DirectHard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_document() {
        use Dependence::{Address, AddressAndPort, None, Unknown};
        use Prospects::{Direct, DirectHard, RelayOnly};
        let facts = |(mapping, filtering)| NatFacts { mapping, filtering, tries_hard: false };
        let full = (None, None);
        let by_address = (None, Address);
        let by_port = (None, AddressAndPort);
        let symmetric = (AddressAndPort, AddressAndPort);
        let symmetric_by_address = (Address, AddressAndPort);
        for (mine, theirs, expected) in [
            (full, full, Direct),
            (full, symmetric, Direct),
            (by_address, symmetric, Direct),
            (by_address, by_port, Direct),
            (by_port, by_port, Direct),
            (by_port, symmetric, DirectHard),
            (by_port, symmetric_by_address, DirectHard),
            (symmetric, symmetric, RelayOnly),
            (symmetric, symmetric_by_address, RelayOnly),
            ((Unknown, Unknown), (Unknown, Unknown), Direct),
            ((Unknown, Unknown), symmetric, DirectHard),
        ] {
            let (mine, theirs) = (facts(mine), facts(theirs));
            assert_eq!(prospects(mine, theirs), expected, "{mine:?} {theirs:?}");
            assert_eq!(prospects(theirs, mine), expected, "{theirs:?} {mine:?}");
        }
    }
}
