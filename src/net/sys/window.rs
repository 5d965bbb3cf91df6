//! The size of a terminal's window.

use std::os::fd::{AsFd, AsRawFd as _};

/// Columns of the terminal that `fd` is; `None` if it is none, or one that does not know.
pub fn columns(fd: impl AsFd) -> Option<u16> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open for the call, and TIOCGWINSZ writes one `winsize` to the
    // pointer (ioctl_tty(2)), which is one of ours.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_col > 0).then_some(size.ws_col)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_terminal_has_no_columns() {
        assert_eq!(columns(std::fs::File::open("/dev/null").unwrap()), None);
    }
}
