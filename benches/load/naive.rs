//! The plainest tunnel there is, to compare with: one packet a read and a send, one datagram a receive and a write,
//! a thread each way. What others make of its device (addresses, up) is theirs to do.

use super::{Failure, failed};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, UdpSocket};

/// More than any packet of a device without offloads.
const PACKET_LEN_MAX: usize = 65_536;

/// Carries packets until it is killed.
pub(crate) fn run(name: &str, local: SocketAddr, remote: SocketAddr) -> Result<(), Failure> {
    let mut configuration = tun::Configuration::default();
    configuration.tun_name(name).platform_config(|platform| {
        platform.ensure_root_privileges(false);
    });
    let device = tun::create(&configuration)
        .map_err(|error| Failure::System(format!("cannot open {name}"), error.into()))?;
    let (mut reader, mut writer) = device.split();
    let socket = UdpSocket::bind(local)
        .and_then(|socket| socket.connect(remote).map(|()| socket))
        .map_err(failed(format!("cannot use udp {local} to {remote}")))?;
    let receiver = socket.try_clone().map_err(failed("cannot share the socket"))?;
    #[allow(clippy::disallowed_methods)] // Not the program's.
    std::thread::spawn(move || {
        let mut packet = vec![0; PACKET_LEN_MAX];
        loop {
            // The other side may not be there yet, and the device not be up.
            let Ok(len) = receiver.recv(&mut packet) else { continue };
            let _ = writer.write(&packet[..len]);
        }
    });
    let mut packet = vec![0; PACKET_LEN_MAX];
    loop {
        match reader.read(&mut packet) {
            Ok(len) => drop(socket.send(&packet[..len])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Failure::System(format!("cannot read {name}"), error)),
        }
    }
}
