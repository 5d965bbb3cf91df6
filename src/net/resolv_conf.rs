//! The nameservers of `/etc/resolv.conf`, read as in resolv.conf(5) and glibc's `resolv/res_init.c`.
//!
//! Only the `nameserver` lines count here. A line that the C library would not use is not used
//! either, so that clients are sent to the resolver that the rest of the system asks.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// The most nameservers the C library asks: `MAXNS` in `<resolv.h>`.
pub const NAMESERVERS_MAX: usize = 3;

/// RFC 1035 §4.2: the port of a name server.
const PORT: u16 = 53;

/// The first [`NAMESERVERS_MAX`] usable nameservers of `text`, in order, with port 53.
///
/// A line counts if it starts with `nameserver` and a blank. What follows the address is ignored.
/// Everything else is skipped without a word: comments (`#`, `;`), other keywords, addresses
/// that do not parse. Empty if there is none; the C library then asks 127.0.0.1.
///
/// An IPv6 address may carry a scope (`fe80::1%2`, `fe80::1%eth0`). `scope` turns an interface's
/// name into its index and is not asked for numbers; a nameserver whose interface it does not
/// know (`None`) is skipped, since it cannot be reached.
pub fn nameservers(text: &str, scope: impl Fn(&str) -> Option<u32>) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(value_of_nameserver)
        .filter_map(|value| endpoint(value, &scope))
        .take(NAMESERVERS_MAX)
        .collect()
}

/// The keyword must start the line: glibc skips an indented one.
fn value_of_nameserver(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("nameserver")?;
    if !rest.starts_with([' ', '\t']) {
        return None;
    }
    rest.split_ascii_whitespace().next()
}

fn endpoint(value: &str, scope: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let Some((address, zone)) = value.split_once('%') else {
        let address: IpAddr = value.parse().ok()?;
        return Some(SocketAddr::new(address, PORT));
    };
    let address: Ipv6Addr = address.parse().ok()?;
    let index = if zone.bytes().all(|byte| byte.is_ascii_digit()) {
        zone.parse().ok()?
    } else {
        scope(zone)?
    };
    Some(SocketAddr::V6(SocketAddrV6::new(address, PORT, 0, index)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Vec<String> {
        let scope = |name: &str| (name == "eth0").then_some(7);
        nameservers(text, scope).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_usual_file() {
        let text = "# made by hand\n; so\nsearch example.org\nnameserver 192.0.2.1\n\
                    nameserver\t2001:db8::53\noptions edns0\n";
        assert_eq!(read(text), ["192.0.2.1:53", "[2001:db8::53]:53"]);
    }

    #[test]
    fn systemd_resolved_stub() {
        assert_eq!(
            read("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch ."),
            ["127.0.0.53:53"]
        );
    }

    #[test]
    fn scopes_by_number_and_by_name() {
        let text = "nameserver fe80::1%3\nnameserver fe80::1%eth0\nnameserver fe80::1";
        assert_eq!(read(text), ["[fe80::1%3]:53", "[fe80::1%7]:53", "[fe80::1]:53"]);
    }

    #[test]
    fn unusable_scopes_skip_the_line() {
        for value in ["fe80::1%", "fe80::1%wlan9", "fe80::1%4294967296", "1.2.3.4%eth0", "%eth0"] {
            assert_eq!(read(&format!("nameserver {value}\n")), [""; 0], "{value}");
        }
    }

    #[test]
    fn at_most_three_and_only_usable_ones_count() {
        let text = "nameserver x\nnameserver 10.0.0.1\nnameserver fe80::1%gone\n\
                    nameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4\n";
        assert_eq!(read(text), ["10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:53"]);
    }

    #[test]
    fn tails_blanks_and_line_ends() {
        let text = "nameserver  \t 10.0.0.1 \t# office\r\nnameserver 10.0.0.2 10.9.9.9\r\n\
                    nameserver 10.0.0.3";
        assert_eq!(read(text), ["10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:53"]);
    }

    #[test]
    fn what_is_not_a_nameserver_line() {
        for line in [
            "",
            "nameserver",
            "nameserver ",
            "nameserver10.0.0.1",
            "nameservers 10.0.0.1",
            " nameserver 10.0.0.1",
            "#nameserver 10.0.0.1",
            ";nameserver 10.0.0.1",
            "# nameserver 10.0.0.1",
            "NAMESERVER 10.0.0.1",
            "nameserver 10.0.0",
            "nameserver 010.0.0.1",
            "nameserver 10.0.0.1:53",
            "nameserver [::1]:53",
            "nameserver dns.example",
            "nameserver 10.0.0.1\u{a0}",
        ] {
            assert_eq!(read(line), [""; 0], "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_never_more_than_three(text in "(nameserver |[ -~\t\n%:.]|\\PC)*") {
            prop_assert!(nameservers(&text, |_| Some(1)).len() <= NAMESERVERS_MAX);
        }

        #[test]
        fn reads_back_what_was_written(
            addresses in proptest::collection::vec(any::<IpAddr>(), 0..6),
            noise in proptest::collection::vec("[#;][ -~]*|search [a-z.]*|", 6),
        ) {
            let mut text = String::new();
            for (address, noise) in addresses.iter().zip(&noise) {
                text.extend([noise, "\nnameserver ", &address.to_string(), "\n"]);
            }
            let expected: Vec<_> =
                addresses.iter().take(3).map(|&address| SocketAddr::new(address, 53)).collect();
            prop_assert_eq!(nameservers(&text, |_| None), expected);
        }
    }
}
