//! What goes out to members: through their tunnels, over their paths.

use super::counters::{Counters, DropReason};
use super::member::{Member, Via};
use super::outbox::Outbox;
use super::receive::Source;
use super::tunnel::{BUFFER_LEN_MIN, NotSent, OVERHEAD};
use crate::net::sys::mmsg::send::SendReport;
use crate::net::udp::UdpSocket;
use crate::wire::peer::{MESSAGE_HEADER_LEN, Message};
use crate::wire::rendezvous::MemberId;
use crate::wire::rendezvous::request::{Request, write_request};

impl Counters {
    /// What became of forwarded datagrams on their way to a local socket.
    pub(super) fn sent_locally(&self, report: &SendReport, socket: &UdpSocket) {
        self.taken_from_tunnel(report.sent, report.sent_bytes);
        self.refused(report, socket);
    }

    /// What did not leave.
    pub(super) fn refused(&self, report: &SendReport, socket: &UdpSocket) {
        self.drop(DropReason::SendBufferFull, report.blocked as u64);
        self.drop(DropReason::SendFailed, report.failed as u64);
        self.icmp_errors.add(report.icmp_errors as u64);
        if report.segmentation_refused {
            socket.stop_segmentation();
        }
    }
}

/// Sends tunnel bytes back to where their question came from.
pub(super) fn answer(outbox: &mut Outbox, source: Source, id: MemberId, bytes: &[u8]) {
    match source {
        Source::Direct { socket, from } => outbox.add(socket, from, |out| {
            out.extend_from_slice(bytes);
            true
        }),
        Source::Relay(relay) => outbox.add(relay.socket, relay.server, |out| {
            write_request(out, &Request::Relay { member: id, payload: bytes });
            true
        }),
    };
}

/// Encrypts a message straight into the outbox, on its way to the member. Says whether it left.
pub(super) fn encrypt(
    members: &mut [Option<Member>],
    outbox: &mut Outbox,
    counters: &Counters,
    slot: usize,
    message: &Message<'_>,
) -> bool {
    let Some(member) = members.get_mut(slot).and_then(Option::as_mut) else {
        return false;
    };
    let (socket, to, is_relayed) = match (member.via, member.relay) {
        (Via::Direct(path), _) => (path.socket, path.endpoint, false),
        (Via::Relay, Some(relay)) => (relay.socket, relay.server, true),
        _ => {
            counters.drop(DropReason::NoPath, 1);
            return false;
        }
    };
    let (id, tunnel) = (member.id, &mut member.tunnel);
    let mut failure = None;
    let is_sent = outbox.add(socket, to, |out| {
        if is_relayed {
            write_request(out, &Request::Relay { member: id, payload: &[] });
        }
        let start = out.len();
        let len = MESSAGE_HEADER_LEN + message.body.len() + OVERHEAD;
        out.resize(start + len.max(BUFFER_LEN_MIN), 0);
        match tunnel.send(message, &mut out[start..]) {
            Ok(len) => {
                out.truncate(start + len);
                true
            }
            Err(error) => {
                failure = Some(error);
                false
            }
        }
    });
    match failure {
        Some(NotSent::NoSession) => counters.drop(DropReason::NoPath, 1),
        Some(NotSent::Length) => counters.drop(DropReason::TooLong, 1),
        None => {}
    }
    is_sent
}

/// Encrypts a forwarded datagram.
pub(super) fn forward(
    members: &mut [Option<Member>],
    outbox: &mut Outbox,
    counters: &Counters,
    slot: usize,
    message: &Message<'_>,
) {
    if encrypt(members, outbox, counters, slot, message) {
        counters.to_tunnel(message.body.len());
    }
}
