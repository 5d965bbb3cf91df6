//! A room: its name, its secret, and the keys that follow from both.
//!
//! A code is `NAME:SECRET`. One that [`Room::made`] made is `tibor:000G-40R4-…`: 28 symbols of
//! Crockford's base32, of which 128 bits are the secret and 12 a checksum over it and the name, so
//! that a slip of the tongue is an error and not another, empty room. Such a code is read whatever
//! its case, with and without dashes, and with the letters that Crockford's alphabet leaves out
//! for their likeness. Every other code is taken to the letter: a passphrase may have dashes and
//! capitals of its own. The checksum keeps the two apart.

use argon2::{Algorithm, Argon2, Params, Version};
use blake2::digest::consts::{U16, U32};
use blake2::digest::crypto_common::KeySizeUser;
use blake2::digest::{FixedOutput, KeyInit, Output, Update};
use blake2::{Blake2s, Blake2s256, Blake2sMac, Digest};
use std::fmt;

use crate::wire::rendezvous::RoomId;

/// Fewer can be tried one by one, whatever a try costs.
pub const SECRET_CHARS_MIN: usize = 8;
/// Bytes of a room's name, at most: it is typed and read aloud.
pub const NAME_LEN_MAX: usize = 64;
/// Random bytes that [`Room::made`] wants.
pub const RANDOM_LEN: usize = SECRET_LEN + NAME_LETTERS;

/// RFC 9106, section 4, the second recommended option, with one lane: peers have few cores.
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;
const LANES: u32 = 1;

const SALT_LABEL: &[u8] = b"udpferry room v1";
const CHECKSUM_LABEL: &[u8] = b"udpferry room code v1";

/// 128 bits, as WireGuard's and TLS's smallest keys.
const SECRET_LEN: usize = 16;
const NAME_LETTERS: usize = 5;
/// 128 bits and the checksum's 12, five to a symbol.
const SYMBOLS: usize = 28;
const CHECKSUM_BITS: u32 = 12;
/// Symbols between dashes.
const GROUP: usize = 4;
/// Crockford's alphabet: no I, L, O and U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// A made name is a consonant, a vowel, and so on: 65,536 that can be said aloud. Sixteen and four,
/// so that a random byte picks each alike.
const CONSONANTS: &[u8; 16] = b"bdfghklmnprstvwz";
const VOWELS: &[u8; 4] = b"aiou";

/// Why a text is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoomError {
    /// There is no `:` between name and secret.
    NoSecret,
    /// The name is empty, longer than [`NAME_LEN_MAX`], or has a colon or control characters.
    BadName,
    /// The secret has fewer than [`SECRET_CHARS_MIN`] characters.
    SecretTooShort,
    /// It has the form of a made code, and its checksum is wrong.
    Mistyped,
    /// There is no memory for Argon2id.
    NoMemory,
}

impl fmt::Display for RoomError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RoomError::NoSecret => f.write_str("a room's code is NAME:SECRET"),
            RoomError::BadName => {
                write!(f, "a room's name has 1 to {NAME_LEN_MAX} bytes, no colon and no controls")
            }
            RoomError::SecretTooShort => {
                write!(f, "a room's secret has at least {SECRET_CHARS_MIN} characters")
            }
            RoomError::Mistyped => f.write_str("the room's code is mistyped"),
            RoomError::NoMemory => f.write_str("the room's keys need 64 MiB of memory"),
        }
    }
}

impl std::error::Error for RoomError {}

/// Where members meet.
#[derive(Clone, PartialEq, Eq)]
pub struct Room {
    name: String,
    /// As the keys are derived from it: of a made code the symbols, upper case, without dashes.
    secret: String,
    made: bool,
}

impl Room {
    /// A room by a name and a secret of its members' own choice, both to the letter.
    pub fn new(name: &str, secret: &str) -> Result<Room, RoomError> {
        let controls = name.chars().any(|sign| sign == ':' || sign.is_control());
        if name.is_empty() || name.len() > NAME_LEN_MAX || controls {
            return Err(RoomError::BadName);
        }
        if secret.chars().count() < SECRET_CHARS_MIN {
            return Err(RoomError::SecretTooShort);
        }
        Ok(Room { name: name.to_owned(), secret: secret.to_owned(), made: false })
    }

    /// A new room that nobody can guess, from random bytes.
    pub fn made(random: &[u8; RANDOM_LEN]) -> Room {
        let (secret, letters) = random.split_at(SECRET_LEN);
        let pick = |set: &[u8], byte: u8| char::from(set[usize::from(byte) % set.len()]);
        let name: String = letters
            .iter()
            .enumerate()
            .map(
                |(at, byte)| {
                    if at % 2 == 0 { pick(CONSONANTS, *byte) } else { pick(VOWELS, *byte) }
                },
            )
            .collect();
        let secret = secret.iter().fold(0, |number, byte| (number << 8) | u128::from(*byte));
        let symbols = symbols_of(secret, checksum(&name, secret));
        Room { name, secret: symbols, made: true }
    }

    /// Reads `NAME:SECRET`; the secret may have colons.
    pub fn parse_code(code: &str) -> Result<Room, RoomError> {
        let (name, secret) = code.split_once(':').ok_or(RoomError::NoSecret)?;
        let symbols = canonical(secret);
        if let Some((number, given)) = symbols.as_deref().and_then(number_of) {
            let name = name.to_ascii_lowercase();
            if given == checksum(&name, number) {
                let room = Room::new(&name, &symbols.unwrap_or_default())?;
                return Ok(Room { made: true, ..room });
            }
            let groups = secret.split('-');
            if groups.clone().count() == SYMBOLS / GROUP && groups.clone().all(|g| g.len() == GROUP)
            {
                return Err(RoomError::Mistyped);
            }
        }
        Room::new(name, secret)
    }

    /// What the members call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What to tell the others: [`Room::parse_code`] reads it back. It has the secret in it.
    pub fn code(&self) -> String {
        if !self.made {
            return format!("{}:{}", self.name, self.secret);
        }
        let mut code = self.name.clone();
        for (at, symbol) in self.secret.chars().enumerate() {
            match at {
                0 => code.push(':'),
                _ if at % GROUP == 0 => code.push('-'),
                _ => {}
            }
            code.push(symbol);
        }
        code
    }

    /// Derives the keys: 64 MiB and a few tenths of a second.
    pub fn keys(&self) -> Result<RoomKeys, RoomError> {
        let mut salt = Blake2s::<U16>::new();
        Digest::update(&mut salt, SALT_LABEL);
        Digest::update(&mut salt, self.name.as_bytes());
        // Only parameters out of range and exhausted memory are errors, and these are in range.
        let params = Params::new(MEMORY_KIB, PASSES, LANES, Some(32));
        let params = params.map_err(|_| RoomError::NoMemory)?;
        let mut key = [0; 32];
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(self.secret.as_bytes(), &salt.finalize(), &mut key)
            .map_err(|_| RoomError::NoMemory)?;
        Ok(RoomKeys {
            id: RoomId(derive::<Blake2sMac<U16>>(&key, b"room").into()),
            announce: derive::<Blake2sMac<U32>>(&key, b"announce").into(),
            probe: derive::<Blake2sMac<U32>>(&key, b"probe").into(),
            preshared: derive::<Blake2sMac<U32>>(&key, b"preshared").into(),
        })
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What follows from a room's name and secret (`docs/protocols/peer.md`).
#[derive(Clone, PartialEq, Eq)]
pub struct RoomKeys {
    /// The room, as the server knows it.
    pub id: RoomId,
    /// Seals announcements.
    pub announce: [u8; 32],
    /// Authenticates probes.
    pub probe: [u8; 32],
    /// The preshared key of every handshake.
    pub preshared: [u8; 32],
}

impl fmt::Debug for RoomKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoomKeys").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Keyed BLAKE2s of `label`. BLAKE2 hashes the output's length too: a short one is not the beginning
/// of a longer one.
fn derive<M>(key: &[u8; 32], label: &[u8]) -> Output<M>
where
    M: KeySizeUser<KeySize = U32> + KeyInit + Update + FixedOutput,
{
    let mut mac = <M as KeyInit>::new(key.into());
    mac.update(label);
    mac.finalize_fixed()
}

/// The checksum's bits: over the name too, so that a wrong name is noticed as well.
fn checksum(name: &str, secret: u128) -> u16 {
    let mut hash = Blake2s256::new();
    Digest::update(&mut hash, CHECKSUM_LABEL);
    Digest::update(&mut hash, name.as_bytes());
    Digest::update(&mut hash, b":");
    Digest::update(&mut hash, secret.to_be_bytes());
    let hash = hash.finalize();
    u16::from_be_bytes([hash[0], hash[1]]) >> (u16::BITS - CHECKSUM_BITS)
}

/// The secret and then the checksum, most significant bits first.
fn symbols_of(secret: u128, checksum: u16) -> String {
    let mut symbols = String::with_capacity(SYMBOLS);
    // 128 bits are 25 symbols and three bits, which share a symbol with two of the checksum.
    for at in 0..25 {
        symbols.push(symbol(secret >> (128 - 5 * (at + 1))));
    }
    let rest = ((secret & 0b111) << CHECKSUM_BITS) | u128::from(checksum);
    for shift in [10, 5, 0] {
        symbols.push(symbol(rest >> shift));
    }
    symbols
}

fn symbol(bits: u128) -> char {
    // At most 31.
    char::from(ALPHABET[(bits & 31) as usize])
}

/// The 28 symbols of what may be a made secret, upper case; `None` if it is certainly none.
fn canonical(secret: &str) -> Option<String> {
    let symbols = secret.chars().filter(|sign| *sign != '-').map(|sign| {
        let sign = match sign.to_ascii_uppercase() {
            'O' => '0',
            'I' | 'L' => '1',
            sign => sign,
        };
        ALPHABET.iter().any(|symbol| char::from(*symbol) == sign).then_some(sign)
    });
    let symbols: String = symbols.collect::<Option<_>>()?;
    (symbols.len() == SYMBOLS).then_some(symbols)
}

/// What 28 symbols say: the secret and the checksum.
fn number_of(symbols: &str) -> Option<(u128, u16)> {
    let mut values = symbols.bytes().map(|byte| ALPHABET.iter().position(|symbol| *symbol == byte));
    let mut secret: u128 = 0;
    for value in values.by_ref().take(25) {
        secret = (secret << 5) | value? as u128;
    }
    let mut rest: u16 = 0;
    for value in values {
        rest = (rest << 5) | u16::try_from(value?).ok()?;
    }
    let secret = (secret << 3) | u128::from(rest >> CHECKSUM_BITS);
    Some((secret, rest & ((1 << CHECKSUM_BITS) - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    }

    fn in_hex(keys: &RoomKeys) -> [String; 4] {
        [hex(&keys.id.0), hex(&keys.announce), hex(&keys.probe), hex(&keys.preshared)]
    }

    /// 16 bytes 0 to 15, and the letters of `tibor`.
    fn random() -> [u8; RANDOM_LEN] {
        let mut random: [u8; RANDOM_LEN] = std::array::from_fn(|at| u8::try_from(at).unwrap());
        random[16..].copy_from_slice(&[12, 1, 0, 2, 10]);
        random
    }

    const CODE: &str = "tibor:000G-40R4-0M30-E209-185G-R38E-1XF3";

    // Made with Python 3, hashlib.blake2s and argon2-cffi:
    //   salt = blake2s(b"udpferry room v1" + name, digest_size=16).digest()
    //   K = argon2.low_level.hash_secret_raw(secret, salt, 3, 65536, 1, 32, Type.ID, 19)
    //   blake2s(b"room", key=K, digest_size=16), blake2s(b"announce", key=K, digest_size=32), …
    #[test]
    fn the_derivation_is_that_of_another_implementation() {
        let keys = Room::new("bench", "correct horse").unwrap().keys().unwrap();
        let expected = [
            "d4f3f353e836f85db9d29c422b929585",
            "43bfcb90ebb51ec9cd377b5ecfc4026615bcd0bb6423dd515e69aca6a28cc2b8",
            "3ddd51f5f2ae20a146b3c96ae5ea4dc50cea4a53cefbfbd334d4bbd0f92e2617",
            "84e451f7a05781d40a92c93d75fea1cf3dd19aa1b9f66beabb553a9b82551461",
        ];
        assert_eq!(in_hex(&keys), expected);
        assert!(!format!("{keys:?}").contains("announce"), "keys are not for logs");
    }

    // As above; the checksum is the first 12 bits of
    //   blake2s(b"udpferry room code v1" + b"tibor" + b":" + bytes(range(16)))
    #[test]
    fn a_made_code_and_its_keys_are_those_of_another_implementation() {
        let made = Room::made(&random());
        assert_eq!(made.code(), CODE);
        let expected = [
            "1af69cf83cacb62174b8fa3c4a9975e3",
            "1671c7e58d58fce16f7987ebbe756ef56dd6572bc2eba12cd1915b6b97668288",
            "d4fac080d44e29289a5dfe46c517d6a6030f97aa4f3a3c1ceedfc172f89690e8",
            "7e727ae5fc932bfdf896d8fbf1a4b63d7a5f58baae943cb5e51c44e6951067f7",
        ];
        assert_eq!(in_hex(&made.keys().unwrap()), expected);
        assert_eq!(format!("{made:?}"), "Room { name: \"tibor\", .. }");
    }

    #[test]
    fn a_made_code_is_read_as_people_write_it() {
        let made = Room::made(&random());
        for same in [
            CODE,
            "Tibor:000g-40r4-0m30-e209-185g-r38e-1xf3",
            "TIBOR:000G40R40M30E209185GR38E1XF3",
            "tibor:ooog-4or4-om3o-e2o9-i85g-r38e-lxf3",
            "tibor:000G40R4-0M30E209185GR38E1-XF3",
        ] {
            assert_eq!(Room::parse_code(same).as_ref(), Ok(&made), "{same}");
        }
    }

    #[test]
    fn a_slip_in_a_made_code_is_an_error() {
        for symbol in 0..CODE.len() {
            for other in ['9', 'Q'] {
                let mut wrong: Vec<char> = CODE.chars().collect();
                if matches!(wrong[symbol], ':' | '-') || wrong[symbol] == other {
                    continue;
                }
                wrong[symbol] = other;
                let wrong: String = wrong.into_iter().collect();
                assert_eq!(Room::parse_code(&wrong), Err(RoomError::Mistyped), "{wrong}");
            }
        }
    }

    #[test]
    fn other_codes_are_taken_to_the_letter() {
        for code in ["Bench:Correct-Horse", "bench:a:b:c:d:e", "x:000G40R40M30E209185GR38E1XF4"] {
            let room = Room::parse_code(code).unwrap();
            assert_eq!(room.code(), code);
            let (name, secret) = code.split_once(':').unwrap();
            assert_eq!(Ok(room), Room::new(name, secret));
        }
        assert_ne!(Room::parse_code("a:Password"), Room::parse_code("a:password"));
        assert_ne!(Room::parse_code("a:pass-word"), Room::parse_code("a:password"));
    }

    #[test]
    fn what_is_no_room_says_why() {
        let long = "n".repeat(NAME_LEN_MAX + 1);
        for (code, error) in [
            ("", RoomError::NoSecret),
            ("bench", RoomError::NoSecret),
            (":long enough", RoomError::BadName),
            ("a\u{1b}b:long enough", RoomError::BadName),
            (&format!("{long}:long enough"), RoomError::BadName),
            ("bench:", RoomError::SecretTooShort),
            ("bench:1234567", RoomError::SecretTooShort),
            ("bench:äöüäöüä", RoomError::SecretTooShort),
        ] {
            assert_eq!(Room::parse_code(code), Err(error), "{code}");
        }
        assert!(Room::parse_code("bench:12345678").is_ok());
        assert_eq!(Room::new("a:b", "long enough"), Err(RoomError::BadName));
    }

    proptest! {
        #[test]
        fn made_codes_read_back(random: [u8; RANDOM_LEN]) {
            let made = Room::made(&random);
            let code = made.code();
            prop_assert_eq!(code.len(), 5 + 1 + 34);
            prop_assert_eq!(Room::parse_code(&code), Ok(made.clone()));
            prop_assert_eq!(Room::parse_code(&code.to_lowercase()), Ok(made));
        }

        #[test]
        fn no_text_is_a_panic(text in "\\PC{0,40}|[0-9a-zA-Z:-]{0,45}") {
            if let Ok(room) = Room::parse_code(&text) {
                prop_assert_eq!(Room::parse_code(&room.code()), Ok(room));
            }
        }
    }
}
