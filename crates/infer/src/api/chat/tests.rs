use expect_test::{Expect, expect};

use super::*;

fn check(body: &str, wanted: Expect) {
    let seen = match ChatCompletionRequest::parse(body.as_bytes()) {
        Ok(request) => format!("{request:?}"),
        Err(error) => format!("{} [{}] {}", error.status, error.param.unwrap_or_default(), error.message),
    };
    wanted.assert_eq(&seen);
}

/// A request that is right but for what is added to it.
fn with(more: &str) -> String {
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}],{more}}}"#)
}

/// A request with these messages.
fn messages(list: &str) -> String {
    format!(r#"{{"model":"m","messages":{list}}}"#)
}

#[test]
fn a_whole_request_is_understood() {
    check(
        r#"{"model":"m","messages":[{"role":"developer","content":"Be brief."},
            {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
            {"role":"assistant","content":"c","refusal":null,"tool_calls":[],"annotations":[]}],
            "max_completion_tokens":9,"temperature":0.7,"top_p":1,"seed":-1,"stop":["x","y"],"stream":true,
            "stream_options":{"include_usage":true},"user":"u","n":1,"presence_penalty":0.0,"logprobs":false,
            "response_format":{"type":"text"},"tools":null,"store":false}"#,
        expect![[
            r#"ChatCompletionRequest { model: "m", messages: [Message { role: System, content: "Be brief." }, Message { role: User, content: "ab" }, Message { role: Assistant, content: "c" }], max_tokens: Some(9), sampling: Sampling { temperature: Some(0.7), top_p: Some(1.0), seed: Some(18446744073709551615) }, stop: ["x", "y"], stream: true, include_usage: true, user: Some("u") }"#
        ]],
    );
    check(
        &with(r#""stop":"end","max_tokens":3"#),
        expect![[
            r#"ChatCompletionRequest { model: "m", messages: [Message { role: User, content: "hi" }], max_tokens: Some(3), sampling: Sampling { temperature: None, top_p: None, seed: None }, stop: ["end"], stream: false, include_usage: false, user: None }"#
        ]],
    );
}

#[test]
fn what_is_not_json_is_refused() {
    check("", expect!["400 [] the body is not valid JSON: EOF while parsing a value at line 1 column 0"]);
    check("[]", expect!["400 [] the body must be a JSON object, not a list"]);
    check("\u{feff}{}", expect!["400 [] the body is not valid JSON: expected value at line 1 column 1"]);
    check(
        &with(r#""n":1,"n":1"#),
        expect!["400 [] the body is not valid JSON: field `n` is given twice at line 1 column 69"],
    );
    check(
        &messages(r#"[{"role":"user","role":"system","content":"x"}]"#),
        expect!["400 [] the body is not valid JSON: field `role` is given twice at line 1 column 55"],
    );
    check(
        &with(r#""temperature":NaN"#),
        expect!["400 [] the body is not valid JSON: expected value at line 1 column 72"],
    );
    check(
        &with(r#""temperature":1e999"#),
        expect!["400 [] the body is not valid JSON: number out of range at line 1 column 76"],
    );
    check(
        &"[".repeat(1_000),
        expect!["400 [] the body is not valid JSON: recursion limit exceeded at line 1 column 128"],
    );
    let not_utf8 = ChatCompletionRequest::parse(b"{\"model\":\"\xff\"}").unwrap_err();
    assert_eq!(not_utf8.code, "invalid_json");
}

#[test]
fn missing_and_unknown_fields_are_named() {
    check("{}", expect!["400 [model] `model` is required"]);
    check(r#"{"model":"m"}"#, expect!["400 [messages] `messages` is required"]);
    check(&with(r#""temprature":1"#), expect!["400 [temprature] `temprature` is not a field of this request"]);
    check(&with(r#""n":2"#), expect!["400 [n] `n` is not supported by this agent with this value; leave it out"]);
    check(
        &with(r#""tools":[{"type":"function"}]"#),
        expect!["400 [tools] `tools` is not supported by this agent; leave it out"],
    );
    check(
        &with(r#""response_format":{"type":"json_object"}"#),
        expect!["400 [response_format] `response_format` is not supported by this agent with this value; leave it out"],
    );
    check(
        &with(r#""logit_bias":{"1":5}"#),
        expect!["400 [logit_bias] `logit_bias` is not supported by this agent with this value; leave it out"],
    );
    check(
        &with(r#""store":true"#),
        expect!["400 [store] `store` is not supported by this agent with this value; leave it out"],
    );
    check(
        &with(r#""stream":true,"stream_options":{"include":1}"#),
        expect!["400 [stream_options.include] `stream_options.include` is not a field of this request"],
    );
    check(
        &with(r#""stream_options":{"include_usage":true}"#),
        expect!["400 [stream_options] `stream_options` is only allowed with `stream: true`"],
    );
}

#[test]
fn numbers_have_ranges() {
    check(&with(r#""max_tokens":0"#), expect!["400 [max_tokens] `max_tokens` must be at least 1, not 0"]);
    check(
        &with(r#""max_tokens":1.5"#),
        expect!["400 [max_tokens] `max_tokens` must be a whole number of at least 1, not 1.5"],
    );
    check(&with(r#""max_tokens":"9""#), expect!["400 [max_tokens] `max_tokens` must be a whole number, not a string"]);
    check(
        &with(r#""max_tokens":1,"max_completion_tokens":2"#),
        expect!["400 [max_tokens] `max_tokens` says 1 and `max_completion_tokens` 2; give one of them"],
    );
    check(&with(r#""temperature":-0.1"#), expect!["400 [temperature] `temperature` must be from 0 to 2, not -0.1"]);
    check(&with(r#""temperature":2.01"#), expect!["400 [temperature] `temperature` must be from 0 to 2, not 2.01"]);
    check(&with(r#""top_p":2"#), expect!["400 [top_p] `top_p` must be from 0 to 1, not 2"]);
    check(&with(r#""seed":1.5"#), expect!["400 [seed] `seed` must be a whole number of 64 bits, not a number"]);
    check(
        &with(r#""seed":18446744073709551616"#),
        expect!["400 [seed] `seed` must be a whole number of 64 bits, not a number"],
    );
}

#[test]
fn lists_have_bounds() {
    check(&with(r#""stop":["a","b","c","d","e"]"#), expect!["400 [stop] `stop` must be at most 4 entries long, not 5"]);
    check(&with(r#""stop":["a",""]"#), expect!["400 [stop[1]] `stop[1]` must be 1 to 256 bytes long, not 0"]);
    check(&with(r#""stop":[1]"#), expect!["400 [stop[0]] `stop[0]` must be a string, not a number"]);
    check(&messages("[]"), expect!["400 [messages] `messages` must be 1 to 1000 entries long, not 0"]);
    let many = vec![r#"{"role":"user","content":"x"}"#; 1_001].join(",");
    check(
        &messages(&format!("[{many}]")),
        expect!["400 [messages] `messages` must be 1 to 1000 entries long, not 1001"],
    );
    check(
        &format!(r#"{{"model":"{}"}}"#, "m".repeat(257)),
        expect!["400 [model] `model` must be at most 256 bytes long, not 257"],
    );
}

#[test]
fn messages_are_read_strictly() {
    check(
        &messages(r#"[{"role":"tool","content":"x"}]"#),
        expect!["400 [messages[0].role] `messages[0].role`: tools are not supported by this agent"],
    );
    check(
        &messages(r#"[{"role":"god","content":"x"}]"#),
        expect!["400 [messages[0].role] `messages[0].role` must be one of system, developer, user and assistant"],
    );
    check(&messages(r#"[{"role":"user"}]"#), expect!["400 [messages[0].content] `messages[0].content` is required"]);
    check(
        &messages(r#"[{"role":"user","content":7}]"#),
        expect![
            "400 [messages[0].content] `messages[0].content` must be a string or a list of text parts, not a number"
        ],
    );
    check(
        &messages(r#"[{"role":"user","content":[]}]"#),
        expect!["400 [messages[0].content] `messages[0].content` must be 1 to 1000 parts long, not 0"],
    );
    check(
        &messages(r#"[{"role":"user","content":"x","name":"n"}]"#),
        expect!["400 [messages[0].name] `messages[0].name` is not supported by this agent; leave it out"],
    );
    check(
        &messages(r#"[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]"#),
        expect![
            "400 [messages[0].content[0].type] `messages[0].content[0].type` must be text; other parts are not supported"
        ],
    );
    check(
        &messages(r#"[{"role":"user","content":[{"type":"text","text":"x","cache":1}]}]"#),
        expect!["400 [messages[0].content[0].cache] `messages[0].content[0].cache` is not a field of this request"],
    );
}

#[test]
fn answers_look_like_openais() {
    let mut reply = ChatReply { id: "chatcmpl-1".into(), created: 7, model: "m".into(), include_usage: true };
    let usage = Usage { prompt_tokens: 3, completion_tokens: 2 };
    let extra = Map::from_iter([("vivarium".to_owned(), json!({"receipt": "r"}))]);
    expect![[r#"{"id":"chatcmpl-1","object":"chat.completion","created":7,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hi","refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5},"vivarium":{"receipt":"r"}}"#]].assert_eq(&reply.whole("hi", Finish::Stop, usage, extra.clone()).to_string());
    expect![[r#"
        data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"content":"a\n"},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}],"usage":null}

        data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5},"vivarium":{"receipt":"r"}}

    "#]].assert_eq(
        &[
            reply.role_chunk(),
            reply.delta_chunk("a\n"),
            reply.finish_chunk(Finish::Length),
            reply.usage_chunk(usage, extra),
        ]
        .map(|event| String::from_utf8(event.to_sse().to_vec()).unwrap())
        .concat(),
    );
    reply.include_usage = false;
    assert!(reply.delta_chunk("a").data.get("usage").is_none());
}
