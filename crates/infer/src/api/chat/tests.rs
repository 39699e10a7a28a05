use expect_test::{Expect, expect};

use super::*;
use crate::api::{ToolChoice, Usage};
use crate::wire::Grammar;

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
            r#"ChatCompletionRequest { model: "m", messages: [Message { role: System, content: "Be brief.", tool_calls: [], tool_call_id: None }, Message { role: User, content: "ab", tool_calls: [], tool_call_id: None }, Message { role: Assistant, content: "c", tool_calls: [], tool_call_id: None }], tools: None, settings: Settings { max_tokens: Some(9), stop: ["x", "y"], sampling: Sampling { temperature: Some(0.7), top_p: Some(1.0), min_p: None, top_k: None, frequency_penalty: None, presence_penalty: Some(0.0), logit_bias: [], seed: Some(18446744073709551615) }, logprobs: None, form: None, add_bos: false }, stream: true, include_usage: true, user: Some("u") }"#
        ]],
    );
    check(
        &with(r#""stop":"end","max_tokens":3"#),
        expect![[
            r#"ChatCompletionRequest { model: "m", messages: [Message { role: User, content: "hi", tool_calls: [], tool_call_id: None }], tools: None, settings: Settings { max_tokens: Some(3), stop: ["end"], sampling: Sampling { temperature: None, top_p: None, min_p: None, top_k: None, frequency_penalty: None, presence_penalty: None, logit_bias: [], seed: None }, logprobs: None, form: None, add_bos: false }, stream: false, include_usage: false, user: None }"#
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
        &messages(r#"[{"role":"function","content":"x"}]"#),
        expect!["400 [messages[0].role] `messages[0].role`: functions are not supported by this agent; use `tools`"],
    );
    check(
        &messages(r#"[{"role":"god","content":"x"}]"#),
        expect!["400 [messages[0].role] `messages[0].role` must be one of system, developer, user, assistant and tool"],
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
            "400 [messages[0].content[0].type] `messages[0].content[0].type` must be text; \"image_url\" is not supported by this agent"
        ],
    );
    check(
        &messages(r#"[{"role":"user","content":[{"type":"text","text":"x","cache":1}]}]"#),
        expect!["400 [messages[0].content[0].cache] `messages[0].content[0].cache` is not a field of this request"],
    );
}

#[test]
fn what_is_refused_is_named_field_by_field() {
    for (field, value) in [
        ("audio", "{}"),
        ("function_call", "\"auto\""),
        ("functions", "[]"),
        ("metadata", r#"{"a":"b"}"#),
        ("modalities", r#"["audio"]"#),
        ("n", "3"),
        ("prediction", "{}"),
        ("prompt_cache_key", "\"k\""),
        ("prompt_cache_retention", "\"24h\""),
        ("reasoning_effort", "\"low\""),
        ("safety_identifier", "\"s\""),
        ("service_tier", "\"flex\""),
        ("store", "true"),
        ("verbosity", "\"low\""),
        ("web_search_options", "{}"),
    ] {
        let error = ChatCompletionRequest::parse(with(&format!("\"{field}\":{value}")).as_bytes()).unwrap_err();
        assert_eq!((error.status, error.param.as_deref()), (400, Some(field)), "{error}");
    }
}

#[test]
fn sampling_has_ranges_too() {
    check(
        &with(r#""frequency_penalty":-2.1"#),
        expect!["400 [frequency_penalty] `frequency_penalty` must be from -2 to 2, not -2.1"],
    );
    check(
        &with(r#""presence_penalty":"1""#),
        expect!["400 [presence_penalty] `presence_penalty` must be a number, not a string"],
    );
    check(&with(r#""min_p":1.5"#), expect!["400 [min_p] `min_p` must be from 0 to 1, not 1.5"]);
    check(&with(r#""top_k":0"#), expect!["400 [top_k] `top_k` must be at least 1, not 0"]);
    check(
        &with(r#""logit_bias":{"5":"NaN"}"#),
        expect!["400 [logit_bias.5] `logit_bias.5` must be a number, not a string"],
    );
    check(
        &with(r#""logit_bias":{"5":NaN}"#),
        expect!["400 [] the body is not valid JSON: expected value at line 1 column 76"],
    );
    check(
        &with(r#""logit_bias":{"5":100.5}"#),
        expect!["400 [logit_bias.5] `logit_bias.5` must be from -100 to 100, not 100.5"],
    );
    check(
        &with(r#""logit_bias":{"-1":0}"#),
        expect!["400 [logit_bias.-1] `logit_bias.-1`: the names in `logit_bias` are tokens' numbers"],
    );
    check(
        &with(r#""logit_bias":{"05":0,"5":0}"#),
        expect!["400 [logit_bias.05] `logit_bias.05`: the names in `logit_bias` are tokens' numbers"],
    );
    check(&with(r#""logit_bias":[5]"#), expect!["400 [logit_bias] `logit_bias` must be an object, not a list"]);
    let many: Vec<String> = (0..1_025).map(|token| format!("\"{token}\":1")).collect();
    check(
        &with(&format!("\"logit_bias\":{{{}}}", many.join(","))),
        expect!["400 [logit_bias] `logit_bias` must be at most 1024 entries long, not 1025"],
    );
    check(
        &with(r#""top_logprobs":2"#),
        expect!["400 [top_logprobs] `top_logprobs` is only allowed with `logprobs: true`"],
    );
    check(
        &with(r#""logprobs":true,"top_logprobs":21"#),
        expect!["400 [top_logprobs] `top_logprobs` must be a whole number from 0 to 20, not 21"],
    );
    let stops = vec!["\"a\""; 10_000].join(",");
    check(
        &with(&format!("\"stop\":[{stops}]")),
        expect!["400 [stop] `stop` must be at most 4 entries long, not 10000"],
    );
    let request = ChatCompletionRequest::parse(
        with(r#""logit_bias":{"7":-100,"49151":0.5},"logprobs":true,"top_logprobs":20,"frequency_penalty":-2"#)
            .as_bytes(),
    );
    let settings = request.unwrap().settings;
    assert_eq!((settings.sampling.logit_bias.clone(), settings.logprobs), (vec![(7, -100.0), (49_151, 0.5)], Some(20)));
    assert!(settings.check(49_152).is_ok());
    assert_eq!(settings.check(49_151).unwrap_err().param.as_deref(), Some("logit_bias.49151"));
}

#[test]
fn forms_are_read_strictly() {
    check(
        &with(r#""response_format":{"type":"xml"}"#),
        expect!["400 [response_format.type] `response_format.type` must be one of text, json_object and json_schema"],
    );
    check(
        &with(r#""response_format":{"type":"json_schema"}"#),
        expect!["400 [response_format.json_schema] `response_format.json_schema` is required"],
    );
    check(
        &with(r#""response_format":{"type":"json_schema","json_schema":{"schema":{}}}"#),
        expect!["400 [response_format.json_schema.name] `response_format.json_schema.name` is required"],
    );
    check(
        &with(r#""response_format":{"type":"json_schema","json_schema":{"name":"n","schema":[]}}"#),
        expect![
            "400 [response_format.json_schema.schema] `response_format.json_schema.schema` must be an object, not a list"
        ],
    );
    check(
        &with(r#""response_format":{"type":"json_object","schema":{}}"#),
        expect!["400 [response_format.schema] `response_format.schema` is not a field of this request"],
    );
    let form = |format: &str| {
        let request = ChatCompletionRequest::parse(with(&format!("\"response_format\":{format}")).as_bytes());
        request.map(|request| request.settings.form.map(|form| form.grammar))
    };
    let deep = |levels: usize| {
        let schema = format!("{}{}{}", "{\"items\":".repeat(levels), "{}", "}".repeat(levels));
        format!(r#"{{"type":"json_schema","json_schema":{{"name":"n","schema":{schema}}}}}"#)
    };
    assert_eq!(form(r#"{"type":"text"}"#), Ok(None));
    assert_eq!(form(r#"{"type":"json_object"}"#), Ok(Some(Grammar::JsonSchema(json!({"type": "object"})))));
    assert!(form(&deep(63)).is_ok());
    assert_eq!(form(&deep(64)).unwrap_err().param.as_deref(), Some("response_format.json_schema.schema"));
    let long = format!(
        r#"{{"type":"json_schema","json_schema":{{"name":"n","schema":{{"enum":["{}"]}}}}}}"#,
        "x".repeat(64 << 10)
    );
    assert_eq!(form(&long).unwrap_err().param.as_deref(), Some("response_format.json_schema.schema"));
}

/// What would take the engine long never reaches it; a field may still be called as the customer likes.
#[test]
fn schemas_that_cost_too_much_are_refused() {
    let refused = |schema: Value| {
        let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
        let error = ChatCompletionRequest::parse(with(&format!("\"response_format\":{format}")).as_bytes()).err();
        error.map(|error| {
            assert_eq!(error.param.as_deref(), Some("response_format.json_schema.schema"), "{error}");
            error.message.rsplit_once(": ").map(|(_, why)| why.to_owned()).unwrap()
        })
    };
    let fields = |count: usize| -> Map<String, Value> { (0..count).map(|n| (format!("f{n}"), json!({}))).collect() };
    let patterns = |count: usize| vec![json!({"pattern": "a"}); count];
    assert_eq!(refused(json!({"properties": {"not": {"enum": [{"allOf": []}]}, "if": {"const": {"not": {}}}}})), None);
    assert_eq!(refused(json!({"properties": fields(511)})), None);
    assert_eq!(refused(json!({"anyOf": patterns(8)})), None);
    expect![[r#"
        the schemas of a request have at most 512 objects
        a schema has at most 8 patterns and formats
        `allOf` is not supported by this agent
        `not` is not supported by this agent
        `patternProperties` is not supported by this agent
        a pattern is at most 256 bytes long
    "#]]
    .assert_eq(
        &[
            json!({"properties": fields(512)}),
            json!({"anyOf": patterns(9)}),
            json!({"allOf": patterns(2)}),
            json!({"properties": {"a": {"items": {"not": {}}}}}),
            json!({"$defs": {"a": {"patternProperties": {"(a*)*": {}}}}}),
            json!({"pattern": "a".repeat(257)}),
        ]
        .map(|schema| refused(schema).unwrap_or_else(|| "taken".into()) + "\n")
        .concat(),
    );
}

/// Many tools share what one schema may have.
#[test]
fn tools_may_not_be_large_together() {
    let properties: Map<String, Value> = (0..60).map(|n| (format!("f{n}"), json!({}))).collect();
    let tool = |n: usize| json!({"type": "function", "function": {"name": format!("t{n}"), "parameters": {"properties": properties}}});
    let tools = |count: usize| {
        let list: Vec<Value> = (0..count).map(tool).collect();
        ChatCompletionRequest::parse(with(&format!("\"tools\":{}", Value::Array(list))).as_bytes())
    };
    assert!(tools(8).is_ok());
    assert_eq!(tools(9).unwrap_err().param.as_deref(), Some("tools[8].function.parameters"));
}

const WEATHER: &str = r#"{"type":"function","function":{"name":"weather","description":"Tells it.","parameters":{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]},"strict":true}}"#;

#[test]
fn tools_are_read_strictly() {
    check(&with(r#""tools":{}"#), expect!["400 [tools] `tools` must be a list, not an object"]);
    check(
        &with(r#""tools":[{"type":"custom","custom":{}}]"#),
        expect!["400 [tools[0].type] `tools[0].type` must be function; other tools are not supported by this agent"],
    );
    check(
        &with(r#""tools":[{"type":"function"}]"#),
        expect!["400 [tools[0].function] `tools[0].function` is required"],
    );
    check(
        &with(r#""tools":[{"type":"function","function":{"name":"a b"}}]"#),
        expect!["400 [tools[0].function.name] `tools[0].function.name` must be 1 to 64 letters, digits, `_` and `-`"],
    );
    check(
        &with(r#""tools":[{"type":"function","function":{"name":"a","parameters":{"type":"string"}}}]"#),
        expect!["400 [tools[0].function.parameters.type] `tools[0].function.parameters.type` must be object"],
    );
    check(
        &with(r#""tools":[{"type":"function","function":{"name":"a","arguments":{}}}]"#),
        expect!["400 [tools[0].function.arguments] `tools[0].function.arguments` is not a field of this request"],
    );
    check(
        &with(&format!("\"tools\":[{WEATHER},{WEATHER}]")),
        expect!["400 [tools[1].function.name] `tools[1].function.name` must be given once: `weather` is there before"],
    );
    check(
        &with(r#""tool_choice":"required""#),
        expect!["400 [tool_choice] `tool_choice` asks for a tool, but `tools` has none"],
    );
    check(
        &with(&format!("\"tools\":[{WEATHER}],\"tool_choice\":\"any\"")),
        expect!["400 [tool_choice] `tool_choice` must be one of none, auto and required, or name a function"],
    );
    check(
        &with(&format!(r#""tools":[{WEATHER}],"tool_choice":{{"type":"function","function":{{"name":"x"}}}}"#)),
        expect!["400 [tool_choice.function.name] `tool_choice.function.name` must be one of `tools`, not `x`"],
    );
    check(
        &with(&format!(r#""tools":[{WEATHER}],"tool_choice":{{"type":"allowed_tools"}}"#)),
        expect![
            "400 [tool_choice.type] `tool_choice.type` must be function; other choices are not supported by this agent"
        ],
    );
    check(
        &with(&format!(r#""tools":[{WEATHER}],"response_format":{{"type":"json_object"}}"#)),
        expect![
            "400 [response_format] `response_format` cannot be had together with `tools`; set `tool_choice` to none"
        ],
    );
    check(
        &with(&format!("\"tools\":[{}]", vec![WEATHER; 129].join(","))),
        expect!["400 [tools] `tools` must be at most 128 entries long, not 129"],
    );
    let tools = |more: &str| ChatCompletionRequest::parse(with(more).as_bytes()).unwrap().tools;
    assert_eq!(tools(r#""tools":[],"tool_choice":"auto""#), None);
    assert_eq!(tools(&format!("\"tools\":[{WEATHER}],\"tool_choice\":\"none\"")), None);
    let named = tools(&format!(r#""tools":[{WEATHER}],"tool_choice":{{"type":"function","function":{{"name":"weather"}}}},"parallel_tool_calls":false"#)).unwrap();
    assert_eq!((named.list.len(), named.choice, named.parallel), (1, ToolChoice::Named("weather".into()), false));
}

#[test]
fn calls_come_back_in_messages() {
    check(
        &messages(r#"[{"role":"tool","content":"x"}]"#),
        expect!["400 [messages[0].tool_call_id] `messages[0].tool_call_id` is required"],
    );
    check(
        &messages(r#"[{"role":"user","content":"x","tool_call_id":"c"}]"#),
        expect![
            "400 [messages[0].tool_call_id] `messages[0].tool_call_id` is not supported by this agent; leave it out"
        ],
    );
    check(
        &messages(r#"[{"role":"user","content":"x","tool_calls":[{}]}]"#),
        expect![
            "400 [messages[0].tool_calls] `messages[0].tool_calls` is not supported by this agent with this value; leave it out"
        ],
    );
    check(
        &messages(r#"[{"role":"assistant","content":null}]"#),
        expect!["400 [messages[0].content] `messages[0].content` is required"],
    );
    check(
        &messages(
            r#"[{"role":"assistant","tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"[1]"}}]}]"#,
        ),
        expect![
            "400 [messages[0].tool_calls[0].function.arguments] `messages[0].tool_calls[0].function.arguments` must be a JSON object as a string"
        ],
    );
    let request = ChatCompletionRequest::parse(
        messages(
            r#"[{"role":"user","content":"?"},{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{\"a\": 1}"}}]},
            {"role":"tool","tool_call_id":"c","content":"fine"}]"#,
        )
        .as_bytes(),
    );
    expect![[r#"[Message { role: Assistant, content: "", tool_calls: [ToolCall { id: "c", name: "f", arguments: "{\"a\": 1}" }], tool_call_id: None }, Message { role: Tool, content: "fine", tool_calls: [], tool_call_id: Some("c") }]"#]].assert_eq(&format!("{:?}", &request.unwrap().messages[1..]));
}

#[test]
fn answers_look_like_openais() {
    let reply = ChatReply {
        id: "chatcmpl-1".into(),
        created: 7,
        model: "m".into(),
        include_usage: true,
        logprobs: false,
        tools: false,
    };
    let usage = Usage { prompt_tokens: 3, cached_tokens: 1, completion_tokens: 2 };
    let extra = Map::from_iter([("vivarium".to_owned(), json!({"receipt": "r"}))]);
    let answered = Answered { text: "hi", logprobs: &[], finish: Finish::Stop, usage };
    expect![[r#"{"id":"chatcmpl-1","object":"chat.completion","created":7,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hi","refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":1}},"vivarium":{"receipt":"r"}}"#]].assert_eq(&reply.whole(answered, extra.clone()).to_string());
    let streamed = |reply: ChatReply, pieces: &[&str], logprobs: &[TokenLogprob], finish| {
        let mut stream = ChatStream::new(reply);
        let mut events = vec![stream.open()];
        for piece in pieces {
            events.extend(stream.delta(piece, logprobs));
        }
        events.extend(stream.close(finish, usage, extra.clone()));
        events.iter().map(|event| String::from_utf8(event.to_sse().to_vec()).unwrap()).collect::<String>()
    };
    expect![[r#"
        data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"content":"a\n"},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}],"usage":null}

        data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":1}},"vivarium":{"receipt":"r"}}

    "#]].assert_eq(&streamed(reply.clone(), &["a\n"], &[], Finish::Length));
    // Nobody asked for usage: nothing comes that has no choices.
    let quiet = ChatReply { include_usage: false, ..reply.clone() };
    expect![[r#"
        data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}]}

        data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"content":"a"},"logprobs":null,"finish_reason":null}]}

        data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"vivarium":{"receipt":"r"}}

    "#]].assert_eq(&streamed(quiet.clone(), &["a"], &[], Finish::Stop));

    let told = [TokenLogprob { bytes: vec![0xc3], logprob: -0.5, top: vec![(b"b".to_vec(), -0.25)] }];
    let telling = ChatReply { logprobs: true, ..quiet.clone() };
    let answered = Answered { text: "hi", logprobs: &told, finish: Finish::Stop, usage };
    expect![[r#"[{"index":0,"message":{"role":"assistant","content":"hi","refusal":null,"annotations":[]},"logprobs":{"content":[{"token":"�","logprob":-0.5,"bytes":[195],"top_logprobs":[{"token":"b","logprob":-0.25,"bytes":[98]}]}],"refusal":null},"finish_reason":"stop"}]"#]].assert_eq(&telling.whole(answered, Map::new())["choices"].to_string());

    // Calls: whole, and in whatever pieces they come.
    let calling = ChatReply { tools: true, ..quiet };
    let text = "Look: <tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";
    let answered = Answered { text, logprobs: &[], finish: Finish::Stop, usage };
    expect![[r#"[{"index":0,"message":{"role":"assistant","content":"Look: ","refusal":null,"annotations":[],"tool_calls":[{"id":"call_100","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}},{"id":"call_101","type":"function","function":{"name":"g","arguments":"{}"}}]},"logprobs":null,"finish_reason":"tool_calls"}]"#]].assert_eq(&calling.whole(answered, Map::new())["choices"].to_string());
    let (first, second) = text.split_at(24);
    expect![[r#"
        data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}]}

        data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"content":"Look: "},"logprobs":null,"finish_reason":null}]}

        data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"tool_calls":[{"id":"call_100","type":"function","function":{"name":"f","arguments":"{\"a\":1}"},"index":0}]},"logprobs":null,"finish_reason":null}]}

        data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"tool_calls":[{"id":"call_101","type":"function","function":{"name":"g","arguments":"{}"},"index":1}]},"logprobs":null,"finish_reason":null}]}

        data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"tool_calls"}],"vivarium":{"receipt":"r"}}

    "#]].assert_eq(&streamed(calling, &[first, second], &[], Finish::Stop));
}
