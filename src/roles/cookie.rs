//! Cookies: who shows one has received what we sent to its address, and we remember nothing.

use crate::error::Error;
use crate::net::random;
use blake2::Blake2sMac;
use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How long a cookie counts at least; at most twice as long.
const EPOCH: Duration = Duration::from_secs(30);

/// Makes cookies and checks them, with a key that is as old as the process.
pub struct Cookies {
    key: Blake2sMac<U16>,
    start: Instant,
}

impl Cookies {
    /// With a random key.
    pub fn new(now: Instant) -> Result<Cookies, Error> {
        let key = random::bytes().map_err(Error::while_doing(|| "cannot make a key"))?;
        Ok(Cookies::with_key(&key, now))
    }

    fn with_key(key: &[u8; 32], now: Instant) -> Cookies {
        Cookies { key: <Blake2sMac<U16> as KeyInit>::new(key.into()), start: now }
    }

    /// The cookie for an endpoint. `silence` is the number of its last silence, where the role counts
    /// those: with another number there is another cookie.
    pub fn make(&self, now: Instant, endpoint: SocketAddr, silence: u64) -> [u8; 16] {
        self.over(self.epoch(now), endpoint, silence).finalize().into_bytes().into()
    }

    /// Whether the cookie is that of the endpoint, made in this half minute or the one before, and
    /// since its last silence.
    pub fn counts(
        &self,
        now: Instant,
        endpoint: SocketAddr,
        silence: u64,
        cookie: [u8; 16],
    ) -> bool {
        let epoch = self.epoch(now);
        [Some(epoch), epoch.checked_sub(1)].into_iter().flatten().any(|epoch| {
            // In constant time.
            self.over(epoch, endpoint, silence).verify_slice(&cookie).is_ok()
        })
    }

    fn epoch(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs() / EPOCH.as_secs()
    }

    fn over(&self, epoch: u64, endpoint: SocketAddr, silence: u64) -> Blake2sMac<U16> {
        let address = match endpoint.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let mut mac = self.key.clone();
        mac.update(&epoch.to_be_bytes());
        mac.update(&address.octets());
        mac.update(&endpoint.port().to_be_bytes());
        mac.update(&silence.to_be_bytes());
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock;

    #[test]
    fn a_cookie_is_of_one_endpoint_for_half_a_minute_or_two() {
        let now = clock::now();
        let cookies = Cookies::with_key(&[7; 32], now);
        let endpoint: SocketAddr = "192.0.2.1:5000".parse().unwrap();
        let cookie = cookies.make(now, endpoint, 3);
        for seconds in [0, 29, 30, 59] {
            assert!(cookies.counts(now + Duration::from_secs(seconds), endpoint, 3, cookie));
        }
        assert!(!cookies.counts(now + Duration::from_secs(60), endpoint, 3, cookie));
        assert!(!cookies.counts(now, endpoint, 4, cookie), "it has been silent since");
        for other in ["192.0.2.1:5001", "192.0.2.2:5000", "[2001:db8::1]:5000"] {
            assert!(!cookies.counts(now, other.parse().unwrap(), 3, cookie), "{other}");
        }
        let restarted = Cookies::with_key(&[8; 32], now);
        assert!(!restarted.counts(now, endpoint, 3, cookie));
        assert!(!cookies.counts(now, endpoint, 3, [0; 16]));
    }
}
