//! The frames between a node and its engine.
//!
//! A frame is its length in bytes (u32, little endian) and one JSON object of that length. Both
//! sides parse strictly: a field or a kind that one of them does not know is an error, because the
//! two always come from one build (a lease names their code by one CID).
//!
//! JSON and not a binary format: a frame carries tens of bytes per token, and one can read a dump of it.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest frame either side accepts, in bytes. A request's body is at most 1 MiB; escaping its
/// control characters in JSON (`\u0000`) makes it at most six times longer.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// Longest part of a saved context in one frame, bytes; two characters stand for each.
pub const PART_BYTES_MAX: usize = 2 << 20;

/// Bytes of the length that precedes each frame.
pub const HEADER_BYTES: usize = 4;

/// What one request asks of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// The whole prompt, already rendered by the model's template. Text that spells a control token becomes that token.
    pub prompt: String,
    /// Whether the tokenizer puts the model's own first token before it; false where the template did.
    pub add_bos: bool,
    /// Most tokens to generate, at least 1. The context's end also ends an answer.
    pub max_tokens: u32,
    /// 0 is greedy: always the likeliest token, the first of equals. Finite, not negative.
    pub temperature: f32,
    /// Smallest set of likeliest tokens whose probabilities reach this is sampled from; 1 is all of them.
    pub top_p: f32,
    /// Only that many likeliest tokens are sampled from; 0 is all of them.
    pub top_k: u32,
    /// Tokens less likely than this part of the likeliest are not sampled from; 0 keeps all of them.
    pub min_p: f32,
    /// Taken off the logit of a token for each time that the answer has it already.
    pub frequency_penalty: f32,
    /// Taken off the logit of a token that the answer has already.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens. Numbers beyond the vocabulary are ignored.
    pub logit_bias: Vec<(u32, f32)>,
    /// The engine has no chance of its own: equal seeds give equal answers.
    pub seed: u64,
    /// The answer ends before the first of these that appears in it. None is empty.
    pub stop: Vec<String>,
    /// How many alternatives are told of each token, beside its own probability; `None` tells nothing.
    pub logprobs: Option<u8>,
    /// What the answer must look like.
    pub grammar: Option<Grammar>,
    /// The adapter that the model has on: its place among those that the engine was started with. `None`: none.
    pub adapter: Option<u32>,
    /// Whether the engine may guess the next tokens and have several looked at in one step, where that pays. The answer is
    /// the same.
    pub lookup: bool,
}

/// What an answer must look like: only tokens that can still lead there are chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Grammar {
    /// JSON that satisfies this schema, in one line.
    JsonSchema(serde_json::Value),
    /// Text by a grammar in the Lark dialect of the crate `llguidance`.
    Lark(String),
}

/// How likely a token was, before temperature, penalties, bias and grammar.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenLogprob {
    /// A token's bytes need not be whole characters. A control token has none.
    pub bytes: Vec<u8>,
    /// Natural logarithm of the probability.
    pub logprob: f64,
    /// The likeliest tokens in this place, likeliest first.
    pub top: Vec<(Vec<u8>, f64)>,
}

/// Node to engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToEngine {
    /// Start an answer. `id` is the connection's own choice and must not be in use on it.
    Generate { id: u64, request: Generate },
    /// Stop it within one step. An id that is not running is ignored: it may just have ended.
    Cancel { id: u64 },
    /// How many tokens is this text (control tokens spelled in it count as one)? What is certainly longer than
    /// the context is not counted: the answer is then a lower bound, and itself at least the context.
    Tokenize { id: u64, text: String, add_bos: bool },
    /// Can an answer be held to this grammar?
    Check { id: u64, grammar: Grammar },
    /// A vector for each of these texts. At least one, and none empty. Only of a model with `dimensions`.
    Embed { id: u64, texts: Vec<String> },
    /// The context of this prompt's beginning, as far as a free slot holds it; what that slot holds beyond is dropped.
    Save { id: u64, prompt: String, add_bos: bool },
    /// A part of what was saved, in order; at the `last` one a free slot gets it. One at a time on a connection.
    Restore {
        id: u64,
        #[serde(with = "hexadecimal")]
        part: Vec<u8>,
        last: bool,
    },
}

/// What the engine says of itself, first on every connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// `general.name` of the model file, or the file's name.
    pub model_name: String,
    /// Tokens that one request may use, prompt and answer together.
    pub n_ctx: u32,
    /// The context the model was trained with, in tokens.
    pub n_ctx_train: u32,
    /// Size of the vocabulary: tokens have the numbers below it.
    pub n_vocab: u32,
    /// Requests that decode side by side.
    pub slots: u32,
    /// Adapters that a request can choose from.
    pub adapters: u32,
    /// How many numbers a vector has, of a model that turns texts into vectors and does nothing else. `None`: it answers.
    pub dimensions: Option<u32>,
    /// The model's own Jinja template, if its file has one.
    pub chat_template: Option<String>,
    /// Text of the tokens that open and close a sequence; empty where the model has none.
    pub bos: String,
    pub eos: String,
    /// Engine and library versions. Equal answers are promised only for equal build, `isa` and `threads`.
    pub engine_build: String,
    /// Instruction sets that the arithmetic was compiled for, such as `avx2,fma`.
    pub isa: String,
    pub threads: u32,
    /// What confines the engine, such as `landlock full, seccomp, rlimits`; for logs.
    pub confinement: String,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended its turn, or a stop string appeared.
    Stop,
    /// `max_tokens` or the context's end.
    Length,
    /// The node asked for it.
    Cancelled,
}

impl Generate {
    /// The plain continuation of a text: greedy, and free.
    pub fn greedy(prompt: impl Into<String>, max_tokens: u32) -> Generate {
        Generate {
            prompt: prompt.into(),
            add_bos: false,
            max_tokens,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            stop: Vec::new(),
            logprobs: None,
            grammar: None,
            adapter: None,
            lookup: true,
        }
    }
}

impl Finish {
    /// The word of OpenAI's `finish_reason`. Nobody is left to read the reason of a cancelled answer.
    pub fn as_str(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Cancelled => "cancelled",
        }
    }
}

/// Why there is no answer, by what the node does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The queue is full: try again in a moment (503).
    Busy,
    /// The engine's process ended: it comes back by itself, try again (503). Said by the client, never by the engine.
    EngineDied,
    /// The prompt does not leave room for one token: shorten it (400).
    TooLong,
    /// The grammar cannot be held to, or only with more work than a step may take: simplify it (400).
    Grammar,
    /// The request breaks the rules of this file: a bug of the node (500).
    Invalid,
    /// The model could not be run: file a bug (500).
    Internal,
    /// There is no such context to save, or these bytes are none that this engine goes on from: compute the prompt.
    State,
}

impl FailureKind {
    /// Whether the same request may well succeed a moment later.
    pub fn is_transient(self) -> bool {
        matches!(self, FailureKind::Busy | FailureKind::EngineDied)
    }

    /// The kind as the wire spells it, for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            FailureKind::Busy => "busy",
            FailureKind::EngineDied => "engine_died",
            FailureKind::TooLong => "too_long",
            FailureKind::Grammar => "grammar",
            FailureKind::Invalid => "invalid",
            FailureKind::Internal => "internal",
            FailureKind::State => "state",
        }
    }
}

/// Engine to node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromEngine {
    Hello(Hello),
    /// In the queue; comes once, before any tokens.
    Accepted {
        id: u64,
        prompt_tokens: u32,
    },
    /// More text, cut at a UTF-8 boundary, and how many tokens it stands for. `cached_tokens` as in `Done`: whoever leaves
    /// early is charged by it, too. `logprobs` has an entry for each of
    /// them where they were asked for; a stop string's tokens have none.
    Tokens {
        id: u64,
        text: String,
        count: u32,
        cached_tokens: u32,
        logprobs: Vec<TokenLogprob>,
    },
    /// The end. The counts of all `Tokens` sum to `completion_tokens`; the token that ends a turn is not counted.
    /// `cached_tokens` of the prompt's were in the context already.
    Done {
        id: u64,
        finish: Finish,
        prompt_tokens: u32,
        cached_tokens: u32,
        completion_tokens: u32,
    },
    /// The end, without success; nothing follows for this id.
    Failed {
        id: u64,
        kind: FailureKind,
        message: String,
    },
    Tokenized {
        id: u64,
        count: u32,
    },
    /// The end: a vector of length 1 for each text, in their order, and the tokens of all of them together.
    Embedded {
        id: u64,
        vectors: Vec<Vec<f32>>,
        prompt_tokens: u32,
    },
    /// `why` an answer cannot be held to the grammar; `None`: it can.
    Checked {
        id: u64,
        why: Option<String>,
    },
    /// A part of a saved context, at most [`PART_BYTES_MAX`], in order.
    Saved {
        id: u64,
        #[serde(with = "hexadecimal")]
        part: Vec<u8>,
        last: bool,
    },
    /// A slot holds so many tokens that it did not compute.
    Restored {
        id: u64,
        tokens: u32,
    },
}

/// Bytes as a text: an array of numbers would take four characters each.
mod hexadecimal {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    const DIGITS: &[u8; 16] = b"0123456789abcdef";

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
        let text: String = bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect();
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let (pairs, rest) = text.as_bytes().as_chunks();
        let value = |digit: u8| DIGITS.iter().zip(0_u8..).find_map(|(known, value)| (*known == digit).then_some(value));
        let byte = |pair: &[u8; 2]| Some(value(pair[0])? << 4 | value(pair[1])?);
        let bytes = pairs.iter().map(byte).collect::<Option<Vec<u8>>>().filter(|_| rest.is_empty());
        bytes.ok_or_else(|| D::Error::custom("not pairs of hexadecimal digits"))
    }
}

/// A frame's bytes, header included. Fails if the message is longer than [`FRAME_BYTES_MAX`].
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - HEADER_BYTES;
    let header = match u32::try_from(length) {
        Ok(header) if length <= FRAME_BYTES_MAX => header,
        _ => return Err(too_long(length)),
    };
    frame[..HEADER_BYTES].copy_from_slice(&header.to_le_bytes());
    Ok(frame)
}

/// The length that a header announces, in bytes, checked before anything is allocated.
pub fn body_length(header: [u8; HEADER_BYTES]) -> io::Result<usize> {
    let length = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
    if length > FRAME_BYTES_MAX {
        return Err(too_long(length));
    }
    Ok(length)
}

/// The message in a frame's body.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    serde_json::from_slice(body).map_err(|error| {
        io::Error::new(io::ErrorKind::InvalidData, format!("frame of {} bytes does not parse: {error}", body.len()))
    })
}

/// Reads one frame. `None` at the stream's end between two frames; an end inside of one is an error.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut header = [0; HEADER_BYTES];
    let first = loop {
        match from.read(&mut header[..1]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if first == 0 {
        return Ok(None);
    }
    from.read_exact(&mut header[1..])?;
    let mut body = vec![0; body_length(header)?];
    from.read_exact(&mut body)?;
    decode(&body).map(Some)
}

/// Writes one frame.
pub fn write<T: Serialize>(to: &mut impl Write, message: &T) -> io::Result<()> {
    to.write_all(&encode(message)?)
}

fn too_long(length: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("frame of {length} bytes is longer than the {FRAME_BYTES_MAX} allowed"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_as_it_was_sent() {
        let sent = ToEngine::Generate {
            id: 7,
            request: Generate {
                add_bos: true,
                temperature: 0.7,
                top_p: 0.95,
                top_k: 40,
                logit_bias: vec![(7, -100.0)],
                seed: u64::MAX,
                stop: vec!["\n\n".into()],
                logprobs: Some(5),
                grammar: Some(Grammar::JsonSchema(serde_json::json!({"type": "object"}))),
                ..Generate::greedy("Grüße, \u{0} \u{1F980}", 3)
            },
        };
        let mut bytes = Vec::new();
        write(&mut bytes, &sent).unwrap();
        write(&mut bytes, &ToEngine::Cancel { id: 7 }).unwrap();
        let mut stream = bytes.as_slice();
        assert_eq!(read(&mut stream).unwrap(), Some(sent));
        assert_eq!(read(&mut stream).unwrap(), Some(ToEngine::Cancel { id: 7 }));
        assert_eq!(read::<ToEngine>(&mut stream).unwrap(), None);
    }

    #[test]
    fn the_longest_part_of_a_context_fits_a_frame() {
        let part: Vec<u8> = (0..PART_BYTES_MAX).map(|at| u8::try_from(at % 256).unwrap()).collect();
        let sent = ToEngine::Restore { id: u64::MAX, part, last: true };
        let frame = encode(&sent).unwrap();
        assert_eq!(decode::<ToEngine>(&frame[HEADER_BYTES..]).unwrap(), sent);
        for bad in ["0", "0g", "é"] {
            let frame = format!(r#"{{"restore":{{"id":1,"part":"{bad}","last":true}}}}"#);
            assert!(decode::<ToEngine>(frame.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_not_a_frame_is_refused() {
        let refused = |bytes: &[u8]| read::<ToEngine>(&mut &bytes[..]).unwrap_err().to_string();
        let framed = |body: &str| {
            let mut bytes = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
            bytes.extend(body.as_bytes());
            bytes
        };
        expect_test::expect![[r#"
            frame of 4294967295 bytes is longer than the 8388608 allowed
            failed to fill whole buffer
            failed to fill whole buffer
            frame of 2 bytes does not parse: expected value at line 1 column 2
            frame of 28 bytes does not parse: unknown field `why`, expected `id` at line 1 column 23
            frame of 17 bytes does not parse: unknown variant `sing`, expected one of `generate`, `cancel`, `tokenize`, `check`, `embed`, `save`, `restore` at line 1 column 7
        "#]]
        .assert_eq(
            &[
                refused(&[0xff; 4]),
                refused(&[1, 0]),
                refused(&[9, 0, 0, 0, b'{']),
                refused(&framed("{}")),
                refused(&framed(r#"{"cancel":{"id":1,"why":""}}"#)),
                refused(&framed(r#"{"sing":{"id":1}}"#)),
            ]
            .map(|line| line + "\n")
            .concat(),
        );
    }
}
