//! How an answer was made: all that its text depends on beside the model's file and the customer's request.
//!
//! A receipt signs the sha2-256 of this in canonical form (RFC 8785) and carries it, so that the answer can be made again.
//! Numbers that are no whole ones below 2^53 are texts, so that every reader prints them alike. Nothing here is a
//! customer's words: prompt and constraints stand in it as digests.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::wire::{Generate, Hello};

/// The fields of all structs of this file are in the order of their names: that makes their JSON canonical.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// sha2-256 digest in the CID of the adapter that the model had on, hexadecimal, where it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter_sha256: Option<String>,
    /// The date that the template was told, seconds since 1970; zero where there was no template.
    pub date: u64,
    pub engine: EngineClass,
    /// sha2-256 of the prompt as the model got it, hexadecimal.
    pub prompt_sha256: String,
    /// Method and path of the request.
    pub route: String,
    pub sampling: SamplingUsed,
}

/// Engines of one class give the same bits for the same request; of two classes nothing is promised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineClass {
    /// Engine and library versions.
    pub build: String,
    /// Tokens that prompt and answer may have together: an answer can end there.
    pub context: u32,
    /// Instruction sets that the arithmetic was compiled for.
    pub isa: String,
    /// sha2-256 of the engine's program, hexadecimal: versions alone do not tell two builds apart.
    pub program_sha256: String,
    pub threads: u32,
}

/// What the engine was told of choosing tokens, after defaults. Decimals are the shortest that name the same `f32`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplingUsed {
    /// sha2-256 of the JSON array of stop strings, logit biases and grammar, where there is any of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraints_sha256: Option<String>,
    pub frequency_penalty: String,
    pub max_tokens: u32,
    pub min_p: String,
    pub presence_penalty: String,
    pub seed: String,
    pub temperature: String,
    pub top_k: u32,
    pub top_p: String,
}

impl Run {
    /// `adapter` is the digest in the CID of the one that `generate` names by its place.
    pub fn of(route: &str, date: u64, generate: &Generate, adapter: Option<[u8; 32]>, engine: EngineClass) -> Run {
        Run {
            adapter_sha256: adapter.map(|digest| hexadecimal(&digest)),
            date,
            engine,
            prompt_sha256: sha256(generate.prompt.as_bytes()),
            route: route.to_owned(),
            sampling: SamplingUsed::of(generate),
        }
    }

    /// The digest in the adapter's CID.
    pub fn adapter(&self) -> Option<[u8; 32]> {
        let digits = self.adapter_sha256.as_ref().filter(|digits| digits.len() == 64 && digits.is_ascii())?;
        let mut digest = [0; 32];
        for (at, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(digest)
    }

    /// The text whose digest is signed.
    pub fn to_canonical(&self) -> String {
        // Texts and integers always print.
        serde_json::to_string(self).expect("plain fields are JSON")
    }

    /// Reads the canonical form, strictly: a field that is not known here might be one that changes the answer.
    pub fn from_canonical(text: &str) -> Result<Run, serde_json::Error> {
        serde_json::from_str(text)
    }
}

impl EngineClass {
    /// `program_sha256` is the client's to tell: an engine could say anything of itself.
    pub fn of(hello: &Hello, program_sha256: &str) -> EngineClass {
        EngineClass {
            build: hello.engine_build.clone(),
            context: hello.n_ctx,
            isa: hello.isa.clone(),
            program_sha256: program_sha256.to_owned(),
            threads: hello.threads,
        }
    }

    /// In what `other` is another class than this one, for people.
    pub fn differences(&self, other: &EngineClass) -> Vec<String> {
        let fields = [
            ("engine build", self.build.clone(), other.build.clone()),
            ("context", self.context.to_string(), other.context.to_string()),
            ("instruction sets", self.isa.clone(), other.isa.clone()),
            ("engine program", self.program_sha256.clone(), other.program_sha256.clone()),
            ("threads", self.threads.to_string(), other.threads.to_string()),
        ];
        let differ = fields.into_iter().filter(|(_, ours, theirs)| ours != theirs);
        differ.map(|(name, ours, theirs)| format!("{name}: {ours} in the receipt, {theirs} here")).collect()
    }
}

impl SamplingUsed {
    fn of(generate: &Generate) -> SamplingUsed {
        let Generate { stop, logit_bias, grammar, .. } = generate;
        let is_free = stop.is_empty() && logit_bias.is_empty() && grammar.is_none();
        // Biases are finite: the request's reader saw to it.
        let constraints =
            || serde_json::to_vec(&(stop, logit_bias, grammar)).expect("texts and finite numbers are JSON");
        SamplingUsed {
            constraints_sha256: (!is_free).then(|| sha256(&constraints())),
            frequency_penalty: generate.frequency_penalty.to_string(),
            max_tokens: generate.max_tokens,
            min_p: generate.min_p.to_string(),
            presence_penalty: generate.presence_penalty.to_string(),
            seed: generate.seed.to_string(),
            temperature: generate.temperature.to_string(),
            top_k: generate.top_k,
            top_p: generate.top_p.to_string(),
        }
    }

    /// What was done otherwise than `asked`, for people.
    pub fn differences(&self, asked: &SamplingUsed) -> Vec<String> {
        let none = || "none".to_owned();
        let fields = [("stop strings, biases or grammar", &self.constraints_sha256, &asked.constraints_sha256)]
            .map(|(name, used, asked)| (name, used.clone().unwrap_or_else(none), asked.clone().unwrap_or_else(none)))
            .into_iter()
            .chain([
                ("frequency_penalty", self.frequency_penalty.clone(), asked.frequency_penalty.clone()),
                ("max_tokens", self.max_tokens.to_string(), asked.max_tokens.to_string()),
                ("min_p", self.min_p.clone(), asked.min_p.clone()),
                ("presence_penalty", self.presence_penalty.clone(), asked.presence_penalty.clone()),
                ("seed", self.seed.clone(), asked.seed.clone()),
                ("temperature", self.temperature.clone(), asked.temperature.clone()),
                ("top_k", self.top_k.to_string(), asked.top_k.to_string()),
                ("top_p", self.top_p.clone(), asked.top_p.clone()),
            ]);
        let differ = fields.filter(|(_, used, asked)| used != asked);
        differ.map(|(name, used, asked)| format!("{name} was {used}, and {asked} was asked for")).collect()
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Grammar;
    use expect_test::expect;

    fn class() -> EngineClass {
        EngineClass {
            build: "engine/1 library/2".into(),
            context: 2_048,
            isa: "avx2,fma".into(),
            program_sha256: sha256(b"program"),
            threads: 1,
        }
    }

    fn generate() -> Generate {
        Generate { temperature: 0.2, top_p: 0.9, seed: u64::MAX, ..Generate::greedy("Hi", 16) }
    }

    /// Keys in order, no fractions, no number above 2^53: what RFC 8785 would print.
    #[test]
    fn a_run_is_canonical_as_it_prints() {
        let run = Run::of("POST /v1/x", 1_795_453_200, &generate(), None, class());
        let text = run.to_canonical();
        expect![[r#"{"date":1795453200,"engine":{"build":"engine/1 library/2","context":2048,"isa":"avx2,fma","program_sha256":"1310ca2c8932dbd118668bd97442558a3e1f546b5e15c69699dfbd6024f548d8","threads":1},"prompt_sha256":"3639efcd08abb273b1619e82e78c29a7df02c1051b1820e99fc395dcaa3326b8","route":"POST /v1/x","sampling":{"frequency_penalty":"0","max_tokens":16,"min_p":"0","presence_penalty":"0","seed":"18446744073709551615","temperature":"0.2","top_k":0,"top_p":"0.9"}}"#]]
        .assert_eq(&text);
        assert_eq!(Run::from_canonical(&text).unwrap(), run);
        assert!(Run::from_canonical(&text.replacen("{", "{\"mirostat\":1,", 1)).is_err());
    }

    #[test]
    fn whatever_changes_an_answer_is_in_it() {
        let changes: [fn(&mut Generate); 12] = [
            |g| g.prompt.push('!'),
            |g| g.max_tokens += 1,
            |g| g.temperature = 0.3,
            |g| g.top_p = 1.0,
            |g| g.top_k = 1,
            |g| g.min_p = 0.1,
            |g| g.frequency_penalty = 0.1,
            |g| g.presence_penalty = 0.1,
            |g| g.logit_bias = vec![(1, 0.5)],
            |g| g.seed = 0,
            |g| g.stop = vec!["x".into()],
            |g| g.grammar = Some(Grammar::JsonSchema(serde_json::json!({}))),
        ];
        let mut texts = vec![Run::of("r", 1, &generate(), None, class()).to_canonical()];
        for change in changes {
            let mut changed = generate();
            change(&mut changed);
            texts.push(Run::of("r", 1, &changed, None, class()).to_canonical());
        }
        let adapted = Run::of("r", 1, &generate(), Some([0xa5; 32]), class());
        assert_eq!(adapted.adapter(), Some([0xa5; 32]));
        texts.push(adapted.to_canonical());
        texts.push(Run::of("q", 1, &generate(), None, class()).to_canonical());
        texts.push(Run::of("r", 2, &generate(), None, class()).to_canonical());
        let count = texts.len();
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), count);
    }

    #[test]
    fn another_class_is_named_by_what_differs() {
        let other = EngineClass { threads: 2, isa: "avx512".into(), ..class() };
        assert_eq!(
            class().differences(&other),
            ["instruction sets: avx2,fma in the receipt, avx512 here", "threads: 1 in the receipt, 2 here"]
        );
        assert_eq!(class().differences(&class()), [""; 0]);
    }
}
