//! The client's way to its server: destination, TLS and waits, the same for all uplinks.

use super::{ClientConfig, ClientTls, Framing, Shared};
use crate::error::Error;
use crate::net::tcp;
use crate::net::tls::{ClientTrust, Identity, TlsError, connector};
use crate::roles::destination::Destination;
use crate::roles::lookup::Lookup;
use crate::state::address_order;
use crate::state::token_bucket::LogGate;
use native_tls::TlsConnector;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// TLS as the client does it.
pub(super) struct Tls {
    pub(super) connector: TlsConnector,
    pub(super) server_name: String,
}

/// What all uplinks of the client have in common.
pub(super) struct Route {
    pub(super) shared: Arc<Shared>,
    pub(super) destination: Destination,
    /// Resolved once, at the start; else names are looked up for each connection.
    pub(super) fixed: Option<Vec<SocketAddr>>,
    pub(super) lookup: Option<Lookup>,
    pub(super) tls: Mutex<Option<Arc<Tls>>>,
    pub(super) mark: Option<u32>,
    pub(super) connect_timeout: Duration,
    pub(super) backoff: Duration,
    pub(super) sends_session_id: bool,
    /// A connection that says nothing is closed by a server that waits for its first byte.
    pub(super) connects_on_demand: bool,
    pub(super) queue_datagrams_max: usize,
    pub(super) log_gate: Mutex<LogGate>,
    /// The address that worked last, tried first.
    last_good: Mutex<Option<SocketAddr>>,
}

impl Route {
    /// Other certificates for the connections to come.
    pub(super) fn set_tls(&self, tls: Arc<Tls>) {
        *self.tls.lock().unwrap_or_else(PoisonError::into_inner) = Some(tls);
    }

    /// A connection to `address` has come up.
    pub(super) fn is_good(&self, address: SocketAddr) {
        *self.last_good.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
    }

    /// These addresses in the order in which they should be tried.
    pub(super) fn in_order(&self, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        let last_good = *self.last_good.lock().unwrap_or_else(PoisonError::into_inner);
        address_order::in_order(addresses, last_good)
    }

    pub(super) fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// SO_MARK is refused to everybody without CAP_NET_ADMIN: better said at the start than at each
/// connection.
pub(super) fn try_mark(mark: u32) -> Result<(), Error> {
    let doing = || format!("cannot mark packets with --mark {mark:#x} (needs CAP_NET_ADMIN)");
    tcp::may_mark(mark).map_err(Error::while_doing(doing))
}

/// Loads the certificates.
pub(super) fn load_tls(tls: &ClientTls) -> Result<Tls, TlsError> {
    let identity = tls
        .files
        .as_ref()
        .map(|files| Identity::load(&files.certificate, &files.key))
        .transpose()?;
    let trust = ClientTrust {
        ca: tls.ca.as_deref(),
        any_server: false,
        any_name: !tls.checks_name,
        alpn: tls.alpn.as_deref(),
        identity: identity.as_ref(),
    };
    Ok(Tls { connector: connector(&trust)?, server_name: tls.server_name.clone() })
}

/// Everything that the uplinks need to know, loaded and resolved as far as it stays.
pub(super) fn route(config: &ClientConfig, shared: &Arc<Shared>) -> Result<Route, Error> {
    let destination = config.shared.destination.clone();
    let is_address = destination.host.parse::<std::net::IpAddr>().is_ok();
    let fixed = if is_address || config.resolves_once {
        let cannot = || format!("cannot resolve {destination}");
        let mut found = destination.resolve().map_err(Error::while_doing(cannot))?;
        // As the peer's --resolve-once: IPv4 is preferred.
        found.sort_by_key(SocketAddr::is_ipv6);
        Some(found)
    } else {
        None
    };
    let lookup = match fixed {
        Some(_) => None,
        None => Some(
            Lookup::start("pool:lookup", destination.clone())
                .map_err(Error::while_doing(|| "cannot start a thread"))?,
        ),
    };
    Ok(Route {
        shared: Arc::clone(shared),
        destination,
        fixed,
        lookup,
        tls: Mutex::new(config.tls.as_ref().map(load_tls).transpose()?.map(Arc::new)),
        mark: config.mark,
        connect_timeout: config.connect_timeout,
        backoff: config.backoff,
        sends_session_id: config.shared.framing == Framing::Pool,
        connects_on_demand: config.shared.framing == Framing::Mullvad,
        queue_datagrams_max: config.shared.queue_datagrams_max,
        log_gate: Mutex::new(LogGate::new(1, 8)),
        last_good: Mutex::new(None),
    })
}
