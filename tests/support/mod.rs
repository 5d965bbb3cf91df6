//! What tests of roles share: the real binary as a service, a udpgw client that hides nothing, an
//! echo server. No sleeps: every wait is for an event, with a deadline that only a failure meets.
#![allow(dead_code, unreachable_pub)] // Each test program uses its part.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.
#![allow(clippy::print_stderr)] // What a failed test's processes said.

pub mod kernel;
pub mod pki;
pub mod programs;

use socket2::{Domain, Socket, Type};
use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use udpferry::wire::length_prefix::Frames;
use udpferry::wire::udpgw::{self, Datagram, Message};

/// Long enough for a loaded machine; only a failing test waits for it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The binary under test.
pub const UDPFERRY: &str = env!("CARGO_BIN_EXE_udpferry");

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A number that no other call in this process or a process beside it has.
fn unique() -> String {
    format!("{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed))
}

/// A directory of its own, removed on drop.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        let path = std::env::temp_dir().join(format!("udpferry-test-{}", unique()));
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A TCP port of 127.0.0.1 that nobody uses: below the range from which the kernel takes ports for
/// outgoing connections, and never the same twice in one process. What looks is bound and never
/// listens: a copy of it in a process that is between fork and exec keeps no listener away.
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    loop {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let place = std::process::id().wrapping_mul(613).wrapping_add(serial) % COUNT;
        let port = u16::try_from(FIRST + place).unwrap();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        if socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into()).is_ok() {
            return port;
        }
    }
}

/// A role of the real binary, running until dropped (then killed) or stopped.
pub struct Service {
    child: Option<Child>,
    ready: UnixDatagram,
    log: PathBuf,
    _scratch: Scratch,
}

impl Service {
    /// Starts `udpferry ARGS` with its log at debug level in a file, and waits for READY=1.
    pub fn start(args: &[&str]) -> Service {
        Service::start_with(args, |_| {})
    }

    /// The same with changes to how the process is started.
    pub fn start_with(args: &[&str], change: impl FnOnce(&mut Command)) -> Service {
        let mut all = args.to_vec();
        all.push("--log-level=debug");
        Service::start_as_given(&all, change)
    }

    /// The same without an option for the log level.
    pub fn start_as_given(args: &[&str], change: impl FnOnce(&mut Command)) -> Service {
        let scratch = Scratch::new();
        let log = scratch.path("log");
        // A file: an abstract name is not seen from other network namespaces. Everybody may write
        // to it, as a role may have given up root by then.
        let notify = scratch.path("notify");
        let ready = UnixDatagram::bind(&notify).unwrap();
        std::fs::set_permissions(&notify, Permissions::from_mode(0o777)).unwrap();
        ready.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = Command::new(UDPFERRY);
        command.args(args).arg("--log-file").arg(&log);
        command.env("NOTIFY_SOCKET", &notify).stdin(Stdio::null());
        change(&mut command);
        let child = command.spawn().unwrap();
        let service = Service { child: Some(child), ready, log, _scratch: scratch };
        service.await_notification("READY=1");
        service
    }

    /// Waits for a message to the service manager that begins so.
    pub fn await_notification(&self, beginning: &str) -> String {
        let mut bytes = [0; 1024];
        loop {
            let len = self.ready.recv(&mut bytes).expect("the service manager was told nothing");
            let message = String::from_utf8_lossy(&bytes[..len]).into_owned();
            if message.starts_with(beginning) {
                return message;
            }
        }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().unwrap().id()).unwrap()
    }

    /// Sends a signal by its number.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// How it ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let child = self.child.as_mut().unwrap();
        let ended = await_some(|| child.try_wait().unwrap());
        ended.unwrap_or_else(|| panic!("it does not end:\n{}", self.log()))
    }

    /// SIGTERM, and how it ended, and how long that took.
    pub fn stop(mut self) -> (ExitStatus, Duration) {
        let begin = Instant::now();
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let status = self.child.take().unwrap().wait().unwrap();
        (status, begin.elapsed())
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Waits until a line of the log contains `text`, and returns that line.
    pub fn await_log(&self, text: &str) -> String {
        await_some(|| self.log().lines().find(|line| line.contains(text)).map(str::to_owned))
            .unwrap_or_else(|| panic!("no log line contains {text:?}:\n{}", self.log()))
    }

    /// A number from /proc/PID/status, such as `VmRSS` (KiB) or `Threads`.
    pub fn status(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(&format!("{key}:"))).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// How many descriptors are open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// CPU time used so far, user and system.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the service ---\n{}", self.log());
        }
    }
}

/// Asks again and again, yielding in between, until there is an answer or patience ends. For what
/// sends no event: a log file, /proc, a counter.
pub fn await_some<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() > deadline {
            return None;
        }
        // poll(2) on nothing: gives the processor away for a moment.
        nix::poll::poll(&mut [], nix::poll::PollTimeout::from(2u8)).unwrap();
    }
}

/// Times `attempt` against `limit`, up to three times. A machine that others use, too, stands still
/// now and then for longer than a program takes that stops as it should; what is too slow by itself
/// is so each time.
pub fn takes_less_than(limit: Duration, mut attempt: impl FnMut() -> Duration) {
    let mut all = Vec::new();
    while all.len() < 3 {
        let took = attempt();
        if took < limit {
            return;
        }
        all.push(took);
    }
    panic!("took {all:?}, not less than {limit:?}");
}

/// A datagram, once it comes: a wait with a deadline ends when the process is paused meanwhile.
pub fn recv_from(socket: &UdpSocket, bytes: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received,
        }
    }
}

/// The same without its source.
pub fn recv(socket: &UdpSocket, bytes: &mut [u8]) -> io::Result<usize> {
    recv_from(socket, bytes).map(|(len, _)| len)
}

/// A gateway on a free port of 127.0.0.1 that lets clients reach loopback, with its metrics.
pub struct Gateway {
    pub service: Service,
    pub address: SocketAddr,
    pub metrics: SocketAddr,
}

impl Gateway {
    pub fn start(args: &[&str]) -> Gateway {
        Gateway::start_with(args, |_| {})
    }

    pub fn start_with(args: &[&str], change: impl FnOnce(&mut Command)) -> Gateway {
        let mut all = vec!["--allow=127.0.0.0/8", "--allow=::1"];
        all.extend_from_slice(args);
        Gateway::start_strict(&all, change)
    }

    /// A gateway that refuses what the role refuses by default.
    pub fn start_strict(args: &[&str], change: impl FnOnce(&mut Command)) -> Gateway {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let metrics = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let listen = format!("--listen-addr={address}");
        let metrics_arg = format!("--metrics={metrics}");
        let mut all = vec!["udpgw", &listen, &metrics_arg];
        all.extend_from_slice(args);
        let service = Service::start_with(&all, change);
        Gateway { service, address, metrics }
    }

    pub fn connect(&self) -> Client<TcpStream> {
        Client::connect(self.address)
    }

    /// The value of a metric, by its full name with labels: `name{reason="idle"}`.
    pub fn metric(&self, name: &str) -> i64 {
        let page = http_get(self.metrics, "/metrics");
        let line = page.lines().find(|line| line.split(' ').next() == Some(name));
        let line = line.unwrap_or_else(|| panic!("no metric {name} in\n{page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until a metric has that value.
    pub fn await_metric(&self, name: &str, value: i64) {
        let reached = await_some(|| (self.metric(name) == value).then_some(()));
        assert!(reached.is_some(), "{name} is {}, not {value}", self.metric(name));
    }

    pub fn await_clients(&self, value: i64) {
        self.await_metric("udpferry_udpgw_clients", value);
    }

    pub fn await_flows(&self, value: i64) {
        self.await_metric("udpferry_udpgw_flows", value);
    }

    pub fn await_clients_closed(&self, reason: &str, value: i64) {
        let name = format!("udpferry_udpgw_clients_closed_total{{reason=\"{reason}\"}}");
        self.await_metric(&name, value);
    }

    /// Flows closed for that reason.
    pub fn flows_closed(&self, reason: &str) -> i64 {
        self.metric(&format!("udpferry_udpgw_flows_closed_total{{reason=\"{reason}\"}}"))
    }

    pub fn await_flows_closed(&self, reason: &str, value: i64) {
        let name = format!("udpferry_udpgw_flows_closed_total{{reason=\"{reason}\"}}");
        self.await_metric(&name, value);
    }

    /// Waits until the metric of that name has at least that value.
    pub fn await_at_least(&self, name: &str, value: i64) {
        let reached = await_some(|| (self.metric(name) >= value).then_some(()));
        assert!(reached.is_some(), "{name} is {}, less than {value}", self.metric(name));
    }

    /// Datagrams dropped for that reason.
    pub fn dropped(&self, reason: &str) -> i64 {
        self.metric(&format!("udpferry_udpgw_datagrams_dropped_total{{reason=\"{reason}\"}}"))
    }

    pub fn await_dropped(&self, reason: &str, value: i64) {
        let name = format!("udpferry_udpgw_datagrams_dropped_total{{reason=\"{reason}\"}}");
        self.await_metric(&name, value);
    }
}

/// The body of an HTTP answer.
pub fn http_get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// A datagram from the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub conid: u16,
    pub address: SocketAddr,
    pub payload: Vec<u8>,
}

/// A udpgw client over any stream.
pub struct Client<S> {
    pub stream: S,
    received: Vec<u8>,
}

impl Client<TcpStream> {
    pub fn connect(address: SocketAddr) -> Client<TcpStream> {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client::over(stream)
    }

    /// Whether the gateway closes the connection (reading whatever comes before).
    pub fn is_closed(&mut self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return true,
                // A read with a timeout is not restarted after a stop (signal(7)).
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    eprintln!("not closed: {error}");
                    return false;
                }
            }
        }
    }

    /// The client's own address.
    pub fn address(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }

    /// The next datagram, unless none comes within that time.
    pub fn receive_within(&mut self, time: Duration) -> Option<Reply> {
        self.stream.set_read_timeout(Some(time)).unwrap();
        let result = self.try_receive();
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            result => Some(result.unwrap()),
        }
    }

    /// Whether nothing comes for that long.
    pub fn is_silent_for(&mut self, time: Duration) -> bool {
        assert!(self.received.is_empty());
        self.stream.set_read_timeout(Some(time)).unwrap();
        let mut result = self.stream.read(&mut [0; 1]);
        // A machine that is stopped and goes on interrupts reads that have a time-out (signal(7)).
        while matches!(&result, Err(error) if error.kind() == io::ErrorKind::Interrupted) {
            result = self.stream.read(&mut [0; 1]);
        }
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl<S: Read + Write> Client<S> {
    pub fn over(stream: S) -> Client<S> {
        Client { stream, received: Vec::new() }
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn send(&mut self, conid: u16, address: SocketAddr, payload: &[u8]) {
        self.write(&frame(conid, address, payload));
    }

    pub fn send_dns(&mut self, conid: u16, address: SocketAddr, payload: &[u8]) {
        self.write(&flagged_frame(conid, address, payload, false, true));
    }

    pub fn send_rebind(&mut self, conid: u16, address: SocketAddr, payload: &[u8]) {
        self.write(&flagged_frame(conid, address, payload, true, false));
    }

    pub fn keepalive(&mut self) {
        self.write(&[3, 0, 1, 0, 0]);
    }

    /// The next datagram; panics when none comes.
    pub fn receive(&mut self) -> Reply {
        self.try_receive().expect("no answer")
    }

    pub fn try_receive(&mut self) -> io::Result<Reply> {
        loop {
            let mut frames = Frames::new(&self.received, udpgw::BYTE_ORDER, udpgw::BODY_LEN_MAX);
            if let Some(body) = frames.next() {
                let Ok(Message::Datagram(datagram)) = udpgw::parse(body.unwrap()) else {
                    panic!("the gateway sent no datagram");
                };
                assert!(!datagram.rebind && !datagram.dns, "flags in an answer");
                let reply = Reply {
                    conid: datagram.conid,
                    address: datagram.address,
                    payload: datagram.payload.to_vec(),
                };
                let rest = frames.unfinished().len();
                self.received.drain(..self.received.len() - rest);
                return Ok(reply);
            }
            let mut bytes = vec![0; 65_536];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => self.received.extend_from_slice(&bytes[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a datagram and expects it back.
    pub fn echo(&mut self, conid: u16, address: SocketAddr, payload: &[u8]) {
        self.send(conid, address, payload);
        let expected = Reply { conid, address, payload: payload.to_vec() };
        assert_eq!(self.receive(), expected);
    }
}

/// A datagram's frame without flags.
pub fn frame(conid: u16, address: SocketAddr, payload: &[u8]) -> Vec<u8> {
    flagged_frame(conid, address, payload, false, false)
}

pub fn flagged_frame(
    conid: u16,
    address: SocketAddr,
    payload: &[u8],
    rebind: bool,
    dns: bool,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let datagram = Datagram { conid, rebind, dns, address, payload };
    assert!(udpgw::write_frame(&mut bytes, &datagram));
    bytes
}

/// A UDP server that sends everything back; it also tells who asked. Ends with the test.
pub struct Echo {
    pub address: SocketAddr,
    stop: UdpSocket,
    thread: Option<std::thread::JoinHandle<()>>,
    sources: std::sync::mpsc::Receiver<SocketAddr>,
}

const STOP_ECHO: &[u8] = b"udpferry test: stop the echo server";

impl Echo {
    pub fn start() -> Echo {
        Echo::on("127.0.0.1:0")
    }

    pub fn on(address: &str) -> Echo {
        let socket = UdpSocket::bind(address).unwrap();
        // Several of the largest datagrams at once are more than the default holds.
        socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20).unwrap();
        let address = socket.local_addr().unwrap();
        let stop = UdpSocket::bind(SocketAddr::new(address.ip(), 0)).unwrap();
        let (tell, sources) = std::sync::mpsc::channel();
        #[allow(clippy::disallowed_methods)] // A test's own thread, joined on drop.
        let thread = std::thread::spawn(move || {
            let mut bytes = vec![0; 65_536];
            loop {
                let Ok((len, source)) = socket.recv_from(&mut bytes) else { continue };
                if &bytes[..len] == STOP_ECHO {
                    return;
                }
                let _ = tell.send(source);
                let _ = socket.send_to(&bytes[..len], source);
            }
        });
        Echo { address, stop, thread: Some(thread), sources }
    }

    /// Where the next datagram came from.
    pub fn source(&self) -> SocketAddr {
        self.sources.recv_timeout(PATIENCE).expect("the echo server got nothing")
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A full receive buffer drops this datagram like any other.
            let _ = await_some(|| {
                let _ = self.stop.send_to(STOP_ECHO, self.address);
                thread.is_finished().then_some(())
            });
            let _ = thread.join();
        }
    }
}

/// A plain UDP socket of the test's own, as a remote that answers when the test says so.
pub fn remote() -> (UdpSocket, SocketAddr) {
    remote_on("127.0.0.1:0")
}

pub fn remote_on(address: &str) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// The next datagram at a remote, and where it came from.
pub fn receive_from(remote: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut bytes = vec![0; 65_536];
    let (len, source) = recv_from(remote, &mut bytes).expect("the remote got nothing");
    bytes.truncate(len);
    (bytes, source)
}

/// Runs the binary to its end.
pub fn run(args: &[&str]) -> std::process::Output {
    Command::new(UDPFERRY).args(args).stdin(Stdio::null()).output().unwrap()
}
