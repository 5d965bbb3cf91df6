//! What a process has used, from /proc (proc(5)).

use std::collections::BTreeMap;
use std::fs;

/// USER_HZ: what /proc/PID/stat counts in, on every Linux that runs today.
const NS_PER_TICK: u64 = 10_000_000;

/// The CPU time of some processes at one moment.
///
/// The time of each thread comes from /proc/PID/task/TID/schedstat: nanoseconds, at most one
/// scheduler tick behind. That file vanishes with its thread, so the ticks of /proc/PID/stat, which
/// keep what ended threads used, are read too.
#[derive(Default)]
pub(crate) struct CpuTime {
    threads_ns: BTreeMap<(u32, u32), u64>,
    ticks: u64,
}

impl CpuTime {
    pub(crate) fn of(pids: &[u32]) -> CpuTime {
        let mut time = CpuTime::default();
        for pid in pids {
            time.ticks += ticks(*pid).unwrap_or(0);
            for tid in numbers_in(&format!("/proc/{pid}/task")) {
                let path = format!("/proc/{pid}/task/{tid}/schedstat");
                let ns = fs::read_to_string(path)
                    .ok()
                    .and_then(|text| text.split_whitespace().next()?.parse().ok());
                if let Some(ns) = ns {
                    time.threads_ns.insert((*pid, tid), ns);
                }
            }
        }
        time
    }

    /// Nanoseconds used from `earlier` to `self`: exact when every thread of `earlier` still runs,
    /// else to 20 ms.
    pub(crate) fn ns_since(&self, earlier: &CpuTime) -> u64 {
        if earlier.threads_ns.is_empty()
            || earlier.threads_ns.keys().any(|thread| !self.threads_ns.contains_key(thread))
        {
            return self.ticks.saturating_sub(earlier.ticks) * NS_PER_TICK;
        }
        self.threads_ns
            .iter()
            .map(|(thread, ns)| ns - earlier.threads_ns.get(thread).copied().unwrap_or(0).min(*ns))
            .sum()
    }
}

/// Resident memory, threads and descriptors of some processes.
pub(crate) struct Size {
    pub(crate) rss_kib: u64,
    pub(crate) threads: u64,
    pub(crate) descriptors: usize,
}

impl Size {
    pub(crate) fn of(pids: &[u32]) -> Size {
        let field = |pid: u32, name: &str| -> u64 {
            fs::read_to_string(format!("/proc/{pid}/status"))
                .unwrap_or_default()
                .lines()
                .find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
                .unwrap_or(0)
        };
        Size {
            rss_kib: pids.iter().map(|pid| field(*pid, "VmRSS:")).sum(),
            threads: pids.iter().map(|pid| field(*pid, "Threads:")).sum(),
            descriptors: pids.iter().map(|pid| numbers_in(&format!("/proc/{pid}/fd")).len()).sum(),
        }
    }
}

/// Datagrams that UDP sockets on `port` have dropped for want of buffer space.
pub(crate) fn udp_drops(port: u16) -> u64 {
    let mut drops = 0;
    for table in ["/proc/net/udp", "/proc/net/udp6"] {
        for line in fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
            let mut columns = line.split_whitespace();
            let local_port = columns
                .nth(1)
                .and_then(|local| u16::from_str_radix(local.rsplit(':').next()?, 16).ok());
            let of_socket = columns.last().and_then(|last| last.parse::<u64>().ok());
            if local_port == Some(port) {
                drops += of_socket.unwrap_or(0);
            }
        }
    }
    drops
}

fn ticks(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold spaces and parentheses; utime and stime are the 12th and
    // 13th fields behind it.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn numbers_in(folder: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
