//! Rules: which routing table is asked, and when (ip-rule(8)).

use super::{Netlink, Network, family};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::io;

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Rules are asked in the order of their priorities, the smallest first; the main table's is 32766.
    pub priority: u32,
    /// The packets that it is for, and its family; a length of 0 is all of that family.
    pub to: Network,
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

    /// The priorities and tables of all rules of both families.
    pub fn rules(&mut self) -> io::Result<Vec<(u32, u32)>> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            for answer in self.list(RouteNetlinkMessage::GetRule(message))? {
                let RouteNetlinkMessage::NewRule(rule) = answer else { continue };
                let (mut priority, mut table) = (0, u32::from(rule.header.table));
                for attribute in rule.attributes {
                    match attribute {
                        RuleAttribute::Priority(number) => priority = number,
                        RuleAttribute::Table(number) => table = number,
                        _ => {}
                    }
                }
                found.push((priority, table));
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
    message.attributes.push(RuleAttribute::Priority(rule.priority));
    message.attributes.push(RuleAttribute::Table(rule.table));
    if rule.to.length > 0 {
        message.attributes.push(RuleAttribute::Destination(rule.to.address));
    }
    message
}
