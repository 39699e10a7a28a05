//! The requests and answers of this API as JSON schemas (the dialect of OpenAPI 3.1), for `openapi.json`.
//!
//! Each bound is the parsers' own constant. A test beside this file makes values by these schemas, right ones and wrong
//! ones, and sees the parsers take and refuse them; another holds real answers against them.

use serde_json::{Map, Value, json};

use super::batches::{Endpoint, WINDOW};
use super::embeddings::INPUTS_MAX;
use super::rerank::DOCUMENTS_MAX;
use super::settings::SENTENCE_BYTES_MAX;
use super::strict::LOGIT_BIAS_MAX;
use super::tools::{TOOL_NAME_BYTES_MAX, TOOLS_MAX};
use super::{MESSAGES_MAX, NAME_BYTES_MAX, STOP_BYTES_MAX, STOP_MAX};
use super::{chat, classify, completions, extract, rerank, responses};

/// Every schema that another one, or an operation, names by `#/components/schemas/…`.
pub fn schemas() -> Map<String, Value> {
    [
        ("ChatCompletionRequest", chat_request()),
        ("Message", message()),
        ("Tool", tool()),
        ("ToolCall", tool_call()),
        ("ChatCompletion", chat_completion()),
        ("ChatCompletionChunk", chat_chunk()),
        ("TokenLogprobs", token_logprobs()),
        ("CompletionRequest", completion_request()),
        ("Completion", completion()),
        ("CompletionChunk", completion_chunk()),
        ("ResponsesRequest", responses_request()),
        ("Response", response()),
        ("ResponseEvent", response_event()),
        ("EmbeddingRequest", embedding_request()),
        ("Embeddings", embeddings()),
        ("RerankRequest", rerank_request()),
        ("Ranking", ranking()),
        ("ClassifyRequest", classify_request()),
        ("ClassifyLabel", classify_label()),
        ("ClassifyExample", classify_example()),
        ("Classifications", classifications()),
        ("ExtractRequest", extract_request()),
        ("Extraction", extraction()),
        ("VerifyRequest", verify_request()),
        ("Verification", verification()),
        ("FileUpload", file_upload()),
        ("File", file()),
        ("FileList", page(reference("File"))),
        ("DeletedFile", deleted_file()),
        ("BatchRequest", batch_request()),
        ("Batch", batch()),
        ("BatchList", page(reference("Batch"))),
        ("Model", model()),
        ("ModelList", object(&[("object", word("list")), ("data", list(reference("Model")))], &[])),
        ("Usage", usage()),
        ("Payment", payment()),
        ("Error", error()),
    ]
    .map(|(name, schema)| (name.to_owned(), schema))
    .into_iter()
    .collect()
}

/// `$ref` of one of [`schemas`].
pub fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// An object with these fields and no others.
pub fn object(required: &[(&str, Value)], optional: &[(&str, Value)]) -> Value {
    let fields: Map<String, Value> =
        required.iter().chain(optional).map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    let names: Vec<&str> = required.iter().map(|(name, _)| *name).collect();
    json!({"type": "object", "properties": fields, "required": names, "additionalProperties": false})
}

/// An object of a request: what is not required may also be null, which is the same as leaving it out. `refused` are
/// OpenAI's fields that are a 400 whatever they say, for readers who wonder.
fn request(required: &[(&str, Value)], optional: &[(&str, Value)], refused: &[&str]) -> Value {
    let optional: Vec<(&str, Value)> = optional.iter().map(|(name, schema)| (*name, or_null(schema.clone()))).collect();
    let mut request = object(required, &optional);
    if !refused.is_empty() {
        request["x-refused"] = json!(refused);
    }
    request
}

pub fn or_null(schema: Value) -> Value {
    any_of([schema, json!({"type": "null"})])
}

fn any_of(schemas: impl IntoIterator<Item = Value>) -> Value {
    json!({"anyOf": schemas.into_iter().collect::<Vec<_>>()})
}

pub fn text() -> Value {
    json!({"type": "string"})
}

/// A text that is not empty. JSON schema counts characters and this API bytes: what has more than so many bytes is
/// refused.
fn some_text(bytes_max: usize) -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": bytes_max})
}

fn name() -> Value {
    json!({"type": "string", "maxLength": NAME_BYTES_MAX})
}

/// This text and no other.
pub fn word(word: &str) -> Value {
    json!({"const": word})
}

fn words<'a>(words: impl IntoIterator<Item = &'a str>) -> Value {
    json!({"enum": words.into_iter().collect::<Vec<_>>()})
}

/// Only these values, which ask for nothing that is not done.
fn only(values: &[Value]) -> Value {
    json!({"enum": values})
}

fn boolean() -> Value {
    json!({"type": "boolean"})
}

/// A whole number of at least `least`.
pub fn whole(least: u64) -> Value {
    json!({"type": "integer", "minimum": least})
}

fn count(most: u8) -> Value {
    json!({"type": "integer", "minimum": 0, "maximum": most})
}

fn number(least: i8, most: i8) -> Value {
    json!({"type": "number", "minimum": least, "maximum": most})
}

pub fn list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

/// A list with between `least` and `most` entries.
fn bounded(items: Value, least: usize, most: usize) -> Value {
    json!({"type": "array", "items": items, "minItems": least, "maxItems": most})
}

/// Any object at all.
fn free() -> Value {
    json!({"type": "object"})
}

fn sampling_of_every_route() -> [(&'static str, Value); 2] {
    [("temperature", number(0, 2)), ("top_p", number(0, 1))]
}

fn sampling() -> Vec<(&'static str, Value)> {
    let bias = json!({
        "type": "object", "maxProperties": LOGIT_BIAS_MAX, "propertyNames": {"pattern": "^(0|[1-9][0-9]*)$"},
        "additionalProperties": number(-100, 100),
    });
    let more = [
        ("min_p", number(0, 1)),
        ("top_k", whole(1)),
        ("frequency_penalty", number(-2, 2)),
        ("presence_penalty", number(-2, 2)),
        ("logit_bias", bias),
        ("seed", json!({"type": "integer", "minimum": i64::MIN, "maximum": u64::MAX})),
    ];
    sampling_of_every_route().into_iter().chain(more).collect()
}

fn stop() -> Value {
    let one = some_text(STOP_BYTES_MAX);
    any_of([one.clone(), bounded(one, 0, STOP_MAX)])
}

fn stream_options() -> Value {
    request(&[], &[("include_usage", boolean()), ("include_obfuscation", only(&[json!(false)]))], &[])
}

fn json_schema_fields() -> [Vec<(&'static str, Value)>; 2] {
    let optional = vec![
        ("description", json!({"type": "string", "maxLength": SENTENCE_BYTES_MAX})),
        ("strict", boolean()),
        ("schema", free()),
    ];
    [vec![("name", text())], optional]
}

/// `response_format` of chat completions.
fn response_format() -> Value {
    let [required, optional] = json_schema_fields();
    let inner = request(&required, &optional, &[]);
    any_of([
        request(&[("type", words(["text", "json_object"]))], &[], &[]),
        request(&[("type", word("json_schema")), ("json_schema", inner)], &[], &[]),
    ])
}

/// `text` of responses.
fn text_format() -> Value {
    let [mut required, optional] = json_schema_fields();
    required.push(("type", word("json_schema")));
    let format =
        any_of([request(&[("type", words(["text", "json_object"]))], &[], &[]), request(&required, &optional, &[])]);
    request(&[], &[("format", format), ("verbosity", only(&[json!("medium")]))], &[])
}

fn chat_request() -> Value {
    let choice = any_of([
        words(["none", "auto", "required"]),
        request(&[("type", word("function")), ("function", request(&[("name", tool_name())], &[], &[]))], &[], &[]),
    ]);
    let mut optional = vec![("max_completion_tokens", whole(1)), ("max_tokens", whole(1))];
    optional.extend(sampling());
    optional.extend([
        ("stop", stop()),
        ("stream", boolean()),
        ("stream_options", stream_options()),
        ("user", name()),
        ("logprobs", boolean()),
        ("top_logprobs", count(chat::TOP_LOGPROBS_MAX)),
        ("tools", bounded(reference("Tool"), 0, TOOLS_MAX)),
        ("tool_choice", choice),
        ("parallel_tool_calls", boolean()),
        ("response_format", response_format()),
    ]);
    optional.extend(chat::harmless().iter().map(|(name, values)| (*name, only(values))));
    let messages = bounded(reference("Message"), 1, MESSAGES_MAX);
    request(&[("model", some_text(NAME_BYTES_MAX)), ("messages", messages)], &optional, &chat::NOT_DONE)
}

/// Text, or parts of it with one of these types.
fn content(kinds: &[&str]) -> Value {
    let part = request(
        &[("type", words(kinds.iter().copied())), ("text", text())],
        &[("annotations", only(&[json!([])])), ("logprobs", only(&[json!([])]))],
        &[],
    );
    any_of([text(), bounded(part, 1, MESSAGES_MAX)])
}

fn message() -> Value {
    let (said, refused) = (content(&["text"]), &chat::NOT_DONE_IN_MESSAGE);
    let (calls, none) = (bounded(sent_back(), 1, MESSAGES_MAX), ("tool_calls", only(&[json!([])])));
    let annotations = ("annotations", only(&[json!([])]));
    any_of([
        request(
            &[("role", words(["system", "developer", "user", "assistant"])), ("content", said.clone())],
            &[none.clone(), annotations.clone()],
            refused,
        ),
        request(
            &[("role", word("assistant")), ("tool_calls", calls)],
            &[("content", said.clone()), annotations.clone()],
            refused,
        ),
        request(&[("role", word("tool")), ("tool_call_id", name()), ("content", said)], &[none, annotations], refused),
    ])
}

fn tool_name() -> Value {
    json!({"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "minLength": 1, "maxLength": TOOL_NAME_BYTES_MAX})
}

fn tool() -> Value {
    let function = request(
        &[("name", tool_name())],
        &[
            ("description", json!({"type": "string", "maxLength": SENTENCE_BYTES_MAX})),
            ("strict", boolean()),
            ("parameters", free()),
        ],
        &[],
    );
    request(&[("type", word("function")), ("function", function)], &[], &[])
}

/// A call in a message of the assistant, which customers send back more or less as they got it.
fn sent_back() -> Value {
    let arguments = json!({"type": "string", "contentMediaType": "application/json"});
    let function = request(&[("name", tool_name())], &[("arguments", arguments)], &[]);
    request(&[("id", name()), ("function", function)], &[("type", word("function"))], &[])
}

fn tool_call() -> Value {
    let arguments = json!({"type": "string", "contentMediaType": "application/json"});
    let function = object(&[("name", tool_name()), ("arguments", arguments)], &[]);
    object(&[("id", name()), ("type", word("function")), ("function", function)], &[])
}

/// What every finished answer has at its top beside OpenAI's fields.
fn paid() -> (&'static str, Value) {
    ("x402", reference("Payment"))
}

fn finish_reason() -> Value {
    words(["stop", "length", "tool_calls", "cancelled"])
}

fn chat_completion() -> Value {
    let message = object(
        &[
            ("role", word("assistant")),
            ("content", or_null(text())),
            ("refusal", json!({"type": "null"})),
            ("annotations", only(&[json!([])])),
        ],
        &[("tool_calls", list(reference("ToolCall")))],
    );
    let choice = object(
        &[
            ("index", json!({"const": 0})),
            ("message", message),
            ("logprobs", or_null(reference("TokenLogprobs"))),
            ("finish_reason", finish_reason()),
        ],
        &[],
    );
    let mut fields = head("chat.completion").to_vec();
    fields.extend([("choices", list(choice)), ("usage", reference("Usage"))]);
    object(&fields, &[paid()])
}

fn head(kind: &'static str) -> [(&'static str, Value); 4] {
    [("id", text()), ("object", word(kind)), ("created", whole(0)), ("model", text())]
}

fn chat_chunk() -> Value {
    let function = object(&[("name", text()), ("arguments", text())], &[]);
    let call = object(&[("index", whole(0)), ("id", text()), ("type", word("function")), ("function", function)], &[]);
    let delta = object(
        &[],
        &[
            ("role", word("assistant")),
            ("content", text()),
            ("refusal", json!({"type": "null"})),
            ("tool_calls", list(call)),
        ],
    );
    let choice = object(
        &[
            ("index", json!({"const": 0})),
            ("delta", delta),
            ("logprobs", or_null(reference("TokenLogprobs"))),
            ("finish_reason", or_null(finish_reason())),
        ],
        &[],
    );
    let mut fields = head("chat.completion.chunk").to_vec();
    fields.push(("choices", list(choice)));
    object(&fields, &[("usage", or_null(reference("Usage"))), paid()])
}

fn token_logprobs() -> Value {
    let one = [("token", text()), ("logprob", json!({"type": "number"})), ("bytes", list(whole(0)))];
    let mut token = one.to_vec();
    token.push(("top_logprobs", list(object(&one, &[]))));
    object(&[("content", list(object(&token, &[])))], &[("refusal", json!({"type": "null"}))])
}

fn completion_request() -> Value {
    let prompt = any_of([json!({"type": "string", "minLength": 1}), {
        let mut one = bounded(json!({"type": "string", "minLength": 1}), 1, 1);
        one["description"] = "one text; several are refused".into();
        one
    }]);
    let mut optional = vec![("max_tokens", whole(1))];
    optional.extend(sampling());
    optional.extend([
        ("stop", stop()),
        ("stream", boolean()),
        ("stream_options", stream_options()),
        ("user", name()),
        ("logprobs", count(completions::LOGPROBS_MAX)),
    ]);
    optional.extend(completions::harmless().iter().map(|(name, values)| (*name, only(values))));
    request(&[("model", some_text(NAME_BYTES_MAX)), ("prompt", prompt)], &optional, &completions::NOT_DONE)
}

fn completion_choice(finish_reason: Value) -> Value {
    let numbers = list(json!({"type": "number"}));
    let logprobs = object(
        &[
            ("tokens", list(text())),
            ("token_logprobs", numbers),
            ("top_logprobs", list(free())),
            ("text_offset", list(whole(0))),
        ],
        &[],
    );
    object(
        &[
            ("index", json!({"const": 0})),
            ("text", text()),
            ("logprobs", or_null(logprobs)),
            ("finish_reason", finish_reason),
        ],
        &[],
    )
}

fn completion() -> Value {
    let mut fields = head("text_completion").to_vec();
    let finish_reason = words(["stop", "length", "cancelled"]);
    fields.extend([("choices", list(completion_choice(finish_reason))), ("usage", reference("Usage"))]);
    object(&fields, &[paid()])
}

fn completion_chunk() -> Value {
    let mut fields = head("text_completion").to_vec();
    fields.push(("choices", list(completion_choice(or_null(words(["stop", "length", "cancelled"]))))));
    object(&fields, &[("usage", or_null(reference("Usage"))), paid()])
}

fn responses_request() -> Value {
    let item = request(
        &[
            ("role", words(["system", "developer", "user", "assistant"])),
            ("content", content(&["input_text", "output_text"])),
        ],
        &[("type", word("message")), ("id", name()), ("status", words(["completed", "incomplete"]))],
        &responses::NOT_DONE_IN_MESSAGE,
    );
    let metadata = json!({
        "type": "object", "maxProperties": responses::METADATA_ENTRIES_MAX,
        "propertyNames": {"maxLength": NAME_BYTES_MAX},
        "additionalProperties": {"type": "string", "maxLength": responses::METADATA_VALUE_BYTES_MAX},
    });
    let mut optional = vec![
        ("instructions", json!({"type": "string", "maxLength": responses::INSTRUCTIONS_BYTES_MAX})),
        ("previous_response_id", name()),
        ("store", boolean()),
        ("stream", boolean()),
        ("max_output_tokens", whole(1)),
        ("text", text_format()),
        ("metadata", metadata),
        ("user", name()),
    ];
    optional.extend(sampling_of_every_route());
    optional.extend(responses::harmless().iter().map(|(name, values)| (*name, only(values))));
    let input = any_of([text(), bounded(item, 1, MESSAGES_MAX)]);
    request(&[("model", some_text(NAME_BYTES_MAX)), ("input", input)], &optional, &responses::NOT_DONE)
}

fn response() -> Value {
    let part = object(
        &[
            ("type", word("output_text")),
            ("text", text()),
            ("annotations", only(&[json!([])])),
            ("logprobs", only(&[json!([])])),
        ],
        &[],
    );
    let status = words(["in_progress", "completed", "incomplete", "cancelled", "failed"]);
    let message = object(
        &[
            ("id", text()),
            ("type", word("message")),
            ("status", status.clone()),
            ("role", word("assistant")),
            ("content", list(part)),
        ],
        &[],
    );
    let format = object(&[("type", words(["text", "json_schema"]))], &[("schema", free())]);
    let failure = object(&[("code", text()), ("message", text())], &[]);
    let usage = object(
        &[
            ("input_tokens", whole(0)),
            ("input_tokens_details", object(&[("cached_tokens", whole(0))], &[])),
            ("output_tokens", whole(0)),
            ("output_tokens_details", object(&[("reasoning_tokens", json!({"const": 0}))], &[])),
            ("total_tokens", whole(0)),
        ],
        &[],
    );
    let number = || or_null(json!({"type": "number"}));
    object(
        &[
            ("id", text()),
            ("object", word("response")),
            ("created_at", whole(0)),
            ("status", status),
            ("background", json!({"const": false})),
            ("error", or_null(failure)),
            ("incomplete_details", or_null(object(&[("reason", word("max_output_tokens"))], &[]))),
            ("instructions", or_null(text())),
            ("max_output_tokens", or_null(whole(1))),
            ("model", text()),
            ("output", list(message)),
            ("parallel_tool_calls", json!({"const": false})),
            ("previous_response_id", or_null(text())),
            ("store", boolean()),
            ("temperature", number()),
            ("text", object(&[("format", format)], &[])),
            ("tool_choice", word("auto")),
            ("tools", only(&[json!([])])),
            ("top_p", number()),
            ("truncation", word("disabled")),
            ("usage", or_null(usage)),
            ("user", or_null(text())),
            ("metadata", free()),
        ],
        &[paid()],
    )
}

/// One event of a streamed response; `type` names the SSE event too.
fn response_event() -> Value {
    let with = |kinds: &[&str], more: &[(&str, Value)]| {
        let kind = words(kinds.iter().copied());
        let mut fields = vec![("type", kind), ("sequence_number", whole(0))];
        fields.extend(more.iter().cloned());
        object(&fields, &[])
    };
    let place =
        [("item_id", text()), ("output_index", json!({"const": 0})), ("content_index", json!({"const": 0}))].to_vec();
    let at = |more: &[(&'static str, Value)]| [place.clone(), more.to_vec()].concat();
    let pictures =
        ["response.created", "response.in_progress", "response.completed", "response.incomplete", "response.failed"];
    let item = [("output_index", json!({"const": 0})), ("item", free())];
    any_of([
        with(&pictures, &[("response", reference("Response"))]),
        with(&["response.output_item.added", "response.output_item.done"], &item),
        with(&["response.content_part.added", "response.content_part.done"], &at(&[("part", free())])),
        with(&["response.output_text.delta"], &at(&[("delta", text()), ("logprobs", only(&[json!([])]))])),
        with(&["response.output_text.done"], &at(&[("text", text()), ("logprobs", only(&[json!([])]))])),
    ])
}

fn embedding_request() -> Value {
    let one = json!({"type": "string", "minLength": 1});
    let optional = [("encoding_format", words(["float", "base64"])), ("dimensions", whole(1)), ("user", name())];
    let input = any_of([one.clone(), bounded(one, 1, INPUTS_MAX)]);
    request(&[("model", some_text(NAME_BYTES_MAX)), ("input", input)], &optional, &[])
}

/// Usage of texts that became vectors.
fn usage_of_vectors() -> Value {
    object(&[("prompt_tokens", whole(0)), ("total_tokens", whole(0))], &[])
}

fn embeddings() -> Value {
    let embedding = any_of([list(json!({"type": "number"})), text()]);
    let one = object(&[("object", word("embedding")), ("index", whole(0)), ("embedding", embedding)], &[]);
    let fields = [("object", word("list")), ("data", list(one)), ("model", text()), ("usage", usage_of_vectors())];
    object(&fields, &[paid()])
}

fn rerank_request() -> Value {
    let one = json!({"type": "string", "minLength": 1});
    let document = any_of([one.clone(), request(&[("text", one.clone())], &[], &[])]);
    let mut optional = vec![("top_n", whole(1)), ("return_documents", boolean()), ("user", name())];
    optional.extend(rerank::harmless().iter().map(|(name, values)| (*name, only(values))));
    let required =
        [("model", some_text(NAME_BYTES_MAX)), ("query", one), ("documents", bounded(document, 1, DOCUMENTS_MAX))];
    request(&required, &optional, &rerank::NOT_DONE)
}

fn ranking() -> Value {
    let result = object(
        &[("index", whole(0)), ("relevance_score", number(-1, 1))],
        &[("document", object(&[("text", text())], &[]))],
    );
    let fields = [
        ("id", text()),
        ("object", word("list")),
        ("model", text()),
        ("results", list(result)),
        ("usage", usage_of_vectors()),
    ];
    object(&fields, &[paid()])
}

fn classify_request() -> Value {
    let inputs = bounded(json!({"type": "string", "minLength": 1}), 1, classify::INPUTS_MAX);
    let labels = bounded(reference("ClassifyLabel"), 1, classify::LABELS_MAX);
    let examples = bounded(reference("ClassifyExample"), 0, classify::EXAMPLES_MAX);
    let required = [("model", some_text(NAME_BYTES_MAX)), ("inputs", inputs), ("labels", labels)];
    request(&required, &[("examples", examples), ("user", name())], &[])
}

/// Each name once.
fn classify_label() -> Value {
    let described = request(&[("name", some_text(NAME_BYTES_MAX))], &[("description", name())], &[]);
    any_of([some_text(NAME_BYTES_MAX), described])
}

/// `label` is one of the request's.
fn classify_example() -> Value {
    let text = json!({"type": "string", "minLength": 1});
    request(&[("text", text), ("label", some_text(NAME_BYTES_MAX))], &[], &[])
}

fn classifications() -> Value {
    let scores = json!({"type": "object", "additionalProperties": object(&[("score", number(-1, 1))], &[])});
    let one = object(&[("index", whole(0)), ("input", text()), ("prediction", text()), ("labels", scores)], &[]);
    let fields = [
        ("id", text()),
        ("object", word("list")),
        ("model", text()),
        ("classifications", list(one)),
        ("usage", usage_of_vectors()),
    ];
    object(&fields, &[paid()])
}

fn extract_request() -> Value {
    let most = json!({"type": "integer", "minimum": 1, "maximum": extract::OUTPUT_TOKENS_MAX});
    let optional = [
        ("instructions", json!({"type": "string", "maxLength": extract::INSTRUCTIONS_BYTES_MAX})),
        ("max_output_tokens", most),
        ("user", name()),
    ];
    let input = some_text(extract::INPUT_BYTES_MAX);
    request(&[("model", some_text(NAME_BYTES_MAX)), ("input", input), ("schema", free())], &optional, &[])
}

/// `data` is JSON by the request's schema, or null where the answer was cut.
fn extraction() -> Value {
    let kinds = ["object", "array", "string", "number", "boolean", "null"];
    let any = any_of(kinds.map(|kind| json!({"type": kind})));
    let fields = [
        ("id", text()),
        ("object", word("extraction")),
        ("created", whole(0)),
        ("model", text()),
        ("data", any),
        ("output_text", text()),
        ("finish_reason", words(["stop", "length", "cancelled"])),
        ("usage", reference("Usage")),
    ];
    object(&fields, &[paid()])
}

/// `receipt` as `GET /receipts/{id}` gives it.
fn verify_request() -> Value {
    request(&[("receipt", free()), ("request", text())], &[("answer", text()), ("user", name())], &[])
}

fn verification() -> Value {
    let place = object(
        &[("bytes", whole(0)), ("line", whole(1)), ("column", whole(1)), ("answered", text()), ("made", text())],
        &[],
    );
    let fields = [
        ("id", text()),
        ("object", word("verification")),
        ("created", whole(0)),
        ("verdict", words(["same", "different"])),
        ("why", list(text())),
        ("place", or_null(place)),
        ("signer", text()),
        ("usage", reference("Usage")),
    ];
    object(&fields, &[paid()])
}

/// The JSON form; OpenAI's own is multipart/form-data with `purpose` and `file`.
fn file_upload() -> Value {
    request(&[("purpose", word("batch")), ("content", text())], &[("filename", name())], &["expires_after"])
}

fn file() -> Value {
    let fields = [
        ("id", text()),
        ("object", word("file")),
        ("bytes", whole(0)),
        ("created_at", whole(0)),
        ("filename", text()),
        ("purpose", words(["batch", "batch_output"])),
        ("status", word("processed")),
    ];
    object(&fields, &[paid()])
}

fn deleted_file() -> Value {
    let fields = [("id", text()), ("object", word("file")), ("deleted", json!({"const": true})), ("note", text())];
    object(&fields, &[])
}

fn page(of: Value) -> Value {
    let fields = [
        ("object", word("list")),
        ("first_id", or_null(text())),
        ("last_id", or_null(text())),
        ("has_more", boolean()),
        ("data", list(of)),
    ];
    object(&fields, &[])
}

fn batch_request() -> Value {
    let fields = [
        ("input_file_id", name()),
        ("endpoint", words(Endpoint::ALL.map(Endpoint::as_str))),
        ("completion_window", word(WINDOW)),
    ];
    let metadata = json!({"type": "object", "additionalProperties": {"type": "string"}});
    request(&fields, &[("metadata", metadata)], &["output_expires_after"])
}

fn batch() -> Value {
    let error =
        object(&[("code", text()), ("message", text()), ("line", or_null(whole(1))), ("param", or_null(text()))], &[]);
    let counts = object(&[("total", whole(0)), ("completed", whole(0)), ("failed", whole(0))], &[]);
    let usage = object(
        &[
            ("input_tokens", whole(0)),
            ("input_tokens_details", object(&[("cached_tokens", whole(0))], &[])),
            ("output_tokens", whole(0)),
            ("output_tokens_details", object(&[("reasoning_tokens", whole(0))], &[])),
            ("total_tokens", whole(0)),
        ],
        &[],
    );
    let states = ["validating", "in_progress", "cancelling", "completed", "failed", "expired", "cancelled"];
    let time = || or_null(whole(0));
    let fields = [
        ("id", text()),
        ("object", word("batch")),
        ("endpoint", words(Endpoint::ALL.map(Endpoint::as_str))),
        ("errors", or_null(object(&[("object", word("list")), ("data", list(error))], &[]))),
        ("input_file_id", text()),
        ("completion_window", word(WINDOW)),
        ("status", words(states)),
        ("output_file_id", or_null(text())),
        ("error_file_id", or_null(text())),
        ("created_at", whole(0)),
        ("in_progress_at", time()),
        ("expires_at", whole(0)),
        ("finalizing_at", time()),
        ("completed_at", time()),
        ("failed_at", time()),
        ("expired_at", time()),
        ("cancelling_at", time()),
        ("cancelled_at", time()),
        ("request_counts", counts),
        ("usage", usage),
        ("metadata", json!({"type": "object", "additionalProperties": {"type": "string"}})),
        ("output_uusdc", json!({"type": "string", "pattern": "^[0-9]+$"})),
        ("output_paid", boolean()),
    ];
    object(&fields, &[("waits", text()), paid()])
}

fn model() -> Value {
    object(&[("id", text()), ("object", word("model")), ("created", whole(0)), ("owned_by", text())], &[])
}

fn usage() -> Value {
    object(
        &[
            ("prompt_tokens", whole(0)),
            ("completion_tokens", whole(0)),
            ("total_tokens", whole(0)),
            ("prompt_tokens_details", object(&[("cached_tokens", whole(0))], &[])),
        ],
        &[],
    )
}

/// What an answer says of its payment. Amounts are micro-USDC, as texts.
fn payment() -> Value {
    let amount = json!({"type": "string", "pattern": "^[0-9]+$"});
    object(
        &[("request", text()), ("receipt", text()), ("amount", amount.clone())],
        &[("charged", amount), ("stored_bytes", whole(1)), ("transaction", text())],
    )
}

/// `type` and `param` are missing where a payment is asked for or refused.
fn error() -> Value {
    let inner = object(
        &[("code", text()), ("message", text()), ("request_id", text())],
        &[("type", words(["invalid_request_error", "server_error"])), ("param", or_null(text()))],
    );
    json!({"type": "object", "properties": {"error": inner}, "required": ["error"]})
}

#[cfg(test)]
mod tests;
