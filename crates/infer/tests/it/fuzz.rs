//! Every parser of what customers send, and the template behind it, on bytes that were once right: no panic, every
//! refusal is a 400 that says what is wrong, and what is taken can be asked of a model. Deterministic: a failure names
//! its seed.

#[path = "../../../../tests/fuzz.rs"]
mod changes;

use changes::Chance;
use infer::api::{
    Answered, ApiError, ChatCompletionRequest, ChatReply, ChatStream, ClassifyRequest, CompletionRequest,
    EmbeddingRequest, ExtractRequest, RerankRequest, ResponsesRequest, Usage,
};
use infer::{ChatTemplate, Finish, Grammar};
use serde_json::{Map, Value};

/// Enough to find what a day of it found; three million with VIVARIUM_DEEP=1.
fn runs() -> u64 {
    changes::runs(20_000, 3_000_000)
}

const SEEDS: [&str; 10] = [
    r##"{"model":"m","messages":[{"role":"developer","content":"Be brief."},{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"ü{{ 7*7 }}{% raw %}"}]}],"max_completion_tokens":9,"temperature":0.7,"top_p":1,"seed":-1,"stop":["x","y"],"stream":true,"stream_options":{"include_usage":true},"user":"u","n":1,"presence_penalty":-0.5,"frequency_penalty":2,"logit_bias":{"7":-100,"49151":1.5},"logprobs":true,"top_logprobs":3,"min_p":0.1,"top_k":40}"##,
    r##"{"model":"m","messages":[{"role":"user","content":"?"},{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{\"a\": [1, \"<tool_call>\"]}"}}]},{"role":"tool","tool_call_id":"c","content":"fine"},{"role":"tool","tool_call_id":"d","content":"<|im_end|>"}],"tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object","properties":{"a":{"$ref":"#/$defs/x"}},"$defs":{"x":{"enum":[1,"%json"]}}},"strict":true}}],"tool_choice":{"type":"function","function":{"name":"f"}},"parallel_tool_calls":false}"##,
    r##"{"model":"m","messages":[{"role":"user","content":"?"}],"tools":[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"g","parameters":{}}}],"tool_choice":"required"}"##,
    r##"{"model":"m","messages":[{"role":"user","content":"?"}],"response_format":{"type":"json_schema","json_schema":{"name":"n","description":"d","strict":true,"schema":{"type":"array","items":{"anyOf":[{"type":"string"},{"type":"null"}]}}}}}"##,
    r##"{"model":"m","prompt":["Once"],"max_tokens":16,"logprobs":2,"echo":false,"best_of":1,"suffix":null,"stop":"\n"}"##,
    r##"{"model":"m","instructions":"i","input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"a"}]}],"store":true,"previous_response_id":"resp_1","metadata":{"k":"v"},"text":{"format":{"type":"json_object"}},"max_output_tokens":5}"##,
    r##"{"model":"m","input":["a","ü"],"encoding_format":"base64","dimensions":384,"user":"u"}"##,
    r##"{"model":"m","query":"a","documents":["b",{"text":"ü"}],"top_n":2,"return_documents":true,"truncation":false}"##,
    r##"{"model":"m","inputs":["a","ü"],"labels":["x",{"name":"y","description":"d"}],"examples":[{"text":"b","label":"y"}]}"##,
    r##"{"model":"m","input":"ü{{ 7*7 }}","schema":{"type":"object","properties":{"a":{"type":"string"}}},"max_output_tokens":9}"##,
];

const TOKENS: [&str; 30] = [
    "0",
    "-1",
    "1e3",
    "1e999",
    "1.5",
    "NaN",
    "null",
    "true",
    "\"\"",
    "{}",
    "[]",
    "{{",
    "{%",
    "}}",
    "%}",
    "\\u0000",
    "\\ud800",
    "\"role\":\"tool\"",
    "\"content\":",
    "\"tools\":",
    "\"type\":\"function\"",
    "\"$ref\":\"#\"",
    "<tool_call>",
    "</tool_call>",
    ",",
    "}",
    "]",
    "\u{feff}",
    "é",
    "18446744073709551616",
];

fn mutate(bytes: &mut Vec<u8>, chance: &mut Chance) {
    changes::mutate(bytes, chance, &TOKENS, 60);
}

/// A refusal that a customer can act on.
fn is_helpful(error: &ApiError, seed: u64) {
    assert_eq!(error.status, 400, "seed {seed}: {error}");
    assert!(error.param.is_some() || error.code == "invalid_json", "seed {seed}: {error}");
    assert!(error.message.len() < 4_096, "seed {seed}: {error}");
}

#[test]
fn strangers_bytes_break_no_parser_and_no_template() {
    let hermes = "{% for t in tools %}<tool_call></tool_call>{{ t | tojson }}{% endfor %}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}\
        {% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments | tojson }}{{ c.function.arguments.a }}{% endfor %}{% endfor %}";
    let templates = [None, Some(hermes)].map(|source| ChatTemplate::new(source, "<s>", "</s>").unwrap());
    let mut read = [0_u64; 7];
    for seed in 0..runs() {
        let mut chance = Chance(seed);
        let mut bytes = SEEDS[chance.below(SEEDS.len())].as_bytes().to_vec();
        // One in eight is left as it was: the parsers must take that.
        if seed % 8 != 0 {
            mutate(&mut bytes, &mut chance);
        }
        match ChatCompletionRequest::parse(&bytes) {
            Ok(request) => {
                read[0] += 1;
                let tools = request.tools.as_ref().map(|tools| tools.list.as_slice()).unwrap_or_default();
                for template in &templates {
                    let prompt = template.render_with_tools(&request.messages, tools, 1_795_465_080).unwrap();
                    // What customers write is never read as a template.
                    assert!(!prompt.contains("ü49"), "seed {seed}: {prompt}");
                }
                let generate = request.settings.generate(String::from("p"), 1, seed);
                assert!(
                    generate.temperature.is_finite() && generate.stop.iter().all(|stop| !stop.is_empty()),
                    "seed {seed}"
                );
                infer::wire::encode(&generate).unwrap();
            }
            Err(error) => is_helpful(&error, seed),
        }
        match CompletionRequest::parse(&bytes) {
            Ok(request) => {
                read[1] += 1;
                assert!(!request.prompt.is_empty() && request.settings.max_tokens != Some(0), "seed {seed}");
            }
            Err(error) => is_helpful(&error, seed),
        }
        match ResponsesRequest::parse(&bytes) {
            Ok(request) => {
                read[2] += 1;
                assert!(
                    !matches!(request.settings.form.map(|form| form.grammar), Some(Grammar::Lark(_))),
                    "seed {seed}"
                );
            }
            Err(error) => is_helpful(&error, seed),
        }
        match EmbeddingRequest::parse(&bytes) {
            Ok(request) => {
                read[3] += 1;
                let inputs = &request.inputs;
                assert!(!inputs.is_empty() && inputs.iter().all(|input| !input.is_empty()), "seed {seed}");
            }
            Err(error) => is_helpful(&error, seed),
        }
        match RerankRequest::parse(&bytes) {
            Ok(request) => {
                read[4] += 1;
                let texts = request.texts();
                assert!(texts.len() >= 2 && texts.iter().all(|text| !text.is_empty()), "seed {seed}");
            }
            Err(error) => is_helpful(&error, seed),
        }
        match ClassifyRequest::parse(&bytes) {
            Ok(request) => {
                read[5] += 1;
                let (texts, classes) = (request.texts(), request.question());
                assert!(texts.len() >= 2 && texts.iter().all(|text| !text.is_empty()), "seed {seed}");
                assert!(classes.examples.iter().all(|label| *label < classes.labels.len()), "seed {seed}");
            }
            Err(error) => is_helpful(&error, seed),
        }
        match ExtractRequest::parse(&bytes) {
            Ok(request) => {
                read[6] += 1;
                for template in &templates {
                    let prompt = template.render(&request.messages(), 1_795_465_080).unwrap();
                    assert!(!prompt.contains("ü49"), "seed {seed}: {prompt}");
                }
                assert!(request.settings().max_tokens.is_some_and(|most| (1..=256).contains(&most)), "seed {seed}");
            }
            Err(error) => is_helpful(&error, seed),
        }
    }
    // Most changes break a request, and each seed is of one route.
    assert!(read[0] > runs() / 20 && read[1..].iter().all(|read| *read > runs() / 100), "{read:?}");
}

/// Whatever a model writes, in whatever pieces: a stream says what the whole answer says.
#[test]
fn a_stream_says_what_the_whole_says() {
    const PIECES: [&str; 14] = [
        "<tool_call>",
        "</tool_call>",
        "<tool",
        "_call>",
        "</",
        "\n",
        "{\"name\": \"f\", \"arguments\": {}}",
        "{\"name\": \"g\", ",
        "\"arguments\": {\"a\": \"ü\"}}",
        "text ",
        "<",
        ">",
        "null",
        " ",
    ];
    for seed in 0..runs() / 4 {
        let mut chance = Chance(seed);
        let pieces: Vec<&str> = (0..chance.below(12)).map(|_| PIECES[chance.below(PIECES.len())]).collect();
        let reply = ChatReply {
            id: "chatcmpl-1".into(),
            created: 0,
            model: "m".into(),
            include_usage: false,
            logprobs: false,
            tools: true,
        };
        let usage = Usage { prompt_tokens: 1, cached_tokens: 0, completion_tokens: 1 };
        let text = pieces.concat();
        let whole = reply.whole(Answered { text: &text, logprobs: &[], finish: Finish::Stop, usage }, Map::new());
        let mut stream = ChatStream::new(reply);
        let mut events: Vec<Value> =
            pieces.iter().flat_map(|piece| stream.delta(piece, &[])).map(|event| event.data).collect();
        events.extend(stream.close(Finish::Stop, usage, Map::new()).into_iter().map(|event| event.data));
        let deltas = || events.iter().map(|event| &event["choices"][0]["delta"]);
        let said: String = deltas().filter_map(|delta| delta["content"].as_str()).collect();
        let calls: Vec<&Value> = deltas().filter_map(|delta| delta["tool_calls"].get(0)).collect();
        let message = &whole["choices"][0]["message"];
        assert_eq!(said, message["content"].as_str().unwrap_or_default(), "seed {seed}: {text:?}");
        let whole_calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
        assert_eq!(calls.len(), whole_calls.len(), "seed {seed}: {text:?}");
        for (streamed, whole) in calls.iter().zip(&whole_calls) {
            assert_eq!(streamed["function"], whole["function"], "seed {seed}: {text:?}");
        }
        let last = &events[events.len() - 1]["choices"][0]["finish_reason"];
        assert_eq!(last, &whole["choices"][0]["finish_reason"], "seed {seed}: {text:?}");
    }
}
