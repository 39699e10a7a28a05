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
