//! Rules: which routing table is asked, and when (ip-rule(8)).

use super::{Netlink, Network, family};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::io;
use std::net::IpAddr;

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Rules are asked in the order of their priorities, the smallest first; the main table's is 32766.
    pub priority: u32,
    /// The packets that it is for, and its family; a length of 0 is all of that family.
    pub to: Network,
    /// Of these only what goes to this port, with UDP and TCP; takes Linux 4.17.
    pub port: Option<u16>,
    /// The table that is asked.
    pub table: u32,
}

impl Netlink {
    /// Adds a rule. `AlreadyExists`: it is there.
    pub fn add_rule(&mut self, rule: Rule) -> io::Result<()> {
        self.change(RouteNetlinkMessage::NewRule(message(rule)), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes a rule. `NotFound`: there is none.
    pub fn delete_rule(&mut self, rule: Rule) -> io::Result<()> {
        self.change(RouteNetlinkMessage::DelRule(message(rule)), 0)
    }

    /// All rules of both families, by what [`Rule`] knows of them.
    pub fn rules(&mut self) -> io::Result<Vec<Rule>> {
        let mut found = Vec::new();
        for (family, any) in [
            (AddressFamily::Inet, IpAddr::from([0; 4])),
            (AddressFamily::Inet6, IpAddr::from([0; 16])),
        ] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            for answer in self.list(RouteNetlinkMessage::GetRule(message))? {
                let RouteNetlinkMessage::NewRule(message) = answer else { continue };
                let to = Network { address: any, length: message.header.dst_len };
                let table = u32::from(message.header.table);
                let mut rule = Rule { priority: 0, to, port: None, table };
                for attribute in message.attributes {
                    match attribute {
                        RuleAttribute::Priority(number) => rule.priority = number,
                        RuleAttribute::Table(number) => rule.table = number,
                        RuleAttribute::Destination(address) => rule.to.address = address,
                        RuleAttribute::DestinationPortRange(ports) => rule.port = Some(ports.start),
                        _ => {}
                    }
                }
                found.push(rule);
            }
        }
        Ok(found)
    }
}

fn message(rule: Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(rule.to.address);
    message.header.action = RuleAction::ToTable;
    message.header.dst_len = rule.to.length;
    message.header.table = u8::try_from(rule.table).unwrap_or(0);
    // Others' rules systemd-networkd removes when it starts or a link changes, unless they are the kernel's
    // (ManageForeignRoutingPolicyRules= in networkd.conf(5)).
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::Kernel));
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    message.attributes.push(RuleAttribute::Table(rule.table));
    if let Some(port) = rule.port {
        let ports = RulePortRange { start: port, end: port };
        message.attributes.push(RuleAttribute::DestinationPortRange(ports));
    }
    if rule.to.length > 0 {
        message.attributes.push(RuleAttribute::Destination(rule.to.address));
    }
    message
}
