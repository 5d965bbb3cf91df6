//! What the service manager is told, by systemd's notification protocol (`sd_notify(3)`).
//!
//! Without `NOTIFY_SOCKET` in the environment every call does nothing. A failure is logged at
//! debug level and is never fatal: the service works whether or not its manager hears of it.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;

/// Says that the role serves (`READY=1`).
pub fn ready() {
    send(&NotifyState::Ready);
}

/// Says that the role is about to end (`STOPPING=1`).
pub fn stopping() {
    send(&NotifyState::Stopping);
}

/// Sets the line that `systemctl status` shows (`STATUS=`). Line breaks become spaces, because
/// the protocol would read the next line as another message.
pub fn status(text: &str) {
    send(&NotifyState::Status(&text.replace(['\n', '\r'], " ")));
}

/// Says that the main loop turns (`WATCHDOG=1`).
pub fn watchdog() {
    send(&NotifyState::Watchdog);
}

/// How often to call [`watchdog`]: half of the manager's limit, as `sd_watchdog_enabled(3)`
/// advises. `None` when the manager watches nothing, or another process (`WATCHDOG_PID`).
pub fn watchdog_interval() -> Option<Duration> {
    let limit = sd_notify::watchdog_enabled()?;
    Some(limit / 2).filter(|interval| !interval.is_zero())
}

fn send(state: &NotifyState<'_>) {
    if let Err(error) = try_send(state) {
        log::debug!("cannot notify the service manager of {state}: {error}");
    }
}

fn try_send(state: &NotifyState<'_>) -> io::Result<()> {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    // sd-notify 0.5 takes the variable for a file name always, but a leading `@` stands for the
    // zero byte of an abstract address.
    match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => send_abstract(name, &format!("{state}\n")),
        None => sd_notify::notify(std::slice::from_ref(state)),
    }
}

fn send_abstract(name: &[u8], message: &str) -> io::Result<()> {
    let address = SocketAddr::from_abstract_name(name)?;
    UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output, Stdio};

    use super::*;

    /// Runs one test of this file again in a process with another environment, because setting
    /// a variable in this one is unsafe. `$$` survives `exec`, so `prologue` knows the pid.
    fn rerun(test: &str, prologue: &str, variables: &[(&str, &str)]) -> Output {
        Command::new("sh")
            .args(["-c", &format!("{prologue} exec \"$@\""), "sh"])
            .arg(env::current_exe().unwrap())
            .args(["--exact", "--nocapture", &format!("runtime::notify::tests::{test}")])
            .env("UDPFERRY_TEST_CHILD", "1")
            .env_remove("WATCHDOG_PID")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn is_child() -> bool {
        env::var_os("UDPFERRY_TEST_CHILD").is_some()
    }

    fn assert_hears_all(socket: &UnixDatagram, test: &str, address: &str) {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let output = rerun(test, "", &[("NOTIFY_SOCKET", address)]);
        assert!(output.status.success(), "{output:?}");
        for expected in ["READY=1\n", "STATUS=3 clients READY=1\n", "WATCHDOG=1\n", "STOPPING=1\n"]
        {
            let mut buffer = [0; 256];
            let len = socket.recv(&mut buffer).unwrap();
            assert_eq!(std::str::from_utf8(&buffer[..len]).unwrap(), expected);
        }
    }

    fn say_all() {
        ready();
        status("3 clients\nREADY=1");
        watchdog();
        stopping();
    }

    #[test]
    fn an_abstract_socket_hears_all() {
        if is_child() {
            return say_all();
        }
        let name = format!("udpferry-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        assert_hears_all(&socket, "an_abstract_socket_hears_all", &format!("@{name}"));
    }

    #[test]
    fn a_socket_file_hears_all() {
        if is_child() {
            return say_all();
        }
        let path = env::temp_dir().join(format!("udpferry-notify-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).unwrap();
        assert_hears_all(&socket, "a_socket_file_hears_all", path.to_str().unwrap());
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_dead_socket_is_not_fatal() {
        if is_child() {
            assert!(try_send(&NotifyState::Ready).is_err());
            return say_all();
        }
        for address in ["@udpferry-nobody-listens", "/nonexistent/notify", "@", ""] {
            let output = rerun("a_dead_socket_is_not_fatal", "", &[("NOTIFY_SOCKET", address)]);
            assert!(output.status.success(), "{address}: {output:?}");
        }
    }

    #[test]
    fn the_watchdog_interval_is_half_the_limit() {
        if is_child() {
            eprintln!("interval {:?}", watchdog_interval());
            return;
        }
        let half = "interval Some(1.5s)";
        for (usec, prologue, expected) in [
            ("3000000", "WATCHDOG_PID=$$; export WATCHDOG_PID;", half),
            ("3000000", "", half),
            ("3000000", "WATCHDOG_PID=1; export WATCHDOG_PID;", "interval None"),
            ("0", "WATCHDOG_PID=$$; export WATCHDOG_PID;", "interval None"),
            ("soon", "", "interval None"),
        ] {
            let output = rerun(
                "the_watchdog_interval_is_half_the_limit",
                prologue,
                &[("WATCHDOG_USEC", usec)],
            );
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(text.contains(expected), "{usec} {prologue}: {output:?}");
        }
    }
}
