//! The datagrams in flight, and how an answer is known to be the right one.
//!
//! ```text
//! payload = run:u64 . slot:u64 . seq:u64 . sent_ns:u64 . pattern
//! ```
//!
//! A *slot* is one place in one flow's window. Slots are numbered through all flows of all clients,
//! so a slot names its flow. The pattern starts at a place of a fixed table that `seq` chooses:
//! making it is a copy, checking it a comparison.

use std::ops::Range;

/// The smallest payload: its header.
pub(crate) const PAYLOAD_LEN_MIN: usize = 32;
/// The pattern repeats after that many datagrams; a prime, so that no window size divides it.
const PATTERN_STARTS: u64 = 251;

/// What an incoming payload turned out to be.
pub(crate) enum Answer {
    /// The answer to the datagram in `slot`, which is free now.
    Expected { slot: usize, round_trip_ns: u64 },
    /// An intact datagram that nobody waits for any more: late, or there twice.
    Unexpected,
    /// Not what was sent, or not where it was sent from.
    Corrupt,
}

#[derive(Clone, Copy)]
struct Slot {
    /// 0 when free.
    seq: u64,
    sent_ns: u64,
}

/// All windows of all flows.
pub(crate) struct Windows {
    run: u64,
    slots: Vec<Slot>,
    next_seq: u64,
    payload_len: usize,
    table: Vec<u8>,
}

impl Windows {
    /// `run` tells this program's datagrams from an earlier one's.
    pub(crate) fn new(run: u64, slots: usize, payload_len: usize) -> Windows {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let starts = usize::try_from(PATTERN_STARTS).unwrap_or(0);
        let table = std::iter::repeat_with(|| {
            // xorshift64: bytes without a short period.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .take(payload_len + starts)
        .collect();
        let slots = vec![Slot { seq: 0, sent_ns: 0 }; slots];
        Windows { run, slots, next_seq: 1, payload_len, table }
    }

    pub(crate) fn payload_len(&self) -> usize {
        self.payload_len
    }

    /// Puts a new datagram into `slot` and appends its payload to `out`.
    pub(crate) fn write_payload(&mut self, slot: usize, now_ns: u64, out: &mut Vec<u8>) {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.slots[slot] = Slot { seq, sent_ns: now_ns };
        for field in [self.run, slot as u64, seq, now_ns] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(pattern(&self.table, seq, self.payload_len));
    }

    /// Judges a payload that came for one of the flows whose slots are `expected`.
    pub(crate) fn accept(
        &mut self,
        payload: &[u8],
        expected: &Range<usize>,
        now_ns: u64,
    ) -> Answer {
        let Some((header, rest)) = payload.split_first_chunk::<PAYLOAD_LEN_MIN>() else {
            return Answer::Corrupt;
        };
        let [run, slot, seq, sent_ns] = fields(header);
        let Ok(slot) = usize::try_from(slot) else {
            return Answer::Corrupt;
        };
        if payload.len() != self.payload_len || rest != pattern(&self.table, seq, self.payload_len)
        {
            return Answer::Corrupt;
        }
        if run != self.run {
            return Answer::Unexpected;
        }
        if !expected.contains(&slot) || seq >= self.next_seq {
            return Answer::Corrupt;
        }
        let waiting = &mut self.slots[slot];
        if waiting.seq != seq {
            return Answer::Unexpected;
        }
        if waiting.sent_ns != sent_ns {
            return Answer::Corrupt;
        }
        waiting.seq = 0;
        Answer::Expected { slot, round_trip_ns: now_ns.saturating_sub(sent_ns) }
    }

    /// Frees the slots among `slots` whose datagram left before `deadline_ns` and names them in
    /// `lost`.
    pub(crate) fn expire(&mut self, slots: Range<usize>, deadline_ns: u64, lost: &mut Vec<usize>) {
        for slot in slots {
            let waiting = &mut self.slots[slot];
            if waiting.seq != 0 && waiting.sent_ns < deadline_ns {
                waiting.seq = 0;
                lost.push(slot);
            }
        }
    }
}

fn pattern(table: &[u8], seq: u64, payload_len: usize) -> &[u8] {
    let start = usize::try_from(seq % PATTERN_STARTS).unwrap_or(0);
    &table[start..start + payload_len - PAYLOAD_LEN_MIN]
}

fn fields(header: &[u8; PAYLOAD_LEN_MIN]) -> [u64; 4] {
    std::array::from_fn(|index| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&header[index * 8..index * 8 + 8]);
        u64::from_le_bytes(bytes)
    })
}
