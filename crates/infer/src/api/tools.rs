//! Tools: what a customer offers the model to call, and the calls that the model makes.
//!
//! A call is a line of JSON between tags, the way Hermes models write it and most small ones since:
//! `<tool_call>\n{"name": "…", "arguments": {…}}\n</tool_call>`. A model whose template speaks otherwise, or of no
//! tools, is told this form in its system message ([`crate::template`]). The engine holds calls to the tools' schemas, so
//! what stands between the tags is always a call that was offered.
//!
//! Nobody here calls anything: a call is text for the customer's own program.

use serde_json::{Map, Value, json};

use super::settings::{Form, SENTENCE_BYTES_MAX};
use super::strict::{Fields, SchemaSize, out_of_range, schema, wrong_type};
use super::{ApiError, MESSAGES_MAX};
use crate::wire::Grammar;

/// Most tools of one request (OpenAI's own bound).
pub(super) const TOOLS_MAX: usize = 128;
/// Longest name of a tool (OpenAI's own bound).
pub(super) const TOOL_NAME_BYTES_MAX: usize = 64;
/// Longest arguments of a call that a customer sends back, in bytes. A choice.
const ARGUMENTS_BYTES_MAX: usize = 64 << 10;

pub(crate) const OPEN: &str = "<tool_call>";
pub(crate) const CLOSE: &str = "</tool_call>";

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    pub name: String,
    pub description: Option<String>,
    /// JSON schema of its arguments.
    pub parameters: Value,
}

/// A call that the model made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// `call_…`; unique in its conversation.
    pub id: String,
    pub name: String,
    /// A JSON object, as text: that is how OpenAI's API hands it on.
    pub arguments: String,
}

/// Whether the model calls a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// At least one, whichever.
    Required,
    /// This one.
    Named(String),
}

/// The tools of a request: at least one, and `tool_choice` is not `none`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tools {
    pub list: Vec<Tool>,
    pub choice: ToolChoice,
    /// More than one call in an answer.
    pub parallel: bool,
}

impl Tool {
    /// As templates are given it: OpenAI's own form.
    pub(crate) fn to_json(&self) -> Value {
        let mut function = Map::new();
        function.insert("name".into(), self.name.as_str().into());
        if let Some(description) = &self.description {
            function.insert("description".into(), description.as_str().into());
        }
        function.insert("parameters".into(), self.parameters.clone());
        json!({"type": "function", "function": function})
    }
}

impl ToolCall {
    /// As the model writes it.
    pub(crate) fn to_text(&self) -> String {
        // Arguments were read as JSON before.
        let arguments: Value = serde_json::from_str(&self.arguments).unwrap_or_default();
        format!("{OPEN}\n{}\n{CLOSE}", json!({"name": self.name, "arguments": arguments}))
    }

    pub(super) fn to_json(&self) -> Value {
        json!({"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}})
    }
}

impl Tools {
    /// `tools`, `tool_choice` and `parallel_tool_calls`. `None` where no tool is to be called.
    pub(super) fn take(fields: &mut Fields) -> Result<Option<Tools>, ApiError> {
        let list = match fields.take("tools") {
            None => Vec::new(),
            Some(Value::Array(list)) => list,
            Some(other) => return Err(wrong_type("tools".into(), "a list", &other)),
        };
        if list.len() > TOOLS_MAX {
            return Err(out_of_range("tools".into(), format!("at most {TOOLS_MAX} entries long, not {}", list.len())));
        }
        let mut size = SchemaSize::default();
        let list: Vec<Tool> = list
            .into_iter()
            .enumerate()
            .map(|(index, value)| tool(format!("tools[{index}]"), value, &mut size))
            .collect::<Result<_, _>>()?;
        for (index, tool) in list.iter().enumerate() {
            if list[..index].iter().any(|other| other.name == tool.name) {
                let name = format!("tools[{index}].function.name");
                return Err(out_of_range(name, format!("given once: `{}` is there before", tool.name)));
            }
        }
        let choice = tool_choice(fields.take("tool_choice"), &list)?;
        let parallel = fields.bool("parallel_tool_calls")?.unwrap_or(true);
        Ok(choice.filter(|_| !list.is_empty()).map(|choice| Tools { list, choice, parallel }))
    }

    /// What the engine holds the answer to.
    pub(super) fn form(&self) -> Form {
        Form { grammar: Grammar::Lark(self.lark()), field: "tools" }
    }

    /// Every call is one of an offered tool; where the choice is the model's, it may also say anything else first.
    fn lark(&self) -> String {
        let meant = |tool: &&Tool| !matches!(&self.choice, ToolChoice::Named(name) if *name != tool.name);
        let calls: Vec<String> =
            self.list.iter().filter(meant).map(|tool| format!("%json {}", call_schema(tool))).collect();
        let calls = calls.join("\n  | ");
        let more = if self.parallel { format!("(\"\\n{OPEN}\\n\" body)*") } else { String::new() };
        let body = format!("body: json \"\\n{CLOSE}\"\njson: {calls}\n");
        match self.choice {
            // Lazy: the tag ends what was said before it, as soon as it is there.
            ToolChoice::Auto => format!(
                "start: SAID | before body {more}\n\
                 before[lazy]: /(.|\\n)*{OPEN}\\n/\n\
                 SAID: /(.|\\n)*/ & ~/(.|\\n)*{OPEN}(.|\\n)*/\n\
                 {body}"
            ),
            ToolChoice::Required | ToolChoice::Named(_) => format!("start: \"{OPEN}\\n\" body {more}\n{body}"),
        }
    }
}

/// JSON of one call. References in a tool's schema start at its root, which is now an inner object: what they point at is
/// moved to the new root.
fn call_schema(tool: &Tool) -> Value {
    let mut arguments = tool.parameters.clone();
    let mut schema = json!({
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": Value::Null},
        "required": ["name", "arguments"],
        "additionalProperties": false,
        "x-guidance": {"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": true},
    });
    if let Some(fields) = arguments.as_object_mut() {
        fields.shift_remove("x-guidance");
        for shared in ["$defs", "definitions"] {
            if let Some(definitions) = fields.shift_remove(shared) {
                schema[shared] = definitions;
            }
        }
        // Arguments are always an object.
        fields.insert("type".into(), "object".into());
    }
    schema["properties"]["arguments"] = arguments;
    schema
}

fn tool(path: String, value: Value, size: &mut SchemaSize) -> Result<Tool, ApiError> {
    let mut fields = Fields::from_value(path, value)?;
    let kind = fields.name("type");
    match fields.required("type")? {
        Value::String(word) if word == "function" => {}
        _ => {
            let message = format!("`{kind}` must be function; other tools are not supported by this agent");
            return Err(ApiError::for_field("unsupported_field", kind, message));
        }
    }
    let mut function = Fields::from_value(fields.name("function"), fields.required("function")?)?;
    fields.finish(&[])?;
    let name = tool_name(&mut function)?;
    let description = function.string("description", SENTENCE_BYTES_MAX)?;
    // Calls are held to the schema whether it is set or not.
    function.bool("strict")?;
    let place = function.name("parameters");
    let parameters = function.take("parameters").unwrap_or_else(|| json!({"type": "object", "properties": {}}));
    schema(&place, &parameters, size)?;
    let is_object = parameters.get("type").is_none_or(|kind| kind == "object");
    if !is_object {
        return Err(out_of_range(format!("{place}.type"), "object".into()));
    }
    function.finish(&[])?;
    Ok(Tool { name, description, parameters })
}

fn tool_name(fields: &mut Fields) -> Result<String, ApiError> {
    let place = fields.name("name");
    let name = match fields.required("name")? {
        Value::String(name) => name,
        other => return Err(wrong_type(place, "a string", &other)),
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if name.is_empty() || name.len() > TOOL_NAME_BYTES_MAX || !name.bytes().all(is_name) {
        return Err(out_of_range(place, format!("1 to {TOOL_NAME_BYTES_MAX} letters, digits, `_` and `-`")));
    }
    Ok(name)
}

/// `None` for `none`.
fn tool_choice(value: Option<Value>, list: &[Tool]) -> Result<Option<ToolChoice>, ApiError> {
    let field = "tool_choice";
    let without = || ApiError::for_field("out_of_range", field, "`tool_choice` asks for a tool, but `tools` has none");
    let choice = match value {
        None => return Ok(Some(ToolChoice::Auto)),
        Some(Value::String(word)) => match word.as_str() {
            "none" => return Ok(None),
            "auto" => return Ok(Some(ToolChoice::Auto)),
            "required" => ToolChoice::Required,
            _ => return Err(out_of_range(field.into(), "one of none, auto and required, or name a function".into())),
        },
        Some(value) => {
            let mut fields = Fields::from_value(field.into(), value)?;
            if fields.required("type")? != "function" {
                let message = "`tool_choice.type` must be function; other choices are not supported by this agent";
                return Err(ApiError::for_field("unsupported_field", "tool_choice.type", message));
            }
            let mut function = Fields::from_value(fields.name("function"), fields.required("function")?)?;
            fields.finish(&[])?;
            let name = tool_name(&mut function)?;
            function.finish(&[])?;
            if !list.iter().any(|tool| tool.name == name) {
                return Err(out_of_range("tool_choice.function.name".into(), format!("one of `tools`, not `{name}`")));
            }
            ToolChoice::Named(name)
        }
    };
    if list.is_empty() { Err(without()) } else { Ok(Some(choice)) }
}

/// `tool_calls` of a message that a customer sends back.
pub(super) fn calls_of_message(name: String, value: Option<Value>) -> Result<Vec<ToolCall>, ApiError> {
    let list = match value {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong_type(name, "a list", &other)),
    };
    if list.len() > MESSAGES_MAX {
        return Err(out_of_range(name, format!("at most {MESSAGES_MAX} entries long, not {}", list.len())));
    }
    list.into_iter().enumerate().map(|(index, value)| call_of_message(format!("{name}[{index}]"), value)).collect()
}

fn call_of_message(path: String, value: Value) -> Result<ToolCall, ApiError> {
    let mut fields = Fields::from_value(path, value)?;
    let place = fields.name("id");
    let id = match fields.required("id")? {
        Value::String(id) if id.len() <= super::NAME_BYTES_MAX => id,
        other => return Err(wrong_type(place, "a short string", &other)),
    };
    let kind = fields.name("type");
    if fields.take("type").is_some_and(|kind| kind != "function") {
        return Err(out_of_range(kind, "function".into()));
    }
    let mut function = Fields::from_value(fields.name("function"), fields.required("function")?)?;
    fields.only("index", &[])?;
    fields.finish(&[])?;
    let name = tool_name(&mut function)?;
    let place = function.name("arguments");
    let arguments = function.string("arguments", ARGUMENTS_BYTES_MAX)?.unwrap_or_default();
    // SDKs send back what they were given, and an empty text for no arguments.
    let arguments = if arguments.trim().is_empty() { "{}".to_owned() } else { arguments };
    if !matches!(serde_json::from_str(&arguments), Ok(Value::Object(_))) {
        return Err(out_of_range(place, "a JSON object as a string".into()));
    }
    function.finish(&[])?;
    Ok(ToolCall { id, name, arguments })
}

/// Takes an answer apart as it grows: what was said, and the calls.
#[derive(Clone, Debug)]
pub(super) struct Taker {
    /// In front of the calls' numbers in their ids.
    prefix: String,
    calls: usize,
    /// Text that may be the beginning of a tag, or a call that is not closed yet.
    held: String,
    /// Between the tags.
    inside: bool,
    /// Nothing was said since the last call.
    after_call: bool,
}

/// What more text brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub said: String,
    pub calls: Vec<ToolCall>,
}

impl Taker {
    /// `id` of the answer: the calls' ids follow from it.
    pub fn new(id: &str) -> Taker {
        let own = id.rsplit_once('-').map_or(id, |(_, own)| own);
        Taker { prefix: format!("call_{own}"), calls: 0, held: String::new(), inside: false, after_call: false }
    }

    pub fn push(&mut self, text: &str) -> Taken {
        self.held.push_str(text);
        let mut taken = Taken::default();
        loop {
            let tag = if self.inside { CLOSE } else { OPEN };
            let Some(at) = self.held.find(tag) else { break };
            let rest = self.held.split_off(at + tag.len());
            self.held.truncate(at);
            let before = std::mem::replace(&mut self.held, rest);
            if self.inside {
                taken.calls.extend(self.call(&before));
                self.after_call = true;
            } else {
                self.say(&before, &mut taken);
            }
            self.inside = !self.inside;
        }
        if !self.inside {
            let keep = self.held.len() - beginning_of(OPEN, &self.held);
            let rest = self.held.split_off(keep);
            let said = std::mem::replace(&mut self.held, rest);
            self.say(&said, &mut taken);
        }
        taken
    }

    /// What was held back, when no more text comes. A call that was cut off is text.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.held);
        if self.inside { format!("{OPEN}{rest}") } else { rest }
    }

    /// The line breaks between calls say nothing.
    fn say(&mut self, text: &str, taken: &mut Taken) {
        let text = if self.after_call { text.trim_start() } else { text };
        if !text.is_empty() {
            self.after_call = false;
            taken.said.push_str(text);
        }
    }

    /// What stands between two tags. The engine sees to it that it is a call; where it was not asked to, it is none.
    fn call(&mut self, text: &str) -> Option<ToolCall> {
        let value: Value = serde_json::from_str(text.trim()).ok()?;
        let name = value.get("name")?.as_str()?.to_owned();
        let arguments = value.get("arguments").filter(|arguments| arguments.is_object())?.to_string();
        let id = format!("{}{:02}", self.prefix, self.calls);
        self.calls += 1;
        Some(ToolCall { id, name, arguments })
    }
}

/// Bytes at the end of `text` with which `tag` could begin.
fn beginning_of(tag: &str, text: &str) -> usize {
    (1..tag.len()).rev().find(|length| text.ends_with(&tag[..*length])).unwrap_or(0)
}

#[cfg(test)]
mod tests;
