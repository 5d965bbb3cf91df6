//! Who a member is to servers and to others, and how it asks a server what nobody overhears: shared
//! by `rendezvous` and `peer` (`docs/protocols/rendezvous.md`).
//!
//! ```text
//! shared  = BLAKE2s-256("udpferry request v1" . X25519(member, server) . member key . server key)
//! boxed   = ChaCha20-Poly1305(shared, nonce = tx:8 . zeros:4, wish, associated = the 61 bytes before)
//! ```

use crate::wire::rendezvous::request::{
    BOX_HEADER_LEN, BOX_TAG_LEN, Boxed, Wish, parse_wish, write_box_header, write_wish,
};
use crate::wire::rendezvous::{MemberId, MemberKey, Pass, RoomId, ServerKey};
use blake2::{Blake2s256, Digest};
use boringtun::x25519;
use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{ChaCha20Poly1305, Key, KeyInit, Nonce, Tag};
use std::fmt;

const MEMBER_LABEL: &[u8] = b"udpferry member v1";
const REQUEST_LABEL: &[u8] = b"udpferry request v1";

/// The member whose key this is.
pub fn member_of(key: MemberKey) -> MemberId {
    let hash = Blake2s256::new().chain_update(MEMBER_LABEL).chain_update(key.0).finalize();
    let mut id = [0; 8];
    for (byte, of_hash) in id.iter_mut().zip(hash) {
        *byte = of_hash;
    }
    MemberId(id)
}

/// The secret half of a member's or a server's key.
pub struct Secret(x25519::StaticSecret);

impl Secret {
    /// Of 32 random bytes.
    pub fn from_random(random: [u8; 32]) -> Secret {
        Secret(x25519::StaticSecret::from(random))
    }

    /// The half to tell, as a member's.
    pub fn member_key(&self) -> MemberKey {
        MemberKey(self.public())
    }

    /// The half to tell, as a server's.
    pub fn server_key(&self) -> ServerKey {
        ServerKey(self.public())
    }

    /// A member's requests to that server. `None` if the key is one that gives the same secret to
    /// everybody (RFC 7748, section 6.1).
    pub fn towards(&self, server: ServerKey) -> Option<RequestCipher> {
        self.cipher(server.0, self.member_key(), server)
    }

    /// A server's side of what that member asks; `None` as above.
    pub fn from_member(&self, member: MemberKey) -> Option<RequestCipher> {
        self.cipher(member.0, member, self.server_key())
    }

    fn public(&self) -> [u8; 32] {
        x25519::PublicKey::from(&self.0).to_bytes()
    }

    fn cipher(
        &self,
        other: [u8; 32],
        member: MemberKey,
        server: ServerKey,
    ) -> Option<RequestCipher> {
        let shared = self.0.diffie_hellman(&x25519::PublicKey::from(other));
        if !shared.was_contributory() {
            return None;
        }
        let key = Blake2s256::new()
            .chain_update(REQUEST_LABEL)
            .chain_update(shared.as_bytes())
            .chain_update(member.0)
            .chain_update(server.0)
            .finalize();
        Some(RequestCipher { member, key: key.into() })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Secret").finish_non_exhaustive()
    }
}

/// Encrypts and decrypts what one member asks of one server.
#[derive(Clone)]
pub struct RequestCipher {
    member: MemberKey,
    key: [u8; 32],
}

impl fmt::Debug for RequestCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestCipher").field("member", &self.member).finish_non_exhaustive()
    }
}

impl RequestCipher {
    /// Appends the datagram of a wish. `tx` must be random and new.
    pub fn write(&self, out: &mut Vec<u8>, tx: u64, pass: Pass, room: RoomId, wish: &Wish<'_>) {
        let start = out.len();
        write_box_header(out, tx, pass.cookie, self.member);
        write_wish(out, room, wish);
        let (header, plain) = out[start..].split_at_mut(BOX_HEADER_LEN);
        // It fails on gigabytes alone.
        if let Ok(tag) = self.cipher().encrypt_in_place_detached(&nonce(tx), header, plain) {
            out.extend_from_slice(&tag);
        } else {
            out.truncate(start);
        }
    }

    /// Decrypts into `plain`. `None` if it is forged, or no wish.
    pub fn open<'p>(
        &self,
        boxed: &Boxed<'_>,
        plain: &'p mut Vec<u8>,
    ) -> Option<(RoomId, Wish<'p>)> {
        let (text, tag) = boxed.ciphertext.split_last_chunk::<BOX_TAG_LEN>()?;
        plain.clear();
        write_box_header(plain, boxed.tx, boxed.cookie, boxed.key);
        plain.extend_from_slice(text);
        let (header, text) = plain.split_at_mut(BOX_HEADER_LEN);
        self.cipher()
            .decrypt_in_place_detached(&nonce(boxed.tx), header, text, Tag::from_slice(tag))
            .ok()?;
        parse_wish(text)
    }

    fn cipher(&self) -> ChaCha20Poly1305 {
        ChaCha20Poly1305::new(Key::from_slice(&self.key))
    }
}

fn nonce(tx: u64) -> Nonce {
    let mut nonce = Nonce::default();
    for (byte, of_tx) in nonce.iter_mut().zip(tx.to_be_bytes()) {
        *byte = of_tx;
    }
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::rendezvous::Cookie;
    use crate::wire::rendezvous::request::{Request, parse_request};

    fn counted<const N: usize>(from: u8) -> [u8; N] {
        std::array::from_fn(|at| from + u8::try_from(at).unwrap())
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    }

    fn boxed(datagram: &[u8]) -> Boxed<'_> {
        match parse_request(datagram) {
            Some(Request::Boxed(boxed)) => boxed,
            other => panic!("{other:?}"),
        }
    }

    const WISH: Wish<'_> = Wish::Register { rtt_ms: 30, sealed: b"sealed" };

    fn asked(server: &Secret) -> Vec<u8> {
        let pass = Pass { cookie: Cookie([3; 16]), server: server.server_key() };
        let mut datagram = Vec::new();
        let cipher = Secret::from_random(counted(0)).towards(pass.server).unwrap();
        cipher.write(&mut datagram, 0x0102_0304_0506_0708, pass, RoomId([4; 16]), &WISH);
        datagram
    }

    /// Made with Python 3: hashlib.blake2s, and X25519 and ChaCha20-Poly1305 written down from RFC
    /// 7748 and RFC 8439.
    #[test]
    fn a_request_is_that_of_another_implementation() {
        const EXPECTED: &str = "f5727601020102030405060708030303030303030303030303030303038f40c5\
            adb68f25624ae5b214ea767a6ec94d829d3d7b5e1ad1ba6f3e2138285f2f60494cb5041d77cd8411eb47d1\
            2d1768b6eb4755b5bd2d920b45d6582910205bc67af3a626523f232287";
        let (member, server) = (Secret::from_random(counted(0)), Secret::from_random(counted(32)));
        let id = member_of(member.member_key());
        assert_eq!(hex(&id.0), "a90dd0882493ab98");
        assert_eq!(hex(&asked(&server)), EXPECTED);
    }

    #[test]
    fn only_the_member_asks_and_only_the_server_reads() {
        let server = Secret::from_random(counted(32));
        let mut datagram = asked(&server);
        let mut plain = Vec::new();
        let cipher = server.from_member(boxed(&datagram).key).unwrap();
        let opened = cipher.open(&boxed(&datagram), &mut plain);
        assert_eq!(opened, Some((RoomId([4; 16]), WISH)));
        let other = Secret::from_random([9; 32]).from_member(boxed(&datagram).key).unwrap();
        assert_eq!(other.open(&boxed(&datagram), &mut plain), None);
        // Neither its number, nor its cookie, nor the key or the text can be changed.
        for at in 5..datagram.len() {
            datagram[at] ^= 1;
            let changed = server.from_member(boxed(&datagram).key).unwrap();
            assert_eq!(changed.open(&boxed(&datagram), &mut plain), None, "byte {at}");
            datagram[at] ^= 1;
        }
    }

    #[test]
    fn a_key_that_everybody_shares_is_refused() {
        let server = Secret::from_random([7; 32]);
        assert!(server.from_member(MemberKey([0; 32])).is_none());
        assert!(server.towards(ServerKey([0; 32])).is_none());
    }
}
