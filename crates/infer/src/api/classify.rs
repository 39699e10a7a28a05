//! `POST /v1/classify`: which label fits a text best, by how near vectors are. OpenAI has no such route; `inputs`,
//! `examples` and the answer's `classifications` are the words of Cohere's.
//!
//! By vectors and not by the chat model: where there are six labels, 135 million parameters choose hardly better than
//! chance, whether by an answer held to the labels or by each label's probability, and take far longer
//! (docs/decisions/0040).

use serde_json::{Map, Value, json};

use super::embeddings::{number, texts};
use super::settings::model_name;
use super::strict::{Fields, out_of_range, wrong_type};
use super::{ApiError, NAME_BYTES_MAX, with_extra};

pub const ROUTE: &str = "POST /v1/classify";

/// Most texts of one request. A choice: each has the price of a call, and all together must fit a call's ceiling.
pub const INPUTS_MAX: usize = 32;
/// Most labels. A choice.
pub const LABELS_MAX: usize = 32;
/// Most examples, all labels together. A choice.
pub const EXAMPLES_MAX: usize = 64;

/// A label and what stands for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    /// 1 to [`NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// What texts are held against: the name, with the description where there is one.
    pub meaning: String,
}

/// A request whose every field was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassifyRequest {
    pub model: String,
    /// At least one, and none empty.
    pub inputs: Vec<String>,
    /// 1 to [`LABELS_MAX`], each name once.
    pub labels: Vec<Label>,
    /// Texts, each with the place of its label.
    pub examples: Vec<(String, usize)>,
    pub user: Option<String>,
}

impl ClassifyRequest {
    /// Reads a body. Every error is a 400 that names the field.
    pub fn parse(body: &[u8]) -> Result<ClassifyRequest, ApiError> {
        let mut fields = Fields::from_body(body)?;
        let model = model_name(&mut fields)?;
        let inputs = match fields.required("inputs")? {
            Value::Array(list) if list.len() > INPUTS_MAX => {
                return Err(out_of_range(
                    "inputs".into(),
                    format!("at most {INPUTS_MAX} texts long, not {}", list.len()),
                ));
            }
            list @ Value::Array(_) => texts("inputs", list)?.0,
            other => return Err(wrong_type("inputs".into(), "a list", &other)),
        };
        let labels = labels(fields.required("labels")?)?;
        let examples = fields.take("examples").map(|value| examples(value, &labels)).transpose()?.unwrap_or_default();
        let user = fields.string("user", NAME_BYTES_MAX)?;
        fields.finish(&[])?;
        Ok(ClassifyRequest { model, inputs, labels, examples, user })
    }

    /// What vectors are made of: the texts, then what stands for the labels, then the examples.
    pub fn texts(&self) -> Vec<String> {
        let labels = self.labels.iter().map(|label| &label.meaning);
        self.inputs.iter().chain(labels).chain(self.examples.iter().map(|(text, _)| text)).cloned().collect()
    }

    /// What decides, without the texts themselves.
    pub fn question(&self) -> Classes {
        Classes {
            inputs: self.inputs.clone(),
            labels: self.labels.iter().map(|label| label.name.clone()).collect(),
            examples: self.examples.iter().map(|(_, label)| *label).collect(),
        }
    }
}

/// Names, or objects with a name and a description.
fn labels(value: Value) -> Result<Vec<Label>, ApiError> {
    let list = match value {
        Value::Array(list) => list,
        other => return Err(wrong_type("labels".into(), "a list", &other)),
    };
    if !(1..=LABELS_MAX).contains(&list.len()) {
        let wanted = format!("1 to {LABELS_MAX} labels long, not {}", list.len());
        return Err(out_of_range("labels".into(), wanted));
    }
    let mut labels: Vec<Label> = Vec::new();
    for (at, value) in list.into_iter().enumerate() {
        let field = format!("labels[{at}]");
        let label = match value {
            Value::String(name) => Label { meaning: name.clone(), name },
            value @ Value::Object(_) => {
                let mut fields = Fields::from_value(field.clone(), value)?;
                let name = some_string(&mut fields, "name")?;
                let description = fields.string("description", NAME_BYTES_MAX)?;
                fields.finish(&[])?;
                let meaning = description.map_or_else(|| name.clone(), |description| format!("{name}: {description}"));
                Label { name, meaning }
            }
            other => return Err(wrong_type(field, "a string or an object", &other)),
        };
        if label.name.is_empty() || label.name.len() > NAME_BYTES_MAX {
            let wanted = format!("1 to {NAME_BYTES_MAX} bytes long, not {}", label.name.len());
            return Err(out_of_range(field, wanted));
        }
        if labels.iter().any(|other| other.name == label.name) {
            return Err(out_of_range(field, "another name than the labels before it".into()));
        }
        labels.push(label);
    }
    Ok(labels)
}

fn examples(value: Value, labels: &[Label]) -> Result<Vec<(String, usize)>, ApiError> {
    let list = match value {
        Value::Array(list) => list,
        other => return Err(wrong_type("examples".into(), "a list", &other)),
    };
    if list.len() > EXAMPLES_MAX {
        return Err(out_of_range("examples".into(), format!("at most {EXAMPLES_MAX} long, not {}", list.len())));
    }
    let one = |(at, value)| {
        let mut fields = Fields::from_value(format!("examples[{at}]"), value)?;
        let text = match fields.required("text")? {
            Value::String(text) if !text.is_empty() => text,
            Value::String(_) => return Err(out_of_range(fields.name("text"), "at least one character long".into())),
            other => return Err(wrong_type(fields.name("text"), "a string", &other)),
        };
        let (name, label) = (fields.name("label"), some_string(&mut fields, "label")?);
        fields.finish(&[])?;
        let place = labels.iter().position(|known| known.name == label);
        Ok((text, place.ok_or_else(|| out_of_range(name, "one of the `labels`".into()))?))
    };
    list.into_iter().enumerate().map(one).collect()
}

fn some_string(fields: &mut Fields, field: &str) -> Result<String, ApiError> {
    let name = fields.name(field);
    fields
        .string(field, NAME_BYTES_MAX)?
        .ok_or_else(|| ApiError::for_field("missing_field", &name, format!("`{name}` is required")))
}

/// The texts, the labels' names, and which label each example has.
#[derive(Clone, Debug, PartialEq)]
pub struct Classes {
    pub inputs: Vec<String>,
    pub labels: Vec<String>,
    pub examples: Vec<usize>,
}

impl Classes {
    /// What an error calls the text with this number of [`ClassifyRequest::texts`].
    pub fn name_of(&self, at: usize) -> String {
        let label = at.checked_sub(self.inputs.len());
        match (label, label.and_then(|label| label.checked_sub(self.labels.len()))) {
            (None, _) => format!("inputs[{at}]"),
            (Some(label), None) => format!("labels[{label}]"),
            (_, Some(example)) => format!("examples[{example}].text"),
        }
    }

    /// Of each text, each label's score: the cosine, −1 to 1, of the text's vector and the label's, which is the mean
    /// of its examples' vectors where it has any, else that of its meaning. `vectors` of [`ClassifyRequest::texts`],
    /// each of length 1.
    pub fn scores(&self, vectors: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let (inputs, rest) = vectors.split_at(self.inputs.len().min(vectors.len()));
        let (meanings, examples) = rest.split_at(self.labels.len().min(rest.len()));
        let centre = |(label, meaning): (usize, &Vec<f32>)| {
            let own = self.examples.iter().zip(examples).filter(|(of, _)| **of == label);
            let mut sum = vec![0.0; meaning.len()];
            let mut any = false;
            for (_, vector) in own {
                any = true;
                sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += value);
            }
            let centre = if any { sum } else { meaning.clone() };
            let length = dot(&centre, &centre).sqrt();
            // Examples that cancel each other out have no direction: then nothing is near.
            if length > 0.0 { centre.iter().map(|value| value / length).collect() } else { centre }
        };
        let centres: Vec<Vec<f32>> = meanings.iter().enumerate().map(centre).collect();
        let of = |input: &Vec<f32>| centres.iter().map(|centre| dot(input, centre).clamp(-1.0, 1.0)).collect();
        inputs.iter().map(of).collect()
    }
}

fn dot(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

/// The place of the highest score, and of equals the one that came first.
pub fn best(scores: &[f32]) -> usize {
    let higher = |best: usize, at: usize| match (scores.get(best), scores.get(at)) {
        (Some(high), Some(score)) if score.total_cmp(high).is_gt() => at,
        _ => best,
    };
    (0..scores.len()).fold(0, higher)
}

/// What a receipt's digest is taken of: all scores in the order of the texts and then of the labels, 32 bits each,
/// little endian.
pub fn score_bytes(scores: &[Vec<f32>]) -> Vec<u8> {
    scores.iter().flatten().flat_map(|score| score.to_le_bytes()).collect()
}

/// Builds the answer.
#[derive(Clone, Debug)]
pub struct ClassifyReply {
    /// `cls-…`
    pub id: String,
    /// The model that answered.
    pub model: String,
}

impl ClassifyReply {
    /// `extra` is added at the top.
    pub fn whole(
        &self,
        classes: &Classes,
        scores: &[Vec<f32>],
        prompt_tokens: u32,
        extra: Map<String, Value>,
    ) -> Value {
        let one = |(at, (input, scores)): (usize, (&String, &Vec<f32>))| {
            let labels: Map<String, Value> = classes
                .labels
                .iter()
                .zip(scores)
                .map(|(label, score)| (label.clone(), json!({"score": number(*score)})))
                .collect();
            let prediction = classes.labels.get(best(scores));
            json!({"index": at, "input": input, "prediction": prediction, "labels": labels})
        };
        let classifications: Vec<Value> = classes.inputs.iter().zip(scores).enumerate().map(one).collect();
        let usage = json!({"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens});
        let answer = json!({
            "id": self.id,
            "object": "list",
            "model": self.model,
            "classifications": classifications,
            "usage": usage,
        });
        with_extra(answer, extra)
    }
}

#[cfg(test)]
mod tests;
