//! `vivarium engine …`: the engine is a program of its own, with C++ inside and no keys; this only finds it.

use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;

#[derive(clap::Args)]
pub struct Flags {
    /// Passed on; `vivarium engine --help` shows the engine's own help.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub fn run(flags: Flags) -> Result<()> {
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let engine = infer::engines::best_in(own.parent().context("this program lies in a folder")?);
    if !engine.is_file() {
        bail!(
            "the engine is not installed beside this program ({} is missing); build it with `cargo xtask up`",
            engine.display()
        );
    }
    Err(std::process::Command::new(&engine).args(flags.arguments).exec())
        .with_context(|| format!("cannot start {}", engine.display()))
}
