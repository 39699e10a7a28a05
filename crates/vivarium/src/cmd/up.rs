//! `vivarium up`: a whole world on this machine, until Ctrl-C.

use super::link::{block_on, stopped};
use anyhow::{Context, Result, ensure};
use economy::Usdc;
use std::path::PathBuf;
use std::time::Duration;
use vivarium::world::crowd::Crowd;
use vivarium::world::files::chosen_dir;
use vivarium::world::ports::Place;
use vivarium::world::progress::Progress;
use vivarium::world::{Options, Programs, World};

/// How often the crowd's sums are printed.
const SUMS_EVERY: Duration = Duration::from_secs(30);

/// Starts a world on this machine and keeps it running until Ctrl-C.
///
/// A world is a development chain (anvil), a content store, three stewards, two providers, and one agent that is
/// born with a seed of test USDC, sells answers, pays its rent and moves from host to host. Ctrl-C stops every
/// process, the chain last; `vivarium up` in the same folder goes on with the same chain, agent, keys and memory.
#[derive(clap::Args)]
pub struct Flags {
    /// The world's folder [default: $VIVARIUM_WORLD, else ./.vivarium/world]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Deletes what is in the folder and begins anew
    #[arg(long)]
    fresh: bool,
    /// How long a day lasts, like 20s, 10m or 24h [default: 24h]
    #[arg(long, value_name = "TIME", value_parser = parse_secs)]
    day: Option<u32>,
    /// The term of each lease in the world's days, like 3d [default: 30d]
    #[arg(long, value_name = "DAYS", value_parser = parse_days)]
    lease: Option<u32>,
    /// What the creator pays in at birth, in test USDC [default: 100]
    #[arg(long, value_name = "USDC", value_parser = Usdc::parse)]
    seed_usdc: Option<Usdc>,
    /// `exact` payments of customers who have paid before are settled after they were served, in batches, while at most this
    /// much is open, in test USDC [default: 0, none]
    #[arg(long, value_name = "USDC", value_parser = Usdc::parse)]
    settle_after: Option<Usdc>,
    /// When its money is nearly gone the agent gives its hosts up and sleeps, instead of winding down; `vivarium fund` has
    /// the stewards wake it
    #[arg(long)]
    hibernates: bool,
    /// Paying customers with real prompts
    #[arg(long, value_name = "N", default_value_t = 0)]
    customers: u16,
    /// First of the ports to use in a new world [default: a free range drawn by chance]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// A GGUF file for the agent to sell answers from [default: SmolLM2-135M-Instruct]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Seconds by which a new world's chain is ahead of this machine's clock: for tests, which set all clocks wrong so
    #[arg(long, value_name = "SECS", default_value_t = 0, hide = true, allow_hyphen_values = true)]
    chain_ahead: i64,
    /// A daemon, like provider-1, and a port on loopback through which it reaches the chain: for tests, which cut it off there
    #[arg(long, value_name = "DAEMON=PORT", value_parser = parse_door, hide = true)]
    chain_door: Vec<(String, u16)>,
    /// A provider, an address and the network namespace that has it, in which it runs: for tests, which cut links
    #[arg(long, value_name = "PROVIDER=ADDRESS@NAMESPACE", value_parser = parse_place, hide = true)]
    place: Vec<(String, Place)>,
    /// Daemons that die stay dead, instead of being started again
    #[arg(long)]
    no_restart: bool,
}

/// `20s`, `10m`, `24h` in seconds; strict.
fn parse_secs(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text:?} is not a time like 20s, 10m or 24h");
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => return Err(wrong()),
    };
    digits.parse::<u32>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(wrong)
}

/// `provider-1=20000`.
fn parse_door(text: &str) -> Result<(String, u16), String> {
    let parts = text.split_once('=').and_then(|(daemon, port)| Some((daemon.to_owned(), port.parse().ok()?)));
    parts.ok_or_else(|| format!("{text:?} is not a daemon and a port like provider-1=20000"))
}

/// `provider-1=127.0.1.1@hosts-1`.
fn parse_place(text: &str) -> Result<(String, Place), String> {
    let parts = text.split_once('=').and_then(|(daemon, at)| {
        let (address, namespace) = at.split_once('@')?;
        Some((daemon.to_owned(), Place { address: address.parse().ok()?, namespace: namespace.to_owned() }))
    });
    parts.ok_or_else(|| format!("{text:?} is not a provider and a place like provider-1=127.0.1.1@hosts-1"))
}

/// `3d` in days; strict.
fn parse_days(text: &str) -> Result<u32, String> {
    let digits = text.strip_suffix('d').filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()));
    digits.and_then(|d| d.parse().ok()).ok_or_else(|| format!("{text:?} is not a number of days like 3d"))
}

pub fn run(flags: Flags) -> Result<()> {
    super::link::log_to_stderr("warn");
    block_on(async {
        let project = Programs::project()?;
        let vivarium = std::env::current_exe().context("cannot find this program's own file")?;
        let options = Options {
            data_dir: chosen_dir(flags.data_dir.as_deref()),
            fresh: flags.fresh,
            day_secs: flags.day,
            lease_days: flags.lease,
            seed: flags.seed_usdc,
            settle_after: flags.settle_after,
            hibernates: flags.hibernates,
            port: flags.port,
            chain_ahead_secs: flags.chain_ahead,
            chain_doors: flags.chain_door.into_iter().collect(),
            threads: None,
            places: flags.place.into_iter().collect(),
            restart: !flags.no_restart,
            model: flags.model,
            programs: Programs::of(&project, &vivarium)?,
            progress: Progress::Shown,
        };
        let mut world = World::start(options, stopped()?).await?;
        let crowd = match crowd(&mut world, flags.customers).await {
            Ok(crowd) => crowd,
            Err(e) => {
                world.stop().await;
                return Err(e);
            }
        };
        // Through `Progress`, which does not mind a terminal that is gone: the processes must still be stopped in order.
        let progress = Progress::Shown;
        let outcome = match instructions(&world) {
            Ok(text) => {
                progress.line(&text);
                live(&mut world, crowd, progress).await
            }
            Err(e) => Err(e),
        };
        progress.line("\nstopping: providers and their tenants, stewards, store, chain");
        world.stop().await;
        progress.line("stopped; the same command goes on with it");
        outcome
    })
}

async fn crowd(world: &mut World, customers: u16) -> Result<Option<Crowd>> {
    if customers == 0 {
        return Ok(None);
    }
    ensure!(customers <= 200, "--customers {customers}: at most 200");
    let keys = world.crowd_keys(customers).await?;
    let place = (world.file()?, world.folder().path());
    let crowd = Crowd::start(place, &world.model_name()?, world.internal().choices.day_secs, keys)?;
    Ok(Some(crowd))
}

/// Watches until the end; a dead chain is the end, too.
async fn live(world: &mut World, crowd: Option<Crowd>, progress: Progress) -> Result<()> {
    let mut until = std::pin::pin!(stopped()?);
    loop {
        let mut over = false;
        let pause = async {
            tokio::select! {
                () = &mut until => over = true,
                () = tokio::time::sleep(SUMS_EVERY) => {}
            }
        };
        world.run(pause).await?;
        if over {
            return Ok(());
        }
        if let Some(crowd) = &crowd {
            progress.line(&crowd.sums());
        }
    }
}

fn instructions(world: &World) -> Result<String> {
    let file = world.file()?;
    let Some(url) = &file.agent.url else {
        return Ok(format!(
            "the agent has no host or is dead; treasury {}; `vivarium status` says more",
            file.treasury
        ));
    };
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let dir = world.folder().path().display();
    let body = format!(
        r#"{{"model":"{}","messages":[{{"role":"user","content":"What is a lease?"}}],"max_tokens":64}}"#,
        world.model_name()?
    );
    let example = world.project().join("examples/pay.mjs");
    let source = std::fs::read_to_string(&example).unwrap_or_else(|_| "(examples/pay.mjs is not here)".to_owned());
    let source: String = source.lines().map(|line| format!("    {line}\n")).collect();
    Ok(format!(
        "\nThe agent lives. Ready to paste:\n\n\
         dashboard   {url}/\n\
         ask         {program} ask --data-dir {dir} \"What is a lease?\"\n\
         the 402     curl -i {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'\n\
         JavaScript  VIVARIUM_WORLD={dir} node {example}\n\n{source}\n\
         world.json  {dir}/world.json\n\
         Ctrl-C stops everything; the same command goes on with it.\n",
        program = program.display(),
        example = example.display(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_strictly() {
        assert_eq!(parse_secs("20s"), Ok(20));
        assert_eq!(parse_secs("10m"), Ok(600));
        assert_eq!(parse_secs("24h"), Ok(86_400));
        for wrong in ["", "20", "s", "20 s", "1.5h", "-1s", "20s ", "99999999999s", "4294967295h"] {
            assert!(parse_secs(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(parse_days("3d"), Ok(3));
        for wrong in ["", "d", "3", "+3d", "3.5d", "3days"] {
            assert!(parse_days(wrong).is_err(), "{wrong:?}");
        }
    }
}
