//! A client's side of its registration at a rendezvous server, over one socket: asks for a cookie,
//! enters the room, stays in it, and starts again when the server does not know it any more.

use super::backoff::Backoff;
use crate::wire::rendezvous::Pass;
use std::time::{Duration, Instant};

/// An unanswered request is repeated after so long, then after twice as long each time. RFC 8489
/// starts with 500 ms; a person waits here.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(4);
/// A refused client asks again after so long: rooms empty slowly.
const AFTER_REFUSAL: Duration = Duration::from_secs(15);
/// Requests in a row without an answer, after which the server counts as silent: 250 ms to 2 s,
/// 3.75 s in all.
const SILENT_AFTER: u32 = 4;

/// What is to be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A hello.
    Hello {
        /// Its number.
        tx: u64,
    },
    /// A registration.
    Register {
        /// Its number.
        tx: u64,
        /// What it takes.
        pass: Pass,
        /// The round trip to the server as measured last, in milliseconds.
        rtt_ms: u16,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked {
    tx: u64,
    at: Instant,
}

/// A registration over one socket.
#[derive(Debug)]
pub struct Registration {
    pass: Option<Pass>,
    /// The last request, until it is answered.
    asked: Option<Asked>,
    unanswered: u32,
    retry: Backoff,
    next: Instant,
    rtt: Duration,
    is_in: bool,
}

impl Registration {
    /// Outside, and asking at once.
    pub fn new(now: Instant) -> Registration {
        Registration {
            pass: None,
            asked: None,
            unanswered: 0,
            retry: Backoff::new(FIRST_RETRY, LONGEST_RETRY),
            next: now,
            rtt: Duration::ZERO,
            is_in: false,
        }
    }

    /// What is due at `now`; `tx` is a fresh random number for it.
    pub fn poll(&mut self, now: Instant, tx: u64) -> Option<Step> {
        if now < self.next {
            return None;
        }
        if self.unanswered >= SILENT_AFTER {
            // The server may have forgotten the keys that it was made with.
            self.pass = None;
            self.is_in = false;
        }
        self.next = now + self.retry.failed();
        self.unanswered = self.unanswered.saturating_add(1);
        self.asked = Some(Asked { tx, at: now });
        Some(match self.pass {
            None => Step::Hello { tx },
            Some(pass) => {
                let rtt_ms = u16::try_from(self.rtt.as_millis()).unwrap_or(u16::MAX);
                Step::Register { tx, pass, rtt_ms }
            }
        })
    }

    /// When [`Registration::poll`] has something to say again.
    pub fn next_deadline(&self) -> Instant {
        self.next
    }

    /// A cookie came. Returns whether it answers the last request; then a registration is due.
    pub fn on_cookie(&mut self, tx: u64, pass: Pass, now: Instant) -> bool {
        if !self.answered(tx, now) {
            return false;
        }
        self.pass = Some(pass);
        self.next = now;
        true
    }

    /// The server has registered us. Returns whether it answers the last request.
    pub fn on_registered(&mut self, tx: u64, refresh: Duration, now: Instant) -> bool {
        if !self.answered(tx, now) {
            return false;
        }
        self.is_in = true;
        // A server that asks for more would only make us noisy.
        self.next = now + refresh.max(Duration::from_secs(1));
        true
    }

    /// The server has refused us. Returns whether it answers the last request.
    pub fn on_refused(&mut self, tx: u64, now: Instant) -> bool {
        if !self.answered(tx, now) {
            return false;
        }
        self.is_in = false;
        self.next = now + AFTER_REFUSAL;
        true
    }

    /// Something changed that the others should know, or the path to the server did: register now.
    pub fn hurry(&mut self, now: Instant) {
        self.unanswered = 0;
        self.retry.succeeded();
        self.next = now;
    }

    /// Another server: nothing of the old one counts.
    pub fn restart(&mut self, now: Instant) {
        *self = Registration::new(now);
    }

    /// The cookie has expired, and this is the new one.
    pub fn renew(&mut self, pass: Pass) {
        self.pass = Some(pass);
    }

    /// For requests besides registrations.
    pub fn pass(&self) -> Option<Pass> {
        self.pass
    }

    /// Whether the server has us in the room, as far as we know.
    pub fn is_in(&self) -> bool {
        self.is_in
    }

    /// Whether the server has not answered the last few requests.
    pub fn is_silent(&self) -> bool {
        self.unanswered >= SILENT_AFTER
    }

    /// The round trip to the server, measured by the last answer.
    pub fn rtt(&self) -> Duration {
        self.rtt
    }

    fn answered(&mut self, tx: u64, now: Instant) -> bool {
        let Some(asked) = self.asked.filter(|asked| asked.tx == tx) else {
            return false;
        };
        self.asked = None;
        self.unanswered = 0;
        self.retry.succeeded();
        self.rtt = now.saturating_duration_since(asked.at);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::rendezvous::{Cookie, ServerKey};

    const PASS: Pass = Pass { cookie: Cookie([7; 16]), server: ServerKey([7; 32]) };
    const REFRESH: Duration = Duration::from_secs(15);

    #[allow(clippy::disallowed_methods)] // Tests count from whatever instant they start at.
    fn start() -> Instant {
        Instant::now()
    }

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn enters_stays_and_measures_the_round_trip() {
        let start = start();
        let mut registration = Registration::new(start);
        assert_eq!(registration.poll(start, 1), Some(Step::Hello { tx: 1 }));
        assert_eq!(registration.poll(start, 2), None);
        assert!(!registration.on_cookie(2, PASS, start), "not the one that was asked");
        let now = start + ms(30);
        assert!(registration.on_cookie(1, PASS, now));
        assert!(!registration.on_cookie(1, PASS, now), "an answer counts once");
        let register = Step::Register { tx: 3, pass: PASS, rtt_ms: 30 };
        assert_eq!(registration.poll(now, 3), Some(register));
        assert!(!registration.is_in());
        let now = now + ms(20);
        assert!(registration.on_registered(3, REFRESH, now));
        assert!(registration.is_in());
        assert_eq!(registration.rtt(), ms(20));
        assert_eq!(registration.next_deadline(), now + REFRESH);
        assert_eq!(registration.poll(now + ms(14_999), 4), None);
        let register = Step::Register { tx: 4, pass: PASS, rtt_ms: 20 };
        assert_eq!(registration.poll(now + REFRESH, 4), Some(register));
    }

    #[test]
    fn a_restarted_server_is_registered_with_again_at_once() {
        let now = start();
        let mut registration = Registration::new(now);
        registration.poll(now, 1);
        registration.on_cookie(1, PASS, now);
        registration.poll(now, 2);
        registration.on_registered(2, REFRESH, now);
        let now = now + REFRESH;
        registration.poll(now, 3);
        let other = Pass { cookie: Cookie([8; 16]), ..PASS };
        assert!(registration.on_cookie(3, other, now));
        let register = Step::Register { tx: 4, pass: other, rtt_ms: 0 };
        assert_eq!(registration.poll(now, 4), Some(register));
    }

    #[test]
    fn silence_is_met_with_ever_longer_pauses_and_then_a_hello() {
        let start = start();
        let mut registration = Registration::new(start);
        registration.poll(start, 1);
        registration.on_cookie(1, PASS, start);
        let mut times = Vec::new();
        let mut hellos = Vec::new();
        for tx in 2..10 {
            let now = registration.next_deadline();
            times.push((now - start).as_millis());
            let step = registration.poll(now, tx).unwrap();
            hellos.push(matches!(step, Step::Hello { .. }));
            assert_eq!(registration.is_silent(), times.len() >= 4);
        }
        assert_eq!(times, [0, 250, 750, 1750, 3750, 7750, 11750, 15750]);
        assert_eq!(hellos, [false, false, false, false, true, true, true, true]);
    }

    #[test]
    fn a_refused_client_waits() {
        let now = start();
        let mut registration = Registration::new(now);
        registration.poll(now, 1);
        registration.on_cookie(1, PASS, now);
        registration.poll(now, 2);
        assert!(registration.on_refused(2, now));
        assert_eq!(registration.next_deadline(), now + AFTER_REFUSAL);
        assert!(!registration.is_in());
        registration.hurry(now);
        assert!(registration.poll(now, 3).is_some());
    }
}
