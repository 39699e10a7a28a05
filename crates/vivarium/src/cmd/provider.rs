//! `vivarium provider run`: rents this machine out.

use super::link::{block_on, log_to_stderr, stopped};
use anyhow::Result;
use std::path::PathBuf;

/// Rents this machine out on the lease market.
#[derive(clap::Args)]
pub struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Runs the provider daemon until SIGTERM: offers, leases, tenants in sandboxes
    Run {
        /// The provider's TOML file; `vivarium up` writes examples (provider-1/config.toml)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

pub fn run(flags: Flags) -> Result<()> {
    let Command::Run { config } = flags.command;
    log_to_stderr("info");
    let config = host::HostConfig::load(&config)?;
    block_on(async { host::run(config, stopped()?).await })
}
