//! Who has an ssh session with this host: an automatic default route must not cut the operator off.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Established, in /proc/net/tcp (include/net/tcp_states.h).
const ESTABLISHED: &str = "01";
/// sshd's port where its configuration names no other (sshd_config(5)).
const SSH_PORT: u16 = 22;
const CONFIGURATION: &str = "/etc/ssh/sshd_config";
const FURTHER_CONFIGURATION: &str = "/etc/ssh/sshd_config.d";

/// The ports that sshd may listen on: 22, those of its configuration, which a service may not be allowed to read, and
/// that of the session in which this program was started, which sudo(8) and service managers hide.
pub fn ports() -> Vec<u16> {
    // "CLIENT-ADDRESS CLIENT-PORT SERVER-ADDRESS SERVER-PORT".
    let own_session =
        std::env::var("SSH_CONNECTION").ok().and_then(|text| text.split(' ').nth(3)?.parse().ok());
    let further = fs::read_dir(FURTHER_CONFIGURATION).into_iter().flatten().flatten();
    let files = std::iter::once(CONFIGURATION.into()).chain(further.map(|entry| entry.path()));
    let configured =
        files.filter_map(|path| fs::read_to_string(path).ok()).flat_map(|text| ports_in(&text));
    let mut ports: Vec<u16> =
        std::iter::once(SSH_PORT).chain(own_session).chain(configured).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// The ports that a configuration of sshd names.
fn ports_in(configuration: &str) -> Vec<u16> {
    let port = |line: &str| {
        let (key, value) = line.trim().split_once([' ', '\t', '='])?;
        let value = value.trim_matches([' ', '\t', '=', '"']).split_ascii_whitespace().next()?;
        match &key.to_ascii_lowercase()[..] {
            "port" => value.parse().ok(),
            "listenaddress" => value.parse::<SocketAddr>().ok().map(|address| address.port()),
            _ => None,
        }
    };
    configuration.lines().filter_map(port).collect()
}

/// The other ends of established sessions with one of these ports of this host.
pub fn peers(ports: &[u16]) -> Vec<IpAddr> {
    let mut found = Vec::new();
    // Not by /proc/net, which a service may not see (ProcSubset=pid).
    for file in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        let table = fs::read_to_string(file).unwrap_or_default();
        found.extend(peers_in(&table, |port| ports.contains(&port)));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The other ends of established connections to a port that counts, in the format of proc(5).
fn peers_in(table: &str, counts: impl Fn(u16) -> bool) -> Vec<IpAddr> {
    let parsed = table.lines().skip(1).filter_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
        let local = endpoint(local)?;
        (state == ESTABLISHED && counts(local.port())).then(|| endpoint(remote)).flatten()
    });
    parsed.map(|remote| remote.ip()).filter(|remote| !remote.is_loopback()).collect()
}

/// Words of four bytes in the host's order, in hexadecimal: `0100007F:0016`.
fn endpoint(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    for at in (0..address.len()).step_by(8) {
        let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).map(Ipv4Addr::from).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).map(Ipv6Addr::from).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;

    #[test]
    fn established_sessions_are_found() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n   \
            0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n   \
            1: 0100A8C0:0016 090200C0:9C40 01 00000000:00000000 02:00000000 00000000     0\n   \
            2: 0100A8C0:01BB 080200C0:9C41 01 00000000:00000000 02:00000000 00000000     0\n   \
            3: 0100007F:0016 0100007F:9C42 01 00000000:00000000 02:00000000 00000000     0\n";
        let found = peers_in(table, |port| port == 22);
        assert_eq!(found, ["192.0.2.9".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn sshds_configuration_names_ports() {
        let text = "# Port 1\nPort 2222\n  port=2022\nListenAddress 0.0.0.0:2200\nListenAddress [::]:2201\n\
                    ListenAddress 192.0.2.1\nPermitRootLogin no\nPort x\n";
        assert_eq!(ports_in(text), [2222, 2022, 2200, 2201]);
        assert!(ports().contains(&22));
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let mapped = "0000000000000000FFFF0000090200C0:0016";
        assert_eq!(endpoint(mapped), Some("192.0.2.9:22".parse().unwrap()));
        let six = "B80D0120000000000000000001000000:0016";
        assert_eq!(endpoint(six), Some("[2001:db8::1]:22".parse().unwrap()));
        for wrong in ["", "0100007F", "01:0016", "zz00007F:0016"] {
            assert_eq!(endpoint(wrong), None, "{wrong}");
        }
    }
}
