use super::*;
use crate::cli::flags::{Parsed, parse};
use crate::cli::table::Command;
use crate::roles::vpn::{ClientConfig, Dns, ServerConfig};
use std::ffi::OsString;

fn matches(command: &'static Command, args: &[&str]) -> Result<Matches, UsageError> {
    let args = args.iter().map(OsString::from).collect();
    match parse(command, args, &|_| None)? {
        Parsed::Run(matches) => Ok(matches),
        other => panic!("{other:?}"),
    }
}

fn server(args: &[&str]) -> Result<ServerConfig, UsageError> {
    let args = [&["--plaintext"], args].concat();
    server_config(&matches(&SERVER_COMMAND, &args)?)
}

fn client(args: &[&str]) -> Result<ClientConfig, UsageError> {
    let args = [&["--plaintext", "vpn.example.net"], args].concat();
    client_config(&matches(&CLIENT_COMMAND, &args)?)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_servers_defaults_are_those_of_the_plan() {
    let config = server(&[]).unwrap();
    let any = ["0.0.0.0:5555".parse().unwrap(), "[::]:5555".parse().unwrap()];
    assert_eq!(config.listen, any);
    assert!(!config.listen_given && config.allow_from.is_empty() && config.nat.is_none());
    assert!(config.client_to_client && !config.allows_bare);
    assert_eq!(config.subnets.len(), 1);
    assert_eq!((config.subnets[0].own(), config.subnets[0].prefix()), (ip("10.0.0.2"), 24));
    assert_eq!(config.limits.clients_max, 1000);
    assert_eq!(config.limits.idle_timeout, Duration::from_secs(180));
    assert_eq!(config.keepalive, Duration::from_secs(15));
    assert_eq!((config.shared.tun.as_str(), config.shared.mtu), ("vpns", None));
    assert!(config.shared.offload && config.shared.state_dir.is_none());
    assert_eq!(config.shared.runtime_dir, std::path::Path::new("/run/udpferry-vpn"));
    assert_eq!(config.dns.iter().count(), 0);
}

#[test]
fn a_clients_defaults_change_nothing_on_the_host() {
    let config = client(&[]).unwrap();
    assert_eq!(config.server.to_string(), "vpn.example.net:5555");
    assert_eq!((config.shared.tun.as_str(), config.keepalive), ("vpnc", None));
    assert!(config.routes.is_empty() && config.excludes.is_empty() && config.dns.is_empty());
    assert!(!config.default_route && !config.kill_switch && config.confirm.is_none());
    assert_eq!(config.fixed, crate::roles::vpn::Fixed::default());
}

#[test]
fn neither_side_starts_unencrypted_by_accident() {
    let server = matches(&SERVER_COMMAND, &[]).and_then(|m| server_config(&m).map(drop));
    let client = matches(&CLIENT_COMMAND, &["host"]).and_then(|m| client_config(&m).map(drop));
    for (side, said) in [("server", server), ("client", client)] {
        let said = said.unwrap_err().to_string();
        let expected = format!("--plaintext: is required: this {side} neither encrypts nor");
        assert!(said.starts_with(&expected) && said.contains("give the option if"), "{said}");
    }
}

#[test]
fn privileges_are_not_dropped() {
    for option in ["--user=nobody", "--group=nogroup"] {
        let said = server(&[option]).unwrap_err().to_string();
        assert!(said.contains("undoing routes and rules"), "{said}");
        assert!(client(&[option]).is_err());
    }
}

#[test]
fn a_server_has_an_address_of_each_family_and_a_pool_in_its_network() {
    let config = server(&["--address=10.9.0.1/16", "--address", "fd00::2/64"]).unwrap();
    assert_eq!(config.subnets.len(), 2);
    assert!(config.subnets[0].pools(ip("10.9.255.254")));
    assert!(config.subnets[1].pools(ip("fd00::1")));
    let config = server(&["--pool", "10.0.0.100-10.0.0.199"]).unwrap();
    assert!(config.subnets[0].pools(ip("10.0.0.199")) && !config.subnets[0].pools(ip("10.0.0.99")));
    assert!(config.subnets[0].takes(ip("10.0.0.99")), "a client may ask for it");
    let config = server(&["--pool=10.0.0.128/25"]).unwrap();
    assert!(config.subnets[0].pools(ip("10.0.0.129")) && !config.subnets[0].pools(ip("10.0.0.1")));
    for wrong in [
        &["--address=10.0.0.2"][..],
        &["--address=10.0.0.0/24"],
        &["--address=10.0.0.255/24"],
        &["--address=10.0.0.2/32"],
        &["--address=10.0.0.2/33"],
        &["--address=10.0.0.2/0"],
        &["--address=10.0.0.2/24", "--address=10.1.0.2/24"],
        &["--pool=10.1.0.1-10.1.0.9"],
        &["--pool=10.0.0.9-10.0.0.1"],
        &["--pool=10.0.0.2-10.0.0.2"],
        &["--pool=10.0.0.9"],
        &["--pool=fd00::1-fd00::9"],
        &["--address=fd00::2/64", "--mtu=1279"],
    ] {
        assert!(server(wrong).is_err(), "{wrong:?}");
    }
    assert_eq!(server(&["--mtu=576"]).unwrap().shared.mtu, Some(576));
}

#[test]
fn what_goes_together_is_checked() {
    assert!(
        server(&["--out-interface=eth0"]).unwrap_err().to_string().ends_with("only with --nat")
    );
    let nat = server(&["--nat", "--out-interface=eth0"]).unwrap().nat.unwrap();
    assert_eq!(nat.out_interface.as_deref(), Some("eth0"));
    assert!(server(&["--nat"]).unwrap().nat.unwrap().out_interface.is_none());
    assert!(server(&["--idle-timeout=15"]).is_err());
    assert!(server(&["--idle-timeout=16"]).is_ok());
    assert!(server(&["--keepalive=1", "--idle-timeout=2"]).is_ok());
    assert!(client(&["--exclude=192.168.1.0/24"]).is_err());
    assert!(client(&["--exclude=192.168.1.0/24", "--kill-switch"]).is_ok());
}

#[test]
fn a_client_takes_routes_addresses_and_dns_servers() {
    let config = client(&[
        "--address=10.0.0.1/24",
        "--address=fd00::1/64",
        "--route=10.20.0.0/16",
        "--route=2001:db8::/32",
        "--default-route",
        "--exclude=192.168.1.0/24",
        "--dns=server",
        "--dns=192.0.2.53",
        "--confirm=60",
        "--keepalive=1h",
    ])
    .unwrap();
    assert_eq!(config.fixed.ipv4, Some(("10.0.0.1".parse().unwrap(), 24)));
    assert_eq!(config.fixed.ipv6, Some(("fd00::1".parse().unwrap(), 64)));
    let routes: Vec<String> = config.routes.iter().map(ToString::to_string).collect();
    assert_eq!(routes, ["10.20.0.0/16", "2001:db8::/32"]);
    assert_eq!(config.dns, [Dns::Pushed, Dns::Server(ip("192.0.2.53"))]);
    assert_eq!(config.confirm, Some(Duration::from_secs(60)));
    assert_eq!(config.keepalive, Some(Duration::from_secs(3600)));
}

#[test]
fn wrong_values_are_refused() {
    for wrong in [
        "--tun-name=",
        "--tun-name=a/b",
        "--tun-name=tun%d",
        "--tun-name=sixteen-letters-",
        "--mtu=575",
        "--mtu=65508",
        "--keepalive=0.5",
        "--keepalive=19h",
        "--max-clients=0",
        "--max-clients=65537",
        "--idle-timeout=1",
        "--allow-from=10.0.0.1/24",
        "--push-dns=0.0.0.0",
        "--push-dns=name",
    ] {
        assert!(server(&[wrong]).is_err(), "{wrong}");
    }
    for wrong in [
        "--route=10.0.0.1/24",
        "--dns=pushed",
        "--dns=name",
        "--confirm=0",
        "--confirm=2h",
        "--address=10.0.0.1",
    ] {
        assert!(client(&[wrong]).is_err(), "{wrong}");
    }
    let wrong = matches(&CLIENT_COMMAND, &["--plaintext", "a:b:c"]).unwrap();
    assert!(client_config(&wrong).unwrap_err().to_string().starts_with("SERVER[:PORT]: \"a:b:c\""));
}
