//! `vivarium bench`: figures of a world of real processes, for docs/benchmarks.md.

use super::link::{block_on, stopped};
use anyhow::{Context, Result};
use economy::Usdc;
use serde_json::Value;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use vivarium::world::crowd::Crowd;
use vivarium::world::progress::Progress;
use vivarium::world::{Options, Programs, World};

/// Starts a world in a temporary folder and prints how long things take.
#[derive(clap::Args)]
pub struct Flags {
    /// Days of this many seconds
    #[arg(long, default_value_t = 20)]
    day_secs: u32,
    /// Give up on a figure after this many seconds
    #[arg(long, default_value_t = 180)]
    patience_secs: u64,
}

pub fn run(flags: Flags) -> Result<()> {
    super::link::log_to_stderr("warn");
    block_on(async {
        let project = Programs::project()?;
        let vivarium = std::env::current_exe().context("cannot find this program's own file")?;
        let scratch = std::env::temp_dir().join(format!("vivarium-bench-{}", std::process::id()));
        let options = Options {
            data_dir: scratch.clone(),
            fresh: false,
            day_secs: Some(flags.day_secs),
            lease_days: Some(3),
            seed: Some(Usdc(100_000_000)),
            port: None,
            restart: true,
            model: None,
            programs: Programs::of(&project, &vivarium)?,
            progress: Progress::Shown,
        };
        let started = Instant::now();
        let mut world = World::start(options, stopped()?).await?;
        let outcome = measure(&mut world, started, Duration::from_secs(flags.patience_secs)).await;
        world.stop().await;
        std::fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
        outcome
    })
}

async fn measure(world: &mut World, started: Instant, patience: Duration) -> Result<()> {
    let keys = world.crowd_keys(1).await?;
    let crowd = Crowd::start(world.file()?, &world.model_name()?, world.internal().choices.day_secs, keys)?;
    let first = until(world, patience, |_, answers| answers > 0, &crowd).await?;
    print_row("`up` to first paid answer", first.map(|at| at - started));
    let epoch = world.file()?.agent.epoch;
    let moved = until(world, patience, move |now, _| now > epoch, &crowd).await?;
    let answers = crowd.answers();
    let again = until(world, patience, move |_, now| now > answers, &crowd).await?;
    print_row("handover mined to next paid answer", moved.zip(again).map(|(from, to)| to - from));
    if let Some(url) = world.file()?.agent.url.clone() {
        let status: Value = net::Client::new().get_json(&format!("{url}/status")).await?;
        println!("| requests served, refused | {}, {} |", status["requests"]["served"], status["requests"]["refused"]);
    }
    Ok(())
}

/// Waits for `happened(epoch, answers)`; the moment it did.
async fn until(
    world: &mut World,
    patience: Duration,
    happened: impl Fn(u64, u64) -> bool,
    crowd: &Crowd,
) -> Result<Option<Instant>> {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if happened(world.file()?.agent.epoch, crowd.answers()) {
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
