//! Answers that must have a form, and what is told of their tokens.

use infer::api::{ChatCompletionRequest, ChatReply, Usage};
use infer::{EngineEvent, FailureKind, Finish, Generate, Grammar};
use serde_json::{Value, json};

use crate::{Engine, chat, engine, greedy, whole};

/// The person that the model is to make up; every kind of value is in it.
fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 1, "maximum": 99},
            "likes": {"type": "array", "items": {"enum": ["tea", "rain", "\u{1F980}"]}, "minItems": 2, "maxItems": 2},
            "home": {"$ref": "#/$defs/place"},
        },
        "required": ["name", "age", "likes", "home"],
        "additionalProperties": false,
        "$defs": {"place": {"type": "object", "properties": {"far": {"type": "boolean"}}, "required": ["far"], "additionalProperties": false}},
    })
}

#[tokio::test]
async fn json_is_what_its_schema_says() {
    let engine = engine(2, 1_024).await;
    let ask = |seed, grammar| {
        let prompt = chat(&engine.hello, "Make up a person. Answer in JSON.");
        let request = Generate { temperature: 1.0, seed, grammar: Some(grammar), ..greedy(&prompt, 120) };
        whole(engine.client.generate(request).unwrap())
    };
    // Beside each other, hot, and each its own.
    let asked = [1, 2, 3].map(|seed| ask(seed, Grammar::JsonSchema(person())));
    let [one, two, three] = asked;
    let (one, two, three) = tokio::join!(one, two, three);
    for answer in [&one, &two, &three] {
        assert_eq!(answer.finish, Finish::Stop, "{answer:?}");
        let person: Value = serde_json::from_str(&answer.text).unwrap_or_else(|e| panic!("{e}: {answer:?}"));
        assert!(person["name"].as_str().unwrap().chars().count() <= 12, "{person}");
        assert!((1..=99).contains(&person["age"].as_u64().unwrap()), "{person}");
        assert_eq!(person["likes"].as_array().unwrap().len(), 2, "{person}");
        assert!(person["home"]["far"].is_boolean(), "{person}");
    }
    assert_ne!(one.text, two.text);
    let any = ask(5, Grammar::JsonSchema(json!({"type": "object"}))).await;
    // It may be cut off, but then it is the beginning of an object.
    assert!(any.text.starts_with('{') && !any.text.contains('\n'), "{any:?}");
}

#[tokio::test]
async fn forms_that_cannot_be_had_are_said() {
    let engine = engine(1, 256).await;
    let check = async |grammar| engine.client.check_grammar(grammar).await.unwrap();
    assert_eq!(check(Grammar::JsonSchema(person())).await, None);
    for (schema, word) in [
        (json!({"type": "thing"}), "thing"),
        (json!({"type": 7}), "type"),
        (json!({"$ref": "https://example.com/x.json"}), "ref"),
        (json!({"$ref": "#/$defs/none"}), "none"),
        (json!({"pattern": "(", "type": "string"}), ""),
        (json!({"properties": []}), "properties"),
        (json!({"allOf": [{"type": "string"}, {"type": "number"}]}), ""),
        (json!({"type": "string", "minLength": 5, "maxLength": 2}), ""),
    ] {
        let why = check(Grammar::JsonSchema(schema.clone())).await;
        let why = why.unwrap_or_else(|| panic!("{schema} can be had"));
        assert!(why.contains(word) && why.chars().count() <= 300 && !why.contains('\n'), "{schema}: {why}");
    }
    assert!(check(Grammar::Lark("start: nothing".into())).await.is_some());
    let request = Generate { grammar: Some(Grammar::JsonSchema(json!({"type": "thing"}))), ..greedy("x", 1) };
    match engine.client.generate(request).unwrap().recv().await {
        Some(EngineEvent::Failed { kind: FailureKind::Grammar, .. }) => {}
        other => panic!("{other:?}"),
    }
    // A form too large for its bounds, and one that is deep in itself: refused or taken, but the engine lives.
    let wide: serde_json::Map<String, Value> =
        (0..500).map(|n| (format!("field{n}"), json!({"type": "string"}))).collect();
    check(Grammar::JsonSchema(json!({"type": "object", "properties": wide}))).await;
    check(Grammar::JsonSchema(json!({"type": "string", "pattern": "((a{1,50}){1,50}){1,50}"}))).await;
    check(Grammar::JsonSchema(json!({"$ref": "#"}))).await;
    check(Grammar::JsonSchema(json!({"type": "array", "items": {"$ref": "#"}}))).await;
    assert_eq!(whole(engine.client.generate(greedy("x", 2)).unwrap()).await.completion_tokens, 2);
    assert_eq!(engine.client.restarts(), 0);
}

/// A chat completion with tools, as the node makes it.
async fn call(engine: &Engine, choice: Value, temperature: f32) -> Value {
    let tool = |name: &str, parameters: Value| json!({"type": "function", "function": {"name": name, "description": "Tells it.", "parameters": parameters}});
    let city = json!({"type": "object", "properties": {"city": {"$ref": "#/$defs/city"}}, "required": ["city"], "additionalProperties": false,
        "$defs": {"city": {"enum": ["Paris", "Rome"]}}});
    let body = json!({
        "model": "m", "tool_choice": choice, "parallel_tool_calls": false,
        "tools": [tool("get_weather", city), tool("get_time", json!({"type": "object", "properties": {}, "additionalProperties": false}))],
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    });
    let request = ChatCompletionRequest::parse(body.to_string().as_bytes()).unwrap();
    let template =
        infer::ChatTemplate::new(engine.hello.chat_template.as_deref(), &engine.hello.bos, &engine.hello.eos);
    let tools = request.tools.as_ref().map(|tools| tools.list.as_slice()).unwrap_or_default();
    let prompt = template.unwrap().render_with_tools(&request.messages, tools, 0).unwrap();
    let generate = Generate { temperature, ..request.settings.clone().generate(prompt, 80, 3) };
    let answer = whole(engine.client.generate(generate).unwrap()).await;
    let usage =
        Usage { prompt_tokens: answer.prompt_tokens, cached_tokens: 0, completion_tokens: answer.completion_tokens };
    let reply = ChatReply {
        id: "chatcmpl-x".into(),
        created: 0,
        model: "m".into(),
        include_usage: false,
        logprobs: false,
        tools: request.tools.is_some(),
    };
    let answered = infer::api::Answered { text: &answer.text, logprobs: &[], finish: answer.finish, usage };
    reply.whole(answered, serde_json::Map::new())["choices"][0].clone()
}

#[tokio::test]
async fn a_call_is_one_that_was_offered() {
    let engine = engine(1, 1_024).await;
    let named = json!({"type": "function", "function": {"name": "get_weather"}});
    for (choice, temperature) in [(json!("required"), 0.0), (json!("required"), 1.5), (named.clone(), 1.5)] {
        let made = call(&engine, choice.clone(), temperature).await;
        assert_eq!(made["finish_reason"], "tool_calls", "{made}");
        let function = &made["message"]["tool_calls"][0]["function"];
        let arguments: Value = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
        match function["name"].as_str().unwrap() {
            "get_weather" => assert!(arguments["city"] == "Paris" || arguments["city"] == "Rome", "{made}"),
            "get_time" => assert!(choice == "required" && arguments == json!({}), "{made}"),
            other => panic!("{other} was not offered"),
        }
        assert_eq!(made["message"]["content"], Value::Null);
        assert_eq!(made["message"]["tool_calls"].as_array().unwrap().len(), 1);
    }
    // Free to say anything, it says something; and what looks like a call is one.
    let free = call(&engine, json!("auto"), 0.0).await;
    let said = free["message"]["content"].as_str().unwrap_or_default();
    assert!(!said.is_empty() || free["finish_reason"] == "tool_calls", "{free}");
    assert!(!said.contains("</tool_call>"), "{free}");
}

/// What the model is made to begin with leads into a call: the choice is its own, the form is not.
#[tokio::test]
async fn a_call_may_follow_what_was_said() {
    let engine = engine(1, 512).await;
    let lark = "start: SAID | before body\nbefore[lazy]: /(.|\\n)*<tool_call>\\n/\n\
                SAID: /(.|\\n)*/ & ~/(.|\\n)*<tool_call>(.|\\n)*/\nbody: %json {\"enum\": [17]} \"\\n</tool_call>\"\n";
    let request = Generate {
        grammar: Some(Grammar::Lark(lark.into())),
        ..greedy(
            "Repeat exactly: I look. <tool_call>\n17\n</tool_call>\nI look. <tool_call>\n17\n</tool_call>\nI look. <tool_call>\n17\n</tool_call>\n",
            40,
        )
    };
    let answer = whole(engine.client.generate(request).unwrap()).await;
    assert!(answer.text.ends_with("<tool_call>\n17\n</tool_call>") && answer.text.contains("I look."), "{answer:?}");
    assert_eq!(answer.finish, Finish::Stop);
}

#[tokio::test]
async fn probabilities_are_told_of_every_token() {
    let engine = engine(1, 512).await;
    let ask = |request| whole(engine.client.generate(request).unwrap());
    let told = ask(Generate { logprobs: Some(3), ..greedy("The capital of France is", 6) }).await;
    assert_eq!(told.logprobs.len(), 6);
    let spelled: Vec<u8> = told.logprobs.iter().flat_map(|token| token.bytes.clone()).collect();
    assert_eq!(String::from_utf8(spelled).unwrap(), told.text);
    for token in &told.logprobs {
        // Greedy: the chosen one is the likeliest.
        assert_eq!((&token.top[0].0, token.top[0].1, token.top.len()), (&token.bytes, token.logprob, 3));
        assert!(token.logprob <= 0.0 && token.top[0].1 >= token.top[1].1 && token.top[1].1 >= token.top[2].1);
    }
    assert!(ask(greedy("The capital of France is", 6)).await.logprobs.is_empty());

    // Of a stop string nothing is told.
    let stop = vec!["France".to_owned()];
    let request = Generate { logprobs: Some(0), stop, ..greedy("The capital of France is Paris. The capital of", 8) };
    let stopped = ask(request).await;
    assert_eq!(stopped.finish, Finish::Stop, "{stopped:?}");
    let spelled: usize = stopped.logprobs.iter().map(|token| token.bytes.len()).sum();
    assert!(spelled >= stopped.text.len() && stopped.logprobs.len() < 8, "{stopped:?}");

    // A token that is made certain is said, whatever the model thinks.
    let free = ask(greedy("The capital of France is", 1)).await;
    let forced = ask(Generate { logit_bias: vec![(100, 100.0)], ..greedy("The capital of France is", 2) }).await;
    assert_ne!(free.text, forced.text);
    assert_eq!(forced.completion_tokens, 2);
}
