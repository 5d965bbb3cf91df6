//! What the main thread and the data plane's threads tell each other.

use super::counters::Counters;
use super::table::{DeviceId, SocketId, Table};
use crate::net::tun::TunDevice;
use crate::net::udp::UdpSocket;
use crate::runtime::queue::{self, NotSent, Receiver, Sender, Wake};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Reports that may wait for the main thread, half of them from strangers. More are dropped, the
/// newest, and counted: whoever has not been reported now sends again.
const REPORTS_MAX: usize = 1024;

/// Reports that the main thread hears in a turn: signals, timers and the operator have theirs.
pub const REPORTS_PER_TURN: usize = 256;

/// Bytes of the longest control datagram; any IPv6 path carries it.
pub const CONTROL_LEN_MAX: usize = 1232;

/// The main thread's word to the data plane.
#[derive(Debug, Clone)]
pub enum Order {
    /// Decide by this table from now on.
    Table(Arc<Table>),
    /// Receive from and send to this socket, under a number that is not in use. It is not connected,
    /// and stays the main thread's too, for sending.
    AddSocket(SocketId, Arc<UdpSocket>),
    /// Neither any more.
    RemoveSocket(SocketId),
    /// Read from and write to this device, under a number that is not in use.
    AddDevice(DeviceId, Arc<TunDevice>),
    /// Neither any more.
    RemoveDevice(DeviceId),
}

/// The data plane's word to the main thread.
#[derive(Debug)]
pub enum Report {
    /// A datagram whose first four bits are all ones: no packet, but a message of the role's own
    /// protocol, from anybody.
    Control {
        /// Where it came in.
        socket: SocketId,
        /// Who sent it.
        source: SocketAddr,
        /// Our address that it was sent to, if the socket tells.
        destination: Option<IpAddr>,
        /// At most [`CONTROL_LEN_MAX`].
        bytes: Box<[u8]>,
    },
    /// A packet from an endpoint that is no peer's, or from a peer with an inner source address that
    /// is not its own. It has been dropped. At most one report for a run of them.
    Stranger {
        /// Where it came in.
        socket: SocketId,
        /// Who sent it.
        source: SocketAddr,
        /// Our address that it was sent to, if the socket tells.
        destination: Option<IpAddr>,
        /// Whom the packet says it is from.
        inner_source: IpAddr,
        /// The packet, for who becomes a peer by it; empty if it is longer than
        /// [`CONTROL_LEN_MAX`].
        packet: Box<[u8]>,
    },
    /// The device is gone (`ip link del`), or cannot be watched. Nothing is read from it any more.
    DeviceGone {
        /// Which.
        device: DeviceId,
        /// The same: its number may have been given to another one meanwhile.
        source: Arc<TunDevice>,
        /// What the kernel said.
        error: io::Error,
    },
    /// The socket cannot be watched. Nothing is received from it any more.
    SocketGone {
        /// Which.
        socket: SocketId,
        /// What the kernel said.
        error: io::Error,
    },
    /// A thread has ended, though nobody asked it to: the process must end as well.
    ThreadGone {
        /// The thread's name.
        thread: String,
        /// Why, if not by a panic, which is in the log.
        error: Option<io::Error>,
    },
}

/// The threads' end of the queue of reports. Neither of the two ever waits for the main thread,
/// which may be waiting for them.
#[derive(Clone)]
pub(super) struct Reports {
    sender: Sender<Report>,
    counters: Arc<Counters>,
}

/// Whose datagram a report is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// A peer's, by its endpoint.
    Peer,
    /// Anybody's.
    Stranger,
}

/// Places behind `REPORTS_MAX`: a report of each thread, of which neither saw the other's, and the
/// end of each.
const PLACES_KEPT: usize = 4;

impl Reports {
    pub(super) fn queue(wake: &Wake, counters: &Arc<Counters>) -> (Reports, Receiver<Report>) {
        let (sender, receiver) = queue::bounded(REPORTS_MAX + PLACES_KEPT, wake);
        (Reports { sender, counters: Arc::clone(counters) }, receiver)
    }

    /// Tells the main thread, or returns false when it lags behind. What strangers send may fill
    /// half of the places: it shall not displace what peers have to say.
    pub(super) fn tell(&self, whose: Whose, report: impl FnOnce() -> Report) -> bool {
        let places = match whose {
            Whose::Peer => REPORTS_MAX,
            Whose::Stranger => REPORTS_MAX / 2,
        };
        let is_told = self.sender.waiting() < places && self.sender.send(report()).is_ok();
        if !is_told {
            self.counters.report_dropped();
        }
        is_told
    }

    /// Tells the main thread what it will not hear again, or returns it when it lags behind.
    pub(super) fn tell_once(&self, report: Report) -> Result<(), Report> {
        if self.sender.waiting() >= REPORTS_MAX {
            return Err(report);
        }
        match self.sender.send(report) {
            Err(NotSent::Full(report)) => Err(report),
            // Nobody listens any more.
            Err(NotSent::Closed(_)) | Ok(()) => Ok(()),
        }
    }

    /// Tells the main thread that a thread has ended.
    pub(super) fn tell_end(&self, thread: String, error: Option<io::Error>) {
        let sent = self.sender.send(Report::ThreadGone { thread, error });
        debug_assert!(!matches!(sent, Err(NotSent::Full(_))), "no room for a thread's end");
    }
}
