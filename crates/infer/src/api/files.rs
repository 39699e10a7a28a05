//! `POST /v1/files`: the requests of a batch, as one file.

use serde_json::{Value, json};

use super::strict::{Fields, wrong_type};
use super::{ApiError, NAME_BYTES_MAX};

/// Longest body of an upload, bytes, the form around the file counted.
pub const BODY_BYTES_MAX: usize = 10 << 20;
/// Most headers of a form's part, bytes: what SDKs send has a few hundred. A guess.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// What files are for. OpenAI has others; this agent has none.
const PURPOSE: &str = "batch";
const PURPOSE_FIELD: &str = "purpose";
const FILE_FIELD: &str = "file";
/// OpenAI's fields that are refused: how long files are kept is the agent's to say.
const NOT_DONE: [&str; 3] = ["expires_after", "expires_after[anchor]", "expires_after[seconds]"];

/// A file that was sent, of which every field was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    pub filename: String,
    pub content: String,
}

impl Upload {
    /// Reads a body: the form that OpenAI's SDKs send (RFC 7578), or the same as JSON, `{purpose, filename, content}`.
    /// Which of the two it is, its first byte says: a form begins with its delimiter. Every error is a 400 that names the
    /// field.
    pub fn parse(body: &[u8]) -> Result<Upload, ApiError> {
        if body.starts_with(b"--") { of_form(body) } else { of_json(body) }
    }

    /// The JSON form: the same file is the same bytes, which is not so of a form, whose delimiter is chosen by chance.
    pub fn to_json(&self) -> Value {
        json!({"purpose": PURPOSE, "filename": self.filename, "content": self.content})
    }
}

fn of_json(body: &[u8]) -> Result<Upload, ApiError> {
    let mut fields = Fields::from_body(body)?;
    let purpose = fields.string(PURPOSE_FIELD, NAME_BYTES_MAX)?;
    let filename = fields.string("filename", NAME_BYTES_MAX)?;
    let content = match fields.required("content")? {
        Value::String(content) => content,
        other => return Err(wrong_type("content".into(), "a string", &other)),
    };
    fields.finish(&NOT_DONE)?;
    upload(purpose, filename, content)
}

fn upload(purpose: Option<String>, filename: Option<String>, content: String) -> Result<Upload, ApiError> {
    match purpose.as_deref() {
        Some(PURPOSE) => Ok(Upload { filename: filename.unwrap_or_else(|| "batch.jsonl".to_owned()), content }),
        None => Err(ApiError::for_field("missing_field", PURPOSE_FIELD, "`purpose` is required")),
        Some(_) => {
            let message = "`purpose` must be `batch`; files for anything else are not supported by this agent";
            Err(ApiError::for_field("unsupported_field", PURPOSE_FIELD, message))
        }
    }
}

fn of_form(body: &[u8]) -> Result<Upload, ApiError> {
    let (mut purpose, mut file) = (None, None);
    for part in parts(body)? {
        let Part { name, filename, content } = part?;
        let is_again = match name.as_str() {
            PURPOSE_FIELD => purpose.replace(text(PURPOSE_FIELD, content)?).is_some(),
            FILE_FIELD => file.replace((filename, text(FILE_FIELD, content)?)).is_some(),
            name if NOT_DONE.contains(&name) => {
                let message = format!("`{name}` is not supported by this agent; leave it out");
                return Err(ApiError::for_field("unsupported_field", name, message));
            }
            name => {
                let message = format!("`{name}` is not a field of this request");
                return Err(ApiError::for_field("unknown_field", name, message));
            }
        };
        if is_again {
            return Err(broken(format!("`{name}` is in it twice")));
        }
    }
    let (filename, content) =
        file.ok_or_else(|| ApiError::for_field("missing_field", FILE_FIELD, "`file` is required"))?;
    upload(purpose, filename, content)
}

fn text(field: &str, content: &[u8]) -> Result<String, ApiError> {
    let text = std::str::from_utf8(content);
    let text = text.map_err(|e| ApiError::for_field("invalid_value", field, format!("`{field}` is not UTF-8: {e}")))?;
    Ok(text.to_owned())
}

fn broken(why: impl std::fmt::Display) -> ApiError {
    ApiError::for_bad_request("invalid_form", format!("the body is not a form as of RFC 7578: {why}"))
}

struct Part<'a> {
    name: String,
    filename: Option<String>,
    content: &'a [u8],
}

/// The parts of a form, whose first line is its delimiter.
fn parts(body: &[u8]) -> Result<impl Iterator<Item = Result<Part<'_>, ApiError>>, ApiError> {
    // RFC 2046: a boundary has at most 70 characters.
    let end = position(&body[..body.len().min(74)], b"\r\n").ok_or_else(|| broken("its delimiter has no end"))?;
    let between = [b"\r\n", &body[..end]].concat();
    let mut rest = &body[end..];
    let mut is_over = false;
    Ok(std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        let part = part(&mut rest, &between, &mut is_over);
        is_over |= part.is_err();
        part.transpose()
    }))
}

/// The part after a delimiter: `rest` begins where that ends.
fn part<'a>(rest: &mut &'a [u8], between: &[u8], is_over: &mut bool) -> Result<Option<Part<'a>>, ApiError> {
    if rest.starts_with(b"--") {
        *is_over = true;
        return Ok(None);
    }
    let after = rest.strip_prefix(b"\r\n").ok_or_else(|| broken("a delimiter does not end its line"))?;
    let head_end = position(&after[..after.len().min(HEAD_BYTES_MAX)], b"\r\n\r\n");
    let head_end = head_end.ok_or_else(|| broken("a part's head has no end"))?;
    let head = std::str::from_utf8(&after[..head_end]).map_err(|_| broken("a part's head is not UTF-8"))?;
    let after = &after[head_end + 4..];
    let content_end = position(after, between).ok_or_else(|| broken("a part has no end"))?;
    let (content, after) = after.split_at(content_end);
    *rest = &after[between.len()..];
    let disposition = head
        .split("\r\n")
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-disposition"))
        .map(|(_, value)| value)
        .ok_or_else(|| broken("a part has no name"))?;
    let name = quoted(disposition, "name").ok_or_else(|| broken("a part has no name"))?;
    Ok(Some(Part { name, filename: quoted(disposition, "filename"), content }))
}

/// A parameter of `Content-Disposition`, cut to what a name may have.
fn quoted(disposition: &str, parameter: &str) -> Option<String> {
    let mut parameters = disposition.split(';').map(str::trim);
    let value = parameters.find_map(|one| one.strip_prefix(parameter)?.strip_prefix('='))?;
    Some(value.trim_matches('"').chars().take(NAME_BYTES_MAX / 4).collect())
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(parts: &[(&str, &str)]) -> Vec<u8> {
        let part = |(head, content): &(&str, &str)| {
            format!("--aB3\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n")
        };
        let parts: String = parts.iter().map(part).collect();
        format!("{parts}--aB3--\r\n").into_bytes()
    }

    #[test]
    fn a_form_and_its_json_are_the_same_file() {
        let content = "{\"a\": \"--aB3\"}\n{\"b\": 1}\r\n";
        let file = "name=\"file\"; filename=\"night.jsonl\"\r\nContent-Type: application/octet-stream";
        let sent = form(&[("name=\"purpose\"", "batch"), (file, content)]);
        let upload = Upload::parse(&sent).unwrap();
        assert_eq!((upload.filename.as_str(), upload.content.as_str()), ("night.jsonl", content));
        assert_eq!(Upload::parse(upload.to_json().to_string().as_bytes()).unwrap(), upload);
        // In whatever order.
        assert_eq!(Upload::parse(&form(&[(file, content), ("name=\"purpose\"", "batch")])).unwrap(), upload);
    }

    #[test]
    fn what_is_wrong_is_said_by_name() {
        let refused = |body: &[u8]| {
            let error = Upload::parse(body).unwrap_err();
            (error.status, error.code, error.param.unwrap_or_default())
        };
        let (purpose, file) = (("name=\"purpose\"", "batch"), ("name=\"file\"", "{}"));
        let named = |code, field: &str| (400, code, field.to_owned());
        assert_eq!(refused(&form(&[file])), named("missing_field", "purpose"));
        assert_eq!(refused(&form(&[purpose])), named("missing_field", "file"));
        assert_eq!(refused(&form(&[("name=\"purpose\"", "vision"), file])), named("unsupported_field", "purpose"));
        let kept = ("name=\"expires_after[anchor]\"", "created_at");
        assert_eq!(refused(&form(&[purpose, file, kept])), named("unsupported_field", "expires_after[anchor]"));
        assert_eq!(refused(&form(&[purpose, file, ("name=\"x\"", "1")])), named("unknown_field", "x"));
        assert_eq!(refused(&form(&[purpose, purpose, file])), named("invalid_form", ""));
        assert_eq!(refused(br#"{"purpose":"batch","content":7}"#), named("wrong_type", "content"));
        let whole = form(&[purpose, file]);
        for end in [2, 4, 9, 40, 60, whole.len() - 12] {
            assert_eq!(refused(&whole[..end]), named("invalid_form", ""), "cut off at {end}");
        }
        let [before, after] = [&whole[..60], &whole[60..]];
        assert_eq!(refused(&[before, b"\xff", after].concat()).0, 400, "never a panic");
    }
}
