//! A one-way flood: sends without waiting for anybody, and counts what comes out at the other end.

use super::clock::Clock;
use super::{Failure, failed};
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;
use udpferry::net::sys::mmsg::receive::{RECEIVE_BATCH, ReceiveQueue};
use udpferry::net::sys::mmsg::send::SendQueue;

/// The kernel grants at most net.core.rmem_max, unless to root.
const SOCKET_BUFFER_LEN: usize = 4 << 20;
/// Datagrams per send.
const BATCH: usize = 32;
/// The largest payload of a UDP datagram over IPv4.
const PAYLOAD_LEN_MAX: usize = 65_507;

/// Floods `to` for `duration`; the datagrams are expected at `sink`, which is bound here.
pub(crate) fn run(
    sink: SocketAddr,
    to: SocketAddr,
    payload_len: usize,
    duration: Duration,
) -> Result<(), Failure> {
    if payload_len > PAYLOAD_LEN_MAX {
        return Err(Failure::Usage(format!("--payload is at most {PAYLOAD_LEN_MAX} bytes")));
    }
    let sink = bind(sink).map_err(failed(format!("cannot bind udp {sink}")))?;
    let source = connect(to).map_err(failed(format!("cannot connect to udp {to}")))?;
    let clock = Clock::start();
    let end_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let payload = vec![0x5a; payload_len];
    let mut sending = SendQueue::default();
    let mut receiving = ReceiveQueue::default();
    let mut sent = 0;
    let mut delivered = 0;
    let mut first_ns = None;
    while clock.now_ns() < end_ns {
        let mut batch = sending.batch(&source, false);
        for _ in 0..BATCH {
            batch.push(None, &payload);
        }
        // A tunnel that is not there (ECONNREFUSED) is one that delivers nothing.
        batch.finish();
        sent += BATCH;
        delivered += drain(&sink, &mut receiving).map_err(failed("cannot receive"))?;
        if delivered > 0 && first_ns.is_none() {
            first_ns = Some(clock.now_ns());
        }
    }
    let first_ms = first_ns.map_or_else(|| "null".to_owned(), |ns| (ns / 1_000_000).to_string());
    println!(
        "{{\"payload\": {payload_len}, \"seconds\": {}, \"sent\": {sent}, \
         \"delivered\": {delivered}, \"first_after_ms\": {first_ms}}}",
        duration.as_secs_f64()
    );
    Ok(())
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), None)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER_LEN)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn connect(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), None)?;
    socket.connect(&address.into())?;
    Ok(socket.into())
}

/// Datagrams that waited.
fn drain(socket: &UdpSocket, queue: &mut ReceiveQueue) -> io::Result<usize> {
    let mut count = 0;
    loop {
        match queue.receive(socket) {
            Ok(messages) => {
                count += queue.messages().map(|message| message.datagrams().count()).sum::<usize>();
                if messages < RECEIVE_BATCH {
                    return Ok(count);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
