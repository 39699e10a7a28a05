use expect_test::{Expect, expect};

use super::*;

fn check(more: &str, wanted: Expect) {
    let body = format!(r#"{{"model":"m",{more}}}"#);
    let seen = match CompletionRequest::parse(body.as_bytes()) {
        Ok(request) => format!("{request:?}"),
        Err(error) => format!("{} [{}] {}", error.status, error.param.unwrap_or_default(), error.message),
    };
    wanted.assert_eq(&seen);
}

#[test]
fn requests_are_read_strictly() {
    check(
        r#""prompt":["Once"],"max_tokens":3,"logprobs":5,"stop":"x","echo":false,"best_of":1"#,
        expect![[
            r#"CompletionRequest { model: "m", prompt: "Once", settings: Settings { max_tokens: Some(3), stop: ["x"], sampling: Sampling { temperature: None, top_p: None, min_p: None, top_k: None, frequency_penalty: None, presence_penalty: None, logit_bias: [], seed: None }, logprobs: Some(5), form: None, add_bos: true }, stream: false, include_usage: false, user: None }"#
        ]],
    );
    check(r#""stream":true"#, expect!["400 [prompt] `prompt` is required"]);
    check(r#""prompt":"""#, expect!["400 [prompt] `prompt` must be at least one character long"]);
    check(
        r#""prompt":["a","b"]"#,
        expect![
            "400 [prompt] `prompt` must be one string; several, and tokens' numbers, are not supported by this agent"
        ],
    );
    check(
        r#""prompt":[1,2]"#,
        expect![
            "400 [prompt] `prompt` must be one string; several, and tokens' numbers, are not supported by this agent"
        ],
    );
    check(r#""prompt":7"#, expect!["400 [prompt] `prompt` must be a string, not a number"]);
    check(
        r#""prompt":"a","suffix":"b""#,
        expect!["400 [suffix] `suffix` is not supported by this agent; leave it out"],
    );
    check(
        r#""prompt":"a","echo":true"#,
        expect!["400 [echo] `echo` is not supported by this agent with this value; leave it out"],
    );
    check(r#""prompt":"a","n":2"#, expect!["400 [n] `n` is not supported by this agent with this value; leave it out"]);
    check(
        r#""prompt":"a","best_of":2"#,
        expect!["400 [best_of] `best_of` is not supported by this agent with this value; leave it out"],
    );
    check(
        r#""prompt":"a","logprobs":6"#,
        expect!["400 [logprobs] `logprobs` must be a whole number from 0 to 5, not 6"],
    );
    check(
        r#""prompt":"a","logprobs":true"#,
        expect!["400 [logprobs] `logprobs` must be a whole number, not a boolean"],
    );
    check(r#""prompt":"a","messages":[]"#, expect!["400 [messages] `messages` is not a field of this request"]);
    check(r#""prompt":"a","max_tokens":0"#, expect!["400 [max_tokens] `max_tokens` must be at least 1, not 0"]);
}

#[test]
fn answers_look_like_openais() {
    let reply = CompletionReply {
        id: "cmpl-1".into(),
        created: 7,
        model: "m".into(),
        include_usage: true,
        logprobs: true,
        told_chars: 0,
    };
    let usage = Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 2 };
    let token =
        |bytes: &[u8]| TokenLogprob { bytes: bytes.to_vec(), logprob: -0.5, top: vec![(b" x".to_vec(), -0.25)] };
    let logprobs = ["ü", " b"].map(|text| token(text.as_bytes()));
    let answered = Answered { text: "ü b", logprobs: &logprobs, finish: Finish::Length, usage };
    expect![[r#"{"id":"cmpl-1","object":"text_completion","created":7,"model":"m","choices":[{"index":0,"text":"ü b","logprobs":{"tokens":["ü"," b"],"token_logprobs":[-0.5,-0.5],"top_logprobs":[{" x":-0.25,"ü":-0.5},{" x":-0.25," b":-0.5}],"text_offset":[0,1]},"finish_reason":"length"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":0}}}"#]].assert_eq(&reply.clone().whole(answered, Map::new()).to_string());
    let mut stream = reply;
    let mut events = vec![stream.delta("ü", &logprobs[..1]), stream.delta(" b", &logprobs[1..])];
    events.extend(stream.close(Finish::Stop, usage, Map::from_iter([("x402".to_owned(), json!({}))])));
    let text: String = events.iter().map(|event| String::from_utf8(event.to_sse().to_vec()).unwrap()).collect();
    expect![[r#"
        data: {"id":"cmpl-1","object":"text_completion","created":7,"model":"m","choices":[{"index":0,"text":"ü","logprobs":{"tokens":["ü"],"token_logprobs":[-0.5],"top_logprobs":[{" x":-0.25,"ü":-0.5}],"text_offset":[0]},"finish_reason":null}],"usage":null}

        data: {"id":"cmpl-1","object":"text_completion","created":7,"model":"m","choices":[{"index":0,"text":" b","logprobs":{"tokens":[" b"],"token_logprobs":[-0.5],"top_logprobs":[{" x":-0.25," b":-0.5}],"text_offset":[1]},"finish_reason":null}],"usage":null}

        data: {"id":"cmpl-1","object":"text_completion","created":7,"model":"m","choices":[{"index":0,"text":"","logprobs":{"tokens":[],"token_logprobs":[],"top_logprobs":[],"text_offset":[]},"finish_reason":"stop"}],"usage":null}

        data: {"id":"cmpl-1","object":"text_completion","created":7,"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":0}},"x402":{}}

    "#]].assert_eq(&text);
}
