//! Resource limits of the process.

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// Raises the soft limit of open files to the hard limit, and returns the soft limit before and
/// now, in descriptors. When the system refuses, the limit stays as it is, and the log says so:
/// a low limit means fewer clients, not a failed start. `(0, 0)` when the limit cannot be read.
pub fn raise_open_files() -> (u64, u64) {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            log::warn!("cannot read the limit of open files: {error}");
            return (0, 0);
        }
    };
    if soft >= hard {
        return (widen(soft), widen(soft));
    }
    // Refused when fs.nr_open was lowered below the hard limit (kernel/sys.c, do_prlimit).
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => (widen(soft), widen(hard)),
        Err(error) => {
            log::warn!("cannot raise the limit of open files from {soft} to {hard}: {error}");
            (widen(soft), widen(soft))
        }
    }
}

// `rlim_t` has 32 bits on some targets.
#[allow(clippy::useless_conversion)]
fn widen(limit: rlim_t) -> u64 {
    u64::from(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raises_soft_to_hard_and_then_rests() {
        // In a process of its own: the tests that run beside this one need their descriptors.
        if std::env::var_os("UDPFERRY_TEST_CHILD").is_some() {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
            assert_eq!(raise_open_files(), (64, widen(hard)));
            assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
            assert_eq!(raise_open_files(), (widen(hard), widen(hard)));
            eprintln!("raised");
            return;
        }
        let test = "runtime::limits::tests::raises_soft_to_hard_and_then_rests";
        let output = std::process::Command::new("sh")
            .args(["-c", "ulimit -S -n 64; exec \"$@\"", "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", test])
            .env("UDPFERRY_TEST_CHILD", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("raised"), "{output:?}");
    }
}
