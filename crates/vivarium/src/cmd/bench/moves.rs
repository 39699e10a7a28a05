//! `vivarium bench move`: what customers feel while the agent moves, and while a host is lost.
//!
//! The load comes as ordinary programs send it: plain requests to `vivarium proxy`, which pays by channel and follows the
//! agent. They come at a constant rate whatever became of those before, so that a pause is not hidden by askers who wait.

use super::report::{Report, millis, millis_between, percentile};
use super::world::{kill_host, options, standby_ready, until};
use crate::cmd::link::stopped;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use vivarium::world::progress::Progress;
use vivarium::world::{Options, Programs, World};

/// Starts a world and prints what customers feel of moves and of a lost host, under half the load that it can bear
#[derive(clap::Args)]
pub struct Flags {
    /// Days of this many seconds; leases have three
    #[arg(long, default_value_t = 20)]
    day_secs: u32,
    /// Moves under load
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    moves: u32,
    /// Seconds for which the capacity is measured
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..))]
    capacity_secs: u64,
    /// Give up on a move or a takeover after this many seconds
    #[arg(long, default_value_t = 240)]
    patience_secs: u64,
    /// Writes the figures into docs/benchmarks.md
    #[arg(long)]
    write: bool,
}

/// Tokens of an answer: so short that a pause is not lost in it.
const ANSWER_TOKENS: u32 = 8;
/// Questions at once while the capacity is measured: as many channels as a proxy holds with an agent.
const AT_ONCE: usize = 4;
/// A call counts as one of a move if any of it lay so near to the moment when the next epoch was seen.
const NEAR: Duration = Duration::from_secs(4);
/// Share of the capacity that is asked for, percent.
const LOAD_PCT: u32 = 50;

pub async fn run(flags: Flags) -> Result<()> {
    let project = Programs::project()?;
    let vivarium = std::env::current_exe().context("cannot find this program's own file")?;
    let scratch = std::env::temp_dir().join(format!("vivarium-bench-move-{}", std::process::id()));
    let programs = Programs::of(&project, &vivarium)?;
    let options = Options { progress: Progress::Shown, ..options(&scratch, flags.day_secs, programs) };
    let mut world = World::start(options, stopped()?).await?;
    let measured = measure(&mut world, &flags).await;
    world.stop().await;
    std::fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    let report = measured?;
    if flags.write {
        report.write(&project.join("docs/benchmarks.md"))?;
    }
    Ok(())
}

async fn measure(world: &mut World, flags: &Flags) -> Result<Report> {
    let patience = Duration::from_secs(flags.patience_secs);
    standby_ready(world, patience).await?;
    let proxy = Proxy::start(world)?;
    let asker = Arc::new(Asker { http: net::Client::new(), url: format!("{}/chat/completions", proxy.base_url) });
    let model = world.model_name()?;
    let mut report = Report::new("move");

    let capacity = capacity(world, &asker, &model, Duration::from_secs(flags.capacity_secs)).await?;
    report.row(
        &format!("paid answers of {ANSWER_TOKENS} tokens, {AT_ONCE} at once, through the proxy"),
        format!("{capacity:.1}/s"),
        format!("asked for after this: {LOAD_PCT} % of it, at a constant rate"),
    );
    let rate = capacity * f64::from(LOAD_PCT) / 100.0;
    let load = Load::start(asker.clone(), model.clone(), rate);
    let mut seen = Vec::new();
    for _ in 0..flags.moves {
        let epoch = world.file()?.agent.epoch;
        let at = until(world, patience, move |now, _| now > epoch, &|| 0).await?.context("no move came")?;
        seen.push(at);
    }
    world.run(sleep(2 * NEAR)).await?;
    told(&mut report, &load.end().await, &seen);

    let load = Load::start(asker, model, rate);
    let epoch = standby_ready(world, patience).await?;
    let killed = kill_host(world).await?;
    let taken = until(world, patience, move |now, _| now > epoch, &|| 0).await?.context("no takeover came")?;
    let (counter, answered) = (load.answered.clone(), load.answered.load(Ordering::Relaxed));
    let again = until(world, patience, move |_, now| now > answered, &|| counter.load(Ordering::Relaxed)).await?;
    let again = again.context("nobody was answered after the takeover")?;
    report.row(
        "host killed to takeover mined / to the next answer",
        format!("{:.1} s / {:.1} s", (taken - killed).as_secs_f32(), (again - killed).as_secs_f32()),
        format!("days of {} s: missed heartbeats and the time to answer are most of it", flags.day_secs),
    );
    load.end().await;
    Ok(report)
}

/// Answers a second, with so many questions at once, each asked when the one before is answered.
async fn capacity(world: &mut World, asker: &Arc<Asker>, model: &str, lasts: Duration) -> Result<f64> {
    // The first calls put deposits in, which is not what is measured.
    for _ in 0..AT_ONCE {
        asker.ask(model).await;
    }
    let answered = Arc::new(AtomicU64::new(0));
    let (started, until) = (Instant::now(), Instant::now() + lasts);
    let workers: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let (asker, model, answered) = (asker.clone(), model.to_owned(), answered.clone());
            tokio::spawn(async move {
                while Instant::now() < until {
                    if asker.ask(&model).await {
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    world.run(sleep(lasts)).await?;
    for worker in workers {
        worker.await?;
    }
    let rate = answered.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64();
    ensure!(rate > 0.0, "nothing is answered");
    Ok(rate)
}

fn told(report: &mut Report, calls: &[Call], moves: &[Instant]) {
    let is_near = |call: &&Call| moves.iter().any(|at| call.asked < *at + NEAR && call.asked + call.took + NEAR > *at);
    let (near, calm): (Vec<&Call>, Vec<&Call>) = calls.iter().partition(is_near);
    let took = |of: &[&Call]| of.iter().filter(|call| call.answered).map(|call| call.took).collect::<Vec<_>>();
    let (near_took, calm_took) = (took(&near), took(&calm));
    let at = |of: &[Duration], percent| percentile(of, percent);
    let both = |of: &[Duration]| format!("{} / {}", millis(at(of, 50)), millis(at(of, 99)));
    let lost = |of: &[&Call]| of.iter().filter(|call| !call.answered).count();
    report.row("an answer between moves, p50 / p99", both(&calm_took), format!("{} calls", calm.len()));
    report.row(
        &format!("an answer within {} s of a move, p50 / p99 / longest", NEAR.as_secs()),
        format!("{} / {}", both(&near_took), millis(at(&near_took, 100))),
        format!("{} calls around {} moves", near.len(), moves.len()),
    );
    report.row(
        "p99 of those beyond that of the others",
        millis_between(at(&near_took, 99), at(&calm_took, 99)),
        "goal: less than 100 ms",
    );
    report.row(
        "calls without an answer, between / around moves",
        format!("{} / {}", lost(&calm), lost(&near)),
        "as an ordinary client sees them, which does not ask again; goal: none",
    );
}

/// One question of the constant load.
struct Call {
    asked: Instant,
    took: Duration,
    answered: bool,
}

struct Asker {
    http: net::Client,
    url: String,
}

impl Asker {
    /// Whether it was answered; why not is told.
    async fn ask(&self, model: &str) -> bool {
        let body = json!({
            "model": model, "max_tokens": ANSWER_TOKENS,
            "messages": [{ "role": "user", "content": "Say hello." }],
        });
        let why = match self.http.call_json::<Value>(&self.url, &body).await {
            Ok(answer) if answer["choices"][0]["message"]["content"].is_string() => return true,
            Ok(answer) => format!("no content in {answer}"),
            Err(error) => error.to_string(),
        };
        eprintln!("not answered: {why}");
        false
    }
}

/// Questions at a constant rate, until it is ended.
struct Load {
    pace: tokio::task::JoinHandle<()>,
    calls: mpsc::UnboundedReceiver<Call>,
    answered: Arc<AtomicU64>,
}

impl Load {
    /// `rate`: a second.
    fn start(asker: Arc<Asker>, model: String, rate: f64) -> Self {
        let (tell, calls) = mpsc::unbounded_channel();
        let answered = Arc::new(AtomicU64::new(0));
        let counter = answered.clone();
        let pace = tokio::spawn(async move {
            let mut due = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
            // Questions that are late come at once: the rate holds.
            due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
            loop {
                due.tick().await;
                let (asker, model, tell, counter) = (asker.clone(), model.clone(), tell.clone(), counter.clone());
                tokio::spawn(async move {
                    let asked = Instant::now();
                    let answered = asker.ask(&model).await;
                    counter.fetch_add(u64::from(answered), Ordering::Relaxed);
                    // Whoever listened has heard enough.
                    let _ = tell.send(Call { asked, took: asked.elapsed(), answered });
                });
            }
        });
        Self { pace, calls, answered }
    }

    /// No more questions; those asked are answered first.
    async fn end(mut self) -> Vec<Call> {
        self.pace.abort();
        let mut all = Vec::new();
        while let Some(call) = self.calls.recv().await {
            all.push(call);
        }
        all
    }
}

/// `vivarium proxy` on this world, with a budget that does not bind.
struct Proxy {
    process: Child,
    base_url: String,
}

impl Proxy {
    fn start(world: &World) -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["proxy", "--listen", "127.0.0.1:0", "--json", "--max-usdc", "20", "--budget", "1000/day"])
            .args(["--scheme", "batch-settlement", "--data-dir"])
            .arg(world.folder().path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("the proxy does not start")?;
        let mut line = String::new();
        BufReader::new(process.stdout.take().context("its words")?).read_line(&mut line)?;
        let hello: Value = serde_json::from_str(&line).context("the proxy's first line")?;
        let base_url = hello["base_url"].as_str().context("no base URL")?.to_owned();
        Ok(Self { process, base_url })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
