//! Where a client goes: a host by name or address, and a port.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

/// A host, by name or address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Its name or its address, without brackets.
    pub host: String,
    /// Above 0.
    pub port: u16,
}

impl Destination {
    /// Reads `HOST`, `HOST:PORT`, `[IPV6]:PORT`, or an IPv6 address alone. The error says what would
    /// have been allowed.
    pub fn parse(text: &str, default_port: u16) -> Result<Destination, String> {
        let allowed = || "HOST, HOST:PORT, or an IPv6 address in brackets with a port".to_owned();
        let destination = |host: &str, port| {
            let is_sound = !host.is_empty() && !host.contains([' ', '/', '[', ']']) && port > 0;
            is_sound.then(|| Destination { host: host.to_owned(), port }).ok_or_else(allowed)
        };
        if let Ok(endpoint) = text.parse::<SocketAddr>() {
            return destination(&endpoint.ip().to_string(), endpoint.port());
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return destination(&address.to_string(), default_port);
        }
        match text.rsplit_once(':') {
            None => destination(text, default_port),
            Some((host, port)) if !host.contains(':') => {
                destination(host, port.parse().map_err(|_| allowed())?)
            }
            Some(_) => Err(allowed()),
        }
    }

    /// Its addresses, by the system's resolver, which may take its time. One at least.
    pub fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let found: Vec<SocketAddr> = (self.host.as_str(), self.port).to_socket_addrs()?.collect();
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        Ok(found)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_are_read_in_every_spelling() {
        for (text, expected) in [
            ("vpn.example.net", "vpn.example.net:5555"),
            ("vpn.example.net:443", "vpn.example.net:443"),
            ("192.0.2.1", "192.0.2.1:5555"),
            ("192.0.2.1:1", "192.0.2.1:1"),
            ("2001:db8::1", "[2001:db8::1]:5555"),
            ("[2001:db8::1]", "[2001:db8::1]:5555"),
            ("[2001:db8::1]:443", "[2001:db8::1]:443"),
        ] {
            let parsed = Destination::parse(text, 5555).unwrap();
            assert_eq!(parsed.to_string(), expected, "{text}");
            assert_eq!(Destination::parse(expected, 1).unwrap(), parsed);
        }
        for wrong in [
            "",
            ":1",
            "host:",
            "host:0",
            "host:x",
            "host:65536",
            "a:b:c",
            "[host]:1",
            "a b",
            "10.0.0.0/8",
            "192.0.2.1:0",
        ] {
            assert!(Destination::parse(wrong, 5555).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_address_is_its_own() {
        let destination = Destination::parse("[::1]:7", 1).unwrap();
        assert_eq!(destination.resolve().unwrap(), ["[::1]:7".parse().unwrap()]);
    }
}
