//! What every role's main thread does beside its own work: signals, scrapes, watchdog, status and
//! the log lines that were asked for.

use super::startup::{ASKED_FOR, Running, Startup};
use crate::error::Error;
use crate::runtime::event_loop::{EventLoop, Readiness};
use crate::runtime::metrics::Registry;
use crate::runtime::queue::Wake;
use crate::runtime::scrape::{self, Scrapes};
use crate::runtime::signals::{Request, Signals};
use crate::runtime::{clock, notify};
use mio::{Interest, Token};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const SIGNALS: Token = Token(0);
const FIRST_SCRAPE: usize = 2;

/// The token of the main thread's own queues.
pub const WAKE: Token = Token(1);
/// The first token that is the role's own.
pub const FIRST_OWN: usize = FIRST_SCRAPE + scrape::TOKENS;

/// How often `systemctl status` is given new numbers.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// What the role itself must do something about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happening {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP; the log file has been reopened already.
    Reload,
    /// One of the role's own sources, or [`WAKE`], is ready.
    Ready(Token, Readiness),
    /// The round is over: see to what is due at the time given.
    RoundOver(Instant),
}

/// What happens at intervals.
#[derive(Debug)]
pub struct Ticker {
    interval: Option<Duration>,
    next: Option<Instant>,
}

impl Ticker {
    /// First due after one `interval`; never without one.
    pub fn new(interval: Option<Duration>, now: Instant) -> Ticker {
        Ticker { interval, next: interval.and_then(|interval| now.checked_add(interval)) }
    }

    /// Whether it is due; then it is due again after another interval.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = self.next.is_some_and(|next| next <= now);
        if due {
            self.next = self.interval.and_then(|interval| now.checked_add(interval));
        }
        due
    }
}

/// A main thread's poll and all that is common in it.
pub struct Frame {
    /// The main thread's poll.
    pub events: EventLoop,
    /// Where the role registers its counters.
    pub registry: Registry,
    signals: Signals,
    scrapes: Option<Scrapes>,
    running: Option<Running>,
    stats: Ticker,
    watchdog: Ticker,
    status: Ticker,
    waits: bool,
}

impl Frame {
    /// Takes over the process's signals and listens for scrapes, if there is an address for that.
    pub fn new(metrics: Option<SocketAddr>, stats: Option<Duration>) -> Result<Frame, Error> {
        let mut events = EventLoop::new().map_err(Error::while_doing(|| "cannot make a poll"))?;
        let mut signals =
            Signals::take().map_err(Error::while_doing(|| "cannot take over the signals"))?;
        events
            .register(&mut signals, SIGNALS, Interest::READABLE)
            .map_err(Error::while_doing(|| "cannot watch the signals"))?;
        let scrapes = metrics
            .map(|address| {
                Scrapes::listen(address, &mut events, FIRST_SCRAPE).map_err(Error::while_doing(
                    || format!("cannot listen for metrics on tcp {address}"),
                ))
            })
            .transpose()?;
        let now = clock::now();
        let tells_status = std::env::var_os("NOTIFY_SOCKET").is_some();
        let mut status = Ticker::new(tells_status.then_some(STATUS_INTERVAL), now);
        // The first at once, so that `systemctl status` never shows a service without a status.
        status.next = status.next.map(|_| now);
        Ok(Frame {
            events,
            registry: Registry::new(),
            signals,
            scrapes,
            running: None,
            stats: Ticker::new(stats, now),
            watchdog: Ticker::new(notify::watchdog_interval(), now),
            status,
            waits: false,
        })
    }

    /// The waker of the main thread's queues; its token is [`WAKE`]. Once.
    pub fn wake(&self) -> Result<Wake, Error> {
        let waker = self.events.waker(WAKE);
        waker.map(Wake::new).map_err(Error::while_doing(|| "cannot make a waker"))
    }

    /// Everything is open: gives up privileges, and says that the role is ready.
    pub fn ready(&mut self, startup: Startup) -> Result<(), Error> {
        if let Some(address) = self.scrapes.as_ref().and_then(|scrapes| scrapes.local_addr().ok()) {
            log::info!("serving metrics on tcp {address}");
        }
        self.running = Some(startup.ready()?);
        Ok(())
    }

    /// What happens next; waits for it, until `deadline` at the most. `numbers` are for those who
    /// ask how it goes: one line for the service manager, one for the log.
    pub fn next_happening(
        &mut self,
        deadline: Option<Instant>,
        numbers: impl Fn() -> (String, String),
    ) -> Result<Happening, Error> {
        loop {
            if std::mem::take(&mut self.waits) {
                self.wait(deadline)?;
            }
            let Some((token, readiness)) = self.events.next_ready() else {
                self.waits = true;
                let now = clock::now();
                self.keep_house(now, &numbers);
                return Ok(Happening::RoundOver(now));
            };
            if token == SIGNALS {
                if let Some(happening) = self.obey() {
                    return Ok(happening);
                }
            } else if let Some(scrapes) = self.scrapes.as_mut().filter(|it| it.owns(token)) {
                let now = clock::now();
                scrapes.handle(token, readiness, now, &mut self.events, &self.registry);
            } else {
                return Ok(Happening::Ready(token, readiness));
            }
        }
    }

    fn wait(&mut self, deadline: Option<Instant>) -> Result<(), Error> {
        let scrape = self.scrapes.as_ref().and_then(Scrapes::next_deadline);
        let deadlines = [deadline, scrape, self.stats.next, self.watchdog.next, self.status.next];
        let timeout = deadlines
            .into_iter()
            .flatten()
            .min()
            .map(|deadline| clock::until(deadline, clock::now()));
        self.events.wait(timeout).map_err(Error::while_doing(|| "cannot wait for events"))
    }

    fn obey(&mut self) -> Option<Happening> {
        let requests: Vec<Request> = self.signals.requests().collect();
        if requests.contains(&Request::Stop) {
            notify::stopping();
            return Some(Happening::Stop);
        }
        if requests.contains(&Request::Report) {
            log::info!(target: ASKED_FOR, "{}", self.registry.summary());
        }
        if requests.contains(&Request::Reload) {
            if let Some(Err(error)) = self.running.as_ref().map(|running| running.log.reopen()) {
                log::error!("cannot reopen the log, the old file stays: {error}");
            }
            return Some(Happening::Reload);
        }
        None
    }

    fn keep_house(&mut self, now: Instant, numbers: &impl Fn() -> (String, String)) {
        if let Some(scrapes) = &mut self.scrapes {
            scrapes.expire(now, &mut self.events);
        }
        if self.stats.is_due(now) {
            log::info!(target: ASKED_FOR, "{}", numbers().1);
        }
        if self.watchdog.is_due(now) {
            notify::watchdog();
        }
        if self.status.is_due(now) {
            notify::status(&numbers().0);
        }
    }
}
