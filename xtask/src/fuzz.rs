//! `cargo xtask fuzz`: libFuzzer on every parser of what strangers send (`fuzz/`), guided by coverage. What a compiler of
//! the stable channel takes is enough: coverage is a pass that it has, and memory errors are not what is looked for where
//! no line is unsafe. `fuzz/README.md` says how to run the same targets by cargo-fuzz.

use crate::shell;
use anyhow::{Context, Result, bail, ensure};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

/// One parser and what is known about its input.
#[derive(Debug)]
pub struct Target {
    /// Of the program, its source, its corpus.
    pub name: &'static str,
    /// Longer inputs are not tried: they cost time and reach nothing new.
    bytes_max: u32,
    /// Of `fuzz/dictionaries`.
    dictionary: Option<&'static str>,
    /// What it is about, beside its own sources.
    pub about: &'static [&'static str],
}

const DAG_PB: &[&str] =
    &["crates/store/src/cid.rs", "crates/store/src/dag.rs", "crates/store/src/protobuf.rs", "crates/store/src/walk.rs"];
const UNIXFS: &[&str] = &[
    "crates/store/src/cid.rs",
    "crates/store/src/dag.rs",
    "crates/store/src/protobuf.rs",
    "crates/store/src/unixfs",
    "crates/store/src/unixfs.rs",
];
const INFER: &[&str] = &["crates/infer/src"];

pub const TARGETS: [Target; 7] = [
    Target {
        name: "car",
        bytes_max: 4096,
        dictionary: Some("cid"),
        about: &["crates/store/src/car.rs", "crates/store/src/cid.rs"],
    },
    Target { name: "dag_pb", bytes_max: 2048, dictionary: Some("cid"), about: DAG_PB },
    Target { name: "unixfs", bytes_max: 2048, dictionary: Some("cid"), about: UNIXFS },
    Target { name: "manifest", bytes_max: 1536, dictionary: Some("manifest"), about: &["crates/node/src/manifest.rs"] },
    Target { name: "age_header", bytes_max: 1024, dictionary: Some("age"), about: &["crates/store/src/seal.rs"] },
    Target { name: "request", bytes_max: 2048, dictionary: Some("request"), about: INFER },
    Target { name: "template", bytes_max: 1024, dictionary: Some("template"), about: INFER },
];

/// How long `cargo xtask test` gives each.
pub const TEST_SECONDS: u64 = 20;
/// How many inputs `--deep` gives each.
pub const DEEP_RUNS: u64 = 10_000_000;
/// An input that takes longer is a finding.
const INPUT_SECONDS_MAX: u32 = 20;
/// Of the whole process; what one input may hold is each target's own, and smaller.
const MEMORY_MIB_MAX: u32 = 2048;

/// As cargo-fuzz sets it without a sanitizer. `--cfg fuzzing` is left out: what is tried is what is sold.
const RUSTFLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0 -Ccodegen-units=1";

/// When a run ends, if nothing breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    Seconds(u64),
    Runs(u64),
}

/// `cargo xtask fuzz [TARGET…] [--seconds N | --runs N]`: those targets, or all, after their corpora.
///
/// # Errors
/// An unknown target or flag, a build that fails, or an input that broke something; it is kept and named.
pub fn run(arguments: &[String]) -> Result<()> {
    let (names, until) = parse(arguments)?;
    let targets: Vec<&Target> =
        TARGETS.iter().filter(|target| names.is_empty() || names.iter().any(|name| name == target.name)).collect();
    build()?;
    all(&targets, until)
}

/// The corpus of each target and 20 s, two targets at a time. They are built already.
pub fn briefly() -> Result<()> {
    all(&TARGETS.iter().collect::<Vec<_>>(), Until::Seconds(TEST_SECONDS))
}

/// Ten million inputs for one target; what was run, in a line.
pub fn deeply(target: &Target) -> Result<String> {
    build()?;
    one(target, Until::Runs(DEEP_RUNS))
}

fn parse(arguments: &[String]) -> Result<(Vec<String>, Until)> {
    let (mut names, mut until) = (Vec::new(), Until::Seconds(TEST_SECONDS));
    let mut rest = arguments.iter();
    while let Some(word) = rest.next() {
        let mut number = || -> Result<u64> {
            let text = rest.next().with_context(|| format!("{word} needs a number"))?;
            text.parse().with_context(|| format!("{word} {text}: not a number"))
        };
        match word.as_str() {
            "--seconds" => until = Until::Seconds(number()?),
            "--runs" => until = Until::Runs(number()?),
            name if TARGETS.iter().any(|target| target.name == name) => names.push(name.to_owned()),
            other => bail!("no target {other:?}: {}", TARGETS.map(|target| target.name).join(", ")),
        }
    }
    Ok((names, until))
}

/// What this machine is, as the compiler calls it. Said openly to cargo, so that build scripts and macros, which run here
/// without libFuzzer, are built without its instrumentation.
fn machine() -> Result<String> {
    let output = shell::program("rustc").arg("-vV").output().context("rustc")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}

fn home() -> PathBuf {
    shell::target_dir().join("fuzz")
}

fn build() -> Result<()> {
    shell::quietly("building the fuzz targets (some minutes the first time)", &mut build_command(shell::cargo())?)
}

/// Builds them while something else runs that mostly waits: at the lowest priority, silently.
pub fn build_beside() -> Result<()> {
    let mut build = build_command(shell::at_lowest_priority(&shell::cargo()))?;
    let output = build.stdin(Stdio::null()).output().context("cannot start the build of the fuzz targets")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the fuzz targets do not build ({}):\n{said}", output.status);
    Ok(())
}

fn build_command(mut cargo: Command) -> Result<Command> {
    cargo.args(["build", "--release", "--locked", "--manifest-path", "fuzz/Cargo.toml", "--target", &machine()?]);
    cargo.arg("--target-dir").arg(home()).env("RUSTFLAGS", RUSTFLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS");
    Ok(cargo)
}

/// Runs them, two at a time, and fails for the first that failed when all are done.
fn all(targets: &[&Target], until: Until) -> Result<()> {
    let queue = Mutex::new(targets.iter().copied().collect::<VecDeque<_>>());
    let next = || queue.lock().expect("no target panics").pop_front();
    let work = || -> Result<()> {
        let mut first = Ok(());
        while let Some(target) = next() {
            let done = one(target, until).map(|said| println!("{said}"));
            first = first.and(done);
        }
        first
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let here = work();
        let there = other.join().expect("no target panics");
        here.and(there)
    })
}

/// Runs one target that was built; what was run, in a line.
fn one(target: &Target, until: Until) -> Result<String> {
    let Target { name, bytes_max, dictionary, .. } = target;
    let (found, log) = (home().join("corpus").join(name), home().join(format!("{name}.log")));
    let artifacts = home().join("artifacts");
    for dir in [&found, &artifacts] {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(home().join(machine()?).join("release").join(name));
    // What it finds goes into the first folder; the committed one is read.
    command.current_dir(shell::root()).arg(&found).arg(shell::root().join("fuzz/corpus").join(name));
    command.arg(format!("-max_len={bytes_max}")).arg(format!("-timeout={INPUT_SECONDS_MAX}"));
    command.arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}")).arg("-print_final_stats=1");
    command.arg(format!("-artifact_prefix={}/{name}-", artifacts.display()));
    if let Some(dictionary) = dictionary {
        command.arg(format!("-dict=fuzz/dictionaries/{dictionary}.dict"));
    }
    match until {
        Until::Seconds(seconds) => command.arg(format!("-max_total_time={seconds}")),
        Until::Runs(runs) => command.arg(format!("-runs={runs}")),
    };
    let started = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).status();
    let status = status.with_context(|| format!("{name}: cannot start it"))?;
    let said = fs::read_to_string(&log).unwrap_or_default();
    if !status.success() {
        let last: Vec<&str> = said.lines().rev().take(30).collect();
        eprintln!("{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        bail!("{name}: an input broke it ({status}); the file is named in {}", log.display());
    }
    let (inputs, places) = counts(&said).with_context(|| format!("{} has no count of inputs", log.display()))?;
    ensure!(inputs > 0, "{name}: nothing was tried");
    if let Until::Runs(runs) = until {
        ensure!(inputs >= runs, "{name}: {inputs} inputs instead of {runs}");
    }
    let seconds = started.elapsed().as_secs_f32();
    Ok(format!("{name}: {inputs} inputs in {seconds:.0} s, {places} places of the code reached, none broke it"))
}

/// Inputs tried and places reached, from libFuzzer's own words.
fn counts(said: &str) -> Option<(u64, u64)> {
    let inputs = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?;
    let done = said.lines().rev().find_map(|line| line.split_once("cov: "))?.1;
    Some((inputs.trim().parse().ok()?, done.split_whitespace().next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn targets_and_ends_are_read() {
        assert_eq!(parse(&[]).unwrap(), (vec![], Until::Seconds(20)));
        assert_eq!(parse(&words("car --runs 7 unixfs")).unwrap(), (words("car unixfs"), Until::Runs(7)));
        for bad in ["nothing", "car --runs", "--seconds x"] {
            assert!(parse(&words(bad)).is_err(), "{bad}");
        }
        let said =
            "#8\tINITED cov: 17 ft: 18\n#99\tDONE   cov: 23 ft: 29 corp: 2/3b\nstat::number_of_executed_units: 99\n";
        assert_eq!(counts(said), Some((99, 23)));
        assert_eq!(counts("nothing was said"), None);
    }

    /// A target that has no corpus, or that nobody runs, is found here.
    #[test]
    fn every_target_has_a_program_and_a_small_corpus() {
        let fuzz = shell::root().join("fuzz");
        let manifest: toml::Table = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap().parse().unwrap();
        let programs = manifest["bin"].as_array().unwrap().iter().map(|bin| bin["name"].as_str().unwrap());
        let listed: BTreeSet<&str> = TARGETS.iter().map(|target| target.name).collect();
        assert_eq!(programs.collect::<BTreeSet<_>>(), listed);
        let (mut files, mut bytes) = (0, 0);
        for Target { name, bytes_max, dictionary, about } in &TARGETS {
            assert!(fuzz.join(format!("fuzz_targets/{name}.rs")).is_file(), "{name}");
            assert!(dictionary.is_none_or(|of| fuzz.join(format!("dictionaries/{of}.dict")).is_file()), "{name}");
            assert!(about.iter().all(|path| shell::root().join(path).exists()), "{name}");
            let before = files;
            for entry in fs::read_dir(fuzz.join("corpus").join(name)).unwrap() {
                let length = entry.unwrap().metadata().unwrap().len();
                assert!(length <= u64::from(*bytes_max), "{name}: a file of {length} bytes is cut before it is tried");
                (files, bytes) = (files + 1, bytes + length);
            }
            assert!(files > before, "{name} has no corpus");
        }
        assert!(files <= 120 && bytes <= 200 << 10, "{files} files of {bytes} bytes");
    }

    /// Other versions would be another program's parsers.
    #[test]
    fn what_is_fuzzed_is_locked_as_the_workspace_is() {
        let packages = |path: &str| -> BTreeMap<String, BTreeSet<String>> {
            let lock: toml::Table = fs::read_to_string(shell::root().join(path)).unwrap().parse().unwrap();
            let mut versions = BTreeMap::<String, BTreeSet<String>>::new();
            for package in lock["package"].as_array().unwrap() {
                let of = |key: &str| package[key].as_str().unwrap().to_owned();
                versions.entry(of("name")).or_default().insert(of("version"));
            }
            versions
        };
        let (ours, theirs) = (packages("Cargo.lock"), packages("fuzz/Cargo.lock"));
        let own = ["arbitrary", "libfuzzer-sys", "vivarium-fuzz"];
        for (name, versions) in theirs.iter().filter(|(name, _)| !own.contains(&name.as_str())) {
            let locked = ours.get(name).unwrap_or_else(|| panic!("{name} is in fuzz/Cargo.lock alone"));
            assert!(versions.is_subset(locked), "{name}: {versions:?} to be fuzzed, {locked:?} elsewhere");
        }
    }
}
