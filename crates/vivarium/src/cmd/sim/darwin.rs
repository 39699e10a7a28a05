//! `vivarium sim darwin`: thousands of agents for a year, and a report of who lived.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sim::darwin::report::{self, Group, Summary};
use sim::darwin::{Setting, Town};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// Lives thousands of agents through a year of demand, prices and hosts, and reports who lived and why others wound
/// down.
///
/// The agents decide with the code that real ones run; what the world does is assumed, and each assumption is listed in
/// the report with its source. The same seed gives the same bytes.
#[derive(clap::Args)]
pub struct Flags {
    #[arg(long, default_value_t = 10_000)]
    agents: u64,
    #[arg(long, default_value_t = 365)]
    days: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where darwin.html and darwin.csv go; it is made if it is not there.
    #[arg(long, value_name = "DIR", default_value = "darwin")]
    out: PathBuf,
    /// Prints the summary as JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(flags: &Flags) -> Result<()> {
    let setting = Setting { agents: flags.agents, days: flags.days, seed: flags.seed };
    ensure!(setting.agents > 0 && setting.days > 0, "a year needs an agent and a day");
    let towns = towns(&setting);
    let summary = Summary::new(setting, &towns);
    std::fs::create_dir_all(&flags.out).with_context(|| format!("{} cannot be made", flags.out.display()))?;
    let write = |name: &str, text: String| {
        let path = flags.out.join(name);
        std::fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
        Ok::<_, anyhow::Error>(path)
    };
    let page = write("darwin.html", report::html(&summary))?;
    let table = write("darwin.csv", report::csv(&setting, &towns))?;
    if flags.json {
        println!("{:#}", to_json(&summary));
    } else {
        println!("{}", summary.text());
        println!("{} and {}", page.display(), table.display());
    }
    Ok(())
}

/// Each core takes the next town; their order is by number whoever was faster.
pub fn towns(setting: &Setting) -> Vec<Town> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = AtomicU64::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= setting.towns() {
                return done;
            }
            done.push((number, setting.town(number)));
        }
    };
    let mut all: Vec<(u64, Town)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a panic ends the process")).collect()
    });
    all.sort_by_key(|(number, _)| *number);
    all.into_iter().map(|(_, town)| town).collect()
}

fn to_json(summary: &Summary) -> Value {
    let group = |group: &Group| {
        json!({
            "name": group.name,
            "born": group.born,
            "alive": group.alive,
            "lived_days_median_of_the_dead": group.lived_days_median,
            "margin_permille_median": group.margin_permille_median,
        })
    };
    let groups = |of: &[Group]| of.iter().map(group).collect::<Vec<_>>();
    json!({
        "agents": summary.setting.agents,
        "days": summary.setting.days,
        "seed": summary.setting.seed,
        "all": group(&summary.all),
        "causes": summary.causes.iter().map(|(_, of)| group(of)).collect::<Vec<_>>(),
        "by_skill": groups(&summary.by_skill),
        "by_rent": groups(&summary.by_rent),
        "by_trade": groups(&summary.by_trade),
        "alive_by_day": summary.alive,
        "deaths_by_30_days": summary.deaths,
        "moves": summary.moves,
        "takeovers": summary.takeovers,
        "rescues": summary.rescues,
        "best_tenth_earned_pct": summary.best_tenth_earned_pct,
    })
}
