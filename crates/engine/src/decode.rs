//! The thread that owns the model's context, and does nothing that could make it wait.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use infer::wire::{FailureKind, Finish, FromEngine, Generate, PART_BYTES_MAX, TokenLogprob};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::context::session::LlamaStateSeqFlags;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaLoraAdapter;
use llama_cpp_2::token::LlamaToken;
use sha2::{Digest, Sha256};

use crate::args::Args;
use crate::grammar::Form;
use crate::lookup::{DRAFT_MAX, Lookup};
use crate::model::Model;
use crate::pace::{PIECE_MAX, Pace};
use crate::sample::{Sampler, probabilities};
use crate::schedule::{BLOCK, Piece, Prompt, Row, Schedule, Sequence};
use crate::serve::take_orders;
use crate::state::{self, Class, State};
use crate::text::TextStream;
use crate::threads::Threads;

/// Tokens that are tried together and one by one at the start, as many as a row and the longest guess; and so many others
/// before them.
const TRIED_TOKENS: usize = 1 + DRAFT_MAX;

/// Single tokens by which each count of threads is timed at the start, after one that warms its threads up.
const TIMED_TOKENS: usize = 4;

/// Answers that run side by side while the next tokens are guessed. Beyond that a row in company costs so little more
/// than a guessed one that guesses would have to be nearly always right.
const GUESSING_MAX: usize = 2;

/// Names a request: its connection, and the id that the connection gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) connection: u64,
    pub(crate) id: u64,
}

/// What connections want of the decoding thread.
pub(crate) enum Order {
    /// `prompt` is the request's text in tokens: not empty, shorter than the context.
    Start {
        key: Key,
        prompt: Vec<LlamaToken>,
        /// Of the request's grammar.
        form: Option<Box<Form>>,
        request: Box<Generate>,
        out: Sender<FromEngine>,
    },
    Cancel(Key),
    Save {
        key: Key,
        prompt: Vec<LlamaToken>,
        out: Sender<FromEngine>,
    },
    /// As bytes, of which nobody has looked at any.
    Restore {
        key: Key,
        saved: Vec<u8>,
        out: Sender<FromEngine>,
    },
    /// The connection with this number is closed: nobody reads what it asked for.
    HangUp(u64),
}

/// What came of some tokens that were decoded together, and one by one.
struct Tried {
    before: Vec<Vec<u32>>,
    together: Vec<Vec<u32>>,
    /// One by one they had the bits that they had together.
    is_exact: bool,
    /// Of single tokens.
    fastest: Duration,
    /// Bytes of a slot's context with the first half of the tokens, and with all.
    state_of_half: usize,
    state_of_whole: usize,
}

impl Tried {
    fn bits(&self) -> impl Iterator<Item = &u32> {
        self.before.iter().chain(&self.together).flatten()
    }

    /// Of a saved context of `ctx` tokens. Each token of a context takes the same.
    fn state_bytes_max(&self, ctx: u32) -> anyhow::Result<usize> {
        let of_token = self.state_of_whole.saturating_sub(self.state_of_half).div_ceil(self.together.len());
        let tokens = usize::try_from(ctx).context("--ctx")?;
        Ok(state::length(tokens, self.state_of_whole + of_token * tokens))
    }
}

/// What belongs to one answer.
struct Answer {
    key: Key,
    out: Sender<FromEngine>,
    sampler: Sampler,
    form: Option<Form>,
    text: TextStream,
    /// Guesses the next tokens, where the request lets it.
    lookup: Option<Lookup>,
    /// How many alternatives are told of each token.
    logprobs: Option<usize>,
    prompt_tokens: u32,
    /// Of them, those that were in the context already.
    cached_tokens: u32,
    /// Tokens it may have.
    tokens_max: u32,
    tokens: u32,
    /// Tokens generated since the last text was sent, and what is to be told of them.
    unsent: u32,
    unsent_logprobs: Vec<TokenLogprob>,
}

pub(crate) struct Decoder<'m> {
    model: &'m Arc<Model>,
    context: LlamaContext<'m>,
    adapters: Vec<LlamaLoraAdapter>,
    /// The adapter that the context has on.
    on: Option<usize>,
    batch: LlamaBatch<'static>,
    /// Tokens that it takes.
    batch_tokens: usize,
    schedule: Schedule<Answer>,
    threads: Threads,
    pace: Pace,
    ctx: u32,
    /// Whether tokens that are decoded together have the same bits as one after the other: without an adapter, and with
    /// each.
    may_guess: Vec<bool>,
    /// Build, instruction sets and threads.
    says: String,
    /// Whose saved contexts this engine goes on from.
    class: Class,
    /// Longest saved context.
    state_bytes_max: usize,
}

impl<'m> Decoder<'m> {
    /// Makes the context, with the memory of all slots, and decodes once so that the weights are in memory.
    pub(crate) fn new(
        model: &'m Arc<Model>,
        adapters: Vec<LlamaLoraAdapter>,
        args: &Args,
    ) -> anyhow::Result<Decoder<'m>> {
        let slots = usize::try_from(args.slots).context("--slots")?;
        let Some(cells) = args.ctx.checked_next_multiple_of(256).and_then(|ctx| ctx.checked_mul(args.slots)) else {
            bail!("--ctx {} times --slots {} is too much", args.ctx, args.slots);
        };
        let batch_tokens = PIECE_MAX.max(slots);
        let batch_tokens_c = u32::try_from(batch_tokens).context("--slots")?;
        let threads = i32::try_from(args.threads).context("--threads")?;
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(cells))
            .with_n_seq_max(args.slots)
            .with_n_batch(batch_tokens_c)
            .with_n_ubatch(batch_tokens_c)
            .with_n_threads(threads)
            .with_n_threads_batch(threads)
            // These two make an answer's bits independent of what runs beside it. They cost 7 to 9 % of the speed.
            .with_kv_unified(false)
            .with_flash_attention_policy(llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED);
        let context = model.model.new_context(&model.backend, params).map_err(|_| {
            anyhow::anyhow!(
                "no memory for {} requests of {} tokens each; use smaller --slots or --ctx",
                args.slots,
                args.ctx
            )
        })?;
        let mut decoder = Decoder {
            model,
            context,
            adapters,
            on: None,
            batch: LlamaBatch::new(batch_tokens, 1),
            batch_tokens,
            schedule: Schedule::new(slots),
            threads: Threads::new(args.threads, args.threads_max),
            pace: Pace::default(),
            ctx: args.ctx,
            may_guess: Vec::new(),
            says: format!("{}; {}; {} threads", crate::model::BUILD, model.isa(), args.threads),
            class: Class { fingerprint: [0; 32], n_vocab: model.n_vocab(), ctx: args.ctx },
            state_bytes_max: 0,
        };
        decoder.batch.add(LlamaToken::new(0), 0, &[0], true).context("an empty batch takes one token")?;
        decoder.context.decode(&mut decoder.batch).context("the model does not decode one token")?;
        for adapter in (0..decoder.adapters.len()).map(Some).chain([None]) {
            decoder.put_on(adapter);
            let tried = decoder.try_tokens(TRIED_TOKENS)?;
            let is_exact = tried.is_exact;
            decoder.may_guess.push(is_exact);
            // Last, with no adapter on.
            if adapter.is_none() {
                decoder.choose_threads(&tried)?;
                decoder.class.fingerprint = fingerprint(&decoder.says, tried.bits());
                decoder.state_bytes_max = tried.state_bytes_max(args.ctx)?;
            }
            let with = adapter.map_or_else(String::new, |adapter| format!("with adapter {adapter} "));
            eprintln!(
                "vivarium-engine: {with}next tokens are {}",
                if is_exact { "looked up where that pays" } else { "not looked up: that would change answers here" }
            );
        }
        Ok(decoder)
    }

    /// Decodes some tokens together and then one by one. Whether that gives the same bits is a matter of this build, this
    /// processor and this model's numbers: matrices by tiles (AMX) or by pairs of rows may round otherwise. So it is tried,
    /// on `singles` tokens, at most [`TRIED_TOKENS`].
    fn try_tokens(&mut self, singles: usize) -> anyhow::Result<Tried> {
        let vocabulary = self.model.n_vocab().max(1);
        let token = |at: u32| (at * 7_919 % vocabulary).cast_signed();
        let rows: Vec<(i32, i32)> = (0..).zip((1..).map(token)).take(2 * TRIED_TOKENS).collect();
        let (first, rest) = rows.split_at(TRIED_TOKENS);
        self.context.clear_kv_cache();
        let before = self.bits_of(first)?;
        let state_of_half = self.state_of(0).len();
        let together = self.bits_of(rest)?;
        let state_of_whole = self.state_of(0).len();
        self.keep(0, first.len());
        let (mut is_exact, mut fastest) = (true, Duration::MAX);
        for (row, wanted) in rest.iter().zip(&together).take(singles) {
            let started = Instant::now();
            is_exact &= self.bits_of(&[*row])? == std::slice::from_ref(wanted);
            fastest = fastest.min(started.elapsed());
        }
        self.context.clear_kv_cache();
        Ok(Tried { before, together, is_exact, fastest, state_of_half, state_of_whole })
    }

    /// Leaves the counts of threads that give the same bits as the first, and begins with the fastest of them.
    ///
    /// `first`: what the first count made of the tried tokens, without an adapter.
    fn choose_threads(&mut self, first: &Tried) -> anyhow::Result<()> {
        let (mut right, mut best) = (Vec::new(), (self.threads.now(), first.fastest));
        let others: Vec<u32> = self.threads.counts().iter().skip(1).copied().collect();
        for count in others {
            if !self.set_threads(count) {
                break;
            }
            // The first step of a count is slower: its threads are made then.
            let tried = self.try_tokens(1 + TIMED_TOKENS)?;
            if (&tried.before, &tried.together) != (&first.before, &first.together) || !tried.is_exact {
                eprintln!("vivarium-engine: {count} threads round otherwise than {}: not taken", self.threads.now());
                continue;
            }
            right.push(count);
            if tried.fastest < best.1 {
                best = (count, tried.fastest);
            }
        }
        self.threads.keep(|count| right.contains(&count));
        self.threads.begin_with(best.0);
        self.set_threads(best.0);
        Ok(())
    }

    /// Whether that could be done.
    #[expect(unsafe_code, reason = "the safe wrapper sets them only when a context is made")]
    fn set_threads(&mut self, count: u32) -> bool {
        let (Some(context), Ok(count)) = (pointer(&self.context), i32::try_from(count)) else { return false };
        // SAFETY: it is the wrapper's own pointer to a context that lives as long as `self.context`, which nobody else
        // uses: no step is being made.
        unsafe { llama_cpp_sys_2::llama_set_n_threads(context, count, count) };
        true
    }

    /// Whether the next tokens may be guessed with this adapter on.
    fn may_guess(&self, adapter: Option<usize>) -> bool {
        // What is without comes last.
        let at = adapter.unwrap_or(self.adapters.len());
        self.may_guess.get(at).copied().unwrap_or(false)
    }

    /// Whether prompts may be cut into shorter pieces than usual: where company changes a token's bits, so may a piece's
    /// length.
    fn may_cut(&self) -> bool {
        self.may_guess.iter().all(|may| *may)
    }

    /// Puts an adapter on, or the one that is on off. llama.cpp has one for all that a step decodes.
    fn put_on(&mut self, adapter: Option<usize>) {
        if self.on == adapter {
            return;
        }
        let done = match (adapter, self.on) {
            (Some(at), _) => self.context.lora_adapter_set(&mut self.adapters[at], 1.0).is_ok(),
            (None, Some(at)) => self.context.lora_adapter_remove(&mut self.adapters[at]).is_ok(),
            (None, None) => true,
        };
        assert!(done, "an adapter that was loaded for this model can be put on and off");
        self.on = adapter;
    }

    /// Decodes these positions and tokens in the first slot.
    fn bits_of(&mut self, rows: &[(i32, i32)]) -> anyhow::Result<Vec<Vec<u32>>> {
        self.batch.clear();
        for (position, token) in rows {
            self.add(*token, *position, 0, true);
        }
        self.context.decode(&mut self.batch).context("the model does not decode a few tokens")?;
        let bits = |row| self.context.get_logits_ith(row).iter().map(|logit| logit.to_bits()).collect();
        Ok((0..self.batch.n_tokens()).map(bits).collect())
    }

    /// Decodes for ever; ends only with an error: there is nobody left to give orders.
    pub(crate) fn run(mut self, orders: &Receiver<Order>) -> anyhow::Result<std::convert::Infallible> {
        loop {
            take_orders(orders, self.schedule.is_idle(), |order| self.obey(order))?;
            self.step();
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Start { key, prompt, form, request, out } => {
                self.start(key, prompt, form.map(|form| *form), *request, out)
            }
            Order::Cancel(key) => self.end_early(|answer| answer.key == key),
            Order::Save { key, prompt, out } => {
                let saved = self.save(key.id, &prompt);
                say(&out, key, saved);
            }
            Order::Restore { key, saved, out } => {
                let restored = self.restore(&saved).map(|tokens| vec![FromEngine::Restored { id: key.id, tokens }]);
                say(&out, key, restored);
            }
            Order::HangUp(connection) => self.end_early(|answer| answer.key.connection == connection),
        }
    }

    /// Longest saved context, bytes.
    pub(crate) fn state_bytes_max(&self) -> usize {
        self.state_bytes_max
    }

    /// The parts of what a free slot holds of this prompt, or why there is nothing.
    fn save(&mut self, id: u64, prompt: &[LlamaToken]) -> Result<Vec<FromEngine>, String> {
        let prompt = Prompt { tokens: prompt.iter().map(|token| token.0).collect(), adapter: None };
        let Some((slot, tokens)) = self.schedule.cut_to(&prompt) else {
            return Err(format!("no free slot holds {BLOCK} tokens of this prompt"));
        };
        let tokens = tokens.to_vec();
        self.keep(slot, tokens.len());
        let saved = State { tokens, bytes: self.state_of(slot) }.pack(&self.class);
        let parts = saved.chunks(PART_BYTES_MAX);
        let last = parts.len() - 1;
        let part = |(at, part): (usize, &[u8])| FromEngine::Saved { id, part: part.to_vec(), last: at == last };
        Ok(parts.enumerate().map(part).collect())
    }

    /// Gives a free slot a saved context: how many tokens that are, or why it is refused.
    #[expect(unsafe_code, reason = "the safe wrapper takes only what this process has written")]
    fn restore(&mut self, saved: &[u8]) -> Result<u32, String> {
        let State { tokens, bytes } = State::unpack(saved, &self.class)?;
        let slot = self.schedule.oldest_free().ok_or("all slots are taken")?;
        self.schedule.forget(slot);
        self.keep(slot, 0);
        let sequence = i32::try_from(slot).expect("slots are few");
        // SAFETY: `unpack` takes only what an engine of this class packed, to the bit: what llama.cpp wrote for a
        // context of this shape.
        let taken = unsafe { self.context.state_seq_set_data_ext(&bytes, sequence, LlamaStateSeqFlags::empty()) };
        let held = usize::try_from(self.context.kv_cache_seq_pos_max(sequence) + 1).unwrap_or(0);
        if !taken || held != tokens.len() {
            self.keep(slot, 0);
            return Err(format!("llama.cpp took {held} tokens of {}", tokens.len()));
        }
        let count = u32::try_from(tokens.len()).unwrap_or(self.ctx);
        self.schedule.hold(slot, Prompt { tokens, adapter: None });
        Ok(count)
    }

    /// llama.cpp's bytes of a slot's context.
    #[expect(unsafe_code, reason = "the safe wrapper keeps the bytes to itself")]
    fn state_of(&self, slot: usize) -> Vec<u8> {
        let (sequence, flags) = (i32::try_from(slot).expect("slots are few"), LlamaStateSeqFlags::empty());
        let mut bytes = vec![0; self.context.state_seq_get_size_ext(sequence, flags)];
        // SAFETY: it has the length that llama.cpp will write, and nothing is decoded in between.
        let written = unsafe { self.context.state_seq_get_data_ext(bytes.as_mut_ptr(), sequence, flags) };
        bytes.truncate(written);
        bytes
    }

    fn start(
        &mut self,
        key: Key,
        prompt: Vec<LlamaToken>,
        form: Option<Form>,
        request: Generate,
        out: Sender<FromEngine>,
    ) {
        // Sending fails when the connection is closed, and then `HangUp` is on its way: here and below.
        if self.schedule.is_full() {
            let message = "all slots are taken and the queue is full".to_owned();
            let _ = out.send(FromEngine::Failed { id: key.id, kind: FailureKind::Busy, message });
            return;
        }
        let request_adapter = request.adapter;
        let prompt_tokens = u32::try_from(prompt.len()).unwrap_or(self.ctx);
        let _ = out.send(FromEngine::Accepted { id: key.id, prompt_tokens });
        let answer = Answer {
            key,
            out,
            sampler: Sampler::new(&request),
            form,
            text: TextStream::new(request.stop),
            lookup: request.lookup.then(|| Lookup::new(prompt.iter().map(|token| token.0))),
            logprobs: request.logprobs.map(usize::from),
            prompt_tokens,
            cached_tokens: 0,
            tokens_max: request.max_tokens.min(self.ctx.saturating_sub(prompt_tokens)),
            tokens: 0,
            unsent: 0,
            unsent_logprobs: Vec::new(),
        };
        let adapter = request_adapter.map(|adapter| usize::try_from(adapter).expect("adapters are few"));
        let tokens = prompt.into_iter().map(|token| token.0).collect();
        self.schedule.push(Prompt { tokens, adapter }, answer);
        self.admit();
    }

    /// Lets the waiting in, and clears what their slots hold beyond the beginning of their prompts.
    fn admit(&mut self) {
        while let Some(admission) = self.schedule.admit() {
            self.keep(admission.slot, admission.kept);
        }
    }

    /// Clears a slot's context beyond so many positions.
    fn keep(&mut self, slot: usize, positions: usize) {
        let (slot, from) = (u32::try_from(slot).expect("slots are few"), u32::try_from(positions).ok());
        let cleared = self.context.clear_kv_cache_seq(Some(slot), from, None);
        assert!(matches!(cleared, Ok(true)), "this kind of context can be cleared from any position on");
    }

    fn end_early(&mut self, is_meant: impl Fn(&Answer) -> bool) {
        for answer in self.schedule.unqueue(&is_meant) {
            answer.done(Finish::Cancelled);
        }
        for slot in self.schedule.slots_where(&is_meant) {
            self.end(slot, Finish::Cancelled);
        }
        self.admit();
    }

    /// One step: a token for every running answer, then a piece of a prompt, as a batch of its own.
    fn step(&mut self) {
        let rows = self.schedule.rows();
        let started = Instant::now();
        self.decode_answers(&rows);
        self.pace.made_a_step(started.elapsed());
        let piece_max = if rows.is_empty() || !self.may_cut() { PIECE_MAX } else { self.pace.beside_answers() };
        if let Some(piece) = self.schedule.piece(piece_max) {
            self.decode_piece(&piece);
        }
        self.admit();
    }

    /// Those of one adapter together.
    fn decode_answers(&mut self, rows: &[Row]) {
        // What is on goes first, so that two adapters cost one change a step.
        let mut adapters: Vec<Option<usize>> = rows.iter().map(|row| row.adapter).collect();
        adapters.sort_by_key(|adapter| (*adapter != self.on, *adapter));
        adapters.dedup();
        for adapter in adapters {
            let rows: Vec<Row> = rows.iter().copied().filter(|row| row.adapter == adapter).collect();
            self.put_on(adapter);
            self.decode_rows(&rows);
        }
    }

    fn decode_rows(&mut self, rows: &[Row]) {
        let guesses: Vec<Vec<i32>> = rows.iter().map(|row| self.guess(row.slot, rows.len())).collect();
        self.batch.clear();
        for (row, guess) in rows.iter().zip(&guesses) {
            self.add(row.token, row.position, row.slot, true);
            for (position, token) in (row.position + 1..).zip(guess) {
                self.add(*token, position, row.slot, true);
            }
        }
        let started = Instant::now();
        if !self.decode(rows.iter().map(|row| row.slot)) {
            return;
        }
        self.made_a_step(started);
        let mut index = 0;
        for (row, guess) in rows.iter().zip(&guesses) {
            self.choose_along(row, guess, index);
            index += 1 + i32::try_from(guess.len()).expect("a guess is short");
        }
    }

    /// What the answer in this slot may go on with, to be decoded beside its next token.
    fn guess(&mut self, slot: usize, running: usize) -> Vec<i32> {
        let room = self.batch_tokens / running.max(1) - 1;
        let may_guess = self.may_guess(self.on);
        let Some(Sequence { answer, .. }) = self.schedule.sequence(slot) else { return Vec::new() };
        let Some(lookup) = answer.lookup.as_ref().filter(|_| may_guess && running <= GUESSING_MAX) else {
            return Vec::new();
        };
        // The last token that an answer may have is chosen without a place in the context.
        let left = answer.tokens_max.saturating_sub(answer.tokens + 1);
        lookup.guess(room.min(usize::try_from(left).unwrap_or(usize::MAX)))
    }

    /// Chooses the next token of an answer, and as many more as were guessed right; what was guessed wrong leaves the
    /// context. The logits of the row and its guess begin at the batch's row `first`.
    fn choose_along(&mut self, row: &Row, guess: &[i32], first: i32) {
        let mut right = 0;
        loop {
            let index = first + i32::try_from(right).expect("a guess is short");
            // An answer that ends leaves nothing of itself in the context.
            let Some(chosen) = self.choose(row.slot, index) else { return };
            if guess.get(right) != Some(&chosen) {
                break;
            }
            right += 1;
        }
        if guess.is_empty() {
            return;
        }
        let stays = usize::try_from(row.position).expect("positions begin at 0") + 1 + right;
        self.schedule.skip(row.slot, right);
        self.keep(row.slot, stays);
        if let Some(lookup) = self.schedule.sequence(row.slot).and_then(|sequence| sequence.answer.lookup.as_mut()) {
            lookup.told(guess.len(), right);
        }
    }

    fn decode_piece(&mut self, piece: &Piece) {
        if let Some(other) = piece.copy_of {
            let [from, to] = [other, piece.slot].map(|slot| i32::try_from(slot).expect("slots are few"));
            // Between slots only the whole is copied.
            self.context.copy_kv_cache_seq(from, to, None, None).expect("no positions are given");
            self.keep(piece.slot, piece.range.start);
        }
        let Some(sequence) = self.schedule.sequence(piece.slot) else { return };
        if piece.begins {
            sequence.answer.cached_tokens = u32::try_from(piece.range.start).unwrap_or(0);
        }
        let tokens = sequence.prompt.tokens[piece.range.clone()].to_vec();
        let adapter = sequence.prompt.adapter;
        self.put_on(adapter);
        self.batch.clear();
        for (offset, (place, token)) in piece.range.clone().zip(&tokens).enumerate() {
            let position = i32::try_from(place).expect("a prompt fits the context, which is counted in i32");
            let wants_logits = piece.last && offset + 1 == tokens.len();
            self.add(*token, position, piece.slot, wants_logits);
        }
        let started = Instant::now();
        if !self.decode([piece.slot]) {
            return;
        }
        self.pace.read(tokens.len(), started.elapsed());
        if piece.last {
            self.choose(piece.slot, self.batch.n_tokens() - 1);
        }
    }

    fn add(&mut self, token: i32, position: i32, slot: usize, wants_logits: bool) {
        let sequence = i32::try_from(slot).expect("slots are few");
        self.batch
            .add(LlamaToken::new(token), position, &[sequence], wants_logits)
            .expect("the batch was made for a whole chunk and for all slots");
    }

    /// Runs the batch. On failure the answers in it end, and the rest goes on.
    fn decode(&mut self, slots: impl IntoIterator<Item = usize>) -> bool {
        let Err(error) = self.context.decode(&mut self.batch) else { return true };
        eprintln!("vivarium-engine: a step failed: {error}");
        for slot in slots {
            if let Some(answer) = self.release(slot) {
                // Nobody knows how far it came.
                self.keep(slot, 0);
                self.schedule.forget(slot);
                let message = format!("the model could not be run: {error}");
                let _ = answer.out.send(FromEngine::Failed { id: answer.key.id, kind: FailureKind::Internal, message });
            }
        }
        false
    }

    /// A token for each running answer was computed since then; the next step may have another count of threads. Pieces of
    /// prompts follow the same count: they are too few and too unlike each other to compare.
    fn made_a_step(&mut self, since: Instant) {
        let before = self.threads.now();
        self.threads.made(usize::try_from(self.batch.n_tokens()).unwrap_or(usize::MAX), since.elapsed());
        let after = self.threads.now();
        if after != before {
            self.set_threads(after);
        }
    }

    /// Chooses the next token of an answer by the logits of the batch's row `index`, and sends its text. `None`: it
    /// ended.
    fn choose(&mut self, slot: usize, index: i32) -> Option<i32> {
        let sequence = self.schedule.sequence(slot)?;
        let answer = &mut sequence.answer;
        let logits = self.context.get_logits_ith(index);
        let allowed = match answer.form.as_mut().map(Form::allowed).transpose() {
            Ok(allowed) => allowed,
            Err(why) => {
                self.fail(slot, FailureKind::Grammar, why);
                return None;
            }
        };
        let chosen = match &allowed {
            // The mask may be shorter than the vocabulary; `get` would then be out of bounds.
            Some(mask) => answer.sampler.choose(logits, Some(&|token| token < mask.len() && mask.get(token))),
            None => answer.sampler.choose(logits, None),
        };
        let token = LlamaToken::new(i32::try_from(chosen).expect("a vocabulary is counted in i32"));
        if self.model.ends_turn(token) {
            self.end(slot, Finish::Stop);
            return None;
        }
        let formed = match &mut answer.form {
            Some(form) => form.take(token.0.cast_unsigned()),
            None => Ok(false),
        };
        let complete = match formed {
            Ok(complete) => complete,
            Err(why) => {
                self.fail(slot, FailureKind::Grammar, why);
                return None;
            }
        };
        answer.tokens += 1;
        answer.unsent += 1;
        let bytes = self.model.piece(token);
        if let Some(count) = answer.logprobs {
            let (logprob, top) = probabilities(logits, chosen, count);
            let piece = |token| self.model.piece(LlamaToken::new(i32::try_from(token).unwrap_or(0)));
            let top = top.into_iter().map(|(token, logprob)| (piece(token), logprob)).collect();
            answer.unsent_logprobs.push(TokenLogprob { bytes: bytes.clone(), logprob, top });
        }
        let shown = answer.text.push(&bytes);
        if shown.stopped {
            // What the stop string took is not in the text, so nothing is told of it.
            let mut begin = 0;
            answer.unsent_logprobs.retain(|told| {
                let is_shown = begin < shown.text.len();
                begin += told.bytes.len();
                is_shown
            });
        }
        answer.send(shown.text);
        if shown.stopped {
            self.end_without_rest(slot, Finish::Stop);
        } else if complete {
            self.end(slot, Finish::Stop);
        } else if answer.tokens >= answer.tokens_max {
            self.end(slot, Finish::Length);
        } else {
            if let Some(lookup) = &mut answer.lookup {
                lookup.push(token.0);
            }
            self.schedule.go_on(slot, token.0);
            return Some(token.0);
        }
        None
    }

    fn fail(&mut self, slot: usize, kind: FailureKind, message: String) {
        if let Some(answer) = self.release(slot) {
            let _ = answer.out.send(FromEngine::Failed { id: answer.key.id, kind, message });
        }
    }

    fn end(&mut self, slot: usize, finish: Finish) {
        if let Some(answer) = self.release(slot) {
            answer.done(finish);
        }
    }

    /// Ends at a stop string: nothing is held back, and nothing more may be shown.
    fn end_without_rest(&mut self, slot: usize, finish: Finish) {
        if let Some(mut answer) = self.release(slot) {
            answer.text = TextStream::new(Vec::new());
            answer.unsent_logprobs.clear();
            answer.done(finish);
        }
    }

    /// Frees a slot; its prompt stays in the context, for the next one that begins with it.
    fn release(&mut self, slot: usize) -> Option<Answer> {
        let (answer, positions) = self.schedule.release(slot)?;
        self.keep(slot, positions);
        Some(answer)
    }
}

/// What came of an order that is answered at once. Sending fails when the connection is closed.
fn say(out: &Sender<FromEngine>, key: Key, made: Result<Vec<FromEngine>, String>) {
    let failed = |message| vec![FromEngine::Failed { id: key.id, kind: FailureKind::State, message }];
    for message in made.unwrap_or_else(failed) {
        let _ = out.send(message);
    }
}

/// The wrapper's pointer, which it keeps to itself and shows where it is printed.
fn pointer(context: &LlamaContext<'_>) -> Option<*mut llama_cpp_sys_2::llama_context> {
    let shown = format!("{context:?}");
    let digits = shown.split_once("0x")?.1;
    let end = digits.find(|c: char| !c.is_ascii_hexdigit())?;
    let address = usize::from_str_radix(&digits[..end], 16).ok().filter(|address| *address != 0)?;
    Some(std::ptr::with_exposed_provenance_mut(address))
}

/// Of numbers that depend on every weight, and on how this processor and this build round.
fn fingerprint<'a>(says: &str, bits: impl Iterator<Item = &'a u32>) -> [u8; 32] {
    let mut hasher = Sha256::new_with_prefix(says);
    for logit in bits {
        hasher.update(logit.to_le_bytes());
    }
    hasher.finalize().into()
}

impl Answer {
    /// Sends text, if there is any, with the tokens that it took.
    fn send(&mut self, text: String) {
        if !text.is_empty() {
            let count = std::mem::take(&mut self.unsent);
            let logprobs = std::mem::take(&mut self.unsent_logprobs);
            let (id, cached_tokens) = (self.key.id, self.cached_tokens);
            let _ = self.out.send(FromEngine::Tokens { id, text, count, cached_tokens, logprobs });
        }
    }

    fn done(mut self, finish: Finish) {
        let rest = std::mem::replace(&mut self.text, TextStream::new(Vec::new())).finish();
        self.send(rest);
        let (id, cached_tokens) = (self.key.id, self.cached_tokens);
        if self.unsent > 0 {
            // Tokens without text of their own (control tokens, a stop string) are counted all the same.
            let (text, count, logprobs) = (String::new(), self.unsent, self.unsent_logprobs);
            let _ = self.out.send(FromEngine::Tokens { id, text, count, cached_tokens, logprobs });
        }
        let (prompt_tokens, completion_tokens) = (self.prompt_tokens, self.tokens);
        let _ = self.out.send(FromEngine::Done { id, finish, prompt_tokens, cached_tokens, completion_tokens });
    }
}

#[cfg(test)]
mod tests;
