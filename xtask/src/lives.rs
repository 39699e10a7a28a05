//! Very many short lives: how they are divided, and what is told of all of them together.

use crate::shell;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::process::Command;

/// Short lives of the simulator, and in how many steps: each takes less than a minute, and what passed is not lived again.
pub const LIVES: u64 = 1_000_000;
pub const SHARDS: u64 = 200;
/// With what the name of each of these steps begins.
pub const PREFIX: &str = "lives ";
/// What lives are about: what they drive, and what drives them.
pub const ABOUT: &[&str] = &[
    "crates/sim",
    "crates/economy",
    "crates/chain",
    "crates/pay",
    "crates/journal",
    "crates/steward/src/ack.rs",
    "crates/steward/src/share.rs",
    "crates/store/src/checkpoint",
    "contracts/abi",
];
/// Where the report is.
pub const PAGE: &str = "docs/reference/lives.md";

/// What a shard says when all its lives are over.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shard {
    lives: u64,
    blocks: u64,
    moves: u64,
    takeovers: u64,
    /// Of the process so far.
    cpu_ms: u64,
    /// By fault and by the moment in which a process died: in how many lives both came.
    met: BTreeMap<String, BTreeMap<String, u64>>,
}

/// The name of a shard's step, by which its record is found.
pub fn name(shard: u64) -> String {
    format!("{PREFIX}{:03}/{SHARDS}", shard + 1)
}

/// What the report calls them all.
pub fn row_name() -> String {
    format!("{LIVES} short lives")
}

/// Lives one shard, in a build that does nothing but this.
pub fn command(shard: u64) -> Command {
    let per = LIVES / SHARDS;
    let mut command = shell::cargo();
    command.args(["test", "--package", "sim", "--test", "it", "--profile", "lives"]);
    command.args(["--", "--nocapture", "very_many_short_lives"]);
    command.env("VIVARIUM_LIVES", format!("{}..{}", shard * per, (shard + 1) * per));
    command
}

/// What was lived on the same sources, added up.
#[derive(Debug, Default)]
pub struct Lived {
    sum: Shard,
    shards: u64,
    seconds: u64,
    first: String,
    last: String,
}

impl Lived {
    /// One shard that passed, by its closing lines.
    ///
    /// # Errors
    /// It does not say what a shard says.
    pub fn add(&mut self, said: &str, date: &str, seconds: u64) -> Result<()> {
        let told = said.strip_prefix("lives: ").with_context(|| format!("not what lives say: {said}"))?;
        let shard = serde_json::Deserializer::from_str(told).into_iter::<Shard>().next();
        let shard = shard.context("lives that say nothing")?.context("what lives say")?;
        self.shards += 1;
        self.seconds += seconds;
        self.sum.lives += shard.lives;
        self.sum.blocks += shard.blocks;
        self.sum.moves += shard.moves;
        self.sum.takeovers += shard.takeovers;
        self.sum.cpu_ms += shard.cpu_ms;
        for (fault, moments) in shard.met {
            let of = self.sum.met.entry(fault).or_default();
            moments.into_iter().for_each(|(moment, lives)| *of.entry(moment).or_default() += lives);
        }
        if self.first.is_empty() || date < self.first.as_str() {
            date.clone_into(&mut self.first);
        }
        if date > self.last.as_str() {
            date.clone_into(&mut self.last);
        }
        Ok(())
    }

    fn moments(&self) -> BTreeSet<&str> {
        self.sum.met.values().flat_map(|moments| moments.keys().map(String::as_str)).collect()
    }

    fn pairs(&self) -> (usize, usize) {
        (self.sum.met.values().map(BTreeMap::len).sum(), self.sum.met.len() * self.moments().len())
    }

    fn days(&self) -> String {
        if self.first == self.last { self.first.clone() } else { format!("{} to {}", self.first, self.last) }
    }

    /// One row of the deep tests' table.
    pub fn row(&self, tree: &str) -> String {
        format!("| {} | {} | `{tree}` | {} | {} |\n", row_name(), self.days(), self.seconds, self.closing())
    }

    fn closing(&self) -> String {
        let (met, of) = self.pairs();
        let Shard { lives, blocks, moves, takeovers, cpu_ms, .. } = &self.sum;
        format!(
            "{lives} lives, none broke anything ({} of {SHARDS} steps); {blocks} blocks, {moves} moves, {takeovers} \
             takeovers; {met} of {of} pairs of fault and crash moment; {} ms of CPU each",
            self.shards,
            cpu_ms / (*lives).max(1)
        )
    }

    /// The whole page.
    pub fn page(&self, tree: &str) -> String {
        let faults: Vec<&str> = self.sum.met.keys().map(String::as_str).collect();
        let mut page = format!(
            "# A million short lives\n\n\
             Written by `cargo xtask test --deep lives`. {}: {}. Sources (`git rev-parse HEAD:A HEAD:B … | git hash-object \
             --stdin` over {}): `{tree}`. What lives are, and what they found: sim.md.\n\n\
             In how many lives a process died in this moment and this fault came, too:\n\n| moment | {} |\n|{}\n",
            self.days(),
            self.closing(),
            ABOUT.join(", "),
            faults.join(" | "),
            " --- |".repeat(faults.len() + 1),
        );
        for moment in self.moments() {
            let cells = self.sum.met.values().map(|moments| moments.get(moment).copied().unwrap_or(0).to_string());
            let cells: Vec<String> = cells.collect();
            writeln!(page, "| {moment} | {} |", cells.join(" | ")).expect("a string takes everything");
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = r#"lives: {"lives":10,"blocks":20,"moves":3,"takeovers":1,"cpu_ms":80,"met":
        {"reorg":{"after sending rent":2},"crash":{"after sending rent":4,"before sending close":1}}}; test result: ok."#;

    #[test]
    fn shards_add_up() {
        let mut lived = Lived::default();
        lived.add(SAID, "2026-11-30", 5).unwrap();
        lived.add(SAID, "2026-11-29", 7).unwrap();
        assert_eq!(
            lived.row("abc"),
            "| 1000000 short lives | 2026-11-29 to 2026-11-30 | `abc` | 12 | 20 lives, none broke anything (2 of 200 \
             steps); 40 blocks, 6 moves, 2 takeovers; 3 of 4 pairs of fault and crash moment; 8 ms of CPU each |\n"
        );
        let page = lived.page("abc");
        assert!(page.contains("| moment | crash | reorg |\n| --- | --- | --- |\n"), "{page}");
        assert!(page.contains("| after sending rent | 8 | 4 |\n| before sending close | 2 | 0 |\n"), "{page}");
        assert!(lived.add("test result: ok.", "2026-11-30", 1).is_err());
    }
}
