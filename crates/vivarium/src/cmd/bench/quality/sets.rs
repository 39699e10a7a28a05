//! The test sets: texts from templates. The same seed gives the same texts.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const LABELLED: [(&str, &str); 3] = [
    ("sentiment", include_str!("sentiment.txt")),
    ("topic", include_str!("topic.txt")),
    ("intent", include_str!("intent.txt")),
];
const RETRIEVAL: &str = include_str!("retrieval.txt");
const EXTRACT: &str = include_str!("extract.txt");

/// Texts, each with the label that it should get.
pub(super) struct Labelled {
    pub name: &'static str,
    /// With what is said of each.
    pub labels: Vec<(String, String)>,
    pub texts: Vec<(String, String)>,
    /// Of templates that none of `texts` is made of.
    pub examples: Vec<(String, String)>,
}

impl Labelled {
    /// How many texts have the label that most of them have.
    pub(super) fn most_common(&self) -> usize {
        let count = |(name, _): &(String, String)| self.texts.iter().filter(|(_, label)| label == name).count();
        self.labels.iter().map(count).max().unwrap_or(0)
    }
}

/// A question and the passage that answers it.
pub(super) struct Pair {
    pub question: String,
    pub passage: String,
}

/// A text and what it says.
pub(super) struct Snippet {
    pub text: String,
    pub fields: Vec<(String, Value)>,
}

impl Snippet {
    /// All fields, in their order, and no others.
    pub(super) fn schema(&self) -> Value {
        let kind = |value: &Value| if value.is_number() { "integer" } else { "string" };
        let properties: Map<String, Value> =
            self.fields.iter().map(|(name, value)| (name.clone(), json!({"type": kind(value)}))).collect();
        let names: Vec<&String> = self.fields.iter().map(|(name, _)| name).collect();
        json!({"type": "object", "properties": properties, "required": names, "additionalProperties": false})
    }
}

/// `each` texts of every template; of each label's first `examples` templates one text, as an example of it.
pub(super) fn labelled(seed: u32, each: u32, examples: usize) -> Vec<Labelled> {
    let of = |(name, source): (&'static str, &'static str)| {
        let source = Source::read(source);
        let mut set = Labelled { name, labels: Vec::new(), texts: Vec::new(), examples: Vec::new() };
        set.labels = source.heads.iter().filter_map(|(_, head)| owned(head.split_once('\t')?)).collect();
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        for (at, line) in source.lines.iter().enumerate() {
            let Some((label, template)) = line.split_once('\t') else { continue };
            let before = seen.entry(label).or_default();
            let is_example = *before < examples;
            *before += 1;
            let count = if is_example { 1 } else { each };
            for nth in 0..count {
                let text = source.fill(template, seed, at, nth).0;
                let to = if is_example { &mut set.examples } else { &mut set.texts };
                // Templates with few words make the same text again.
                if !to.iter().any(|(known, _)| *known == text) {
                    to.push((text, label.to_owned()));
                }
            }
        }
        set
    };
    LABELLED.into_iter().map(of).collect()
}

fn owned((one, other): (&str, &str)) -> Option<(String, String)> {
    Some((one.to_owned(), other.to_owned()))
}

/// `each` of every template, at most as many as it has words for.
pub(super) fn pairs(seed: u32, each: u32) -> Vec<Pair> {
    let source = Source::read(RETRIEVAL);
    let mut pairs: Vec<Pair> = Vec::new();
    for (at, line) in source.lines.iter().enumerate() {
        for nth in 0..each {
            // In one piece, so that both have the same words.
            let filled = source.fill(line, seed, at, nth).0;
            let Some((question, passage)) = filled.split_once('\t') else { continue };
            if !pairs.iter().any(|pair| pair.passage == passage) {
                pairs.push(Pair { question: question.to_owned(), passage: passage.to_owned() });
            }
        }
    }
    pairs
}

pub(super) fn snippets(seed: u32, each: u32) -> Vec<Snippet> {
    let source = Source::read(EXTRACT);
    let mut snippets = Vec::new();
    for (at, template) in source.lines.iter().enumerate() {
        let head = source.heads.iter().rev().find(|(before, _)| *before <= at);
        let names: Vec<&str> = head.map(|(_, head)| head.split(", ").collect()).unwrap_or_default();
        for nth in 0..each {
            let (text, words) = source.fill(template, seed, at, nth);
            let field = |name: &&str| {
                let word = words.get(name).copied().unwrap_or_default();
                let number = (*name == "order").then(|| word.parse::<u64>().ok()).flatten();
                ((*name).to_owned(), number.map_or_else(|| json!(word), |number| json!(number)))
            };
            snippets.push(Snippet { text, fields: names.iter().map(field).collect() });
        }
    }
    snippets
}

/// A file of templates.
struct Source {
    /// What stands for `{slot}`.
    slots: BTreeMap<&'static str, Vec<&'static str>>,
    /// Lines that begin with `=`, without it, and how many templates stand before each.
    heads: Vec<(usize, &'static str)>,
    lines: Vec<&'static str>,
}

impl Source {
    fn read(text: &'static str) -> Source {
        let mut source = Source { slots: BTreeMap::new(), heads: Vec::new(), lines: Vec::new() };
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let slot = line.strip_prefix('{').and_then(|rest| rest.split_once("}: "));
            if let Some(head) = line.strip_prefix('=') {
                source.heads.push((source.lines.len(), head));
            } else if let Some((name, words)) = slot {
                source.slots.insert(name, words.split(" | ").collect());
            } else {
                source.lines.push(line);
            }
        }
        source
    }

    /// The template with words in its slots, and which those are. Another `nth` has other words as long as there are
    /// any.
    fn fill(&self, template: &str, seed: u32, at: usize, nth: u32) -> (String, BTreeMap<&'static str, &'static str>) {
        let (mut text, mut words) = (template.to_owned(), BTreeMap::new());
        let start = usize::try_from(seed).unwrap_or(0).wrapping_mul(7).wrapping_add(at.wrapping_mul(3));
        for (place, (name, all)) in self.slots.iter().enumerate() {
            let slot = format!("{{{name}}}");
            if !text.contains(&slot) {
                continue;
            }
            let at = start.wrapping_add(place).wrapping_add(usize::try_from(nth).unwrap_or(0));
            let word = all[at % all.len()];
            text = text.replace(&slot, word);
            words.insert(*name, word);
        }
        (capitalised(&text), words)
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every slot is filled, every label has texts and examples, and no text is tested twice or is an example, too.
    #[test]
    fn the_sets_are_whole() {
        for set in labelled(1, 3, 2) {
            let all = || set.texts.iter().chain(&set.examples);
            assert!(all().all(|(text, _)| !text.contains(['{', '\t'])), "{}", set.name);
            for (label, about) in &set.labels {
                let of = |list: &[(String, String)]| list.iter().filter(|(_, of)| of == label).count();
                assert!(of(&set.texts) >= 4 && of(&set.examples) == 2 && !about.is_empty(), "{} {label}", set.name);
            }
            assert!(all().all(|(_, of)| set.labels.iter().any(|(label, _)| label == of)), "{}", set.name);
            let mut texts: Vec<&String> = all().map(|(text, _)| text).collect();
            let count = texts.len();
            texts.sort();
            texts.dedup();
            assert_eq!(texts.len(), count, "{}", set.name);
        }
        let pairs = pairs(1, 3);
        assert_eq!(pairs.len(), 60);
        assert!(pairs.iter().all(|pair| !pair.question.contains('{') && !pair.passage.contains('{')));
        for snippet in snippets(1, 3) {
            assert!(snippet.fields.len() >= 2, "{}", snippet.text);
            for (field, value) in &snippet.fields {
                let word = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                assert!(!word.is_empty() && snippet.text.contains(&word), "{field} of {}", snippet.text);
            }
        }
    }

    #[test]
    fn another_seed_makes_other_texts_and_the_same_one_the_same() {
        let texts = |seed| labelled(seed, 1, 2).into_iter().flat_map(|set| set.texts).collect::<Vec<_>>();
        assert_eq!(texts(1), texts(1));
        assert_ne!(texts(1), texts(2));
    }
}
