//! A blocking udpgw client, for `check` and `selftest`.

use crate::net::tls::{ClientTrust, connector};
use crate::runtime::clock;
use crate::wire::length_prefix::Frames;
use crate::wire::udpgw::{
    BODY_LEN_MAX, BYTE_ORDER, Datagram, Message, parse, write_frame, write_keepalive,
};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

trait ReadWrite: Read + Write + Send {}
impl<T: Read + Write + Send> ReadWrite for T {}

/// A datagram that came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub conid: u16,
    pub address: SocketAddr,
    pub payload: Vec<u8>,
}

/// What reading from a gateway yields instead of a datagram.
#[derive(Debug)]
pub(super) enum NoReply {
    /// Nothing came in time.
    TimedOut,
    /// The gateway closed the connection.
    Closed,
    /// What came is not udpgw; its first bytes.
    OtherProtocol(Vec<u8>),
    /// The connection failed.
    Failed(io::Error),
}

/// One connection to a gateway.
pub(super) struct Probe {
    stream: Box<dyn ReadWrite>,
    /// The same connection below TLS, for time-outs.
    socket: TcpStream,
    received: Vec<u8>,
}

impl Probe {
    /// Connects over TCP.
    pub(super) fn connect(address: SocketAddr, timeout: Duration) -> io::Result<Probe> {
        let socket = TcpStream::connect_timeout(&address, timeout)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        let stream = Box::new(socket.try_clone()?);
        Ok(Probe { stream, socket, received: Vec::new() })
    }

    /// Goes over to TLS with a server named `name`. The error says what the TLS library says.
    pub(super) fn start_tls(&mut self, name: &str, trust: &ClientTrust<'_>) -> Result<(), String> {
        let connector = connector(trust).map_err(|error| error.to_string())?;
        let socket = self.socket.try_clone().map_err(|error| error.to_string())?;
        let stream = connector.connect(name, socket).map_err(|error| match error {
            native_tls::HandshakeError::Failure(error) => error.to_string(),
            native_tls::HandshakeError::WouldBlock(_) => "no answer in time".to_owned(),
        })?;
        self.stream = Box::new(stream);
        Ok(())
    }

    /// Sends one datagram.
    pub(super) fn send(&mut self, datagram: &Datagram<'_>) -> io::Result<()> {
        let mut frame = Vec::new();
        if !write_frame(&mut frame, datagram) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.stream.write_all(&frame)
    }

    /// Sends a keepalive.
    pub(super) fn keepalive(&mut self) -> io::Result<()> {
        let mut frame = Vec::new();
        write_keepalive(&mut frame);
        self.stream.write_all(&frame)
    }

    /// The next datagram, for which it waits until `deadline`.
    pub(super) fn receive(&mut self, deadline: Instant) -> Result<Reply, NoReply> {
        loop {
            let mut frames = Frames::new(&self.received, BYTE_ORDER, BODY_LEN_MAX);
            if let Some(Ok(body)) = frames.next() {
                let reply = match parse(body) {
                    Ok(Message::Datagram(datagram)) => Ok(Reply {
                        conid: datagram.conid,
                        address: datagram.address,
                        payload: datagram.payload.to_vec(),
                    }),
                    // A gateway sends no keepalive.
                    Ok(Message::Keepalive) | Err(_) => {
                        Err(NoReply::OtherProtocol(self.received.clone()))
                    }
                };
                let rest = frames.unfinished().len();
                self.received.drain(..self.received.len() - rest);
                return reply;
            }
            let left = clock::until(deadline, clock::now());
            if left.is_zero() {
                return Err(NoReply::TimedOut);
            }
            self.socket.set_read_timeout(Some(left)).map_err(NoReply::Failed)?;
            let mut bytes = [0; 8192];
            match self.stream.read(&mut bytes) {
                Ok(0) if self.received.is_empty() => return Err(NoReply::Closed),
                Ok(0) => return Err(NoReply::OtherProtocol(self.received.clone())),
                Ok(len) => self.received.extend_from_slice(&bytes[..len]),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    return Err(if self.received.is_empty() {
                        NoReply::TimedOut
                    } else {
                        NoReply::OtherProtocol(self.received.clone())
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(NoReply::Closed);
                }
                Err(error) => return Err(NoReply::Failed(error)),
            }
        }
    }
}
