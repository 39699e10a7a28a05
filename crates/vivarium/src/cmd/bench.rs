//! `vivarium bench`: figures for docs/benchmarks.md. Each has its peer in the same run, or says how it was measured.

mod cold;
mod events;
mod infer;
mod journal;
mod moves;
mod pay;
mod quality;
mod report;
mod sim;
mod store;
mod world;

use super::link::{block_on, log_to_stderr};
use anyhow::Result;

/// Prints how long things take: whole worlds, what customers feel of moves (`bench move`), or one part alone: payments (`bench pay`), the engine (`bench infer`), what its models are good for (`bench quality`), the content store (`bench store`), the journal (`bench journal`), the simulators (`bench sim`).
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
    Infer(infer::Flags),
    Journal(journal::Flags),
    Move(moves::Flags),
    Pay(pay::Flags),
    Quality(quality::Flags),
    Sim(sim::Flags),
    Store(store::Flags),
}

pub fn run(flags: Flags) -> Result<()> {
    log_to_stderr("warn");
    match flags.what {
        Some(What::Infer(flags)) => block_on(infer::run(flags)),
        Some(What::Journal(flags)) => journal::run(&flags),
        Some(What::Move(flags)) => block_on(moves::run(flags)),
        Some(What::Pay(flags)) => block_on(pay::run(flags)),
        Some(What::Quality(flags)) => block_on(quality::run(flags)),
        Some(What::Sim(flags)) => sim::run(&flags),
        Some(What::Store(flags)) => block_on(store::run(flags)),
        None => block_on(world::run(flags.world)),
    }
}
