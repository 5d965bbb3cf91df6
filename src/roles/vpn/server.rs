//! `vpn server`: the main thread, which lets clients in and tells the data plane who they are.

mod desk;

use super::counters::{Counters, MESSAGES_DROPPED};
use super::device::Device;
use super::lease_file::LeaseFile;
use super::sockets::Sockets;
use super::status::{self, Status};
use super::{
    DEVICE, ETHERNET_MTU, HOOK_STACK, MEND_DELAY, ServerConfig, listen_to_tables, mend_tables,
    mtu_inside, socket_path, tell_plaintext,
};
use crate::error::Error;
use crate::net::netlink::changes::Changes;
use crate::net::netlink::{Netlink, Network};
use crate::roles::control::{self, Answer, Control};
use crate::roles::data_plane::counters::PeerCounters;
use crate::roles::data_plane::orders::{Order, REPORTS_PER_TURN, Report};
use crate::roles::data_plane::{self, Plane};
use crate::roles::frame::{FIRST_OWN, Frame, Happening, WAKE};
use crate::roles::host::server::ServerPlan;
use crate::roles::host::{Host, Places, hooks};
use crate::roles::startup::Startup;
use crate::runtime::clock;
use crate::runtime::errands::Errands;
use crate::runtime::event_loop::{EventLoop, Readiness};
use crate::runtime::queue::Receiver;
use crate::state::access::Prefix;
use crate::state::contact::Contact;
use crate::state::vpn::leases::{LEASES_MAX, Leases};
use desk::Desk;
use mio::Token;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

/// Word of changes of nftables; the control socket's tokens stand before it.
const TABLES: Token = Token(FIRST_OWN + control::TOKENS);
/// An address that only the default route leads to, of each family (RFC 5737, RFC 3849).
const FAR_AWAY: [&str; 2] = ["203.0.113.1", "2001:db8::1"];

/// What a running server has.
struct Server {
    config: ServerConfig,
    started: Instant,
    device: Device,
    sockets: Sockets,
    plane: Plane,
    desk: Desk,
    leases: LeaseFile,
    /// When to look after the table of nftables.
    mend_tables_at: Option<Instant>,
    /// A thread of their own: clients and signals do not wait for them.
    hooks: Errands,
}

/// What the main thread receives from others.
struct Inbox {
    reports: Receiver<Report>,
    tables: Option<Changes>,
}

/// Serves until stopped.
pub(super) fn serve(config: ServerConfig, startup: Startup) -> Result<(), Error> {
    let shared = &config.shared;
    tell_plaintext(&shared.tun, "whoever may send to its port may join");
    let mut frame = Frame::new(shared.common.metrics, None)?;
    // First, as two processes cannot have one tunnel.
    let path = socket_path(&shared.runtime_dir, &shared.tun);
    let mut control = Control::listen(&path, &mut frame.events, FIRST_OWN)?;
    let mut host = Host::open(Places::new(&shared.runtime_dir), &shared.tun, false)?;
    let result = Server::start(config, &mut frame, &mut host).and_then(|(server, mut inbox)| {
        frame.ready(startup)?;
        server.until_stopped(&mut frame, &mut control, &mut inbox, &mut host)
    });
    host.undo();
    result
}

impl Server {
    fn start(
        config: ServerConfig,
        frame: &mut Frame,
        host: &mut Host,
    ) -> Result<(Server, Inbox), Error> {
        let now = clock::now();
        let shared = &config.shared;
        let sockets = Sockets::listen(shared, &config.listen, config.listen_given)?;
        let mut device = Device::open(&shared.tun, shared.offload)?;
        let path_mtu = path_mtu();
        let has_ipv4 = sockets.local_addresses().any(|address| address.is_ipv4());
        let mtu = shared.mtu.unwrap_or_else(|| mtu_inside(path_mtu, has_ipv4));
        device.set(&addresses(&config), mtu)?;
        let mut leases = Leases::new(config.subnets.iter().copied(), LEASES_MAX);
        let lease_file = LeaseFile::open(shared.state_dir.as_deref(), &shared.tun, &mut leases)?;
        let counters = Counters::new(&mut frame.registry);
        let desk = Desk::new(&config, path_mtu, leases, counters, now)?;
        let (plane, reports) = Plane::start("vpn", &frame.wake()?, &mut frame.registry)?;
        let hooks = Errands::start("vpn:hooks", 2, HOOK_STACK)
            .map_err(Error::while_doing(|| "cannot start a thread"))?;
        let server = Server {
            config,
            started: now,
            device,
            sockets,
            plane,
            desk,
            leases: lease_file,
            mend_tables_at: None,
            hooks,
        };
        server.plane.order(&Order::Table(Arc::new(server.desk.table())));
        for order in server.sockets.orders() {
            server.plane.order(&order);
        }
        server.plane.order(&Order::AddDevice(DEVICE, Arc::clone(&server.device.tun)));
        host.serve(&ServerPlan {
            networks: networks(&server.config),
            nat: server.config.nat.clone(),
        })?;
        log::info!("{}: up with {}", server.config.shared.tun, words(server.device.addresses()));
        if let Some(command) = server.config.shared.hooks.up.clone() {
            let facts = server.facts();
            // There is room for two.
            let _ =
                server.hooks.send(move || hooks::run_and_log(&command, &facts, hooks::UP_LIMIT));
        }
        let tables = listen_to_tables(server.config.nat.is_some(), frame, TABLES);
        Ok((server, Inbox { reports, tables }))
    }

    fn until_stopped(
        mut self,
        frame: &mut Frame,
        control: &mut Control,
        inbox: &mut Inbox,
        host: &mut Host,
    ) -> Result<(), Error> {
        let mut stops = false;
        let result = loop {
            let deadlines = [self.next_deadline(), self.mend_tables_at, control.next_deadline()];
            let deadline = deadlines.into_iter().flatten().min();
            let numbers = || {
                let line = self.desk.status_line();
                (line.clone(), line)
            };
            match frame.next_happening(deadline, numbers) {
                Ok(Happening::Stop) => break Ok(()),
                // There are no files but the log.
                Ok(Happening::Reload) => {}
                Ok(Happening::Ready(WAKE, _)) => {
                    if let Err(error) = self.hear(&inbox.reports, &mut frame.events) {
                        break Err(error);
                    }
                }
                Ok(Happening::Ready(TABLES, _)) => {
                    if inbox.tables.as_mut().is_some_and(Changes::take) {
                        self.mend_tables_at.get_or_insert(clock::now() + MEND_DELAY);
                    }
                }
                Ok(Happening::Ready(token, readiness)) => {
                    let now = clock::now();
                    let ready = (token, readiness);
                    let Frame { events, registry, .. } = &mut *frame;
                    control.handle(ready, now, events, |question| match question {
                        "status" => Some(Answer::Done(self.status(now, registry).text())),
                        "status json" => Some(Answer::Done(self.status(now, registry).json())),
                        "down" => {
                            stops = true;
                            None
                        }
                        _ => Some(Answer::Refused("a server has nothing to confirm".into())),
                    });
                }
                Ok(Happening::RoundOver(now)) => {
                    control.expire(now, &mut frame.events);
                    self.tend(now, host);
                }
                Err(error) => break Err(error),
            }
            if stops {
                break Ok(());
            }
        };
        self.stop();
        result
    }

    /// What the data plane reports. The table is published before anybody is told of it: whoever is
    /// welcome may send at once.
    fn hear(&mut self, reports: &Receiver<Report>, events: &mut EventLoop) -> Result<(), Error> {
        let now = clock::now();
        let mut heard = 0;
        let mut first_packets = Vec::new();
        for report in reports.drain().take(REPORTS_PER_TURN) {
            heard += 1;
            match report {
                Report::Control { socket, source, destination, bytes } => {
                    let from = contact(socket.0, source, destination);
                    self.desk.hear(now, from, &bytes);
                }
                Report::Stranger { socket, source, destination, inner_source, packet } => {
                    let from = contact(socket.0, source, destination);
                    if let Some(peer) = self.desk.meet_stranger(now, from, inner_source) {
                        first_packets.push((packet, peer));
                    }
                }
                Report::DeviceGone { error, .. } => {
                    return Err(gone(&format!("the device {}", self.config.shared.tun), error));
                }
                Report::SocketGone { error, .. } => return Err(gone("a socket", error)),
                Report::ThreadGone { thread, error } => {
                    let error = error.unwrap_or_else(|| io::Error::other("it panicked"));
                    return Err(gone(&format!("the thread {thread}"), error));
                }
            }
            if self.desk.outbox.is_full() {
                self.publish(now);
            }
        }
        if heard == REPORTS_PER_TURN {
            // The wake has been answered: nobody wakes us for what is left.
            events.again(WAKE, Readiness::READABLE);
        }
        self.publish(now);
        for (packet, peer) in first_packets {
            self.deliver(&packet, &peer);
        }
        Ok(())
    }

    /// The packet by which a bare client came is not lost.
    fn deliver(&self, packet: &[u8], peer: &PeerCounters) {
        if self.desk.is_for_us(packet) {
            if let Err(error) = data_plane::deliver(packet, &self.device.tun, peer) {
                log::debug!("a bare client's first packet: {error}");
            }
        }
    }

    fn publish(&mut self, now: Instant) {
        if self.desk.take_change() {
            self.plane.order(&Order::Table(Arc::new(self.desk.table())));
            self.leases.changed(now);
        }
        self.desk.send(&self.sockets);
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.desk.next_deadline().into_iter().chain(self.leases.next_deadline()).min()
    }

    fn tend(&mut self, now: Instant, host: &mut Host) {
        mend_tables(&mut self.mend_tables_at, now, host);
        self.desk.tend(now);
        self.publish(now);
        self.leases.tend(now, self.desk.leases());
    }

    fn stop(mut self) {
        log::info!("{}: stopping, {} clients", self.config.shared.tun, self.desk.len());
        if let Some(command) = &self.config.shared.hooks.down {
            hooks::run_last(&self.hooks, command, self.facts());
        }
        self.desk.say_goodbye();
        self.desk.send(&self.sockets);
        self.plane.stop();
        self.leases.save(self.desk.leases());
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let of = |is_ipv4: bool| {
            let mut addresses = self.device.addresses().iter();
            let found = addresses.find(|network| network.address.is_ipv4() == is_ipv4);
            found.map_or_else(String::new, ToString::to_string)
        };
        vec![
            ("TUN", self.config.shared.tun.clone()),
            ("ADDRESS4", of(true)),
            ("ADDRESS6", of(false)),
            ("MTU", self.device.mtu().to_string()),
        ]
    }

    fn status(&self, now: Instant, registry: &crate::runtime::metrics::Registry) -> Status {
        let config = &self.config;
        let listening: Vec<String> =
            self.sockets.local_addresses().map(|address| address.to_string()).collect();
        let mut facts = vec![
            ("listening", listening.join(" ")),
            ("addresses", words(self.device.addresses())),
            ("mtu", self.device.mtu().to_string()),
            ("offloads", status::offloads(&self.device.tun, &self.sockets)),
        ];
        if let Some(nat) = &config.nat {
            let by = nat.out_interface.as_deref().unwrap_or("the default route's interface");
            facts.push(("nat", by.to_owned()));
        }
        if !config.allow_from.is_empty() {
            let all: Vec<String> = config.allow_from.iter().map(Prefix::to_string).collect();
            facts.push(("from", all.join(" ")));
        }
        facts.push(("clients", format!("{} of {}", self.desk.len(), config.limits.clients_max)));
        Status {
            device: config.shared.tun.clone(),
            side: "server",
            up_for: now.saturating_duration_since(self.started),
            facts,
            peers: self.desk.peers(now),
            drops: status::drops(registry, MESSAGES_DROPPED),
        }
    }
}

fn contact(socket: u32, endpoint: SocketAddr, local: Option<IpAddr>) -> Contact {
    Contact { endpoint, socket: socket as usize, local }
}

fn gone(what: &str, cause: io::Error) -> Error {
    Error::System { doing: format!("{what} is gone"), cause }
}

fn addresses(config: &ServerConfig) -> Vec<Network> {
    let own = config.subnets.iter();
    own.map(|subnet| Network { address: subnet.own(), length: subnet.prefix() }).collect()
}

/// The networks around the server's addresses.
fn networks(config: &ServerConfig) -> Vec<Network> {
    let own = config.subnets.iter();
    own.map(|subnet| Network { address: subnet.network(), length: subnet.prefix() }).collect()
}

fn words(networks: &[Network]) -> String {
    networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// What most clients' paths take: that of the interface with the default route, and no more than
/// Ethernet's, as a jumbo frame seldom gets further than the next router.
fn path_mtu() -> u16 {
    let found = || -> io::Result<u32> {
        let mut netlink = Netlink::open()?;
        let far_away = FAR_AWAY.iter().filter_map(|text| text.parse::<IpAddr>().ok());
        let paths: Vec<_> = far_away.filter_map(|address| netlink.path_to(address).ok()).collect();
        let path = paths.first().ok_or(io::ErrorKind::NotFound)?;
        Ok(netlink.link_by_index(path.device)?.mtu)
    };
    let mtu = found().ok().and_then(|mtu| u16::try_from(mtu).ok()).unwrap_or(ETHERNET_MTU);
    mtu.min(ETHERNET_MTU)
}
