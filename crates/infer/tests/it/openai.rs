//! Every field that OpenAI documents is done or refused by its name: none is unknown here, and none is ignored.
//!
//! `openai_fields.txt` has them as the official Python SDK spells them; `UPDATE_EXPECT=1` writes it anew from the SDK
//! that `tests/clients/requirements.txt` names.

use expect_test::expect_file;
use infer::api::{ApiError, ChatCompletionRequest, CompletionRequest, EmbeddingRequest, ResponsesRequest};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

const FIELDS: &str = include_str!("openai_fields.txt");
/// Kinds of parts of a message that are done; the others are refused by their kind.
const PARTS: [&str; 3] = ["text", "input_text", "output_text"];
/// What no field takes: where one does not say so, it was not looked at.
const NONSENSE: f64 = 7.5;

/// A body that is right, and what the field belongs to in it.
fn body_of(place: &str) -> (Value, String) {
    if let Some((messages, kind)) = place.split_once(".content.") {
        let messages = messages.split_once(' ').expect("a route and a field").1;
        // An assistant's may be of any kind.
        let message = json!({"role": "assistant", "content": [{"type": kind, "text": "x"}]});
        return (json!({"model": "m", messages: [message]}), format!("/{messages}/0/content/0"));
    }
    let chat = |message: Value| json!({"model": "m", "messages": [message]});
    let said = json!({"role": "user", "content": "hi"});
    match place {
        "chat" => (chat(said), String::new()),
        "chat messages.tool" => {
            (chat(json!({"role": "tool", "content": "x", "tool_call_id": "c"})), "/messages/0".into())
        }
        "chat stream_options" => {
            let mut body = chat(said);
            body["stream"] = true.into();
            body["stream_options"] = json!({});
            (body, "/stream_options".into())
        }
        "chat tools.function" => {
            let mut body = chat(said);
            body["tools"] = json!([{"type": "function", "function": {"name": "f"}}]);
            (body, "/tools/0/function".into())
        }
        "chat response_format.json_schema" => {
            let mut body = chat(said);
            body["response_format"] = json!({"type": "json_schema", "json_schema": {"name": "n"}});
            (body, "/response_format/json_schema".into())
        }
        "completions" => (json!({"model": "m", "prompt": "p"}), String::new()),
        "embeddings" => (json!({"model": "m", "input": "p"}), String::new()),
        "responses" => (json!({"model": "m", "input": "p"}), String::new()),
        "responses input.message" => (json!({"model": "m", "input": [said]}), "/input/0".into()),
        "responses text" => (json!({"model": "m", "input": "p", "text": {}}), "/text".into()),
        "responses text.format" => {
            let format = json!({"type": "json_schema", "name": "n"});
            (json!({"model": "m", "input": "p", "text": {"format": format}}), "/text/format".into())
        }
        other => {
            let role = other.strip_prefix("chat messages.").unwrap_or_else(|| panic!("a new place: {other}"));
            (chat(json!({"role": role, "content": "x"})), "/messages/0".into())
        }
    }
}

/// `/messages/0` is called `messages[0]`.
fn named(inside: &str) -> String {
    inside.trim_start_matches('/').replace("/0", "[0]").replace('/', ".")
}

fn parse(route: &str, body: &Value) -> Result<(), ApiError> {
    let body = body.to_string();
    match route {
        "chat" => ChatCompletionRequest::parse(body.as_bytes()).map(drop),
        "completions" => CompletionRequest::parse(body.as_bytes()).map(drop),
        "embeddings" => EmbeddingRequest::parse(body.as_bytes()).map(drop),
        "responses" => ResponsesRequest::parse(body.as_bytes()).map(drop),
        other => panic!("a new route: {other}"),
    }
}

#[test]
fn every_documented_field_is_done_or_refused_by_name() {
    let mut seen = 0;
    for line in FIELDS.lines() {
        let (place, fields) = line.split_once(": ").unwrap();
        let route = place.split(' ').next().unwrap();
        let (body, inside) = body_of(place);
        if let Some((_, kind)) = place.split_once(".content.")
            && !PARTS.contains(&kind)
        {
            let error = parse(route, &body).expect_err(&format!("{place} is ignored"));
            let name = format!("{}.type", named(&inside));
            assert_eq!((error.status, error.code, error.param.as_deref()), (400, "unsupported_field", Some(&*name)));
            assert!(error.message.contains(&format!("\"{kind}\"")), "{error}");
            seen += 1;
            continue;
        }
        assert_eq!(parse(route, &body), Ok(()), "{place}");
        for field in fields.split(' ') {
            let mut body = body.clone();
            body.pointer_mut(&inside).unwrap()[field] = json!(NONSENSE);
            let error = parse(route, &body).expect_err(&format!("{place}: `{field}` is ignored"));
            let path = named(&inside);
            let name = if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
            assert_eq!((error.status, error.param.as_deref()), (400, Some(name.as_str())), "{place}: {error}");
            assert_ne!(error.code, "unknown_field", "{place}: `{field}` is OpenAI's; refuse it as such");
            seen += 1;
        }
    }
    assert!(seen > 100, "{seen} fields");
}

#[test]
fn the_list_of_documented_fields_is_the_sdks() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = here.join("../../.vivarium/python/bin/python");
    assert!(python.is_file(), ".vivarium/python is missing: `cargo xtask setup` makes it");
    let out = Command::new(python).arg(here.join("tests/it/openai_fields.py")).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    expect_file!["openai_fields.txt"].assert_eq(&String::from_utf8(out.stdout).unwrap());
}
