//! What the client and its server say to each other.

use super::settle::Settled;
use super::{Client, chance};
use crate::error::Error;
use crate::roles::host::Host;
use crate::roles::vpn::counters::{DropReason, Loss};
use crate::state::contact::Contact;
use crate::wire::vpn::{Answer, Refusal, Request, VERSION, Wish, parse_answer, write_request};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

impl Client {
    /// A message has come.
    pub(super) fn listen(
        &mut self,
        now: Instant,
        source: SocketAddr,
        bytes: &[u8],
        host: &mut Host,
    ) -> Result<(), Error> {
        let answer = match parse_answer(bytes) {
            Some(answer) if self.connection.server() == Some(source) => answer,
            Some(_) => {
                self.counters.dropped(DropReason::Unexpected, 1);
                return Ok(());
            }
            None => {
                self.counters.dropped(DropReason::Malformed, 1);
                return Ok(());
            }
        };
        let is_expected = match answer {
            Answer::Cookie { tx, cookie, endpoint } => {
                log::debug!("{source} sees us at {endpoint}");
                self.connection.on_cookie(now, tx, cookie)
            }
            Answer::Welcome { tx, ipv4, ipv6, mtu, keepalive_s, dns } => {
                let told = Duration::from_secs(keepalive_s.into());
                let keepalive = self.config.keepalive.unwrap_or(told);
                let is_welcome = self.connection.on_welcome(now, tx, keepalive);
                if is_welcome {
                    self.heard(now);
                    self.welcome(now, Settled { ipv4, ipv6, mtu, dns, server: source }, host)?;
                }
                is_welcome
            }
            Answer::Alive { tx } => {
                self.heard(now);
                self.connection.on_alive(now, tx)
            }
            Answer::WhoAreYou => {
                let is_news = self.connection.on_who_are_you(now);
                if is_news {
                    self.lose(now, Loss::Unknown, "it does not know us, or not at this endpoint");
                }
                is_news
            }
            Answer::Goodbye { client } => {
                let is_news =
                    client == self.identity.id && self.connection.on_goodbye(now, chance());
                if is_news {
                    self.lose(now, Loss::Goodbye, "it said goodbye");
                }
                is_news
            }
            Answer::Refused { tx, reason } => {
                let is_refused = self.connection.on_refused(now, tx, chance());
                if is_refused {
                    let server = &self.config.server;
                    log::error!("{server} refuses this client: {}", words(reason));
                }
                is_refused
            }
            Answer::OtherVersion { tx, version } => {
                let is_refused = self.connection.on_refused(now, tx, chance());
                if is_refused {
                    let server = &self.config.server;
                    log::error!("{server} speaks version {version}, this client {VERSION}");
                }
                is_refused
            }
        };
        if !is_expected {
            self.counters.dropped(DropReason::Unexpected, 1);
        }
        Ok(())
    }

    fn heard(&self, now: Instant) {
        self.server_counters.heard(now);
    }

    pub(super) fn lose(&mut self, now: Instant, how: Loss, words: &str) {
        self.counters.lost(how);
        self.counters.connected.set(0);
        if let Some(more) = self.log_gate.pass(now) {
            log::info!("asking {} again: {words}{}", self.config.server, suppressed(more));
        }
    }

    pub(super) fn say(&mut self, to: SocketAddr, request: &Request) {
        let Some(socket) = self.sockets.number_for(to) else { return };
        let contact = Contact { endpoint: to, socket, local: None };
        self.outbox.add(contact, |bytes| write_request(bytes, request));
    }

    /// What it insists on, else what it had.
    pub(super) fn wishes(&self) -> (Wish<Ipv4Addr>, Wish<Ipv6Addr>) {
        let settled = self.settled.as_ref();
        let had_ipv4 = settled.and_then(|settled| settled.ipv4).map(|ipv4| ipv4.address);
        let had_ipv6 = settled.and_then(|settled| settled.ipv6).map(|ipv6| ipv6.address);
        (wish(self.config.fixed.ipv4, had_ipv4), wish(self.config.fixed.ipv6, had_ipv6))
    }
}

/// What a line says of those that were not written.
pub(super) fn suppressed(more: u64) -> String {
    if more == 0 { String::new() } else { format!(" ({more} more lines)") }
}

fn wish<A>(fixed: Option<(A, u8)>, had: Option<A>) -> Wish<A> {
    match (fixed, had) {
        (Some((address, _)), _) => Wish::Only(address),
        (None, Some(address)) => Wish::Rather(address),
        (None, None) => Wish::Any,
    }
}

fn words(reason: Refusal) -> &'static str {
    match reason {
        Refusal::Full => "it is full, as many clients are there as it takes (--max-clients)",
        Refusal::NoAddress => "its pool has no address left",
        Refusal::AddressTaken => "another client has the address (--address)",
        Refusal::AddressOutside => "the address is not a client's in its network (--address)",
    }
}
