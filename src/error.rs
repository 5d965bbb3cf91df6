//! The error that main prints: what was done, to what, the cause.

use crate::cli::flags::UsageError;
use crate::net::tls::TlsError;
use std::fmt::{self, Display};
use std::io;

/// Why a command ends without having been asked to.
#[derive(Debug)]
pub enum Error {
    /// The command line or the environment is wrong: exit 2.
    Usage(UsageError),
    /// Something at the start, or a fatal fault while running: exit 1.
    System {
        /// What was done, and to what: `cannot listen on tcp 127.0.0.1:53`.
        doing: String,
        /// What the system said.
        cause: io::Error,
    },
    /// A certificate or key: exit 1.
    Tls(TlsError),
    /// A user or group: exit 1.
    Privileges(String),
    /// A check of a running service that failed; its steps have been printed: exit 1.
    CheckFailed,
}

impl Error {
    /// For `map_err` on I/O: `.map_err(Error::while_doing(|| format!("cannot …")))`.
    pub fn while_doing<D: Display>(doing: impl FnOnce() -> D) -> impl FnOnce(io::Error) -> Error {
        move |cause| Error::System { doing: doing().to_string(), cause }
    }

    /// The process's exit code: 1 failed, 2 usage.
    pub fn exit_code(&self) -> u8 {
        if matches!(self, Error::Usage(_)) { 2 } else { 1 }
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage(error) => error.fmt(f),
            Error::System { doing, cause } => write!(f, "{doing}: {cause}"),
            Error::Tls(error) => error.fmt(f),
            Error::Privileges(reason) => f.write_str(reason),
            Error::CheckFailed => f.write_str("the check failed"),
        }
    }
}

impl std::error::Error for Error {}

impl From<UsageError> for Error {
    fn from(error: UsageError) -> Error {
        Error::Usage(error)
    }
}

impl From<TlsError> for Error {
    fn from(error: TlsError) -> Error {
        Error::Tls(error)
    }
}
