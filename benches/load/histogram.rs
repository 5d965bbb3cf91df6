//! A histogram of durations with a bounded relative error, as HDR histograms have.

/// Buckets per power of two: a value is known to 1 part in 128.
const SUB_BUCKETS: u64 = 128;
const SUB_BUCKET_BITS: u32 = SUB_BUCKETS.trailing_zeros();
/// 2^41 ns is 36 minutes; longer durations count as that.
const VALUE_BITS_MAX: u32 = 41;
const BUCKETS: usize = ((VALUE_BITS_MAX - SUB_BUCKET_BITS + 1) as usize) << SUB_BUCKET_BITS;

/// Counts durations in nanoseconds. Recording never allocates.
pub(crate) struct Histogram {
    counts: Box<[u64]>,
    total: u64,
    max_ns: u64,
}

impl Histogram {
    pub(crate) fn new() -> Histogram {
        Histogram { counts: vec![0; BUCKETS].into(), total: 0, max_ns: 0 }
    }

    pub(crate) fn record(&mut self, ns: u64) {
        self.counts[bucket(ns)] += 1;
        self.total += 1;
        self.max_ns = self.max_ns.max(ns);
    }

    pub(crate) fn max_ns(&self) -> u64 {
        self.max_ns
    }

    /// The duration that `per_mille` thousandths of the recorded ones do not exceed (the upper end
    /// of its bucket); 0 when nothing was recorded.
    pub(crate) fn quantile_ns(&self, per_mille: u64) -> u64 {
        let wanted = (self.total * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return upper_end(index as u64).min(self.max_ns);
            }
        }
        self.max_ns
    }
}

/// Values below 128 have a bucket each; above, the top eight bits of a value choose it.
fn bucket(ns: u64) -> usize {
    let ns = ns.min((1 << VALUE_BITS_MAX) - 1);
    let shift = (u64::BITS - ns.leading_zeros()).saturating_sub(SUB_BUCKET_BITS + 1);
    // Below BUCKETS, which is some thousands.
    usize::try_from((u64::from(shift) << SUB_BUCKET_BITS) + (ns >> shift)).unwrap_or(BUCKETS - 1)
}

fn upper_end(bucket: u64) -> u64 {
    let shift = (bucket >> SUB_BUCKET_BITS).saturating_sub(1);
    let first = bucket - (shift << SUB_BUCKET_BITS);
    ((first + 1) << shift) - 1
}
