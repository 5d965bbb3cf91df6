//! Birthday probing: one NAT gives a new port for each destination, the other lets nobody in but
//! whom it has sent to. 256 sockets behind the one make 256 ports; the other side pings ports at
//! random until it meets one of them.
//!
//! Of n pinged ports of 64,512 none is one of 256 with odds of about e^(-256 n / 64512): one in 58 for
//! n = 1,024, one in 9,300 for 2,304.
//!
//! A NAT whose input is open (a plain `masquerade`) spoils the meetings in which the ping that comes in
//! is earlier than the one that goes out. It may be the NAT of either side, so the first half of the
//! scan comes before the sockets' first pings, the second half after them, and one half is left. Not
//! both at once: with the first meeting that is spoiled Linux gives the scanning socket another port,
//! for all that it sends to new places from then on, so the rest of the scan comes from nowhere
//! known.

use crate::state::seeded::{Seeded, mix};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Sockets that the side with the dependent mapping opens.
pub const SOCKETS: u16 = 256;
/// Ports that the other side pings, at most: as many before the sockets open as after.
pub const SCANNED_MAX: u32 = 2 * SCANNED_BEFORE + SOCKETS as u32;
/// Ports pinged before the sockets ping.
const SCANNED_BEFORE: u32 = 1_024;
/// Two hundred pings a second, 102 kbit/s on either side: a NAT's table takes that, and the scan takes
/// 11.5 s.
const PING_GAP: Duration = Duration::from_millis(5);
/// When the sockets ping first: the time of [`SCANNED_BEFORE`] pings.
const OPENING_AFTER: Duration = PING_GAP.saturating_mul(SCANNED_BEFORE);
/// All ping twice more, for what was lost.
const ROUNDS: u32 = 3;
/// The time of the scan, and a second for the last answers.
const LASTS: Duration = PING_GAP.saturating_mul(SCANNED_MAX).saturating_add(Duration::from_secs(1));
/// After a late poll no more than 20 pings go at once.
const LATE_MAX: Duration = Duration::from_millis(100);
/// Ports below are not for clients; NATs give them to nobody who has not such a port himself
/// (RFC 4787 REQ-3).
const PORT_FIRST: u32 = 1_024;
const PORTS: u32 = 65_536 - PORT_FIRST;

/// Which part a side plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// It opens sockets and pings the other's one endpoint from each.
    Opens,
    /// It pings ports of the other's address.
    Scans,
}

/// An attempt under way.
#[derive(Debug)]
pub(super) struct Birthday {
    pub(super) side: Side,
    pub(super) target: SocketAddr,
    begun: Instant,
    next: Instant,
    sent: u32,
    /// The order of ports: `first + n * step`, which comes to each once as `step` and the number of
    /// ports have no common factor.
    first: u32,
    step: u32,
    key: u64,
}

impl Birthday {
    /// Begins now. `target` is the other's endpoint as the server sees it, IPv4.
    pub(super) fn new(side: Side, target: SocketAddr, random: &mut Seeded, now: Instant) -> Self {
        // 64,512 = 2^10 * 3^2 * 7.
        let step = loop {
            let step = random.below(PORTS) | 1;
            if step % 3 != 0 && step % 7 != 0 {
                break step;
            }
        };
        let first = random.below(PORTS);
        let key = random.next_u64();
        let next = match side {
            Side::Opens => now + OPENING_AFTER,
            Side::Scans => now,
        };
        Birthday { side, target, begun: now, next, sent: 0, first, step, key }
    }

    /// The next ping, if one is due: through which of the extra sockets (of those that open), to
    /// where.
    pub(super) fn poll(&mut self, now: Instant) -> Option<(u16, SocketAddr)> {
        if now < self.deadline()? {
            return None;
        }
        let sent = self.sent;
        self.sent += 1;
        self.next = self.next.max(now.checked_sub(LATE_MAX).unwrap_or(now)) + PING_GAP;
        match self.side {
            Side::Opens => {
                let socket = u16::try_from(sent % u32::from(SOCKETS)).ok()?;
                Some((socket, self.target))
            }
            Side::Scans => {
                let place = u64::from(self.first) + u64::from(sent) * u64::from(self.step);
                let port = u64::from(PORT_FIRST) + place % u64::from(PORTS);
                Some((0, SocketAddr::new(self.target.ip(), u16::try_from(port).ok()?)))
            }
        }
    }

    /// When the next ping is due; `None` when all are sent.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let all = match self.side {
            Side::Opens => u32::from(SOCKETS) * ROUNDS,
            Side::Scans => SCANNED_MAX,
        };
        (self.sent < all).then_some(self.next)
    }

    /// When it has failed.
    pub(super) fn end(&self) -> Instant {
        self.begun + LASTS
    }

    /// The number of a ping: from where and whither it goes, keyed. So thousands of outstanding
    /// pings take no memory.
    pub(super) fn tx(&self, socket: u16, to: SocketAddr) -> u64 {
        mix(self.key ^ mix((u64::from(socket) << 16) | u64::from(to.port())))
    }

    /// Whether a pong answers a ping of this attempt.
    pub(super) fn is_answer(&self, tx: u64, socket: u16, from: SocketAddr) -> bool {
        from.ip() == self.target.ip() && tx == self.tx(socket, from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[allow(clippy::disallowed_methods)] // Tests count from whatever instant they start at.
    fn start() -> Instant {
        Instant::now()
    }

    fn target() -> SocketAddr {
        "203.0.113.12:40000".parse().unwrap()
    }

    #[test]
    fn pings_each_port_once_at_200_a_second_and_stops() {
        for seed in 0..50 {
            let begin = start();
            let mut birthday = Birthday::new(Side::Scans, target(), &mut Seeded::new(seed), begin);
            let mut ports = HashSet::new();
            for millisecond in 0..20_000 {
                let now = begin + Duration::from_millis(millisecond);
                while let Some((socket, to)) = birthday.poll(now) {
                    assert_eq!((socket, to.ip()), (0, target().ip()));
                    assert!(u32::from(to.port()) >= PORT_FIRST);
                    assert!(ports.insert(to.port()), "port {} twice", to.port());
                    assert!(birthday.is_answer(birthday.tx(0, to), 0, to));
                    assert!(!birthday.is_answer(birthday.tx(0, to), 1, to));
                }
                let allowed = millisecond / 5 + 1;
                assert!(u64::try_from(ports.len()).unwrap() <= allowed);
            }
            assert_eq!(u32::try_from(ports.len()).unwrap(), SCANNED_MAX);
            assert_eq!(birthday.deadline(), None);
        }
    }

    #[test]
    fn each_socket_pings_three_times() {
        let begin = start();
        let mut birthday = Birthday::new(Side::Opens, target(), &mut Seeded::new(1), begin);
        let mut sent = vec![0; usize::from(SOCKETS)];
        while let Some(due) = birthday.deadline() {
            assert!(due < birthday.end());
            let (socket, to) = birthday.poll(due).unwrap();
            assert_eq!(to, target());
            sent[usize::from(socket)] += 1;
        }
        assert_eq!(sent, vec![3; usize::from(SOCKETS)]);
    }

    #[test]
    fn a_late_poll_sends_no_flood() {
        let begin = start();
        let mut birthday = Birthday::new(Side::Scans, target(), &mut Seeded::new(1), begin);
        let late = begin + Duration::from_secs(5);
        let mut burst = 0;
        while birthday.poll(late).is_some() {
            burst += 1;
        }
        assert_eq!(burst, 21);
    }
}
