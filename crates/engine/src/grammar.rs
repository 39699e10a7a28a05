//! Answers that must have a form: which tokens may come next, by the crate `llguidance`.
//!
//! Strangers write the schemas. What they cost is bounded by the crate's own counters of work, its panics become errors
//! (here the only ones that do not end the process), and their text is only ever read as a grammar.

use std::sync::{Arc, OnceLock};

use infer::wire::Grammar;
use llama_cpp_2::token::LlamaToken;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory, panic_utils};
use serde_json::{Value, json};

use crate::model::Model;

/// In front of a control token's spelling, so that no text is taken for it. A byte that no UTF-8 has.
const CONTROL: u8 = 0xff;

/// Longest complaint that is passed on, in characters: some quote the schema.
const COMPLAINT_CHARS_MAX: usize = 300;

/// The vocabulary as grammars want it. Made when the first grammar comes: it takes a moment, and many never come.
pub(crate) struct Grammars {
    model: Arc<Model>,
    factory: OnceLock<Result<ParserFactory, String>>,
}

/// One answer's place in its grammar.
pub(crate) struct Form(Matcher);

impl Grammars {
    pub(crate) fn new(model: Arc<Model>) -> Grammars {
        Grammars { model, factory: OnceLock::new() }
    }

    /// The beginning of a grammar, or why there is none. Takes milliseconds: not for the decoding thread.
    pub(crate) fn form(&self, grammar: &Grammar) -> Result<Form, String> {
        let factory = self.factory.get_or_init(|| factory(&self.model)).as_ref().map_err(String::clone)?;
        let grammar = match grammar {
            Grammar::JsonSchema(schema) => TopLevelGrammar::from_json_schema(in_one_line(schema.clone())?),
            Grammar::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        };
        let parser = std::panic::AssertUnwindSafe(|| factory.create_parser(grammar));
        let mut form = Matcher::new(panic_utils::catch_unwind(parser));
        // Some grammars show only at their first step that nothing satisfies them.
        match form.compute_mask_or_eos() {
            Ok(mask) if mask.is_zero() => Err("nothing satisfies it".to_owned()),
            Ok(_) => Ok(Form(form)),
            Err(error) => Err(complaint(&error)),
        }
    }
}

impl Form {
    /// The tokens that may come next; those that end a turn are among them where the form is complete.
    pub(crate) fn allowed(&mut self) -> Result<SimpleVob, String> {
        self.0.compute_mask_or_eos().map_err(|error| complaint(&error))
    }

    /// The answer goes on with this token. True: it is complete, and nothing can follow.
    pub(crate) fn take(&mut self, token: u32) -> Result<bool, String> {
        self.0.consume_token(token).map_err(|error| complaint(&error))?;
        Ok(self.0.is_stopped())
    }
}

fn factory(model: &Model) -> Result<ParserFactory, String> {
    let words: Vec<Vec<u8>> = model.tokens().map(|token| word(model, token)).collect();
    let mut ends: Vec<u32> = model
        .tokens()
        .filter(|token| model.ends_turn(*token))
        .filter_map(|token| u32::try_from(token.0).ok())
        .collect();
    if ends.is_empty() {
        return Err("the model has no token that ends an answer".to_owned());
    }
    ends.dedup();
    let size = u32::try_from(words.len()).map_err(|_| "the vocabulary is too large".to_owned())?;
    let trie = TokTrie::from(&TokRxInfo::new(size, ends[0]), &words).with_eos_tokens(&ends);
    let vocabulary: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&vocabulary).map_err(|error| complaint(&error))?;
    factory.quiet();
    // Else they quote the answer so far.
    factory.limits_mut().verbose_errors = false;
    Ok(factory)
}

fn word(model: &Model, token: LlamaToken) -> Vec<u8> {
    let bytes = model.piece(token);
    if !bytes.is_empty() {
        return bytes;
    }
    let spelling = model.spelling(token);
    if spelling.is_empty() { spelling } else { [&[CONTROL], spelling.as_slice()].concat() }
}

/// Python's usual form of JSON, and no other space: small models go on with spaces for ever where they may.
fn in_one_line(mut schema: Value) -> Result<Value, String> {
    // `true` is a schema, too.
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    let fields = schema.as_object_mut().ok_or("a schema is an object")?;
    let options =
        json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": true});
    fields.insert("x-guidance".to_owned(), options);
    Ok(schema)
}

/// The crate's own words, on one line.
fn complaint(error: &anyhow::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or("it cannot be used").chars().take(COMPLAINT_CHARS_MAX).collect()
}
