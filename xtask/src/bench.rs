//! `cargo xtask bench`: the figures of docs/benchmarks.md, measured on worlds of real processes; `bench pay` without any.

use crate::{setup, shell};
use anyhow::Result;

pub fn run(flags: &[String]) -> Result<()> {
    if let Some((what, rest)) = flags.split_first()
        && what == "pay"
    {
        let mut bench = shell::cargo();
        bench.args(["run", "--quiet", "--package", "pay", "--example", "vouchers", "--"]).args(rest);
        return shell::loudly("bench pay", &mut bench);
    }
    setup::for_up()?;
    setup::build()?;
    let mut bench = std::process::Command::new(shell::target_dir().join("debug/vivarium"));
    shell::loudly("bench", bench.current_dir(shell::root()).arg("bench").args(flags))
}
