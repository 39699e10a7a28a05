//! What `cargo xtask test` says of itself at its end: how small the contracts are and how much was tried against them.
//! Each number is read where it is defined, so that none can be told that was not run.

use crate::{contracts, mutants};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

const DIFFERENTIAL: &str = "crates/sim/tests/it/differential.rs";
const WALKS: &str = "contracts/test/Invariants.t.sol";
const FOUNDRY: &str = "contracts/foundry.toml";
const KEYS: &str = "docs/operating/keys.md";

/// The numbers of a run whose walks are those of this profile of foundry.toml; what runs deep is called so.
///
/// # Errors
/// A number is not where it is looked for: correct the place here.
pub fn of_a_run(root: &Path, profile: &str) -> Result<String> {
    let contracts = root.join("contracts");
    let lines = grouped(contracts::lines(&contracts)?);
    let lines_max = grouped(contracts::LINES_MAX);
    let mutants = mutants::count(&contracts)?;
    let (walks, runs, depth) = walks(root, profile)?;
    let calls = grouped(walks * runs * depth);
    let (runs, depth) = (grouped(runs), grouped(depth));
    let sequences = constant(root, DIFFERENTIAL, "SEQUENCES")?;
    let each = constant(root, DIFFERENTIAL, "CALLS")?;
    let compared = grouped(sequences * each);
    let prompts = constant(root, "crates/vivarium/tests/it/drain/prompts.rs", "PROMPTS")?;
    let asked = prompts.div_ceil(constant(root, "crates/vivarium/tests/it/drain.rs", "STRIDE")?);
    let prompts = grouped(prompts);
    let thief = thief(root)?;
    let rows = [
        ("contracts", format!("{lines} lines that say something, of {lines_max} allowed")),
        ("mutants", format!("{mutants} listed; each is killed by `--deep mutants`")),
        ("walks", format!("{calls} calls: {walks} walks of {runs} runs of {depth} calls")),
        ("differential", format!("{compared} calls: {sequences} sequences of {each}, contracts against model")),
        ("drain", format!("{asked} of {prompts} prompts asked; all {prompts} by `--deep drain`")),
        ("deep", "docs/benchmarks.md, with dates".to_owned()),
        ("thief", format!("key by key, as {KEYS} has it\n\n{thief}")),
    ];
    Ok(rows.map(|(what, said)| format!("{what:<14}{said}")).join("\n"))
}

/// How many walks there are, in how many runs each, of how many calls.
fn walks(root: &Path, profile: &str) -> Result<(usize, usize, usize)> {
    let walks = read(root, WALKS)?.matches("\n    function invariant_").count();
    let table: toml::Table = read(root, FOUNDRY)?.parse().with_context(|| format!("{FOUNDRY} is not TOML"))?;
    let of = |profile: &str, name: &str| {
        let value = table.get("profile")?.get(profile)?.get("invariant")?.get(name)?;
        usize::try_from(value.as_integer()?).ok()
    };
    // A profile has what it does not say from the default one.
    let number = |name: &str| {
        let number = of(profile, name).or_else(|| of("default", name));
        number.with_context(|| format!("{FOUNDRY} has no `invariant.{name}` for {profile}"))
    };
    Ok((walks, number("runs")?, number("depth")?))
}

/// The table that `crates/sim/tests/it/thief.rs` keeps in the page on keys.
fn thief(root: &Path) -> Result<String> {
    let page = read(root, KEYS)?;
    let table = page.split_once("<!-- thief:").and_then(|(_, rest)| rest.split_once("-->\n"));
    let table = table.and_then(|(_, rest)| rest.split_once("<!-- end -->"));
    Ok(table.with_context(|| format!("{KEYS} has no table of the thief's"))?.0.trim_end().to_owned())
}

/// `const NAME: T = 1_000;` in a source.
fn constant(root: &Path, path: &str, name: &str) -> Result<usize> {
    let text = read(root, path)?;
    let value = text.split_once(&format!("const {name}: ")).and_then(|(_, rest)| rest.split_once(" = "));
    let value = value.and_then(|(_, rest)| rest.split_once(';')).map(|(value, _)| value.replace('_', ""));
    value.and_then(|value| value.parse().ok()).with_context(|| format!("{path} has no number {name}"))
}

fn read(root: &Path, path: &str) -> Result<String> {
    fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))
}

/// 1,024,000.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!([0, 999, 1_000, 1_024_000].map(grouped), ["0", "999", "1,000", "1,024,000"]);
    }

    /// Every number is found, and is what a run has to have tried at least.
    #[test]
    fn a_run_tells_its_numbers() {
        let root = shell::root();
        let (walks, runs, depth) = walks(root, "ci").unwrap();
        assert!(walks >= 2 && walks * runs * depth >= 1_000_000, "{walks} walks of {runs} runs of {depth} calls");
        assert!(mutants::count(&root.join("contracts")).unwrap() >= 40);
        assert!(constant(root, DIFFERENTIAL, "SEQUENCES").unwrap() > 0);
        assert!(constant(root, DIFFERENTIAL, "NO_SUCH_NUMBER").is_err());
        let said = of_a_run(root, "ci").unwrap();
        let prompts = " of 1,000 prompts asked; all 1,000 by `--deep drain`";
        assert!(said.contains(prompts) && !said.contains(&format!(" 0{prompts}")), "{said}");
        let rows: Vec<&str> = said.lines().filter(|line| line.starts_with("| ")).collect();
        assert_eq!(rows[0], "| key | tries in a week | the agent lost | at most | that is |");
        for key in ["creator", "operator", "standby", "relay", "one steward", "k stewards", "provider", "customer"] {
            assert!(rows.iter().any(|row| row.starts_with(&format!("| {key}"))), "{key}: {said}");
        }
    }
}
