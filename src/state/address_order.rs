//! In which order a name's addresses are tried, and for how long each.

use std::net::SocketAddr;
use std::time::Duration;

/// Less is not enough for a TCP handshake over most paths (RFC 8305 §5 waits 250 ms).
const SHARE_MIN: Duration = Duration::from_millis(250);

/// The addresses as RFC 8305 §4 has them: first the one that worked last, if it is still among
/// them; then the families in turn, beginning with the first address's. A family that does not work
/// here thus costs one attempt, not as many as it has addresses.
pub fn in_order(addresses: &[SocketAddr], last_good: Option<SocketAddr>) -> Vec<SocketAddr> {
    let mut left: Vec<SocketAddr> = addresses.to_vec();
    let mut ordered: Vec<SocketAddr> = Vec::with_capacity(left.len());
    let mut wanted = last_good.filter(|good| left.contains(good));
    while !left.is_empty() {
        let next = match (wanted.take(), ordered.last()) {
            (Some(good), _) => left.iter().position(|address| *address == good),
            (None, Some(last)) => {
                left.iter().position(|address| address.is_ipv4() != last.is_ipv4())
            }
            (None, None) => None,
        };
        ordered.push(left.remove(next.unwrap_or(0)));
    }
    ordered
}

/// How much of the time that is `left` the next of `remaining` addresses gets (itself counted): an
/// equal share, at least 250 ms, and not more than there is.
pub fn share(left: Duration, remaining: usize) -> Duration {
    let remaining = u32::try_from(remaining).unwrap_or(u32::MAX).max(1);
    (left / remaining).max(SHARE_MIN).min(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(addresses: &[&str]) -> Vec<SocketAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns_behind_what_worked_last() {
        let found = parse(&["[::1]:1", "[::2]:1", "[::3]:1", "192.0.2.1:1", "192.0.2.2:1"]);
        let expected = parse(&["[::1]:1", "192.0.2.1:1", "[::2]:1", "192.0.2.2:1", "[::3]:1"]);
        assert_eq!(in_order(&found, None), expected);
        let expected = parse(&["192.0.2.2:1", "[::1]:1", "192.0.2.1:1", "[::2]:1", "[::3]:1"]);
        assert_eq!(in_order(&found, Some(found[4])), expected);
        let gone = parse(&["192.0.2.9:1"])[0];
        assert_eq!(in_order(&found[..1], Some(gone)), &found[..1]);
        assert_eq!(in_order(&[], Some(gone)), []);
    }

    #[test]
    fn the_time_is_shared() {
        let milliseconds = Duration::from_millis;
        assert_eq!(share(milliseconds(4000), 1), milliseconds(4000));
        assert_eq!(share(milliseconds(4000), 4), milliseconds(1000));
        assert_eq!(share(milliseconds(400), 4), milliseconds(250));
        assert_eq!(share(milliseconds(150), 3), milliseconds(150));
        assert_eq!(share(Duration::ZERO, 0), Duration::ZERO);
    }
}
