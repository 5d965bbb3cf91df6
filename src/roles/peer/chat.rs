//! Chat with one member: which lines are on their way, and which have been seen.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::wire::peer::LINE_LEN_MAX;

/// After the first sending a line is sent again this late, and given up at the end.
const REPEATS: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// As long again as between the last two.
const GIVEN_UP: Duration = Duration::from_secs(8);

/// Of two lines sent so far apart, the later one's acknowledgement shows that the earlier one got
/// lost: nearer ones may have overtaken each other (RFC 8985 calls it the reordering window).
const REORDERING: Duration = Duration::from_millis(10);

/// Numbers that a receiver knows; so no sender has lines on their way that are further apart.
const WINDOW: u32 = 64;

/// A line on its way.
#[derive(Debug)]
struct Pending {
    number: u32,
    text: String,
    since: Instant,
    sent: usize,
    last_sent: Instant,
    /// The way is open again: send it now, whatever its turn.
    hurries: bool,
}

impl Pending {
    fn due(&self) -> Instant {
        if self.hurries {
            return self.last_sent;
        }
        self.since + REPEATS.get(self.sent.saturating_sub(1)).copied().unwrap_or(GIVEN_UP)
    }
}

/// Too many lines are on their way; nothing was taken. The oldest is settled in at most 8 s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyLines;

/// What a line on its way needs.
#[derive(Debug, PartialEq, Eq)]
pub enum Due<'a> {
    /// Send it again.
    Again {
        /// Its number.
        number: u32,
        /// Its text.
        text: &'a str,
    },
    /// It was not acknowledged in time.
    NotDelivered {
        /// Its number.
        number: u32,
        /// Its text.
        text: String,
    },
}

/// What a line from the peer is.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard<'a> {
    /// A new one: acknowledge it and show [`super::text::for_terminal`] of it.
    New(&'a str),
    /// One that was shown before: its acknowledgement got lost. Acknowledge it again.
    Duplicate,
    /// Further back than is known: do nothing. No sender of ours repeats such a line.
    TooOld,
    /// No UTF-8, or too long: count it and do nothing, so that its sender sees that it failed.
    Malformed,
    /// Its sender has not said which chat it belongs to: do nothing, it will be sent again.
    TooEarly,
}

/// The state of the chat with one member, for as long as its id lasts.
#[derive(Debug, Default)]
pub struct Chat {
    last_number: u32,
    pending: VecDeque<Pending>,
    /// Of the peer's chat.
    epoch: Option<u64>,
    seen: Seen,
}

impl Chat {
    /// A chat that has not begun.
    pub fn new() -> Chat {
        Chat::default()
    }

    /// Takes a line, one of [`super::text::split_line`]'s, that is sent now; returns its number.
    pub fn say(&mut self, text: &str, now: Instant) -> Result<u32, TooManyLines> {
        let number = self.last_number.wrapping_add(1);
        // The front is the oldest.
        if self.pending.front().is_some_and(|it| number.wrapping_sub(it.number) >= WINDOW) {
            return Err(TooManyLines);
        }
        self.last_number = number;
        let text = text.to_owned();
        let pending = Pending { number, text, since: now, sent: 1, last_sent: now, hurries: false };
        self.pending.push_back(pending);
        Ok(number)
    }

    /// How many more lines may be on their way now.
    pub fn room(&self) -> u32 {
        let next = self.last_number.wrapping_add(1);
        self.pending
            .front()
            .map_or(WINDOW, |oldest| WINDOW - next.wrapping_sub(oldest.number).min(WINDOW))
    }

    /// The peer has line `number`: how long that took. `None` if it is not on its way (any more).
    pub fn got(&mut self, number: u32, now: Instant) -> Option<Duration> {
        let at = self.pending.iter().position(|it| it.number == number)?;
        let pending = self.pending.remove(at)?;
        self.hurry(pending.last_sent);
        Some(now.saturating_duration_since(pending.since))
    }

    /// There is a new path: what is on its way may have gone by the old one.
    pub fn path_changed(&mut self, now: Instant) {
        self.hurry(now);
    }

    /// What was sent before `sent`, something that has arrived, got lost.
    fn hurry(&mut self, sent: Instant) {
        for pending in &mut self.pending {
            pending.hurries |= sent.saturating_duration_since(pending.last_sent) >= REORDERING;
        }
    }

    /// The next line that needs something; to be asked until `None`.
    pub fn due(&mut self, now: Instant) -> Option<Due<'_>> {
        let at = self.pending.iter().position(|it| it.due() <= now)?;
        if std::mem::take(&mut self.pending[at].hurries) {
            let pending = &mut self.pending[at];
            pending.last_sent = now;
            return Some(Due::Again { number: pending.number, text: &pending.text });
        }
        if self.pending[at].sent > REPEATS.len() {
            let Pending { number, text, .. } = self.pending.remove(at)?;
            return Some(Due::NotDelivered { number, text });
        }
        let pending = &mut self.pending[at];
        pending.last_sent = now;
        // After a pause of the program a line is sent once, not for each time that was missed.
        while pending.sent <= REPEATS.len() && pending.due() <= now {
            pending.sent += 1;
        }
        Some(Due::Again { number: pending.number, text: &pending.text })
    }

    /// The text of the next line that is on its way, which is given up.
    pub fn abandon(&mut self) -> Option<String> {
        self.pending.pop_front().map(|pending| pending.text)
    }

    /// When to ask [`Chat::due`] again; `None` if nothing is on its way.
    pub fn next_due(&self) -> Option<Instant> {
        self.pending.iter().map(Pending::due).min()
    }

    /// The peer's chat of that epoch begins: a number that it makes anew with each chat, so that its
    /// line 1 of today is not taken for that of yesterday.
    pub fn begins(&mut self, epoch: u64) {
        if self.epoch.replace(epoch) != Some(epoch) {
            self.seen = Seen::default();
        }
    }

    /// Of the peer's chat, once that has begun.
    pub fn epoch(&self) -> Option<u64> {
        self.epoch
    }

    /// A line of the peer's.
    pub fn hear<'a>(&mut self, number: u32, body: &'a [u8]) -> Heard<'a> {
        let Ok(text) = std::str::from_utf8(body) else { return Heard::Malformed };
        if text.len() > LINE_LEN_MAX {
            return Heard::Malformed;
        }
        // What is shown now would be shown again with its repeat, after the greeting that got lost.
        if self.epoch.is_none() {
            return Heard::TooEarly;
        }
        match self.seen.see(number) {
            Some(true) => Heard::New(text),
            Some(false) => Heard::Duplicate,
            None => Heard::TooOld,
        }
    }
}

/// The last [`WINDOW`] numbers of the peer, and which of them have been here.
#[derive(Debug, Default)]
struct Seen {
    newest: Option<u32>,
    /// Bit n: the newest less n.
    bits: u64,
}

impl Seen {
    /// Whether a number is new; `None` if nobody knows.
    fn see(&mut self, number: u32) -> Option<bool> {
        let Some(newest) = self.newest else {
            (self.newest, self.bits) = (Some(number), 1);
            return Some(true);
        };
        // Numbers go round (RFC 1982): what is less than half the way ahead is newer.
        let ahead = number.wrapping_sub(newest);
        if ahead != 0 && ahead < 1 << 31 {
            self.newest = Some(number);
            self.bits = self.bits.checked_shl(ahead).unwrap_or(0) | 1;
            return Some(true);
        }
        let bit = 1_u64.checked_shl(newest.wrapping_sub(number))?;
        let is_new = self.bits & bit == 0;
        self.bits |= bit;
        Some(is_new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_unanswered_line_is_sent_four_times_and_given_up() {
        let start = clock::now();
        let mut chat = Chat::new();
        assert_eq!(chat.due(start), None);
        assert_eq!(chat.next_due(), None);
        assert_eq!(chat.say("hello", start), Ok(1));
        let millis = Duration::from_millis;
        for seconds in [1, 2, 4] {
            let at = start + millis(seconds * 1000);
            assert_eq!(chat.next_due(), Some(at));
            assert_eq!(chat.due(start + millis(seconds * 1000 - 1)), None);
            assert_eq!(chat.due(at), Some(Due::Again { number: 1, text: "hello" }));
            assert_eq!(chat.due(at), None);
        }
        assert_eq!(chat.due(start + millis(7999)), None);
        let end = start + millis(8000);
        let given_up = Due::NotDelivered { number: 1, text: "hello".to_owned() };
        assert_eq!(chat.due(end), Some(given_up));
        assert_eq!(chat.due(end), None);
        assert_eq!(chat.next_due(), None);
        assert_eq!(chat.got(1, end), None, "too late");
    }

    #[test]
    fn the_lines_of_another_epoch_are_new() {
        let mut chat = Chat::new();
        chat.begins(7);
        assert_eq!(chat.hear(1, b"one"), Heard::New("one"));
        chat.begins(7);
        assert_eq!(chat.hear(1, b"one"), Heard::Duplicate);
        chat.begins(8);
        assert_eq!(chat.hear(1, b"another"), Heard::New("another"));
    }

    #[test]
    fn what_got_lost_is_sent_again_when_a_later_line_arrives() {
        let start = clock::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut chat = Chat::new();
        for (number, said) in [(1, 0), (2, 300), (3, 450)] {
            assert_eq!(chat.say("line", at(said)), Ok(number));
        }
        assert_eq!(chat.due(at(500)), None);
        chat.got(3, at(500));
        // The second's acknowledgement was overtaken.
        chat.got(2, at(505));
        assert_eq!(chat.due(at(510)), Some(Due::Again { number: 1, text: "line" }));
        assert_eq!(chat.due(at(510)), None);
        assert_eq!(chat.next_due(), Some(at(1000)), "its turns are as before");
        chat.path_changed(at(515));
        assert_eq!(chat.due(at(515)), None, "it has just been sent");
        chat.path_changed(at(600));
        assert_eq!(chat.due(at(600)), Some(Due::Again { number: 1, text: "line" }));
        assert_eq!(chat.say("line", at(605)), Ok(4));
        chat.got(4, at(700));
        assert_eq!(chat.due(at(700)), None, "it may have been overtaken");
    }

    #[test]
    fn an_acknowledged_line_is_settled() {
        let start = clock::now();
        let mut chat = Chat::new();
        assert_eq!(chat.say("one", start), Ok(1));
        assert_eq!(chat.say("two", start), Ok(2));
        assert_eq!(chat.got(3, start), None);
        assert_eq!(chat.got(1, start + SECOND / 2), Some(SECOND / 2));
        assert_eq!(chat.got(1, start + SECOND), None);
        assert_eq!(chat.due(start + SECOND), Some(Due::Again { number: 2, text: "two" }));
        assert_eq!(chat.due(start + SECOND), None);
    }

    #[test]
    fn after_a_pause_a_line_is_sent_once() {
        let start = clock::now();
        let mut chat = Chat::new();
        assert_eq!(chat.say("hello", start), Ok(1));
        let late = start + 3 * SECOND;
        assert_eq!(chat.due(late), Some(Due::Again { number: 1, text: "hello" }));
        assert_eq!(chat.due(late), None);
        assert_eq!(chat.next_due(), Some(start + 4 * SECOND));
        // A pause beyond the end still sends it a last time before it is given up.
        assert_eq!(chat.say("again", start), Ok(2));
        let very_late = start + 60 * SECOND;
        assert!(matches!(chat.due(very_late), Some(Due::Again { number: 1, .. })));
        assert!(matches!(chat.due(very_late), Some(Due::NotDelivered { number: 1, .. })));
        assert!(matches!(chat.due(very_late), Some(Due::Again { number: 2, .. })));
        assert!(matches!(chat.due(very_late), Some(Due::NotDelivered { number: 2, .. })));
        assert_eq!(chat.due(very_late), None);
    }

    #[test]
    fn no_more_lines_are_on_their_way_than_a_receiver_knows() {
        let now = clock::now();
        let (mut sender, mut receiver) = (Chat::new(), begun());
        for number in 1..=WINDOW {
            assert_eq!(sender.say("x", now), Ok(number));
        }
        assert_eq!(sender.say("x", now), Err(TooManyLines));
        // The oldest comes last, and is new all the same.
        for number in (1..=WINDOW).rev() {
            assert_eq!(receiver.hear(number, b"x"), Heard::New("x"), "{number}");
        }
        assert!(sender.got(2, now).is_some());
        assert_eq!(sender.say("x", now), Err(TooManyLines), "line 1 is still on its way");
        assert!(sender.got(1, now).is_some());
        assert_eq!(sender.say("x", now), Ok(WINDOW + 1));
        assert_eq!(sender.say("x", now), Ok(WINDOW + 2));
        assert_eq!(sender.say("x", now), Err(TooManyLines));
    }

    #[test]
    fn a_line_that_overtakes_the_greeting_is_shown_once() {
        let mut chat = Chat::new();
        assert_eq!(chat.hear(1, b"one"), Heard::TooEarly);
        chat.begins(7);
        assert_eq!(chat.hear(1, b"one"), Heard::New("one"));
        assert_eq!(chat.hear(1, b"one"), Heard::Duplicate);
    }

    /// A chat whose peer has greeted.
    fn begun() -> Chat {
        let mut chat = Chat::new();
        chat.begins(1);
        chat
    }

    #[test]
    fn a_line_is_shown_once() {
        let mut chat = begun();
        assert_eq!(chat.hear(10, b"a"), Heard::New("a"));
        assert_eq!(chat.hear(10, b"a"), Heard::Duplicate);
        assert_eq!(chat.hear(12, b"c"), Heard::New("c"));
        assert_eq!(chat.hear(11, b"b"), Heard::New("b"));
        assert_eq!(chat.hear(10, b"a"), Heard::Duplicate);
        assert_eq!(chat.hear(12 + WINDOW, b"d"), Heard::New("d"));
        assert_eq!(chat.hear(12, b"c"), Heard::TooOld);
        assert_eq!(chat.hear(13, b"new"), Heard::New("new"));
        let mut chat = begun();
        for number in [u32::MAX, 0, 1] {
            assert_eq!(chat.hear(number, b"x"), Heard::New("x"), "numbers go round");
        }
        assert_eq!(chat.hear(u32::MAX, b"x"), Heard::Duplicate);
    }

    #[test]
    fn only_short_utf8_is_heard() {
        let mut chat = begun();
        assert_eq!(chat.hear(1, b"\xff"), Heard::Malformed);
        assert_eq!(chat.hear(1, &[b'x'; LINE_LEN_MAX + 1]), Heard::Malformed);
        // Their numbers have not been used up.
        assert_eq!(chat.hear(1, &[b'x'; LINE_LEN_MAX]), Heard::New(&"x".repeat(LINE_LEN_MAX)));
        assert_eq!(chat.hear(2, b""), Heard::New(""));
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_a_naive_one(numbers in proptest::collection::vec(0..300_u32, 0..400)) {
            let mut seen = Seen::default();
            let mut all = std::collections::HashSet::new();
            let mut newest = None;
            for number in numbers {
                let old = newest.is_some_and(|newest: u32| number + WINDOW <= newest);
                let expected = if old { None } else { Some(!all.contains(&number)) };
                prop_assert_eq!(seen.see(number), expected);
                all.insert(number);
                newest = newest.max(Some(number));
            }
        }
    }
}
