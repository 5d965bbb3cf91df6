//! A member in a pipe: what it is told, what it says, and what it counts.

use crate::support::{PATIENCE, Scratch, Service, await_some, free_port, http_get};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

/// The room of tests that do not say another.
pub(crate) const ROOM: &str = "attic:the secret of the attic";

pub(crate) struct Peer {
    pub(crate) service: Service,
    input: UnixStream,
    output: BufReader<UnixStream>,
    metrics: SocketAddr,
    scratch: Scratch,
}

impl Peer {
    /// A member of [`ROOM`], called `name`.
    pub(crate) fn start(server: SocketAddr, name: &str, args: &[&str]) -> Peer {
        let mut all = vec!["--room", ROOM];
        all.extend_from_slice(args);
        Peer::start_anywhere(server, name, &all)
    }

    /// One whose arguments say which room.
    pub(crate) fn start_anywhere(server: SocketAddr, name: &str, args: &[&str]) -> Peer {
        let metrics = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (server, metrics_arg) = (format!("--server={server}"), format!("--metrics={metrics}"));
        let mut all = vec!["peer", &server, &metrics_arg, "--name", name];
        all.extend_from_slice(args);
        // Sockets rather than pipes: they have time-outs.
        let (input, its_input) = UnixStream::pair().unwrap();
        let (output, its_output) = UnixStream::pair().unwrap();
        output.set_read_timeout(Some(PATIENCE)).unwrap();
        let scratch = Scratch::new();
        let errors = File::create(scratch.path("stderr")).unwrap();
        let service = Service::start_with(&all, |command| {
            command
                .stdin(Stdio::from(OwnedFd::from(its_input)))
                .stdout(Stdio::from(OwnedFd::from(its_output)))
                .stderr(errors);
        });
        Peer { service, input, output: BufReader::new(output), metrics, scratch }
    }

    /// Types bytes.
    pub(crate) fn type_in(&self, bytes: &[u8]) {
        (&self.input).write_all(bytes).unwrap();
    }

    pub(crate) fn say(&self, line: &str) {
        self.type_in(format!("{line}\n").as_bytes());
    }

    /// The end of its standard input.
    pub(crate) fn end_input(&self) {
        self.input.shutdown(Shutdown::Write).unwrap();
    }

    /// Nobody reads its standard output any more.
    pub(crate) fn end_output(&self) {
        self.output.get_ref().shutdown(Shutdown::Both).unwrap();
    }

    /// The next line on its standard output, without its end; `None` at the end.
    pub(crate) fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let len = self.output.read_line(&mut line).expect("no line came");
        (len > 0).then(|| line.strip_suffix('\n').unwrap().to_owned())
    }

    pub(crate) fn expect_line(&mut self, line: &str) {
        assert_eq!(self.line().as_deref(), Some(line));
    }

    /// All that it has said on standard error.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.scratch.path("stderr")).unwrap()
    }

    /// Waits for a notice with that text, and returns its line.
    pub(crate) fn await_notice(&self, text: &str) -> String {
        let find = || self.said().lines().find(|line| line.contains(text)).map(str::to_owned);
        await_some(find).unwrap_or_else(|| panic!("no notice has {text:?}:\n{}", self.said()))
    }

    /// Waits until the others are there.
    pub(crate) fn await_members(&self, names: &[&str]) {
        for name in names {
            self.await_notice(&format!("* {name} is here"));
        }
    }

    /// The same of a member that forwards: its notices are in its log.
    pub(crate) fn await_members_logged(&self, names: &[&str]) {
        for name in names {
            self.service.await_log(&format!(" info {name} is here"));
        }
        assert_eq!(self.said(), "");
    }

    /// Its end by itself: the exit code.
    pub(crate) fn exit_code(&mut self) -> i32 {
        self.service.wait().code().unwrap()
    }

    /// The value of a metric without `udpferry_peer_`, with its label if it has one.
    pub(crate) fn metric(&self, name: &str) -> i64 {
        let name = format!("udpferry_peer_{name}");
        let page = http_get(self.metrics, "/metrics");
        let line = page.lines().find(|line| line.split(' ').next() == Some(&name));
        let line = line.unwrap_or_else(|| panic!("no metric {name} in\n{page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    pub(crate) fn dropped(&self, reason: &str) -> i64 {
        self.metric(&format!("datagrams_dropped_total{{reason=\"{reason}\"}}"))
    }

    /// Waits until a metric is at least that high.
    pub(crate) fn await_metric(&self, name: &str, value: i64) {
        let reached = await_some(|| (self.metric(name) >= value).then_some(()));
        assert!(reached.is_some(), "{name} is {}, less than {value}", self.metric(name));
    }

    /// Where the server sees it.
    pub(crate) fn endpoint(&self) -> SocketAddr {
        let line = self.service.await_log("registered at ");
        let (_, rest) = line.split_once("seen as ").unwrap();
        rest.split_once(',').unwrap().0.parse().unwrap()
    }
}
