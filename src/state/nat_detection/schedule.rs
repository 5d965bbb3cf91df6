//! When to repeat a request, and when to give up: RFC 8489 section 6.2.1.

use super::Request;
use std::time::{Duration, Instant};

/// Repetitions: after `first`, then each time after twice as long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// RTO: from the first request to the second.
    pub first: Duration,
    /// Rc: how often it is sent in all.
    pub sends: u32,
    /// How long to wait for an answer to the last one.
    pub last_wait: Duration,
}

impl Schedule {
    /// Sent at 0, 100, 300 and 700 ms, given up after 1.5 s: the default, since somebody waits for
    /// the answer. RTO is to be 500 ms or more unless more is known of the path (section 6.2.1);
    /// here three or four requests go to one server once, so there is no congestion to fear.
    pub const QUICK: Schedule = Schedule {
        first: Duration::from_millis(100),
        sends: 4,
        last_wait: Duration::from_millis(800),
    };
    /// The standard's own: 39.5 s until it is given up.
    pub const STANDARD: Schedule =
        Schedule { first: Duration::from_millis(500), sends: 7, last_wait: Duration::from_secs(8) };
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) request: Request,
    schedule: Schedule,
    sent: u32,
    next: Instant,
}

impl Transaction {
    pub(super) fn new(request: Request, schedule: Schedule, now: Instant) -> Transaction {
        Transaction { request, schedule, sent: 0, next: now }
    }

    /// The request, when it is to be sent, first or again.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Request> {
        if self.sent >= self.schedule.sends.max(1) || now < self.next {
            return None;
        }
        self.sent += 1;
        let wait = if self.sent >= self.schedule.sends {
            self.schedule.last_wait
        } else {
            self.schedule.first * 2_u32.saturating_pow(self.sent - 1)
        };
        self.next = now + wait;
        Some(self.request)
    }

    /// Whether no answer is to be expected any more.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.sent >= self.schedule.sends.max(1) && now >= self.next
    }

    /// When it is to be sent or given up.
    pub(super) fn deadline(&self) -> Instant {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods)] // Tests count from whatever instant they start at.
    fn repeats_by_the_schedule() {
        let begin = Instant::now();
        let request = Request {
            socket: 0,
            to: "203.0.113.1:3478".parse().unwrap(),
            id: [1; 12],
            change_ip: false,
            change_port: false,
            response_port: None,
        };
        // Section 6.2.1's example.
        let standard = vec![0, 500, 1500, 3500, 7500, 15_500, 31_500, 39_500];
        for (schedule, expected) in
            [(Schedule::QUICK, vec![0, 100, 300, 700, 1500]), (Schedule::STANDARD, standard)]
        {
            let mut transaction = Transaction::new(request, schedule, begin);
            let mut times = Vec::new();
            let mut now = begin;
            while !transaction.is_over(now) {
                times.push(u64::try_from((now - begin).as_millis()).unwrap());
                assert_eq!(transaction.poll(now), Some(request));
                assert_eq!(transaction.poll(now), None);
                now = transaction.deadline();
            }
            times.push(u64::try_from((now - begin).as_millis()).unwrap());
            assert_eq!(times, expected);
        }
    }
}
