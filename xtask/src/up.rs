//! `cargo xtask up`: from a clean checkout to a running world.

use crate::{setup, shell};
use anyhow::{Context, Result};
use std::os::unix::process::CommandExt;

/// Replaces itself by `vivarium up`, so that Ctrl-C and the exit code are the program's own.
pub fn run(flags: &[String]) -> Result<()> {
    setup::for_up()?;
    let binary = shell::target_dir().join("debug/vivarium");
    setup::build()?;
    let mut up = std::process::Command::new(&binary);
    // The developer's own folder stays the working folder: --data-dir is relative to it.
    Err(up.arg("up").args(flags).exec()).with_context(|| format!("cannot start {}", binary.display()))
}
