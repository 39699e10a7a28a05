//! Choosing the next token. Pure: equal logits and equal seed give equal tokens.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use infer::wire::Generate;

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
    min_p: f32,
    frequency_penalty: f32,
    presence_penalty: f32,
    bias: Vec<(usize, f32)>,
    /// How often the answer has each token, where that counts. A float, because it is multiplied with one.
    counts: BTreeMap<usize, f32>,
    chance: Chance,
    candidates: Vec<Candidate>,
    /// Logits after penalties, bias and grammar.
    adjusted: Vec<f32>,
}

#[derive(Clone, Copy)]
struct Candidate {
    token: usize,
    logit: f32,
    /// Not normalised: the likeliest has 1.
    weight: f64,
}

impl Sampler {
    /// No number of the request may be NaN.
    pub(crate) fn new(request: &Generate) -> Sampler {
        let bias = request.logit_bias.iter();
        Sampler {
            temperature: request.temperature,
            top_p: request.top_p,
            top_k: usize::try_from(request.top_k).unwrap_or(usize::MAX),
            min_p: request.min_p,
            frequency_penalty: request.frequency_penalty,
            presence_penalty: request.presence_penalty,
            bias: bias.map(|(token, bias)| (usize::try_from(*token).unwrap_or(usize::MAX), *bias)).collect(),
            counts: BTreeMap::new(),
            chance: Chance(request.seed),
            candidates: Vec::new(),
            adjusted: Vec::new(),
        }
    }

    /// Index of the chosen token, one of those that are `allowed`. First bias and penalties (of the answer's tokens, not
    /// the prompt's); then in Hugging Face's order: `top_k`, temperature, `top_p`, and `min_p`.
    pub(crate) fn choose(&mut self, logits: &[f32], allowed: Option<&dyn Fn(usize) -> bool>) -> usize {
        let is_penalised = self.frequency_penalty != 0.0 || self.presence_penalty != 0.0;
        if !is_penalised && self.bias.is_empty() && allowed.is_none() {
            return self.pick(logits);
        }
        let mut adjusted = std::mem::take(&mut self.adjusted);
        adjusted.clear();
        adjusted.extend_from_slice(logits);
        for (token, bias) in &self.bias {
            if let Some(logit) = adjusted.get_mut(*token) {
                *logit += bias;
            }
        }
        for (token, count) in &self.counts {
            adjusted[*token] -= self.presence_penalty + self.frequency_penalty * count;
        }
        if let Some(allowed) = allowed {
            for (token, logit) in adjusted.iter_mut().enumerate() {
                if !allowed(token) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        let chosen = self.pick(&adjusted);
        self.adjusted = adjusted;
        if is_penalised {
            *self.counts.entry(chosen).or_default() += 1.0;
        }
        chosen
    }

    fn pick(&mut self, logits: &[f32]) -> usize {
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
        if self.min_p > 0.0 {
            let least = f64::from(self.min_p);
            self.candidates.retain(|candidate| candidate.weight >= least);
            mass = self.candidates.iter().map(|candidate| candidate.weight).sum();
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

/// Natural logarithms of the probabilities of the chosen token and of the `count` likeliest, likeliest first; rounded
/// to a millionth.
pub(crate) fn probabilities(logits: &[f32], chosen: usize, count: usize) -> (f64, Vec<(usize, f64)>) {
    let max = f64::from(likeliest(logits).1);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - max).exp()).sum();
    let logprob = |logit: f32| ((f64::from(logit) - max - sum.ln()) * 1e6).round() / 1e6;
    let mut top: Vec<Candidate> = Vec::new();
    if count > 0 {
        top.extend(logits.iter().enumerate().map(|(token, &logit)| Candidate { token, logit, weight: 0.0 }));
        if count < top.len() {
            top.select_nth_unstable_by(count, likelier_first);
            top.truncate(count);
        }
        top.sort_unstable_by(likelier_first);
    }
    let top = top.into_iter().map(|candidate| (candidate.token, logprob(candidate.logit))).collect();
    (logits.get(chosen).map_or(f64::NEG_INFINITY, |logit| logprob(*logit)), top)
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

    fn sampler(temperature: f32, top_p: f32, top_k: u32, seed: u64) -> Sampler {
        Sampler::new(&Generate { temperature, top_p, top_k, seed, ..Generate::greedy("", 1) })
    }

    /// How often each of the tokens is drawn in 10,000.
    fn counted(mut sampler: Sampler, logits: &[f32], allowed: Option<&dyn Fn(usize) -> bool>) -> Vec<u32> {
        let mut counts = vec![0; logits.len()];
        for _ in 0..10_000 {
            counts[sampler.choose(logits, allowed)] += 1;
        }
        counts
    }

    fn draws(temperature: f32, top_p: f32, top_k: u32, logits: &[f32]) -> Vec<u32> {
        counted(sampler(temperature, top_p, top_k, 7), logits, None)
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

    fn near(seen: Vec<u32>, wanted: [i64; 4]) {
        for (seen, wanted) in seen.iter().zip(wanted) {
            assert!((i64::from(*seen) - wanted).abs() < 150, "{seen} is not near {wanted}");
        }
    }

    /// A sampler at temperature 1 that is changed by `change`.
    fn with(change: impl FnOnce(&mut Generate)) -> Sampler {
        let mut request = Generate { temperature: 1.0, seed: 7, ..Generate::greedy("", 1) };
        change(&mut request);
        Sampler::new(&request)
    }

    #[test]
    fn unlikely_tokens_are_left_out_by_min_p() {
        near(counted(with(|r| r.min_p = 0.3), &known(), None), [0, 7_500, 0, 2_500]);
        near(counted(with(|r| r.min_p = 1.0), &known(), None), [0, 10_000, 0, 0]);
    }

    #[test]
    fn a_bias_moves_the_odds() {
        // e^0.693 doubles: 2, 6, 1, 2 of 11.
        near(
            counted(with(|r| r.logit_bias = vec![(0, 2.0_f32.ln()), (9, 5.0)]), &known(), None),
            [1_818, 5_455, 909, 1_818],
        );
        near(counted(with(|r| r.logit_bias = vec![(1, -100.0)]), &known(), None), [2_500, 0, 2_500, 5_000]);
    }

    #[test]
    fn penalties_count_what_was_said() {
        let drawn = |change: fn(&mut Generate)| {
            let mut sampler = Sampler::new(&{
                let mut request = Generate::greedy("", 1);
                change(&mut request);
                request
            });
            (0..6).map(|_| sampler.choose(&[0.0, 3.0, 2.5, 1.0], None)).collect::<Vec<_>>()
        };
        // Once for each that was said: after that the order is the old one.
        assert_eq!(drawn(|r| r.presence_penalty = 1.0), [1, 2, 1, 1, 1, 1]);
        // Each time again.
        assert_eq!(drawn(|r| r.frequency_penalty = 1.0), [1, 2, 1, 2, 1, 3]);
        assert_eq!(drawn(|r| r.presence_penalty = -1.0), [1; 6]);
    }

    #[test]
    fn only_what_is_allowed_is_drawn() {
        near(counted(with(|_| {}), &known(), Some(&|token| token != 1)), [2_500, 0, 2_500, 5_000]);
        assert_eq!(counted(with(|r| r.temperature = 0.0), &known(), Some(&|token| token == 2)), [0, 0, 10_000, 0]);
    }

    #[test]
    fn probabilities_are_told_before_anything_is_done_to_them() {
        let (chosen, top) = probabilities(&known(), 3, 2);
        assert!((chosen.exp() - 0.2).abs() < 1e-5, "{chosen}");
        let top: Vec<(usize, f64)> =
            top.into_iter().map(|(token, logprob)| (token, (logprob.exp() * 100.0).round())).collect();
        assert_eq!(top, [(1, 60.0), (3, 20.0)]);
        assert_eq!(probabilities(&known(), 1, 9).1.len(), 4);
        assert!(probabilities(&known(), 1, 0).1.is_empty());
    }

    #[test]
    fn draws_follow_the_probabilities() {
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
            let mut sampler = sampler(1.0, 1.0, 0, seed);
            (0..64).map(|_| sampler.choose(&known(), None)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
