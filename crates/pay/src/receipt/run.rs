//! How an answer was made: what somebody needs beside the request to make it again.
//!
//! A JSON object in canonical form (RFC 8785, of objects, texts and integers alone), whose sha2-256 the receipt signs.
//! The signed receipt stays small, and the object stands beside it in its JSON. What it says is `infer::Run`'s matter:
//! here it is text.

use super::Error;
use crate::scheme::exact::Hash;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The digest, and the object where it is known. Two are equal when their digests are.
#[derive(Debug, Clone, Default)]
pub struct Run {
    digest: Hash,
    text: Option<String>,
}

impl PartialEq for Run {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Run {}

impl Run {
    /// Of an object in canonical form. The empty text: nothing was run that could be run again.
    pub fn of(canonical: &str) -> Self {
        if canonical.is_empty() {
            return Self::default();
        }
        Self { digest: Sha256::digest(canonical).into(), text: Some(canonical.to_owned()) }
    }

    /// Where only the digest is known.
    pub(super) fn digest_of(digest: Hash) -> Self {
        Self { digest, text: None }
    }

    /// An object that stood beside its digest; refused where the digest is another's.
    pub(super) fn read(digest: Hash, object: Option<Value>) -> Result<Self, Error> {
        let Some(object) = object else { return Ok(Self::digest_of(digest)) };
        if !object.is_object() {
            return Err(Error("run: not an object".into()));
        }
        let run = Self::of(&canonical(&object)?);
        if run.digest != digest {
            return Err(Error("run: its sha2-256 is not run_sha256, so it is not what was signed".into()));
        }
        Ok(run)
    }

    /// sha2-256; zero where nothing can be run again.
    pub fn digest(&self) -> Hash {
        self.digest
    }

    /// The object in canonical form.
    pub fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    pub(super) fn to_json(&self) -> Option<Value> {
        // What is no JSON stands in no receipt: its digest alone does.
        self.text.as_deref().and_then(|text| serde_json::from_str(text).ok())
    }
}

/// RFC 8785 for what a run is made of: keys in order, no blanks. Fractions are refused, as nothing here has any.
fn canonical(value: &Value) -> Result<String, Error> {
    Ok(match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            // By bytes, which is RFC 8785's order for all names below U+10000.
            fields.sort_by_key(|(name, _)| name.as_str());
            let fields = fields
                .into_iter()
                .map(|(name, value)| Ok(format!("{}:{}", Value::from(name.as_str()), canonical(value)?)));
            format!("{{{}}}", fields.collect::<Result<Vec<_>, Error>>()?.join(","))
        }
        Value::String(_) => value.to_string(),
        Value::Number(number) if number.is_u64() => value.to_string(),
        other => return Err(Error(format!("run: {other} is neither an object nor a text nor an integer"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn order_and_blanks_say_nothing_and_all_else_is_signed() {
        let text = r#"{"a":{"x":"é\n\"","y":7},"b":"1"}"#;
        let run = Run::of(text);
        let read = |object: &str| Run::read(run.digest(), Some(serde_json::from_str(object).unwrap()));
        let back = read("{ \"b\": \"1\",\n \"a\": {\"y\": 7, \"x\": \"\\u00e9\\n\\\"\"} }").unwrap();
        assert_eq!((back.text(), &back), (Some(text), &run));
        for altered in [r#"{"a":{"x":"é\n\"","y":8},"b":"1"}"#, r#"{"b":"1"}"#, r#""b""#, r#"{"b":1.5}"#, "{}"] {
            assert!(read(altered).is_err(), "{altered}");
        }
        assert_eq!(Run::read(run.digest(), None).unwrap().text(), None);
        assert_eq!(Run::of("").digest(), [0; 32]);
        assert_eq!(
            canonical(&json!({"b": [1]})).unwrap_err().to_string(),
            "run: [1] is neither an object nor a text nor an integer"
        );
    }
}
