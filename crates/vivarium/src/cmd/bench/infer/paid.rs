//! The same answers, paid: a whole agent with its host, its chain and its journal, in turn with what has none of that.
//!
//! The world around the agent runs all the time, so what it takes of the cores is taken from all alike.

use super::{ANSWER_TOKENS, Answer, Asked, BareLoop, Flags, Ours, STREAMS, Theirs, story, together};
use crate::cmd::bench::events::Events;
use crate::cmd::bench::report::{Report, median};
use crate::cmd::bench::world::{options, standby_ready};
use crate::cmd::link::stopped;
use anyhow::{Context, Result, ensure};
use economy::Usdc;
use pay::buyer::Buyer;
use pay::seller::FRESH_ANSWER;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use vivarium::world::crowd::{self, ChainClock};
use vivarium::world::progress::Progress;
use vivarium::world::{Options, Programs, World};

/// A day that does not end while this runs.
const DAY_SECS: u32 = 86_400;
const PATIENCE: Duration = Duration::from_secs(180);
const SPEND_MAX: Usdc = Usdc(1_000_000_000);
const DEPOSIT: Usdc = Usdc(10_000_000);
/// Each stream pays on a channel of its own: an agent takes eight deposits of one customer a day.
const CUSTOMERS: u16 = 4;
const CHANNELS: u8 = 4;

pub async fn measure(
    bare: &mut BareLoop,
    ours: &Ours,
    theirs: &Theirs,
    flags: &Flags,
    report: &mut Report,
) -> Result<()> {
    let project = Programs::project()?;
    let vivarium = std::env::current_exe().context("cannot find this program's own file")?;
    let scratch = std::env::temp_dir().join(format!("vivarium-bench-infer-{}", std::process::id()));
    let programs = Programs::of(&project, &vivarium)?;
    let options =
        Options { progress: Progress::Shown, threads: Some(flags.threads), ..options(&scratch, DAY_SECS, programs) };
    let mut world = World::start(options, stopped()?).await?;
    let outcome = in_turn(&mut world, bare, ours, theirs, flags.rounds, report).await;
    world.stop().await;
    std::fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    outcome
}

async fn in_turn(
    world: &mut World,
    bare: &mut BareLoop,
    ours: &Ours,
    theirs: &Theirs,
    rounds: u32,
    report: &mut Report,
) -> Result<()> {
    // Nothing of a birth goes on in the background any more.
    standby_ready(world, PATIENCE).await?;
    let paid = Paid::new(world).await?;
    let mut salt = 1_000_000;
    let mut fresh = |streams: u32| -> Vec<String> {
        (0..streams)
            .map(|_| {
                salt += 1;
                story(salt)
            })
            .collect()
    };
    // Deposits go in, and the known payer's calls are what is measured.
    together(&paid, &fresh(u32::from(CUSTOMERS) * u32::from(CHANNELS)), ANSWER_TOKENS).await?;
    for streams in STREAMS {
        let (mut loops, mut us, mut them, mut with) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            loops.push(bare.tokens_per_sec(&fresh(streams), ANSWER_TOKENS)?);
            with.push(together(&paid, &fresh(streams), ANSWER_TOKENS).await?.tokens_per_sec());
            us.push(together(ours, &fresh(streams), ANSWER_TOKENS).await?.tokens_per_sec());
            them.push(together(theirs, &fresh(streams), ANSWER_TOKENS).await?.tokens_per_sec());
        }
        let (loops, us, them, with) = (median(loops), median(us), median(them), median(with));
        report.row(
            &format!("answers of {ANSWER_TOKENS} tokens by a whole agent, paid on channels, {streams} stream(s)"),
            format!("{with:.1} tokens/s"),
            format!(
                "bare loop {loops:.1}; ratio {:.2}; the engine alone {us:.1}; ratio {:.2}; llama.cpp's server {them:.1}; \
                 ratio {:.2}",
                with / loops,
                with / us,
                with / them
            ),
        );
    }
    Ok(())
}

/// The agent's API, by customers who pay and take turns.
struct Paid {
    buyers: Vec<Buyer>,
    asked: AtomicUsize,
    url: String,
    model: String,
}

impl Paid {
    async fn new(world: &mut World) -> Result<Self> {
        let file = world.file()?.clone();
        let keys = world.crowd_keys(CUSTOMERS).await?;
        let record = world.record(file.treasury)?;
        let clock = ChainClock::default();
        clock.set(record.chain.head().await?.timestamp);
        let policy = crowd::policy(file.chain_id, file.usdc, file.treasury, SPEND_MAX, Usdc(SPEND_MAX.0 * 1_000));
        let channels = pay::buyer::ChannelPolicy { deposit: DEPOSIT, ..crowd::channels(SPEND_MAX, CHANNELS, 0) };
        let buyer = |key| {
            Buyer::new(net::Client::new(), key, policy.clone()).with_clock(clock.reader()).with_channels(channels)
        };
        let buyers = keys.into_iter().map(buyer).collect();
        Ok(Self { buyers, asked: AtomicUsize::new(0), url: record.url().await?, model: world.model_name()? })
    }
}

impl Asked for Paid {
    async fn ask(&self, prompt: &str, tokens: u32) -> Result<Answer> {
        let body = json!({
            "model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": true,
            "stream_options": { "include_usage": true },
        });
        let fresh = http::HeaderMap::from_iter([(FRESH_ANSWER, http::HeaderValue::from_static("1"))]);
        let asked = Instant::now();
        let buyer = &self.buyers[self.asked.fetch_add(1, Ordering::Relaxed) % self.buyers.len()];
        let mut answer = buyer.post_stream(&format!("{}/v1/completions", self.url), fresh, &body).await?;
        ensure!(answer.status.is_success(), "the agent answered {}", answer.status);
        let (mut first, mut events, mut usage) = (None, Events::default(), None);
        while let Some(piece) = answer.chunk().await? {
            for data in events.of(&piece) {
                let Ok(event) = serde_json::from_slice::<Value>(&data) else { continue };
                if event["choices"][0]["text"].as_str().is_some_and(|text| !text.is_empty()) {
                    first = first.or_else(|| Some(asked.elapsed()));
                }
                let count = |name: &str| event["usage"][name].as_u64().and_then(|count| u32::try_from(count).ok());
                usage = count("prompt_tokens").zip(count("completion_tokens")).or(usage);
            }
        }
        let whole = asked.elapsed();
        let (prompt_tokens, tokens) = usage.context("an answer without its usage")?;
        Ok(Answer { first: first.unwrap_or(whole), whole, prompt_tokens, tokens })
    }
}
