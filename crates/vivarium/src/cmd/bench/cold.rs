//! How long an agent takes from a lease to its first paid token, on a host that has nothing of it: one row of `bench store`,
//! with what each part of the way took.
//!
//! The birth of a world's agent is such a start: the provider has neither program nor model, and fetches both by their
//! CIDs. When the lease was rented is a block's time, in whole seconds; the other moments are those of the logs.

use super::report::Report;
use super::store::{ratio, read_and_hash, timed};
use super::world::{ask_paid, options};
use crate::cmd::link::stopped;
use anyhow::{Context, Result};
use chain::market::MarketClient;
use economy::Usdc;
use pay::buyer::Buyer;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use vivarium::world::crowd::{self, ChainClock};
use vivarium::world::files::read_key;
use vivarium::world::{Programs, World, model};

/// What the logs say, in the order of the way, and what it is the end of.
const STAGES: [(&str, &str); 3] = [
    ("tenant started", "program fetched and laid out"),
    ("tenant says hello", "node says hello"),
    ("the engine is ready", "weights fetched, checked and loaded"),
];
const DAY: Duration = Duration::from_secs(86_400);

/// The first lease of a new market.
const FIRST_LEASE: u64 = 1;

pub async fn measure(report: &mut Report) -> Result<()> {
    let project = Programs::project()?;
    let vivarium = std::env::current_exe().context("cannot find this program's own file")?;
    let scratch = std::env::temp_dir().join(format!("vivarium-bench-cold-{}", std::process::id()));
    let options = options(&scratch, 20, Programs::of(&project, &vivarium)?);
    let weights = model::Model::standard(&project).path;
    // Twice: the first warms the cache.
    read_and_hash(&weights)?;
    let plain = timed(|| read_and_hash(&weights))?.0;
    let world = World::start(options, stopped()?).await?;
    let measured = first_token(&world).await;
    world.stop().await;
    let told = measured.and_then(|(rented, paid)| Ok((rented, paid, stages(&scratch, rented)?)));
    std::fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    let (rented, paid, stages) = told?;
    let took = paid.saturating_sub(rented);
    report.row(
        "cold start of an agent: lease rented to first paid token",
        format!("{:.1} s", took.as_secs_f32()),
        format!(
            "read and SHA-256 of the weights: {:.2} s, ratio {:.0}; after the lease, in seconds: {stages}",
            plain.as_secs_f32(),
            ratio(took, plain)
        ),
    );
    Ok(())
}

/// When the agent's first lease was rented and when a customer had its first token, since 1970.
async fn first_token(world: &World) -> Result<(Duration, Duration)> {
    let file = world.file()?.clone();
    let record = world.record(file.treasury)?;
    let policy = crowd::policy(file.chain_id, file.usdc, file.treasury, Usdc(1_000_000_000), Usdc(1_000_000_000_000));
    let clock = ChainClock::default();
    clock.set(record.chain.head().await?.timestamp);
    let buyer = Buyer::new(net::Client::new(), read_key(&file.customer.key_file)?, policy).with_clock(clock.reader());
    let asked = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let answer = ask_paid(&buyer, &record.url().await?, &world.model_name()?, "Say hello.").await?;
    let market = MarketClient { chain: record.chain.clone(), address: file.lease_market };
    let (lease, terms) = (market.lease(FIRST_LEASE).await?.lease, market.terms().await?);
    let rented = lease.readyBy.saturating_sub(u64::from(terms.ready_within));
    Ok((Duration::from_secs(rented), asked + answer.first))
}

/// `2.1 program fetched, 2.5 node says hello, …`: what logs below `dir` say first of each stage.
fn stages(dir: &Path, since: Duration) -> Result<String> {
    let mut text = String::new();
    read_logs(dir, &mut text)?;
    let seconds = STAGES.map(|(said, what)| {
        let of = |line: &str| Some(moment(line.split_whitespace().next()?)?.as_secs_f64());
        let first = text.lines().filter(|line| line.contains(said)).filter_map(of).reduce(f64::min);
        let after = first.map(|at| (at - (since.as_secs_f64() % DAY.as_secs_f64())).rem_euclid(DAY.as_secs_f64()));
        after.map_or_else(|| format!("{what} not logged"), |after| format!("{after:.1} {what}"))
    });
    Ok(seconds.join(", "))
}

/// Every log of the world: its daemons', and those that providers keep of their tenants.
fn read_logs(dir: &Path, text: &mut String) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            read_logs(&path, text)?;
        } else if path.file_name().is_some_and(|name| name == "log") || path.extension().is_some_and(|e| e == "log") {
            text.push_str(&String::from_utf8_lossy(&std::fs::read(&path)?));
        }
    }
    Ok(())
}

/// The time of day in `2026-11-28T07:05:09.25Z`.
fn moment(text: &str) -> Option<Duration> {
    let (_, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut parts = time.split(':');
    let mut next = || parts.next()?.parse::<f64>().ok();
    let seconds = next()? * 3600.0 + next()? * 60.0 + next()?;
    Duration::try_from_secs_f64(seconds).ok().filter(|time| *time < DAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_read_from_any_log_below_and_counted_from_the_lease() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("provider-1/leases/1")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("provider-1.log", "2026-11-29T23:59:59.500000Z  INFO host::daemon: tenant started lease=1\n");
        write(
            "provider-1/leases/1/log",
            "no time: tenant says hello\n2026-11-30T00:00:01.250000Z  INFO node: the engine is ready isa=avx2\n",
        );
        write("provider-1/other", "2026-11-29T23:59:59.900000Z tenant says hello\n");
        let since = Duration::from_secs(20_000 * 86_400 - 2);
        assert_eq!(
            stages(dir.path(), since).unwrap(),
            "1.5 program fetched and laid out, node says hello not logged, 3.2 weights fetched, checked and loaded"
        );
        assert_eq!(moment("07:05:09.25"), None);
        assert_eq!(moment("2026-11-28T07:05:09.25Z"), Some(Duration::from_millis(25_509_250)));
    }
}
