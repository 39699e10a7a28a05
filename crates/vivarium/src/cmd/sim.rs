//! `vivarium sim`: worlds in simulated time, on nobody's money.

pub mod darwin;
mod lives;

use anyhow::Result;
use std::process::ExitCode;

/// Lives whole lives in simulated time while faults rain, and says when something that must hold does not.
///
/// Exit code 1: an invariant broke. Its seed, the last events and the command that repeats it are printed.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Flags {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    lives: lives::Flags,
}

#[derive(clap::Subcommand)]
enum What {
    Darwin(darwin::Flags),
}

pub fn run(flags: Flags) -> Result<ExitCode> {
    match flags.what {
        Some(What::Darwin(flags)) => darwin::run(&flags).map(|()| ExitCode::SUCCESS),
        None => lives::run(&flags.lives),
    }
}
