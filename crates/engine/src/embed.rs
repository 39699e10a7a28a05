//! The thread that owns an embedding model's context: texts come in as tokens and leave as vectors of length 1.
//!
//! Requests take turns, a text each, so that a long list does not keep a short one waiting. Each text is computed alone:
//! so its vector has the same bits whatever is asked for beside it, and costs less (docs/decisions/0023).

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use anyhow::Context;
use infer::wire::{FailureKind, FromEngine};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;

use crate::args::Args;
use crate::decode::Key;
use crate::model::Model;
use crate::serve::take_orders;

/// Requests that wait; more are refused.
const QUEUE_MAX: usize = 32;

/// What connections want of this thread.
pub(crate) enum Order {
    /// Each text in tokens: not empty, and none longer than the context.
    Start {
        key: Key,
        texts: Vec<Vec<LlamaToken>>,
        out: Sender<FromEngine>,
    },
    Cancel(Key),
    /// The connection with this number is closed: nobody reads what it asked for.
    HangUp(u64),
}

struct Request {
    key: Key,
    out: Sender<FromEngine>,
    texts: Vec<Vec<LlamaToken>>,
    /// Of the texts that were computed, in their order; `None` where that failed.
    vectors: Vec<Option<Vec<f32>>>,
    prompt_tokens: u32,
}

pub(crate) struct Embedder<'m> {
    context: LlamaContext<'m>,
    batch: LlamaBatch<'static>,
    queue: VecDeque<Request>,
}

impl<'m> Embedder<'m> {
    /// Makes the context and computes one text so that the weights are in memory.
    pub(crate) fn new(model: &'m Arc<Model>, args: &Args) -> anyhow::Result<Embedder<'m>> {
        let text_tokens = usize::try_from(args.ctx).context("--ctx")?;
        let threads = i32::try_from(args.threads).context("--threads")?;
        let params = LlamaContextParams::default()
            .with_embeddings(true)
            // It bounds a text and not memory: a model of this kind keeps nothing between batches.
            .with_n_ctx(NonZeroU32::new(args.ctx))
            .with_n_seq_max(1)
            // A text is computed at once: every token sees every other one of it.
            .with_n_batch(args.ctx)
            .with_n_ubatch(args.ctx)
            .with_n_threads(threads)
            .with_n_threads_batch(threads)
            .with_kv_unified(false)
            .with_flash_attention_policy(llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED);
        let context = model
            .model
            .new_context(&model.backend, params)
            .map_err(|_| anyhow::anyhow!("no memory for a text of {} tokens; use a smaller --ctx", args.ctx))?;
        let mut embedder = Embedder { context, batch: LlamaBatch::new(text_tokens, 1), queue: VecDeque::new() };
        embedder.vector(&model.tokenize_plain("a")).context("the model does not encode one text")?;
        Ok(embedder)
    }

    /// Computes for ever; ends only with an error: there is nobody left to give orders.
    pub(crate) fn run(mut self, orders: &Receiver<Order>) -> anyhow::Result<std::convert::Infallible> {
        loop {
            take_orders(orders, self.queue.is_empty(), |order| self.obey(order))?;
            self.step();
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Start { key, texts, out } => {
                // Sending fails when the connection is closed, and then `HangUp` is on its way: here and below.
                if self.queue.len() >= QUEUE_MAX {
                    let message = "the queue is full".to_owned();
                    let _ = out.send(FromEngine::Failed { id: key.id, kind: FailureKind::Busy, message });
                    return;
                }
                let tokens: usize = texts.iter().map(Vec::len).sum();
                let prompt_tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
                let _ = out.send(FromEngine::Accepted { id: key.id, prompt_tokens });
                self.queue.push_back(Request { key, out, texts, vectors: Vec::new(), prompt_tokens });
            }
            Order::Cancel(key) => self.queue.retain(|request| request.key != key),
            Order::HangUp(connection) => self.queue.retain(|request| request.key.connection != connection),
        }
    }

    /// The next text of the request whose turn it is.
    fn step(&mut self) {
        let Some(mut request) = self.queue.pop_front() else { return };
        // An order has a text, and leaves the queue with its last one.
        let text = std::mem::take(&mut request.texts[request.vectors.len()]);
        request.vectors.push(self.vector(&text));
        match request.vectors.len() == request.texts.len() {
            true => request.done(),
            false => self.queue.push_back(request),
        }
    }

    /// Of a text that is computed alone. Beside others attention would run over all of them, and sums that are taken in
    /// another order could round to other 8-bit numbers on their way through the layers.
    fn vector(&mut self, text: &[LlamaToken]) -> Option<Vec<f32>> {
        self.batch.clear();
        for (position, token) in (0..).zip(text) {
            self.batch.add(*token, position, &[0], true).expect("the batch was made for the longest text");
        }
        self.context.encode(&mut self.batch).ok()?;
        self.context.embeddings_seq_ith(0).ok().and_then(unit)
    }
}

impl Request {
    /// All texts were computed; a vector is missing where one could not be.
    fn done(self) {
        let (id, count) = (self.key.id, self.vectors.len());
        let vectors: Vec<Vec<f32>> = self.vectors.into_iter().flatten().collect();
        let _ = self.out.send(if vectors.len() == count {
            FromEngine::Embedded { id, vectors, prompt_tokens: self.prompt_tokens }
        } else {
            eprintln!("vivarium-engine: {} of {count} texts have no vector", count - vectors.len());
            let message = "the model could not be run".to_owned();
            FromEngine::Failed { id, kind: FailureKind::Internal, message }
        });
    }
}

/// The same direction with length 1; `None` for what has none.
fn unit(vector: &[f32]) -> Option<Vec<f32>> {
    let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    let is_fine = length.is_finite() && length > 0.0;
    is_fine.then(|| vector.iter().map(|x| (f64::from(*x) / length) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use std::path::PathBuf;
    use std::sync::mpsc;

    fn args() -> Args {
        let usual = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.vivarium/models/all-MiniLM-L6-v2.Q8_0.gguf");
        let model = PathBuf::from(usual);
        assert!(model.is_file(), "NO MODEL at {}: `cargo xtask setup` makes it", model.display());
        Args {
            model,
            socket: PathBuf::new(),
            adapters: Vec::new(),
            threads: 1,
            threads_max: 1,
            ctx: 256,
            slots: 2,
            exit_with_stdin: false,
            arriving: false,
        }
    }

    /// Numbers of tokens are the model file's alone: they hold for every build.
    #[test]
    fn a_text_becomes_the_tokens_that_it_always_was() {
        let _turn = crate::model::turn();
        let model = Model::load(&args().model).unwrap();
        let tokens = model.tokenize_plain("Grüße, 世界! What's 7*6? Unbelievably.");
        expect!["101 24665 2226 17499 1010 1745 100 999 2054 1005 1055 1021 1008 1020 1029 4895 8671 2666 3567 6321 1012 102"].assert_eq(&tokens.iter().map(|token| token.0.to_string()).collect::<Vec<_>>().join(" "));
    }

    /// To a hundredth: other builds and instruction sets differ in the third decimal, another model in the first.
    #[test]
    fn a_text_becomes_the_vector_that_it_always_was() {
        let _turn = crate::model::turn();
        let args = args();
        let model = Arc::new(Model::load(&args.model).unwrap());
        let mut embedder = Embedder::new(&model, &args).unwrap();
        let (out, heard) = mpsc::channel();
        let texts = vec![model.tokenize_plain("The quick brown fox jumps over the lazy dog.")];
        embedder.obey(Order::Start { key: Key { connection: 0, id: 0 }, texts, out });
        embedder.step();
        let vector = heard.try_iter().find_map(|message| match message {
            FromEngine::Embedded { vectors, .. } => Some(vectors[0].clone()),
            _ => None,
        });
        let vector = vector.unwrap();
        assert_eq!(vector.len(), 384);
        let gap = VECTOR.iter().zip(&vector).map(|(wanted, got)| (wanted - got).abs()).fold(0.0, f32::max);
        assert!(gap < 0.01, "{gap}: {:?}", &vector[..VECTOR.len()]);
    }

    /// The first numbers of that text's vector (SSE3 to AVX-512 with VNNI, 2026-11-29).
    const VECTOR: [f32; 12] =
        [0.0416, 0.0620, 0.0478, 0.0774, 0.0269, -0.0405, 0.0003, -0.0621, -0.0008, 0.0226, 0.0475, 0.0565];

    #[test]
    fn requests_take_turns_and_company_is_not_to_be_seen() {
        let _turn = crate::model::turn();
        let args = args();
        let model = Arc::new(Model::load(&args.model).unwrap());
        let mut embedder = Embedder::new(&model, &args).unwrap();
        let tokens = |text: &str| model.tokenize_plain(text);
        let (out, heard) = mpsc::channel();
        for (id, texts) in
            [(0, vec![tokens("a"), tokens("a lease"), tokens("a promise")]), (1, vec![tokens("a lease")])]
        {
            embedder.obey(Order::Start { key: Key { connection: 0, id }, texts, out: out.clone() });
        }
        let mut ended = Vec::new();
        for step in 1..=4 {
            embedder.step();
            ended.extend(heard.try_iter().filter_map(|message| match message {
                FromEngine::Embedded { id, vectors, .. } => Some((step, id, vectors)),
                _ => None,
            }));
        }
        let [(2, 1, short), (4, 0, long)] = &ended[..] else { panic!("{ended:?}") };
        assert_eq!(long[1], short[0], "to the bit");
        assert!(embedder.queue.is_empty());
        embedder.step();
    }

    #[test]
    fn a_vector_has_length_one_or_is_none() {
        assert_eq!(unit(&[3.0, 4.0]), Some(vec![0.6, 0.8]));
        assert_eq!([unit(&[0.0]), unit(&[f32::NAN]), unit(&[f32::INFINITY])], [None, None, None]);
    }
}
