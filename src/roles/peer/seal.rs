//! Announcements: sealed for the room's members, and of several the one that counts.
//!
//! ```text
//! sealed = nonce:24 . XChaCha20-Poly1305(announce, nonce, plain, associated = room:16 . member:8)
//! ```

use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};

use super::room::RoomKeys;
use crate::wire::peer::{Announcement, parse_announcement, write_announcement};
use crate::wire::rendezvous::{MemberId, SEALED_LEN_MAX};

/// Random bytes that [`seal`] wants: so many that chance never picks the same twice under a key.
pub const NONCE_LEN: usize = 24;

const TAG_LEN: usize = 16;

/// How far ahead of the own clock a made-time counts: a clock may be in another time zone, and who
/// lies, or had a wrong clock, is heard again after a day.
const AHEAD_MAX_MS: u64 = 24 * 60 * 60 * 1000;

/// Why an announcement was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealError {
    /// Too short or too long to be one.
    Length,
    /// Sealed with another key, for another room or member, or changed on the way.
    Forged,
    /// Sealed by a member, and not understood: another version, or nonsense.
    Malformed,
    /// Older than one that the member has made before.
    Outdated,
    /// The member has another key than before, which lasts as long as its id.
    KeyChanged,
}

impl SealError {
    /// The word for logs and counters.
    pub fn as_str(self) -> &'static str {
        match self {
            SealError::Length => "length",
            SealError::Forged => "forged",
            SealError::Malformed => "malformed",
            SealError::Outdated => "outdated",
            SealError::KeyChanged => "key_changed",
        }
    }
}

/// Seals the announcement of `member`. `None` if its name or endpoints are too many.
///
/// `nonce` must be random and new: with the same one twice, both texts are open to the server.
pub fn seal(
    keys: &RoomKeys,
    member: MemberId,
    nonce: [u8; NONCE_LEN],
    announcement: &Announcement,
) -> Option<Vec<u8>> {
    let mut sealed = nonce.to_vec();
    if !write_announcement(&mut sealed, announcement) {
        return None;
    }
    let cipher = XChaCha20Poly1305::new(&keys.announce.into());
    let (_, plain) = sealed.split_at_mut(NONCE_LEN);
    let associated = associated(keys, member);
    let tag = cipher.encrypt_in_place_detached(&nonce.into(), &associated, plain).ok()?;
    sealed.extend_from_slice(&tag);
    (sealed.len() <= SEALED_LEN_MAX).then_some(sealed)
}

/// Opens what the server says is the announcement of `member`.
pub fn open(keys: &RoomKeys, member: MemberId, sealed: &[u8]) -> Result<Announcement, SealError> {
    if sealed.len() > SEALED_LEN_MAX {
        return Err(SealError::Length);
    }
    let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Length)?;
    let (text, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(SealError::Length)?;
    let mut plain = text.to_vec();
    XChaCha20Poly1305::new(&keys.announce.into())
        .decrypt_in_place_detached(
            XNonce::from_slice(nonce),
            &associated(keys, member),
            &mut plain,
            Tag::from_slice(tag),
        )
        .map_err(|_| SealError::Forged)?;
    parse_announcement(&plain).ok_or(SealError::Malformed)
}

fn associated(keys: &RoomKeys, member: MemberId) -> [u8; 24] {
    let mut associated = [0; 24];
    let (room, of_member) = associated.split_at_mut(16);
    room.copy_from_slice(&keys.id.0);
    of_member.copy_from_slice(&member.0);
    associated
}

/// Whether an announcement says something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// It is later than all before.
    Newer,
    /// It was made at the same time as the last: an introduction that came twice, or a call.
    Same,
}

/// What was last heard of a member: one per member, as long as it is known.
///
/// Made-times are compared with each other, as the hosts' clocks may be years apart; the own clock
/// bounds only how far ahead one of them counts. Whoever knows the room's secret can announce any
/// key and any time: a made-time outdates other announcements of the same member, and those of
/// other members with its key only once it has shown by a handshake that the key is its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Newest {
    last: Option<(u64, [u8; 32])>,
}

impl Newest {
    /// Takes an announcement that was opened, unless a later one is known.
    pub fn admit(
        &mut self,
        announcement: &Announcement,
        wall_clock_ms: u64,
    ) -> Result<News, SealError> {
        let made_ms = bounded(announcement.made_ms, wall_clock_ms);
        let news = match self.last {
            Some((_, key)) if key != announcement.public_key => return Err(SealError::KeyChanged),
            Some(_) if self.outdates(announcement.made_ms, wall_clock_ms) => {
                return Err(SealError::Outdated);
            }
            Some((last, _)) if last == made_ms => News::Same,
            _ => News::Newer,
        };
        self.last = Some((made_ms, announcement.public_key));
        Ok(news)
    }

    /// Whether a later announcement is known than one of that time.
    pub fn outdates(&self, made_ms: u64, wall_clock_ms: u64) -> bool {
        self.last.is_some_and(|(last, _)| bounded(last, wall_clock_ms) > made_ms)
    }
}

fn bounded(made_ms: u64, wall_clock_ms: u64) -> u64 {
    made_ms.min(wall_clock_ms.saturating_add(AHEAD_MAX_MS))
}

/// The made-time of an announcement that follows one of `last_ms`: the wall clock, or a millisecond
/// later than the last when that has been set back, so that the others do not take it for old.
pub fn made_ms(wall_clock_ms: u64, last_ms: Option<u64>) -> u64 {
    last_ms.map_or(wall_clock_ms, |last| wall_clock_ms.max(last.saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::peer::{ANNOUNCEMENT_LEN_MAX, Dependence, ENDPOINTS_MAX, NAME_LEN_MAX};
    use crate::wire::rendezvous::RoomId;

    const MEMBER: MemberId = MemberId([5; 8]);

    fn keys() -> RoomKeys {
        RoomKeys { id: RoomId([1; 16]), announce: [2; 32], probe: [3; 32], preshared: [4; 32] }
    }

    fn announcement() -> Announcement {
        Announcement {
            public_key: [6; 32],
            mapping: Dependence::None,
            filtering: Dependence::AddressAndPort,
            tries_hard: true,
            serves: false,
            relay: true,
            made_ms: 1_700_000_000_000,
            name: "n".repeat(NAME_LEN_MAX),
            endpoints: vec!["[2001:db8::1]:9".parse().unwrap(); ENDPOINTS_MAX],
        }
    }

    #[test]
    fn what_is_sealed_opens_and_fits() {
        let sealed = seal(&keys(), MEMBER, [7; 24], &announcement()).unwrap();
        assert_eq!(sealed.len(), NONCE_LEN + ANNOUNCEMENT_LEN_MAX + TAG_LEN);
        assert!(sealed.len() <= SEALED_LEN_MAX);
        assert_eq!(open(&keys(), MEMBER, &sealed), Ok(announcement()));
        let too_long = Announcement { name: "n".repeat(NAME_LEN_MAX + 1), ..announcement() };
        assert_eq!(seal(&keys(), MEMBER, [7; 24], &too_long), None);
    }

    // The IETF's draft-irtf-cfrg-xchacha-03, appendix A.3.1: the crate in the way it is used here.
    #[test]
    fn the_cipher_is_that_of_the_draft() {
        let key: [u8; 32] = std::array::from_fn(|at| 0x80 + u8::try_from(at).unwrap());
        let nonce: [u8; 24] = std::array::from_fn(|at| 0x40 + u8::try_from(at).unwrap());
        let associated = [0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7];
        let mut text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one \
                         tip for the future, sunscreen would be it."
            .to_vec();
        let tag = XChaCha20Poly1305::new(&key.into())
            .encrypt_in_place_detached(&nonce.into(), &associated, &mut text)
            .unwrap();
        assert_eq!(text[..8], [0xbd, 0x6d, 0x17, 0x9d, 0x3e, 0x83, 0xd4, 0x3b]);
        let expected = [
            0xc0, 0x87, 0x59, 0x24, 0xc1, 0xc7, 0x98, 0x79, 0x47, 0xde, 0xaf, 0xd8, 0x78, 0x0a,
            0xcf, 0x49,
        ];
        assert_eq!(tag[..], expected);
    }

    #[test]
    fn any_change_is_a_forgery() {
        let sealed = seal(&keys(), MEMBER, [7; 24], &announcement()).unwrap();
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 0x10;
            assert_eq!(open(&keys(), MEMBER, &changed), Err(SealError::Forged), "byte {at}");
        }
        let forged = Err(SealError::Forged);
        assert_eq!(open(&keys(), MemberId([9; 8]), &sealed), forged);
        assert_eq!(open(&RoomKeys { id: RoomId([9; 16]), ..keys() }, MEMBER, &sealed), forged);
        assert_eq!(open(&RoomKeys { announce: [9; 32], ..keys() }, MEMBER, &sealed), forged);
        for len in 0..sealed.len() {
            let opened = open(&keys(), MEMBER, &sealed[..len]);
            let short = len < NONCE_LEN + TAG_LEN;
            assert_eq!(opened, Err(if short { SealError::Length } else { SealError::Forged }));
        }
        assert_eq!(open(&keys(), MEMBER, &[0; SEALED_LEN_MAX + 1]), Err(SealError::Length));
    }

    #[test]
    fn what_a_member_sealed_and_nobody_understands_is_malformed() {
        let mut sealed = [7; NONCE_LEN].to_vec();
        sealed.push(2); // A version to come.
        let cipher = XChaCha20Poly1305::new(&keys().announce.into());
        let associated = associated(&keys(), MEMBER);
        let (nonce, plain) = sealed.split_at_mut(NONCE_LEN);
        let nonce = XNonce::from_slice(nonce);
        let tag = cipher.encrypt_in_place_detached(nonce, &associated, plain).unwrap();
        sealed.extend_from_slice(&tag);
        assert_eq!(open(&keys(), MEMBER, &sealed), Err(SealError::Malformed));
    }

    #[test]
    fn the_later_announcement_counts() {
        let at = |made_ms| Announcement { made_ms, ..announcement() };
        let mut newest = Newest::default();
        let wall = 5_000;
        assert_eq!(newest.admit(&at(100), wall), Ok(News::Newer), "clocks may be far apart");
        assert_eq!(newest.admit(&at(100), wall), Ok(News::Same));
        assert_eq!(newest.admit(&at(99), wall), Err(SealError::Outdated));
        assert_eq!(newest.admit(&at(u64::MAX), wall), Ok(News::Newer));
        assert_eq!(newest.admit(&at(101), wall), Err(SealError::Outdated));
        let other = Announcement { public_key: [9; 32], ..at(u64::MAX) };
        assert_eq!(newest.admit(&other, wall), Err(SealError::KeyChanged));
    }

    #[test]
    fn a_time_far_ahead_counts_for_a_day() {
        let at = |made_ms| Announcement { made_ms, ..announcement() };
        let mut newest = Newest::default();
        let wall = announcement().made_ms;
        assert_eq!(newest.admit(&at(u64::MAX), wall), Ok(News::Newer));
        assert_eq!(newest.admit(&at(wall), wall), Err(SealError::Outdated));
        let day_later = wall + AHEAD_MAX_MS + 1;
        assert_eq!(newest.admit(&at(day_later), day_later), Ok(News::Newer));
        // A member whose clock is years ahead of ours is heard all the same, and a receiver whose
        // clock is set back does not take it for outdated.
        let ahead = wall + 1_000 * AHEAD_MAX_MS;
        assert_eq!(newest.admit(&at(ahead), day_later), Ok(News::Newer));
        assert_eq!(newest.admit(&at(ahead + 1), day_later + 1), Ok(News::Newer));
        assert_eq!(newest.admit(&at(wall), 0), Ok(News::Newer));
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_outdate_what_is_made_next() {
        assert_eq!(made_ms(5_000, None), 5_000);
        assert_eq!(made_ms(5_000, Some(4_000)), 5_000);
        assert_eq!(made_ms(5_000, Some(5_000)), 5_001);
        assert_eq!(made_ms(1_000, Some(5_000)), 5_001);
        assert_eq!(made_ms(1_000, Some(u64::MAX)), u64::MAX);
    }
}
