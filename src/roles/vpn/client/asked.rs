//! What the operator asks of a running client.

use super::Client;
use crate::roles::control::Answer;
use crate::roles::vpn::counters::MESSAGES_DROPPED;
use crate::roles::vpn::status::{self, Status};
use crate::runtime::metrics::Registry;
use std::time::Instant;

impl Client {
    /// What the operator asks; `None` is answered by the end.
    pub(super) fn answer(
        &mut self,
        question: &str,
        now: Instant,
        registry: &Registry,
    ) -> Option<Answer> {
        use Answer::{Done, Refused};
        match question {
            "status" => Some(Done(self.status(now, registry).text())),
            "status json" => Some(Done(self.status(now, registry).json())),
            "confirm" if self.confirm_by.is_some() && self.settled.is_none() => {
                self.confirm_by = None;
                let tun = &self.config.shared.tun;
                log::info!("{tun}: the kill switch is confirmed");
                let more = "the tunnel is not up yet and will have to be confirmed when it is";
                Some(Done(format!("{tun}: the kill switch stays; {more}\n")))
            }
            "confirm" if self.confirm_by.take().is_some() => {
                log::info!("{}: confirmed", self.config.shared.tun);
                Some(Done(format!("{}: confirmed, everything stays\n", self.config.shared.tun)))
            }
            "confirm" => Some(Refused("nothing waits for it".into())),
            "down" => None,
            _ => Some(Refused("no such question".into())),
        }
    }

    fn status(&self, now: Instant, registry: &Registry) -> Status {
        let state = match (self.connection.is_up(), &self.settled) {
            (true, _) => "connected",
            (false, Some(_)) => "looking for the server again",
            (false, None) => "looking for the server",
        };
        let addresses: Vec<String> =
            self.device.addresses().iter().map(ToString::to_string).collect();
        let mut facts = vec![
            ("server", self.config.server.to_string()),
            ("state", state.to_owned()),
            ("addresses", addresses.join(" ")),
            ("mtu", self.device.mtu().to_string()),
            ("offloads", status::offloads(&self.device.tun, &self.sockets)),
        ];
        if let Some(by) = self.confirm_by {
            let left = by.saturating_duration_since(now).as_secs();
            facts.push(("confirm", format!("within {left} s, or all is undone")));
        }
        let peers = self.settled.as_ref().map(|settled| {
            let mut peer = status::Peer::of(&self.server_counters, now);
            peer.endpoint = settled.server.to_string();
            peer.addresses = settled.server_addresses().map(|it| it.to_string()).collect();
            peer
        });
        Status {
            device: self.config.shared.tun.clone(),
            side: "client",
            up_for: now.saturating_duration_since(self.started),
            facts,
            peers: peers.into_iter().collect(),
            drops: status::drops(registry, MESSAGES_DROPPED),
        }
    }

    pub(super) fn status_line(&self) -> String {
        let totals = self.server_counters.totals();
        let state = if self.connection.is_up() { "connected to" } else { "looking for" };
        let (server, bytes_in, bytes_out) =
            (&self.config.server, totals.bytes_in, totals.bytes_out);
        format!("{state} {server}, {bytes_in} bytes from it, {bytes_out} bytes to it")
    }
}
