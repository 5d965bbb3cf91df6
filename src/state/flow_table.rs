//! A client's flows: found by conid or by who answers, bounded, the least recently used first out.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The number of one of the client's UDP sockets.
pub type SocketId = usize;

/// Where a flow stands in its table; valid until the flow is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowId(usize);

/// One flow: the client's conid on one side, a remote endpoint behind one of our sockets on the
/// other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The client's number for it.
    pub conid: u16,
    /// The address as the client gave it; replies carry it.
    pub address: SocketAddr,
    /// Where its datagrams really go and whose answers count.
    pub remote: SocketAddr,
    /// The socket it uses.
    pub socket: SocketId,
    /// When a datagram last passed, either way.
    pub last_used: Instant,
    /// Of a DNS flow, how many queries wait for their answers.
    pub queries: Option<u32>,
}

/// Flows of one client, at most `capacity`, forgotten after `idle_timeout`.
#[derive(Debug)]
pub struct FlowTable {
    slots: Vec<Slot>,
    free: Vec<usize>,
    by_conid: HashMap<u16, usize>,
    by_remote: HashMap<(SocketId, SocketAddr), usize>,
    /// Most recently used, the head of a list through `Slot::older`.
    newest: Option<usize>,
    oldest: Option<usize>,
    capacity: usize,
    idle_timeout: Option<Duration>,
}

#[derive(Debug)]
struct Slot {
    flow: Flow,
    newer: Option<usize>,
    older: Option<usize>,
}

impl FlowTable {
    /// An empty table, which holds no memory yet. `capacity` of 0 counts as 1; an `idle_timeout`
    /// of `None` keeps flows until they are pushed out.
    pub fn new(capacity: usize, idle_timeout: Option<Duration>) -> FlowTable {
        FlowTable {
            slots: Vec::new(),
            free: Vec::new(),
            by_conid: HashMap::new(),
            by_remote: HashMap::new(),
            newest: None,
            oldest: None,
            capacity: capacity.max(1),
            idle_timeout,
        }
    }

    /// How many flows there are.
    pub fn len(&self) -> usize {
        self.by_conid.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_conid.is_empty()
    }

    /// The flow of that conid.
    pub fn by_conid(&self, conid: u16) -> Option<FlowId> {
        self.by_conid.get(&conid).copied().map(FlowId)
    }

    /// The flow whose answers come from `remote` to `socket`.
    pub fn by_remote(&self, socket: SocketId, remote: SocketAddr) -> Option<FlowId> {
        self.by_remote.get(&(socket, remote)).copied().map(FlowId)
    }

    /// The flow itself. Panics on an id whose flow was removed.
    pub fn get(&self, id: FlowId) -> &Flow {
        &self.slots[id.0].flow
    }

    /// The least recently used flow that `is_it`. Linear.
    pub fn oldest_that(&self, is_it: impl Fn(&Flow) -> bool) -> Option<FlowId> {
        let mut next = self.oldest;
        while let Some(index) = next {
            let slot = &self.slots[index];
            if is_it(&slot.flow) {
                break;
            }
            next = slot.newer;
        }
        next.map(FlowId)
    }

    /// Counts a datagram of a DNS flow as a query.
    pub fn count_query(&mut self, id: FlowId) {
        if let Some(queries) = &mut self.slots[id.0].flow.queries {
            *queries = queries.saturating_add(1);
        }
    }

    /// Counts an answer on a DNS flow; true when it was the last that was waited for.
    pub fn count_answer(&mut self, id: FlowId) -> bool {
        let Some(queries) = &mut self.slots[id.0].flow.queries else {
            return false;
        };
        *queries = queries.saturating_sub(1);
        *queries == 0
    }

    /// Marks the flow as used `now`: last in line for eviction and expiry.
    pub fn touch(&mut self, id: FlowId, now: Instant) {
        self.slots[id.0].flow.last_used = now;
        if self.newest != Some(id.0) {
            self.unlink(id.0);
            self.link_newest(id.0);
        }
    }

    /// The flow that must go before another fits, if the table is full: the least recently used.
    pub fn surplus(&self) -> Option<FlowId> {
        if self.len() < self.capacity { None } else { self.oldest() }
    }

    /// The least recently used flow.
    pub fn oldest(&self) -> Option<FlowId> {
        self.oldest.map(FlowId)
    }

    /// Adds a flow, as the most recently used.
    ///
    /// The caller has made room ([`FlowTable::surplus`]), has removed any flow of that conid, and
    /// has chosen a socket on which no other flow has that remote.
    pub fn insert(&mut self, flow: Flow) -> FlowId {
        debug_assert!(self.by_conid(flow.conid).is_none(), "{flow:?} has a twin by conid");
        debug_assert!(self.by_remote(flow.socket, flow.remote).is_none(), "{flow:?} has a twin");
        let slot = Slot { flow, newer: None, older: None };
        let index = if let Some(index) = self.free.pop() {
            self.slots[index] = slot;
            index
        } else {
            self.slots.push(slot);
            self.slots.len() - 1
        };
        self.by_conid.insert(flow.conid, index);
        self.by_remote.insert((flow.socket, flow.remote), index);
        self.link_newest(index);
        FlowId(index)
    }

    /// Removes a flow and returns it.
    pub fn remove(&mut self, id: FlowId) -> Flow {
        let flow = self.slots[id.0].flow;
        self.unlink(id.0);
        self.by_conid.remove(&flow.conid);
        self.by_remote.remove(&(flow.socket, flow.remote));
        self.free.push(id.0);
        flow
    }

    /// The next flow that has been idle too long at `now`, if any.
    pub fn expired(&self, now: Instant) -> Option<FlowId> {
        let oldest = self.oldest?;
        let idle = now.saturating_duration_since(self.slots[oldest].flow.last_used);
        (idle >= self.idle_timeout?).then_some(FlowId(oldest))
    }

    /// When [`FlowTable::expired`] is worth asking again.
    pub fn next_expiry(&self) -> Option<Instant> {
        let oldest = self.oldest?;
        self.slots[oldest].flow.last_used.checked_add(self.idle_timeout?)
    }

    fn link_newest(&mut self, index: usize) {
        self.slots[index].newer = None;
        self.slots[index].older = self.newest;
        match self.newest {
            Some(second) => self.slots[second].newer = Some(index),
            None => self.oldest = Some(index),
        }
        self.newest = Some(index);
    }

    fn unlink(&mut self, index: usize) {
        let (newer, older) = (self.slots[index].newer, self.slots[index].older);
        match newer {
            Some(newer) => self.slots[newer].older = older,
            None => self.newest = older,
        }
        match older {
            Some(older) => self.slots[older].newer = newer,
            None => self.oldest = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[allow(clippy::disallowed_methods)] // Tests count from whatever instant they start at.
    fn start() -> Instant {
        Instant::now()
    }

    fn flow(conid: u16, socket: SocketId, last_used: Instant) -> Flow {
        let remote = SocketAddr::from(([192, 0, 2, 1], conid));
        Flow { conid, address: remote, remote, socket, last_used, queries: None }
    }

    #[test]
    fn finds_flows_by_conid_and_by_remote() {
        let now = start();
        let mut table = FlowTable::new(10, None);
        let id = table.insert(flow(7, 2, now));
        assert_eq!(table.by_conid(7), Some(id));
        assert_eq!(table.by_remote(2, flow(7, 2, now).remote), Some(id));
        assert_eq!(table.by_remote(3, flow(7, 2, now).remote), None);
        assert_eq!(table.remove(id), flow(7, 2, now));
        assert!(table.is_empty());
        assert_eq!(table.by_conid(7), None);
        assert_eq!(table.by_remote(2, flow(7, 2, now).remote), None);
    }

    #[test]
    fn the_least_recently_used_is_surplus() {
        let now = start();
        let mut table = FlowTable::new(3, None);
        for conid in 1..=3 {
            assert_eq!(table.surplus(), None);
            table.insert(flow(conid, 0, now));
        }
        table.touch(table.by_conid(1).unwrap(), now);
        let surplus = table.surplus().unwrap();
        assert_eq!(table.get(surplus).conid, 2);
    }

    #[test]
    fn a_dns_flow_is_done_with_the_answer_to_its_last_query() {
        let now = start();
        let mut table = FlowTable::new(3, None);
        let query = table.insert(Flow { queries: Some(0), ..flow(1, 0, now) });
        let other = table.insert(flow(2, 0, now));
        for id in [query, query, other] {
            table.count_query(id);
        }
        assert!(!table.count_answer(other));
        assert!(!table.count_answer(query));
        assert!(table.count_answer(query));
        assert_eq!(table.oldest_that(|flow| flow.queries.is_none()), Some(other));
        assert_eq!(table.oldest_that(|flow| flow.conid == 9), None);
    }

    #[test]
    fn idle_flows_expire_in_order_and_used_ones_do_not() {
        let begin = start();
        let timeout = Duration::from_secs(30);
        let mut table = FlowTable::new(10, Some(timeout));
        assert_eq!(table.next_expiry(), None);
        table.insert(flow(1, 0, begin));
        table.insert(flow(2, 0, begin + Duration::from_secs(10)));
        assert_eq!(table.next_expiry(), Some(begin + timeout));
        table.touch(table.by_conid(1).unwrap(), begin + Duration::from_secs(20));
        assert_eq!(table.next_expiry(), Some(begin + Duration::from_secs(40)));
        assert_eq!(table.expired(begin + Duration::from_secs(39)), None);
        let expired = table.expired(begin + Duration::from_secs(40)).unwrap();
        assert_eq!(table.remove(expired).conid, 2);
        assert_eq!(table.expired(begin + Duration::from_secs(40)), None);
    }

    proptest! {
        /// Against a plain list, newest last, with a linear search for everything.
        #[test]
        fn behaves_as_a_plain_list(steps in proptest::collection::vec((0u8..3, 0u16..12), 0..200)) {
            let begin = start();
            let capacity = 5;
            let mut table = FlowTable::new(capacity, Some(Duration::from_secs(20)));
            let mut list: Vec<Flow> = Vec::new();
            for (second, (step, conid)) in (0u64..).zip(steps) {
                let now = begin + Duration::from_secs(second);
                match step {
                    0 => {
                        if let Some(id) = table.by_conid(conid) {
                            table.remove(id);
                            list.retain(|flow| flow.conid != conid);
                        } else if let Some(id) = table.surplus() {
                            let gone = table.remove(id);
                            prop_assert_eq!(gone, list.remove(0));
                        }
                        table.insert(flow(conid, 1, now));
                        list.push(flow(conid, 1, now));
                    }
                    1 => {
                        let found = list.iter().position(|flow| flow.conid == conid);
                        prop_assert_eq!(table.by_conid(conid).is_some(), found.is_some());
                        if let (Some(id), Some(at)) = (table.by_conid(conid), found) {
                            table.touch(id, now);
                            let moved = list.remove(at);
                            list.push(Flow { last_used: now, ..moved });
                        }
                    }
                    _ => while let Some(id) = table.expired(now) {
                        prop_assert_eq!(table.remove(id), list.remove(0));
                    },
                }
                prop_assert_eq!(table.len(), list.len());
                prop_assert!(table.len() <= capacity);
                for flow in &list {
                    let id = table.by_conid(flow.conid).unwrap();
                    prop_assert_eq!(table.get(id), flow);
                    prop_assert_eq!(table.by_remote(1, flow.remote), Some(id));
                }
            }
        }
    }
}
