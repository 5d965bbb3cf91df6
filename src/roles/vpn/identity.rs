//! What a client remembers of its last run: the number by which the server knows it, and where the
//! server was, in case its name cannot be looked up at the start (a kill switch that is still in force
//! lets no question out).
//!
//! ```text
//! udpferry vpn client 1
//! id 00112233445566778899aabbccddeeff
//! server vpn.example.net:5555 192.0.2.1:5555 [2001:db8::1]:5555
//! ```

use super::lease_file::{self, client_id, hex};
use crate::error::Error;
use crate::net::random;
use crate::roles::destination::Destination;
use crate::wire::vpn::ClientId;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

const TITLE: &str = "udpferry vpn client 1";
/// The file is a few lines.
const SERVERS_MAX: usize = 16;

/// A client's file and what is in it.
#[derive(Debug)]
pub(super) struct Identity {
    path: PathBuf,
    pub(super) id: ClientId,
    /// The server's name, and the addresses that it had.
    servers: Option<(String, Vec<SocketAddr>)>,
}

impl Identity {
    /// Reads a tunnel's file, or makes a number and writes one. A file that cannot be read is
    /// replaced.
    pub(super) fn open(directory: &Path, tun: &str) -> Result<Identity, Error> {
        let path = directory.join(format!("vpn-{tun}.client"));
        let cannot = || format!("cannot use the file {}", path.display());
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::System { doing: cannot(), cause: error });
            }
            bytes => bytes.unwrap_or_default(),
        };
        let text = String::from_utf8_lossy(&bytes);
        if let Some((id, servers)) = parse(&text) {
            return Ok(Identity { path, id, servers });
        }
        let id = random::bytes().map_err(Error::while_doing(|| "cannot get random bytes"))?;
        let identity = Identity { path: path.clone(), id: ClientId(id), servers: None };
        fs::create_dir_all(directory).map_err(Error::while_doing(cannot))?;
        identity.write().map_err(Error::while_doing(cannot))?;
        Ok(identity)
    }

    /// Where that server was when it was last found.
    pub(super) fn servers(&self, name: &Destination) -> Vec<SocketAddr> {
        match &self.servers {
            Some((of, servers)) if *of == name.to_string() => servers.clone(),
            _ => Vec::new(),
        }
    }

    /// That server has been found, at one of these addresses.
    pub(super) fn remember(&mut self, name: &Destination, servers: &[SocketAddr]) {
        let servers = servers.iter().take(SERVERS_MAX).copied().collect();
        let found = Some((name.to_string(), servers));
        if self.servers == found {
            return;
        }
        self.servers = found;
        if let Err(error) = self.write() {
            log::warn!("cannot write {}: {error}", self.path.display());
        }
    }

    fn write(&self) -> io::Result<()> {
        let mut text = format!("{TITLE}\nid {}\n", hex(self.id));
        if let Some((name, servers)) = &self.servers {
            text.push_str("server ");
            text.push_str(name);
            for server in servers {
                // Writing to a String cannot fail.
                let _ = write!(text, " {server}");
            }
            text.push('\n');
        }
        lease_file::write(&self.path, text.as_bytes())
    }
}

type Remembered = (ClientId, Option<(String, Vec<SocketAddr>)>);

fn parse(text: &str) -> Option<Remembered> {
    let mut lines = text.lines();
    if lines.next()? != TITLE {
        return None;
    }
    let id = client_id(lines.next()?.strip_prefix("id ")?)?;
    let servers = lines.next().and_then(|line| {
        let mut words = line.strip_prefix("server ")?.split(' ');
        let name = words.next()?.to_owned();
        Some((name, words.map(str::parse).collect::<Result<_, _>>().ok()?))
    });
    Some((id, servers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_client_is_the_same_after_a_restart() {
        let directory =
            std::env::temp_dir().join(format!("udpferry-client-{}", std::process::id()));
        let name = Destination::parse("vpn.example.net", 5555).unwrap();
        let servers = ["192.0.2.1:5555".parse().unwrap(), "[2001:db8::1]:5555".parse().unwrap()];
        let mut first = Identity::open(&directory, "vpnc").unwrap();
        assert!(first.servers(&name).is_empty());
        first.remember(&name, &servers);
        let path = directory.join("vpn-vpnc.client");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let second = Identity::open(&directory, "vpnc").unwrap();
        assert_eq!(second.id, first.id);
        assert_eq!(second.servers(&name), servers);
        assert!(second.servers(&Destination::parse("other", 5555).unwrap()).is_empty());
        assert_ne!(Identity::open(&directory, "another").unwrap().id, first.id);
        fs::write(&path, "rubbish").unwrap();
        assert_ne!(Identity::open(&directory, "vpnc").unwrap().id, first.id);
        fs::remove_dir_all(directory).unwrap();
    }
}
