//! What is asked of the model beside the prompt, in the fields that several routes share.

use serde_json::{Value, json};

use super::strict::{Fields, SchemaSize, logit_bias, out_of_range, schema, wrong_type};
use super::{ApiError, NAME_BYTES_MAX, STOP_BYTES_MAX, STOP_MAX};
use crate::wire::{Generate, Grammar};

/// Temperature of a request that names none. OpenAI's own default is 1, which makes a model of this
/// size ramble; this and the next come from the example on SmolLM2's model card. `top_p` is only
/// defaulted together with the temperature, so that a caller who sets one of them gets what it says.
pub const TEMPERATURE_DEFAULT: f32 = 0.2;
pub const TOP_P_DEFAULT: f32 = 0.9;

/// How tokens are chosen. `None` is the default above, or none at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// 0 (greedy) to 2.
    pub temperature: Option<f32>,
    /// 0 to 1.
    pub top_p: Option<f32>,
    /// 0 to 1; not OpenAI's, but what its SDKs send to other servers of small models. So is the next.
    pub min_p: Option<f32>,
    /// 1 or more.
    pub top_k: Option<u32>,
    /// −2 to 2.
    pub frequency_penalty: Option<f32>,
    /// −2 to 2.
    pub presence_penalty: Option<f32>,
    /// Tokens' numbers, each once, and −100 to 100 for each.
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: Option<u64>,
}

impl Sampling {
    /// The fields that every route has.
    pub(super) fn take(fields: &mut Fields) -> Result<Sampling, ApiError> {
        Ok(Sampling {
            temperature: fields.number("temperature", 2)?,
            top_p: fields.number("top_p", 1)?,
            ..Sampling::default()
        })
    }

    /// And those that completions and chat completions have beside them.
    pub(super) fn take_all(fields: &mut Fields) -> Result<Sampling, ApiError> {
        Ok(Sampling {
            min_p: fields.number("min_p", 1)?,
            top_k: fields.count("top_k")?,
            frequency_penalty: fields.number_within("frequency_penalty", -2, 2)?,
            presence_penalty: fields.number_within("presence_penalty", -2, 2)?,
            logit_bias: logit_bias(fields.take("logit_bias"))?,
            seed: fields.seed("seed")?,
            ..Sampling::take(fields)?
        })
    }

    /// The engine's request for this prompt. `seed` is used where the customer chose none: chance is the
    /// caller's, so that it can be recorded.
    pub fn generate(self, prompt: String, max_tokens: u32, stop: Vec<String>, seed: u64) -> Generate {
        let top_p_default = if self.temperature.is_none() { TOP_P_DEFAULT } else { 1.0 };
        Generate {
            temperature: self.temperature.unwrap_or(TEMPERATURE_DEFAULT),
            top_p: self.top_p.unwrap_or(top_p_default),
            top_k: self.top_k.unwrap_or(0),
            min_p: self.min_p.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            logit_bias: self.logit_bias,
            seed: self.seed.unwrap_or(seed),
            stop,
            // The templates write the first token themselves, as Hugging Face's do.
            ..Generate::greedy(prompt, max_tokens)
        }
    }
}

/// The form that an answer must have, and the field that asks for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Form {
    pub grammar: Grammar,
    /// Is named when the engine cannot do it.
    pub field: &'static str,
}

/// All that is asked of the model, but for the prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// At least 1. `None`: what the caller gives those who name no bound.
    pub max_tokens: Option<u32>,
    /// At most [`STOP_MAX`], none empty.
    pub stop: Vec<String>,
    pub sampling: Sampling,
    /// How many alternatives are told of each token; `None`: nothing is told.
    pub logprobs: Option<u8>,
    pub form: Option<Form>,
    /// The prompt is no template's: the tokenizer puts the model's first token before it.
    pub add_bos: bool,
}

/// Tokens of an answer that names no bound.
const MAX_TOKENS_DEFAULT: u32 = 256;

impl Settings {
    /// Most tokens of the answer where the context has room for so many.
    pub fn max_tokens_within(&self, room: u32) -> u32 {
        self.max_tokens.unwrap_or(MAX_TOKENS_DEFAULT).min(room)
    }

    /// The engine's request for this prompt. `seed` as in [`Sampling::generate`].
    pub fn generate(self, prompt: String, max_tokens: u32, seed: u64) -> Generate {
        Generate {
            logprobs: self.logprobs,
            grammar: self.form.map(|form| form.grammar),
            add_bos: self.add_bos,
            ..self.sampling.generate(prompt, max_tokens, self.stop, seed)
        }
    }

    /// Whether this model can do what is asked, as far as that depends on its vocabulary.
    pub fn check(&self, n_vocab: u32) -> Result<(), ApiError> {
        match self.sampling.logit_bias.iter().find(|(token, _)| *token >= n_vocab) {
            Some((token, _)) => {
                let message = format!("`logit_bias.{token}`: this model's tokens have numbers below {n_vocab}");
                Err(ApiError::for_field("out_of_range", format!("logit_bias.{token}"), message))
            }
            None => Ok(()),
        }
    }
}

pub(super) fn stop(value: Option<Value>) -> Result<Vec<String>, ApiError> {
    let list = match value {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(text @ Value::String(_)) => vec![text],
        Some(other) => return Err(wrong_type("stop".into(), "a string or a list of strings", &other)),
    };
    if list.len() > STOP_MAX {
        return Err(out_of_range("stop".into(), format!("at most {STOP_MAX} entries long, not {}", list.len())));
    }
    let mut stops = Vec::new();
    for (index, entry) in list.into_iter().enumerate() {
        match entry {
            Value::String(text) if text.is_empty() || text.len() > STOP_BYTES_MAX => {
                let wanted = format!("1 to {STOP_BYTES_MAX} bytes long, not {}", text.len());
                return Err(out_of_range(format!("stop[{index}]"), wanted));
            }
            Value::String(text) => stops.push(text),
            other => return Err(wrong_type(format!("stop[{index}]"), "a string", &other)),
        }
    }
    Ok(stops)
}

/// Whether the stream ends with one more chunk that tells the usage.
pub(super) fn stream_options(value: Option<Value>, stream: bool) -> Result<bool, ApiError> {
    let Some(value) = value else { return Ok(false) };
    if !stream {
        return Err(ApiError::for_field(
            "out_of_range",
            "stream_options",
            "`stream_options` is only allowed with `stream: true`",
        ));
    }
    let mut options = Fields::from_value("stream_options".into(), value)?;
    let include_usage = options.bool("include_usage")?.unwrap_or(false);
    options.only("include_obfuscation", &[json!(false)])?;
    options.finish(&[])?;
    Ok(include_usage)
}

/// `response_format` of chat completions, where the schema is in an object of its own.
pub(super) fn response_format(value: Option<Value>) -> Result<Option<Form>, ApiError> {
    let field = "response_format";
    let Some(value) = value else { return Ok(None) };
    let mut format = Fields::from_value(field.into(), value)?;
    let grammar = match kind(&mut format)?.as_str() {
        "json_schema" => {
            let name = format.name("json_schema");
            let mut inner = Fields::from_value(name, format.required("json_schema")?)?;
            let grammar = json_schema(&mut inner)?;
            inner.finish(&[])?;
            Some(grammar)
        }
        "json_object" => Some(json_object()),
        _ => None,
    };
    format.finish(&[])?;
    Ok(grammar.map(|grammar| Form { grammar, field }))
}

/// `text.format` of responses, where the schema lies in the format itself.
pub(super) fn text_format(value: Option<Value>) -> Result<Option<Form>, ApiError> {
    let field = "text.format";
    let Some(value) = value else { return Ok(None) };
    let mut text = Fields::from_value("text".into(), value)?;
    text.only("verbosity", &[json!("medium")])?;
    let format = text.take("format");
    text.finish(&[])?;
    let Some(format) = format else { return Ok(None) };
    let mut format = Fields::from_value(field.into(), format)?;
    let grammar = match kind(&mut format)?.as_str() {
        "json_schema" => Some(json_schema(&mut format)?),
        "json_object" => Some(json_object()),
        _ => None,
    };
    format.finish(&[])?;
    Ok(grammar.map(|grammar| Form { grammar, field }))
}

fn kind(format: &mut Fields) -> Result<String, ApiError> {
    let name = format.name("type");
    match format.required("type")? {
        Value::String(kind) if matches!(kind.as_str(), "text" | "json_object" | "json_schema") => Ok(kind),
        Value::String(_) => Err(out_of_range(name, "one of text, json_object and json_schema".into())),
        other => Err(wrong_type(name, "a string", &other)),
    }
}

/// Answers are held to the schema whether `strict` is set or not.
fn json_schema(fields: &mut Fields) -> Result<Grammar, ApiError> {
    fields.required("name")?.as_str().map(|_| ()).ok_or_else(|| {
        let name = fields.name("name");
        ApiError::for_field("wrong_type", &name, format!("`{name}` must be a string"))
    })?;
    fields.string("description", SENTENCE_BYTES_MAX)?;
    fields.bool("strict")?;
    let name = fields.name("schema");
    // OpenAI lets it be left out: then any JSON will do.
    let value = fields.take("schema").unwrap_or_else(|| json!({}));
    schema(&name, &value, &mut SchemaSize::default())?;
    Ok(Grammar::JsonSchema(value))
}

fn json_object() -> Grammar {
    Grammar::JsonSchema(json!({"type": "object"}))
}

/// Longest description of a schema or a tool, in bytes. A choice.
pub(super) const SENTENCE_BYTES_MAX: usize = 16 << 10;

pub(super) fn model_name(fields: &mut Fields) -> Result<String, ApiError> {
    match fields.string("model", NAME_BYTES_MAX)? {
        Some(name) if !name.is_empty() => Ok(name),
        _ => Err(ApiError::for_field("missing_field", "model", "`model` is required")),
    }
}
