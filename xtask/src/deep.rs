//! `cargo xtask test --deep`: the counts that take hours. Every step that has passed is on record under the target
//! directory, so that a run which is broken off goes on where it was; what was measured goes into docs/benchmarks.md.

use crate::{contracts, fuzz, lives, mutants, setup, shell};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Long walks over the contracts, each of 1,024,000 calls from a seed of its own.
const WALKS: u32 = 10;
/// What the long walks walk over, and what walks: other contract tests have no say in it.
const WALKED: &[&str] = &[
    "contracts/src",
    "contracts/foundry.toml",
    "contracts/test/Invariants.t.sol",
    "contracts/test/LifeHandler.sol",
    "contracts/test/MarketHandler.sol",
    "contracts/test/World.sol",
];
/// What every other contract test is about, beside its own file.
const FUZZED: &[&str] = &[
    "contracts/src",
    "contracts/foundry.toml",
    "contracts/test/Cheats.sol",
    "contracts/test/Doubles.sol",
    "contracts/test/World.sol",
];
/// Programs, corpora and locked versions of the fuzzers.
const FUZZERS: &str = "fuzz";
const PAGE: &str = "docs/benchmarks.md";
const BEGIN: &str = "<!-- deep: begin -->";
const END: &str = "<!-- deep: end -->";

/// One thing that passes or fails as a whole, and is not done again until what it is about has changed.
struct Step {
    name: String,
    /// Folders and files whose contents it is about, as git knows them.
    about: Vec<String>,
    work: Work,
}

enum Work {
    /// A runner, which says in closing lines what it has run.
    Run(Command),
    /// The same after what it needs was installed, which nothing else does.
    RunWith(fn() -> Result<()>, Command),
    /// Has a record of its own, a line for each mutant.
    Mutants,
    /// Ten million inputs for one parser.
    Fuzz(&'static fuzz::Target),
}

/// What is on record of a step that has passed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Passed {
    /// Git's name of what it was about.
    tree: String,
    date: String,
    seconds: u64,
    /// The runner's own closing line.
    said: String,
}

/// Runs every step whose name begins with one of `names` (all, without any) and has not passed on these sources, then
/// writes the report. A failure does not stop the steps after it.
///
/// # Errors
/// Uncommitted changes (nobody could say later what was tested), an unknown name, or a step that failed.
pub fn run(names: &[String]) -> Result<()> {
    let mut steps = steps()?;
    for name in names {
        ensure!(
            steps.iter().any(|step| step.name.starts_with(name.as_str())),
            "no deep step begins with {name:?}: invariants, fuzz, mutants, fuzzers, parsers, arweave, payments, network, \
             drain, differential, memory, lives"
        );
    }
    steps.retain(|step| names.is_empty() || names.iter().any(|name| step.name.starts_with(name.as_str())));
    setup::everything()?;
    let mut failed = Vec::new();
    for Step { name, about, work } in steps {
        let tree = tree_of(&about)?;
        if read_record()?.get(&name).is_some_and(|passed| passed.tree == tree) {
            println!("{name}: passed before on the same sources");
            continue;
        }
        println!("\n== deep: {name}");
        let started = Instant::now();
        let done = match work {
            Work::Run(mut command) => run_step(&mut command),
            Work::RunWith(install, mut command) => install().and_then(|()| run_step(&mut command)),
            Work::Mutants => mutants::run(),
            Work::Fuzz(target) => fuzz::deeply(target),
        };
        match done {
            Ok(said) => {
                // Read again: another process may have passed another step meanwhile.
                let mut record = read_record()?;
                record.insert(name, Passed { tree, date: today()?, seconds: started.elapsed().as_secs(), said });
                write_record(&record)?;
            }
            Err(error) => failed.push(format!("{name} ({error:#})")),
        }
    }
    report(&read_record()?)?;
    ensure!(failed.is_empty(), "deep: failed: {}", failed.join(", "));
    println!("deep: green; {PAGE} has the report");
    Ok(())
}

fn steps() -> Result<Vec<Step>> {
    let owned = |about: &[&str]| about.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let forge = |profile: &str| contracts::forge_test(shell::root(), profile);
    let walk = |n: u32| {
        let mut command = forge("ci");
        command.args(["--match-path", "test/Invariants.t.sol", "--fuzz-seed", &format!("{n:#x}")]);
        Step { name: format!("invariants {n}/{WALKS}"), about: owned(WALKED), work: Work::Run(command) }
    };
    let fuzz = |file: &str| {
        let mut command = forge("deep");
        command.args(["--match-path", &format!("test/{file}")]);
        let about = [owned(FUZZED), vec![format!("contracts/test/{file}")]].concat();
        Step { name: format!("fuzz of {file}, 10,000 runs each"), about, work: Work::Run(command) }
    };
    let rust = |name: &str, about: &str, filters: &[&str]| {
        let mut command = shell::cargo();
        command.args(["test", "--workspace", "--no-fail-fast", "--"]).args(filters).env("VIVARIUM_DEEP", "1");
        Step { name: name.to_owned(), about: vec![about.to_owned()], work: Work::Run(command) }
    };
    let short_lives =
        |shard| Step { name: lives::name(shard), about: owned(lives::ABOUT), work: Work::Run(lives::command(shard)) };
    let mut arweave = shell::cargo();
    arweave.args(["test", "--package", "store", "--test", "it", "--", "arlocal_takes_what_is_signed_here"]);
    arweave.env("VIVARIUM_DEEP", "1");
    let mut steps: Vec<Step> = (1..=WALKS).map(walk).collect();
    steps.extend(contract_tests()?.iter().map(|file| fuzz(file)));
    steps.push(Step { name: "mutants".to_owned(), about: vec!["contracts".to_owned()], work: Work::Mutants });
    steps.extend(fuzz::TARGETS.iter().map(|target| Step {
        name: format!("fuzzers: {}, ten million inputs", target.name),
        about: [owned(target.about), vec![FUZZERS.to_owned()]].concat(),
        work: Work::Fuzz(target),
    }));
    steps.extend([
        rust("parsers: millions of inputs each", "crates", &["strangers_"]),
        Step {
            name: "arweave: a real gateway, arlocal".to_owned(),
            about: owned(&["crates/store", "tests/arlocal"]),
            work: Work::RunWith(setup::arlocal, arweave),
        },
        rust("payments: crash points in 1,000,000 seeded worlds", "crates/pay", &["book::tests::seeds"]),
        rust("payments: 10,000 streamed calls on one channel", "crates/pay", &["ts_rs_rs_batch_settlement_streamed"]),
        rust(
            "payments: 10,000 streamed calls of a whole agent",
            "crates",
            &["payments_are_settled_after_they_were_served_and_by_anothers_facilitator"],
        ),
        Step {
            name: "network: 10,000 lives of payments and 10,000 of fetches in turmoil".to_owned(),
            about: owned(&["crates/net", "crates/pay", "crates/store"]),
            work: Work::Run({
                let mut command = shell::cargo();
                command.args(["test", "--package", "pay", "--package", "store", "--test", "it", "--"]);
                command.arg("whatever_the_network_does").env("VIVARIUM_DEEP", "1");
                command
            }),
        },
        rust("differential of contracts and model", "crates", &["contracts_and_model_agree"]),
        rust("drain: 1,000 prompts", "crates", &["no_text_moves_money"]),
        rust(
            "memory: a day of 10,000 requests with 1 GiB of conversations",
            "crates",
            &["a_day_of_ten_thousand_calls_writes_little_more_than_it_changed"],
        ),
        rust("whole lives: 300", "crates", &["whole_lives_with_all_faults"]),
    ]);
    steps.extend((0..lives::SHARDS).map(short_lives));
    Ok(steps)
}

/// Files of contract tests but the walks, in the order of their names.
fn contract_tests() -> Result<Vec<String>> {
    let dir = shell::root().join("contracts/test");
    let mut files = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".t.sol") && name != "Invariants.t.sol" {
            files.push(name);
        }
    }
    files.sort();
    Ok(files)
}

/// Shows what it says as it says it. The runner's closing lines.
///
/// # Errors
/// It failed, or passed without having run anything.
fn run_step(command: &mut Command) -> Result<String> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start a step")?;
    let mut closing = Vec::new();
    for line in BufReader::new(child.stdout.take().context("a step without output")?).lines() {
        let line = line.context("a step's output")?;
        println!("{line}");
        if is_closing(&line) {
            closing.push(line.trim().to_owned());
        }
    }
    let status = child.wait().context("a step's end")?;
    ensure!(status.success(), "{status}");
    ensure!(!closing.is_empty(), "nothing was run");
    Ok(closing.join("; "))
}

/// Whether a runner counts in this line what it has run, and that is something.
fn is_closing(line: &str) -> bool {
    let cargo = line.starts_with("test result:") && !line.contains(" 0 passed");
    let forge = line.starts_with("Ran ") && line.contains("tests passed");
    let walk = line.contains("(runs: ") && line.contains("calls: ");
    cargo || forge || walk || line.starts_with("lives: ")
}

/// Git's name of what a folder holds, with nothing in it that is not committed; of several things, the name of the list of
/// their names (`git rev-parse HEAD:A HEAD:B | git hash-object --stdin`).
fn tree_of(about: &[String]) -> Result<String> {
    let about: Vec<&str> = about.iter().map(String::as_str).collect();
    let git = |arguments: &[&str]| -> Result<String> {
        let output = shell::program("git").args(arguments).output().context("git")?;
        ensure!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changed = git(&[&["status", "--porcelain", "--"], about.as_slice()].concat())?;
    ensure!(changed.is_empty(), "uncommitted changes, so nobody could say what was tested:\n{changed}");
    let places: Vec<String> = about.iter().map(|path| format!("HEAD:{path}")).collect();
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    let names = git(&[&["rev-parse"], places.as_slice()].concat())?;
    let name = if about.len() == 1 { names } else { name_of(&format!("{names}\n"))? };
    Ok(name.chars().take(12).collect())
}

/// As git would name a file with these contents.
fn name_of(contents: &str) -> Result<String> {
    let mut child = shell::program("git")
        .args(["hash-object", "--stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("git")?;
    child.stdin.take().context("git's input")?.write_all(contents.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "git hash-object: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn today() -> Result<String> {
    let output = Command::new("date").args(["--utc", "+%Y-%m-%d"]).output().context("date")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

// ---------------------------------------------------------------------------------------------------- the record

fn record_path() -> PathBuf {
    shell::target_dir().join("deep.json")
}

fn read_record() -> Result<BTreeMap<String, Passed>> {
    let path = record_path();
    let Ok(text) = fs::read_to_string(&path) else { return Ok(BTreeMap::new()) };
    let rows: BTreeMap<String, [String; 4]> = serde_json::from_str(&text)
        .with_context(|| format!("{} is not a record of deep tests; remove it to begin anew", path.display()))?;
    let read = |(name, [tree, date, seconds, said]): (String, [String; 4])| -> Result<(String, Passed)> {
        let seconds = seconds.parse().with_context(|| format!("{name}: seconds"))?;
        Ok((name, Passed { tree, date, seconds, said }))
    };
    rows.into_iter().map(read).collect()
}

/// Whole or not at all: a run may be broken off at any time.
fn write_record(record: &BTreeMap<String, Passed>) -> Result<()> {
    let row = |p: &Passed| [p.tree.clone(), p.date.clone(), p.seconds.to_string(), p.said.clone()];
    let rows: BTreeMap<_, _> = record.iter().map(|(name, passed)| (name, row(passed))).collect();
    let path = record_path();
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, serde_json::to_string_pretty(&rows)?)?;
    fs::rename(unfinished, path).context("the record of deep tests")
}

// ---------------------------------------------------------------------------------------------------- the report

fn report(record: &BTreeMap<String, Passed>) -> Result<()> {
    let path = shell::root().join(PAGE);
    let page = fs::read_to_string(&path).with_context(|| format!("cannot read {PAGE}"))?;
    let (Some(begin), Some(end)) = (page.find(BEGIN), page.find(END)) else {
        bail!("{PAGE} has no place for the deep tests' report ({BEGIN} … {END})");
    };
    let (before, told, after) = (&page[..begin + BEGIN.len()], &page[begin + BEGIN.len()..end], &page[end..]);
    let lived = lived(record)?;
    let steps: Vec<String> = steps()?.into_iter().map(|step| step.name).collect();
    fs::write(&path, format!("{before}\n{}{after}", table(told, &steps, record, lived.as_ref())))?;
    if let Some((tree, lived)) = lived {
        fs::write(shell::root().join(lives::PAGE), lived.page(tree)).with_context(|| lives::PAGE.to_owned())?;
    }
    std::io::stdout().flush().context("standard output is closed")
}

/// The lives on the sources that were lived last, added up.
fn lived(record: &BTreeMap<String, Passed>) -> Result<Option<(&str, lives::Lived)>> {
    let shards = || record.iter().filter(|(name, _)| name.starts_with(lives::PREFIX)).map(|(_, passed)| passed);
    let Some(tree) = shards().max_by(|a, b| a.date.cmp(&b.date)).map(|passed| passed.tree.as_str()) else {
        return Ok(None);
    };
    let mut lived = lives::Lived::default();
    for Passed { date, seconds, said, .. } in shards().filter(|passed| passed.tree == tree) {
        lived.add(said, date, *seconds)?;
    }
    Ok(Some((tree, lived)))
}

/// What the page `told` of these steps stays until they are run again: whoever ran them may have done so elsewhere.
fn table(
    told: &str,
    steps: &[String],
    record: &BTreeMap<String, Passed>,
    lived: Option<&(&str, lives::Lived)>,
) -> String {
    let told = || told.lines().filter_map(|line| Some((line.strip_prefix("| ")?.split_once(" |")?.0, line)));
    let of_steps = told().filter(|(name, _)| steps.iter().any(|step| step == name));
    let mut rows: BTreeMap<&str, String> = of_steps.map(|(name, line)| (name, format!("{line}\n"))).collect();
    for (name, Passed { tree, date, seconds, said }) in record.iter().filter(|(n, _)| !n.starts_with(lives::PREFIX)) {
        rows.insert(name, format!("| {name} | {date} | `{tree}` | {seconds} | {} |\n", said.replace('|', "/")));
    }
    let of_lives = lived.map(|(tree, lived)| lived.row(tree));
    let of_lives =
        of_lives.or_else(|| told().find(|(name, _)| *name == lives::row_name()).map(|(_, line)| format!("{line}\n")));
    let head = "| step | date | sources | s | the runner's closing lines |\n| --- | --- | --- | --- | --- |\n";
    head.to_owned() + &rows.into_values().chain(of_lives).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn only_lines_that_count_something_close_a_step() {
        for line in [
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 12 filtered out; finished in 4.00s",
            "Ran 2 test suites in 71.60s (140.11s CPU time): 3 tests passed, 0 failed, 0 skipped (3 total tests)",
            "[PASS] invariant_whatever_happens() (runs: 2000, calls: 512000, reverts: 0)",
            "lives: {\"lives\":5000}",
        ] {
            assert!(is_closing(line), "{line}");
        }
        for line in ["test result: ok. 0 passed; 0 failed", "Ran 1 test for test/A.t.sol:A", "[PASS] test_a() (gas: 1)"]
        {
            assert!(!is_closing(line), "{line}");
        }
    }

    #[test]
    fn the_benchmarks_page_has_room_for_the_report() {
        let page = fs::read_to_string(shell::root().join(PAGE)).unwrap();
        assert!(page.find(BEGIN).unwrap() < page.find(END).unwrap());
    }

    #[test]
    fn a_row_stays_until_its_step_is_run_again() {
        let row = |name: &str, date: &str| format!("| {name} | {date} | `0` | 1 | done |\n");
        let lives = lives::row_name();
        let steps = ["mutants", "walk"].map(str::to_owned);
        let mutants = Passed { tree: "0".into(), date: "2".into(), seconds: 1, said: "done".into() };
        let record = BTreeMap::from([("mutants".to_owned(), mutants)]);
        let told = table("", &steps, &record, None);
        let head = told.strip_suffix(&row("mutants", "2")).unwrap();
        let before: String = [("walk", "1"), ("gone", "1"), ("mutants", "1"), (&lives, "1")]
            .map(|(name, date)| row(name, date))
            .concat();
        let after = [row("mutants", "2"), row("walk", "1"), row(&lives, "1")].concat();
        assert_eq!(table(&format!("{head}{before}"), &steps, &record, None), format!("{head}{after}"));
    }

    /// A step that no test answers to would pass for ever.
    #[test]
    fn every_filter_names_a_test_that_exists() {
        let steps = steps().unwrap();
        let filters: BTreeSet<String> = steps
            .iter()
            .filter_map(|step| match &step.work {
                Work::Run(command) | Work::RunWith(_, command)
                    if command.get_program() == shell::cargo().get_program() =>
                {
                    Some(command)
                }
                _ => None,
            })
            .filter_map(|command| command.get_args().last()?.to_str().map(str::to_owned))
            .collect();
        assert_eq!(filters.len(), 11);
        let sources = Command::new("grep")
            .args(["-rhoE", "(async )?fn [a-z0-9_]+\\(", "--include=*.rs", "crates"])
            .current_dir(shell::root())
            .output()
            .unwrap();
        let sources = String::from_utf8(sources.stdout).unwrap();
        for filter in filters.iter().filter(|filter| !filter.contains("::")) {
            assert!(sources.contains(&format!("fn {filter}")), "{filter}");
        }
    }
}
