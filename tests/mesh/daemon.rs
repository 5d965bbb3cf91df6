//! A daemon under test, and a controller of it that hides nothing.
#![allow(unreachable_pub)] // As tests/support, which this belongs to.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

use crate::support::{PATIENCE, Scratch, Service, UDPFERRY, await_some, http_get};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output};

/// Each test has a network namespace to itself: the seed's ports are free.
pub const DATA: u16 = 5000;
pub const CONTROL: u16 = 5001;
const METRICS: &str = "127.0.0.1:9100";

pub struct Daemon {
    pub service: Service,
    pub socket: PathBuf,
    pub scratch: Scratch,
    metrics: SocketAddr,
}

impl Daemon {
    pub fn start(args: &[&str]) -> Daemon {
        Daemon::start_in(Scratch::new(), args)
    }

    /// With what is in that directory.
    pub fn start_in(scratch: Scratch, args: &[&str]) -> Daemon {
        let socket = scratch.path("control.sock");
        let metrics = format!("--metrics={METRICS}");
        let mut all = vec!["mesh", "--plaintext", &metrics, "--control-socket"];
        let shown = socket.to_str().unwrap().to_owned();
        all.push(&shown);
        all.extend_from_slice(args);
        let metrics = METRICS.parse().unwrap();
        Daemon { service: Service::start(&all), socket, scratch, metrics }
    }

    /// Stops it, and starts another one on the same files.
    pub fn restart(self, args: &[&str]) -> Daemon {
        let (status, _) = self.service.stop();
        assert!(status.success());
        Daemon::start_in(self.scratch, args)
    }

    pub fn controller(&self) -> Controller {
        Controller::connect(&self.socket)
    }

    /// The only answer to one request.
    pub fn ask(&self, request: Value) -> Value {
        self.controller().ask(request)
    }

    /// Every tunnel.
    pub fn list(&self) -> Vec<Value> {
        self.ask(json!({ "op": "list" }))["tunnel"].as_array().unwrap().clone()
    }

    pub fn names(&self) -> Vec<String> {
        self.list().iter().map(|tunnel| tunnel["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits until a field of a tunnel has that value.
    pub fn await_field(&self, name: &str, field: &str, value: &Value) {
        let look =
            || self.ask(json!({ "op": "get", "tunnel": [{ "name": name }] }))["tunnel"][0].clone();
        let found = await_some(|| (look()[field] == *value).then_some(()));
        assert!(found.is_some(), "{field} is not {value}: {}", look());
    }

    /// `udpferry meshctl ARGS` at this daemon's socket.
    pub fn meshctl(&self, args: &[&str]) -> Output {
        let mut command = Command::new(UDPFERRY);
        command.args(["meshctl", "--socket"]).arg(&self.socket).args(args);
        command.output().unwrap()
    }

    pub fn metric(&self, name: &str) -> i64 {
        let page = http_get(self.metrics, "/metrics");
        let line = page.lines().find(|line| line.split(' ').next() == Some(name));
        let line = line.unwrap_or_else(|| panic!("no metric {name} in\n{page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    pub fn await_metric(&self, name: &str, value: i64) {
        let reached = await_some(|| (self.metric(name) == value).then_some(()));
        assert!(reached.is_some(), "{name} is {}, not {value}", self.metric(name));
    }
}

/// A connection to the Unix socket.
pub struct Controller {
    stream: BufReader<UnixStream>,
    number: u64,
}

impl Controller {
    pub fn connect(path: &std::path::Path) -> Controller {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Controller { stream: BufReader::new(stream), number: 0 }
    }

    pub fn ask(&mut self, mut request: Value) -> Value {
        self.number += 1;
        request["id"] = self.number.into();
        self.send(&format!("{request}\n"));
        let answer = self.answer();
        assert_eq!(answer["id"], request["id"], "{answer}");
        answer
    }

    pub fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
    }

    pub fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// Says no more.
    pub fn end(&mut self) {
        self.stream.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// Whether the daemon has closed it.
    pub fn is_closed(&mut self) -> bool {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap_or(0) == 0
    }
}

/// A tunnel of the seed's form; different numbers do not clash.
pub fn tunnel(number: u8) -> Value {
    json!({
        "name": format!("t{number}"), "tunnelIP": format!("10.0.{number}.1"),
        "netmask": "255.255.255.252", "mtu": 1400, "remoteServer": format!("127.0.1.{number}"),
    })
}

/// So many tunnels, more than there are bytes.
pub fn many(count: u16) -> Vec<Value> {
    let numbered = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let mut tunnel = tunnel(low);
        tunnel["name"] = format!("t{number}").into();
        tunnel["tunnelIP"] = format!("10.{}.{low}.1", high + 1).into();
        tunnel["remoteServer"] = format!("127.{}.1.{low}", high + 1).into();
        tunnel
    };
    (0..count).map(numbered).collect()
}

pub fn add(tunnels: &[Value]) -> Value {
    json!({ "op": "add", "tunnel": tunnels })
}

pub fn del(name: &str) -> Value {
    json!({ "op": "del", "tunnel": [{ "name": name }] })
}

/// The refused field and why.
pub fn refused(answer: &Value) -> String {
    assert_eq!(answer["ok"], false, "{answer}");
    let error = &answer["error"];
    format!("{}: {}", error["field"].as_str().unwrap(), error["reason"].as_str().unwrap())
}

/// The interfaces of this network namespace; /sys may be that of another one.
pub fn devices() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/net/dev").unwrap();
    let names = table.lines().filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim().to_owned()).collect()
}

pub fn has_device(name: &str) -> bool {
    devices().iter().any(|device| device == name)
}

/// A remote of the test's own, on the data port of another loopback address.
pub fn remote(address: &str) -> UdpSocket {
    let address: SocketAddr = format!("{address}:{DATA}").parse().unwrap();
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}
