//! `vivarium bench sim`: what a simulated life costs. It has no peer; CPU time stands beside each figure, because other
//! work on the machine does not change it much.

use super::report::{Report, cpu_time};
use crate::cmd::sim::darwin::towns;
use anyhow::{Result, anyhow};
use sim::darwin;
use sim::lives::{Fault, Lived, Pace, Setting, live};
use std::time::{Duration, Instant};
use vivarium::world::Programs;

/// Figures of the simulators: short lives, whole ones, and a year of thousands
#[derive(clap::Args)]
pub struct Flags {
    /// Short lives of each kind
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    short: u64,
    /// Days of the whole lives
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=365))]
    days: u64,
    /// Agents of a year of thousands
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    agents: u64,
    /// Days of that year
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=3_650))]
    year: u64,
    /// Writes the figures into docs/benchmarks.md
    #[arg(long)]
    write: bool,
}

/// What goes wrong in the life of a seed.
type FaultsOf = fn(u64) -> Vec<Fault>;

/// What so many lives took, one after the other.
struct Took {
    lived: Vec<Lived>,
    wall: Duration,
    cpu: Duration,
}

pub fn run(flags: &Flags) -> Result<()> {
    let mut report = Report::new("sim");
    // The world before a birth is made once a process, and is no part of a life.
    lives(1, |seed| short(seed, Vec::new()))?;
    let kinds: [(&str, FaultsOf); 3] = [
        ("without faults", |_| Vec::new()),
        ("with a crash and a third of the other faults", Fault::some_of),
        ("with all faults", |_| Fault::ALL.to_vec()),
    ];
    for (what, faults) in kinds {
        let took = lives(flags.short, |seed| short(seed, faults(seed)))?;
        report.row(&format!("short lives {what}"), took.each(), format!("{}; aim 20 ms", took.beside()));
    }
    for (what, faults) in [("no faults", Vec::new()), ("all faults", Fault::ALL.to_vec())] {
        let days = flags.days;
        let setting = Setting { seed: 1, faults, days, pace: Pace::Whole, bug: None };
        let took = lives(1, |_| setting.clone())?;
        let figure = format!("{:.2} s, {:.0} simulated seconds a second", took.cpu.as_secs_f64(), took.simulated());
        report.row(&format!("one life of {days} days on bytecode, {what}"), figure, took.beside());
    }
    let (one, many) = (flags.days.min(30), flags.year);
    year(&mut report, darwin::Setting { agents: 1, days: one, seed: 1 }, "aim 1 s");
    let aim = "aim for 10,000 agents and 365 days: 60 s on two cores";
    year(&mut report, darwin::Setting { agents: flags.agents, days: many, seed: 1 }, aim);
    if flags.write {
        report.write(&Programs::project()?.join("docs/benchmarks.md"))?;
    }
    Ok(())
}

fn short(seed: u64, faults: Vec<Fault>) -> Setting {
    Setting { seed, faults, days: 0, pace: Pace::Short, bug: None }
}

fn lives(count: u64, setting: impl Fn(u64) -> Setting) -> Result<Took> {
    let (started, cpu) = (Instant::now(), cpu_time());
    let lived: Result<Vec<Lived>> =
        (1..=count).map(|seed| live(&setting(seed)).map_err(|broken| anyhow!("{broken}"))).collect();
    Ok(Took { lived: lived?, wall: started.elapsed(), cpu: cpu_time().saturating_sub(cpu) })
}

impl Took {
    fn each(&self) -> String {
        let count = self.lived.len() as f64;
        let (rate, cpu) = (count / self.wall.as_secs_f64(), self.cpu.as_secs_f64() * 1e3 / count);
        format!("{rate:.0}/s on one core, {cpu:.1} ms of CPU each")
    }

    /// Simulated seconds a second of the wall.
    fn simulated(&self) -> f64 {
        let secs: u64 = self.lived.iter().map(|lived| lived.secs).sum();
        secs as f64 / self.wall.as_secs_f64()
    }

    fn beside(&self) -> String {
        let sum = |of: fn(&Lived) -> u64| self.lived.iter().map(of).sum::<u64>();
        let (blocks, txs) = (sum(|lived| lived.blocks), sum(|lived| lived.done + lived.refused));
        format!(
            "{blocks} blocks, {txs} transactions, {} calls, {} moves, {} takeovers; {:.0} simulated seconds a second",
            sum(|lived| lived.calls + lived.channel_calls),
            sum(|lived| lived.moves),
            sum(|lived| lived.takeovers),
            self.simulated()
        )
    }
}

fn year(report: &mut Report, setting: darwin::Setting, aim: &str) {
    let (started, cpu) = (Instant::now(), cpu_time());
    let towns = towns(&setting);
    let (wall, cpu) = (started.elapsed(), cpu_time().saturating_sub(cpu));
    let alive: u64 = towns.iter().filter_map(|town| town.alive.last()).sum();
    // CPU time comes in ticks of 10 ms: of a short run it says nothing.
    let days = (setting.agents * setting.days) as f64;
    let each = match cpu > Duration::from_millis(100) {
        true => format!(", {:.1} µs of it an agent and day", cpu.as_secs_f64() * 1e6 / days),
        false => String::new(),
    };
    report.row(
        &format!("darwin, {} agent(s), {} days", setting.agents, setting.days),
        format!("{:.2} s, {:.2} s of CPU{each}", wall.as_secs_f64(), cpu.as_secs_f64()),
        format!("{alive} alive at the end, on all cores; {aim}"),
    );
}
