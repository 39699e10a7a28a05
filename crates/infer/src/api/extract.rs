//! `POST /v1/extract`: what a text says, as JSON by a schema. OpenAI has no such route, and no two others that have one
//! agree on its form; `input`, `instructions` and `max_output_tokens` are the words of OpenAI's responses.

use serde_json::{Map, Value, json};

use super::settings::model_name;
use super::strict::{Fields, SchemaSize, out_of_range, schema};
use super::{Answered, ApiError, Form, Message, NAME_BYTES_MAX, Role, Sampling, Settings, with_extra};
use crate::wire::{Finish, Grammar};

pub const ROUTE: &str = "POST /v1/extract";

/// Longest text that something is taken out of, in bytes: with the rest of the prompt about half of a context of 2,048
/// tokens. A choice; it bounds what a call of a fixed price can cost.
pub const INPUT_BYTES_MAX: usize = 4_096;
/// Most tokens of an answer, and how many it may have without a word. A choice, for the same reason.
pub const OUTPUT_TOKENS_MAX: u32 = 256;
/// Longest `instructions`, in bytes. A choice, for the same reason.
pub const INSTRUCTIONS_BYTES_MAX: usize = 1_024;

/// A text, and what it says of customer, town and item. Of five beginnings that were tried the best one; its own words
/// turn up in answers that the model does not find (docs/decisions/0040).
const EXAMPLE: (&str, &str) = (
    "The red kettle was returned by Bob Miller of Springfield.",
    r#"{"customer": "Bob Miller", "town": "Springfield", "item": "red kettle"}"#,
);

/// A request whose every field was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct ExtractRequest {
    pub model: String,
    /// Not empty.
    pub input: String,
    /// An object.
    pub schema: Value,
    /// What to look for, in words.
    pub instructions: Option<String>,
    /// 1 to [`OUTPUT_TOKENS_MAX`].
    pub max_output_tokens: u32,
    pub user: Option<String>,
}

impl ExtractRequest {
    /// Reads a body. Every error is a 400 that names the field.
    pub fn parse(body: &[u8]) -> Result<ExtractRequest, ApiError> {
        let mut fields = Fields::from_body(body)?;
        let model = model_name(&mut fields)?;
        let input = input(&mut fields)?;
        let wanted = fields.required("schema")?;
        schema("schema", &wanted, &mut SchemaSize::default())?;
        let instructions = fields.string("instructions", INSTRUCTIONS_BYTES_MAX)?;
        let max_output_tokens = fields.count("max_output_tokens")?.unwrap_or(OUTPUT_TOKENS_MAX);
        if max_output_tokens > OUTPUT_TOKENS_MAX {
            let wanted = format!("at most {OUTPUT_TOKENS_MAX}, not {max_output_tokens}");
            return Err(out_of_range("max_output_tokens".into(), wanted));
        }
        let user = fields.string("user", NAME_BYTES_MAX)?;
        fields.finish(&[])?;
        Ok(ExtractRequest { model, input, schema: wanted, instructions, max_output_tokens, user })
    }

    /// What the model is told: an example of another text, then this one. Of the schema it is told the names of the
    /// outermost fields alone: where it was told their descriptions, it answered with those (docs/decisions/0040).
    pub fn messages(&self) -> Vec<Message> {
        let instructions = self.instructions.as_deref().unwrap_or("You copy fields from texts into JSON.");
        vec![
            Message::new(Role::System, instructions),
            Message::new(Role::User, question(EXAMPLE.0, "customer, town, item")),
            Message::new(Role::Assistant, EXAMPLE.1),
            Message::new(Role::User, question(&self.input, &names(&self.schema))),
        ]
    }

    /// Greedy, and held to the schema.
    pub fn settings(&self) -> Settings {
        Settings {
            max_tokens: Some(self.max_output_tokens),
            sampling: Sampling { temperature: Some(0.0), ..Sampling::default() },
            form: Some(Form { grammar: Grammar::JsonSchema(self.schema.clone()), field: "schema" }),
            ..Settings::default()
        }
    }
}

/// `input` of the routes that have one text.
pub(super) fn input(fields: &mut Fields) -> Result<String, ApiError> {
    match fields.string("input", INPUT_BYTES_MAX)? {
        Some(text) if text.is_empty() => Err(out_of_range("input".into(), "at least one character long".into())),
        Some(text) => Ok(text),
        None => Err(ApiError::for_field("missing_field", "input", "`input` is required")),
    }
}

fn question(text: &str, fields: &str) -> String {
    if fields.is_empty() { format!("Text: {text}") } else { format!("Text: {text}\nFields: {fields}") }
}

/// Of the outermost fields; a model of this size does not read JSON schemas.
fn names(schema: &Value) -> String {
    let names = schema["properties"].as_object().into_iter().flat_map(Map::keys);
    names.map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Builds the answer.
#[derive(Clone, Debug)]
pub struct ExtractReply {
    /// `extr-…`
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that answered.
    pub model: String,
}

impl ExtractReply {
    /// `data` is what `output_text` says; null where the answer was cut before its end. `extra` is added at the top.
    pub fn whole(&self, answered: Answered<'_>, extra: Map<String, Value>) -> Value {
        let data = match answered.finish {
            Finish::Stop => serde_json::from_str(answered.text).unwrap_or_default(),
            Finish::Length | Finish::Cancelled => Value::Null,
        };
        let answer = json!({
            "id": self.id,
            "object": "extraction",
            "created": self.created,
            "model": self.model,
            "data": data,
            "output_text": answered.text,
            "finish_reason": answered.finish.as_str(),
            "usage": answered.usage.to_json(),
        });
        with_extra(answer, extra)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Usage;

    fn asked(change: impl FnOnce(&mut Value)) -> Value {
        let schema = json!({
            "type": "object",
            "properties": {"name": {"type": "string", "description": "who writes"}, "age": {"type": "integer"}},
            "required": ["name", "age"],
        });
        let mut body = json!({"model": "m", "input": "I am Ada, 36.", "schema": schema});
        change(&mut body);
        body
    }

    fn parsed(body: &Value) -> Result<ExtractRequest, ApiError> {
        ExtractRequest::parse(body.to_string().as_bytes())
    }

    #[test]
    fn a_request_becomes_a_greedy_answer_in_the_schemas_form() {
        let request = parsed(&asked(|_| ())).unwrap();
        let settings = request.settings();
        assert_eq!(settings.sampling.temperature, Some(0.0));
        assert_eq!(settings.max_tokens, Some(256));
        assert_eq!(settings.form.unwrap().grammar, Grammar::JsonSchema(request.schema.clone()));
        let messages = request.messages();
        assert_eq!(messages.last().unwrap().content, "Text: I am Ada, 36.\nFields: name, age");
        let with_words = parsed(&asked(|body| body["instructions"] = "Who is it?".into())).unwrap();
        assert_eq!(with_words.messages()[0].content, "Who is it?");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let named = |change: fn(&mut Value)| {
            let error = parsed(&asked(change)).unwrap_err();
            (error.status, error.param.unwrap_or_default(), error.code)
        };
        for (change, field, code) in [
            ((|body| body["input"] = "".into()) as fn(&mut Value), "input", "out_of_range"),
            (|body| body["input"] = "x".repeat(INPUT_BYTES_MAX + 1).into(), "input", "out_of_range"),
            (|body| body["input"] = json!(["x"]), "input", "wrong_type"),
            (|body| body["input"] = Value::Null, "input", "missing_field"),
            (|body| body["schema"] = Value::Null, "schema", "missing_field"),
            (|body| body["schema"] = json!("object"), "schema", "wrong_type"),
            (|body| body["schema"] = json!({"allOf": []}), "schema", "invalid_schema"),
            (|body| body["max_output_tokens"] = 0.into(), "max_output_tokens", "out_of_range"),
            (|body| body["max_output_tokens"] = 257.into(), "max_output_tokens", "out_of_range"),
            (|body| body["instructions"] = 7.into(), "instructions", "wrong_type"),
            (|body| body["temperature"] = 1.into(), "temperature", "unknown_field"),
        ] {
            assert_eq!(named(change), (400, field.to_owned(), code));
        }
    }

    #[test]
    fn what_is_cut_is_no_data() {
        let reply = ExtractReply { id: "extr-1".into(), created: 1, model: "m".into() };
        let usage = Usage { prompt_tokens: 9, cached_tokens: 0, completion_tokens: 3 };
        let whole = |text, finish| reply.whole(Answered { text, logprobs: &[], finish, usage }, Map::new());
        let text = r#"{"name": "Ada"}"#;
        assert_eq!(whole(text, Finish::Stop)["data"], json!({"name": "Ada"}));
        // Digits that were cut are still a number.
        let cut = whole("36", Finish::Length);
        assert_eq!((&cut["data"], &cut["output_text"]), (&Value::Null, &json!("36")));
    }
}
