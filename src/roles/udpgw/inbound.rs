//! From the client's stream to the remotes: one read, its frames in place, one `sendmmsg` per
//! socket.

use super::Mapping;
use super::client::{Client, STREAM, Verdict};
use super::counters::{DropReason, EndReason, FlowEnd};
use super::sockets::{NoSocket, SocketId};
use super::workbench::{Outgoing, Workbench};
use crate::net::stream::{Filled, Rest};
use crate::runtime::event_loop::Readiness;
use crate::state::access::canonical;
use crate::state::flow_table::{Flow, FlowId};
use crate::wire::length_prefix::Frames;
use crate::wire::udpgw::{BYTE_ORDER, Datagram, Malformed, Message, body_len_max, parse};
use std::net::SocketAddr;
use std::time::Instant;

/// The port of DNS (RFC 1035 §4.2), whose flows get a random source port each: a shared one would
/// take half of what protects a query against forged answers (RFC 5452 §4.5).
const DNS_PORT: u16 = 53;

/// One read of the stream and all that it holds.
pub(super) fn read_stream(
    client: &mut Client,
    bench: &mut Workbench,
    readiness: Readiness,
    now: Instant,
) -> Verdict {
    let kept = client.unfinished.restore(&mut bench.input);
    let Filled { len: read, rest } =
        client.stream.fill(&mut bench.input[kept..], readiness.read_closed);

    // The input is lent to the frames while the rest of the workbench is written to.
    let input = std::mem::take(&mut bench.input);
    let mut frames = Frames::new(
        &input[..kept + read],
        BYTE_ORDER,
        body_len_max(client.shared.config.datagram_len_max),
    );
    let mut verdict = Ok(());
    for frame in frames.by_ref() {
        match frame {
            Ok(body) => take_frame(client, bench, &input, body, now),
            Err(oversize) => {
                client.complain(now, || {
                    format!("closed: a frame of {} bytes is no udpgw frame here", oversize.len)
                });
                verdict = Err(EndReason::OversizeFrame);
            }
        }
    }
    client.unfinished.keep(frames.unfinished());
    send_all(client, bench, &input, now);
    bench.input = input;
    verdict?;
    match rest {
        Rest::Nothing => Ok(()),
        Rest::More => {
            client.events.again(STREAM, Readiness { writable: false, ..readiness });
            Ok(())
        }
        Rest::Closed => Err(EndReason::Closed),
        Rest::Failed(error) => Err(client.stream_failed(&error)),
    }
}

fn take_frame(client: &mut Client, bench: &mut Workbench, input: &[u8], body: &[u8], now: Instant) {
    client.heard = now;
    let datagram = match parse(body) {
        Ok(Message::Keepalive) => {
            client.tally.keepalives += 1;
            return;
        }
        Ok(Message::Datagram(datagram)) => datagram,
        Err(malformed) => {
            let reason = match malformed {
                Malformed::NoHeader => DropReason::ShortHeader,
                Malformed::NoAddress => DropReason::ShortAddress,
            };
            client.tally.drop(reason, 1);
            client.complain(now, || format!("dropped a frame of {} bytes: {reason}", body.len()));
            return;
        }
    };
    if datagram.payload.len() > client.shared.config.datagram_len_max {
        refuse(client, &datagram, DropReason::TooLong, now);
        return;
    }
    match flow_of(client, bench, input, &datagram, now) {
        Ok(flow) => {
            client.flows.touch(flow, now);
            client.flows.count_query(flow);
            let flow = *client.flows.get(flow);
            queue(client, bench, input, &datagram, &flow);
        }
        // Said already, with the cause.
        Err(DropReason::NoSocket) => client.tally.drop(DropReason::NoSocket, 1),
        Err(reason) => refuse(client, &datagram, reason, now),
    }
}

fn refuse(client: &mut Client, datagram: &Datagram<'_>, reason: DropReason, now: Instant) {
    client.tally.drop(reason, 1);
    client.complain(now, || {
        format!(
            "dropped a datagram of {} bytes to {} (flow {}): {reason}",
            datagram.payload.len(),
            datagram.address,
            datagram.conid
        )
    });
}

/// The datagram's flow, made if need be.
fn flow_of(
    client: &mut Client,
    bench: &mut Workbench,
    input: &[u8],
    datagram: &Datagram<'_>,
    now: Instant,
) -> Result<FlowId, DropReason> {
    if let Some(flow) = client.flows.by_conid(datagram.conid) {
        if !datagram.rebind && client.flows.get(flow).address == datagram.address {
            return Ok(flow);
        }
        // Datagrams that wait for this flow's socket must leave before it may be closed.
        send_all(client, bench, input, now);
        client.close_flow(flow, FlowEnd::Rebound);
    }
    let shared = std::sync::Arc::clone(&client.shared);
    let remote = if datagram.dns {
        // Not judged: the operator chose the resolver.
        shared.resolver.nameserver(now).ok_or(DropReason::NoResolver)?
    } else {
        shared.config.access.judge(datagram.address)?;
        canonical(datagram.address)
    };
    while let Some(surplus) = client.flows.surplus() {
        send_all(client, bench, input, now);
        client.close_flow(surplus, FlowEnd::Evicted);
    }
    let is_dns = datagram.dns || remote.port() == DNS_PORT;
    let socket = match open_socket(client, remote, is_dns) {
        // Rather one of this client's own flows than nobody's.
        Err(NoSocket::Budget) => {
            send_all(client, bench, input, now);
            make_room(client, remote);
            open_socket(client, remote, is_dns)
        }
        other => other,
    };
    let socket = socket.map_err(|cause| {
        client.complain(now, || format!("no socket towards {remote}: {cause}"));
        DropReason::NoSocket
    })?;
    client.tally.flow_opened();
    Ok(client.flows.insert(Flow {
        conid: datagram.conid,
        address: datagram.address,
        remote,
        socket,
        last_used: now,
        queries: (is_dns && client.sockets.is_own(socket)).then_some(0),
    }))
}

/// Closes the client's least recently used flow whose end lets a flow to `remote` have a socket: one
/// that has a socket to itself, else one to the same remote.
fn make_room(client: &mut Client, remote: SocketAddr) {
    let (flows, sockets) = (&client.flows, &client.sockets);
    let surplus = flows
        .oldest_that(|flow| sockets.is_own(flow.socket))
        .or_else(|| flows.oldest_that(|flow| flow.remote == remote));
    if let Some(flow) = surplus {
        client.close_flow(flow, FlowEnd::Evicted);
    }
}

/// A socket for a new flow. A flow that should have one of its own shares one when there are none
/// to spare.
fn open_socket(
    client: &mut Client,
    remote: SocketAddr,
    is_dns: bool,
) -> Result<SocketId, NoSocket> {
    let shared = &client.shared;
    let budget = &shared.spare_sockets;
    let (sockets, events, flows) = (&mut client.sockets, &mut client.events, &client.flows);
    if let Some(ports) = shared.pools.serving(remote) {
        match sockets.pooled(events, remote, ports, budget) {
            Ok(Some(socket)) => return Ok(socket),
            Ok(None) => client.tally.port_pool_exhausted += 1,
            Err(cause) => return Err(cause),
        }
    }
    let wants_own = is_dns
        || shared.config.mapping == Mapping::PerFlow
        || shared.pools.serving(remote).is_some();
    if wants_own {
        match sockets.own(events, remote, budget) {
            Ok(socket) => return Ok(socket),
            Err(_) => client.tally.own_sockets_short += 1,
        }
    }
    sockets.shared(events, remote, budget, |socket| flows.by_remote(socket, remote).is_none())
}

/// Puts the datagram at the end of its socket's chain.
fn queue(
    client: &mut Client,
    bench: &mut Workbench,
    input: &[u8],
    datagram: &Datagram<'_>,
    flow: &Flow,
) {
    let Some(entry) = client.sockets.get_mut(flow.socket) else {
        return;
    };
    let index = bench.outgoing.len();
    bench.outgoing.push(Outgoing {
        next: None,
        destination: entry.is_shared().then_some(flow.remote),
        // The payload is a part of the input.
        start: datagram.payload.as_ptr() as usize - input.as_ptr() as usize,
        len: datagram.payload.len(),
    });
    if let Some(last) = entry.last_outgoing.replace(index) {
        bench.outgoing[last].next = Some(index);
    } else {
        entry.first_outgoing = Some(index);
        bench.sending.push(flow.socket);
    }
}

/// Sends what waits on the workbench, socket by socket.
fn send_all(client: &mut Client, bench: &mut Workbench, input: &[u8], now: Instant) {
    for index in 0..bench.sending.len() {
        let Some(entry) = client.sockets.get_mut(bench.sending[index]) else {
            continue;
        };
        let mut next = entry.first_outgoing.take();
        entry.last_outgoing = None;
        let mut batch = entry.socket.batch(&mut bench.send);
        while let Some(outgoing) = next.map(|index| bench.outgoing[index]) {
            batch.push(outgoing.destination, &input[outgoing.start..outgoing.start + outgoing.len]);
            next = outgoing.next;
        }
        let report = batch.finish();
        if report.segmentation_refused {
            entry.socket.stop_segmentation();
            client.tally.segmentation_refused += 1;
        }
        client.tally.datagrams_to_remote += report.sent as u64;
        client.tally.bytes_to_remote += report.sent_bytes as u64;
        client.tally.icmp_errors += report.icmp_errors as u64;
        client.tally.drop(DropReason::SendBufferFull, report.blocked);
        client.tally.drop(DropReason::SendFailed, report.failed);
        if let Some(error) = report.last_error {
            client.complain(now, || format!("{} datagrams not sent: {error}", report.failed));
        }
    }
    bench.sending.clear();
    bench.outgoing.clear();
}
