//! Chance from a seed: SplitMix64, after Steele, Lea and Flood (2014), public domain constants. Its sequence is part of
//! what a seed means, so it is written down here and not left to a library's next version.

/// The same seed gives the same draws, on every machine.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.draw() % n
    }

    /// True in about `permille` of a thousand draws.
    pub fn of_1000(&mut self, permille: u64) -> bool {
        self.below(1_000) < permille
    }

    /// One of these, of which there is at least one.
    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        let index = usize::try_from(self.below(from.len().try_into().expect("a length"))).expect("below a length");
        from[index].clone()
    }
}
