//! Which of a session's connections takes the next batch.
//!
//! A batch goes on the connection of the batch before as long as that one sends at once: order is
//! kept, and few threads wake. When bytes wait in its kernel, or many in its queue, the batch goes
//! where the fewest wait or are unacknowledged. A connection whose unacknowledged bytes make no
//! progress is slow at first, and batches leave it for one that is idle; after a while it is
//! stalled, and gets nothing more while any other can take it. That is what keeps a black-holed
//! connection from swallowing its share until TCP gives it up.

use std::time::{Duration, Instant};

/// Unacknowledged bytes without progress for so long make a stalled connection: longer than the
/// round trips that people use (a satellite has 600 ms, and then the rule finds all connections
/// alike), and TCP's own first retransmission timeout (200 ms at least) has had its chance.
const STALLED_AFTER: Duration = Duration::from_millis(400);

/// Unacknowledged bytes without progress for so long make a slow connection, which batches leave
/// only for an idle one: longer than a delayed acknowledgement (40 ms on Linux) and a round trip
/// within a continent together. A path with longer round trips loses nothing by it but some wakes
/// of other threads, as its batches go from idle connection to idle connection.
const SLOW_AFTER: Duration = Duration::from_millis(100);

/// The state of one connection, as seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Datagrams in its queue.
    pub queued_datagrams: usize,
    /// Bytes in its queue.
    pub queued: usize,
    /// Memory of the buffers in its queue, which may be larger than what is in them.
    pub held: usize,
    /// Bytes that the kernel has taken and not sent.
    pub unsent: usize,
    /// Bytes sent and not acknowledged.
    pub unacknowledged: usize,
    /// Bytes ever acknowledged.
    pub acknowledged: u64,
}

impl Load {
    fn waiting(self) -> usize {
        self.queued.saturating_add(self.unsent).saturating_add(self.unacknowledged)
    }
}

/// Bytes that may wait in the queue of a connection that sends at once: its thread, just woken, takes
/// them all in one turn. Waking another thread for each batch costs more than it gains until there
/// are more than a few.
const STAYS_LEN: usize = 32_768;

/// Bytes that may wait in the queue of a connection, and what their buffers may hold; one batch more may come on top. Datagrams
/// alone do not bound memory: they have up to 64 KiB, and a session up to 64 connections.
pub const QUEUED_LEN_MAX: usize = 1 << 20;

#[derive(Debug, Clone, Copy)]
struct Link {
    id: u64,
    acknowledged: u64,
    progress: Instant,
}

/// A session's connections that are up.
#[derive(Debug)]
pub struct LinkChoice {
    links: Vec<Link>,
    last: Option<u64>,
    queue_datagrams_max: usize,
}

impl LinkChoice {
    /// No connections yet; each takes at most `queue_datagrams_max` datagrams into its queue.
    pub fn new(queue_datagrams_max: usize) -> LinkChoice {
        LinkChoice { links: Vec::new(), last: None, queue_datagrams_max }
    }

    /// A connection has come up.
    pub fn add(&mut self, id: u64, now: Instant) {
        self.links.push(Link { id, acknowledged: 0, progress: now });
    }

    /// A connection has gone down.
    pub fn remove(&mut self, id: u64) {
        self.links.retain(|link| link.id != id);
    }

    /// Whether no connection is up.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// The connection for the next batch. `load` tells of one connection, and is asked of others
    /// than the last only when that one does not send at once or is slow, until one is idle. `None`
    /// when every queue is full.
    pub fn choose(&mut self, now: Instant, load: impl Fn(u64) -> Load) -> Option<u64> {
        let queue_datagrams_max = self.queue_datagrams_max;
        let look = |link: &mut Link| {
            let load = load(link.id);
            if load.waiting() == 0 || load.acknowledged != link.acknowledged {
                link.acknowledged = load.acknowledged;
                link.progress = now;
            }
            let standstill = now.saturating_duration_since(link.progress);
            let has_room = load.queued_datagrams < queue_datagrams_max
                && load.queued.max(load.held) < QUEUED_LEN_MAX;
            (has_room, standstill, load)
        };
        // The last one, if it may stay but had better not.
        let mut slow = None;
        if let Some(last) = self.last {
            if let Some(link) = self.links.iter_mut().find(|link| link.id == last) {
                let (has_room, standstill, load) = look(link);
                let sends_at_once = load.unsent == 0 && load.queued <= STAYS_LEN;
                if has_room && standstill < STALLED_AFTER && sends_at_once {
                    if standstill < SLOW_AFTER {
                        return Some(last);
                    }
                    slow = Some(last);
                }
            }
        }
        let mut best = None;
        for link in &mut self.links {
            let (has_room, standstill, load) = look(link);
            let rank = (standstill >= STALLED_AFTER, load.waiting(), link.id);
            if has_room && best.is_none_or(|best| rank < best) {
                best = Some(rank);
            }
            // None is better, and asking costs system calls. What is idle stands still at no time.
            if has_room && load.waiting() == 0 {
                break;
            }
        }
        if slow.is_some() && best.is_none_or(|(_, waiting, _)| waiting > 0) {
            return slow;
        }
        let chosen = best.map(|(_, _, id)| id);
        if chosen.is_some() {
            self.last = chosen;
        }
        chosen
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // Ids of connections are small here.
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[allow(clippy::disallowed_methods)] // Tests count from whatever instant they start at.
    fn start() -> Instant {
        Instant::now()
    }

    fn unsent(unsent: usize) -> Load {
        Load { unsent, ..Load::default() }
    }

    #[test]
    fn stays_while_the_last_one_sends_at_once_and_leaves_when_bytes_wait() {
        let now = start();
        let mut choice = LinkChoice::new(128);
        assert_eq!(choice.choose(now, |_| Load::default()), None);
        for id in 0..3 {
            choice.add(id, now);
        }
        assert_eq!(choice.choose(now, |id| unsent([5, 0, 7][id as usize])), Some(1));
        let sent_but_not_acknowledged = Load { unacknowledged: 9, ..Load::default() };
        assert_eq!(choice.choose(now, |_| sent_but_not_acknowledged), Some(1));
        let queued =
            |queued| move |id| Load { queued: [0, queued, 0][id as usize], ..Load::default() };
        assert_eq!(choice.choose(now, queued(STAYS_LEN)), Some(1));
        assert_eq!(choice.choose(now, queued(STAYS_LEN + 1)), Some(0));
        assert_eq!(choice.choose(now, |id| unsent([5, 0, 7][id as usize])), Some(1));
        assert_eq!(choice.choose(now, |id| unsent([5, 6, 7][id as usize])), Some(0));
        choice.remove(0);
        assert_eq!(choice.choose(now, |id| unsent([0, 6, 7][id as usize])), Some(1));
    }

    #[test]
    fn full_queues_are_passed_over() {
        let now = start();
        let mut choice = LinkChoice::new(2);
        choice.add(0, now);
        choice.add(1, now);
        let load = |queued: [usize; 2]| {
            move |id: u64| Load { queued_datagrams: queued[id as usize], ..Load::default() }
        };
        assert_eq!(choice.choose(now, load([2, 1])), Some(1));
        assert_eq!(choice.choose(now, load([2, 2])), None);
    }

    #[test]
    fn a_queue_of_large_datagrams_is_full_by_its_bytes() {
        let now = start();
        let mut choice = LinkChoice::new(65_535);
        choice.add(0, now);
        choice.add(1, now);
        let load = |queued: [usize; 2]| {
            move |id: u64| Load {
                queued_datagrams: 20,
                queued: queued[id as usize],
                ..Load::default()
            }
        };
        assert_eq!(choice.choose(now, load([QUEUED_LEN_MAX, QUEUED_LEN_MAX - 1])), Some(1));
        assert_eq!(choice.choose(now, load([QUEUED_LEN_MAX; 2])), None);
        let held =
            Load { queued_datagrams: 64, queued: 64, held: QUEUED_LEN_MAX, ..Load::default() };
        assert_eq!(choice.choose(now, |_| held), None, "small ones in large buffers");
    }

    #[test]
    fn when_all_are_stalled_the_least_loaded_still_takes_it() {
        let begin = start();
        let mut choice = LinkChoice::new(128);
        choice.add(0, begin);
        choice.add(1, begin);
        let later = begin + STALLED_AFTER;
        assert_eq!(choice.choose(later, |id| unsent([8, 4][id as usize])), Some(1));
    }

    /// Per connection: bytes ever given, and (when, bytes) of what is under way.
    type Wire = (u64, Vec<(u64, usize)>);

    #[test]
    fn a_slow_connection_is_left_for_an_idle_one_alone() {
        let begin = start();
        let mut choice = LinkChoice::new(128);
        choice.add(0, begin);
        choice.add(1, begin);
        let unacknowledged = |bytes: [usize; 2]| {
            move |id: u64| Load { unacknowledged: bytes[id as usize], ..Load::default() }
        };
        assert_eq!(choice.choose(begin, unacknowledged([0, 0])), Some(0));
        let soon = begin + SLOW_AFTER * 9 / 10;
        let slow = begin + SLOW_AFTER;
        assert_eq!(choice.choose(soon, unacknowledged([9, 0])), Some(0));
        assert_eq!(choice.choose(slow, unacknowledged([9, 1])), Some(0), "the other is not idle");
        assert_eq!(choice.choose(slow, unacknowledged([9, 0])), Some(1));
        assert_eq!(choice.choose(slow, unacknowledged([0, 1])), Some(1), "there is no way back");
        // What makes progress is not slow, however much is under way.
        let mut choice = LinkChoice::new(128);
        choice.add(0, begin);
        choice.add(1, begin);
        assert_eq!(choice.choose(begin, unacknowledged([0, 0])), Some(0));
        for tick in 1..20 {
            let load = |id| Load {
                unacknowledged: if id == 0 { 9000 } else { 0 },
                acknowledged: if id == 0 { u64::from(tick) } else { 0 },
                ..Load::default()
            };
            assert_eq!(choice.choose(begin + tick * (SLOW_AFTER / 2), load), Some(0));
        }
    }

    #[test]
    fn a_black_hole_swallows_for_little_more_than_a_tenth_of_a_second() {
        // More than a window of one connection in a round trip, and less.
        for datagram_len in [1200, 100] {
            let (last, count) = swallowed(datagram_len);
            assert!(last < 150, "{datagram_len} bytes: still given datagrams after {last} ms");
            assert!(count < 150, "{datagram_len} bytes: {count} datagrams are gone");
        }
    }

    /// A datagram each millisecond over eight connections that acknowledge after 40 ms; one of them
    /// goes black in mid-flow. Returns when it gets its last datagram after that, in milliseconds,
    /// and how many it gets.
    fn swallowed(datagram_len: usize) -> (u64, usize) {
        const BLACK_FROM: u64 = 1000;
        let begin = start();
        let mut choice = LinkChoice::new(128);
        let wires: RefCell<Vec<Wire>> = RefCell::new(vec![(0, Vec::new()); 8]);
        for id in 0..8 {
            choice.add(id, begin);
        }
        let mut black: Option<u64> = None;
        let (mut last, mut count) = (0, 0);
        for millisecond in 0..5_000u64 {
            let now = begin + Duration::from_millis(millisecond);
            for (id, (_, under_way)) in wires.borrow_mut().iter_mut().enumerate() {
                if black != Some(id as u64) {
                    under_way.retain(|(sent, _)| sent + 40 > millisecond);
                }
            }
            let chosen = choice
                .choose(now, |id| {
                    let wires = wires.borrow();
                    let (given, under_way) = &wires[id as usize];
                    let unacknowledged: usize = under_way.iter().map(|(_, bytes)| bytes).sum();
                    // A window of 14,600 bytes; the rest is unsent.
                    let unsent = unacknowledged.saturating_sub(14_600);
                    Load {
                        queued_datagrams: 0,
                        queued: 0,
                        held: 0,
                        unsent,
                        unacknowledged: unacknowledged - unsent,
                        acknowledged: given - unacknowledged as u64,
                    }
                })
                .unwrap();
            if millisecond == BLACK_FROM {
                black = Some(chosen);
            }
            if black == Some(chosen) {
                last = millisecond - BLACK_FROM;
                count += 1;
            }
            let wire = &mut wires.borrow_mut()[chosen as usize];
            wire.0 += datagram_len as u64;
            wire.1.push((millisecond, datagram_len));
        }
        (last, count)
    }
}
