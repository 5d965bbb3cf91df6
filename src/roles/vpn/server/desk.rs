//! What clients say to the server, and what it answers; who they are for the data plane.

use crate::error::Error;
use crate::roles::cookie::Cookies;
use crate::roles::data_plane::counters::PeerCounters;
use crate::roles::data_plane::table::{Inner, Peer, SocketId, Table, TableOptions};
use crate::roles::vpn::counters::{Counters, DropReason, EndReason, Said};
use crate::roles::vpn::outbox::Outbox;
use crate::roles::vpn::sockets::Sockets;
use crate::roles::vpn::{DEVICE, ServerConfig, mtu_inside, status};
use crate::state::access::Prefix;
use crate::state::contact::Contact;
use crate::state::source_rate::SourceRate;
use crate::state::token_bucket::LogGate;
use crate::state::vpn::clients::{Change, Client, Clients, Entered, NotBound, Number};
use crate::state::vpn::leases::Leases;
use crate::state::vpn::subnet::Subnet;
use crate::state::vpn::{Addresses, Wishes};
use crate::wire::ip::Header;
use crate::wire::vpn::{
    Answer, Assignment, ClientId, Cookie, DnsServers, Refusal, Request, VERSION,
    parse_hello_of_other_version, parse_request, write_answer,
};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Messages per second of an IPv4 address or an IPv6 /64: a NAT with a thousand clients behind it
/// sends fewer.
const MESSAGES_PER_SECOND: u32 = 100;
/// Times in a second that such an address is asked who it is: unknown data comes by the thousand.
const QUESTIONS_PER_SECOND: u32 = 50;
/// Addresses remembered for both, at about 150 bytes each; the least recently seen is forgotten.
const SOURCES_MAX: usize = 16_384;

/// Everything that answering takes.
pub(super) struct Desk {
    pub(super) outbox: Outbox,
    counters: Counters,
    clients: Clients,
    /// Those of `clients`, for the data plane.
    peers: BTreeMap<Number, Arc<Peer>>,
    has_changed: bool,
    cookies: Cookies,
    messages: SourceRate,
    /// Hellos that show a cookie, which nobody who forges the address has.
    proved: SourceRate,
    /// Those without one: their answers take no memory and are shorter than they are.
    asking: SourceRate,
    questions: SourceRate,
    settings: Settings,
    client_log: LogGate,
    trouble_log: LogGate,
}

/// What clients are told, and what the table says beside the peers.
struct Settings {
    subnets: Vec<Subnet>,
    mtu: Option<u16>,
    path_mtu: u16,
    dns: DnsServers,
    keepalive: Duration,
    allows_bare: bool,
    client_to_client: bool,
    allow_from: Vec<Prefix>,
}

impl Desk {
    pub(super) fn new(
        config: &ServerConfig,
        path_mtu: u16,
        leases: Leases,
        counters: Counters,
        now: Instant,
    ) -> Result<Desk, Error> {
        Ok(Desk {
            outbox: Outbox::default(),
            counters,
            clients: Clients::new(config.limits, leases),
            peers: BTreeMap::new(),
            has_changed: false,
            cookies: Cookies::new(now)?,
            messages: SourceRate::new(MESSAGES_PER_SECOND, SOURCES_MAX),
            asking: SourceRate::new(MESSAGES_PER_SECOND, SOURCES_MAX),
            proved: SourceRate::new(MESSAGES_PER_SECOND, SOURCES_MAX),
            questions: SourceRate::new(QUESTIONS_PER_SECOND, SOURCES_MAX),
            settings: Settings {
                subnets: config.subnets.clone(),
                mtu: config.shared.mtu,
                path_mtu,
                dns: config.dns,
                keepalive: config.keepalive,
                allows_bare: config.allows_bare,
                client_to_client: config.client_to_client,
                allow_from: config.allow_from.clone(),
            },
            client_log: LogGate::new(5, 100),
            trouble_log: LogGate::new(1, 20),
        })
    }

    /// A control message has come.
    pub(super) fn hear(&mut self, now: Instant, from: Contact, bytes: &[u8]) {
        // Port 0 is nobody's: there is nowhere to answer to.
        if from.endpoint.port() == 0 {
            return self.refuse(now, from, DropReason::Malformed);
        }
        let request = parse_request(bytes);
        if !self.admits(now, from, request.as_ref()) {
            return self.refuse(now, from, DropReason::SourceRate);
        }
        match request {
            Some(Request::Hello { tx, cookie, client, ipv4, ipv6 }) => {
                self.counters.said(Said::Hello);
                self.greet(now, from, tx, cookie, (client, Wishes::new(ipv4, ipv6)));
            }
            Some(Request::Keepalive { tx, client }) => {
                self.counters.said(Said::Keepalive);
                match self.clients.keep(now, from.endpoint, client) {
                    Some(number) => {
                        if let Some(peer) = self.peers.get(&number) {
                            peer.counters.heard(now);
                        }
                        self.say(from, &Answer::Alive { tx });
                    }
                    None => self.ask_who(now, from),
                }
            }
            Some(Request::Goodbye { client }) => {
                self.counters.said(Said::Goodbye);
                match self.clients.leave(from.endpoint, client) {
                    Some((number, client)) => {
                        self.forget(now, number, &client, EndReason::Goodbye);
                    }
                    None => self.refuse(now, from, DropReason::UnknownClient),
                }
            }
            None => match parse_hello_of_other_version(bytes) {
                Some(tx) => {
                    self.counters.refused_for_version();
                    self.say(from, &Answer::OtherVersion { tx, version: VERSION });
                }
                None => self.refuse(now, from, DropReason::Malformed),
            },
        }
    }

    /// Whether there is time for a message. Anybody can write another's address on what he sends: what shows
    /// that it does come from there has rates of its own.
    fn admits(&mut self, now: Instant, from: Contact, request: Option<&Request>) -> bool {
        let ip = from.endpoint.ip();
        match request {
            Some(Request::Keepalive { client, .. } | Request::Goodbye { client }) => {
                let own = self.clients.admits(now, from.endpoint, *client);
                own.unwrap_or_else(|| self.messages.admit(now, ip, 1))
            }
            Some(Request::Hello { cookie, .. }) => {
                let is_proved = self.cookies.counts(now, from.endpoint, 0, cookie.0);
                let rate = if is_proved { &mut self.proved } else { &mut self.asking };
                rate.admit(now, ip, 1)
            }
            None => self.messages.admit(now, ip, 1),
        }
    }

    /// A packet has come from an endpoint that nobody has, or with somebody else's inner source; the
    /// data plane has dropped it.
    /// Returns the counters of who may have his packet delivered.
    pub(super) fn meet_stranger(
        &mut self,
        now: Instant,
        from: Contact,
        inner: IpAddr,
    ) -> Option<Arc<PeerCounters>> {
        let known = self.clients.at_endpoint(from.endpoint);
        if known.is_some_and(|client| client.id.is_some()) || from.endpoint.port() == 0 {
            // It knows its addresses. A host sends from others as well: IPv6's link-local one.
            return None;
        }
        if !self.settings.allows_bare {
            self.ask_who(now, from);
            return None;
        }
        // Each that binds is a new table for the data plane.
        if !self.messages.admit(now, from.endpoint.ip(), 1) {
            self.refuse(now, from, DropReason::SourceRate);
            return None;
        }
        let peers = &self.peers;
        let heard = |number| peers.get(&number)?.counters.last_heard();
        match self.clients.bind(now, from, inner, heard) {
            Ok(entered) => {
                self.note(now, from, entered, None);
                let peer = self.peers.get(&entered.number);
                return peer.map(|peer| Arc::clone(&peer.counters));
            }
            // A client with a number may have moved.
            Err(NotBound::Taken | NotBound::HasAnother) => self.ask_who(now, from),
            Err(NotBound::Full | NotBound::Outside) => {
                self.refuse(now, from, DropReason::BareRefused);
            }
        }
        None
    }

    /// Whether a packet with that destination is for this host or beyond, and not for another client,
    /// who is the data plane's affair.
    pub(super) fn is_for_us(&self, packet: &[u8]) -> bool {
        Header::parse(packet).is_some_and(|header| !self.clients.has_address(header.destination))
    }

    fn greet(
        &mut self,
        now: Instant,
        from: Contact,
        tx: u64,
        cookie: Cookie,
        (id, wishes): (ClientId, Wishes),
    ) {
        if !self.cookies.counts(now, from.endpoint, 0, cookie.0) {
            self.counters.cookies_offered.increment();
            let cookie = Cookie(self.cookies.make(now, from.endpoint, 0));
            return self.say(from, &Answer::Cookie { tx, cookie, endpoint: from.endpoint });
        }
        if let Some((number, client)) = self.clients.displace(from.endpoint, id) {
            self.forget(now, number, &client, EndReason::Displaced);
        }
        match self.clients.enter(now, id, from, wishes) {
            Ok(entered) => {
                self.note(now, from, entered, Some(id));
                let welcome = self.settings.welcome(tx, from, entered.addresses);
                self.say(from, &welcome);
            }
            Err(reason) => {
                self.counters.refused(reason);
                let tells = |reason| match reason {
                    Refusal::Full => "there are --max-clients clients",
                    Refusal::NoAddress => "the pool has no address left",
                    Refusal::AddressTaken => "another client has the address",
                    Refusal::AddressOutside => "the address is not in the network, or not a host's",
                };
                self.trouble(now, &format_args!("{} refused: {}", from.endpoint, tells(reason)));
                self.say(from, &Answer::Refused { tx, reason });
            }
        }
    }

    /// A client has come, or moved, or is as before.
    fn note(&mut self, now: Instant, from: Contact, entered: Entered, id: Option<ClientId>) {
        let Entered { number, addresses, change } = entered;
        let shown = Shown(addresses);
        let kind = if id.is_none() { " (bare)" } else { "" };
        match change {
            Change::Same => return,
            Change::New => {
                self.counters.clients_entered.increment();
                self.tell(now, &format_args!("client {shown}{kind} came from {}", from.endpoint));
            }
            Change::Moved(before) => {
                self.counters.clients_moved.increment();
                let to = from.endpoint;
                self.tell(now, &format_args!("client {shown}{kind} moved from {before} to {to}"));
            }
            Change::Readdressed => {
                self.tell(now, &format_args!("client at {} has {shown} now", from.endpoint));
            }
        }
        // What has been counted of it, it keeps.
        let counters = match self.peers.get(&number) {
            Some(peer) => Arc::clone(&peer.counters),
            None => Arc::new(PeerCounters::new(now)),
        };
        // There are not that many sockets.
        let socket = SocketId(u32::try_from(from.socket).unwrap_or(u32::MAX));
        let mut peer = Peer::new(from.endpoint, socket, DEVICE, counters);
        peer.source = from.local;
        peer.inner = Inner::Of(addresses.iter().collect());
        peer.counters.heard(now);
        self.peers.insert(number, Arc::new(peer));
        self.has_changed = true;
        self.count_clients();
    }

    fn forget(&mut self, now: Instant, number: Number, client: &Client, reason: EndReason) {
        self.peers.remove(&number);
        self.has_changed = true;
        self.counters.ended(reason);
        self.count_clients();
        let how = match reason {
            EndReason::Goodbye => "said goodbye",
            EndReason::Idle => "has been silent for too long",
            EndReason::Displaced => "gave way to another one there",
        };
        let (shown, endpoint) = (Shown(client.addresses), client.contact.endpoint);
        self.tell(now, &format_args!("client {shown} at {endpoint} {how}"));
    }

    /// The answer to who sends without being known: it shall say hello.
    fn ask_who(&mut self, now: Instant, from: Contact) {
        if self.questions.admit(now, from.endpoint.ip(), 1) {
            self.counters.questions.increment();
            self.say(from, &Answer::WhoAreYou);
        } else {
            self.refuse(now, from, DropReason::SourceRate);
        }
    }

    fn say(&mut self, to: Contact, answer: &Answer) {
        self.outbox.add(to, |bytes| write_answer(bytes, answer));
    }

    /// Drops a message. At debug level, as it is no fault of ours.
    fn refuse(&mut self, now: Instant, from: Contact, reason: DropReason) {
        self.counters.dropped(reason, 1);
        if log::log_enabled!(log::Level::Debug) {
            if let Some(more) = self.trouble_log.pass(now) {
                let (endpoint, reason) = (from.endpoint, reason.label());
                log::debug!("dropped a message of {endpoint}: {reason} ({more} more lines)");
            }
        }
    }

    fn trouble(&mut self, now: Instant, what: &dyn Display) {
        if let Some(more) = self.trouble_log.pass(now) {
            log::warn!("{what} ({more} more lines)");
        }
    }

    /// What has become of a client, unless there have been too many such lines lately.
    fn tell(&mut self, now: Instant, what: &dyn Display) {
        match self.client_log.pass(now) {
            Some(0) => log::info!("{what}"),
            Some(more) => log::info!("{what} ({more} more lines)"),
            None => {}
        }
    }

    fn count_clients(&self) {
        self.counters.clients.set(i64::try_from(self.clients.len()).unwrap_or(i64::MAX));
    }

    /// Ends those that are silent.
    pub(super) fn tend(&mut self, now: Instant) {
        let peers = &self.peers;
        let heard = |number| peers.get(&number)?.counters.last_heard();
        for (number, client) in self.clients.expire(now, heard) {
            self.forget(now, number, &client, EndReason::Idle);
        }
    }

    /// When [`Desk::tend`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.clients.next_deadline()
    }

    /// Whether the table has changed since the last question.
    pub(super) fn take_change(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }

    /// Who the peers are now.
    pub(super) fn table(&self) -> Table {
        let options = TableOptions {
            peer_to_peer: self.settings.client_to_client,
            reports_strangers: true,
            allow_from: self.settings.allow_from.clone(),
            own: self.settings.subnets.iter().map(Subnet::own).collect(),
        };
        Table::new(self.peers.values().map(Arc::clone), options)
    }

    /// Sends what has been answered.
    pub(super) fn send(&mut self, sockets: &Sockets) {
        self.outbox.send(sockets, &self.counters);
    }

    /// Tells every client that the server stops.
    pub(super) fn say_goodbye(&mut self) {
        for (_, client) in self.clients.iter() {
            if let Some(client_id) = client.id {
                let goodbye = Answer::Goodbye { client: client_id };
                self.outbox.add(client.contact, |bytes| write_answer(bytes, &goodbye));
            }
        }
    }

    pub(super) fn leases(&self) -> &Leases {
        self.clients.leases()
    }

    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    /// Every client, for `vpn status`.
    pub(super) fn peers(&self, now: Instant) -> Vec<status::Peer> {
        let shown = |(number, client): (Number, &Client)| {
            let peer = self.peers.get(&number)?;
            let addresses = client.addresses.iter().map(|it| it.to_string()).collect();
            let mut shown = status::Peer::of(&peer.counters, now);
            shown.endpoint = client.contact.endpoint.to_string();
            shown.addresses = addresses;
            shown.is_bare = client.id.is_none();
            Some(shown)
        };
        self.clients.iter().filter_map(shown).collect()
    }

    /// One line for whoever asks how it goes.
    pub(super) fn status_line(&self) -> String {
        let totals = self.peers.values().map(|peer| peer.counters.totals());
        let (bytes_in, bytes_out) =
            totals.fold((0, 0), |sum, it| (sum.0 + it.bytes_in, sum.1 + it.bytes_out));
        let clients = self.clients.len();
        format!("{clients} clients, {bytes_in} bytes from them, {bytes_out} bytes to them")
    }
}

impl Settings {
    fn welcome(&self, tx: u64, from: Contact, addresses: Addresses) -> Answer {
        let subnet = |is_ipv4: bool| {
            self.subnets.iter().find(move |subnet| subnet.own().is_ipv4() == is_ipv4)
        };
        let ipv4 = addresses.ipv4().zip(subnet(true)).and_then(|(address, subnet)| {
            let IpAddr::V4(server) = subnet.own() else { return None };
            Some(Assignment { address, prefix: subnet.prefix(), server })
        });
        let ipv6 = addresses.ipv6().zip(subnet(false)).and_then(|(address, subnet)| {
            let IpAddr::V6(server) = subnet.own() else { return None };
            Some(Assignment { address, prefix: subnet.prefix(), server })
        });
        let is_ipv4 = from.endpoint.ip().to_canonical().is_ipv4();
        Answer::Welcome {
            tx,
            ipv4,
            ipv6,
            mtu: self.mtu.unwrap_or_else(|| mtu_inside(self.path_mtu, is_ipv4)),
            keepalive_s: u16::try_from(self.keepalive.as_secs()).unwrap_or(u16::MAX).max(1),
            dns: self.dns,
        }
    }
}

/// A client's addresses, for a line.
struct Shown(Addresses);

impl Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, address) in self.0.iter().enumerate() {
            let blank = if index > 0 { " " } else { "" };
            write!(f, "{blank}{address}")?;
        }
        Ok(())
    }
}
