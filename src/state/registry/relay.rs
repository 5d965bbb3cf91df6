//! What is carried between members: how much in a room, how much in all, and for whom first when
//! that is not enough.

use super::Registry;
use super::limits::RelayRates;
use super::outcome::NotRelayed;
use crate::state::admission::household;
use crate::state::contact::Contact;
use crate::state::recent::Recent;
use crate::state::token_bucket::TokenBucket;
use crate::wire::rendezvous::MemberId;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// A bucket holds at least the largest datagram.
const BURST_MIN: u32 = 65_536;
/// This part of a second's worth is left to those who have not had their share.
const RESERVED_PART: u32 = 2;
/// In so long a household has its share.
const PERIOD: Duration = Duration::from_secs(1);
/// Households remembered, of about 100 bytes each; who is forgotten begins another share.
const HOUSEHOLDS_MAX: usize = 4096;

/// A room's bucket.
pub(super) fn bucket(rate: u32) -> TokenBucket {
    TokenBucket::new(rate, rate.max(BURST_MIN))
}

/// What all rooms have together.
///
/// Who has had his share of the last second, the rate divided by the households that send, takes
/// of what is left only as long as half of a second's worth is there. So nobody who sends less than
/// his share is refused for those who send more, and what nobody else wants is anybody's.
#[derive(Debug)]
pub(super) struct Total {
    rate: u32,
    bucket: TokenBucket,
    /// Each with the period in which it sent last, and how many bytes in that.
    households: Recent<IpAddr, (u64, u64)>,
    began: Option<Instant>,
    period: u64,
    /// Households that have sent in this period, and in the one before.
    senders: [u32; 2],
}

impl Total {
    pub(super) fn new(rates: RelayRates) -> Total {
        Total {
            rate: rates.total,
            bucket: TokenBucket::new(
                rates.total,
                rates.total.max((rates.total / RESERVED_PART).saturating_add(BURST_MIN)),
            ),
            households: Recent::new(HOUSEHOLDS_MAX),
            began: None,
            period: 0,
            senders: [0; 2],
        }
    }

    /// Takes so many bytes for a sender, or returns false.
    fn take(&mut self, now: Instant, sender: IpAddr, len: u32) -> bool {
        self.go_on(now);
        let period = self.period;
        let Some((last, bytes)) = self.households.use_or_make(household(sender), || (0, 0)) else {
            return false;
        };
        if *last != period {
            (*last, *bytes) = (period, 0);
            self.senders[0] += 1;
        }
        let [current, before] = self.senders;
        let share = u64::from(self.rate / current.max(before).max(1));
        let is_within = *bytes + u64::from(len) <= share;
        let reserve = if is_within { 0 } else { self.rate / RESERVED_PART };
        let is_taken = self.bucket.take_leaving(reserve, len, now);
        if is_taken {
            *bytes += u64::from(len);
        }
        is_taken
    }

    fn go_on(&mut self, now: Instant) {
        let began = *self.began.get_or_insert(now);
        let passed = now.saturating_duration_since(began);
        // The first period has number 1: nobody has sent in it yet.
        if passed >= PERIOD || self.period == 0 {
            self.senders = [0, if passed < 2 * PERIOD { self.senders[0] } else { 0 }];
            self.period += 1;
            self.began = Some(now);
        }
    }
}

impl Registry {
    /// For whom a datagram of `len` bytes for member `to` is, and from whom, if it may be relayed.
    pub fn relay(
        &mut self,
        now: Instant,
        source: SocketAddr,
        to: MemberId,
        len: usize,
    ) -> Result<(Contact, MemberId), NotRelayed> {
        let sender = self.by_endpoint.get(&source).and_then(|slot| self.members.get(*slot));
        let sender = sender.ok_or(NotRelayed::NotAMember)?;
        let room = self.rooms.get_mut(sender.room).ok_or(NotRelayed::NotAMember)?;
        let addressee = room
            .members
            .iter()
            .filter_map(|slot| self.members.get(*slot))
            .find(|member| member.id == to)
            .and_then(|member| member.sites().max_by_key(|site| site.refreshed))
            .ok_or(NotRelayed::NotThere)?;
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        // What the total refuses takes nothing from the room.
        let mut of_room = room.relay.clone();
        if !of_room.take_many(len, now) {
            return Err(NotRelayed::RoomRate);
        }
        if !self.relay.take(now, source.ip(), len) {
            return Err(NotRelayed::TotalRate);
        }
        room.relay = of_room;
        Ok((addressee.contact, sender.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // An Instant cannot be made from a number; any base will do.
    #[allow(clippy::disallowed_methods)]
    fn base() -> Instant {
        Instant::now()
    }

    const RATE: u32 = 1_000_000;

    /// What each of `wanted` bytes in a millisecond, by household, gets in ten seconds.
    fn shared(wanted: &[u32]) -> Vec<u64> {
        let begin = base();
        let mut total = Total::new(RelayRates { room: RATE, total: RATE });
        let mut got = vec![0; wanted.len()];
        for ms in 0..10_000 {
            let now = begin + Duration::from_millis(ms);
            // The greedy come first.
            for (household, len) in wanted.iter().enumerate() {
                let address = [10, 0, 0, u8::try_from(household).unwrap()].into();
                for _ in 0..len.div_ceil(1000) {
                    let len = (*len).min(1000);
                    got[household] +=
                        u64::from(if total.take(now, address, len) { len } else { 0 });
                }
            }
        }
        got
    }

    #[test]
    fn who_sends_less_than_his_share_loses_nothing() {
        let got = shared(&[50_000, 100, 200]);
        assert_eq!(got[1..], [1_000_000, 2_000_000]);
        // And the others have the rest: ten seconds, and the first one's burst.
        assert!((6_400_000..=8_000_000).contains(&got[0]), "{got:?}");
    }

    #[test]
    fn what_nobody_else_wants_is_anybodys() {
        let got = shared(&[50_000]);
        assert!((10_000_000..=11_000_000).contains(&got[0]), "{got:?}");
    }

    #[test]
    fn the_greedy_share_alike() {
        let got = shared(&[50_000, 20_000, 3_000, 400]);
        assert!(got.iter().sum::<u64>() <= 11_000_000);
        assert!(got.iter().all(|bytes| *bytes >= 2_000_000), "{got:?}");
    }
}
