//! From the remotes to the client's stream: one `recvmmsg` per ready socket, one write.

use super::client::{Client, Verdict};
use super::counters::{DropReason, EndReason, FlowEnd};
use super::sockets::SocketId;
use super::workbench::{OUTPUT_LEN, Workbench};
use crate::net::sys::mmsg::receive::RECEIVE_BATCH;
use crate::runtime::event_loop::Readiness;
use crate::wire::dns::parse_answer;
use crate::wire::udpgw::{Datagram, payload_len_max, write_frame};
use mio::Token;
use std::io::{self, Write};
use std::time::Instant;

/// What a client that does not read may leave with us. Its UDP sockets are not read then, so that
/// only the rest of one batch gets here; past this its datagrams are dropped.
const UNSENT_MAX: usize = OUTPUT_LEN;

/// After so many errors without a datagram in between, the socket waits for its next event: an
/// error that does not go away by being told must not keep a processor busy.
const ERRORS_IN_A_ROW_MAX: u8 = 16;

/// Receives one batch and turns it into frames.
pub(super) fn read_socket(
    client: &mut Client,
    bench: &mut Workbench,
    token: Token,
    socket: SocketId,
    now: Instant,
) -> Verdict {
    let Some(entry) = client.sockets.get_mut(socket) else {
        return Ok(());
    };
    match entry.socket.receive(&mut bench.receive) {
        Ok(received) => {
            entry.errors = 0;
            if received == RECEIVE_BATCH {
                client.events.again(token, Readiness::READABLE);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
        // An ICMP error of an earlier datagram: told and thereby cleared. The remote may come
        // back, so the flow stays, and datagrams may wait behind the error.
        Err(_) => {
            client.tally.icmp_errors += 1;
            entry.errors = entry.errors.saturating_add(1);
            if entry.errors < ERRORS_IN_A_ROW_MAX {
                client.events.again(token, Readiness::READABLE);
            }
            return Ok(());
        }
    }
    let kernel_drops = entry.socket.new_kernel_drops(&bench.receive);
    if kernel_drops > 0 {
        client.tally.drop(DropReason::ReceiveBufferFull, kernel_drops as usize);
    }

    let Workbench { receive, output, .. } = bench;
    let mut answered = None;
    for message in receive.messages() {
        let flow = message.source.and_then(|source| client.flows.by_remote(socket, source));
        let Some(flow) = flow else {
            let count = message.datagrams().count();
            client.tally.drop(DropReason::Stranger, count);
            client.complain(now, || match message.source {
                Some(source) => format!("dropped {count} datagrams from {source}: stranger"),
                None => format!("dropped {count} datagrams: stranger"),
            });
            continue;
        };
        client.flows.touch(flow, now);
        let (conid, address) = {
            let flow = client.flows.get(flow);
            (flow.conid, flow.address)
        };
        let len_max = client.shared.config.datagram_len_max.min(payload_len_max(address));
        for payload in message.datagrams() {
            if payload.len() > len_max {
                client.tally.drop(DropReason::ReplyTooLong, 1);
                continue;
            }
            if client.unsent.len() >= UNSENT_MAX {
                client.tally.drop(DropReason::ClientStalled, 1);
                continue;
            }
            let frame = Datagram { conid, rebind: false, dns: false, address, payload };
            let out = if client.unsent.is_empty() { &mut *output } else { &mut client.unsent };
            // The length was checked above.
            write_frame(out, &frame);
            client.tally.datagrams_to_client += 1;
            client.tally.bytes_to_client += payload.len() as u64;
            if parse_answer(payload).is_some() && client.flows.count_answer(flow) {
                answered = Some(flow);
            }
        }
        if output.len() >= OUTPUT_LEN {
            write_output(client, output)?;
        }
    }
    // A DNS flow has its socket to itself: there is one at the most, and it has been answered.
    if let Some(flow) = answered {
        client.close_flow(flow, FlowEnd::Answered);
    }
    Ok(())
}

/// Writes the frames of this wake; what the stream does not take is kept for later.
pub(super) fn write_output(client: &mut Client, output: &mut Vec<u8>) -> Verdict {
    let written = write_all(client, output)?;
    client.unsent.extend_from_slice(&output[written..]);
    output.clear();
    Ok(())
}

/// The stream takes bytes again: writes what was kept, and when all of it is gone reads the UDP
/// sockets that had to wait.
pub(super) fn write_unsent(client: &mut Client) -> Verdict {
    if client.unsent.is_empty() {
        return Ok(());
    }
    let mut unsent = std::mem::take(&mut client.unsent);
    let written = write_all(client, &unsent)?;
    if written < unsent.len() {
        unsent.drain(..written);
        client.unsent = unsent;
    } else {
        client.events.unpark();
    }
    Ok(())
}

/// Writes until the stream would block; returns how much it took.
fn write_all(client: &mut Client, bytes: &[u8]) -> Result<usize, EndReason> {
    let mut written = 0;
    while written < bytes.len() {
        match client.stream.write(&bytes[written..]) {
            Ok(0) => return Err(EndReason::Closed),
            Ok(len) => written += len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(client.stream_failed(&error)),
        }
    }
    Ok(written)
}
