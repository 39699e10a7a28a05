//! `cargo xtask test`: everything that must hold before a change is done, cheapest first.

use crate::{contracts, setup, shell};
use anyhow::{Result, bail};
use std::time::Instant;

pub fn run(flags: &[String]) -> Result<()> {
    let deep = match flags {
        [] => false,
        [flag] if flag == "--deep" => true,
        _ => bail!("`cargo xtask test` knows only --deep, got {flags:?}"),
    };
    let started = Instant::now();
    setup::everything()?;

    step("formatting");
    shell::loudly("formatting", shell::cargo().args(["fmt", "--all", "--check"]))?;
    step("licences and bans");
    licences()?;
    step("contracts");
    contracts::check_fresh(shell::root())?;
    contracts::test_profile(shell::root(), if deep { "deep" } else { "ci" })?;
    step("clippy");
    let deny = ["--", "--deny", "warnings"];
    shell::loudly(
        "clippy",
        shell::cargo().args(["clippy", "--workspace", "--exclude", "engine", "--all-targets"]).args(deny),
    )?;
    shell::loudly("clippy of the engine", setup::engine_cargo("clippy")?.arg("--all-targets").args(deny))?;
    step("build");
    setup::program()?;
    setup::engine()?;
    step("tests");
    let mut tests = shell::cargo();
    tests.args(["test", "--workspace", "--exclude", "engine"]);
    if deep {
        tests.env("VIVARIUM_DEEP", "1");
    }
    shell::loudly("tests", &mut tests)?;
    shell::loudly("tests of the engine", &mut setup::engine_cargo("test")?)?;
    step("one whole life, with real processes");
    whole_life(deep)?;
    println!("\nall green in {:.0} s", started.elapsed().as_secs_f32());
    Ok(())
}

/// The long tests of `crates/vivarium/tests` are `#[ignore]`d, so that plain `cargo test` stays quick.
fn whole_life(deep: bool) -> Result<()> {
    let mut tests = shell::cargo();
    tests.args([
        "test",
        "--package",
        "vivarium",
        "--test",
        "*",
        "--",
        "--ignored",
        "--nocapture",
        "--test-threads",
        "1",
    ]);
    if deep {
        tests.env("VIVARIUM_DEEP", "1");
    }
    shell::loudly("end-to-end tests", &mut tests)
}

/// Off line: the advisory database is not in a registry, so advisories are not checked here, and that is said.
fn licences() -> Result<()> {
    let tool = setup::cargo_deny()?;
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
