//! Commands over UDP. The seed's door, the control port, takes what came over the loopback device:
//! every address of this host works from this host, and nothing gets in from outside. Other doors
//! demand a proof.

use super::super::Config;
use super::super::counters::{CommandDrop, Counters};
use super::super::sockets::is_missing;
use super::key::Key;
use super::{Asker, Door};
use crate::error::Error;
use crate::net::sys::mmsg::receive::{RECEIVE_BATCH, ReceiveQueue};
use crate::net::sys::mmsg::send::SendQueue;
use crate::net::udp::{Buffers, UdpSocket};
use crate::runtime::clock;
use crate::runtime::event_loop::{EventLoop, Readiness};
use crate::state::contact::Contact;
use crate::state::mesh::replay::{Nonce, ReplayWindow, Stale};
use crate::state::token_bucket::{LogGate, TokenBucket};
use crate::wire::mesh::{SEALED_HEADER_LEN, Way, is_sealed, parse_sealed};
use mio::{Interest, Token};
use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What two clocks may differ by, one of which keeps time by itself.
const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_secs(60);
/// Commands with a proof that are remembered, for two minutes: 8 MiB at most.
const COMMANDS_REMEMBERED_MAX: usize = 131_072;
/// Proofs that are looked at in a second, at each door: garbage takes none of the commands' rate.
const PROOFS_PER_SECOND: u32 = 2000;
/// An answer on this host crosses no network: nearly the largest datagram.
const LOCAL_ANSWER_LEN_MAX: usize = 60_000;
/// An answer that crosses any IPv6 path unfragmented, less IPv6 and UDP headers.
const ANSWER_LEN_MAX: usize = 1232;

/// Two loopback sockets, and others.
pub(super) struct Datagrams {
    sockets: Vec<Socket>,
    first_token: usize,
    key: Option<Key>,
    replays: ReplayWindow,
    queue: ReceiveQueue,
    waiting: VecDeque<(Asker, Vec<u8>)>,
    ready: Vec<(Contact, Vec<u8>)>,
    send_queue: SendQueue,
    counters: Arc<Counters>,
    log: LogGate,
}

struct Socket {
    udp: UdpSocket,
    trust: Trust,
    /// Of commands. Each door has its own: what comes in at one closes no other.
    rate: TokenBucket,
    proofs: TokenBucket,
}

impl Socket {
    fn new(udp: UdpSocket, trust: Trust, config: &Config) -> Socket {
        let rate = config.control_rate;
        Socket {
            udp,
            trust,
            rate: TokenBucket::new(rate, rate),
            proofs: TokenBucket::new(PROOFS_PER_SECOND, PROOFS_PER_SECOND),
        }
    }

    /// Whether a datagram is looked at, and its command carried out.
    fn judge<'a>(
        &mut self,
        datagram: &'a [u8],
        key: Option<&Key>,
        replays: &mut ReplayWindow,
        (now, now_ms): (Instant, u64),
    ) -> Result<(Option<Nonce>, usize, &'a [u8]), CommandDrop> {
        if is_sealed(datagram) && !self.proofs.take(now) {
            return Err(CommandDrop::Rate);
        }
        let judged = judge(datagram, self.trust, key, replays, now_ms)?;
        if self.rate.take(now) { Ok(judged) } else { Err(CommandDrop::Rate) }
    }
}

/// What a command needs to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// Nothing: it is this host's own.
    Local,
    /// A proof.
    Proof,
    /// Nothing, as the operator wished.
    Anybody,
}

impl Datagrams {
    pub(super) fn open(
        config: &Config,
        events: &mut EventLoop,
        first_token: usize,
        floor_ms: Option<u64>,
        counters: &Arc<Counters>,
    ) -> Result<Datagrams, Error> {
        let mut sockets = Vec::new();
        if let Some(port) = config.control_port {
            let any: [SocketAddr; 2] =
                [(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()];
            for address in any {
                match UdpSocket::bind_for_this_host(address, Buffers::default()) {
                    Ok(socket) => sockets.push(Socket::new(socket, Trust::Local, config)),
                    // IPv6 may be switched off.
                    Err(error) if address.is_ipv6() && is_missing(&error) => {}
                    Err(error) => return Err(cannot(address, error)),
                }
            }
            log::info!("control on udp port {port}, for this host alone");
        }
        // What was said before this start is not repeated, also where nothing has been saved; a clock
        // that was far ahead once must not lock everybody out.
        let start_ms = clock::milliseconds_since_1970();
        let limit_ms = start_ms.saturating_add(milliseconds(CLOCK_DIFFERENCE_MAX));
        let floor_ms = Some(floor_ms.unwrap_or(0).clamp(start_ms, limit_ms));
        let trust = if config.insecure_control { Trust::Anybody } else { Trust::Proof };
        for address in &config.control_addresses {
            let socket = UdpSocket::listen(*address, Buffers::default())
                .map_err(|error| cannot(*address, error))?;
            log::info!("control on udp {address}");
            sockets.push(Socket::new(socket, trust, config));
        }
        for (index, Socket { udp, .. }) in sockets.iter_mut().enumerate() {
            events
                .register(udp.source(), Token(first_token + index), Interest::READABLE)
                .map_err(Error::while_doing(|| "cannot watch a control socket"))?;
        }
        let mut datagrams = Datagrams {
            sockets,
            first_token,
            key: None,
            replays: ReplayWindow::new(CLOCK_DIFFERENCE_MAX, COMMANDS_REMEMBERED_MAX, floor_ms),
            queue: ReceiveQueue::default(),
            waiting: VecDeque::new(),
            ready: Vec::new(),
            send_queue: SendQueue::default(),
            counters: Arc::clone(counters),
            log: LogGate::new(1, 10),
        };
        datagrams.load_key(config)?;
        Ok(datagrams)
    }

    /// Reads the key, if there is one.
    pub(super) fn load_key(&mut self, config: &Config) -> Result<(), Error> {
        self.key = config.control_key.as_deref().map(Key::load).transpose()?;
        Ok(())
    }

    pub(super) fn tokens(&self) -> usize {
        self.sockets.len()
    }

    pub(super) fn owns(&self, token: Token) -> bool {
        (self.first_token..self.first_token + self.sockets.len()).contains(&token.0)
    }

    pub(super) fn command_time_ms(&self) -> u64 {
        self.replays.newest_ms()
    }

    pub(super) fn receive(
        &mut self,
        token: Token,
        readiness: Readiness,
        now: Instant,
        events: &mut EventLoop,
    ) {
        let index = token.0 - self.first_token;
        let Some(Socket { udp, .. }) = self.sockets.get(index) else { return };
        match udp.receive(&mut self.queue) {
            Ok(count) => {
                let drops = udp.new_kernel_drops(&self.queue);
                self.counters.commands_dropped(CommandDrop::Kernel, drops.into());
                self.judge_all(index, now);
                if count == RECEIVE_BATCH {
                    events.again(token, readiness);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                if let Some(held_back) = self.log.pass(now) {
                    log::warn!("cannot receive commands: {error} ({held_back} lines held back)");
                }
                events.again(token, readiness);
            }
        }
    }

    /// Has what was received wait, as far as it counts.
    fn judge_all(&mut self, index: usize, now: Instant) {
        let now_ms = clock::milliseconds_since_1970();
        let Datagrams { sockets, queue, key, replays, waiting, counters, log, .. } = self;
        let Some(door) = sockets.get_mut(index) else { return };
        let trust = door.trust;
        for message in queue.messages() {
            let Some(endpoint) = message.source else { continue };
            let from = Contact { endpoint, socket: index, local: message.destination() };
            for datagram in message.datagrams() {
                match door.judge(datagram, key.as_ref(), replays, (now, now_ms)) {
                    Ok((proven, answer_len_max, body)) => {
                        let asker = Asker {
                            door: Door::Datagram { from, proven },
                            answer_len_max,
                            is_limited: trust == Trust::Anybody && proven.is_none(),
                            is_told_errors: false,
                        };
                        waiting.push_back((asker, body.to_vec()));
                    }
                    Err(reason) => {
                        counters.commands_dropped(reason, 1);
                        if let Some(held_back) = log.pass(now) {
                            log::warn!(
                                "command from {endpoint} dropped: {} ({held_back} lines held back)",
                                reason.label()
                            );
                        }
                    }
                }
            }
        }
    }

    pub(super) fn next_request(&mut self) -> Option<(Asker, Vec<u8>)> {
        self.waiting.pop_front()
    }

    pub(super) fn answer(&mut self, to: Contact, proven: Option<Nonce>, text: &str) {
        let bytes = match (proven, &self.key) {
            (Some(nonce), Some(key)) => {
                key.seal(Way::Answer, clock::milliseconds_since_1970(), nonce, text.as_bytes())
            }
            _ => text.as_bytes().to_vec(),
        };
        self.ready.push((to, bytes));
    }

    pub(super) fn flush(&mut self) {
        let ready = std::mem::take(&mut self.ready);
        for (index, Socket { udp, .. }) in self.sockets.iter().enumerate() {
            let mut batch = udp.batch(&mut self.send_queue);
            for (to, bytes) in ready.iter().filter(|(to, _)| to.socket == index) {
                batch.push_from(to.local, Some(to.endpoint), bytes);
            }
            let report = batch.finish();
            if report.segmentation_refused {
                udp.stop_segmentation();
            }
            let unsent = report.blocked + report.failed;
            self.counters.commands_dropped(CommandDrop::AnswerNotSent, unsent as u64);
        }
    }
}

/// What the datagram asks, the nonce of its proof, and how long the answer may be.
fn judge<'a>(
    datagram: &'a [u8],
    trust: Trust,
    key: Option<&Key>,
    replays: &mut ReplayWindow,
    now_ms: u64,
) -> Result<(Option<Nonce>, usize, &'a [u8]), CommandDrop> {
    if !is_sealed(datagram) {
        return match trust {
            Trust::Local => Ok((None, LOCAL_ANSWER_LEN_MAX, datagram)),
            // Its source may be forged: who is answered more than he sent could be made to flood
            // somebody.
            Trust::Anybody => Ok((None, datagram.len().min(ANSWER_LEN_MAX), datagram)),
            Trust::Proof => Err(CommandDrop::NoProof),
        };
    }
    let key = key.ok_or(CommandDrop::NoKey)?;
    let sealed = parse_sealed(datagram).ok_or(CommandDrop::WrongProof)?;
    if sealed.way != Way::Command || !key.proves(&sealed) {
        return Err(CommandDrop::WrongProof);
    }
    replays.count(now_ms, sealed.time_ms, sealed.nonce).map_err(|stale| match stale {
        Stale::Time => CommandDrop::WrongTime,
        Stale::Replayed => CommandDrop::Replayed,
        Stale::Full => CommandDrop::TooManyRemembered,
    })?;
    let answer_len_max = if trust == Trust::Local { LOCAL_ANSWER_LEN_MAX } else { ANSWER_LEN_MAX };
    Ok((Some(sealed.nonce), answer_len_max - SEALED_HEADER_LEN, sealed.body))
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn cannot(address: SocketAddr, error: io::Error) -> Error {
    Error::while_doing(|| format!("cannot bind udp {address} for control"))(error)
}
