//! Answers the lines of batches while nobody else wants the engine.
//!
//! A line begins when no live request is inside, one at a time, and is given up the moment a live request's generation
//! begins: what it made by then is made again later. So a live request never waits behind a line; it shares at most the
//! engine's step in which the line is taken out. What was answered is kept before it is counted.

use crate::api::Api;
use crate::api::problem::{Problem, fresh_id};
use crate::batch::{BATCH, Batch, Counted, Due, FILE, Input, InputFile, Line as Kept, Object, Spent, Stage};
use crate::shared::Role;
use infer::api::batches::{Asked, Line, answered, lines, unanswered};
use infer::api::{Answered, ApiError, ChatReply, CompletionReply, EmbeddingReply, Usage};
use infer::{EngineEvent, Finish, Generate, Generation};
use pay::RequestId;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Between two looks at what is to be done, and whether there is time for it.
const LOOK: Duration = Duration::from_millis(500);
/// Before a line is tried again.
const AGAIN: Duration = Duration::from_millis(50);
/// What was answered is kept at least this often. A guess: writing takes milliseconds, a line on a small host seconds.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// A line that the engine fails at so often has no answer.
const TRIES: u32 = 3;
/// A file that no batch uses is dropped after so long, chain seconds.
const UNUSED_SECS: u64 = 86_400;
/// Files are looked through this often.
const FILES_EVERY: Duration = Duration::from_secs(600);

/// Batches as they were last read, by name: their object's CID says whether that is still so.
type Known = BTreeMap<String, (String, Batch)>;

/// The requests of the batch that is being answered.
struct Loaded {
    name: String,
    file: InputFile,
    lines: Vec<Line>,
}

/// Runs until the main loop ends.
pub async fn work(api: Api) {
    let mut known = Known::new();
    let mut loaded = None;
    let mut files_seen = Instant::now();
    while !api.cx.events.is_closed() {
        tokio::time::sleep(LOOK).await;
        if api.shared.role() != Role::Active {
            known.clear();
            continue;
        }
        let done = async {
            look(&api, &mut known).await?;
            if files_seen.elapsed() >= FILES_EVERY {
                files_seen = Instant::now();
                drop_unused(&api, &known).await?;
            }
            let running = known.values().map(|(_, batch)| batch).filter(|batch| batch.stage == Stage::InProgress);
            match running.min_by_key(|batch| batch.created_at).cloned() {
                Some(next) if has_time(&api) => answer(&api, next, &mut loaded).await,
                Some(_) => Ok(()),
                None => {
                    loaded = None;
                    Ok(())
                }
            }
        };
        if let Err(problem) = done.await {
            tracing::warn!(why = problem.api().message, "batches wait");
        }
    }
}

/// Reads what changed, and does what is due.
async fn look(api: &Api, known: &mut Known) -> Result<(), Problem> {
    let all = api.look(|node| node.objects_named(BATCH)).await?;
    known.retain(|name, _| all.iter().any(|(stored, _)| stored.response == *name));
    for (stored, key) in all {
        let name = stored.response.clone();
        let mut batch = match known.get(&name).filter(|(cid, _)| *cid == stored.cid) {
            Some((_, batch)) => batch.clone(),
            None => match api.opened(&stored, &key).await? {
                Object::Batch(batch) => *batch,
                _ => continue,
            },
        };
        known.insert(name.clone(), (stored.cid, batch.clone()));
        while let Some(next) = progress(api, &batch).await? {
            batch = next;
            // Its CID is another one by now.
            known.remove(&name);
        }
    }
    let open = known.values().filter(|(_, batch)| !batch.stage.is_over()).count();
    api.desk.open.store(u64::try_from(open).unwrap_or(u64::MAX), Ordering::SeqCst);
    Ok(())
}

/// What the book or the clock does to a batch; `None`: nothing now.
async fn progress(api: &Api, batch: &Batch) -> Result<Option<Batch>, Problem> {
    let sold = async |request: [u8; 16]| {
        let request = RequestId(request);
        api.look(move |node| node.is_sold(&request)).await
    };
    if batch.stage == Stage::Validating
        && let Some(is_paid) = sold(batch.request).await?
    {
        return api.step_batch(&batch.id, if is_paid { Input::Paid } else { Input::NotPaid }).await;
    }
    if let Some(request) = batch.sold.filter(|_| !batch.is_collected() && batch.offers_output())
        && sold(request).await? == Some(true)
    {
        return api.step_batch(&batch.id, Input::Collected).await;
    }
    let input = batch.input_file.clone();
    if !batch.stage.is_over() && batch.has_input && !api.look(move |node| node.conversation(&input).is_some()).await? {
        // Its customer deleted it.
        return api.step_batch(&batch.id, Input::InputDeleted).await;
    }
    match batch.due(api.shared.now()) {
        None => Ok(None),
        Some(Due::End) => {
            let rest = unfinished(api, batch).await?;
            api.step_batch(&batch.id, Input::Ended(rest)).await
        }
        Some(Due::DropInput) => {
            api.forget_kept(&batch.input_file).await?;
            api.step_batch(&batch.id, Input::InputDeleted).await
        }
        Some(Due::DropOutput) => {
            let dropped = api.step_batch(&batch.id, Input::OutputDeleted).await?;
            let dropped = match dropped.filter(|batch| batch.has_errors) {
                Some(_) => api.step_batch(&batch.id, Input::ErrorsDeleted).await?,
                None => None,
            };
            api.forget_parts(dropped.as_ref().unwrap_or(batch)).await?;
            Ok(dropped)
        }
    }
}

/// The lines that a batch ends without, as errors. None where its file is gone, too: then nobody knows their names.
async fn unfinished(api: &Api, batch: &Batch) -> Result<Vec<Kept>, Problem> {
    let Some((_, Object::Input(file))) = api.object(&batch.input_file).await? else { return Ok(Vec::new()) };
    let why = match batch.stage {
        Stage::Cancelling => ("batch_cancelled", "this request was not answered before the batch was cancelled"),
        _ => ("batch_expired", "this request was not answered before the batch expired"),
    };
    let left = lines(&file.content)?.into_iter().skip(usize::try_from(batch.done()).unwrap_or(usize::MAX));
    Ok(left.map(|line| without_answer(&line, why)).collect())
}

fn without_answer(line: &Line, why: (&str, &str)) -> Kept {
    Kept { failed: true, json: unanswered(&fresh_id("batch_req_"), &line.custom_id, why).to_string() }
}

/// Files with requests that no batch has used for a day.
async fn drop_unused(api: &Api, known: &Known) -> Result<(), Problem> {
    let now = api.shared.now();
    for (stored, _) in api.look(|node| node.objects_named(FILE)).await? {
        let is_used = known.values().any(|(_, batch)| batch.input_file == stored.response);
        if !is_used && now.saturating_sub(stored.at) >= UNUSED_SECS {
            api.forget_kept(&stored.response).await?;
        }
    }
    Ok(())
}

/// Answers the lines of a batch until there is something else to do.
async fn answer(api: &Api, mut batch: Batch, loaded: &mut Option<Loaded>) -> Result<(), Problem> {
    if loaded.as_ref().is_none_or(|loaded| loaded.name != batch.input_file) {
        let Some((_, Object::Input(file))) = api.object(&batch.input_file).await? else { return Ok(()) };
        let lines = lines(&file.content)?;
        *loaded = Some(Loaded { name: batch.input_file.clone(), file, lines });
    }
    let Some(Loaded { file, lines: asked, .. }) = loaded else { return Ok(()) };
    let (mut fresh, mut kept_at, mut tries) = (Vec::new(), Instant::now(), 0);
    while batch.stage == Stage::InProgress {
        let at = usize::try_from(batch.done()).unwrap_or(usize::MAX).saturating_add(fresh.len());
        let next = asked.get(at).zip(file.lines.get(at)).filter(|_| has_time(api));
        let made = match next {
            Some((line, counted)) => one(api, line, *counted, file).await,
            None => Made::Interrupted,
        };
        match made {
            Made::Answer(line, spent) => {
                (tries, _) = (0, api.desk.lines.fetch_add(1, Ordering::SeqCst));
                fresh.push((line, spent));
            }
            Made::Interrupted if next.is_some() => {
                api.desk.interrupted.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(AGAIN).await;
            }
            Made::Interrupted => {}
            Made::Failed(why) => {
                tries += 1;
                tokio::time::sleep(AGAIN).await;
                tracing::warn!(batch = batch.id, line = at + 1, why, tries, "a line of a batch was not answered");
                if let Some((line, _)) = next.filter(|_| tries >= TRIES) {
                    tries = 0;
                    let why = ("engine_failed", "the model failed at this request, each of three times");
                    fresh.push((without_answer(line, why), Spent::default()));
                }
            }
        }
        let is_last = at + 1 >= asked.len();
        if !fresh.is_empty() && (is_last || next.is_none() || kept_at.elapsed() >= KEEP_EVERY) {
            kept_at = Instant::now();
            let lines = std::mem::take(&mut fresh);
            match api.step_batch(&batch.id, Input::Answered(lines)).await? {
                Some(next) => batch = next,
                None => return Ok(()),
            }
        } else if next.is_none() {
            // Whoever else needs the loop (what is due, another role, an engine that is away) gets it.
            return Ok(());
        }
    }
    Ok(())
}

/// Whether nobody else is here, and the agent sells.
fn has_time(api: &Api) -> bool {
    api.shared.role() == Role::Active && api.shared.price().is_some() && api.shared.in_flight() == 0
}

enum Made {
    Answer(Kept, Spent),
    /// A live request came, or the engine is away: it is tried again, however often.
    Interrupted,
    Failed(String),
}

async fn one(api: &Api, line: &Line, counted: Counted, file: &InputFile) -> Made {
    let live = api.shared.generations();
    let started = match start(api, &line.asked, counted, file.created_at).await {
        Ok(Some(started)) if has_time(api) && api.shared.generations() == live => started,
        Ok(_) => return Made::Interrupted,
        Err(problem) if problem.api().status == 503 => return Made::Interrupted,
        Err(problem) => return Made::Failed(problem.api().message.clone()),
    };
    let mut generation = started;
    let made = tokio::select! {
        biased;
        () = api.shared.generation_after(live) => None,
        made = collected(&mut generation) => Some(made),
    };
    match made {
        None => {
            generation.cancel();
            Made::Interrupted
        }
        Some(Err(error)) if error.code == "engine_busy" => Made::Interrupted,
        Some(Err(error)) => Made::Failed(error.message),
        Some(Ok(made)) => {
            let usage = made.usage;
            let body = made.body(api, &line.asked);
            let json = answered(&fresh_id("batch_req_"), &line.custom_id, &fresh_id("req_"), &body);
            let spent = Spent {
                prompt: usage.prompt_tokens.into(),
                cached: usage.cached_tokens.into(),
                completion: usage.completion_tokens.into(),
            };
            Made::Answer(Kept { failed: false, json: json.to_string() }, spent)
        }
    }
}

/// Begins a line; `None`: its engine is not here yet.
async fn start(api: &Api, asked: &Asked, counted: Counted, date: u64) -> Result<Option<Generation>, Problem> {
    let away = |e: infer::Error| Problem::for_unavail(format!("the engine cannot take it: {e}"), 1);
    if let Asked::Embedding(request) = asked {
        let Some(embedder) = api.shared.embedder() else { return Ok(None) };
        return embedder.client.embed(request.inputs.clone()).map(Some).map_err(away);
    }
    let Some(engine) = api.shared.engine() else { return Ok(None) };
    let (prompt, settings) = match asked {
        Asked::Chat(request) => (api.rendered(asked, date).await?, request.settings.clone()),
        Asked::Completion(request) => (request.prompt.clone(), request.settings.clone()),
        Asked::Embedding(_) => return Ok(None),
    };
    let adapter = api.serves_model(asked.model())?.and_then(|adapter| u32::try_from(adapter).ok());
    let generate = Generate { adapter, ..settings.generate(prompt, counted.answer_max, rand::random()) };
    engine.client.generate(generate).map(Some).map_err(away)
}

/// A line's answer as the engine made it.
struct Whole {
    text: String,
    logprobs: Vec<infer::TokenLogprob>,
    vectors: Vec<Vec<f32>>,
    finish: Finish,
    usage: Usage,
}

async fn collected(generation: &mut Generation) -> Result<Whole, ApiError> {
    let usage = Usage { prompt_tokens: 0, cached_tokens: 0, completion_tokens: 0 };
    let (text, vectors) = (String::new(), Vec::new());
    let mut whole = Whole { text, logprobs: Vec::new(), vectors, finish: Finish::Stop, usage };
    while let Some(event) = generation.recv().await {
        match event {
            EngineEvent::Accepted { .. } => {}
            EngineEvent::Tokens { text, logprobs, .. } => {
                whole.text.push_str(&text);
                whole.logprobs.extend(logprobs);
            }
            EngineEvent::Done { finish, prompt_tokens, cached_tokens, completion_tokens } => {
                let usage = Usage { prompt_tokens, cached_tokens, completion_tokens };
                return Ok(Whole { finish, usage, ..whole });
            }
            EngineEvent::Embedded { vectors, prompt_tokens } => {
                let usage = Usage { prompt_tokens, cached_tokens: 0, completion_tokens: 0 };
                return Ok(Whole { vectors, usage, ..whole });
            }
            EngineEvent::Failed { kind, message } => return Err(ApiError::for_engine(kind, &message)),
        }
    }
    Err(ApiError::for_internal())
}

impl Whole {
    /// The body that the endpoint would have answered with.
    fn body(&self, api: &Api, asked: &Asked) -> Value {
        let created = api.shared.now();
        let answered = Answered { text: &self.text, logprobs: &self.logprobs, finish: self.finish, usage: self.usage };
        match asked {
            Asked::Chat(request) => {
                let reply = ChatReply {
                    id: fresh_id("chatcmpl-"),
                    created,
                    model: request.model.clone(),
                    include_usage: false,
                    logprobs: request.settings.logprobs.is_some(),
                    tools: request.tools.is_some(),
                };
                reply.whole(answered, Map::new())
            }
            Asked::Completion(request) => {
                let mut reply = CompletionReply {
                    id: fresh_id("cmpl-"),
                    created,
                    model: request.model.clone(),
                    include_usage: false,
                    logprobs: request.settings.logprobs.is_some(),
                    told_chars: 0,
                };
                reply.whole(answered, Map::new())
            }
            Asked::Embedding(request) => {
                let reply = EmbeddingReply { model: request.model.clone(), encoding: request.encoding };
                reply.whole(&self.vectors, self.usage.prompt_tokens, Map::new())
            }
        }
    }
}

impl Api {
    /// A chat's prompt, as its template makes it on this date.
    pub(in crate::api) async fn rendered(&self, asked: &Asked, date: u64) -> Result<String, Problem> {
        let Asked::Chat(request) = asked else { return Err(Problem::for_internal("only chats have templates")) };
        self.render_on(None, &request.messages, request.offered_tools(), date).await
    }
}
