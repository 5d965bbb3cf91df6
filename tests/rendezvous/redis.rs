//! A Redis of the test's own.

use crate::support::programs::{Process, program};
use crate::support::{Scratch, await_some, free_port};
use nix::sys::signal::Signal;
use redis::{Cmd, Connection, FromRedisValue};
use std::process::Command;

pub(crate) struct Redis {
    process: Option<Process>,
    pub(crate) port: u16,
    args: Vec<(String, String)>,
    scratch: Scratch,
}

impl Redis {
    /// On a free port, in memory alone.
    pub(crate) fn start() -> Redis {
        Redis::start_with(&[])
    }

    pub(crate) fn start_with(args: &[(&str, &str)]) -> Redis {
        let mut redis = Redis::not_started();
        let owned = |(option, value): &(&str, &str)| ((*option).to_owned(), (*value).to_owned());
        redis.args = args.iter().map(owned).collect();
        redis.start_again();
        redis
    }

    /// One that is to come.
    pub(crate) fn not_started() -> Redis {
        Redis { process: None, port: free_port(), args: Vec::new(), scratch: Scratch::new() }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The option for a server.
    pub(crate) fn option(&self) -> String {
        format!("--registry={}", self.url())
    }

    pub(crate) fn start_again(&mut self) {
        let mut command = Command::new(program("redis-server"));
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no", "--dir"]).arg(self.scratch.path(""));
        for (option, value) in &self.args {
            command.arg(option).arg(value);
        }
        self.process = Some(Process::start(command));
        let listens = || std::net::TcpStream::connect(("127.0.0.1", self.port)).ok();
        await_some(listens).expect("Redis does not start");
    }

    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.as_ref().unwrap().signal(signal);
    }

    pub(crate) fn connection(&self) -> Connection {
        redis::Client::open(self.url()).unwrap().get_connection().unwrap()
    }

    pub(crate) fn ask<T: FromRedisValue>(&self, command: &Cmd) -> T {
        command.query(&mut self.connection()).unwrap()
    }
}
