//! From the devices to the sockets.

use super::Link;
use std::io;

pub(super) fn run(mut link: Link) -> io::Result<()> {
    loop {
        link.events.wait(None)?;
        while let Some(_) = link.events.next_ready() {
            for _ in link.orders.drain() {}
            if link.orders.is_closed() {
                return Ok(());
            }
        }
    }
}
