//! The client's sessions: opened within the limits, kept full of uplinks, closed when silent.

use super::{Client, Flow, NEED_INTERVAL, Session, ToMain, UplinkHandle};
use crate::net::random;
use crate::roles::pool::Activity;
use crate::roles::pool::backlog::Backlog;
use crate::roles::pool::batch::Links;
use crate::roles::pool::counters::DropReason;
use crate::roles::pool::link::{Sink, WAKE as LINK_WAKE};
use crate::roles::pool::server::Tells;
use crate::roles::pool::uplink::{Uplink, WORDS_MAX};
use crate::runtime::clock;
use crate::runtime::event_loop::EventLoop;
use crate::runtime::queue::{self, Wake};
use crate::runtime::thread;
use crate::wire::pool::SessionId;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// OpenSSL's handshake and its search for roots need more than our own code.
const STACK: usize = 256 * 1024;
/// How often sessions are looked after, at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// An expiry of zero would spin.
const MIN_TICK: Duration = Duration::from_millis(10);

impl Client {
    /// False when there is no room for it.
    pub(super) fn open_session(&mut self, flow: Flow, now: Instant) -> bool {
        let opened = if self.sessions.len() >= self.config.shared.sessions_max {
            Err(format!("--max-sessions {} are open", self.config.shared.sessions_max))
        } else {
            self.start_session(flow, now).map_err(|error| error.to_string())
        };
        match opened {
            Ok(session) => {
                self.route.shared.tell(session.id, &format_args!("opened for {}", flow.endpoint));
                self.sessions.insert(flow, session);
                let counters = &self.route.shared.counters;
                counters.sessions.add(1);
                counters.sessions_opened.increment();
                self.next_look.get_or_insert(now + LOOK_INTERVAL);
                true
            }
            Err(cause) => {
                if let Some(more) = self.limit_log.pass(now) {
                    log::warn!("no session for {}: {cause} ({more} more lines)", flow.endpoint);
                }
                false
            }
        }
    }

    fn start_session(&mut self, flow: Flow, now: Instant) -> io::Result<Session> {
        let mut session = Session {
            id: SessionId::from_random(random::bytes()?),
            uplinks: Vec::new(),
            next_fill: now + self.config.backoff,
            links: Links::new(self.route.queue_datagrams_max),
            activity: Arc::new(Activity::new(now)),
            backlog: Backlog::default(),
            // The first attempts are under way.
            next_need: now + NEED_INTERVAL,
        };
        match self.fill(flow, &mut session) {
            Ok(()) => Ok(session),
            // Fewer connections than asked for carry datagrams too.
            Err(error) if !session.uplinks.is_empty() => {
                let (id, count) = (session.id, session.uplinks.len());
                let few = format_args!("session {id}: only {count} connections: {error}");
                self.route.shared.warn(&few);
                Ok(session)
            }
            Err(error) => Err(error),
        }
    }

    /// Starts the uplinks that a session lacks, as far as the system has room for them.
    fn fill(&mut self, flow: Flow, session: &mut Session) -> io::Result<()> {
        while session.uplinks.len() < self.config.pool_size {
            if self.uplinks.len() >= self.uplinks_room {
                return Err(io::Error::other("no descriptors for more connections"));
            }
            let serial = self.start_uplink(session.id, flow, &session.activity)?;
            session.uplinks.push(serial);
        }
        Ok(())
    }

    fn start_uplink(
        &mut self,
        session: SessionId,
        flow: Flow,
        activity: &Arc<Activity>,
    ) -> io::Result<u64> {
        // Never twice the same, not even after a failure: ends are told by it.
        let serial = self.uplinks_started;
        self.uplinks_started += 1;
        let events = EventLoop::new()?;
        let wake = Wake::new(events.waker(LINK_WAKE)?);
        let (word_sender, words) = queue::bounded(WORDS_MAX, &wake);
        let uplink = Uplink {
            route: Arc::clone(&self.route),
            serial,
            session,
            flow,
            sink: Sink {
                socket: Arc::clone(&self.socket),
                endpoint: Some(flow.endpoint),
                source: flow.asked,
            },
            activity: Arc::clone(activity),
            words,
            word_sender: word_sender.clone(),
            to_main: self.to_main.clone(),
            events,
            wake,
            was_up: false,
            // Its session was opened for one.
            needed_at: Some(clock::now()),
        };
        let to_main = self.to_main.clone();
        let thread = thread::spawn("pool:up", serial, STACK, move || {
            // Made here: a thread that did not start tells nothing.
            let message = Some(ToMain::Gone { flow, session, serial });
            let _gone = Tells { message, to_main };
            uplink.run();
        })?;
        self.uplinks.insert(serial, UplinkHandle { words: word_sender, thread });
        Ok(serial)
    }

    /// Ends the sessions that have been silent for too long, and completes the others, now and then.
    pub(super) fn look_after_sessions(&mut self, now: Instant) {
        if self.next_look.is_none_or(|next| next > now) {
            return;
        }
        self.expire(now);
        self.refill(now);
        let interval = LOOK_INTERVAL.min(self.config.expire.max(MIN_TICK));
        self.next_look = (!self.sessions.is_empty()).then(|| now + interval);
    }

    /// Ends the sessions that have been silent both ways for too long.
    fn expire(&mut self, now: Instant) {
        let expire = self.config.expire;
        let (uplinks, shared) = (&self.uplinks, &self.route.shared);
        self.sessions.retain(|flow, session| {
            let silent = now.saturating_duration_since(session.activity.last());
            if silent < expire {
                return true;
            }
            shared.tell(session.id, &format_args!("closed, {} was silent", flow.endpoint));
            for serial in &session.uplinks {
                if let Some(uplink) = uplinks.get(serial) {
                    uplink.words.close();
                }
            }
            shared.counters.sessions.add(-1);
            shared.counters.drop(DropReason::NotConnected, session.backlog.datagrams());
            false
        });
    }

    /// Starts uplinks in the place of those that there was no room for, or whose threads have ended.
    fn refill(&mut self, now: Instant) {
        let lacks = |(flow, session): (&Flow, &Session)| {
            let is_short = session.uplinks.len() < self.config.pool_size;
            (is_short && session.next_fill <= now).then_some(*flow)
        };
        let short: Vec<Flow> = self.sessions.iter().filter_map(lacks).collect();
        for flow in short {
            if let Some(mut session) = self.sessions.remove(&flow) {
                session.next_fill = now + self.config.backoff;
                if let Err(error) = self.fill(flow, &mut session) {
                    // A warning has been given when it was opened, or its thread ended.
                    let count = session.uplinks.len();
                    log::debug!("session {}: still only {count} connections: {error}", session.id);
                }
                self.sessions.insert(flow, session);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::flags::{self, Parsed};
    use crate::net::udp::{Buffers, UdpSocket};
    use crate::roles::pool::route::route;
    use crate::roles::pool::{CLIENT_COMMAND, ErrorRun, Shared, args};
    use crate::runtime::metrics::Registry;
    use crate::runtime::queue::Receiver;
    use crate::state::token_bucket::LogGate;
    use mio::Token;
    use std::collections::HashMap;
    use std::net::SocketAddr;

    const BACKOFF: Duration = Duration::from_secs(5);

    /// A client of a server that is not there, and what stands in for its main loop.
    struct Bench {
        client: Client,
        messages: Receiver<ToMain>,
        events: EventLoop,
    }

    impl Bench {
        fn new(uplinks_room: usize) -> Bench {
            let words = ["--no-tls", "-n2", "--expire=1h", "127.0.0.1", "1"];
            let words = words.map(Into::into).to_vec();
            let Ok(Parsed::Run(matches)) = flags::parse(&CLIENT_COMMAND, words, &|_| None) else {
                panic!("the options are wrong");
            };
            let config = args::client_config(&matches).unwrap();
            let shared = Arc::new(Shared::new(&mut Registry::new()));
            let local = "127.0.0.1:0".parse().unwrap();
            let events = EventLoop::new().unwrap();
            let wake = Wake::new(events.waker(Token(0)).unwrap());
            let (to_main, messages) = queue::bounded(64, &wake);
            let client = Client {
                route: Arc::new(route(&config, &shared).unwrap()),
                config,
                socket: Arc::new(UdpSocket::bind(local, false, Buffers::default()).unwrap()),
                sessions: HashMap::new(),
                uplinks: HashMap::new(),
                uplinks_started: 0,
                uplinks_room,
                to_main,
                next_look: None,
                limit_log: LogGate::new(1, 5),
                errors: ErrorRun::default(),
            };
            Bench { client, messages, events }
        }

        fn uplinks(&self, flow: Flow) -> &[u64] {
            &self.client.sessions[&flow].uplinks
        }

        /// Ends an uplink's thread, as a fault in it would, and waits until the client knows.
        fn lose(&mut self, serial: u64) {
            self.client.uplinks[&serial].words.close();
            while self.client.uplinks.contains_key(&serial) {
                self.events.wait(Some(Duration::from_secs(10))).unwrap();
                assert!(self.events.next_ready().is_some(), "nothing was told of the end");
                self.client.listen_to_uplinks(&self.messages);
            }
        }
    }

    fn flow(port: u16) -> Flow {
        Flow { endpoint: SocketAddr::from(([127, 0, 0, 1], port)), asked: None }
    }

    #[test]
    fn another_uplink_takes_the_place_of_one_that_has_ended_but_not_at_once() {
        let mut bench = Bench::new(100);
        let now = clock::now();
        assert!(bench.client.open_session(flow(1), now));
        assert_eq!(bench.uplinks(flow(1)), [0, 1]);
        bench.lose(0);
        assert_eq!(bench.uplinks(flow(1)), [1]);
        bench.client.look_after_sessions(now + LOOK_INTERVAL);
        assert_eq!(bench.uplinks(flow(1)), [1]);
        bench.lose(1);
        assert_eq!(bench.uplinks(flow(1)), [] as [u64; 0]);
        // The clock has gone on a little since `now`.
        bench.client.look_after_sessions(clock::now() + BACKOFF);
        assert_eq!(bench.uplinks(flow(1)), [2, 3]);
        bench.client.stop();
    }

    #[test]
    fn sessions_share_the_descriptors_and_get_what_others_leave() {
        let mut bench = Bench::new(3);
        let now = clock::now();
        assert!(bench.client.open_session(flow(1), now));
        assert!(bench.client.open_session(flow(2), now));
        assert!(!bench.client.open_session(flow(3), now));
        assert_eq!((bench.uplinks(flow(1)), bench.uplinks(flow(2))), (&[0, 1][..], &[2][..]));
        bench.client.look_after_sessions(now + BACKOFF);
        assert_eq!(bench.uplinks(flow(2)), [2]);
        bench.client.sessions.remove(&flow(1));
        bench.lose(0);
        assert!(bench.client.open_session(flow(3), now), "one is free");
        bench.lose(1);
        bench.client.look_after_sessions(now + 2 * BACKOFF);
        let counts = [2, 3].map(|port| bench.uplinks(flow(port)).len());
        assert_eq!(counts.iter().sum::<usize>(), 3);
        bench.client.stop();
    }
}
