//! Texts into values. Every function here answers a wrong text with what would have been
//! allowed, in words that fit after "is not allowed: ".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Ten years of 365 days: long enough for every timeout, short enough to add to any clock.
const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A whole number from `min` to `max`, both included: decimal digits, no sign.
pub fn number(min: u64, max: u64) -> impl Fn(&str) -> Result<u64, String> {
    move |text| {
        let value = digits(text).filter(|value| (min..=max).contains(value));
        value.ok_or_else(|| match max {
            u64::MAX => format!("a number, at least {min}"),
            _ => format!("a number from {min} to {max}"),
        })
    }
}

/// A whole number from `min` to `max`, as a count of things in memory.
pub fn count(min: u64, max: u64) -> impl Fn(&str) -> Result<usize, String> {
    let parse = number(min, max);
    move |text| parse(text).map(|count| usize::try_from(count).unwrap_or(usize::MAX))
}

/// A socket buffer's size in bytes: kernels count it in an int, doubled.
pub fn buffer_size(text: &str) -> Result<usize, String> {
    let allowed = || "bytes from 0 to 1G, such as 262144 or 256k".to_owned();
    let bytes = size(text)?;
    usize::try_from(bytes).ok().filter(|bytes| *bytes <= 1 << 30).ok_or_else(allowed)
}

/// A time from zero to ten years: seconds, or a number with the unit `ms`, `s`, `m` or `h`;
/// fractions are allowed. What is shorter than a nanosecond is rounded up, as zero often means
/// "never".
pub fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .filter(|value| *value <= DURATION_MAX)
        .ok_or_else(|| "a time such as 30, 0.5, 500ms, 30s, 5m or 1h, at most 10 years".to_owned())
}

fn parse_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u128); 4] =
        [("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000), ("h", 3_600_000_000_000)];
    let found = UNITS
        .iter()
        .find_map(|(unit, nanos)| text.strip_suffix(unit).map(|number| (number, *nanos)));
    let (number, unit_nanos) = found.unwrap_or((text, 1_000_000_000));
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) => (whole, fraction),
        None => (number, ""),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { digits(whole)? };
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // Eighteen digits keep the product far below 2^128; a digit beyond them is below 10^-5 ns.
    let mut nanos = u128::from(whole) * unit_nanos;
    let (mut part, mut scale) = (0_u128, 1_u128);
    for byte in fraction.bytes().take(18) {
        part = part * 10 + u128::from(byte - b'0');
        scale *= 10;
    }
    let beyond = fraction.bytes().skip(18).any(|byte| byte != b'0');
    nanos += (part * unit_nanos + u128::from(beyond)).div_ceil(scale);
    let seconds = u64::try_from(nanos / 1_000_000_000).ok()?;
    let below = u32::try_from(nanos % 1_000_000_000).ok()?;
    Some(Duration::new(seconds, below))
}

/// A size in bytes: a whole number, or one with `k`, `M` or `G` in either case, which are powers
/// of 1024.
pub fn size(text: &str) -> Result<u64, String> {
    let (number, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits(number)
        .and_then(|value| value.checked_mul(1 << shift))
        .ok_or_else(|| "a size in bytes such as 65536, 64k or 1M".to_owned())
}

/// A numeric address and a port, which may be 0: `192.0.2.1:53` or `[2001:db8::1]:53`.
pub fn endpoint(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "ADDR:PORT or [IPV6]:PORT, a numeric address and a port from 0 to 65535".to_owned()
    })
}

/// A network as `ADDR/LEN`, or one address. The bits after the prefix must be zero: a network
/// that says more than it means is more often a slip of the pen than a wish.
pub fn cidr(text: &str) -> Result<(IpAddr, u8), String> {
    let form = || "a network as ADDR/LEN such as 10.0.0.0/8 or fc00::/7, or an address".to_owned();
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| form())?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => bits,
        Some(length) => digits(length)
            .and_then(|length| u8::try_from(length).ok())
            .filter(|length| *length <= bits)
            .ok_or_else(|| format!("a prefix length from 0 to {bits}"))?,
    };
    let network = network(address, length);
    if network == address {
        return Ok((address, length));
    }
    Err(format!("the bits after the prefix must be 0, as in {network}/{length}"))
}

fn network(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let host_bits = 32_u32.saturating_sub(u32::from(length));
            let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let host_bits = 128_u32.saturating_sub(u32::from(length));
            let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

/// Any text.
// The error type is that of its sisters, as `Matches` takes them all.
#[allow(clippy::unnecessary_wraps)]
pub fn text(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// One of a few words, as they are written.
pub fn choice(words: &'static [&'static str]) -> impl Fn(&str) -> Result<&'static str, String> {
    move |text| {
        let word = words.iter().find(|word| **word == text).copied();
        word.ok_or_else(|| format!("one of {}", words.join(", ")))
    }
}

/// Decimal digits alone: what `u64::from_str` takes, without its leading plus.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_have_bounds_and_no_sign() {
        let port = number(1, 65535);
        assert_eq!(port("1"), Ok(1));
        assert_eq!(port("65535"), Ok(65535));
        for wrong in ["", "0", "65536", "+1", "-1", " 1", "1.0", "0x10", "99999999999999999999"] {
            assert_eq!(port(wrong), Err("a number from 1 to 65535".to_owned()), "{wrong}");
        }
        assert_eq!(number(3, u64::MAX)("2"), Err("a number, at least 3".to_owned()));
    }

    #[test]
    fn durations_take_units_and_fractions() {
        let cases = [
            ("30", 30_000),
            ("0", 0),
            ("0.5", 500),
            (".5", 500),
            ("5.", 5_000),
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1.5h", 5_400_000),
            ("87600h", 315_360_000_000),
        ];
        for (text, millis) in cases {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(duration("0.0000000001"), Ok(Duration::from_nanos(1)));
        assert_eq!(duration("0.0000000000000000000001"), Ok(Duration::from_nanos(1)));
        assert_eq!(duration("0.0000000000000000000000"), Ok(Duration::ZERO));
    }

    #[test]
    fn durations_refuse_the_rest() {
        let wrong = [
            "",
            ".",
            "-1",
            "+1",
            "NaN",
            "inf",
            "1e3",
            "s",
            "ms",
            "5 m",
            "5d",
            "1.2.3",
            "0.5.",
            "0x1",
            "87600.1h",
            "315360001",
            "99999999999999999999h",
            "5S",
            "1.-5",
        ];
        for wrong in wrong {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        let cases = [("0", 0), ("65536", 65536), ("64k", 65536), ("64K", 65536), ("1M", 1 << 20)];
        for (text, bytes) in cases {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        assert_eq!(size("2G"), Ok(1 << 31));
        for wrong in ["", "k", "-1", "1.5k", "1kb", "1T", "18446744073709551616", "17179869184G"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert!(size("1é").is_err());
    }

    #[test]
    fn endpoints_are_numeric() {
        assert_eq!(endpoint("127.0.0.1:0"), Ok(SocketAddr::from(([127, 0, 0, 1], 0))));
        assert_eq!(endpoint("[::1]:53").map(|e| e.to_string()), Ok("[::1]:53".to_owned()));
        for wrong in ["", "127.0.0.1", ":53", "::1:53", "localhost:53", "1.2.3.4:65536", "1.2.3.4:"]
        {
            assert!(endpoint(wrong).unwrap_err().starts_with("ADDR:PORT"), "{wrong}");
        }
    }

    #[test]
    fn networks_show_the_right_one() {
        assert_eq!(cidr("10.0.0.0/8"), Ok((IpAddr::from([10, 0, 0, 0]), 8)));
        assert_eq!(cidr("0.0.0.0/0"), Ok((IpAddr::from([0, 0, 0, 0]), 0)));
        assert_eq!(cidr("10.1.2.3"), Ok((IpAddr::from([10, 1, 2, 3]), 32)));
        assert_eq!(cidr("::/0").map(|(_, length)| length), Ok(0));
        assert_eq!(cidr("::1").map(|(_, length)| length), Ok(128));
        assert!(cidr("10.1.2.3/8").unwrap_err().ends_with("as in 10.0.0.0/8"));
        assert!(cidr("fd00::1/7").unwrap_err().ends_with("as in fc00::/7"));
        assert_eq!(cidr("1.2.3.0/33"), Err("a prefix length from 0 to 32".to_owned()));
        assert_eq!(cidr("::/129"), Err("a prefix length from 0 to 128".to_owned()));
        for wrong in ["", "/8", "10.0.0.0/", "10.0.0.0/+8", "10.0/8", "10.0.0.0/8/8", "host/8"] {
            assert!(cidr(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn choices_list_themselves() {
        let logger = choice(&["stdout", "syslog"]);
        assert_eq!(logger("syslog"), Ok("syslog"));
        assert_eq!(logger("Syslog"), Err("one of stdout, syslog".to_owned()));
    }

    proptest! {
        #[test]
        fn any_text_is_an_answer_or_an_error(input in ".{0,40}") {
            let _ = duration(&input);
            let _ = size(&input);
            let _ = cidr(&input);
            let _ = endpoint(&input);
        }

        #[test]
        fn durations_survive_being_written(millis in 0_u64..=315_360_000_000) {
            let expected = Duration::from_millis(millis);
            prop_assert_eq!(duration(&format!("{millis}ms")), Ok(expected));
            let written = format!("{}.{:03}", millis / 1000, millis % 1000);
            prop_assert_eq!(duration(&written), Ok(expected));
        }

        #[test]
        fn sizes_scale(number in 0_u64..(1 << 34)) {
            prop_assert_eq!(size(&number.to_string()), Ok(number));
            prop_assert_eq!(size(&format!("{number}k")), Ok(number * 1024));
            prop_assert_eq!(size(&format!("{number}G")), Ok(number << 30));
        }

        #[test]
        fn networks_hold_no_host_bits(bits: u32, length in 0_u8..=32) {
            let text = format!("{}/{length}", Ipv4Addr::from_bits(bits));
            // The naive decoder: bit by bit.
            let stray = (0..32).any(|bit| bit >= length && bits >> (31 - bit) & 1 == 1);
            match cidr(&text) {
                Ok((address, given)) => {
                    prop_assert!(!stray);
                    prop_assert_eq!((address, given), (Ipv4Addr::from_bits(bits).into(), length));
                }
                Err(message) => {
                    prop_assert!(stray);
                    let right = message.rsplit(' ').next().unwrap();
                    prop_assert!(cidr(right).is_ok());
                }
            }
        }

        #[test]
        fn ipv6_networks_are_masked(bits: u128, length in 0_u8..=128) {
            let IpAddr::V6(masked) = network(Ipv6Addr::from_bits(bits).into(), length) else {
                panic!("the family changed");
            };
            let kept: u128 = (0..length).map(|bit| bits & (1 << (127 - bit))).sum();
            prop_assert_eq!(masked.to_bits(), kept);
        }
    }
}
