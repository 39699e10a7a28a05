//! `vivarium node`: one agent's process, inside the sandbox that its provider made.

use super::link::{block_on, log_to_stderr, stopped};
use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Flags {
    /// The tenant file that the provider wrote
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub fn run(flags: Flags) -> Result<ExitCode> {
    log_to_stderr("info");
    let config = node::NodeConfig::load(&flags.config)?;
    block_on(async { Ok(node::run(config, stopped()?).await?) })?;
    Ok(ExitCode::SUCCESS)
}
