//! The embedding model as llama.cpp reads it: a BERT from a safetensors file, written as GGUF with 8 bits a weight.
//!
//! The registries have the published weights and no GGUF of them, so it is made here; the result is named by its hash,
//! so a change in this file shows. Formats: `docs/gguf.md` of ggml; the tensors' names and the spelling of the
//! vocabulary are those of llama.cpp's own converter (class `BertModel`).

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Tensors begin at multiples of this many bytes.
const ALIGNMENT: usize = 32;
/// Weights that share one scale.
const BLOCK: usize = 32;
/// GGUF's numbers for types of values.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
/// ggml's numbers for types of tensors.
const TENSOR_F32: u32 = 0;
const TENSOR_Q8_0: u32 = 8;
/// llama.cpp's number for a file that is mostly `Q8_0`, and for means over a text's tokens.
const FILE_Q8_0: u32 = 7;
const POOLING_MEAN: u32 = 1;

/// What the model is called and was made with.
pub struct Bert {
    pub name: &'static str,
    pub licence: &'static str,
    pub heads: u32,
    pub layer_norm_epsilon: f32,
}

/// Writes `out` from the weights and the vocabulary, one word a line. Equal input gives equal bytes.
pub fn from_bert(bert: &Bert, safetensors: &Path, vocabulary: &Path, out: &Path) -> Result<()> {
    let bytes = fs::read(safetensors).with_context(|| format!("cannot read {}", safetensors.display()))?;
    let words = fs::read_to_string(vocabulary).with_context(|| format!("cannot read {}", vocabulary.display()))?;
    let file = write(bert, &bytes, &words).with_context(|| format!("{} is no BERT", safetensors.display()))?;
    fs::write(out, file).with_context(|| format!("cannot write {}", out.display()))
}

fn write(bert: &Bert, safetensors: &[u8], words: &str) -> Result<Vec<u8>> {
    let source = Safetensors::read(safetensors)?;
    let names = source.names();
    let embd = source.shape("embeddings.word_embeddings.weight")?;
    let (vocabulary, width) = (embd[0], embd[1]);
    let words: Vec<&str> = words.lines().collect();
    ensure!(words.len() == vocabulary, "{} words for {vocabulary} rows", words.len());
    let layers =
        (0..).take_while(|i| names.iter().any(|name| name.starts_with(&format!("encoder.layer.{i}.")))).count();
    let deep = source.shape("encoder.layer.0.intermediate.dense.weight")?[0];
    let positions = source.shape("embeddings.position_embeddings.weight")?[0];
    let types = source.shape("embeddings.token_type_embeddings.weight")?[0];
    let int = |number: usize| u32::try_from(number).context("a number of the model is too large");

    let mut about = Pairs::default();
    about.text("general.architecture", "bert");
    about.text("general.name", bert.name);
    about.text("general.license", bert.licence);
    about.number("general.file_type", FILE_Q8_0);
    about.number("general.quantization_version", 2);
    about.number("bert.block_count", int(layers)?);
    about.number("bert.context_length", int(positions)?);
    about.number("bert.embedding_length", int(width)?);
    about.number("bert.feed_forward_length", int(deep)?);
    about.number("bert.attention.head_count", bert.heads);
    about.key("bert.attention.layer_norm_epsilon", F32).extend(bert.layer_norm_epsilon.to_le_bytes());
    about.key("bert.attention.causal", BOOL).push(0);
    about.number("bert.pooling_type", POOLING_MEAN);
    about.text("tokenizer.ggml.model", "bert");
    about.number("tokenizer.ggml.token_type_count", int(types)?);
    about.texts("tokenizer.ggml.tokens", words.iter().map(|word| spelled(word)));
    about.numbers("tokenizer.ggml.token_type", words.iter().map(|word| if is_control(word) { 3 } else { 1 }));
    for (key, word) in [
        ("unknown_token_id", "[UNK]"),
        ("seperator_token_id", "[SEP]"),
        ("padding_token_id", "[PAD]"),
        ("cls_token_id", "[CLS]"),
        ("mask_token_id", "[MASK]"),
    ] {
        let at =
            words.iter().position(|other| *other == word).with_context(|| format!("no {word} in the vocabulary"))?;
        about.number(&format!("tokenizer.ggml.{key}"), int(at)?);
    }

    let (mut infos, mut data, mut count) = (Vec::new(), Vec::new(), 0u64);
    for name in names {
        let Some(new) = renamed(name) else { continue };
        let shape = source.shape(name)?;
        let values = source.floats(name)?;
        // Matrices are compressed; the few vectors, and what is added once a token, are not worth it.
        let is_matrix = shape.len() == 2 && !matches!(new.as_str(), "position_embd.weight" | "token_types.weight");
        ensure!(!is_matrix || shape[1].is_multiple_of(BLOCK), "{name}: rows of {} weights", shape[1]);
        string(&mut infos, &new);
        infos.extend(int(shape.len())?.to_le_bytes());
        for dimension in shape.iter().rev() {
            infos.extend(u64::try_from(*dimension)?.to_le_bytes());
        }
        infos.extend(if is_matrix { TENSOR_Q8_0 } else { TENSOR_F32 }.to_le_bytes());
        infos.extend(u64::try_from(data.len())?.to_le_bytes());
        if is_matrix {
            values.chunks_exact(BLOCK).for_each(|block| quantized(block, &mut data));
        } else {
            values.iter().for_each(|value| data.extend(value.to_le_bytes()));
        }
        pad(&mut data);
        count += 1;
    }
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend(count.to_le_bytes());
    file.extend(about.count.to_le_bytes());
    file.extend(about.bytes);
    file.extend(infos);
    pad(&mut file);
    file.extend(data);
    Ok(file)
}

/// The name that llama.cpp gives a tensor. `None`: it computes what this holds, or has no use for it.
fn renamed(name: &str) -> Option<String> {
    let fixed = |new: &str| Some(new.to_owned());
    if let Some(rest) = name.strip_prefix("encoder.layer.") {
        let (layer, rest) = rest.split_once('.')?;
        let (part, kind) = rest.rsplit_once('.')?;
        let part = match part {
            "attention.self.query" => "attn_q",
            "attention.self.key" => "attn_k",
            "attention.self.value" => "attn_v",
            "attention.output.dense" => "attn_output",
            "attention.output.LayerNorm" => "attn_output_norm",
            "intermediate.dense" => "ffn_up",
            "output.dense" => "ffn_down",
            "output.LayerNorm" => "layer_output_norm",
            _ => return None,
        };
        return Some(format!("blk.{layer}.{part}.{kind}"));
    }
    match name {
        "embeddings.word_embeddings.weight" => fixed("token_embd.weight"),
        "embeddings.position_embeddings.weight" => fixed("position_embd.weight"),
        "embeddings.token_type_embeddings.weight" => fixed("token_types.weight"),
        "embeddings.LayerNorm.weight" => fixed("token_embd_norm.weight"),
        "embeddings.LayerNorm.bias" => fixed("token_embd_norm.bias"),
        _ => None,
    }
}

fn is_control(word: &str) -> bool {
    matches!(word, "[PAD]" | "[UNK]" | "[CLS]" | "[SEP]" | "[MASK]")
}

/// BERT marks what goes on with a word by `##`; llama.cpp marks what begins one.
fn spelled(word: &str) -> String {
    match word.strip_prefix("##") {
        _ if is_control(word) => word.to_owned(),
        Some(rest) => rest.to_owned(),
        None => format!("\u{2581}{word}"),
    }
}

/// One block of `Q8_0`: a scale of 16 bits, then a signed byte a weight, as ggml's reference rounds them: at most 127
/// by the scale, so the cast loses nothing.
fn quantized(block: &[f32], to: &mut Vec<u8>) {
    let most = block.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let scale = most / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    to.extend(half(scale).to_le_bytes());
    to.extend(block.iter().map(|value| ((value * inverse).round() as i8).cast_unsigned()));
}

/// A non-negative number below 65,520 in IEEE 754's 16 bits, rounded to nearest, ties to even.
fn half(value: f32) -> u16 {
    let bits = value.to_bits();
    let (exponent, fraction) = (bits >> 23, bits & 0x7f_ffff);
    // Below 2^-14 a half has no leading one, and the fraction is shifted out; below 2^-25 nothing is left.
    let (kept, cut) = match exponent {
        0..102 => return 0,
        102..113 => (fraction | 0x80_0000, 126 - exponent),
        _ => ((exponent - 112) << 23 | fraction, 13),
    };
    let (whole, rest, tie) = (kept >> cut, kept & ((1 << cut) - 1), 1 << (cut - 1));
    let up = rest > tie || (rest == tie && whole & 1 == 1);
    u16::try_from(whole + u32::from(up)).unwrap_or(0x7c00)
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
}

fn string(to: &mut Vec<u8>, text: &str) {
    to.extend(u64::try_from(text.len()).unwrap_or(u64::MAX).to_le_bytes());
    to.extend(text.as_bytes());
}

/// GGUF's metadata.
#[derive(Default)]
struct Pairs {
    bytes: Vec<u8>,
    count: u64,
}

impl Pairs {
    /// The value follows in the returned bytes.
    fn key(&mut self, key: &str, kind: u32) -> &mut Vec<u8> {
        self.count += 1;
        string(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
        &mut self.bytes
    }

    fn text(&mut self, key: &str, value: &str) {
        string(self.key(key, STRING), value);
    }

    fn number(&mut self, key: &str, value: u32) {
        self.key(key, U32).extend(value.to_le_bytes());
    }

    fn array(&mut self, key: &str, kind: u32, length: usize) -> &mut Vec<u8> {
        let to = self.key(key, ARRAY);
        to.extend(kind.to_le_bytes());
        to.extend(u64::try_from(length).unwrap_or(u64::MAX).to_le_bytes());
        to
    }

    fn texts(&mut self, key: &str, values: impl ExactSizeIterator<Item = String>) {
        let to = self.array(key, STRING, values.len());
        values.for_each(|value| string(to, &value));
    }

    fn numbers(&mut self, key: &str, values: impl ExactSizeIterator<Item = i32>) {
        let to = self.array(key, I32, values.len());
        values.for_each(|value| to.extend(value.to_le_bytes()));
    }
}

/// A file of tensors: the length of a JSON object, the object, and the numbers.
struct Safetensors<'a> {
    about: serde_json::Map<String, Value>,
    data: &'a [u8],
}

impl<'a> Safetensors<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self> {
        let (length, rest) = bytes.split_first_chunk::<8>().context("it is cut off")?;
        let length = usize::try_from(u64::from_le_bytes(*length))?;
        let (about, data) = rest.split_at_checked(length).context("it is cut off")?;
        match serde_json::from_slice(about)? {
            Value::Object(about) => Ok(Self { about, data }),
            _ => bail!("its head is not a JSON object"),
        }
    }

    /// Of the tensors, in the order of their bytes.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> =
            self.about.keys().map(String::as_str).filter(|name| *name != "__metadata__").collect();
        names.sort_by_key(|name| self.about[*name]["data_offsets"][0].as_u64());
        names
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>> {
        let shape = self.about.get(name).and_then(|about| about["shape"].as_array());
        let shape = shape.with_context(|| format!("there is no tensor {name}"))?;
        shape.iter().map(|d| Ok(usize::try_from(d.as_u64().context("a dimension is no number")?)?)).collect()
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let about = &self.about[name];
        ensure!(about["dtype"] == "F32", "{name} is of type {}; F32 is known", about["dtype"]);
        let at = |i: usize| about["data_offsets"][i].as_u64().and_then(|at| usize::try_from(at).ok());
        let range = at(0).zip(at(1)).with_context(|| format!("{name} lies nowhere"))?;
        let bytes = self.data.get(range.0..range.1).with_context(|| format!("{name} is cut off"))?;
        let count: usize = self.shape(name)?.iter().product();
        ensure!(bytes.len() == 4 * count, "{name} has {} bytes for {count} numbers", bytes.len());
        let (numbers, _) = bytes.as_chunks::<4>();
        Ok(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_rounded_to_nearest_and_ties_to_even() {
        let cases: [(f32, u16); 10] = [
            (0.0, 0),
            (1.0, 0x3c00),
            (0.1, 0x2e66),
            (65_504.0, 0x7bff),
            (1.000_488_3, 0x3c00), // Halfway, down to even.
            (1.001_464_8, 0x3c02), // Halfway, up to even.
            (6.103_515_6e-5, 0x0400),
            (6.097_555e-5, 0x03ff),
            (5.960_464_5e-8, 0x0001),
            (2.980_232_2e-8, 0x0000),
        ];
        for (value, expected) in cases {
            assert_eq!(half(value), expected, "{value}");
        }
    }

    #[test]
    fn a_block_keeps_its_largest_weight_and_its_signs() {
        let block: Vec<f32> = (0i16..32).map(|i| f32::from(i - 16) / 16.0).collect();
        let mut bytes = Vec::new();
        quantized(&block, &mut bytes);
        assert_eq!(bytes.len(), 34);
        assert_eq!(bytes[..2], half(1.0 / 127.0).to_le_bytes());
        assert_eq!([bytes[2], bytes[18], bytes[33]].map(u8::cast_signed), [-127, 0, 119]);
        quantized(&[0.0; 32], &mut bytes);
        assert!(bytes[34..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn words_are_spelled_as_llama_cpp_expects() {
        assert_eq!(["[CLS]", "##ing", "go"].map(spelled), ["[CLS]", "ing", "\u{2581}go"]);
        assert_eq!(renamed("encoder.layer.5.output.LayerNorm.bias").as_deref(), Some("blk.5.layer_output_norm.bias"));
        assert_eq!(renamed("pooler.dense.weight"), None);
    }
}
