//! The data plane between a real TUN device and a peer made by hand that knows nothing of offloads:
//! one packet in, one datagram out.
#![allow(clippy::disallowed_methods)] // Tests measure time and start threads of their own.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

#[path = "support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket as StdUdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use support::await_some;
use support::kernel::{in_own_namespaces, run};
use udpferry::net::sys::mmsg::send::SendQueue;
use udpferry::net::tun::TunDevice;
use udpferry::net::udp::{Buffers, UdpSocket};
use udpferry::roles::data_plane::Plane;
use udpferry::roles::data_plane::counters::PeerCounters;
use udpferry::roles::data_plane::orders::{Order, Report};
use udpferry::roles::data_plane::table::{
    DeviceId, Framing, Inner, Peer, SocketId, Table, TableOptions,
};
use udpferry::runtime::clock;
use udpferry::runtime::event_loop::EventLoop;
use udpferry::runtime::metrics::Registry;
use udpferry::runtime::queue::{Receiver, Wake};

const DEVICE: DeviceId = DeviceId(3);
const SOCKET: SocketId = SocketId(2);
/// Of the kernel, at the device, and of what is behind the peer.
const OWN: &str = "10.9.0.1";
const FAR: &str = "10.9.0.2";

/// A plane, its device `t0`, and the socket of the peer made by hand.
struct Bench {
    plane: Option<Plane>,
    reports: Receiver<Report>,
    registry: Registry,
    /// Where the plane receives.
    address: SocketAddr,
    peer: StdUdpSocket,
    counters: Arc<PeerCounters>,
    events: EventLoop,
}

impl Bench {
    fn new(offload: bool) -> Bench {
        let events = EventLoop::new().unwrap();
        let wake = Wake::new(events.waker(mio::Token(0)).unwrap());
        let mut registry = Registry::new();
        let (plane, reports) = Plane::start("test", &wake, &mut registry).unwrap();
        let device = Arc::new(TunDevice::open("t%d", offload).unwrap());
        assert_eq!(device.name(), "t0");
        assert_eq!(device.offloads().tcp, offload);
        // Otherwise the kernel asks for routers and joins groups, among the packets that are waited for.
        std::fs::write("/proc/sys/net/ipv6/conf/t0/disable_ipv6", "1").unwrap();
        run("ip", &["link", "set", "t0", "mtu", "1400", "up"]);
        run("ip", &["address", "add", &format!("{OWN}/24"), "dev", "t0"]);
        let any = (Ipv4Addr::UNSPECIFIED, 0).into();
        let socket = Arc::new(UdpSocket::listen(any, Buffers::default()).unwrap());
        if !offload {
            socket.stop_segmentation();
            socket.stop_merging();
        }
        let address = (Ipv4Addr::LOCALHOST, socket.local_addr().unwrap().port()).into();
        let peer = StdUdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        plane.order(&Order::AddSocket(SOCKET, socket));
        plane.order(&Order::AddDevice(DEVICE, device));
        let counters = Arc::new(PeerCounters::new(clock::now()));
        Bench { plane: Some(plane), reports, registry, address, peer, counters, events }
    }

    /// With the peer made by hand as the only one.
    fn with_peer(offload: bool, change: impl FnOnce(&mut Peer)) -> Bench {
        let bench = Bench::new(offload);
        let endpoint = bench.peer.local_addr().unwrap();
        let mut peer = Peer::new(endpoint, SOCKET, DEVICE, Arc::clone(&bench.counters));
        change(&mut peer);
        bench.publish([peer], TableOptions::default());
        bench
    }

    fn publish(&self, peers: impl IntoIterator<Item = Peer>, options: TableOptions) {
        let table = Table::new(peers.into_iter().map(Arc::new), options);
        self.plane.as_ref().unwrap().order(&Order::Table(Arc::new(table)));
    }

    /// The next datagram that the plane sends to the peer.
    fn sent(&self) -> Vec<u8> {
        let mut bytes = vec![0; 65_536];
        let (len, source) = self.peer.recv_from(&mut bytes).unwrap();
        assert_eq!(source, self.address);
        bytes.truncate(len);
        bytes
    }

    /// A counter's value, once it is not less than `least`.
    fn counted(&self, name: &str, least: u64) -> u64 {
        let value = || {
            let summary = self.registry.summary();
            let mut items = summary.split(' ');
            let value = items.find_map(|item| item.strip_prefix(name)?.strip_prefix('='));
            value.map_or(0, |value| value.parse().unwrap())
        };
        await_some(|| (value() >= least).then_some(()))
            .unwrap_or_else(|| panic!("{name} stays at {}", self.registry.summary()));
        value()
    }

    fn next_report(&mut self) -> Report {
        loop {
            if let Some(report) = self.reports.drain().next() {
                return report;
            }
            self.events.wait(Some(Duration::from_secs(5))).unwrap();
            assert!(self.events.next_ready().is_some(), "no report");
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(plane) = self.plane.take() {
            plane.stop();
        }
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) * 256 + u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = sum % 65_536 + sum / 65_536;
    }
    !u16::try_from(sum).unwrap()
}

/// Whether header and segment of an IPv4 packet have their checksums.
fn is_sound(packet: &[u8]) -> bool {
    let mut pseudo = packet[12..20].to_vec();
    pseudo.extend([0, packet[9]]);
    pseudo.extend(u16::try_from(packet.len() - 20).unwrap().to_be_bytes());
    pseudo.extend_from_slice(&packet[20..]);
    usize::from(u16::from_be_bytes([packet[2], packet[3]])) == packet.len()
        && checksum(&packet[..20]) == 0
        && checksum(&pseudo) == 0
}

/// A UDP packet from behind the peer to the kernel's port.
fn packet(source: &str, port: u16, id: u16, payload: &[u8]) -> Vec<u8> {
    let ip = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
    let len = |extra: usize| u16::try_from(payload.len() + extra).unwrap().to_be_bytes();
    let id = id.to_be_bytes();
    let mut packet = vec![0x45, 0, len(28)[0], len(28)[1], id[0], id[1], 0, 0, 64, 17, 0, 0];
    packet.extend(ip(source));
    packet.extend(ip(OWN));
    let sum = checksum(&packet).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
    packet.extend([0x10, 0]);
    packet.extend(port.to_be_bytes());
    packet.extend(len(8));
    packet.extend([0, 0]);
    packet.extend_from_slice(payload);
    let mut pseudo = packet[12..20].to_vec();
    pseudo.extend([0, 17]);
    pseudo.extend(len(8));
    pseudo.extend_from_slice(&packet[20..]);
    let sum = checksum(&pseudo).to_be_bytes();
    packet[26..28].copy_from_slice(&sum);
    packet
}

#[test]
fn a_packet_out_of_the_kernel_is_one_datagram_with_its_checksum() {
    if !in_own_namespaces("a_packet_out_of_the_kernel_is_one_datagram_with_its_checksum") {
        return;
    }
    for (offload, framing) in [(true, Framing::Raw), (false, Framing::PacketInformation)] {
        let bench = Bench::with_peer(offload, |peer| peer.framing = framing);
        let kernel = StdUdpSocket::bind((OWN, 0)).unwrap();
        kernel.send_to(b"over there", (FAR, 9)).unwrap();
        let mut datagram = bench.sent();
        if framing == Framing::PacketInformation {
            let packet = datagram.split_off(4);
            assert_eq!(std::mem::replace(&mut datagram, packet), [0, 0, 8, 0]);
        }
        assert!(is_sound(&datagram), "{datagram:?}");
        assert_eq!(datagram[28..], *b"over there");
        await_some(|| (bench.counters.totals().packets_out == 1).then_some(())).unwrap();
        assert_eq!(bench.counters.totals().bytes_out, 38);
    }
}

#[test]
fn what_the_kernel_merged_arrives_apart() {
    if !in_own_namespaces("what_the_kernel_merged_arrives_apart") {
        return;
    }
    let bench = Bench::with_peer(true, |_| ());
    let kernel = StdUdpSocket::bind((OWN, 0)).unwrap();
    let bytes: Vec<u8> = (0..9500_u32).map(|at| at.to_le_bytes()[0] ^ 0x55).collect();
    let mut queue = SendQueue::default();
    let mut batch = queue.batch(&kernel, true);
    batch.push_train(None, Some(format!("{FAR}:9").parse().unwrap()), &bytes, 1000);
    assert_eq!(batch.finish().sent, 10);
    for expected in bytes.chunks(1000) {
        let datagram = bench.sent();
        assert!(is_sound(&datagram));
        assert_eq!(datagram[28..], *expected);
    }
    assert_eq!(bench.counted("udpferry_tunnel_packets_total{direction=\"out\"}", 10), 10);
    assert_eq!(bench.counters.totals().bytes_out, 9500 + 280);
    // One read for all, where the kernel has USO.
    assert!(bench.counted("udpferry_tunnel_device_reads_total", 1) <= 10);
}

#[test]
fn what_comes_in_a_row_reaches_the_kernel_in_order() {
    if !in_own_namespaces("what_comes_in_a_row_reaches_the_kernel_in_order") {
        return;
    }
    for offload in [true, false] {
        let bench = Bench::with_peer(offload, |_| ());
        let kernel = StdUdpSocket::bind((OWN, 0)).unwrap();
        kernel.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let port = kernel.local_addr().unwrap().port();
        let packets: Vec<Vec<u8>> =
            (0..20).map(|id: u16| packet(FAR, port, id, &[id.to_be_bytes()[1]; 500])).collect();
        let mut queue = SendQueue::default();
        let mut batch = queue.batch(&bench.peer, true);
        for packet in &packets {
            batch.push(Some(bench.address), packet);
        }
        assert_eq!(batch.finish().sent, 20);
        for id in 0..20 {
            let mut bytes = [0; 1000];
            assert_eq!(kernel.recv(&mut bytes).unwrap(), 500);
            assert_eq!(bytes[..500], [id; 500]);
        }
        assert_eq!(bench.counted("udpferry_tunnel_packets_total{direction=\"in\"}", 20), 20);
        assert_eq!(bench.counters.totals().bytes_in, 20 * 528);
        assert!(bench.counters.last_heard().is_some());
        if !offload {
            assert_eq!(bench.counted("udpferry_tunnel_device_writes_total", 20), 20);
        }
    }
}

/// Sends every TCP segment back with its addresses exchanged, until nothing comes any more.
fn mirror(socket: &StdUdpSocket) {
    let mut bytes = vec![0; 65_536];
    while let Ok((len, from)) = socket.recv_from(&mut bytes) {
        let packet = &mut bytes[..len];
        let (protocol, addresses) =
            if packet[0] >> 4 == 4 { (packet[9], 12..20) } else { (packet[6], 8..40) };
        if protocol == 6 {
            assert!(packet[0] >> 4 == 6 || is_sound(packet));
            let half = addresses.len() / 2;
            let (source, destination) = packet[addresses].split_at_mut(half);
            source.swap_with_slice(destination);
            socket.send_to(packet, from).unwrap();
        }
    }
}

/// The kernel talks to itself through the tunnel and a mirror: TCP with all its offloads on one side,
/// and packet by packet on the other.
#[test]
fn a_stream_survives_the_tunnel_both_ways() {
    const LEN: usize = 20_000_000;
    if !in_own_namespaces("a_stream_survives_the_tunnel_both_ways") {
        return;
    }
    for (offload, own, far) in [(true, OWN, FAR), (false, OWN, FAR), (true, "fd09::1", "fd09::2")] {
        let bench = Bench::with_peer(offload, |_| ());
        if own.contains(':') {
            std::fs::write("/proc/sys/net/ipv6/conf/t0/disable_ipv6", "0").unwrap();
            run("ip", &["address", "add", &format!("{own}/64"), "dev", "t0", "nodad"]);
        }
        let listener = TcpListener::bind((own, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let byte_at = |at: usize| (at % 251).to_le_bytes()[0];
        std::thread::scope(|scope| {
            let mirrored = bench.peer.try_clone().unwrap();
            scope.spawn(move || mirror(&mirrored));
            let writer = scope.spawn(move || {
                let mut stream = TcpStream::connect((far, port)).unwrap();
                let bytes: Vec<u8> = (0..LEN).map(byte_at).collect();
                stream.write_all(&bytes).unwrap();
            });
            let (mut stream, from) = listener.accept().unwrap();
            assert_eq!(from.ip().to_string(), far);
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            writer.join().unwrap();
            assert_eq!(bytes.len(), LEN);
            assert!(bytes.iter().enumerate().all(|(at, byte)| byte_at(at) == *byte));
            // The mirror need not wait for its time limit.
            let end = Duration::from_millis(1);
            bench.peer.set_read_timeout(Some(end)).unwrap();
            StdUdpSocket::bind("127.0.0.1:0")
                .unwrap()
                .send_to(&[0; 40], bench.peer.local_addr().unwrap())
                .unwrap();
        });
        let packets = bench.counted("udpferry_tunnel_packets_total{direction=\"out\"}", 1);
        let reads = bench.counted("udpferry_tunnel_device_reads_total", 1);
        assert_eq!(reads < packets / 2, offload, "{reads} reads, {packets} packets");
    }
}

#[test]
fn each_peer_gets_its_own_and_says_only_its_own() {
    if !in_own_namespaces("each_peer_gets_its_own_and_says_only_its_own") {
        return;
    }
    let mut bench = Bench::new(true);
    let other = StdUdpSocket::bind("127.0.0.1:0").unwrap();
    other.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let peers = [(&bench.peer, FAR), (&other, "10.9.0.3")].map(|(socket, inner)| {
        let counters = Arc::new(PeerCounters::new(clock::now()));
        let mut peer = Peer::new(socket.local_addr().unwrap(), SOCKET, DEVICE, counters);
        peer.inner = Inner::Of(Box::new([inner.parse().unwrap()]));
        peer
    });
    let own = vec![OWN.parse().unwrap()];
    bench.publish(peers, TableOptions { own, ..TableOptions::default() });

    // By destination; nobody has 10.9.0.4.
    let kernel = StdUdpSocket::bind((OWN, 0)).unwrap();
    for to in ["10.9.0.3", "10.9.0.4", FAR] {
        kernel.send_to(to.as_bytes(), (to, 9)).unwrap();
    }
    assert_eq!(bench.sent()[28..], *FAR.as_bytes());
    let mut bytes = [0; 100];
    let len = other.recv(&mut bytes).unwrap();
    assert_eq!(bytes[28..len], *b"10.9.0.3");
    bench.counted("udpferry_tunnel_packets_dropped_total{reason=\"no-route\"}", 1);
    bench.counted("udpferry_tunnel_unreachables_total", 1);

    // Who waits for an answer from there is told that there will be none.
    let ping = Command::new("ping").args(["-c1", "-W5", "10.9.0.4"]).output().unwrap();
    let said = String::from_utf8(ping.stdout).unwrap();
    assert!(said.contains("Destination Host Unreachable"), "{said}");

    // Straight from one to the other.
    let mut across = packet(FAR, 9, 1, b"hello");
    across[16..20].copy_from_slice(&[10, 9, 0, 3]);
    bench.peer.send_to(&across, bench.address).unwrap();
    assert_eq!(other.recv(&mut bytes).unwrap(), across.len());
    assert_eq!(bytes[..across.len()], across);
    bench.counted("udpferry_tunnel_packets_forwarded_total", 1);

    // With somebody else's address.
    let forged = packet("10.9.0.3", 9, 1, b"hello");
    bench.peer.send_to(&forged, bench.address).unwrap();
    bench.counted("udpferry_tunnel_packets_dropped_total{reason=\"foreign-source\"}", 1);
    let expected = bench.peer.local_addr().unwrap();
    match bench.next_report() {
        Report::Stranger { source, inner_source, .. } => {
            assert_eq!((source, inner_source), (expected, "10.9.0.3".parse().unwrap()));
        }
        report => panic!("{report:?}"),
    }
}

#[test]
fn strangers_and_control_are_reported() {
    if !in_own_namespaces("strangers_and_control_are_reported") {
        return;
    }
    let mut bench = Bench::with_peer(true, |_| ());
    let stranger = StdUdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(&packet(FAR, 9, 1, b"hello"), bench.address).unwrap();
    match bench.next_report() {
        Report::Stranger { socket, source, destination, inner_source, packet: carried } => {
            assert_eq!(*carried, packet(FAR, 9, 1, b"hello"));
            assert_eq!((socket, source), (SOCKET, stranger.local_addr().unwrap()));
            assert_eq!(destination, Some(bench.address.ip()));
            assert_eq!(inner_source, FAR.parse::<std::net::IpAddr>().unwrap());
        }
        report => panic!("{report:?}"),
    }
    stranger.send_to(&[0xf6, 1, 2, 3], bench.address).unwrap();
    match bench.next_report() {
        Report::Control { source, bytes, .. } => {
            assert_eq!(source, stranger.local_addr().unwrap());
            assert_eq!(*bytes, [0xf6, 1, 2, 3]);
        }
        report => panic!("{report:?}"),
    }
    stranger.send_to(&[0xf6; 2000], bench.address).unwrap();
    stranger.send_to(&[0x45; 10], bench.address).unwrap();
    stranger.send_to(&[], bench.address).unwrap();
    bench.counted("udpferry_tunnel_packets_dropped_total{reason=\"control-unheard\"}", 1);
    bench.counted("udpferry_tunnel_packets_dropped_total{reason=\"malformed\"}", 2);
    bench.counted("udpferry_tunnel_packets_dropped_total{reason=\"unknown-endpoint\"}", 1);
}

#[test]
fn a_route_back_into_the_tunnel_does_not_run_away() {
    if !in_own_namespaces("a_route_back_into_the_tunnel_does_not_run_away") {
        return;
    }
    let bench = Bench::new(true);
    run("ip", &["link", "set", "lo", "up"]);
    // The peer's endpoint is behind the device itself; our socket would have to be reachable from
    // there, so it is one of its own.
    let socket = UdpSocket::bind("0.0.0.0:0".parse().unwrap(), false, Buffers::default()).unwrap();
    let plane = bench.plane.as_ref().unwrap();
    plane.order(&Order::AddSocket(SocketId(9), Arc::new(socket)));
    let endpoint = "10.9.0.77:5555".parse().unwrap();
    bench.publish(
        [Peer::new(endpoint, SocketId(9), DEVICE, Arc::clone(&bench.counters))],
        TableOptions::default(),
    );
    let kernel = StdUdpSocket::bind((OWN, 0)).unwrap();
    kernel.send_to(b"x", (FAR, 9)).unwrap();
    let loops = "udpferry_tunnel_packets_dropped_total{reason=\"routing-loop\"}";
    assert_eq!(bench.counted(loops, 1), 1);
    assert_eq!(bench.counted("udpferry_tunnel_packets_total{direction=\"out\"}", 1), 1);
}

#[test]
fn a_deleted_interface_is_reported() {
    if !in_own_namespaces("a_deleted_interface_is_reported") {
        return;
    }
    let mut bench = Bench::with_peer(true, |_| ());
    run("ip", &["link", "del", "t0"]);
    match bench.next_report() {
        Report::DeviceGone { device, .. } => assert_eq!(device, DEVICE),
        report => panic!("{report:?}"),
    }
    // What comes for it is counted.
    bench.peer.send_to(&packet(FAR, 9, 1, b"hello"), bench.address).unwrap();
    bench.counted("udpferry_tunnel_packets_dropped_total{reason=\"no-device\"}", 1);
}

#[test]
fn an_interface_that_is_down_takes_nothing_and_comes_back() {
    if !in_own_namespaces("an_interface_that_is_down_takes_nothing_and_comes_back") {
        return;
    }
    let bench = Bench::with_peer(true, |_| ());
    run("ip", &["link", "set", "t0", "down"]);
    bench.peer.send_to(&packet(FAR, 9, 1, b"hello"), bench.address).unwrap();
    bench.counted("udpferry_tunnel_packets_dropped_total{reason=\"device-down\"}", 1);
    run("ip", &["link", "set", "t0", "up"]);
    let kernel = StdUdpSocket::bind((OWN, 0)).unwrap();
    kernel.send_to(b"back", (FAR, 9)).unwrap();
    assert_eq!(bench.sent()[28..], *b"back");
}
