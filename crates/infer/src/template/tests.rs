use expect_test::{Expect, expect};

use super::*;
use crate::api::Role;

/// 2026-11-23, 20:18 UTC.
const TODAY_SECS: u64 = 1_795_465_080;

fn message(role: Role, content: &str) -> Message {
    Message::new(role, content)
}

fn check(template: Option<&str>, messages: &[Message], wanted: Expect) {
    let rendered =
        ChatTemplate::new(template, "<s>", "</s>").and_then(|template| template.render(messages, TODAY_SECS));
    wanted.assert_eq(&rendered.unwrap_or_else(|error| format!("ERROR {error}")));
}

fn talk() -> Vec<Message> {
    vec![
        message(Role::System, "Be brief."),
        message(Role::User, "Hi <b> & \"you\""),
        message(Role::Assistant, "Ho"),
        message(Role::User, "  Again?\n"),
    ]
}

#[test]
fn a_model_without_a_template_gets_chatml() {
    check(
        None,
        &talk(),
        expect![[r#"
            <s><|im_start|>system
            Be brief.<|im_end|>
            <|im_start|>user
            Hi <b> & "you"<|im_end|>
            <|im_start|>assistant
            Ho<|im_end|>
            <|im_start|>user
              Again?
            <|im_end|>
            <|im_start|>assistant
        "#]],
    );
}

/// The shape of SmolLM2's own template.
#[test]
fn a_template_may_add_its_own_system_message() {
    let template = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
        {{ '<|im_start|>system\\nYou are kind.<|im_end|>\\n' }}{% endif %}\
        {{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    check(
        Some(template),
        &talk()[1..2],
        expect![[r#"
        <|im_start|>system
        You are kind.<|im_end|>
        <|im_start|>user
        Hi <b> & "you"<|im_end|>
        <|im_start|>assistant
    "#]],
    );
}

/// What Llama's and Mistral's templates use of Python and Jinja.
#[test]
fn python_and_jinja_are_understood() {
    let template = "{{- bos_token }}\n{%- set ns = namespace(n=0) %}\n\
        {%- if strftime_now is defined %}\n    {%- set date = strftime_now(\"%d %b %Y\") %}\n{%- endif %}\n\
        {{- 'Today Date: ' + date + '\\n' }}\n\
        {%- for m in messages %}\n\
        {%- if m.role == 'system' %}{% continue %}{% endif %}\n\
        {%- set ns.n = ns.n + 1 %}\n\
        [{{ m['role'].upper() }} {{ ns.n }}] {{ m.content.strip().split(' ')[0] | trim }}|{{ m | tojson }}\n\
        {% endfor %}\n{{- eos_token }}";
    check(
        Some(template),
        &talk(),
        expect![[r#"
        <s>Today Date: 23 Nov 2026
        [USER 1] Hi|{"role": "user", "content": "Hi <b> & \"you\""}
        [ASSISTANT 2] Ho|{"role": "assistant", "content": "Ho"}
        [USER 3] Again?|{"role": "user", "content": "  Again?\n"}
        </s>"#]],
    );
}

#[test]
fn blocks_leave_no_lines_behind() {
    check(
        Some("a\n  {% if true %}\nb\n  {% endif %}\nc\n"),
        &[],
        expect![[r#"
        a
        b
        c"#]],
    );
}

#[test]
fn a_template_can_refuse() {
    let template =
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}x";
    check(
        Some(template),
        &talk(),
        expect!["ERROR the model does not take this conversation: System role not supported"],
    );
    check(Some(template), &talk()[1..], expect!["x"]);
}

/// A template is a program: neither a loop in a loop nor a text that doubles takes more than its share, and a conversation
/// that is within the bounds of a body is not made into hours of work.
#[test]
fn a_prompt_costs_a_bounded_work() {
    let many = vec![message(Role::User, ""); 30_000];
    let quadratic = "{% for a in messages %}{% for b in messages %}{{ b.content }}{% endfor %}{% endfor %}";
    let doubling = "{% set ns = namespace(t='a') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}";
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    for template in [quadratic, doubling, endless] {
        let template = ChatTemplate::new(Some(template), "<s>", "</s>").unwrap();
        let refused = template.render(&many, TODAY_SECS).unwrap_err();
        assert!(matches!(&refused, TemplateError::Refused(why) if why.contains("too long")), "{refused:?}");
    }
    let chatml = ChatTemplate::new(None, "<s>", "</s>").unwrap();
    assert!(chatml.render(&many, TODAY_SECS).unwrap().len() > 30_000 * 25);
}

#[test]
fn what_is_broken_says_so() {
    check(Some("{% for %}"), &[], expect!["ERROR the model's chat template is malformed"]);
    check(Some("{{ nothing.at.all }}"), &[], expect!["ERROR the model's chat template failed"]);
}

/// Text of a customer is a value, and never a program.
#[test]
fn a_message_is_not_a_template() {
    check(
        None,
        &[message(Role::User, "{{ 7 * 7 }}{% raw %}")],
        expect![[r#"
            <s><|im_start|>user
            {{ 7 * 7 }}{% raw %}<|im_end|>
            <|im_start|>assistant
        "#]],
    );
}

fn weather() -> Tool {
    let parameters = serde_json::json!({"type": "object", "properties": {"city": {"type": "string"}}});
    Tool { name: "weather".into(), description: Some("Tells <it>.".into()), parameters }
}

/// A question, two calls, both answers.
fn talk_with_calls() -> Vec<Message> {
    let call = |id: &str, city: &str| ToolCall {
        id: id.into(),
        name: "weather".into(),
        arguments: format!("{{\"city\": \"{city}\"}}"),
    };
    let calls = vec![call("call_1", "Rome"), call("call_2", "Oslo")];
    let answer = |id: &str, text: &str| Message { tool_call_id: Some(id.into()), ..Message::new(Role::Tool, text) };
    vec![
        message(Role::User, "Rain?"),
        Message { tool_calls: calls, ..message(Role::Assistant, "I look.") },
        answer("call_1", "sun"),
        answer("call_2", "rain"),
    ]
}

#[test]
fn a_template_without_tools_gets_them_as_text() {
    let template = ChatTemplate::new(None, "<|im_start|>", "<|im_end|>").unwrap();
    let rendered = template.render_with_tools(&talk_with_calls(), &[weather()], TODAY_SECS).unwrap();
    expect![[r#"
        <|im_start|>system
        You can call tools. Each line between <tools> and </tools> describes one:
        <tools>
        {"type":"function","function":{"name":"weather","description":"Tells <it>.","parameters":{"type":"object","properties":{"city":{"type":"string"}}}}}
        </tools>
        To call one, answer with its name and its arguments as JSON:
        <tool_call>
        {"name": "the tool's name", "arguments": {"an argument": "its value"}}
        </tool_call>
        What it answers comes between <tool_response> and </tool_response>.<|im_end|>
        <|im_start|>user
        Rain?<|im_end|>
        <|im_start|>assistant
        I look.
        <tool_call>
        {"name":"weather","arguments":{"city":"Rome"}}
        </tool_call>
        <tool_call>
        {"name":"weather","arguments":{"city":"Oslo"}}
        </tool_call><|im_end|>
        <|im_start|>user
        <tool_response>
        sun
        </tool_response>
        <tool_response>
        rain
        </tool_response><|im_end|>
        <|im_start|>assistant
    "#]].assert_eq(&rendered);
    // With a system message of the customer's own, that comes first.
    let talk = [message(Role::System, "Be brief."), message(Role::User, "Hi")];
    let rendered = template.render_with_tools(&talk, &[weather()], TODAY_SECS).unwrap();
    assert!(rendered.starts_with("<|im_start|>system\nBe brief.\n\nYou can call tools."), "{rendered}");
}

/// The shape of Qwen's and Hermes' templates.
#[test]
fn a_template_with_tools_gets_them_as_they_are() {
    let source = "{%- if tools %}{{- '<|im_start|>system\\n<tools>' }}{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}\
        {%- endfor %}{{- '\\n</tools> <tool_call></tool_call><|im_end|>\\n' }}{%- endif %}{%- for message in messages %}\
        {{- '<|im_start|>' + message.role + '\\n' + message.content }}{%- if message.tool_calls %}\
        {%- for call in message.tool_calls %}{{- '\\n<tool_call>\\n{\"name\": \"' + call.function.name + '\", \"arguments\": ' }}\
        {{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}\
        {%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";
    let template = ChatTemplate::new(Some(source), "", "").unwrap();
    let rendered = template.render_with_tools(&talk_with_calls(), &[weather()], TODAY_SECS).unwrap();
    expect![[r#"
        <|im_start|>system
        <tools>
        {"type": "function", "function": {"name": "weather", "description": "Tells <it>.", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}
        </tools> <tool_call></tool_call><|im_end|>
        <|im_start|>user
        Rain?<|im_end|>
        <|im_start|>assistant
        I look.
        <tool_call>
        {"name": "weather", "arguments": {"city": "Rome"}}
        </tool_call>
        <tool_call>
        {"name": "weather", "arguments": {"city": "Oslo"}}
        </tool_call><|im_end|>
        <|im_start|>tool
        sun<|im_end|>
        <|im_start|>tool
        rain<|im_end|>
        <|im_start|>assistant
    "#]].assert_eq(&rendered);
    // Without tools nothing is said of them.
    assert!(template.render(&talk(), TODAY_SECS).unwrap().starts_with("<|im_start|>system\nBe brief."));
}
