//! `vivarium bench infer`: the engine alone, over its socket, beside llama.cpp's own server on the same model in the
//! same run, in turn.
//!
//! Then once more with payment: a whole agent's API, in turn with the engine alone, with llama.cpp's server, and with a loop
//! around this build of llama.cpp that does nothing but decode (`engine/examples/bare_loop.rs`).
//!
//! Speed is what the one who asks sees: tokens of all streams over the time from asking to the last end. Each figure is
//! the median of a few rounds; the ratio is of medians.

mod paid;

use super::events::Events;
use super::report::{Report, median, memory_kib, millis};
use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use futures::future::try_join_all;
use infer::{EngineClient, EngineConfig, EngineEvent, Generate};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;
use tokio::time::Instant;
use vivarium::world::{Programs, model};

/// Figures of the engine, with llama.cpp's own server beside them
#[derive(clap::Args)]
#[group(id = "engines")]
pub struct Flags {
    /// Rounds of each figure, of which the median is shown
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Threads of arithmetic, of both. More than cores that are free make both slow
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// Writes the figures into docs/benchmarks.md
    #[arg(long)]
    write: bool,
}

/// Streams side by side, as docs/benchmarks.md has them.
const STREAMS: [u32; 4] = [1, 4, 8, 16];
const SLOTS: u32 = 16;
const CONTEXT: u32 = 1_024;
const ANSWER_TOKENS: u32 = 64;
/// Words of the long prompt; about as many tokens.
const LONG_WORDS: usize = 500;
/// Of the shared beginning, and questions that begin with it.
const SHARED_WORDS: usize = 400;
const SHARING: u32 = 8;
/// Texts that become vectors in one call, and words of each.
const PASSAGES: u32 = 64;
const PASSAGE_WORDS: usize = 100;
/// Where the peer's Python environment lies in the project.
const PYTHON: &str = ".vivarium/peers/bin/python";

pub async fn run(flags: Flags) -> Result<()> {
    let project = Programs::project()?;
    let vivarium = std::env::current_exe().context("cannot find this program's own file")?;
    let program = Programs::of(&project, &vivarium)?.engine;
    let model = model::Model::standard(&project);
    let socket = std::env::temp_dir().join(format!("vivarium-bench-infer-{}.sock", std::process::id()));
    let config = EngineConfig {
        adapters: Vec::new(),
        program: program.clone(),
        model: model.path.clone(),
        socket: socket.clone(),
        threads: flags.threads,
        threads_max: flags.threads,
        ctx: CONTEXT,
        slots: SLOTS,
    };
    let (engine, hello) = EngineClient::spawn(config).await?;
    let ours = Ours { pid: engine.pid().context("the engine has just started")?, engine };
    let theirs = Theirs::start(&project, &model.path, flags.threads)?;
    let mut report = Report::new("infer");
    let done = async {
        let reading = measure(&ours, &theirs, flags.rounds, &mut report).await?;
        vectors(&program, &project, &flags, reading, &mut report).await?;
        let mut bare = BareLoop::start(&program, &model.path, flags.threads)?;
        paid::measure(&mut bare, &ours, &theirs, &flags, &mut report).await
    };
    let done = done.await;
    std::fs::remove_file(&socket).ok();
    done?;
    println!("{} on {}; {} thread(s) each", hello.engine_build, hello.isa, flags.threads);
    if flags.write {
        report.write(&project.join("docs/benchmarks.md"))?;
    }
    Ok(())
}

/// Says how many tokens of a prompt our engine reads a second.
async fn measure(ours: &Ours, theirs: &Theirs, rounds: u32, report: &mut Report) -> Result<f64> {
    let mut salt = 0;
    let mut fresh = || {
        salt += 1;
        salt
    };
    for streams in STREAMS {
        let (mut us, mut them) = (Vec::new(), Vec::new());
        let (mut first_us, mut first_them) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let prompts: Vec<String> = (0..streams).map(|_| story(fresh())).collect();
            let answers = together(ours, &prompts, ANSWER_TOKENS).await?;
            us.push(answers.tokens_per_sec());
            first_us.push(answers.first());
            let prompts: Vec<String> = (0..streams).map(|_| story(fresh())).collect();
            let answers = together(theirs, &prompts, ANSWER_TOKENS).await?;
            them.push(answers.tokens_per_sec());
            first_them.push(answers.first());
        }
        let (us, them) = (median(us), median(them));
        let beside = format!("{them:.1} tokens/s; ratio {:.2}", us / them);
        report.row(
            &format!("answers of {ANSWER_TOKENS} tokens, {streams} stream(s)"),
            format!("{us:.1} tokens/s"),
            beside,
        );
        if streams == 1 {
            let (us, them) = (median(first_us), median(first_them));
            let shown = |secs: f64| millis(Duration::from_secs_f64(secs));
            let beside = format!("{}; ratio {:.2} (below 1 is sooner)", shown(them), us / them);
            report.row("first token of a short prompt", shown(us), beside);
        }
    }

    let (mut us, mut them) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        us.push(together(ours, &[long(fresh())], 1).await?.prompt_tokens_per_sec());
        them.push(together(theirs, &[long(fresh())], 1).await?.prompt_tokens_per_sec());
    }
    let (us, them) = (median(us), median(them));
    let reading = us;
    let beside = format!("{them:.0} tokens/s; ratio {:.2}", us / them);
    report.row(&format!("reading a prompt of about {LONG_WORDS} tokens"), format!("{us:.0} tokens/s"), beside);

    let plain = Plain(ours);
    let (mut guessing, mut without) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        // The same questions, in turn who is first asked them: the prompt is read before an answer's first token.
        for (salt, code) in CODE.iter().map(|code| (fresh(), code)) {
            let prompt = edit(salt, code);
            guessing.push(ours.ask(&prompt, EDIT_TOKENS).await?.decoding());
            without.push(plain.ask(&prompt, EDIT_TOKENS).await?.decoding());
        }
    }
    let (guessing, without) = (median(guessing), median(without));
    let beside = format!("{without:.1} tokens/s without guesses; {:.2} times as fast", guessing / without);
    report.row("code written again with a change, 1 stream", format!("{guessing:.1} tokens/s"), beside);

    let (mut us, mut them) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let prompts = sharing(fresh());
        us.push(together(ours, &prompts, 8).await?.whole.as_secs_f64());
        let prompts = sharing(fresh());
        them.push(together(theirs, &prompts, 8).await?.whole.as_secs_f64());
    }
    let (us, them) = (median(us), median(them));
    let what = format!("{SHARING} questions at once with the same {SHARED_WORDS} tokens before them, 8 tokens each");
    report.row(&what, format!("{us:.2} s"), format!("{them:.2} s; {:.2} times as fast", them / us));

    let (us, them) = (resident_mib(ours.pid)?, resident_mib(theirs.process.id())?);
    let beside = format!("{them} MiB, with Python's own");
    report.row(&format!("memory, {SLOTS} requests of {CONTEXT} tokens"), format!("{us} MiB"), beside);
    Ok(reading)
}

/// The embedding model, beside how fast a prompt is read: what `embedding_pct` of `economy::Policy` comes from.
async fn vectors(program: &Path, project: &Path, flags: &Flags, reading: f64, report: &mut Report) -> Result<()> {
    let model = model::Model::embedding(project);
    let socket = std::env::temp_dir().join(format!("vivarium-bench-embed-{}.sock", std::process::id()));
    let config = EngineConfig {
        adapters: Vec::new(),
        program: program.to_owned(),
        model: model.path,
        socket: socket.clone(),
        threads: flags.threads,
        threads_max: flags.threads,
        ctx: model.context,
        slots: EngineConfig::TEXTS_DEFAULT,
    };
    let (engine, _) = EngineClient::spawn(config).await?;
    let mut salt = 0;
    for (name, words_each, texts) in [("passages", PASSAGE_WORDS, PASSAGES), ("questions", 8, 1)] {
        let (mut speeds, mut times) = (Vec::new(), Vec::new());
        for _ in 0..flags.rounds {
            salt += 1;
            let texts = (0..texts).map(|_| words(salt, words_each)).collect();
            let asked = Instant::now();
            let mut made = engine.embed(texts)?;
            let tokens = loop {
                match made.next().await.context("vectors have no end")? {
                    EngineEvent::Embedded { prompt_tokens, .. } => break prompt_tokens,
                    EngineEvent::Failed { message, .. } => bail!("the embedding engine failed: {message}"),
                    _ => {}
                }
            };
            let secs = asked.elapsed().as_secs_f64().max(1e-9);
            speeds.push(f64::from(tokens) / secs);
            times.push(secs);
        }
        let (speed, time) = (median(speeds), median(times));
        let beside = format!("{:.1} times as fast as a prompt is read", speed / reading);
        let what = format!("vectors of {texts} {name} of {words_each} words");
        let time = millis(Duration::from_secs_f64(time));
        report.row(&what, format!("{speed:.0} tokens/s, {time}"), beside);
    }
    let memory = resident_mib(engine.pid().context("the embedding engine is gone")?)?;
    report.row("memory of the embedding engine", format!("{memory} MiB"), String::new());
    // It listens no more once the last client is gone; an early end leaves the file to the system.
    std::fs::remove_file(&socket).ok();
    Ok(())
}

// ---------------------------------------------------------------------------------------------------- what is asked

/// The beginning of a text that a model goes on with for long. No two salts share one, so nothing is reused.
fn story(salt: u32) -> String {
    format!("{salt}. Once upon a time there was a lighthouse keeper who counted {salt} ships every night, and")
}

/// Words in a row that no other salt has.
fn words(salt: u32, count: usize) -> String {
    const WORDS: [&str; 8] = ["river", "stone", "winter", "garden", "letter", "market", "silver", "window"];
    let mut text = format!("{salt}:");
    for at in 0..count {
        text.push(' ');
        text.push_str(WORDS[(at * at + at / 3) % WORDS.len()]);
    }
    text
}

fn long(salt: u32) -> String {
    words(salt, LONG_WORDS)
}

/// Pieces of code to be written again with a small change: what editors ask for.
const CODE: [&str; 4] = [
    "fn area(width: u32, height: u32) -> u32 {\n    width * height\n}\n\n\
     fn volume(width: u32, height: u32, depth: u32) -> u32 {\n    area(width, height) * depth\n}\n",
    "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    \
     return total / len(values)\n\n\ndef spread(values):\n    middle = mean(values)\n    \
     return max(abs(value - middle) for value in values)\n",
    "function greet(person) {\n  const name = person.firstName + ' ' + person.lastName;\n  \
     console.log('Hello, ' + name);\n  return name;\n}\n\n\
     function greetAll(people) {\n  return people.map((person) => greet(person));\n}\n",
    "{\n  \"name\": \"shop\",\n  \"port\": 8080,\n  \"database\": {\"host\": \"localhost\", \"port\": 5432},\n  \
     \"log\": {\"level\": \"info\", \"file\": \"shop.log\"}\n}\n",
];
const EDIT_TOKENS: u32 = 96;

fn edit(salt: u32, code: &str) -> String {
    format!("File {salt}, before:\n{code}\nFile {salt}, after the change:\n")
}

fn sharing(salt: u32) -> Vec<String> {
    let shared = words(salt, SHARED_WORDS);
    let question =
        |n| format!("{shared}\n\nQuestion {n}: what comes after {n}? Let me think about it step by step and");
    (1..=SHARING).map(question).collect()
}

// ---------------------------------------------------------------------------------------------------- who is asked

/// One answer: when its first text came, since it was asked for, and how many tokens there were.
struct Answer {
    first: Duration,
    /// Until its end.
    whole: Duration,
    prompt_tokens: u32,
    tokens: u32,
}

impl Answer {
    /// Tokens a second from the first one on.
    fn decoding(&self) -> f64 {
        f64::from(self.tokens.saturating_sub(1)) / (self.whole.saturating_sub(self.first)).as_secs_f64().max(1e-9)
    }
}

struct Answers {
    each: Vec<Answer>,
    whole: Duration,
}

impl Answers {
    fn tokens_per_sec(&self) -> f64 {
        f64::from(self.each.iter().map(|answer| answer.tokens).sum::<u32>()) / self.whole.as_secs_f64().max(1e-9)
    }

    /// Seconds, of the first answer.
    fn first(&self) -> f64 {
        self.each.first().map_or(f64::NAN, |answer| answer.first.as_secs_f64())
    }

    fn prompt_tokens_per_sec(&self) -> f64 {
        self.each.first().map_or(f64::NAN, |answer| f64::from(answer.prompt_tokens)) / self.first().max(1e-9)
    }
}

trait Asked {
    async fn ask(&self, prompt: &str, tokens: u32) -> Result<Answer>;
}

async fn together(whom: &impl Asked, prompts: &[String], tokens: u32) -> Result<Answers> {
    let asked = Instant::now();
    let each = try_join_all(prompts.iter().map(|prompt| whom.ask(prompt, tokens))).await?;
    let whole = asked.elapsed();
    let made: u32 = each.iter().map(|answer| answer.tokens).sum();
    let wanted = tokens * u32::try_from(prompts.len())?;
    ensure!(made * 10 >= wanted * 9, "{made} tokens were answered where {wanted} were asked for");
    Ok(Answers { each, whole })
}

struct Ours {
    engine: EngineClient,
    pid: u32,
}

/// Without guesses.
struct Plain<'a>(&'a Ours);

impl Asked for Ours {
    async fn ask(&self, prompt: &str, tokens: u32) -> Result<Answer> {
        self.asked(Generate::greedy(prompt, tokens)).await
    }
}

impl Asked for Plain<'_> {
    async fn ask(&self, prompt: &str, tokens: u32) -> Result<Answer> {
        self.0.asked(Generate { lookup: false, ..Generate::greedy(prompt, tokens) }).await
    }
}

impl Ours {
    async fn asked(&self, request: Generate) -> Result<Answer> {
        let asked = Instant::now();
        let mut answer = self.engine.generate(request)?;
        let mut first = None;
        while let Some(event) = answer.next().await {
            match event {
                EngineEvent::Tokens { .. } => first = first.or_else(|| Some(asked.elapsed())),
                EngineEvent::Failed { message, .. } => bail!("the engine failed: {message}"),
                EngineEvent::Done { prompt_tokens, completion_tokens, .. } => {
                    let first = first.unwrap_or_else(|| asked.elapsed());
                    return Ok(Answer { first, whole: asked.elapsed(), prompt_tokens, tokens: completion_tokens });
                }
                EngineEvent::Accepted { .. } | EngineEvent::Embedded { .. } => {}
            }
        }
        bail!("the engine's answer has no end")
    }
}

/// llama.cpp's server. It ends when this program does, because its standard input ends then.
struct Theirs {
    process: Child,
    _stdin: Option<ChildStdin>,
    url: String,
    client: net::Client,
}

impl Theirs {
    fn start(project: &Path, model: &Path, threads: u32) -> Result<Self> {
        let python = project.join(PYTHON);
        ensure!(python.is_file(), "there is no {}: `cargo xtask bench infer` installs it", python.display());
        let mut process = Command::new(&python)
            .arg(project.join("tests/peers/llama_server.py"))
            .arg(model)
            .args([threads, SLOTS, CONTEXT].map(|number| number.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", python.display()))?;
        let stdin = process.stdin.take();
        let mut line = String::new();
        BufReader::new(process.stdout.take().context("it was piped")?).read_line(&mut line)?;
        let url = line.trim().to_owned();
        ensure!(url.starts_with("http://"), "llama.cpp's server did not start: it said {url:?}");
        let client = net::Client::new().with_deadline(Duration::from_secs(120));
        Ok(Self { process, _stdin: stdin, url, client })
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Asked for Theirs {
    async fn ask(&self, prompt: &str, tokens: u32) -> Result<Answer> {
        let url = format!("{}/completion", self.url);
        let body = json!({ "prompt": prompt, "n_predict": tokens, "temperature": 0, "stream": true });
        let asked = Instant::now();
        let mut answer = self.client.post_json(&url, &body).await?.success_or_read().await?;
        let (mut first, mut events) = (None, Events::default());
        while let Some(piece) = answer.body.chunk(&url).await? {
            for data in events.of(&piece) {
                let event: Value = serde_json::from_slice(&data)?;
                if event["content"].as_str().is_some_and(|text| !text.is_empty()) {
                    first = first.or_else(|| Some(asked.elapsed()));
                }
                if event["stop"] == true {
                    let count = |name: &str| {
                        let number = event[name].as_u64().with_context(|| format!("no {name} in {event}"))?;
                        Ok::<_, anyhow::Error>(u32::try_from(number)?)
                    };
                    return Ok(Answer {
                        first: first.unwrap_or_else(|| asked.elapsed()),
                        whole: asked.elapsed(),
                        prompt_tokens: count("tokens_evaluated")?,
                        tokens: count("tokens_predicted")?,
                    });
                }
            }
        }
        bail!("the answer of llama.cpp's server has no end")
    }
}

/// Nothing but decoding. It ends when its standard input does.
struct BareLoop {
    process: Child,
    asked: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl BareLoop {
    /// `engine`: the engine's program, beside which Cargo puts examples.
    fn start(engine: &Path, model: &Path, threads: u32) -> Result<Self> {
        let program = engine.with_file_name("examples").join("bare_loop");
        ensure!(program.is_file(), "there is no {}: `cargo xtask bench infer` builds it", program.display());
        let mut process = Command::new(&program)
            .arg(model)
            .args([threads, SLOTS, CONTEXT].map(|number| number.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let asked = process.stdin.take().context("it was piped")?;
        let answers = BufReader::new(process.stdout.take().context("it was piped")?);
        Ok(Self { process, asked, answers })
    }

    /// Tokens a second of all prompts side by side, from the prompts to the last token.
    fn tokens_per_sec(&mut self, prompts: &[String], tokens: u32) -> Result<f64> {
        writeln!(self.asked, "{}", json!({ "prompts": prompts, "tokens": tokens }))?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let said: Value = serde_json::from_str(&line).context("the bare loop has ended")?;
        let secs = said["seconds"].as_f64().context("it says how long it took")?;
        Ok(f64::from(tokens) * f64::from(u32::try_from(prompts.len())?) / secs.max(1e-9))
    }
}

impl Drop for BareLoop {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn resident_mib(pid: u32) -> Result<u64> {
    Ok(memory_kib(pid, "VmRSS:").context("Linux tells it")? >> 10)
}
