//! Reading a JSON object field by field, so that whatever is left over can be named.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::ApiError;

/// Most entries of `logit_bias`. OpenAI documents no bound of its own; a choice.
pub(super) const LOGIT_BIAS_MAX: usize = 1_024;
/// Longest JSON schema, in bytes. A choice: OpenAI allows 15,000 characters of names and values.
const SCHEMA_BYTES_MAX: usize = 64 << 10;
/// Most objects in all schemas of a request. 500 take 0.2 s to read on a busy machine, 3,000 take five (2026-11-28).
const SCHEMA_OBJECTS_MAX: usize = 512;
/// Most patterns and formats in a schema. Eight that must all match take 8 ms, twenty take minutes (2026-11-28).
const SCHEMA_PATTERNS_MAX: usize = 8;
/// Longest pattern, in bytes. A choice.
const SCHEMA_PATTERN_BYTES_MAX: usize = 256;
/// Deepest JSON schema, in levels of JSON, of which each level of data takes two. A frame to the engine may not be
/// deeper than 128, and OpenAI's own bound is 10 levels of data.
const SCHEMA_DEPTH_MAX: usize = 64;

/// An object of a request and where in the request it stands.
pub(super) struct Fields {
    /// Empty for the body itself, else such as `messages[2]`.
    path: String,
    left: Map<String, Value>,
}

impl Fields {
    /// The body of a request. Refuses a field that is given twice: readers disagree on which one counts.
    pub(super) fn from_body(body: &[u8]) -> Result<Fields, ApiError> {
        let Unique(value) = serde_json::from_slice(body).map_err(|error| {
            ApiError::for_bad_request("invalid_json", format!("the body is not valid JSON: {error}"))
        })?;
        Fields::from_value(String::new(), value)
    }

    /// An object inside of a request.
    pub(super) fn from_value(path: String, value: Value) -> Result<Fields, ApiError> {
        match value {
            Value::Object(left) => Ok(Fields { path, left }),
            other if path.is_empty() => Err(ApiError::for_bad_request(
                "invalid_json",
                format!("the body must be a JSON object, not {}", kind_of(&other)),
            )),
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// Full name of a field.
    pub(super) fn name(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    /// The field's value; `null` is the same as leaving it out, as everywhere in OpenAI's API.
    pub(super) fn take(&mut self, field: &str) -> Option<Value> {
        // `shift_remove` keeps the order of the rest, so that the first unknown field is the one that is named.
        self.left.shift_remove(field).filter(|value| !value.is_null())
    }

    pub(super) fn required(&mut self, field: &str) -> Result<Value, ApiError> {
        self.take(field).ok_or_else(|| {
            let name = self.name(field);
            ApiError::for_field("missing_field", &name, format!("`{name}` is required"))
        })
    }

    /// A text of at most `bytes_max` bytes.
    pub(super) fn string(&mut self, field: &str, bytes_max: usize) -> Result<Option<String>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) if text.len() <= bytes_max => Ok(Some(text)),
            Some(Value::String(text)) => {
                Err(out_of_range(self.name(field), format!("at most {bytes_max} bytes long, not {}", text.len())))
            }
            Some(other) => Err(wrong_type(self.name(field), "a string", &other)),
        }
    }

    pub(super) fn bool(&mut self, field: &str) -> Result<Option<bool>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(self.name(field), "true or false", &other)),
        }
    }

    /// A whole number from 1 up. 4,294,967,295 and more all mean "as many as there are".
    pub(super) fn count(&mut self, field: &str) -> Result<Option<u32>, ApiError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match value.as_u64() {
            Some(0) => Err(out_of_range(self.name(field), "at least 1, not 0".into())),
            Some(count) => Ok(Some(u32::try_from(count).unwrap_or(u32::MAX))),
            None if value.is_number() => {
                Err(out_of_range(self.name(field), format!("a whole number of at least 1, not {value}")))
            }
            None => Err(wrong_type(self.name(field), "a whole number", &value)),
        }
    }

    /// A number from 0 to `max`.
    pub(super) fn number(&mut self, field: &str, max: i8) -> Result<Option<f32>, ApiError> {
        self.number_within(field, 0, max)
    }

    /// A number in this range. JSON has neither NaN nor infinity, and the range excludes what overflows.
    pub(super) fn number_within(&mut self, field: &str, min: i8, max: i8) -> Result<Option<f32>, ApiError> {
        let name = self.name(field);
        self.take(field).map(|value| number(name, &value, min, max)).transpose()
    }

    /// A whole number from 0 to `max`.
    pub(super) fn count_within(&mut self, field: &str, max: u8) -> Result<Option<u8>, ApiError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match value.as_u64().and_then(|count| u8::try_from(count).ok()).filter(|count| *count <= max) {
            Some(count) => Ok(Some(count)),
            None if value.is_number() => {
                Err(out_of_range(self.name(field), format!("a whole number from 0 to {max}, not {value}")))
            }
            None => Err(wrong_type(self.name(field), "a whole number", &value)),
        }
    }

    /// A seed: any whole number of 64 bits; a negative one is taken by its bits.
    pub(super) fn seed(&mut self, field: &str) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        value
            .as_u64()
            .or_else(|| value.as_i64().map(i64::cast_unsigned))
            .map(Some)
            .ok_or_else(|| wrong_type(self.name(field), "a whole number of 64 bits", &value))
    }

    /// Lets a field through if its value asks for nothing that is not done here, else refuses it by name.
    pub(super) fn only(&mut self, field: &str, harmless: &[Value]) -> Result<(), ApiError> {
        match self.take(field) {
            None => Ok(()),
            Some(value) if harmless.iter().any(|other| same(other, &value)) => Ok(()),
            Some(_) if harmless.is_empty() => Err(self.refuse(field, "")),
            Some(_) => Err(self.refuse(field, " with this value")),
        }
    }

    /// [`Fields::only`] for each of these.
    pub(super) fn only_of_each(&mut self, harmless: &[(&str, Vec<Value>)]) -> Result<(), ApiError> {
        harmless.iter().try_for_each(|(field, values)| self.only(field, values))
    }

    fn refuse(&self, field: &str, how: &str) -> ApiError {
        let name = self.name(field);
        let message = format!("`{name}` is not supported by this agent{how}; leave it out");
        ApiError::for_field("unsupported_field", name, message)
    }

    /// Refuses whatever was not taken: `documented` fields as not done, all others as unknown.
    pub(super) fn finish(mut self, documented: &[&str]) -> Result<(), ApiError> {
        for field in documented {
            self.only(field, &[])?;
        }
        match self.left.keys().next() {
            None => Ok(()),
            Some(field) => {
                // A name can be as long as the body: the answer quotes only its beginning.
                let name: String = self.name(field).chars().take(100).collect();
                Err(ApiError::for_field("unknown_field", &name, format!("`{name}` is not a field of this request")))
            }
        }
    }
}

fn number(name: String, value: &Value, min: i8, max: i8) -> Result<f32, ApiError> {
    let Some(number) = value.as_f64() else {
        return Err(wrong_type(name, "a number", value));
    };
    if !(f64::from(min)..=f64::from(max)).contains(&number) {
        return Err(out_of_range(name, format!("from {min} to {max}, not {number}")));
    }
    // By its digits, because the way from f64 to f32 without `as` is not there. In range, so it cannot fail.
    Ok(number.to_string().parse().unwrap_or_default())
}

/// `logit_bias`: numbers of tokens, as texts, and what is added to their logits.
pub(super) fn logit_bias(value: Option<Value>) -> Result<Vec<(u32, f32)>, ApiError> {
    let entries = match value {
        None => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => return Err(wrong_type("logit_bias".into(), "an object", &other)),
    };
    if entries.len() > LOGIT_BIAS_MAX {
        let wanted = format!("at most {LOGIT_BIAS_MAX} entries long, not {}", entries.len());
        return Err(out_of_range("logit_bias".into(), wanted));
    }
    let mut biases = Vec::new();
    for (token, bias) in entries {
        let name: String = format!("logit_bias.{token}").chars().take(100).collect();
        // "+1" and "01" are the same token as "1", and two biases of one token are one too many.
        let number = token.parse().ok().filter(|number: &u32| number.to_string() == token);
        let number = number.ok_or_else(|| {
            let message = format!("`{name}`: the names in `logit_bias` are tokens' numbers");
            ApiError::for_field("out_of_range", &name, message)
        })?;
        biases.push((number, self::number(name, &bias, -100, 100)?));
    }
    Ok(biases)
}

/// Keywords of JSON schema that are refused, as OpenAI refuses them: their cost cannot be bounded (twenty patterns in one
/// `allOf` took minutes), or grammars cannot say them.
const SCHEMA_REFUSED: [&str; 10] = [
    "allOf",
    "not",
    "if",
    "then",
    "else",
    "dependentRequired",
    "dependentSchemas",
    "patternProperties",
    "propertyNames",
    "unevaluatedProperties",
];

/// Refuses a JSON schema that is too large or too deep, or costs too much. The engine says whether it makes sense.
/// `size` is what the request has of schemas so far.
pub(super) fn schema(name: &str, value: &Value, size: &mut SchemaSize) -> Result<(), ApiError> {
    if !matches!(value, Value::Object(_)) {
        return Err(wrong_type(name.to_owned(), "an object", value));
    }
    let bytes = value.to_string().len();
    if bytes > SCHEMA_BYTES_MAX {
        return Err(out_of_range(name.to_owned(), format!("at most {SCHEMA_BYTES_MAX} bytes long, not {bytes}")));
    }
    if !is_within(value, SCHEMA_DEPTH_MAX) {
        return Err(out_of_range(name.to_owned(), format!("at most {SCHEMA_DEPTH_MAX} levels deep")));
    }
    size.patterns = 0;
    size.add(value).map_err(|why| ApiError::for_field("invalid_schema", name, format!("`{name}`: {why}")))
}

/// What the schemas of a request have so far.
#[derive(Default)]
pub(super) struct SchemaSize {
    objects: usize,
    /// Of the last one alone: only patterns of one schema can have to match together.
    patterns: usize,
}

impl SchemaSize {
    fn add(&mut self, schema: &Value) -> Result<(), String> {
        let fields = match schema {
            Value::Object(fields) => fields,
            Value::Array(schemas) => return schemas.iter().try_for_each(|schema| self.add(schema)),
            _ => return Ok(()),
        };
        self.objects += 1;
        if self.objects > SCHEMA_OBJECTS_MAX {
            return Err(format!("the schemas of a request have at most {SCHEMA_OBJECTS_MAX} objects"));
        }
        for (keyword, value) in fields {
            match keyword.as_str() {
                // Data, not schemas.
                "enum" | "const" | "default" | "examples" => {}
                // Here the names are the customer's own.
                "properties" | "$defs" | "definitions" => {
                    if let Value::Object(named) = value {
                        named.values().try_for_each(|schema| self.add(schema))?;
                    }
                }
                "pattern" | "format" => {
                    self.patterns += 1;
                    if self.patterns > SCHEMA_PATTERNS_MAX {
                        return Err(format!("a schema has at most {SCHEMA_PATTERNS_MAX} patterns and formats"));
                    }
                    if value.as_str().is_some_and(|pattern| pattern.len() > SCHEMA_PATTERN_BYTES_MAX) {
                        return Err(format!("a pattern is at most {SCHEMA_PATTERN_BYTES_MAX} bytes long"));
                    }
                }
                refused if SCHEMA_REFUSED.contains(&refused) => {
                    return Err(format!("`{refused}` is not supported by this agent"));
                }
                _ => self.add(value)?,
            }
        }
        Ok(())
    }
}

fn is_within(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels > 0 && items.iter().all(|item| is_within(item, levels - 1)),
        Value::Object(fields) => levels > 0 && fields.values().all(|field| is_within(field, levels - 1)),
        _ => true,
    }
}

/// Numbers compare by value: `1` and `1.0` ask for the same.
fn same(one: &Value, other: &Value) -> bool {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

pub(super) fn wrong_type(name: String, wanted: &str, got: &Value) -> ApiError {
    let message = format!("`{name}` must be {wanted}, not {}", kind_of(got));
    ApiError::for_field("wrong_type", name, message)
}

pub(super) fn out_of_range(name: String, wanted: String) -> ApiError {
    let message = format!("`{name}` must be {wanted}");
    ApiError::for_field("out_of_range", name, message)
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A JSON value no object of which names a field twice. `serde_json::Value` keeps the last one in silence.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Unique, D::Error> {
        struct AnyValue;
        impl<'de> Visitor<'de> for AnyValue {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(Value::Number(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(Value::Number(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
            }
            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::String(value.to_owned()))
            }
            fn visit_string<E>(self, value: String) -> Result<Value, E> {
                Ok(Value::String(value))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(Unique(item)) = items.next_element()? {
                    list.push(item);
                }
                Ok(Value::Array(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
                let mut map = Map::new();
                while let Some((name, Unique(value))) = entries.next_entry::<String, Unique>()? {
                    if map.contains_key(&name) {
                        let name: String = name.chars().take(100).collect();
                        return Err(A::Error::custom(format_args!("field `{name}` is given twice")));
                    }
                    map.insert(name, value);
                }
                Ok(Value::Object(map))
            }
        }
        deserializer.deserialize_any(AnyValue).map(Unique)
    }
}
