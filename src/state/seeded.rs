//! Numbers that follow from a seed.

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014): even, and
/// no number twice in 2^64. Who sees some numbers can tell the next: it is for what an
/// authentication code protects, or what only the addressee sees.
#[derive(Debug, Clone)]
pub struct Seeded(u64);

impl Seeded {
    /// The sequence of a seed, which the caller has from the operating system, or a test from
    /// itself.
    pub fn new(seed: u64) -> Seeded {
        Seeded(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// The next number below `bound`, which is not 0. The bias is below 2^-32.
    pub fn below(&mut self, bound: u32) -> u32 {
        let scaled = (u128::from(self.next_u64()) * u128::from(bound)) >> 64;
        u32::try_from(scaled).unwrap_or(0)
    }
}

/// A number that looks unlike its neighbours: one to one.
pub fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference implementation's first numbers for the seed 1234567.
    #[test]
    fn agrees_with_the_reference() {
        let mut seeded = Seeded::new(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| seeded.next_u64()).collect();
        assert_eq!(
            first,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn stays_below_its_bound_and_reaches_all() {
        let mut seeded = Seeded::new(1);
        let mut seen = [false; 7];
        for _ in 0..200 {
            seen[usize::try_from(seeded.below(7)).unwrap()] = true;
        }
        assert_eq!(seen, [true; 7]);
    }
}
