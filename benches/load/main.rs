//! The tools behind `scripts/bench`: an echo server, a load generator, a flood, idle clients.

#![allow(unreachable_pub)] // A program, not a library.
#![allow(clippy::print_stdout, clippy::print_stderr)] // Printing figures is what it is for.

mod chat;
mod clock;
mod connect;
mod direct;
mod echo;
mod flood;
mod gateway;
mod histogram;
mod idle;
mod link;
mod load;
mod naive;
mod process;
mod stun;
mod window;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use pico_args::Arguments;
use std::fmt::{self, Display};
use std::io::{self, Read};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

const USAGE: &str = "\
Tools of scripts/bench, which see. All addresses are ADDR:PORT.

load echo ADDR [--gro]
    A UDP echo server. Prints the bound address; serves until stdin ends or SIGTERM.
    --gro: with UDP_GRO and UDP_SEGMENT.
load load --echo ADDR [--gateway ADDR | --tunnel ADDR] [--clients N] [--flows N] [--window N] [--payload BYTES]
           [--seconds S] [--warm-up S]
           [--gateway-pids PID,PID] [--tunnel-pids PID,PID] [--echo-pids PID,PID]
    Keeps N clients x N flows x N datagrams in flight, verifies each answer, prints JSON.
    --gateway: through a udpgw gateway; --tunnel: through a tunnel whose near end takes plain UDP;
    else it talks to the echo server itself. CPU times and sizes are those of the pids.
load flood [--sink ADDR] --to ADDR [--payload BYTES] [--seconds S]
    Sends to ADDR as fast as it can, and counts what arrives at the sink. Prints JSON.
load sink ADDR
    A sink for a flood from elsewhere. Prints the bound address; counts until stdin ends, prints JSON.
load stun --to ADDR [--ports N] [--window N] [--seconds S] [--warm-up S] [--server-pids PID,PID] [--echoed]
    Keeps N STUN Binding requests in flight from each of N ports, verifies each answer, prints JSON.
    --echoed: the server is a bare echo server, and each answer the request.
load chat [--near COMMAND --far COMMAND] [--seconds S] [--warm-up S]
    Carries lines into one program, out of the other, and back, one at a time. Prints JSON. Without
    programs: through cat on both sides.
load connect --near COMMAND --far COMMAND [--times N]
    Starts near N times, once more before, and each time waits until it has met far. Prints JSON.
load naive-tunnel --tun NAME --local ADDR --remote ADDR
    The plainest tunnel: a packet a read and a datagram a send, and back. Its device is set up by others.
load idle ADDR N --echo ADDR
    Opens N udpgw clients, carries one datagram through each, prints `ready`, and holds them until
    stdin ends.
";

/// Why a tool could not do its work.
pub(crate) enum Failure {
    /// An argument is wrong or missing.
    Usage(String),
    /// A system call failed: what was done, and the cause.
    System(String, io::Error),
}

impl Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(what) => write!(out, "{what}"),
            Failure::System(what, cause) => write!(out, "{what}: {cause}"),
        }
    }
}

impl From<pico_args::Error> for Failure {
    fn from(error: pico_args::Error) -> Failure {
        Failure::Usage(error.to_string())
    }
}

/// For `map_err`: says what was being done.
pub(crate) fn failed(what: impl Display) -> impl FnOnce(io::Error) -> Failure {
    move |cause| Failure::System(what.to_string(), cause)
}

/// Calls `handle` whenever something waits on `socket`, which it must drain, until stdin ends. That is
/// seen where stdin can end while we wait (a pipe or a terminal); what epoll refuses (a file,
/// /dev/null) is never reported: then only a signal ends us.
pub(crate) fn serve(
    socket: UdpSocket,
    mut handle: impl FnMut(&mio::net::UdpSocket) -> io::Result<()>,
) -> io::Result<()> {
    const SOCKET: Token = Token(0);
    const STDIN: Token = Token(1);
    let mut socket = mio::net::UdpSocket::from_std(socket);
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(4);
    poll.registry().register(&mut socket, SOCKET, Interest::READABLE)?;
    let stdin = io::stdin().as_raw_fd();
    let _ = poll.registry().register(&mut SourceFd(&stdin), STDIN, Interest::READABLE);
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        }
        handle(&socket)?;
        if events.iter().any(|event| event.token() == STDIN) && stdin_ended() {
            return Ok(());
        }
    }
}

/// Reads what stdin was reported for; true at its end.
fn stdin_ended() -> bool {
    !matches!(io::stdin().lock().read(&mut [0; 1024]), Ok(1..))
}

fn main() -> ExitCode {
    match run(Arguments::from_env()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(if matches!(failure, Failure::Usage(_)) { 2 } else { 1 })
        }
    }
}

fn run(mut args: Arguments) -> Result<(), Failure> {
    // What `cargo bench` passes to every bench; alone it asks for nothing that we could do.
    args.contains("--bench");
    let Some(tool) = args.subcommand()? else {
        print!("{USAGE}");
        return Ok(());
    };
    match tool.as_str() {
        "echo" => {
            let merge = args.contains("--gro");
            let address = args.free_from_str()?;
            nothing_left(args)?;
            echo::run(address, merge)
        }
        "load" => {
            let workload = workload(&mut args)?;
            nothing_left(args)?;
            load::run(&workload)
        }
        "flood" => {
            let sink = args.opt_value_from_str("--sink")?;
            let to = args.value_from_str("--to")?;
            let payload_len = or(&mut args, "--payload", 1200)?;
            let duration = seconds(or(&mut args, "--seconds", 3.0)?)?;
            nothing_left(args)?;
            flood::run(sink, to, payload_len, duration)
        }
        "sink" => {
            let address = args.free_from_str()?;
            nothing_left(args)?;
            flood::sink(address)
        }
        "stun" => {
            let workload = stun::Workload {
                server: args.value_from_str("--to")?,
                ports: or(&mut args, "--ports", 64)?,
                window: or(&mut args, "--window", 16)?,
                warm_up: seconds(or(&mut args, "--warm-up", 0.5)?)?,
                duration: seconds(or(&mut args, "--seconds", 3.0)?)?,
                server_pids: pids(&mut args, "--server-pids")?,
                is_echoed: args.contains("--echoed"),
            };
            nothing_left(args)?;
            stun::run(&workload)
        }
        "chat" => {
            let workload = chat::Workload {
                near: args.opt_value_from_str("--near")?,
                far: args.opt_value_from_str("--far")?,
                warm_up: seconds(or(&mut args, "--warm-up", 0.5)?)?,
                duration: seconds(or(&mut args, "--seconds", 3.0)?)?,
            };
            nothing_left(args)?;
            chat::run(&workload)
        }
        "connect" => {
            let workload = connect::Workload {
                near: args.value_from_str("--near")?,
                far: args.value_from_str("--far")?,
                times: or(&mut args, "--times", 10)?,
            };
            nothing_left(args)?;
            connect::run(&workload)
        }
        "naive-tunnel" => {
            let name: String = args.value_from_str("--tun")?;
            let local = args.value_from_str("--local")?;
            let remote = args.value_from_str("--remote")?;
            nothing_left(args)?;
            naive::run(&name, local, remote)
        }
        "idle" => {
            let echo = args.value_from_str("--echo")?;
            let gateway: SocketAddr = args.free_from_str()?;
            let clients = args.free_from_str()?;
            nothing_left(args)?;
            idle::run(gateway, echo, clients)
        }
        other => Err(Failure::Usage(format!(
            "no tool {other}: echo, load, flood, sink, stun, chat, connect, naive-tunnel or idle"
        ))),
    }
}

fn workload(args: &mut Arguments) -> Result<load::Workload, Failure> {
    Ok(load::Workload {
        echo: args.value_from_str("--echo")?,
        path: path(args)?,
        clients: or(args, "--clients", 1)?,
        flows: or(args, "--flows", 1)?,
        window: or(args, "--window", 1)?,
        payload_len: or(args, "--payload", 200)?,
        warm_up: seconds(or(args, "--warm-up", 0.5)?)?,
        duration: seconds(or(args, "--seconds", 3.0)?)?,
        gateway_pids: pids(args, "--gateway-pids")?,
        tunnel_pids: pids(args, "--tunnel-pids")?,
        echo_pids: pids(args, "--echo-pids")?,
    })
}

fn path(args: &mut Arguments) -> Result<load::Path, Failure> {
    let gateway = args.opt_value_from_str("--gateway")?;
    let tunnel = args.opt_value_from_str("--tunnel")?;
    match (gateway, tunnel) {
        (None, None) => Ok(load::Path::Direct),
        (Some(gateway), None) => Ok(load::Path::Gateway(gateway)),
        (None, Some(tunnel)) => Ok(load::Path::Tunnel(tunnel)),
        (Some(_), Some(_)) => Err(Failure::Usage("--gateway or --tunnel, not both".into())),
    }
}

fn or<T>(args: &mut Arguments, option: &'static str, default: T) -> Result<T, Failure>
where
    T: FromStr<Err: Display>,
{
    Ok(args.opt_value_from_str(option)?.unwrap_or(default))
}

fn seconds(value: f64) -> Result<Duration, Failure> {
    Duration::try_from_secs_f64(value)
        .map_err(|error| Failure::Usage(format!("{value} s: {error}")))
}

fn pids(args: &mut Arguments, option: &'static str) -> Result<Vec<u32>, Failure> {
    let list: Option<String> = args.opt_value_from_str(option)?;
    list.iter()
        .flat_map(|list| list.split(','))
        .map(|pid| pid.parse().map_err(|_| Failure::Usage(format!("{option}: {pid} is no pid"))))
        .collect()
}

fn nothing_left(args: Arguments) -> Result<(), Failure> {
    match args.finish().first() {
        None => Ok(()),
        Some(left) => Err(Failure::Usage(format!("unknown argument {}", left.to_string_lossy()))),
    }
}
