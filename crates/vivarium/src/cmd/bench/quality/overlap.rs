//! What one gets without a model: passages in the order of how many words they share with a question, rare ones first.
//!
//! Okapi BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009) with its usual
//! constants, over lower-case words as they stand.

use std::collections::BTreeMap;

const K1: f64 = 1.2;
const B: f64 = 0.75;

/// The place, from 1, that the passage with this number gets. Of equals the average place, rounded up: their order
/// would be chance.
pub(super) fn place(question: &str, passages: &[&str], of: usize) -> usize {
    let scores = scores(question, passages);
    let own = scores.get(of).copied().unwrap_or(f64::MIN);
    let better = scores.iter().filter(|score| **score > own).count();
    let equal = scores.iter().filter(|score| **score == own).count().max(1);
    better + (equal + 1).div_ceil(2)
}

fn scores(question: &str, passages: &[&str]) -> Vec<f64> {
    let counted: Vec<BTreeMap<String, u32>> = passages.iter().map(|passage| counts(passage)).collect();
    let lengths: Vec<f64> = counted.iter().map(|counts| f64::from(counts.values().sum::<u32>())).collect();
    let all = f64::from(u32::try_from(passages.len()).unwrap_or(u32::MAX));
    let mean = lengths.iter().sum::<f64>() / all.max(1.0);
    let score = |(counts, length): (&BTreeMap<String, u32>, &f64)| {
        let of_word = |word: &String| {
            let with = counted.iter().filter(|counts| counts.contains_key(word)).count();
            let with = f64::from(u32::try_from(with).unwrap_or(u32::MAX));
            let rarity = (1.0 + (all - with + 0.5) / (with + 0.5)).ln();
            let count = f64::from(counts.get(word).copied().unwrap_or(0));
            rarity * count * (K1 + 1.0) / (count + K1 * (1.0 - B + B * length / mean))
        };
        self::counts(question).keys().map(of_word).sum()
    };
    counted.iter().zip(&lengths).map(score).collect()
}

fn counts(text: &str) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        *counts.entry(word.to_lowercase()).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_words_count_most_and_equals_share_a_place() {
        let passages = ["The cat sat.", "The dog ate the bone.", "The fox ran."];
        assert_eq!(place("What did the dog do?", &passages, 1), 1);
        // Neither of the other two shares more than one common word.
        assert_eq!((place("dog", &passages, 0), place("dog", &passages, 2)), (3, 3));
        assert_eq!(place("nothing shared", &passages, 0), 2);
    }
}
