//! `POST /v1/batches`: many requests in one file, answered when there is time for them.

use serde_json::{Value, json};
use std::collections::BTreeSet;

use super::strict::{Fields, out_of_range, wrong_type};
use super::{ApiError, ChatCompletionRequest, CompletionRequest, EmbeddingRequest, NAME_BYTES_MAX};

/// Most lines of a file. A guess, unmeasured: at ten seconds a line they take six hours.
pub const LINES_MAX: usize = 2_000;
/// OpenAI's own bounds of `metadata`.
const METADATA_MAX: usize = 16;
const METADATA_KEY_BYTES_MAX: usize = 64;
const METADATA_VALUE_BYTES_MAX: usize = 512;
/// The one window that there is.
pub const WINDOW: &str = "24h";

/// Where the requests of a batch would go one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Chat,
    Completions,
    Embeddings,
}

impl Endpoint {
    pub const ALL: [Endpoint; 3] = [Endpoint::Chat, Endpoint::Completions, Endpoint::Embeddings];

    pub fn as_str(self) -> &'static str {
        match self {
            Endpoint::Chat => "/v1/chat/completions",
            Endpoint::Completions => "/v1/completions",
            Endpoint::Embeddings => "/v1/embeddings",
        }
    }

    fn take(fields: &mut Fields, field: &str) -> Result<Endpoint, ApiError> {
        let name = fields.name(field);
        let wanted = match fields.required(field)? {
            Value::String(wanted) => wanted,
            other => return Err(wrong_type(name, "a string", &other)),
        };
        Endpoint::parse(&wanted).ok_or_else(|| {
            let message = format!(
                "`{name}` must be one of {}; others are not sold in batches by this agent",
                Endpoint::ALL.map(Endpoint::as_str).join(", ")
            );
            ApiError::for_field("unsupported_field", name, message)
        })
    }

    pub fn parse(path: &str) -> Option<Endpoint> {
        Endpoint::ALL.into_iter().find(|endpoint| endpoint.as_str() == path)
    }
}

/// A request for a batch whose every field was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchRequest {
    pub input_file_id: String,
    pub endpoint: Endpoint,
    /// Given back as it came.
    pub metadata: Vec<(String, String)>,
}

impl BatchRequest {
    /// Reads a body. Every error is a 400 that names the field.
    pub fn parse(body: &[u8]) -> Result<BatchRequest, ApiError> {
        let mut fields = Fields::from_body(body)?;
        let missing = |name: &str| ApiError::for_field("missing_field", name, format!("`{name}` is required"));
        let input_file_id = fields.string("input_file_id", NAME_BYTES_MAX)?.ok_or_else(|| missing("input_file_id"))?;
        let endpoint = Endpoint::take(&mut fields, "endpoint")?;
        match fields.required("completion_window")? {
            Value::String(window) if window == WINDOW => {}
            _ => return Err(out_of_range("completion_window".into(), format!("`{WINDOW}`, the only one there is"))),
        }
        let metadata = metadata(fields.take("metadata"))?;
        fields.finish(&["output_expires_after"])?;
        Ok(BatchRequest { input_file_id, endpoint, metadata })
    }
}

fn metadata(value: Option<Value>) -> Result<Vec<(String, String)>, ApiError> {
    let entries = match value {
        None => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => return Err(wrong_type("metadata".into(), "an object", &other)),
    };
    if entries.len() > METADATA_MAX {
        return Err(out_of_range("metadata".into(), format!("at most {METADATA_MAX} entries long")));
    }
    let entry = |(key, value): (String, Value)| {
        let name = format!("metadata.{}", key.chars().take(METADATA_KEY_BYTES_MAX).collect::<String>());
        match value {
            Value::String(value) if key.len() <= METADATA_KEY_BYTES_MAX && value.len() <= METADATA_VALUE_BYTES_MAX => {
                Ok((key, value))
            }
            Value::String(_) => {
                let wanted = format!(
                    "a key of at most {METADATA_KEY_BYTES_MAX} bytes and a value of at most {METADATA_VALUE_BYTES_MAX}"
                );
                Err(out_of_range(name, wanted))
            }
            other => Err(wrong_type(name, "a string", &other)),
        }
    };
    entries.into_iter().map(entry).collect()
}

/// One request of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The customer's name of it, which no other line has.
    pub custom_id: String,
    pub asked: Asked,
}

/// What a line asks for. Never streamed.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    Chat(Box<ChatCompletionRequest>),
    Completion(Box<CompletionRequest>),
    Embedding(EmbeddingRequest),
}

impl Asked {
    pub fn endpoint(&self) -> Endpoint {
        match self {
            Asked::Chat(_) => Endpoint::Chat,
            Asked::Completion(_) => Endpoint::Completions,
            Asked::Embedding(_) => Endpoint::Embeddings,
        }
    }

    pub fn model(&self) -> &str {
        match self {
            Asked::Chat(request) => &request.model,
            Asked::Completion(request) => &request.model,
            Asked::Embedding(request) => &request.model,
        }
    }
}

/// The lines of a file: at least one, all for one endpoint, each of them a request that its endpoint would take. Every
/// error is a 400 that names the line, counted from 1, and the field.
pub fn lines(content: &str) -> Result<Vec<Line>, ApiError> {
    let (mut lines, mut names): (Vec<Line>, BTreeSet<String>) = (Vec::new(), BTreeSet::new());
    for (index, text) in content.lines().enumerate() {
        let number = index + 1;
        if number > LINES_MAX {
            return Err(ApiError::for_bad_request("too_many_lines", format!("a file has at most {LINES_MAX} lines")));
        }
        let line = line(text).map_err(|error| in_line(number, error))?;
        if let Some(first) = lines.first().filter(|first| first.asked.endpoint() != line.asked.endpoint()) {
            let wanted = format!("`{}` as in the first line", first.asked.endpoint().as_str());
            return Err(in_line(number, out_of_range("url".into(), wanted)));
        }
        if !names.insert(line.custom_id.clone()) {
            let message = format!("`custom_id` is `{}`, and so is an earlier line's", line.custom_id);
            return Err(in_line(number, ApiError::for_field("out_of_range", "custom_id", message)));
        }
        lines.push(line);
    }
    if lines.is_empty() {
        return Err(ApiError::for_bad_request("no_lines", "the file has no lines"));
    }
    Ok(lines)
}

/// The same error, of a line.
pub fn in_line(number: usize, error: ApiError) -> ApiError {
    let message = format!("line {number}: {}", error.message);
    let param = Some(error.param.map_or_else(|| format!("line {number}"), |param| format!("line {number}: {param}")));
    ApiError { message, param, ..error }
}

fn line(text: &str) -> Result<Line, ApiError> {
    let mut fields = Fields::from_body(text.as_bytes())?;
    let custom_id = fields.string("custom_id", NAME_BYTES_MAX)?.filter(|id| !id.is_empty());
    let custom_id =
        custom_id.ok_or_else(|| ApiError::for_field("missing_field", "custom_id", "`custom_id` is required"))?;
    match fields.required("method")? {
        Value::String(method) if method == "POST" => {}
        _ => return Err(out_of_range("method".into(), "`POST`".into())),
    }
    let endpoint = Endpoint::take(&mut fields, "url")?;
    let body = match fields.required("body")? {
        body @ Value::Object(_) => body.to_string(),
        other => return Err(wrong_type("body".into(), "an object", &other)),
    };
    fields.finish(&[])?;
    let (asked, streams) = asked(endpoint, body.as_bytes()).map_err(|error| ApiError {
        message: format!("`body`: {}", error.message),
        param: Some(error.param.map_or_else(|| "body".to_owned(), |param| format!("body.{param}"))),
        ..error
    })?;
    if streams {
        let message = "`body.stream`: the answers of a batch come in a file and are not streamed; leave it out";
        return Err(ApiError::for_field("unsupported_field", "body.stream", message));
    }
    Ok(Line { custom_id, asked })
}

/// Whether it asks for a stream, too.
fn asked(endpoint: Endpoint, body: &[u8]) -> Result<(Asked, bool), ApiError> {
    Ok(match endpoint {
        Endpoint::Chat => {
            let request = ChatCompletionRequest::parse(body)?;
            let streams = request.stream;
            (Asked::Chat(Box::new(request)), streams)
        }
        Endpoint::Completions => {
            let request = CompletionRequest::parse(body)?;
            let streams = request.stream;
            (Asked::Completion(Box::new(request)), streams)
        }
        Endpoint::Embeddings => (Asked::Embedding(EmbeddingRequest::parse(body)?), false),
    })
}

/// A line of a batch's output: the answer as its endpoint gives it.
pub fn answered(id: &str, custom_id: &str, request_id: &str, body: &Value) -> Value {
    let response = json!({"status_code": 200, "request_id": request_id, "body": body});
    json!({"id": id, "custom_id": custom_id, "response": response, "error": null})
}

/// A line of a batch's errors: it has no answer.
pub fn unanswered(id: &str, custom_id: &str, (code, message): (&str, &str)) -> Value {
    json!({"id": id, "custom_id": custom_id, "response": null, "error": {"code": code, "message": message}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(id: &str) -> Value {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4});
        json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body})
    }

    fn file(lines: &[Value]) -> String {
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn each_line_is_a_request_of_its_endpoint() {
        let parsed = lines(&file(&[chat("a"), chat("b")])).unwrap();
        let names: Vec<&str> = parsed.iter().map(|line| line.custom_id.as_str()).collect();
        assert_eq!((names, parsed[0].asked.endpoint(), parsed[0].asked.model()), (vec!["a", "b"], Endpoint::Chat, "m"));
        // Without the last newline, and with other ends of lines.
        assert_eq!(lines(&format!("{}\r\n{}", chat("a"), chat("b"))).unwrap(), parsed);
        for (url, body) in [
            ("/v1/completions", json!({"model": "m", "prompt": "a"})),
            ("/v1/embeddings", json!({"model": "m", "input": ["a", "b"]})),
        ] {
            let one = json!({"custom_id": "c", "method": "POST", "url": url, "body": body});
            assert_eq!(lines(&one.to_string()).unwrap()[0].asked.endpoint().as_str(), url);
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line_and_field() {
        let refused = |lines_: &[Value]| {
            let error = lines(&file(lines_)).unwrap_err();
            assert_eq!(error.status, 400);
            (error.code, error.param.unwrap_or_default(), error.message)
        };
        let with = |field: &str, value: Value| {
            let mut line = chat("b");
            line[field] = value;
            [chat("a"), line]
        };
        let of = |field: &str, value: Value| {
            let (code, param, message) = refused(&with(field, value));
            assert!(message.starts_with("line 2: "), "{message}");
            (code, param)
        };
        let named = |code, field: &str| (code, format!("line 2: {field}"));
        assert_eq!(of("custom_id", json!("a")), named("out_of_range", "custom_id"));
        assert_eq!(of("custom_id", json!("")), named("missing_field", "custom_id"));
        assert_eq!(of("method", json!("GET")), named("out_of_range", "method"));
        assert_eq!(of("url", json!("/v1/responses")), named("unsupported_field", "url"));
        assert_eq!(of("url", json!("/v1/embeddings")).1, "line 2: body.input");
        assert_eq!(of("body", json!(7)), named("wrong_type", "body"));
        assert_eq!(of("what", json!(7)), named("unknown_field", "what"));
        let mut body = chat("b")["body"].clone();
        body["stream"] = json!(true);
        assert_eq!(of("body", body.clone()), named("unsupported_field", "body.stream"));
        body["stream"] = Value::Null;
        body["n"] = json!(2);
        assert_eq!(of("body", body), named("unsupported_field", "body.n"));
        let completion = json!({"custom_id": "b", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": "a"}});
        assert_eq!(refused(&[chat("a"), completion]).1, "line 2: url");
        assert_eq!(refused(&[]).0, "no_lines");
        let error = lines(&format!("{}\n\n{}\n", chat("a"), chat("b"))).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("line 2"), "an empty line is no request: {error}");
        let many: Vec<Value> = (0..=LINES_MAX).map(|n| chat(&n.to_string())).collect();
        assert_eq!(refused(&many).0, "too_many_lines");
    }

    #[test]
    fn a_batch_is_asked_for_by_these_fields_and_no_others() {
        let good = json!({
            "input_file_id": "file-1", "endpoint": "/v1/embeddings", "completion_window": "24h",
            "metadata": {"night": "1"},
        });
        let parsed = BatchRequest::parse(good.to_string().as_bytes()).unwrap();
        assert_eq!((parsed.endpoint, parsed.metadata.len()), (Endpoint::Embeddings, 1));
        let refused = |field: &str, value: Value| {
            let mut wrong = good.clone();
            wrong[field] = value;
            let error = BatchRequest::parse(wrong.to_string().as_bytes()).unwrap_err();
            (error.code, error.param.unwrap_or_default())
        };
        let named = |code, field: &str| (code, field.to_owned());
        assert_eq!(refused("input_file_id", Value::Null), named("missing_field", "input_file_id"));
        assert_eq!(refused("endpoint", json!("/v1/responses")), named("unsupported_field", "endpoint"));
        assert_eq!(refused("completion_window", json!("1h")), named("out_of_range", "completion_window"));
        assert_eq!(refused("metadata", json!({"a": 1})), named("wrong_type", "metadata.a"));
        assert_eq!(refused("metadata", json!({"a": "x".repeat(513)})), named("out_of_range", "metadata.a"));
        let kept = json!({"anchor": "created_at", "seconds": 3600});
        assert_eq!(refused("output_expires_after", kept), named("unsupported_field", "output_expires_after"));
        assert_eq!(refused("x", json!(1)), named("unknown_field", "x"));
    }
}
