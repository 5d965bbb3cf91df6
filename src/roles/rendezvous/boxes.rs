//! The requests that only this server can read, and the keys to them.

use crate::error::Error;
use crate::net::random;
use crate::roles::member_key::{RequestCipher, Secret};
use crate::state::recent::Recent;
use crate::wire::rendezvous::request::{Boxed, Wish};
use crate::wire::rendezvous::{MemberKey, RoomId, ServerKey};

/// Members whose ciphers are remembered, of about 150 bytes each; who is forgotten costs another
/// X25519.
const CIPHERS_MAX: usize = 16_384;

/// A request of an unknown member weighs as much as so many others: X25519 took 80 us where it was measured (2026).
pub(super) const STRANGER_WEIGHT: u32 = 10;

/// Opens boxed requests, with a key that is as old as the process.
pub(super) struct Boxes {
    secret: Secret,
    key: ServerKey,
    ciphers: Recent<MemberKey, Option<RequestCipher>>,
}

impl Boxes {
    /// With a random key.
    pub(super) fn new() -> Result<Boxes, Error> {
        let random = random::bytes().map_err(Error::while_doing(|| "cannot make a key"))?;
        let secret = Secret::from_random(random);
        let key = secret.server_key();
        Ok(Boxes { secret, key, ciphers: Recent::new(CIPHERS_MAX) })
    }

    /// The key that members encrypt to.
    pub(super) fn key(&self) -> ServerKey {
        self.key
    }

    /// Whether a member's cipher is at hand.
    pub(super) fn knows(&self, member: MemberKey) -> bool {
        self.ciphers.get(&member).is_some()
    }

    /// Decrypts a request into `plain`. `None` if it is forged, or nothing that this server knows.
    pub(super) fn open<'p>(
        &mut self,
        boxed: &Boxed<'_>,
        plain: &'p mut Vec<u8>,
    ) -> Option<(RoomId, Wish<'p>)> {
        let cipher = || self.secret.from_member(boxed.key);
        self.ciphers.use_or_make(boxed.key, cipher)?.as_ref()?.open(boxed, plain)
    }
}
