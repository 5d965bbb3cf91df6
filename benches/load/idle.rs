//! Many clients that did something once and stay connected.

use super::{Failure, failed};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use udpferry::wire::udpgw::{Datagram, Message, parse, write_frame, write_keepalive};

/// An answer that takes longer will not come: the gateway is on this machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const PAYLOAD: &[u8] = b"one datagram of an idle client";

/// Opens `clients` connections to `gateway`, carries one datagram through each to the echo server
/// `echo` and back, prints `ready`, and holds them until stdin ends.
pub(crate) fn run(gateway: SocketAddr, echo: SocketAddr, clients: usize) -> Result<(), Failure> {
    let mut open = Vec::with_capacity(clients);
    for client in 0..clients {
        open.push(connect(gateway, echo).map_err(failed(format!("idle client {client}")))?);
    }
    println!("ready");
    let held = io::copy(&mut io::stdin().lock(), &mut io::sink());
    drop(open);
    held.map(|_| ()).map_err(failed("cannot read stdin"))
}

fn connect(gateway: SocketAddr, echo: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(gateway)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut frames = Vec::new();
    write_keepalive(&mut frames);
    let datagram =
        Datagram { conid: 1, rebind: false, dns: false, address: echo, payload: PAYLOAD };
    write_frame(&mut frames, &datagram);
    stream.write_all(&frames)?;
    let mut prefix = [0; 2];
    stream.read_exact(&mut prefix)?;
    let mut body = vec![0; usize::from(u16::from_le_bytes(prefix))];
    stream.read_exact(&mut body)?;
    if parse(&body) == Ok(Message::Datagram(datagram)) {
        Ok(stream)
    } else {
        Err(io::Error::other("the answer is not the datagram that was sent"))
    }
}
