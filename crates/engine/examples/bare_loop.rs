//! The least that decoding costs with this build of llama.cpp: no socket, no queue, no sampler, no text. `vivarium bench
//! infer` puts the engine beside it.
//!
//!     bare_loop MODEL THREADS SLOTS CONTEXT
//!
//! Takes a JSON line `{"prompts": [text…], "tokens": N}` from standard input and answers each with a line `{"seconds": S}`:
//! from the prompts to the last of N greedy tokens for each, all prompts side by side. CONTEXT is tokens of each.

use std::io::{BufRead, Write};
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use serde_json::{Value, json};

/// Tokens of one step, as in the engine.
const BATCH: u32 = 512;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, rest @ ..] = arguments.as_slice() else { bail!("bare_loop MODEL THREADS SLOTS CONTEXT") };
    let numbers: Vec<u32> = rest.iter().map(|word| word.parse()).collect::<Result<_, _>>().context("a number")?;
    let [threads, slots, each] = numbers.as_slice() else { bail!("bare_loop MODEL THREADS SLOTS CONTEXT") };
    let mut backend = LlamaBackend::init().context("llama.cpp")?;
    backend.void_logs();
    let model = LlamaModel::load_from_file(&backend, Path::new(path), &LlamaModelParams::default())?;
    let threads = i32::try_from(*threads)?;
    // The engine's own settings, which make an answer's bits independent of what runs beside it.
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(each.next_multiple_of(256) * slots))
        .with_n_seq_max(*slots)
        .with_n_batch(BATCH)
        .with_n_ubatch(BATCH)
        .with_n_threads(threads)
        .with_n_threads_batch(threads)
        .with_kv_unified(false)
        .with_flash_attention_policy(llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED);
    let mut context = model.new_context(&backend, params)?;
    for line in std::io::stdin().lock().lines() {
        let asked: Value = serde_json::from_str(&line?)?;
        let prompts: Vec<&str> =
            asked["prompts"].as_array().context("prompts")?.iter().filter_map(Value::as_str).collect();
        let tokens = asked["tokens"].as_u64().context("tokens")?;
        let started = Instant::now();
        decode(&model, &mut context, &prompts, tokens)?;
        println!("{}", json!({ "seconds": started.elapsed().as_secs_f64() }));
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn decode(model: &LlamaModel, context: &mut LlamaContext<'_>, prompts: &[&str], tokens: u64) -> anyhow::Result<()> {
    context.clear_kv_cache();
    let mut batch = LlamaBatch::new(usize::try_from(BATCH)?, 1);
    let mut rows = Vec::new();
    let mut positions = Vec::new();
    for (sequence, prompt) in (0..).zip(prompts) {
        let words = model.vocab().tokenize(prompt.as_bytes(), true, true);
        if batch.n_tokens() + i32::try_from(words.len())? > BATCH.cast_signed() {
            bail!("these prompts do not fit into one step of {BATCH} tokens");
        }
        let last = words.len().checked_sub(1).context("an empty prompt")?;
        for (at, word) in words.iter().enumerate() {
            batch.add(*word, i32::try_from(at)?, &[sequence], at == last)?;
        }
        rows.push(batch.n_tokens() - 1);
        positions.push(i32::try_from(words.len())?);
    }
    for _ in 1..=tokens {
        context.decode(&mut batch)?;
        let next: Vec<LlamaToken> = rows.iter().map(|row| likeliest(context.get_logits_ith(*row))).collect();
        batch.clear();
        rows.clear();
        for ((sequence, word), position) in (0..).zip(next).zip(&mut positions) {
            rows.push(batch.n_tokens());
            batch.add(word, *position, &[sequence], true)?;
            *position += 1;
        }
    }
    Ok(())
}

fn likeliest(logits: &[f32]) -> LlamaToken {
    let mut best = 0;
    for (at, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = at;
        }
    }
    LlamaToken::new(i32::try_from(best).expect("a vocabulary is smaller"))
}
