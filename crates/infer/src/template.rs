//! The model's own chat template, which is a Jinja program inside of its file.
//!
//! Rendered as Hugging Face's `apply_chat_template` does it: blocks trimmed, Python's string methods,
//! `raise_exception`, `strftime_now`, loop controls. The template comes with the model, which the agent's
//! manifest names by its hash; what customers write only ever is a value in it.
//!
//! A customer can spell a control token such as `<|im_end|>` in a message, and the model will take it
//! for one. It gains nothing by it: no text reaches a signature, and the conversation is the customer's own.

use std::fmt;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind, UndefinedBehavior, context};

use crate::api::Message;

/// For a model without a template of its own (base models): ChatML, the most common form.
/// With the model's first token before it, unless that is ChatML's own.
const CHATML: &str = "\
{%- if not bos_token.startswith('<|im') -%}{{- bos_token -}}{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}";

const NAME: &str = "chat_template";

/// A template that was found to be well formed.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

/// Why there is no prompt.
#[derive(Debug)]
pub enum TemplateError {
    /// The template itself does not parse: the model cannot be served with it.
    Malformed(minijinja::Error),
    /// The template says that it does not take this conversation (400, in the template's words).
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
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        // Python's form of JSON: nothing is escaped for HTML, and there is a space behind `:` and `,`.
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, source.unwrap_or(CHATML).to_owned()).map_err(TemplateError::Malformed)?;
        Ok(ChatTemplate { environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The prompt for a conversation, ending where the assistant begins. `today_secs` is the date that the
    /// template may ask for (seconds since 1970, UTC): an input, so that a prompt can be made again.
    pub fn render(&self, messages: &[Message], today_secs: u64) -> Result<String, TemplateError> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => message.role.as_str(), content => message.content.as_str() })
            .collect();
        let strftime_now = Value::from_function(move |format: &str| date::strftime(format, today_secs));
        let template = self.environment.get_template(NAME).map_err(TemplateError::Failed)?;
        template
            .render(context! {
                messages => messages,
                add_generation_prompt => true,
                bos_token => self.bos.as_str(),
                eos_token => self.eos.as_str(),
                strftime_now => strftime_now,
            })
            .map_err(|error| match raised(&error) {
                Some(why) => TemplateError::Refused(why),
                None => TemplateError::Failed(error),
            })
    }
}

/// Marks an error as the template's own decision among all the others it can run into.
const RAISED: &str = "raise_exception: ";

fn raise_exception(why: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{why}")))
}

fn raised(error: &minijinja::Error) -> Option<String> {
    error.detail()?.strip_prefix(RAISED).map(str::to_owned)
}

fn to_json(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted and without effect: text is never escaped to ASCII here.
    options.get::<Option<bool>>("ensure_ascii")?;
    options.assert_all_used()?;
    let failed =
        |error| minijinja::Error::new(ErrorKind::BadSerialization, "cannot be written as JSON").with_source(error);
    match indent {
        None => python_json(value).map_err(failed),
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let mut text = Vec::new();
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
            serde::Serialize::serialize(value, &mut serializer).map_err(failed)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        }
    }
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
