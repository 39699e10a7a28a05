//! `vivarium sim`: lives from seeds, while faults rain.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sim::lives::{Broken, Bug, DAYS, Fault, Lived, Pace, Setting, live};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(clap::Args)]
#[group(skip)]
pub struct Flags {
    /// The first seed.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    from: u64,
    /// Lives, each of the next seed.
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    /// What goes wrong, by name and comma: `all`, `none`, or some of rpc-drop, rpc-lag, rpc-lie, rpc-down, reorg, crash,
    /// host-gone, old-key, standby-gone, never-ready, price-raise, pause, unserved, frozen, fee-spike, stewards-silent,
    /// torn-tail, full-disk, peer-drop, nonce-gap, third-party, clock-skew, undone-move, late-handover, hunger.
    #[arg(long, value_name = "LIST", default_value = "all")]
    faults: String,
    /// Simulated days until stewards stop it and it closes its affairs.
    #[arg(long, default_value_t = DAYS)]
    days: u64,
    /// Lives of eleven hours, in which faults come eight times as often, in the place of whole ones.
    #[arg(long, conflicts_with = "days")]
    short: bool,
    /// A wrong world, to see that it is found out: on the third day something breaks this invariant, I1 to I7, or what a
    /// machine promises: `output commit`, `journal`, `shares`, `moving` or `takeover`.
    #[arg(long, value_name = "INVARIANT", conflicts_with = "short")]
    plant: Option<String>,
    /// One object a life, and a sum, as JSON lines.
    #[arg(long)]
    json: bool,
}

pub fn run(flags: &Flags) -> Result<ExitCode> {
    let faults = parse(&flags.faults)?;
    let bug = flags.plant.as_deref().map(planted).transpose()?;
    let pace = if flags.short { Pace::Short } else { Pace::Whole };
    let setting = |seed| Setting { seed, faults: faults.clone(), days: flags.days, pace, bug };
    let plant = flags.plant.as_ref().map_or_else(String::new, |invariant| format!(" --plant {invariant}"));
    let (mut broken, mut blocks, mut calls) = (0u64, 0, 0);
    for seed in flags.from..flags.from.saturating_add(flags.seeds) {
        let setting = setting(seed);
        tell_seed_on_panic(&setting);
        match live(&setting) {
            Ok(lived) => {
                (blocks, calls) = (blocks + lived.blocks, calls + lived.calls);
                tell(flags.json, seed, &lived);
            }
            Err(what) => {
                broken += 1;
                match flags.json {
                    true => println!("{}", broken_json(&what, &plant)),
                    // What repeats it comes last.
                    false => println!("{what}{plant}"),
                }
            }
        }
    }
    let lives = flags.seeds;
    match flags.json {
        true => println!("{}", json!({ "lives": lives, "broken": broken, "blocks": blocks, "calls": calls })),
        false => println!("{lives} lives, {broken} broken; {blocks} blocks, {calls} calls"),
    }
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn parse(list: &str) -> Result<Vec<Fault>> {
    match list {
        "all" => return Ok(Fault::ALL.to_vec()),
        "none" => return Ok(Vec::new()),
        _ => {}
    }
    let mut faults = Vec::new();
    for name in list.split(',') {
        match Fault::named(name) {
            Some(fault) => faults.push(fault),
            None => bail!("no fault is called {name:?}: see `vivarium sim --help`"),
        }
    }
    faults.sort_unstable();
    faults.dedup();
    Ok(faults)
}

fn planted(invariant: &str) -> Result<Bug> {
    let found = Bug::ALL.iter().find(|(_, breaks)| *breaks == invariant);
    found.map(|(bug, _)| *bug).with_context(|| {
        format!(
            "nothing breaks {invariant:?} here: say I1 to I7, `output commit`, `journal`, `shares`, `moving` or `takeover`"
        )
    })
}

/// A machine's own assertion ends the process: say first which life it was.
fn tell_seed_on_panic(setting: &Setting) {
    static SEED: AtomicU64 = AtomicU64::new(0);
    static HOOK: std::sync::Once = std::sync::Once::new();
    SEED.store(setting.seed, Ordering::Relaxed);
    let repeat = Broken { setting: setting.clone(), what: String::new(), story: Vec::new() };
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let seed = SEED.load(Ordering::Relaxed);
            let repeat = Broken { setting: Setting { seed, ..repeat.setting.clone() }, ..repeat.clone() };
            eprintln!("seed {seed}: a machine's own assertion does not hold\nrepeat: {}", repeat.command());
            before(info);
        }));
    });
}

fn tell(as_json: bool, seed: u64, lived: &Lived) {
    let faults: Vec<(&str, u64)> = lived.faults.iter().map(|(fault, times)| (fault.name(), *times)).collect();
    if as_json {
        let faults: serde_json::Map<String, Value> =
            faults.into_iter().map(|(name, times)| (name.to_owned(), times.into())).collect();
        let crashes: serde_json::Map<String, Value> =
            lived.crashes.iter().map(|(moment, times)| (moment.clone(), (*times).into())).collect();
        let line = json!({
            "seed": seed,
            "blocks": lived.blocks,
            "done": lived.done,
            "refused": lived.refused,
            "calls": lived.calls,
            "moves": lived.moves,
            "takeovers": lived.takeovers,
            "challenges": lived.challenges,
            "rescues": lived.rescues,
            "owed_blocks": lived.owed_blocks,
            "given_up": lived.given_up,
            "faults": faults,
            "crashes": crashes,
            "digest": hex::encode(lived.digest),
        });
        println!("{line}");
        return;
    }
    let Lived { blocks, done, refused, calls, moves, takeovers, rescues, .. } = lived;
    let digest = &hex::encode(lived.digest)[..16];
    println!(
        "seed {seed}: {blocks} blocks, {done} transactions and {refused} refused, {calls} calls, {moves} moves, \
         {takeovers} takeovers, {rescues} rescue orders; {digest}"
    );
}

fn broken_json(broken: &Broken, plant: &str) -> Value {
    json!({
        "seed": broken.setting.seed,
        "broken": broken.what,
        "story": broken.story,
        "repeat": broken.command() + plant,
    })
}
