//! `vivarium watch`: `status` and the newest events, refreshed, following the agent as it moves.

use super::link::{Place, block_on};
use super::log;
use super::status::Both;
use anyhow::{Result, ensure};
use std::io::{IsTerminal, Write};
use std::time::Duration;

const EVENTS_SHOWN: usize = 12;

/// A live view of the agent, refreshed until Ctrl-C. It follows the agent when it moves.
#[derive(clap::Args)]
pub struct Flags {
    #[command(flatten)]
    place: Place,
    /// Seconds between two looks
    #[arg(long, value_name = "SECS", default_value_t = 1)]
    every: u64,
    /// One JSON object a line at each look, as `status --json` prints it
    #[arg(long)]
    json: bool,
}

pub fn run(flags: Flags) -> Result<()> {
    ensure!(flags.every > 0, "--every 0: the shortest interval is 1 second");
    block_on(async {
        let link = flags.place.link()?;
        let mut lines: Vec<String> = Vec::new();
        let mut seen = None;
        loop {
            let both = Both::read(&link).await;
            if flags.json {
                println!("{}", both?.json());
            } else {
                // A moment without a chain or an agent is shown, not fatal: somebody may be restarting it.
                let text = both.map_or_else(|e| format!("{e:#}\n"), |both| both.text());
                if let Ok(events) = log::fetch(&link, seen).await {
                    seen = events.last().map_or(seen, |event| event["seq"].as_u64());
                    lines.extend(events.iter().map(log::line));
                    lines.drain(..lines.len().saturating_sub(EVENTS_SHOWN));
                }
                draw(&text, &lines)?;
            }
            tokio::time::sleep(Duration::from_secs(flags.every)).await;
        }
    })
}

fn draw(text: &str, lines: &[String]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if out.is_terminal() {
        // Home and clear to the end: less flicker than clearing first.
        write!(out, "\x1b[H\x1b[J")?;
    }
    writeln!(out, "{text}\n{}", lines.join("\n"))?;
    out.flush()?;
    Ok(())
}
