use expect_test::{Expect, expect};

use super::*;

fn check(body: &str, wanted: Expect) {
    let seen = match ResponsesRequest::parse(body.as_bytes()) {
        Ok(request) => format!("{request:?}"),
        Err(error) => format!("{} [{}] {}", error.status, error.param.unwrap_or_default(), error.message),
    };
    wanted.assert_eq(&seen);
}

#[test]
fn a_text_or_messages_are_understood() {
    check(
        r#"{"model":"m","input":"hi"}"#,
        expect![[
            r#"ResponsesRequest { model: "m", input: [Message { role: User, content: "hi", tool_calls: [], tool_call_id: None }], instructions: None, previous_response_id: None, store: false, stream: false, settings: Settings { max_tokens: None, stop: [], sampling: Sampling { temperature: None, top_p: None, min_p: None, top_k: None, frequency_penalty: None, presence_penalty: None, logit_bias: [], seed: None }, logprobs: None, form: None, add_bos: false }, metadata: {}, user: None }"#
        ]],
    );
    check(
        r#"{"model":"m","instructions":"Be brief.","previous_response_id":"resp_1","store":false,"stream":true,
            "max_output_tokens":5,"temperature":0,"metadata":{"k":"v"},"truncation":"disabled","tools":[],
            "text":{"format":{"type":"text"}},"input":[
            {"role":"user","content":[{"type":"input_text","text":"a"}]},
            {"id":"msg_1","type":"message","status":"completed","role":"assistant",
             "content":[{"type":"output_text","text":"b","annotations":[],"logprobs":[]}]}]}"#,
        expect![[
            r#"ResponsesRequest { model: "m", input: [Message { role: User, content: "a", tool_calls: [], tool_call_id: None }, Message { role: Assistant, content: "b", tool_calls: [], tool_call_id: None }], instructions: Some("Be brief."), previous_response_id: Some("resp_1"), store: false, stream: true, settings: Settings { max_tokens: Some(5), stop: [], sampling: Sampling { temperature: Some(0.0), top_p: None, min_p: None, top_k: None, frequency_penalty: None, presence_penalty: None, logit_bias: [], seed: None }, logprobs: None, form: None, add_bos: false }, metadata: {"k": String("v")}, user: None }"#
        ]],
    );
}

#[test]
fn everything_else_is_named() {
    check(r#"{"model":"m"}"#, expect!["400 [input] `input` is required"]);
    check(r#"{"model":"m","input":[]}"#, expect!["400 [input] `input` must be 1 to 1000 entries long, not 0"]);
    check(r#"{"model":"m","input":"x","seed":1}"#, expect!["400 [seed] `seed` is not a field of this request"]);
    check(
        r#"{"model":"m","input":"x","background":true}"#,
        expect!["400 [background] `background` is not supported by this agent with this value; leave it out"],
    );
    check(
        r#"{"model":"m","input":"x","reasoning":{"effort":"low"}}"#,
        expect!["400 [reasoning] `reasoning` is not supported by this agent; leave it out"],
    );
    check(
        r#"{"model":"m","input":"x","max_output_tokens":0}"#,
        expect!["400 [max_output_tokens] `max_output_tokens` must be at least 1, not 0"],
    );
    check(
        r#"{"model":"m","input":[{"type":"function_call_output","output":"x"}]}"#,
        expect!["400 [input[0].type] `input[0].type` is not supported by this agent with this value; leave it out"],
    );
    check(
        r#"{"model":"m","input":[{"role":"user","content":[{"type":"input_image"}]}]}"#,
        expect![
            "400 [input[0].content[0].type] `input[0].content[0].type` must be input_text or output_text; \"input_image\" is not supported by this agent"
        ],
    );
    check(
        r#"{"model":"m","input":"x","metadata":{"k":1}}"#,
        expect!["400 [metadata] `metadata` must be names of at most 256 bytes with strings of at most 512"],
    );
}

fn reply() -> ResponseReply {
    ResponseReply {
        id: "resp_1".into(),
        message_id: "msg_1".into(),
        created_at: 7,
        model: "m".into(),
        request: ResponsesRequest::parse(br#"{"model":"m","input":"hi","metadata":{"k":"v"}}"#).unwrap(),
    }
}

#[test]
fn an_answer_looks_like_openais() {
    let usage = Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 2 };
    let whole = reply().whole(Answered { text: "ho", logprobs: &[], finish: Finish::Length, usage }, Map::new());
    expect![[r#"
        {
          "id": "resp_1",
          "object": "response",
          "created_at": 7,
          "status": "incomplete",
          "background": false,
          "error": null,
          "incomplete_details": {
            "reason": "max_output_tokens"
          },
          "instructions": null,
          "max_output_tokens": null,
          "model": "m",
          "output": [
            {
              "id": "msg_1",
              "type": "message",
              "status": "incomplete",
              "role": "assistant",
              "content": [
                {
                  "type": "output_text",
                  "text": "ho",
                  "annotations": [],
                  "logprobs": []
                }
              ]
            }
          ],
          "parallel_tool_calls": false,
          "previous_response_id": null,
          "store": false,
          "temperature": null,
          "text": {
            "format": {
              "type": "text"
            }
          },
          "tool_choice": "auto",
          "tools": [],
          "top_p": null,
          "truncation": "disabled",
          "usage": {
            "input_tokens": 3,
            "input_tokens_details": {
              "cached_tokens": 0
            },
            "output_tokens": 2,
            "output_tokens_details": {
              "reasoning_tokens": 0
            },
            "total_tokens": 5
          },
          "user": null,
          "metadata": {
            "k": "v"
          }
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&whole).unwrap());
}

#[test]
fn a_stream_counts_its_events_and_ends_with_the_whole() {
    let usage = Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 2 };
    let mut stream = ResponseStream::new(reply());
    let mut events = stream.open();
    events.push(stream.delta("h"));
    events.push(stream.delta("o"));
    events.extend(stream.close(Finish::Stop, usage, Map::new()));
    for (index, event) in (0..).zip(&events) {
        assert_eq!(event.data["sequence_number"], json!(index));
        assert_eq!(event.data["type"], json!(event.event));
    }
    let names: Vec<_> = events.iter().filter_map(|event| event.event).collect();
    expect![[r#"
        response.created
        response.in_progress
        response.output_item.added
        response.content_part.added
        response.output_text.delta
        response.output_text.delta
        response.output_text.done
        response.content_part.done
        response.output_item.done
        response.completed"#]]
    .assert_eq(&names.join("\n"));
    let last = &events[events.len() - 1].data["response"];
    assert_eq!(*last, reply().whole(Answered { text: "ho", logprobs: &[], finish: Finish::Stop, usage }, Map::new()));
    assert_eq!(last["output"][0]["content"][0]["text"], json!("ho"));
}

#[test]
fn a_form_may_be_asked_for() {
    let form = |text: &str| {
        let body = format!(r#"{{"model":"m","input":"x","text":{text}}}"#);
        ResponsesRequest::parse(body.as_bytes()).map(|request| request.settings.form.map(|form| form.grammar))
    };
    let schema = Grammar::JsonSchema(json!({"type": "array"}));
    let format = r#"{"format":{"type":"json_schema","name":"n","strict":true,"schema":{"type":"array"}}}"#;
    assert_eq!(form(format), Ok(Some(schema)));
    assert_eq!(form(r#"{"format":{"type":"text"}}"#), Ok(None));
    assert_eq!(
        form(r#"{"format":{"type":"json_schema","schema":{}}}"#).unwrap_err().param.as_deref(),
        Some("text.format.name")
    );
    assert_eq!(form(r#"{"verbosity":"low"}"#).unwrap_err().param.as_deref(), Some("text.verbosity"));
}
