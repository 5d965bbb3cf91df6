//! Both sides of the pool as processes, an application's socket, and raw peers that speak the
//! protocol without either.
#![allow(unreachable_pub)] // As tests/support, which this belongs to.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // A failed unwrap is a failed test.

use crate::support::pki::{Issued, authority};
use crate::support::{PATIENCE, Scratch, Service, await_some, free_port, http_get};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, ExitStatus};
use std::time::Duration;
use udpferry::wire::length_prefix::Frames;
use udpferry::wire::pool::{BYTE_ORDER, DATAGRAM_LEN_MAX, SessionId, write_frame};

/// Sizes at the edges: of a datagram, of a TLS record and of a frame.
pub const SIZES: [usize; 6] = [0, 1, 1200, 16_384, 65_000, 65_507];

/// One side, running, with its metrics.
pub struct Side {
    pub service: Running,
    /// Where it listens: TCP for a server, UDP for a client.
    pub address: SocketAddr,
    metrics: SocketAddr,
}

/// A service that can be stopped before its side goes out of scope.
pub struct Running(Option<Service>);

impl std::ops::Deref for Running {
    type Target = Service;

    fn deref(&self) -> &Service {
        self.0.as_ref().expect("it has been stopped")
    }
}

impl Side {
    /// A server on a free port of 127.0.0.1.
    pub fn server(target: SocketAddr, args: &[&str]) -> Side {
        Side::server_on("127.0.0.1", free_port(), &target.ip().to_string(), target.port(), args)
    }

    pub fn server_on(host: &str, port: u16, target: &str, target_port: u16, args: &[&str]) -> Side {
        let (port, target_port) = (port.to_string(), target_port.to_string());
        let mut all = vec!["pool", "server", "-a", host, "-p", &port];
        all.extend_from_slice(args);
        all.extend([target, &target_port]);
        Side::start(&all, "listening on tcp ", |_| {})
    }

    /// A client on a free port of 127.0.0.1.
    pub fn client(server: SocketAddr, args: &[&str]) -> Side {
        Side::client_on("127.0.0.1", &server.ip().to_string(), server.port(), args)
    }

    pub fn client_on(host: &str, server: &str, server_port: u16, args: &[&str]) -> Side {
        let server_port = server_port.to_string();
        let mut all = vec!["pool", "client", "-a", host, "-p", "0"];
        all.extend_from_slice(args);
        all.extend([server, &server_port]);
        Side::start(&all, "listening on udp ", |_| {})
    }

    pub fn start(args: &[&str], says: &str, change: impl FnOnce(&mut Command)) -> Side {
        let metrics = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let metrics_arg = format!("--metrics={metrics}");
        let mut all = args.to_vec();
        all.insert(2, &metrics_arg);
        let service = Service::start_with(&all, change);
        let line = service.await_log(says);
        let address = line.rsplit(' ').next().unwrap().parse().unwrap();
        Side { service: Running(Some(service)), address, metrics }
    }

    /// SIGTERM, and how it ended, and how long that took.
    pub fn stop(mut self) -> (ExitStatus, Duration) {
        self.service.0.take().unwrap().stop()
    }

    /// The value of a metric of the pool, by its name without the beginning that all have.
    pub fn metric(&self, name: &str) -> i64 {
        let name = format!("udpferry_pool_{name}");
        let page = http_get(self.metrics, "/metrics");
        let line = page.lines().find(|line| line.split(' ').next() == Some(&name));
        let line = line.unwrap_or_else(|| panic!("no metric {name} in\n{page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    pub fn metrics_page(&self) -> String {
        http_get(self.metrics, "/metrics")
    }

    pub fn await_metric(&self, name: &str, value: i64) {
        let reached = await_some(|| (self.metric(name) == value).then_some(()));
        assert!(reached.is_some(), "{name} is {}, not {value}", self.metric(name));
    }

    pub fn await_at_least(&self, name: &str, value: i64) {
        let reached = await_some(|| (self.metric(name) >= value).then_some(()));
        assert!(reached.is_some(), "{name} is {}, less than {value}", self.metric(name));
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if std::thread::panicking() && self.service.0.is_some() {
            if TcpStream::connect(self.metrics).is_err() {
                // Killed: another panic would hide the first.
                return;
            }
            let page = http_get(self.metrics, "/metrics");
            let moved = page.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" 0"));
            eprintln!(
                "--- metrics on {} ---\n{}",
                self.address,
                moved.collect::<Vec<_>>().join("\n")
            );
        }
    }
}

/// An application beside the client.
pub struct Endpoint {
    pub socket: UdpSocket,
}

impl Endpoint {
    /// Talks to the client at that address.
    pub fn to(address: SocketAddr) -> Endpoint {
        let any = if address.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Endpoint { socket }
    }

    pub fn send(&self, payload: &[u8]) {
        self.socket.send(payload).unwrap();
    }

    pub fn try_receive(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 65_536];
        let len = self.socket.recv(&mut bytes)?;
        bytes.truncate(len);
        Ok(bytes)
    }

    pub fn receive(&self) -> Vec<u8> {
        self.try_receive().expect("no answer came")
    }

    /// Whether nothing comes for that long.
    pub fn is_silent_for(&self, time: Duration) -> bool {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let result = self.try_receive();
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Sends a datagram and expects it back.
    pub fn echo(&self, payload: &[u8]) {
        self.send(payload);
        let answer = self.receive();
        let (sent, came) = (payload.len(), answer.len());
        assert!(answer == payload, "{sent} bytes went, and {came} that differ came back");
    }

    /// Sends the same datagram until it comes back, for times when some get lost.
    pub fn echo_at_last(&self, payload: &[u8]) {
        self.socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let came = await_some(|| {
            // A socket may report that nobody listened a moment ago.
            let _ = self.socket.send(payload);
            self.try_receive().ok().filter(|answer| answer == payload)
        });
        assert!(came.is_some(), "nothing comes back any more");
        // Answers to those that were sent too often.
        while self.try_receive().is_ok() {}
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
}

/// Bytes that differ from place to place and from call to call.
pub fn payload(len: usize, seed: usize) -> Vec<u8> {
    let byte = |at: usize| at.wrapping_mul(31) ^ at >> 8 ^ seed.wrapping_mul(97);
    (0..len).map(|at| byte(at).to_le_bytes()[0]).collect()
}

/// A session id that no other call has.
pub fn new_session() -> SessionId {
    let mut bytes = [0; 16];
    openssl::rand::rand_bytes(&mut bytes).unwrap();
    SessionId::from_random(bytes)
}

/// A peer of either side that hides nothing.
pub struct Raw<S> {
    pub stream: S,
    received: Vec<u8>,
}

impl Raw<TcpStream> {
    /// A TCP connection, and nothing said yet.
    pub fn connect(address: SocketAddr) -> Raw<TcpStream> {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Raw::over(stream)
    }

    /// A connection of that session.
    pub fn join(address: SocketAddr, session: SessionId) -> Raw<TcpStream> {
        let mut raw = Raw::connect(address);
        raw.stream.write_all(&session.bytes()).unwrap();
        raw
    }

    /// Whether the other side closes the connection (reading whatever comes before).
    pub fn is_closed(&mut self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
            }
        }
    }
}

impl<S: Read + Write> Raw<S> {
    pub fn over(stream: S) -> Raw<S> {
        Raw { stream, received: Vec::new() }
    }

    pub fn send(&mut self, payload: &[u8]) {
        let mut frame = Vec::new();
        assert!(write_frame(&mut frame, payload));
        self.stream.write_all(&frame).unwrap();
    }

    /// The next datagram; panics when none comes.
    pub fn receive(&mut self) -> Vec<u8> {
        loop {
            let mut frames = Frames::new(&self.received, BYTE_ORDER, DATAGRAM_LEN_MAX);
            if let Some(datagram) = frames.next() {
                let datagram = datagram.unwrap().to_vec();
                let rest = frames.unfinished().len();
                let gone = 2 + datagram.len();
                assert!(rest <= self.received.len() - gone || gone == self.received.len());
                self.received.drain(..gone);
                return datagram;
            }
            let mut bytes = vec![0; 65_536];
            let len = self.stream.read(&mut bytes).expect("no datagram came");
            assert!(len > 0, "closed before a datagram came");
            self.received.extend_from_slice(&bytes[..len]);
        }
    }

    pub fn echo(&mut self, payload: &[u8]) {
        self.send(payload);
        assert!(self.receive() == payload, "another datagram came back");
    }

    /// Sixteen bytes of a session id, as a server reads them.
    pub fn read_session(&mut self) -> SessionId {
        let mut bytes = [0; 16];
        self.stream.read_exact(&mut bytes).unwrap();
        SessionId::parse(&bytes).unwrap()
    }
}

/// Certificates for both sides, in files.
pub struct Pki {
    pub authority: Issued,
    pub scratch: Scratch,
}

impl Pki {
    /// An authority, and a certificate for each side: ca.pem, server.pem, server.key, client.pem
    /// and client.key.
    pub fn new() -> Pki {
        let pki = Pki { authority: authority("udpferry test authority"), scratch: Scratch::new() };
        pki.file("ca.pem", &pki.authority.pem());
        for side in ["server", "client"] {
            pki.issue(side, &pki.authority.issue());
        }
        pki
    }

    /// Writes NAME.pem and NAME.key.
    pub fn issue(&self, name: &str, issued: &Issued) {
        self.file(&format!("{name}.pem"), &issued.pem());
        self.file(&format!("{name}.key"), &issued.key_pem());
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.scratch.path(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub fn path(&self, name: &str) -> String {
        self.scratch.path(name).to_str().unwrap().to_owned()
    }

    /// `-c` and `-k` for the side of that name.
    pub fn identity(&self, name: &str) -> Vec<String> {
        let certificate = self.path(&format!("{name}.pem"));
        vec!["-c".to_owned(), certificate, "-k".to_owned(), self.path(&format!("{name}.key"))]
    }

    /// `-C` with the authority.
    pub fn trust(&self) -> Vec<String> {
        vec!["-C".to_owned(), self.path("ca.pem")]
    }
}

/// How the connections are protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    Plain,
    Tls,
    ClientCertificates,
}

impl Protection {
    pub const ALL: [Protection; 3] =
        [Protection::Plain, Protection::Tls, Protection::ClientCertificates];

    /// Options of the server, which the Python peer has as well.
    pub fn server(self, pki: &Pki) -> Vec<String> {
        match self {
            Protection::Plain => vec!["--no-tls".to_owned()],
            Protection::Tls => pki.identity("server"),
            Protection::ClientCertificates => [pki.identity("server"), pki.trust()].concat(),
        }
    }

    /// Options of the client, which the Python peer has as well.
    pub fn client(self, pki: &Pki) -> Vec<String> {
        match self {
            Protection::Plain => vec!["--no-tls".to_owned()],
            Protection::Tls => pki.trust(),
            Protection::ClientCertificates => [pki.identity("client"), pki.trust()].concat(),
        }
    }
}

/// For options in one list.
pub fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}
