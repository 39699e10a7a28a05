//! `vivarium log`: the agent's life as it wrote it down.

use super::link::{Link, Place, block_on};
use anyhow::{Context, Result};
use serde_json::Value;

/// Prints the agent's log: birth, leases, moves, income, alarms, with chain times.
#[derive(clap::Args)]
pub struct Flags {
    #[command(flatten)]
    place: Place,
    /// Only events after this sequence number
    #[arg(long, value_name = "SEQ")]
    after: Option<u64>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub fn run(flags: Flags) -> Result<()> {
    block_on(async {
        let link = flags.place.link()?;
        for event in fetch(&link, Some(flags.after.unwrap_or(0))).await? {
            if flags.json {
                println!("{event}");
            } else {
                println!("{}", line(&event));
            }
        }
        Ok(())
    })
}

/// Events after `after`; the newest ones when it is `None`.
pub async fn fetch(link: &Link, after: Option<u64>) -> Result<Vec<Value>> {
    let path = after.map_or_else(|| "/log?last=20".to_owned(), |seq| format!("/log?after={seq}"));
    let mut answer = link.get(&path).await?;
    match answer["events"].take() {
        Value::Array(events) => Ok(events),
        _ => None.context("the agent's log has no list of events: is it a Vivarium agent?"),
    }
}

pub fn line(event: &Value) -> String {
    let text = |name: &str| event[name].as_str().unwrap_or("?").to_owned();
    format!(
        "{:>6}  block {:>6}  {:<12} {}",
        event["seq"].to_string(),
        event["block"].to_string(),
        text("kind"),
        text("text")
    )
}
