//! nftables: a table of our own for each tunnel, put in and taken out whole.

use super::dns::{LOOKUP_PORTS, Lookups};
use super::program;
use crate::error::Error;
use crate::net::netlink::Network;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

/// The name of a tunnel's table. All that an interface's name may have ([`super::is_interface_name`]) nft's
/// may too.
pub fn table_name(tun: &str) -> String {
    format!("udpferry_{tun}")
}

/// The name of a tunnel's kill switch.
pub fn kill_switch_name(tun: &str) -> String {
    format!("{}_kill", table_name(tun))
}

/// A tunnel's server: who comes out of the tunnel may go on, answers come back, TCP learns the tunnel's MTU.
pub struct Server<'a> {
    /// The tunnel's interface.
    pub tun: &'a str,
    /// The tunnel's networks.
    pub networks: &'a [Network],
    /// Where clients' traffic leaves with this host's address; `None`: as it is.
    pub masquerade: Option<&'a str>,
}

/// Puts the server's table in, in place of one that is there.
pub fn serve(server: &Server<'_>) -> Result<(), Error> {
    nft(&server_text(server))
}

fn server_text(server: &Server<'_>) -> String {
    let Server { tun, networks, masquerade } = server;
    let mut text = replaced("inet", &table_name(tun));
    let mut line = |line: String| {
        let _ = writeln!(text, "  {line}");
    };
    line("chain forward {".into());
    line("  type filter hook forward priority 0; policy accept;".into());
    // The route's MTU on the tunnel's side, both ways.
    for way in ["iifname", "oifname"] {
        line(format!(
            "  {way} \"{tun}\" tcp flags & (syn|rst) == syn tcp option maxseg size set rt mtu"
        ));
    }
    line("}".into());
    if let Some(out) = masquerade {
        line("chain postrouting {".into());
        line("  type nat hook postrouting priority 100; policy accept;".into());
        for network in *networks {
            let family = if network.address.is_ipv4() { "ip" } else { "ip6" };
            line(format!("  {family} saddr {network} oifname \"{out}\" masquerade"));
        }
        line("}".into());
    }
    text.push_str("}\n");
    text
}

/// What a kill switch lets pass.
pub struct KillSwitch<'a> {
    /// The tunnel's interface.
    pub tun: &'a str,
    /// Where the tunnel's datagrams go.
    pub servers: &'a [SocketAddr],
    /// Networks that stay outside the tunnel.
    pub excludes: &'a [Network],
    /// Who has an ssh session with this host.
    pub ssh_peers: &'a [IpAddr],
    /// Where names are asked for, as long as the server has to be found.
    pub lookups: Option<&'a Lookups>,
}

/// Puts the kill switch in, in place of one that is there, without a gap.
pub fn kill(switch: &KillSwitch<'_>) -> Result<(), Error> {
    nft(&kill_switch_text(switch))
}

fn kill_switch_text(switch: &KillSwitch<'_>) -> String {
    let mut text = replaced("inet", &kill_switch_name(switch.tun));
    let mut line = |line: String| {
        let _ = writeln!(text, "  {line}");
    };
    let tun = switch.tun;
    line("chain output {".into());
    line("  type filter hook output priority 0; policy drop;".into());
    line("  oifname \"lo\" accept".into());
    line(format!("  oifname \"{tun}\" accept"));
    for server in switch.servers {
        let (family, address) = words(server.ip());
        line(format!("  {family} daddr {address} udp dport {} accept", server.port()));
    }
    for network in switch.excludes {
        let family = if network.address.is_ipv4() { "ip" } else { "ip6" };
        line(format!("  {family} daddr {network} accept"));
    }
    for peer in switch.ssh_peers {
        // Any port: a session that breaks off is begun anew from another one.
        let (family, address) = words(*peer);
        line(format!("  {family} daddr {address} meta l4proto tcp accept"));
    }
    if let Some(lookups) = switch.lookups {
        for rule in lookup_rules(lookups) {
            line(format!("  {rule}"));
        }
    }
    // Without an address or a neighbour there is no way to the server either.
    line("  udp sport 68 udp dport 67 accept".into());
    line("  udp sport 546 udp dport 547 accept".into());
    line("  icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld2-listener-report } accept".into());
    line("}".into());
    line("chain forward {".into());
    line("  type filter hook forward priority 0; policy drop;".into());
    line(format!("  oifname \"{tun}\" accept"));
    line(format!("  iifname \"{tun}\" accept"));
    for network in switch.excludes {
        let family = if network.address.is_ipv4() { "ip" } else { "ip6" };
        line(format!("  {family} daddr {network} accept"));
        line(format!("  {family} saddr {network} accept"));
    }
    line("}".into());
    text.push_str("}\n");
    text
}

/// What lets questions for names pass.
fn lookup_rules(lookups: &Lookups) -> Vec<String> {
    let to = |server: &IpAddr| {
        let (family, address) = words(*server);
        format!("{family} daddr {address} ")
    };
    let mut to: Vec<String> = lookups.servers.iter().map(to).collect();
    if to.is_empty() {
        to.push(String::new());
    }
    let mut by: Vec<String> =
        lookups.users.iter().map(|user| format!("meta skuid {user} ")).collect();
    if by.is_empty() {
        by.push(String::new());
    }
    let mut rules = Vec::new();
    for (by, to) in by.iter().flat_map(|by| to.iter().map(move |to| (by, to))) {
        for protocol in ["udp", "tcp"] {
            let [dns, tls] = LOOKUP_PORTS;
            rules.push(format!("{by}{to}{protocol} dport {{ {dns}, {tls} }} accept"));
        }
    }
    rules
}

fn words(address: IpAddr) -> (&'static str, IpAddr) {
    let address = address.to_canonical();
    (if address.is_ipv4() { "ip" } else { "ip6" }, address)
}

/// The beginning of a table that replaces the one of its name in the same transaction.
fn replaced(family: &str, name: &str) -> String {
    format!("add table {family} {name}\ndelete table {family} {name}\ntable {family} {name} {{\n")
}

/// Whether there is such a table; an error if that cannot be told.
pub fn has_table(family: &str, name: &str) -> Result<bool, Error> {
    let listed = program::run("nft", &["list", "tables", family], "")?;
    let line = format!("table {family} {name}");
    Ok(listed.lines().any(|listed| listed.trim() == line))
}

/// Deletes a table, if it is there.
pub fn delete_table(family: &str, name: &str) -> Result<(), Error> {
    if !program::is_there("nft") {
        return Ok(());
    }
    // Adding it first makes it no error that it is gone.
    nft(&format!("add table {family} {name}\ndelete table {family} {name}\n"))
}

fn nft(text: &str) -> Result<(), Error> {
    program::run("nft", &["-f", "-"], text).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(address: &str, length: u8) -> Network {
        Network { address: address.parse().unwrap(), length }
    }

    #[test]
    fn a_servers_table() {
        let networks = [net("10.0.0.0", 24), net("fd00::", 64)];
        let text =
            server_text(&Server { tun: "vpn-s.0", networks: &networks, masquerade: Some("eth0") });
        assert_eq!(
            text,
            "add table inet udpferry_vpn-s.0\n\
             delete table inet udpferry_vpn-s.0\n\
             table inet udpferry_vpn-s.0 {\n  \
             chain forward {\n    \
             type filter hook forward priority 0; policy accept;\n    \
             iifname \"vpn-s.0\" tcp flags & (syn|rst) == syn tcp option maxseg size set rt mtu\n    \
             oifname \"vpn-s.0\" tcp flags & (syn|rst) == syn tcp option maxseg size set rt mtu\n  \
             }\n  \
             chain postrouting {\n    \
             type nat hook postrouting priority 100; policy accept;\n    \
             ip saddr 10.0.0.0/24 oifname \"eth0\" masquerade\n    \
             ip6 saddr fd00::/64 oifname \"eth0\" masquerade\n  \
             }\n\
             }\n"
        );
        let plain = server_text(&Server { tun: "t", networks: &networks, masquerade: None });
        assert!(!plain.contains("nat"), "{plain}");
    }

    #[test]
    fn a_kill_switch_lets_little_pass() {
        let text = kill_switch_text(&KillSwitch {
            tun: "vpnc",
            servers: &["198.51.100.1:5555".parse().unwrap(), "[2001:db8::1]:5555".parse().unwrap()],
            excludes: &[net("192.168.1.0", 24)],
            ssh_peers: &["::ffff:192.0.2.9".parse().unwrap()],
            lookups: Some(&Lookups {
                servers: vec!["192.0.2.53".parse().unwrap()],
                users: vec![981],
            }),
        });
        for line in [
            "type filter hook output priority 0; policy drop;",
            "ip daddr 198.51.100.1 udp dport 5555 accept",
            "ip6 daddr 2001:db8::1 udp dport 5555 accept",
            "ip daddr 192.168.1.0/24 accept",
            "ip daddr 192.0.2.9 meta l4proto tcp accept",
            "udp sport 68 udp dport 67 accept",
            "meta skuid 981 ip daddr 192.0.2.53 udp dport { 53, 853 } accept",
            "meta skuid 981 ip daddr 192.0.2.53 tcp dport { 53, 853 } accept",
        ] {
            assert!(text.contains(&format!("    {line}\n")), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("policy drop").count(), 2);
        let any = lookup_rules(&Lookups::default());
        assert_eq!(any, ["udp dport { 53, 853 } accept", "tcp dport { 53, 853 } accept"]);
    }
}
