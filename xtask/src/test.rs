//! `cargo xtask test`: everything that must hold before a change is done, cheapest first.

use crate::{contracts, deep, fuzz, numbers, setup, shell};
use anyhow::{Result, bail};
use std::time::Instant;

/// Of foundry.toml: how long the contracts' fuzzing and walks are here.
const PROFILE: &str = "ci";

pub fn run(flags: &[String]) -> Result<()> {
    match flags {
        [] => {}
        [flag, names @ ..] if flag == "--deep" => return deep::run(names),
        _ => bail!("`cargo xtask test` knows only --deep, got {flags:?}"),
    }
    let started = Instant::now();
    setup::everything()?;

    step("formatting");
    shell::loudly("formatting", shell::cargo().args(["fmt", "--all", "--check"]))?;
    let fuzzed = ["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"];
    shell::loudly("formatting", shell::cargo().args(fuzzed))?;
    step("licences and bans");
    licences()?;
    step("contracts");
    contracts::check_fresh(shell::root())?;
    contracts::test_profile(shell::root(), PROFILE)?;
    contracts::test_profile(shell::root(), "gas")?;
    step("clippy");
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    shell::loudly("clippy", shell::cargo().args(clippy))?;
    step("tests, the whole life with real processes among them");
    // Compiles the programs, too. A build of its own before it would compile most dependencies once more: tests'
    // own dependencies switch on other features.
    let mut tests = shell::cargo();
    tests.args(["test", "--workspace", "--no-fail-fast"]);
    // Whole lives wait for their days most of the time; the fuzzers' build of some minutes needs nothing but processors.
    std::thread::scope(|scope| {
        let fuzzers = scope.spawn(fuzz::build_beside);
        let tests = shell::loudly("tests", &mut tests);
        let built = fuzzers.join().expect("the build does not panic");
        tests.and(built)
    })?;
    step("fuzzing, 20 s a parser");
    fuzz::briefly()?;
    step("what that was, in numbers");
    println!("{}", numbers::of_a_run(shell::root(), PROFILE)?);
    println!("\nall green in {:.0} s", started.elapsed().as_secs_f32());
    Ok(())
}

/// Off line: the advisory database is not in a registry, so advisories are not checked here, and that is said.
fn licences() -> Result<()> {
    let tool = setup::cargo_deny()?;
    shell::loudly("fetching the locked crates", shell::cargo().args(["fetch", "--locked", "--quiet"]))?;
    let mut deny = shell::program(&tool.to_string_lossy());
    deny.args(["--offline", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"]);
    shell::loudly("cargo-deny", &mut deny)?;
    println!(
        "advisories: NOT checked (their database is not in a registry; `cargo deny check advisories` with a network)"
    );
    Ok(())
}

fn step(name: &str) {
    println!("\n== {name}");
}
