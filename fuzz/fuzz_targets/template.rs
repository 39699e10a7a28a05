//! Chat templates: a body of a request, before it a template and a zero byte if the template is not one of ours. What must
//! hold: what customers write is never run as a template, and is in the prompt as they wrote it; the same conversation
//! gives the same prompt; a template, whatever it is, ends and holds a bounded memory.
#![no_main]

use infer::api::{ChatCompletionRequest, Role};
use infer::{ChatTemplate, TemplateError};
use libfuzzer_sys::{Corpus, fuzz_target};
use std::sync::LazyLock;
use vivarium_fuzz::bounded;

/// Knows tools, as Hermes does.
const WITH_TOOLS: &str = "{% for t in tools %}<tool_call></tool_call>{{ t | tojson }}{% endfor %}\
    {% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }}\
    {{ c.function.arguments | tojson }}{{ c.function.arguments.a }}{% endfor %}{% endfor %}";
/// 2026-11-23.
const TODAY_SECS: u64 = 1_795_465_080;
/// What a template may hold, with all that its fuel buys.
const BYTES_MAX: usize = 64 << 20;

static OURS: LazyLock<[ChatTemplate; 2]> =
    LazyLock::new(|| [None, Some(WITH_TOOLS)].map(|source| ChatTemplate::new(source, "<s>", "</s>").expect("ours")));

fuzz_target!(|data: &[u8]| -> Corpus {
    LazyLock::force(&OURS);
    let (source, body) = match data.iter().position(|byte| *byte == 0) {
        Some(at) => (std::str::from_utf8(&data[..at]).ok(), &data[at + 1..]),
        None => (None, data),
    };
    let Ok(request) = ChatCompletionRequest::parse(body) else { return Corpus::Reject };
    let tools = request.tools.as_ref().map(|tools| tools.list.as_slice()).unwrap_or_default();
    let render = |template: &ChatTemplate| {
        bounded(BYTES_MAX, || template.render_with_tools(&request.messages, tools, TODAY_SECS))
    };
    if let Some(source) = source {
        if let Ok(template) = bounded(BYTES_MAX, || ChatTemplate::new(Some(source), "<s>", "</s>")) {
            match render(&template) {
                Ok(_) | Err(TemplateError::Refused(_) | TemplateError::Failed(_)) => {}
                Err(other) => panic!("it was well formed: {other}"),
            }
        }
        return Corpus::Keep;
    }
    for template in &*OURS {
        let prompt = render(template).expect("ours take every conversation");
        assert!(prompt == render(template).expect("twice"), "another prompt for the same conversation");
        for message in request.messages.iter().filter(|message| matches!(message.role, Role::System | Role::User)) {
            assert!(prompt.contains(&message.content), "{:?} is not in {prompt:?}", message.content);
        }
    }
    Corpus::Keep
});
