//! What a member knows and tells of its own side: its addresses and its NAT.

use super::detect::Detector;
use super::run::Run;
use super::seal::{NONCE_LEN, made_ms, seal};
use super::start::random;
use crate::error::Error;
use crate::runtime::event_loop::EventLoop;
use crate::wire::peer::{Announcement, ENDPOINTS_MAX};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
pub(super) fn wall_clock_ms() -> u64 {
    let wall_clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(wall_clock.as_millis()).unwrap_or(u64::MAX)
}

impl Run {
    /// Makes a new announcement of what is so now.
    pub(super) fn announce(&mut self) -> Result<(), Error> {
        let made_ms = made_ms(wall_clock_ms(), self.last_made_ms);
        self.last_made_ms = Some(made_ms);
        let announcement = Announcement {
            public_key: self.handshakes.public().0,
            mapping: self.nat.mapping,
            filtering: self.nat.filtering,
            tries_hard: self.config.hard,
            serves: self.serving.is_some(),
            relay: self.config.relay,
            made_ms,
            name: self.config.name.clone(),
            endpoints: self.endpoints.iter().copied().take(ENDPOINTS_MAX).collect(),
        };
        let nonce = random::<NONCE_LEN>()?;
        self.sealed = seal(&self.keys, self.me, nonce, &announcement).unwrap_or_default();
        Ok(())
    }

    /// The announcement has changed: the servers get it now.
    fn announce_again(&mut self, now: Instant) {
        match self.announce() {
            Ok(()) => self.meeting.hurry(now),
            Err(error) => log::error!("{error}"),
        }
    }

    pub(super) fn check_addresses(&mut self, events: &mut EventLoop, now: Instant) {
        let endpoints = self.network.own_endpoints();
        if endpoints == self.endpoints {
            return;
        }
        log::info!("this host's addresses have changed");
        self.endpoints = endpoints;
        self.announce_again(now);
        for slot in 0..self.members.len() {
            if let Some(member) = self.members.get_mut(slot).and_then(Option::as_mut) {
                member.punch.recheck(now);
            }
            self.drive(slot, events, now);
        }
    }

    pub(super) fn start_detection(&mut self, events: &mut EventLoop, now: Instant) {
        if self.detector.is_some() {
            return;
        }
        let servers = self.meeting.places().iter().map(|place| place.endpoint);
        match Detector::start(servers, None, self.detect_token, events, now) {
            Ok(detector) => self.detector = detector,
            Err(error) => log::warn!("cannot look at the NAT: {error}"),
        }
        self.drive_detection(events, now);
    }

    pub(super) fn drive_detection(&mut self, events: &mut EventLoop, now: Instant) {
        let Some(detector) = &mut self.detector else {
            return;
        };
        detector.drive(&self.counters, now);
        let Some(report) = detector.report() else {
            return;
        };
        for line in report.to_string().lines() {
            log::info!("{line}");
        }
        let facts = report.facts(self.config.hard);
        if let Some(mut detector) = self.detector.take() {
            detector.close(events);
        }
        self.registers_from = now;
        let is_news = facts != self.nat;
        self.nat = facts;
        // The others need it for birthday probing alone; an announcement that changes has everybody
        // introduced, and probed, anew.
        if is_news && self.config.hard {
            self.announce_again(now);
        }
    }
}
