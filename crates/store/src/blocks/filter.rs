//! A set of digests that takes the same memory however many are in it: it forgets none, and takes a few others for its
//! own (a Bloom filter).

use std::hash::{BuildHasher, RandomState};

/// Bits that each digest sets: four is the best where 2^27 hold about 20 million.
const MARKS: usize = 4;
const WORD_BITS: u64 = 64;

pub(super) struct Filter {
    words: Vec<u64>,
    bits: u64,
    /// Says where the bits are: another place in each filter, so that what one takes for its own the next does not.
    seed: RandomState,
}

impl Filter {
    /// An empty one of so many words of 64 bits.
    pub(super) fn of_words(words: u32) -> Self {
        let bits = u64::from(words) * WORD_BITS;
        Self { words: (0..words).map(|_| 0).collect(), bits, seed: RandomState::new() }
    }

    /// True if it was certainly not in before.
    pub(super) fn insert(&mut self, digest: &[u8; 32]) -> bool {
        let mut is_new = false;
        for (word, bit) in self.places(digest) {
            is_new |= self.words[word] & bit == 0;
            self.words[word] |= bit;
        }
        is_new
    }

    /// True for each that was put in, and for a few others.
    pub(super) fn holds(&self, digest: &[u8; 32]) -> bool {
        self.places(digest).iter().all(|(word, bit)| self.words[*word] & bit != 0)
    }

    /// The words and the bits in them that stand for a digest.
    fn places(&self, digest: &[u8; 32]) -> [(usize, u64); MARKS] {
        let hash = self.seed.hash_one(digest);
        // Two hashes make as many as are needed (Kirsch and Mitzenmacher); an odd step meets every place.
        let (mut bit, step) = (hash >> 32, hash & u64::from(u32::MAX) | 1);
        [(); MARKS].map(|()| {
            bit += step;
            let at = bit % self.bits;
            (usize::try_from(at / WORD_BITS).expect("an index into memory"), 1 << (at % WORD_BITS))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cid::sha256;

    /// Of 100,000 digests that are in neither, how many `one` takes for its own, and how many of those `other` does too.
    fn taken(one: &Filter, other: &Filter) -> (usize, usize) {
        let strangers = (0..100_000u32).map(|number| sha256(format!("stranger {number}").as_bytes()));
        let kept: Vec<_> = strangers.filter(|digest| one.holds(digest)).collect();
        (kept.len(), kept.iter().filter(|digest| other.holds(digest)).count())
    }

    #[test]
    fn none_is_forgotten_and_another_seed_takes_other_strangers() {
        // The 1024th part of what `gc` takes, for that part of 4 and of 40 million.
        for (count, shares, again) in [(3_906u32, 0..=60, 0..=3), (39_062, 22_500..=24_500, 5_000..=6_100)] {
            let mut filters = [Filter::of_words(2 << 10), Filter::of_words(2 << 10)];
            let digests: Vec<_> = (0..count).map(|number| sha256(&number.to_le_bytes())).collect();
            for filter in &mut filters {
                let new = digests.iter().filter(|digest| filter.insert(digest)).count();
                assert!(new > digests.len() / 10 * 9, "{new} of {count} were new");
                assert!(digests.iter().all(|digest| filter.holds(digest)));
            }
            let (kept, kept_again) = taken(&filters[0], &filters[1]);
            assert!(shares.contains(&kept) && again.contains(&kept_again), "{count}: {kept}, then {kept_again}");
        }
    }
}
