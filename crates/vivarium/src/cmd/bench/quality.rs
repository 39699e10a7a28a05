//! `vivarium bench quality`: what the shipped models are good for, on small test sets of our own.
//!
//! The sets are sentences from templates (`quality/*.txt`), written for this; nobody else's data is in them. A few
//! templates make many texts, so the figures tell one way of working from another and not one model from the next. What
//! is measured is what the API does: the requests go through its own parsers, prompts and arithmetic. Beside each
//! figure stands what one gets without a model.

mod overlap;
mod sets;

use super::report::Report;
use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use infer::api::classify::best;
use infer::api::rerank::rank;
use infer::api::{ApiError, ClassifyRequest, ExtractRequest, Message, RerankRequest, Role};
use infer::{ChatTemplate, EngineClient, EngineConfig, EngineEvent, Generate, Grammar, Hello};
use serde_json::{Value, json};
use sets::{Labelled, Pair, Snippet};
use std::collections::BTreeMap;
use std::path::Path;
use vivarium::world::{Programs, model};

/// What the shipped models are good for: classification, extraction, retrieval, beside what one gets without a model
#[derive(clap::Args)]
#[group(id = "quality")]
pub struct Flags {
    /// Texts that each template makes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=5))]
    each: u32,
    /// Where a template's words begin: another seed, other texts
    #[arg(long, default_value_t = 1)]
    seed: u32,
    /// Without the rows of the chat model, which take minutes
    #[arg(long)]
    vectors: bool,
    /// Writes the figures into docs/benchmarks.md
    #[arg(long)]
    write: bool,
}

const CONTEXT: u32 = 2_048;
/// Texts of each set that the chat model classifies beside the vectors.
const CHAT_TEXTS: usize = 24;
/// Requests side by side: as many as the engine has slots.
const AT_ONCE: usize = 8;
/// Templates of each label whose texts are its examples; none of them is tested.
const EXAMPLE_TEMPLATES: usize = 2;

pub async fn run(flags: Flags) -> Result<()> {
    let project = Programs::project()?;
    let vivarium = std::env::current_exe().context("cannot find this program's own file")?;
    let program = Programs::of(&project, &vivarium)?.engine;
    let embedding = model::Model::embedding(&project);
    let context = embedding.context;
    let (embedder, _) = started(&program, embedding, context, EngineConfig::TEXTS_DEFAULT).await?;
    let chat = if flags.vectors {
        None
    } else {
        let model = model::Model::standard(&project);
        let (engine, hello) = started(&program, model, CONTEXT, EngineConfig::SLOTS_DEFAULT).await?;
        Some((engine, ChatTemplate::new(hello.chat_template.as_deref(), &hello.bos, &hello.eos)?))
    };
    let chat = chat.as_ref().map(|(engine, template)| Chat { engine, template });
    let mut report = Report::new("quality");
    for set in sets::labelled(flags.seed, flags.each, EXAMPLE_TEMPLATES) {
        classification(&embedder, chat.as_ref(), &set, &mut report).await?;
    }
    retrieval(&embedder, &sets::pairs(flags.seed, flags.each), &mut report).await?;
    if let Some(chat) = &chat {
        extraction(chat, &sets::snippets(flags.seed, flags.each), &mut report).await?;
    }
    if flags.write {
        report.write(&project.join("docs/benchmarks.md"))?;
    }
    Ok(())
}

// ------------------------------------------------------------------------------------------------- what is measured

async fn classification(
    embedder: &EngineClient,
    chat: Option<&Chat<'_>>,
    set: &Labelled,
    report: &mut Report,
) -> Result<()> {
    let names: Vec<Value> = set.labels.iter().map(|(name, _)| json!(name)).collect();
    let described: Vec<Value> =
        set.labels.iter().map(|(name, about)| json!({"name": name, "description": about})).collect();
    let examples: Vec<Value> = set.examples.iter().map(|(text, label)| json!({"text": text, "label": label})).collect();
    let by_names = classified(embedder, set, &json!(names), &json!([])).await?;
    let by_words = classified(embedder, set, &json!(described), &json!([])).await?;
    let by_examples = classified(embedder, set, &json!(names), &json!(examples)).await?;
    let (chance, common) = (percent(1, set.labels.len()), percent(set.most_common(), set.texts.len()));
    let mut beside = format!("chance {chance}, always the most common label {common}");
    if let Some(chat) = chat {
        let right = held_to_labels(chat, set).await?;
        beside += &format!("; the chat model, held to the labels, {right}");
    }
    let what = format!("{}: {} texts, {} labels", set.name, set.texts.len(), set.labels.len());
    let (of, each) = (set.texts.len(), set.examples.len() / set.labels.len());
    let figure = format!(
        "by names {}, described {}, by {each} examples each {}",
        percent(by_names, of),
        percent(by_words, of),
        percent(by_examples, of)
    );
    report.row(&what, figure, beside);
    Ok(())
}

/// How many texts of a set get their own label from `/v1/classify`.
async fn classified(embedder: &EngineClient, set: &Labelled, labels: &Value, examples: &Value) -> Result<usize> {
    let mut right = 0;
    for texts in set.texts.chunks(infer::api::classify::INPUTS_MAX) {
        let inputs: Vec<&String> = texts.iter().map(|(text, _)| text).collect();
        let body = json!({"model": "m", "inputs": inputs, "labels": labels, "examples": examples});
        let request = ClassifyRequest::parse(body.to_string().as_bytes()).map_err(refused)?;
        let classes = request.question();
        let scores = classes.scores(&vectors_of(embedder, request.texts()).await?);
        let told = scores.iter().map(|scores| classes.labels.get(best(scores)));
        right += texts.iter().zip(told).filter(|((_, label), told)| Some(label) == *told).count();
    }
    Ok(right)
}

/// The other way that was tried: the chat model names the category, held to the labels.
async fn held_to_labels(chat: &Chat<'_>, set: &Labelled) -> Result<String> {
    let names: Vec<&str> = set.labels.iter().map(|(name, _)| name.as_str()).collect();
    let task = format!("Name the category of the text. Answer with one of: {}.", names.join(", "));
    let quoted: Vec<String> = names.iter().map(|name| Value::from(*name).to_string()).collect();
    let form = Grammar::Lark(format!("start: {}", quoted.join(" | ")));
    // Every so many, so that all labels are among them.
    let step = set.texts.len().div_ceil(CHAT_TEXTS);
    let ask = |(text, label)| chosen(chat, &task, &form, text, label);
    let texts = set.texts.iter().step_by(step).map(|(text, label)| (text.as_str(), label.as_str()));
    let right: Vec<usize> = stream::iter(texts.map(ask)).buffered(AT_ONCE).try_collect().await?;
    Ok(format!("{} of {}", percent(right.iter().sum(), right.len()), right.len()))
}

/// 1 if the chat model answers with this label, else 0.
async fn chosen(chat: &Chat<'_>, task: &str, form: &Grammar, text: &str, label: &str) -> Result<usize> {
    let messages = [Message::new(Role::System, task), Message::new(Role::User, text)];
    let prompt = chat.template.render(&messages, 0)?;
    let said = chat.says(Generate { grammar: Some(form.clone()), ..Generate::greedy(prompt, 16) }).await?;
    Ok(usize::from(said == label))
}

/// `/v1/rerank`, which is the order of `/v1/embeddings`' vectors.
async fn retrieval(embedder: &EngineClient, pairs: &[Pair], report: &mut Report) -> Result<()> {
    let passages: Vec<&str> = pairs.iter().map(|pair| pair.passage.as_str()).collect();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for (at, pair) in pairs.iter().enumerate() {
        let body = json!({"model": "m", "query": pair.question, "documents": passages});
        let request = RerankRequest::parse(body.to_string().as_bytes()).map_err(refused)?;
        let ranked = rank(&vectors_of(embedder, request.texts()).await?, None);
        ours.push(ranked.iter().position(|result| result.index == at).context("a passage is missing")? + 1);
        theirs.push(overlap::place(&pair.question, &passages, at));
    }
    let what = format!("the passage that answers, among {}: embeddings, rerank", pairs.len());
    let beside = format!("BM25, words alone: {}; chance {}", places(&theirs), percent(1, pairs.len()));
    report.row(&what, places(&ours), beside);
    Ok(())
}

/// First places, places among the first three, and the mean of their reciprocals.
fn places(of: &[usize]) -> String {
    let within = |most: usize| of.iter().filter(|place| **place <= most).count();
    let count = of.len().max(1);
    let reciprocal: f64 = of.iter().map(|place| 1.0 / f64::from(u32::try_from(*place).unwrap_or(u32::MAX))).sum();
    let mean = reciprocal / f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    format!("first {}, in the first three {}, MRR {mean:.2}", percent(within(1), count), percent(within(3), count))
}

/// What `/v1/extract` finds in a text; `None`: it was cut before its end.
async fn extracted(chat: &Chat<'_>, snippet: &Snippet) -> Result<Option<Value>> {
    let body = json!({"model": "m", "input": snippet.text, "schema": snippet.schema()});
    let request = ExtractRequest::parse(body.to_string().as_bytes()).map_err(refused)?;
    let prompt = chat.template.render(&request.messages(), 0)?;
    let settings = request.settings();
    let tokens = settings.max_tokens_within(CONTEXT);
    let said = chat.says(settings.generate(prompt, tokens, 0)).await?;
    Ok(serde_json::from_str(&said).ok())
}

async fn extraction(chat: &Chat<'_>, snippets: &[Snippet], report: &mut Report) -> Result<()> {
    let asked = snippets.iter().map(|snippet| extracted(chat, snippet));
    let said: Vec<Option<Value>> = stream::iter(asked).buffered(AT_ONCE).try_collect().await?;
    let whole = said.iter().filter(|data| data.is_some()).count();
    let mut fields: BTreeMap<&str, Found> = BTreeMap::new();
    let mut all_right = 0;
    for (snippet, data) in snippets.iter().zip(&said) {
        let mut all = true;
        for (field, wanted) in &snippet.fields {
            let found = fields.entry(field.as_str()).or_default();
            let is_right = data.as_ref().is_some_and(|data| data[field] == *wanted);
            (found.right, found.of, all) = (found.right + usize::from(is_right), found.of + 1, all && is_right);
            *found.values.entry(wanted.to_string()).or_default() += 1;
        }
        all_right += usize::from(all);
    }
    let sum = |part: fn(&Found) -> usize| fields.values().map(part).sum::<usize>();
    let (right, of) = (sum(|found| found.right), sum(|found| found.of));
    let common = sum(|found| found.values.values().copied().max().unwrap_or(0));
    report.row(
        &format!("JSON out of {} texts, {of} fields", snippets.len()),
        format!(
            "right: fields {}, whole texts {}; JSON by the schema {}",
            percent(right, of),
            percent(all_right, snippets.len()),
            percent(whole, snippets.len())
        ),
        format!("always a field's most common value: {}", percent(common, of)),
    );
    let each: Vec<String> =
        fields.iter().map(|(field, found)| format!("{field} {}", percent(found.right, found.of))).collect();
    report.row("the same, field by field", each.join(", "), "exact match, capitals included");
    Ok(())
}

/// Of one field, over all texts: how often it was right, of how many, and how often each value was wanted.
#[derive(Default)]
struct Found {
    right: usize,
    of: usize,
    values: BTreeMap<String, usize>,
}

/// Rounded to whole ones.
fn percent(part: usize, of: usize) -> String {
    format!("{} %", (100 * part + of / 2) / of.max(1))
}

fn refused(error: ApiError) -> anyhow::Error {
    anyhow::anyhow!("the API refuses a text of the test set: {}", error.message)
}

// ---------------------------------------------------------------------------------------------------- who is asked

async fn started(program: &Path, model: model::Model, ctx: u32, slots: u32) -> Result<(EngineClient, Hello)> {
    let name = format!("vivarium-bench-quality-{}-{}.sock", std::process::id(), model.name);
    let socket = std::env::temp_dir().join(name);
    let config = EngineConfig {
        adapters: Vec::new(),
        program: program.to_owned(),
        model: model.path,
        socket: socket.clone(),
        threads: 1,
        threads_max: EngineConfig::cores(),
        ctx,
        slots,
    };
    let started = EngineClient::spawn(config).await;
    // It listens no more once the last client is gone; whoever connects is connected now.
    std::fs::remove_file(&socket).ok();
    Ok(started?)
}

struct Chat<'a> {
    engine: &'a EngineClient,
    template: &'a ChatTemplate,
}

impl Chat<'_> {
    async fn says(&self, request: Generate) -> Result<String> {
        let mut generation = self.engine.generate(request)?;
        let mut text = String::new();
        loop {
            match generation.recv().await.context("the engine ended without an answer")? {
                EngineEvent::Tokens { text: more, .. } => text.push_str(&more),
                EngineEvent::Done { .. } => return Ok(text),
                EngineEvent::Failed { message, .. } => bail!("the engine does not answer: {message}"),
                EngineEvent::Accepted { .. } | EngineEvent::Embedded { .. } => {}
            }
        }
    }
}

async fn vectors_of(engine: &EngineClient, texts: Vec<String>) -> Result<Vec<Vec<f32>>> {
    let mut made = engine.embed(texts)?;
    loop {
        match made.recv().await.context("the engine ended without vectors")? {
            EngineEvent::Embedded { vectors, .. } => return Ok(vectors),
            EngineEvent::Failed { message, .. } => bail!("the embedding engine failed: {message}"),
            _ => {}
        }
    }
}
