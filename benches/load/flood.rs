//! A one-way flood: sends without waiting for anybody, and counts what comes out at the other end.

use super::clock::Clock;
use super::{Failure, failed, serve};
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;
use udpferry::net::sys::mmsg::receive::{RECEIVE_BATCH, ReceiveQueue};
use udpferry::net::sys::mmsg::send::SendQueue;

/// The kernel grants at most net.core.rmem_max, unless to root.
const SOCKET_BUFFER_LEN: usize = 4 << 20;
/// Datagrams per send.
const BATCH: usize = 32;
/// The largest payload of a UDP datagram over IPv4.
const PAYLOAD_LEN_MAX: usize = 65_507;

/// Floods `to` for `duration`; the datagrams are expected at `sink`, which is bound here, or by a
/// [`sink`] elsewhere.
pub(crate) fn run(
    sink: Option<SocketAddr>,
    to: SocketAddr,
    payload_len: usize,
    duration: Duration,
) -> Result<(), Failure> {
    if payload_len > PAYLOAD_LEN_MAX {
        return Err(Failure::Usage(format!("--payload is at most {PAYLOAD_LEN_MAX} bytes")));
    }
    let bound = |sink| bind(sink).map_err(failed(format!("cannot bind udp {sink}")));
    let sink = sink.map(bound).transpose()?;
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
        let Some(sink) = &sink else { continue };
        delivered += drain(sink, &mut receiving).map_err(failed("cannot receive"))?;
        if delivered > 0 && first_ns.is_none() {
            first_ns = Some(clock.now_ns());
        }
    }
    let delivered = sink.map_or_else(String::new, |_| {
        let first_ms =
            first_ns.map_or_else(|| "null".to_owned(), |ns| (ns / 1_000_000).to_string());
        format!(", \"delivered\": {delivered}, \"first_after_ms\": {first_ms}")
    });
    println!(
        "{{\"payload\": {payload_len}, \"seconds\": {}, \"sent\": {sent}{delivered}}}",
        duration.as_secs_f64()
    );
    Ok(())
}

/// Counts what arrives at `address` until stdin ends. Prints the bound address, then what came and
/// in how much time, from the first datagram to the last.
pub(crate) fn sink(address: SocketAddr) -> Result<(), Failure> {
    let socket = bind(address).map_err(failed(format!("cannot bind udp {address}")))?;
    println!("{}", socket.local_addr().map_err(failed("cannot read the bound address"))?);
    let (delivered, span_ns) = count(socket).map_err(failed("cannot receive"))?;
    println!(
        "{{\"delivered\": {delivered}, \"seconds\": {}}}",
        Duration::from_nanos(span_ns).as_secs_f64()
    );
    Ok(())
}

fn count(socket: UdpSocket) -> io::Result<(usize, u64)> {
    let clock = Clock::start();
    let mut receiving = ReceiveQueue::default();
    let (mut delivered, mut first_ns, mut last_ns) = (0, None, 0);
    serve(socket, |socket| {
        // Stamped before it is drained: that takes as long as there is no pause.
        let now_ns = clock.now_ns();
        let came = drain(socket, &mut receiving)?;
        if came > 0 {
            first_ns.get_or_insert(now_ns);
            last_ns = clock.now_ns();
            delivered += came;
        }
        Ok(())
    })?;
    Ok((delivered, last_ns - first_ns.unwrap_or(last_ns)))
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
fn drain(socket: &impl AsFd, queue: &mut ReceiveQueue) -> io::Result<usize> {
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
