//! Who a member is to others, of `rendezvous` and of `peer` alike.

use crate::wire::rendezvous::{MemberId, Token};
use blake2::{Blake2s256, Digest};

const LABEL: &[u8] = b"udpferry member v1";

/// The member whose secret the token is (`docs/protocols/rendezvous.md`).
pub fn member_of(token: Token) -> MemberId {
    let hash = Blake2s256::new().chain_update(LABEL).chain_update(token.0).finalize();
    let mut id = [0; 8];
    for (byte, of_hash) in id.iter_mut().zip(hash) {
        *byte = of_hash;
    }
    MemberId(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From Python: `hashlib.blake2s(b"udpferry member v1" + bytes(range(16))).digest()[:8]`.
    #[test]
    fn a_token_makes_the_member_that_the_document_says() {
        let token = Token(std::array::from_fn(|at| u8::try_from(at).unwrap()));
        let expected = [0x7d, 0x35, 0xcd, 0xc1, 0x41, 0x48, 0xf9, 0x82];
        assert_eq!(member_of(token), MemberId(expected));
    }
}
