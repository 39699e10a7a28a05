//! `cargo xtask bench`: the figures of docs/benchmarks.md, measured on worlds of real processes.

use crate::{setup, shell};
use anyhow::Result;

pub fn run(flags: &[String]) -> Result<()> {
    setup::for_up()?;
    setup::build()?;
    let mut bench = std::process::Command::new(shell::target_dir().join("debug/vivarium"));
    shell::loudly("bench", bench.current_dir(shell::root()).arg("bench").args(flags))
}
