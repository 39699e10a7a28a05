//! The thread that owns an embedding model's context: texts come in as tokens and leave as vectors of length 1.
//!
//! Texts of all requests share batches, in turns, so that a long list does not keep a short one waiting. A text sees
//! only itself, but the sum that makes its vector may be taken in another order beside others: its numbers agree to
//! about 1e-3 (docs/decisions/0023) and not to the bit.

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

/// Tokens of a batch, if one text does not need more. Attention is computed over the whole batch, so more of them cost
/// more than they save. A guess, unmeasured.
const BATCH_TOKENS: usize = 512;
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
    /// Texts that are in a batch or done.
    begun: usize,
    vectors: Vec<Vec<f32>>,
    prompt_tokens: u32,
}

pub(crate) struct Embedder<'m> {
    context: LlamaContext<'m>,
    batch: LlamaBatch<'static>,
    batch_tokens: usize,
    /// Texts of a batch.
    slots: usize,
    queue: VecDeque<Request>,
}

impl<'m> Embedder<'m> {
    /// Makes the context and computes one text so that the weights are in memory.
    pub(crate) fn new(model: &'m Arc<Model>, args: &Args) -> anyhow::Result<Embedder<'m>> {
        let slots = usize::try_from(args.slots).context("--slots")?;
        let batch_tokens = usize::try_from(args.ctx).context("--ctx")?.max(BATCH_TOKENS);
        let batch_tokens_c = u32::try_from(batch_tokens).context("--ctx")?;
        let cells = batch_tokens_c.checked_mul(args.slots).context("--ctx times --slots is too much")?;
        let threads = i32::try_from(args.threads).context("--threads")?;
        let params = LlamaContextParams::default()
            .with_embeddings(true)
            // These two bound a text and not memory: a model of this kind keeps nothing between batches.
            .with_n_ctx(NonZeroU32::new(cells))
            .with_n_seq_max(args.slots)
            // A text is computed at once: every token sees every other one of it.
            .with_n_batch(batch_tokens_c)
            .with_n_ubatch(batch_tokens_c)
            .with_n_threads(threads)
            .with_n_threads_batch(threads)
            .with_kv_unified(false)
            .with_flash_attention_policy(llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED);
        let context = model.model.new_context(&model.backend, params).map_err(|_| {
            anyhow::anyhow!(
                "no memory for {} texts of {} tokens each; use smaller --slots or --ctx",
                args.slots,
                args.ctx
            )
        })?;
        let mut embedder =
            Embedder { context, batch: LlamaBatch::new(batch_tokens, 1), batch_tokens, slots, queue: VecDeque::new() };
        embedder.add(0, &model.tokenize_plain("a"));
        embedder.context.encode(&mut embedder.batch).context("the model does not encode one text")?;
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
                self.queue.push_back(Request { key, out, texts, begun: 0, vectors: Vec::new(), prompt_tokens });
            }
            Order::Cancel(key) => self.queue.retain(|request| request.key != key),
            Order::HangUp(connection) => self.queue.retain(|request| request.key.connection != connection),
        }
    }

    /// One batch: a text of each request in turn, as long as they fit.
    fn step(&mut self) {
        let lengths = self.queue.iter().map(|request| request.texts[request.begun..].iter().map(Vec::len).collect());
        let counts = share(&lengths.collect::<Vec<_>>(), self.slots, self.batch_tokens);
        self.batch.clear();
        let texts: Vec<Vec<LlamaToken>> = self
            .queue
            .iter()
            .zip(&counts)
            .flat_map(|(request, count)| request.texts[request.begun..request.begun + count].to_vec())
            .collect();
        for (sequence, text) in (0..).zip(&texts) {
            self.add(sequence, text);
        }
        let encoded = if texts.is_empty() { Ok(()) } else { self.context.encode(&mut self.batch) };
        let mut sequence = 0;
        for (request, count) in self.queue.iter_mut().zip(counts) {
            request.begun += count;
            for _ in 0..count {
                let vector = self.context.embeddings_seq_ith(sequence).ok().and_then(unit);
                sequence += 1;
                if let (Ok(()), Some(vector)) = (&encoded, vector) {
                    request.vectors.push(vector);
                }
            }
        }
        let (done, rest) = std::mem::take(&mut self.queue).into_iter().partition(|r| r.begun == r.texts.len());
        self.queue = rest;
        VecDeque::into_iter(done).for_each(Request::done);
        // Whoever was first is last now, so that nobody's long text waits for ever.
        if !self.queue.is_empty() {
            self.queue.rotate_left(1);
        }
    }

    fn add(&mut self, sequence: i32, text: &[LlamaToken]) {
        for (position, token) in (0..).zip(text) {
            self.batch.add(*token, position, &[sequence], true).expect("the batch was made for the longest text");
        }
    }
}

impl Request {
    /// All texts were computed; a vector is missing where one could not be.
    fn done(self) {
        let id = self.key.id;
        let _ = self.out.send(if self.vectors.len() == self.texts.len() {
            FromEngine::Embedded { id, vectors: self.vectors, prompt_tokens: self.prompt_tokens }
        } else {
            eprintln!(
                "vivarium-engine: {} of {} texts have no vector",
                self.texts.len() - self.vectors.len(),
                self.texts.len()
            );
            let message = "the model could not be run".to_owned();
            FromEngine::Failed { id, kind: FailureKind::Internal, message }
        });
    }
}

/// How many of each request's next texts go into a batch, by their lengths: one of each in turn, until one does not fit.
fn share(lengths: &[Vec<usize>], texts_max: usize, tokens_max: usize) -> Vec<usize> {
    let mut counts = vec![0; lengths.len()];
    let (mut texts, mut tokens) = (0, 0);
    loop {
        let before = texts;
        for (count, lengths) in counts.iter_mut().zip(lengths) {
            let Some(length) = lengths.get(*count) else { continue };
            if texts == texts_max || tokens + length > tokens_max {
                return counts;
            }
            (*count, texts, tokens) = (*count + 1, texts + 1, tokens + length);
        }
        if texts == before {
            return counts;
        }
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
    fn a_batch_is_shared_in_turns_and_never_overfull() {
        assert_eq!(share(&[vec![10; 9], vec![10; 2]], 8, 100), [6, 2]);
        assert_eq!(share(&[vec![90, 90], vec![10, 10]], 8, 100), [1, 1]);
        // The first one always fits, so there is always progress.
        assert_eq!(share(&[vec![100], vec![1]], 8, 100), [1, 0]);
        assert_eq!(share(&[], 8, 100), [] as [usize; 0]);
    }

    #[test]
    fn a_vector_has_length_one_or_is_none() {
        assert_eq!(unit(&[3.0, 4.0]), Some(vec![0.6, 0.8]));
        assert_eq!([unit(&[0.0]), unit(&[f32::NAN]), unit(&[f32::INFINITY])], [None, None, None]);
    }
}
