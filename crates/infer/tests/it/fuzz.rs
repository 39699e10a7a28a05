//! Whatever a model writes: streams and whole answers say the same. Deterministic: a failure names its seed. What
//! customers send, and the template behind it, is tried by libFuzzer (`fuzz/`).

#[path = "../../../../tests/fuzz.rs"]
#[allow(dead_code, reason = "these inputs are put together, not changed")]
mod changes;

use changes::Chance;
use infer::Finish;
use infer::api::{Answered, ChatReply, ChatStream, Usage};
use serde_json::{Map, Value};

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
    for seed in 0..5_000 {
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
