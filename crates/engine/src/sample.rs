//! Choosing the next token. Pure: equal logits and equal seed give equal tokens.

use std::cmp::Ordering;

/// A candidate this many temperatures below the likeliest has e^-30 of its probability: all of a vocabulary of
/// them together vanish in the rounding of the sum, so they are left out before anything is sorted.
const NEGLIGIBLE: f32 = 30.0;

/// How many candidates are sorted at first when `top_p` wants the likeliest; usually they are enough.
const SORTED_FIRST: usize = 64;

/// One answer's chooser.
pub(crate) struct Sampler {
    temperature: f32,
    top_p: f32,
    top_k: usize,
    chance: Chance,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy)]
struct Candidate {
    token: usize,
    logit: f32,
    /// Not normalised: the likeliest has 1.
    weight: f64,
}

impl Sampler {
    /// `temperature` 0 is greedy, `top_k` 0 is no bound. Neither number may be NaN.
    pub(crate) fn new(temperature: f32, top_p: f32, top_k: u32, seed: u64) -> Sampler {
        Sampler {
            temperature,
            top_p,
            top_k: usize::try_from(top_k).unwrap_or(usize::MAX),
            chance: Chance(seed),
            candidates: Vec::new(),
        }
    }

    /// Index of the chosen token. The order is Hugging Face's: `top_k`, temperature, `top_p`.
    pub(crate) fn choose(&mut self, logits: &[f32]) -> usize {
        let (likeliest, max) = likeliest(logits);
        if self.temperature <= 0.0 || self.top_k == 1 || !max.is_finite() {
            return likeliest;
        }
        let floor = max - NEGLIGIBLE * self.temperature;
        self.candidates.clear();
        let near = logits.iter().enumerate().filter(|(_, logit)| **logit >= floor);
        self.candidates.extend(near.map(|(token, &logit)| Candidate {
            token,
            logit,
            weight: f64::from((logit - max) / self.temperature).exp(),
        }));
        if self.top_k > 0 && self.top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(self.top_k - 1, likelier_first);
            self.candidates.truncate(self.top_k);
            // The selection leaves them in an order of its own; the next sums want a defined one.
            self.candidates.sort_unstable_by(likelier_first);
        }
        let mut mass: f64 = self.candidates.iter().map(|candidate| candidate.weight).sum();
        if self.top_p < 1.0 {
            mass = self.keep_top_p(mass * f64::from(self.top_p));
        }
        self.draw(mass).unwrap_or(likeliest)
    }

    /// Keeps the likeliest candidates that reach `wanted` together, at least one. Returns their mass.
    fn keep_top_p(&mut self, wanted: f64) -> f64 {
        let mut sorted = SORTED_FIRST;
        loop {
            let count = sorted.min(self.candidates.len());
            if count < self.candidates.len() {
                self.candidates.select_nth_unstable_by(count, likelier_first);
            }
            self.candidates[..count].sort_unstable_by(likelier_first);
            let mut mass = 0.0;
            for (index, candidate) in self.candidates[..count].iter().enumerate() {
                mass += candidate.weight;
                if mass >= wanted {
                    self.candidates.truncate(index + 1);
                    return mass;
                }
            }
            if count == self.candidates.len() {
                return mass;
            }
            sorted *= 8;
        }
    }

    fn draw(&mut self, mass: f64) -> Option<usize> {
        let mut left = self.chance.next() * mass;
        for candidate in &self.candidates {
            left -= candidate.weight;
            if left < 0.0 {
                return Some(candidate.token);
            }
        }
        // Rounding can leave a crumb; it belongs to the last one.
        self.candidates.last().map(|candidate| candidate.token)
    }
}

/// Of equals, the one with the smaller number: the order is total, so it depends on nothing else.
fn likelier_first(one: &Candidate, other: &Candidate) -> Ordering {
    other.logit.total_cmp(&one.logit).then(one.token.cmp(&other.token))
}

/// The largest logit and the first token that has it. NaN never wins.
fn likeliest(logits: &[f32]) -> (usize, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, &logit) in logits.iter().enumerate() {
        if logit > best.1 {
            best = (token, logit);
        }
    }
    best
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and good enough to draw words.
struct Chance(u64);

impl Chance {
    /// A number from 0 up to, but not including, 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        // The upper half is exact in f64, and four thousand million steps are fine enough.
        u32::try_from(bits >> 32).map_or(0.0, f64::from) / 4_294_967_296.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each of four tokens is drawn in 10,000.
    fn draws(temperature: f32, top_p: f32, top_k: u32, logits: &[f32]) -> Vec<u32> {
        let mut sampler = Sampler::new(temperature, top_p, top_k, 7);
        let mut counts = vec![0; logits.len()];
        for _ in 0..10_000 {
            counts[sampler.choose(logits)] += 1;
        }
        counts
    }

    /// Logits of 10 %, 60 %, 10 % and 20 %.
    fn known() -> Vec<f32> {
        [0.1_f32, 0.6, 0.1, 0.2].map(f32::ln).to_vec()
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest() {
        assert_eq!(draws(0.0, 1.0, 0, &[0.0, 2.0, 2.0, f32::NAN]), [0, 10_000, 0, 0]);
        assert_eq!(draws(1.0, 1.0, 1, &known()), [0, 10_000, 0, 0]);
        assert_eq!(draws(1.0, 0.0, 0, &known()), [0, 10_000, 0, 0]);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let near = |seen: Vec<u32>, wanted: [i64; 4]| {
            for (seen, wanted) in seen.iter().zip(wanted) {
                assert!((i64::from(*seen) - wanted).abs() < 150, "{seen} is not near {wanted}");
            }
        };
        near(draws(1.0, 1.0, 0, &known()), [1_000, 6_000, 1_000, 2_000]);
        // Squared: 1, 36, 1, 4 of 42.
        near(draws(0.5, 1.0, 0, &known()), [238, 8_571, 238, 952]);
        near(draws(1.0, 0.75, 0, &known()), [0, 7_500, 0, 2_500]);
        near(draws(1.0, 1.0, 2, &known()), [0, 7_500, 0, 2_500]);
        // Of two equals at the border, the one with the smaller number stays.
        near(draws(1.0, 1.0, 3, &known()), [1_111, 6_667, 0, 2_222]);
    }

    #[test]
    fn top_p_reaches_beyond_the_first_sorted() {
        let flat = vec![0.0; 1_000];
        let counts = draws(1.0, 0.5, 0, &flat);
        assert!(counts[..500].iter().all(|count| *count > 0));
        assert_eq!(counts[500..].iter().sum::<u32>(), 0);
    }

    #[test]
    fn seeds_decide() {
        let draw = |seed| {
            let mut sampler = Sampler::new(1.0, 1.0, 0, seed);
            (0..64).map(|_| sampler.choose(&known())).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
