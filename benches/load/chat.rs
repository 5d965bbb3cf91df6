//! Lines of chat there and back, one at a time: into the near program, out of the far one, back into
//! it, and out of the near one. Without programs, through `cat` twice: what the pipes cost.

use super::clock::Clock;
use super::histogram::Histogram;
use super::process::{CpuTime, Size};
use super::{Failure, failed};
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Of a line, without its end: a sentence.
const LINE_LEN: usize = 64;

pub(crate) struct Workload {
    /// A shell's words for each side; of one without the other `cat` is the other.
    pub(crate) near: Option<String>,
    pub(crate) far: Option<String>,
    /// From the first line that has come back.
    pub(crate) warm_up: Duration,
    pub(crate) duration: Duration,
}

struct Side {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Drop for Side {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Side {
    fn start(command: Option<&str>) -> io::Result<Side> {
        // `exec`: the process that is measured is the program, not the shell.
        let command = format!("exec {}", command.unwrap_or("cat"));
        let mut child = Command::new("sh")
            .args(["-c", &command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        Ok(Side { child, input, output: BufReader::new(output) })
    }
}

/// Writes a line into one program and reads one out of another; whether it is the same.
fn carries(
    input: &mut ChildStdin,
    output: &mut BufReader<ChildStdout>,
    line: &str,
) -> io::Result<bool> {
    input.write_all(line.as_bytes())?;
    let mut heard = String::new();
    if output.read_line(&mut heard)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(heard == line)
}

/// Runs the workload and prints what came of it, as one JSON object.
pub(crate) fn run(workload: &Workload) -> Result<(), Failure> {
    let side = |command: &Option<String>| {
        Side::start(command.as_deref()).map_err(failed("cannot start a side"))
    };
    let is_direct = workload.near.is_none() && workload.far.is_none();
    let (mut near, mut far) = (side(&workload.near)?, side(&workload.far)?);
    let clock = Clock::start();
    let mut number = 0_u64;
    let mut there_and_back = |near: &mut Side, far: &mut Side| -> io::Result<(u64, bool)> {
        number += 1;
        let line = format!("{number:0LINE_LEN$}\n");
        let begin = clock.now_ns();
        let is_same = if is_direct {
            carries(&mut near.input, &mut near.output, &line)?
                && carries(&mut far.input, &mut far.output, &line)?
        } else {
            carries(&mut near.input, &mut far.output, &line)?
                && carries(&mut far.input, &mut near.output, &line)?
        };
        Ok((clock.now_ns() - begin, is_same))
    };
    let cannot = || failed("a line did not come back");
    // The first one waits until both have met.
    there_and_back(&mut near, &mut far).map_err(cannot())?;
    let until = |duration: Duration| {
        clock.now_ns() + u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
    };
    let end = until(workload.warm_up);
    while clock.now_ns() < end {
        there_and_back(&mut near, &mut far).map_err(cannot())?;
    }
    let pids = [near.child.id(), far.child.id()];
    let before = pids.map(|pid| CpuTime::of(&[pid]));
    let (start, end) = (clock.now_ns(), until(workload.duration));
    let (mut round_trips, mut corrupt, mut times) = (0_u64, 0_u64, Histogram::new());
    while clock.now_ns() < end {
        let (ns, is_same) = there_and_back(&mut near, &mut far).map_err(cannot())?;
        round_trips += 1;
        corrupt += u64::from(!is_same);
        times.record(ns);
    }
    let seconds = milli(clock.now_ns() - start) / 1e6;
    let after = pids.map(|pid| CpuTime::of(&[pid]));
    let cpu =
        |side: usize| milli(after[side].ns_since(&before[side])) / milli(round_trips.max(1) * 1000);
    let microseconds = |per_mille| milli(times.quantile_ns(per_mille));
    let (echo, tunnel, gateway) =
        if is_direct { (cpu(0) + cpu(1), 0.0, 0.0) } else { (0.0, cpu(0), cpu(1)) };
    println!(
        concat!(
            "{{\"seconds\": {:.3}, \"round_trips\": {}, \"rt_per_s\": {:.1}, ",
            "\"lost\": 0, \"unexpected\": 0, \"corrupt\": {}, \"echo_drops\": 0, ",
            "\"p50_us\": {:.2}, \"p99_us\": {:.2}, \"p999_us\": {:.2}, \"max_us\": {:.2}, ",
            "\"echo_cpu_us_per_rt\": {:.3}, \"gateway_cpu_us_per_rt\": {:.3}, ",
            "\"tunnel_cpu_us_per_rt\": {:.3}, \"gateway_rss_kib\": {}, \"tunnel_rss_kib\": {}}}"
        ),
        seconds,
        round_trips,
        milli(round_trips * 1000) / seconds,
        corrupt,
        microseconds(500),
        microseconds(990),
        microseconds(999),
        milli(times.max_ns()),
        echo,
        gateway,
        tunnel,
        if is_direct { 0 } else { Size::of(&[pids[1]]).rss_kib },
        if is_direct { 0 } else { Size::of(&[pids[0]]).rss_kib },
    );
    Ok(())
}

/// A thousandth of `value`, as a float: nanoseconds to microseconds.
#[allow(clippy::cast_precision_loss)] // Counters and times of one run stay far below 2^53.
fn milli(value: u64) -> f64 {
    value as f64 / 1e3
}
