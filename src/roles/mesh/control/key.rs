//! The key that commands from elsewhere are proven with.

use crate::error::Error;
use crate::wire::mesh::{PROOF_LEN, Sealed, Way, write_sealed};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes of a key at least: half of what HMAC-SHA256 can use, and no word of a dictionary.
const KEY_LEN_MIN: usize = 16;

/// A secret that controllers and the daemon share.
#[derive(Clone)]
pub(in crate::roles::mesh) struct Key(Hmac<Sha256>);

impl Key {
    /// Reads a file of at least 16 bytes; white space at its end does not count. Says so if others
    /// can read it too.
    pub(in crate::roles::mesh) fn load(path: &Path) -> Result<Key, Error> {
        let shown = path.display();
        let cannot = || format!("cannot read the control key {shown}");
        let bytes = std::fs::read(path).map_err(Error::while_doing(cannot))?;
        let metadata = std::fs::metadata(path).map_err(Error::while_doing(cannot))?;
        if metadata.mode() & 0o077 != 0 {
            log::warn!("{shown} can be read by others than its owner: chmod 600");
        }
        let key = bytes.trim_ascii_end();
        if key.len() < KEY_LEN_MIN {
            let cause = io::Error::other(format!(
                "it has {} bytes, of which there must be {KEY_LEN_MIN}: openssl rand -hex 32 makes a \
                 good one",
                key.len()
            ));
            return Err(cause).map_err(Error::while_doing(cannot));
        }
        Ok(Key::new(key))
    }

    fn new(key: &[u8]) -> Key {
        match Hmac::new_from_slice(key) {
            Ok(hmac) => Key(hmac),
            // Not reached: HMAC takes a key of any length.
            Err(_) => Key(<Hmac<Sha256> as Mac>::new(&[0; 64].into())),
        }
    }

    /// A datagram with its proof.
    pub(in crate::roles::mesh) fn seal(
        &self,
        way: Way,
        time_ms: u64,
        nonce: [u8; 16],
        body: &[u8],
    ) -> Vec<u8> {
        write_sealed(way, time_ms, nonce, body, |pieces| -> [u8; PROOF_LEN] {
            self.over(pieces).finalize().into_bytes().into()
        })
    }

    /// Whether the proof is that of the datagram, in constant time.
    pub(in crate::roles::mesh) fn proves(&self, sealed: &Sealed<'_>) -> bool {
        self.over(sealed.proven()).verify_slice(&sealed.proof).is_ok()
    }

    fn over(&self, pieces: [&[u8]; 2]) -> Hmac<Sha256> {
        let mut hmac = self.0.clone();
        for piece in pieces {
            hmac.update(piece);
        }
        hmac
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::mesh::parse_sealed;
    use std::fs;

    /// Golden: Python's hmac module over the bytes that the drawing in `wire::mesh` says.
    #[test]
    fn the_proof_is_hmac_sha256_over_all_but_itself() {
        let bytes = Key::new(&[b'k'; 16]).seal(Way::Command, 0x0102, [9; 16], b"{}");
        let number = |half: &[u8]| u128::from_be_bytes(half.try_into().unwrap());
        let hex = format!("{:032x}{:032x}", number(&bytes[32..48]), number(&bytes[48..64]));
        assert_eq!(hex, "df0087f8aa45ba169a28e03139e1ba3efcba2016dc4f6b59b41e37f129a7e6fa");
    }

    #[test]
    fn another_key_or_any_other_byte_proves_nothing() {
        let key = Key::new(b"0123456789abcdef");
        let bytes = key.seal(Way::Command, 7, [1; 16], b"{\"op\":\"list\"}");
        assert!(key.proves(&parse_sealed(&bytes).unwrap()));
        assert!(!Key::new(b"0123456789abcdeg").proves(&parse_sealed(&bytes).unwrap()));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(parse_sealed(&changed).is_none_or(|sealed| !key.proves(&sealed)), "byte {at}");
        }
        // A command is no answer to another one.
        let answer = key.seal(Way::Answer, 7, [1; 16], b"{\"op\":\"list\"}");
        assert_ne!(bytes[32..64], answer[32..64]);
    }

    #[test]
    fn a_key_is_long_enough_and_its_line_end_does_not_count() {
        let path = std::env::temp_dir().join(format!("udpferry-key-{}", std::process::id()));
        let load = |text: &str| {
            fs::write(&path, text).unwrap();
            Key::load(&path)
        };
        let sealed = load("0123456789abcdef\n").unwrap().seal(Way::Command, 1, [0; 16], b"");
        assert!(Key::new(b"0123456789abcdef").proves(&parse_sealed(&sealed).unwrap()));
        let error = load("0123456789abcde\n").err().unwrap().to_string();
        assert!(error.contains("it has 15 bytes"), "{error}");
        fs::remove_file(&path).unwrap();
        assert!(Key::load(&path).err().unwrap().to_string().starts_with("cannot read the control"));
    }
}
