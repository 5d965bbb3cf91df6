//! The time from the start of a member of a room until it has met another one, which waits there.

use super::clock::Clock;
use super::{Failure, failed};
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

/// What a member says when it has met another.
const MET: &str = " is here";

pub(crate) struct Workload {
    /// A shell's words for the one that comes, again and again, and for the one that waits.
    pub(crate) near: String,
    pub(crate) far: String,
    pub(crate) times: usize,
}

/// It ends with the workload.
struct Waiting(Child);

impl Drop for Waiting {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(command: &str, stderr: Stdio) -> io::Result<Child> {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec {command}")]);
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(stderr).spawn()
}

/// Starts a member that says one line, and so leaves when that was delivered. Returns when it has met
/// the other one, in nanoseconds.
fn connect(command: &str, clock: &Clock) -> io::Result<u64> {
    let begin = clock.now_ns();
    let mut member = start(command, Stdio::piped())?;
    if let Some(mut input) = member.stdin.take() {
        input.write_all(b"here\n")?;
    }
    let said = member.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let mut met = None;
    // To the end, so that it is not held up by what nobody reads.
    for line in BufReader::new(said).lines() {
        if line?.contains(MET) {
            met.get_or_insert(clock.now_ns() - begin);
        }
    }
    let status = member.wait()?;
    met.filter(|_| status.success()).ok_or_else(|| io::Error::other("it has met nobody"))
}

/// Runs the workload and prints what came of it, as one JSON object.
pub(crate) fn run(workload: &Workload) -> Result<(), Failure> {
    let clock = Clock::start();
    let far = start(&workload.far, Stdio::null()).map_err(failed("cannot start a side"))?;
    let _far = Waiting(far);
    // The first one waits for the other side's start, too.
    let connects = (0..=workload.times).map(|_| connect(&workload.near, &clock));
    let times: io::Result<Vec<u64>> = connects.collect();
    let mut times = times.map_err(failed("cannot connect"))?.split_off(1);
    times.sort_unstable();
    let ms = |place: usize| times.get(place).map_or(0, |ns| ns / 1_000_000);
    println!(
        "{{\"connects\": {}, \"p50_ms\": {}, \"max_ms\": {}}}",
        times.len(),
        ms(times.len() / 2),
        ms(times.len().saturating_sub(1)),
    );
    Ok(())
}
