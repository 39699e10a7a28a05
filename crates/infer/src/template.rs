//! The model's own chat template, which is a Jinja program inside of its file.
//!
//! Rendered as Hugging Face's `apply_chat_template` does it: blocks trimmed, Python's string methods,
//! `raise_exception`, `strftime_now`, loop controls, `generation` (a test compares 786 published templates with it). The template comes with the model, which the agent's
//! manifest names by its hash; what customers write only ever is a value in it.
//!
//! Tools are the template's own matter where it knows them and writes calls between the tags that
//! [`crate::api`] reads. Any other model is told of them in its system message, and its calls and their answers become
//! text of the assistant and the user.
//!
//! A customer can spell a control token such as `<|im_end|>` in a message, and the model will take it
//! for one. It gains nothing by it: no text reaches a signature, and the conversation is the customer's own.

use std::fmt;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind, from_args};
use minijinja::{Environment, ErrorKind, State, UndefinedBehavior, context};

use crate::api::{Message, Role, TOOL_CALL_CLOSE, TOOL_CALL_OPEN, Tool, ToolCall};

/// For a model without a template of its own (base models): ChatML, the most common form.
/// With the model's first token before it, unless that is ChatML's own.
const CHATML: &str = "\
{%- if not bos_token.startswith('<|im') -%}{{- bos_token -}}{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}";

const NAME: &str = "chat_template";

/// What one prompt may cost: an instruction of the template is one, 64 bytes that it makes are another. A template is a
/// program, and ten lines of it can fill any memory or run for ever. Published ones take less than 200 a message
/// (a guess from their texts, unmeasured); this is twenty thousand messages, and at most 256 MiB.
const FUEL: u64 = 4_000_000;

/// A template that was found to be well formed.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    knows_tools: bool,
}

/// Why there is no prompt.
#[derive(Debug)]
pub enum TemplateError {
    /// The template itself does not parse: the model cannot be served with it.
    Malformed(minijinja::Error),
    /// The template says that it does not take this conversation (400, in the template's words), or has more work with
    /// it than one prompt may cost.
    Refused(String),
    /// The template failed on this conversation: the model cannot serve it (500).
    Failed(minijinja::Error),
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TemplateError::Malformed(_) => f.write_str("the model's chat template is malformed"),
            TemplateError::Refused(why) => write!(f, "the model does not take this conversation: {why}"),
            TemplateError::Failed(_) => f.write_str("the model's chat template failed"),
        }
    }
}

impl std::error::Error for TemplateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            TemplateError::Malformed(error) | TemplateError::Failed(error) => Some(error),
            TemplateError::Refused(_) => None,
        }
    }
}

impl ChatTemplate {
    /// Prepares a template; `None` is ChatML. `bos` and `eos` are the texts of the model's outer tokens.
    pub fn new(source: Option<&str>, bos: &str, eos: &str) -> Result<ChatTemplate, TemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(TemplateError::Malformed)?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(method_of_python);
        environment.add_test("iterable", is_iterable);
        environment.add_function("raise_exception", raise_exception);
        // Python's form of JSON: nothing is escaped for HTML, and there is a space behind `:` and `,`.
        environment.add_filter("tojson", to_json);
        let program = without_generation_tags(source.unwrap_or(CHATML));
        environment.add_template_owned(NAME, program).map_err(TemplateError::Malformed)?;
        let template = environment.get_template(NAME).map_err(TemplateError::Malformed)?;
        let knows_tools = template.undeclared_variables(false).contains("tools")
            && source.is_some_and(|source| source.contains(TOOL_CALL_OPEN) && source.contains(TOOL_CALL_CLOSE));
        Ok(ChatTemplate { environment, bos: bos.to_owned(), eos: eos.to_owned(), knows_tools })
    }

    /// The prompt for a conversation, ending where the assistant begins. `today_secs` is the date that the
    /// template may ask for (seconds since 1970, UTC): an input, so that a prompt can be made again.
    pub fn render(&self, messages: &[Message], today_secs: u64) -> Result<String, TemplateError> {
        self.render_with_tools(messages, &[], today_secs)
    }

    /// [`ChatTemplate::render`] for a model that may call these.
    pub fn render_with_tools(
        &self,
        messages: &[Message],
        tools: &[Tool],
        today_secs: u64,
    ) -> Result<String, TemplateError> {
        let messages: Vec<Value> = if self.knows_tools {
            messages.iter().map(as_it_is).collect()
        } else {
            let messages = in_plain_text(messages, tools);
            messages
                .iter()
                .map(|(role, content)| context! { role => role.as_str(), content => content.as_str() })
                .collect()
        };
        let tools: Option<Vec<Value>> = (self.knows_tools && !tools.is_empty())
            .then(|| tools.iter().map(|tool| Value::from(Serde(tool.to_json()))).collect());
        let strftime_now = Value::from_function(move |format: &str| date::strftime(format, today_secs));
        let template = self.environment.get_template(NAME).map_err(TemplateError::Failed)?;
        template
            .render(context! {
                messages => messages,
                tools => tools,
                add_generation_prompt => true,
                bos_token => self.bos.as_str(),
                eos_token => self.eos.as_str(),
                strftime_now => strftime_now,
            })
            .map_err(|error| match raised(&error) {
                Some(why) => TemplateError::Refused(why),
                None if error.kind() == ErrorKind::OutOfFuel => {
                    TemplateError::Refused("it is too long for the model's chat template".into())
                }
                None => TemplateError::Failed(error),
            })
    }
}

/// `{% generation %}` marks what a model said, for whoever trains it; the text between stays. A block that is always taken
/// does the same, with the same blanks around it.
fn without_generation_tags(source: &str) -> String {
    let mut program = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let inner = &rest[at + 2..];
        let end = inner.find("%}").unwrap_or(inner.len());
        let word = inner[..end].trim_matches(|c: char| c.is_whitespace() || matches!(c, '-' | '+'));
        let instead = match word {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        program.push_str(&rest[..at + 2]);
        rest = match instead {
            Some(instead) => {
                program.push_str(&inner[..end].replace(word, instead));
                &inner[end..]
            }
            None => inner,
        };
    }
    program.push_str(rest);
    program
}

/// A message for a template that knows tools.
fn as_it_is(message: &Message) -> Value {
    let (role, content) = (message.role.as_str(), message.content.as_str());
    if let Some(id) = &message.tool_call_id {
        return context! { role => role, content => content, tool_call_id => id.as_str() };
    }
    if message.tool_calls.is_empty() {
        return context! { role => role, content => content };
    }
    let call = |call: &ToolCall| {
        // A template that writes them as JSON would quote a text; they were read as an object before.
        let arguments: serde_json::Value = serde_json::from_str(&call.arguments).unwrap_or_default();
        let function = context! { name => call.name.as_str(), arguments => Value::from(Serde(arguments)) };
        context! { id => call.id.as_str(), type => "function", function => function }
    };
    let calls: Vec<Value> = message.tool_calls.iter().map(call).collect();
    context! { role => role, content => content, tool_calls => calls }
}

/// A conversation for a template that does not: the roles are system, user and assistant, and take turns as before.
fn in_plain_text(messages: &[Message], tools: &[Tool]) -> Vec<(Role, String)> {
    let mut plain: Vec<(Role, String)> = Vec::new();
    let mut answers_a_call = false;
    for message in messages {
        let text = match message.role {
            Role::Tool => format!("<tool_response>\n{}\n</tool_response>", message.content),
            Role::Assistant => {
                let said = Some(message.content.clone()).filter(|said| !said.is_empty());
                let calls = message.tool_calls.iter().map(ToolCall::to_text);
                said.into_iter().chain(calls).collect::<Vec<_>>().join("\n")
            }
            Role::System | Role::User => message.content.clone(),
        };
        match plain.last_mut() {
            // The answers of several calls are one turn.
            Some((_, before)) if message.role == Role::Tool && answers_a_call => {
                before.push('\n');
                before.push_str(&text);
            }
            _ => plain.push((if message.role == Role::Tool { Role::User } else { message.role }, text)),
        }
        answers_a_call = message.role == Role::Tool;
    }
    if !tools.is_empty() {
        let told = told_of(tools);
        match plain.first_mut() {
            Some((Role::System, text)) => *text = format!("{text}\n\n{told}"),
            _ => plain.insert(0, (Role::System, told)),
        }
    }
    plain
}

fn told_of(tools: &[Tool]) -> String {
    let list: Vec<String> = tools.iter().map(|tool| tool.to_json().to_string()).collect();
    format!(
        "You can call tools. Each line between <tools> and </tools> describes one:\n<tools>\n{}\n</tools>\n\
         To call one, answer with its name and its arguments as JSON:\n\
         {TOOL_CALL_OPEN}\n{{\"name\": \"the tool's name\", \"arguments\": {{\"an argument\": \"its value\"}}}}\n{TOOL_CALL_CLOSE}\n\
         What it answers comes between <tool_response> and </tool_response>.",
        list.join("\n")
    )
}

/// Marks an error as the template's own decision among all the others it can run into.
const RAISED: &str = "raise_exception: ";

fn raise_exception(why: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{why}")))
}

fn raised(error: &minijinja::Error) -> Option<String> {
    error.detail()?.strip_prefix(RAISED).map(str::to_owned)
}

/// The one method that templates use and `minijinja_contrib` lacks, then all of its own.
fn method_of_python(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, minijinja::Error> {
    let (Some(text), "rsplit") = (value.as_str(), method) else {
        return minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args);
    };
    let (separator, most): (&str, Option<i64>) = from_args(args)?;
    if separator.is_empty() {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    // A negative number is Python's word for all of them.
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let mut parts: Vec<&str> = text.rsplitn(most.saturating_add(1), separator).collect();
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

/// As in Jinja: a text is iterable, and what is none is not.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && (value.kind() == ValueKind::String || value.try_iter().is_ok())
}

fn to_json(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    options.assert_all_used()?;
    let written = |text: String| if ensure_ascii { escaped_to_ascii(&text) } else { text };
    let failed =
        |error| minijinja::Error::new(ErrorKind::BadSerialization, "cannot be written as JSON").with_source(error);
    match indent {
        None => python_json(value).map(written).map_err(failed),
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let mut text = Vec::new();
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
            serde::Serialize::serialize(value, &mut serializer).map_err(failed)?;
            Ok(written(String::from_utf8_lossy(&text).into_owned()))
        }
    }
}

/// JSON whose characters beyond ASCII are written as `\u` and UTF-16 numbers; they only ever stand in texts.
fn escaped_to_ascii(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            escaped.push(character);
        } else {
            let units =
                character.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect::<String>();
            escaped.push_str(&units);
        }
    }
    escaped
}

fn python_json(value: &Value) -> Result<String, serde_json::Error> {
    struct Spaced;
    impl serde_json::ser::Formatter for Spaced {
        fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, to: &mut W, first: bool) -> std::io::Result<()> {
            if first { Ok(()) } else { to.write_all(b", ") }
        }
        fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, to: &mut W, first: bool) -> std::io::Result<()> {
            if first { Ok(()) } else { to.write_all(b", ") }
        }
        fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, to: &mut W) -> std::io::Result<()> {
            to.write_all(b": ")
        }
    }
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, Spaced);
    serde::Serialize::serialize(value, &mut serializer)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

mod date;
#[cfg(test)]
mod tests;
