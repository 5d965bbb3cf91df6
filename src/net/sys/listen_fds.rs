//! Descriptors inherited from the service manager, by the protocol of `sd_listen_fds(3)`.

use std::env;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// `SD_LISTEN_FDS_START` in systemd/sd-daemon.h: the descriptors follow standard error.
const FIRST: RawFd = 3;

/// A descriptor that the service manager opened for us.
#[derive(Debug)]
pub struct Inherited {
    /// `FileDescriptorName=` of the socket unit; `None` when the manager gave no names.
    pub name: Option<String>,
    /// The descriptor, closed on exec from now on.
    pub fd: OwnedFd,
}

/// Takes the inherited descriptors; none when there are none or when they are another process's
/// (`LISTEN_PID`). Only the first call in a process can return any, since it takes them over.
///
/// The environment is left as it is, because changing it is unsound once threads exist: a child
/// process sees the variables but not its own pid in `LISTEN_PID`, and the descriptors close when
/// it is started.
///
/// Errors: `InvalidInput` when a variable makes no sense or the names are not as many as the
/// descriptors; the system's error, with the number, when a descriptor is not open.
pub fn take() -> io::Result<Vec<Inherited>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let variable = |name| env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let names = announced(
        variable("LISTEN_PID").as_deref(),
        variable("LISTEN_FDS").as_deref(),
        variable("LISTEN_FDNAMES").as_deref(),
        std::process::id(),
    )?;
    // All are checked before the first is owned, so that an error closes none of them.
    for (fd, _) in (FIRST..).zip(&names) {
        close_on_exec(fd).map_err(|error| {
            io::Error::new(error.kind(), format!("inherited descriptor {fd}: {error}"))
        })?;
    }
    let inherited = (FIRST..).zip(names).map(|(fd, name)| {
        // SAFETY: `fd` is open, as was just checked. LISTEN_PID says that the service manager
        // opened it for this very process, so nothing here has opened or owns it, and `TAKEN`
        // lets this run once.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Inherited { name, fd }
    });
    Ok(inherited.collect())
}

/// One name, or `None`, for each announced descriptor.
fn announced(
    pid: Option<&str>,
    fds: Option<&str>,
    names: Option<&str>,
    own_pid: u32,
) -> io::Result<Vec<Option<String>>> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
    let (Some(pid), Some(fds)) = (pid, fds) else {
        return Ok(Vec::new());
    };
    let pid: u32 = pid.parse().map_err(|_| invalid(format!("LISTEN_PID is not a pid: {pid}")))?;
    if pid != own_pid {
        return Ok(Vec::new());
    }
    // 65,536: far more than any unit has; a bound, so that the variable sizes no allocation.
    let count: usize = fds
        .parse()
        .ok()
        .filter(|count| (1..=65_536).contains(count))
        .ok_or_else(|| invalid(format!("LISTEN_FDS is not a number of descriptors: {fds}")))?;
    let Some(names) = names else {
        return Ok(vec![None; count]);
    };
    let names: Vec<_> = names.split(':').map(|name| Some(name.to_owned())).collect();
    if names.len() == count {
        Ok(names)
    } else {
        Err(invalid(format!("LISTEN_FDNAMES has {} names for {count} descriptors", names.len())))
    }
}

fn close_on_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: F_GETFD takes no pointer and fails with EBADF on a number that is not open.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_SETFD takes an integer and changes nothing but this descriptor's flags.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, flags | libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsRawFd as _;
    use std::process::{Command, Stdio};

    use super::*;

    fn parse(pid: &str, fds: &str, names: Option<&str>) -> io::Result<Vec<Option<String>>> {
        announced(Some(pid), Some(fds), names, 77)
    }

    #[test]
    fn reads_the_announcement() {
        assert_eq!(parse("77", "2", None).unwrap(), [None, None]);
        let named = parse("77", "2", Some("dns:")).unwrap();
        assert_eq!(named, [Some("dns".to_owned()), Some(String::new())]);
        assert!(parse("78", "2", None).unwrap().is_empty());
        assert!(announced(None, Some("2"), None, 77).unwrap().is_empty());
        assert!(announced(Some("77"), None, None, 77).unwrap().is_empty());
    }

    #[test]
    fn refuses_nonsense() {
        for (pid, fds, names) in [
            ("x", "1", None),
            ("", "1", None),
            ("77", "0", None),
            ("77", "-1", None),
            ("77", "65537", None),
            ("77", "99999999999999999999", None),
            ("77", "2", Some("one")),
            ("77", "1", Some("one:two")),
        ] {
            let error = parse(pid, fds, names).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{pid} {fds} {names:?}");
        }
    }

    /// Runs `test` again with `listener` as descriptor 3 and `udp` as 4. The shell sets
    /// `LISTEN_PID`: only a process knows its pid, and exec keeps it.
    fn rerun(test: &str, fds: &str, listener: &TcpListener, udp: &UdpSocket) -> String {
        let script = "exec 3<&0 4>&1 1>&2 5>&-; export LISTEN_PID=$$; exec \"$@\"";
        let output = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(env::current_exe().unwrap())
            .args(["--exact", "--nocapture", &format!("net::sys::listen_fds::tests::{test}")])
            .env("LISTEN_FDS", fds)
            .env("LISTEN_FDNAMES", vec!["n"; fds.parse().unwrap()].join(":"))
            .env("UDPFERRY_TEST_CHILD", "1")
            .stdin(Stdio::from(OwnedFd::from(listener.try_clone().unwrap())))
            .stdout(Stdio::from(OwnedFd::from(udp.try_clone().unwrap())))
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        text
    }

    #[test]
    fn takes_what_the_manager_opened_once() {
        let test = "takes_what_the_manager_opened_once";
        if env::var_os("UDPFERRY_TEST_CHILD").is_some() {
            let inherited = take().unwrap();
            for one in &inherited {
                // SAFETY: F_GETFD takes no pointer.
                let flags = unsafe { libc::fcntl(one.fd.as_raw_fd(), libc::F_GETFD) };
                let address = socket2::SockRef::from(&one.fd).local_addr().unwrap();
                eprintln!(
                    "took {} {:?} {flags} {}",
                    one.fd.as_raw_fd(),
                    one.name,
                    address.as_socket().unwrap()
                );
            }
            eprintln!("again {}", take().unwrap().len());
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let text = rerun(test, "2", &listener, &udp);
        let tcp_address = listener.local_addr().unwrap();
        let udp_address = udp.local_addr().unwrap();
        let name = Some("n");
        for line in [
            format!("took 3 {name:?} {} {tcp_address}\n", libc::FD_CLOEXEC),
            format!("took 4 {name:?} {} {udp_address}\n", libc::FD_CLOEXEC),
            "again 0\n".to_owned(),
        ] {
            assert!(text.contains(&line), "{line}{text}");
        }
    }

    #[test]
    fn names_the_descriptor_that_is_not_open() {
        let test = "names_the_descriptor_that_is_not_open";
        if env::var_os("UDPFERRY_TEST_CHILD").is_some() {
            eprintln!("refused {}", take().unwrap_err());
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        // Descriptors far above those that a test process has open.
        let text = rerun(test, "400", &listener, &udp);
        assert!(text.contains("refused inherited descriptor "), "{text}");
    }
}
