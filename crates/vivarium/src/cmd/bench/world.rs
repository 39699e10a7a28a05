//! `vivarium bench`: figures of a world of real processes.
//!
//! Speed is compared with a peer in the same run: the same engine program on the same weights, asked directly over
//! its socket, in turn with paid streams. What a paid answer costs in time is the difference.

use super::events::Events;
use super::report::{median, millis, millis_between, percentile};
use crate::cmd::link::stopped;
use anyhow::{Context, Result, bail, ensure};
use economy::Usdc;
use futures::StreamExt;
use infer::api::{Message, Role, Sampling};
use infer::{ChatTemplate, EngineClient, EngineConfig, EngineEvent};
use pay::buyer::{Buyer, ChannelPolicy};
use pay::seller::FRESH_ANSWER;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use vivarium::world::crowd::{self, ChainClock, Crowd};
use vivarium::world::progress::Progress;
use vivarium::world::{Options, Programs, World, model};

/// Prompts of one round; each is asked once paid and once of the bare engine.
const PROMPTS: [&str; 8] = [
    "What is a lease?",
    "Name three rivers in Europe.",
    "Explain what a receipt is for.",
    "Write one sentence about the sea.",
    "Why do we sleep?",
    "What does a steward do?",
    "Describe a good morning.",
    "How does a market find a price?",
];
const ANSWER_TOKENS: u32 = 48;

/// Starts a world in a temporary folder and prints how long things take.
#[derive(clap::Args)]
#[group(id = "worlds")]
pub struct Flags {
    /// Days of this many seconds
    #[arg(long, default_value_t = 20)]
    day_secs: u32,
    /// Give up on a figure after this many seconds
    #[arg(long, default_value_t = 180)]
    patience_secs: u64,
    /// Rounds of eight questions, each asked paid and of the bare engine. A p99 wants more than one
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

pub async fn run(flags: Flags) -> Result<()> {
    let project = Programs::project()?;
    let vivarium = std::env::current_exe().context("cannot find this program's own file")?;
    let scratch = std::env::temp_dir().join(format!("vivarium-bench-{}", std::process::id()));
    let programs = Programs::of(&project, &vivarium)?;
    let options = Options { progress: Progress::Shown, ..options(&scratch, flags.day_secs, programs.clone()) };
    let started = Instant::now();
    let mut world = World::start(options, stopped()?).await?;
    let outcome = measure(&mut world, &programs, started, &flags).await;
    world.stop().await;
    std::fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    outcome
}

/// The world that benches measure: short leases, and enough money for all that they ask. Silent.
pub fn options(data_dir: &Path, day_secs: u32, programs: Programs) -> Options {
    Options {
        data_dir: data_dir.to_owned(),
        fresh: false,
        day_secs: Some(day_secs),
        lease_days: Some(3),
        seed: Some(Usdc(100_000_000)),
        settle_after: None,
        hibernates: false,
        port: None,
        chain_ahead_secs: 0,
        chain_doors: BTreeMap::new(),
        threads: None,
        places: BTreeMap::new(),
        // A host that is killed stays dead: that is what a takeover is for.
        restart: false,
        model: None,
        programs,
        progress: Progress::Silent,
    }
}

async fn measure(world: &mut World, programs: &Programs, started: Instant, flags: &Flags) -> Result<()> {
    let patience = Duration::from_secs(flags.patience_secs);
    println!("| what | figure |");
    println!("| --- | --- |");
    let keys = world.crowd_keys(1).await?;
    let start_crowd = |world: &World| {
        let place = (world.file()?, world.folder().path());
        Crowd::start(place, &world.model_name()?, world.internal().choices.day_secs, keys.clone())
    };
    let crowd = start_crowd(world)?;
    let first = until(world, patience, |_, answers| answers > 0, &|| crowd.answers()).await?;
    print_row("`up` to first paid answer", first.map(|at| at - started));
    let key = keys[0].clone();
    crowd.stop().await;
    speeds(world, programs, key, flags.rounds).await?;

    let crowd = start_crowd(world)?;
    let epoch = world.file()?.agent.epoch;
    let moved = until(world, patience, move |now, _| now > epoch, &|| crowd.answers()).await?;
    let answers = crowd.answers();
    let again = until(world, patience, move |_, now| now > answers, &|| crowd.answers()).await?;
    print_row("handover mined to next paid answer", moved.zip(again).map(|(from, to)| to - from));

    let epoch = standby_ready(world, patience).await?;
    let killed = kill_host(world).await?;
    let taken = until(world, patience, move |now, _| now > epoch, &|| crowd.answers()).await?;
    print_row("host killed to takeover mined", taken.map(|at| at - killed));
    let answers = crowd.answers();
    let again = until(world, patience, move |_, now| now > answers, &|| crowd.answers()).await?;
    print_row("host killed to next paid answer (memory restored)", again.map(|at| at - killed));
    if let Some(url) = world.file()?.agent.url.clone() {
        let status: Value = net::Client::new().get_json(&format!("{url}/status")).await?;
        println!("| requests served, refused | {}, {} |", status["requests"]["served"], status["requests"]["refused"]);
    }
    Ok(())
}

// ---- a paid stream against the bare engine ----

/// One answer, measured from the moment it was asked for.
pub struct Timed {
    pub first: Duration,
    /// From the first token to the last.
    rest: Duration,
    tokens: u32,
}

impl Timed {
    fn tokens_per_sec(&self) -> f64 {
        f64::from(self.tokens.saturating_sub(1)) / self.rest.as_secs_f64().max(1e-9)
    }
}

async fn speeds(
    world: &mut World,
    programs: &Programs,
    key: alloy::signers::local::PrivateKeySigner,
    rounds: u32,
) -> Result<()> {
    let file = world.file()?.clone();
    let socket = world.folder().path().join("bare.sock");
    let bare = Bare::start(&programs.engine, &model::Model::standard(world.project()), &socket).await?;
    let record = world.record(file.treasury)?;
    let clock = ChainClock::default();
    let policy = crowd::policy(file.chain_id, file.usdc, file.treasury, Usdc(1_000_000_000), Usdc(1_000_000_000_000));
    let exact = Buyer::new(net::Client::new(), key.clone(), policy.clone()).with_clock(clock.reader());
    let channels = ChannelPolicy { deposit: Usdc(100_000_000), ..crowd::channels(Usdc(1_000_000_000), 1, 0) };
    let voucher = Buyer::new(net::Client::new(), key, policy).with_clock(clock.reader()).with_channels(channels);
    let model_name = world.model_name()?;
    let (mut paid, mut vouched, mut unpaid) = (Vec::new(), Vec::new(), Vec::new());
    // The first call on a channel puts its deposit in, which is not what is measured.
    clock.set(record.chain.head().await?.timestamp);
    ask_paid(&voucher, &record.url().await?, &model_name, "Say hello.").await?;
    for prompt in (0..rounds).flat_map(|_| PROMPTS) {
        unpaid.push(bare.ask(prompt).await?);
        clock.set(record.chain.head().await?.timestamp);
        for (buyer, answers) in [(&exact, &mut paid), (&voucher, &mut vouched)] {
            let url = record.url().await?;
            match ask_paid(buyer, &url, &model_name, prompt).await {
                Ok(timed) => answers.push(timed),
                // A move in between; the median stands on the others.
                Err(e) => tracing::warn!(error = format!("{e:#}"), "a paid question failed"),
            }
        }
    }
    let enough = |answers: &[Timed]| answers.len() * 2 > unpaid.len();
    ensure!(enough(&paid) && enough(&vouched), "most paid questions failed: see the warnings");
    let first = |all: &[Timed], percent| percentile(&all.iter().map(|t| t.first).collect::<Vec<_>>(), percent);
    let both = |all: &[Timed]| format!("{} / {}", millis(first(all, 50)), millis(first(all, 99)));
    let minus = |all: &[Timed]| {
        let at = |percent| millis_between(first(all, percent), first(&unpaid, percent));
        format!("{} / {} (of {})", at(50), at(99), all.len())
    };
    let speed = |all: &[Timed]| median(all.iter().map(Timed::tokens_per_sec).collect());
    println!("| time to first token, `exact`, a known payer's stream (402 and payment), p50 / p99 | {} |", both(&paid));
    println!("| time to first token, the same engine and prompt unpaid, over its socket | {} |", both(&unpaid));
    println!("| paid minus unpaid, `exact` | {} |", minus(&paid));
    println!("| paid minus unpaid, a voucher on a channel | {} |", minus(&vouched));
    let (paid_speed, bare_speed) = (speed(&paid), speed(&unpaid));
    println!("| decoding, one paid stream | {paid_speed:.1} tokens/s |");
    println!(
        "| decoding, the bare engine | {bare_speed:.1} tokens/s (paid is {:.2} of it) |",
        paid_speed / bare_speed.max(1e-9)
    );
    Ok(())
}

/// The engine without a node, a journal or a payment around it.
struct Bare {
    engine: EngineClient,
    template: ChatTemplate,
}

impl Bare {
    async fn start(program: &Path, model: &model::Model, socket: &Path) -> Result<Self> {
        let config = EngineConfig {
            adapters: Vec::new(),
            program: program.to_owned(),
            model: model.path.clone(),
            socket: socket.to_owned(),
            threads: 1,
            threads_max: EngineConfig::cores(),
            ctx: model.context,
            slots: EngineConfig::SLOTS_DEFAULT,
        };
        let (engine, hello) = EngineClient::spawn(config).await?;
        let template = ChatTemplate::new(hello.chat_template.as_deref(), &hello.bos, &hello.eos)?;
        Ok(Self { engine, template })
    }

    async fn ask(&self, prompt: &str) -> Result<Timed> {
        let asked = Instant::now();
        let messages = [Message::new(Role::User, prompt)];
        let rendered = self.template.render(&messages, 0)?;
        let mut generation =
            self.engine.generate(Sampling::default().generate(rendered, ANSWER_TOKENS, Vec::new(), 7))?;
        let mut clock = Stopwatch::new(asked);
        while let Some(event) = generation.next().await {
            match event {
                EngineEvent::Tokens { count, .. } => clock.heard(count),
                EngineEvent::Failed { message, .. } => bail!("the bare engine failed: {message}"),
                EngineEvent::Accepted { .. } | EngineEvent::Done { .. } | EngineEvent::Embedded { .. } => {}
            }
        }
        clock.done()
    }
}

pub async fn ask_paid(buyer: &Buyer, url: &str, model: &str, prompt: &str) -> Result<Timed> {
    let body = json!({
        "model": model, "max_tokens": ANSWER_TOKENS, "seed": 7, "stream": true,
        "messages": [{ "role": "user", "content": prompt }],
    });
    let fresh = http::HeaderMap::from_iter([(FRESH_ANSWER, http::HeaderValue::from_static("1"))]);
    let mut clock = Stopwatch::new(Instant::now());
    let mut answer = buyer.post_stream(&format!("{url}/v1/chat/completions"), fresh, &body).await?;
    ensure!(answer.status.is_success(), "answered {}", answer.status);
    let mut events = Events::default();
    while let Some(piece) = answer.chunk().await? {
        for data in events.of(&piece) {
            let Ok(event) = serde_json::from_slice::<Value>(&data) else { continue };
            // One token a chunk, except where a character needs several.
            if event["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty()) {
                clock.heard(1);
            }
        }
    }
    clock.done()
}

struct Stopwatch {
    asked: Instant,
    first: Option<Instant>,
    last: Instant,
    tokens: u32,
}

impl Stopwatch {
    fn new(asked: Instant) -> Self {
        Self { asked, first: None, last: asked, tokens: 0 }
    }

    fn heard(&mut self, tokens: u32) {
        self.last = Instant::now();
        self.first.get_or_insert(self.last);
        self.tokens += tokens;
    }

    fn done(self) -> Result<Timed> {
        let first = self.first.context("an answer without a token")?;
        Ok(Timed { first: first - self.asked, rest: self.last - first, tokens: self.tokens })
    }
}

// ---- the life around it ----

/// Waits until the standby could take over; the epoch in which that is so.
pub async fn standby_ready(world: &mut World, patience: Duration) -> Result<u64> {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        let agent = world.file()?.agent.clone();
        if let Some(url) = agent.url {
            let status: Result<Value, _> = net::Client::new().get_json(&format!("{url}/status")).await;
            if status.is_ok_and(|s| s["standby"]["ready"] == true && s["selling"] == true) {
                return Ok(agent.epoch);
            }
        }
        world.run(sleep(Duration::from_millis(200))).await?;
        world.refresh().await?;
    }
    bail!("no standby got ready")
}

/// SIGKILL to the provider daemon under which the agent lives; its tenants end with it.
pub async fn kill_host(world: &World) -> Result<Instant> {
    let file = world.file()?;
    let pid = file.agent.pid.context("the agent has no process")?;
    for provider in &file.providers {
        let status: Result<Value, _> = net::Client::new().get_json(&format!("{}/status", provider.url)).await;
        let hosts =
            status.is_ok_and(|s| s["tenants"].as_array().is_some_and(|all| all.iter().any(|t| t["pid"] == pid)));
        let daemon = provider.pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let (true, Some(daemon)) = (hosts, daemon) {
            rustix::process::kill_process(daemon, Signal::KILL).context("the provider cannot be killed")?;
            return Ok(Instant::now());
        }
    }
    bail!("no provider says that it runs process {pid}")
}

/// Waits for `happened(epoch, answers)`; the moment it did.
pub async fn until(
    world: &mut World,
    patience: Duration,
    happened: impl Fn(u64, u64) -> bool,
    answers: &impl Fn() -> u64,
) -> Result<Option<Instant>> {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if happened(world.file()?.agent.epoch, answers()) {
            return Ok(Some(Instant::now()));
        }
        world.run(sleep(Duration::from_millis(50))).await?;
        world.refresh().await?;
    }
    Ok(None)
}

fn print_row(what: &str, took: Option<Duration>) {
    match took {
        Some(took) => println!("| {what} | {:.1} s |", took.as_secs_f32()),
        None => println!("| {what} | not seen |"),
    }
}
