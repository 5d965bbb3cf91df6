//! Two hosts: this one, which is the test's own namespace and has the server, and `c` beyond an
//! Ethernet, which has the client.
//!
//! ```text
//!   c   eth0 192.0.2.2/24 ----------- 192.0.2.1/24 s0   (here)
//!            2001:db8::2/64           2001:db8::1/64
//! ```

use crate::support::kernel::run;
use crate::support::{Scratch, Service, await_some, free_port, http_get};
use std::net::SocketAddr;
use std::process::Command;

pub(crate) const SERVER: &str = "192.0.2.1";

/// The hosts, and a directory for each.
pub(crate) struct Hosts {
    scratch: Scratch,
    metrics: SocketAddr,
}

impl Hosts {
    /// Makes the other host and the Ethernet; the test must be in namespaces of its own.
    pub(crate) fn new() -> Hosts {
        let hosts = Hosts::alone();
        std::fs::create_dir_all("/run/netns").unwrap();
        // So that its name is nobody else's.
        run("mount", &["-t", "tmpfs", "none", "/run/netns"]);
        for line in [
            "netns add c",
            "link add s0 type veth peer name eth0 netns c",
            "addr add 192.0.2.1/24 dev s0",
            "addr add 2001:db8::1/64 dev s0 nodad",
            "link set s0 up",
            "-n c link set lo up",
            "-n c addr add 192.0.2.2/24 dev eth0",
            "-n c addr add 2001:db8::2/64 dev eth0 nodad",
            "-n c link set eth0 up",
        ] {
            run("ip", &line.split(' ').collect::<Vec<_>>());
        }
        hosts
    }

    /// This host alone, for clients made by hand.
    pub(crate) fn alone() -> Hosts {
        let scratch = Scratch::new();
        for name in ["server", "client", "state"] {
            std::fs::create_dir(scratch.path(name)).unwrap();
        }
        Hosts { scratch, metrics: ([127, 0, 0, 1], free_port()).into() }
    }

    /// A server here, with `10.0.0.2/24` and `fd00::2/64` inside.
    pub(crate) fn server(&self, args: &[&str]) -> Service {
        let (run_dir, state) = (self.directory("server"), self.directory("state"));
        let metrics = self.metrics.to_string();
        let own = [
            "vpn",
            "server",
            "--plaintext",
            "--address=10.0.0.2/24",
            "--address=fd00::2/64",
            "--runtime-dir",
            &run_dir,
            "--state-dir",
            &state,
            "--metrics",
            &metrics,
        ];
        Service::start(&[&own, args].concat())
    }

    /// A client on the other host.
    pub(crate) fn client(&self, args: &[&str]) -> Service {
        let run_dir = self.directory("client");
        let own = ["vpn", "client", "--plaintext", "--runtime-dir", &run_dir];
        Service::start_with(&[&own, args].concat(), on_c)
    }

    /// A client on the other host that is connected.
    pub(crate) fn connected(&self, args: &[&str]) -> Service {
        let client = self.client(args);
        client.await_log("connected to");
        client
    }

    pub(crate) fn directory(&self, name: &str) -> String {
        self.scratch.path(name).to_str().unwrap().to_owned()
    }

    /// A counter or gauge of the server.
    pub(crate) fn metric(&self, name: &str) -> i64 {
        let text = http_get(self.metrics, "/metrics");
        let line = text.lines().find(|line| line.rsplit_once(' ').is_some_and(|it| it.0 == name));
        let line = line.unwrap_or_else(|| panic!("no metric {name}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    pub(crate) fn await_metric(&self, name: &str, value: i64) {
        let mut last = None;
        await_some(|| {
            last = Some(self.metric(name));
            (last == Some(value)).then_some(())
        })
        .unwrap_or_else(|| panic!("{name} is {last:?}, not {value}"));
    }

    /// What `udpferry vpn WORDS` says of a tunnel, on this host.
    pub(crate) fn ask(&self, words: &[&str], name: &str) -> std::process::Output {
        let run_dir = self.directory(name);
        let args = [&["vpn"], words, &["--runtime-dir", &run_dir]].concat();
        crate::support::run(&args)
    }
}

/// Lets the command run on the other host.
pub(crate) fn on_c(command: &mut Command) {
    let mut there = Command::new("ip");
    there.args(["netns", "exec", "c"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            there.env(name, value);
        }
    }
    there.stdin(std::process::Stdio::null());
    *command = there;
}

/// Runs a program on the other host, which must succeed.
pub(crate) fn run_on_c(line: &str) -> String {
    let words = ["netns exec c ", line].concat();
    run("ip", &words.split(' ').collect::<Vec<_>>())
}

/// Whether so many pings come back, all of them. A process for each: once ping has had an answer it
/// waits hardly longer for the last one than it took.
pub(crate) fn pings(on_c: bool, count: usize, line: &str) -> bool {
    let (program, before): (&str, &[&str]) =
        if on_c { ("ip", &["netns", "exec", "c", "ping"]) } else { ("ping", &[]) };
    (0..count).all(|_| {
        let mut command = Command::new(program);
        command.args(before).args(["-q", "-W", "2", "-c", "1"]).args(line.split(' '));
        command.output().unwrap().status.success()
    })
}

/// Waits until a ping from the other host comes back.
pub(crate) fn await_ping(address: &str) {
    await_some(|| pings(true, 1, address).then_some(()))
        .unwrap_or_else(|| panic!("{address} is out of reach"));
}

/// A number of a status in JSON.
pub(crate) fn number(json: &str, name: &str) -> u64 {
    let after = json.split(&format!("\"{name}\":")).nth(1);
    let after = after.unwrap_or_else(|| panic!("no {name} in {json}"));
    let end = after.find(|sign: char| !sign.is_ascii_digit()).unwrap();
    after[..end].parse().unwrap()
}
