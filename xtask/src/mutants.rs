//! Wrong contracts on purpose: `contracts/mutants.toml` lists them, each must make a test go red.
//!
//! A suite that lets a wrong contract pass says less than it seems to. The list is written by hand, one line of a rule
//! each, because a tool's thousand mutants are mostly of arithmetic that nobody doubts.

use crate::shell;
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// One change to one source.
#[derive(Debug)]
struct Mutant {
    why: String,
    /// From `contracts/src`.
    file: String,
    find: String,
    put: String,
    /// The part of `test/<tests>.t.sol` that must go red; forge's braces are allowed.
    tests: String,
}

/// Makes every mutant in a copy under the target directory and runs its tests: about half a minute each. One that was
/// killed before by the same contracts, tests and change is not made again. The closing line.
///
/// # Errors
/// A mutant survives, does not compile, or no longer fits its source: each is named.
pub fn run() -> Result<String> {
    let contracts = shell::root().join("contracts");
    let mutants = listed(&contracts)?;
    let record = shell::target_dir().join("mutants.killed");
    let killed_before = fs::read_to_string(&record).unwrap_or_default();
    let sources = Sources::read(&contracts)?;
    let copy = copy_of(&contracts)?;
    let mut alive = Vec::new();
    for (n, mutant) in mutants.iter().enumerate() {
        let key = mutant.key(&sources.digest(&mutant.tests));
        if killed_before.lines().any(|line| line == key) {
            println!("{:>3}/{} killed before  {}", n + 1, mutants.len(), mutant.why);
            continue;
        }
        let started = Instant::now();
        let fate = kill(&copy, mutant)?;
        println!("{:>3}/{} {fate:<9} {:>4} s  {}", n + 1, mutants.len(), started.elapsed().as_secs(), mutant.why);
        if fate == "killed" {
            let mut file = fs::OpenOptions::new().create(true).append(true).open(&record)?;
            writeln!(file, "{key}").with_context(|| format!("cannot write {}", record.display()))?;
        } else {
            alive.push(format!("{} ({}): {fate}", mutant.why, mutant.file));
        }
    }
    ensure!(alive.is_empty(), "{} of {} mutants live: {}", alive.len(), mutants.len(), alive.join("; "));
    let said = format!("{} mutants, all killed", mutants.len());
    println!("{said}");
    Ok(said)
}

impl Mutant {
    /// Equal only for the same change of the same contracts, looked at by the same tests.
    fn key(&self, sources: &str) -> String {
        let Self { why: _, file, find, put, tests } = self;
        hex::encode(Sha256::digest(format!("{sources}\0{file}\0{find}\0{put}\0{tests}")))
    }
}

/// The files that mutants' fates depend on, as paths from `contracts/`, and what is in them.
struct Sources(BTreeMap<String, Vec<u8>>);

impl Sources {
    fn read(contracts: &Path) -> Result<Self> {
        let (mut paths, mut folders) =
            (vec![contracts.join("foundry.toml")], vec![contracts.join("src"), contracts.join("test")]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
                let entry = entry?;
                let into = if entry.file_type()?.is_dir() { &mut folders } else { &mut paths };
                into.push(entry.path());
            }
        }
        let told = |path: PathBuf| Ok((path.strip_prefix(contracts)?.to_string_lossy().into_owned(), fs::read(&path)?));
        paths.into_iter().map(told).collect::<Result<_>>().map(Self)
    }

    /// Of the contracts, of what all tests share, and of `tests`: other tests cannot bring a killed mutant back.
    fn digest(&self, tests: &str) -> String {
        let looked_at = names(tests);
        let mut digest = Sha256::new();
        for (path, bytes) in &self.0 {
            let test = path.strip_prefix("test/").and_then(|file| file.strip_suffix(".t.sol"));
            if test.is_none_or(|test| looked_at.contains(&test)) {
                digest.update(path.as_bytes());
                digest.update(Sha256::digest(bytes));
            }
        }
        hex::encode(digest.finalize())
    }
}

/// `A` or `{A,B}`: the files in that pattern.
fn names(tests: &str) -> Vec<&str> {
    tests.trim_matches(['{', '}']).split(',').collect()
}

/// How many there are.
pub fn count(contracts: &Path) -> Result<usize> {
    Ok(listed(contracts)?.len())
}

fn listed(contracts: &Path) -> Result<Vec<Mutant>> {
    let path = contracts.join("mutants.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let table: toml::Table = text.parse().with_context(|| format!("{} is not TOML", path.display()))?;
    let list = table.get("mutant").and_then(toml::Value::as_array).context("mutants.toml lists no [[mutant]]")?;
    list.iter().map(parse).collect()
}

fn parse(entry: &toml::Value) -> Result<Mutant> {
    let field = |name: &str| {
        let text = entry.get(name).and_then(toml::Value::as_str);
        text.map(str::to_owned).with_context(|| format!("a mutant without `{name}`: {entry}"))
    };
    Ok(Mutant {
        why: field("why")?,
        file: field("file")?,
        find: field("find")?,
        put: field("put")?,
        tests: field("tests")?,
    })
}

/// The source as the mutant has it. What it looks for must be there once, or nobody knows what was tested.
fn changed(source: &str, mutant: &Mutant) -> Result<String> {
    let found = source.matches(&mutant.find).count();
    ensure!(found == 1, "{}: {:?} occurs {found} times in {}", mutant.why, mutant.find, mutant.file);
    Ok(source.replacen(&mutant.find, &mutant.put, 1))
}

fn kill(copy: &Path, mutant: &Mutant) -> Result<&'static str> {
    let path = copy.join("src").join(&mutant.file);
    let source = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    fs::write(&path, changed(&source, mutant)?)?;
    let tests = format!("test/{}.t.sol", mutant.tests);
    let forge = copy.join("node_modules/.bin/forge");
    let mut command = Command::new(forge);
    let output = command.args(["test", "--fuzz-runs", "64", "--match-path", &tests]).current_dir(copy).output();
    fs::write(&path, source)?;
    let output = output.context("cannot start forge (cargo xtask setup)")?;
    let said = String::from_utf8_lossy(&output.stdout);
    // Anything else that fails is no test that goes red: a mutant that does not compile proves nothing.
    Ok(match (output.status.success(), said.contains("Failing tests")) {
        (true, _) => "survives",
        (false, true) => "killed",
        (false, false) => "broken",
    })
}

/// Sources, tests and what is compiled already, so that only what a mutant touches is compiled again.
fn copy_of(contracts: &Path) -> Result<PathBuf> {
    let copy = shell::target_dir().join("mutants");
    if copy.exists() {
        fs::remove_dir_all(&copy)?;
    }
    fs::create_dir_all(&copy)?;
    let from = |name: &str| contracts.join(name);
    for name in ["src", "test", "out", "cache", "foundry.toml", "solc.cjs", "package.json"] {
        if from(name).exists() {
            let status = Command::new("cp").arg("-r").arg(from(name)).arg(&copy).status().context("cp")?;
            if !status.success() {
                bail!("cannot copy {}", from(name).display());
            }
        }
    }
    std::os::unix::fs::symlink(from("node_modules"), copy.join("node_modules"))?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_fits_its_source_and_names_tests_that_exist() {
        let contracts = shell::root().join("contracts");
        let mutants = listed(&contracts).unwrap();
        assert!(mutants.len() >= 40, "{} mutants", mutants.len());
        for mutant in &mutants {
            let source = fs::read_to_string(contracts.join("src").join(&mutant.file)).unwrap();
            assert_ne!(changed(&source, mutant).unwrap(), source, "{}", mutant.why);
            for name in names(&mutant.tests) {
                assert!(contracts.join(format!("test/{name}.t.sol")).exists(), "{}: test/{name}.t.sol", mutant.why);
            }
        }
    }

    #[test]
    fn a_mutant_is_made_again_when_what_it_was_killed_by_changes_and_for_nothing_else() {
        let file = |path: &str, text: &str| (path.to_owned(), text.as_bytes().to_vec());
        let before =
            [file("src/A.sol", "1"), file("test/A.t.sol", "1"), file("test/B.t.sol", "1"), file("test/W.sol", "1")];
        let before = Sources(before.into());
        for (path, concerns) in
            [("src/A.sol", true), ("test/A.t.sol", true), ("test/W.sol", true), ("test/B.t.sol", false)]
        {
            let mut after = before.0.clone();
            after.insert(path.to_owned(), b"2".to_vec());
            assert_eq!(Sources(after).digest("A") != before.digest("A"), concerns, "{path}");
        }
        assert_ne!(before.digest("{A,B}"), before.digest("A"));
    }
}
