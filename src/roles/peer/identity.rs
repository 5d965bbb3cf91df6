//! Who a member is: its static key, in WireGuard's text form.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use boringtun::x25519;
use std::fmt::{self, Display};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// 32 bytes in base64, padding included.
pub const KEY_TEXT_LEN: usize = 44;

/// More than any key and its line end; what is longer is another kind of file.
const KEY_FILE_LEN_MAX: u64 = 1024;
/// May others read it, or the group?
const OTHERS_READ: u32 = 0o004;
const GROUP_READS: u32 = 0o040;
/// Root's group. Who is in it is trusted as root is; and where a service manager lets one more user
/// read a file of root's (systemd's credentials), the group's rights show what that one has (acl(5)).
const ROOT_GROUP: u32 = 0;

/// Why a text is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyError {
    /// It has not [`KEY_TEXT_LEN`] characters.
    WrongLength(usize),
    /// It is not base64, or not as `wg` would have written it.
    NotBase64,
}

impl Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyError::WrongLength(len) => {
                write!(f, "a key has {KEY_TEXT_LEN} characters of base64, this has {len}")
            }
            KeyError::NotBase64 => {
                write!(f, "a key is 32 bytes in base64, {KEY_TEXT_LEN} characters")
            }
        }
    }
}

impl std::error::Error for KeyError {}

/// A member's static X25519 key, as all may know it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// Reads WireGuard's form; blanks around it are ignored.
    pub fn parse(text: &str) -> Result<PublicKey, KeyError> {
        bytes_of(text).map(PublicKey)
    }
}

impl Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

/// A static X25519 key. It is overwritten when dropped, and `Debug` shows its public half only.
#[derive(Clone)]
pub struct PrivateKey(x25519::StaticSecret);

impl PrivateKey {
    /// A key of 32 random bytes, clamped (RFC 7748, section 5) as `wg genkey` does.
    pub fn from_random(mut random: [u8; 32]) -> PrivateKey {
        random[0] &= 0b1111_1000;
        random[31] = (random[31] & 0b0111_1111) | 0b0100_0000;
        PrivateKey(x25519::StaticSecret::from(random))
    }

    /// Reads WireGuard's form; blanks around it are ignored.
    pub fn parse(text: &str) -> Result<PrivateKey, KeyError> {
        bytes_of(text).map(|bytes| PrivateKey(x25519::StaticSecret::from(bytes)))
    }

    /// WireGuard's form. Not `Display`: a secret should not be printed by accident.
    pub fn to_text(&self) -> String {
        STANDARD.encode(self.0.as_bytes())
    }

    /// The half to tell.
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.0).to_bytes())
    }

    /// For the handshake.
    pub fn secret(&self) -> &x25519::StaticSecret {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public())
    }
}

fn bytes_of(text: &str) -> Result<[u8; 32], KeyError> {
    let text = text.trim();
    if text.len() != KEY_TEXT_LEN {
        return Err(KeyError::WrongLength(text.chars().count()));
    }
    // The engine wants the padding, and zeros in the bits that do not count: as `wg` does.
    let bytes = STANDARD.decode(text).map_err(|_| KeyError::NotBase64)?;
    <[u8; 32]>::try_from(bytes).map_err(|_| KeyError::NotBase64)
}

/// What a key file holds.
#[derive(Debug, Clone)]
pub struct KeyFile {
    /// The key.
    pub key: PrivateKey,
    /// Everybody may read the file, or a group that is not root's: to be warned of.
    pub exposed: bool,
}

/// Reads a key file: one line, as `udpferry keygen` or `wg genkey` writes it.
///
/// # Errors
/// The file is not there or cannot be read; `InvalidData` if it holds no key.
pub fn read_key_file(path: &Path) -> io::Result<KeyFile> {
    let file = File::open(path)?;
    // Of the open file: another may have its name by now.
    let metadata = file.metadata()?;
    let exposed = is_exposed(metadata.permissions().mode(), metadata.gid());
    Ok(KeyFile { key: read_private_key(file)?, exposed })
}

fn is_exposed(mode: u32, group: u32) -> bool {
    mode & OTHERS_READ != 0 || mode & GROUP_READS != 0 && group != ROOT_GROUP
}

/// Reads a private key up to the end.
///
/// # Errors
/// As [`read_key_file`].
pub fn read_private_key(from: impl Read) -> io::Result<PrivateKey> {
    let mut text = String::new();
    from.take(KEY_FILE_LEN_MAX).read_to_string(&mut text)?;
    PrivateKey::parse(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The members that may connect, by `--peer-key`.
#[derive(Debug, Clone, Default)]
pub struct Pins {
    keys: Vec<PublicKey>,
}

impl Pins {
    /// Only these keys; with none of them, everybody who is in the room.
    pub fn new(keys: Vec<PublicKey>) -> Pins {
        Pins { keys }
    }

    /// Whether the holder of this key may connect.
    pub fn allow(&self, key: &PublicKey) -> bool {
        self.keys.is_empty() || self.keys.contains(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    // RFC 7748, section 6.1: Alice's keys.
    const PRIVATE: [u8; 32] = [
        0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66,
        0x45, 0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9,
        0x2c, 0x2a,
    ];
    const PUBLIC: [u8; 32] = [
        0x85, 0x20, 0xf0, 0x09, 0x89, 0x30, 0xa7, 0x54, 0x74, 0x8b, 0x7d, 0xdc, 0xb4, 0x3e, 0xf7,
        0x5a, 0x0d, 0xbf, 0x3a, 0x0d, 0x26, 0x38, 0x1a, 0xf4, 0xeb, 0xa4, 0xa9, 0x8e, 0xaa, 0x9b,
        0x4e, 0x6a,
    ];
    const PRIVATE_TEXT: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    const PUBLIC_TEXT: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    #[test]
    fn keys_are_those_of_the_rfc_in_wireguards_form() {
        let private = PrivateKey::parse(PRIVATE_TEXT).unwrap();
        assert_eq!(private.secret().as_bytes(), &PRIVATE);
        assert_eq!(private.to_text(), PRIVATE_TEXT);
        assert_eq!(private.public(), PublicKey(PUBLIC));
        assert_eq!(private.public().to_string(), PUBLIC_TEXT);
        assert_eq!(PublicKey::parse(&format!(" {PUBLIC_TEXT}\r\n")), Ok(PublicKey(PUBLIC)));
        assert!(!format!("{private:?}").contains(PRIVATE_TEXT));
    }

    #[test]
    fn a_random_key_is_clamped() {
        let key = PrivateKey::from_random([0xff; 32]);
        assert_eq!((key.secret().as_bytes()[0], key.secret().as_bytes()[31]), (0xf8, 0x7f));
        let key = PrivateKey::from_random([0; 32]);
        assert_eq!((key.secret().as_bytes()[0], key.secret().as_bytes()[31]), (0, 0x40));
    }

    #[test]
    fn what_is_no_key_says_why() {
        assert_eq!(PublicKey::parse(""), Err(KeyError::WrongLength(0)));
        assert_eq!(PublicKey::parse(&PUBLIC_TEXT[..43]), Err(KeyError::WrongLength(43)));
        assert_eq!(PublicKey::parse(&format!("{PUBLIC_TEXT}=")), Err(KeyError::WrongLength(45)));
        for wrong in [
            // A sign out of place, no padding, bits beyond the 256 (wg(8) refuses them too), 33 bytes.
            PUBLIC_TEXT.replace('/', "_"),
            PUBLIC_TEXT.replace('=', "A"),
            PUBLIC_TEXT.replace("o=", "p="),
            PUBLIC_TEXT.replace("mo=", "ö="),
            PUBLIC_TEXT.replace("o=", "=="),
        ] {
            assert_eq!(PublicKey::parse(&wrong), Err(KeyError::NotBase64), "{wrong}");
        }
    }

    #[test]
    fn a_key_file_tells_who_else_may_read_it() {
        let path = std::env::temp_dir().join(format!("udpferry-key-{}", std::process::id()));
        let missing = read_key_file(&path).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        fs::write(&path, format!("{PRIVATE_TEXT}\n")).unwrap();
        for (mode, exposed) in [(0o600, false), (0o604, true), (0o400, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let file = read_key_file(&path).unwrap();
            assert_eq!((file.key.to_text().as_str(), file.exposed), (PRIVATE_TEXT, exposed));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for wrong in [&b"[Interface]\n"[..], &[0xff; 44], &[b'A'; 5000], b""] {
            fs::write(&path, wrong).unwrap();
            let error = read_key_file(&path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_file_is_exposed_to_its_group_unless_that_is_roots() {
        for (mode, group, exposed) in
            [(0o440, 0, false), (0o444, 0, true), (0o440, 1000, true), (0o600, 1000, false)]
        {
            assert_eq!(is_exposed(0o100_000 | mode, group), exposed, "{mode:o} {group}");
        }
    }

    #[test]
    fn pins_let_in_whom_they_name() {
        let (named, other) = (PublicKey(PUBLIC), PublicKey([1; 32]));
        let pins = Pins::new(vec![named]);
        assert!(pins.allow(&named) && !pins.allow(&other));
        assert!(Pins::default().allow(&other));
    }
}
