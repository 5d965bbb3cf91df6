//! Why a request is not carried out: which field of it is wrong, and how.

use super::tunnel::TunnelName;
use crate::state::access::Prefix;
use std::fmt;

/// A request that changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The field, as a path into the request: `op`, `tunnel[0].netmask`.
    pub field: String,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What is wrong with a field. Displayed, it fits behind the field's name and a colon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It must be there.
    Missing,
    /// No such field or operation.
    Unknown,
    /// Its value is another one than those that the text describes.
    NotAllowed(&'static str),
    /// A tunnel of that name is there already.
    Exists,
    /// No tunnel has that name.
    NoSuchTunnel,
    /// The same name stands in the request twice.
    NamedTwice,
    /// One more than there may be.
    TooMany(usize),
    /// The address's network has addresses in common with that of another tunnel.
    Overlaps(TunnelName, Prefix),
    /// Another tunnel has that remote.
    SameRemote(TunnelName),
    /// Another tunnel, or this one, has that route.
    SameRoute(TunnelName),
    /// The route leads the packets to a tunnel's own remote into a tunnel.
    LeadsAstray(TunnelName),
    /// The system did not do it; what had been done before has been taken back.
    Failed(String),
}

impl Refusal {
    /// The field is wrong in this way.
    pub fn new(field: impl Into<String>, reason: Reason) -> Refusal {
        Refusal { field: field.into(), reason }
    }

    /// The field of the `index`th tunnel of the request.
    pub fn of_tunnel(index: usize, field: &str, reason: Reason) -> Refusal {
        Refusal { field: format!("tunnel[{index}].{field}"), reason }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Missing => f.write_str("is required"),
            Reason::Unknown => f.write_str("is unknown"),
            Reason::NotAllowed(allowed) => write!(f, "is not allowed: {allowed}"),
            Reason::Exists => f.write_str("there is a tunnel of that name"),
            Reason::NoSuchTunnel => f.write_str("there is no tunnel of that name"),
            Reason::NamedTwice => f.write_str("stands there twice"),
            Reason::TooMany(max) => write!(f, "there may be {max} at most"),
            Reason::Overlaps(tunnel, network) => {
                write!(f, "overlaps with {network} of tunnel {tunnel}")
            }
            Reason::SameRemote(tunnel) => write!(f, "is the remote of tunnel {tunnel} already"),
            Reason::SameRoute(tunnel) => write!(f, "is a route of tunnel {tunnel} already"),
            Reason::LeadsAstray(tunnel) => {
                write!(f, "contains the remote of tunnel {tunnel}, whose packets would go astray")
            }
            Reason::Failed(what) => f.write_str(what),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}
