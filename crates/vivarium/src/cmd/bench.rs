//! `vivarium bench`: figures for docs/benchmarks.md. Each has its peer in the same run, or says how it was measured.

mod pay;
mod report;
mod store;
mod world;

use super::link::{block_on, log_to_stderr};
use anyhow::Result;

/// Prints how long things take: whole worlds, or the payment layer (`bench pay`) or the content store (`bench store`) alone.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Flags {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    world: world::Flags,
}

#[derive(clap::Subcommand)]
enum What {
    Pay(pay::Flags),
    Store(store::Flags),
}

pub fn run(flags: Flags) -> Result<()> {
    log_to_stderr("warn");
    match flags.what {
        Some(What::Pay(flags)) => block_on(pay::run(flags)),
        Some(What::Store(flags)) => block_on(store::run(flags)),
        None => block_on(world::run(flags.world)),
    }
}
